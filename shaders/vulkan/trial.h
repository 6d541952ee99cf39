/* SPDX-License-Identifier: MIT
 *
 * trial.h: an op like a given one, on made-up data, run by itself: is the result right, and how long does it take? What tune.c
 * asks of each candidate. Submits with a fence of its own, beside whatever the device does. MATMUL, MOE_MATMUL and ATTENTION, each
 * alone or with neighbours that one kernel may take along; and what else is one kernel: ADD or MERGE with norms, ROPE with the stores.
 */
#ifndef VK_TRIAL_H
#define VK_TRIAL_H

#include "vk.h"

struct vk_trial;

bool vk_trial_knows(const struct dl_op *op);
bool vk_trial_times(const struct dl_op *op); /* others can only be checked */

/* For l's class. VK_TRIAL_CHECK: fewer rows of weights, short sequences of uneven length, and what is expected of some rows, computed
 * here in double. VK_TRIAL_TIME: of the op's own shape, as far as `most_bytes` of device memory allow. */
enum vk_trial_kind { VK_TRIAL_CHECK, VK_TRIAL_TIME };
/* ops[0 .. n): one op, or all that vk_mm_match, an attention, a sum or a ROPE takes. */
int vk_trial_create(const struct vk_lower *l, const struct dl_op *ops, uint32_t n, enum vk_trial_kind kind,
                    uint64_t most_bytes, struct vk_trial **out);
void vk_trial_destroy(struct vk_trial **t);

/* Lowers, compiles and runs a CHECK trial, with whatever vk_tune_pick says now. *nmse is that of the first result that is off, else of
 * the last; NaN where it has one. */
int vk_trial_check(struct vk_trial *t, bool *right, double *nmse);

/* The same for a TIME trial: the least of some runs, at most about `most_ns` of them. */
int vk_trial_time(struct vk_trial *t, uint64_t most_ns, uint64_t *ns);

#endif
