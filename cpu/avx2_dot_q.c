/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_q.c: eight rows of Q40 or Q80 weights times Q80 activations:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one
 * f32 fma per block in block order. How the integers are found cannot change the bits. These kernels are for decoding:
 * one token at a time; avx2_panel.c is for more.
 */
#include "avx2_quant.h"

/* ------------------------------------------------------------------------------------------------- Q40 */

/* sum_i (nibble[r][i] - 8) * x[i] per lane r. Eight maddubs add up to at most 16 * 15 * 128 in 16 bits; the eights are
 * taken off together: they meet the same x in every row. */
AVX2_INLINE __m256i q40_block(const __m256i nib[8], const uint8_t *x)
{
    const uint8_t *q = x + AVX2_CODES;
    __m256i eights = _mm256_maddubs_epi16(_mm256_set1_epi8(8), avx2_load256(q));
    eights = _mm256_add_epi16(eights, _mm256_permute2x128_si256(eights, eights, 1));
    eights = _mm256_add_epi16(eights, _mm256_shuffle_epi32(eights, 0x4e));
    eights = _mm256_add_epi16(eights, _mm256_shuffle_epi32(eights, 0xb1));
    __m256i s = _mm256_maddubs_epi16(nib[0], _mm256_set1_epi32(avx2_i32(q)));
    __m256i s1 = _mm256_maddubs_epi16(nib[1], _mm256_set1_epi32(avx2_i32(q + 4)));
    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(nib[2], _mm256_set1_epi32(avx2_i32(q + 8))));
    s1 = _mm256_add_epi16(s1, _mm256_maddubs_epi16(nib[3], _mm256_set1_epi32(avx2_i32(q + 12))));
    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(nib[4], _mm256_set1_epi32(avx2_i32(q + 16))));
    s1 = _mm256_add_epi16(s1, _mm256_maddubs_epi16(nib[5], _mm256_set1_epi32(avx2_i32(q + 20))));
    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(nib[6], _mm256_set1_epi32(avx2_i32(q + 24))));
    s1 = _mm256_add_epi16(s1, _mm256_maddubs_epi16(nib[7], _mm256_set1_epi32(avx2_i32(q + 28))));
    s = _mm256_sub_epi16(_mm256_add_epi16(s, s1), eights);
    return _mm256_madd_epi16(s, _mm256_set1_epi16(1));
}

/* The next tile is one piece of memory that follows this one. Short rows end before the processor's own prefetchers wake up:
 * 17 GFLOP/s without this, 64 with it at 1024 columns. A tile that would fill the L1 cache is fetched no closer than L2. */
AVX2_INLINE void fetch_next(const char *p, bool near)
{
    for (int i = 0; i < 3; i++) {
        if (near)
            _mm_prefetch(p + 64 * i, _MM_HINT_T0);
        else
            _mm_prefetch(p + 64 * i, _MM_HINT_T1);
    }
}

void cpu_avx2_dot_q40(const struct cpu_avx2_tile *tile)
{
    uint32_t n_blocks = tile->cols / DL_BLOCK;
    bool near = n_blocks * sizeof(struct dl_q40) * CPU_TILE <= 16384;
    for (uint32_t t = 0; t < tile->n; t++) {
        const uint8_t *x = tile->x + t * tile->x_row;
        const char *next = t == 0 ? (const char *)tile->next : NULL;
        __m256 acc = _mm256_setzero_ps();
        for (uint32_t b = 0; b < n_blocks; b++, x += sizeof(struct dl_q80)) {
            uint64_t at = (uint64_t)b * sizeof(struct dl_q40);
            if (next)
                fetch_next(next + at * CPU_TILE, near);
            __m256i nib[8];
            avx2_q40_rows(tile->w, at, nib);
            __m256 d = _mm256_mul_ps(avx2_scales(tile->w, at), avx2_scale(x));
            acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(q40_block(nib, x)), d, acc);
        }
        avx2_put(tile, t, acc);
    }
}

/* ------------------------------------------------------------------------------------------------- Q80 */

/* a[r] holds eight partial sums of row r; lane r of the result is their sum. */
AVX2_INLINE __m256i sum8(const __m256i a[CPU_TILE])
{
    __m256i lo = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    __m256i hi = _mm256_hadd_epi32(_mm256_hadd_epi32(a[4], a[5]), _mm256_hadd_epi32(a[6], a[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31));
}

/* |w| * (x with w's sign): maddubs wants one unsigned factor. Two products stay below 2^15 as x is never -128. */
AVX2_INLINE __m256i q80_row(__m256i w, __m256i x)
{
    __m256i p = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(p, _mm256_set1_epi16(1));
}

void cpu_avx2_dot_q80(const struct cpu_avx2_tile *tile)
{
    uint32_t n_blocks = tile->cols / DL_BLOCK;
    for (uint32_t t = 0; t < tile->n; t++) {
        const uint8_t *x = tile->x + t * tile->x_row;
        __m256 acc = _mm256_setzero_ps();
        for (uint32_t b = 0; b < n_blocks; b++, x += sizeof(struct dl_q80)) {
            uint64_t at = (uint64_t)b * sizeof(struct dl_q80);
            __m256i codes = avx2_load256(x + AVX2_CODES), p[CPU_TILE];
            for (uint32_t r = 0; r < CPU_TILE; r++)
                p[r] = q80_row(avx2_load256(tile->w[r] + at + AVX2_CODES), codes);
            __m256 d = _mm256_mul_ps(avx2_scales(tile->w, at), avx2_scale(x));
            acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum8(p)), d, acc);
        }
        avx2_put(tile, t, acc);
    }
}
