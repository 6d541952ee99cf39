/* SPDX-License-Identifier: MIT
 *
 * engine/base/device.c: the validating front of dl/device.h. Checks arguments once, then calls the table; implementations trust theirs.
 */
#include "dl/device.h"

void dl_device_close(dl_device **dev)
{
    if (!*dev)
        return;
    (*dev)->fns->destroy(*dev);
    *dev = NULL;
}

static int desc_check(const dl_device *dev, const struct dl_buf_desc *desc)
{
    uint64_t row, bytes;
    if (!desc->name || (unsigned)desc->use >= DL_BUF_USE_COUNT || !desc->rows || !desc->cols ||
        !dl_row_bytes(desc->type, desc->cols, &row) || !dl_mul_u64(row, desc->rows, &bytes) || bytes != desc->bytes)
        return dl_fail(DL_EINVAL, "%s: buffer %s: %u x %u values do not make %llu bytes", dev->name,
                       desc->name ? desc->name : "?", desc->rows, desc->cols, (unsigned long long)desc->bytes);
    if (dev->max_buf_bytes && bytes > dev->max_buf_bytes)
        return dl_fail(DL_ELIMIT, "%s: buffer %s needs %llu bytes, one buffer may have %llu", dev->name, desc->name,
                       (unsigned long long)bytes, (unsigned long long)dev->max_buf_bytes);
    return DL_OK;
}

int dl_buf_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    *out = NULL;
    int err = desc_check(dev, desc);
    return err ? err : dev->fns->buf_create(dev, desc, out);
}

int dl_buf_import(dl_device *dev, const struct dl_buf_desc *desc, const void *bytes, dl_buf **out)
{
    *out = NULL;
    int err = desc_check(dev, desc);
    if (!err && (desc->use != DL_BUF_WEIGHT || !bytes))
        err = dl_fail(DL_EINVAL, "%s: buffer %s: only weights are imported", dev->name, desc->name);
    return err ? err : dev->fns->buf_import(dev, desc, bytes, out);
}

void dl_buf_destroy(dl_device *dev, dl_buf **buf)
{
    if (!*buf)
        return;
    dev->fns->buf_destroy(dev, *buf);
    *buf = NULL;
}

static int range_check(const dl_device *dev, const dl_buf *buf, uint64_t offset, size_t n, bool write)
{
    const struct dl_buf_desc *d = &buf->desc;
    if (offset > d->bytes || n > d->bytes - offset)
        return dl_fail(DL_EINVAL, "%s: buffer %s: bytes %llu + %zu are outside its %llu", dev->name, d->name,
                       (unsigned long long)offset, n, (unsigned long long)d->bytes);
    uint64_t row = d->bytes / d->rows;
    if (d->use == DL_BUF_WEIGHT && (!write || offset % row || n % row))
        return dl_fail(DL_EINVAL, "%s: buffer %s: weights are written in whole rows and not read back", dev->name,
                       d->name);
    return DL_OK;
}

/* A copy that has to wait for a program that waits for a signal that only the caller's thread can give would never end. */
static int copy_check(dl_device *dev, const dl_buf *buf)
{
    uint64_t raised = atomic_load(&dev->host_raised);
    if (dev->host_at <= raised)
        return DL_OK;
    int err = dev->fns->wait(dev, dev->device_at, 0);
    if (err != DL_ETIMEDOUT)
        return err; /* all is finished, or the device failed */
    return dl_fail(DL_EINVAL,
                   "%s: buffer %s cannot be copied: a submitted program waits for host value %llu, %llu is the highest "
                   "so far; raise it first",
                   dev->name, buf->desc.name, (unsigned long long)dev->host_at, (unsigned long long)raised);
}

int dl_buf_write(dl_device *dev, dl_buf *buf, uint64_t offset, const void *bytes, size_t n)
{
    int err = range_check(dev, buf, offset, n, true);
    if (!err && n)
        err = copy_check(dev, buf);
    return err || !n ? err : dev->fns->buf_write(dev, buf, offset, bytes, n);
}

int dl_buf_read(dl_device *dev, dl_buf *buf, uint64_t offset, void *bytes, size_t n)
{
    int err = range_check(dev, buf, offset, n, false);
    if (!err && n)
        err = copy_check(dev, buf);
    return err || !n ? err : dev->fns->buf_read(dev, buf, offset, bytes, n);
}

void *dl_buf_map(dl_device *dev, dl_buf *buf)
{
    enum dl_buf_use use = buf->desc.use;
    if (use != DL_BUF_INPUT && use != DL_BUF_OUTPUT && use != DL_BUF_WIRE)
        return NULL;
    return dev->fns->buf_map(dev, buf);
}

bool dl_device_supports(dl_device *dev, const struct dl_op *op)
{
    return (unsigned)op->code < DL_OP_COUNT && dev->fns->supports(dev, op);
}

int dl_prog_create(dl_device *dev, const struct dl_op *ops, uint32_t n_ops, dl_buf *const *bufs, uint32_t n_bufs,
                   dl_prog **out)
{
    *out = NULL;
    for (uint32_t i = 0; i < n_ops; i++) {
        const struct dl_view *views[] = {&ops[i].dst, &ops[i].src[0], &ops[i].src[1], &ops[i].src[2]};
        for (size_t v = 0; v < DL_COUNT_OF(views); v++)
            if (views[v]->buf != DL_NO_BUF && (views[v]->buf >= n_bufs || !bufs[views[v]->buf]))
                return dl_fail(DL_EINVAL, "%s: op %s uses buffer %u, which is not there", dev->name, ops[i].name,
                               views[v]->buf);
        if (!dl_device_supports(dev, &ops[i]))
            return dl_fail(DL_EUNSUP, "%s: no kernel for op %s (%s)", dev->name, ops[i].name, dl_op_name(ops[i].code));
    }
    return dev->fns->prog_create(dev, ops, n_ops, bufs, n_bufs, out);
}

void dl_prog_destroy(dl_device *dev, dl_prog **prog)
{
    if (!*prog)
        return;
    dev->fns->prog_destroy(dev, *prog);
    *prog = NULL;
}

int dl_device_submit(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t host_wait, uint64_t signal)
{
    if (!args->n_tokens || !args->batch)
        return dl_fail(DL_EINVAL, "%s: a batch needs tokens", dev->name);
    int err = dev->fns->submit(dev, prog, args, host_wait, signal);
    if (!err) {
        dev->device_at = DL_MAX(dev->device_at, signal);
        dev->host_at = DL_MAX(dev->host_at, host_wait);
    }
    return err;
}

int dl_device_host_signal(dl_device *dev, uint64_t value)
{
    uint64_t before = atomic_load(&dev->host_raised);
    while (before < value && !atomic_compare_exchange_weak(&dev->host_raised, &before, value))
        ;
    return dev->fns->host_signal(dev, value);
}

int dl_device_wait(dl_device *dev, uint64_t value, uint64_t timeout_ns)
{
    return dev->fns->wait(dev, value, timeout_ns);
}
