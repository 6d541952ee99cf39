/* SPDX-License-Identifier: MIT
 *
 * engine/model/embed_row.h: how embedding rows travel to nodes that do not keep the table.
 */
#ifndef ENG_EMBED_ROW_H
#define ENG_EMBED_ROW_H

#include "dl/quant.h"

/* Blocks of 32 values: a byte e, then 32 signed codes of 14 bits, lowest bits first; a value is code * 2^(e - 126). All codes of a block
 * have the step of its largest value, so that they lose less than f16 does on average, in 57 bytes for 64. */
enum eng_embed { ENG_EMBED_F32, ENG_EMBED_F16, ENG_EMBED_BLOCKS };

/* For rows of `dim` values in a cluster whose sums travel as `wire`. */
enum eng_embed eng_embed_of(enum dl_type wire, uint32_t dim);
uint64_t eng_embed_bytes(enum eng_embed kind, uint32_t dim);

/* A row, or whole blocks of one. What _get gives is _put as the same bytes again. In blocks there are numbers only: others become some. */
void eng_embed_put(enum eng_embed kind, const float *row, uint32_t n, uint8_t *out);
void eng_embed_get(enum eng_embed kind, const uint8_t *in, uint32_t n, float *row);
/* _put and _get at once. */
void eng_embed_round(enum eng_embed kind, float *row, uint32_t n);

#endif
