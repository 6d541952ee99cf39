/* SPDX-License-Identifier: MIT
 *
 * lower_heads.c: ROPE and KV_STORE; a ROPE in place that is followed by the two KV_STOREs of its layer is one kernel (rope_kv.comp).
 */
#include "kernels.h"

#include <stdio.h>

#include "tune.h"

/* All of a head lies in one workgroup. */
bool vk_supports_heads(const struct vk_ctx *c, const struct dl_op *op)
{
    (void)c;
    bool rope = op->code == DL_OP_ROPE;
    uint32_t head_dim = rope ? op->u.rope.head_dim : op->u.kv.head_dim;
    enum dl_type to = op->dst.type;
    return head_dim <= VK_LANES * VK_LANE_VALUES && op->src[0].type == DL_F32 &&
           (rope ? to == DL_F32 && op->src[1].type == DL_F32 : to == DL_F32 || to == DL_F16 || to == DL_Q80);
}

/* The push block of rope_kv.comp. */
struct heads_push {
    uint32_t mult, heads, head_dim, n_rot, n_kv, k_first, angles_at, angles_stride, src_at, src_stride, dst_at,
        dst_stride;
    uint32_t v_from, k_at[VK_PLANES], v_at[VK_PLANES], kv_stride;
};

static struct vk_dispatch *begin(struct vk_lower *l, const struct dl_op *op, const struct dl_op *rope,
                                 const struct dl_op *kv)
{
    struct vk_dispatch *d = vk_dispatch_op(l, "rope_kv.comp", op);
    if (!d)
        return NULL;
    d->n_push = 0;
    vk_define(d, "ROPE", rope != NULL);
    vk_define(d, "BOTH", rope && kv);
    if (rope)
        vk_define(d, "HALVES", rope->u.rope.layout == DL_ROPE_HALVES);
    if (kv)
        vk_define(d, "KV", vk_form_of(l, &kv->dst));
    return d;
}

static void end(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *op, const struct heads_push *p,
                uint32_t slots)
{
    const uint32_t words[] = {p->mult,    p->heads,      p->head_dim,      p->n_rot,   p->n_kv,
                              p->k_first, p->angles_at,  p->angles_stride, p->src_at,  p->src_stride,
                              p->dst_at,  p->dst_stride, p->v_from,        p->k_at[0], p->k_at[1],
                              p->k_at[2], p->v_at[0],    p->v_at[1],       p->v_at[2], p->kv_stride};
    for (size_t i = 0; i < DL_COUNT_OF(words); i++)
        vk_push(d, words[i]);
    uint32_t per_group = VK_LANES / (uint32_t)dl_div_up(p->head_dim, VK_LANE_VALUES);
    vk_groups(l, d, dl_div_up((uint64_t)vk_rows(l, op) * slots, per_group));
    d->work = (uint64_t)vk_rows(l, op) * slots * p->head_dim;
}

static int bind_angles(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *rope, struct heads_push *p)
{
    struct vk_bound angles;
    int err = vk_bind_view(l, d, &rope->src[1], vk_rows(l, rope), 1, &angles);
    p->angles_at = angles.at[0];
    p->angles_stride = angles.stride;
    p->heads = rope->dst.cols / rope->u.rope.head_dim;
    p->head_dim = rope->u.rope.head_dim;
    p->n_rot = rope->u.rope.n_rot;
    return err;
}

/* The whole cache; `at` is k_at or v_at. */
static int bind_cache(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *store, uint32_t *at,
                      uint32_t *stride)
{
    struct vk_bound cache;
    uint32_t planes = vk_form_of(l, &store->dst) == VK_FORM_PLANES ? VK_PLANES : 1;
    int err = vk_bind_view(l, d, &store->dst, store->dst.rows, planes, &cache);
    for (uint32_t i = 0; i < VK_PLANES; i++)
        at[i] = cache.at[i];
    *stride = cache.stride;
    return err;
}

/* Rows of the chunk that starts at `first` of a cache that no descriptor holds whole. */
static int bind_chunk(struct vk_lower *l, struct vk_dispatch *d, const struct dl_op *store, uint32_t first,
                      struct heads_push *p)
{
    const struct vk_buf *b = l->bufs[store->dst.buf];
    const uint32_t rows = DL_MIN(b->chunk_rows, store->dst.rows - first), unit = store->dst.type == DL_F32 ? 4 : 2;
    bool planes = vk_form_of(l, &store->dst) == VK_FORM_PLANES;
    p->kv_stride = planes ? store->dst.cols / DL_BLOCK : (uint32_t)(b->plane_row[0] / unit);
    for (uint32_t i = 0; i < (planes ? VK_PLANES : 1); i++) {
        uint32_t skip;
        int err = vk_bind_rows(l, d, b, i, first, rows, &skip);
        if (err)
            return err;
    }
    vk_define(d, "CHUNKED", 1);
    return 0;
}

/* What lies where in the common buffer: the k heads among those that are turned, the v heads behind or before them. */
static bool one_kernel(const struct dl_op *ops, uint32_t n)
{
    if (n < 3 || ops[1].code != DL_OP_KV_STORE || ops[2].code != DL_OP_KV_STORE)
        return false;
    const struct dl_op *rope = &ops[0], *k = &ops[1], *v = &ops[2];
    const struct dl_view *x = &rope->dst, *xk = &k->src[0], *xv = &v->src[0], *in = &rope->src[0];
    uint32_t head_dim = rope->u.rope.head_dim;
    uint64_t head_bytes = 4 * (uint64_t)head_dim, row = 4 * (uint64_t)x->cols;
    bool in_place = in->buf == x->buf && in->offset == x->offset && in->row_bytes == x->row_bytes;
    bool same_buf =
        xk->buf == x->buf && xv->buf == x->buf && xk->row_bytes == x->row_bytes && xv->row_bytes == x->row_bytes;
    bool alike = k->count == rope->count && v->count == rope->count && k->mult == 1 && v->mult == 1 &&
                 rope->mult == 1 && k->u.kv.head_dim == head_dim && v->u.kv.head_dim == head_dim &&
                 k->u.kv.n_kv_heads == v->u.kv.n_kv_heads && k->dst.type == v->dst.type &&
                 k->dst.row_bytes == v->dst.row_bytes && k->dst.buf != v->dst.buf;
    return in_place && same_buf && alike && xk->offset >= x->offset &&
           xk->offset + 4 * (uint64_t)xk->cols <= x->offset + row && (xk->offset - x->offset) % head_bytes == 0 &&
           xv->offset >= x->offset + row && xv->offset + 4 * (uint64_t)xv->cols <= x->offset + x->row_bytes;
}

static int lower_both(struct vk_lower *l, const struct dl_op *ops)
{
    const struct dl_op *rope = &ops[0], *k = &ops[1], *v = &ops[2];
    struct heads_push p = {.mult = 1, .n_kv = k->u.kv.n_kv_heads};
    struct vk_dispatch *d = begin(l, rope, rope, k);
    if (!d)
        return DL_ENOMEM;
    struct dl_view all = rope->dst; /* q, k and v */
    struct vk_bound x;
    all.cols = (uint32_t)((v->src[0].offset - all.offset) / 4) + v->src[0].cols;
    int err = bind_angles(l, d, rope, &p);
    if (!err)
        err = vk_bind_view(l, d, &all, vk_rows(l, rope), 1, &x);
    if (!err)
        err = bind_cache(l, d, k, p.k_at, &p.kv_stride);
    if (!err)
        err = bind_cache(l, d, v, p.v_at, &p.kv_stride);
    if (err)
        return err;
    p.src_at = x.at[0];
    p.src_stride = x.stride;
    p.k_first = (uint32_t)((k->src[0].offset - all.offset) / (4 * (uint64_t)p.head_dim));
    p.v_from = (uint32_t)((v->src[0].offset - all.offset) / 4);
    end(l, d, rope, &p, p.heads + p.n_kv);
    return 3;
}

/* ... and whether the device makes it right. */
static int both(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    if (!one_kernel(ops, n) || vk_form_of(l, &ops[1].dst) != vk_form_of(l, &ops[2].dst) ||
        vk_cache_rows(l, &ops[1].dst) != ops[1].dst.rows || vk_cache_rows(l, &ops[2].dst) != ops[2].dst.rows)
        return 0;
    char word[64];
    snprintf(word, sizeof word, "fuse_rope_stores_%s%s", vk_form_name(vk_form_of(l, &ops[1].dst)),
             ops->u.rope.layout == DL_ROPE_HALVES ? "_halves" : "");
    return vk_tune_fuse(l, word, ops, 3, "", "one");
}

int vk_lower_rope(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    int one = both(l, ops, n);
    if (one)
        return one < 0 ? one : lower_both(l, ops);
    const struct dl_op *op = &ops[0];
    struct heads_push p = {.mult = op->mult};
    struct vk_dispatch *d = begin(l, op, op, NULL);
    struct vk_bound src, dst;
    if (!d)
        return DL_ENOMEM;
    int err = bind_angles(l, d, op, &p);
    if (!err)
        err = vk_bind_view(l, d, &op->src[0], vk_rows(l, op), 1, &src);
    if (!err)
        err = vk_bind_view(l, d, &op->dst, vk_rows(l, op), 1, &dst);
    if (err)
        return err;
    p.src_at = src.at[0];
    p.src_stride = src.stride;
    p.dst_at = dst.at[0];
    p.dst_stride = dst.stride;
    end(l, d, op, &p, p.heads);
    return 1;
}

static int store(struct vk_lower *l, const struct dl_op *op, bool chunked, uint32_t first)
{
    struct heads_push p = {.mult = op->mult, .heads = op->u.kv.n_kv_heads, .head_dim = op->u.kv.head_dim};
    p.n_kv = p.heads;
    struct vk_dispatch *d = begin(l, op, NULL, op);
    struct vk_bound src;
    if (!d)
        return DL_ENOMEM;
    int err = vk_bind_view(l, d, &op->src[0], vk_rows(l, op), 1, &src);
    if (!err)
        err = chunked ? bind_chunk(l, d, op, first, &p) : bind_cache(l, d, op, p.k_at, &p.kv_stride);
    if (err)
        return err;
    p.src_at = src.at[0];
    p.src_stride = src.stride;
    end(l, d, op, &p, p.heads);
    if (chunked) {
        vk_push(d, first);
        vk_push(d, DL_MIN(l->bufs[op->dst.buf]->chunk_rows, op->dst.rows - first));
    }
    return 0;
}

int vk_lower_kv_store(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    (void)n;
    const struct dl_op *op = &ops[0];
    const uint32_t step = vk_cache_rows(l, &op->dst);
    for (uint32_t first = 0; first < op->dst.rows; first += DL_MIN(step, op->dst.rows - first)) {
        int err = store(l, op, step < op->dst.rows, first);
        if (err)
            return err;
    }
    return 1;
}
