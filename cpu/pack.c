/* SPDX-License-Identifier: MIT
 *
 * cpu/pack.c: see pack.h. Plain copies of four bytes each: about as fast as memory takes them.
 */
#include "pack.h"

#include <string.h>

#include "cpu_features.h"

bool cpu_packs(unsigned isa, const struct dl_buf_desc *desc)
{
    return isa & (CPU_ISA_AVX2 | CPU_ISA_NEON) && desc->use == DL_BUF_WEIGHT && dl_type_quantised(desc->type);
}

bool cpu_pack_bytes(const struct dl_buf_desc *desc, uint64_t *bytes)
{
    return dl_mul_u64(dl_div_up(desc->rows, CPU_TILE), desc->bytes / desc->rows * CPU_TILE, bytes);
}

/* One block of n rows, the first of which is lane `lane` of the tile. */
static inline void put_block(uint8_t *scales, uint8_t *codes, uint32_t lane, const uint8_t *in, size_t row_bytes,
                             uint32_t n, size_t block)
{
    for (uint32_t r = 0; r < n; r++, in += row_bytes) {
        memcpy(scales + 2 * (lane + r), in, 2);
        uint8_t *out = codes + 4 * (lane + r);
        for (size_t at = 2; at < block; at += 4, out += 4 * CPU_TILE)
            memcpy(out, in + at, 4);
    }
}

static inline void put_rows(uint8_t *tile, uint32_t lane, const uint8_t *in, size_t row_bytes, uint32_t n, size_t block)
{
    for (size_t left = row_bytes / block; left;) {
        size_t group = DL_MIN(left, (size_t)CPU_PACK_GROUP);
        uint8_t *codes = tile + group * 2 * CPU_TILE;
        for (size_t b = 0; b < group; b++, in += block, codes += (block - 2) * CPU_TILE)
            put_block(tile + b * 2 * CPU_TILE, codes, lane, in, row_bytes, n, block);
        tile += group * block * CPU_TILE;
        left -= group;
    }
}

void cpu_pack_rows(const struct dl_buf_desc *desc, uint8_t *packed, uint32_t row, const uint8_t *rows, uint32_t n)
{
    size_t row_bytes = (size_t)(desc->bytes / desc->rows);
    while (n) {
        uint32_t lane = row % CPU_TILE, some = DL_MIN(n, CPU_TILE - lane);
        uint8_t *tile = packed + (size_t)(row / CPU_TILE) * CPU_TILE * row_bytes;
        if (desc->type == DL_Q40) /* constants, so that the copies are moves */
            put_rows(tile, lane, rows, row_bytes, some, sizeof(struct dl_q40));
        else
            put_rows(tile, lane, rows, row_bytes, some, sizeof(struct dl_q80));
        rows += (size_t)some * row_bytes;
        row += some;
        n -= some;
    }
}
