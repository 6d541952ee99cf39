/* SPDX-License-Identifier: MIT
 *
 * The formulas for collectives against figures that were worked out by hand, and against their own meaning.
 */
#include "coll_cost.h"
#include "common.h"

/* A llama of 32 layers and 4096 values, Q80 on the wire: 64 sums of 4352 bytes per token. */
#define S UINT64_C(4352)
#define SUMS 64

static void payload_per_token_of_an_8b_model(void **state)
{
    (void)state;
    static const struct {
        uint32_t n;
        uint64_t one_shot, rs; /* KiB */
    } rows[] = {{2, 272, 272}, {4, 816, 408}, {8, 1904, 476}, {16, 4080, 510}};
    for (size_t i = 0; i < DL_COUNT_OF(rows); i++) {
        assert_int_equal(SUMS * eng_coll_bytes(ENG_COLL_ONE_SHOT, rows[i].n, S) / 1024, rows[i].one_shot);
        assert_int_equal(SUMS * eng_coll_bytes(ENG_COLL_RS, rows[i].n, S) / 1024, rows[i].rs);
    }
    assert_int_equal(eng_coll_bytes(ENG_COLL_ONE_SHOT, 1, S), 0);
    assert_int_equal(eng_coll_bytes(ENG_COLL_RS, 1, S), 0);
    /* A piece is whole bytes: three nodes share 4 as 2, 2 and 0. */
    assert_int_equal(eng_coll_bytes(ENG_COLL_RS, 3, 4), 8);
}

/* Gigabit Ethernet carries 117 bytes per microsecond; the other figures are milliseconds per token at 50 and 150 us. */
static void time_per_token_of_an_8b_model(void **state)
{
    (void)state;
    static const struct {
        uint32_t n;
        double rate;
        double ms[2];
        enum eng_coll pick[2];
    } rows[] = {
        {2, 117e6, {5.6, 12.0}, {ENG_COLL_ONE_SHOT, ENG_COLL_ONE_SHOT}},
        {4, 117e6, {10.0, 16.7}, {ENG_COLL_RS, ENG_COLL_ONE_SHOT}},
        {8, 117e6, {10.6, 23.4}, {ENG_COLL_RS, ENG_COLL_RS}},
        {8, 292e6, {8.1, 16.3}, {ENG_COLL_RS, ENG_COLL_ONE_SHOT}},
        {16, 117e6, {10.9, 23.7}, {ENG_COLL_RS, ENG_COLL_RS}},
        {16, 1170e6, {6.8, 13.2}, {ENG_COLL_ONE_SHOT, ENG_COLL_ONE_SHOT}},
    };
    for (size_t i = 0; i < DL_COUNT_OF(rows); i++)
        for (int j = 0; j < 2; j++) {
            double latency = j ? 150e3 : 50e3;
            enum eng_coll pick = eng_coll_pick(rows[i].n, S, latency, rows[i].rate);
            double ms = SUMS * eng_coll_ns(pick, rows[i].n, S, latency, rows[i].rate) / 1e6;
            assert_true(ms > rows[i].ms[j] - 0.06 && ms < rows[i].ms[j] + 0.06);
            if (rows[i].n != 16 || rows[i].rate < 1e9 || j) /* the two are as fast there */
                assert_int_equal(pick, rows[i].pick[j]);
        }
}

static void what_costs_nothing_and_what_is_equal(void **state)
{
    (void)state;
    assert_true(eng_coll_ns(ENG_COLL_RS, 1, S, 1e6, 1e6) == 0);
    assert_true(eng_coll_ns(ENG_COLL_ONE_SHOT, 3, S, 1000, 0) == 1000);
    assert_true(eng_coll_ns(ENG_COLL_RS, 3, S, 1000, 0) == 2000);
    assert_int_equal(eng_coll_pick(2, S, 0, 1e6), ENG_COLL_ONE_SHOT); /* equal */
    assert_int_equal(eng_coll_pick(3, S, 0, 1e6), ENG_COLL_RS);
    assert_true(eng_coll_latency_ns(50000, 1) == 0);
    double two = eng_coll_latency_ns(50000, 2), three = eng_coll_latency_ns(50000, 3);
    assert_true(two > 50000 && two < 61000 && three > two);
    assert_string_equal(eng_coll_name(ENG_COLL_ONE_SHOT), "oneshot");
    assert_string_equal(eng_coll_name(ENG_COLL_RS), "rs");
}

/* Gigabit Ethernet takes 19 us for half a sum between two nodes, and 56 of four. */
static void what_halves_gain(void **state)
{
    (void)state;
    double two = eng_coll_halves_ns(2, S, 117e6, 1e9), four = eng_coll_halves_ns(4, S, 117e6, 1e9);
    assert_true(two > 8e3 && two < 14e3 && four > 30e3 && four < 42e3);
    assert_true(eng_coll_halves_ns(4, S, 117e6, 10e3) < 0); /* nothing to compute meanwhile */
    assert_true(eng_coll_halves_ns(4, S, 1170e6, 1e9) < 0); /* nothing to wait for */
    assert_true(eng_coll_halves_ns(4, S, 0, 1e9) < 0);
    assert_true(eng_coll_halves_ns(1, S, 117e6, 1e9) == 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(payload_per_token_of_an_8b_model),
        cmocka_unit_test(time_per_token_of_an_8b_model),
        cmocka_unit_test(what_costs_nothing_and_what_is_equal),
        cmocka_unit_test(what_halves_gain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
