/* SPDX-License-Identifier: MIT
 *
 * cpu/units.c: into how many units an op of n rows is cut. What a unit covers is documented in kernels.h.
 */
#include "kernels.h"

uint64_t cpu_units(const struct dl_op *op, uint32_t n)
{
    switch (op->code) {
    case DL_OP_MATMUL:
        return (uint64_t)cpu_groups(n) * cpu_tiles(op->dst.cols);
    case DL_OP_MOE_MATMUL:
        return (uint64_t)(cpu_by_expert(op, n) ? op->u.moe.n_experts : n) * cpu_tiles(op->dst.cols);
    case DL_OP_RMS_NORM:
        return op->dst.type == DL_F32 ? (uint64_t)n * (op->dst.cols / op->u.norm.group) : n;
    case DL_OP_ROPE:
    case DL_OP_KV_STORE:
    case DL_OP_MOE_ROUTE:
        return n;
    case DL_OP_ATTENTION:
        return (uint64_t)n * op->u.attn.n_kv_heads; /* times parts, if any */
    case DL_OP_CONVERT:
    case DL_OP_GLU:
    case DL_OP_ADD:
    case DL_OP_MERGE:
    case DL_OP_GATHER_ROWS:
    case DL_OP_MOE_SUM:
        return (uint64_t)n * cpu_chunks(op->dst.cols);
    case DL_OP_COUNT:
        break;
    }
    return 0;
}
