/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_pick_q.h: MATMUL and MOE_MATMUL of packed weights for an instruction set. A file that has its sums of products names them,
 * DOT_Q40 and DOT_Q80, and includes this for pick_matmul_q().
 */
#ifndef CPU_AVX2_PICK_Q_H
#define CPU_AVX2_PICK_Q_H

#include "avx2.h"

#ifdef DOT_Q40
static void matmul_q40(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    cpu_avx2_matmul_q(task, unit0, unit1, DOT_Q40);
}
static void matmul_q80(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    cpu_avx2_matmul_q(task, unit0, unit1, DOT_Q80);
}

/* NULL: the op is another one, or of other types. */
static cpu_kernel *pick_matmul_q(const struct dl_op *op)
{
    if ((op->code != DL_OP_MATMUL && op->code != DL_OP_MOE_MATMUL) || op->src[0].type != DL_Q80)
        return NULL;
    return op->src[1].type == DL_Q40 ? matmul_q40 : op->src[1].type == DL_Q80 ? matmul_q80 : NULL;
}
#endif

#endif
