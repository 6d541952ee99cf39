/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_quant.h: what the kernels of quantised weights share. The weights are packed (pack.h), eight rows to a vector:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one
 * f32 fma per block in block order. How the integers are found, and who shares the work, cannot change the bits.
 */
#ifndef CPU_AVX2_QUANT_H
#define CPU_AVX2_QUANT_H

#include "avx2.h"

enum { AVX2_CODES = 2 /* where the codes start in a Q80 block */ };

/* What blocks of Q80 activations need beside their codes. `eights`: what the 8 on every Q40 code adds to the integer sum,
 * taken off: two 16-bit parts. */
struct avx2_factor {
    float d;
    int32_t eights;
};

AVX2_INLINE void avx2_factors(const enum dl_type type, const uint8_t *x, uint32_t blocks, struct avx2_factor *f)
{
    for (uint32_t b = 0; b < blocks; b++, x += sizeof(struct dl_q80)) {
        f[b].d = _mm256_cvtss_f32(avx2_scale(x));
        if (type != DL_Q40)
            continue;
        const __m128i eight = _mm_set1_epi8(8);
        __m128i s = _mm_add_epi16(_mm_maddubs_epi16(eight, avx2_load128(x + AVX2_CODES)),
                                  _mm_maddubs_epi16(eight, avx2_load128(x + AVX2_CODES + 16)));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1));
        f[b].eights = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), s));
    }
}

/* The integer sum starts here... */
AVX2_INLINE __m256i avx2_start(const enum dl_type type, const struct avx2_factor *f)
{
    return type == DL_Q40 ? _mm256_set1_epi32(f->eights) : _mm256_setzero_si256();
}

/* ... gets four columns: w the codes of eight rows (Q40: plus 8, `size` unused; Q80: size = |w|), x those of a token. Eight Q40
 * products of 4 x 8 bits fit 16 bits, together with the eights; two of Q80 do, as x is never -128 ... */
AVX2_INLINE __m256i avx2_step(const enum dl_type type, __m256i s, __m256i w, __m256i size, const uint8_t *x)
{
    __m256i q = _mm256_set1_epi32(avx2_i32(x));
    if (type == DL_Q40)
        return _mm256_add_epi16(s, _mm256_maddubs_epi16(w, q));
    __m256i p = _mm256_maddubs_epi16(size, _mm256_sign_epi8(q, w));
    return _mm256_add_epi32(s, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
}

/* ... and is scaled and added to the rest. */
AVX2_INLINE __m256 avx2_finish(const enum dl_type type, __m256i s, __m256 d, const struct avx2_factor *f, __m256 acc)
{
    if (type == DL_Q40)
        s = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_mul_ps(d, _mm256_set1_ps(f->d)), acc);
}

/* Where block b of a packed tile is. */
struct avx2_block {
    const uint8_t *scales, *codes;
};

AVX2_INLINE struct avx2_block avx2_block_at(const enum dl_type type, const uint8_t *tile, uint32_t b, uint32_t blocks)
{
    const uint32_t scales = 2 * CPU_TILE, codes = CPU_TILE * (type == DL_Q40 ? DL_BLOCK / 2 : DL_BLOCK);
    uint32_t first = b / CPU_PACK_GROUP * CPU_PACK_GROUP, n = DL_MIN(blocks - first, CPU_PACK_GROUP);
    const uint8_t *group = tile + (uint64_t)first * (scales + codes);
    return (struct avx2_block){group + (b - first) * scales, group + n * scales + (b - first) * codes};
}

/* Results so far, for another stretch of blocks. */
AVX2_INLINE __m256 avx2_get(const struct cpu_avx2_rows *rows, const float *y)
{
    if (rows->n == CPU_TILE)
        return _mm256_loadu_ps(y + rows->col);
    float v[8] = {0};
    memcpy(v + rows->lane, y + rows->col, rows->n * sizeof *v);
    return _mm256_loadu_ps(v);
}

AVX2_INLINE void avx2_put(const struct cpu_avx2_rows *rows, float *y, __m256 acc, bool last)
{
    const float *bias = last ? rows->bias : NULL;
    if (rows->n == CPU_TILE) {
        _mm256_storeu_ps(y + rows->col, bias ? _mm256_add_ps(acc, _mm256_loadu_ps(bias + rows->col)) : acc);
        return;
    }
    float v[8];
    _mm256_storeu_ps(v, acc);
    for (uint32_t i = 0; i < rows->n; i++)
        y[rows->col + i] = bias ? v[rows->lane + i] + bias[rows->col + i] : v[rows->lane + i];
}

#endif
