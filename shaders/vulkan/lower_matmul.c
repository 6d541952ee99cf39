/* SPDX-License-Identifier: MIT
 *
 * lower_matmul.c: MATMUL and MOE_MATMUL as dispatches. Up to 8 tokens: one mat-vec that reads the weights once. More: tiles, or
 * mat-vecs of 8 columns side by side where the device is better at that. MoE: a mat-vec per (token, slot).
 *
 * Weights larger than a descriptor are taken a chunk of rows after the other, grids larger than a dispatch a run of rows or tokens
 * after the other. What fits one dispatch may take neighbours along (lower_fused.c).
 */
#include "lower_matmul.h"

#include <stdio.h>
#include <string.h>

#include "kernels.h"
#include "tune.h"

_Static_assert(VK_MM_VARIANTS <= VK_TUNE_MOST, "all are candidates");

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
    struct vk_mm_fused f; /* one op where nothing is taken along */
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
        vk_define(d, dl_type_quantised(type) ? "KB" : "BK", v->step);
    } else {
        vk_define(d, "COLS", c->cols);
        vk_define(d, "ROWS", c->f.rows);
        vk_define(d, "WG", c->f.threads);
        vk_define(d, "LPR", v->lanes);
        vk_define(d, "SG", v->subgroup);
        vk_define(d, "MOE", c->moe);
        vk_define(d, "PASSES", c->f.passes);
    }
    vk_define(d, "PARTS", c->f.n_parts);
    vk_define(d, "EPI", (uint32_t)c->f.kind);
    if (c->f.kind)
        vk_define(d, "OUT", (uint32_t)vk_form_of(c->l, &c->f.after->dst));
    if (c->f.kind == VK_MM_GLU)
        vk_define(d, "ACT", c->f.after->u.glu.act == DL_ACT_GELU);
    if (dl_type_quantised(type))
        vk_define(d, "DOT", (uint32_t)v->dot);
    vk_define(d, "BIAS", !c->moe && c->op->src[2].buf != DL_NO_BUF);
    vk_define(d, "HALF_HW", v->half_hw);
}

/* Where rows of weights start in their bindings and how long they are: codes and scales, or plain. */
struct weights {
    uint32_t at[2], row[2];
};

static int bind_weights(const struct call *c, struct vk_dispatch *d, const struct dl_view *w, uint32_t first,
                        uint32_t rows, struct weights *out)
{
    static const uint32_t unit[2] = {16, 4};
    const struct vk_buf *b = c->l->bufs[w->buf];
    uint32_t n_planes = dl_type_quantised(w->type) ? 2 : 1;
    *out = (struct weights){0};
    for (uint32_t p = 0; p < n_planes; p++) {
        uint32_t skip;
        int err = vk_bind_rows(c->l, d, b, p, vk_view_row(c->l, w) + first, rows, &skip);
        if (err)
            return err;
        out->at[p] = skip / unit[p];
        out->row[p] = (uint32_t)(b->plane_row[p] / unit[p]);
    }
    return 0;
}

static int bind_activations(const struct call *c, struct vk_dispatch *d)
{
    const struct dl_op *op = c->op;
    const struct vk_buf *b = c->l->bufs[op->src[0].buf];
    bool q = dl_type_quantised(op->src[1].type);
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

/* Results in F32: of all matrices where they share a buffer (kernels for GLU bind the second's by itself). */
static struct dl_view results(const struct call *c)
{
    struct dl_view y = tokens_of(c, &c->op->dst, c->moe ? c->op->u.moe.k : 1);
    if (c->f.kind == VK_MM_GLU || c->f.n_parts == 1) {
        if (!c->moe) {
            y.offset += (uint64_t)c->row * sizeof(float);
            y.cols = c->n_rows;
        }
        return y;
    }
    uint64_t from = UINT64_MAX, to = 0;
    for (uint32_t i = 0; i < c->f.n_parts; i++) {
        const struct dl_view *v = &c->f.part[i]->dst;
        from = DL_MIN(from, v->offset);
        to = DL_MAX(to, v->offset + v->cols * sizeof(float));
    }
    y.offset = from;
    y.cols = (uint32_t)((to - from) / sizeof(float));
    return y;
}

/* Matrices behind the first: where each one's rows and results are. In the order of mm_common.glsl. */
static int bind_parts(const struct call *c, struct vk_dispatch *d, const struct dl_view *y, const struct vk_bound *to)
{
    const bool bias = !c->moe && c->op->src[2].buf != DL_NO_BUF;
    uint32_t words[VK_MM_PARTS][5] = {0};
    for (uint32_t i = 1; i < c->f.n_parts; i++) {
        const struct dl_op *op = c->f.part[i];
        struct weights w;
        struct vk_bound extra = {0};
        int err = bind_weights(c, d, &op->src[1], 0, op->src[1].rows, &w);
        if (!err && bias)
            err = vk_bind_view(c->l, d, &op->src[2], 1, 1, &extra);
        if (err)
            return err;
        const uint32_t all[5] = {w.at[0], w.at[1], op->dst.cols,
                                 to->at[0] + (uint32_t)((op->dst.offset - y->offset) / sizeof(float)), extra.at[0]};
        memcpy(words[i], all, sizeof all);
    }
    if (c->f.kind == VK_MM_GLU) {
        struct dl_view up = tokens_of(c, &c->f.part[1]->dst, c->moe ? c->op->u.moe.k : 1);
        struct vk_bound b;
        int err = vk_bind_view(c->l, d, &up, up.rows, 1, &b);
        if (err)
            return err;
        words[1][3] = b.at[0];
    }
    for (uint32_t i = 1; i < c->f.n_parts; i++)
        for (uint32_t k = 0; k < DL_COUNT_OF(words[i]); k++)
            vk_push(d, words[i][k]);
    return 0;
}

static int bind_after(const struct call *c, struct vk_dispatch *d)
{
    if (!c->f.after)
        return 0;
    int err = 0;
    struct dl_view out = tokens_of(c, &c->f.after->dst, c->moe ? c->op->u.moe.k : 1);
    if (c->f.base) {
        struct dl_view base = tokens_of(c, c->f.base, 1);
        err = vk_bind_in(c->l, d, &base, base.rows);
        if (c->f.kind == VK_MM_CARRY)
            vk_push(d, !c->f.after->u.convert.first);
    }
    return err ? err : vk_bind_out(c->l, d, &out, out.rows);
}

/* Rows that a workgroup has of each of its matrices. */
static uint32_t span(const struct call *c)
{
    return c->v->tile ? c->f.own : c->f.threads / c->v->lanes * c->f.own * c->f.passes;
}

/* Columns of the batch that it has. */
static uint32_t group_cols(const struct call *c)
{
    return c->moe ? 1 : c->v->tile ? c->v->bn : c->cols;
}

/* Workgroups for rows of the first matrix, and for all of those beside it. */
static uint32_t row_groups(const struct call *c, uint32_t rows)
{
    uint32_t groups = (uint32_t)dl_div_up(rows, span(c));
    for (uint32_t i = 1; c->f.kind != VK_MM_GLU && i < c->f.n_parts; i++)
        groups += (uint32_t)dl_div_up(c->f.part[i]->dst.cols, span(c));
    return groups;
}

/* The order of binds and of push words is mm_common.glsl's. */
static int dispatch(const struct call *c)
{
    const struct dl_op *op = c->op;
    const struct vk_mm_variant *v = c->v;
    const bool q = dl_type_quantised(op->src[1].type), bias = !c->moe && op->src[2].buf != DL_NO_BUF;
    const uint32_t rows = c->moe ? op->dst.cols : c->n_rows, slots = c->moe ? op->u.moe.k : 1, in = op->src[1].cols;
    struct vk_dispatch *d = vk_dispatch_new(c->l, v->tile ? q ? "matmul_q.comp" : "matmul_f.comp"
                                                  : q     ? "matvec_q.comp"
                                                          : "matvec_f.comp");
    if (!d)
        return DL_ENOMEM;
    define_all(c, d);
    vk_push(d, q ? in / DL_BLOCK : in);
    vk_push(d, rows);
    struct weights w;
    int err = vk_bind_batch(c->l, d);
    if (!err)
        err = bind_weights(c, d, &op->src[1], c->row, c->n_rows, &w);
    if (err)
        return err;
    for (uint32_t p = 0; p < 2; p++) {
        vk_push(d, w.at[p]);
        vk_push(d, w.row[p]);
    }
    err = bind_activations(c, d);
    struct dl_view y = results(c);
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
    const bool beside = c->f.n_parts > 1 && c->f.kind != VK_MM_GLU;
    vk_push(d, to.at[0] + (beside ? (uint32_t)((op->dst.offset - y.offset) / sizeof(float)) : 0));
    vk_push(d, to.stride);
    vk_push(d, extra.at[0]);
    vk_push(d, op->count == DL_COUNT_OUT);
    vk_push(d, c->token);
    vk_push(d, extra.stride);
    vk_push(d, c->row);
    vk_push(d, c->n_rows);
    vk_push(d, slots);
    vk_push(d, c->moe && op->u.moe.shared_src);
    err = bind_parts(c, d, &y, &to);
    if (!err)
        err = bind_after(c, d);
    d->groups[0] = row_groups(c, rows);
    d->groups[1] = (uint32_t)dl_div_up((uint64_t)c->n_tokens * slots, group_cols(c));
    d->work = (uint64_t)c->n_tokens * slots * rows * in;
    for (uint32_t i = 1; i < c->f.n_parts; i++)
        d->work += (uint64_t)c->n_tokens * slots * c->f.part[i]->dst.cols * in;
    return err;
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
    const uint32_t slots = c->moe ? op->u.moe.k : 1, group_rows = span(c);
    const uint32_t all = DL_MIN(vk_rows(l, op), op->dst.rows) / slots, first = vk_view_row(l, &op->src[1]);
    const uint32_t tokens = least(all, (uint64_t)caps->max_groups[1] * group_cols(c) / slots);
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

/* "matvec_q40": leaves the word in *word. */
static int choose(struct vk_lower *l, const struct dl_op *op, const char *kernel, struct vk_mm_variant *all, uint32_t n,
                  char word[32])
{
    const char *names[VK_MM_VARIANTS];
    for (uint32_t i = 0; i < n; i++)
        names[i] = all[i].name;
    snprintf(word, 32, "%s_%s", kernel, dl_type_info(op->src[1].type)->name);
    return vk_tune_pick(l, word, op, names, n);
}

/* Whether all rows of a matrix can be bound at once, and there are few enough. */
static bool whole(const struct call *c, const struct dl_view *w)
{
    const struct vk_buf *b = c->l->bufs[w->buf];
    return b && vk_view_row(c->l, w) % b->chunk_rows + w->rows <= b->chunk_rows;
}

/* Says all that makes another kernel of it: "fuse_glu_matvec_q40_to_q80". */
static void fused_word(const struct call *c, const char *word, char *out, size_t size)
{
    static const char *const kinds[] = {"beside", "convert", "glu", "add", "carry"};
    const bool bias = !c->moe && c->op->src[2].buf != DL_NO_BUF;
    char to[32];
    if (c->f.after)
        snprintf(to, sizeof to, "to_%s%s", vk_form_name(vk_form_of(c->l, &c->f.after->dst)),
                 c->f.kind == VK_MM_GLU && c->f.after->u.glu.act == DL_ACT_GELU ? "_gelu" : "");
    else
        snprintf(to, sizeof to, "%u", (unsigned)c->f.n_parts);
    snprintf(out, size, "fuse_%s_%s_%s%s", kinds[c->f.kind], word, to, bias ? "_bias" : "");
}

/* What of the neighbours this dispatch takes, where it is one dispatch; `word` names the kernel of the matrix alone. */
static int take_along(struct call *c, const struct dl_op *ops, uint32_t n, const char *word)
{
    const struct vk_caps *caps = &c->l->ctx->caps;
    const uint32_t slots = c->moe ? ops->u.moe.k : 1, rows = DL_MIN(vk_rows(c->l, ops), ops->dst.rows);
    const uint32_t planes = dl_type_quantised(ops->src[1].type) ? 2 : 1;
    char fused[96];
    int answer = 0;
    c->f = vk_mm_match(ops, n);
    bool fits = c->f.n_ops > 1 && vk_mm_fit(caps, c->v, c->cols, &c->f);
    for (uint32_t i = 0; fits && i < c->f.n_parts; i++)
        fits = whole(c, &c->f.part[i]->src[1]);
    /* Batch, activations, results, bias or route; the second GLU result or the residual; what is converted. */
    const uint32_t binds = 1u + (planes == 2 ? 3u : 1u) + 1u + c->f.n_parts * (planes + 1) + (c->f.kind ? 4u : 0u);
    fits = fits && binds <= DL_MIN(caps->max_binds, VK_BINDS) && row_groups(c, ops->dst.cols) <= caps->max_groups[0] &&
           dl_div_up(rows, group_cols(c)) <= caps->max_groups[1] && slots <= rows;
    if (fits) {
        fused_word(c, word, fused, sizeof fused);
        answer = vk_tune_fuse(c->l, fused, ops, c->f.n_ops, word, c->v->name);
    }
    if (answer)
        return DL_MIN(answer, 0);
    c->f = vk_mm_match(ops, 1);
    (void)vk_mm_fit(caps, c->v, c->cols, &c->f);
    return 0;
}

int vk_lower_matmul(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    const struct vk_caps *caps = &l->ctx->caps;
    const struct dl_view *w = &ops->src[1];
    const uint32_t tokens = DL_MIN(vk_rows(l, ops), ops->dst.rows);
    struct vk_mm_variant all[VK_MM_VARIANTS];
    char word[32];
    struct call c = {.l = l, .op = ops, .cols = 1};
    while (c.cols < tokens && c.cols < VK_MM_VEC_COLS)
        c.cols *= 2;
    bool vec = tokens <= VK_MM_VEC_COLS;
    uint32_t n_all = vec ? vk_mm_vec_variants(caps, w->type, w->cols, tokens, all)
                         : vk_mm_many_variants(caps, w->type, w->cols, tokens, all);
    int at = choose(l, ops, vec ? "matvec" : "matmul", all, n_all, word);
    if (at < 0)
        return at;
    c.v = &all[at];
    int err = take_along(&c, ops, n, word);
    if (!err)
        err = dispatches(&c);
    return err ? err : (int)c.f.n_ops;
}

int vk_lower_moe_matmul(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    struct vk_mm_variant all[VK_MM_VARIANTS];
    char word[32];
    struct call c = {.l = l, .op = ops, .moe = true, .cols = 1};
    uint32_t n_all = vk_mm_vec_variants(&l->ctx->caps, ops->src[1].type, ops->src[1].cols, 1, all);
    int at = choose(l, ops, "moe_matvec", all, n_all, word);
    if (at < 0)
        return at;
    c.v = &all[at];
    int err = take_along(&c, ops, n, word);
    if (!err)
        err = dispatches(&c);
    return err ? err : (int)c.f.n_ops;
}
