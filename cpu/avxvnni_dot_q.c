/* SPDX-License-Identifier: MIT
 *
 * cpu/avxvnni_dot_q.c: avx2_dot_q.h for AVX-VNNI, and its MATMUL and MOE_MATMUL.
 */
#define CPU_DOT_YMM
#include "avx2_dot_q.h"

static void dot_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q40, rows, n_rows, tok);
}
static void dot_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q80, rows, n_rows, tok);
}

#define DOT_Q40 dot_q40
#define DOT_Q80 dot_q80
#include "avx2_pick_q.h"

cpu_kernel *cpu_avxvnni_pick(const struct dl_op *op)
{
    return pick_matmul_q(op);
}
