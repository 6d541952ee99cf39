/* SPDX-License-Identifier: MIT
 *
 * tests/test_lanes.c: which tokens go in which lane, by times that are made up.
 */
#include "common.h"

#include "lanes.h"

enum { LANE = 64 };

static uint32_t cut(struct eng_lanes *l, uint32_t n)
{
    return eng_lanes_cut(l, n, 2, LANE);
}

static void by_size(void **state)
{
    (void)state;
    struct eng_lanes l = {0};
    for (uint32_t n = LANE + 1; n <= 2 * LANE; n++) /* they do not fit into one */
        assert_int_equal(cut(&l, n), (n + 1) / 2);
    for (uint32_t n = 1; n <= LANE; n++) {
        assert_int_equal(eng_lanes_cut(&l, n, 1, LANE), n); /* there is no second */
        assert_int_equal(cut(&l, n), n);                    /* nothing was tried yet */
    }
    for (int i = 0; i < 10; i++)
        eng_lanes_learn(&l, 1, 1, 1000);
    assert_int_equal(cut(&l, 1), 1);
}

/* So many of `steps` batches of n go in halves, where those take `halved` and whole ones `whole`. */
static uint32_t halves(struct eng_lanes *l, uint32_t n, uint32_t steps, uint64_t whole, uint64_t halved)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t c = cut(l, n);
        assert_true(c == n || c == n - n / 2);
        count += c < n;
        eng_lanes_learn(l, n, c, c < n ? halved : whole);
    }
    return count;
}

static void whichever_is_faster(void **state)
{
    (void)state;
    struct eng_lanes l = {0};
    assert_int_equal(halves(&l, 8, 6, 1000, 800), 3); /* both are tried */
    assert_int_equal(halves(&l, 8, 600, 1000, 800), 600 - 600 / 64);
    assert_int_equal(halves(&l, 4, 6, 1000, 1200), 3); /* each number of tokens by itself */
    assert_int_equal(halves(&l, 4, 600, 1000, 1200), 600 / 64);
    assert_int_equal(halves(&l, 5, 606, 1000, 970), 3 + 600 / 64); /* next to nothing is not worth it */
    assert_int_equal(halves(&l, 3, 600, 1000, 100), 0);            /* too few */
    /* The network gets slow: that is noticed. */
    halves(&l, 4, 300, 3000, 2000);
    assert_int_equal(halves(&l, 4, 64, 3000, 2000), 63);
    /* Large ones are taken together, by what a token takes. */
    assert_int_equal(halves(&l, 40, 6, 40000, 32000), 3);
    assert_int_equal(cut(&l, 50), 25);
    eng_lanes_learn(&l, UINT32_MAX, 1, 1);
}

/* A slow first batch, when memory is touched for the first time, decides nothing. */
static void a_bad_start(void **state)
{
    (void)state;
    struct eng_lanes l = {0};
    eng_lanes_learn(&l, 8, 8, 90000);
    assert_int_equal(halves(&l, 8, 5, 1000, 1100), 3);
    assert_int_equal(halves(&l, 8, 60, 1000, 1100), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(by_size), cmocka_unit_test(whichever_is_faster),
                                       cmocka_unit_test(a_bad_start)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
