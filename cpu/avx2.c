/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2.c: which ops have an AVX2 kernel. Everything else stays with the reference.
 */
#include "avx2.h"

cpu_kernel *cpu_avx2_pick(const struct dl_op *op)
{
    switch (op->code) {
    case DL_OP_MATMUL:
    case DL_OP_MOE_MATMUL:
        return op->src[0].type == DL_Q80 ? cpu_avx2_pick_matmul_q(op) : cpu_avx2_pick_matmul(op);
    case DL_OP_ATTENTION:
        return cpu_avx2_pick_attention(op);
    case DL_OP_CONVERT:
    case DL_OP_KV_STORE:
        return cpu_avx2_pick_convert(op);
    case DL_OP_RMS_NORM:
        return cpu_avx2_pick_norm(op);
    case DL_OP_ROPE:
    case DL_OP_GLU:
    case DL_OP_ADD:
    case DL_OP_MERGE:
    case DL_OP_MOE_SUM:
        return cpu_avx2_pick_elementwise(op);
    case DL_OP_GATHER_ROWS: /* one memcpy per unit */
    case DL_OP_MOE_ROUTE:   /* a few hundred values per token, in double */
    case DL_OP_COUNT:
        break;
    }
    return NULL;
}
