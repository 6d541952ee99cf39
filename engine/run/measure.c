/* SPDX-License-Identifier: MIT
 *
 * engine/run/measure.c: how fast a device really computes a model of this shape: the rate at which its own mat-vec kernel reads weights
 * that no cache holds, what one more op costs, and how fast it multiplies many tokens. `auto` and the shares of devices and nodes rest on
 * it.
 */
#include "engine.h"

#include <stdlib.h>

#ifdef __SANITIZE_THREAD__ /* which takes as long for a page as reading a hundred */
#define PASS_BYTES ((uint64_t)4 << 20)
#else
#define PASS_BYTES ((uint64_t)64 << 20) /* read per pass: more than any last-level cache is likely to keep */
#endif
#define N_BIG 4u
#define N_SMALL 64u
#define SMALL_ROWS 32u
#define MEASURE_NS 60000000u
#define TOKENS 32u
#define MANY_ROWS 1024u
#define MAX_PASSES 64u
#define MANY 3u /* buffers: src, dst and weight for many tokens, and then the big weights */
#define BIG 6u
#define N_BUFS (BIG + N_BIG)

struct probe {
    dl_device *dev;
    struct dl_buf_desc desc[N_BUFS]; /* src, dst, small weight, the same for many tokens, big weights */
    dl_buf *bufs[N_BUFS];
    dl_buf *batch;
    uint32_t many_rows;
};

static struct dl_view whole(const struct probe *p, uint32_t buf)
{
    const struct dl_buf_desc *d = &p->desc[buf];
    return (struct dl_view){buf, d->rows, d->cols, d->type, 0, d->bytes / d->rows};
}

static int add(struct probe *p, uint32_t i, const char *name, enum dl_buf_use use, enum dl_type type, uint32_t rows,
               uint32_t cols)
{
    uint64_t row = 0;
    if (!dl_row_bytes(type, cols, &row))
        return dl_fail(DL_EINVAL, "measure: rows of %u values are no whole blocks", cols);
    p->desc[i] = (struct dl_buf_desc){name, use, type, rows, cols, row * rows};
    return dl_buf_create(p->dev, &p->desc[i], &p->bufs[i]);
}

/* Real bytes, so that every page is a page of its own: scales of 1, codes from a small generator. */
static int fill(struct probe *p, uint32_t i)
{
    const struct dl_buf_desc *d = &p->desc[i];
    uint64_t row = d->bytes / d->rows;
    float *values = dl_calloc(d->cols, sizeof *values);
    uint8_t *bytes = dl_calloc(16, (size_t)row);
    int err = values && bytes ? DL_OK : DL_ENOMEM;
    uint32_t state = 12345;
    for (uint32_t r = 0; !err && r < 16; r++) {
        for (uint32_t c = 0; c < d->cols; c++) {
            state = state * 1664525u + 1013904223u;
            values[c] = (float)(state >> 16 & 255u) - 127.5f;
        }
        dl_row_from_f32(d->type, values, bytes + r * row, d->cols);
    }
    for (uint32_t r = 0; !err && r < d->rows; r += 16)
        err = dl_buf_write(p->dev, p->bufs[i], r * row, bytes, (size_t)(DL_MIN(16u, d->rows - r) * row));
    free(values);
    free(bytes);
    return err;
}

/* src and dst are buffers `first` and the one after it. */
static struct dl_op product(const struct probe *p, uint32_t first, uint32_t weight)
{
    struct dl_op op = {.code = DL_OP_MATMUL, .name = "measure", .count = DL_COUNT_TOKENS, .mult = 1};
    op.dst = whole(p, first + 1);
    op.src[0] = whole(p, first);
    op.src[1] = whole(p, weight);
    op.src[2].buf = DL_NO_BUF;
    op.dst.cols = op.src[1].rows; /* the first columns of a row that is long enough for all */
    return op;
}

/* Runs a program again and again for MEASURE_NS; nanoseconds of the fastest pass. */
static int time_ops(struct probe *p, const struct dl_op *ops, uint32_t n_ops, uint32_t n_tokens, double *best_ns)
{
    dl_prog *prog = NULL;
    struct dl_run_args args = {n_tokens, 1, p->batch};
    int err = dl_prog_create(p->dev, ops, n_ops, p->bufs, DL_COUNT_OF(p->bufs), &prog);
    uint64_t begin = dl_now_ns();
    ((struct dl_batch_head *)dl_buf_map(p->dev, p->batch))->n_tokens = n_tokens;
    *best_ns = 1e18;
    for (uint32_t i = 0; !err && i < MAX_PASSES; i++) {
        uint64_t t0 = dl_now_ns();
        err = dl_device_submit(p->dev, prog, &args, 0, p->dev->device_at + 1);
        if (!err)
            err = dl_device_wait(p->dev, p->dev->device_at, UINT64_MAX);
        uint64_t t1 = dl_now_ns();
        if (i) /* the first one warms up */
            *best_ns = DL_MIN(*best_ns, (double)(t1 - t0));
        if (i && t1 - begin > MEASURE_NS)
            break;
    }
    dl_prog_destroy(p->dev, &prog);
    return err;
}

static int prepare(struct probe *p, uint32_t rows, uint32_t cols, enum dl_type weight)
{
    const enum dl_type act = dl_type_quantised(weight) ? DL_Q80 : DL_F32;
    static const struct dl_batch_shape shape = {TOKENS, 1, 1, 1};
    uint32_t words = (uint32_t)(dl_batch_bytes(&shape) / sizeof(uint32_t));
    struct dl_buf_desc batch = {"batch", DL_BUF_INPUT, DL_F32, 1, words, (uint64_t)words * sizeof(uint32_t)};
    int err = dl_buf_create(p->dev, &batch, &p->batch);
    if (!err)
        *(struct dl_batch_head *)dl_buf_map(p->dev, p->batch) = (struct dl_batch_head){
            .n_tokens = TOKENS, .n_out = 1, .max_tokens = TOKENS, .max_out = 1, .max_tables = 1, .table_cols = 1};
    if (!err)
        err = add(p, 0, "measure src", DL_BUF_ACT, act, 1, cols);
    if (!err)
        err = add(p, 1, "measure dst", DL_BUF_ACT, DL_F32, 1, DL_MAX(rows, SMALL_ROWS));
    if (!err)
        err = add(p, 2, "measure small", DL_BUF_WEIGHT, weight, SMALL_ROWS, cols);
    if (!err)
        err = fill(p, 2);
    if (!err)
        err = add(p, MANY, "measure many", DL_BUF_ACT, act, TOKENS, cols);
    if (!err)
        err = add(p, MANY + 1, "measure many dst", DL_BUF_ACT, DL_F32, TOKENS, p->many_rows);
    if (!err)
        err = add(p, MANY + 2, "measure many weights", DL_BUF_WEIGHT, weight, p->many_rows, cols);
    if (!err)
        err = fill(p, MANY + 2);
    for (uint32_t i = 0; !err && i < N_BIG; i++) {
        err = add(p, BIG + i, "measure weights", DL_BUF_WEIGHT, weight, rows, cols);
        if (!err)
            err = fill(p, BIG + i);
    }
    return err;
}

int dl_device_measure(dl_device *dev, const struct dl_model_header *h, enum dl_type weight, struct dl_device_rate *out)
{
    struct probe p = {.dev = dev};
    *out = (struct dl_device_rate){0};
    uint64_t row = 0;
    if (!dl_row_bytes(weight, h->dim, &row))
        return dl_fail(DL_EINVAL, "measure: rows of %u values are no whole blocks", h->dim);
    uint32_t rows = (uint32_t)DL_MIN(PASS_BYTES / N_BIG / row, (uint64_t)UINT32_MAX) / SMALL_ROWS * SMALL_ROWS;
    rows = DL_MAX(rows, SMALL_ROWS);
    p.many_rows = DL_MIN(rows, MANY_ROWS);
    struct dl_op small[N_SMALL], big[N_BIG];
    double small_ns = 0, one_ns = 0, big_ns = 0, many_ns = 0;
    int err = prepare(&p, rows, h->dim, weight);
    for (uint32_t i = 0; !err && i < N_SMALL; i++)
        small[i] = product(&p, 0, 2);
    for (uint32_t i = 0; !err && i < N_BIG; i++)
        big[i] = product(&p, 0, BIG + i);
    if (!err)
        err = time_ops(&p, big, N_BIG, 1, &big_ns);
    if (!err)
        err = time_ops(&p, small, 1, 1, &one_ns);
    if (!err)
        err = time_ops(&p, small, N_SMALL, 1, &small_ns);
    if (!err) {
        struct dl_op many = product(&p, MANY, MANY + 2);
        err = time_ops(&p, &many, 1, TOKENS, &many_ns);
    }
    if (!err) {
        out->bytes_per_s = (double)(p.desc[BIG].bytes * N_BIG) / (big_ns * 1e-9);
        out->op_ns = DL_MAX(0.0, (small_ns - one_ns) / (N_SMALL - 1));
        out->submit_ns = one_ns;
        out->flops = 2.0 * TOKENS * p.many_rows * h->dim / (DL_MAX(1.0, many_ns - one_ns) * 1e-9);
    }
    for (uint32_t i = 0; i < DL_COUNT_OF(p.bufs); i++)
        dl_buf_destroy(dev, &p.bufs[i]);
    dl_buf_destroy(dev, &p.batch);
    return err;
}

double dl_device_token_ns(const struct dl_device_rate *rate, const struct dl_model_header *h, uint64_t bytes_per_token)
{
    const double ops_per_layer = h->n_experts ? 16 : 12;
    return rate->submit_ns + (double)bytes_per_token / rate->bytes_per_s * 1e9 +
           rate->op_ns * ops_per_layer * h->n_layers;
}
