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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_first),
        cmocka_unit_test(shared),
        cmocka_unit_test(none),
        cmocka_unit_test(random_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
