/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_attention.c: ATTENTION with AVX2: the vectors that attention_simd.h is made of.
 */
#include "avx2.h"

#define V_LANES 8
#define V_INLINE AVX2_INLINE
#define V_KEEP AVX2_KEEP
typedef __m256 v_f32;

V_INLINE v_f32 v_zero(void)
{
    return _mm256_setzero_ps();
}
V_INLINE v_f32 v_set1(float x)
{
    return _mm256_set1_ps(x);
}
V_INLINE v_f32 v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
V_INLINE void v_store(float *p, v_f32 x)
{
    _mm256_storeu_ps(p, x);
}
V_INLINE v_f32 v_add(v_f32 a, v_f32 b)
{
    return _mm256_add_ps(a, b);
}
V_INLINE v_f32 v_sub(v_f32 a, v_f32 b)
{
    return _mm256_sub_ps(a, b);
}
V_INLINE v_f32 v_mul(v_f32 a, v_f32 b)
{
    return _mm256_mul_ps(a, b);
}
/* a * b + c, rounded once. */
V_INLINE v_f32 v_fma(v_f32 a, v_f32 b, v_f32 c)
{
    return _mm256_fmadd_ps(a, b, c);
}
V_INLINE v_f32 v_max(v_f32 a, v_f32 b)
{
    return _mm256_max_ps(a, b);
}

/* The first n < V_LANES values, zeros behind them; nothing else is touched. */
V_INLINE v_f32 v_load_part(const float *p, uint32_t n)
{
    return avx2_load_part(p, n);
}
V_INLINE void v_store_part(float *p, v_f32 x, uint32_t n)
{
    avx2_store_part(p, x, n);
}

/* One lane, the largest, all of them together. */
V_INLINE float v_first(v_f32 x)
{
    return _mm256_cvtss_f32(x);
}
V_INLINE float v_top(v_f32 x)
{
    return avx2_max(x);
}
V_INLINE float v_sum(v_f32 x)
{
    return avx2_sum(x);
}

/* In each half: the sums of a's neighbours, then of b's. */
V_INLINE __m256 pairs(__m256 a, __m256 b)
{
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)); /* faster than hadd on AMD */
}

/* The sums of the lanes of eight vectors, 8 / H in each of H rows, `row` floats from one to the next. */
V_INLINE void v_put8(v_f32 a, v_f32 b, v_f32 c, v_f32 d, v_f32 e, v_f32 f, v_f32 g, v_f32 h, float *to, uint32_t row,
                     const uint32_t H)
{
    __m256 lo = pairs(pairs(a, b), pairs(c, d)), hi = pairs(pairs(e, f), pairs(g, h));
    __m128 abcd = _mm_add_ps(_mm256_castps256_ps128(lo), _mm256_extractf128_ps(lo, 1));
    __m128 efgh = _mm_add_ps(_mm256_castps256_ps128(hi), _mm256_extractf128_ps(hi, 1));
    if (H == 4) {
        _mm_storel_pi((__m64 *)(void *)to, abcd);
        _mm_storeh_pi((__m64 *)(void *)(to + row), abcd);
        _mm_storel_pi((__m64 *)(void *)(to + 2 * row), efgh);
        _mm_storeh_pi((__m64 *)(void *)(to + 3 * row), efgh);
    } else {
        _mm_storeu_ps(to, abcd);
        _mm_storeu_ps(to + (H == 2 ? row : 4), efgh);
    }
}

/* e^x for x <= 0, within 3 ulp; nothing that counts below 2^-126, NaN for NaN. With x = n ln 2 + r, |r| <= ln 2 / 2, the Taylor
 * series of degree 6 is off by 1.3e-7. Adding 1.5 * 2^23 leaves n in the low bits. */
V_INLINE v_f32 v_exp(v_f32 x)
{
    const __m256 round = _mm256_set1_ps(0x1.8p23f);
    x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x); /* the second operand wins when one is NaN */
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(0x1.715476p+0f), round), n = _mm256_sub_ps(t, round);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 y = _mm256_set1_ps(1.0f / 720);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}

V_INLINE void v_fetch(const uint8_t *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T1);
}

/* Values [c, c + V_LANES) of a cache row, F32 or F16. */
V_INLINE v_f32 v_cache(const enum dl_type type, const uint8_t *row, uint64_t c)
{
    if (type == DL_F32)
        return _mm256_loadu_ps((const float *)(const void *)row + c);
    return _mm256_cvtph_ps(avx2_load128(row + 2 * c));
}
V_INLINE v_f32 v_cache_part(const enum dl_type type, const uint8_t *row, uint64_t c, uint32_t n)
{
    if (type == DL_F32)
        return avx2_load_part((const float *)(const void *)row + c, n);
    return _mm256_cvtph_ps(avx2_load_part16(row + 2 * c, n));
}

/* Of a Q80 row: codes [c, c + V_LANES), and the scale of the block that holds value c. */
V_INLINE v_f32 v_codes(const uint8_t *row, uint64_t c)
{
    const uint8_t *codes = row + c / DL_BLOCK * sizeof(struct dl_q80) + 2 + c % DL_BLOCK;
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)codes)));
}
V_INLINE v_f32 v_scale(const uint8_t *row, uint64_t c)
{
    return avx2_scale(row + c / DL_BLOCK * sizeof(struct dl_q80));
}

#include "attention_simd.h"

static void attention_f32(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    attention(DL_F32, task, u0, u1);
}
static void attention_f16(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    attention(DL_F16, task, u0, u1);
}
static void attention_q80(const struct cpu_task *task, uint32_t u0, uint32_t u1)
{
    attention(DL_Q80, task, u0, u1);
}

cpu_kernel *cpu_avx2_pick_attention(const struct dl_op *op)
{
    if (op->u.attn.head_dim > SUMS)
        return NULL;
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

cpu_kernel *cpu_avx2_pick_merge_parts(const struct dl_op *op)
{
    return cpu_avx2_pick_attention(op) ? merge_parts : NULL;
}
