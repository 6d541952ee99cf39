/* SPDX-License-Identifier: MIT
 *
 * trial_data.h: what a trial works on. Private to trial*.c.
 */
#ifndef VK_TRIAL_DATA_H
#define VK_TRIAL_DATA_H

#include "vk.h"

enum { TRIAL_DST, TRIAL_SRC, TRIAL_EXTRA /* bias, route, V */, TRIAL_WEIGHT };
#define TRIAL_COPIES 4u /* of an op in a timed program, each with weights of its own */
#define TRIAL_BUFS (TRIAL_WEIGHT + TRIAL_COPIES)
#define TRIAL_ROWS 6u /* rows of the result that are compared */

struct vk_trial {
    struct vk_ctx *ctx;
    struct dl_op ops[TRIAL_COPIES];
    uint32_t n_ops;
    dl_buf *bufs[TRIAL_BUFS];
    struct vk_buf *batch;
    uint32_t n_tokens, n_out;
    struct vk_prog *prog;
    VkFence fence;
    uint32_t row[TRIAL_ROWS], n_rows; /* which rows of dst */
    double *want;                     /* (n_rows, dst.cols) */
};

/* Everything but fence and program. */
int vk_trial_fill(struct vk_trial *t, const struct vk_lower *l, const struct dl_op *op, bool check,
                  uint64_t most_bytes);

/* After a run. */
int vk_trial_compare(struct vk_trial *t, double *nmse);

#endif
