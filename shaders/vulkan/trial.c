/* SPDX-License-Identifier: MIT
 *
 * trial.c: one op on made-up data: its buffers, its program, one run. What the data is and what should come out: trial_data.c.
 */
#include "trial.h"

#include <stdlib.h>
#include <string.h>

#include "trial_data.h"

bool vk_trial_knows(const struct dl_op *op)
{
    return vk_trial_times(op) || op->code == DL_OP_ADD || op->code == DL_OP_MERGE || op->code == DL_OP_ROPE;
}

bool vk_trial_times(const struct dl_op *op)
{
    return op->code == DL_OP_MATMUL || op->code == DL_OP_MOE_MATMUL || op->code == DL_OP_ATTENTION;
}

static void destroy_prog(struct vk_trial *t)
{
    if (t->prog)
        vk_prog_destroy(t->ctx, t->prog);
    t->prog = NULL;
}

void vk_trial_destroy(struct vk_trial **trial)
{
    struct vk_trial *t = *trial;
    if (!t)
        return;
    destroy_prog(t);
    for (uint32_t i = 0; i < TRIAL_BUFS; i++)
        if (t->bufs[i])
            vk_buf_destroy(t->ctx, vk_buf_of(t->bufs[i]));
    if (t->batch)
        vk_buf_destroy(t->ctx, t->batch);
    if (t->fence)
        t->ctx->vk.vkDestroyFence(t->ctx->device, t->fence, NULL);
    for (uint32_t i = 0; i < t->n_results; i++)
        free(t->results[i].want);
    free(t);
    *trial = NULL;
}

int vk_trial_create(const struct vk_lower *l, const struct dl_op *ops, uint32_t n, enum vk_trial_kind kind,
                    uint64_t most_bytes, struct vk_trial **out)
{
    struct vk_trial *t = dl_xcalloc(1, sizeof *t);
    t->ctx = l->ctx;
    VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkResult r = t->ctx->vk.vkCreateFence(t->ctx->device, &info, NULL, &t->fence);
    int err = r ? vk_fail(t->ctx, r, "vkCreateFence") : vk_trial_fill(t, l, ops, n, kind == VK_TRIAL_CHECK, most_bytes);
    if (err)
        vk_trial_destroy(&t);
    *out = t;
    return err;
}

/* Records with the kernels that vk_tune_pick names now. */
static int record(struct vk_trial *t, struct vk_recording **out)
{
    destroy_prog(t);
    int err = vk_prog_create(t->ctx, t->ops, t->n_ops, t->bufs, TRIAL_BUFS, &t->prog);
    struct dl_run_args args = {t->n_tokens, t->n_out, &t->batch->base};
    return err ? err : vk_prog_record(t->ctx, t->prog, &args, out);
}

static int run(struct vk_trial *t, const struct vk_recording *rec, uint64_t *ns)
{
    struct vk_ctx *c = t->ctx;
    VkSubmitInfo submit = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                           .commandBufferCount = (uint32_t)rec->n_cmds,
                           .pCommandBuffers = rec->cmds};
    uint64_t start = dl_now_ns();
    VkResult r = vk_queue_submit(c, 1, &submit, t->fence);
    if (r)
        return vk_fail(c, r, "vkQueueSubmit");
    /* A driver notices by itself that a GPU hangs, after a few seconds. A software one compiles now, and may have to share its processor. */
    const uint64_t patience_ns = (c->caps.software ? 600u : 60u) * (uint64_t)1000000000;
    r = c->vk.vkWaitForFences(c->device, 1, &t->fence, VK_TRUE, patience_ns);
    if (r)
        return vk_fail(c, r == VK_TIMEOUT ? VK_ERROR_DEVICE_LOST : r, "vkWaitForFences");
    *ns = dl_now_ns() - start;
    r = c->vk.vkResetFences(c->device, 1, &t->fence);
    return r ? vk_fail(c, r, "vkResetFences") : 0;
}

int vk_trial_check(struct vk_trial *t, bool *right, double *nmse)
{
    struct vk_recording *rec;
    uint64_t ns;
    int err = record(t, &rec);
    if (!err)
        err = run(t, rec, &ns);
    return err ? err : vk_trial_compare(t, right, nmse);
}

int vk_trial_time(struct vk_trial *t, uint64_t most_ns, uint64_t *ns)
{
    struct vk_recording *rec;
    uint64_t spent = 0, now;
    int err = record(t, &rec);
    *ns = UINT64_MAX;
    for (uint32_t i = 0; !err && i < 12 && (i < 2 || spent < most_ns); i++) {
        err = run(t, rec, &now);
        spent += now;
        if (i > 0 || now > most_ns) /* the first run also pays for what the driver does late */
            *ns = DL_MIN(*ns, now);
        if (now > most_ns && (i > 0 || now > 20 * most_ns))
            break;
    }
    return err;
}
