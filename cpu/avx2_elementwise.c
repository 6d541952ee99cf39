/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_elementwise.c: ROPE, GLU, ADD, MERGE, MOE_SUM. All but ROPE work on chunks of a row, eight columns at a time;
 * every value is computed the same way wherever its chunk lies. ADD and MERGE are exact: one rounding per addition in
 * the documented order.
 */
#include "avx2.h"

/* One unit of a chunked op: dst row t, columns [c, c + n). */
struct chunk {
    uint32_t t, c, n;
};

static struct chunk chunk_of(const struct dl_op *op, uint32_t unit)
{
    uint32_t chunks = cpu_chunks(op->dst.cols), c = unit % chunks * CPU_CHUNK;
    return (struct chunk){unit / chunks, c, DL_MIN(op->dst.cols - c, CPU_CHUNK)};
}

static const float *src_f32(const struct cpu_task *task, uint32_t i, uint32_t row)
{
    return (const float *)(const void *)cpu_row(task->src[i], &task->op->src[i], row);
}

static float *dst_f32(const struct cpu_task *task, uint32_t row)
{
    return (float *)(void *)cpu_row_out(task->dst, &task->op->dst, row);
}

AVX2_INLINE __m256 get(const float *p, uint32_t n)
{
    return n >= 8 ? _mm256_loadu_ps(p) : avx2_load_part(p, n);
}

AVX2_INLINE void set(float *p, __m256 v, uint32_t n)
{
    if (n >= 8)
        _mm256_storeu_ps(p, v);
    else
        avx2_store_part(p, v, n);
}

static void add(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    for (uint32_t u = unit0; u < unit1; u++) {
        struct chunk k = chunk_of(task->op, u);
        const float *a = src_f32(task, 0, k.t) + k.c, *b = src_f32(task, 1, k.t) + k.c;
        float *y = dst_f32(task, k.t) + k.c;
        for (uint32_t i = 0; i < k.n; i += 8)
            set(y + i, _mm256_add_ps(get(a + i, k.n - i), get(b + i, k.n - i)), k.n - i);
    }
}

/* ----------------------------------------------------------------------------------------------- MERGE */

/* Columns c .. c + 7 (c + n - 1 where n < 8) of one slice's row. */
AVX2_INLINE __m256 slice_at(enum dl_type type, const uint8_t *row, uint32_t c, uint32_t n)
{
    if (type == DL_F32)
        return get((const float *)(const void *)row + c, n);
    if (type == DL_Q80)
        return avx2_q80_at(row, c);
    if (type == DL_Q120)
        return avx2_q120_at(row, c);
    const uint8_t *p = row + 2 * (uint64_t)c;
    return _mm256_cvtph_ps(n >= 8 ? avx2_load128(p) : avx2_load_part16(p, n));
}

static void merge(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    enum dl_type type = op->src[1].type;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct chunk k = chunk_of(op, u);
        const float *a = src_f32(task, 0, k.t) + k.c;
        const uint8_t *w = cpu_row(task->src[1], &op->src[1], k.t);
        float *y = dst_f32(task, k.t) + k.c;
        for (uint32_t i = 0; i < k.n; i += 8) {
            __m256 sum = slice_at(type, w, k.c + i, k.n - i);
            for (uint32_t s = 1; s < op->u.merge.n_slices; s++)
                sum = _mm256_add_ps(sum, slice_at(type, w + s * op->u.merge.slice_bytes, k.c + i, k.n - i));
            set(y + i, _mm256_add_ps(get(a + i, k.n - i), sum), k.n - i);
        }
    }
}

/* ------------------------------------------------------------------------------------------------- GLU */

/* x / (1 + e^-u), u = x; gelu has the same form: (1 + tanh(v)) / 2 = 1 / (1 + e^-2v). Below zero it is x e^u / (1 + e^u):
 * the exponential then never overflows, and tiny results keep their digits. */
AVX2_INLINE __m256 act(enum dl_act_fn fn, __m256 x)
{
    __m256 u = x, one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    if (fn == DL_ACT_GELU) { /* 2 sqrt(2/pi) (x + 0.044715 x^3) */
        u = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), _mm256_mul_ps(x, x)), x, x);
        u = _mm256_mul_ps(_mm256_set1_ps(1.5957691216057308f), u);
    }
    __m256 e = avx2_exp(_mm256_or_ps(u, sign));
    __m256 top = _mm256_blendv_ps(one, e, u);
    return _mm256_mul_ps(x, _mm256_div_ps(top, _mm256_add_ps(one, e)));
}

static void glu_f32(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    enum dl_act_fn fn = task->op->u.glu.act;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct chunk k = chunk_of(task->op, u);
        const float *a = src_f32(task, 0, k.t) + k.c, *b = src_f32(task, 1, k.t) + k.c;
        float *y = dst_f32(task, k.t) + k.c;
        for (uint32_t i = 0; i < k.n; i += 8)
            set(y + i, _mm256_mul_ps(act(fn, get(a + i, k.n - i)), get(b + i, k.n - i)), k.n - i);
    }
}

static void glu_q80(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    enum dl_act_fn fn = task->op->u.glu.act;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct chunk k = chunk_of(task->op, u);
        const float *a = src_f32(task, 0, k.t) + k.c, *b = src_f32(task, 1, k.t) + k.c;
        uint8_t *y = cpu_row_out(task->dst, &task->op->dst, k.t) + k.c / DL_BLOCK * sizeof(struct dl_q80);
        for (uint32_t i = 0; i < k.n; i += DL_BLOCK, y += sizeof(struct dl_q80)) {
            __m256 v[4];
            for (uint32_t j = 0; j < 4; j++)
                v[j] = _mm256_mul_ps(act(fn, _mm256_loadu_ps(a + i + 8 * j)), _mm256_loadu_ps(b + i + 8 * j));
            avx2_q80_put(v, y);
        }
    }
}

/* --------------------------------------------------------------------------------------------- MOE_SUM */

static void moe_sum(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    uint32_t slots = task->op->src[1].cols / 2; /* route: numbers, then weights */
    uint64_t row_bytes = task->op->src[0].row_bytes;
    for (uint32_t u = unit0; u < unit1; u++) {
        struct chunk k = chunk_of(task->op, u);
        const float *weight = src_f32(task, 1, k.t) + slots;
        const uint8_t *x = cpu_row(task->src[0], &task->op->src[0], k.t * slots);
        float *y = dst_f32(task, k.t) + k.c;
        for (uint32_t i = 0; i < k.n; i += 8) {
            __m256 sum = _mm256_setzero_ps();
            for (uint32_t s = 0; s < slots; s++) {
                const float *row = (const float *)(const void *)(x + s * row_bytes) + k.c + i;
                sum = _mm256_fmadd_ps(_mm256_set1_ps(avx2_f32(weight + s)), get(row, k.n - i), sum);
            }
            set(y + i, sum, k.n - i);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ ROPE */

/* n_rot values as pairs (a, b) side by side, cs as (cos, sin) side by side. Reads a vector before it writes it: y may be x. */
static void rope_pairs(const float *x, const float *cs, float *y, uint32_t n_rot)
{
    for (uint32_t i = 0; i < n_rot; i += 8) {
        __m256 v = get(x + i, n_rot - i), r = get(cs + i, n_rot - i);
        __m256 swapped = _mm256_permute_ps(v, 0xb1);
        __m256 by_sin = _mm256_mul_ps(swapped, _mm256_movehdup_ps(r));
        set(y + i, _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(r), by_sin), n_rot - i);
    }
}

/* a in the first half of the n_rot values, b in the second. */
static void rope_halves(const float *x, const float *cs, float *y, uint32_t n_rot)
{
    uint32_t half = n_rot / 2;
    for (uint32_t i = 0; i < half; i += 8) {
        uint32_t n = half - i;
        __m256 a = get(x + i, n), b = get(x + half + i, n);
        __m256 lo = get(cs + 2 * i, 2 * n), hi = n > 4 ? get(cs + 2 * i + 8, 2 * n - 8) : _mm256_setzero_ps();
        /* shuffle_ps takes from each 128-bit half: lanes come out as 0 1 4 5 2 3 6 7 */
        __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(lo, hi, 0x88));
        __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(lo, hi, 0xdd));
        __m256 c = _mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8));
        __m256 s = _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8));
        set(y + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)), n);
        set(y + half + i, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)), n);
    }
}

static void rope(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    uint32_t dim = op->u.rope.head_dim, n_rot = op->u.rope.n_rot;
    for (uint32_t t = unit0; t < unit1; t++) {
        const float *x = src_f32(task, 0, t), *cs = src_f32(task, 1, t);
        float *y = dst_f32(task, t);
        for (uint32_t h = 0; h < op->dst.cols; h += dim) {
            if (op->u.rope.layout == DL_ROPE_PAIRS)
                rope_pairs(x + h, cs, y + h, n_rot);
            else
                rope_halves(x + h, cs, y + h, n_rot);
            if (y != x)
                memcpy(y + h + n_rot, x + h + n_rot, (dim - n_rot) * sizeof *y);
        }
    }
}

cpu_kernel *cpu_avx2_pick_elementwise(const struct dl_op *op)
{
    switch (op->code) {
    case DL_OP_ADD:
        return add;
    case DL_OP_MERGE:
        return op->src[1].type != DL_BF16 && op->src[1].type != DL_Q40 ? merge : NULL;
    case DL_OP_GLU:
        return op->dst.type == DL_Q80 ? glu_q80 : op->dst.type == DL_F32 ? glu_f32 : NULL;
    case DL_OP_MOE_SUM:
        return moe_sum;
    case DL_OP_ROPE:
        return rope;
    default:
        return NULL;
    }
}
