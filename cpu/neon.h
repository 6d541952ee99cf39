/* SPDX-License-Identifier: MIT
 *
 * cpu/neon.h: the words of AVX2 that avx2*.c are written in, said in NEON: a vector of eight is two of four. So each kernel is
 * written once, and adds in the same order on x86-64 and on ARM: nodes of both kinds compute the same bits. What the order
 * is irrelevant for, the integer sums of quantised weights, has files of its own: neon_*.c.
 *
 * Only avx2.h includes it. A word that is missing here, or a shuffle that is not spelt out below, does not compile. Where the two
 * differ, what AVX2 does holds (max and min of a NaN), except for floats that no integer can hold.
 */
#ifndef CPU_NEON_H
#define CPU_NEON_H

#include <arm_neon.h>

typedef float32x2_t __m64;
typedef float32x4_t __m128;
typedef int32x4_t __m128i;
typedef struct {
    float32x4_t lo, hi;
} __m256;
typedef struct {
    int32x4_t lo, hi;
} __m256i;
typedef struct {
    float64x2_t lo, hi;
} __m256d;

#define NEON_INLINE static inline __attribute__((always_inline))

/* Four lanes of bits, of either sign. */
NEON_INLINE uint32x4_t neon_bits(float32x4_t a)
{
    return vreinterpretq_u32_f32(a);
}
NEON_INLINE float32x4_t neon_floats(uint32x4_t a)
{
    return vreinterpretq_f32_u32(a);
}

/* ---------------------------------------------------------------------------------------------- eight floats */

NEON_INLINE __m256 _mm256_loadu_ps(const float *p)
{
    return (__m256){vld1q_f32(p), vld1q_f32(p + 4)};
}
NEON_INLINE void _mm256_storeu_ps(float *p, __m256 a)
{
    vst1q_f32(p, a.lo);
    vst1q_f32(p + 4, a.hi);
}
NEON_INLINE __m256 _mm256_set1_ps(float x)
{
    return (__m256){vdupq_n_f32(x), vdupq_n_f32(x)};
}
NEON_INLINE __m256 _mm256_setzero_ps(void)
{
    return _mm256_set1_ps(0);
}
NEON_INLINE __m256 _mm256_add_ps(__m256 a, __m256 b)
{
    return (__m256){vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_sub_ps(__m256 a, __m256 b)
{
    return (__m256){vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_mul_ps(__m256 a, __m256 b)
{
    return (__m256){vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_div_ps(__m256 a, __m256 b)
{
    return (__m256){vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_fmadd_ps(__m256 a, __m256 b, __m256 c)
{
    return (__m256){vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_fnmadd_ps(__m256 a, __m256 b, __m256 c)
{
    return (__m256){vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_fmsub_ps(__m256 a, __m256 b, __m256 c)
{
    return (__m256){vfmaq_f32(vnegq_f32(c.lo), a.lo, b.lo), vfmaq_f32(vnegq_f32(c.hi), a.hi, b.hi)};
}
/* a b - c in the even lanes, a b + c in the odd ones. */
NEON_INLINE __m256 _mm256_fmaddsub_ps(__m256 a, __m256 b, __m256 c)
{
    const uint32x4_t even = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
    __m256 turned = {neon_floats(veorq_u32(neon_bits(c.lo), even)), neon_floats(veorq_u32(neon_bits(c.hi), even))};
    return _mm256_fmadd_ps(a, b, turned);
}

/* The second operand where one is no number. */
NEON_INLINE float32x4_t neon_max(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
NEON_INLINE float32x4_t neon_min(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
NEON_INLINE __m256 _mm256_max_ps(__m256 a, __m256 b)
{
    return (__m256){neon_max(a.lo, b.lo), neon_max(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_min_ps(__m256 a, __m256 b)
{
    return (__m256){neon_min(a.lo, b.lo), neon_min(a.hi, b.hi)};
}

NEON_INLINE __m256 _mm256_and_ps(__m256 a, __m256 b)
{
    return (__m256){neon_floats(vandq_u32(neon_bits(a.lo), neon_bits(b.lo))),
                    neon_floats(vandq_u32(neon_bits(a.hi), neon_bits(b.hi)))};
}
NEON_INLINE __m256 _mm256_or_ps(__m256 a, __m256 b)
{
    return (__m256){neon_floats(vorrq_u32(neon_bits(a.lo), neon_bits(b.lo))),
                    neon_floats(vorrq_u32(neon_bits(a.hi), neon_bits(b.hi)))};
}
NEON_INLINE __m256 _mm256_andnot_ps(__m256 a, __m256 b)
{
    return (__m256){neon_floats(vbicq_u32(neon_bits(b.lo), neon_bits(a.lo))),
                    neon_floats(vbicq_u32(neon_bits(b.hi), neon_bits(a.hi)))};
}
NEON_INLINE float32x4_t neon_blendv(float32x4_t a, float32x4_t b, float32x4_t sign)
{
    return vbslq_f32(vreinterpretq_u32_s32(vreinterpretq_s32_f32(sign) >> 31), b, a);
}
NEON_INLINE __m256 _mm256_blendv_ps(__m256 a, __m256 b, __m256 sign)
{
    return (__m256){neon_blendv(a.lo, b.lo, sign.lo), neon_blendv(a.hi, b.hi, sign.hi)};
}
NEON_INLINE float32x4_t neon_unordered(float32x4_t a, float32x4_t b)
{
    return neon_floats(vmvnq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b))));
}
NEON_INLINE __m256 neon_cmp_unordered(__m256 a, __m256 b)
{
    return (__m256){neon_unordered(a.lo, b.lo), neon_unordered(a.hi, b.hi)};
}
#define NEON_CMP(a, b, how) how(a, b)
#define _CMP_UNORD_Q neon_cmp_unordered
#define _mm256_cmp_ps(a, b, how) NEON_CMP(a, b, how)

/* Sums of neighbours, and shuffles, within each half. */
NEON_INLINE __m256 _mm256_hadd_ps(__m256 a, __m256 b)
{
    return (__m256){vpaddq_f32(a.lo, b.lo), vpaddq_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 _mm256_movehdup_ps(__m256 a)
{
    return (__m256){vtrn2q_f32(a.lo, a.lo), vtrn2q_f32(a.hi, a.hi)};
}
NEON_INLINE __m256 _mm256_moveldup_ps(__m256 a)
{
    return (__m256){vtrn1q_f32(a.lo, a.lo), vtrn1q_f32(a.hi, a.hi)};
}
NEON_INLINE __m256 neon_permute_0xb1(__m256 a)
{
    return (__m256){vrev64q_f32(a.lo), vrev64q_f32(a.hi)};
}
NEON_INLINE __m256 neon_shuffle_0x88(__m256 a, __m256 b)
{
    return (__m256){vuzp1q_f32(a.lo, b.lo), vuzp1q_f32(a.hi, b.hi)};
}
NEON_INLINE __m256 neon_shuffle_0xdd(__m256 a, __m256 b)
{
    return (__m256){vuzp2q_f32(a.lo, b.lo), vuzp2q_f32(a.hi, b.hi)};
}
NEON_INLINE __m256d neon_permute4x64_0xd8(__m256d a)
{
    return (__m256d){vzip1q_f64(a.lo, a.hi), vzip2q_f64(a.lo, a.hi)};
}
#define _mm256_permute_ps(a, how) neon_permute_##how(a)
#define _mm256_shuffle_ps(a, b, how) neon_shuffle_##how(a, b)
#define _mm256_permute4x64_pd(a, how) neon_permute4x64_##how(a)

NEON_INLINE __m128 _mm256_castps256_ps128(__m256 a)
{
    return a.lo;
}
NEON_INLINE __m128 neon_extract_1(__m256 a)
{
    return a.hi;
}
#define _mm256_extractf128_ps(a, half) neon_extract_##half(a)

/* --------------------------------------------------------------------------------- eight integers, conversions */

NEON_INLINE __m256i _mm256_set1_epi32(int32_t x)
{
    return (__m256i){vdupq_n_s32(x), vdupq_n_s32(x)};
}
NEON_INLINE __m256i _mm256_add_epi32(__m256i a, __m256i b)
{
    return (__m256i){vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)};
}
NEON_INLINE __m256i _mm256_sub_epi32(__m256i a, __m256i b)
{
    return (__m256i){vsubq_s32(a.lo, b.lo), vsubq_s32(a.hi, b.hi)};
}
NEON_INLINE __m256i _mm256_and_si256(__m256i a, __m256i b)
{
    return (__m256i){vandq_s32(a.lo, b.lo), vandq_s32(a.hi, b.hi)};
}
NEON_INLINE int32x4_t neon_slli(int32x4_t a, int n)
{
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) << n);
}
NEON_INLINE __m256i _mm256_slli_epi32(__m256i a, int n)
{
    return (__m256i){neon_slli(a.lo, n), neon_slli(a.hi, n)};
}
NEON_INLINE __m256i _mm256_srai_epi32(__m256i a, int n)
{
    return (__m256i){a.lo >> n, a.hi >> n};
}

NEON_INLINE __m256 _mm256_castsi256_ps(__m256i a)
{
    return (__m256){vreinterpretq_f32_s32(a.lo), vreinterpretq_f32_s32(a.hi)};
}
NEON_INLINE __m256i _mm256_castps_si256(__m256 a)
{
    return (__m256i){vreinterpretq_s32_f32(a.lo), vreinterpretq_s32_f32(a.hi)};
}
NEON_INLINE __m256 _mm256_cvtepi32_ps(__m256i a)
{
    return (__m256){vcvtq_f32_s32(a.lo), vcvtq_f32_s32(a.hi)};
}
NEON_INLINE __m256i _mm256_cvtps_epi32(__m256 a) /* to the nearest, halves to even */
{
    return (__m256i){vcvtnq_s32_f32(a.lo), vcvtnq_s32_f32(a.hi)};
}
NEON_INLINE __m256i _mm256_cvtepi8_epi32(__m128i a)
{
    int16x8_t v = vmovl_s8(vget_low_s8(vreinterpretq_s8_s32(a)));
    return (__m256i){vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)};
}
NEON_INLINE __m256i _mm256_cvtepu8_epi32(__m128i a)
{
    uint16x8_t v = vmovl_u8(vget_low_u8(vreinterpretq_u8_s32(a)));
    return (__m256i){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(v))), vreinterpretq_s32_u32(vmovl_high_u16(v))};
}
NEON_INLINE __m256i _mm256_cvtepu16_epi32(__m128i a)
{
    uint16x8_t v = vreinterpretq_u16_s32(a);
    return (__m256i){vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(v))), vreinterpretq_s32_u32(vmovl_high_u16(v))};
}
NEON_INLINE __m256 _mm256_cvtph_ps(__m128i a)
{
    float16x8_t v = vreinterpretq_f16_s32(a);
    return (__m256){vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
#define _MM_FROUND_TO_NEAREST_INT 0 /* what the CPU does unless told otherwise, which nobody does */
NEON_INLINE __m128i _mm256_cvtps_ph(__m256 a, int rounding)
{
    (void)rounding;
    return vreinterpretq_s32_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.lo), a.hi));
}
NEON_INLINE float _mm256_cvtss_f32(__m256 a)
{
    return vgetq_lane_f32(a.lo, 0);
}

/* -------------------------------------------------------------------------------------------- four doubles */

NEON_INLINE __m256d _mm256_setzero_pd(void)
{
    return (__m256d){vdupq_n_f64(0), vdupq_n_f64(0)};
}
NEON_INLINE __m256d _mm256_cvtps_pd(__m128 a)
{
    return (__m256d){vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a)};
}
NEON_INLINE __m256d _mm256_add_pd(__m256d a, __m256d b)
{
    return (__m256d){vaddq_f64(a.lo, b.lo), vaddq_f64(a.hi, b.hi)};
}
NEON_INLINE __m256d _mm256_fmadd_pd(__m256d a, __m256d b, __m256d c)
{
    return (__m256d){vfmaq_f64(c.lo, a.lo, b.lo), vfmaq_f64(c.hi, a.hi, b.hi)};
}
NEON_INLINE void _mm256_storeu_pd(double *p, __m256d a)
{
    vst1q_f64(p, a.lo);
    vst1q_f64(p + 2, a.hi);
}
NEON_INLINE __m256d _mm256_castps_pd(__m256 a)
{
    return (__m256d){vreinterpretq_f64_f32(a.lo), vreinterpretq_f64_f32(a.hi)};
}
NEON_INLINE __m256 _mm256_castpd_ps(__m256d a)
{
    return (__m256){vreinterpretq_f32_f64(a.lo), vreinterpretq_f32_f64(a.hi)};
}

/* ------------------------------------------------------------------------------------------------ 128 bits */

NEON_INLINE __m128i _mm_loadu_si128(const __m128i *p)
{
    return vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)p));
}
NEON_INLINE void _mm_storeu_si128(__m128i *p, __m128i a)
{
    vst1q_u8((uint8_t *)p, vreinterpretq_u8_s32(a));
}
NEON_INLINE __m128i _mm_loadl_epi64(const __m128i *p)
{
    return vreinterpretq_s32_u8(vcombine_u8(vld1_u8((const uint8_t *)p), vdup_n_u8(0)));
}
NEON_INLINE __m128i _mm_set1_epi16(int16_t x)
{
    return vreinterpretq_s32_s16(vdupq_n_s16(x));
}
NEON_INLINE __m128 _mm_loadu_ps(const float *p)
{
    return vld1q_f32(p);
}
NEON_INLINE void _mm_storeu_ps(float *p, __m128 a)
{
    vst1q_f32(p, a);
}
NEON_INLINE void _mm_storel_pi(__m64 *p, __m128 a)
{
    vst1_f32((float *)p, vget_low_f32(a));
}
NEON_INLINE void _mm_storeh_pi(__m64 *p, __m128 a)
{
    vst1_f32((float *)p, vget_high_f32(a));
}
NEON_INLINE __m128 _mm_set1_ps(float x)
{
    return vdupq_n_f32(x);
}
NEON_INLINE __m128 _mm_add_ps(__m128 a, __m128 b)
{
    return vaddq_f32(a, b);
}
NEON_INLINE __m128 _mm_mul_ps(__m128 a, __m128 b)
{
    return vmulq_f32(a, b);
}
NEON_INLINE __m128 _mm_max_ps(__m128 a, __m128 b)
{
    return neon_max(a, b);
}
NEON_INLINE __m128 _mm_movehl_ps(__m128 a, __m128 b)
{
    return vcombine_f32(vget_high_f32(b), vget_high_f32(a));
}
NEON_INLINE __m128 _mm_movehdup_ps(__m128 a)
{
    return vtrn2q_f32(a, a);
}

/* The lowest lane; the others stay those of a. */
NEON_INLINE __m128 _mm_add_ss(__m128 a, __m128 b)
{
    return vcopyq_laneq_f32(a, 0, vaddq_f32(a, b), 0);
}
NEON_INLINE __m128 _mm_max_ss(__m128 a, __m128 b)
{
    return vcopyq_laneq_f32(a, 0, neon_max(a, b), 0);
}
NEON_INLINE __m128 _mm_min_ss(__m128 a, __m128 b)
{
    return vcopyq_laneq_f32(a, 0, neon_min(a, b), 0);
}
NEON_INLINE __m128 _mm_set_ss(float x)
{
    return vsetq_lane_f32(x, vdupq_n_f32(0), 0);
}
NEON_INLINE float _mm_cvtss_f32(__m128 a)
{
    return vgetq_lane_f32(a, 0);
}

/* Four f16 in the lower half. */
NEON_INLINE __m128i _mm_cvtps_ph(__m128 a, int rounding)
{
    (void)rounding;
    return vreinterpretq_s32_f16(vcombine_f16(vcvt_f16_f32(a), vreinterpret_f16_u16(vdup_n_u16(0))));
}
#define _mm_extract_epi16(a, lane) vgetq_lane_u16(vreinterpretq_u16_s32(a), lane)

#define _MM_HINT_T1 2
#define _mm_prefetch(p, hint) __builtin_prefetch(p, 0, hint)

/* ------------------------------------------------------------------- what takes other steps than in AVX2 (avx2.h) */

NEON_INLINE int16x8_t neon_narrow(__m256i a)
{
    return vqmovn_high_s32(vqmovn_s32(a.lo), a.hi);
}
NEON_INLINE void avx2_put_bytes(uint8_t *p, const __m256i q[4])
{
    for (int i = 0; i < 2; i++)
        vst1q_u8(p + 16 * i,
                 vreinterpretq_u8_s8(vqmovn_high_s16(vqmovn_s16(neon_narrow(q[2 * i])), neon_narrow(q[2 * i + 1]))));
}

#endif
