/* SPDX-License-Identifier: MIT
 *
 * trial_rows.c: trials of what is one kernel for several ops without a matrix or attention among them: a sum (ADD, MERGE) with the norms that
 * follow it, and ROPE with the two KV_STOREs of its layer.
 */
#include <math.h>
#include <string.h>

#include "trial_make.h"

static uint32_t rows_of(const struct maker *m)
{
    return (m->op->count == DL_COUNT_OUT ? m->l->n_out : m->l->n_tokens) * m->op->mult;
}

static void add_result(struct maker *m, struct dl_view view)
{
    /* A value that falls on a border when it is rounded may go either way. */
    m->t->results[m->t->n_results++] = (struct trial_result){.view = view, .bound = view.type == DL_F32 ? 1e-11 : 1e-5};
}

/* ------------------------------------------------------------------------------------------------ sums and norms */

static uint32_t slices(const struct maker *m)
{
    return m->op->code == DL_OP_MERGE ? m->op->u.merge.n_slices : 1;
}

/* The sum of the trial, in place where the original is. */
static int make_sum(struct maker *m, uint32_t rows, struct dl_op *to)
{
    const struct dl_op *op = m->op;
    int err = vk_make_like(m, IN_X, &op->src[0], TRIAL_SRC, DL_BUF_ACT, rows);
    if (!err)
        err = vk_make_like(m, IN_EXTRA, &op->src[1], TRIAL_BASE, vk_make_use(m, &op->src[1]), slices(m) * rows);
    *to = *op;
    to->src[0] = m->src[IN_X].view;
    to->src[1] = m->src[IN_EXTRA].view;
    to->src[1].rows = rows;
    if (op->code == DL_OP_MERGE)
        to->u.merge.slice_bytes = rows * to->src[1].row_bytes;
    to->dst = op->dst.buf == op->src[1].buf ? to->src[1] : to->src[0];
    if (!err && op->dst.buf != op->src[0].buf && op->dst.buf != op->src[1].buf)
        err = vk_make_buf(m, TRIAL_DST, DL_BUF_ACT, DL_F32, rows, op->dst.cols, &to->dst);
    add_result(m, to->dst);
    return err;
}

static int make_sum_and_norms(struct maker *m)
{
    static const uint32_t bufs[] = {TRIAL_UP, TRIAL_AFTER};
    struct vk_trial *t = m->t;
    const uint32_t rows = rows_of(m);
    int err = make_sum(m, rows, &t->ops[t->n_ops++]);
    if (!err)
        err = vk_make_like(m, IN_BASE, &m->op[1].src[1], TRIAL_WEIGHT, DL_BUF_WEIGHT, 1);
    for (uint32_t i = 1; !err && i < m->n_ops; i++) {
        struct dl_op *to = &t->ops[t->n_ops++];
        *to = m->op[i];
        to->src[0] = t->ops[0].dst;
        to->src[1] = m->src[IN_BASE].view;
        err = vk_make_buf(m, bufs[i - 1], vk_make_use(m, &to->dst), to->dst.type, rows, to->dst.cols, &to->dst);
        add_result(m, to->dst);
    }
    return err;
}

static void want_sum(const struct maker *m, uint32_t row, double *want)
{
    const struct dl_op *op = &m->t->ops[0];
    for (uint32_t i = 0; i < op->dst.cols; i++)
        want[i] = (double)vk_make_row(&m->src[IN_X], row)[i];
    for (uint32_t s = 0; s < slices(m); s++) {
        const float *wire = vk_make_row(&m->src[IN_EXTRA], s * op->src[1].rows + row);
        for (uint32_t i = 0; i < op->dst.cols; i++)
            want[i] += (double)wire[i];
    }
}

static void want_norm(const struct maker *m, uint32_t p, uint32_t i, double *want)
{
    const uint32_t cols = m->t->results[0].view.cols;
    const double *x = m->t->results[0].want + (size_t)i * cols;
    const float *w = vk_make_row(&m->src[IN_BASE], 0);
    double squares = 0;
    for (uint32_t k = 0; k < cols; k++)
        squares += x[k] * x[k];
    for (uint32_t k = 0; k < cols; k++)
        want[k] = x[k] * (double)w[k] / sqrt(squares / cols + (double)m->t->ops[p].u.norm.eps);
}

/* ---------------------------------------------------------------------------------------------- heads and stores */

static uint32_t column(const struct maker *m, const struct dl_view *v)
{
    return (uint32_t)((v->offset - m->op->dst.offset) / sizeof(float));
}

static int make_heads(struct maker *m)
{
    static const uint32_t bufs[] = {TRIAL_WEIGHT, TRIAL_EXTRA};
    struct vk_trial *t = m->t;
    const struct dl_op *rope = &m->op[0], *stores = &m->op[1];
    const uint32_t rows = rows_of(m), n_kv = stores->u.kv.n_kv_heads;
    const struct dl_view *v = &stores[1].src[0], like = {.cols = column(m, v) + v->cols, .type = DL_F32};
    int err = vk_make_sequences(m);
    if (!err)
        err = vk_make_like(m, IN_X, &like, TRIAL_SRC, DL_BUF_ACT, rows);
    if (!err)
        err = vk_make_like(m, IN_EXTRA, &rope->src[1], TRIAL_BASE, DL_BUF_INPUT, rows);
    if (err)
        return err;
    const struct dl_view all = m->src[IN_X].view;
    struct dl_op *to = &t->ops[t->n_ops++];
    *to = *rope;
    to->dst = all;
    to->dst.cols = rope->dst.cols;
    to->src[0] = to->dst;
    to->src[1] = m->src[IN_EXTRA].view;
    add_result(m, all);
    for (uint32_t i = 0; !err && i < 2; i++) {
        to = &t->ops[t->n_ops++];
        *to = stores[i];
        to->src[0] = all;
        to->src[0].cols = stores[i].src[0].cols;
        to->src[0].offset = column(m, &stores[i].src[0]) * sizeof(float);
        err = vk_make_buf(m, bufs[i], DL_BUF_KV, stores[i].dst.type,
                          m->shape.max_tables * m->shape.table_cols * n_kv * DL_KV_BLOCK, stores[i].dst.cols, &to->dst);
        add_result(m, to->dst);
    }
    return err;
}

/* Column `col` of a row once its heads are turned. */
static double turned(const struct maker *m, uint32_t row, uint32_t col)
{
    const struct dl_op *rope = m->op;
    const float *x = vk_make_row(&m->src[IN_X], row), *angles = vk_make_row(&m->src[IN_EXTRA], row);
    const uint32_t j = col % rope->u.rope.head_dim, half = rope->u.rope.n_rot / 2;
    if (col >= rope->dst.cols || j >= 2 * half)
        return (double)x[col];
    const bool halves = rope->u.rope.layout == DL_ROPE_HALVES, first = halves ? j < half : j % 2 == 0;
    const uint32_t pair = halves ? j % half : j / 2, apart = halves ? half : 1;
    const double c = (double)angles[2 * pair], s = (double)angles[2 * pair + 1];
    return first ? (double)x[col] * c - (double)x[col + apart] * s : (double)x[col - apart] * s + (double)x[col] * c;
}

/* Of the caches one head at a time is compared: here that of the i-th comparison. */
static uint32_t head_of(const struct maker *m, uint32_t i)
{
    return i % m->op[1].u.kv.n_kv_heads;
}

static uint32_t token_of(const struct maker *m, uint32_t i)
{
    return m->t->row[i % m->t->n_rows];
}

/* ------------------------------------------------------------------------------------------------------- both */

int vk_make_rows(struct maker *m)
{
    return m->op->code == DL_OP_ROPE ? make_heads(m) : make_sum_and_norms(m);
}

void vk_make_want_rows(const struct maker *m, uint32_t p)
{
    struct trial_result *r = &m->t->results[p];
    if (m->op->code != DL_OP_ROPE || p == 0)
        return;
    r->n_rows = TRIAL_ROWS;
    for (uint32_t i = 0; i < r->n_rows; i++) {
        const struct dl_batch_row at = m->at[token_of(m, i)];
        const uint32_t block = m->table[at.table * m->shape.table_cols + at.pos / DL_KV_BLOCK];
        r->row[i] = (block * m->op[1].u.kv.n_kv_heads + head_of(m, i)) * DL_KV_BLOCK + at.pos % DL_KV_BLOCK;
    }
}

void vk_make_want(const struct maker *m, uint32_t p, uint32_t i, double *want)
{
    const struct trial_result *r = &m->t->results[p];
    if (m->op->code != DL_OP_ROPE) {
        if (p == 0)
            want_sum(m, r->row[i], want);
        else
            want_norm(m, p, i, want);
        return;
    }
    const uint32_t row = p ? token_of(m, i) : r->row[i];
    const uint32_t from = p ? column(m, &m->op[p].src[0]) + head_of(m, i) * r->view.cols : 0;
    for (uint32_t k = 0; k < r->view.cols; k++)
        want[k] = turned(m, row, from + k);
}
