/* SPDX-License-Identifier: MIT
 *
 * trial_data.c: made-up inputs for an op and what is taken along with it, and what they should make of them: the formulas of dl/op.h
 * in double, one row at a time. Ops without matrices and attention: trial_rows.c.
 */
#include "trial_make.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHECK_OUT 75u
#define CHECK_AFTER 160u /* whole blocks, and more than one workgroup of most variants */
#define CHECK_EXPERTS 6u
#define CHECK_CTX 704u
#define TIME_CTX 2048u

static float random_value(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return (float)(*s >> 40) * 0x1p-23f - 1.0f;
}

int vk_make_buf(struct maker *m, uint32_t index, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols,
                struct dl_view *out)
{
    uint64_t row_bytes;
    if (!dl_row_bytes(type, cols, &row_bytes))
        return dl_fail(DL_EINVAL, "self-test: rows of %u values of type %d", (unsigned)cols, (int)type);
    struct dl_buf_desc desc = {"self-test", use, type, rows, cols, rows * row_bytes};
    *out = (struct dl_view){index, rows, cols, type, 0, row_bytes};
    struct vk_buf *b = NULL;
    int err = vk_buf_create(m->t->ctx, &desc, &b);
    m->t->bufs[index] = b ? &b->base : NULL;
    return err;
}

/* Rows [first, first + n) of the buffer. */
static int write_rows(struct maker *m, const struct rows *r, uint32_t buf, uint32_t first, uint32_t n)
{
    enum { MOST = 2 * PATTERNS };
    uint64_t row = r->view.row_bytes;
    uint8_t *twice = dl_calloc(MOST, row);
    if (!twice)
        return DL_ENOMEM;
    memcpy(twice, r->bytes, PATTERNS * row);
    memcpy(twice + PATTERNS * row, r->bytes, PATTERNS * row);
    int err = 0;
    for (uint32_t i = 0; !err && i < n;) {
        uint32_t from = (first + i + r->turn) % PATTERNS, some = DL_MIN(MOST - from, n - i);
        err = vk_buf_write(m->t->ctx, vk_buf_of(m->t->bufs[buf]), (first + i) * row, twice + from * row, some * row);
        i += some;
    }
    free(twice);
    return err;
}

const float *vk_make_row(const struct rows *r, uint32_t row)
{
    return r->values + (size_t)((row + r->turn) % PATTERNS) * r->view.cols;
}

/* The patterns; what the buffer gets is up to the caller. */
static int make_patterns(struct maker *m, struct rows *r)
{
    uint32_t cols = r->view.cols, s = (uint32_t)(r - m->src);
    /* Small enough for many a half, and every scale, to be subnormal: devices may lose those. */
    bool attention = m->op->code == DL_OP_ATTENTION, tiny = m->check && !m->fused && s == (attention ? 2 : 1);
    /* What follows a matrix sees values around 1. */
    bool matrix = !attention && s % 2 && s != IN_BASE;
    float unit = tiny ? 3e-5f : m->fused && matrix ? 2 / sqrtf((float)cols) : 0.25f;
    r->turn = s * 7;
    r->bytes = dl_calloc(PATTERNS, r->view.row_bytes);
    r->values = dl_calloc((size_t)PATTERNS * cols, sizeof *r->values);
    if (!r->bytes || !r->values)
        return DL_ENOMEM;
    for (uint32_t p = 0; p < PATTERNS; p++) {
        float size = unit * (float)(1 + p % 5);
        float *v = r->values + (size_t)p * cols;
        for (uint32_t i = 0; i < cols; i++)
            v[i] = size * random_value(&m->rng);
        dl_row_from_f32(r->view.type, v, r->bytes + p * r->view.row_bytes, cols);
        dl_row_to_f32(r->view.type, r->bytes + p * r->view.row_bytes, v, cols);
    }
    return 0;
}

int vk_make_like(struct maker *m, uint32_t s, const struct dl_view *like, uint32_t buf, enum dl_buf_use use,
                 uint32_t rows)
{
    struct rows *r = &m->src[s];
    int err = vk_make_buf(m, buf, use, like->type, rows, like->cols, &r->view);
    if (!err && !r->bytes)
        err = make_patterns(m, r);
    return err ? err : use == DL_BUF_KV ? 0 : write_rows(m, r, buf, 0, rows);
}

static int make(struct maker *m, uint32_t s, uint32_t buf, enum dl_buf_use use, uint32_t rows)
{
    return vk_make_like(m, s, &m->op->src[s], buf, use, rows);
}

enum dl_buf_use vk_make_use(const struct maker *m, const struct dl_view *v)
{
    return m->l->bufs[v->buf] ? m->l->bufs[v->buf]->base.desc.use : DL_BUF_ACT;
}

/* ---------------------------------------------------------------------------------------------------- the batch */

static int make_batch(struct maker *m)
{
    struct vk_trial *t = m->t;
    uint64_t bytes = dl_batch_bytes(&m->shape);
    struct dl_buf_desc desc = {"self-test batch", DL_BUF_INPUT, DL_F32, 1, (uint32_t)(bytes / 4), bytes};
    int err = vk_buf_create(t->ctx, &desc, &t->batch);
    if (err)
        return err;
    uint8_t *to = t->batch->mapped;
    struct dl_batch_head head = {.n_tokens = t->n_tokens,
                                 .n_out = t->n_out,
                                 .max_tokens = m->shape.max_tokens,
                                 .max_out = m->shape.max_out,
                                 .max_tables = m->shape.max_tables,
                                 .table_cols = m->shape.table_cols};
    memcpy(to, &head, sizeof head);
    if (m->at)
        memcpy(to + dl_batch_rows_at(), m->at, t->n_tokens * sizeof *m->at);
    for (uint32_t i = 0; i < t->n_out; i++)
        memcpy(to + dl_batch_out_at(&m->shape) + i * sizeof i, &i, sizeof i);
    if (m->table)
        memcpy(to + dl_batch_tables_at(&m->shape), m->table,
               (size_t)m->shape.max_tables * m->shape.table_cols * sizeof *m->table);
    return 0;
}

/* ---------------------------------------------------------------------------------------------- MATMUL, MOE_MATMUL */

/* How many results each part has, how many experts there are, and how often all of it is done. */
struct sizes {
    uint32_t out[VK_MM_PARTS], experts, copies;
};

static uint64_t weights_bytes(const struct maker *m, const struct sizes *z)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; i < m->f.n_parts; i++)
        rows += z->out[i];
    return rows * z->experts * m->op->src[1].row_bytes;
}

static struct sizes sizes_of(const struct maker *m)
{
    const bool moe = m->op->code == DL_OP_MOE_MATMUL;
    const uint32_t k = moe ? m->op->u.moe.k : 1;
    struct sizes z = {.experts = moe ? m->op->u.moe.n_experts : 1, .copies = 1};
    for (uint32_t i = 0; i < m->f.n_parts; i++) {
        z.out[i] = m->f.part[i]->dst.cols;
        if (m->check)
            z.out[i] = DL_MIN(z.out[i], m->after ? CHECK_AFTER : CHECK_OUT - 17 * i);
    }
    if (m->check) {
        z.experts = DL_MIN(z.experts, DL_MAX(k, CHECK_EXPERTS));
        return z;
    }
    while (z.experts > k && weights_bytes(m, &z) > m->most_bytes)
        z.experts = DL_MAX(z.experts / 2, k);
    while (z.out[0] > 64 && weights_bytes(m, &z) > m->most_bytes)
        for (uint32_t i = 0; i < m->f.n_parts; i++)
            z.out[i] = DL_MAX(z.out[i] / 2 / DL_BLOCK, 1) * DL_BLOCK;
    z.copies = (uint32_t)DL_MAX(1, DL_MIN(m->most_bytes / (weights_bytes(m, &z) + 1), TRIAL_COPIES));
    return z;
}

/* Each part's results: columns of one buffer, but for those of a GLU. */
static int matrix_results(struct maker *m, const struct sizes *z, uint32_t rows)
{
    struct vk_trial *t = m->t;
    const bool apart = m->f.kind == VK_MM_GLU;
    uint32_t cols = z->out[0], at = 0;
    struct dl_view dst;
    for (uint32_t i = 1; !apart && i < m->f.n_parts; i++)
        cols += z->out[i];
    int err = vk_make_buf(m, TRIAL_DST, DL_BUF_ACT, DL_F32, rows, cols, &dst);
    for (uint32_t i = 0; !err && i < m->f.n_parts; i++) {
        if (i && apart)
            err = vk_make_buf(m, TRIAL_UP, DL_BUF_ACT, DL_F32, rows, z->out[i], &dst);
        dst.offset = apart ? 0 : at * sizeof(float);
        dst.cols = z->out[i];
        at += z->out[i];
        t->results[t->n_results++] = (struct trial_result){.view = dst, .bound = 1e-9};
    }
    return err;
}

/* What follows, and what it adds to or carries. `cols` of `rows` rows. */
static int after_results(struct maker *m, uint32_t rows, uint32_t cols)
{
    struct vk_trial *t = m->t;
    struct dl_view view = {0};
    int err = 0;
    if (m->f.base) {
        const struct dl_view like = {.cols = cols, .type = m->f.base->type};
        const bool in_place = m->f.base->buf == m->after->dst.buf;
        err = vk_make_like(m, IN_BASE, &like, in_place ? TRIAL_AFTER : TRIAL_BASE, DL_BUF_ACT, rows);
        view = m->src[IN_BASE].view;
        if (err || in_place)
            goto out;
    }
    if (m->f.kind == VK_MM_CARRY) /* a code that falls on a border takes a whole step along; fine steps have more */
        t->results[t->n_results++] =
            (struct trial_result){.view = view, .bound = m->after->dst.type == DL_Q80 ? 0.1 : 0.5};
    err = vk_make_buf(m, TRIAL_AFTER, vk_make_use(m, &m->after->dst), m->after->dst.type, rows, cols, &view);
out: /* a value that falls on a border when it is rounded may go either way */
    t->results[t->n_results++] = (struct trial_result){.view = view, .bound = view.type == DL_F32 ? 1e-8 : 1e-5};
    return err;
}

static struct dl_op after_op(const struct maker *m)
{
    const struct trial_result *r = m->t->results;
    struct dl_op op = *m->after;
    op.dst = r[m->t->n_results - 1].view;
    if (op.code == DL_OP_ADD) {
        uint32_t base = m->f.base == &m->after->src[1];
        op.src[base] = m->src[IN_BASE].view;
        op.src[!base] = r[0].view;
    } else {
        op.src[0] = r[0].view;
        if (op.code == DL_OP_GLU)
            op.src[1] = r[1].view;
        if (m->f.kind == VK_MM_CARRY) {
            op.src[1] = m->src[IN_BASE].view;
            op.u.convert.first = false; /* the same kernel as the first one's, and more of it */
        }
    }
    return op;
}

static int make_route(struct maker *m, uint32_t experts, uint32_t rows)
{
    const uint32_t k = m->op->u.moe.k;
    struct rows *r = &m->src[IN_EXTRA];
    int err = vk_make_buf(m, TRIAL_EXTRA, DL_BUF_ACT, DL_F32, rows, 2 * k, &r->view);
    if (!err)
        err = make_patterns(m, r);
    if (err)
        return err;
    for (uint32_t p = 0; p < PATTERNS; p++)
        for (uint32_t s = 0; s < k; s++) {
            r->values[(size_t)p * 2 * k + s] = (float)((p * 5 + s) % experts);
            r->values[(size_t)p * 2 * k + k + s] = 1.0f / (float)k;
        }
    memcpy(r->bytes, r->values, PATTERNS * r->view.row_bytes);
    return write_rows(m, r, TRIAL_EXTRA, 0, r->view.rows);
}

static bool has_bias(const struct maker *m)
{
    return m->op->code == DL_OP_MATMUL && m->op->src[2].buf != DL_NO_BUF;
}

static int matrix_ops(struct maker *m, const struct sizes *z, uint32_t copy)
{
    struct vk_trial *t = m->t;
    const bool moe = m->op->code == DL_OP_MOE_MATMUL;
    for (uint32_t i = 0; i < m->f.n_parts; i++) {
        struct dl_op *op = &t->ops[t->n_ops++];
        int err = vk_make_like(m, IN_WEIGHT + 2 * i, &m->op->src[1], TRIAL_WEIGHT + copy * VK_MM_PARTS + i,
                               DL_BUF_WEIGHT, z->experts * z->out[i]);
        if (err)
            return err;
        *op = *m->f.part[i];
        op->dst = t->results[i].view;
        op->src[0] = m->src[IN_X].view;
        op->src[1] = m->src[IN_WEIGHT + 2 * i].view;
        if (moe)
            op->u.moe.n_experts = z->experts;
        if (moe || has_bias(m))
            op->src[2] = m->src[moe ? IN_EXTRA : IN_EXTRA + 2 * i].view;
    }
    if (m->after)
        t->ops[t->n_ops++] = after_op(m);
    return 0;
}

static int fill_matmul(struct maker *m)
{
    const struct dl_op *op = m->op;
    const bool moe = op->code == DL_OP_MOE_MATMUL;
    const uint32_t k = moe ? op->u.moe.k : 1;
    const struct sizes z = sizes_of(m);
    const uint32_t rows = op->count == DL_COUNT_OUT ? m->l->n_out : m->l->n_tokens;
    int err = matrix_results(m, &z, rows * k);
    if (!err && m->after)
        err = after_results(m, rows * k, z.out[0]);
    if (!err)
        err = make(m, IN_X, TRIAL_SRC, DL_BUF_ACT, moe && !op->u.moe.shared_src ? rows * k : rows);
    if (!err && moe)
        err = make_route(m, z.experts, rows);
    for (uint32_t i = 0; !err && has_bias(m) && i < m->f.n_parts; i++) {
        const struct dl_view like = {.cols = z.out[i], .type = DL_F32};
        err = vk_make_like(m, IN_EXTRA + 2 * i, &like, TRIAL_EXTRA + i, DL_BUF_WEIGHT, 1);
    }
    for (uint32_t i = 0; !err && i < z.copies; i++)
        err = matrix_ops(m, &z, i);
    return err;
}

static void want_matmul(const struct maker *m, uint32_t part, uint32_t row, double *want)
{
    const struct dl_op *op = &m->t->ops[part];
    bool moe = op->code == DL_OP_MOE_MATMUL;
    uint32_t k = moe ? op->u.moe.k : 1, out = op->dst.cols, first = 0;
    if (moe)
        first = (uint32_t)vk_make_row(&m->src[IN_EXTRA], row / k)[row % k] * out;
    const float *x = vk_make_row(&m->src[IN_X], moe && op->u.moe.shared_src ? row / k : row);
    for (uint32_t o = 0; o < out; o++) {
        const float *w = vk_make_row(&m->src[IN_WEIGHT + 2 * part], first + o);
        double sum = has_bias(m) ? (double)vk_make_row(&m->src[IN_EXTRA + 2 * part], 0)[o] : 0.0;
        for (uint32_t i = 0; i < op->src[0].cols; i++)
            sum += (double)x[i] * (double)w[i];
        want[o] = sum;
    }
}

static double want_act(enum dl_act_fn act, double x)
{
    return act == DL_ACT_GELU ? x / (1 + exp(-2 * 0.7978845608028654 * (x + 0.044715 * x * x * x))) : x / (1 + exp(-x));
}

/* From what the ops before it should have made. */
static void want_after(const struct maker *m, uint32_t i, double *want)
{
    const struct trial_result *r = m->t->results;
    for (uint32_t o = 0; o < r[0].view.cols; o++) {
        const size_t at = (size_t)i * r[0].view.cols + o;
        want[o] = r[0].want[at];
        if (m->after->code == DL_OP_GLU)
            want[o] = want_act(m->after->u.glu.act, want[o]) * r[1].want[at];
        else if (m->f.base)
            want[o] += (double)vk_make_row(&m->src[IN_BASE], m->t->row[i])[o];
    }
}

/* What a row of that loses when it is rounded. */
static void want_lost(const struct maker *m, uint32_t i, double *want)
{
    want_after(m, i, want);
    for (uint32_t o = 0; o < m->t->results[0].view.cols; o += DL_BLOCK) {
        uint8_t block[sizeof(struct dl_q120)]; /* the largest */
        float v[DL_BLOCK];
        for (uint32_t j = 0; j < DL_BLOCK; j++)
            v[j] = (float)want[o + j];
        dl_row_from_f32(m->after->dst.type, v, block, DL_BLOCK);
        dl_row_to_f32(m->after->dst.type, block, v, DL_BLOCK);
        for (uint32_t j = 0; j < DL_BLOCK; j++)
            want[o + j] -= (double)v[j];
    }
}

/* ------------------------------------------------------------------------------------------------------ ATTENTION */

int vk_make_sequences(struct maker *m)
{
    uint32_t n = m->t->n_tokens, seqs = m->check ? 3 : 1, ctx = m->check ? CHECK_CTX : TIME_CTX;
    static const uint32_t start[] = {640, 31, 0};
    uint32_t next[3] = {n < 32 ? start[0] : 20, start[1], start[2]};
    if (m->l->max_positions && m->l->max_positions < ctx) {
        ctx = m->l->max_positions;
        next[0] = next[1] = next[2] = 0;
    }
    ctx = DL_MAX(ctx, n + 32);
    if (!m->check)
        next[0] = ctx - n;
    m->shape = (struct dl_batch_shape){m->l->n_tokens, DL_MAX(m->l->n_out, 1), seqs, (ctx + 31) / DL_KV_BLOCK};
    m->at = dl_calloc(n, sizeof *m->at);
    m->table = dl_calloc((size_t)seqs * m->shape.table_cols, sizeof *m->table);
    if (!m->at || !m->table)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = !m->check ? 0 : n < 32 ? i % 3 : i < n - n / 8 ? 0 : i % 3;
        m->at[i] = (struct dl_batch_row){next[s]++, s};
    }
    for (uint32_t s = 0; s < seqs; s++) /* blocks of the sequences take turns, the last first */
        for (uint32_t i = 0; i < m->shape.table_cols; i++)
            m->table[s * m->shape.table_cols + i] = (m->shape.table_cols - 1 - i) * seqs + s;
    return 0;
}

/* Only what some token sees; the rest is NaN. */
static int fill_cache(struct maker *m, uint32_t s, uint32_t buf)
{
    const struct rows *r = &m->src[s];
    uint32_t n_kv = m->op->u.attn.n_kv_heads, seqs = m->shape.max_tables;
    uint32_t block_rows = n_kv * DL_KV_BLOCK;
    uint8_t *nans = dl_calloc(block_rows, r->view.row_bytes);
    if (!nans)
        return DL_ENOMEM;
    memset(nans, 0xff, block_rows * r->view.row_bytes);
    int err = 0;
    for (uint32_t q = 0; !err && q < seqs; q++) {
        uint32_t length = 0;
        for (uint32_t i = 0; i < m->t->n_tokens; i++)
            if (m->at[i].table == q)
                length = DL_MAX(length, m->at[i].pos + 1);
        for (uint32_t i = 0; !err && i < m->shape.table_cols; i++) {
            uint32_t first = m->table[q * m->shape.table_cols + i] * block_rows;
            uint32_t here = length > i * DL_KV_BLOCK ? DL_MIN(length - i * DL_KV_BLOCK, DL_KV_BLOCK) : 0;
            if (here == DL_KV_BLOCK) {
                err = write_rows(m, r, buf, first, block_rows);
                continue;
            }
            err = vk_buf_write(m->t->ctx, vk_buf_of(m->t->bufs[buf]), first * r->view.row_bytes, nans,
                               block_rows * r->view.row_bytes);
            for (uint32_t h = 0; !err && here && h < n_kv; h++)
                err = write_rows(m, r, buf, first + h * DL_KV_BLOCK, here);
        }
    }
    free(nans);
    return err;
}

static int fill_attention(struct maker *m)
{
    const struct dl_op *op = m->op;
    struct vk_trial *t = m->t;
    struct dl_view dst = {0};
    int err = vk_make_sequences(m);
    if (err)
        return err;
    uint32_t rows = m->shape.max_tables * m->shape.table_cols * op->u.attn.n_kv_heads * DL_KV_BLOCK;
    err = vk_make_buf(m, TRIAL_DST, DL_BUF_ACT, DL_F32, m->l->n_tokens, op->dst.cols, &dst);
    if (!err)
        err = make(m, 0, TRIAL_SRC, DL_BUF_ACT, m->l->n_tokens);
    if (!err)
        err = make(m, 1, TRIAL_WEIGHT, DL_BUF_KV, rows);
    if (!err)
        err = make(m, 2, TRIAL_EXTRA, DL_BUF_KV, rows);
    if (!err)
        err = fill_cache(m, 1, TRIAL_WEIGHT);
    if (!err)
        err = fill_cache(m, 2, TRIAL_EXTRA);
    t->results[t->n_results++] = (struct trial_result){.view = dst, .bound = 1e-8};
    if (!err && m->after)
        err = after_results(m, m->l->n_tokens, op->dst.cols);
    for (uint32_t i = 0; !err && i < (m->check ? 1 : 2); i++) {
        struct dl_op *to = &t->ops[t->n_ops++];
        *to = *op;
        to->dst = dst;
        for (uint32_t s = 0; s < 3; s++)
            to->src[s] = m->src[s].view;
        if (m->after)
            t->ops[t->n_ops++] = after_op(m);
    }
    return err;
}

static int want_attention(const struct maker *m, uint32_t row, double *want)
{
    const struct dl_op *op = m->op;
    uint32_t hd = op->u.attn.head_dim, n = m->at[row].pos + 1, n_kv = op->u.attn.n_kv_heads;
    const uint32_t *table = m->table + (size_t)m->at[row].table * m->shape.table_cols;
    double *weight = dl_calloc(n, sizeof *weight);
    if (!weight)
        return DL_ENOMEM;
    for (uint32_t h = 0; h < op->u.attn.n_heads; h++) {
        uint32_t kv = (op->u.attn.first_head + h) / op->u.attn.group;
        const float *q = vk_make_row(&m->src[0], row) + (size_t)h * hd;
        double top = -INFINITY, sum = 0;
        for (uint32_t p = 0; p < n; p++) {
            const float *key =
                vk_make_row(&m->src[1], (table[p / DL_KV_BLOCK] * n_kv + kv) * DL_KV_BLOCK + p % DL_KV_BLOCK);
            weight[p] = 0;
            for (uint32_t i = 0; i < hd; i++)
                weight[p] += (double)q[i] * (double)key[i];
            weight[p] *= (double)op->u.attn.scale;
            top = fmax(top, weight[p]);
        }
        for (uint32_t p = 0; p < n; p++)
            sum += weight[p] = exp(weight[p] - top);
        for (uint32_t p = 0; p < n; p++) {
            const float *v =
                vk_make_row(&m->src[2], (table[p / DL_KV_BLOCK] * n_kv + kv) * DL_KV_BLOCK + p % DL_KV_BLOCK);
            for (uint32_t i = 0; i < hd; i++)
                want[(size_t)h * hd + i] += weight[p] / sum * (double)v[i];
        }
    }
    free(weight);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------ all together */

/* First, last, and some between. */
static int choose_rows(struct maker *m)
{
    struct vk_trial *t = m->t;
    uint32_t n = m->n * t->ops[0].mult;
    t->n_rows = DL_MIN(n, TRIAL_ROWS);
    for (uint32_t i = 0; i < t->n_rows; i++)
        t->row[i] = t->n_rows > 1 ? (uint32_t)((uint64_t)i * (n - 1) / (t->n_rows - 1)) : 0;
    int err = 0;
    for (uint32_t p = 0; !err && p < t->n_results; p++) {
        struct trial_result *r = &t->results[p];
        r->n_rows = t->n_rows;
        memcpy(r->row, t->row, sizeof r->row);
        if (m->rows)
            vk_make_want_rows(m, p);
        r->want = dl_calloc((size_t)r->n_rows * r->view.cols, sizeof *r->want);
        err = r->want ? 0 : DL_ENOMEM;
        for (uint32_t i = 0; !err && i < r->n_rows; i++) {
            double *want = r->want + (size_t)i * r->view.cols;
            if (m->rows)
                vk_make_want(m, p, i, want);
            else if (m->after && p == t->n_results - 1)
                want_after(m, i, want);
            else if (m->f.kind == VK_MM_CARRY && p)
                want_lost(m, i, want);
            else if (t->ops[0].code == DL_OP_ATTENTION)
                err = want_attention(m, t->row[i], want);
            else
                want_matmul(m, p, t->row[i], want);
        }
    }
    return err;
}

int vk_trial_fill(struct vk_trial *t, const struct vk_lower *l, const struct dl_op *ops, uint32_t n, bool check,
                  uint64_t most_bytes)
{
    const struct dl_op *op = &ops[0];
    struct maker m = {
        .t = t, .l = l, .op = op, .rng = 88172645463325252u, .check = check, .most_bytes = most_bytes, .fused = n > 1};
    bool out = op->count == DL_COUNT_OUT, matrix = op->code == DL_OP_MATMUL || op->code == DL_OP_MOE_MATMUL;
    if (matrix)
        m.f = vk_mm_match(ops, n);
    m.rows = !matrix && op->code != DL_OP_ATTENTION;
    m.n_ops = n;
    m.after = matrix ? m.f.after : n > 1 && !m.rows ? &ops[1] : NULL;
    m.n = out ? l->n_out : l->n_tokens;
    if (check && m.n > 2)
        m.n--; /* not all rows that the program is made for, but of the same class */
    t->n_tokens = out ? l->n_tokens : m.n;
    t->n_out = out ? m.n : DL_MIN(l->n_out, m.n);
    m.shape = (struct dl_batch_shape){l->n_tokens, DL_MAX(l->n_out, 1), 1, 1};
    int err = matrix ? fill_matmul(&m) : m.rows ? vk_make_rows(&m) : fill_attention(&m);
    if (!err)
        err = make_batch(&m);
    if (!err && check)
        err = choose_rows(&m);
    for (int i = 0; i < N_SRC; i++) {
        free(m.src[i].bytes);
        free(m.src[i].values);
    }
    free(m.at);
    free(m.table);
    return err;
}
