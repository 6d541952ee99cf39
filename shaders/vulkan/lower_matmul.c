/* SPDX-License-Identifier: MIT
 *
 * lower_matmul.c: MATMUL and MOE_MATMUL as dispatches. Up to 8 tokens: one mat-vec that reads the weights once. More: tiles, or
 * mat-vecs of 8 columns side by side where the device is better at that. MoE: a mat-vec per (token, slot).
 *
 * Weights larger than a descriptor are taken a chunk of rows after the other, grids larger than a dispatch a run of rows or tokens
 * after the other.
 */
#include "lower_matmul.h"

#include <stdio.h>
#include <string.h>

#include "lower.h"
#include "tune.h"

#define VEC_COLS 8u /* the most columns of a mat-vec */

static bool quantised(enum dl_type type)
{
    return type == DL_Q40 || type == DL_Q80;
}

static bool whole_rows(const struct dl_view *v)
{
    uint64_t row;
    return dl_row_bytes(v->type, v->cols, &row) && v->row_bytes == row && v->offset % row == 0;
}

bool vk_supports_matmul(const struct vk_ctx *c, const struct dl_op *op)
{
    (void)c;
    return whole_rows(&op->src[1]);
}

bool vk_supports_moe_matmul(const struct vk_ctx *c, const struct dl_op *op)
{
    return whole_rows(&op->src[1]) && op->src[1].rows <= INT32_MAX && op->dst.cols <= c->caps.max_groups[0];
}

/* ------------------------------------------------------------------------------------------------- one dispatch */

struct call {
    struct vk_lower *l;
    const struct dl_op *op;
    const struct vk_mm_variant *v;
    bool moe;
    uint32_t cols;            /* mat-vec: COLS */
    uint32_t token, n_tokens; /* of the batch, that this dispatch computes */
    uint32_t row, n_rows;     /* of the weights */
};

/* Rows of a view that belong to the tokens of this dispatch: `per` each. */
static struct dl_view tokens_of(const struct call *c, const struct dl_view *v, uint32_t per)
{
    struct dl_view part = *v;
    part.offset += (uint64_t)c->token * per * v->row_bytes;
    part.rows = c->n_tokens * per;
    return part;
}

static void define_all(const struct call *c, struct vk_dispatch *d)
{
    static const uint32_t types[DL_TYPE_COUNT] = {32, 16, 17, 40, 80};
    const struct vk_mm_variant *v = c->v;
    enum dl_type type = c->op->src[1].type;
    vk_define(d, "WTYPE", types[type]);
    if (v->tile) {
        vk_define(d, "BM", v->bm);
        vk_define(d, "BN", v->bn);
        vk_define(d, "TM", v->tm);
        vk_define(d, "TN", v->tn);
        vk_define(d, quantised(type) ? "KB" : "BK", v->step);
    } else {
        vk_define(d, "COLS", c->cols);
        vk_define(d, "ROWS", v->rows);
        vk_define(d, "WG", v->threads);
        vk_define(d, "LPR", v->lanes);
        vk_define(d, "SG", v->subgroup);
        vk_define(d, "MOE", c->moe);
    }
    if (quantised(type))
        vk_define(d, "DOT", (uint32_t)v->dot);
    vk_define(d, "BIAS", !c->moe && c->op->src[2].buf != DL_NO_BUF);
    vk_define(d, "HALF_HW", v->half_hw);
}

/* The weights of this dispatch: codes and scales, or plain. Pushes where they start and how long rows are. */
static int bind_weights(const struct call *c, struct vk_dispatch *d)
{
    static const uint32_t unit[2] = {16, 4};
    const struct dl_view *w = &c->op->src[1];
    const struct vk_buf *b = c->l->bufs[w->buf];
    uint32_t n_planes = quantised(w->type) ? 2 : 1, at[2] = {0}, row[2] = {0};
    for (uint32_t p = 0; p < n_planes; p++) {
        uint32_t skip;
        int err = vk_bind_rows(c->l, d, b, p, vk_view_row(c->l, w) + c->row, c->n_rows, &skip);
        if (err)
            return err;
        at[p] = skip / unit[p];
        row[p] = (uint32_t)(b->plane_row[p] / unit[p]);
    }
    for (uint32_t p = 0; p < 2; p++) {
        vk_push(d, at[p]);
        vk_push(d, row[p]);
    }
    return 0;
}

static int bind_activations(const struct call *c, struct vk_dispatch *d)
{
    const struct dl_op *op = c->op;
    const struct vk_buf *b = c->l->bufs[op->src[0].buf];
    bool q = quantised(op->src[1].type);
    if (b && b->layout != (q ? VK_SOA_A : VK_PLAIN))
        return dl_fail(DL_EUNSUP, "%s: %s: no kernel for packed activations in buffer %s", c->l->ctx->label, op->name,
                       b->name);
    struct dl_view x = tokens_of(c, &op->src[0], c->moe && !op->u.moe.shared_src ? op->u.moe.k : 1);
    struct vk_bound bound;
    int err = vk_bind_view(c->l, d, &x, x.rows, q ? 3 : 1, &bound);
    const uint32_t per = q ? 2 : 1; /* uvec4s in a block of codes */
    vk_push(d, bound.at[0] * per);
    vk_push(d, bound.stride * per);
    vk_push(d, bound.at[1]);
    vk_push(d, bound.at[2]);
    vk_push(d, bound.stride);
    return err;
}

/* The order of binds and of push words is mm_common.glsl's. */
static int dispatch(const struct call *c)
{
    const struct dl_op *op = c->op;
    const struct vk_mm_variant *v = c->v;
    const bool q = quantised(op->src[1].type), bias = !c->moe && op->src[2].buf != DL_NO_BUF;
    const uint32_t rows = c->moe ? op->dst.cols : c->n_rows, slots = c->moe ? op->u.moe.k : 1, in = op->src[1].cols;
    struct vk_dispatch *d = vk_dispatch_new(c->l, v->tile ? q ? "matmul_q.comp" : "matmul_f.comp"
                                                  : q     ? "matvec_q.comp"
                                                          : "matvec_f.comp");
    if (!d)
        return DL_ENOMEM;
    define_all(c, d);
    vk_push(d, q ? in / DL_BLOCK : in);
    vk_push(d, rows);
    int err = vk_bind_batch(c->l, d);
    if (!err)
        err = bind_weights(c, d);
    if (!err)
        err = bind_activations(c, d);
    struct dl_view y = tokens_of(c, &op->dst, slots);
    if (!c->moe) {
        y.offset += (uint64_t)c->row * sizeof(float);
        y.cols = c->n_rows;
    }
    struct vk_bound to = {0}, extra = {0};
    if (!err)
        err = vk_bind_view(c->l, d, &y, y.rows, 1, &to);
    if (!err && bias) {
        struct dl_view part = op->src[2];
        part.offset += (uint64_t)c->row * sizeof(float);
        part.cols = c->n_rows;
        err = vk_bind_view(c->l, d, &part, 1, 1, &extra);
    }
    if (!err && c->moe) {
        struct dl_view route = tokens_of(c, &op->src[2], 1);
        err = vk_bind_view(c->l, d, &route, route.rows, 1, &extra);
    }
    if (err)
        return err;
    vk_push(d, to.at[0]);
    vk_push(d, to.stride);
    vk_push(d, extra.at[0]);
    vk_push(d, op->count == DL_COUNT_OUT);
    vk_push(d, c->token);
    vk_push(d, extra.stride);
    vk_push(d, c->row);
    vk_push(d, c->n_rows);
    vk_push(d, slots);
    vk_push(d, c->moe && op->u.moe.shared_src);
    const uint32_t group_rows = v->tile ? v->bm : v->threads / v->lanes * v->rows;
    const uint32_t group_cols = c->moe ? 1 : v->tile ? v->bn : c->cols;
    d->groups[0] = (uint32_t)dl_div_up(rows, group_rows);
    d->groups[1] = (uint32_t)dl_div_up((uint64_t)c->n_tokens * slots, group_cols);
    d->work = (uint64_t)c->n_tokens * slots * rows * in;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- what fits in one */

static uint32_t least(uint32_t a, uint64_t b)
{
    return (uint64_t)a < b ? a : (uint32_t)b;
}

static int dispatches(struct call *c)
{
    const struct dl_op *op = c->op;
    struct vk_lower *l = c->l;
    const struct vk_caps *caps = &l->ctx->caps;
    const struct vk_buf *w = l->bufs[op->src[1].buf];
    if (!w)
        return dl_fail(DL_EINVAL, "%s: %s: its weights are not on this node", l->ctx->label, op->name);
    const uint32_t slots = c->moe ? op->u.moe.k : 1, group_cols = c->moe ? 1 : c->v->tile ? c->v->bn : c->cols;
    const uint32_t group_rows = c->v->tile ? c->v->bm : c->v->threads / c->v->lanes * c->v->rows;
    const uint32_t all = DL_MIN(vk_rows(l, op), op->dst.rows) / slots, first = vk_view_row(l, &op->src[1]);
    const uint32_t tokens = least(all, (uint64_t)caps->max_groups[1] * group_cols / slots);
    if (!tokens)
        return dl_fail(DL_ELIMIT, "%s: %s: a token's %u experts are more than this device starts at once",
                       l->ctx->label, op->name, (unsigned)slots);
    for (c->row = 0; c->row < op->src[1].rows; c->row += c->n_rows) {
        c->n_rows = DL_MIN(w->chunk_rows - (first + c->row) % w->chunk_rows, op->src[1].rows - c->row);
        if (!c->moe)
            c->n_rows = least(c->n_rows, (uint64_t)caps->max_groups[0] * group_rows);
        for (c->token = 0; c->token < all; c->token += c->n_tokens) {
            c->n_tokens = DL_MIN(tokens, all - c->token);
            int err = dispatch(c);
            if (err)
                return err;
        }
    }
    return 0;
}

/* -------------------------------------------------------------------------------------------------- the choice */

static int choose(struct vk_lower *l, const struct dl_op *op, const char *kernel, struct vk_mm_variant *all, uint32_t n)
{
    const char *names[VK_MM_VARIANTS];
    char word[32];
    for (uint32_t i = 0; i < n; i++)
        names[i] = all[i].name;
    snprintf(word, sizeof word, "%s_%s", kernel, dl_type_info(op->src[1].type)->name);
    return vk_tune_pick(l, word, op, names, n);
}

int vk_lower_matmul(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct vk_caps *caps = &l->ctx->caps;
    const struct dl_view *w = &ops->src[1];
    const uint32_t tokens = DL_MIN(vk_rows(l, ops), ops->dst.rows);
    struct vk_mm_variant all[VK_MM_VARIANTS];
    struct call c = {.l = l, .op = ops, .cols = 1};
    while (c.cols < tokens && c.cols < VEC_COLS)
        c.cols *= 2;
    bool vec = tokens <= VEC_COLS;
    uint32_t n_all = vec ? vk_mm_vec_variants(caps, w->type, w->cols, tokens, all)
                         : vk_mm_many_variants(caps, w->type, w->cols, tokens, all);
    int at = choose(l, ops, vec ? "matvec" : "matmul", all, n_all);
    if (at < 0)
        return at;
    c.v = &all[at];
    int err = dispatches(&c);
    return err ? err : 1;
}

int vk_lower_moe_matmul(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    struct vk_mm_variant all[VK_MM_VARIANTS];
    struct call c = {.l = l, .op = ops, .moe = true, .cols = 1};
    uint32_t n_all = vk_mm_vec_variants(&l->ctx->caps, ops->src[1].type, ops->src[1].cols, 1, all);
    int at = choose(l, ops, "moe_matvec", all, n_all);
    if (at < 0)
        return at;
    c.v = &all[at];
    int err = dispatches(&c);
    return err ? err : 1;
}
