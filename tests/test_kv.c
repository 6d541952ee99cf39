/* SPDX-License-Identifier: MIT
 *
 * tests/test_kv.c: the KV block allocator: order, sharing, exhaustion, and a long random run against a plain model of it.
 */
#include "common.h"

#include "kv.h"

static void lowest_first(void **state)
{
    (void)state;
    struct eng_kv kv;
    uint32_t b;
    assert_int_equal(eng_kv_init(&kv, 4), DL_OK);
    for (uint32_t want = 0; want < 4; want++) {
        assert_int_equal(eng_kv_free_count(&kv), 4 - want);
        assert_int_equal(eng_kv_alloc(&kv, &b), DL_OK);
        assert_int_equal(b, want);
    }
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    assert_int_equal(eng_kv_alloc(&kv, &b), DL_ELIMIT);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 0);
    assert_int_equal(eng_kv_unref(&kv, 2), 0);
    assert_int_equal(eng_kv_alloc(&kv, &b), DL_OK);
    assert_int_equal(b, 2);
    eng_kv_finish(&kv);
    assert_null(kv.refs);
}

static void shared(void **state)
{
    (void)state;
    struct eng_kv kv;
    uint32_t a, b;
    assert_int_equal(eng_kv_init(&kv, 2), DL_OK);
    assert_int_equal(eng_kv_alloc(&kv, &a), DL_OK);
    assert_int_equal(eng_kv_ref(&kv, a), 2);
    assert_int_equal(eng_kv_ref(&kv, a), 3);
    assert_int_equal(eng_kv_unref(&kv, a), 2);
    assert_int_equal(eng_kv_unref(&kv, a), 1);
    assert_int_equal(eng_kv_free_count(&kv), 1);
    assert_int_equal(eng_kv_alloc(&kv, &b), DL_OK);
    assert_int_not_equal(a, b);
    assert_int_equal(eng_kv_unref(&kv, a), 0);
    assert_int_equal(eng_kv_free_count(&kv), 1);
    eng_kv_finish(&kv);
}

static void none(void **state)
{
    (void)state;
    struct eng_kv kv;
    uint32_t b;
    assert_int_equal(eng_kv_init(&kv, 0), DL_OK);
    assert_int_equal(eng_kv_alloc(&kv, &b), DL_ELIMIT);
    eng_kv_finish(&kv);
    eng_kv_finish(&kv);
}

static void random_run(void **state)
{
    (void)state;
    enum { N = 37 };
    struct eng_kv kv;
    uint32_t refs[N] = {0}, n_free = N;
    uint64_t rng = 7;
    assert_int_equal(eng_kv_init(&kv, N), DL_OK);
    unsigned full = 0;
    for (unsigned i = 0; i < 100000; i++) {
        uint32_t b = (uint32_t)(test_rand(&rng) % N);
        switch (test_rand(&rng) % 4) {
        case 0:
        case 1:
            if (eng_kv_alloc(&kv, &b)) {
                assert_int_equal(n_free, 0);
                full++;
            } else {
                assert_true(b < N);
                assert_int_equal(refs[b], 0);
                refs[b] = 1;
                n_free--;
            }
            break;
        case 2:
            if (refs[b] && refs[b] < 3)
                assert_int_equal(eng_kv_ref(&kv, b), ++refs[b]);
            break;
        case 3:
            if (refs[b]) {
                assert_int_equal(eng_kv_unref(&kv, b), --refs[b]);
                n_free += !refs[b];
            }
            break;
        }
        assert_int_equal(eng_kv_free_count(&kv), n_free);
    }
    assert_true(full > 100);
    eng_kv_finish(&kv);
}

static void fill(int32_t tokens[DL_KV_BLOCK], int32_t first)
{
    for (int32_t i = 0; i < DL_KV_BLOCK; i++)
        tokens[i] = first + i;
}

/* What was in a block is found until its place is needed, and only after what it came after. */
static void remembered(void **state)
{
    (void)state;
    struct eng_kv kv;
    int32_t t[3][DL_KV_BLOCK];
    uint32_t a, b, c, d;
    for (int32_t i = 0; i < 3; i++)
        fill(t[i], 100 * i);
    assert_int_equal(eng_kv_init(&kv, 3), DL_OK);
    assert_int_equal(eng_kv_alloc(&kv, &a), DL_OK);
    assert_int_equal(eng_kv_alloc(&kv, &b), DL_OK);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[0]), ENG_KV_NONE);
    assert_int_equal(eng_kv_know(&kv, a, ENG_KV_NONE, t[0]), a);
    assert_int_equal(eng_kv_know(&kv, b, a, t[1]), b);
    assert_int_equal(eng_kv_find(&kv, a, t[1]), b); /* while it is in use */
    assert_int_equal(kv.refs[b], 2);
    assert_int_equal(eng_kv_unref(&kv, b), 1);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[1]), ENG_KV_NONE);
    assert_int_equal(eng_kv_find(&kv, a, t[2]), ENG_KV_NONE);
    t[1][DL_KV_BLOCK - 1]++;
    assert_int_equal(eng_kv_find(&kv, a, t[1]), ENG_KV_NONE);
    t[1][DL_KV_BLOCK - 1]--;
    /* The same content in another block: the first one stays. */
    assert_int_equal(eng_kv_alloc(&kv, &c), DL_OK);
    assert_int_equal(eng_kv_know(&kv, c, a, t[1]), b);
    assert_true(kv.refs[b] == 2 && !kv.refs[c]);
    eng_kv_unref(&kv, b);
    /* Nobody holds them: all can be had, and are still known. */
    eng_kv_unref(&kv, b);
    eng_kv_unref(&kv, a);
    assert_int_equal(eng_kv_free_count(&kv), 3);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[0]), a);
    assert_int_equal(eng_kv_find(&kv, a, t[1]), b);
    assert_int_equal(eng_kv_free_count(&kv), 1);
    eng_kv_unref(&kv, b);
    eng_kv_unref(&kv, a);
    /* The empty one goes first, then what was given back first. */
    assert_int_equal(eng_kv_alloc(&kv, &c), DL_OK);
    assert_int_equal(eng_kv_know(&kv, c, a, t[1]), b); /* also when nobody held it */
    assert_true(kv.refs[b] == 1 && kv.n_idle == 1 && kv.n_free == 1);
    eng_kv_unref(&kv, b);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[0]), a);
    eng_kv_unref(&kv, a);
    assert_int_equal(eng_kv_alloc(&kv, &d), DL_OK);
    assert_int_equal(d, c);
    assert_int_equal(eng_kv_alloc(&kv, &d), DL_OK);
    assert_int_equal(d, b);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[0]), a);
    assert_int_equal(eng_kv_find(&kv, a, t[1]), ENG_KV_NONE);
    /* A block that gets other content: what came after it is not found by the new one. */
    assert_int_equal(eng_kv_know(&kv, d, a, t[1]), d);
    eng_kv_forget(&kv, a);
    assert_int_equal(eng_kv_know(&kv, a, ENG_KV_NONE, t[2]), a);
    assert_int_equal(eng_kv_find(&kv, a, t[1]), ENG_KV_NONE);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[0]), ENG_KV_NONE);
    eng_kv_unref(&kv, a);
    eng_kv_forget_all(&kv);
    assert_int_equal(eng_kv_find(&kv, ENG_KV_NONE, t[2]), ENG_KV_NONE);
    assert_int_equal(eng_kv_free_count(&kv), 1);
    eng_kv_finish(&kv);
}

/* Many sequences over few blocks, against what each block must hold. */
static void remembered_run(void **state)
{
    (void)state;
    enum { N = 23, SEQS = 5, MOST = 4 };
    struct eng_kv kv;
    int32_t holds[N][MOST]; /* the numbers of all blocks up to and with this one */
    uint32_t depth[N] = {0}, held[SEQS][MOST], n[SEQS] = {0};
    int32_t name[SEQS][MOST], t[DL_KV_BLOCK];
    uint64_t rng = 11;
    unsigned found = 0, made = 0;
    assert_int_equal(eng_kv_init(&kv, N), DL_OK);
    for (unsigned i = 0; i < 50000; i++) {
        uint32_t s = (uint32_t)(test_rand(&rng) % SEQS);
        if (n[s] == MOST || test_rand(&rng) % 5 == 0) {
            while (n[s])
                eng_kv_unref(&kv, held[s][--n[s]]);
            continue;
        }
        uint32_t parent = n[s] ? held[s][n[s] - 1] : ENG_KV_NONE;
        name[s][n[s]] = (int32_t)(test_rand(&rng) % 3);
        fill(t, name[s][n[s]]);
        uint32_t b = eng_kv_find(&kv, parent, t);
        if (b != ENG_KV_NONE) {
            assert_int_equal(depth[b], n[s] + 1);
            assert_memory_equal(holds[b], name[s], (n[s] + 1) * sizeof(int32_t));
            found++;
        } else {
            assert_int_equal(eng_kv_alloc(&kv, &b), DL_OK); /* 20 of 23 at most are held */
            depth[b] = n[s] + 1;
            memcpy(holds[b], name[s], (n[s] + 1) * sizeof(int32_t));
            assert_int_equal(eng_kv_know(&kv, b, parent, t), b);
            made++;
        }
        held[s][n[s]++] = b;
    }
    assert_true(found > 5000 && made > 5000);
    eng_kv_finish(&kv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_first),
        cmocka_unit_test(shared),
        cmocka_unit_test(none),
        cmocka_unit_test(random_run),
        cmocka_unit_test(remembered),
        cmocka_unit_test(remembered_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
