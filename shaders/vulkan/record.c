/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/record.c: programs. Ops are lowered to dispatches and recorded once per batch class and batch buffer; what differs from
 * batch to batch the kernels read from the batch buffer. Barriers stand only where an op needs what another wrote. A
 * program is cut into several command buffers where one would keep the GPU busy for too long: watchdogs of drivers and systems
 * reset a GPU that does not answer for two seconds.
 */
#include "vk.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lower.h"
#include "pipeline.h"

#define SUBMIT_NS 100e6      /* what one command buffer may take, by the estimate */
#define SUBMIT_MOST_NS 500e6 /* and what makes it worth to cut anew */
#define MAX_PIECES 256u

struct vk_prog {
    struct dl_op *ops;
    char *names;
    uint32_t n_ops, n_bufs;
    uint32_t max_tokens, max_out;
    struct vk_buf **bufs;
    struct vk_recording **recordings;
    size_t n, cap;
};

uint32_t vk_class_of(uint32_t n)
{
    uint32_t i = 0;
    while (i + 1 < VK_CLASSES && vk_class_tokens(i) < n)
        i++;
    return i;
}

uint32_t vk_class_tokens(uint32_t class_index)
{
    return class_index + 1 < VK_CLASSES ? 1u << class_index : UINT32_MAX;
}

/* ---------------------------------------------------------------------------------------------------- lowering */

/* What one lowering took and gave. */
struct group {
    uint32_t first_op, n_ops;
    size_t first, n; /* dispatches */
    bool scratch;
};

struct lowered {
    struct vk_lower l;
    struct dl_op *ops; /* those that the class runs */
    uint32_t n_ops;
    struct group *groups;
    size_t n_groups, cap_groups;
    uint64_t scratch_bytes;
};

static void lowered_finish(struct lowered *w)
{
    free(w->l.out);
    free(w->ops);
    free(w->groups);
}

/* Roughly how many multiply-adds, or values moved, for lowerings that do not say. */
static uint64_t op_work(const struct dl_op *op, const struct vk_lower *l)
{
    uint64_t n = (uint64_t)(op->count == DL_COUNT_OUT ? l->n_out : l->n_tokens) * DL_MAX(op->mult, 1u);
    switch (op->code) {
    case DL_OP_MATMUL:
    case DL_OP_MOE_MATMUL:
        return n * op->dst.cols * op->src[0].cols;
    case DL_OP_ATTENTION:
        /* The longest context would cut every program for a case that is rare: within the slack between target and limit. */
        return n * op->dst.cols * 2 * DL_MAX(l->max_positions / 8, 1024u);
    case DL_OP_MOE_ROUTE:
        return n * op->u.moe.n_experts * op->u.moe.k;
    case DL_OP_KV_STORE:
        return n * op->src[0].cols;
    default:
        return n * op->dst.cols * 8; /* these wait for memory, and take more than one pass */
    }
}

static int lower_all(struct vk_ctx *c, const struct vk_prog *p, const struct vk_buf *batch, uint32_t n_tokens,
                     uint32_t n_out, uint32_t max_positions, struct lowered *w)
{
    *w = (struct lowered){.l = {.ctx = c,
                                .bufs = p->bufs,
                                .batch = (struct vk_buf *)(uintptr_t)batch,
                                .n_tokens = n_tokens,
                                .n_out = n_out,
                                .max_positions = max_positions}};
    w->ops = dl_calloc(DL_MAX(p->n_ops, 1u), sizeof *w->ops);
    if (!w->ops)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < p->n_ops; i++)
        if (p->ops[i].count != DL_COUNT_OUT || n_out)
            w->ops[w->n_ops++] = p->ops[i];
    for (uint32_t i = 0; i < w->n_ops;) {
        struct group g = {.first_op = i, .first = w->l.n};
        w->l.scratch_bytes = 0;
        int took = vk_lower_ops(&w->l, &w->ops[i], w->n_ops - i);
        if (took < 0)
            return took;
        if (!took || (uint32_t)took > w->n_ops - i)
            return dl_fail(DL_EUNSUP, "%s: no kernel for op %s (%s)", c->label, w->ops[i].name,
                           dl_op_name(w->ops[i].code));
        g.n_ops = (uint32_t)took;
        g.n = w->l.n - g.first;
        g.scratch = w->l.scratch_bytes > 0;
        w->scratch_bytes = DL_MAX(w->scratch_bytes, w->l.scratch_bytes);
        uint64_t work = 0;
        for (uint32_t k = 0; k < g.n_ops; k++)
            work += op_work(&w->ops[i + k], &w->l);
        for (size_t k = 0; k < g.n; k++)
            if (!w->l.out[g.first + k].work)
                w->l.out[g.first + k].work = work / g.n;
        int err = dl_grow((void **)&w->groups, &w->cap_groups, w->n_groups + 1, sizeof *w->groups);
        if (err)
            return err;
        w->groups[w->n_groups++] = g;
        i += g.n_ops;
    }
    return DL_OK;
}

/* The validation layers see whole bindings: columns that two ops own side by side look like one place to them. With layers on,
 * whatever shares a buffer is kept apart. */
static bool share_a_buffer(const struct dl_op *a, const struct dl_op *b)
{
    bool shared = a->dst.buf == b->dst.buf;
    for (int i = 0; i < 3; i++)
        shared = shared || a->dst.buf == b->src[i].buf || b->dst.buf == a->src[i].buf ||
                 (dl_op_carries(a) && a->src[1].buf == b->src[i].buf) ||
                 (dl_op_carries(b) && b->src[1].buf == a->src[i].buf);
    return shared;
}

/* Must `g` wait for one of the groups from `open` on? */
static bool waits(const struct vk_ctx *c, const struct lowered *w, size_t open, size_t g)
{
    const struct group *later = &w->groups[g];
    for (size_t e = open; e < g; e++) {
        const struct group *earlier = &w->groups[e];
        if (earlier->scratch && later->scratch)
            return true;
        for (uint32_t i = 0; i < earlier->n_ops; i++)
            for (uint32_t j = 0; j < later->n_ops; j++) {
                const struct dl_op *a = &w->ops[earlier->first_op + i], *b = &w->ops[later->first_op + j];
                if (dl_op_conflict(a, b) || (c->validation && share_a_buffer(a, b)))
                    return true;
            }
    }
    return false;
}

/* -------------------------------------------------------------------------------------------------- recording */

static int scratch_for(struct vk_ctx *c, uint64_t bytes, const struct vk_buf **out)
{
    *out = NULL;
    if (!bytes)
        return DL_OK;
    uint64_t have = c->n_scratch ? c->scratch[c->n_scratch - 1]->base.desc.bytes : 0;
    if (have < bytes) {
        uint64_t want = dl_round_up(
            DL_MIN(DL_MAX(bytes, DL_MAX(2 * have, (uint64_t)1 << 20)), DL_MAX(bytes, c->caps.storage_range / 2)), 256);
        struct dl_buf_desc desc = {"scratch", DL_BUF_ACT, DL_F32, (uint32_t)(want / 256), 64, want};
        if (c->n_scratch == DL_COUNT_OF(c->scratch))
            return dl_fail(DL_ELIMIT, "%s: scratch memory grew too often", c->label);
        int err = vk_buf_create(c, &desc, &c->scratch[c->n_scratch]);
        if (err)
            return err;
        c->n_scratch++;
    }
    *out = c->scratch[c->n_scratch - 1];
    return DL_OK;
}

void vk_scratch_close(struct vk_ctx *c)
{
    while (c->n_scratch)
        vk_buf_destroy(c, c->scratch[--c->n_scratch]);
}

static void recording_destroy(struct vk_ctx *c, struct vk_recording *r)
{
    if (!r)
        return;
    if (r->n_cmds)
        c->vk.vkFreeCommandBuffers(c->device, c->commands, r->n_cmds, r->cmds);
    if (r->descriptors)
        c->vk.vkDestroyDescriptorPool(c->device, r->descriptors, NULL);
    free(r->cmds);
    free(r);
}

static int pool_for(struct vk_ctx *c, const struct lowered *w, struct vk_recording *r)
{
    uint32_t n = 0;
    for (size_t i = 0; i < w->l.n; i++)
        n += w->l.out[i].n_binds;
    if (!w->l.n || !n)
        return DL_OK;
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, n};
    VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                       .maxSets = (uint32_t)w->l.n,
                                       .poolSizeCount = 1,
                                       .pPoolSizes = &size};
    VkResult e = c->vk.vkCreateDescriptorPool(c->device, &info, NULL, &r->descriptors);
    if (e)
        r->descriptors = VK_NULL_HANDLE;
    return e ? vk_fail(c, e, "making descriptors") : DL_OK;
}

/* A binding in terms of the part that it lies in. */
static int resolve(struct vk_ctx *c, const struct vk_dispatch *d, const struct vk_bind *bind,
                   const struct vk_buf *scratch, VkDescriptorBufferInfo *out)
{
    const struct vk_buf *b = bind->buf ? bind->buf : scratch;
    uint64_t per_part = b->n_parts > 1 ? b->part_rows * b->plane_row[bind->plane] : UINT64_MAX;
    uint64_t part = bind->offset / per_part, at = bind->offset - (b->n_parts > 1 ? part * per_part : 0);
    const struct vk_part *p = &b->parts[part];
    uint64_t end = bind->plane + 1 < b->n_planes ? p->plane_at[bind->plane + 1] : p->slab_bytes;
    *out = (VkDescriptorBufferInfo){p->handle, p->plane_at[bind->plane] + at, bind->range};
    if (part >= b->n_parts || !bind->range || bind->range > c->caps.storage_range || out->offset + bind->range > end ||
        out->offset % c->caps.offset_align)
        return dl_fail(DL_EUNSUP, "%s: %s binds bytes %llu + %llu of plane %u of %s, which cannot be bound", c->label,
                       d->shader, (unsigned long long)bind->offset, (unsigned long long)bind->range, bind->plane,
                       b->name);
    return DL_OK;
}

static int bind_set(struct vk_ctx *c, const struct vk_dispatch *d, const struct vk_pipe *pipe,
                    const struct vk_recording *r, const struct vk_buf *scratch, VkDescriptorSet *set)
{
    VkDescriptorSetAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                        .descriptorPool = r->descriptors,
                                        .descriptorSetCount = 1,
                                        .pSetLayouts = &pipe->set_layout};
    VkResult e = c->vk.vkAllocateDescriptorSets(c->device, &info, set);
    if (e)
        return vk_fail(c, e, "making descriptors");
    VkDescriptorBufferInfo infos[VK_BINDS];
    VkWriteDescriptorSet writes[VK_BINDS];
    for (uint32_t i = 0; i < d->n_binds; i++) {
        int err = resolve(c, d, &d->binds[i], scratch, &infos[i]);
        if (err)
            return err;
        writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                           .dstSet = *set,
                                           .dstBinding = i,
                                           .descriptorCount = 1,
                                           .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = &infos[i]};
    }
    c->vk.vkUpdateDescriptorSets(c->device, d->n_binds, writes, 0, NULL);
    return DL_OK;
}

static void barrier(struct vk_ctx *c, VkCommandBuffer cmd, VkPipelineStageFlags from, VkAccessFlags wrote,
                    VkPipelineStageFlags to, VkAccessFlags access)
{
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = wrote, .dstAccessMask = access};
    c->vk.vkCmdPipelineBarrier(cmd, from, to, 0, 1, &b, 0, NULL, 0, NULL);
}

#define COMPUTE VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
#define READ_WRITE (VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT)

static int cmd_begin(struct vk_ctx *c, struct vk_recording *r)
{
    int err = dl_grow((void **)&r->cmds, &r->cap_cmds, (size_t)r->n_cmds + 1, sizeof *r->cmds);
    if (err)
        return err;
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = c->commands,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VkResult e = c->vk.vkAllocateCommandBuffers(c->device, &info, &r->cmds[r->n_cmds]);
    if (e)
        return vk_fail(c, e, "making a command buffer");
    /* The next batch may be submitted before this one is finished. */
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT};
    e = c->vk.vkBeginCommandBuffer(r->cmds[r->n_cmds++], &begin);
    return e ? vk_fail(c, e, "recording") : DL_OK;
}

static int cmd_end(struct vk_ctx *c, struct vk_recording *r)
{
    VkResult e = c->vk.vkEndCommandBuffer(r->cmds[r->n_cmds - 1]);
    return e ? vk_fail(c, e, "recording") : DL_OK;
}

/* The state of writing command buffers: how much work the current one holds, and what it may hold. */
struct writer {
    struct vk_recording *r;
    double held, most;
};

/* One dispatch, in pieces where it is too much for one command buffer. */
static int write_dispatch(struct vk_ctx *c, struct writer *w, const struct vk_dispatch *d, const struct vk_pipe *pipe,
                          VkDescriptorSet set)
{
    uint32_t axis = d->groups[2] > 1 ? 2 : d->groups[1] > 1 ? 1 : 0, n = d->groups[axis];
    double want = ceil((double)d->work / w->most);
    uint32_t pieces = (uint32_t)DL_MAX(1.0, DL_MIN(want, (double)DL_MIN(n, MAX_PIECES)));
    for (uint32_t i = 0; i < pieces; i++) {
        double work = (double)d->work / pieces;
        if (w->held > 0 && w->held + work > w->most) {
            int err = cmd_end(c, w->r);
            if (!err)
                err = cmd_begin(c, w->r);
            if (err)
                return err;
            w->held = 0;
        }
        w->held += work;
        VkCommandBuffer cmd = w->r->cmds[w->r->n_cmds - 1];
        c->vk.vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipe->pipeline);
        if (d->n_binds)
            c->vk.vkCmdBindDescriptorSets(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipe->layout, 0, 1, &set, 0, NULL);
        if (d->n_push)
            c->vk.vkCmdPushConstants(cmd, pipe->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                     d->n_push * (uint32_t)sizeof(uint32_t), d->push);
        uint32_t first[3] = {0}, count[3] = {d->groups[0], d->groups[1], d->groups[2]};
        first[axis] = (uint32_t)((uint64_t)n * i / pieces);
        count[axis] = (uint32_t)((uint64_t)n * (i + 1) / pieces) - first[axis];
        if (pieces == 1)
            c->vk.vkCmdDispatch(cmd, count[0], count[1], count[2]);
        else
            c->vk.vkCmdDispatchBase(cmd, first[0], first[1], first[2], count[0], count[1], count[2]);
    }
    w->r->n_dispatches++;
    return DL_OK;
}

static int write_group(struct vk_ctx *c, struct writer *w, const struct lowered *lw, const struct group *g,
                       const struct vk_buf *scratch)
{
    for (size_t i = g->first; i < g->first + g->n; i++) {
        const struct vk_dispatch *d = &lw->l.out[i];
        const struct vk_pipe *pipe;
        VkDescriptorSet set = VK_NULL_HANDLE;
        int err = vk_pipe_get(c->pipes, d, &pipe);
        if (!err && d->n_binds)
            err = bind_set(c, d, pipe, w->r, scratch, &set);
        if (err)
            return err;
        if (d->barrier && i > g->first) {
            barrier(c, w->r->cmds[w->r->n_cmds - 1], COMPUTE, VK_ACCESS_SHADER_WRITE_BIT, COMPUTE, READ_WRITE);
            w->r->n_barriers++;
        }
        err = write_dispatch(c, w, d, pipe, set);
        if (err)
            return err;
    }
    return DL_OK;
}

/* Until something has been measured: on the slow side, so that the first submits are short. Work per ns. */
static double first_speed(const struct vk_caps *caps)
{
    return caps->software ? 0.3 : caps->type == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU ? 50 : 5;
}

static int write_all(struct vk_ctx *c, const struct lowered *lw, struct vk_recording *r)
{
    const struct vk_buf *scratch;
    int err = scratch_for(c, lw->scratch_bytes, &scratch);
    if (!err)
        err = vk_pipes_prepare(c->pipes, lw->l.out, lw->l.n, NULL, NULL);
    if (!err)
        err = pool_for(c, lw, r);
    if (!err)
        err = cmd_begin(c, r);
    if (err)
        return err;
    struct writer w = {.r = r, .most = r->speed * SUBMIT_NS};
    /* What the host wrote after the submit becomes visible here; copies and earlier programs are finished. */
    barrier(c, r->cmds[0], VK_PIPELINE_STAGE_HOST_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT | COMPUTE,
            VK_ACCESS_HOST_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_SHADER_WRITE_BIT, COMPUTE, READ_WRITE);
    size_t open = 0; /* first group since the last barrier */
    for (size_t g = 0; g < lw->n_groups; g++) {
        if (waits(c, lw, open, g)) {
            barrier(c, r->cmds[r->n_cmds - 1], COMPUTE, VK_ACCESS_SHADER_WRITE_BIT, COMPUTE, READ_WRITE);
            r->n_barriers++;
            open = g;
        }
        err = write_group(c, &w, lw, &lw->groups[g], scratch);
        if (err)
            return err;
        for (size_t i = 0; i < lw->groups[g].n; i++)
            r->work += lw->l.out[lw->groups[g].first + i].work;
    }
    barrier(c, r->cmds[r->n_cmds - 1], COMPUTE, VK_ACCESS_SHADER_WRITE_BIT, VK_PIPELINE_STAGE_HOST_BIT,
            VK_ACCESS_HOST_READ_BIT);
    return cmd_end(c, r);
}

static int record(struct vk_ctx *c, struct vk_prog *p, const struct vk_buf *batch, uint32_t class_tokens,
                  uint32_t class_out, struct vk_recording **out)
{
    struct dl_batch_head head;
    memcpy(&head, batch->mapped, sizeof head);
    struct vk_recording *r = dl_calloc(1, sizeof *r);
    if (!r)
        return DL_ENOMEM;
    r->batch = batch->serial;
    r->class_tokens = class_tokens;
    r->class_out = class_out;
    if (c->speed[class_tokens] <= 0)
        c->speed[class_tokens] = first_speed(&c->caps);
    r->speed = c->speed[class_tokens];
    uint64_t positions = DL_MIN((uint64_t)head.table_cols * DL_KV_BLOCK, UINT32_MAX);
    struct lowered w;
    int err = lower_all(c, p, batch, DL_MIN(vk_class_tokens(class_tokens), p->max_tokens),
                        class_out ? DL_MIN(vk_class_tokens(class_out - 1), p->max_out) : 0, (uint32_t)positions, &w);
    if (!err)
        err = write_all(c, &w, r);
    lowered_finish(&w);
    if (err) {
        recording_destroy(c, r);
        return err;
    }
    *out = r;
    return DL_OK;
}

/* -------------------------------------------------------------------------------------------------- programs */

static int keep_ops(struct vk_prog *p, const struct dl_op *ops)
{
    size_t bytes = 1;
    for (uint32_t i = 0; i < p->n_ops; i++)
        bytes += strlen(ops[i].name) + 1;
    p->names = dl_calloc(bytes, 1);
    p->ops = dl_calloc(DL_MAX(p->n_ops, 1u), sizeof *p->ops);
    if (!p->names || !p->ops)
        return DL_ENOMEM;
    char *at = p->names;
    p->max_tokens = p->max_out = UINT32_MAX;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        struct dl_op *op = &p->ops[i];
        *op = ops[i];
        op->name = strcpy(at, ops[i].name);
        at += strlen(at) + 1;
        /* The rows of a KV view are the cache's, not the batch's. */
        uint32_t rows = (op->code == DL_OP_KV_STORE ? op->src[0].rows : op->dst.rows) / DL_MAX(op->mult, 1u);
        uint32_t *most = op->count == DL_COUNT_OUT ? &p->max_out : &p->max_tokens;
        *most = DL_MIN(*most, rows);
    }
    return DL_OK;
}

/* What comes from the caches takes a moment and is not worth a word. */
struct compiling {
    struct vk_ctx *ctx;
    uint64_t before;
};
static void compiling(void *ud, size_t done, size_t all)
{
    const struct compiling *w = ud;
    if (vk_glsl_stats().compiled != w->before)
        vk_progress(w->ctx, "compiling kernels", done, all);
}

/* Compiles what the smallest and the largest batch need, while loading and not at the first token; says early what cannot be
 * lowered. There is no batch buffer yet: lowerings only ask how large it is. */
static int prepare(struct vk_ctx *c, const struct vk_prog *p)
{
    struct vk_part part = {.slab_bytes = UINT32_MAX};
    struct vk_buf batch = {.base.desc = {"batch", DL_BUF_INPUT, DL_F32, 1, 1024, 4096},
                           .name = "batch",
                           .parts = &part,
                           .n_parts = 1,
                           .part_rows = 1,
                           .n_planes = 1,
                           .plane_row = {4096},
                           .plane_bytes = {4096},
                           .chunk_rows = 1};
    struct compiling now = {c, vk_glsl_stats().compiled};
    int err = DL_OK;
    for (int largest = 0; !err && largest < 2; largest++) {
        struct lowered w;
        uint32_t n = p->max_tokens == UINT32_MAX ? 1 : p->max_tokens, n_out = p->max_out == UINT32_MAX ? 1 : p->max_out;
        err = lower_all(c, p, &batch, largest ? n : 1, largest ? n_out : 1, 0, &w);
        if (!err)
            err = vk_pipes_prepare(c->pipes, w.l.out, w.l.n, compiling, &now);
        lowered_finish(&w);
    }
    return err;
}

int vk_prog_create(struct vk_ctx *c, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                   struct vk_prog **out)
{
    *out = NULL;
    int err = vk_lost(c);
    struct vk_prog *p = err ? NULL : dl_calloc(1, sizeof *p);
    if (!p)
        return err ? err : DL_ENOMEM;
    p->n_ops = n_ops;
    p->n_bufs = n_bufs;
    p->bufs = dl_calloc(DL_MAX(n_bufs, 1u), sizeof *p->bufs);
    err = p->bufs ? keep_ops(p, ops) : DL_ENOMEM;
    for (uint32_t i = 0; !err && i < n_bufs; i++)
        p->bufs[i] = bufs[i] ? vk_buf_of(bufs[i]) : NULL;
    if (!err)
        err = prepare(c, p);
    if (err) {
        vk_prog_destroy(c, p);
        return err;
    }
    *out = p;
    return DL_OK;
}

void vk_prog_destroy(struct vk_ctx *c, struct vk_prog *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++)
        recording_destroy(c, p->recordings[i]);
    free(p->recordings);
    free(p->bufs);
    free(p->names);
    free(p->ops);
    free(p);
}

/* Measured since then: so fast that the cuts only cost, or so slow that they are too few? */
static bool badly_cut(const struct vk_ctx *c, const struct vk_recording *r)
{
    double speed = c->speed[r->class_tokens];
    return !r->in_flight && ((r->n_cmds > 1 && speed > 4 * r->speed) ||
                             (speed < r->speed && (double)r->work / r->n_cmds > speed * SUBMIT_MOST_NS));
}

int vk_prog_record(struct vk_ctx *c, struct vk_prog *p, const struct dl_run_args *args, struct vk_recording **out)
{
    const struct vk_buf *batch = vk_buf_of(args->batch);
    if (args->n_tokens > p->max_tokens || args->n_out > p->max_out)
        return dl_fail(DL_EINVAL, "%s: a batch of %u tokens and %u outputs, the program takes %u and %u", c->label,
                       args->n_tokens, args->n_out, p->max_tokens, p->max_out);
    if (!batch->mapped || batch->base.desc.bytes < sizeof(struct dl_batch_head))
        return dl_fail(DL_EINVAL, "%s: buffer %s is no batch", c->label, batch->name);
    uint32_t class_tokens = vk_class_of(args->n_tokens), class_out = args->n_out ? 1 + vk_class_of(args->n_out) : 0;
    struct vk_recording **slot = NULL;
    for (size_t i = 0; i < p->n && !slot; i++) {
        struct vk_recording *r = p->recordings[i];
        if (r && r->batch == batch->serial && r->class_tokens == class_tokens && r->class_out == class_out)
            slot = &p->recordings[i];
    }
    if (slot && !badly_cut(c, *slot)) {
        *out = *slot;
        return DL_OK;
    }
    if (!slot) {
        int err = dl_grow((void **)&p->recordings, &p->cap, p->n + 1, sizeof *p->recordings);
        if (err)
            return err;
    }
    struct vk_recording *r;
    int err = record(c, p, batch, class_tokens, class_out, &r);
    if (err)
        return err;
    if (slot) {
        recording_destroy(c, *slot);
        *slot = r;
    } else {
        p->recordings[p->n++] = r;
    }
    *out = r;
    return DL_OK;
}

/* How late the host looks only ever makes a run seem longer: the best is the truest, but drivers throttle, so it fades. Short
 * runs are mostly overhead and say nothing against a speed. */
void vk_prog_took(struct vk_ctx *c, const struct vk_recording *r, uint64_t ns)
{
    double speed = (double)r->work / (double)DL_MAX(ns, (uint64_t)1), *known = &c->speed[r->class_tokens];
    if (speed > *known)
        *known = speed;
    else if (ns > 5000000 && r->has_run)
        *known += 0.2 * (speed - *known);
}
