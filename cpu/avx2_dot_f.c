/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_f.c: eight rows of F32, F16 or BF16 weights times F32 activations. A (row, token) pair is one vector
 * accumulator over the columns, eight at a time, summed across at the end: the error of 16384 columns is that of 2048
 * roundings, about 1e-12 as NMSE. Columns past the last eight are loaded with zeros behind them.
 */
#include "avx2.h"

AVX2_INLINE __m256 from_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

AVX2_INLINE __m256 load_w(const enum dl_type type, const uint8_t *row, uint32_t i)
{
    if (type == DL_F32)
        return _mm256_loadu_ps((const float *)(const void *)row + i);
    __m128i h = avx2_load128(row + 2 * (uint64_t)i);
    return type == DL_F16 ? _mm256_cvtph_ps(h) : from_bf16(h);
}

AVX2_INLINE __m256 load_w_part(const enum dl_type type, const uint8_t *row, uint32_t i, uint32_t n)
{
    if (type == DL_F32)
        return avx2_load_part((const float *)(const void *)row + i, n);
    __m128i h = avx2_load_part16(row + 2 * (uint64_t)i, n);
    return type == DL_F16 ? _mm256_cvtph_ps(h) : from_bf16(h);
}

/* Rows r0 .. r0 + 3 times tokens t .. t + T - 1: 4 T chains, enough to hide the latency of fma for T >= 2. */
AVX2_INLINE void quad(const enum dl_type type, const struct cpu_avx2_tile *tile, uint32_t r0, uint32_t t,
                      const uint32_t T)
{
    const uint8_t *const *w = tile->w + r0;
    const float *x[3];
    __m256 acc[3][4];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = (const float *)(const void *)(tile->x + (t + i) * tile->x_row);
        for (uint32_t r = 0; r < 4; r++)
            acc[i][r] = _mm256_setzero_ps();
    }
    uint32_t c = 0;
    for (; tile->cols - c >= 8; c += 8) {
        __m256 v[3];
        for (uint32_t i = 0; i < T; i++)
            v[i] = _mm256_loadu_ps(x[i] + c);
        for (uint32_t r = 0; r < 4; r++) {
            __m256 a = load_w(type, w[r], c);
            for (uint32_t i = 0; i < T; i++)
                acc[i][r] = _mm256_fmadd_ps(a, v[i], acc[i][r]);
        }
    }
    if (c < tile->cols)
        for (uint32_t r = 0; r < 4; r++) {
            __m256 a = load_w_part(type, w[r], c, tile->cols - c);
            for (uint32_t i = 0; i < T; i++)
                acc[i][r] = _mm256_fmadd_ps(a, avx2_load_part(x[i] + c, tile->cols - c), acc[i][r]);
        }
    uint32_t rows = DL_MIN(tile->rows - r0, 4);
    float y[4], bias[4] = {0};
    if (tile->bias)
        memcpy(bias, tile->bias + r0, rows * sizeof *bias);
    for (uint32_t i = 0; i < T; i++) {
        __m128 sum = avx2_sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
        _mm_storeu_ps(y, _mm_add_ps(sum, _mm_loadu_ps(bias)));
        memcpy(tile->y + (t + i) * tile->y_row + r0, y, rows * sizeof *y);
    }
}

AVX2_INLINE void dot(const enum dl_type type, const struct cpu_avx2_tile *tile)
{
    for (uint32_t r = 0; r < tile->rows; r += 4) {
        uint32_t t = 0;
        for (; tile->n - t >= 3; t += 3)
            quad(type, tile, r, t, 3);
        if (tile->n - t == 2)
            quad(type, tile, r, t, 2);
        else if (tile->n - t == 1)
            quad(type, tile, r, t, 1);
    }
}

void cpu_avx2_dot_f32(const struct cpu_avx2_tile *tile)
{
    dot(DL_F32, tile);
}
void cpu_avx2_dot_f16(const struct cpu_avx2_tile *tile)
{
    dot(DL_F16, tile);
}
void cpu_avx2_dot_bf16(const struct cpu_avx2_tile *tile)
{
    dot(DL_BF16, tile);
}
