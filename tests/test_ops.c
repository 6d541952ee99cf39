/* SPDX-License-Identifier: MIT
 *
 * tests/test_ops.c: every op on every device and kernel variant, over edge shapes, against the formulas (ops_oracle.h).
 * A device is one row of the table that open_devices() fills, and is only used through dl/device.h.
 */
#include "cpu_sets.h"
#include "ops_build.h"
#include "ops_case.h"
#include "ops_oracle.h"

/* A twin computes with the same kernels as an earlier row and has to give its very bits. */
struct ops_device {
    dl_device *dev;
    int twin_of; /* row, -1: none */
};
static struct ops_device devices[32];
static uint32_t n_devices;

static int add_device(dl_device *dev, int twin_of)
{
    assert_true(n_devices < DL_COUNT_OF(devices));
    devices[n_devices] = (struct ops_device){dev, twin_of};
    return (int)n_devices++;
}

/* Every Vulkan device there is, lavapipe too. */
static int add_vulkan_devices(void)
{
    struct dl_vulkan_info infos[8];
    uint32_t n = 0;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    setenv("DLLAMA_VK_TUNE", "0", 0); /* the same kernels each time: a choice by measurement is not */
    if (dl_vulkan_list(infos, DL_COUNT_OF(infos), &n, DL_LOG_WARN) || !n)
        printf("SKIPPED PART: no Vulkan device here\n");
    for (uint32_t i = 0; i < DL_MIN(n, (uint32_t)DL_COUNT_OF(infos)); i++) {
        struct dl_vulkan_opts opts = {.index = (int)i};
        dl_device *dev = NULL;
        if (dl_vulkan_open(&opts, &dev))
            return -1;
        add_device(dev, -1);
    }
    return 0;
}

static void say_what_is_missing(void)
{
    for (size_t i = 0; i < DL_COUNT_OF(cpu_sets); i++)
        if (!has_cpu_set(cpu_sets[i]))
            printf("SKIPPED PART: no %s here\n", cpu_sets[i]);
}

static int open_devices(void **state)
{
    (void)state;
    char isas[128], *save = NULL;
    snprintf(isas, sizeof isas, "%s", dl_cpu_isas());
    say_what_is_missing();
    int basic = -1; /* the first row of cpu_sets[0] */
    for (char *isa = strtok_r(isas, " ", &save); isa; isa = strtok_r(NULL, " ", &save)) {
        static const uint32_t threads[] = {2, 1, 3};
        int first = basic;
        for (size_t i = 0; i < DL_COUNT_OF(threads); i++) {
            struct dl_cpu_opts opts = {.threads = threads[i], .isa = isa};
            dl_device *dev = NULL;
            if (dl_cpu_open(&opts, &dev))
                return -1;
            int row = add_device(dev, first);
            first = first < 0 ? row : first;
        }
        if (!strcmp(isa, cpu_sets[0]))
            basic = first;
    }
    return add_vulkan_devices();
}

static int close_devices(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < n_devices; i++)
        dl_device_close(&devices[i].dev);
    return 0;
}

/* TSan looks for races, not at numbers, and is slow: every fifth case is enough for it. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(UNDER_TSAN)
enum { STRIDE = 5 };
#else
enum { STRIDE = 1 };
#endif
static unsigned n_cases;

/* Takes the case over. */
static void check(struct ops_case *c)
{
    if (n_cases++ % STRIDE) {
        ops_free(c);
        return;
    }
    struct dl_buf_desc descs[4];
    for (uint32_t i = 0; i < c->n_bufs; i++)
        descs[i] = c->bufs[i].desc;
    if (dl_op_check(&c->op, descs, c->n_bufs, c->shape.max_tokens, c->shape.max_out)) {
        fprintf(stderr, "the test builds a bad op: %s\n", c->label);
        fail();
    }
    ops_ready(c);
    ops_oracle(c);
    uint8_t *results[DL_COUNT_OF(devices)] = {0};
    size_t bytes = c->bufs[c->op.dst.buf].desc.bytes;
    for (uint32_t i = 0; i < n_devices; i++) {
        dl_device *dev = devices[i].dev;
        int twin = devices[i].twin_of;
        if (!dl_device_supports(dev, &c->op)) { /* the CPU has every kernel; a GPU may lack one */
            OPS_CHECK(c, dev, strcmp(dev->kind, "cpu"), "no kernel");
            fprintf(stderr, "SKIPPED PART: %s has no kernel for %s\n", dev->name, c->label);
            continue;
        }
        results[i] = ops_run(dev, c);
        if (twin >= 0)
            OPS_CHECK(c, dev, !memcmp(results[i], results[twin], bytes), "other bits than %s", devices[twin].dev->name);
        else
            ops_compare(c, dev, results[i]);
    }
    for (uint32_t i = 0; i < n_devices; i++)
        free(results[i]);
    ops_free(c);
}

static const uint32_t batches[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33};

/* ------------------------------------------------------------------------------------------------- the ops */

static void test_convert(void **state)
{
    (void)state;
    static const struct {
        enum dl_type from, to;
    } types[] = {{DL_F32, DL_F32}, {DL_F32, DL_F16}, {DL_F32, DL_BF16}, {DL_F32, DL_Q80},
                 {DL_F16, DL_F16}, {DL_F16, DL_F32}, {DL_F32, DL_Q120}};
    static const uint32_t cols[] = {4, 172, 32, 96, 512, 544, 4128};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t i = 0; i < DL_COUNT_OF(cols); i++)
            for (int fill = 0; fill < FILL_COUNT; fill++, variant++) {
                if (dl_type_info(types[t].to)->block_values > 1 && cols[i] % DL_BLOCK)
                    continue;
                build_convert(&c, types[t].from, types[t].to, 1 + variant % 3, cols[i], (enum ops_fill)fill, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
}

static void test_convert_carrying(void **state)
{
    (void)state;
    static const uint32_t cols[] = {32, 96, 512, 544, 4128};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t i = 0; i < DL_COUNT_OF(cols); i++)
        for (int fill = 0; fill < FILL_COUNT; fill++)
            for (int kind = 0; kind < 4; kind++, variant++) {
                build_convert_carrying(&c, kind < 2 ? DL_Q80 : DL_Q120, 1 + variant % 4, cols[i], (enum ops_fill)fill,
                                       kind & 1, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
}

static void test_rms_norm(void **state)
{
    (void)state;
    static const struct {
        uint32_t cols, group;
    } shapes[] = {{4, 4}, {64, 64}, {172, 172}, {128, 16}, {96, 24}, {96, 32}, {512, 128}, {4128, 4128}};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t i = 0; i < DL_COUNT_OF(shapes); i++)
        for (int fill = 0; fill < FILL_COUNT; fill++)
            for (int q80 = 0; q80 < 2; q80++, variant++) {
                if (q80 && shapes[i].cols % DL_BLOCK)
                    continue;
                build_rms_norm(&c, q80 ? DL_Q80 : DL_F32, 1 + variant % 9, shapes[i].cols, shapes[i].group,
                               (enum ops_fill)fill, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
}

static void test_matmul(void **state)
{
    (void)state;
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};
    static const uint32_t ins[][4] = {{32, 96, 512, 4128}, {4, 172, 64, 512}};
    static const uint32_t outs[] = {5, 16, 37};
    static const struct {
        enum ops_fill x, w;
    } fills[] = {{FILL_RANDOM, FILL_RANDOM}, {FILL_TINY, FILL_RANDOM}, {FILL_RANDOM, FILL_HUGE},
                 {FILL_RANDOM, FILL_RANDOM}, {FILL_HUGE, FILL_RANDOM}, {FILL_RANDOM, FILL_TINY},
                 {FILL_SPREAD, FILL_SPREAD}, {FILL_HUGE, FILL_HUGE},   {FILL_ZERO, FILL_RANDOM},
                 {FILL_RANDOM, FILL_ZERO}};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t i = 0; i < DL_COUNT_OF(ins[0]); i++)
            for (size_t o = 0; o < DL_COUNT_OF(outs); o++)
                for (size_t n = 0; n < DL_COUNT_OF(batches); n++, variant++) {
                    size_t f = variant % DL_COUNT_OF(fills);
                    build_matmul(&c, types[t], batches[n], ins[act_for(types[t]) == DL_F32][i], outs[o], fills[f].x,
                                 fills[f].w, variant);
                    c.varies = fills[f].x != FILL_ZERO && fills[f].w != FILL_ZERO;
                    check(&c);
                }
    for (size_t t = 0; t < DL_COUNT_OF(types);
         t++) { /* enough work for several threads, even with the fastest kernel */
        build_matmul(&c, types[t], 1, 512, 1203, FILL_RANDOM, FILL_RANDOM, 101);
        check(&c);
        build_matmul(&c, types[t], 9, 512, 611, FILL_RANDOM, FILL_RANDOM, 102);
        check(&c);
        build_matmul(&c, types[t], 100, 512, 13, FILL_RANDOM, FILL_RANDOM,
                     103); /* more tokens than rows to share out */
        check(&c);
        for (uint32_t n = 1; n < 12; n += 5) { /* more columns than any kernel takes at once */
            build_matmul(&c, types[t], n, 8192 + 160, 21, FILL_RANDOM, FILL_RANDOM, 104 + n);
            check(&c);
        }
    }
}

/* Some of the rows of a weight buffer: of which a device may keep several side by side. */
static void test_matmul_view(void **state)
{
    (void)state;
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};
    static const uint32_t first[] = {1, 7, 8, 13}, rows[] = {9, 2, 16, 24};
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (uint32_t n = 1; n < 40; n += 19)
            for (uint32_t i = 0; i < DL_COUNT_OF(first); i++) {
                build_matmul(&c, types[t], n, 96, 37, FILL_RANDOM, FILL_RANDOM, i);
                c.op.src[1].offset += first[i] * c.op.src[1].row_bytes;
                c.op.src[1].rows = c.op.dst.cols = rows[i];
                if (c.op.src[2].buf != DL_NO_BUF)
                    c.op.src[2].cols = rows[i];
                check(&c);
            }
}

/* What a token gets must not depend on who else is in the batch. */
static void test_matmul_alone(void **state)
{
    (void)state;
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (uint32_t i = 0; i < n_devices; i++) {
            struct ops_case c;
            build_matmul(&c, types[t], 33, 544, 21, FILL_RANDOM, FILL_RANDOM, 4);
            ops_ready(&c);
            const struct dl_view *d = &c.op.dst, *x = &c.op.src[0];
            uint8_t *all = ops_run(devices[i].dev, &c), *rows = dl_xcalloc(c.bufs[x->buf].desc.bytes, 1);
            memcpy(rows, c.bufs[x->buf].bytes, c.bufs[x->buf].desc.bytes);
            enum { TURN = 7 }; /* the same rows at other places */
            for (uint32_t r = 0; r < 33; r++)
                memcpy(c.bufs[x->buf].bytes + x->offset + (r + TURN) % 33 * x->row_bytes,
                       rows + x->offset + r * x->row_bytes, ops_bytes(x->type, x->cols));
            uint8_t *turned = ops_run(devices[i].dev, &c);
            for (uint32_t r = 0; r < 33; r++)
                OPS_CHECK(&c, devices[i].dev,
                          !memcmp(turned + d->offset + (r + TURN) % 33 * d->row_bytes,
                                  all + d->offset + r * d->row_bytes, 4 * (size_t)d->cols),
                          "row %u differs when it is row %u", r, (r + TURN) % 33);
            free(turned);
            static const uint32_t first[] = {0, 5, 17, 32}, count[] = {1, 3, 8, 1};
            bool any_size = !strcmp(devices[i].dev->kind, "cpu");
            for (size_t k = 0; any_size && k < DL_COUNT_OF(first); k++) {
                memcpy(c.bufs[x->buf].bytes, rows + first[k] * x->row_bytes, count[k] * x->row_bytes);
                c.n_tokens = count[k];
                uint8_t *some = ops_run(devices[i].dev, &c);
                for (uint32_t r = 0; r < count[k]; r++)
                    OPS_CHECK(&c, devices[i].dev,
                              !memcmp(some + d->offset + r * d->row_bytes,
                                      all + d->offset + (first[k] + r) * d->row_bytes, 4 * (size_t)d->cols),
                              "row %u of 33 differs when it is row %u of %u", first[k] + r, r, count[k]);
                free(some);
            }
            free(all);
            free(rows);
            ops_free(&c);
        }
}

static void test_rope(void **state)
{
    (void)state;
    static const uint32_t dims[] = {8, 16, 64, 80, 128, 256}, heads[] = {1, 3, 8};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
        for (size_t h = 0; h < DL_COUNT_OF(heads); h++)
            for (int layout = 0; layout < 2; layout++)
                for (uint32_t part = 0; part < 3; part++, variant++) {
                    uint32_t n_rot = part == 0 ? dims[d] : part == 1 ? dims[d] / 2 : dims[d] / 4 / 2 * 2 + 2;
                    build_rope(&c, 1 + variant % 5, heads[h], dims[d], n_rot, (enum dl_rope_layout)layout,
                               variant + (uint32_t)layout);
                    check(&c);
                }
}

static void test_kv_store(void **state)
{
    (void)state;
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t dims[] = {8, 16, 64, 80, 128, 256}, batch[] = {1, 2, 5, 33}, kv[] = {1, 2, 5};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (size_t n = 0; n < DL_COUNT_OF(batch); n++, variant++) {
                if (types[t] == DL_Q80 && dims[d] % DL_BLOCK)
                    continue;
                build_kv_store(&c, types[t], batch[n], kv[variant % 3], dims[d], (enum ops_fill)(variant % FILL_COUNT),
                               variant);
                c.varies = variant % FILL_COUNT != FILL_ZERO;
                check(&c);
            }
}

static void test_attention(void **state)
{
    (void)state;
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t dims[] = {8, 16, 64, 80, 128, 256};
    static const struct {
        uint32_t n_heads, n_kv, group, first_head;
    } heads[] = {{2, 2, 1, 0}, {8, 2, 4, 0}, {8, 1, 8, 0}, {3, 2, 4, 2} /* part of two groups */};
    /* Single tokens of sequences of many lengths, then a chunk of one sequence across a block border. */
    static const uint32_t last[] = {0, 30, 31, 32, 299, 29, 30, 31, 32, 33}, seq[] = {0, 1, 2, 3, 4, 5, 5, 5, 5, 5};
    static const double sharpness[] = {1, 8, 0.01};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (size_t h = 0; h < DL_COUNT_OF(heads); h++, variant++) {
                if (types[t] == DL_Q80 && dims[d] % DL_BLOCK)
                    continue;
                struct attention_shape s = {.type = types[t],
                                            .n_heads = heads[h].n_heads,
                                            .n_kv = heads[h].n_kv,
                                            .group = heads[h].group,
                                            .first_head = heads[h].first_head,
                                            .head_dim = dims[d],
                                            .last = last,
                                            .seq = seq,
                                            .n = DL_COUNT_OF(last)};
                build_attention(&c, &s, (enum ops_fill)(variant % FILL_COUNT), sharpness[variant % 3], variant);
                c.varies = variant % FILL_COUNT != FILL_ZERO;
                check(&c);
            }
    static const uint32_t lasts[] = {4096, 0, 2}, seqs[] = {1, 0, 0};
    for (size_t t = 0; t < DL_COUNT_OF(types); t++) {
        struct attention_shape s = {.type = types[t],
                                    .n_heads = 4,
                                    .n_kv = 1,
                                    .group = 4,
                                    .head_dim = 64,
                                    .last = lasts,
                                    .seq = seqs,
                                    .n = DL_COUNT_OF(lasts)};
        build_attention(&c, &s, FILL_RANDOM, 2, (uint32_t)t);
        check(&c);
    }
}

static void test_glu(void **state)
{
    (void)state;
    static const uint32_t cols[] = {4, 32, 172, 512, 544, 1408};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t i = 0; i < DL_COUNT_OF(cols); i++)
        for (int fill = 0; fill < FILL_COUNT; fill++)
            for (int kind = 0; kind < 4; kind++, variant++) {
                if (kind & 1 && cols[i] % DL_BLOCK)
                    continue;
                build_glu(&c, kind & 1 ? DL_Q80 : DL_F32, 1 + variant % 4, cols[i],
                          kind & 2 ? DL_ACT_GELU : DL_ACT_SILU, (enum ops_fill)fill, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
}

static void test_add_and_merge(void **state)
{
    (void)state;
    static const uint32_t cols[] = {4, 32, 172, 512, 544, 1408}, slices[] = {1, 2, 3, 8};
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80, DL_Q120};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t i = 0; i < DL_COUNT_OF(cols); i++)
        for (int fill = 0; fill < FILL_COUNT; fill++) {
            for (uint32_t n = 1; n < 4; n++, variant++) {
                build_add(&c, n, cols[i], (enum ops_fill)fill, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
            for (size_t t = 0; t < DL_COUNT_OF(types); t++, variant++) {
                if (dl_type_info(types[t])->block_values > 1 && cols[i] % DL_BLOCK)
                    continue;
                build_merge(&c, types[t], 1 + variant % 5, cols[i], slices[variant / 3 % DL_COUNT_OF(slices)],
                            (enum ops_fill)fill, variant);
                c.varies = fill != FILL_ZERO;
                check(&c);
            }
        }
}

static void test_gather_rows(void **state)
{
    (void)state;
    static const uint32_t cols[] = {4, 172, 512, 4128}, out[] = {1, 4, 9};
    struct ops_case c;
    uint32_t variant = 0;
    for (size_t i = 0; i < DL_COUNT_OF(cols); i++)
        for (size_t o = 0; o < DL_COUNT_OF(out); o++, variant++) {
            build_gather_rows(&c, 9, out[o], cols[i], variant);
            check(&c);
        }
}

static void test_moe(void **state)
{
    (void)state;
    static const struct {
        uint32_t experts, k;
    } routes[] = {{1, 1}, {4, 1}, {4, 2}, {8, 8}, {128, 8}};
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};
    uint32_t variant = 0;
    struct ops_case c;
    for (size_t i = 0; i < DL_COUNT_OF(routes); i++)
        for (uint32_t n = 1; n < 6; n++, variant++) {
            build_moe_route(&c, n, routes[i].experts, routes[i].k, variant % 3 == 0, variant);
            check(&c);
        }
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (uint32_t n = 1; n < 10; n += 2)
            for (int shared = 0; shared < 2; shared++, variant++) {
                uint32_t in = act_for(types[t]) == DL_Q80 ? 96 : 172, k = 1 + variant % 3;
                build_moe_matmul(&c, types[t], n, in, n % 4 == 1 ? 37 : 8, 5, k, shared, variant);
                check(&c);
                build_moe_sum(&c, n, n % 4 == 1 ? 544 : 36, k, variant);
                check(&c);
            }
    for (size_t t = 0; t < DL_COUNT_OF(types); t++) { /* more rows for an expert than go over its weights at once */
        build_moe_matmul(&c, types[t], 90, 96, 21, 3, 2, t % 2, 300 + (uint32_t)t);
        check(&c);
    }
}

static void test_count(void **state)
{
    (void)state;
    printf("ops: %u cases on %u devices\n", n_cases / STRIDE, n_devices);
    assert_true(n_cases > 900);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert),       cmocka_unit_test(test_convert_carrying),
        cmocka_unit_test(test_rms_norm),      cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_view),   cmocka_unit_test(test_matmul_alone),
        cmocka_unit_test(test_rope),          cmocka_unit_test(test_kv_store),
        cmocka_unit_test(test_attention),     cmocka_unit_test(test_glu),
        cmocka_unit_test(test_add_and_merge), cmocka_unit_test(test_gather_rows),
        cmocka_unit_test(test_moe),           cmocka_unit_test(test_count),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
