/* SPDX-License-Identifier: MIT
 *
 * cpu/neon_dot_q.c: neon_dot_q.h for every 64-bit ARM. Stands in for avx2_dot_q.c.
 */
#include "neon_dot_q.h"

void cpu_avx2_dot_q40(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q40, rows, n_rows, tok);
}
void cpu_avx2_dot_q80(const struct cpu_avx2_rows *rows, uint32_t n_rows, const struct cpu_avx2_tokens *tok)
{
    dot(DL_Q80, rows, n_rows, tok);
}
