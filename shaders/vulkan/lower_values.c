/* SPDX-License-Identifier: MIT
 *
 * lower_values.c: ops without neighbours: CONVERT, GLU, GATHER_ROWS and the MoE ops around the matrices; and what the kernels of
 * this kind have in common: a workgroup is VK_LANES * VK_LANE_VALUES neighbouring values of one row.
 */
#include "kernels.h"

enum vk_form vk_form_of(const struct vk_lower *l, const struct dl_view *v)
{
    if (v->type == DL_Q80)
        return l->bufs[v->buf]->layout == VK_SOA_A ? VK_FORM_PLANES : VK_FORM_Q80;
    if (v->type == DL_Q120)
        return VK_FORM_Q120;
    return v->type == DL_F32 ? VK_FORM_F32 : v->type == DL_F16 ? VK_FORM_F16 : VK_FORM_BF16;
}

const char *vk_form_name(enum vk_form form)
{
    static const char *const names[] = {"f32", "f16", "bf16", "", "q80", "planes", "q120"};
    return names[form];
}

int vk_bind_in(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *src, uint32_t rows)
{
    struct vk_bound b;
    int err = vk_bind_view(l, d, src, rows, 1, &b);
    vk_push(d, b.at[0]);
    vk_push(d, b.stride);
    return err;
}

int vk_bind_out(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *dst, uint32_t rows)
{
    struct vk_bound b;
    bool planes = vk_form_of(l, dst) == VK_FORM_PLANES;
    int err = vk_bind_view(l, d, dst, rows, planes ? 3 : 1, &b);
    vk_push(d, b.at[0]);
    for (uint32_t p = 1; planes && p < VK_PLANES; p++)
        vk_push(d, b.at[p]);
    vk_push(d, b.stride);
    return err;
}

struct vk_dispatch *vk_dispatch_op(struct vk_lower *l, const char *shader, const struct dl_op *op)
{
    struct vk_dispatch *d = vk_dispatch_new(l, shader);
    if (!d || vk_bind_batch(l, d))
        return NULL;
    vk_define(d, "COUNT", op->count == DL_COUNT_OUT);
    vk_define(d, "LANES", VK_LANES);
    vk_push(d, op->mult);
    vk_push(d, op->dst.cols);
    d->work = (uint64_t)vk_rows(l, op) * op->dst.cols;
    return d;
}

/* One group per VK_LANES * VK_LANE_VALUES values of a row. */
static void groups_by_values(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *op)
{
    vk_groups(l, d, (uint64_t)vk_rows(l, op) * dl_div_up(op->dst.cols, VK_LANES * VK_LANE_VALUES));
}

bool vk_supports_values(const struct vk_ctx *c, const struct dl_op *op)
{
    (void)c;
    switch (op->code) {
    case DL_OP_CONVERT:
        return (op->src[0].type == DL_F32 || op->src[0].type == DL_F16) && op->dst.type != DL_Q40;
    case DL_OP_RMS_NORM:
    case DL_OP_GLU:
        return op->src[0].type == DL_F32 && op->src[1].type == DL_F32 &&
               (op->dst.type == DL_F32 || op->dst.type == DL_Q80);
    case DL_OP_MERGE:
        return op->src[0].type == DL_F32 && op->dst.type == DL_F32 && op->src[1].type != DL_BF16 &&
               op->src[1].type != DL_Q40;
    default:
        for (uint32_t i = 0; i < dl_op_n_src(op->code); i++)
            if (op->src[i].type != DL_F32)
                return false;
        return op->dst.type == DL_F32;
    }
}

int vk_lower_convert(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    uint32_t rows = vk_rows(l, op);
    struct vk_dispatch *d = vk_dispatch_op(l, "convert.comp", op);
    if (!d)
        return DL_ENOMEM;
    const bool carries = dl_op_carries(op);
    vk_define(d, "SRC", vk_form_of(l, &op->src[0]));
    vk_define(d, "OUT", vk_form_of(l, &op->dst));
    vk_define(d, "CARRY", carries);
    int err = vk_bind_in(l, d, &op->src[0], rows);
    if (!err && carries) {
        err = vk_bind_in(l, d, &op->src[1], rows);
        vk_push(d, !op->u.convert.first);
    }
    if (!err)
        err = vk_bind_out(l, d, &op->dst, rows);
    groups_by_values(l, d, op);
    return err ? err : 1;
}

int vk_lower_glu(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    uint32_t rows = vk_rows(l, op);
    struct vk_dispatch *d = vk_dispatch_op(l, "glu.comp", op);
    if (!d)
        return DL_ENOMEM;
    vk_define(d, "ACT", op->u.glu.act == DL_ACT_GELU);
    vk_define(d, "OUT", vk_form_of(l, &op->dst));
    int err = vk_bind_in(l, d, &op->src[0], rows);
    if (!err)
        err = vk_bind_in(l, d, &op->src[1], rows);
    if (!err)
        err = vk_bind_out(l, d, &op->dst, rows);
    groups_by_values(l, d, op);
    return err ? err : 1;
}

int vk_lower_gather_rows(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    struct vk_dispatch *d = vk_dispatch_op(l, "gather_rows.comp", op);
    if (!d)
        return DL_ENOMEM;
    vk_define(d, "OUT", VK_FORM_F32);
    int err = vk_bind_in(l, d, &op->src[0], l->n_tokens);
    if (!err)
        err = vk_bind_out(l, d, &op->dst, vk_rows(l, op));
    groups_by_values(l, d, op);
    return err ? err : 1;
}

int vk_lower_moe_route(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    uint32_t rows = vk_rows(l, op);
    struct vk_dispatch *d = vk_dispatch_op(l, "moe_route.comp", op);
    if (!d)
        return DL_ENOMEM;
    d->push[1] = op->u.moe.n_experts; /* instead of cols */
    vk_push(d, op->u.moe.k);
    vk_push(d, op->u.moe.renorm);
    int err = vk_bind_in(l, d, &op->src[0], rows);
    if (!err)
        err = vk_bind_out(l, d, &op->dst, rows);
    vk_groups(l, d, rows);
    d->work = (uint64_t)rows * op->u.moe.n_experts * op->u.moe.k;
    return err ? err : 1;
}

int vk_lower_moe_sum(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    uint32_t rows = vk_rows(l, op), k = op->src[1].cols / 2;
    struct vk_dispatch *d = vk_dispatch_op(l, "moe_sum.comp", op);
    if (!d)
        return DL_ENOMEM;
    vk_define(d, "OUT", VK_FORM_F32);
    vk_push(d, k);
    int err = vk_bind_in(l, d, &op->src[0], rows * k);
    if (!err)
        err = vk_bind_in(l, d, &op->src[1], rows);
    if (!err)
        err = vk_bind_out(l, d, &op->dst, rows);
    groups_by_values(l, d, op);
    d->work *= k;
    return err ? err : 1;
}
