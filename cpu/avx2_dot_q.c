/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_q.c: eight rows of Q40 or Q80 weights times Q80 activations:
 *   y[r] = sum over blocks b of (sum_i w_code[r][b][i] * x_code[b][i]) * (d_w[r][b] * d_x[b])
 * The inner sum is exact in integers, the scale product is exact in f32 (two 11-bit mantissas), the outer sum is one
 * f32 fma per block in block order. How the integers are found cannot change the bits.
 */
#include "avx2.h"

enum { QS = 2 /* offset of the codes in both block formats */ };

/* The f16 scales of one block of eight rows. */
AVX2_INLINE __m256 scales(const uint8_t *const w[CPU_TILE], uint64_t at)
{
    __m128i h = _mm_cvtsi32_si128(avx2_u16(w[0] + at));
    h = _mm_insert_epi16(h, avx2_u16(w[1] + at), 1);
    h = _mm_insert_epi16(h, avx2_u16(w[2] + at), 2);
    h = _mm_insert_epi16(h, avx2_u16(w[3] + at), 3);
    h = _mm_insert_epi16(h, avx2_u16(w[4] + at), 4);
    h = _mm_insert_epi16(h, avx2_u16(w[5] + at), 5);
    h = _mm_insert_epi16(h, avx2_u16(w[6] + at), 6);
    h = _mm_insert_epi16(h, avx2_u16(w[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

AVX2_INLINE void put(const struct cpu_avx2_tile *tile, uint32_t t, __m256 y)
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

AVX2_INLINE __m256i halves(const uint8_t *lo, const uint8_t *hi)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(avx2_load128(lo)), avx2_load128(hi), 1);
}

/* ------------------------------------------------------------------------------------------------- Q40 */

/* The nibbles of one block of eight rows, transposed: dword r of nib[j] is values 4j .. 4j + 3 of row r. */
AVX2_INLINE void q40_load(const uint8_t *const w[CPU_TILE], uint64_t at, __m256i nib[8])
{
    at += QS;
    __m256i a = halves(w[0] + at, w[4] + at), b = halves(w[1] + at, w[5] + at);
    __m256i c = halves(w[2] + at, w[6] + at), d = halves(w[3] + at, w[7] + at);
    __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
    __m256i q[4] = {_mm256_unpacklo_epi64(ab0, cd0), _mm256_unpackhi_epi64(ab0, cd0),
                    _mm256_unpacklo_epi64(ab1, cd1), _mm256_unpackhi_epi64(ab1, cd1)};
    const __m256i low = _mm256_set1_epi8(15);
    for (int j = 0; j < 4; j++) {
        nib[j] = _mm256_and_si256(q[j], low);
        nib[j + 4] = _mm256_and_si256(_mm256_srli_epi16(q[j], 4), low);
    }
}

/* sum_i (nibble[r][i] - 8) * x[i] per lane r. Eight maddubs add up to at most 16 * 15 * 128 in 16 bits; the eights are
 * taken off together: they meet the same x in every row. */
AVX2_INLINE __m256i q40_block(const __m256i nib[8], const uint8_t *x)
{
    const uint8_t *q = x + QS;
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

/* Tokens t .. t + T - 1. The next tile is one piece of memory that follows this one: fetched along the way. */
AVX2_INLINE void q40_tokens(const struct cpu_avx2_tile *tile, uint32_t t, const uint32_t T)
{
    const uint8_t *x[4];
    __m256 acc[4];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = tile->x + (t + i) * tile->x_row;
        acc[i] = _mm256_setzero_ps();
    }
    uint32_t n_blocks = tile->cols / DL_BLOCK;
    const char *next = t == 0 ? (const char *)tile->next : NULL;
    for (uint32_t b = 0; b < n_blocks; b++) {
        __m256i nib[8];
        uint64_t w_at = (uint64_t)b * sizeof(struct dl_q40), x_at = (uint64_t)b * sizeof(struct dl_q80);
        if (next) {
            _mm_prefetch(next + w_at * CPU_TILE, _MM_HINT_T0);
            _mm_prefetch(next + w_at * CPU_TILE + 64, _MM_HINT_T0);
            _mm_prefetch(next + w_at * CPU_TILE + 128, _MM_HINT_T0);
        }
        q40_load(tile->w, w_at, nib);
        __m256 d = scales(tile->w, w_at);
        for (uint32_t i = 0; i < T; i++) {
            __m256 s = _mm256_mul_ps(d, avx2_scale(x[i] + x_at));
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(q40_block(nib, x[i] + x_at)), s, acc[i]);
        }
    }
    for (uint32_t i = 0; i < T; i++)
        put(tile, t + i, acc[i]);
}

void cpu_avx2_dot_q40(const struct cpu_avx2_tile *tile)
{
    uint32_t t = 0;
    for (; tile->n - t >= 4; t += 4)
        q40_tokens(tile, t, 4);
    switch (tile->n - t) {
    case 3:
        q40_tokens(tile, t, 3);
        break;
    case 2:
        q40_tokens(tile, t, 2);
        break;
    case 1:
        q40_tokens(tile, t, 1);
        break;
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

AVX2_INLINE void q80_tokens(const struct cpu_avx2_tile *tile, uint32_t t, const uint32_t T)
{
    const uint8_t *x[4];
    __m256 acc[4];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = tile->x + (t + i) * tile->x_row;
        acc[i] = _mm256_setzero_ps();
    }
    uint32_t n_blocks = tile->cols / DL_BLOCK;
    for (uint32_t b = 0; b < n_blocks; b++) {
        uint64_t at = (uint64_t)b * sizeof(struct dl_q80);
        __m256 d = scales(tile->w, at);
        for (uint32_t i = 0; i < T; i++) {
            __m256i codes = avx2_load256(x[i] + at + QS), p[CPU_TILE];
            for (uint32_t r = 0; r < CPU_TILE; r++)
                p[r] = q80_row(avx2_load256(tile->w[r] + at + QS), codes);
            __m256 s = _mm256_mul_ps(d, avx2_scale(x[i] + at));
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum8(p)), s, acc[i]);
        }
    }
    for (uint32_t i = 0; i < T; i++)
        put(tile, t + i, acc[i]);
}

void cpu_avx2_dot_q80(const struct cpu_avx2_tile *tile)
{
    uint32_t t = 0;
    for (; tile->n - t >= 4; t += 4)
        q80_tokens(tile, t, 4);
    for (; t < tile->n; t++)
        q80_tokens(tile, t, 1);
}
