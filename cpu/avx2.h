/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2.h: what the AVX2/FMA/F16C kernels share: loads of any alignment, row tails, sums, exp, the blocks of Q80 and Q120.
 * Only avx*.c and the like for ARM include it, and only those files are compiled for AVX2 (avxvnni*.c, avx512*.c: and more), with
 * contraction off: a product that is summed without _mm256_fmadd_ps is rounded first, as the exact ops demand. On ARM avx2*.c, but for
 * avx2_dot_q.c, are made of the words of AVX2 that neon.h has, and so give the same bits.
 */
#ifndef CPU_AVX2_H
#define CPU_AVX2_H

#include <string.h>
#ifdef __aarch64__
#include "neon.h"
#else
#include <immintrin.h>
#endif

#include "kernels.h"

/* Kernels take the number of tokens as a constant argument; only inlining turns their arrays into registers. */
#if defined(__GNUC__) || defined(__clang__)
#define AVX2_INLINE static inline __attribute__((always_inline))
/* The vector v is in a register here: else gcc turns chains of integer sums into trees, and spills most of what they hold. */
#ifdef __aarch64__
#define AVX2_KEEP(v) __asm__("" : "+w"((v).lo), "+w"((v).hi))
#else
#define AVX2_KEEP(v) __asm__("" : "+x"(v))
#endif
#else
#define AVX2_INLINE static __forceinline
#define AVX2_KEEP(v) (void)0
#endif

cpu_kernel *cpu_avx2_pick_matmul(const struct dl_op *op);   /* MATMUL, MOE_MATMUL of float weights */
cpu_kernel *cpu_avx2_pick_matmul_q(const struct dl_op *op); /* the same of quantised, packed ones */
cpu_kernel *cpu_avx2_pick_attention(const struct dl_op *op);
cpu_kernel *cpu_avx2_pick_convert(const struct dl_op *op); /* CONVERT, KV_STORE */
cpu_kernel *cpu_avx2_pick_norm(const struct dl_op *op);
cpu_kernel *cpu_avx2_pick_elementwise(const struct dl_op *op); /* ROPE, GLU, ADD, MERGE, MOE_SUM */

/* Eight rows of float weights against all tokens of a batch: y[t * y_row + r] = dot(w[r], x row t) + bias[r], r < rows.
 * w[rows .. 7] repeat a row that exists. bias may be NULL. */
struct cpu_avx2_tile {
    const uint8_t *w[8];
    const uint8_t *x;
    const float *bias;
    float *y;
    uint64_t x_row, y_row; /* bytes; floats */
    uint32_t rows, n, cols;
};
typedef void cpu_avx2_dot(const struct cpu_avx2_tile *tile);
cpu_avx2_dot cpu_avx2_dot_f32, cpu_avx2_dot_f16, cpu_avx2_dot_bf16; /* F32 x */

/* Weight rows that lie in one packed tile (pack.h): lanes lane .. lane + n - 1, columns col .. of dst. bias[col ..], or NULL. */
struct cpu_avx2_rows {
    const uint8_t *tile;
    const float *bias;
    uint32_t lane, n, col;
};

/* Tokens that go over the weights together: rows of Q80 activations of `blocks` blocks, rows of dst. */
#define CPU_AVX2_TOKENS 32u
struct cpu_avx2_tokens {
    const uint8_t *x[CPU_AVX2_TOKENS];
    float *y[CPU_AVX2_TOKENS];
    uint32_t n, blocks;
};

/* y[t][col + r] = dot(row r, x[t]) + bias[col + r] for all rows and tokens. */
typedef void cpu_avx2_dots(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok);
cpu_avx2_dots cpu_avx2_dot_q40, cpu_avx2_dot_q80;

/* Units of a MATMUL or MOE_MATMUL of weights of the type that `dots` is for. */
void cpu_avx2_matmul_q(const struct cpu_task *task, uint32_t unit0, uint32_t unit1, cpu_avx2_dots *dots);

AVX2_INLINE __m128i avx2_load128(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

AVX2_INLINE int16_t avx2_i16(const void *p)
{
    int16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

AVX2_INLINE int32_t avx2_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

AVX2_INLINE float avx2_f32(const void *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* MOE_MATMUL: the expert of a row of dst. */
AVX2_INLINE uint32_t avx2_expert(const struct cpu_task *task, uint32_t row)
{
    uint32_t k = task->op->u.moe.k;
    return (uint32_t)avx2_f32(cpu_row(task->src[2], &task->op->src[2], row / k) + row % k * sizeof(float));
}

/* The f16 at p in all lanes. */
AVX2_INLINE __m256 avx2_scale(const void *p)
{
    return _mm256_cvtph_ps(_mm_set1_epi16(avx2_i16(p)));
}

/* Loads and stores of the first n < 8 values of a vector; nothing past them is touched. Missing values load as 0. */
AVX2_INLINE __m256 avx2_load_part(const float *p, uint32_t n)
{
    float v[8] = {0};
    memcpy(v, p, n * sizeof *v);
    return _mm256_loadu_ps(v);
}
AVX2_INLINE __m128i avx2_load_part16(const void *p, uint32_t n)
{
    uint16_t v[8] = {0};
    memcpy(v, p, n * sizeof *v);
    return avx2_load128(v);
}
AVX2_INLINE void avx2_store_part(float *p, __m256 x, uint32_t n)
{
    float v[8];
    _mm256_storeu_ps(v, x);
    memcpy(p, v, n * sizeof *v);
}

AVX2_INLINE __m256 avx2_abs(__m256 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

AVX2_INLINE float avx2_sum(__m256 x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2_INLINE float avx2_max(__m256 x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* The sums of four vectors, in order. */
AVX2_INLINE __m128 avx2_sum4(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

/* e^x within 2 ulp; 0 below the smallest subnormal, infinity above the largest float, NaN for NaN. With x = n ln 2 + r,
 * |r| <= ln 2 / 2, the Taylor series of degree 7 is off by 5e-9. 2^n comes in two factors, as n reaches -150 and 128. */
AVX2_INLINE __m256 avx2_exp(__m256 x)
{
    /* the second operand of min and max wins when one is NaN */
    x = _mm256_max_ps(_mm256_set1_ps(-104.0f), _mm256_min_ps(_mm256_set1_ps(89.0f), x));
    __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)));
    __m256 nf = _mm256_cvtepi32_ps(n);
    __m256 r = _mm256_fnmadd_ps(nf, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(nf, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    __m256 y = _mm256_set1_ps(1.0f / 5040);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 720));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    __m256i half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

/* Values i .. i + 7 of a Q80 row. i is a multiple of 8. */
AVX2_INLINE __m256 avx2_q80_at(const uint8_t *row, uint32_t i)
{
    const uint8_t *b = row + (uint64_t)(i / DL_BLOCK) * sizeof(struct dl_q80);
    __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(b + 2 + i % DL_BLOCK)));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(q), avx2_scale(b));
}

/* The bf16 at p, which is the upper half of a float. */
AVX2_INLINE float avx2_bf16(const void *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    const uint32_t u = (uint32_t)h << 16;
    return avx2_f32(&u);
}

/* Values i .. i + 7 of a Q120 row. i is a multiple of 8. */
AVX2_INLINE __m256 avx2_q120_at(const uint8_t *row, uint32_t i)
{
    const uint8_t *b = row + (uint64_t)(i / DL_BLOCK) * sizeof(struct dl_q120);
    __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(b + 2 + i % DL_BLOCK)));
    __m256i low = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(b + 2 + DL_BLOCK + i % 16)));
    low = _mm256_and_si256(i % DL_BLOCK < 16 ? low : _mm256_srai_epi32(low, 4), _mm256_set1_epi32(15));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(q, 4), low)),
                         _mm256_set1_ps(avx2_bf16(b)));
}

#ifndef __aarch64__
/* 32 integers within -128 .. 127 as bytes. */
AVX2_INLINE void avx2_put_bytes(uint8_t *p, const __m256i q[4])
{
    /* the packs work per 128-bit half: dwords come out as 0 2 4 6 1 3 5 7 */
    __m256i b = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    b = _mm256_permutevar8x32_epi32(b, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)p, b);
}
AVX2_INLINE __m256i avx2_load256(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
#endif

/* The largest magnitude of 32 values. */
AVX2_INLINE float avx2_amax(const __m256 v[4])
{
    __m256 m = _mm256_max_ps(avx2_abs(v[0]), _mm256_setzero_ps()); /* a NaN leaves the maximum as it was */
    m = _mm256_max_ps(avx2_abs(v[1]), m);
    m = _mm256_max_ps(avx2_abs(v[2]), m);
    m = _mm256_max_ps(avx2_abs(v[3]), m);
    return avx2_max(m);
}

/* v * scale as integers, within -most .. most, NaN as the least. */
AVX2_INLINE void avx2_codes(const __m256 v[4], float scale, float most, __m256i q[4])
{
    __m256 k = _mm256_set1_ps(scale), lo = _mm256_set1_ps(-most), hi = _mm256_set1_ps(most);
    for (int i = 0; i < 4; i++)
        q[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(v[i], k), lo), hi));
}

/* One Q80 block of 32 values: bit for bit what dl_row_from_f32 writes, also for zeros, infinities and NaN. */
AVX2_INLINE void avx2_q80_put(const __m256 v[4], uint8_t *p)
{
    float amax = avx2_amax(v), d = amax / 127.0f;
    __m128i d16 = _mm_cvtps_ph(_mm_min_ss(_mm_set_ss(d), _mm_set_ss(65504.0f)), _MM_FROUND_TO_NEAREST_INT);
    uint16_t scale = (uint16_t)_mm_extract_epi16(d16, 0);
    memcpy(p, &scale, sizeof scale);
    float inv = amax > 0 ? 127.0f / amax : 0.0f;
    if (!(inv <= 3.402823466e38f)) { /* subnormal amax: the scale is 0 */
        memset(p + 2, 0, DL_BLOCK);
        return;
    }
    __m256i q[4];
    avx2_codes(v, inv, 127.0f, q);
    avx2_put_bytes(p + 2, q);
}

/* One Q120 block, likewise. */
AVX2_INLINE void avx2_q120_put(const __m256 v[4], uint8_t *p)
{
    const float amax = avx2_amax(v), up = amax * (1.0f / 2047.0f);
    if (amax < 0x1p-100f) {
        memset(p, 0, sizeof(struct dl_q120));
        return;
    }
    const uint16_t d = (uint16_t)(((uint32_t)avx2_i32(&up) + 0xffffu) >> 16);
    memcpy(p, &d, sizeof d);
    __m256i q[4], high[4], low[4];
    avx2_codes(v, 1.0f / avx2_bf16(p), 2047.0f, q);
    for (int i = 0; i < 4; i++)
        high[i] = _mm256_srai_epi32(q[i], 4);
    avx2_put_bytes(p + 2, high);
    for (int i = 0; i < 4; i++) { /* two nibbles, as a byte with a sign */
        __m256i first = _mm256_and_si256(q[i & 1], _mm256_set1_epi32(15));
        low[i] =
            _mm256_srai_epi32(_mm256_slli_epi32(_mm256_add_epi32(first, _mm256_slli_epi32(q[2 + (i & 1)], 4)), 24), 24);
    }
    uint8_t bytes[DL_BLOCK];
    avx2_put_bytes(bytes, low);
    memcpy(p + 2 + DL_BLOCK, bytes, DL_BLOCK / 2);
}

/* f32 to f16 as dl_f32_to_f16 does it: every NaN becomes the one quiet NaN of its sign. */
AVX2_INLINE __m128i avx2_to_f16(__m256 x)
{
    __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    __m256 nan = _mm256_or_ps(sign, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
    x = _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

#endif
