/* SPDX-License-Identifier: MIT
 *
 * engine/base/op_check.c: is one op what dl/op.h says it may be? Shapes, types, view bounds, buffer uses, aliasing. Back-ends
 * and plan_check.c rely on it, so that kernels need not check anything.
 */
#include "dl/op.h"

struct check {
    const struct dl_op *op;
    const struct dl_buf_desc *bufs;
    uint32_t n_bufs, rows; /* rows of dst in the largest batch */
    int err;
};

static void need(struct check *c, bool ok, const char *why)
{
    if (ok || c->err)
        return;
    const char *name = c->op->name ? c->op->name : "?";
    c->err = dl_fail(DL_EINVAL, "plan: op %s (%s): %s", name, dl_op_name(c->op->code), why);
}

#define TYPE(t) (1u << (t))
#define FLOATS (TYPE(DL_F32) | TYPE(DL_F16) | TYPE(DL_BF16))
#define USE(u) (1u << (u))
#define READABLE (USE(DL_BUF_ACT) | USE(DL_BUF_INPUT))
#define WRITABLE (USE(DL_BUF_ACT) | USE(DL_BUF_OUTPUT))

static bool inside(const struct check *c, const struct dl_view *v)
{
    if (v->buf >= c->n_bufs || !dl_type_info(v->type) || !v->rows || !v->cols)
        return false;
    uint64_t row, span, block = dl_type_info(v->type)->block_bytes;
    const struct dl_buf_desc *b = &c->bufs[v->buf];
    return b->type == v->type && dl_row_bytes(v->type, v->cols, &row) && v->row_bytes >= row &&
           v->row_bytes % block == 0 && v->offset % block == 0 && dl_mul_u64(v->rows - 1, v->row_bytes, &span) &&
           dl_add_u64(span, row, &span) && dl_add_u64(span, v->offset, &span) && span <= b->bytes;
}

/* One view: in bounds, of an allowed type and buffer use, with this shape. */
static void view(struct check *c, const struct dl_view *v, unsigned types, unsigned uses, uint32_t rows, uint32_t cols,
                 const char *why)
{
    need(c, inside(c, v), "a view is empty, outside its buffer, off block borders, or of another type than it");
    if (c->err)
        return;
    need(c, types & TYPE(v->type), "a view's type has no kernel");
    need(c, uses & USE(c->bufs[v->buf].use), "a buffer may not be used this way");
    need(c, v->rows == rows && v->cols == cols, why);
}

/* dst may share a source's bytes only as exactly the same view. */
static void no_alias(struct check *c, uint32_t src, bool same_allowed)
{
    const struct dl_view *d = &c->op->dst, *s = &c->op->src[src];
    bool same = d->buf == s->buf && d->offset == s->offset && d->row_bytes == s->row_bytes && d->type == s->type &&
                d->cols == s->cols;
    if (same && same_allowed)
        return;
    struct dl_op writer = {.code = DL_OP_ADD, .dst = *d}, reader = {.code = DL_OP_ADD, .src = {*s}};
    for (int i = 0; i < 3; i++)
        writer.src[i].buf = DL_NO_BUF;
    reader.dst.buf = reader.src[1].buf = reader.src[2].buf = DL_NO_BUF;
    need(c, !dl_op_conflict(&writer, &reader), "dst overlaps a source");
}

/* The activation type that goes with a weight type. */
static bool goes_with(enum dl_type weight, enum dl_type act)
{
    return act == (dl_type_quantised(weight) ? DL_Q80 : DL_F32);
}

static void matmul(struct check *c)
{
    const struct dl_op *op = c->op;
    const struct dl_view *w = &op->src[1];
    view(c, &op->dst, TYPE(DL_F32), WRITABLE, c->rows, op->dst.cols, "dst must have a row per token");
    view(c, &op->src[0], TYPE(DL_F32) | TYPE(DL_Q80), READABLE, c->rows, w->cols, "src0 must be (tokens, in)");
    view(c, w, FLOATS | TYPE(DL_Q40) | TYPE(DL_Q80), USE(DL_BUF_WEIGHT), op->dst.cols, op->src[0].cols,
         "src1 must be (out, in)");
    need(c, goes_with(w->type, op->src[0].type), "quantised weights go with Q80 activations, float weights with F32");
    if (op->src[2].buf != DL_NO_BUF) {
        view(c, &op->src[2], TYPE(DL_F32), USE(DL_BUF_WEIGHT), 1, op->dst.cols, "bias must be (1, out)");
        no_alias(c, 2, false);
    }
    no_alias(c, 0, false);
}

static void moe_matmul(struct check *c)
{
    const struct dl_op *op = c->op;
    const struct dl_view *w = &op->src[1];
    uint32_t k = op->u.moe.k, tokens = k ? c->rows / k : 0;
    need(c, k && op->u.moe.n_experts && k <= op->u.moe.n_experts && op->mult == k, "k experts of n, mult = k");
    view(c, &op->dst, TYPE(DL_F32), WRITABLE, c->rows, op->dst.cols, "dst must have a row per token and slot");
    view(c, &op->src[0], TYPE(DL_F32) | TYPE(DL_Q80), READABLE, op->u.moe.shared_src ? tokens : c->rows, w->cols,
         "src0 must be (tokens or tokens * k, in)");
    need(c, c->err || (uint64_t)op->dst.cols * op->u.moe.n_experts == w->rows, "src1 must be (experts * out, in)");
    view(c, w, FLOATS | TYPE(DL_Q40) | TYPE(DL_Q80), USE(DL_BUF_WEIGHT), w->rows, op->src[0].cols,
         "src1 must be (experts * out, in)");
    need(c, goes_with(w->type, op->src[0].type), "quantised weights go with Q80 activations, float weights with F32");
    view(c, &op->src[2], TYPE(DL_F32), READABLE, tokens, 2 * k, "route must be (tokens, 2 k)");
    no_alias(c, 0, false);
    no_alias(c, 2, false);
}

static void attention(struct check *c)
{
    const struct dl_op *op = c->op;
    uint32_t hd = op->u.attn.head_dim, heads = op->u.attn.n_heads, kv = op->u.attn.n_kv_heads;
    uint64_t cols = (uint64_t)heads * hd;
    need(c, hd && heads && kv && op->u.attn.group, "sizes must not be zero");
    need(c,
         c->err || (op->u.attn.first_head < op->u.attn.group &&
                    (uint64_t)op->u.attn.first_head + heads <= (uint64_t)kv * op->u.attn.group),
         "query heads must map to KV heads that are there");
    need(c, cols == op->dst.cols, "cols must be n_heads * head_dim");
    view(c, &op->dst, TYPE(DL_F32), WRITABLE, c->rows, op->dst.cols, "dst must have a row per token");
    view(c, &op->src[0], TYPE(DL_F32), READABLE, c->rows, op->dst.cols, "src0 must be as dst");
    for (int i = 1; i <= 2; i++)
        view(c, &op->src[i], TYPE(DL_F32) | TYPE(DL_F16) | TYPE(DL_Q80), USE(DL_BUF_KV), op->src[i].rows, hd,
             "K and V must be (blocks * n_kv * 32, head_dim)");
    need(c,
         c->err || (op->src[1].rows == op->src[2].rows && op->src[1].type == op->src[2].type &&
                    op->src[1].rows % ((uint64_t)kv * DL_KV_BLOCK) == 0),
         "K and V must be alike, in whole blocks");
    no_alias(c, 0, false);
}

static void elementwise(struct check *c, unsigned dst_types, unsigned src_types, uint32_t n_src, unsigned same)
{
    const struct dl_op *op = c->op;
    view(c, &op->dst, dst_types, WRITABLE | USE(DL_BUF_WIRE), c->rows, op->dst.cols, "dst must have a row per token");
    for (uint32_t i = 0; i < n_src; i++) {
        view(c, &op->src[i], src_types, READABLE, c->rows, op->dst.cols, "sources must have dst's shape");
        no_alias(c, i, same >> i & 1);
    }
}

static void convert(struct check *c)
{
    const struct dl_op *op = c->op;
    const struct dl_view *s = op->src, *d = &op->dst;
    need(c, s[0].type == DL_F32 || d->type == DL_F32 || d->type == s[0].type, "no kernel between these types");
    elementwise(c, FLOATS | TYPE(DL_Q80) | TYPE(DL_Q120), TYPE(DL_F32) | TYPE(DL_F16), 1, 0);
    need(c, c->err || d->type != DL_Q120 || c->bufs[d->buf].use == DL_BUF_WIRE, "only wires hold Q120");
    if (s[1].buf == DL_NO_BUF)
        return;
    need(c, s[0].type == DL_F32 && (d->type == DL_Q80 || d->type == DL_Q120),
         "only what F32 loses as Q80 or Q120 is carried");
    view(c, &s[1], TYPE(DL_F32), USE(DL_BUF_ACT), c->rows, d->cols, "src1 must have dst's shape");
    no_alias(c, 1, false);
    struct dl_op carry = {.code = DL_OP_ADD, .dst = s[1]}, reader = {.code = DL_OP_ADD, .dst = *d, .src = {s[0]}};
    for (int i = 0; i < 3; i++)
        carry.src[i].buf = DL_NO_BUF;
    reader.src[1].buf = reader.src[2].buf = DL_NO_BUF;
    need(c, c->err || !dl_op_conflict(&carry, &reader), "src1 overlaps src0");
}

static void route(struct check *c)
{
    const struct dl_op *op = c->op;
    uint32_t k = op->u.moe.k;
    need(c, k && k <= op->u.moe.n_experts, "k experts of n");
    view(c, &op->dst, TYPE(DL_F32), WRITABLE, c->rows, 2 * k, "route must be (tokens, 2 k)");
    view(c, &op->src[0], TYPE(DL_F32), READABLE, c->rows, op->u.moe.n_experts, "src0 must be (tokens, experts)");
    no_alias(c, 0, false);
}

static void moe_sum(struct check *c)
{
    const struct dl_op *op = c->op;
    uint32_t k = op->u.moe.k;
    need(c, k && (uint64_t)c->rows * k <= UINT32_MAX, "k experts of n");
    view(c, &op->dst, TYPE(DL_F32), WRITABLE, c->rows, op->dst.cols, "dst must have a row per token");
    view(c, &op->src[0], TYPE(DL_F32), READABLE, c->rows * k, op->dst.cols, "src0 must be (tokens * k, cols)");
    view(c, &op->src[1], TYPE(DL_F32), READABLE, c->rows, 2 * k, "route must be (tokens, 2 k)");
    no_alias(c, 0, false);
    no_alias(c, 1, false);
}

static void merge(struct check *c)
{
    const struct dl_op *op = c->op;
    const struct dl_view *w = &op->src[1];
    elementwise(c, TYPE(DL_F32), TYPE(DL_F32), 1, 1);
    view(c, w, TYPE(DL_F32) | TYPE(DL_F16) | TYPE(DL_Q80) | TYPE(DL_Q120), USE(DL_BUF_WIRE), c->rows, op->dst.cols,
         "src1 must be slice 0 of a wire buffer");
    if (c->err)
        return;
    uint64_t row = 0, span = 0, slices = op->u.merge.n_slices;
    need(c,
         slices && dl_row_bytes(w->type, w->cols, &row) && dl_mul_u64(slices - 1, op->u.merge.slice_bytes, &span) &&
             dl_add_u64(span, w->offset + (w->rows - 1) * w->row_bytes + row, &span) && span <= c->bufs[w->buf].bytes &&
             op->u.merge.slice_bytes % dl_type_info(w->type)->block_bytes == 0,
         "slices must lie inside the wire buffer");
}

int dl_op_check(const struct dl_op *op, const struct dl_buf_desc *bufs, uint32_t n_bufs, uint32_t max_tokens,
                uint32_t max_out)
{
    struct check c = {.op = op, .bufs = bufs, .n_bufs = n_bufs};
    need(&c, (unsigned)op->code < DL_OP_COUNT, "unknown opcode");
    need(&c, op->count == DL_COUNT_TOKENS || op->count == DL_COUNT_OUT, "unknown row count");
    uint64_t rows = (uint64_t)(op->count == DL_COUNT_OUT ? max_out : max_tokens) * op->mult;
    need(&c, rows && rows <= UINT32_MAX, "rows must be 1 .. 2^32 - 1");
    if (c.err)
        return c.err;
    c.rows = (uint32_t)rows;
    const struct dl_view *d = &op->dst, *s = op->src;
    switch (op->code) {
    case DL_OP_CONVERT:
        convert(&c);
        break;
    case DL_OP_RMS_NORM:
        need(&c, op->u.norm.group && d->cols % op->u.norm.group == 0 && op->u.norm.eps >= 0,
             "cols must be whole groups, eps >= 0");
        elementwise(&c, TYPE(DL_F32) | TYPE(DL_Q80), TYPE(DL_F32), 1, 1);
        view(&c, &s[1], TYPE(DL_F32), USE(DL_BUF_WEIGHT), 1, op->u.norm.group, "src1 must be (1, group)");
        break;
    case DL_OP_MATMUL:
        matmul(&c);
        break;
    case DL_OP_ROPE:
        need(&c,
             op->u.rope.head_dim && d->cols % op->u.rope.head_dim == 0 && op->u.rope.n_rot &&
                 op->u.rope.n_rot % 2 == 0 && op->u.rope.n_rot <= op->u.rope.head_dim,
             "cols must be whole heads, n_rot even and at most head_dim");
        elementwise(&c, TYPE(DL_F32), TYPE(DL_F32), 1, 1);
        view(&c, &s[1], TYPE(DL_F32), READABLE, c.rows, op->u.rope.n_rot, "src1 must be (tokens, n_rot)");
        no_alias(&c, 1, false);
        break;
    case DL_OP_KV_STORE:
        need(&c,
             op->u.kv.n_kv_heads && op->u.kv.head_dim && (uint64_t)op->u.kv.n_kv_heads * op->u.kv.head_dim == s[0].cols,
             "cols must be n_kv_heads * head_dim");
        view(&c, &s[0], TYPE(DL_F32), READABLE, c.rows, s[0].cols, "src0 must have a row per token");
        view(&c, d, TYPE(DL_F32) | TYPE(DL_F16) | TYPE(DL_Q80), USE(DL_BUF_KV), d->rows, op->u.kv.head_dim,
             "dst must be (blocks * n_kv * 32, head_dim)");
        need(&c, c.err || d->rows % ((uint64_t)op->u.kv.n_kv_heads * DL_KV_BLOCK) == 0, "dst must be whole blocks");
        break;
    case DL_OP_ATTENTION:
        attention(&c);
        break;
    case DL_OP_GLU:
        need(&c, op->u.glu.act == DL_ACT_SILU || op->u.glu.act == DL_ACT_GELU, "unknown activation function");
        elementwise(&c, TYPE(DL_F32) | TYPE(DL_Q80), TYPE(DL_F32), 2, 1);
        break;
    case DL_OP_ADD:
        elementwise(&c, TYPE(DL_F32), TYPE(DL_F32), 2, 3);
        break;
    case DL_OP_MERGE:
        merge(&c);
        break;
    case DL_OP_GATHER_ROWS:
        need(&c, op->count == DL_COUNT_OUT && op->mult == 1, "count must be OUT");
        view(&c, d, TYPE(DL_F32), WRITABLE, c.rows, d->cols, "dst must have a row per wanted token");
        view(&c, &s[0], TYPE(DL_F32), READABLE, max_tokens, d->cols, "src0 must have a row per token");
        no_alias(&c, 0, false);
        break;
    case DL_OP_MOE_ROUTE:
        route(&c);
        break;
    case DL_OP_MOE_MATMUL:
        moe_matmul(&c);
        break;
    case DL_OP_MOE_SUM:
        moe_sum(&c);
        break;
    case DL_OP_COUNT:
        break;
    }
    return c.err;
}
