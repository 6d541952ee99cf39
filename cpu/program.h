/* SPDX-License-Identifier: MIT
 *
 * cpu/program.h: ops prepared for the pool: addresses resolved, kernels chosen, ops that do not touch each other's results
 * grouped into stages.
 */
#ifndef CPU_PROGRAM_H
#define CPU_PROGRAM_H

#include "dl/device.h"
#include "kernels.h"
#include "pool.h"

struct cpu_program;

/* The best kernel of the instruction sets in `isa` (bits of cpu_features.h); NULL where there is none. */
cpu_kernel *cpu_pick(const struct dl_op *op, unsigned isa);

/* Where a plan buffer is; data is NULL where ops may not use it. */
struct cpu_base {
    uint8_t *data;
    bool packed; /* pack.h */
};

/* base[i] is plan buffer i. DL_ENOMEM; DL_EUNSUP for a view of packed weights that is no whole rows (logged). Copies ops. */
int cpu_program_create(const struct dl_op *ops, uint32_t n_ops, const struct cpu_base *base, unsigned isa,
                       struct cpu_program **out);
void cpu_program_destroy(struct cpu_program *p); /* accepts NULL */

/* DL_EINVAL (logged) when a batch is larger than the views of the ops. */
int cpu_program_fits(const struct cpu_program *p, const struct dl_run_args *args);

#define CPU_SCRATCH_FLOATS ((size_t)1 << 20)

/* Runs all ops for one batch, whose bytes (dl/op.h) are at `batch`. No allocation: `scratch` has CPU_SCRATCH_FLOATS floats. One
 * thread at a time. */
void cpu_program_run(struct cpu_program *p, struct cpu_pool *pool, uint32_t n_threads, uint32_t n_tokens,
                     uint32_t n_out, const uint8_t *batch, float *scratch);

#endif
