/* SPDX-License-Identifier: MIT
 *
 * tune.h: which of the kernels that could compute an op does. A lowering names its candidates; what comes back is right on this
 * device (checked against the formula once, wrong ones are dropped with one line) and the fastest of them for this shape, not
 * slower than the last of the list. Choices are kept on disk, so that a second start measures nothing. Knows ops and candidates' names, no shader.
 */
#ifndef VK_TUNE_H
#define VK_TUNE_H

#include "vk.h"

#define VK_TUNE_MOST 16u /* candidates of a choice */

/* The index of the candidate to use for `op` in l's class. `kernel` is a word ("attention_split") that names what is chosen
 * between, the same for all shapes; names[0 .. n), n <= VK_TUNE_MOST, are candidates without spaces ("LANES=8,WG=64") that differ: best guess first, and last one
 * that needs nothing optional. What a name stands for may depend on `op` and the device, not on l.
 * DLLAMA_VK_VARIANT="kernel=name kernel=name" forces choices, unmeasured and unchecked (#0 is the first candidate, #9 the tenth or last); DLLAMA_VK_TUNE=SECONDS is how long a
 * start may take over choices (3), with 0 the first of each is taken, unchecked.
 * DL_EUNSUP (logged) where all are wrong. */
int vk_tune_pick(struct vk_lower *l, const char *kernel, const struct dl_op *op, const char *const *names, uint32_t n);

/* Whether ops[0 .. n) run as one kernel: `kernel` names what is taken together, and for which forms of results; `variant` of kernel
 * `base` is what vk_tune_pick chose for the first op, and what the fused kernel is made of ("" and "one" where nothing was chosen). Checked and timed like any candidate,
 * against the ops one by one: 1 (one kernel), 0, or DL_E*. DLLAMA_VK_VARIANT="fuse=no" or "fuse=yes" decides for all. */
int vk_tune_fuse(struct vk_lower *l, const char *kernel, const struct dl_op *ops, uint32_t n, const char *base,
                 const char *variant);

/* The index that DLLAMA_VK_VARIANT forces, or -1: for choices that are not measured. */
int vk_tune_forced(const char *kernel, const char *const *names, uint32_t n);

/* Frees what the choices are kept in; accepts a context that never made one. */
void vk_tune_close(struct vk_ctx *c);

/* The choices that are known, of earlier starts too, in no order: false past the last. ns, plain_ns: what the chosen one and the last
 * candidate took; 0 where the op is too small to be timed, or that one was not right. Texts live until the next choice. */
struct vk_tune_choice {
    const char *key, *name;
    uint64_t ns, plain_ns;
};
bool vk_tune_choice(const struct vk_ctx *c, size_t index, struct vk_tune_choice *out);

/* What this context did: candidates checked, timed and dropped. A second start with the same cache does nothing. */
struct vk_tune_stats {
    uint32_t checked, timed, dropped;
};
struct vk_tune_stats vk_tune_stats(const struct vk_ctx *c);

#endif
