/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_device.c: a Vulkan GPU as a device: opening and closing, the two counters (with timeline semaphores and with the driver
 * thread), the queue, how programs are cut and ordered. What the ops compute is test_ops.c's business, what memory holds
 * test_vk_memory.c's. The validation layers are on and must stay silent.
 */
#include "common.h"

#ifdef DL_HAVE_VULKAN

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "vk_rig.h"

static const char *const modes[] = {"", "timeline"}; /* what to do without */

static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) && errno == EINTR)
        continue;
}

static int clear_log(void **state)
{
    (void)state;
    logged = (struct test_log){0};
    return 0;
}

static dl_prog *make_prog(struct rig *r, const struct dl_op *ops, uint32_t n)
{
    dl_prog *prog = NULL;
    assert_int_equal(dl_prog_create(r->dev, ops, n, r->bufs, RIG_BUFS, &prog), DL_OK);
    return prog;
}

/* ------------------------------------------------------------------------------------------------ open, close */

static void test_open_close(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (int i = 0; i < 20; i++) {
        struct dl_vulkan_opts opts = vk_test_opts(modes[i % 2]);
        dl_device *dev;
        assert_int_equal(dl_vulkan_open(&opts, &dev), DL_OK);
        assert_int_equal(strncmp(dev->kind, "vulkan:", 7), 0);
        assert_true(dev->mem_total > 0 && dev->mem_free > 0 && dev->mem_free <= dev->mem_total);
        assert_int_equal(vk_ctx_of(dev)->caps.timeline && i % 2, 0);
        if (!i && !vk_ctx_of(dev)->validation)
            fprintf(stderr, "SKIPPED PART: no validation layers here\n");
        vk_test_close(&dev);
    }
    dl_device *none = NULL;
    dl_device_close(&none);
}

static void test_open_refuses(void **state)
{
    (void)state;
    NEED_VULKAN();
    dl_device *dev;
    assert_int_equal(dl_vulkan_open(&(struct dl_vulkan_opts){.index = 999}, &dev), DL_EUNSUP);
    assert_null(dev);
    assert_int_equal(logged.n, 1);
    assert_non_null(strstr(logged.last, "vulkan:999"));

    /* Software devices only when asked for. */
    struct dl_vulkan_info info[16];
    uint32_t n;
    bool only_software = true;
    assert_int_equal(dl_vulkan_list(info, 16, &n, DL_LOG_ERROR), DL_OK);
    for (uint32_t i = 0; i < n && i < 16; i++)
        only_software = only_software && info[i].software;
    if (!only_software)
        return;
    logged = (struct test_log){0};
    unsetenv("DLLAMA_ALLOW_SOFTWARE_GPU");
    assert_int_equal(dl_vulkan_open(&(struct dl_vulkan_opts){.index = -1}, &dev), DL_EUNSUP);
    assert_int_equal(logged.n, 1);
    assert_non_null(strstr(logged.last, "DLLAMA_ALLOW_SOFTWARE_GPU=1"));
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    assert_int_equal(dl_vulkan_open(&(struct dl_vulkan_opts){.index = -1}, &dev), DL_OK);
    vk_test_close(&dev);
    unsetenv("DLLAMA_ALLOW_SOFTWARE_GPU");
}

static void test_list(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct dl_vulkan_info info[16];
    uint32_t n, none;
    assert_int_equal(dl_vulkan_list(info, 16, &n, DL_LOG_ERROR), DL_OK);
    assert_int_equal(dl_vulkan_list(NULL, 0, &none, DL_LOG_ERROR), DL_OK);
    assert_int_equal(n, none);
    for (uint32_t i = 0; i < n && i < 16; i++) {
        assert_int_equal(info[i].index, i);
        assert_true(*info[i].name && *info[i].type && *info[i].driver);
        if (*info[i].unusable)
            continue;
        assert_true(info[i].n_heaps > 0 && info[i].heaps[0].bytes > 0);
        assert_true(info[i].subgroup >= 1 && info[i].subgroup_min <= info[i].subgroup_max);
        assert_true(info[i].storage_range >= 1u << 27); /* what Vulkan promises */
    }
}

/* What is switched off by name is neither used nor asked of the driver. */
static void test_disable(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct dl_vulkan_opts opts = vk_test_opts("f16,int8,int-dot,subgroup,timeline,nonsense");
    dl_device *dev;
    assert_int_equal(dl_vulkan_open(&opts, &dev), DL_OK);
    const struct vk_caps *c = &vk_ctx_of(dev)->caps;
    assert_false(c->f16 || c->storage16 || c->int8 || c->storage8 || c->int_dot || c->timeline || c->subgroup_arith ||
                 c->subgroup_shuffle || c->subgroup_require);
    assert_int_equal(c->subgroup, 1);
    vk_test_close(&dev);
}

/* ------------------------------------------------------------------------------------------------- counters */

struct later {
    dl_device *dev;
    uint64_t value;
    long ms;
};
static void *signal_later(void *ud)
{
    struct later *l = ud;
    sleep_ms(l->ms);
    dl_device_host_signal(l->dev, l->value);
    return NULL;
}

static void wait_before_signal(const char *disable)
{
    struct rig r;
    assert_int_equal(rig_open(&r, disable), DL_OK);
    struct dl_op op = rig_add(0, 1, 0);
    dl_prog *prog = make_prog(&r, &op, 1);
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 0, 0), DL_OK); /* the counter starts at 0 */
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 5, 10), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 10, 0), DL_ETIMEDOUT);
    uint64_t start = dl_now_ns();
    assert_int_equal(dl_device_wait(r.dev, 10, 20 * MS), DL_ETIMEDOUT);
    assert_true(dl_now_ns() - start >= 20 * MS);
    assert_int_equal(dl_device_host_signal(r.dev, 4), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 10, 5 * MS), DL_ETIMEDOUT);
    /* Copies would queue behind what waits, perhaps for this very thread. */
    float value = 7;
    assert_int_equal(dl_buf_write(r.dev, r.bufs[1], 0, &value, 4), DL_EINVAL);
    assert_int_equal(dl_buf_read(r.dev, r.bufs[1], 0, &value, 4), DL_EINVAL);
    assert_int_equal(logged.n, 2);
    assert_non_null(strstr(logged.last, "waits for host value 5, 4 is the highest"));
    logged = (struct test_log){0};
    struct later l = {r.dev, 5, 20};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, signal_later, &l), 0);
    assert_int_equal(dl_device_wait(r.dev, 10, LONG_NS), DL_OK);
    pthread_join(t, NULL);
    assert_true(rig_get(&r, 0, 0, 0) == 1);
    assert_true(rig_get(&r, 0, RIG_ROWS - 1, 0) == 1);
    assert_true(rig_get(&r, 0, 0, 1) == 0); /* the op owns one part of the columns */
    /* The counter grows past what was asked, host values may come in any order, and nothing is logged. */
    assert_int_equal(dl_device_wait(r.dev, 3, 0), DL_OK);
    assert_int_equal(dl_device_host_signal(r.dev, 2), DL_OK);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 5, 11), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 11, UINT64_MAX), DL_OK);
    assert_true(rig_get(&r, 0, 0, 0) == 2);
    assert_int_equal(logged.n, 0);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

static void test_wait_before_signal(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (size_t m = 0; m < DL_COUNT_OF(modes); m++)
        wait_before_signal(modes[m]);
}

/* 64 in flight, in order, each seeing what the one before wrote; the 65th is refused. */
static void full_queue(const char *disable)
{
    struct rig r;
    assert_int_equal(rig_open(&r, disable), DL_OK);
    struct dl_op twice[] = {rig_add(0, 1, 0), rig_add(1, 0, 0)}; /* Fibonacci */
    dl_prog *prog = make_prog(&r, twice, 2), *plus = make_prog(&r, twice, 1);
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    float a = 0, b = 1;
    for (uint32_t i = 1; i <= 64; i++) {
        bool both = i % 2 && i < 30;
        assert_int_equal(dl_device_submit(r.dev, both ? prog : plus, &r.args, i, i), DL_OK);
        a += b;
        b += both ? a : 0;
    }
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 65), DL_ELIMIT);
    assert_int_equal(logged.n, 1);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 64), DL_EINVAL); /* signals ascend */
    assert_int_equal(dl_device_host_signal(r.dev, 32), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 32, LONG_NS), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 33, 5 * MS), DL_ETIMEDOUT);
    assert_int_equal(dl_device_host_signal(r.dev, 64), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 64, LONG_NS), DL_OK);
    assert_true(rig_get(&r, 0, 3, 0) == a);
    assert_true(rig_get(&r, 1, 3, 0) == b);
    dl_prog_destroy(r.dev, &prog);
    dl_prog_destroy(r.dev, &plus);
    rig_close(&r);
}

static void test_full_queue(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (size_t m = 0; m < DL_COUNT_OF(modes); m++) {
        full_queue(modes[m]);
        clear_log(NULL);
    }
}

/* Work that waits for a host counter which nobody will raise any more does not keep a device from closing. */
static void test_close_while_waiting(void **state)
{
    (void)state;
    NEED_VULKAN();
    for (size_t m = 0; m < DL_COUNT_OF(modes); m++) {
        struct rig r;
        assert_int_equal(rig_open(&r, modes[m]), DL_OK);
        struct dl_op op = rig_add(0, 1, 0);
        dl_prog *prog = make_prog(&r, &op, 1);
        for (uint32_t i = 1; i <= 3; i++)
            assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 100 * i, i), DL_OK);
        dl_prog_destroy(r.dev, &prog);
        rig_close(&r);
    }
}

/* -------------------------------------------------------------------------------------------------- programs */

static const struct vk_recording *recording_of(struct rig *r, dl_prog *prog)
{
    struct vk_recording *rec = NULL;
    assert_int_equal(vk_prog_record(vk_ctx_of(r->dev), (struct vk_prog *)(void *)prog, &r->args, &rec), DL_OK);
    return rec;
}

/* Rows beyond the batch stay as they are, whichever class the batch falls in. */
static void test_batch_sizes(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct rig r;
    assert_int_equal(rig_open(&r, ""), DL_OK);
    struct dl_op op = rig_add(0, 1, 1);
    dl_prog *prog = make_prog(&r, &op, 1);
    float want[RIG_ROWS] = {0};
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    static const uint32_t sizes[] = {1, 2, 3, 5, 16, 17, 31, 32, 7, 1};
    for (size_t i = 0; i < DL_COUNT_OF(sizes); i++) {
        rig_tokens(&r, sizes[i]);
        assert_int_equal(rig_run(&r, prog), DL_OK);
        for (uint32_t t = 0; t < sizes[i]; t++)
            want[t]++;
        for (uint32_t t = 0; t < RIG_ROWS; t++)
            assert_true(rig_get(&r, 0, t, 1) == want[t]);
    }
    assert_true(want[0] == DL_COUNT_OF(sizes) && want[31] == 1);
    rig_tokens(&r, 5);
    const struct vk_recording *five = recording_of(&r, prog);
    rig_tokens(&r, 8);
    assert_ptr_equal(recording_of(&r, prog), five); /* one class, one recording */
    rig_tokens(&r, 9);
    assert_ptr_not_equal(recording_of(&r, prog), five);
    r.args.n_tokens = RIG_ROWS + 1;
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, ++r.signal), DL_EINVAL);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

/* A new batch buffer, even at the address of an old one, gets commands of its own. */
static void test_batch_buffers(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct rig r;
    assert_int_equal(rig_open(&r, ""), DL_OK);
    struct dl_op op = rig_add(0, 1, 0);
    dl_prog *prog = make_prog(&r, &op, 1);
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    for (uint32_t i = 1; i <= 4; i++) {
        struct dl_buf_desc desc = r.batch->desc;
        struct dl_batch_head head = {RIG_ROWS, 0, RIG_ROWS, 1, 1, 1, {0, 0}};
        dl_buf_destroy(r.dev, &r.batch);
        desc.name = "batch again";
        assert_int_equal(dl_buf_create(r.dev, &desc, &r.batch), DL_OK);
        memcpy(dl_buf_map(r.dev, r.batch), &head, sizeof head);
        r.args.batch = r.batch;
        assert_int_equal(rig_run(&r, prog), DL_OK);
        assert_true(rig_get(&r, 0, RIG_ROWS - 1, 0) == (float)i);
    }
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

/* Without wanted logits the ops that make them are left out, and nothing else is. */
static void test_no_outputs(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct rig r;
    assert_int_equal(rig_open(&r, ""), DL_OK);
    struct dl_op ops[] = {rig_add(0, 1, 0), rig_add(2, 1, 0), rig_add(0, 1, 0)};
    ops[1].count = DL_COUNT_OUT;
    dl_prog *prog = make_prog(&r, ops, 3);
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    assert_int_equal(rig_run(&r, prog), DL_OK);
    assert_true(rig_get(&r, 0, 0, 0) == 2);
    assert_true(rig_get(&r, 2, 0, 0) == 0);
    r.args.n_out = ((struct dl_batch_head *)dl_buf_map(r.dev, r.batch))->n_out = 1;
    assert_int_equal(rig_run(&r, prog), DL_OK);
    assert_true(rig_get(&r, 0, 0, 0) == 4);
    assert_true(rig_get(&r, 2, 0, 0) == 1);
    assert_true(rig_get(&r, 2, 1, 0) == 0);
    dl_prog_destroy(r.dev, &prog);
    prog = make_prog(&r, &ops[1], 1); /* nothing at all to do */
    r.args.n_out = 0;
    assert_int_equal(rig_run(&r, prog), DL_OK);
    assert_true(rig_get(&r, 2, 0, 0) == 1);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

/* Barriers stand between ops that conflict and nowhere else. Without the layers, which cannot tell columns apart. */
static void test_barriers(void **state)
{
    (void)state;
    NEED_VULKAN();
    setenv("DLLAMA_VK_VALIDATION", "0", 1);
    struct rig r;
    assert_int_equal(rig_open(&r, ""), DL_OK);
    struct dl_op apart[] = {rig_add(0, 1, 0), rig_add(0, 1, 1), rig_add(0, 2, 2), rig_add(0, 1, 3)};
    dl_prog *prog = make_prog(&r, apart, 4);
    assert_int_equal(recording_of(&r, prog)->n_barriers, 0);
    dl_prog_destroy(r.dev, &prog);
    struct dl_op chain[] = {rig_add(0, 1, 0), rig_add(2, 1, 1), rig_add(1, 0, 0), rig_add(2, 1, 2), rig_add(2, 0, 0)};
    prog = make_prog(&r, chain, 5);
    assert_int_equal(recording_of(&r, prog)->n_barriers,
                     1); /* in front of the third, which all later ones then need not */
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
    setenv("DLLAMA_VK_VALIDATION", "1", 1);
}

/* On a device that is (said to be) slow, programs go out in small pieces, with the same result; once it turns out to be fast
 * they are recorded anew. */
static void test_cuts(void **state)
{
    (void)state;
    NEED_VULKAN();
    struct rig r;
    assert_int_equal(rig_open(&r, ""), DL_OK);
    struct vk_ctx *c = vk_ctx_of(r.dev);
    struct dl_op ops[] = {rig_add(0, 1, 0), rig_add(1, 0, 0), rig_add(0, 1, 0)};
    dl_prog *prog = make_prog(&r, ops, 3);
    uint32_t class_index = vk_class_of(RIG_ROWS);
    assert_int_equal(rig_fill(&r, 1, 1), DL_OK);
    c->speed[class_index] = 1e-9;
    const struct vk_recording *rec = recording_of(&r, prog);
    assert_true(rec->n_cmds >= 6); /* each op at least in two */
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 1, 1), DL_OK);
    assert_int_equal(dl_device_host_signal(r.dev, 1), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), DL_OK);
    for (uint32_t t = 0; t < RIG_ROWS; t++) {
        assert_true(rig_get(&r, 0, t, 0) == 3);
        assert_true(rig_get(&r, 1, t, 0) == 2);
    }
    assert_true(c->speed[class_index] > 1e-9); /* it was measured */
    c->speed[class_index] = 1e9;
    assert_int_equal(recording_of(&r, prog)->n_cmds, 1);
    r.signal = 1;
    assert_int_equal(rig_run(&r, prog), DL_OK);
    assert_true(rig_get(&r, 0, 7, 0) == 12);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

static void test_classes(void **state)
{
    (void)state;
    for (uint32_t n = 1; n < 5000; n++) {
        uint32_t i = vk_class_of(n);
        assert_true(vk_class_tokens(i) >= n);
        assert_true(!i || vk_class_tokens(i - 1) < n);
    }
    assert_int_equal(vk_class_of(UINT32_MAX), VK_CLASSES - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_open_close, clear_log),
        cmocka_unit_test_setup(test_open_refuses, clear_log),
        cmocka_unit_test_setup(test_list, clear_log),
        cmocka_unit_test_setup(test_disable, clear_log),
        cmocka_unit_test_setup(test_wait_before_signal, clear_log),
        cmocka_unit_test_setup(test_full_queue, clear_log),
        cmocka_unit_test_setup(test_close_while_waiting, clear_log),
        cmocka_unit_test_setup(test_batch_sizes, clear_log),
        cmocka_unit_test_setup(test_batch_buffers, clear_log),
        cmocka_unit_test_setup(test_no_outputs, clear_log),
        cmocka_unit_test_setup(test_barriers, clear_log),
        cmocka_unit_test_setup(test_cuts, clear_log),
        cmocka_unit_test_setup(test_classes, clear_log),
    };
    return cmocka_run_group_tests(tests, vk_test_begin, NULL);
}

#else

/* Built without Vulkan, the entry points say so. */
#include "dl/device.h"

static void test_without(void **state)
{
    (void)state;
    dl_device *dev;
    uint32_t n;
    assert_int_equal(dl_vulkan_open(&(struct dl_vulkan_opts){.index = -1}, &dev), DL_EUNSUP);
    assert_null(dev);
    assert_int_equal(dl_vulkan_list(NULL, 0, &n, DL_LOG_ERROR), DL_EUNSUP);
    assert_int_equal(n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_without)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
