/* SPDX-License-Identifier: MIT
 *
 * cpu/kernels.h: the kernel interface inside cpu/. One op is cut into units that may run on any thread in any order; a unit's
 * result never depends on how units are dealt out, so a batch gives the same bits for any number of threads.
 *
 * ref.c defines every op (plain C, double accumulation). One file per instruction set overrides what it is faster at:
 * avx2.c. A pick function returns NULL for what it has no kernel for; the device takes the best that is allowed.
 */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include "dl/op.h"

/* One op of one batch, addresses resolved: dst and src[] point at their views' first byte (NULL where there is none). */
struct cpu_task {
    const struct dl_op *op;
    uint8_t *dst;
    const uint8_t *src[3];
    uint32_t n; /* rows of dst in this batch: (n_tokens or n_out) * op->mult */
    const struct dl_batch_head *head;
    const struct dl_batch_row *rows;
    const uint32_t *out_rows;
    const uint32_t *tables; /* row r at tables + r * head->table_cols */
};

/* Runs units [unit0, unit1). Any thread; no allocation, no locks. */
typedef void cpu_kernel(const struct cpu_task *task, uint32_t unit0, uint32_t unit1);

cpu_kernel *cpu_ref_pick(const struct dl_op *op);
cpu_kernel *cpu_avx2_pick(const struct dl_op *op); /* only called on a CPU with AVX2, FMA and F16C */

/* How an op is cut. Unit u is, by opcode:
 *   MATMUL       output rows [u * CPU_TILE, ...) of the weight, for all n tokens
 *   MOE_MATMUL   dst row u / tiles, weight rows of its expert [(u % tiles) * CPU_TILE, ...), tiles = cpu_tiles(dst.cols)
 *   RMS_NORM     dst row u / groups, group u % groups, groups = cols / u.norm.group; a quantised dst, whose blocks
 *                may span groups: dst row u
 *   ROPE, KV_STORE, MOE_ROUTE   row u
 *   ATTENTION    token u / n_heads, query head u % n_heads
 *   CONVERT, GLU, ADD, MERGE, GATHER_ROWS, MOE_SUM   row u / chunks, columns [(u % chunks) * CPU_CHUNK, ...),
 *                chunks = cpu_chunks(dst.cols) */
#define CPU_TILE 8u
#define CPU_CHUNK 512u /* a whole number of blocks */
_Static_assert(CPU_CHUNK % DL_BLOCK == 0, "a chunk is whole blocks");

static inline uint32_t cpu_tiles(uint32_t out_rows) { return (out_rows + CPU_TILE - 1) / CPU_TILE; }
static inline uint32_t cpu_chunks(uint32_t cols) { return (cols + CPU_CHUNK - 1) / CPU_CHUNK; }

uint64_t cpu_units(const struct dl_op *op, uint32_t n); /* units.c; < 2^32 for every op that passed dl_op_check */

/* Row t of a view whose first byte is base. */
static inline const uint8_t *cpu_row(const uint8_t *base, const struct dl_view *v, uint32_t t)
{
    return base + (uint64_t)t * v->row_bytes;
}
static inline uint8_t *cpu_row_out(uint8_t *base, const struct dl_view *v, uint32_t t)
{
    return base + (uint64_t)t * v->row_bytes;
}

/* Cache row of (token t, KV head h, position pos). */
static inline uint64_t cpu_kv_row(const struct cpu_task *k, uint32_t t, uint32_t n_kv, uint32_t h, uint32_t pos)
{
    const uint32_t *table = k->tables + (uint64_t)k->rows[t].table * k->head->table_cols;
    return ((uint64_t)table[pos / DL_KV_BLOCK] * n_kv + h) * DL_KV_BLOCK + pos % DL_KV_BLOCK;
}

#endif
