/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster.c: a root and its workers give what one device gives: any number of nodes, even and uneven shares, several
 * sequences in one batch, every way of asking for logits; and how many bytes a token costs.
 */
#include "cluster_rig.h"

#define N_GEN 8
#define VOCAB_MOST 1024

static float one[(N_GEN + 1) * VOCAB_MOST], many[(N_GEN + 1) * VOCAB_MOST];

static const struct cut {
    int n;
    double shares[RIG_MOST];
} cuts[] = {{1, {1}},
            {2, {1, 1}},
            {3, {1, 1, 1}},
            {3, {3, 1, 2}},
            {4, {9, 1, 1, 1}},
            {5, {1, 1, 1, 1, 1}},
            {6, {1, 2, 1, 1, 1, 1}},
            {7, {1, 1, 1, 1, 1, 1, 1}},
            {8, {1, 1, 1, 1, 1, 1, 1, 1}}};

static void compare(const char *path, size_t c, enum dl_type wire, bool rs, const int32_t *want_ids, int32_t *ids)
{
    struct rig r;
    struct dl_engine_opts o = rig_opts();
    o.wire = wire;
    o.shares = cuts[c].shares;
    o.collective = rs ? DL_COLLECTIVE_RS : DL_COLLECTIVE_ONE_SHOT;
    rig_open(&r, path, cuts[c].n);
    assert_int_equal(rig_start(&r, o, NULL), 0);
    const uint32_t vocab = rig_vocab(&r);
    assert_int_equal(rig_continue(&r, want_ids, N_GEN, ids, many), 0);
    double d = rig_nmse(many, one, (size_t)(N_GEN + 1) * vocab), bound = wire == DL_F32 ? 1e-6 : 1e-4;
    if (d > bound || (wire == DL_F32 && memcmp(ids, want_ids, N_GEN * sizeof *ids)))
        fail_msg("%s, cut %zu, wire %d, %s: NMSE %.2e", path ? path : "demo", c, (int)wire, rs ? "rs" : "oneshot", d);
    rig_stop(&r);
    for (int i = 1; i < r.n; i++)
        assert_int_equal(r.workers[i].err, DL_OK);
    rig_close(&r);
}

static void all_cuts(const char *path)
{
    struct rig r;
    int32_t want_ids[N_GEN], ids[N_GEN];
    rig_alone(&r, path, rig_opts());
    assert_true(rig_vocab(&r) <= VOCAB_MOST);
    assert_int_equal(rig_continue(&r, NULL, N_GEN, want_ids, one), 0);
    dl_engine_destroy(&r.engine);
    rig_close(&r);
    for (size_t c = 0; c < DL_COUNT_OF(cuts); c++) {
        compare(path, c, DL_F32, c % 2, want_ids, ids);
        for (int rs = 0; rs < (cuts[c].n > 2 ? 2 : 1); rs++)
            compare(path, c, DL_Q80, rs, want_ids, ids);
    }
    compare(path, 3, DL_F16, true, want_ids, ids);
}

static void families(void **state)
{
    (void)state;
    NEED_DATA(any, "refs/llama.gguf");
    static const char *const names[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};
    for (size_t i = 0; i < DL_COUNT_OF(names); i++) {
        char file[64];
        snprintf(file, sizeof file, "refs/%s.gguf", names[i]);
        all_cuts(test_data(file));
    }
}

/* The demo recites only while every head and column is there: its text on any cluster is that of one device. */
static void the_demo(void **state)
{
    (void)state;
    struct rig r;
    int32_t want[N_GEN], ids[N_GEN];
    rig_alone(&r, NULL, rig_opts());
    assert_int_equal(rig_continue(&r, NULL, N_GEN, want, one), 0);
    dl_engine_destroy(&r.engine);
    rig_close(&r);
    for (size_t c = 0; c < DL_COUNT_OF(cuts); c++) {
        struct dl_engine_opts o = rig_opts();
        o.wire = DL_Q80;
        o.shares = cuts[c].shares;
        o.collective = c % 2 ? DL_COLLECTIVE_RS : DL_COLLECTIVE_ONE_SHOT;
        rig_open(&r, NULL, cuts[c].n);
        assert_int_equal(rig_start(&r, o, NULL), 0);
        assert_int_equal(rig_continue(&r, NULL, N_GEN, ids, many), 0);
        assert_memory_equal(ids, want, sizeof ids);
        rig_stop(&r);
        rig_close(&r);
    }
}

/* Several sequences in one batch, batch after batch, while blocks come and go: as on one device. */
struct mixed {
    struct dl_candidate best, top[5];
    uint32_t n_top;
    double log_sum;
    float temperature; /* what it is to be taken at; 0: 1 */
    float last[VOCAB_MOST], all[3 * VOCAB_MOST], again[VOCAB_MOST], fed;
};

static void mixed_batches(struct rig *r, struct mixed *m)
{
    dl_engine *e = r->engine;
    const uint32_t vocab = rig_vocab(r);
    dl_session *s[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(dl_session_create(e, &s[i]), 0);
    int32_t tokens[40];
    for (int i = 0; i < 40; i++)
        tokens[i] = r->prompt[i % RIG_PROMPT];
    struct dl_step_item first[] = {{.session = s[0], .tokens = tokens, .n = 35, .want = DL_WANT_BEST},
                                   {.session = s[1], .tokens = tokens + 2, .n = 3, .want = DL_WANT_ALL},
                                   {.session = s[2], .tokens = tokens + 5, .n = 20}};
    assert_int_equal(dl_engine_step(e, first, 3), 0);
    assert_int_equal(first[0].n_top, 1);
    assert_null(first[0].logits);
    assert_null(first[2].logits);
    m->best = first[0].top[0];
    memcpy(m->all, first[1].logits, 3 * vocab * sizeof(float));
    dl_session_truncate(s[0], 20);
    dl_session_truncate(s[2], 0);
    struct dl_step_item second[] = {
        {.session = s[3], .tokens = tokens, .n = 34, .want = DL_WANT_LAST},
        {.session = s[0], .tokens = tokens, .n = 1, .want = DL_WANT_TOP, .k = 5, .temperature = m->temperature},
        {.session = s[1], .tokens = tokens, .n = 30}};
    assert_int_equal(dl_engine_step(e, second, 3), 0);
    memcpy(m->last, second[0].logits, vocab * sizeof(float));
    m->n_top = second[1].n_top;
    memcpy(m->top, second[1].top, m->n_top * sizeof *m->top);
    m->log_sum = second[1].log_sum;
    float *row;
    assert_int_equal(dl_engine_logits(e, 1, &row), 0);
    memcpy(m->again, row, vocab * sizeof(float));
    assert_int_equal(dl_engine_logits(e, 2, &row), DL_EINVAL);
    assert_null(row);
    struct dl_step_item last = {.want = DL_WANT_BEST};
    assert_int_equal(dl_session_feed(s[2], tokens, 38, NULL, NULL, &last), 0);
    m->fed = last.top[0].logit;
    second[1].k = DL_TOP_MOST + 1;
    assert_int_equal(dl_engine_step(e, second, 3), DL_EINVAL);
    for (int i = 0; i < 4; i++)
        dl_session_destroy(&s[i]);
}

static void several_sessions(void **state)
{
    (void)state;
    static struct mixed want, got;
    rig_log_begin();
    for (int data = 0; data < 2; data++) {
        const char *path = data ? test_data("refs/qwen3.gguf") : NULL;
        if (data && !path)
            break; /* said so */
        struct rig r;
        struct dl_engine_opts o = rig_opts();
        o.max_sessions = 4;
        o.kv_tokens = 640; /* not a full context for each, also on the workers */
        o.max_batch = 70;
        rig_alone(&r, path, o);
        const uint32_t vocab = rig_vocab(&r);
        want.temperature = got.temperature = data ? 0.7f : 0;
        mixed_batches(&r, &want);
        dl_engine_destroy(&r.engine);
        rig_close(&r);

        /* One device by itself: the candidates are those of the full row. */
        int32_t best = rig_argmax(want.again, vocab);
        assert_int_equal(want.n_top, 5);
        assert_int_equal(want.top[0].id, best);
        double sum = 0;
        for (uint32_t i = 0; i < vocab; i++) {
            sum += exp((double)want.again[i] / (data ? 0.7 : 1.0));
            uint32_t rank = 0;
            for (uint32_t j = 0; j < vocab; j++)
                rank += want.again[j] > want.again[i] || (want.again[j] == want.again[i] && j < i);
            if (rank < 5)
                assert_int_equal(want.top[rank].id, i);
        }
        assert_true(fabs(log(sum) - want.log_sum) < 1e-6); /* 0.7 is no float */

        rig_open(&r, path, 3);
        o.shares = cuts[3].shares;
        assert_int_equal(rig_start(&r, o, NULL), 0);
        mixed_batches(&r, &got);
        rig_stop(&r);
        rig_close(&r);
        assert_true(rig_nmse(got.all, want.all, 3 * vocab) < 1e-6);
        assert_true(rig_nmse(got.last, want.last, vocab) < 1e-6);
        assert_true(rig_nmse(got.again, want.again, vocab) < 1e-6);
        assert_int_equal(got.best.id, want.best.id);
        assert_int_equal(got.n_top, 5);
        for (int i = 0; i < 5; i++) {
            assert_int_equal(got.top[i].id, want.top[i].id);
            assert_true(got.top[i].logit == got.again[got.top[i].id]);
        }
        assert_true(fabs(got.log_sum - want.log_sum) < 1e-3);
        assert_true(fabsf(got.fed - want.fed) < 1e-2f);
    }
    rig_log_end();
}

/* Every byte that the root sends and gets for a decoded token: the sums; one message to each worker; from each, for a greedy sampler, the
 * best that it has. */
static void bytes_of(const char *path, uint64_t block)
{
    static const int nodes[] = {2, 3, 4};
    for (size_t k = 0; k < 3 * DL_COUNT_OF(nodes); k++) {
        struct rig r;
        struct dl_engine_opts o = rig_opts();
        const int n = nodes[k / 3];
        const uint64_t tokens = 32;
        const bool rs = k % 3 == 1, halves = k % 3 == 2;
        o.wire = DL_Q80;
        o.collective = rs ? DL_COLLECTIVE_RS : halves ? DL_COLLECTIVE_HALVES : DL_COLLECTIVE_ONE_SHOT;
        rig_open(&r, path, n);
        assert_int_equal(rig_start(&r, o, NULL), 0);
        const struct dl_model_header *h = dl_model_header(r.model);
        dl_session *s;
        assert_int_equal(dl_session_create(r.engine, &s), 0);
        struct dl_step_item item = {.want = DL_WANT_BEST};
        assert_int_equal(dl_session_feed(s, r.prompt, RIG_PROMPT, NULL, NULL, &item), 0);
        dl_engine_stats_reset(r.engine);
        for (uint64_t i = 0; i < tokens; i++) {
            int32_t token = item.top[0].id;
            item = (struct dl_step_item){.session = s, .tokens = &token, .n = 1, .want = DL_WANT_BEST};
            assert_int_equal(dl_engine_step(r.engine, &item, 1), 0);
        }
        struct dl_engine_stats stats;
        dl_engine_stats(r.engine, &stats);
        const uint64_t sums = 2 * h->n_layers, peers = (uint64_t)n - 1, blocks_of_sum = h->dim / 32;
        const uint64_t piece = (rs ? dl_div_up(blocks_of_sum, (uint64_t)n) : blocks_of_sum) * block;
        const uint64_t exchanged = (rs ? 2 : 1) * sums * peers * piece;
        /* STEP: type, number, one sequence, all in the first lane: position, length, want, kept blocks; the row. A new block now and then. */
        const uint64_t step = 1 + 8 + 4 + 4 + 4 + 4 + 1 + 4 + h->dim / 32 * 57, logits = 1 + 8 + 4 + 4 + 8;
        const uint64_t blocks = (RIG_PROMPT + tokens + 31) / 32 - (RIG_PROMPT + 31) / 32;
        printf("%d nodes, %s: %llu bytes per token\n", n,
               rs       ? "rs"
               : halves ? "halves"
                        : "oneshot",
               (unsigned long long)(stats.sent_bytes + stats.received_bytes) / tokens);
        assert_int_equal(stats.sent_bytes, tokens * (exchanged + peers * step) + peers * blocks * 4);
        assert_int_equal(stats.received_bytes, tokens * (exchanged + peers * logits));
        assert_int_equal(stats.steps, tokens);
        dl_session_destroy(&s);
        rig_stop(&r);
        rig_close(&r);
    }
}

static void bytes_per_token(void **state)
{
    (void)state;
    bytes_of(NULL, 34);
    const char *experts = test_data("refs/qwen3moe.gguf");
    if (experts) /* for these a q80 wire is finer */
        bytes_of(experts, 50);
}

enum { LONG = 50 };

/* Logits of a text of LONG tokens and of one more, in batches of at most max_batch. */
static struct dl_engine_stats long_text(int n, uint32_t max_batch, struct dl_engine_opts o, float *rows)
{
    struct rig r;
    o.max_batch = max_batch;
    o.max_out = 31;
    rig_open(&r, NULL, n);
    assert_int_equal(rig_start(&r, o, NULL), 0);
    const uint32_t vocab = rig_vocab(&r);
    dl_session *s;
    assert_int_equal(dl_session_create(r.engine, &s), 0);
    int32_t ids[LONG];
    for (int i = 0; i < LONG; i++)
        ids[i] = r.prompt[i % RIG_PROMPT];
    /* all at once, or the first part alone; of the last token of either, and what follows */
    struct dl_step_item item = {.session = s, .tokens = ids, .n = LONG, .want = DL_WANT_LAST};
    if (max_batch < LONG)
        assert_int_equal(dl_session_feed(s, ids, LONG, NULL, NULL, &item), 0);
    else
        assert_int_equal(dl_engine_step(r.engine, &item, 1), 0);
    memcpy(rows, item.logits, vocab * sizeof *rows);
    item = (struct dl_step_item){.session = s, .tokens = ids, .n = 5, .want = DL_WANT_ALL};
    assert_int_equal(dl_engine_step(r.engine, &item, 1), 0);
    memcpy(rows + vocab, item.logits, 5 * vocab * sizeof *rows);
    struct dl_engine_stats t;
    dl_engine_stats(r.engine, &t);
    assert_true(t.compute_ns && t.exchange_ns && t.exchange_hidden_ns <= DL_MIN(t.compute_ns, t.exchange_ns));
    dl_session_destroy(&s);
    rig_stop(&r);
    rig_close(&r);
    return t;
}

/* Half batches in antiphase compute the same bits as one after the other; so do, where nothing is rounded, sums in two stages. */
static void overlap_changes_nothing(void **state)
{
    (void)state;
    const size_t n = (size_t)6 * VOCAB_MOST;
    float *want = dl_xcalloc(n, sizeof *want), *got = dl_xcalloc(n, sizeof *got), *at_once = dl_xcalloc(n, sizeof *got);
    for (int k = 0; k < 4; k++) {
        struct dl_engine_opts o = rig_opts();
        o.wire = k & 1 ? DL_F32 : DL_Q80;
        o.collective = k & 2 ? DL_COLLECTIVE_RS : DL_COLLECTIVE_ONE_SHOT;
        long_text(3, 31, o, want); /* too small a batch for lanes */
        long_text(3, 64, o, got);
        assert_memory_equal(got, want, n * sizeof *want);
        assert_memory_not_equal(got, got + 1, n / 8 * sizeof *want);
        if (k == 1)
            memcpy(at_once, want, n * sizeof *want);
        else if (k == 3)
            assert_memory_equal(at_once, want, n * sizeof *want);
    }
    free(want);
    free(got);
    free(at_once);
}

enum { MANY = 5, STEPS = 12 };

/* Rows of what MANY sessions say, a token of each at a time. */
static void many_talk(uint32_t max_batch, struct dl_engine_opts o, float *rows)
{
    struct rig r;
    o.max_batch = max_batch;
    o.max_sessions = MANY;
    rig_open(&r, NULL, 3);
    assert_int_equal(rig_start(&r, o, NULL), 0);
    const uint32_t vocab = rig_vocab(&r);
    dl_session *s[MANY];
    int32_t next[MANY];
    struct dl_step_item items[MANY];
    for (int i = 0; i < MANY; i++) {
        struct dl_step_item first = {.want = DL_WANT_BEST};
        assert_int_equal(dl_session_create(r.engine, &s[i]), 0);
        assert_int_equal(dl_session_feed(s[i], r.prompt + i, RIG_PROMPT - (uint32_t)i, NULL, NULL, &first), 0);
        next[i] = first.top[0].id;
    }
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < MANY; i++)
            items[i] = (struct dl_step_item){.session = s[i], .tokens = &next[i], .n = 1, .want = DL_WANT_LAST};
        assert_int_equal(dl_engine_step(r.engine, items, MANY), 0);
        for (int i = 0; i < MANY; i++, rows += VOCAB_MOST) {
            memcpy(rows, items[i].logits, vocab * sizeof *rows);
            next[i] = rig_argmax(rows, vocab);
        }
    }
    for (int i = 0; i < MANY; i++)
        dl_session_destroy(&s[i]);
    rig_stop(&r);
    rig_close(&r);
}

/* Tokens of several sessions, some of whose batches are halved to find out which is faster. */
static void answers_in_antiphase(void **state)
{
    (void)state;
    const size_t n = (size_t)MANY * STEPS * VOCAB_MOST;
    float *want = dl_xcalloc(n, sizeof *want), *got = dl_xcalloc(n, sizeof *got);
    for (int k = 0; k < 2; k++) {
        struct dl_engine_opts o = rig_opts();
        o.wire = k ? DL_F32 : DL_Q80;
        o.collective = k ? DL_COLLECTIVE_RS : DL_COLLECTIVE_HALVES;
        many_talk(31, o, want); /* too small a batch for lanes */
        many_talk(64, o, got);
        assert_memory_equal(got, want, n * sizeof *want);
        assert_memory_not_equal(got, got + VOCAB_MOST, n / 8 * sizeof *want);
    }
    free(want);
    free(got);
}

/* Sums in halves are the same bits, in the same bytes, with and without lanes, also where a node has nothing to give. */
static void halves_change_nothing(void **state)
{
    (void)state;
    static const struct cut halved[] = {{2, {1, 1}}, {3, {3, 1, 2}}, {4, {1, 1, 1, 1e-9}}};
    const size_t n = (size_t)6 * VOCAB_MOST;
    float *want = dl_xcalloc(n, sizeof *want), *got = dl_xcalloc(n, sizeof *got);
    for (size_t c = 0; c < DL_COUNT_OF(halved); c++)
        for (int k = 0; k < 4; k++) {
            struct dl_engine_opts o = rig_opts();
            o.wire = k & 1 ? DL_F32 : DL_Q80;
            o.shares = halved[c].shares;
            o.collective = DL_COLLECTIVE_ONE_SHOT;
            struct dl_engine_stats whole = long_text(halved[c].n, k & 2 ? 64 : 31, o, want);
            o.collective = DL_COLLECTIVE_HALVES;
            struct dl_engine_stats halves = long_text(halved[c].n, k & 2 ? 64 : 31, o, got);
            assert_memory_equal(got, want, n * sizeof *want);
            assert_memory_not_equal(got, got + 1, n / 8 * sizeof *want);
            assert_true(whole.sent_bytes > 0);
            assert_int_equal(halves.sent_bytes, whole.sent_bytes);
            assert_int_equal(halves.received_bytes, whole.received_bytes);
        }
    free(want);
    free(got);
}

/* Whoever makes the engine gets what is wrong with its options, and the transport is closed all the same. */
static void options(void **state)
{
    (void)state;
    struct rig r;
    rig_log_begin();
    rig_open(&r, NULL, 2);
    dl_device *two[] = {r.dev, r.workers[1].dev};
    for (int i = 0; i < 2; i++) {
        dl_transport *t[2];
        assert_int_equal(dl_loopback_open(2, NULL, t), 0);
        struct dl_engine_opts o = rig_opts();
        o.model = r.model;
        o.devices = two;
        o.n_devices = i ? 1 : 2;
        o.transport = i ? t[1] : t[0];
        assert_int_equal(dl_engine_create(&o, &r.engine), i ? DL_EINVAL : DL_EUNSUP);
        assert_null(r.engine);
        dl_transport_close(i ? &t[0] : &t[1]); /* the last one: it ends the loopback's thread */
    }
    dl_transport *t;
    assert_int_equal(dl_loopback_open(1, NULL, &t), 0);
    assert_int_equal(dl_worker_run(t, r.dev, NULL), DL_EINVAL);
    assert_int_equal(rig_logged.errors, 3);
    rig_close(&r);
    rig_log_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families),
        cmocka_unit_test(the_demo),
        cmocka_unit_test(several_sessions),
        cmocka_unit_test(bytes_per_token),
        cmocka_unit_test(overlap_changes_nothing),
        cmocka_unit_test(answers_in_antiphase),
        cmocka_unit_test(halves_change_nothing),
        cmocka_unit_test(options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
