/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_inputs.h: Q80 activations as the tiles of avx2_dot_q.h and neon_dot_q.h take them, and the way of all tokens over all tiles.
 * An includer says AT_ONCE, how many tokens meet a tile at once (its registers decide), has take_input() and tile(), and includes
 * this again as CPU_DOT_ALL, for dot().
 */
#ifndef CPU_AVX2_INPUTS_H
#define CPU_AVX2_INPUTS_H

#include "avx2.h"

enum {
    CODES = 2,     /* where the codes start in a Q80 block */
    INPUTS = 2048, /* blocks of tokens that are held at once */
    SCALE_BYTES = 2 * CPU_TILE
};
#define CODE_BYTES(type) (CPU_TILE * ((type) == DL_Q40 ? DL_BLOCK / 2 : DL_BLOCK)) /* of a block of a tile */

/* A block of Q80 activations, as it is used. `start`: what the integer sum starts with to make up for codes that are
 * stored with something added; of AVX2 two 16-bit parts. */
struct input {
    int8_t code[DL_BLOCK];
    float d;
    int32_t start;
};

/* A stretch of blocks of all tokens. Tokens that meet a tile together, T of them from t on, have theirs side by side: block b
 * of token t + i is at[t * blocks + b * T + i]. */
struct inputs {
    uint32_t blocks;
    struct input at[INPUTS];
};

#endif

#ifdef CPU_DOT_ALL
#undef CPU_DOT_ALL

/* How many of the n tokens that are left meet a tile next: the last ones not alone, where it can be. */
AVX2_INLINE uint32_t next_tokens(uint32_t n)
{
    if (n <= AT_ONCE)
        return n;
    return n > 2 * AT_ONCE ? AT_ONCE : (n + 1) / 2;
}

AVX2_INLINE void take_inputs(const enum dl_type type, const struct cpu_avx2_tokens *tok, uint32_t b0, struct inputs *in)
{
    struct input *to = in->at;
    for (uint32_t t = 0, n; t < tok->n; t += n) {
        n = next_tokens(tok->n - t);
        for (uint32_t b = 0; b < in->blocks; b++)
            for (uint32_t i = 0; i < n; i++, to++)
                take_input(type, tok->x[t + i] + (uint64_t)(b0 + b) * sizeof(struct dl_q80), to);
    }
}

AVX2_INLINE void dot(const enum dl_type type, const struct cpu_avx2_rows *rows, uint32_t n_rows,
                     const struct cpu_avx2_tokens *tok)
{
    struct inputs in;
    uint32_t most = INPUTS / tok->n / CPU_PACK_GROUP * CPU_PACK_GROUP;
    for (uint32_t b0 = 0; b0 < tok->blocks; b0 += in.blocks) {
        in.blocks = DL_MIN(tok->blocks - b0, most);
        take_inputs(type, tok, b0, &in);
        for (uint32_t r = 0; r < n_rows; r++)
            for (uint32_t t = 0, n; t < tok->n; t += n) {
                n = next_tokens(tok->n - t);
#define CASE(T)                                                          \
    case T:                                                              \
        if (T <= AT_ONCE) /* the rest is not compiled */                 \
            tile(type, &rows[r], tok, &in, t, b0, T <= AT_ONCE ? T : 1); \
        break
                switch (n) {
                    CASE(1);
                    CASE(2);
                    CASE(3);
                    CASE(4);
                    CASE(5);
                    CASE(6);
                    CASE(7);
                    CASE(8);
                }
#undef CASE
            }
    }
}

#endif
