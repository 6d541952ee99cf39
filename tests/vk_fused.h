/* SPDX-License-Identifier: MIT
 *
 * tests/vk_fused.h: programs of a few ops that may become one kernel, run on the Vulkan device and on the CPU.
 */
#ifndef TESTS_VK_FUSED_H
#define TESTS_VK_FUSED_H

#include "common.h"

#include <math.h>

#include "dl/device.h"
#include "vk.h"

#define BUFS 16u
#ifndef ROWS
#define ROWS 7u /* of the views; batches are smaller */
#endif

static dl_device *cpu, *gpu;

#define NEED_GPU()                                      \
    if (!gpu) {                                         \
        fprintf(stderr, "SKIPPED: no Vulkan device\n"); \
        skip();                                         \
    }

/* A program over a few buffers; `bytes` is what they hold before it runs. */
struct prog {
    struct dl_op ops[4];
    uint32_t n_ops, n_bufs;
    struct dl_buf_desc descs[BUFS];
    uint8_t *bytes[BUFS];
    uint64_t rng;
    double bound;        /* of F32 results; 0: 1e-11 */
    uint32_t dispatches; /* that the GPU should need for the whole; 0: any */
    uint32_t carried;    /* a buffer that a CONVERT carries in, plus 1: differences of values of others; 0: none */
    bool fine;           /* ... into Q120, whose steps are a sixteenth of Q80's */
};

static uint32_t n_dispatches;       /* of the GPU's last run */
static double carried_bound = 1e-4; /* with Q80: some codes that fall on a border, half of what is carried at all */

static struct dl_view view(struct prog *p, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols)
{
    assert_true(p->n_bufs < BUFS);
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    p->descs[p->n_bufs] = (struct dl_buf_desc){"buffer", use, type, rows, cols, row * rows};
    p->bytes[p->n_bufs] = dl_xcalloc(row * rows, 1);
    float *values = dl_xcalloc(cols, sizeof *values);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t i = 0; i < cols; i++)
            values[i] = test_randf(&p->rng) * 2;
        dl_row_from_f32(type, values, p->bytes[p->n_bufs] + r * row, cols);
    }
    free(values);
    return (struct dl_view){.buf = p->n_bufs++, .rows = rows, .cols = cols, .type = type, .row_bytes = row};
}

static struct dl_op *op(struct prog *p, enum dl_opcode code, struct dl_view dst, struct dl_view src0)
{
    struct dl_op *o = &p->ops[p->n_ops++];
    *o = (struct dl_op){.code = code, .name = dl_op_name(code), .mult = 1, .dst = dst, .src = {src0}};
    o->src[1].buf = o->src[2].buf = DL_NO_BUF;
    return o;
}

/* All buffers after the program, one after the other. */
static uint8_t *run(dl_device *dev, const struct prog *p, uint32_t n_tokens, size_t *n)
{
    static uint64_t signal;
    dl_buf *bufs[BUFS] = {0}, *batch = NULL;
    dl_prog *prog = NULL;
    struct dl_batch_shape shape = {ROWS, ROWS, 1, 2};
    struct dl_buf_desc desc = {.name = "batch", .use = DL_BUF_INPUT, .type = DL_F32, .rows = 1};
    desc.bytes = dl_batch_bytes(&shape);
    desc.cols = (uint32_t)(desc.bytes / 4);
    *n = 0;
    for (uint32_t i = 0; i < p->n_bufs; i++) {
        assert_int_equal(dl_buf_create(dev, &p->descs[i], &bufs[i]), 0);
        assert_int_equal(dl_buf_write(dev, bufs[i], 0, p->bytes[i], p->descs[i].bytes), 0);
        *n += p->descs[i].use == DL_BUF_WEIGHT ? 0 : p->descs[i].bytes;
    }
    assert_int_equal(dl_buf_create(dev, &desc, &batch), 0);
    uint8_t *b = dl_buf_map(dev, batch);
    struct dl_batch_head head = {n_tokens, n_tokens, ROWS, ROWS, 1, 2, {0, 0}};
    memcpy(b, &head, sizeof head);
    for (uint32_t i = 0; i < n_tokens; i++) {
        struct dl_batch_row row = {.pos = 29 + i};
        memcpy(b + dl_batch_rows_at() + i * sizeof row, &row, sizeof row);
    }
    static const uint32_t blocks[] = {2, 1};
    memcpy(b + dl_batch_tables_at(&shape), blocks, sizeof blocks);

    struct dl_run_args args = {.n_tokens = n_tokens, .n_out = n_tokens, .batch = batch};
    assert_int_equal(dl_prog_create(dev, p->ops, p->n_ops, bufs, p->n_bufs, &prog), 0);
    assert_int_equal(dl_device_submit(dev, prog, &args, 0, ++signal), 0);
    assert_int_equal(dl_device_wait(dev, signal, 60000000000u), 0);
    if (dev == gpu) {
        struct vk_recording *r;
        assert_int_equal(vk_prog_record(vk_ctx_of(dev), (struct vk_prog *)(void *)prog, &args, &r), 0);
        n_dispatches = r->n_dispatches;
    }
    dl_prog_destroy(dev, &prog);

    uint8_t *all = dl_xcalloc(*n, 1), *at = all;
    for (uint32_t i = 0; i < p->n_bufs; i++) {
        if (p->descs[i].use != DL_BUF_WEIGHT) {
            assert_int_equal(dl_buf_read(dev, bufs[i], 0, at, p->descs[i].bytes), 0);
            at += p->descs[i].bytes;
        }
        dl_buf_destroy(dev, &bufs[i]);
    }
    dl_buf_destroy(dev, &batch);
    return all;
}

static void compare(const struct prog *p, uint32_t buf, const uint8_t *got, const uint8_t *want, const char *what)
{
    const struct dl_buf_desc *d = &p->descs[buf];
    uint64_t row = d->bytes / d->rows;
    float *g = dl_xcalloc(d->cols, sizeof *g), *w = dl_xcalloc(d->cols, sizeof *w);
    for (uint32_t r = 0; r < d->rows; r++) {
        double err = 0, ref = 0;
        dl_row_to_f32(d->type, got + r * row, g, d->cols);
        dl_row_to_f32(d->type, want + r * row, w, d->cols);
        for (uint32_t i = 0; i < d->cols; i++) {
            err += ((double)g[i] - (double)w[i]) * ((double)g[i] - (double)w[i]);
            ref += (double)w[i] * (double)w[i];
        }
        /* What falls on a border when it is rounded may go either way. */
        double bound = d->type == DL_Q80       ? 1e-5
                       : d->type != DL_F32     ? 1e-6
                       : buf + 1 == p->carried ? carried_bound / (p->fine ? 256 : 1)
                       : p->bound > 0          ? p->bound
                                               : 1e-11;
        if (!(err <= bound * ref))
            fail_msg("%s: buffer %u (%s), row %u: NMSE %g", what, buf, dl_type_info(d->type)->name, r, err / ref);
    }
    free(g);
    free(w);
}

static void compare_all(const struct prog *p, const uint8_t *got, const uint8_t *want, const char *what)
{
    for (uint32_t i = 0; i < p->n_bufs; i++)
        if (p->descs[i].use != DL_BUF_WEIGHT) {
            compare(p, i, got, want, what);
            got += p->descs[i].bytes;
            want += p->descs[i].bytes;
        }
}

static struct dl_op *matmul(struct prog *p, struct dl_view dst, struct dl_view x, enum dl_type type, bool bias)
{
    struct dl_op *o = op(p, DL_OP_MATMUL, dst, x);
    o->src[1] = view(p, DL_BUF_WEIGHT, type, dst.cols, x.cols);
    if (bias)
        o->src[2] = view(p, DL_BUF_WEIGHT, DL_F32, 1, dst.cols);
    return o;
}

static struct dl_view acts(struct prog *p, enum dl_type weights, uint32_t cols)
{
    bool q = weights == DL_Q40 || weights == DL_Q80;
    return view(p, DL_BUF_ACT, q ? DL_Q80 : DL_F32, ROWS, cols);
}

#endif
