/* SPDX-License-Identifier: MIT
 *
 * lower_norm.c: RMS_NORM; ADD and MERGE, alone (add.comp) or with the norms that follow them in one kernel (rms_norm.comp): the
 * residual stream is then read once and written once per half layer.
 */
#include "kernels.h"

#include <stdio.h>

#include "tune.h"

static bool same_view(const struct dl_view *a, const struct dl_view *b)
{
    return a->buf == b->buf && a->offset == b->offset && a->row_bytes == b->row_bytes && a->cols == b->cols &&
           a->type == b->type;
}

/* src0, the first slice of src1, how many slices and how far apart: what sum.glsl wants. */
static int bind_sum(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *op)
{
    const struct dl_view *w = &op->src[1];
    uint32_t rows = vk_rows(l, op), n_slices = op->code == DL_OP_MERGE ? op->u.merge.n_slices : 1;
    uint64_t slice = op->code == DL_OP_MERGE ? op->u.merge.slice_bytes : 0, unit = w->type == DL_F32 ? 4 : 2, row = 0,
             rest;
    int err = vk_bind_in(l, d, &op->src[0], rows);
    if (err)
        return err;
    dl_row_bytes(w->type, w->cols, &row);
    err = vk_bind_bytes(l, d, l->bufs[w->buf], 0, w->offset,
                        w->offset + (n_slices - 1) * slice + (rows - 1) * w->row_bytes + row, &rest);
    vk_push(d, (uint32_t)(rest / unit));
    vk_push(d, (uint32_t)(w->row_bytes / unit));
    vk_push(d, n_slices);
    vk_push(d, (uint32_t)(slice / unit));
    return err;
}

static int lower_sum(struct vk_lower *l, const struct dl_op *op)
{
    struct vk_dispatch *d = vk_dispatch_op(l, "add.comp", op);
    if (!d)
        return DL_ENOMEM;
    vk_define(d, "WIRE", vk_form_of(l, &op->src[1]));
    vk_define(d, "OUT", VK_FORM_F32);
    int err = bind_sum(l, d, op);
    if (!err)
        err = vk_bind_out(l, d, &op->dst, vk_rows(l, op));
    vk_groups(l, d, (uint64_t)vk_rows(l, op) * dl_div_up(op->dst.cols, VK_LANES * VK_LANE_VALUES));
    return err ? err : 1;
}

/* Columns that a workgroup has: one group, or as many as make whole blocks. */
static uint32_t span_of(const struct dl_op *norm, bool blocks)
{
    uint32_t span = norm->u.norm.group;
    while (blocks && span % DL_BLOCK)
        span += norm->u.norm.group;
    return span;
}

/* One dispatch for `sum` (or NULL) and norms of the same row: at most one to F32 and one to another form. */
static int lower_norms(struct vk_lower *l, const struct dl_op *sum, const struct dl_op *f32, const struct dl_op *other)
{
    const struct dl_op *norm = f32 ? f32 : other;
    uint32_t rows = vk_rows(l, norm), span = span_of(norm, other != NULL);
    struct vk_dispatch *d = vk_dispatch_op(l, "rms_norm.comp", norm);
    if (!d)
        return DL_ENOMEM;
    if (sum)
        vk_define(d, "WIRE", vk_form_of(l, &sum->src[1]));
    vk_define(d, "NORM_F32", f32 != NULL);
    vk_define(d, "OUT", other ? vk_form_of(l, &other->dst) : VK_FORM_F32);
    vk_push(d, norm->u.norm.group);
    vk_push(d, span);
    vk_push_f32(d, norm->u.norm.eps);
    /* Binding order and push order differ: x, w, then the sum's and the results'. */
    struct vk_dispatch order = *d;
    struct vk_bound x, w;
    int err = 0;
    order.n_push = 0;
    if (sum)
        err = bind_sum(l, &order, sum);
    if (!err)
        err = vk_bind_view(l, &order, &norm->src[0], rows, 1, &x);
    if (!err)
        err = vk_bind_view(l, &order, &norm->src[1], 1, 1, &w);
    if (!err && f32)
        err = vk_bind_out(l, &order, &f32->dst, rows);
    if (!err && other)
        err = vk_bind_out(l, &order, &other->dst, rows);
    if (err)
        return err;
    vk_push(d, x.at[0]);
    vk_push(d, x.stride);
    vk_push(d, w.at[0]);
    for (uint32_t i = 0; i < order.n_push; i++)
        vk_push(d, order.push[i]);
    for (uint32_t i = d->n_binds; i < order.n_binds; i++)
        d->binds[i] = order.binds[i];
    d->n_binds = order.n_binds;
    vk_groups(l, d, (uint64_t)rows * (norm->dst.cols / span));
    d->work *= sum && sum->code == DL_OP_MERGE ? 2 + (uint64_t)sum->u.merge.n_slices : 2;
    return (sum != NULL) + (f32 != NULL) + (other != NULL);
}

int vk_lower_rms_norm(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    bool f32 = ops[0].dst.type == DL_F32;
    return lower_norms(l, NULL, f32 ? &ops[0] : NULL, f32 ? NULL : &ops[0]);
}

/* Whether a norm takes the rows that `sum` makes, all of a row at once. It must not change what the next one reads. */
static bool norm_of(const struct dl_op *sum, const struct dl_op *norm)
{
    return norm->code == DL_OP_RMS_NORM && norm->count == sum->count && norm->mult == sum->mult &&
           same_view(&norm->src[0], &sum->dst) && norm->u.norm.group == sum->dst.cols && norm->dst.buf != sum->dst.buf;
}

static bool alike(const struct dl_op *a, const struct dl_op *b)
{
    return a->u.norm.eps == b->u.norm.eps && same_view(&a->src[1], &b->src[1]) && a->dst.buf != b->dst.buf &&
           (a->dst.type == DL_F32) != (b->dst.type == DL_F32);
}

static bool reads(const struct dl_op *op, uint32_t buf)
{
    return op->src[0].buf == buf || op->src[1].buf == buf;
}

/* Whether the device makes sum and norms right in one kernel. */
static int one_kernel(struct vk_lower *l, const struct dl_op *ops, uint32_t n, const struct dl_op *f32,
                      const struct dl_op *other)
{
    char word[64];
    snprintf(word, sizeof word, "fuse_%s_norm_%s_to%s%s%s", ops[0].code == DL_OP_MERGE ? "merge" : "add",
             vk_form_name(vk_form_of(l, &ops[0].src[1])), f32 ? "_f32" : "", other ? "_" : "",
             other ? vk_form_name(vk_form_of(l, &other->dst)) : "");
    return vk_tune_fuse(l, word, ops, n, "", "one");
}

static int sum_and_norms(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    const struct dl_op *sum = &ops[0], *f32 = NULL, *other = NULL;
    uint32_t taken = 0;
    while (taken < 2 && taken + 1 < n) {
        const struct dl_op *norm = &ops[1 + taken];
        if (!norm_of(sum, norm) || reads(sum, norm->dst.buf) || (taken && !alike(&ops[1], norm)))
            break;
        if (norm->dst.type == DL_F32)
            f32 = norm;
        else
            other = norm;
        taken++;
    }
    int one = taken ? one_kernel(l, ops, 1 + taken, f32, other) : 0;
    return one < 0 ? one : one ? lower_norms(l, sum, f32, other) : lower_sum(l, sum);
}

int vk_lower_add(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    return sum_and_norms(l, ops, n);
}

int vk_lower_merge(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    return sum_and_norms(l, ops, n);
}
