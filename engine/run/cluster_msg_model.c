/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_msg_model.c: the MODEL message of cluster_msg.h: everything a plan is made of. A worker trusts nothing in it: each number
 * is held against its limits before it decides how much is read or allocated.
 */
#include "reader.h"

#include <math.h>
#include <stdlib.h>

#include "cluster_msg_in.h"

/* The fields in the order of struct dl_model_header. */
#define HEADER_U32(X) \
    X(dim)            \
    X(hidden_dim)     \
    X(n_layers)       \
    X(n_heads)        \
    X(n_kv_heads) X(head_dim) X(vocab) X(max_seq) X(n_experts) X(n_experts_used) X(expert_dim) X(n_rot) X(rope_orig_ctx)
#define HEADER_F32(X) X(norm_eps) X(rope_factor) X(rope_low_freq) X(rope_high_freq)

static void put_header(struct eng_out *o, const struct dl_model_header *h)
{
#define X(field) eng_put_u32(o, h->field);
    HEADER_U32(X)
#undef X
#define X(field) eng_put_f32(o, h->field);
    HEADER_F32(X)
#undef X
    eng_put_f64(o, h->rope_theta);
    const uint8_t small[] = {
        (uint8_t)h->arch, (uint8_t)h->act, (uint8_t)h->rope_layout, (uint8_t)h->rope_scaling, h->qkv_bias,
        h->qk_norm,       h->tied};
    eng_put_bytes(o, small, sizeof small);
}

static int read_header(const struct eng_in *in, struct eng_cursor *c, struct dl_model_header *h)
{
    *h = (struct dl_model_header){0};
#define X(field) h->field = eng_read_u32(c, "model header");
    HEADER_U32(X)
#undef X
#define X(field) h->field = eng_read_f32(c, "model header");
    HEADER_F32(X)
#undef X
    h->rope_theta = eng_in_f64(c, "model header");
    static const uint8_t most[] = {DL_ARCH_COUNT - 1, DL_ACT_GELU, DL_ROPE_HALVES, DL_ROPE_SCALE_TABLE, 1, 1, 1};
    const uint8_t *small = eng_read_bytes(c, sizeof most, "model header");
    if (!small)
        return DL_OK; /* the cursor says it */
    for (size_t i = 0; i < sizeof most; i++)
        if (small[i] > most[i])
            return eng_in_wrong(in, "an unknown value in the model header");
    h->arch = (enum dl_arch)small[0];
    h->act = (enum dl_act_fn)small[1];
    h->rope_layout = (enum dl_rope_layout)small[2];
    h->rope_scaling = (enum dl_rope_scaling)small[3];
    h->qkv_bias = small[4];
    h->qk_norm = small[5];
    h->tied = small[6];
    return eng_model_check_header(h, in->who);
}

static void put_shape(struct eng_out *o, const struct eng_model_msg *m)
{
    eng_put_u32(o, m->shape.max_tokens);
    eng_put_u32(o, m->shape.max_out);
    eng_put_u32(o, m->shape.max_tables);
    eng_put_u32(o, m->shape.table_cols);
    eng_put_u32(o, m->opts.kv_blocks);
    eng_put_u8(o, (uint8_t)m->opts.kv_type);
    eng_put_u8(o, (uint8_t)m->opts.wire);
    eng_put_u8(o, (uint8_t)m->opts.collective);
    eng_put_u8(o, (uint8_t)m->opts.lanes);
    eng_put_u8(o, m->opts.halves);
}

static int read_shape(const struct eng_in *in, struct eng_cursor *c, struct eng_model_msg *m)
{
    struct dl_batch_shape *s = &m->shape;
    s->max_tokens = eng_read_u32(c, "batch sizes");
    s->max_out = eng_read_u32(c, "batch sizes");
    s->max_tables = eng_read_u32(c, "batch sizes");
    s->table_cols = eng_read_u32(c, "batch sizes");
    uint32_t blocks = eng_read_u32(c, "batch sizes");
    uint8_t kv = eng_read_u8(c, "KV type"), wire = eng_read_u8(c, "wire type");
    uint8_t sums = eng_read_u8(c, "kind of sums"), lanes = eng_read_u8(c, "lanes"), halves = eng_read_u8(c, "halves");
    if (c->bad)
        return DL_OK;
    uint64_t cells = (uint64_t)s->max_tables * s->table_cols; /* of the tables, which the batch holds */
    if (!s->max_tokens || s->max_tokens > (1u << 16) || !s->max_out || s->max_out > s->max_tokens || !cells ||
        s->table_cols > DL_MAX_SEQ / DL_KV_BLOCK || cells > UINT32_MAX / DL_KV_BLOCK || blocks < s->table_cols ||
        blocks > cells || blocks > UINT32_MAX / DL_KV_BLOCK / m->h.n_kv_heads)
        return eng_in_wrong(in, "batch sizes out of range");
    if ((kv != DL_F32 && kv != DL_F16 && kv != DL_Q80) || (wire != DL_F32 && wire != DL_F16 && wire != DL_Q80))
        return eng_in_wrong(in, "an unknown type of KV cache or exchange");
    if (sums > DL_SUM_IN_TWO || lanes > DL_PLAN_LANES || halves > 1)
        return eng_in_wrong(in, "an unknown way to exchange");
    m->opts = (struct dl_plan_opts){.max_tokens = s->max_tokens,
                                    .max_out = s->max_out,
                                    .kv_blocks = blocks,
                                    .kv_type = (enum dl_type)kv,
                                    .wire = (enum dl_type)wire,
                                    .collective = (enum dl_sum_kind)sums,
                                    .halves = halves,
                                    .lanes = lanes};
    return DL_OK;
}

#define SLICE_FIELDS(X) X(head0) X(n_heads) X(kv0) X(n_kv_heads) X(ffn0) X(n_ffn) X(vocab0) X(n_vocab)
#define SLICE_BYTES (8u * 4u)

/* Everything is owned once and in order, and the KV heads are those that the query heads need. */
static int check_slices(const struct eng_in *in, const struct eng_model_msg *m)
{
    const struct dl_model_header *h = &m->h;
    const uint32_t group = h->n_heads / h->n_kv_heads;
    uint64_t heads = 0, ffn = 0, vocab = 0;
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        const struct dl_slice *s = &m->slices[i];
        bool ok =
            (!s->n_heads || s->head0 == heads) && (!s->n_ffn || s->ffn0 == ffn) && (!s->n_vocab || s->vocab0 == vocab);
        heads += s->n_heads;
        ffn += s->n_ffn;
        vocab += s->n_vocab;
        if (s->n_heads && heads <= h->n_heads)
            ok = ok && s->kv0 == s->head0 / group &&
                 s->n_kv_heads == (s->head0 + s->n_heads - 1) / group + 1 - s->head0 / group;
        else
            ok = ok && !s->n_kv_heads;
        if (!ok)
            return eng_in_wrong(in, "a slice does not follow the one before it");
    }
    if (heads != h->n_heads || ffn != (h->n_experts ? h->expert_dim : h->hidden_dim) || vocab != h->vocab)
        return eng_in_wrong(in, "the slices do not cover the model once");
    return DL_OK;
}

static int read_slices(const struct eng_in *in, struct eng_cursor *c, struct eng_model_msg *m)
{
    if ((uint64_t)m->n_nodes * SLICE_BYTES > eng_left(c))
        return eng_in_wrong(in, "slices are missing");
    m->slices = dl_calloc(m->n_nodes, sizeof *m->slices);
    if (!m->slices)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        struct dl_slice *s = &m->slices[i];
#define X(field) s->field = eng_read_u32(c, "slices");
        SLICE_FIELDS(X)
#undef X
    }
    return check_slices(in, m);
}

static int read_types(const struct eng_in *in, struct eng_cursor *c, struct eng_model_msg *m)
{
    size_t n = (size_t)m->h.n_layers * DL_T_COUNT;
    uint8_t output = eng_read_u8(c, "tensor types");
    const uint8_t *p = eng_read_bytes(c, n, "tensor types");
    if (!p)
        return DL_OK;
    m->types.layer = dl_calloc(n, sizeof *m->types.layer);
    if (!m->types.layer)
        return DL_ENOMEM;
    m->types.output = (enum dl_type)output;
    bool ok = output < DL_WEIGHT_TYPES;
    for (size_t i = 0; i < n; i++) {
        ok = ok && p[i] < DL_WEIGHT_TYPES;
        m->types.layer[i] = (enum dl_type)p[i];
    }
    return ok ? DL_OK : eng_in_wrong(in, "an unknown tensor type");
}

static int read_factors(const struct eng_in *in, struct eng_cursor *c, struct eng_model_msg *m)
{
    if (m->h.rope_scaling != DL_ROPE_SCALE_TABLE)
        return DL_OK;
    uint32_t n = m->h.n_rot / 2;
    if ((uint64_t)n * sizeof(float) > eng_left(c))
        return eng_in_wrong(in, "rope factors are missing");
    m->rope_factors = dl_calloc(n, sizeof *m->rope_factors);
    if (!m->rope_factors)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        m->rope_factors[i] = eng_read_f32(c, "rope factors");
        if (!isfinite(m->rope_factors[i]))
            return eng_in_wrong(in, "a rope factor is no number");
    }
    return DL_OK;
}

void eng_model_write(struct eng_out *o, const struct eng_model_msg *m)
{
    eng_out_begin(o, ENG_MSG_MODEL);
    eng_put_u32(o, m->n_nodes);
    eng_put_u32(o, m->node);
    put_header(o, &m->h);
    put_shape(o, m);
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        const struct dl_slice *s = &m->slices[i];
#define X(field) eng_put_u32(o, s->field);
        SLICE_FIELDS(X)
#undef X
    }
    eng_put_u8(o, (uint8_t)m->types.output);
    for (size_t i = 0; i < (size_t)m->h.n_layers * DL_T_COUNT; i++)
        eng_put_u8(o, (uint8_t)m->types.layer[i]);
    for (uint32_t i = 0; m->rope_factors && i < m->h.n_rot / 2; i++)
        eng_put_f32(o, m->rope_factors[i]);
    eng_put_u8(o, m->made);
    eng_put_text(o, m->name, sizeof m->name - 1);
    eng_put_bytes(o, m->plan.v, sizeof m->plan.v);
}

int eng_model_read(const struct eng_in *in, uint32_t n_nodes, uint32_t node, struct eng_model_msg *out)
{
    struct eng_model_msg m = {0};
    struct eng_cursor c = eng_in_open(in);
    m.n_nodes = eng_read_u32(&c, "nodes");
    m.node = eng_read_u32(&c, "nodes");
    int err = DL_OK;
    if (!c.bad && (m.n_nodes != n_nodes || m.node != node || n_nodes > ENG_MOST_NODES))
        err = eng_in_wrong(in, "it is meant for another node");
    if (!err)
        err = read_header(in, &c, &m.h);
    if (!err && !c.bad)
        err = read_shape(in, &c, &m);
    if (!err && !c.bad)
        err = read_slices(in, &c, &m);
    if (!err && !c.bad)
        err = read_types(in, &c, &m);
    if (!err && !c.bad)
        err = read_factors(in, &c, &m);
    uint8_t made = eng_read_u8(&c, "kind of weights");
    m.made = made;
    bool named = eng_in_text(&c, m.name, sizeof m.name, "name");
    eng_in_digest(&c, &m.plan);
    if (!err && made > 1)
        err = eng_in_wrong(in, "an unknown kind of weights");
    if (!err)
        err = named ? eng_in_close(in, &c) : eng_in_wrong(in, "its name is too long");
    if (err)
        eng_model_finish(&m);
    *out = m;
    return err;
}

void eng_model_finish(struct eng_model_msg *m)
{
    dl_tensor_types_finish(&m->types);
    free(m->slices);
    free(m->rope_factors);
    *m = (struct eng_model_msg){0};
}
