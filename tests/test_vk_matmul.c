/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_matmul.c: every variant of the Vulkan matrix kernels, those for other kinds of devices included, against the
 * formulas; weights that no descriptor holds whole, grids that no dispatch does.
 */
#ifdef DL_HAVE_VULKAN
#include "lower_matmul.h"
#include "ops_build.h"
#include "ops_case.h"
#include "ops_oracle.h"

static dl_device *dev;
static unsigned n_runs;

static int open_device(void **state)
{
    (void)state;
    struct dl_vulkan_opts opts = {.index = -1};
    assert_int_equal(setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1), 0);
    assert_int_equal(setenv("DLLAMA_VK_TUNE", "0", 1), 0);
    assert_int_equal(setenv("DLLAMA_VK_VALIDATION", "1", 1), 0); /* where the layers are installed */
    if (dl_vulkan_open(&opts, &dev))
        dev = NULL;
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    dl_device_close(&dev);
    return 0;
}

static void run(struct ops_case *c)
{
    struct dl_buf_desc descs[4];
    for (uint32_t i = 0; i < c->n_bufs; i++)
        descs[i] = c->bufs[i].desc;
    assert_int_equal(dl_op_check(&c->op, descs, c->n_bufs, c->shape.max_tokens, c->shape.max_out), 0);
    assert_true(dl_device_supports(dev, &c->op));
    ops_ready(c);
    ops_oracle(c);
    uint8_t *got = ops_run(dev, c);
    ops_compare(c, dev, got);
    free(got);
    ops_free(c);
    n_runs++;
}

static void force(const char *kernel, enum dl_type type, const struct vk_mm_variant *v)
{
    char text[128];
    snprintf(text, sizeof text, "%s_%s=%.63s", kernel, type_name(type), v->name);
    assert_int_equal(setenv("DLLAMA_VK_VARIANT", text, 1), 0);
}

static void label(struct ops_case *c, const struct vk_mm_variant *v)
{
    size_t at = strlen(c->label);
    snprintf(c->label + at, sizeof c->label - at, " %.63s", v->name);
}

static const enum dl_type types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};
static const enum ops_fill fills[][2] = {
    {FILL_RANDOM, FILL_RANDOM}, {FILL_SPREAD, FILL_SPREAD}, {FILL_RANDOM, FILL_TINY}, {FILL_TINY, FILL_RANDOM}};

/* All variants that the device would choose from if it were what `caps` says: all of a type's for each size of batch, other
 * shapes each time. */
static void sweep(uint32_t first_type, uint32_t most_tokens)
{
    const struct vk_caps *caps = &vk_ctx_of(dev)->caps;
    static const uint32_t batches[] = {1, 2, 8, 11, 37}, ins[] = {32, 96, 1056}, outs[] = {5, 37, 150};
    struct ops_case c;
    for (size_t t = first_type; t < DL_COUNT_OF(types); t++)
        for (size_t b = 0; b < DL_COUNT_OF(batches) && batches[b] <= most_tokens; b++) {
            struct vk_mm_variant all[VK_MM_VARIANTS];
            uint32_t n = batches[b], i = (uint32_t)(b + t) % DL_COUNT_OF(ins);
            uint32_t out = outs[n_runs % DL_COUNT_OF(outs)], in = act_for(types[t]) == DL_Q80 ? ins[i] : ins[i] + 4;
            uint32_t class = DL_MIN(vk_class_tokens(vk_class_of(n)), n + SPARE);
            uint32_t n_all = n > 8 ? vk_mm_many_variants(caps, types[t], in, class, all)
                                   : vk_mm_vec_variants(caps, types[t], in, class, all);
            assert_in_range(n_all, 1, VK_MM_VARIANTS);
            for (uint32_t v = 0; v < n_all; v++) {
                const enum ops_fill *fill = fills[n_runs % DL_COUNT_OF(fills)];
                build_matmul(&c, types[t], n, in, out, fill[0], fill[1], 7 * (n_runs % 64)); /* 7: count is TOKENS */
                label(&c, &all[v]);
                force(n > 8 ? "matmul" : "matvec", types[t], &all[v]);
                run(&c);
            }
            if (n == 2) {
                build_moe_matmul(&c, types[t], n, in, out, 5, 2, n_runs % 2, n_runs);
                label(&c, &all[n_runs % n_all]);
                force("moe_matvec", types[t], &all[n_runs % n_all]);
                run(&c);
            }
        }
    assert_int_equal(unsetenv("DLLAMA_VK_VARIANT"), 0);
}

static void test_variants(void **state)
{
    (void)state;
    if (!dev)
        skip();
    struct vk_caps *caps = &vk_ctx_of(dev)->caps, as_it_is = *caps;
    unsigned before = n_runs;
    sweep(0, 64);
    caps->software = false; /* kernels for GPUs, with and without their optional features */
    sweep(0, 64);
    caps->int_dot_fast = caps->int_dot;
    sweep(3, 64); /* DL_Q40, DL_Q80 */
    caps->subgroup = 1;
    sweep(0, 8); /* tiles have no subgroups */
    *caps = as_it_is;
    printf("vk_matmul: %u runs on %s\n", n_runs - before, dev->name);
    assert_true(n_runs - before > 250);
}

/* Weights that take several descriptors, and grids that take several dispatches. */
static void test_small_limits(void **state)
{
    (void)state;
    if (!dev)
        skip();
    struct vk_caps *caps = &vk_ctx_of(dev)->caps, as_it_is = *caps;
    struct ops_case c;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t in = act_for(types[t]) == DL_Q80 ? 544 : 96;
            caps->software = k == 0;
            caps->storage_range = 160 << 10;
            build_matmul(&c, types[t], 5, in, 1100, FILL_RANDOM, FILL_RANDOM, 35);
            run(&c);
            build_matmul(&c, types[t], 19, in, 1100, FILL_RANDOM, FILL_RANDOM, 7);
            run(&c);
            build_moe_matmul(&c, types[t], 3, in, 301, 5, 2, k, 37);
            run(&c);
            *caps = as_it_is;
        }
    caps->max_groups[0] = 2;
    build_matmul(&c, DL_Q40, 1, 96, 999, FILL_RANDOM, FILL_RANDOM, 7);
    run(&c);
    *caps = as_it_is;
    caps->max_groups[1] = 2;
    build_matmul(&c, DL_Q80, 37, 96, 50, FILL_RANDOM, FILL_RANDOM, 7);
    run(&c);
    build_moe_matmul(&c, DL_F16, 5, 96, 30, 5, 2, false, 7);
    run(&c);
    *caps = as_it_is;
}

static void test_no_message(void **state)
{
    (void)state;
    if (!dev)
        skip();
    if (!vk_ctx_of(dev)->validation)
        printf("SKIPPED PART: the validation layers are not installed\n");
    assert_int_equal(atomic_load(&vk_ctx_of(dev)->messages), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_small_limits),
        cmocka_unit_test(test_no_message),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}

#else
#include <stdio.h>

int main(void)
{
    puts("SKIPPED: built without the Vulkan device");
    return 77;
}
#endif
