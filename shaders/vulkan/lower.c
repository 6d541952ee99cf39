/* SPDX-License-Identifier: MIT
 *
 * lower.c: what lowerings are made of: dispatches, defines, push constants, views as descriptor ranges.
 */
#include "lower.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

uint32_t vk_rows(const struct vk_lower *l, const struct dl_op *op)
{
    uint32_t rows = (op->count == DL_COUNT_OUT ? l->n_out : l->n_tokens) * op->mult;
    return DL_MIN(rows, op->code == DL_OP_KV_STORE ? op->src[0].rows : op->dst.rows);
}

struct vk_dispatch *vk_dispatch_new(struct vk_lower *l, const char *shader)
{
    if (dl_grow((void **)&l->out, &l->cap, l->n + 1, sizeof *l->out))
        return NULL;
    struct vk_dispatch *d = &l->out[l->n++];
    *d = (struct vk_dispatch){.shader = shader, .groups = {1, 1, 1}};
    return d;
}

void vk_define(struct vk_dispatch *d, const char *name, uint32_t value)
{
    size_t at = strlen(d->defines);
    snprintf(d->defines + at, sizeof d->defines - at, "%s%s=%" PRIu32, at ? ";" : "", name, value);
}

void vk_push(struct vk_dispatch *d, uint32_t word)
{
    d->push[d->n_push++] = word;
}

void vk_push_f32(struct vk_dispatch *d, float value)
{
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    vk_push(d, word);
}

void vk_groups(const struct vk_lower *l, struct vk_dispatch *d, uint64_t n)
{
    uint64_t most = l->ctx->caps.max_groups[0], y = dl_div_up(n, most);
    d->groups[0] = (uint32_t)dl_div_up(n, y);
    d->groups[1] = (uint32_t)y;
}

int vk_bind_bytes(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint64_t at,
                  uint64_t end, uint64_t *rest)
{
    const struct vk_caps *caps = &l->ctx->caps;
    uint64_t offset = at & ~(uint64_t)(caps->offset_align - 1), range = dl_round_up(end - offset, 16);
    uint64_t part = b->n_parts > 1 ? b->part_rows * b->plane_row[plane] : UINT64_MAX;
    *rest = at - offset;
    if (range > caps->storage_range)
        return dl_fail(DL_ELIMIT,
                       "%s: an op reads %" PRIu64 " bytes of buffer %s at once, this device can bind %" PRIu64,
                       l->ctx->label, range, b->name, caps->storage_range);
    if (at / part != (end - 1) / part)
        return dl_fail(DL_ELIMIT, "%s: an op reads bytes of buffer %s that this device cannot bind at once",
                       l->ctx->label, b->name);
    d->binds[d->n_binds++] = (struct vk_bind){.buf = b, .plane = plane, .offset = offset, .range = range};
    return 0;
}

int vk_bind_batch(struct vk_lower *l, struct vk_dispatch *d)
{
    uint64_t rest;
    return vk_bind_bytes(l, d, l->batch, 0, 0, l->batch->base.desc.bytes, &rest);
}

/* Blocks of the host's form are the unit of every plane. */
static int bind_blocks(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, const struct dl_view *v,
                       uint32_t rows, uint32_t n_planes, struct vk_bound *out)
{
    static const uint32_t bytes[VK_PLANES] = {DL_BLOCK, 4, 4};
    uint64_t block = sizeof(struct dl_q80), at = v->offset / block, stride = v->row_bytes / block;
    uint64_t end = at + (rows - 1) * stride + v->cols / DL_BLOCK, rest;
    out->stride = (uint32_t)stride;
    for (uint32_t p = 0; p < n_planes; p++) {
        int err = vk_bind_bytes(l, d, b, p, at * bytes[p], end * bytes[p], &rest);
        if (err)
            return err;
        out->at[p] = (uint32_t)(rest / bytes[p]);
    }
    return 0;
}

int vk_bind_view(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *v, uint32_t rows, uint32_t n_planes,
                 struct vk_bound *out)
{
    const struct vk_buf *b = l->bufs[v->buf];
    *out = (struct vk_bound){0};
    rows = DL_MIN(rows, v->rows); /* a class may be larger than the largest batch */
    if (!b)
        return dl_fail(DL_EINVAL, "%s: an op uses plan buffer %u, which this node does not have", l->ctx->label,
                       v->buf);
    if (b->layout == VK_SOA_A)
        return bind_blocks(l, d, b, v, rows, n_planes, out);
    /* Rows of weights are longer here than on the host. */
    uint64_t host_row = 0, view_row = 0, at = v->offset, stride = v->row_bytes, rest;
    if (!dl_row_bytes(v->type, b->base.desc.cols, &host_row) || !dl_row_bytes(v->type, v->cols, &view_row))
        return dl_fail(DL_EINVAL, "%s: a view of buffer %s is off its blocks", l->ctx->label, b->name);
    if (b->plane_row[0] != host_row) {
        at = v->offset / host_row * b->plane_row[0] + v->offset % host_row;
        stride = v->row_bytes / host_row * b->plane_row[0];
    }
    int err = vk_bind_bytes(l, d, b, 0, at, at + (rows - 1) * stride + view_row, &rest);
    uint32_t unit = v->type == DL_F32 ? 4 : 2;
    out->at[0] = (uint32_t)(rest / unit);
    out->stride = (uint32_t)(stride / unit);
    return err;
}
