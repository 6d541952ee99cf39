/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_attention.c: ATTENTION for one (token, query head) per unit, as online softmax over KV blocks of 32 positions:
 *   m' = max(m, max s), out = out e^(m - m') + sum_j e^(s_j - m') V_j, l = l e^(m - m') + sum_j e^(s_j - m'), out / l
 * The head's slice of dst holds `out` meanwhile, so any head size works without scratch memory. Cache rows past the
 * token's position are never read. A run of 32 positions of one head is one piece of memory.
 */
#include <float.h>
#include <math.h>

#include "avx2.h"

/* Values c .. c + n - 1 of a cache row, n <= 8; zeros behind them. */
AVX2_INLINE __m256 cache_at(const enum dl_type type, const uint8_t *row, uint32_t c, uint32_t n)
{
    if (type == DL_Q80)
        return avx2_q80_at(row, c);
    if (type == DL_F32) {
        const float *p = (const float *)(const void *)row + c;
        return n == 8 ? _mm256_loadu_ps(p) : avx2_load_part(p, n);
    }
    const uint8_t *p = row + 2 * (uint64_t)c;
    return _mm256_cvtph_ps(n == 8 ? avx2_load128(p) : avx2_load_part16(p, n));
}

/* s[j] = scale * q . K_j for j < count, -infinity up to the next multiple of 8. Four rows share each load of q. */
AVX2_INLINE void scores(const enum dl_type type, const float *q, const uint8_t *k, uint64_t k_row, uint32_t dim,
                        float scale, uint32_t count, float s[DL_KV_BLOCK])
{
    for (uint32_t j = 0; j < count; j += 4) {
        const uint8_t *row[4];
        __m256 acc[4];
        for (uint32_t r = 0; r < 4; r++) {
            row[r] = k + DL_MIN(j + r, count - 1) * k_row;
            acc[r] = _mm256_setzero_ps();
        }
        uint32_t c = 0;
        for (; dim - c >= 8; c += 8) {
            __m256 v = _mm256_loadu_ps(q + c);
            for (uint32_t r = 0; r < 4; r++)
                acc[r] = _mm256_fmadd_ps(v, cache_at(type, row[r], c, 8), acc[r]);
        }
        if (type != DL_Q80 && c < dim) {
            __m256 v = avx2_load_part(q + c, dim - c);
            for (uint32_t r = 0; r < 4; r++)
                acc[r] = _mm256_fmadd_ps(v, cache_at(type, row[r], c, dim - c), acc[r]);
        }
        _mm_storeu_ps(s + j, _mm_mul_ps(avx2_sum4(acc[0], acc[1], acc[2], acc[3]), _mm_set1_ps(scale)));
    }
    for (uint32_t j = count; j % 8; j++)
        s[j] = -INFINITY;
}

/* out[c ..] = out[c ..] * keep + sum_j p[j] V_j[c ..] for VECS vectors of eight columns. */
AVX2_INLINE void add_v(const enum dl_type type, float *out, const uint8_t *v, uint64_t v_row, uint32_t c, float keep,
                       const float *p, uint32_t count, const uint32_t VECS)
{
    __m256 acc[4];
    for (uint32_t i = 0; i < VECS; i++)
        acc[i] = _mm256_mul_ps(_mm256_loadu_ps(out + c + 8 * i), _mm256_set1_ps(keep));
    for (uint32_t j = 0; j < count; j++) {
        __m256 w = _mm256_set1_ps(p[j]);
        for (uint32_t i = 0; i < VECS; i++)
            acc[i] = _mm256_fmadd_ps(w, cache_at(type, v + j * v_row, c + 8 * i, 8), acc[i]);
    }
    for (uint32_t i = 0; i < VECS; i++)
        _mm256_storeu_ps(out + c + 8 * i, acc[i]);
}

AVX2_INLINE void values(const enum dl_type type, float *out, const uint8_t *v, uint64_t v_row, uint32_t dim, float keep,
                        const float *p, uint32_t count)
{
    uint32_t c = 0;
    for (; dim - c >= 32; c += 32)
        add_v(type, out, v, v_row, c, keep, p, count, 4);
    for (; dim - c >= 8; c += 8)
        add_v(type, out, v, v_row, c, keep, p, count, 1);
    if (type == DL_Q80 || c == dim)
        return;
    __m256 acc = _mm256_mul_ps(avx2_load_part(out + c, dim - c), _mm256_set1_ps(keep));
    for (uint32_t j = 0; j < count; j++)
        acc = _mm256_fmadd_ps(_mm256_set1_ps(p[j]), cache_at(type, v + j * v_row, c, dim - c), acc);
    avx2_store_part(out + c, acc, dim - c);
}

/* p = e^(s - m) in place; returns l * keep + their sum, lane by lane. */
AVX2_INLINE __m256 weights(float s[DL_KV_BLOCK], uint32_t count, float m, float keep, __m256 l)
{
    l = _mm256_mul_ps(l, _mm256_set1_ps(keep));
    for (uint32_t j = 0; j < count; j += 8) {
        __m256 p = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + j), _mm256_set1_ps(m)));
        _mm256_storeu_ps(s + j, p);
        l = _mm256_add_ps(l, p);
    }
    return l;
}

AVX2_INLINE void head(const enum dl_type type, const struct cpu_task *task, uint32_t t, uint32_t h)
{
    const struct dl_op *op = task->op;
    uint32_t dim = op->u.attn.head_dim, n_kv = op->u.attn.n_kv_heads, n_pos = task->rows[t].pos + 1;
    uint32_t kv_head = (op->u.attn.first_head + h) / op->u.attn.group;
    const float *q = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + (uint64_t)h * dim;
    float *out = (float *)(void *)cpu_row_out(task->dst, &op->dst, t) + (uint64_t)h * dim;
    uint64_t k_row = op->src[1].row_bytes, v_row = op->src[2].row_bytes;

    memset(out, 0, dim * sizeof *out);
    float m = -FLT_MAX / 2; /* an infinite start would make the first e^(m - m') NaN */
    __m256 l = _mm256_setzero_ps();
    for (uint32_t pos = 0; pos < n_pos; pos += DL_KV_BLOCK) {
        float s[DL_KV_BLOCK];
        uint32_t count = DL_MIN(n_pos - pos, DL_KV_BLOCK);
        uint64_t row = cpu_kv_row(task, t, n_kv, kv_head, pos);
        scores(type, q, task->src[1] + row * k_row, k_row, dim, op->u.attn.scale, count, s);
        __m256 top = _mm256_loadu_ps(s);
        for (uint32_t j = 8; j < count; j += 8)
            top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
        float m_new = DL_MAX(m, avx2_max(top));
        float keep = _mm256_cvtss_f32(avx2_exp(_mm256_set1_ps(m - m_new)));
        m = m_new;
        l = weights(s, count, m, keep, l);
        values(type, out, task->src[2] + row * v_row, v_row, dim, keep, s, count);
    }
    float sum = avx2_sum(l);
    __m256 inv = _mm256_set1_ps(sum != 0 ? 1.0f / sum : 0.0f);
    uint32_t c = 0;
    for (; dim - c >= 8; c += 8)
        _mm256_storeu_ps(out + c, _mm256_mul_ps(_mm256_loadu_ps(out + c), inv));
    if (c < dim)
        avx2_store_part(out + c, _mm256_mul_ps(avx2_load_part(out + c, dim - c), inv), dim - c);
}

AVX2_INLINE void heads(const enum dl_type type, const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    for (uint32_t u = unit0; u < unit1; u++)
        head(type, task, u / task->op->u.attn.n_heads, u % task->op->u.attn.n_heads);
}

static void attention_f32(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    heads(DL_F32, task, u0, u1);
}
static void attention_f16(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    heads(DL_F16, task, u0, u1);
}
static void attention_q80(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    heads(DL_Q80, task, u0, u1);
}

cpu_kernel *cpu_avx2_pick_attention(const struct dl_op *op)
{
    switch (op->src[1].type) {
    case DL_F32:
        return attention_f32;
    case DL_F16:
        return attention_f16;
    case DL_Q80:
        return attention_q80;
    default:
        return NULL;
    }
}
