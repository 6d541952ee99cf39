/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_attention.c: ATTENTION as online softmax over KV blocks of 32 positions:
 *   m' = max(m, max s), out = out e^(m - m') + sum_j e^(s_j - m') V_j, l = l e^(m - m') + sum_j e^(s_j - m'), out / l
 * The query heads of one token that share a KV head go over its blocks together, four at a time through each load of the
 * cache; what one head computes does not depend on whether it has company. A head's slice of dst holds `out` meanwhile, so
 * any head size works without scratch memory. Cache rows past the token's position are never read.
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

enum {
    HEADS = 8,   /* that go over the cache together */
    AT_ONCE = 4, /* of them meet a vector of it when it is loaded */
    AHEAD = 2 * DL_KV_BLOCK
};

struct query {
    const float *q;
    float *out, m;
    __m256 l;
};

/* `count` positions of one KV head, one after the other in memory. Those AHEAD positions on are somewhere else, where no
 * processor would guess: their rows are fetched while these are used. */
struct span {
    const uint8_t *k, *v, *ahead_k, *ahead_v; /* ahead: NULL at the end */
    uint64_t k_row, v_row;                    /* bytes */
    uint32_t dim, count;
    float scale;
};

/* Into L2: straight into L1, from memory, takes as long as not to fetch at all (126 cycles a position against 75). */
AVX2_INLINE void fetch(const uint8_t *row, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)row + i, _MM_HINT_T1);
}

/* s[h][j] = scale * q_h . K_j for j < count, -infinity up to the next multiple of 8. Eight sums are as many as the registers
 * hold: rows times heads. */
AVX2_INLINE void scores(const enum dl_type type, const struct span *sp, const struct query *query,
                        float s[AT_ONCE][DL_KV_BLOCK], bool fetching, const uint32_t H)
{
    const uint32_t R = H == 4 ? 2 : 4;
    for (uint32_t j = 0; j < sp->count; j += R) {
        const uint8_t *row[4];
        __m256 acc[AT_ONCE][4];
        for (uint32_t r = 0; r < 4; r++) {
            row[r] = sp->k + DL_MIN(j + r, sp->count - 1) * sp->k_row;
            if (fetching && r < R)
                fetch(sp->ahead_k + (j + r) * sp->k_row, sp->k_row);
            for (uint32_t h = 0; h < H; h++)
                acc[h][r] = _mm256_setzero_ps();
        }
        for (uint32_t c = 0; c < sp->dim; c += 8) {
            uint32_t n = DL_MIN(sp->dim - c, 8);
            __m256 key[4];
            for (uint32_t r = 0; r < R; r++)
                key[r] = cache_at(type, row[r], c, n);
            for (uint32_t h = 0; h < H; h++) {
                __m256 q = n == 8 ? _mm256_loadu_ps(query[h].q + c) : avx2_load_part(query[h].q + c, n);
                for (uint32_t r = 0; r < R; r++)
                    acc[h][r] = _mm256_fmadd_ps(q, key[r], acc[h][r]);
            }
        }
        __m128 k = _mm_set1_ps(sp->scale);
        if (H == 4)
            for (uint32_t h = 0; h < H; h += 2) { /* two heads, two rows each */
                __m128 sum = _mm_mul_ps(avx2_sum4(acc[h][0], acc[h][1], acc[h + 1][0], acc[h + 1][1]), k);
                _mm_storel_pi((__m64 *)(void *)(s[h] + j), sum);
                _mm_storeh_pi((__m64 *)(void *)(s[h + 1] + j), sum);
            }
        else
            for (uint32_t h = 0; h < H; h++)
                _mm_storeu_ps(s[h] + j, _mm_mul_ps(avx2_sum4(acc[h][0], acc[h][1], acc[h][2], acc[h][3]), k));
    }
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t j = sp->count; j % 8; j++)
            s[h][j] = -INFINITY;
}

/* Moves m, adds to l, replaces the scores by e^(s - m). Returns what the old `out` is to be multiplied by. */
AVX2_INLINE float weights(struct query *query, float s[DL_KV_BLOCK], uint32_t count)
{
    __m256 top = _mm256_loadu_ps(s);
    for (uint32_t j = 8; j < count; j += 8)
        top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
    float m = DL_MAX(query->m, avx2_max(top)), keep = _mm256_cvtss_f32(avx2_exp(_mm256_set1_ps(query->m - m)));
    query->m = m;
    query->l = _mm256_mul_ps(query->l, _mm256_set1_ps(keep));
    for (uint32_t j = 0; j < count; j += 8) {
        __m256 p = avx2_exp(_mm256_sub_ps(_mm256_loadu_ps(s + j), _mm256_set1_ps(m)));
        _mm256_storeu_ps(s + j, p);
        query->l = _mm256_add_ps(query->l, p);
    }
    return keep;
}

/* out_h[c ..] = out_h[c ..] * keep_h + sum_j p_h[j] V_j[c ..] for `vecs` vectors, the only one of n < 8 columns. */
AVX2_INLINE void add_values(const enum dl_type type, const struct span *sp, struct query *query,
                            float p[AT_ONCE][DL_KV_BLOCK], const float keep[AT_ONCE], uint32_t c, uint32_t n,
                            const uint32_t vecs, bool fetching, const uint32_t H)
{
    __m256 acc[AT_ONCE][4];
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < vecs; i++) {
            const float *out = query[h].out + c + 8 * i;
            acc[h][i] = _mm256_mul_ps(n == 8 ? _mm256_loadu_ps(out) : avx2_load_part(out, n), _mm256_set1_ps(keep[h]));
        }
    for (uint32_t j = 0; j < sp->count; j++) {
        if (fetching)
            fetch(sp->ahead_v + j * sp->v_row, sp->v_row);
        for (uint32_t i = 0; i < vecs; i++) {
            __m256 v = cache_at(type, sp->v + j * sp->v_row, c + 8 * i, n);
            for (uint32_t h = 0; h < H; h++)
                acc[h][i] = _mm256_fmadd_ps(_mm256_set1_ps(p[h][j]), v, acc[h][i]);
        }
    }
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < vecs; i++) {
            float *out = query[h].out + c + 8 * i;
            if (n == 8)
                _mm256_storeu_ps(out, acc[h][i]);
            else
                avx2_store_part(out, acc[h][i], n);
        }
}

/* One span for H heads; the first ones also fetch what is ahead. */
AVX2_INLINE void attend(const enum dl_type type, const struct span *sp, struct query *query, bool first,
                        const uint32_t H)
{
    const uint32_t V = H == 4 ? 2 : 4;
    float s[AT_ONCE][DL_KV_BLOCK], keep[AT_ONCE];
    bool fetching = first && sp->ahead_k;
    scores(type, sp, query, s, fetching, H);
    for (uint32_t h = 0; h < H; h++)
        keep[h] = weights(&query[h], s[h], sp->count);
    uint32_t c = 0;
    for (; sp->dim - c >= 8 * V; c += 8 * V)
        add_values(type, sp, query, s, keep, c, 8, V, fetching && !c, H);
    for (; sp->dim - c >= 8; c += 8)
        add_values(type, sp, query, s, keep, c, 8, 1, fetching && !c, H);
    if (type != DL_Q80 && c < sp->dim)
        add_values(type, sp, query, s, keep, c, sp->dim - c, 1, fetching && !c, H);
}

static void finish(const struct query *query, uint32_t dim)
{
    float sum = avx2_sum(query->l);
    __m256 inv = _mm256_set1_ps(sum != 0 ? 1.0f / sum : 0.0f);
    uint32_t c = 0;
    for (; dim - c >= 8; c += 8)
        _mm256_storeu_ps(query->out + c, _mm256_mul_ps(_mm256_loadu_ps(query->out + c), inv));
    if (c < dim)
        avx2_store_part(query->out + c, _mm256_mul_ps(avx2_load_part(query->out + c, dim - c), inv), dim - c);
}

/* Query heads h0 .. h0 + n - 1 of token t, all of KV head kv. */
AVX2_INLINE void heads(const enum dl_type type, const struct cpu_task *task, uint32_t t, uint32_t kv, uint32_t h0,
                       uint32_t n)
{
    const struct dl_op *op = task->op;
    uint32_t dim = op->u.attn.head_dim, n_kv = op->u.attn.n_kv_heads, n_pos = task->rows[t].pos + 1;
    struct span sp = {
        .k_row = op->src[1].row_bytes, .v_row = op->src[2].row_bytes, .dim = dim, .scale = op->u.attn.scale};
    struct query query[HEADS];
    for (uint32_t i = 0; i < n; i++) {
        uint64_t first = (uint64_t)(h0 + i) * dim;
        query[i].q = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + first;
        query[i].out = (float *)(void *)cpu_row_out(task->dst, &op->dst, t) + first;
        query[i].m = -FLT_MAX / 2; /* an infinite start would make the first e^(m - m') NaN */
        query[i].l = _mm256_setzero_ps();
        memset(query[i].out, 0, dim * sizeof(float));
    }
    for (uint32_t pos = 0; pos < n_pos; pos += DL_KV_BLOCK) {
        uint64_t row = cpu_kv_row(task, t, n_kv, kv, pos);
        sp.count = DL_MIN(n_pos - pos, DL_KV_BLOCK);
        sp.k = task->src[1] + row * sp.k_row;
        sp.v = task->src[2] + row * sp.v_row;
        sp.ahead_k = sp.ahead_v = NULL;
        if (pos + AHEAD < n_pos) {
            row = cpu_kv_row(task, t, n_kv, kv, pos + AHEAD);
            sp.ahead_k = task->src[1] + row * sp.k_row;
            sp.ahead_v = task->src[2] + row * sp.v_row;
        }
        uint32_t i = 0;
        for (; n - i >= 4; i += 4)
            attend(type, &sp, &query[i], !i, 4);
        for (; n - i >= 2; i += 2)
            attend(type, &sp, &query[i], !i, 2);
        if (i < n)
            attend(type, &sp, &query[i], !i, 1);
    }
    for (uint32_t i = 0; i < n; i++)
        finish(&query[i], dim);
}

AVX2_INLINE void units(const enum dl_type type, const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    uint32_t n_kv = task->op->u.attn.n_kv_heads;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct cpu_heads all = cpu_heads(task->op, u % n_kv);
        for (uint32_t h = all.first, n; h < all.end; h += n) {
            n = DL_MIN(all.end - h, (uint32_t)HEADS);
            heads(type, task, u / n_kv, u % n_kv, h, n);
        }
    }
}

static void attention_f32(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    units(DL_F32, task, u0, u1);
}
static void attention_f16(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    units(DL_F16, task, u0, u1);
}
static void attention_q80(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    units(DL_Q80, task, u0, u1);
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
