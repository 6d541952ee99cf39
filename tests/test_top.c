/* SPDX-License-Identifier: MIT
 *
 * tests/test_top.c: eng_top_scan against a choice one by one: rows of many lengths, equal values, what is not a number, pieces.
 */
#include <math.h>

#include "batch.h"
#include "common.h"

#define MOST 300u

/* The best `k` of the row, found one after the other. */
static uint32_t best(const float *row, uint32_t n_row, uint32_t k, struct dl_candidate *out)
{
    bool taken[MOST] = {false};
    uint32_t n = 0;
    for (; n < k; n++) {
        int32_t at = -1;
        for (uint32_t i = 0; i < n_row; i++)
            if (!taken[i] && !isnan(row[i]) && (at < 0 || row[i] > row[at]))
                at = (int32_t)i;
        if (at < 0)
            break;
        taken[at] = true;
        out[n] = (struct dl_candidate){at, row[at]};
    }
    return n;
}

static void test_scan(void **unused)
{
    (void)unused;
    static const uint32_t lengths[] = {1, 31, 32, 33, 64, 100, 257, MOST}, ks[] = {1, 2, 5, 40},
                          levels[] = {3, 50, 100000};
    uint32_t state = 7, n_full = 0;
    for (size_t l = 0; l < DL_COUNT_OF(lengths); l++)
        for (size_t j = 0; j < DL_COUNT_OF(ks); j++)
            for (size_t m = 0; m < DL_COUNT_OF(levels); m++) {
                float row[MOST];
                for (uint32_t i = 0; i < lengths[l]; i++) {
                    state = state * 1664525u + 1013904223u;
                    uint32_t what = state >> 8;
                    row[i] = what % 11 == 0 ? NAN : what % 13 == 0 ? -INFINITY : (float)(what % levels[m]) - 20;
                }
                struct dl_candidate want[40], got[40];
                uint32_t n_want = best(row, lengths[l], ks[j], want), cut = lengths[l] / 3;
                uint32_t n = eng_top_scan(got, 0, ks[j], row, cut, 0);
                n = eng_top_scan(got, n, ks[j], row + cut, lengths[l] - cut, cut);
                assert_int_equal(n, n_want);
                n_full += n == ks[j];
                for (uint32_t i = 0; i < n; i++) {
                    assert_int_equal(got[i].id, want[i].id);
                    assert_true(got[i].logit == want[i].logit);
                }
            }
    assert_true(n_full > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_scan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
