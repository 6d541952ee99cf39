/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_measure.c: a cluster that measures itself: equal nodes share equally whatever they measured, memory limits what a node
 * gets, a second start measures nothing and gives the same slices, and the answer is that of one node.
 */
#include "cluster_rig.h"
#include "engine.h"
#include "rates.h"
#include "tempdir.h"

#define N_GEN 8

/* A folder for one test. */
struct place {
    char dir[TEMPDIR_LEN], file[2 * TEMPDIR_LEN];
};

static int make_place(void **state)
{
    static struct place p;
    make_dir(p.dir);
    snprintf(p.file, sizeof p.file, "%s/rates", p.dir);
    *state = &p;
    return 0;
}

static int remove_place(void **state)
{
    remove_dir(((struct place *)*state)->dir);
    return 0;
}

static void log_all(void)
{
    rig_log_begin();
    dl_log_set(rig_log_sink, NULL, DL_LOG_INFO);
}

static struct dl_engine_opts measured(const char *file)
{
    struct dl_engine_opts o = rig_opts();
    o.measure = true;
    o.rates_file = file;
    return o;
}

static void same_answer_and_equal_shares(void **state)
{
    (void)state;
    struct rig r;
    static float want[(N_GEN + 1) * 4096], rows[(N_GEN + 1) * 4096];
    int32_t ids[N_GEN], alone[N_GEN];
    rig_alone(&r, NULL, rig_opts());
    assert_true(rig_vocab(&r) <= 4096);
    assert_int_equal(rig_continue(&r, NULL, N_GEN, alone, want), 0);
    rig_stop(&r);
    rig_close(&r);
    for (int n = 2; n <= 4; n++) {
        log_all();
        rig_open(&r, NULL, n);
        assert_int_equal(rig_start(&r, measured(NULL), NULL), 0);
        const struct dl_slice *s = r.engine->slices;
        for (int i = 1; i < n; i++) /* but for what cannot be divided; of that the first get more */
            assert_true(s[i].n_ffn <= s[0].n_ffn && s[0].n_ffn - s[i].n_ffn <= 128 && s[i].n_heads <= s[0].n_heads);
        assert_int_equal(rig_continue(&r, NULL, N_GEN, ids, rows), 0);
        assert_memory_equal(ids, alone, sizeof ids);
        assert_true(rig_log_has("network latency"));
        assert_true(rig_log_has("tok/s at position"));
        assert_true(rig_log_has("root "));
        assert_true(rig_log_has("node 1 "));
        assert_false(rig_log_has("as measured before"));
        rig_stop(&r);
        rig_close(&r);
        rig_log_end();
    }
}

/* Shares that the caller gives are taken; measured is the network alone. */
static void given_shares_win(void **state)
{
    (void)state;
    struct rig r;
    struct dl_slice want[3];
    const double shares[] = {1, 5, 2};
    struct dl_engine_opts o = measured(NULL);
    o.shares = shares;
    rig_open(&r, NULL, 3);
    assert_int_equal(rig_start(&r, o, NULL), 0);
    assert_int_equal(dl_slices_make(r.engine->h, dl_column_unit(r.engine->h, &r.engine->types), shares, 3, want), 0);
    assert_memory_equal(r.engine->slices, want, sizeof want);
    assert_true(r.engine->link.latency_ns > 0 && r.engine->link.bytes_per_s > 0);
    assert_true(r.engine->rates[1].memory > 0 && r.engine->rates[1].machine == r.engine->rates[0].machine);
    rig_stop(&r);
    rig_close(&r);
}

static void start_and_keep(struct rig *r, const char *file, struct dl_slice slices[3], bool known)
{
    log_all();
    assert_int_equal(rig_start(r, measured(file), NULL), 0);
    memcpy(slices, r->engine->slices, 3 * sizeof *slices);
    if (rig_log_has("as measured before") != known)
        fail_msg("%s", rig_logged.text.v);
    rig_stop(r);
    rig_log_end();
}

static void second_start_measures_nothing(void **state)
{
    const char *file = ((struct place *)*state)->file;
    struct rig r;
    struct dl_slice first[3], second[3];
    rig_open(&r, NULL, 3);
    start_and_keep(&r, file, first, false);
    start_and_keep(&r, file, second, true);
    assert_memory_equal(first, second, sizeof first);
    assert_true(dl_file_replace(file, "nonsense\ndllama-vk-rates-1 5\n\n", 29));
    start_and_keep(&r, file, second, false);
    start_and_keep(&r, file, second, true);
    rig_close(&r);
    rig_open(&r, NULL, 2); /* one is gone: known as well */
    log_all();
    assert_int_equal(rig_start(&r, measured(file), NULL), 0);
    assert_true(rig_log_has("as measured before"));
    assert_int_equal(r.engine->link_nodes, 3);
    rig_stop(&r);
    rig_close(&r);
    rig_log_end();
}

/* A worker that may use little gets little, and one that may use next to nothing is named with the numbers. */
static void memory_limits(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 3);
    for (int i = 1; i < 3; i++)
        r.workers[i].opts.memory = UINT64_C(512) << 20;
    assert_int_equal(rig_start(&r, measured(NULL), NULL), 0);
    assert_true(r.engine->rates[1].memory <= UINT64_C(512) << 20);
    rig_stop(&r);
    r.workers[1].opts.memory = 50000;
    log_all();
    assert_int_equal(rig_start(&r, measured(NULL), NULL), DL_ELIMIT);
    for (int i = 1; i < 3; i++)
        pthread_join(r.workers[i].thread, NULL);
    assert_true(rig_log_has("memory: node 1 has 0.0 MiB free"));
    rig_close(&r);
    rig_log_end();
}

/* ------------------------------------------------------------------------------------------------- the file */

static const char *const five[] = {"root, a", "x:1, b", "y:1, b", "z:1, c", "w:1, c"};

static void remember(const char *path, uint32_t dim, uint32_t n, double rate)
{
    struct eng_rates_key key = {dim, DL_Q40, five, n};
    struct eng_link_rate link = {{50000, 1e8}, n};
    struct eng_rate rates[5] = {0};
    for (uint32_t i = 0; i < n; i++)
        rates[i].rate = (struct dl_device_rate){rate + i, 1, 2, 3};
    eng_rates_remember(path, &key, rates, &link);
}

static double recall(const char *path, uint32_t dim, const char *const *who, uint32_t n, uint32_t at)
{
    struct eng_rates_key key = {dim, DL_Q40, who, n};
    struct eng_link_rate link = {0};
    struct eng_rate rates[5] = {0};
    if (!eng_rates_recall(path, &key, rates, &link))
        return 0;
    assert_true(link.speed.latency_ns == 50000 && link.speed.bytes_per_s == 1e8 && link.n_nodes >= n);
    return rates[at].rate.bytes_per_s;
}

static void file_of_rates(void **state)
{
    const char *path = ((struct place *)*state)->file;
    static const char *const others[] = {"root, a", "z:1, c", "x:1, b"}, *const unknown[] = {"root, a", "q:1, c"},
                             *const twice[] = {"root, a", "x:1, b", "x:1, b"};
    assert_true(recall(path, 64, five, 2, 0) == 0); /* there is none */
    remember(path, 64, 4, 1000);
    remember(path, 128, 5, 2000);
    assert_true(recall(path, 64, five, 4, 3) == 1003);
    assert_true(recall(path, 128, five, 5, 1) == 2001);
    assert_true(recall(path, 256, five, 4, 3) == 0);
    assert_true(recall(path, 64, others, 3, 1) == 1003); /* some of them, in another order */
    assert_true(recall(path, 64, others, 3, 2) == 1001);
    assert_true(recall(path, 64, unknown, 2, 0) == 0);
    assert_true(recall(path, 64, twice, 3, 0) == 0);
    assert_true(recall(path, 128, five, 1, 0) == 0); /* too few to be the same cluster */
    remember(path, 64, 4, 3000);
    assert_true(recall(path, 64, five, 4, 0) == 3000);
    for (uint32_t dim = 1000; dim < 1040; dim++) /* the oldest go */
        remember(path, dim, 3, 1);
    assert_true(recall(path, 1039, five, 3, 0) == 1);
    assert_true(recall(path, 64, five, 4, 0) == 0);
    struct dl_map map;
    assert_int_equal(dl_map_open(path, &map), 0);
    assert_true(map.size < 32 * 400);
    uint64_t rng = 3; /* damaged in any way: something that makes sense, or nothing */
    uint8_t *copy = malloc(map.size);
    for (int round = 0; round < 300; round++) {
        memcpy(copy, map.data, map.size);
        for (int k = 0; k < 40; k++)
            copy[test_rand(&rng) % 600] = (uint8_t) "0 9ae-.\n\0x"[test_rand(&rng) % 10];
        assert_true(dl_file_replace(path, copy, 1 + (size_t)(test_rand(&rng) % map.size)));
        double v = recall(path, 1039, five, 3, 0);
        assert_true(v >= 0 && v <= 1e18);
    }
    free(copy);
    dl_map_close(&map);
}

static bool goes_in_halves(bool slow)
{
    const struct dl_loopback_faults net = {.bytes_per_s = slow ? 12000000 : 0};
    struct rig r;
    log_all();
    rig_open(&r, NULL, 2);
    dl_model_close(&r.model);
    assert_int_equal(dl_model_open_shape("llama3.2-1b", 1, true, &r.model), 0);
    struct dl_engine_opts o = measured(NULL);
    o.wire = DL_Q80;
    assert_int_equal(rig_start(&r, o, &net), 0);
    const bool halves = r.engine->plan_opts.halves;
    assert_true(rig_log_has("sums by oneshot"));
    assert_true(rig_log_has(halves ? "2 sums per token: halves" : "sums per token: one-shot"));
    assert_true(rig_log_has(halves ? "less each: they do" : "more each: they go whole"));
    rig_stop(&r);
    assert_int_equal(r.workers[1].err, DL_OK);
    rig_close(&r);
    rig_log_end();
    return halves;
}

/* Halves where the network is slow and one can be computed while the other travels, and not where it is not; all nodes agree. A machine
 * that does something else at the wrong moment may measure anything, but not each time. */
static void halves_by_the_network(void **state)
{
    (void)state;
    for (int slow = 0; slow < 2; slow++) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        const bool any = slow; /* small ops may cost more here than is gained */
#else
        const bool any = false;
#endif
        bool right = false;
        int tries = 0;
        for (; tries < 5 && !right; tries++)
            right = goes_in_halves(slow) == slow || any;
        printf("%s: measured %d times\n", slow ? "slow" : "fast", tries);
        assert_true(right);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_answer_and_equal_shares),
        cmocka_unit_test(given_shares_win),
        cmocka_unit_test_setup_teardown(second_start_measures_nothing, make_place, remove_place),
        cmocka_unit_test(memory_limits),
        cmocka_unit_test(halves_by_the_network),
        cmocka_unit_test_setup_teardown(file_of_rates, make_place, remove_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
