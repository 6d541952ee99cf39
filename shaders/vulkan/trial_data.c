/* SPDX-License-Identifier: MIT
 *
 * trial_data.c: made-up inputs for one op, and what it should make of them: the formulas of dl/op.h in double, one row at a time.
 * Rows of weights and caches repeat after PATTERNS different ones: making them must not take longer than running them.
 */
#include "trial_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PATTERNS 61u /* prime: no stride of rows or blocks meets the same ones */
#define CHECK_OUT 75u
#define CHECK_EXPERTS 6u
#define CHECK_CTX 704u
#define TIME_CTX 2048u

/* What a buffer holds: row r is pattern (r + turn) % PATTERNS. */
struct rows {
    struct dl_view view; /* of the whole buffer */
    uint8_t *bytes;      /* (PATTERNS, row_bytes) */
    float *values;       /* (PATTERNS, cols), as the bytes say */
    uint32_t turn;
};

struct maker {
    struct vk_trial *t;
    const struct vk_lower *l;
    const struct dl_op *op;
    uint64_t rng;
    bool check;
    uint64_t most_bytes;
    uint32_t n; /* rows of the batch */
    struct rows src[3];
    struct dl_batch_shape shape;
    struct dl_batch_row *at; /* ATTENTION: position and table per token */
    uint32_t *table;
};

static float random_value(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return (float)(*s >> 40) * 0x1p-23f - 1.0f;
}

static int buf_create(struct maker *m, uint32_t index, enum dl_buf_use use, enum dl_type type, uint32_t rows,
                      uint32_t cols, struct dl_view *out)
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

static const float *row_of(const struct rows *r, uint32_t row)
{
    return r->values + (size_t)((row + r->turn) % PATTERNS) * r->view.cols;
}

/* The patterns; what the buffer gets is up to the caller. */
static int make_patterns(struct maker *m, struct rows *r)
{
    uint32_t cols = r->view.cols, s = (uint32_t)(r - m->src);
    /* Small enough for many a half, and every scale, to be subnormal: devices may lose those. */
    bool tiny = m->check && s == (m->op->code == DL_OP_ATTENTION ? 2 : 1);
    r->turn = s * 7;
    r->bytes = dl_calloc(PATTERNS, r->view.row_bytes);
    r->values = dl_calloc((size_t)PATTERNS * cols, sizeof *r->values);
    if (!r->bytes || !r->values)
        return DL_ENOMEM;
    for (uint32_t p = 0; p < PATTERNS; p++) {
        float size = (tiny ? 3e-5f : 0.25f) * (float)(1 + p % 5);
        float *v = r->values + (size_t)p * cols;
        for (uint32_t i = 0; i < cols; i++)
            v[i] = size * random_value(&m->rng);
        dl_row_from_f32(r->view.type, v, r->bytes + p * r->view.row_bytes, cols);
        dl_row_to_f32(r->view.type, r->bytes + p * r->view.row_bytes, v, cols);
    }
    return 0;
}

static int make(struct maker *m, uint32_t s, uint32_t buf, enum dl_buf_use use, uint32_t rows)
{
    struct rows *r = &m->src[s];
    int err = buf_create(m, buf, use, m->op->src[s].type, rows, m->op->src[s].cols, &r->view);
    if (!err && !r->bytes)
        err = make_patterns(m, r);
    return err ? err : use == DL_BUF_KV ? 0 : write_rows(m, r, buf, 0, rows);
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

static int fill_matmul(struct maker *m)
{
    const struct dl_op *op = m->op;
    struct vk_trial *t = m->t;
    bool moe = op->code == DL_OP_MOE_MATMUL;
    uint32_t k = moe ? op->u.moe.k : 1, experts = moe ? op->u.moe.n_experts : 1, out = op->dst.cols;
    uint64_t row_bytes = op->src[1].row_bytes;
    if (m->check) {
        out = DL_MIN(out, CHECK_OUT);
        experts = DL_MIN(experts, DL_MAX(k, CHECK_EXPERTS));
        t->n_ops = 1;
    } else {
        while (experts > k && (uint64_t)experts * out * row_bytes > m->most_bytes)
            experts = DL_MAX(experts / 2, k);
        while (out > 64 && (uint64_t)experts * out * row_bytes > m->most_bytes)
            out /= 2;
        uint64_t copies = m->most_bytes / ((uint64_t)experts * out * row_bytes + 1);
        t->n_ops = (uint32_t)DL_MAX(1, DL_MIN(copies, TRIAL_COPIES));
    }
    struct dl_view dst, extra = {.buf = DL_NO_BUF};
    const uint32_t rows = op->count == DL_COUNT_OUT ? m->l->n_out : m->l->n_tokens;
    int err = buf_create(m, TRIAL_DST, DL_BUF_ACT, DL_F32, rows * k, out, &dst);
    if (!err)
        err = make(m, 0, TRIAL_SRC, DL_BUF_ACT, moe && !op->u.moe.shared_src ? rows * k : rows);
    if (!err && moe) {
        struct rows *r = &m->src[2];
        err = buf_create(m, TRIAL_EXTRA, DL_BUF_ACT, DL_F32, rows, 2 * k, &r->view);
        if (!err)
            err = make_patterns(m, r);
        for (uint32_t p = 0; !err && p < PATTERNS; p++)
            for (uint32_t s = 0; s < k; s++) {
                r->values[(size_t)p * 2 * k + s] = (float)((p * 5 + s) % experts);
                r->values[(size_t)p * 2 * k + k + s] = 1.0f / (float)k;
            }
        if (!err)
            memcpy(r->bytes, r->values, PATTERNS * r->view.row_bytes);
        if (!err)
            err = write_rows(m, r, TRIAL_EXTRA, 0, r->view.rows);
        extra = r->view;
    } else if (!err && op->src[2].buf != DL_NO_BUF) {
        struct rows *r = &m->src[2];
        err = buf_create(m, TRIAL_EXTRA, DL_BUF_WEIGHT, DL_F32, 1, out, &r->view);
        if (!err)
            err = make_patterns(m, r);
        if (!err)
            err = write_rows(m, r, TRIAL_EXTRA, 0, 1);
        extra = r->view;
    }
    for (uint32_t i = 0; !err && i < t->n_ops; i++) {
        err = make(m, 1, TRIAL_WEIGHT + i, DL_BUF_WEIGHT, experts * out);
        t->ops[i] = *op;
        t->ops[i].dst = dst;
        t->ops[i].src[0] = m->src[0].view;
        t->ops[i].src[1] = m->src[1].view;
        t->ops[i].src[2] = extra;
        if (moe)
            t->ops[i].u.moe.n_experts = experts;
    }
    return err;
}

static void want_matmul(const struct maker *m, uint32_t row, double *want)
{
    const struct dl_op *op = &m->t->ops[0];
    bool moe = op->code == DL_OP_MOE_MATMUL;
    uint32_t k = moe ? op->u.moe.k : 1, out = op->dst.cols, first = 0;
    if (moe)
        first = (uint32_t)row_of(&m->src[2], row / k)[row % k] * out;
    const float *x = row_of(&m->src[0], moe && op->u.moe.shared_src ? row / k : row);
    for (uint32_t o = 0; o < out; o++) {
        const float *w = row_of(&m->src[1], first + o);
        double sum = !moe && op->src[2].buf != DL_NO_BUF ? (double)row_of(&m->src[2], 0)[o] : 0.0;
        for (uint32_t i = 0; i < op->src[0].cols; i++)
            sum += (double)x[i] * (double)w[i];
        want[o] = sum;
    }
}

/* ------------------------------------------------------------------------------------------------------ ATTENTION */

/* Checked: three sequences, of which the first has most tokens and the others leave gaps in it; of different lengths where the
 * batch is small. Timed: one sequence (a batch that is a chunk of a prompt), or each token its own (they decode). */
static int attention_rows(struct maker *m)
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
    struct dl_view dst;
    int err = attention_rows(m);
    if (err)
        return err;
    uint32_t rows = m->shape.max_tables * m->shape.table_cols * op->u.attn.n_kv_heads * DL_KV_BLOCK;
    err = buf_create(m, TRIAL_DST, DL_BUF_ACT, DL_F32, m->l->n_tokens, op->dst.cols, &dst);
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
    t->n_ops = m->check ? 1 : 2;
    for (uint32_t i = 0; i < t->n_ops; i++) {
        t->ops[i] = *op;
        t->ops[i].dst = dst;
        for (uint32_t s = 0; s < 3; s++)
            t->ops[i].src[s] = m->src[s].view;
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
        const float *q = row_of(&m->src[0], row) + (size_t)h * hd;
        double top = -INFINITY, sum = 0;
        for (uint32_t p = 0; p < n; p++) {
            const float *key = row_of(&m->src[1], (table[p / DL_KV_BLOCK] * n_kv + kv) * DL_KV_BLOCK + p % DL_KV_BLOCK);
            weight[p] = 0;
            for (uint32_t i = 0; i < hd; i++)
                weight[p] += (double)q[i] * (double)key[i];
            weight[p] *= (double)op->u.attn.scale;
            top = fmax(top, weight[p]);
        }
        for (uint32_t p = 0; p < n; p++)
            sum += weight[p] = exp(weight[p] - top);
        for (uint32_t p = 0; p < n; p++) {
            const float *v = row_of(&m->src[2], (table[p / DL_KV_BLOCK] * n_kv + kv) * DL_KV_BLOCK + p % DL_KV_BLOCK);
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
    uint32_t n = m->n * t->ops[0].mult, cols = t->ops[0].dst.cols;
    t->n_rows = DL_MIN(n, TRIAL_ROWS);
    for (uint32_t i = 0; i < t->n_rows; i++)
        t->row[i] = t->n_rows > 1 ? (uint32_t)((uint64_t)i * (n - 1) / (t->n_rows - 1)) : 0;
    t->want = dl_calloc((size_t)t->n_rows * cols, sizeof *t->want);
    int err = t->want ? 0 : DL_ENOMEM;
    for (uint32_t i = 0; !err && i < t->n_rows; i++) {
        double *want = t->want + (size_t)i * cols;
        if (t->ops[0].code == DL_OP_ATTENTION)
            err = want_attention(m, t->row[i], want);
        else
            want_matmul(m, t->row[i], want);
    }
    return err;
}

int vk_trial_fill(struct vk_trial *t, const struct vk_lower *l, const struct dl_op *op, bool check, uint64_t most_bytes)
{
    struct maker m = {.t = t, .l = l, .op = op, .rng = 88172645463325252u, .check = check, .most_bytes = most_bytes};
    bool out = op->count == DL_COUNT_OUT;
    m.n = out ? l->n_out : l->n_tokens;
    if (check && m.n > 2)
        m.n--; /* not all rows that the program is made for, but of the same class */
    t->n_tokens = out ? l->n_tokens : m.n;
    t->n_out = out ? m.n : DL_MIN(l->n_out, m.n);
    m.shape = (struct dl_batch_shape){l->n_tokens, DL_MAX(l->n_out, 1), 1, 1};
    int err = op->code == DL_OP_ATTENTION ? fill_attention(&m) : fill_matmul(&m);
    if (!err)
        err = make_batch(&m);
    if (!err && check)
        err = choose_rows(&m);
    for (int i = 0; i < 3; i++) {
        free(m.src[i].bytes);
        free(m.src[i].values);
    }
    free(m.at);
    free(m.table);
    return err;
}

int vk_trial_compare(struct vk_trial *t, double *nmse)
{
    const struct dl_view *d = &t->ops[0].dst;
    float *row = dl_calloc(d->cols, sizeof *row);
    double wrong = 0, all = 0;
    int err = row ? 0 : DL_ENOMEM;
    for (uint32_t i = 0; !err && i < t->n_rows; i++) {
        err = vk_buf_read(t->ctx, vk_buf_of(t->bufs[TRIAL_DST]), t->row[i] * d->row_bytes, row, d->cols * sizeof *row);
        for (uint32_t k = 0; !err && k < d->cols; k++) {
            double want = t->want[(size_t)i * d->cols + k], off = (double)row[k] - want;
            wrong += off * off;
            all += want * want;
        }
    }
    free(row);
    *nmse = wrong / all;
    return err;
}
