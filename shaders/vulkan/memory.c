/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/memory.c: buffers: made of parts, zeroed, written and read. Memory that both sides reach is written where it lies;
 * all other goes through two staging halves that take turns, converted while it is copied. Copies are ordered with
 * programs by the queue and by barriers around each copy.
 */
#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------------------------------------------------- staging */

static int half_wait(struct vk_ctx *c, struct vk_half *h)
{
    if (!h->busy)
        return DL_OK;
    int err = vk_lost(c);
    VkResult r = err ? VK_SUCCESS : c->vk.vkWaitForFences(c->device, 1, &h->fence, VK_TRUE, UINT64_MAX);
    if (r)
        err = vk_fail(c, r, "waiting for a copy");
    if (err) { /* whatever failed: nothing may be freed that a copy still uses */
        pthread_mutex_lock(&c->queue_lock);
        (void)c->vk.vkDeviceWaitIdle(c->device);
        pthread_mutex_unlock(&c->queue_lock);
    }
    h->busy = false;
    return err;
}

static void barrier(struct vk_ctx *c, VkCommandBuffer cmd, VkPipelineStageFlags from, VkAccessFlags wrote,
                    VkPipelineStageFlags to, VkAccessFlags access)
{
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = wrote, .dstAccessMask = access};
    c->vk.vkCmdPipelineBarrier(cmd, from, to, 0, 1, &b, 0, NULL, 0, NULL);
}

/* Commands behind everything that was submitted. */
static int half_begin(struct vk_ctx *c, struct vk_half *h)
{
    int err = half_wait(c, h);
    if (err)
        return err;
    VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                     .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    VkResult r = c->vk.vkResetCommandBuffer(h->cmd, 0); /* a copy that failed may have left it half recorded */
    if (!r)
        r = c->vk.vkBeginCommandBuffer(h->cmd, &info);
    if (r)
        return vk_fail(c, r, "recording a copy");
    barrier(c, h->cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
            VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT, VK_PIPELINE_STAGE_TRANSFER_BIT,
            VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT);
    return DL_OK;
}

/* And in front of everything that will be. */
static int half_submit(struct vk_ctx *c, struct vk_half *h)
{
    barrier(c, h->cmd, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_ACCESS_TRANSFER_WRITE_BIT,
            VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_HOST_BIT,
            VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_READ_BIT |
                VK_ACCESS_TRANSFER_WRITE_BIT | VK_ACCESS_HOST_READ_BIT);
    VkResult r = c->vk.vkEndCommandBuffer(h->cmd);
    if (!r)
        r = c->vk.vkResetFences(c->device, 1, &h->fence);
    if (r)
        return vk_fail(c, r, "recording a copy");
    VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &h->cmd};
    r = vk_queue_submit(c, 1, &info, h->fence);
    if (r)
        return vk_fail(c, r, "submitting a copy");
    h->busy = true;
    return DL_OK;
}

static int handle_new(struct vk_ctx *c, uint64_t bytes, const char *name, VkBuffer *out)
{
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = bytes,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_DST_BIT,
                               .sharingMode = VK_SHARING_MODE_EXCLUSIVE};
    VkResult r = c->vk.vkCreateBuffer(c->device, &info, NULL, out);
    if (r)
        *out = VK_NULL_HANDLE;
    return r ? vk_fail(c, r, name) : DL_OK;
}

static int half_open(struct vk_ctx *c, struct vk_half *h)
{
    VkCommandBufferAllocateInfo cmd = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                       .commandPool = c->commands,
                                       .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                       .commandBufferCount = 1};
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    /* What an earlier, failed call got is kept and used. */
    VkResult r = h->cmd ? VK_SUCCESS : c->vk.vkAllocateCommandBuffers(c->device, &cmd, &h->cmd);
    if (r) {
        h->cmd = NULL;
        return vk_fail(c, r, "making a command buffer");
    }
    r = h->fence ? VK_SUCCESS : c->vk.vkCreateFence(c->device, &fence, NULL, &h->fence);
    if (r) {
        h->fence = VK_NULL_HANDLE;
        return vk_fail(c, r, "making a fence");
    }
    VkBuffer handle;
    uint64_t bytes;
    int err = handle_new(c, VK_HALF_BYTES, "staging", &handle);
    if (err)
        return err;
    err = vk_slab_place(c, handle, VK_WHERE_READBACK, "staging", &h->slab, &h->slab_at, &bytes);
    if (err) {
        c->vk.vkDestroyBuffer(c->device, handle, NULL);
        return err;
    }
    h->handle = handle;
    h->mapped = (uint8_t *)c->memory->slabs[h->slab].mapped + h->slab_at;
    return DL_OK;
}

/* Staging costs memory that unified devices need not give; the first copy makes it. */
static int staging_open(struct vk_ctx *c)
{
    int err = DL_OK;
    for (int i = 0; i < 2 && !err; i++)
        if (!c->memory->half[i].mapped)
            err = half_open(c, &c->memory->half[i]);
    return err;
}

static int halves_wait(struct vk_ctx *c)
{
    int err = half_wait(c, &c->memory->half[0]), err2 = half_wait(c, &c->memory->half[1]);
    return err ? err : err2;
}

static struct vk_half *half_next(struct vk_ctx *c)
{
    return &c->memory->half[c->memory->next_half++ % 2];
}

/* A range of a slab for mapped memory that is not coherent, in whole atoms. */
static VkMappedMemoryRange atoms(const struct vk_ctx *c, uint32_t slab, uint64_t at, uint64_t bytes)
{
    const struct vk_slab *s = &c->memory->slabs[slab];
    uint64_t atom = c->caps.atom, first = at / atom * atom, end = DL_MIN(dl_round_up(at + bytes, atom), s->bytes);
    return (VkMappedMemoryRange){
        .sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE, .memory = s->memory, .offset = first, .size = end - first};
}

static int flush(struct vk_ctx *c, uint32_t slab, uint64_t at, uint64_t bytes)
{
    if (vk_slab_coherent(c, slab))
        return DL_OK;
    VkMappedMemoryRange range = atoms(c, slab, at, bytes);
    VkResult r = c->vk.vkFlushMappedMemoryRanges(c->device, 1, &range);
    return r ? vk_fail(c, r, "flushing memory") : DL_OK;
}

static int invalidate(struct vk_ctx *c, uint32_t slab, uint64_t at, uint64_t bytes)
{
    if (vk_slab_coherent(c, slab))
        return DL_OK;
    VkMappedMemoryRange range = atoms(c, slab, at, bytes);
    VkResult r = c->vk.vkInvalidateMappedMemoryRanges(c->device, 1, &range);
    return r ? vk_fail(c, r, "reading memory back") : DL_OK;
}

/* --------------------------------------------------------------------------------------------- moving units */

/* A run of units inside one part. */
struct run {
    struct vk_part *part;
    uint64_t at; /* first unit, counted in the part */
    uint64_t n;
    struct vk_units u;
};

/* The part that a unit lies in, and how many units follow in it. */
static struct run run_at(const struct vk_buf *b, uint64_t unit, uint64_t n)
{
    struct run r = {.u = vk_units_of(b)};
    uint64_t per_part =
        b->n_parts > 1 ? b->part_rows * (b->base.desc.bytes / b->base.desc.rows / r.u.host) : UINT64_MAX;
    uint32_t part = (uint32_t)(unit / per_part);
    r.part = &b->parts[part];
    r.at = unit - part * (b->n_parts > 1 ? per_part : 0);
    r.n = DL_MIN(n, per_part - r.at);
    return r;
}

static void pointers(const struct run *r, uint8_t *base, uint8_t *out[VK_PLANES])
{
    for (uint32_t p = 0; p < VK_PLANES; p++)
        out[p] = r->u.plane[p] ? base + r->part->plane_at[p] + r->at * r->u.plane[p] : NULL;
}

static uint8_t *part_mapped(const struct vk_ctx *c, const struct vk_part *p)
{
    uint8_t *slab = c->memory->slabs[p->slab].mapped;
    return slab ? slab + p->slab_offset : NULL;
}

/* How planes lie in a staging half: one behind the other. Units that fit one; 0: not even one does. */
static uint64_t staged(const struct run *r, uint64_t at[VK_PLANES])
{
    uint64_t sum = 0, used = 0;
    for (uint32_t p = 0; p < VK_PLANES; p++)
        sum += r->u.plane[p];
    uint64_t n = DL_MIN(r->n, (VK_HALF_BYTES - VK_PLANES * 16) / sum);
    for (uint32_t p = 0; p < VK_PLANES; p++) {
        at[p] = used;
        used = dl_round_up(used + n * r->u.plane[p], 16);
    }
    return n;
}

static int too_long(struct vk_ctx *c, const struct vk_buf *b)
{
    return dl_fail(DL_ELIMIT, "%s: buffer %s has rows of %llu bytes, too long to be copied", c->label, b->name,
                   (unsigned long long)b->plane_row[0]);
}

/* vkCmdCopyBuffer of a run's planes between the part and a half. */
static void copy_planes(struct vk_ctx *c, const struct run *r, const struct vk_half *h, uint64_t n,
                        const uint64_t at[VK_PLANES], bool to_device)
{
    VkBufferCopy copies[VK_PLANES];
    uint32_t k = 0;
    for (uint32_t p = 0; p < VK_PLANES; p++) {
        if (!r->u.plane[p])
            continue;
        uint64_t there = r->part->plane_at[p] + r->at * r->u.plane[p];
        copies[k++] = (VkBufferCopy){
            .srcOffset = to_device ? at[p] : there, .dstOffset = to_device ? there : at[p], .size = n * r->u.plane[p]};
    }
    if (to_device)
        c->vk.vkCmdCopyBuffer(h->cmd, h->handle, r->part->handle, k, copies);
    else
        c->vk.vkCmdCopyBuffer(h->cmd, r->part->handle, h->handle, k, copies);
}

static int upload(struct vk_ctx *c, const struct vk_buf *b, struct run r, const uint8_t *host)
{
    int err = staging_open(c);
    while (!err && r.n) {
        uint64_t at[VK_PLANES], n = staged(&r, at);
        if (!n)
            return too_long(c, b);
        struct vk_half *h = half_next(c);
        err = half_begin(c, h);
        if (err)
            return err;
        uint8_t *planes[VK_PLANES] = {h->mapped + at[0], h->mapped + at[1], h->mapped + at[2]};
        vk_units_in(b, host, planes, n);
        err = flush(c, h->slab, h->slab_at, VK_HALF_BYTES);
        copy_planes(c, &r, h, n, at, true);
        if (!err)
            err = half_submit(c, h);
        host += n * r.u.host;
        r.at += n;
        r.n -= n;
    }
    return err;
}

static int download(struct vk_ctx *c, const struct vk_buf *b, struct run r, uint8_t *host)
{
    int err = staging_open(c);
    while (!err && r.n) {
        uint64_t at[VK_PLANES], n = staged(&r, at);
        if (!n)
            return too_long(c, b);
        struct vk_half *h = half_next(c);
        err = half_begin(c, h);
        if (err)
            return err;
        copy_planes(c, &r, h, n, at, false);
        err = half_submit(c, h);
        if (!err)
            err = half_wait(c, h);
        if (!err)
            err = invalidate(c, h->slab, h->slab_at, VK_HALF_BYTES);
        if (err)
            return err;
        const uint8_t *const planes[VK_PLANES] = {h->mapped + at[0], h->mapped + at[1], h->mapped + at[2]};
        vk_units_out(b, planes, host, n);
        host += n * r.u.host;
        r.at += n;
        r.n -= n;
    }
    return err;
}

/* Whether the host may touch a buffer where it lies. */
static bool in_place(const struct vk_ctx *c, const struct vk_buf *b)
{
    return b->mapped || (c->caps.uma && part_mapped(c, &b->parts[0]));
}

static int write_units(struct vk_ctx *c, struct vk_buf *b, uint64_t unit, uint64_t n, const uint8_t *host)
{
    int err = DL_OK;
    while (!err && n) {
        struct run r = run_at(b, unit, n);
        if (in_place(c, b)) {
            uint8_t *planes[VK_PLANES];
            pointers(&r, part_mapped(c, r.part), planes);
            vk_units_in(b, host, planes, r.n);
            err = flush(c, r.part->slab, r.part->slab_offset, r.part->slab_bytes);
        } else {
            err = upload(c, b, r, host);
        }
        host += r.n * r.u.host;
        unit += r.n;
        n -= r.n;
    }
    return err;
}

static int read_units(struct vk_ctx *c, struct vk_buf *b, uint64_t unit, uint64_t n, uint8_t *host)
{
    int err = DL_OK;
    while (!err && n) {
        struct run r = run_at(b, unit, n);
        if (in_place(c, b)) {
            uint8_t *planes[VK_PLANES];
            err = invalidate(c, r.part->slab, r.part->slab_offset, r.part->slab_bytes);
            pointers(&r, part_mapped(c, r.part), planes);
            if (!err)
                vk_units_out(b, (const uint8_t *const *)planes, host, r.n);
        } else {
            err = download(c, b, r, host);
        }
        host += r.n * r.u.host;
        unit += r.n;
        n -= r.n;
    }
    return err;
}

/* Part of one unit: the rest of it stays as it is. */
static int write_inside(struct vk_ctx *c, struct vk_buf *b, uint64_t unit, uint64_t at, const uint8_t *host, uint64_t n)
{
    uint8_t whole[sizeof(struct dl_q80)]; /* a row of a weight is only written whole */
    int err = read_units(c, b, unit, 1, whole);
    memcpy(whole + at, host, n);
    return err ? err : write_units(c, b, unit, 1, whole);
}

static int read_inside(struct vk_ctx *c, struct vk_buf *b, uint64_t unit, uint64_t at, uint8_t *host, uint64_t n)
{
    uint8_t whole[sizeof(struct dl_q80)];
    int err = read_units(c, b, unit, 1, whole);
    memcpy(host, whole + at, n);
    return err;
}

/* Cuts [offset, offset + n) into a part of a unit, whole units, and a part of one. */
struct cut {
    uint64_t first, head_at, head, whole, tail;
};
static struct cut cut_at(uint64_t unit_bytes, uint64_t offset, uint64_t n)
{
    struct cut k = {.first = offset / unit_bytes, .head_at = offset % unit_bytes};
    k.head = k.head_at ? DL_MIN(n, unit_bytes - k.head_at) : 0;
    k.whole = (n - k.head) / unit_bytes;
    k.tail = n - k.head - k.whole * unit_bytes;
    return k;
}

int vk_buf_write(struct vk_ctx *c, struct vk_buf *b, uint64_t offset, const void *bytes, size_t n)
{
    const uint8_t *host = bytes;
    uint64_t unit = vk_units_of(b).host;
    struct cut k = cut_at(unit, offset, n);
    int err = vk_lost(c);
    if (!err && k.head)
        err = write_inside(c, b, k.first, k.head_at, host, k.head);
    k.first += k.head != 0;
    if (!err && k.whole)
        err = write_units(c, b, k.first, k.whole, host + k.head);
    if (!err && k.tail)
        err = write_inside(c, b, k.first + k.whole, 0, host + k.head + k.whole * unit, k.tail);
    return err;
}

int vk_buf_read(struct vk_ctx *c, struct vk_buf *b, uint64_t offset, void *bytes, size_t n)
{
    uint8_t *host = bytes;
    uint64_t unit = vk_units_of(b).host;
    struct cut k = cut_at(unit, offset, n);
    int err = vk_lost(c);
    if (!err && k.head)
        err = read_inside(c, b, k.first, k.head_at, host, k.head);
    k.first += k.head != 0;
    if (!err && k.whole)
        err = read_units(c, b, k.first, k.whole, host + k.head);
    if (!err && k.tail)
        err = read_inside(c, b, k.first + k.whole, 0, host + k.head + k.whole * unit, k.tail);
    return err;
}

/* --------------------------------------------------------------------------------------------------- buffers */

static enum vk_where where(enum dl_buf_use use)
{
    switch (use) {
    case DL_BUF_INPUT:
        return VK_WHERE_UPLOAD;
    case DL_BUF_OUTPUT:
        return VK_WHERE_READBACK;
    case DL_BUF_WIRE:
        return VK_WHERE_SHARED;
    default:
        return VK_WHERE_DEVICE;
    }
}

static int zero(struct vk_ctx *c, const struct vk_buf *b)
{
    int err = DL_OK;
    for (uint32_t i = 0; !err && i < b->n_parts; i++) {
        const struct vk_part *p = &b->parts[i];
        if (in_place(c, b)) {
            memset(part_mapped(c, p), 0, (size_t)p->slab_bytes);
            err = flush(c, p->slab, p->slab_offset, p->slab_bytes);
            continue;
        }
        err = staging_open(c);
        struct vk_half *h = half_next(c);
        if (!err)
            err = half_begin(c, h);
        if (err)
            break;
        c->vk.vkCmdFillBuffer(h->cmd, p->handle, 0, VK_WHOLE_SIZE, 0);
        err = half_submit(c, h);
    }
    return err;
}

int vk_buf_create(struct vk_ctx *c, const struct dl_buf_desc *desc, struct vk_buf **out)
{
    *out = NULL;
    int err = vk_lost(c);
    struct vk_buf *b = err ? NULL : dl_calloc(1, sizeof *b);
    if (!b)
        return err ? err : DL_ENOMEM;
    snprintf(b->name, sizeof b->name, "%s", desc->name);
    b->base.desc = *desc;
    b->base.desc.name = b->name;
    b->serial = ++c->memory->last_serial;
    err = vk_planes_lay_out(c, b);
    if (!err) {
        b->parts = dl_calloc(b->n_parts, sizeof *b->parts);
        err = b->parts ? DL_OK : DL_ENOMEM;
    }
    for (uint32_t i = 0; !err && i < b->n_parts; i++) {
        struct vk_part *p = &b->parts[i];
        VkBuffer handle;
        err = handle_new(c, vk_part_lay_out(b, i), b->name, &handle);
        if (err)
            break;
        err = vk_slab_place(c, handle, where(desc->use), b->name, &p->slab, &p->slab_offset, &p->slab_bytes);
        if (err)
            c->vk.vkDestroyBuffer(c->device, handle, NULL);
        else
            p->handle = handle;
    }
    if (!err && where(desc->use) != VK_WHERE_DEVICE)
        b->mapped = part_mapped(c, &b->parts[0]) + b->parts[0].plane_at[0];
    if (!err)
        err = zero(c, b);
    if (err) {
        vk_buf_destroy(c, b);
        return err;
    }
    *out = b;
    return DL_OK;
}

void vk_buf_destroy(struct vk_ctx *c, struct vk_buf *b)
{
    if (!b)
        return;
    (void)halves_wait(c); /* a copy may still be on its way into it */
    for (uint32_t i = 0; b->parts && i < b->n_parts; i++) {
        if (!b->parts[i].handle)
            continue;
        c->vk.vkDestroyBuffer(c->device, b->parts[i].handle, NULL);
        vk_slab_give_back(c, b->parts[i].slab, b->parts[i].slab_offset, b->parts[i].slab_bytes);
    }
    free(b->parts);
    free(b);
}

/* ------------------------------------------------------------------------------------------- the whole of it */

int vk_memory_open(struct vk_ctx *c)
{
    c->memory = dl_calloc(1, sizeof *c->memory);
    return c->memory ? DL_OK : DL_ENOMEM;
}

void vk_memory_close(struct vk_ctx *c)
{
    if (!c->memory)
        return;
    (void)halves_wait(c);
    for (int i = 0; i < 2; i++) {
        struct vk_half *h = &c->memory->half[i];
        if (h->fence)
            c->vk.vkDestroyFence(c->device, h->fence, NULL);
        if (h->handle)
            c->vk.vkDestroyBuffer(c->device, h->handle, NULL);
        if (h->cmd)
            c->vk.vkFreeCommandBuffers(c->device, c->commands, 1, &h->cmd);
    }
    vk_slabs_close(c);
    free(c->memory);
    c->memory = NULL;
}

/* Only OUTPUT may lie in memory that is not coherent (vk_slab_place), and the host never writes there. */
int vk_memory_invalidate(struct vk_ctx *c)
{
    int err = DL_OK;
    for (size_t i = 0; !err && i < c->memory->n; i++)
        if (c->memory->slabs[i].memory && c->memory->slabs[i].mapped && !vk_slab_coherent(c, (uint32_t)i))
            err = invalidate(c, (uint32_t)i, 0, c->memory->slabs[i].bytes);
    return err;
}
