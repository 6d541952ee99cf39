/* SPDX-License-Identifier: MIT
 *
 * tests/test_stops.c: stop strings over pieces of text: what comes out, when it does, and that the cuts do not matter.
 */
#include "common.h"

#include "dl/text.h"

static void push(struct dl_stops *s, const char *text, int want, const char *out)
{
    struct dl_str got = {0};
    assert_int_equal(dl_stops_push(s, text, strlen(text), &got), want);
    assert_string_equal(got.v ? got.v : "", out);
    dl_str_finish(&got);
}

static void flush(struct dl_stops *s, const char *out)
{
    struct dl_str got = {0};
    assert_int_equal(dl_stops_flush(s, &got), DL_OK);
    assert_string_equal(got.v ? got.v : "", out);
    dl_str_finish(&got);
}

static void spread_over_pieces(void **state)
{
    (void)state;
    struct dl_stops s = {0};
    assert_int_equal(dl_stops_add(&s, "\nUser:"), DL_OK);
    push(&s, "Hello", 0, "Hello");
    push(&s, "!\n", 0, "!");
    push(&s, "Us", 0, "");
    push(&s, "ual", 0, "\nUsual");
    push(&s, " end\nUse", 0, " end");
    push(&s, "r: dropped", 1, "");
    flush(&s, "");
    push(&s, "next", 0, "next");
    dl_stops_finish(&s);
}

static void earliest_end_wins(void **state)
{
    (void)state;
    struct dl_stops s = {0};
    assert_int_equal(dl_stops_add(&s, "abcd"), DL_OK);
    assert_int_equal(dl_stops_add(&s, "bc"), DL_OK);
    push(&s, "xabcd", 1, "xa");
    push(&s, "xab", 0, "x");
    push(&s, "cd", 1, "a");
    dl_stops_finish(&s);
    assert_int_equal(dl_stops_add(&s, "bc"), DL_OK);
    assert_int_equal(dl_stops_add(&s, "abc"), DL_OK);
    push(&s, "xabc", 1, "x");
    dl_stops_finish(&s);
}

static void none_held_without_reason(void **state)
{
    (void)state;
    struct dl_stops s = {0};
    push(&s, "no stops at all", 0, "no stops at all");
    push(&s, "", 0, "");
    assert_int_equal(dl_stops_add(&s, "aab"), DL_OK);
    push(&s, "aaaa", 0, "aa");
    push(&s, "b", 1, "");
    push(&s, "aa", 0, "");
    flush(&s, "aa");
    flush(&s, "");
    push(&s, "a", 0, "");
    dl_stops_reset(&s);
    push(&s, "ab", 0, "ab");
    dl_stops_finish(&s);
}

static void empty_is_refused(void **state)
{
    (void)state;
    struct dl_stops s = {0};
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    assert_int_equal(dl_stops_add(&s, ""), DL_EINVAL);
    assert_int_equal(dl_stops_add(&s, NULL), DL_EINVAL);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 2);
    assert_int_equal(s.n, 0);
    dl_stops_finish(&s);
}

/* Random texts over two letters against byte-wise pushes, and those against the definition: the text up to the stop string
 * whose end comes first. */
static void cuts_do_not_matter(void **state)
{
    (void)state;
    uint64_t rng = 11;
    unsigned stopped = 0;
    for (unsigned round = 0; round < 5000; round++) {
        struct dl_stops s = {0};
        char text[41] = {0}, stop[3][6] = {{0}};
        for (unsigned i = 0; i < 40; i++)
            text[i] = (char)('a' + test_rand(&rng) % 2);
        unsigned n_stops = 1 + (unsigned)(test_rand(&rng) % 3);
        for (unsigned k = 0; k < n_stops; k++) {
            unsigned n = 1 + (unsigned)(test_rand(&rng) % 5) / (k + 1);
            for (unsigned i = 0; i < n; i++)
                stop[k][i] = (char)('a' + test_rand(&rng) % 3 % 2);
            assert_int_equal(dl_stops_add(&s, stop[k]), DL_OK);
        }
        size_t want = 40, end = 41;
        for (size_t e = 1; e <= 40 && end > 40; e++)
            for (unsigned k = 0; k < n_stops; k++) {
                size_t n = strlen(stop[k]);
                if (n <= e && memcmp(text + e - n, stop[k], n) == 0) {
                    want = end > 40 || e - n < want ? e - n : want;
                    end = e;
                }
            }
        struct dl_str got = {0};
        int found = 0;
        for (size_t at = 0, n; at < 40 && !found; at += n) {
            n = 1 + test_rand(&rng) % (round % 7 + 1);
            n = DL_MIN(n, 40 - at);
            found = dl_stops_push(&s, text + at, n, &got);
            assert_true(found == 0 || found == 1);
        }
        if (!found)
            assert_int_equal(dl_stops_flush(&s, &got), DL_OK);
        stopped += (unsigned)found;
        assert_int_equal(found, end <= 40);
        assert_int_equal(got.len, want);
        assert_memory_equal(got.v ? got.v : "", text, want);
        dl_str_finish(&got);
        dl_stops_finish(&s);
    }
    assert_true(stopped > 1000 && stopped < 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spread_over_pieces),       cmocka_unit_test(earliest_end_wins),
        cmocka_unit_test(none_held_without_reason), cmocka_unit_test(empty_is_refused),
        cmocka_unit_test(cuts_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
