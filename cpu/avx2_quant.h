/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_quant.h: blocks of eight weight rows side by side, one row per lane: their scales and their codes, transposed.
 * For the two files that multiply quantised weights.
 */
#ifndef CPU_AVX2_QUANT_H
#define CPU_AVX2_QUANT_H

#include "avx2.h"

enum { AVX2_CODES = 2 /* where the codes start in a Q40 and a Q80 block */ };

/* The f16 scales of one block of eight rows. */
AVX2_INLINE __m256 avx2_scales(const uint8_t *const w[CPU_TILE], uint64_t at)
{
    __m128i h = _mm_cvtsi32_si128(avx2_i16(w[0] + at));
    h = _mm_insert_epi16(h, avx2_i16(w[1] + at), 1);
    h = _mm_insert_epi16(h, avx2_i16(w[2] + at), 2);
    h = _mm_insert_epi16(h, avx2_i16(w[3] + at), 3);
    h = _mm_insert_epi16(h, avx2_i16(w[4] + at), 4);
    h = _mm_insert_epi16(h, avx2_i16(w[5] + at), 5);
    h = _mm_insert_epi16(h, avx2_i16(w[6] + at), 6);
    h = _mm_insert_epi16(h, avx2_i16(w[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

/* 16 bytes of eight rows, transposed: dword r of q[j] is bytes 4j .. 4j + 3 of row r. */
AVX2_INLINE void avx2_rows16(const uint8_t *const w[CPU_TILE], uint64_t at, __m256i q[4])
{
    __m256i v[4];
    for (int r = 0; r < 4; r++)
        v[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(avx2_load128(w[r] + at)), avx2_load128(w[r + 4] + at), 1);
    __m256i ab0 = _mm256_unpacklo_epi32(v[0], v[1]), ab1 = _mm256_unpackhi_epi32(v[0], v[1]);
    __m256i cd0 = _mm256_unpacklo_epi32(v[2], v[3]), cd1 = _mm256_unpackhi_epi32(v[2], v[3]);
    q[0] = _mm256_unpacklo_epi64(ab0, cd0);
    q[1] = _mm256_unpackhi_epi64(ab0, cd0);
    q[2] = _mm256_unpacklo_epi64(ab1, cd1);
    q[3] = _mm256_unpackhi_epi64(ab1, cd1);
}

/* The nibbles of the Q40 block at `at`: dword r of nib[j] is values 4j .. 4j + 3 of row r, plus 8. */
AVX2_INLINE void avx2_q40_rows(const uint8_t *const w[CPU_TILE], uint64_t at, __m256i nib[8])
{
    const __m256i low = _mm256_set1_epi8(15);
    __m256i q[4];
    avx2_rows16(w, at + AVX2_CODES, q);
    for (int j = 0; j < 4; j++) {
        nib[j] = _mm256_and_si256(q[j], low);
        nib[j + 4] = _mm256_and_si256(_mm256_srli_epi16(q[j], 4), low);
    }
}

/* Writes token t's results for a tile. */
AVX2_INLINE void avx2_put(const struct cpu_avx2_tile *tile, uint32_t t, __m256 y)
{
    float *p = tile->y + t * tile->y_row;
    if (tile->rows == CPU_TILE) {
        _mm256_storeu_ps(p, tile->bias ? _mm256_add_ps(y, _mm256_loadu_ps(tile->bias)) : y);
        return;
    }
    if (tile->bias)
        y = _mm256_add_ps(y, avx2_load_part(tile->bias, tile->rows));
    avx2_store_part(p, y, tile->rows);
}

#endif
