/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_panel.c: quantised MATMUL for many tokens. The formula, its order and so its bits are those of avx2_dot_q.c;
 * what differs is who shares work. A stretch of 16 blocks of eight rows is decoded once into a panel that meets up to 32
 * tokens; what a token's block needs beside its codes is found once for up to eight such panels.
 */
#include "avx2_quant.h"

enum { GROUP = 32 /* tokens */, STEP = 16 /* blocks */ };

struct panel {
    __m256i codes[STEP][8]; /* dword r of [b][j]: values 4j .. 4j + 3 of row r in block b; Q40: plus 8 */
    __m256 d[STEP];
};

/* Of the tokens of a group. `eights` is what the 8 on every Q40 code adds to a dot product, as two 16-bit parts. */
struct inputs {
    float d[GROUP][STEP];
    int32_t eights[GROUP][STEP];
    uint32_t n, blocks;
};

AVX2_INLINE void load_inputs(const enum dl_type type, const struct cpu_avx2_tile *tile, uint32_t t0, uint32_t b0,
                             struct inputs *in)
{
    for (uint32_t t = 0; t < in->n; t++) {
        const uint8_t *x = tile->x + (t0 + t) * tile->x_row + (uint64_t)b0 * sizeof(struct dl_q80);
        for (uint32_t b = 0; b < in->blocks; b++, x += sizeof(struct dl_q80)) {
            in->d[t][b] = _mm256_cvtss_f32(avx2_scale(x));
            if (type != DL_Q40)
                continue;
            const __m128i eight = _mm_set1_epi8(8);
            __m128i s = _mm_add_epi16(_mm_maddubs_epi16(eight, avx2_load128(x + AVX2_CODES)),
                                      _mm_maddubs_epi16(eight, avx2_load128(x + AVX2_CODES + 16)));
            s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
            in->eights[t][b] = _mm_cvtsi128_si32(_mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1)));
        }
    }
}

/* Fills the panel with blocks b0 .. of a tile and fetches the same stretch of the next tile, one row apart each. */
AVX2_INLINE void load_panel(const enum dl_type type, const uint8_t *const w[CPU_TILE], const uint8_t *const *next,
                            uint32_t b0, uint32_t blocks, struct panel *p)
{
    uint64_t block = type == DL_Q40 ? sizeof(struct dl_q40) : sizeof(struct dl_q80), at = b0 * block;
    if (next)
        for (uint32_t r = 0; r < CPU_TILE; r++)
            for (uint64_t i = 0; i < blocks * block; i += 64)
                _mm_prefetch((const char *)next[r] + at + i, _MM_HINT_T0);
    for (uint32_t b = 0; b < blocks; b++, at += block) {
        p->d[b] = avx2_scales(w, at);
        if (type == DL_Q40) {
            avx2_q40_rows(w, at, p->codes[b]);
        } else {
            avx2_rows16(w, at + AVX2_CODES, p->codes[b]);
            avx2_rows16(w, at + AVX2_CODES + 16, p->codes[b] + 4);
        }
    }
}

/* The integer dot products of block b with T tokens. Eight Q40 products of 4 x 8 bits fit 16 bits, two of Q80 do. */
AVX2_INLINE void dot_block(const enum dl_type type, const __m256i w[8], const uint8_t *const x[4], __m256i s[4],
                           const uint32_t T)
{
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4 /* all eight at once, gcc turns the sums into trees and spills most of them: a quarter slower */
    for (uint32_t j = 0; j < 8; j++) {
        __m256i v = w[j], size = _mm256_abs_epi8(v);
        for (uint32_t i = 0; i < T; i++) {
            __m256i q = _mm256_set1_epi32(avx2_i32(x[i] + AVX2_CODES + 4 * j));
            if (type == DL_Q40)
                s[i] = _mm256_add_epi16(s[i], _mm256_maddubs_epi16(v, q));
            else
                s[i] =
                    _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(q, v)), ones));
        }
    }
    if (type == DL_Q40)
        for (uint32_t i = 0; i < T; i++)
            s[i] = _mm256_madd_epi16(s[i], ones);
}

/* y[t .. t + T - 1] += panel times those tokens' stretches. */
AVX2_INLINE void multiply(const enum dl_type type, const struct panel *p, const struct inputs *in, const uint8_t *x0,
                          uint64_t x_row, uint32_t t, __m256 *y, const uint32_t T)
{
    const uint8_t *x[4];
    __m256 acc[4];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = x0 + (t + i) * x_row;
        acc[i] = y[t + i];
    }
    for (uint32_t b = 0; b < in->blocks; b++) {
        __m256i s[4];
        for (uint32_t i = 0; i < T; i++)
            s[i] = type == DL_Q40 ? _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_set1_epi32(in->eights[t + i][b]))
                                  : _mm256_setzero_si256();
        dot_block(type, p->codes[b], x, s, T);
        for (uint32_t i = 0; i < T; i++) {
            __m256 d = _mm256_mul_ps(p->d[b], _mm256_set1_ps(in->d[t + i][b]));
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s[i]), d, acc[i]);
            x[i] += sizeof(struct dl_q80);
        }
    }
    for (uint32_t i = 0; i < T; i++)
        y[t + i] = acc[i];
}

/* A strip of tiles times the tokens t0 .. t0 + n - 1. */
AVX2_INLINE void group(const enum dl_type type, const struct cpu_avx2_tile *tiles, uint32_t n_tiles, uint32_t t0,
                       uint32_t n)
{
    struct panel panel;
    struct inputs in;
    __m256 y[AVX2_STRIP][GROUP];
    for (uint32_t i = 0; i < n_tiles; i++)
        memset(y[i], 0, n * sizeof y[i][0]);
    uint32_t blocks = tiles->cols / DL_BLOCK;
    in.n = n;
    for (uint32_t b = 0; b < blocks; b += STEP) {
        in.blocks = DL_MIN(blocks - b, (uint32_t)STEP);
        load_inputs(type, tiles, t0, b, &in);
        const uint8_t *x = tiles->x + t0 * tiles->x_row + (uint64_t)b * sizeof(struct dl_q80);
        for (uint32_t i = 0; i < n_tiles; i++) {
            load_panel(type, tiles[i].w, i + 1 < n_tiles ? tiles[i + 1].w : NULL, b, in.blocks, &panel);
            uint32_t t = 0;
            for (; n - t >= 4; t += 4)
                multiply(type, &panel, &in, x, tiles->x_row, t, y[i], 4);
            for (; n - t >= 2; t += 2)
                multiply(type, &panel, &in, x, tiles->x_row, t, y[i], 2);
            if (t < n)
                multiply(type, &panel, &in, x, tiles->x_row, t, y[i], 1);
        }
    }
    for (uint32_t i = 0; i < n_tiles; i++)
        for (uint32_t t = 0; t < n; t++)
            avx2_put(&tiles[i], t0 + t, y[i][t]);
}

AVX2_INLINE void strip(const enum dl_type type, const struct cpu_avx2_tile *tiles, uint32_t n_tiles)
{
    for (uint32_t t = 0; t < tiles->n; t += GROUP)
        group(type, tiles, n_tiles, t, DL_MIN(tiles->n - t, (uint32_t)GROUP));
}

void cpu_avx2_panel_q40(const struct cpu_avx2_tile *tiles, uint32_t n_tiles)
{
    strip(DL_Q40, tiles, n_tiles);
}
void cpu_avx2_panel_q80(const struct cpu_avx2_tile *tiles, uint32_t n_tiles)
{
    strip(DL_Q80, tiles, n_tiles);
}
