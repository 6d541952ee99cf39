/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_fused.c: ops that the Vulkan device runs as one kernel give what the CPU's definition gives one after the other; so do
 * the same ops in neighbourhoods where they may not be taken together.
 */
#include "common.h"

#include <math.h>

#include "dl/device.h"

#define BUFS 8u
#define ROWS 7u /* of the views; batches are smaller */

static dl_device *cpu, *gpu;

static int open_devices(void **state)
{
    (void)state;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    struct dl_cpu_opts ref = {.threads = 1, .isa = "ref"};
    struct dl_vulkan_opts opts = {.index = -1};
    int err = dl_vulkan_open(&opts, &gpu);
    if (err && err != DL_EUNSUP)
        return err;
    return dl_cpu_open(&ref, &cpu);
}

static int close_devices(void **state)
{
    (void)state;
    dl_device_close(&gpu);
    dl_device_close(&cpu);
    return 0;
}

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
};

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

static void norm(struct prog *p, enum dl_type to, struct dl_view x, struct dl_view w, float eps)
{
    struct dl_op *o = op(p, DL_OP_RMS_NORM, view(p, DL_BUF_ACT, to, ROWS, x.cols), x);
    o->src[1] = w;
    o->u.norm.group = w.cols;
    o->u.norm.eps = eps;
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
        double bound = d->type == DL_F32 ? 1e-11 : 1e-6;
        if (!(err <= bound * ref))
            fail_msg("%s: buffer %u (%s), row %u: NMSE %g", what, buf, dl_type_info(d->type)->name, r, err / ref);
    }
    free(g);
    free(w);
}

static void check(struct prog *p, const char *what)
{
    for (uint32_t n = 1; n < ROWS; n += 2) {
        size_t bytes;
        uint8_t *got = run(gpu, p, n, &bytes), *want = run(cpu, p, n, &bytes), *g = got, *w = want;
        for (uint32_t i = 0; i < p->n_bufs; i++)
            if (p->descs[i].use != DL_BUF_WEIGHT) {
                compare(p, i, g, w, what);
                g += p->descs[i].bytes;
                w += p->descs[i].bytes;
            }
        free(got);
        free(want);
    }
    for (uint32_t i = 0; i < p->n_bufs; i++)
        free(p->bytes[i]);
}

static void test_sum_and_norms(void **state)
{
    (void)state;
    NEED_GPU();
    static const enum dl_type wires[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t cols[] = {64, 544, 4128};
    for (size_t c = 0; c < DL_COUNT_OF(cols); c++)
        for (int kind = -1; kind < (int)DL_COUNT_OF(wires); kind++)
            for (int in_place = 0; in_place < 2; in_place++)
                for (int norms = 0; norms < 4; norms++) {
                    struct prog p = {.rng = (uint64_t)(kind + 9)};
                    struct dl_view x = view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c]), to = x;
                    if (!in_place)
                        to = view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c]);
                    struct dl_op *o = op(&p, kind < 0 ? DL_OP_ADD : DL_OP_MERGE, to, x);
                    o->src[1] = kind < 0 ? view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c])
                                         : view(&p, DL_BUF_WIRE, wires[kind], 3 * ROWS, cols[c]);
                    if (kind >= 0) {
                        o->src[1].rows = ROWS;
                        o->u.merge.n_slices = 3;
                        o->u.merge.slice_bytes = ROWS * o->src[1].row_bytes;
                    }
                    struct dl_view w = view(&p, DL_BUF_WEIGHT, DL_F32, 1, cols[c]);
                    if (norms & 1)
                        norm(&p, DL_F32, to, w, 1e-5f);
                    if (norms & 2)
                        norm(&p, DL_Q80, to, w, 1e-5f);
                    check(&p, "sum and norms");
                }
}

/* Close to what may be one kernel, but not it. */
static void test_not_together(void **state)
{
    (void)state;
    NEED_GPU();
    for (int kind = 0; kind < 5; kind++) {
        struct prog p = {.rng = 5};
        struct dl_view x = view(&p, DL_BUF_ACT, DL_F32, ROWS, 128), part = view(&p, DL_BUF_ACT, DL_F32, ROWS, 128);
        struct dl_view w = view(&p, DL_BUF_WEIGHT, DL_F32, 1, kind == 0 ? 64 : 128);
        op(&p, DL_OP_ADD, x, x)->src[1] = part;
        if (kind == 0) { /* norms of heads */
            norm(&p, DL_F32, x, w, 1e-5f);
        } else if (kind == 1) { /* in place: the sum itself would be lost */
            struct dl_op *o = op(&p, DL_OP_RMS_NORM, x, x);
            o->src[1] = w;
            o->u.norm.group = 128;
        } else if (kind == 2) { /* another epsilon */
            norm(&p, DL_F32, x, w, 1e-5f);
            norm(&p, DL_Q80, x, w, 0.5f);
        } else if (kind == 3) { /* of something else */
            norm(&p, DL_F32, part, w, 1e-5f);
        } else { /* into what the sum has read */
            struct dl_op *o = op(&p, DL_OP_RMS_NORM, part, x);
            o->src[1] = w;
            o->u.norm.group = 128;
        }
        check(&p, "not together");
    }
}

static void test_rope_and_stores(void **state)
{
    (void)state;
    NEED_GPU();
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t dims[] = {8, 64, 96, 128, 256};
    enum { Q = 6, KV = 2 };
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (int kind = 0; kind < 4; kind++) { /* bit 0: halves, bit 1: k and v change places in the row */
                if (types[t] == DL_Q80 && dims[d] % DL_BLOCK)
                    continue;
                struct prog p = {.rng = d + 1};
                uint32_t hd = dims[d], rot = d % 2 ? hd : hd / 4 * 2;
                struct dl_view qkv = view(&p, DL_BUF_ACT, DL_F32, ROWS, (Q + 2 * KV) * hd), turned = qkv;
                turned.cols = (Q + KV) * hd;
                struct dl_op *o = op(&p, DL_OP_ROPE, turned, turned);
                o->src[1] = view(&p, DL_BUF_INPUT, DL_F32, ROWS, rot);
                o->u.rope.head_dim = hd;
                o->u.rope.n_rot = rot;
                o->u.rope.layout = kind & 1 ? DL_ROPE_HALVES : DL_ROPE_PAIRS;
                for (uint32_t i = 0; i < 2; i++) {
                    struct dl_view src = qkv;
                    src.cols = KV * hd;
                    src.offset = 4 * (uint64_t)hd * (Q + (kind & 2 ? 1 - i : i) * KV);
                    o = op(&p, DL_OP_KV_STORE, view(&p, DL_BUF_KV, types[t], 3 * KV * DL_KV_BLOCK, hd), src);
                    o->u.kv.n_kv_heads = KV;
                    o->u.kv.head_dim = hd;
                }
                check(&p, "rope and stores");
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_and_norms),
        cmocka_unit_test(test_not_together),
        cmocka_unit_test(test_rope_and_stores),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
