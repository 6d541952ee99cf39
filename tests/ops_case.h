/* SPDX-License-Identifier: MIT
 *
 * tests/ops_case.h: one op with its buffers as raw bytes, how it is run on a device through dl/device.h alone, and how the
 * result is compared. Every byte that an op has no business with is 0xff (a NaN in every format, or a NaN scale): reading
 * it shows in the result, writing it is found by comparison. Knows no opcode but for what KV_STORE may write.
 */
#ifndef TESTS_OPS_CASE_H
#define TESTS_OPS_CASE_H

#include "common.h"

#include <math.h>

#include "dl/device.h"

struct ops_buf {
    struct dl_buf_desc desc;
    uint8_t *bytes;
};

struct ops_case {
    struct dl_op op;
    struct ops_buf bufs[4]; /* [0] is dst's */
    uint32_t n_bufs;
    struct dl_batch_shape shape;
    uint32_t n_tokens, n_out;
    uint8_t *batch;
    uint32_t weight_shift; /* 0: weights are written; else imported, this many bytes off a multiple of 64 */
    double bound;          /* NMSE of each row; 0: exact */
    bool varies;           /* the result must not be all the same number */
    uint8_t *writable;     /* per byte of bufs[0] */
    bool *used;            /* per row of dst */
    double *want;          /* (dst.rows, dst.cols); the rows that are used */
    char label[240];
};

static void ops_free(struct ops_case *c)
{
    for (uint32_t i = 0; i < c->n_bufs; i++)
        free(c->bufs[i].bytes);
    free(c->batch);
    free(c->writable);
    free(c->used);
    free(c->want);
}

static uint64_t ops_bytes(enum dl_type type, uint64_t cols)
{
    uint64_t bytes = 0;
    assert_true(dl_row_bytes(type, cols, &bytes));
    return bytes;
}

/* A fresh buffer with a view (rows, cols) into it, `pad` columns away from either side. pad == 0: the view is all of it. */
static struct dl_view ops_view(struct ops_case *c, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols,
                               uint32_t pad)
{
    static const char *const names[] = {"dst", "src0", "src1", "src2"};
    uint32_t all = cols + 2 * pad;
    struct ops_buf *b = &c->bufs[c->n_bufs];
    b->desc = (struct dl_buf_desc){.name = names[c->n_bufs], .use = use, .type = type, .rows = rows, .cols = all};
    b->desc.bytes = rows * ops_bytes(type, all);
    b->bytes = dl_xcalloc(b->desc.bytes, 1);
    memset(b->bytes, 0xff, b->desc.bytes);
    return (struct dl_view){.buf = c->n_bufs++,
                            .rows = rows,
                            .cols = cols,
                            .type = type,
                            .offset = ops_bytes(type, pad),
                            .row_bytes = ops_bytes(type, all)};
}

static uint8_t *ops_row(const struct ops_case *c, const struct dl_view *v, uint64_t row)
{
    return c->bufs[v->buf].bytes + v->offset + row * v->row_bytes;
}

/* Values of a view as doubles, (rows, cols). */
static double *ops_values(const struct ops_case *c, const struct dl_view *v)
{
    double *out = dl_xcalloc((size_t)v->rows * v->cols, sizeof *out);
    float *row = dl_xcalloc(v->cols, sizeof *row);
    for (uint32_t r = 0; r < v->rows; r++) {
        dl_row_to_f32(v->type, ops_row(c, v, r), row, v->cols);
        for (uint32_t i = 0; i < v->cols; i++)
            out[(size_t)r * v->cols + i] = (double)row[i];
    }
    free(row);
    return out;
}

/* --------------------------------------------------------------------------------------------------- fills */

enum ops_fill { FILL_RANDOM, FILL_TINY, FILL_HUGE, FILL_SPREAD, FILL_ZERO, FILL_COUNT };
static const char *const ops_fill_names[] = {"random", "tiny", "huge", "spread", "zero"};

/* Tiny is subnormal in the half scales of the quantised formats and in halves. */
static float ops_value(enum ops_fill fill, enum dl_type type, uint64_t *rng)
{
    float x = test_randf(rng) + test_randf(rng) * 0.5f + test_randf(rng) * 0.5f;
    bool wide = type == DL_F32 || type == DL_BF16;
    switch (fill) {
    case FILL_TINY:
        return x * (wide ? 1e-30f : type == DL_F16 ? 3e-6f : 3e-5f);
    case FILL_HUGE:
        return x * 1e4f;
    case FILL_SPREAD:
        return x * exp2f((float)(test_rand(rng) % 24) - 12.0f);
    case FILL_ZERO:
        return 0;
    default:
        return x;
    }
}

static void ops_fill_rows(struct ops_case *c, const struct dl_view *v, uint32_t rows, enum ops_fill fill, uint64_t *rng)
{
    float *values = dl_xcalloc(v->cols, sizeof *values);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < v->cols; i++)
            values[i] = ops_value(fill, v->type, rng);
        dl_row_from_f32(v->type, values, ops_row(c, v, r), v->cols);
    }
    free(values);
}

/* ----------------------------------------------------------------------------------------------- the batch */

/* n tokens, all at position 0 of table 0; out rows ascend. */
static void ops_batch(struct ops_case *c, uint32_t n_tokens, uint32_t n_out, uint32_t max_tokens, uint32_t max_out,
                      uint32_t max_tables, uint32_t table_cols)
{
    c->shape = (struct dl_batch_shape){max_tokens, max_out, max_tables, table_cols};
    c->n_tokens = n_tokens;
    c->n_out = n_out;
    size_t bytes = dl_batch_bytes(&c->shape);
    c->batch = dl_xcalloc(bytes, 1);
    memset(c->batch, 0xff, bytes);
    struct dl_batch_head head = {n_tokens, n_out, max_tokens, max_out, max_tables, table_cols, {0, 0}};
    memcpy(c->batch, &head, sizeof head);
    memset(c->batch + dl_batch_rows_at(), 0, n_tokens * sizeof(struct dl_batch_row));
    uint32_t *out = (uint32_t *)(void *)(c->batch + dl_batch_out_at(&c->shape));
    for (uint32_t i = 0; i < n_out; i++)
        out[i] = n_tokens - n_out + i;
}
static struct dl_batch_row *ops_batch_rows(const struct ops_case *c)
{
    return (struct dl_batch_row *)(void *)(c->batch + dl_batch_rows_at());
}
static uint32_t *ops_out_rows(const struct ops_case *c)
{
    return (uint32_t *)(void *)(c->batch + dl_batch_out_at(&c->shape));
}
static uint32_t *ops_table(const struct ops_case *c, uint32_t table)
{
    return (uint32_t *)(void *)(c->batch + dl_batch_tables_at(&c->shape)) + (size_t)table * c->shape.table_cols;
}

static uint32_t ops_n(const struct ops_case *c)
{
    return (c->op.count == DL_COUNT_OUT ? c->n_out : c->n_tokens) * c->op.mult;
}

static uint64_t ops_kv_row(const struct ops_case *c, uint32_t token, uint32_t n_kv, uint32_t head, uint32_t pos)
{
    uint32_t block = ops_table(c, ops_batch_rows(c)[token].table)[pos / DL_KV_BLOCK];
    return ((uint64_t)block * n_kv + head) * DL_KV_BLOCK + pos % DL_KV_BLOCK;
}

/* Once op, views and batch are final: which rows and bytes of dst the op owns. */
static void ops_ready(struct ops_case *c)
{
    const struct dl_view *d = &c->op.dst;
    c->used = dl_xcalloc(d->rows, sizeof *c->used);
    c->writable = dl_xcalloc(c->bufs[d->buf].desc.bytes, 1);
    c->want = dl_xcalloc((size_t)d->rows * d->cols, sizeof *c->want);
    if (c->op.code == DL_OP_KV_STORE) {
        for (uint32_t t = 0; t < c->n_tokens; t++)
            for (uint32_t h = 0; h < c->op.u.kv.n_kv_heads; h++)
                c->used[ops_kv_row(c, t, c->op.u.kv.n_kv_heads, h, ops_batch_rows(c)[t].pos)] = true;
    } else {
        for (uint32_t r = 0; r < ops_n(c); r++)
            c->used[r] = true;
    }
    for (uint32_t r = 0; r < d->rows; r++)
        if (c->used[r])
            memset(c->writable + d->offset + r * d->row_bytes, 1, ops_bytes(d->type, d->cols));
}

/* ------------------------------------------------------------------------------------------------- running */

#define OPS_CHECK(c, dev, cond, ...)                                        \
    do {                                                                    \
        if (!(cond)) {                                                      \
            fprintf(stderr, "FAILED on %s: %s: ", (dev)->name, (c)->label); \
            fprintf(stderr, __VA_ARGS__);                                   \
            fprintf(stderr, " (%s)\n", #cond);                              \
            fail();                                                         \
        }                                                                   \
    } while (0)

/* What a CONVERT carries on is what its dst, as it came out, lacks; all other bytes of the buffer are as they were. */
static void ops_check_carried(const struct ops_case *c, dl_device *dev, const uint8_t *out, uint8_t *now)
{
    const struct dl_view *d = &c->op.dst, *s = &c->op.src[1];
    float *stored = dl_xcalloc(d->cols, sizeof *stored);
    for (uint32_t r = 0; r < ops_n(c); r++) {
        uint8_t *at = now + s->offset + r * s->row_bytes;
        dl_row_to_f32(d->type, out + d->offset + r * d->row_bytes, stored, d->cols);
        for (uint32_t i = 0; i < d->cols; i++) {
            volatile float lost = (float)c->want[(size_t)r * d->cols + i] - stored[i];
            float got;
            memcpy(&got, at + 4 * (size_t)i, 4);
            OPS_CHECK(c, dev, got == lost, "row %u, col %u: carries %.9g, want %.9g", r, i, (double)got, (double)lost);
        }
        memcpy(at, ops_row(c, s, r), 4 * (size_t)d->cols);
    }
    free(stored);
}

/* Runs the op; returns dst's buffer, to be freed. Sources must come back as they were. */
static uint8_t *ops_run(dl_device *dev, const struct ops_case *c)
{
    dl_buf *bufs[4] = {0}, *batch = NULL;
    uint8_t *imported[4] = {0};
    for (uint32_t i = 0; i < c->n_bufs; i++) {
        const struct ops_buf *b = &c->bufs[i];
        if (b->desc.use == DL_BUF_WEIGHT && c->weight_shift) {
            imported[i] = dl_alloc_aligned(64, b->desc.bytes + c->weight_shift);
            memcpy(imported[i] + c->weight_shift, b->bytes, b->desc.bytes);
            assert_int_equal(dl_buf_import(dev, &b->desc, imported[i] + c->weight_shift, &bufs[i]), 0);
            continue;
        }
        assert_int_equal(dl_buf_create(dev, &b->desc, &bufs[i]), 0);
        uint64_t row = b->desc.bytes / b->desc.rows; /* in pieces, of which some begin and end inside a tile */
        uint32_t pieces[] = {DL_MIN(3u, b->desc.rows), DL_MIN(14u, b->desc.rows), DL_MIN(24u, b->desc.rows),
                             b->desc.rows};
        for (uint32_t at = 0, p = 0; p < DL_COUNT_OF(pieces); at = pieces[p++])
            assert_int_equal(dl_buf_write(dev, bufs[i], at * row, b->bytes + at * row, (pieces[p] - at) * row), 0);
    }
    uint64_t batch_bytes = dl_batch_bytes(&c->shape);
    struct dl_buf_desc desc = {.name = "batch",
                               .use = DL_BUF_INPUT,
                               .type = DL_F32,
                               .rows = 1,
                               .cols = (uint32_t)(batch_bytes / 4),
                               .bytes = batch_bytes};
    assert_int_equal(dl_buf_create(dev, &desc, &batch), 0);
    memcpy(dl_buf_map(dev, batch), c->batch, batch_bytes);

    /* Signals only grow over the life of a device. */
    static uint64_t signal;
    dl_prog *prog = NULL;
    struct dl_run_args args = {.n_tokens = c->n_tokens, .n_out = c->n_out, .batch = batch};
    OPS_CHECK(c, dev, !dl_prog_create(dev, &c->op, 1, bufs, c->n_bufs, &prog), "prog_create");
    OPS_CHECK(c, dev, !dl_device_submit(dev, prog, &args, 0, ++signal), "submit");
    OPS_CHECK(c, dev, !dl_device_wait(dev, signal, 60000000000u), "wait");
    dl_prog_destroy(dev, &prog);

    uint8_t *out = NULL;
    for (uint32_t i = 0; i < c->n_bufs; i++) {
        const struct ops_buf *b = &c->bufs[i];
        if (b->desc.use != DL_BUF_WEIGHT) {
            uint8_t *now = dl_xcalloc(b->desc.bytes, 1);
            assert_int_equal(dl_buf_read(dev, bufs[i], 0, now, b->desc.bytes), 0);
            if (i == c->op.dst.buf) {
                out = now;
            } else {
                if (dl_op_carries(&c->op) && i == c->op.src[1].buf)
                    ops_check_carried(c, dev, out, now);
                OPS_CHECK(c, dev, !memcmp(now, b->bytes, b->desc.bytes), "source buffer %u was changed", i);
                free(now);
            }
        }
        dl_buf_destroy(dev, &bufs[i]);
        dl_free_aligned(imported[i]);
    }
    dl_buf_destroy(dev, &batch);
    return out;
}

/* ----------------------------------------------------------------------------------------------- comparison */

/* One block: scale as of the wanted values, codes rounded from them. Where the values come out of a computation of bounded
 * error, `slack` lets the scale be a neighbour and a code on a border fall either way. */
static void ops_check_q80(const struct ops_case *c, dl_device *dev, const uint8_t *got, const double *want,
                          uint32_t row, bool slack)
{
    float amax = 0;
    for (int i = 0; i < DL_BLOCK; i++)
        amax = fmaxf(amax, fabsf((float)want[i]));
    uint16_t d = dl_f32_to_f16(fminf(amax / 127.0f, 65504.0f)), d_got = (uint16_t)(got[0] | got[1] << 8);
    OPS_CHECK(c, dev, slack ? d_got + 1 >= d && d_got <= d + 1 : d_got == d, "row %u: scale %#x, want %#x", row,
              (unsigned)d_got, (unsigned)d);
    for (int i = 0; i < DL_BLOCK; i++) {
        double exact = amax > 0 ? (double)(float)want[i] * 127.0 / (double)amax : 0;
        int q = (int8_t)got[2 + i];
        OPS_CHECK(c, dev, fabs(q - exact) <= (slack ? 0.51 : 0.5001), "row %u, value %d of a block: code %d, want %.4f",
                  row, i, q, exact);
    }
}

/* Likewise, of values that are exact. A CPU writes the definition's very bits; a GPU's division may have a code on a border fall either
 * way. */
static void ops_check_q120(const struct ops_case *c, dl_device *dev, const uint8_t *got, const double *want,
                           uint32_t row)
{
    float x[DL_BLOCK], back[DL_BLOCK];
    uint8_t block[sizeof(struct dl_q120)];
    for (int i = 0; i < DL_BLOCK; i++)
        x[i] = (float)want[i];
    dl_row_from_f32(DL_Q120, x, block, DL_BLOCK);
    OPS_CHECK(c, dev, !memcmp(got, block, strcmp(dev->kind, "cpu") ? 2 : sizeof block), "row %u: other bytes", row);
    dl_row_to_f32(DL_Q120, got, back, DL_BLOCK);
    float d = dl_bf16_to_f32((uint16_t)(got[0] | got[1] << 8));
    for (int i = 0; i < DL_BLOCK; i++)
        OPS_CHECK(c, dev, d > 0 ? fabs((double)back[i] - want[i]) <= 0.501 * (double)d : back[i] == 0,
                  "row %u, value %d of a block: %.9g, want %.9g, scale %g", row, i, (double)back[i], want[i],
                  (double)d);
}

static void ops_check_f32(const struct ops_case *c, dl_device *dev, const uint8_t *row, const double *want, uint32_t r)
{
    double err = 0, ref = 0;
    for (uint32_t i = 0; i < c->op.dst.cols; i++) {
        float got;
        memcpy(&got, row + 4 * (size_t)i, 4);
        bool exact = c->bound == 0 || (c->op.code == DL_OP_MOE_ROUTE && i < c->op.u.moe.k);
        if (exact)
            OPS_CHECK(c, dev, got == (float)want[i], "row %u, col %u: %.9g, want %.9g", r, i, (double)got, want[i]);
        else
            OPS_CHECK(c, dev, isfinite(got), "row %u, col %u: %g, want %.9g", r, i, (double)got, want[i]);
        if (!exact) {
            err += ((double)got - want[i]) * ((double)got - want[i]);
            ref += want[i] * want[i];
        }
    }
    OPS_CHECK(c, dev, err <= c->bound * ref, "row %u: NMSE %.3g, bound %.3g", r, ref > 0 ? err / ref : INFINITY,
              c->bound);
}

static void ops_compare(const struct ops_case *c, dl_device *dev, const uint8_t *got)
{
    const struct dl_view *d = &c->op.dst;
    const struct ops_buf *b = &c->bufs[d->buf];
    for (uint64_t i = 0; i < b->desc.bytes; i++)
        OPS_CHECK(c, dev, c->writable[i] || got[i] == b->bytes[i], "byte %llu outside the result was written",
                  (unsigned long long)i);
    bool slack = c->op.code == DL_OP_RMS_NORM || c->op.code == DL_OP_GLU;
    for (uint32_t r = 0; r < d->rows; r++) {
        if (!c->used[r])
            continue;
        const uint8_t *row = got + d->offset + r * d->row_bytes;
        const double *want = c->want + (size_t)r * d->cols;
        if (d->type == DL_F32)
            ops_check_f32(c, dev, row, want, r);
        for (uint32_t i = 0; d->type == DL_Q80 && i < d->cols; i += DL_BLOCK)
            ops_check_q80(c, dev, row + ops_bytes(DL_Q80, i), want + i, r, slack);
        for (uint32_t i = 0; d->type == DL_Q120 && i < d->cols; i += DL_BLOCK)
            ops_check_q120(c, dev, row + ops_bytes(DL_Q120, i), want + i, r);
        for (uint32_t i = 0; (d->type == DL_F16 || d->type == DL_BF16) && i < d->cols; i++) {
            float f = (float)want[i];
            uint16_t h = d->type == DL_F16 ? dl_f32_to_f16(f) : dl_f32_to_bf16(f);
            OPS_CHECK(c, dev, (row[2 * i] | row[2 * i + 1] << 8) == h, "row %u, col %u: %02x%02x, want %04x (%g)", r, i,
                      row[2 * i + 1], row[2 * i], (unsigned)h, want[i]);
        }
    }
}

#endif
