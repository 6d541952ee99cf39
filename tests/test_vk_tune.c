/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_tune.c: the choice between kernels of the Vulkan device: made once and kept, wrong kernels found out and not used, and
 * choices that the environment forces.
 */
#include "lower_matmul.h"
#include "ops_build.h"
#include "ops_case.h"
#include "ops_oracle.h"
#include "tempdir.h"
#include "tune.h"
#include "vk_spoil.h"

static char cache[TEMPDIR_LEN];
static unsigned n_dropped, n_errors;
static char last_dropped[300];

static void on_line(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud;
    if (strstr(line, "dropped")) {
        n_dropped++;
        snprintf(last_dropped, sizeof last_dropped, "%s", line);
    } else if (level == DL_LOG_ERROR) {
        n_errors++;
    } else {
        return;
    }
    fprintf(stderr, "    %s\n", line);
}

static int set_up(void **state)
{
    (void)state;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    setenv("DLLAMA_VK_TUNE", "1000", 1); /* machines that run tests may be slow */
    make_dir(cache);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    dl_log_set(on_line, NULL, DL_LOG_WARN);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    char command[TEMPDIR_LEN + 16];
    snprintf(command, sizeof command, "rm -r '%s'", cache);
    return system(command);
}

/* NULL: no device here. */
static dl_device *open_device(void)
{
    struct dl_vulkan_opts opts = {.index = -1};
    dl_device *dev = NULL;
    int err = dl_vulkan_open(&opts, &dev);
    assert_true(!err || err == DL_EUNSUP);
    if (!dev) {
        fprintf(stderr, "SKIPPED: no Vulkan device\n");
        skip();
    }
    n_dropped = n_errors = 0;
    return dev;
}

/* Large enough to be timed. */
static void build(struct ops_case *c, bool matmul)
{
    static const uint32_t last[] = {200}, seq[] = {0};
    struct attention_shape s = {
        .type = DL_F16, .n_heads = 16, .n_kv = 4, .group = 4, .head_dim = 64, .last = last, .seq = seq, .n = 1};
    if (matmul)
        build_matmul(c, DL_Q40, 1, 512, 2048, FILL_RANDOM, FILL_RANDOM, 0);
    else
        build_attention(c, &s, FILL_RANDOM, 4, 0);
    ops_ready(c);
    ops_oracle(c);
}

static void run(dl_device *dev, const struct ops_case *c)
{
    uint8_t *result = ops_run(dev, c);
    ops_compare(c, dev, result);
    free(result);
}

/* What was chosen for the first matrix of a device, or a later one. */
static struct vk_tune_choice matrix_choice(dl_device *dev, size_t skip)
{
    struct vk_tune_choice found = {0};
    for (size_t i = 0; vk_tune_choice(vk_ctx_of(dev), i, &found); i++)
        if (!strncmp(found.key, "matvec_q40", 10) && !skip--)
            return found;
    fail_msg("no choice for a matrix");
    return found;
}

static void test_kept(void **state)
{
    (void)state;
    struct ops_case c[2];
    for (int i = 0; i < 2; i++)
        build(&c[i], i);
    struct vk_tune_stats stats[2];
    for (int start = 0; start < 2; start++) {
        dl_device *dev = open_device();
        uint64_t from = dl_now_ns();
        for (int i = 0; i < 2; i++)
            run(dev, &c[i]);
        stats[start] = vk_tune_stats(vk_ctx_of(dev));
        struct vk_tune_choice choice;
        for (size_t i = 0; vk_tune_choice(vk_ctx_of(dev), i, &choice); i++)
            if (choice.plain_ns && choice.ns > choice.plain_ns)
                fail_msg("%s: %s is slower than the last of the list", choice.key, choice.name);
        struct vk_tune_choice matrix = matrix_choice(dev, 0);
        assert_true(matrix.ns > 0 && matrix.plain_ns > 0); /* kept, too */
        printf("start %d: %u checked, %u timed, %.2f s\n", start, (unsigned)stats[start].checked,
               (unsigned)stats[start].timed, (double)(dl_now_ns() - from) * 1e-9);
        assert_int_equal(n_dropped + n_errors, 0);
        dl_device_close(&dev);
    }
    assert_true(stats[0].checked >= 2);
    assert_true(stats[0].timed >= 2);
    assert_int_equal(stats[0].dropped, 0);
    assert_int_equal(stats[1].checked + stats[1].timed, 0);
    for (int i = 0; i < 2; i++)
        ops_free(&c[i]);
}

/* Where all kernels are slow but the portable one, it is chosen, even if there is no time for comparing more. What one shape has
 * shown is good for the next. */
static void test_never_slower(void **state)
{
    (void)state;
    static const char slow[] = "uint id = mm_lane_id();\n#if LPR != 8 || SG > 1\nuint waste = p.rows;\n"
                               "for (uint i = 0u; i < 20000u; i++)\nwaste = waste * 1664525u + 1013904223u;\n"
                               "if (waste == 7u)\nid = 0u;\n#endif\n";
    char folder[TEMPDIR_LEN];
    make_dir(folder);
    spoil(folder, "matvec_q.comp", "uint id = mm_lane_id();", slow);
    struct ops_case c[2];
    build(&c[0], true);
    build_matmul(&c[1], DL_Q40, 1, 1024, 2048, FILL_RANDOM, FILL_RANDOM, 0);
    ops_ready(&c[1]);
    ops_oracle(&c[1]);
    for (int all = 0; all < 2; all++) {
        setenv("DLLAMA_VK_TUNE", all ? "1000" : "0.000001", 1);
        dl_device *dev = open_device();
        struct vk_mm_variant variants[VK_MM_VARIANTS];
        uint32_t n = vk_mm_vec_variants(&vk_ctx_of(dev)->caps, DL_Q40, 512, 1, variants);
        run(dev, &c[0]);
        struct vk_tune_choice got = matrix_choice(dev, 0);
        assert_string_equal(got.name, variants[n - 1].name);
        assert_true(got.ns > 0 && got.ns == got.plain_ns);
        uint32_t timed = vk_tune_stats(vk_ctx_of(dev)).timed;
        assert_true(all ? timed >= n : timed >= 2 && timed <= 4);
        run(dev, &c[1]);
        assert_string_equal(matrix_choice(dev, 1).name, variants[n - 1].name);
        assert_true(all ? vk_tune_stats(vk_ctx_of(dev)).timed > timed : vk_tune_stats(vk_ctx_of(dev)).timed == timed);
        dl_device_close(&dev);
    }
    setenv("DLLAMA_VK_TUNE", "1000", 1);
    unsetenv("DLLAMA_SHADER_DIR");
    ops_free(&c[0]);
    ops_free(&c[1]);
    remove_dir(folder);
}

static void test_wrong_variant(void **state)
{
    (void)state;
    char folder[TEMPDIR_LEN];
    make_dir(folder);
    dl_device *dev = open_device();
    if (vk_ctx_of(dev)->caps.subgroup == 1) {
        dl_device_close(&dev);
        remove_dir(folder);
        fprintf(stderr, "SKIPPED: one variant only\n");
        skip();
    }
    struct ops_case c;
    build(&c, false);
    spoil(folder, "attention.glsl", "#define LOG2_E",
          "#if SG == 1\n#define LOG2_E 1.44269504088896341\n#else\n#define LOG2_E 1.44\n#endif\n");
    run(dev, &c); /* is right all the same */
    struct vk_tune_stats stats = vk_tune_stats(vk_ctx_of(dev));
    assert_true(stats.dropped >= 1);
    assert_int_equal(n_dropped, stats.dropped);
    assert_int_equal(n_errors, 0);
    assert_non_null(strstr(last_dropped, vk_ctx_of(dev)->label));
    assert_non_null(strstr(last_dropped, "attention_split"));
    assert_non_null(strstr(last_dropped, "SG="));
    run(dev, &c); /* known by now */
    assert_int_equal(n_dropped, stats.dropped);
    dl_device_close(&dev);

    /* What such a folder led to is not kept: without it all is well again. */
    unsetenv("DLLAMA_SHADER_DIR");
    dev = open_device();
    run(dev, &c);
    assert_int_equal(n_dropped, 0);
    dl_device_close(&dev);
    ops_free(&c);
    remove_dir(folder);
}

static void test_all_wrong(void **state)
{
    (void)state;
    char folder[TEMPDIR_LEN];
    make_dir(folder);
    dl_device *dev = open_device();
    struct ops_case c;
    build(&c, false);
    spoil(folder, "attention.glsl", "#define LOG2_E", "#define LOG2_E 1.44\n");
    dl_buf *bufs[4] = {0};
    dl_prog *prog = NULL;
    for (uint32_t i = 0; i < c.n_bufs; i++)
        assert_int_equal(dl_buf_create(dev, &c.bufs[i].desc, &bufs[i]), 0);
    assert_int_equal(dl_prog_create(dev, &c.op, 1, bufs, c.n_bufs, &prog), DL_EUNSUP);
    assert_null(prog);
    assert_int_equal(n_errors, 1);
    for (uint32_t i = 0; i < c.n_bufs; i++)
        dl_buf_destroy(dev, &bufs[i]);
    unsetenv("DLLAMA_SHADER_DIR");
    dl_device_close(&dev);
    ops_free(&c);
    remove_dir(folder);
}

static void test_forced(void **state)
{
    (void)state;
    dl_device *dev = open_device();
    struct ops_case c;
    build(&c, false);
    static const char *const forced[] = {"attention_split=#0", "attention_split=#9", "other=1  attention_split=#1"};
    for (size_t i = 0; i < DL_COUNT_OF(forced); i++) {
        setenv("DLLAMA_VK_VARIANT", forced[i], 1);
        run(dev, &c);
    }
    unsetenv("DLLAMA_VK_VARIANT");
    struct vk_tune_stats stats = vk_tune_stats(vk_ctx_of(dev));
    assert_int_equal(stats.checked + stats.timed, 0);
    dl_device_close(&dev);
    ops_free(&c);
}

static void test_portable(void **state)
{
    (void)state;
    setenv("DLLAMA_VK_PORTABLE", "1", 1);
    dl_device *dev = open_device();
    const struct vk_caps *caps = &vk_ctx_of(dev)->caps;
    assert_true(caps->subgroup == 1 && !caps->subgroup_arith && !caps->f16 && !caps->storage16 && !caps->int8 &&
                !caps->int_dot && !caps->timeline);
    struct ops_case c;
    build(&c, false);
    run(dev, &c);
    assert_int_equal(n_dropped, 0);
    dl_device_close(&dev);
    ops_free(&c);
    unsetenv("DLLAMA_VK_PORTABLE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kept),      cmocka_unit_test(test_never_slower), cmocka_unit_test(test_wrong_variant),
        cmocka_unit_test(test_all_wrong), cmocka_unit_test(test_forced),       cmocka_unit_test(test_portable),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
