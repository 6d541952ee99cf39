/* SPDX-License-Identifier: MIT
 *
 * engine/model/plan.c: from (header, tensor types, slices) to the plan that one node runs. Pure, so that every node builds its own.
 *
 * One layer is two segments. A: (merge) norm, q|k|v, (q/k norm) rope, KV write, attention, wo. B: (merge) norm, FFN. With more than one
 * slice each ends in an exchange of quantised partial sums, which the next segment merges; alone, the partial is added at once. All families
 * that are supported differ only in optional parts: biases, q/k norms, experts.
 */
#include "plan_build.h"

#include <math.h>
#include <stdlib.h>

/* Upper bounds per layer and lane, for arrays that are made once. A sum in two stages has more ops, by the number of nodes. */
#define OPS_PER_LAYER 32u
#define BUFS_PER_LAYER 24u
#define STEPS_PER_LAYER 8u
#define LANE_LEAST 16u /* tokens of each from which on two lanes pay */
#define EXTRA 64u
#define NAME_BYTES 40u

static enum dl_type type_of(const struct eng_builder *b, enum dl_tensor_id id)
{
    if (id == DL_T_OUTPUT)
        return b->types->output;
    return dl_tensor_per_layer(id) ? b->types->layer[(size_t)b->layer * DL_T_COUNT + id] : DL_F32;
}

/* A weight buffer that holds rows x cols of a tensor (of each of its experts). */
static struct dl_view weight(struct eng_builder *b, enum dl_tensor_id id, uint32_t row0, uint32_t rows, uint32_t col0,
                             uint32_t cols)
{
    bool moe = id == DL_T_MOE_GATE || id == DL_T_MOE_UP || id == DL_T_MOE_DOWN;
    for (uint32_t i = b->out->n_weights; b->lane && i-- > 0;) /* the lanes share it */
        if (b->out->weights[i].id == id && b->out->weights[i].layer == b->layer)
            return whole(b, b->out->weights[i].buf);
    const char *name =
        dl_tensor_per_layer(id) ? keep_name(b, "blk.%u.%s", b->layer, dl_tensor_name(id)) : dl_tensor_name(id);
    uint32_t buf = add_buf(b, name, DL_BUF_WEIGHT, type_of(b, id), (uint64_t)rows * (moe ? b->h->n_experts : 1), cols);
    b->out->weights[b->out->n_weights++] = (struct dl_weight){buf, id, b->layer, row0, rows, col0, cols};
    return whole(b, buf);
}

static void norm(struct eng_builder *b, const char *what, struct dl_view dst, struct dl_view src, struct dl_view w)
{
    struct dl_op *op = add_op(b, DL_OP_RMS_NORM, what, dst, src);
    op->src[1] = w;
    op->u.norm.eps = b->h->norm_eps;
    op->u.norm.group = w.cols;
}

static void matmul(struct eng_builder *b, const char *what, struct dl_view dst, uint32_t a32, uint32_t a80,
                   struct dl_view w, struct dl_view bias)
{
    struct dl_op *op = add_op(b, DL_OP_MATMUL, what, dst, whole(b, dl_type_quantised(w.type) ? a80 : a32));
    op->src[1] = w;
    op->src[2] = bias;
}

/* This node's part of the sum `which`; what is computed first goes first. */
static void partial(struct eng_builder *b, unsigned which, const char *what, uint32_t a32, uint32_t a80,
                    struct dl_view w)
{
    const uint32_t half = eng_plan_half(b, which);
    struct dl_view part = whole(b, b->part);
    if (half) {
        struct dl_view first = w;
        first.rows = half;
        matmul(b, what, columns(part, 0, half), a32, a80, first, no_view);
        eng_plan_give_half(b, which);
        part = columns(part, half, b->h->dim - half);
        w.offset += w.row_bytes * half;
        w.rows -= half;
    }
    matmul(b, what, part, a32, a80, w, no_view);
    eng_plan_give(b, which, true);
}

/* Norm of `src` into the types that weights of these ids want: 1 = f32, 2 = q80. */
static unsigned wants(const struct eng_builder *b, const enum dl_tensor_id *ids, size_t n)
{
    unsigned m = 0;
    for (size_t i = 0; i < n; i++)
        m |= dl_type_quantised(type_of(b, ids[i])) ? 2u : 1u;
    return m;
}

static void attention(struct eng_builder *b)
{
    const struct dl_model_header *h = b->h;
    const struct dl_slice *s = b->slice;
    const uint32_t hd = h->head_dim, q = b->q_cols, kv = b->kv_cols, rows_kv = b->opts->kv_blocks * DL_KV_BLOCK;
    const enum dl_tensor_id ids[] = {DL_T_ATTN_Q, DL_T_ATTN_K, DL_T_ATTN_V};
    const uint32_t col[] = {0, q, q + kv}, cols[] = {q, kv, kv}, row[] = {s->head0 * hd, s->kv0 * hd, s->kv0 * hd};
    static const char *const what[] = {"attn_q", "attn_k", "attn_v"};

    eng_plan_take(b);
    if (!s->n_heads) {
        eng_plan_give(b, ENG_SUM_ATTN, false);
        return;
    }
    const struct dl_view x = lane_rows(b, b->x), qkv = whole(b, b->qkv);
    struct dl_view norm_w = weight(b, DL_T_ATTN_NORM, 0, 1, 0, h->dim);
    unsigned want = wants(b, ids, 3);
    if (want & 1)
        norm(b, "attn_norm", whole(b, b->h32), x, norm_w);
    if (want & 2)
        norm(b, "attn_norm_q80", whole(b, b->h80), x, norm_w);
    for (uint32_t i = 0; i < 3; i++) {
        struct dl_view w = weight(b, ids[i], row[i], cols[i], 0, h->dim), bias = no_view;
        if (h->qkv_bias)
            bias = weight(b, (enum dl_tensor_id)(DL_T_ATTN_Q_BIAS + (int)i), 0, 1, row[i], cols[i]);
        matmul(b, what[i], columns(qkv, col[i], cols[i]), b->h32, b->h80, w, bias);
    }
    struct dl_view qv = columns(qkv, 0, q), kvw = columns(qkv, q, kv), vv = columns(qkv, q + kv, kv);
    if (h->qk_norm) {
        norm(b, "attn_q_norm", qv, qv, weight(b, DL_T_ATTN_Q_NORM, 0, 1, 0, hd));
        norm(b, "attn_k_norm", kvw, kvw, weight(b, DL_T_ATTN_K_NORM, 0, 1, 0, hd));
    }
    struct dl_view turned = columns(qkv, 0, q + kv); /* q and k side by side: one rope */
    struct dl_op *op = add_op(b, DL_OP_ROPE, "rope", turned, turned);
    op->src[1] = lane_rows(b, b->out->rope_buf);
    op->u.rope.head_dim = hd;
    op->u.rope.n_rot = h->n_rot;
    op->u.rope.layout = h->rope_layout;

    struct dl_view cache[2];
    for (int i = 0; i < 2; i++) {
        uint64_t rows = (uint64_t)rows_kv * s->n_kv_heads;
        if (!b->lane)
            b->kv[i] = add_buf(b, keep_name(b, "blk.%u.cache_%c", b->layer, i ? 'v' : 'k'), DL_BUF_KV, b->opts->kv_type,
                               rows, hd);
        cache[i] = whole(b, b->kv[i]);
        op = add_op(b, DL_OP_KV_STORE, i ? "v_store" : "k_store", cache[i], i ? vv : kvw);
        op->u.kv.n_kv_heads = s->n_kv_heads;
        op->u.kv.head_dim = hd;
    }
    op = add_op(b, DL_OP_ATTENTION, "attention", whole(b, b->att32), qv);
    op->src[1] = cache[0];
    op->src[2] = cache[1];
    op->u.attn.n_heads = s->n_heads;
    op->u.attn.n_kv_heads = s->n_kv_heads;
    op->u.attn.head_dim = hd;
    op->u.attn.group = h->n_heads / h->n_kv_heads;
    op->u.attn.first_head = s->head0 - s->kv0 * op->u.attn.group;
    op->u.attn.scale = (float)(1.0 / sqrt((double)hd));

    struct dl_view wo = weight(b, DL_T_ATTN_OUT, 0, h->dim, s->head0 * hd, q);
    if (dl_type_quantised(wo.type))
        add_op(b, DL_OP_CONVERT, "attention_q80", whole(b, b->att80), whole(b, b->att32));
    partial(b, ENG_SUM_ATTN, "attn_output", b->att32, b->att80, wo);
}

static void glu(struct eng_builder *b, uint32_t dst, uint32_t mult)
{
    struct dl_op *op = add_op(b, DL_OP_GLU, "ffn_glu", whole(b, dst), whole(b, b->gate));
    op->src[1] = whole(b, b->up);
    op->mult = mult;
    op->u.glu.act = b->h->act;
}

static void ffn_norm(struct eng_builder *b, unsigned want)
{
    struct dl_view w = weight(b, DL_T_FFN_NORM, 0, 1, 0, b->h->dim);
    if (want & 1)
        norm(b, "ffn_norm", whole(b, b->h32), lane_rows(b, b->x), w);
    if (want & 2)
        norm(b, "ffn_norm_q80", whole(b, b->h80), lane_rows(b, b->x), w);
}

static void ffn_dense(struct eng_builder *b)
{
    const struct dl_slice *s = b->slice;
    const enum dl_tensor_id ids[] = {DL_T_FFN_GATE, DL_T_FFN_UP};
    eng_plan_take(b);
    if (!s->n_ffn) {
        eng_plan_give(b, ENG_SUM_FFN, false);
        return;
    }
    ffn_norm(b, wants(b, ids, 2));
    struct dl_view gate = weight(b, DL_T_FFN_GATE, s->ffn0, s->n_ffn, 0, b->h->dim);
    struct dl_view up = weight(b, DL_T_FFN_UP, s->ffn0, s->n_ffn, 0, b->h->dim);
    struct dl_view down = weight(b, DL_T_FFN_DOWN, 0, b->h->dim, s->ffn0, s->n_ffn);
    matmul(b, "ffn_gate", whole(b, b->gate), b->h32, b->h80, gate, no_view);
    matmul(b, "ffn_up", whole(b, b->up), b->h32, b->h80, up, no_view);
    glu(b, dl_type_quantised(down.type) ? b->hb80 : b->hb32, 1);
    partial(b, ENG_SUM_FFN, "ffn_down", b->hb32, b->hb80, down);
}

static void moe_matmul(struct eng_builder *b, const char *what, uint32_t dst, uint32_t a32, uint32_t a80,
                       struct dl_view w, bool shared)
{
    struct dl_op *op =
        add_op(b, DL_OP_MOE_MATMUL, what, whole(b, dst), whole(b, dl_type_quantised(w.type) ? a80 : a32));
    op->src[1] = w;
    op->src[2] = whole(b, b->route);
    op->mult = b->h->n_experts_used;
    op->u.moe.n_experts = b->h->n_experts;
    op->u.moe.k = b->h->n_experts_used;
    op->u.moe.shared_src = shared;
}

/* Experts: every node routes alike and holds its columns of every expert. */
static void ffn_moe(struct eng_builder *b)
{
    const struct dl_model_header *h = b->h;
    const struct dl_slice *s = b->slice;
    const enum dl_tensor_id ids[] = {DL_T_MOE_ROUTER, DL_T_MOE_GATE, DL_T_MOE_UP};
    eng_plan_take(b);
    if (!s->n_ffn) {
        eng_plan_give(b, ENG_SUM_FFN, false);
        return;
    }
    ffn_norm(b, wants(b, ids, 3));
    matmul(b, "ffn_router", whole(b, b->rlogits), b->h32, b->h80,
           weight(b, DL_T_MOE_ROUTER, 0, h->n_experts, 0, h->dim), no_view);
    struct dl_op *op = add_op(b, DL_OP_MOE_ROUTE, "ffn_route", whole(b, b->route), whole(b, b->rlogits));
    op->u.moe.n_experts = h->n_experts;
    op->u.moe.k = h->n_experts_used;
    op->u.moe.renorm = true;
    struct dl_view gate = weight(b, DL_T_MOE_GATE, s->ffn0, s->n_ffn, 0, h->dim);
    struct dl_view up = weight(b, DL_T_MOE_UP, s->ffn0, s->n_ffn, 0, h->dim);
    struct dl_view down = weight(b, DL_T_MOE_DOWN, 0, h->dim, s->ffn0, s->n_ffn);
    moe_matmul(b, "ffn_gate_exps", b->gate, b->h32, b->h80, gate, true);
    moe_matmul(b, "ffn_up_exps", b->up, b->h32, b->h80, up, true);
    glu(b, dl_type_quantised(down.type) ? b->hb80 : b->hb32, h->n_experts_used);
    moe_matmul(b, "ffn_down_exps", b->expert_out, b->hb32, b->hb80, down, false);
    op = add_op(b, DL_OP_MOE_SUM, "ffn_sum", whole(b, b->part), whole(b, b->expert_out));
    op->src[1] = whole(b, b->route);
    op->u.moe.n_experts = h->n_experts;
    op->u.moe.k = h->n_experts_used;
    eng_plan_give(b, ENG_SUM_FFN, true);
}

/* Greedy or not, only rows whose logits are wanted go through the output matrix. Tokens of all lanes are in one buffer, so it is done once, in
 * lane 0, which every batch has. */
static void output(struct eng_builder *b)
{
    const struct dl_slice *s = b->slice;
    for (b->lane = b->plan->n_lanes - 1; b->lane; b->lane--) {
        eng_plan_take(b);
        end_run(b);
    }
    eng_plan_take(b);
    struct dl_view x = whole(b, b->x);
    x.rows = b->plan->max_tokens;
    struct dl_op *op = add_op(b, DL_OP_GATHER_ROWS, "output_rows", whole(b, b->xo), x);
    op->count = DL_COUNT_OUT;
    if (!s->n_vocab)
        return;
    bool q = dl_type_quantised(b->types->output);
    uint32_t first = b->plan->n_ops;
    norm(b, "output_norm", whole(b, q ? b->ho80 : b->ho32), whole(b, b->xo),
         weight(b, DL_T_OUTPUT_NORM, 0, 1, 0, b->h->dim));
    matmul(b, "output", whole(b, b->out->logits_buf), b->ho32, b->ho80,
           weight(b, DL_T_OUTPUT, s->vocab0, s->n_vocab, 0, b->h->dim), no_view);
    for (uint32_t i = first; i < b->plan->n_ops; i++)
        b->plan->ops[i].count = DL_COUNT_OUT;
}

/* Both forms of an activation; Q80 only where a row is whole blocks (quantised weights imply that). */
static void pair(struct eng_builder *b, const char *n32, const char *n80, uint64_t rows, uint32_t cols, uint32_t *b32,
                 uint32_t *b80)
{
    *b32 = add_buf(b, n32, DL_BUF_ACT, DL_F32, rows, cols);
    *b80 = cols % DL_BLOCK ? DL_NO_BUF : add_buf(b, n80, DL_BUF_ACT, DL_Q80, rows, cols);
}

static void add_activations(struct eng_builder *b)
{
    const struct dl_model_header *h = b->h;
    const struct dl_slice *s = b->slice;
    const uint32_t n = b->plan->lane_tokens, n_out = b->opts->max_out;
    const uint64_t slots = (uint64_t)n * (h->n_experts ? h->n_experts_used : 1), all = (uint64_t)n * b->plan->n_lanes;

    b->out->embed_buf = add_buf(b, "embed", DL_BUF_INPUT, DL_F32, all, h->dim);
    b->out->rope_buf = add_buf(b, "rope", DL_BUF_INPUT, DL_F32, all, h->n_rot);
    b->x = add_buf(b, "x", DL_BUF_ACT, DL_F32, all, h->dim);
    b->part = add_buf(b, "partial", DL_BUF_ACT, DL_F32, n, h->dim);
    pair(b, "h", "h_q80", n, h->dim, &b->h32, &b->h80);
    if (s->n_heads) {
        b->qkv = add_buf(b, "qkv", DL_BUF_ACT, DL_F32, n, b->q_cols + 2 * b->kv_cols);
        pair(b, "att", "att_q80", n, b->q_cols, &b->att32, &b->att80);
    }
    if (s->n_ffn) {
        b->gate = add_buf(b, "gate", DL_BUF_ACT, DL_F32, slots, s->n_ffn);
        b->up = add_buf(b, "up", DL_BUF_ACT, DL_F32, slots, s->n_ffn);
        pair(b, "hb", "hb_q80", slots, s->n_ffn, &b->hb32, &b->hb80);
        if (h->n_experts) {
            b->rlogits = add_buf(b, "router_logits", DL_BUF_ACT, DL_F32, n, h->n_experts);
            b->route = add_buf(b, "route", DL_BUF_ACT, DL_F32, n, 2 * h->n_experts_used);
            b->expert_out = add_buf(b, "expert_out", DL_BUF_ACT, DL_F32, slots, h->dim);
        }
    }
    b->xo = add_buf(b, "out_rows", DL_BUF_ACT, DL_F32, n_out, h->dim);
    b->out->logits_buf = DL_NO_BUF;
    if (s->n_vocab) {
        pair(b, "out_h", "out_h_q80", n_out, h->dim, &b->ho32, &b->ho80);
        b->out->logits_buf = add_buf(b, "logits", DL_BUF_OUTPUT, DL_F32, n_out, s->n_vocab);
    }
    eng_plan_wire(b);
}

/* Quantised weights are multiplied with rows of whole blocks: only then is there an activation buffer for them (see pair). A file that
 * is open has passed this for whole tensors; types and slices that came over the wire have not. */
static int check_blocks(const struct eng_builder *b)
{
    const struct dl_model_header *h = b->h;
    bool ok = !dl_type_quantised(b->types->output) || h->dim % DL_BLOCK == 0;
    for (uint32_t l = 0; l < h->n_layers; l++)
        for (int id = DL_T_ATTN_NORM; id < DL_T_COUNT; id++) {
            uint32_t cols = id == DL_T_ATTN_OUT                          ? b->q_cols
                            : id == DL_T_FFN_DOWN || id == DL_T_MOE_DOWN ? b->slice->n_ffn
                                                                         : h->dim;
            ok = ok &&
                 (!dl_type_quantised(b->types->layer[(size_t)l * DL_T_COUNT + (size_t)id]) || cols % DL_BLOCK == 0);
        }
    return ok ? DL_OK : dl_fail(DL_EFORMAT, "plan: quantised weights whose rows are no whole blocks of %d", DL_BLOCK);
}

static void layers(struct eng_builder *b)
{
    const uint32_t n_lanes = b->plan->n_lanes;
    for (b->layer = 0; b->layer < b->h->n_layers; b->layer++) {
        for (b->lane = 0; b->lane < n_lanes; b->lane++) {
            if (!b->layer)
                add_op(b, DL_OP_CONVERT, "embed", lane_rows(b, b->x), lane_rows(b, b->out->embed_buf));
            attention(b);
        }
        eng_plan_reduce(b, ENG_SUM_ATTN);
        for (b->lane = 0; b->lane < n_lanes; b->lane++) {
            if (b->h->n_experts)
                ffn_moe(b);
            else
                ffn_dense(b);
        }
        eng_plan_reduce(b, ENG_SUM_FFN);
    }
    b->lane = 0;
}

enum dl_type dl_wire_type(const struct dl_model_header *h, enum dl_type wire)
{
    if (wire != DL_Q80)
        return wire;
    return h->dim % DL_BLOCK ? DL_F32 : h->n_experts ? DL_Q120 : DL_Q80;
}

uint32_t dl_plan_half(const struct dl_model_header *h)
{
    const uint32_t blocks = h->dim / DL_BLOCK;
    return h->dim % DL_BLOCK || blocks < 2 ? 0 : (blocks + 1) / 2 * DL_BLOCK;
}

uint32_t dl_plan_lanes(uint32_t n, uint32_t max_tokens)
{
    return n > 1 && max_tokens >= DL_PLAN_LANES * LANE_LEAST ? DL_PLAN_LANES : 1;
}

int dl_plan_build(const struct dl_model_header *h, const struct dl_tensor_types *types, const struct dl_slice *slices,
                  uint32_t node, uint32_t n_nodes, const struct dl_plan_opts *opts, struct dl_model_plan **out)
{
    *out = NULL;
    if (!n_nodes || node >= n_nodes || !opts->max_tokens || !opts->max_out || !opts->kv_blocks)
        return dl_fail(DL_EINVAL, "plan: node %u of %u with batches of %u cannot be", node, n_nodes, opts->max_tokens);
    if (opts->kv_type == DL_Q80 && h->head_dim % DL_BLOCK)
        return dl_fail(DL_EUNSUP,
                       "plan: a q80 KV cache needs heads of whole blocks of %d values, this model has %u; use "
                       "--kv f16",
                       DL_BLOCK, h->head_dim);
    if (opts->collective > DL_SUM_IN_TWO || opts->lanes > DL_PLAN_LANES)
        return dl_fail(DL_EINVAL, "plan: %u lanes and kind %d of sums cannot be", opts->lanes, (int)opts->collective);
    struct eng_builder b = {.h = h, .types = types, .slice = &slices[node], .opts = opts};
    b.wire = dl_wire_type(h, opts->wire);
    b.q_cols = b.slice->n_heads * h->head_dim;
    b.kv_cols = b.slice->n_kv_heads * h->head_dim;
    int err = check_blocks(&b);
    if (err)
        return err;
    b.in_two = opts->collective == DL_SUM_IN_TWO && dl_plan_in_two(h, n_nodes);
    if (opts->halves && n_nodes > 1 && !b.in_two)
        b.half = dl_plan_half(h);
    const uint32_t lanes = n_nodes > 1 && opts->lanes > 1 && opts->max_tokens > 1 ? opts->lanes : 1;
    b.cap_ops = (h->n_layers * (OPS_PER_LAYER + (b.in_two ? 4 * n_nodes : 0)) + EXTRA) * lanes;
    b.cap_bufs = h->n_layers * BUFS_PER_LAYER + EXTRA;
    b.cap_steps = (h->n_layers * STEPS_PER_LAYER + EXTRA) * lanes;
    b.names_cap = (size_t)(b.cap_ops + b.cap_bufs) * NAME_BYTES;

    struct dl_model_plan *m = b.out = dl_calloc(1, sizeof *m);
    if (!m)
        return DL_ENOMEM;
    b.plan = &m->plan;
    m->plan.max_tokens = opts->max_tokens;
    m->plan.max_out = opts->max_out;
    m->plan.n_lanes = lanes;
    m->plan.lane_tokens = (uint32_t)dl_div_up(opts->max_tokens, lanes);
    m->plan.n_slices = n_nodes;
    m->plan.slice = node;
    m->plan.ops = dl_calloc(b.cap_ops, sizeof *m->plan.ops);
    m->plan.bufs = dl_calloc(b.cap_bufs, sizeof *m->plan.bufs);
    m->plan.steps = dl_calloc(b.cap_steps, sizeof *m->plan.steps);
    m->weights = dl_calloc(b.cap_bufs, sizeof *m->weights);
    m->names = dl_calloc(b.names_cap, 1);
    err = DL_ENOMEM;
    if (m->plan.ops && m->plan.bufs && m->plan.steps && m->weights && m->names) {
        add_activations(&b);
        layers(&b);
        output(&b);
        end_run(&b);
        err = dl_plan_check(&m->plan);
    }
    if (err)
        dl_plan_destroy(&m);
    *out = m;
    return err;
}

void dl_plan_destroy(struct dl_model_plan **plan)
{
    struct dl_model_plan *m = *plan;
    if (!m)
        return;
    free(m->plan.ops);
    free(m->plan.bufs);
    free(m->plan.steps);
    free(m->weights);
    free(m->names);
    free(m);
    *plan = NULL;
}

int dl_model_types(const dl_model *model, struct dl_tensor_types *out)
{
    const struct dl_model_header *h = dl_model_header(model);
    struct dl_tensor t;
    out->layer = dl_calloc((size_t)h->n_layers * DL_T_COUNT, sizeof *out->layer);
    if (!out->layer)
        return DL_ENOMEM;
    for (uint32_t l = 0; l < h->n_layers; l++)
        for (int id = DL_T_ATTN_NORM; id < DL_T_COUNT; id++)
            if (!dl_model_tensor(model, (enum dl_tensor_id)id, l, &t))
                out->layer[(size_t)l * DL_T_COUNT + (size_t)id] = t.type;
    int err = dl_model_tensor(model, DL_T_OUTPUT, 0, &t);
    if (err) {
        dl_tensor_types_finish(out);
        return dl_fail(err, "%s: has no output matrix", dl_model_name(model));
    }
    out->output = t.type;
    return DL_OK;
}

void dl_tensor_types_finish(struct dl_tensor_types *types)
{
    free(types->layer);
    *types = (struct dl_tensor_types){0};
}
