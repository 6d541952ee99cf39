/* SPDX-License-Identifier: MIT
 *
 * tests/ops_build.h: one function per op that builds a case of given shape. `variant` only spreads choices that every shape
 * should meet at some time (strided views, unaligned weights, in place, fills) without multiplying the number of cases.
 */
#ifndef TESTS_OPS_BUILD_H
#define TESTS_OPS_BUILD_H

#include "ops_case.h"

#define SPARE 2 /* rows that the views have beyond the batch */

static const char *type_name(enum dl_type t)
{
    return dl_type_info(t)->name;
}

static void op_init(struct ops_case *c, enum dl_opcode code, double bound)
{
    *c = (struct ops_case){.bound = bound, .varies = true};
    c->op.code = code;
    c->op.name = dl_op_name(code);
    c->op.mult = 1;
    for (int i = 0; i < 3; i++)
        c->op.src[i].buf = DL_NO_BUF;
}

static uint32_t pad_for(enum dl_type type, uint32_t variant)
{
    return variant % 3 == 0 ? 0 : dl_type_info(type)->block_values == 1 ? 3 : DL_BLOCK;
}

/* What an op writes for the wire, or for a device. */
static struct dl_view result(struct ops_case *c, enum dl_type type, uint32_t rows, uint32_t cols, uint32_t variant)
{
    return ops_view(c, type == DL_Q120 ? DL_BUF_WIRE : DL_BUF_ACT, type, rows, cols, pad_for(type, variant));
}

static struct dl_view act(struct ops_case *c, enum dl_type type, uint32_t rows, uint32_t cols, uint32_t variant)
{
    return ops_view(c, DL_BUF_ACT, type, rows, cols, pad_for(type, variant));
}

static inline struct dl_view weight(struct ops_case *c, enum dl_type type, uint32_t rows, uint32_t cols,
                                    enum ops_fill fill, uint64_t *rng)
{
    struct dl_view v = ops_view(c, DL_BUF_WEIGHT, type, rows, cols, 0);
    ops_fill_rows(c, &v, rows, fill, rng);
    return v;
}

static inline void build_convert(struct ops_case *c, enum dl_type from, enum dl_type to, uint32_t n, uint32_t cols,
                                 enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_CONVERT, 0);
    snprintf(c->label, sizeof c->label, "convert %s to %s n=%u cols=%u fill=%s variant=%u", type_name(from),
             type_name(to), n, cols, ops_fill_names[fill], variant);
    c->op.dst = result(c, to, n + SPARE, cols, variant);
    c->op.src[0] = act(c, from, n + SPARE, cols, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

/* What is carried is there for some cases, and to begin with for others. */
static inline void build_convert_carrying(struct ops_case *c, enum dl_type to, uint32_t n, uint32_t cols,
                                          enum ops_fill fill, bool first, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_CONVERT, 0);
    snprintf(c->label, sizeof c->label, "convert carrying to %s n=%u cols=%u fill=%s first=%d variant=%u",
             type_name(to), n, cols, ops_fill_names[fill], first, variant);
    c->op.u.convert.first = first;
    c->op.dst = result(c, to, n + SPARE, cols, variant);
    c->op.src[0] = act(c, DL_F32, n + SPARE, cols, variant + 1);
    c->op.src[1] = act(c, DL_F32, n + SPARE, cols, variant + 2);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    if (!first) /* else all NaN */
        ops_fill_rows(c, &c->op.src[1], n, variant % 2 ? fill : FILL_RANDOM, &rng);
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline void build_rms_norm(struct ops_case *c, enum dl_type to, uint32_t n, uint32_t cols, uint32_t group,
                                  enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    bool in_place = to == DL_F32 && variant % 2;
    op_init(c, DL_OP_RMS_NORM, 1e-11);
    snprintf(c->label, sizeof c->label, "rms_norm to %s n=%u cols=%u group=%u fill=%s variant=%u%s", type_name(to), n,
             cols, group, ops_fill_names[fill], variant, in_place ? " in place" : "");
    c->op.u.norm.eps = variant % 2 ? 1e-5f : 1e-6f;
    c->op.u.norm.group = group;
    c->op.dst = act(c, to, n + SPARE, cols, variant);
    c->op.src[0] = in_place ? c->op.dst : act(c, DL_F32, n + SPARE, cols, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    c->op.src[1] = weight(c, DL_F32, 1, group, FILL_RANDOM, &rng);
    c->weight_shift = variant % 4;
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline enum dl_type act_for(enum dl_type weight_type)
{
    return weight_type == DL_Q40 || weight_type == DL_Q80 ? DL_Q80 : DL_F32;
}

static inline void build_matmul(struct ops_case *c, enum dl_type type, uint32_t n, uint32_t in, uint32_t out,
                                enum ops_fill x_fill, enum ops_fill w_fill, uint32_t variant)
{
    uint64_t rng = variant + 77;
    bool bias = variant % 2, out_rows = variant % 7 == 3;
    op_init(c, DL_OP_MATMUL, 1e-10);
    snprintf(c->label, sizeof c->label, "matmul %s n=%u in=%u out=%u fill=%s*%s variant=%u%s%s", type_name(type), n, in,
             out, ops_fill_names[x_fill], ops_fill_names[w_fill], variant, bias ? " bias" : "",
             out_rows ? " count=out" : "");
    c->op.count = out_rows ? DL_COUNT_OUT : DL_COUNT_TOKENS;
    c->op.dst = act(c, DL_F32, n + SPARE, out, variant);
    c->op.src[0] = act(c, act_for(type), n + SPARE, in, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n, x_fill, &rng);
    c->op.src[1] = weight(c, type, out, in, w_fill, &rng);
    if (bias) /* as large as the products, or neither would be tested */
        c->op.src[2] =
            weight(c, DL_F32, 1, out, x_fill == FILL_RANDOM && w_fill == FILL_RANDOM ? x_fill : FILL_ZERO, &rng);
    c->weight_shift = variant % 4;
    if (out_rows)
        ops_batch(c, n + 1, n, n + 1, n + SPARE, 1, 1);
    else
        ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline void build_rope(struct ops_case *c, uint32_t n, uint32_t heads, uint32_t head_dim, uint32_t n_rot,
                              enum dl_rope_layout layout, uint32_t variant)
{
    uint64_t rng = variant;
    bool in_place = variant % 2;
    op_init(c, DL_OP_ROPE, 1e-12);
    snprintf(c->label, sizeof c->label, "rope n=%u heads=%u head_dim=%u n_rot=%u layout=%d variant=%u%s", n, heads,
             head_dim, n_rot, (int)layout, variant, in_place ? " in place" : "");
    c->op.u.rope.head_dim = head_dim;
    c->op.u.rope.n_rot = n_rot;
    c->op.u.rope.layout = layout;
    c->op.dst = act(c, DL_F32, n + SPARE, heads * head_dim, variant);
    c->op.src[0] = in_place ? c->op.dst : act(c, DL_F32, n + SPARE, heads * head_dim, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n, variant % 5 == 4 ? FILL_SPREAD : FILL_RANDOM, &rng);
    c->op.src[1] = ops_view(c, DL_BUF_INPUT, DL_F32, n + SPARE, n_rot, 0);
    float *angles = (float *)(void *)ops_row(c, &c->op.src[1], 0);
    for (uint32_t i = 0; i < n * n_rot / 2; i++) {
        double angle = (double)test_randf(&rng) * 3.2;
        angles[2 * i] = (float)cos(angle);
        angles[2 * i + 1] = (float)sin(angle);
    }
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

/* Blocks of all tables in a shuffled order, none twice, some not used at all. */
static inline void shuffle_tables(struct ops_case *c, uint32_t n_blocks, uint64_t *rng)
{
    uint32_t *block = dl_xcalloc(n_blocks, sizeof *block);
    for (uint32_t i = 0; i < n_blocks; i++) {
        uint32_t j = (uint32_t)(test_rand(rng) % (i + 1));
        block[i] = block[j];
        block[j] = i;
    }
    uint32_t n = c->shape.max_tables * c->shape.table_cols;
    assert_true(n <= n_blocks);
    memcpy(ops_table(c, 0), block, n * sizeof *block);
    free(block);
}

static inline void build_kv_store(struct ops_case *c, enum dl_type type, uint32_t n, uint32_t n_kv, uint32_t head_dim,
                                  enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_KV_STORE, 0);
    snprintf(c->label, sizeof c->label, "kv_store %s n=%u n_kv=%u head_dim=%u fill=%s variant=%u", type_name(type), n,
             n_kv, head_dim, ops_fill_names[fill], variant);
    c->op.u.kv.n_kv_heads = n_kv;
    c->op.u.kv.head_dim = head_dim;
    enum { TABLES = 3, COLS = 3, BLOCKS = TABLES * COLS + 2 };
    c->op.dst = ops_view(c, DL_BUF_KV, type, BLOCKS * n_kv * DL_KV_BLOCK, head_dim, 0);
    c->op.src[0] = act(c, DL_F32, n + SPARE, n_kv * head_dim, variant);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    ops_batch(c, n, 0, n + SPARE, 1, TABLES, COLS);
    shuffle_tables(c, BLOCKS, &rng);
    for (uint32_t t = 0; t < n; t++) /* three sequences take turns, across a block border */
        ops_batch_rows(c)[t] = (struct dl_batch_row){.pos = 29 + 17 * (t % TABLES) + t / TABLES, .table = t % TABLES};
}

/* last[t] is the position of token t, of sequence seq[t]; sequences hold everything up to their last position. */
struct attention_shape {
    enum dl_type type;
    uint32_t n_heads, n_kv, group, first_head, head_dim;
    const uint32_t *last, *seq;
    uint32_t n;
};

static inline void build_attention(struct ops_case *c, const struct attention_shape *s, enum ops_fill v_fill,
                                   double sharpness, uint32_t variant)
{
    uint64_t rng = variant + 5;
    op_init(c, DL_OP_ATTENTION, 1e-9);
    uint32_t n_seq = 1, most = 0;
    for (uint32_t t = 0; t < s->n; t++) {
        n_seq = DL_MAX(n_seq, s->seq[t] + 1);
        most = DL_MAX(most, s->last[t]);
    }
    uint32_t table_cols = most / DL_KV_BLOCK + 1, n_blocks = n_seq * table_cols + 2;
    snprintf(
        c->label, sizeof c->label,
        "attention %s n=%u heads=%u kv=%u group=%u first=%u head_dim=%u longest=%u values=%s sharpness=%g variant=%u",
        type_name(s->type), s->n, s->n_heads, s->n_kv, s->group, s->first_head, s->head_dim, most + 1,
        ops_fill_names[v_fill], sharpness, variant);
    c->op.u.attn.n_heads = s->n_heads;
    c->op.u.attn.n_kv_heads = s->n_kv;
    c->op.u.attn.head_dim = s->head_dim;
    c->op.u.attn.group = s->group;
    c->op.u.attn.first_head = s->first_head;
    c->op.u.attn.scale = (float)(sharpness / sqrt(s->head_dim));
    c->op.dst = act(c, DL_F32, s->n + SPARE, s->n_heads * s->head_dim, variant);
    c->op.src[0] = act(c, DL_F32, s->n + SPARE, s->n_heads * s->head_dim, variant + 1);
    ops_fill_rows(c, &c->op.src[0], s->n, FILL_RANDOM, &rng);
    for (int i = 1; i <= 2; i++)
        c->op.src[i] = ops_view(c, DL_BUF_KV, s->type, n_blocks * s->n_kv * DL_KV_BLOCK, s->head_dim, 0);
    ops_batch(c, s->n, 0, s->n + SPARE, 1, n_seq, table_cols);
    shuffle_tables(c, n_blocks, &rng);
    for (uint32_t t = 0; t < s->n; t++)
        ops_batch_rows(c)[t] = (struct dl_batch_row){.pos = s->last[t], .table = s->seq[t]};
    float *values = dl_xcalloc(s->head_dim, sizeof *values);
    uint32_t *filled = dl_xcalloc(n_seq, sizeof *filled);
    for (uint32_t t = 0; t < s->n; t++) /* rows behind every token's position stay 0xff */
        for (uint32_t p = filled[s->seq[t]]; p <= s->last[t]; p++, filled[s->seq[t]] = p)
            for (uint32_t h = 0; h < s->n_kv; h++)
                for (int i = 1; i <= 2; i++) {
                    for (uint32_t j = 0; j < s->head_dim; j++)
                        values[j] = ops_value(i == 2 ? v_fill : FILL_RANDOM, s->type, &rng);
                    dl_row_from_f32(s->type, values, ops_row(c, &c->op.src[i], ops_kv_row(c, t, s->n_kv, h, p)),
                                    s->head_dim);
                }
    free(values);
    free(filled);
}

static inline void build_glu(struct ops_case *c, enum dl_type to, uint32_t n, uint32_t cols, enum dl_act_fn fn,
                             enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    bool in_place = to == DL_F32 && variant % 2;
    op_init(c, DL_OP_GLU, 1e-11);
    snprintf(c->label, sizeof c->label, "glu %s to %s n=%u cols=%u fill=%s variant=%u%s",
             fn == DL_ACT_SILU ? "silu" : "gelu", type_name(to), n, cols, ops_fill_names[fill], variant,
             in_place ? " in place" : "");
    c->op.u.glu.act = fn;
    c->op.dst = act(c, to, n + SPARE, cols, variant);
    c->op.src[0] = in_place ? c->op.dst : act(c, DL_F32, n + SPARE, cols, variant + 1);
    c->op.src[1] = act(c, DL_F32, n + SPARE, cols, variant + 2);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    ops_fill_rows(c, &c->op.src[1], n, FILL_RANDOM, &rng);
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline void build_add(struct ops_case *c, uint32_t n, uint32_t cols, enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_ADD, 0);
    snprintf(c->label, sizeof c->label, "add n=%u cols=%u fill=%s variant=%u", n, cols, ops_fill_names[fill], variant);
    c->op.dst = act(c, DL_F32, n + SPARE, cols, variant);
    for (uint32_t i = 0; i < 2; i++)
        c->op.src[i] = variant % 3 == i + 1 ? c->op.dst : act(c, DL_F32, n + SPARE, cols, variant + i);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    ops_fill_rows(c, &c->op.src[1], n, fill, &rng);
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline void build_merge(struct ops_case *c, enum dl_type wire, uint32_t n, uint32_t cols, uint32_t slices,
                               enum ops_fill fill, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_MERGE, 0);
    snprintf(c->label, sizeof c->label, "merge %s n=%u cols=%u slices=%u fill=%s variant=%u", type_name(wire), n, cols,
             slices, ops_fill_names[fill], variant);
    c->op.dst = act(c, DL_F32, n + SPARE, cols, variant);
    c->op.src[0] = variant % 2 ? c->op.dst : act(c, DL_F32, n + SPARE, cols, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n, fill, &rng);
    struct dl_view all = ops_view(c, DL_BUF_WIRE, wire, (n + SPARE) * slices, cols, 0);
    for (uint32_t s = 0; s < slices; s++) {
        struct dl_view slice = all;
        slice.rows = n + SPARE;
        slice.offset = s * (n + SPARE) * all.row_bytes;
        ops_fill_rows(c, &slice, n, fill, &rng);
    }
    c->op.src[1] = all;
    c->op.src[1].rows = n + SPARE;
    c->op.u.merge.n_slices = slices;
    c->op.u.merge.slice_bytes = (n + SPARE) * all.row_bytes;
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

static inline void build_gather_rows(struct ops_case *c, uint32_t n_tokens, uint32_t n_out, uint32_t cols,
                                     uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_GATHER_ROWS, 0);
    snprintf(c->label, sizeof c->label, "gather_rows tokens=%u out=%u cols=%u variant=%u", n_tokens, n_out, cols,
             variant);
    c->op.count = DL_COUNT_OUT;
    c->op.dst = act(c, DL_F32, n_out + SPARE, cols, variant);
    c->op.src[0] = act(c, DL_F32, n_tokens + SPARE, cols, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n_tokens, FILL_RANDOM, &rng);
    ops_batch(c, n_tokens, n_out, n_tokens + SPARE, n_out + SPARE, 1, 1);
    if (variant % 2) /* not the last ones, but spread from the first on */
        for (uint32_t i = 0; i < n_out; i++)
            ops_out_rows(c)[i] = i * n_tokens / n_out;
}

static inline void build_moe_route(struct ops_case *c, uint32_t n, uint32_t experts, uint32_t k, bool ties,
                                   uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_MOE_ROUTE, 1e-12);
    snprintf(c->label, sizeof c->label, "moe_route n=%u experts=%u k=%u ties=%d variant=%u", n, experts, k, ties,
             variant);
    c->op.u.moe.n_experts = experts;
    c->op.u.moe.k = k;
    c->op.u.moe.renorm = variant % 2;
    c->varies = k > 1; /* else the route may be 1 with weight 1 */
    c->op.dst = act(c, DL_F32, n + SPARE, 2 * k, variant);
    c->op.src[0] = act(c, DL_F32, n + SPARE, experts, variant + 1);
    for (uint32_t t = 0; t < n; t++) {
        float *logits = (float *)(void *)ops_row(c, &c->op.src[0], t);
        for (uint32_t e = 0; e < experts; e++)
            logits[e] = ties ? (float)(test_rand(&rng) % 3) - 1 : 6 * test_randf(&rng);
    }
    ops_batch(c, n, 0, n + SPARE, 1, 1, 1);
}

/* Routes to k different experts each, weights that sum to 1. */
static inline void fill_route(struct ops_case *c, const struct dl_view *route, uint32_t n, uint32_t experts,
                              uint64_t *rng)
{
    uint32_t k = route->cols / 2;
    for (uint32_t t = 0; t < n; t++) {
        float *row = (float *)(void *)ops_row(c, route, t), sum = 0;
        uint32_t first = (uint32_t)(test_rand(rng) % experts);
        for (uint32_t s = 0; s < k; s++) {
            row[s] = (float)((first + s) % experts);
            sum += row[k + s] = 1.1f + test_randf(rng);
        }
        for (uint32_t s = 0; s < k; s++)
            row[k + s] /= sum;
    }
}

static inline void build_moe_matmul(struct ops_case *c, enum dl_type type, uint32_t n, uint32_t in, uint32_t out,
                                    uint32_t experts, uint32_t k, bool shared, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_MOE_MATMUL, 1e-10);
    snprintf(c->label, sizeof c->label, "moe_matmul %s n=%u in=%u out=%u experts=%u k=%u shared=%d variant=%u",
             type_name(type), n, in, out, experts, k, shared, variant);
    c->op.mult = k;
    c->op.u.moe.n_experts = experts;
    c->op.u.moe.k = k;
    c->op.u.moe.shared_src = shared;
    uint32_t most = n + SPARE;
    c->op.dst = act(c, DL_F32, most * k, out, variant);
    c->op.src[0] = act(c, act_for(type), shared ? most : most * k, in, variant + 1);
    ops_fill_rows(c, &c->op.src[0], shared ? n : n * k, FILL_RANDOM, &rng);
    c->op.src[1] = weight(c, type, experts * out, in, FILL_RANDOM, &rng);
    c->weight_shift = variant % 4;
    c->op.src[2] = act(c, DL_F32, most, 2 * k, variant);
    fill_route(c, &c->op.src[2], n, experts, &rng);
    ops_batch(c, n, 0, most, 1, 1, 1);
}

static inline void build_moe_sum(struct ops_case *c, uint32_t n, uint32_t cols, uint32_t k, uint32_t variant)
{
    uint64_t rng = variant;
    op_init(c, DL_OP_MOE_SUM, 1e-12);
    snprintf(c->label, sizeof c->label, "moe_sum n=%u cols=%u k=%u variant=%u", n, cols, k, variant);
    c->op.u.moe.k = k;
    uint32_t most = n + SPARE;
    c->op.dst = act(c, DL_F32, most, cols, variant);
    c->op.src[0] = act(c, DL_F32, most * k, cols, variant + 1);
    ops_fill_rows(c, &c->op.src[0], n * k, FILL_RANDOM, &rng);
    c->op.src[1] = act(c, DL_F32, most, 2 * k, variant);
    fill_route(c, &c->op.src[1], n, 16, &rng);
    ops_batch(c, n, 0, most, 1, 1, 1);
}

#endif
