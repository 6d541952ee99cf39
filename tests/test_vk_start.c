/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_start.c: what one start of the Vulkan device leaves for the next. With a device: the second start compiles no shader and
 * measures nothing, and damaged files cost no more than time. Without: the pipeline cache against a driver made of four functions.
 */
#include "common.h"

#include <sys/stat.h>

#include "dl/device.h"

#include "pipeline.h"
#include "tempdir.h"

static char cache[TEMPDIR_LEN];

static int make_cache(void **state)
{
    (void)state;
    make_dir(cache);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    unsetenv("DLLAMA_VK_TUNE");
    return 0;
}

static int drop_cache(void **state)
{
    (void)state;
    remove_dir(cache);
    return 0;
}

static void change_files(const char *prefix, void change(const char *path, long size), unsigned *n)
{
    DIR *d = opendir(cache);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[2 * TEMPDIR_LEN];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", cache, e->d_name);
        if (e->d_name[0] == '.' || strncmp(e->d_name, prefix, strlen(prefix)))
            continue;
        assert_int_equal(stat(path, &st), 0);
        change(path, (long)st.st_size);
        (*n)++;
    }
    closedir(d);
}

static void cut(const char *path, long size)
{
    assert_int_equal(truncate(path, size / 2), 0);
}

static void flip(const char *path, long size)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, size * 3 / 4, SEEK_SET), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, size * 3 / 4, SEEK_SET), 0);
    assert_true(byte != EOF && fputc(byte ^ 0x10, f) != EOF);
    fclose(f);
}

/* ------------------------------------------------------------------------------------------- with a device */

enum { IN = 128, OUT = 64 };

/* What a progress bar would have been told. */
static struct {
    unsigned compiling, choosing, unfinished;
} told;

static void tell(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    assert_ptr_equal(ud, &told);
    assert_true(total > 0 && done <= total);
    told.compiling += !strcmp(phase, "compiling kernels");
    told.choosing += !strcmp(phase, "choosing kernels");
    told.unfinished = done < total;
}

/* A norm and a matrix; false where there is no device. */
static bool compute(float out[OUT], struct vk_glsl_stats *cost)
{
    struct vk_glsl_stats before = vk_glsl_stats();
    struct dl_vulkan_opts opts = {.index = -1};
    dl_device *dev = NULL;
    int err = dl_vulkan_open(&opts, &dev);
    if (err == DL_EUNSUP)
        return false;
    assert_int_equal(err, 0);
    struct dl_buf_desc descs[] = {
        {"x", DL_BUF_ACT, DL_F32, 1, IN, 4 * IN},       {"norm", DL_BUF_WEIGHT, DL_F32, 1, IN, 4 * IN},
        {"h", DL_BUF_ACT, DL_Q80, 1, IN, 34 * IN / 32}, {"w", DL_BUF_WEIGHT, DL_Q40, OUT, IN, OUT * 18 * IN / 32},
        {"y", DL_BUF_OUTPUT, DL_F32, 1, OUT, 4 * OUT},  {"batch", DL_BUF_INPUT, DL_F32, 1, 12, 48}};
    dl_buf *bufs[DL_COUNT_OF(descs)] = {0};
    uint64_t rng = 3;
    for (uint32_t i = 0; i < DL_COUNT_OF(descs); i++) {
        struct dl_buf_desc *d = &descs[i];
        uint8_t *bytes = dl_xcalloc(d->bytes, 1);
        float row[IN];
        assert_int_equal(dl_buf_create(dev, d, &bufs[i]), 0);
        for (uint32_t r = 0; r < d->rows && d->use != DL_BUF_INPUT; r++) {
            for (uint32_t k = 0; k < d->cols; k++)
                row[k] = test_randf(&rng);
            dl_row_from_f32(d->type, row, bytes + r * (d->bytes / d->rows), d->cols);
        }
        assert_int_equal(dl_buf_write(dev, bufs[i], 0, bytes, d->bytes), 0);
        free(bytes);
    }
    struct dl_batch_head head = {1, 0, 1, 1, 1, 1, {0, 0}};
    memcpy(dl_buf_map(dev, bufs[5]), &head, sizeof head);
#define VIEW(i, t, r, c, bytes)                                                 \
    {                                                                           \
        .buf = (i), .rows = (r), .cols = (c), .type = (t), .row_bytes = (bytes) \
    }
    struct dl_view none = {.buf = DL_NO_BUF};
    struct dl_op ops[] = {
        {.code = DL_OP_RMS_NORM,
         .name = "norm",
         .mult = 1,
         .dst = VIEW(2, DL_Q80, 1, IN, 34 * IN / 32),
         .src = {VIEW(0, DL_F32, 1, IN, 4 * IN), VIEW(1, DL_F32, 1, IN, 4 * IN), none},
         .u.norm = {1e-5f, IN}},
        {.code = DL_OP_MATMUL,
         .name = "matrix",
         .mult = 1,
         .dst = VIEW(4, DL_F32, 1, OUT, 4 * OUT),
         .src = {VIEW(2, DL_Q80, 1, IN, 34 * IN / 32), VIEW(3, DL_Q40, OUT, IN, 18 * IN / 32), none}},
    };
    dl_prog *prog = NULL;
    struct dl_run_args args = {.n_tokens = 1, .n_out = 0, .batch = bufs[5]};
    memset(&told, 0, sizeof told);
    dev->progress = tell;
    dev->progress_ud = &told;
    assert_int_equal(dl_prog_create(dev, ops, 2, bufs, 5, &prog), 0);
    assert_int_equal(dl_device_submit(dev, prog, &args, 0, 1), 0);
    assert_int_equal(dl_device_wait(dev, 1, 60000000000u), 0);
    memcpy(out, dl_buf_map(dev, bufs[4]), 4 * OUT);
    dl_prog_destroy(dev, &prog);
    for (uint32_t i = 0; i < DL_COUNT_OF(descs); i++)
        dl_buf_destroy(dev, &bufs[i]);
    dl_device_close(&dev);
    struct vk_glsl_stats after = vk_glsl_stats();
    cost->compiled = after.compiled - before.compiled;
    cost->cached = after.cached - before.cached;
    return true;
}

static void test_second_start(void **state)
{
    (void)state;
    float first[OUT], again[OUT];
    struct vk_glsl_stats cost;
    struct test_log log = {0};
    if (!compute(first, &cost)) {
        fprintf(stderr, "SKIPPED: no Vulkan device\n");
        skip();
    }
    assert_true(cost.compiled > 0);
    assert_true(told.compiling > 0 && told.choosing > 0 && !told.unfinished);
    for (uint32_t i = 1; i < OUT; i++)
        assert_true(first[i] != first[0]);
    uint64_t fresh = cost.compiled;
    dl_log_set(test_log_sink, &log, DL_LOG_DEBUG);
    bool there = compute(again, &cost);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_true(there);
    assert_int_equal(cost.compiled, 0);
    assert_true(!told.compiling && !told.choosing); /* nothing to wait for */
    assert_true(cost.cached > 0);
    assert_memory_equal(first, again, sizeof first);

    static void (*const changes[])(const char *, long) = {cut, flip};
    for (size_t i = 0; i < DL_COUNT_OF(changes); i++) {
        unsigned n = 0;
        change_files("", changes[i], &n);
        assert_true(n >= 2);
        dl_log_set(test_log_sink, &log, DL_LOG_DEBUG);
        there = compute(again, &cost);
        dl_log_set(NULL, NULL, DL_LOG_WARN);
        assert_true(there);
        assert_true(cost.compiled > 0 && cost.compiled <= fresh);
    }
    assert_int_equal(log.n, 0);
}

/* -------------------------------------------------------------------------------------------- without a device */

static struct {
    uint8_t blob[96]; /* what the driver has to keep */
    size_t given;     /* what it was given at the start */
    bool refuses;     /* to start from anything */
    unsigned refused;
} driver;

static VKAPI_ATTR VkResult VKAPI_CALL create(VkDevice device, const VkPipelineCacheCreateInfo *info,
                                             const VkAllocationCallbacks *a, VkPipelineCache *out)
{
    (void)device;
    (void)a;
    if (driver.refuses && info->initialDataSize) {
        driver.refused++;
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    driver.given = info->initialDataSize;
    if (driver.given)
        assert_memory_equal(info->pInitialData, driver.blob, sizeof driver.blob);
    *out = (VkPipelineCache)1;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL destroy(VkDevice device, VkPipelineCache p, const VkAllocationCallbacks *a)
{
    (void)device;
    (void)p;
    (void)a;
}

static VKAPI_ATTR VkResult VKAPI_CALL get(VkDevice device, VkPipelineCache p, size_t *n, void *out)
{
    (void)device;
    (void)p;
    *n = sizeof driver.blob;
    if (out)
        memcpy(out, driver.blob, sizeof driver.blob);
    return VK_SUCCESS;
}

static void start(struct vk_ctx *c, size_t given)
{
    struct vk_pipes *p = NULL;
    driver.given = 999;
    assert_int_equal(vk_pipes_create(c, &p), 0);
    assert_non_null(p);
    assert_int_equal(driver.given, given);
    vk_pipes_destroy(&p);
    assert_null(p);
    vk_pipes_destroy(&p);
}

static void test_pipeline_cache(void **state)
{
    (void)state;
    struct vk_ctx *c = dl_xcalloc(1, sizeof *c);
    struct test_log log = {0};
    unsigned n = 0;
    c->vk.vkCreatePipelineCache = create;
    c->vk.vkDestroyPipelineCache = destroy;
    c->vk.vkGetPipelineCacheData = get;
    c->caps.vendor_id = 0x10de;
    c->caps.device_id = 0x2484;
    c->caps.driver_version = 535;
    c->caps.uuid[3] = 9;
    const uint32_t head[] = {32, 1, 0x10de, 0x2484};
    memset(driver.blob, 0xa5, sizeof driver.blob);
    memcpy(driver.blob, head, sizeof head);
    dl_log_set(test_log_sink, &log, DL_LOG_DEBUG);

    start(c, 0);
    start(c, sizeof driver.blob);
    c->caps.driver_version++; /* another driver, another file */
    start(c, 0);
    start(c, sizeof driver.blob);
    c->caps.uuid[3]++;
    start(c, 0);
    change_files("pipelines-", cut, &n);
    assert_int_equal(n, 3);
    start(c, 0);
    start(c, sizeof driver.blob);
    change_files("pipelines-", flip, &n);
    start(c, 0);
    start(c, sizeof driver.blob);

    driver.refuses = true;
    start(c, 0);
    assert_int_equal(driver.refused, 1);
    driver.refuses = false;

    /* What is in the file is for another card, whoever put it there. */
    driver.blob[8] ^= 1;
    c->caps.uuid[3]++;
    start(c, 0);
    start(c, 0);
    driver.blob[8] ^= 1;
    start(c, 0);
    start(c, sizeof driver.blob);

    c->caps.uuid[3]++; /* nothing is kept of a device that was lost */
    c->lost = DL_EDEVICE;
    start(c, 0);
    c->lost = 0;
    start(c, 0);

    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 0);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_second_start, make_cache, drop_cache),
        cmocka_unit_test_setup_teardown(test_pipeline_cache, make_cache, drop_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
