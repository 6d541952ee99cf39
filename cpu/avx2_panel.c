/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_panel.c: Q40 or Q80 weights times many tokens: prompts. The formula, its order and so its bits are those of
 * avx2_dot_q.c; what differs is who shares work. A stretch of 16 blocks of two tiles is decoded once into a panel that
 * meets up to 32 tokens, two at a time: a load then serves two multiplications.
 */
#include "avx2_quant.h"

enum { STEP = 16 /* blocks */ };

struct panel {
    __m256i codes[STEP][8]; /* dword r of [b][j]: values 4j .. 4j + 3 of row r in block b; Q40: plus 8 */
    __m256 d[STEP];
};

struct inputs {
    struct avx2_factor f[CPU_AVX2_TOKENS][STEP];
    const uint8_t *x[CPU_AVX2_TOKENS]; /* their first block of the stretch */
    uint32_t blocks;
};

AVX2_INLINE void load_panel(const enum dl_type type, const uint8_t *tile, uint32_t b0, uint32_t n, uint32_t blocks,
                            struct panel *p)
{
    const __m256i low = _mm256_set1_epi8(15);
    for (uint32_t b = 0; b < n; b++) {
        struct avx2_block w = avx2_block_at(type, tile, b0 + b, blocks);
        p->d[b] = _mm256_cvtph_ps(avx2_load128(w.scales));
        for (uint32_t j = 0; j < (type == DL_Q40 ? 4 : 8); j++) {
            __m256i q = avx2_load256(w.codes + 32 * j);
            if (type == DL_Q40) {
                p->codes[b][j] = _mm256_and_si256(q, low);
                p->codes[b][j + 4] = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
            } else {
                p->codes[b][j] = q;
            }
        }
    }
}

/* y[r][t + i] += R panels times T tokens' stretches. */
AVX2_INLINE void multiply(const enum dl_type type, const struct panel p[2], const struct inputs *in, uint32_t t,
                          __m256 (*y)[CPU_AVX2_TOKENS], const uint32_t R, const uint32_t T)
{
    const uint8_t *x[2];
    __m256 acc[2][2];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = in->x[t + i] + AVX2_CODES;
        for (uint32_t r = 0; r < R; r++)
            acc[r][i] = y[r][t + i];
    }
    for (uint32_t b = 0; b < in->blocks; b++) {
        __m256i s[2][2];
        for (uint32_t r = 0; r < R; r++)
            for (uint32_t i = 0; i < T; i++)
                s[r][i] = avx2_start(type, &in->f[t + i][b]);
#pragma GCC unroll 4 /* all eight at once, gcc turns the sums into trees and spills most of them: a quarter slower */
        for (uint32_t j = 0; j < 8; j++)
            for (uint32_t r = 0; r < R; r++) {
                __m256i w = p[r].codes[b][j], size = _mm256_abs_epi8(w);
                for (uint32_t i = 0; i < T; i++)
                    s[r][i] = avx2_step(type, s[r][i], w, size, x[i] + 4 * j);
            }
        for (uint32_t i = 0; i < T; i++) {
            for (uint32_t r = 0; r < R; r++)
                acc[r][i] = avx2_finish(type, s[r][i], p[r].d[b], &in->f[t + i][b], acc[r][i]);
            x[i] += sizeof(struct dl_q80);
        }
    }
    for (uint32_t i = 0; i < T; i++)
        for (uint32_t r = 0; r < R; r++)
            y[r][t + i] = acc[r][i];
}

/* R tiles and all tokens of the group. */
AVX2_INLINE void tiles(const enum dl_type type, const struct panel p[2], const struct inputs *in, uint32_t n,
                       __m256 (*y)[CPU_AVX2_TOKENS], const uint32_t R)
{
    uint32_t t = 0;
    for (; n - t >= 2; t += 2)
        multiply(type, p, in, t, y, R, 2);
    if (t < n)
        multiply(type, p, in, t, y, R, 1);
}

AVX2_INLINE void many(const enum dl_type type, const struct cpu_avx2_rows *rows, uint32_t n_rows,
                      const struct cpu_avx2_tokens *tok)
{
    struct panel panel[2];
    struct inputs in;
    __m256 y[CPU_AVX2_STRIP][CPU_AVX2_TOKENS];
    for (uint32_t i = 0; i < n_rows; i++)
        memset(y[i], 0, tok->n * sizeof y[i][0]);
    for (uint32_t b = 0; b < tok->blocks; b += STEP) {
        in.blocks = DL_MIN(tok->blocks - b, (uint32_t)STEP);
        for (uint32_t t = 0; t < tok->n; t++) {
            in.x[t] = tok->x[t] + (uint64_t)b * sizeof(struct dl_q80);
            avx2_factors(type, in.x[t], in.blocks, in.f[t]);
        }
        for (uint32_t i = 0; i < n_rows; i += 2) {
            load_panel(type, rows[i].tile, b, in.blocks, tok->blocks, &panel[0]);
            if (i + 1 < n_rows) {
                load_panel(type, rows[i + 1].tile, b, in.blocks, tok->blocks, &panel[1]);
                tiles(type, panel, &in, tok->n, &y[i], 2);
            } else {
                tiles(type, panel, &in, tok->n, &y[i], 1);
            }
        }
    }
    for (uint32_t i = 0; i < n_rows; i++)
        for (uint32_t t = 0; t < tok->n; t++)
            avx2_put(&rows[i], tok->y[t], y[i][t], true);
}

void cpu_avx2_many_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    many(DL_Q40, rows, n_rows, tok);
}
void cpu_avx2_many_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    many(DL_Q80, rows, n_rows, tok);
}
