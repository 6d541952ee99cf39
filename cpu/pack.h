/* SPDX-License-Identifier: MIT
 *
 * cpu/pack.h: how quantised weights lie in memory where kernels take many rows at a time: as one stream, in the order in
 * which it is read. Sixteen rows are a tile, of as many bytes as its rows had in a file. Its blocks come in groups of four:
 *
 *   f16  scale[4][16]            of block b, row r
 *   byte codes[4][J][16][4]      J = 4 (Q40), 8 (Q80): bytes 4j .. 4j + 3 of the codes of block b, row r
 *
 * so that a vector holds the same columns of several rows, one row per lane, and a group starts on a cache line. The last
 * group of a tile has the blocks that are left. Rows that a last tile lacks are zeros.
 */
#ifndef CPU_PACK_H
#define CPU_PACK_H

#include "dl/op.h"

#define CPU_TILE 16u
#define CPU_PACK_GROUP 4u

/* Are weights of this kind kept packed, when the best kernels of `isa` (bits of cpu_features.h) are used? */
bool cpu_packs(unsigned isa, const struct dl_buf_desc *desc);

/* Bytes that a packed buffer takes; false when that does not fit 64 bits. */
bool cpu_pack_bytes(const struct dl_buf_desc *desc, uint64_t *bytes);

/* Puts n rows as they are in a file, of which the first is row `row` of the buffer, where they belong. Whole tiles are faster. */
void cpu_pack_rows(const struct dl_buf_desc *desc, uint8_t *packed, uint32_t row, const uint8_t *rows, uint32_t n);

#endif
