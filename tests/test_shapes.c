/* SPDX-License-Identifier: MIT
 *
 * tests/test_shapes.c: the built-in shapes have as many parameters as the models that they are named after, and compute when their weights
 * are made up.
 */
#include "cluster_rig.h"

#include <math.h>

static uint64_t parameters(const dl_model *m, uint64_t *bytes)
{
    const struct dl_model_header *h = dl_model_header(m);
    uint64_t n = 0;
    *bytes = 0;
    for (int id = 0; id < DL_T_COUNT; id++)
        for (uint32_t l = 0; l < (dl_tensor_per_layer((enum dl_tensor_id)id) ? h->n_layers : 1); l++) {
            struct dl_tensor t;
            if ((id == DL_T_OUTPUT && h->tied) || dl_model_tensor(m, (enum dl_tensor_id)id, l, &t))
                continue;
            assert_null(t.data);
            n += (uint64_t)t.rows * t.cols * t.n_experts;
            *bytes += t.row_bytes * t.rows * t.n_experts;
        }
    return n;
}

/* Billions as the model cards give them, to two digits behind the point. */
static void as_many_parameters_as_published(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double billions;
    } known[] = {{"llama3.2-1b", 1.24}, {"llama3.1-8b", 8.03}, {"llama3.3-70b", 70.55}, {"llama3.1-405b", 405.85},
                 {"qwen3-0.6b", 0.60},  {"qwen3-8b", 8.19},    {"qwen3-30b-a3b", 30.53}};
    for (uint32_t i = 0; i < DL_COUNT_OF(known); i++) {
        dl_model *m;
        uint64_t bytes;
        assert_string_equal(dl_shape_name(i), known[i].name);
        assert_int_equal(dl_model_open_shape(known[i].name, 0, false, &m), 0);
        double n = (double)parameters(m, &bytes) / 1e9;
        if (fabs(n - known[i].billions) > 0.006)
            fail_msg("%s: %.3f billion parameters, not %.2f", known[i].name, n, known[i].billions);
        assert_int_equal(bytes, dl_model_weight_bytes(m));
        assert_int_equal(dl_model_file_bytes(m), 0);
        assert_string_equal(dl_model_name(m), known[i].name);
        dl_model_close(&m);
    }
    assert_null(dl_shape_name(DL_COUNT_OF(known)));
}

static void count_rows(void *ud, const char *what, const char *name, const char *text)
{
    assert_true(*what && *name && *text);
    ++*(unsigned *)ud;
}

static void layers_can_be_cut(void **state)
{
    (void)state;
    dl_model *m;
    unsigned rows = 0;
    assert_int_equal(dl_model_open_shape("qwen3-30b-a3b", 2, false, &m), 0);
    assert_int_equal(dl_model_header(m)->n_layers, 2);
    assert_int_equal(dl_model_list(m, count_rows, &rows), 0);
    assert_int_equal(rows, 3 + 2 * 12);
    dl_model_close(&m);
}

static void what_is_unknown_is_refused(void **state)
{
    (void)state;
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    dl_model *m;
    assert_int_equal(dl_model_open_shape("llama4", 0, false, &m), DL_EINVAL);
    assert_null(m);
    assert_non_null(strstr(log.last, "llama3.2-1b, llama3.1-8b"));
    assert_int_equal(dl_model_open_shape("qwen3-8b", DL_MAX_LAYERS + 1, false, &m), DL_EINVAL);
    assert_int_equal(log.n, 2);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
}

/* Before anything is made. */
static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    if (!dl_mem_available() || dl_mem_available() > UINT64_C(200) << 30)
        skip();
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    dl_model *m;
    dl_engine *e;
    dl_device *dev;
    assert_int_equal(dl_device_open("cpu", NULL, &dev), 0);
    assert_int_equal(dl_model_open_shape("llama3.1-405b", 0, true, &m), 0);
    struct dl_engine_opts opts = {
        .model = m, .devices = &dev, .n_devices = 1, .ctx = 64, .kv_type = DL_F16, .wire = DL_F32};
    assert_int_equal(dl_engine_create(&opts, &e), DL_ELIMIT);
    assert_non_null(strstr(log.last, "fewer --layers"));
    dl_model_close(&m);
    dl_device_close(&dev);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
}

/* A cluster makes the same weights as one node does, each node those of its slice, and none is sent. */
static void nodes_make_their_slices(void **state)
{
    (void)state;
    static float one[160000], two[160000];
    struct rig r;
    uint32_t vocab = 0;
    for (int n = 1; n <= 2; n++) {
        rig_open(&r, NULL, n);
        dl_model_close(&r.model);
        assert_int_equal(dl_model_open_shape("qwen3-0.6b", 1, true, &r.model), 0);
        vocab = rig_vocab(&r);
        assert_true(vocab <= DL_COUNT_OF(one));
        struct dl_engine_opts o = rig_opts();
        if (n == 1)
            o.transport = NULL;
        assert_int_equal(rig_start(&r, o, NULL), 0);
        assert_int_equal(rig_continue(&r, NULL, 0, NULL, n == 1 ? one : two), 0);
        assert_int_equal(r.sent_weights, 0);
        rig_stop(&r);
        assert_int_equal(n == 2 ? r.workers[1].err : 0, 0);
        rig_close(&r);
    }
    double d = rig_nmse(two, one, vocab);
    if (d > 1e-6)
        fail_msg("NMSE %.2e", d);
}

/* One layer of a dense model and one of experts: numbers come out, and not all the same. */
static void made_up_weights_compute(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen3-0.6b", "qwen3-30b-a3b"};
    dl_device *dev;
    assert_int_equal(dl_device_open("cpu", NULL, &dev), 0);
    for (size_t i = 0; i < DL_COUNT_OF(names); i++) {
        dl_model *m;
        dl_engine *e;
        dl_session *s;
        float *logits, least = INFINITY, most = -INFINITY;
        const int32_t tokens[] = {1, 77, 151000};
        assert_int_equal(dl_model_open_shape(names[i], 1, true, &m), 0);
        struct dl_engine_opts opts = {
            .model = m, .devices = &dev, .n_devices = 1, .ctx = 64, .kv_type = DL_F16, .wire = DL_F32};
        assert_int_equal(dl_engine_create(&opts, &e), 0);
        assert_int_equal(dl_session_create(e, &s), 0);
        assert_int_equal(dl_session_sync(s, tokens, 3, NULL, NULL, &logits), 0);
        for (uint32_t v = 0; v < dl_model_header(m)->vocab; v++) {
            assert_true(isfinite(logits[v]));
            least = fminf(least, logits[v]);
            most = fmaxf(most, logits[v]);
        }
        assert_true(most - least > 1 && most < 100 && least > -100);
        dl_session_destroy(&s);
        dl_engine_destroy(&e);
        dl_model_close(&m);
    }
    dl_device_close(&dev);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_many_parameters_as_published), cmocka_unit_test(layers_can_be_cut),
        cmocka_unit_test(what_is_unknown_is_refused),      cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(nodes_make_their_slices),         cmocka_unit_test(made_up_weights_compute),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
