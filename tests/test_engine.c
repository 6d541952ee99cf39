/* SPDX-License-Identifier: MIT
 *
 * tests/test_engine.c: whole models through dl/session.h: logits against an independent engine's, the same on any number of devices,
 * for any batching, and after going back; and what happens at the limits.
 */
#include "common.h"

#include "dl/session.h"

#include <math.h>

#define N_PROMPT 14
static const int32_t prompt[N_PROMPT] = {382, 10, 200, 33, 77, 90, 310, 5, 128, 64, 256, 300, 17, 42};
#define N_GEN 16
#define VOCAB 384

struct rig {
    dl_model *model;
    dl_device *dev[8];
    uint32_t n;
    dl_engine *engine;
};

static struct dl_engine_opts rig_opts(void)
{
    return (struct dl_engine_opts){.ctx = 256, .kv_type = DL_F16, .wire = DL_F32};
}

static void rig_open(struct rig *r, const char *path, const char *isa, uint32_t n, const double *shares,
                     struct dl_engine_opts opts)
{
    *r = (struct rig){.n = n};
    assert_int_equal(dl_model_open(path, &r->model), 0);
    for (uint32_t i = 0; i < n; i++) {
        struct dl_cpu_opts cpu = {.threads = n == 1 ? 2 : 1, .isa = isa};
        assert_int_equal(dl_cpu_open(&cpu, &r->dev[i]), 0);
    }
    opts.model = r->model;
    opts.devices = r->dev;
    opts.n_devices = n;
    opts.shares = shares;
    assert_int_equal(dl_engine_create(&opts, &r->engine), 0);
}

static void rig_close(struct rig *r)
{
    dl_engine_destroy(&r->engine);
    for (uint32_t i = 0; i < r->n; i++)
        dl_device_close(&r->dev[i]);
    dl_model_close(&r->model);
}

static int32_t argmax(const float *v, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best])
            best = i;
    return (int32_t)best;
}

/* Greedy continuation of the prompt, or that by `forced` ids; rows receives N_GEN + 1 rows of logits. */
static void continue_with(dl_engine *e, const int32_t *forced, int32_t *ids, float *rows)
{
    dl_session *s;
    float *logits;
    assert_int_equal(dl_session_create(e, &s), 0);
    assert_int_equal(dl_session_sync(s, prompt, N_PROMPT, NULL, NULL, &logits), 0);
    for (int i = 0;; i++) {
        memcpy(rows + (size_t)i * VOCAB, logits, VOCAB * sizeof *logits);
        if (i == N_GEN)
            break;
        ids[i] = argmax(logits, VOCAB);
        assert_int_equal(dl_session_eval(s, forced ? forced[i] : ids[i], &logits), 0);
    }
    assert_int_equal(dl_session_len(s), N_PROMPT + N_GEN);
    dl_session_destroy(&s);
}

static void greedy(dl_engine *e, int32_t *ids, float *rows)
{
    continue_with(e, NULL, ids, rows);
}

static double nmse(const float *a, const float *ref, size_t n)
{
    double err = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        err += ((double)a[i] - (double)ref[i]) * ((double)a[i] - (double)ref[i]);
        sum += (double)ref[i] * (double)ref[i];
    }
    assert_true(sum > 0);
    return err / sum;
}

#define ROWS ((N_GEN + 1) * VOCAB)

static void read_ref(const char *name, int32_t *ids, float *rows)
{
    char file[64];
    snprintf(file, sizeof file, "refs/%s.ids", name);
    FILE *f = fopen(test_data(file), "r");
    for (int i = 0; i < N_GEN; i++)
        assert_int_equal(fscanf(f, "%d", &ids[i]), 1);
    fclose(f);
    snprintf(file, sizeof file, "refs/%s.f32", name);
    f = fopen(test_data(file), "rb");
    assert_int_equal(fread(rows, sizeof *rows, ROWS, f), ROWS);
    fclose(f);
}

static const char *const families[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};

static const char *family_path(size_t i)
{
    char file[64];
    snprintf(file, sizeof file, "refs/%s.gguf", families[i]);
    return test_data(file);
}

static void families_match_the_reference(void **state)
{
    (void)state;
    NEED_DATA(any, "refs/llama.gguf");
    static float want[ROWS], got[ROWS];
    int32_t want_ids[N_GEN], ids[N_GEN];
    static const char *const isas[] = {"ref", NULL};
    for (size_t i = 0; i < DL_COUNT_OF(families); i++) {
        read_ref(families[i], want_ids, want);
        for (size_t k = 0; k < DL_COUNT_OF(isas); k++) {
            struct rig r;
            rig_open(&r, family_path(i), isas[k], 1, NULL, rig_opts());
            greedy(r.engine, ids, got);
            double d = nmse(got, want, ROWS);
            printf("%s on %s: NMSE %.2e\n", families[i], r.dev[0]->name, d);
            assert_true(d <= 1e-5);
            assert_memory_equal(ids, want_ids, sizeof ids);
            rig_close(&r);
        }
    }
}

static void any_number_of_devices(void **state)
{
    (void)state;
    NEED_DATA(any, "refs/llama.gguf");
    static const struct {
        uint32_t n;
        double shares[8];
    } cuts[] = {{2, {1, 1}},      {3, {1, 1, 1}}, {3, {3, 1, 2}}, {5, {1, 1, 1, 1, 1}}, {8, {1, 1, 1, 1, 1, 1, 1, 1}},
                {4, {9, 1, 1, 1}}};
    static float one[ROWS], got[ROWS];
    int32_t want_ids[N_GEN], ids[N_GEN];
    for (size_t i = 0; i < DL_COUNT_OF(families); i++) {
        struct rig r;
        rig_open(&r, family_path(i), NULL, 1, NULL, rig_opts());
        greedy(r.engine, want_ids, one);
        rig_close(&r);
        for (size_t c = 0; c < DL_COUNT_OF(cuts); c++)
            for (int wire = 0; wire < 2; wire++) {
                struct dl_engine_opts o = rig_opts();
                o.wire = wire ? DL_Q80 : DL_F32;
                rig_open(&r, family_path(i), NULL, cuts[c].n, cuts[c].shares, o);
                continue_with(r.engine, want_ids, ids, got); /* one rounded-away tie must not lead elsewhere */
                double d = nmse(got, one, ROWS);
                /* wire noise may swap an expert that is nearly tied */
                double bound = !wire ? 1e-6 : dl_model_header(r.model)->n_experts ? 1e-2 : 1e-4;
                if (d > bound || (!wire && memcmp(ids, want_ids, sizeof ids)))
                    fail_msg("%s, cut %zu, wire %d: NMSE %.2e", families[i], c, wire, d);
                rig_close(&r);
            }
    }
}

/* Batches of any size, several sequences mixed, prefixes kept: not one bit may differ. */
static void batching_changes_nothing(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/qwen3moe.gguf");
    static float whole[VOCAB], all[N_PROMPT * VOCAB];
    struct dl_engine_opts o = rig_opts();
    o.max_sessions = 3;
    o.max_batch = 40;
    o.max_out = 16;
    struct rig r;
    rig_open(&r, path, NULL, 1, NULL, o);
    dl_session *a, *b, *c;
    float *logits;
    assert_int_equal(dl_session_create(r.engine, &a), 0);
    assert_int_equal(dl_session_create(r.engine, &b), 0);
    assert_int_equal(dl_session_create(r.engine, &c), 0);
    assert_int_equal(dl_session_sync(a, prompt, N_PROMPT, NULL, NULL, &logits), 0);
    memcpy(whole, logits, sizeof whole);

    for (int i = 0; i < N_PROMPT; i++) /* one by one */
        assert_int_equal(dl_session_eval(b, prompt[i], &logits), 0);
    assert_memory_equal(whole, logits, sizeof whole);

    dl_session_truncate(b, 5); /* going back keeps what is before */
    assert_int_equal(dl_session_sync(b, prompt, N_PROMPT, NULL, NULL, &logits), 0);
    assert_memory_equal(whole, logits, sizeof whole);
    assert_int_equal(dl_session_sync(b, prompt, N_PROMPT, NULL, NULL, &logits), 0); /* all known: the last one again */
    assert_memory_equal(whole, logits, sizeof whole);

    /* a goes on, b and c start anew, in one batch */
    dl_session_truncate(a, 0);
    dl_session_truncate(b, 0);
    assert_int_equal(dl_session_sync(a, prompt, 3, NULL, NULL, &logits), 0);
    struct dl_step_item items[] = {
        {.session = b, .tokens = prompt, .n = N_PROMPT, .want = DL_WANT_ALL},
        {.session = a, .tokens = prompt + 3, .n = N_PROMPT - 3, .want = DL_WANT_LAST},
        {.session = c, .tokens = prompt + 4, .n = 2},
    };
    assert_int_equal(dl_engine_step(r.engine, items, 3), 0);
    memcpy(all, items[0].logits, sizeof all);
    assert_memory_equal(whole, all + (N_PROMPT - 1) * VOCAB, sizeof whole);
    assert_memory_equal(whole, items[1].logits, sizeof whole);
    assert_null(items[2].logits);
    assert_int_equal(dl_session_len(c), 2);
    assert_memory_not_equal(all, all + VOCAB, sizeof whole);
    dl_session_destroy(&a);
    dl_session_destroy(&b);
    dl_session_destroy(&c);
    rig_close(&r);
}

/* What another session has evaluated is taken over, in whole blocks, and not one bit differs. */
static void prefixes_are_shared(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/qwen3.gguf");
    enum { N = 100, KEEP = 96 };
    static float want[VOCAB], other[VOCAB];
    int32_t text[N], changed[N];
    for (int32_t i = 0; i < N; i++)
        changed[i] = text[i] = (i * 37 + 11) % VOCAB;
    changed[70] = 5; /* the first two blocks are the same */
    struct dl_engine_opts o = rig_opts();
    o.max_sessions = 2; /* of 256 positions: 16 blocks */
    struct rig r;
    dl_session *a, *b, *c;
    float *logits;
    rig_open(&r, path, NULL, 1, NULL, o);
    assert_int_equal(dl_session_create(r.engine, &a), 0);
    assert_int_equal(dl_session_sync(a, changed, N, NULL, NULL, &logits), 0);
    memcpy(other, logits, sizeof other);
    dl_session_truncate(a, 0);
    assert_int_equal(dl_session_reuse(a, text, N), 0); /* nobody shared anything so far */
    assert_int_equal(dl_session_sync(a, text, N, NULL, NULL, &logits), 0);
    memcpy(want, logits, sizeof want);

    assert_int_equal(dl_session_create(r.engine, &b), 0);
    assert_int_equal(dl_session_reuse(b, text, N), KEEP); /* while a is there */
    assert_int_equal(dl_session_len(b), KEEP);
    assert_memory_equal(dl_session_tokens(b), text, KEEP * sizeof *text);
    assert_int_equal(dl_session_sync(b, text, N, NULL, NULL, &logits), 0);
    assert_memory_equal(logits, want, sizeof want);

    dl_session_truncate(b, 80); /* within a block that a holds, too */
    assert_int_equal(dl_session_len(b), 80);
    assert_int_equal(dl_session_sync(b, changed, N, NULL, NULL, &logits), 0);
    assert_memory_equal(logits, other, sizeof other);
    assert_int_equal(dl_session_sync(a, text, N, NULL, NULL, &logits), 0); /* a's is as it was */
    assert_memory_equal(logits, want, sizeof want);

    dl_session_destroy(&a);
    dl_session_destroy(&b);
    assert_int_equal(dl_session_create(r.engine, &c), 0);
    assert_int_equal(dl_session_reuse(c, changed, N), KEEP); /* now that nobody is there */
    assert_int_equal(dl_session_sync(c, changed, N, NULL, NULL, &logits), 0);
    assert_memory_equal(logits, other, sizeof other);
    dl_session_truncate(c, 80); /* within a block of its own */
    assert_int_equal(dl_session_sync(c, text, N, NULL, NULL, &logits), 0);
    dl_session_destroy(&c);
    assert_int_equal(dl_session_create(r.engine, &c), 0);
    assert_int_equal(dl_session_reuse(c, text, 65), 64); /* the last token is evaluated in any case */
    dl_session_truncate(c, 0);
    assert_int_equal(dl_session_reuse(c, text, 64), 32);
    dl_session_truncate(c, 0);
    assert_int_equal(dl_session_reuse(c, text, 20), 0);

    /* Others need the room: what was known makes way. */
    int32_t long_text[250];
    assert_int_equal(dl_session_create(r.engine, &b), 0);
    for (int32_t i = 0; i < 250; i++)
        long_text[i] = (i * 11 + 3) % VOCAB;
    assert_int_equal(dl_session_sync(b, long_text, 250, NULL, NULL, &logits), 0);
    assert_int_equal(dl_session_sync(c, long_text, 250, NULL, NULL, &logits), 0);
    dl_session_truncate(c, 0);
    assert_int_equal(dl_session_reuse(c, text, N), 0);
    assert_int_equal(dl_session_sync(c, text, N, NULL, NULL, &logits), 0);
    assert_memory_equal(logits, want, sizeof want);
    dl_session_destroy(&b);
    dl_session_destroy(&c);
    rig_close(&r);
}

/* Fewer blocks than all sessions could fill, and who may still have some. */
static void room_for_all_together(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/qwen3.gguf");
    int32_t text[256];
    struct dl_engine_opts o = rig_opts();
    struct dl_engine_info info;
    o.max_sessions = 3;
    o.kv_tokens = 290;
    struct rig r;
    dl_session *a, *b;
    float *logits;
    for (int32_t i = 0; i < 256; i++)
        text[i] = (i * 37 + 11) % VOCAB;
    rig_open(&r, path, NULL, 1, NULL, o);
    dl_engine_info(r.engine, &info);
    assert_int_equal(info.ctx, 256);
    assert_int_equal(info.kv_blocks, 10);
    assert_int_equal(dl_engine_free_blocks(r.engine), 10);
    assert_int_equal(dl_session_create(r.engine, &a), 0);
    assert_int_equal(dl_session_create(r.engine, &b), 0);
    assert_int_equal(dl_session_reuse(a, text, 100), 0);
    assert_int_equal(dl_session_sync(a, text, 100, NULL, NULL, &logits), 0);
    assert_int_equal(dl_session_blocks(a), 4);
    assert_int_equal(dl_engine_free_blocks(r.engine), 6);
    assert_int_equal(dl_engine_shared_blocks(r.engine, text, 100), 3);
    assert_int_equal(dl_engine_shared_blocks(r.engine, text, 96), 2); /* the last token is evaluated in any case */
    assert_int_equal(dl_engine_shared_blocks(r.engine, text + 1, 100), 0);
    assert_int_equal(dl_session_reuse(b, text, 100), 96);
    assert_int_equal(dl_engine_free_blocks(r.engine), 6);
    dl_session_truncate(b, 0);
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    assert_int_equal(dl_session_sync(b, text + 100, 150, NULL, NULL, &logits), 0);
    dl_session_truncate(b, 0);
    assert_int_equal(dl_session_sync(b, text + 40, 200, NULL, NULL, &logits), DL_ELIMIT); /* 7 blocks */
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 1);
    assert_non_null(strstr(log.last, "the KV cache is full (10 blocks"));
    dl_session_destroy(&a); /* still known, but nobody's */
    assert_int_equal(dl_engine_shared_blocks(r.engine, text, 100), 0);
    assert_int_equal(dl_session_sync(b, text + 40, 200, NULL, NULL, &logits), 0);
    dl_session_destroy(&b);
    assert_int_equal(dl_engine_free_blocks(r.engine), 10);
    rig_close(&r);
}

static void kv_types(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/qwen3.gguf");
    static float want[ROWS], got[ROWS];
    int32_t ids[N_GEN];
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const double bound[] = {0, 1e-6, 3e-4};
    for (size_t i = 0; i < DL_COUNT_OF(types); i++) {
        struct dl_engine_opts o = rig_opts();
        o.kv_type = types[i];
        struct rig r;
        rig_open(&r, path, NULL, 1, NULL, o);
        struct dl_engine_info info;
        dl_engine_info(r.engine, &info);
        const struct dl_model_header *h = dl_model_header(r.model);
        uint64_t row;
        assert_true(dl_row_bytes(types[i], h->head_dim, &row));
        assert_int_equal(info.kv_bytes, 2 * row * h->n_kv_heads * h->n_layers * 256);
        greedy(r.engine, ids, i ? got : want);
        if (i)
            assert_true(nmse(got, want, ROWS) <= bound[i]);
        rig_close(&r);
    }
}

static void limits(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/llama.gguf");
    struct dl_engine_opts o = rig_opts();
    o.ctx = 40;
    o.max_batch = 8;
    struct rig r;
    rig_open(&r, path, NULL, 1, NULL, o);
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_WARN);
    dl_session *s, *t;
    float *logits;
    int32_t many[64] = {0};
    assert_int_equal(dl_session_create(r.engine, &s), 0);
    assert_int_equal(dl_session_sync(s, many, 41, NULL, NULL, &logits), DL_ELIMIT);
    assert_true(log.n == 1 && strstr(log.last, "41") && strstr(log.last, "40"));
    assert_int_equal(dl_session_sync(s, many, 0, NULL, NULL, &logits), DL_EINVAL);
    assert_int_equal(dl_session_sync(s, many, 40, NULL, NULL, &logits), 0); /* in five batches */
    assert_int_equal(dl_session_eval(s, 1, &logits), DL_ELIMIT);
    assert_null(logits);
    assert_int_equal(dl_session_len(s), 40);

    many[3] = VOCAB;
    assert_int_equal(dl_session_sync(s, many, 4, NULL, NULL, &logits), DL_EINVAL);
    assert_non_null(strstr(log.last, "384"));
    many[3] = -1;
    assert_int_equal(dl_session_sync(s, many, 4, NULL, NULL, &logits), DL_EINVAL);
    many[3] = 0;

    /* one session's worth of blocks: a second one runs out, and the first can still be used */
    assert_int_equal(dl_session_create(r.engine, &t), 0);
    assert_int_equal(dl_session_sync(s, many, 33, NULL, NULL, &logits), 0);
    log.n = 0;
    assert_int_equal(dl_session_sync(t, many, 4, NULL, NULL, &logits), DL_ELIMIT);
    assert_int_equal(log.n, 1);
    dl_session_truncate(s, 32);
    assert_int_equal(dl_session_sync(t, many, 4, NULL, NULL, &logits), 0);
    struct dl_step_item twice[] = {{.session = s, .tokens = many, .n = 1}, {.session = s, .tokens = many, .n = 1}};
    assert_int_equal(dl_engine_step(r.engine, twice, 2), DL_EINVAL);
    struct dl_step_item big = {.session = t, .tokens = many, .n = 9};
    assert_int_equal(dl_engine_step(r.engine, &big, 1), DL_EINVAL);
    dl_session_destroy(&s);
    dl_session_destroy(&t);
    rig_close(&r);

    /* what cannot fit is refused before anything is loaded, with the numbers */
    dl_engine *e = NULL;
    assert_int_equal(dl_model_open(path, &r.model), 0);
    struct dl_cpu_opts cpu = {.threads = 1};
    assert_int_equal(dl_cpu_open(&cpu, &r.dev[0]), 0);
    o.model = r.model;
    o.devices = r.dev;
    o.n_devices = 1;
    o.ctx = 1u << 24;
    o.max_sessions = 100;
    log.n = 0;
    assert_int_equal(dl_engine_create(&o, &e), DL_ELIMIT);
    assert_null(e);
    assert_true(log.n >= 1 && strstr(log.last, "context"));
    dl_device_close(&r.dev[0]);
    dl_model_close(&r.model);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
}

/* A device serves one user after the other: measuring, an engine, another engine. */
static void one_device_after_the_other(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/llama.gguf");
    struct rig r = {.n = 1};
    struct dl_cpu_opts cpu = {.threads = 2};
    static float first[ROWS], second[ROWS];
    int32_t ids[N_GEN];
    assert_int_equal(dl_model_open(path, &r.model), 0);
    assert_int_equal(dl_cpu_open(&cpu, &r.dev[0]), 0);
    for (int t = 0; t < DL_WEIGHT_TYPES; t++) {
        struct dl_device_rate rate;
        assert_int_equal(dl_device_measure(r.dev[0], dl_model_header(r.model), (enum dl_type)t, &rate), 0);
        assert_true(rate.bytes_per_s > 1e6 && rate.submit_ns > 0 && rate.op_ns >= 0 && rate.flops > 1e6);
        double one = dl_device_token_ns(&rate, dl_model_header(r.model), 1u << 20);
        assert_true(one > 0 && dl_device_token_ns(&rate, dl_model_header(r.model), 1u << 30) > one);
    }
    for (int i = 0; i < 2; i++) {
        struct dl_engine_opts o = rig_opts();
        o.model = r.model;
        o.devices = r.dev;
        o.n_devices = 1;
        assert_int_equal(dl_engine_create(&o, &r.engine), 0);
        greedy(r.engine, ids, i ? second : first);
        dl_engine_destroy(&r.engine);
    }
    assert_memory_equal(first, second, sizeof first);
    rig_close(&r);
}

/* The two ways in which Llama 3.1's rope scaling is written down: header keys (.m) and a table of factors (GGUF). */
static void rope_scaling_forms_agree(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/llama31-tied.gguf");
    dl_model *m;
    struct dl_tensor t;
    float factors[64], a[128], b[128];
    assert_int_equal(dl_model_open(path, &m), 0);
    struct dl_model_header h = *dl_model_header(m);
    assert_int_equal(h.rope_scaling, DL_ROPE_SCALE_TABLE);
    assert_int_equal(dl_model_tensor(m, DL_T_ROPE_FREQS, 0, &t), 0);
    assert_int_equal(t.cols, h.n_rot / 2);
    dl_row_to_f32(t.type, t.data, factors, t.cols);
    struct dl_model_header keys = h;
    keys.rope_scaling = DL_ROPE_SCALE_LLAMA31;
    keys.rope_factor = 8;
    keys.rope_low_freq = 1;
    keys.rope_high_freq = 4;
    keys.rope_orig_ctx = 64;
    for (uint32_t pos = 0; pos < 500; pos += 7) {
        dl_rope_angles(&h, factors, pos, a);
        dl_rope_angles(&keys, NULL, pos, b);
        for (uint32_t i = 0; i < h.n_rot; i++)
            assert_true(fabsf(a[i] - b[i]) < 2e-4f); /* the table is f32 */
    }
    dl_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_match_the_reference),
        cmocka_unit_test(any_number_of_devices),
        cmocka_unit_test(batching_changes_nothing),
        cmocka_unit_test(prefixes_are_shared),
        cmocka_unit_test(room_for_all_together),
        cmocka_unit_test(kv_types),
        cmocka_unit_test(limits),
        cmocka_unit_test(one_device_after_the_other),
        cmocka_unit_test(rope_scaling_forms_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
