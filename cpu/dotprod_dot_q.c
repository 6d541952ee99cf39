/* SPDX-License-Identifier: MIT
 *
 * cpu/dotprod_dot_q.c: neon_dot_q.h for ARM with dot products (ARMv8.2 and later: Raspberry Pi 5, Apple, Ampere), and the choice
 * of it: everything else is as it is without.
 */
#define CPU_DOT_SDOT 1
#include "neon_dot_q.h"

static void dot_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q40, rows, n_rows, tok);
}
static void dot_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q80, rows, n_rows, tok);
}

static void matmul_q40(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    cpu_avx2_matmul_q(task, unit0, unit1, dot_q40);
}
static void matmul_q80(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    cpu_avx2_matmul_q(task, unit0, unit1, dot_q80);
}

cpu_kernel *cpu_dotprod_pick(const struct dl_op *op)
{
    if ((op->code != DL_OP_MATMUL && op->code != DL_OP_MOE_MATMUL) || op->src[0].type != DL_Q80)
        return NULL;
    return op->src[1].type == DL_Q40 ? matmul_q40 : op->src[1].type == DL_Q80 ? matmul_q80 : NULL;
}
