/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_dot_q.c: Q40 or Q80 weights times a few tokens: decoding. Weights come from memory once, in the order in which
 * they lie there, and are decoded in registers; up to four tokens meet them at once. The formula is in avx2_quant.h.
 */
#include "avx2_quant.h"

enum { STRETCH = 256 /* blocks whose factors are held at once: 8192 columns */, AT_ONCE = 4 };

struct inputs {
    struct avx2_factor f[CPU_AVX2_FEW][STRETCH];
    const uint8_t *x[CPU_AVX2_FEW]; /* their first block of the stretch */
};

/* One block of a tile for tokens t .. t + T - 1. */
AVX2_INLINE void block(const enum dl_type type, struct avx2_block w, const struct inputs *in, uint32_t t, uint32_t b,
                       __m256 acc[AT_ONCE], const uint32_t T)
{
    const __m256i low = _mm256_set1_epi8(15);
    const uint8_t *x[AT_ONCE];
    __m256i s[AT_ONCE];
    for (uint32_t i = 0; i < T; i++) {
        x[i] = in->x[t + i] + b * sizeof(struct dl_q80) + AVX2_CODES;
        s[i] = avx2_start(type, &in->f[t + i][b]);
    }
    for (uint32_t j = 0; j < (type == DL_Q40 ? 4 : 8); j++) {
        __m256i q = avx2_load256(w.codes + 32 * j);
        if (type == DL_Q40) {
            __m256i lo = _mm256_and_si256(q, low), hi = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
            for (uint32_t i = 0; i < T; i++) {
                s[i] = avx2_step(type, s[i], lo, lo, x[i] + 4 * j);
                s[i] = avx2_step(type, s[i], hi, hi, x[i] + DL_BLOCK / 2 + 4 * j);
            }
        } else {
            __m256i size = _mm256_abs_epi8(q);
            for (uint32_t i = 0; i < T; i++)
                s[i] = avx2_step(type, s[i], q, size, x[i] + 4 * j);
        }
    }
    __m256 d = _mm256_cvtph_ps(avx2_load128(w.scales));
    for (uint32_t i = 0; i < T; i++)
        acc[i] = avx2_finish(type, s[i], d, &in->f[t + i][b], acc[i]);
}

/* Blocks b0 .. b0 + n - 1 of a tile for tokens t .. t + T - 1; b0 begins a group. */
AVX2_INLINE void tile(const enum dl_type type, const struct cpu_avx2_rows *rows, const struct cpu_avx2_tokens *tok,
                      const struct inputs *in, uint32_t t, uint32_t b0, uint32_t n, const uint32_t T)
{
    __m256 acc[AT_ONCE];
    for (uint32_t i = 0; i < T; i++)
        acc[i] = b0 ? avx2_get(rows, tok->y[t + i]) : _mm256_setzero_ps();
    uint32_t b = 0;
    for (; n - b >= CPU_PACK_GROUP; b += CPU_PACK_GROUP)
        for (uint32_t r = 0; r < CPU_PACK_GROUP; r++)
            block(type, avx2_block_at(type, rows->tile, b0 + b + r, b0 + b + CPU_PACK_GROUP), in, t, b + r, acc, T);
    for (; b < n; b++)
        block(type, avx2_block_at(type, rows->tile, b0 + b, tok->blocks), in, t, b, acc, T);
    for (uint32_t i = 0; i < T; i++)
        avx2_put(rows, tok->y[t + i], acc[i], b0 + n == tok->blocks);
}

AVX2_INLINE void few(const enum dl_type type, const struct cpu_avx2_rows *rows, uint32_t n_rows,
                     const struct cpu_avx2_tokens *tok)
{
    struct inputs in;
    for (uint32_t b0 = 0; b0 < tok->blocks; b0 += STRETCH) {
        uint32_t n = DL_MIN(tok->blocks - b0, (uint32_t)STRETCH);
        for (uint32_t t = 0; t < tok->n; t++) {
            in.x[t] = tok->x[t] + (uint64_t)b0 * sizeof(struct dl_q80);
            avx2_factors(type, in.x[t], n, in.f[t]);
        }
        for (uint32_t i = 0; i < n_rows; i++) {
            uint32_t t = 0;
            for (; tok->n - t >= 4; t += 4)
                tile(type, &rows[i], tok, &in, t, b0, n, 4);
            if (tok->n - t == 3)
                tile(type, &rows[i], tok, &in, t, b0, n, 3);
            else if (tok->n - t == 2)
                tile(type, &rows[i], tok, &in, t, b0, n, 2);
            else if (tok->n - t == 1)
                tile(type, &rows[i], tok, &in, t, b0, n, 1);
        }
    }
}

void cpu_avx2_few_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    few(DL_Q40, rows, n_rows, tok);
}
void cpu_avx2_few_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    few(DL_Q80, rows, n_rows, tok);
}
