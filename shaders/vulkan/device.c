/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/device.c: a GPU as a device (dl/device.h): the table, and opening and closing. The counters and the queue of
 * submissions are counters.c's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"
#include "lower.h"
#include "pipeline.h"
#include "tune.h"

struct device {
    dl_device pub;
    struct vk_ctx ctx;
    struct vk_counters *counters;
};

static struct device *device_of(dl_device *dev)
{
    return (struct device *)(void *)dev;
}

static int dev_buf_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    struct vk_buf *b;
    int err = vk_buf_create(&device_of(dev)->ctx, desc, &b);
    *out = err ? NULL : &b->base;
    return err;
}

/* A GPU computes from its own layout: importing is copying. */
static int dev_buf_import(dl_device *dev, const struct dl_buf_desc *desc, const void *bytes, dl_buf **out)
{
    struct vk_ctx *c = &device_of(dev)->ctx;
    struct vk_buf *b;
    *out = NULL;
    int err = desc->bytes <= SIZE_MAX ? vk_buf_create(c, desc, &b) : DL_ENOMEM;
    if (err)
        return err;
    err = vk_buf_write(c, b, 0, bytes, (size_t)desc->bytes);
    if (err)
        vk_buf_destroy(c, b);
    else
        *out = &b->base;
    return err;
}

static void dev_buf_destroy(dl_device *dev, dl_buf *buf)
{
    vk_buf_destroy(&device_of(dev)->ctx, vk_buf_of(buf));
}

static int dev_buf_write(dl_device *dev, dl_buf *buf, uint64_t offset, const void *bytes, size_t n)
{
    return vk_buf_write(&device_of(dev)->ctx, vk_buf_of(buf), offset, bytes, n);
}

static int dev_buf_read(dl_device *dev, dl_buf *buf, uint64_t offset, void *bytes, size_t n)
{
    return vk_buf_read(&device_of(dev)->ctx, vk_buf_of(buf), offset, bytes, n);
}

static void *dev_buf_map(dl_device *dev, dl_buf *buf)
{
    (void)dev;
    return vk_buf_of(buf)->mapped;
}

static bool dev_supports(dl_device *dev, const struct dl_op *op)
{
    return vk_supports(&device_of(dev)->ctx, op);
}

static int dev_prog_create(dl_device *dev, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs,
                           uint32_t n_bufs, dl_prog **out)
{
    struct vk_prog *p;
    int err = vk_prog_create(&device_of(dev)->ctx, ops, n_ops, bufs, n_bufs, &p);
    *out = (dl_prog *)(void *)p;
    return err;
}

static void dev_prog_destroy(dl_device *dev, dl_prog *prog)
{
    struct device *d = device_of(dev);
    vk_counters_drain(d->counters); /* after an error, work may still wait for a counter that nobody raises */
    vk_prog_destroy(&d->ctx, (struct vk_prog *)(void *)prog);
}

static int dev_submit(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t host_wait,
                      uint64_t signal)
{
    return vk_counters_submit(device_of(dev)->counters, (struct vk_prog *)(void *)prog, args, host_wait, signal);
}

static int dev_host_signal(dl_device *dev, uint64_t value)
{
    return vk_counters_host(device_of(dev)->counters, value);
}

static int dev_wait(dl_device *dev, uint64_t value, uint64_t timeout_ns)
{
    return vk_counters_wait(device_of(dev)->counters, value, timeout_ns);
}

static void close_parts(struct device *d)
{
    if (d->counters)
        vk_counters_drain(d->counters);
    vk_counters_destroy(d->counters);
    if (d->ctx.device)
        (void)d->ctx.vk.vkDeviceWaitIdle(d->ctx.device); /* a device that is lost is idle */
    vk_tune_close(&d->ctx);
    vk_pipes_destroy(&d->ctx.pipes);
    vk_scratch_close(&d->ctx);
    vk_memory_close(&d->ctx);
    vk_ctx_close(&d->ctx);
    free(d);
}

static void dev_destroy(dl_device *dev)
{
    close_parts(device_of(dev));
}

static const struct dl_device_fns fns = {
    .destroy = dev_destroy,
    .buf_create = dev_buf_create,
    .buf_import = dev_buf_import,
    .buf_destroy = dev_buf_destroy,
    .buf_write = dev_buf_write,
    .buf_read = dev_buf_read,
    .buf_map = dev_buf_map,
    .supports = dev_supports,
    .prog_create = dev_prog_create,
    .prog_destroy = dev_prog_destroy,
    .submit = dev_submit,
    .host_signal = dev_host_signal,
    .wait = dev_wait,
};

void vk_progress(const struct vk_ctx *c, const char *phase, uint64_t done, uint64_t total)
{
    if (c->pub && c->pub->progress && !c->quiet)
        c->pub->progress(c->pub->progress_ud, phase, done, total);
}

struct vk_ctx *vk_ctx_of(dl_device *dev)
{
    return dev && dev->fns == &fns ? &device_of(dev)->ctx : NULL;
}

static uint64_t heap_bytes(const struct vk_ctx *c)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < c->mem.memoryHeapCount; i++)
        if (c->caps.uma || c->mem.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
            bytes += c->mem.memoryHeaps[i].size;
    return bytes;
}

int dl_vulkan_open(const struct dl_vulkan_opts *opts, dl_device **out)
{
    *out = NULL;
    struct device *d = dl_calloc(1, sizeof *d);
    if (!d)
        return DL_ENOMEM;
    struct vk_ctx *c = &d->ctx;
    int err = vk_ctx_open(c, opts);
    if (err) {
        free(d);
        return err;
    }
    err = vk_memory_open(c);
    if (!err)
        err = vk_pipes_create(c, &c->pipes);
    if (!err)
        err = vk_counters_create(c, &d->counters);
    if (err) {
        close_parts(d);
        return err;
    }
    /* max_buf_bytes: weights of any size are cut up; other buffers are held against the descriptor range when they are made. */
    d->pub = (dl_device){.fns = &fns,
                         .mem_total = heap_bytes(c),
                         .mem_free = vk_memory_free(c),
                         .max_buf_bytes = heap_bytes(c),
                         .max_tokens = c->caps.software ? 128 : 512,
                         .copies = UINT32_MAX};
    c->pub = &d->pub;
    snprintf(d->pub.kind, sizeof d->pub.kind, "vulkan:%u", c->index);
    snprintf(d->pub.name, sizeof d->pub.name, "%.127s", c->label);
    *out = &d->pub;
    return DL_OK;
}
