/* SPDX-License-Identifier: MIT
 *
 * dl/quant.h: number formats of weights and activations, and their scalar conversions (the definition; fast versions
 * live with the devices). Rows are stored one after the other; a quantised row is a whole number of 32-value blocks.
 *
 * Source of the block formats: Distributed Llama's Q40 and Q80, which are GGUF's Q4_0 and Q8_0 byte for byte.
 */
#ifndef DL_QUANT_H
#define DL_QUANT_H

#include "dl/base.h"

#define DL_BLOCK 32 /* values per quantised block */

enum dl_type { DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80, DL_Q120, DL_TYPE_COUNT };
#define DL_WEIGHT_TYPES DL_Q120 /* weights are of a type before this one */

/* 18 bytes: byte j of qs holds value j in its low and value j + 16 in its high nibble; value = (nibble - 8) * d. */
struct dl_q40 {
    uint16_t d; /* f16 */
    uint8_t qs[DL_BLOCK / 2];
};

/* 34 bytes: value = qs * d; written with d = max|x| / 127. */
struct dl_q80 {
    uint16_t d; /* f16 */
    int8_t qs[DL_BLOCK];
};

/* 50 bytes, and only what nodes send each other: value = code * d with code = 16 * qs + a nibble of `low`, in which byte j has that of
 * value j in its low and that of value j + 16 in its high half. d has the range of a float: small values, too, get all of their bits. */
struct dl_q120 {
    uint16_t d; /* bf16 */
    int8_t qs[DL_BLOCK];
    uint8_t low[DL_BLOCK / 2];
};

_Static_assert(sizeof(struct dl_q40) == 18 && sizeof(struct dl_q80) == 34 && sizeof(struct dl_q120) == 50,
               "blocks are packed");

struct dl_type_info {
    const char *name;         /* "f32", "q40", ... */
    uint32_t block_values;    /* 1 for float types */
    uint32_t block_bytes;
};
const struct dl_type_info *dl_type_info(enum dl_type type); /* NULL for a value outside the enum */

/* Weights of blocks with a scale: a product with them takes Q80 activations, one with float weights F32. */
static inline bool dl_type_quantised(enum dl_type type)
{
    return type == DL_Q40 || type == DL_Q80;
}

/* Bytes of one row of `cols` values; false when cols is no whole number of blocks or the size does not fit. */
bool dl_row_bytes(enum dl_type type, uint64_t cols, uint64_t *out);

/* IEEE half and bfloat16, both ways. f32 to f16 rounds to nearest even and saturates to infinity; NaN stays NaN;
 * subnormals are kept. f32 to bf16 rounds to nearest even. */
float dl_f16_to_f32(uint16_t h);
uint16_t dl_f32_to_f16(float f);
float dl_bf16_to_f32(uint16_t h);
uint16_t dl_f32_to_bf16(float f);

/* A row of n values to and from f32. n is a multiple of the type's block. `row` needs no alignment. Writing Q80 is
 * DL_OP_CONVERT's definition: d = f16(max|x| / 127), qs = round_half_even(x * 127 / max|x|), all zero where max|x| is 0;
 * writing Q40: d = f16(m / -8) with m the value of largest magnitude (sign kept), nibble = min(15, floor(x / d + 8.5)).
 * Both give finite blocks for finite input: d saturates at 65504. Writing Q120: d = the least bf16 >= max|x| * (1 / 2047) in f32,
 * code = round_half_even(x * (1 / d)), within -2047 .. 2047; all zero where max|x| < 2^-100. */
void dl_row_to_f32(enum dl_type type, const void *row, float *out, size_t n);
void dl_row_from_f32(enum dl_type type, const float *in, void *row, size_t n);

#endif
