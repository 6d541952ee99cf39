/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_attention.c: the attention kernels of the Vulkan device, each variant forced, where the ops suite does not reach: long
 * contexts cut into splits, many sequences in one batch, prompts that share tiles with single tokens, recorded for more tokens than
 * the batch has.
 */
#include "ops_build.h"
#include "ops_case.h"
#include "ops_oracle.h"
#include "vk.h"

static dl_device *dev;

static int open_device(void **state)
{
    (void)state;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    setenv("DLLAMA_VK_TUNE", "0", 1);
    struct dl_vulkan_opts opts = {.index = -1};
    int err = dl_vulkan_open(&opts, &dev);
    return err == DL_EUNSUP ? 0 : err;
}

static int close_device(void **state)
{
    (void)state;
    dl_device_close(&dev);
    return 0;
}

#define NEEDS_DEVICE()                                  \
    if (!dev) {                                         \
        fprintf(stderr, "SKIPPED: no Vulkan device\n"); \
        skip();                                         \
    }

/* Every variant: the candidates are in a fixed order, beyond the last index the last one is taken. */
static const char *const variants[] = {"attention_split=#0 attention_tile=#0", "attention_split=#1 attention_tile=#1",
                                       "attention_split=#2 attention_tile=#2", "attention_split=#9 attention_tile=#9"};

static const struct {
    uint32_t n_heads, n_kv, group, first_head;
} heads[] = {{2, 2, 1, 0}, {8, 2, 4, 0}, {16, 1, 16, 0}, {5, 3, 4, 3} /* parts of three groups */, {40, 1, 40, 0}};

static void run(const struct attention_shape *s, double sharpness, uint32_t variant)
{
    struct ops_case c;
    build_attention(&c, s, FILL_RANDOM, sharpness, variant);
    ops_ready(&c);
    ops_oracle(&c);
    OPS_CHECK(&c, dev, dl_device_supports(dev, &c.op), "no kernel");
    for (size_t v = 0; v < DL_COUNT_OF(variants); v++) {
        setenv("DLLAMA_VK_VARIANT", variants[v], 1);
        size_t length = strlen(c.label);
        snprintf(c.label + length, sizeof c.label - length, " %s", variants[v]);
        uint8_t *result = ops_run(dev, &c);
        ops_compare(&c, dev, result);
        free(result);
        c.label[length] = 0;
    }
    ops_free(&c);
}

struct kind {
    enum dl_type type;
    uint32_t head_dim;
};

static void run_kinds(const uint32_t *last, const uint32_t *seq, uint32_t n, const struct kind *kinds, size_t n_kinds,
                      double sharpness)
{
    static uint32_t variant;
    for (size_t i = 0; i < n_kinds; i++, variant++) {
        size_t h = variant % DL_COUNT_OF(heads);
        struct attention_shape s = {.type = kinds[i].type,
                                    .n_heads = heads[h].n_heads,
                                    .n_kv = heads[h].n_kv,
                                    .group = heads[h].group,
                                    .first_head = heads[h].first_head,
                                    .head_dim = kinds[i].head_dim,
                                    .last = last,
                                    .seq = seq,
                                    .n = n};
        run(&s, sharpness, variant);
    }
}

static void test_few(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    static const uint32_t last[] = {0, 31, 32, 127, 128, 700, 7}, seq[] = {0, 1, 2, 3, 4, 5, 6};
    static const struct kind kinds[] = {{DL_F16, 24},  {DL_F32, 80},  {DL_Q80, 64},
                                        {DL_F16, 256}, {DL_F16, 512}, {DL_F32, 8}};
    run_kinds(last, seq, DL_COUNT_OF(last), kinds, DL_COUNT_OF(kinds), 4);
}

static void test_long(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    static const uint32_t last[] = {4096, 3, 2047}, seq[] = {0, 1, 2};
    static const struct kind kinds[] = {{DL_F16, 64}, {DL_F16, 128}};
    run_kinds(last, seq, DL_COUNT_OF(last), kinds, DL_COUNT_OF(kinds), 8);
}

/* A chunk of a prompt deep in its sequence, then tokens of other sequences, some next to each other. */
static void test_mixed(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    enum { CHUNK = 41, ALL = 61 };
    static uint32_t last[ALL], seq[ALL];
    for (uint32_t i = 0; i < ALL; i++) {
        seq[i] = i < CHUNK ? 0 : 1 + (i - CHUNK) / 2 % 7;
        last[i] = i < CHUNK ? 50 + i : 60 + 2 * ((i - CHUNK) / 14) + i % 2;
    }
    static const struct kind kinds[] = {{DL_F16, 72}, {DL_Q80, 32}, {DL_F32, 8}};
    run_kinds(last, seq, ALL, kinds, DL_COUNT_OF(kinds), 4);
}

/* Every token its own sequence. */
static void test_many_sequences(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    enum { ALL = 33 };
    static uint32_t last[ALL], seq[ALL];
    for (uint32_t i = 0; i < ALL; i++) {
        seq[i] = i;
        last[i] = i * 11 % 97;
    }
    static const struct kind kinds[] = {{DL_F16, 64}};
    run_kinds(last, seq, ALL, kinds, DL_COUNT_OF(kinds), 4);
}

/* From the first token on: rows that see one position, tiles that see no whole block. */
static void test_prompt(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    enum { ALL = 100 };
    static uint32_t last[ALL], seq[ALL];
    for (uint32_t i = 0; i < ALL; i++)
        last[i] = i;
    static const struct kind kinds[] = {{DL_F16, 32}};
    run_kinds(last, seq, ALL, kinds, DL_COUNT_OF(kinds), 1);
}

/* Caches that no descriptor holds: each chunk has dispatches of its own, blocks of a sequence lie in any of them. */
static void test_chunks(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    static const uint32_t last[] = {700, 31, 640, 5}, seq[] = {0, 1, 2, 3};
    static const struct kind kinds[] = {{DL_F16, 64}, {DL_F32, 72}, {DL_Q80, 128}, {DL_F16, 128}};
    struct vk_caps *caps = &vk_ctx_of(dev)->caps, as_it_is = *caps;
    caps->storage_range = 400 << 10;
    caps->max_alloc = 900 << 10; /* some of them in two allocations as well */
    run_kinds(last, seq, DL_COUNT_OF(last), kinds, DL_COUNT_OF(kinds), 4);
    *caps = as_it_is;
}

static void test_refused(void **state)
{
    (void)state;
    NEEDS_DEVICE();
    static const uint32_t last[] = {3}, seq[] = {0}, dims[] = {4, 20, 520};
    for (size_t i = 0; i < DL_COUNT_OF(dims); i++) {
        struct attention_shape s = {
            .type = DL_F16, .n_heads = 2, .n_kv = 1, .group = 2, .head_dim = dims[i], .last = last, .seq = seq, .n = 1};
        struct ops_case c;
        build_attention(&c, &s, FILL_RANDOM, 1, 0);
        assert_false(dl_device_supports(dev, &c.op));
        ops_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_few),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_many_sequences),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
