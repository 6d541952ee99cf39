/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_sums.c: the sums of all partials are the same bits on every node, whatever it computes on, however they travel and are
 * rounded on the way; otherwise replicas drift apart. What is compared is the residual stream, to which every sum is added: all rows of
 * it that a node has at its end, as its own thread reads them when it gives the memory back.
 */
#include "cluster_rig.h"

enum { LONG = 50, MORE = 3, MAX_BATCH = 64 };

static struct node {
    const struct dl_device_fns *sound;
    struct dl_device_fns fns;
    float *rows;
    uint64_t bytes;
    int err;
} nodes[RIG_MOST];

static void keep_rows(dl_device *dev, dl_buf *buf)
{
    struct node *n = nodes;
    while (dev->fns != &n->fns)
        n++;
    if (buf->desc.use == DL_BUF_ACT && !strcmp(buf->desc.name, "x")) {
        free(n->rows);
        n->bytes = buf->desc.bytes;
        n->rows = dl_xcalloc(1, n->bytes);
        n->err = dl_buf_read(dev, buf, 0, n->rows, n->bytes);
    }
    n->sound->buf_destroy(dev, buf);
}

static void watch(struct node *n, dl_device *dev)
{
    *n = (struct node){.sound = dev->fns, .fns = *dev->fns, .err = 1};
    n->fns.buf_destroy = keep_rows;
    dev->fns = &n->fns;
}

/* A prompt in one batch, which is halved where nodes have lanes, and some tokens one by one. */
static void talk(struct rig *r)
{
    dl_session *s;
    int32_t ids[LONG];
    for (int i = 0; i < LONG; i++)
        ids[i] = r->prompt[i % RIG_PROMPT];
    assert_int_equal(dl_session_create(r->engine, &s), 0);
    struct dl_step_item item = {.session = s, .tokens = ids, .n = LONG, .want = DL_WANT_BEST};
    assert_int_equal(dl_engine_step(r->engine, &item, 1), 0);
    for (int i = 0; i < MORE; i++) {
        item = (struct dl_step_item){.session = s, .tokens = ids + i, .n = 1, .want = DL_WANT_LAST};
        assert_int_equal(dl_engine_step(r->engine, &item, 1), 0);
    }
    dl_session_destroy(&s);
}

static const struct cast {
    const char *devices; /* c: a CPU with the best kernels, r: with the plainest, v: a GPU */
    double shares[RIG_MOST];
} casts[] = {{"cr", {3, 1}},
             {"ccr", {3, 1, 2}},
             {"crcc", {1, 1, 1, 1e-9}},
             {"cccccccc", {1, 1, 1, 1, 1, 1, 1, 1}},
             {"vcr", {1, 2, 1}}};

static dl_device *device(char kind)
{
    dl_device *dev;
    const char *index = getenv("DLLAMA_TEST_VULKAN");
    struct dl_cpu_opts cpu = {.threads = 1, .isa = kind == 'r' ? "ref" : NULL};
    struct dl_vulkan_opts gpu = {.index = index ? atoi(index) : 0};
    assert_int_equal(kind == 'v' ? dl_vulkan_open(&gpu, &dev) : dl_cpu_open(&cpu, &dev), 0);
    return dev;
}

/* Rows of the first node, which are those of all; the caller frees them. */
static float *rows_of_all(const char *path, const struct cast *c, enum dl_type wire, enum dl_collective collective,
                          uint64_t *bytes)
{
    struct rig r;
    struct dl_engine_opts o = rig_opts();
    o.wire = wire;
    o.collective = collective;
    o.shares = c->shares;
    o.max_batch = MAX_BATCH;
    rig_open(&r, path, (int)strlen(c->devices));
    for (int i = 0; i < r.n; i++) {
        dl_device **dev = i ? &r.workers[i].dev : &r.dev;
        dl_device_close(dev);
        *dev = device(c->devices[i]);
        watch(&nodes[i], *dev);
    }
    assert_int_equal(rig_start(&r, o, NULL), 0);
    talk(&r);
    rig_stop(&r);
    *bytes = nodes[0].bytes;
    assert_true(*bytes >= (uint64_t)LONG * dl_model_header(r.model)->dim * sizeof(float));
    for (int i = 0; i < r.n; i++) {
        assert_int_equal(nodes[i].err, DL_OK);
        assert_int_equal(nodes[i].bytes, *bytes);
        if (memcmp(nodes[i].rows, nodes[0].rows, *bytes) != 0)
            fail_msg("%s, nodes %s, wire %d, collective %d: node %d has other sums than the root", path ? path : "demo",
                     c->devices, (int)wire, (int)collective, i);
        if (i)
            free(nodes[i].rows);
    }
    rig_close(&r);
    return nodes[0].rows;
}

static void sums_of(const char *path, bool gpu)
{
    static const enum dl_type wires[] = {DL_F32, DL_F16, DL_Q80};
    static const enum dl_collective ways[] = {DL_COLLECTIVE_ONE_SHOT, DL_COLLECTIVE_RS, DL_COLLECTIVE_HALVES};
    for (size_t c = 0; c < DL_COUNT_OF(casts); c++) {
        if (!strchr(casts[c].devices, 'v') != !gpu)
            continue;
        for (size_t w = 0; w < DL_COUNT_OF(ways); w++) {
            float *rows[DL_COUNT_OF(wires)];
            uint64_t bytes;
            for (size_t t = 0; t < DL_COUNT_OF(wires); t++)
                rows[t] = rows_of_all(path, &casts[c], wires[t], ways[w], &bytes);
            assert_memory_not_equal(rows[0], rows[1], bytes); /* rounded they are, each in its own way */
            assert_memory_not_equal(rows[1], rows[2], bytes);
            for (size_t t = 0; t < DL_COUNT_OF(wires); t++)
                free(rows[t]);
        }
    }
}

static void same_on_cpus(void **state)
{
    (void)state;
    sums_of(NULL, false);
    const char *experts = test_data("refs/qwen3moe.gguf");
    if (experts) /* their q80 wire is a finer one */
        sums_of(experts, false);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    const char *dense = test_data("refs/llama.gguf");
    if (dense)
        sums_of(dense, false);
#endif
}

static void same_on_a_gpu(void **state)
{
    (void)state;
    struct dl_vulkan_info info;
    uint32_t n = 0;
    if (dl_vulkan_list(&info, 1, &n, DL_LOG_DEBUG) || !n || *info.unusable) {
        fputs("SKIPPED PART: no Vulkan device here\n", stderr);
        skip();
    }
    sums_of(test_data("refs/qwen3moe.gguf"), true); /* or the demo */
}

int main(void)
{
    dl_log_set(NULL, NULL, DL_LOG_ERROR);
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_on_cpus), cmocka_unit_test(same_on_a_gpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
