/* SPDX-License-Identifier: MIT
 *
 * cpu/ref.h: shared by the reference kernels (ref*.c): the executable definition of every op in plain C. They favour being
 * obviously right: double accumulation, one loop per sum of the formula in dl/op.h, no assumption about alignment (weights
 * lie in mapped files as they come).
 */
#ifndef CPU_REF_H
#define CPU_REF_H

#include "kernels.h"

#include <string.h>

cpu_kernel cpu_ref_convert, cpu_ref_rms_norm, cpu_ref_glu, cpu_ref_add, cpu_ref_merge, cpu_ref_gather_rows;
cpu_kernel cpu_ref_matmul, cpu_ref_moe_route, cpu_ref_moe_matmul, cpu_ref_moe_sum;
cpu_kernel cpu_ref_rope, cpu_ref_kv_store, cpu_ref_attention;

static inline float cpu_load_f32(const uint8_t *row, uint64_t i)
{
    float f;
    memcpy(&f, row + i * sizeof f, sizeof f);
    return f;
}

static inline void cpu_store_f32(uint8_t *row, uint64_t i, float f)
{
    memcpy(row + i * sizeof f, &f, sizeof f);
}

static inline uint16_t cpu_load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

/* Bytes of `cols` values, a whole number of blocks, of a type that passed the op checks. */
static inline uint64_t cpu_bytes(enum dl_type type, uint64_t cols)
{
    uint64_t bytes = 0;
    (void)dl_row_bytes(type, cols, &bytes);
    return bytes;
}

/* The columns that unit u of a chunked op covers. */
struct cpu_span {
    uint32_t row, first, end;
};
static inline struct cpu_span cpu_span_of(const struct dl_op *op, uint32_t u)
{
    uint32_t chunks = cpu_chunks(op->dst.cols), first = u % chunks * CPU_CHUNK;
    return (struct cpu_span){u / chunks, first, DL_MIN(first + CPU_CHUNK, op->dst.cols)};
}

#endif
