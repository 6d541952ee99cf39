/* SPDX-License-Identifier: MIT
 *
 * tests/vk_rig.h: what tests of the Vulkan device share: an open device or a visible skip, a program of adds to run on it, and a table of
 * device functions that can be made to fail. $DLLAMA_TEST_VULKAN names the device (0).
 */
#ifndef TESTS_VK_RIG_H
#define TESTS_VK_RIG_H

#include "common.h"

#include "dl/device.h"
#include "vk.h"

#define MS 1000000u
#define LONG_NS (60000ull * MS)

static struct test_log logged;

static inline struct dl_vulkan_opts vk_test_opts(const char *disable)
{
    const char *index = getenv("DLLAMA_TEST_VULKAN");
    return (struct dl_vulkan_opts){.index = index ? atoi(index) : 0, .disable = disable};
}

/* Group setup: validation on where it is installed, log lines kept. */
static inline int vk_test_begin(void **state)
{
    (void)state;
    setenv("DLLAMA_VK_VALIDATION", "1", 1);
    setenv("DLLAMA_VK_TUNE", "0", 1);
    dl_log_set(test_log_sink, &logged, DL_LOG_ERROR);
    return 0;
}

static inline bool vk_test_there(void)
{
    struct dl_vulkan_info info;
    struct dl_vulkan_opts opts = vk_test_opts(NULL);
    uint32_t n;
    bool there = !dl_vulkan_list(&info, 1, &n, DL_LOG_ERROR) && (uint32_t)opts.index < n;
    if (!there)
        fprintf(stderr, "SKIPPED PART: no Vulkan device %d here: %s\n", opts.index, logged.last);
    logged = (struct test_log){0};
    return there;
}

#define NEED_VULKAN()     \
    if (!vk_test_there()) \
    skip()

/* Closes a device, which must not have upset the validation layers. */
static inline void vk_test_close(dl_device **dev)
{
    if (!*dev)
        return;
    uint32_t messages = atomic_load(&vk_ctx_of(*dev)->messages);
    if (messages)
        fprintf(stderr, "the validation layers said %u times: ... %s\n", messages, logged.last);
    assert_int_equal(messages, 0);
    dl_device_close(dev);
}

/* --------------------------------------------------------------------------------------------------- a rig */

enum { RIG_BUFS = 3, RIG_ROWS = 32, RIG_COLS = 1024, RIG_PARTS = 4 };

/* A device with three (RIG_ROWS, RIG_COLS) matrices, of which ops add column parts, and a batch of RIG_ROWS tokens. */
struct rig {
    dl_device *dev;
    dl_buf *bufs[RIG_BUFS], *batch;
    struct dl_run_args args;
    uint64_t signal;
};

/* All that can fail says so; what it got so far is in *r. */
static inline int rig_open(struct rig *r, const char *disable)
{
    *r = (struct rig){0};
    struct dl_vulkan_opts opts = vk_test_opts(disable);
    int err = dl_vulkan_open(&opts, &r->dev);
    for (int i = 0; i < RIG_BUFS && !err; i++) {
        struct dl_buf_desc desc = {"matrix", DL_BUF_ACT, DL_F32, RIG_ROWS, RIG_COLS, RIG_ROWS * RIG_COLS * 4};
        err = dl_buf_create(r->dev, &desc, &r->bufs[i]);
    }
    struct dl_batch_shape shape = {RIG_ROWS, 1, 1, 1};
    uint64_t bytes = dl_batch_bytes(&shape);
    struct dl_buf_desc desc = {"batch", DL_BUF_INPUT, DL_F32, 1, (uint32_t)(bytes / 4), bytes};
    if (!err)
        err = dl_buf_create(r->dev, &desc, &r->batch);
    if (err)
        return err;
    struct dl_batch_head head = {RIG_ROWS, 0, RIG_ROWS, 1, 1, 1, {0, 0}};
    memcpy(dl_buf_map(r->dev, r->batch), &head, sizeof head);
    r->args = (struct dl_run_args){.n_tokens = RIG_ROWS, .batch = r->batch};
    return DL_OK;
}

static inline void rig_close(struct rig *r)
{
    for (int i = 0; i < RIG_BUFS && r->dev; i++)
        dl_buf_destroy(r->dev, &r->bufs[i]);
    if (r->dev)
        dl_buf_destroy(r->dev, &r->batch);
    vk_test_close(&r->dev);
    assert_null(r->dev);
}

static inline void rig_tokens(struct rig *r, uint32_t n)
{
    struct dl_batch_head *head = dl_buf_map(r->dev, r->batch);
    head->n_tokens = n;
    r->args.n_tokens = n;
}

static inline struct dl_view rig_view(uint32_t buf, uint32_t part)
{
    return (struct dl_view){.buf = buf,
                            .rows = RIG_ROWS,
                            .cols = RIG_COLS / RIG_PARTS,
                            .type = DL_F32,
                            .offset = part * (RIG_COLS / RIG_PARTS) * 4,
                            .row_bytes = RIG_COLS * 4};
}

/* dst += src, on one part of the columns. */
static inline struct dl_op rig_add(uint32_t dst, uint32_t src, uint32_t part)
{
    struct dl_op op = {
        .code = DL_OP_ADD, .name = "add", .mult = 1, .dst = rig_view(dst, part), .src = {rig_view(dst, part)}};
    op.src[1] = rig_view(src, part);
    op.src[2].buf = DL_NO_BUF;
    return op;
}

static inline int rig_fill(struct rig *r, uint32_t buf, float value)
{
    static float all[RIG_ROWS * RIG_COLS];
    for (size_t i = 0; i < DL_COUNT_OF(all); i++)
        all[i] = value;
    return dl_buf_write(r->dev, r->bufs[buf], 0, all, sizeof all);
}

/* Value at (row, first column of a part). */
static inline float rig_get(struct rig *r, uint32_t buf, uint32_t row, uint32_t part)
{
    float value = -1;
    assert_int_equal(
        dl_buf_read(r->dev, r->bufs[buf], (row * RIG_COLS + part * (RIG_COLS / RIG_PARTS)) * 4u, &value, 4), DL_OK);
    return value;
}

static inline int rig_run(struct rig *r, dl_prog *prog)
{
    int err = dl_device_submit(r->dev, prog, &r->args, 0, ++r->signal);
    return err ? err : dl_device_wait(r->dev, r->signal, LONG_NS);
}

#endif
