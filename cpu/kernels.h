/* SPDX-License-Identifier: MIT
 *
 * cpu/kernels.h: the kernel interface inside cpu/. One op is cut into units that may run on any thread in any order; a unit's
 * result never depends on how units are dealt out, so a batch gives the same bits for any number of threads.
 *
 * ref.c defines every op (plain C, double accumulation). The files of an instruction set override what it is faster at:
 * avx2*.c, avxvnni*.c, avx512*.c; on ARM avx2*.c again (neon.h), neon*.c and dotprod*.c. A pick function returns NULL for what it has no kernel for; the device takes the best that is allowed.
 */
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include "dl/op.h"
#include "pack.h"

/* One op of one batch, addresses resolved: dst and src[] point at their views' first byte (NULL where there is none). Where the
 * buffer of src[1] is packed (pack.h), src[1] is its first byte, and the view begins with its row row0. */
struct cpu_task {
    const struct dl_op *op;
    uint8_t *dst;
    const uint8_t *src[3];
    uint32_t row0;
    uint32_t n; /* rows of dst in this batch: (n_tokens or n_out) * op->mult */
    const struct dl_batch_head *head;
    const struct dl_batch_row *rows;
    const uint32_t *out_rows;
    const uint32_t *tables; /* row r at tables + r * head->table_cols */
    /* ATTENTION in parts: how many of CPU_PART positions the longest context has, else 0; and where their results are kept until
     * the second kernel merges them. */
    uint32_t parts;
    float *scratch;
};

/* Runs units [unit0, unit1). Any thread; no allocation, no locks. */
typedef void cpu_kernel(const struct cpu_task *task, uint32_t unit0, uint32_t unit1);

cpu_kernel *cpu_ref_pick(const struct dl_op *op);
/* Only called on a CPU that has it (cpu_features.h). */
cpu_kernel *cpu_avx2_pick(const struct dl_op *op);
cpu_kernel *cpu_avx2_pick_merge_parts(const struct dl_op *op); /* of ATTENTION */
cpu_kernel *cpu_avxvnni_pick(const struct dl_op *op); /* gives the same bits as avx2 */
cpu_kernel *cpu_avx512_pick(const struct dl_op *op);  /* likewise */
cpu_kernel *cpu_dotprod_pick(const struct dl_op *op); /* likewise */

/* How an op is cut. Unit u is, by opcode:
 *   MATMUL       output rows [u / groups * CPU_TILE, ...) of the weight, tokens [u % groups * CPU_GROUP, ...),
 *                groups = cpu_groups(n): see cpu_rect_next
 *   MOE_MATMUL   few rows: dst row u / tiles, weight rows of its expert [(u % tiles) * CPU_TILE, ...), tiles = cpu_tiles(dst.cols);
 *                many (cpu_by_expert): rows [(u % tiles) * CPU_TILE, ...) of expert u / tiles, all dst rows that it has
 *   RMS_NORM     dst row u / groups, group u % groups, groups = cols / u.norm.group; a quantised dst, whose blocks
 *                may span groups: dst row u
 *   ROPE, KV_STORE, MOE_ROUTE   row u
 *   ATTENTION    the query heads of KV head u / n (see cpu_heads), token u % n; in parts: the same of u / parts, positions
 *                [u % parts * CPU_PART, ...), and to merge them: token u / n_heads, query head u % n_heads
 *   CONVERT, GLU, ADD, MERGE, GATHER_ROWS, MOE_SUM   row u / chunks, columns [(u % chunks) * CPU_CHUNK, ...),
 *                chunks = cpu_chunks(dst.cols) */
#define CPU_GROUP 32u
#define CPU_PART 256u
#define CPU_CHUNK 512u /* a whole number of blocks */
_Static_assert(CPU_CHUNK % DL_BLOCK == 0, "a chunk is whole blocks");

static inline uint32_t cpu_tiles(uint32_t out_rows)
{
    return (out_rows + CPU_TILE - 1) / CPU_TILE;
}
static inline uint32_t cpu_chunks(uint32_t cols)
{
    return (cols + CPU_CHUNK - 1) / CPU_CHUNK;
}

static inline uint32_t cpu_groups(uint32_t n)
{
    return (n + CPU_GROUP - 1) / CPU_GROUP;
}
static inline bool cpu_by_expert(const struct dl_op *op, uint32_t n)
{
    return n / 2 >= op->u.moe.n_experts;
}

/* The query heads [first, end) of this op that read KV head kv. */
struct cpu_heads {
    uint32_t first, end;
};
static inline struct cpu_heads cpu_heads(const struct dl_op *op, uint32_t kv)
{
    uint32_t group = op->u.attn.group, at = kv * group, skip = op->u.attn.first_head;
    uint32_t end = at + group > skip ? DL_MIN(at + group - skip, op->u.attn.n_heads) : 0;
    return (struct cpu_heads){at > skip ? DL_MIN(at - skip, end) : 0, end};
}

/* What a part of a query head leaves behind, in floats: its sum of values, the largest score, the sum of weights; whole lines. */
static inline uint64_t cpu_part_floats(const struct dl_op *op)
{
    return (op->u.attn.head_dim + 2u + 15u) / 16u * 16u;
}

/* Units of a MATMUL of n tokens as rectangles: whole tiles for all tokens where possible, so that weights are read once. */
struct cpu_rect {
    uint32_t tile0, tile1, t0, t1;
};
static inline struct cpu_rect cpu_rect_next(uint32_t *unit, uint32_t unit1, uint32_t n)
{
    uint32_t groups = cpu_groups(n), tile = *unit / groups, g = *unit % groups, left = unit1 - *unit;
    uint32_t tiles = g ? 0 : left / groups, some = tiles ? groups : DL_MIN(left, groups - g);
    *unit += tiles ? tiles * groups : some;
    return (struct cpu_rect){tile, tile + DL_MAX(tiles, 1u), g * CPU_GROUP, DL_MIN((g + some) * CPU_GROUP, n)};
}

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

/* Row t of what a CONVERT carries: a source that it writes, and that no other unit of the op touches. */
static inline uint8_t *cpu_row_carried(const struct cpu_task *k, uint32_t t)
{
    return (uint8_t *)(uintptr_t)cpu_row(k->src[1], &k->op->src[1], t);
}

/* Cache row of (token t, KV head h, position pos). */
static inline uint64_t cpu_kv_row(const struct cpu_task *k, uint32_t t, uint32_t n_kv, uint32_t h, uint32_t pos)
{
    const uint32_t *table = k->tables + (uint64_t)k->rows[t].table * k->head->table_cols;
    return ((uint64_t)table[pos / DL_KV_BLOCK] * n_kv + h) * DL_KV_BLOCK + pos % DL_KV_BLOCK;
}

#endif
