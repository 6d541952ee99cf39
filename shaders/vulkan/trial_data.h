/* SPDX-License-Identifier: MIT
 *
 * trial_data.h: what a trial works on. Private to trial*.c.
 */
#ifndef VK_TRIAL_DATA_H
#define VK_TRIAL_DATA_H

#include "lower_matmul.h"

#define TRIAL_COPIES 4u /* of the ops in a timed program, each with weights of its own */
#define TRIAL_OPS_EACH 3u
enum {
    TRIAL_SRC,
    TRIAL_DST,                      /* of the first op, and of those beside it in its buffer */
    TRIAL_UP,                       /* of the second matrix of a GLU, of the first norm */
    TRIAL_AFTER,                    /* of the op behind the others */
    TRIAL_BASE,                     /* what it adds to, where not in place; what a sum adds; angles */
    TRIAL_EXTRA,                    /* V, route, and each part's bias */
    TRIAL_WEIGHT = TRIAL_EXTRA + 3, /* K, a norm's weights, and each part's matrix */
    TRIAL_BUFS = TRIAL_WEIGHT + 12
};
_Static_assert(VK_MM_PARTS == 3 && TRIAL_COPIES * VK_MM_PARTS == 12, "a buffer for each");
#define TRIAL_ROWS 6u /* rows of a result that are compared */

struct trial_result {
    struct dl_view view;
    uint32_t row[TRIAL_ROWS], n_rows; /* of the view, that are compared */
    double *want;                     /* (n_rows, view.cols), before it is rounded to the view's type */
    double bound;                     /* of the NMSE */
};

struct vk_trial {
    struct vk_ctx *ctx;
    struct dl_op ops[TRIAL_COPIES * TRIAL_OPS_EACH];
    uint32_t n_ops;
    dl_buf *bufs[TRIAL_BUFS];
    struct vk_buf *batch;
    uint32_t n_tokens, n_out;
    struct vk_prog *prog;
    VkFence fence;
    uint32_t row[TRIAL_ROWS], n_rows; /* which rows of the results */
    struct trial_result results[VK_MM_PARTS + 1];
    uint32_t n_results;
};

/* trial_data.c: everything but fence and program. */
int vk_trial_fill(struct vk_trial *t, const struct vk_lower *l, const struct dl_op *ops, uint32_t n, bool check,
                  uint64_t most_bytes);

/* trial_check.c: after a run, see vk_trial_check. */
int vk_trial_compare(struct vk_trial *t, bool *right, double *nmse);

#endif
