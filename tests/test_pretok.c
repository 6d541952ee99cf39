/* SPDX-License-Identifier: MIT
 *
 * tests/test_pretok.c: how each family of models cuts text into words. The lengths below are those of an independent regular
 * expression engine (Python's regex) running the patterns as the models publish them.
 */
#include "common.h"

#include "dl/text.h"
#include "pretok.h"

static const char *const texts[] = {
    "I'VE 1234 caf\303\251s, x\314\200y: \344\270\255\346\226\207\343\201\213\343\201\252\355\225\234\352\270\200  "
    "\n\t don't..!  \302\240end   ",
    "HTTPServer /usr/bin/ $5+<a>~`|^ \331\243\331\244\331\245\331\246 \307\205\307\205 na\303\257ve's\r\n\r\n  z "
    "\342\200\203 9",
    "\342\200\234Quoted\342\200\235\357\274\201 #tag\n\n\n  - item\t1.5e-10 [x]\341\240\216\302\205y",
};

static const struct {
    const char *pre, *lengths[3];
} cases[] = {
    {"default",
     {"1 1 2 1 3 1 7 1 2 2 1 1 19 4 4 1 1 3 2 2 3 3", "10 1 1 3 1 3 1 1 1 1 2 1 2 1 2 1 8 5 7 1 1 5 2 4 1 1",
      "3 6 6 1 1 3 5 1 5 1 1 1 1 1 1 2 1 1 1 1 3 2 1"}},
    {"gpt-2",
     {"1 1 2 5 7 1 2 2 1 1 19 4 4 2 3 2 2 3 3", "10 2 3 1 3 1 2 1 2 1 5 9 5 7 2 5 2 4 2",
      "3 6 6 2 3 4 2 5 1 1 1 1 1 1 2 2 1 4 2 1"}},
    {"llama3",
     {"1 3 1 3 1 7 1 2 3 1 19 3 1 4 2 3 2 5 3", "10 2 3 4 1 2 1 2 1 5 1 6 2 5 7 2 4 1 2 4 1 1",
      "9 6 2 3 3 1 2 5 1 1 1 1 1 1 2 2 1 4 3"}},
    {"qwen2",
     {"1 3 1 1 1 1 1 7 1 2 3 1 19 3 1 4 2 3 2 5 3", "10 2 3 4 1 2 1 2 1 5 1 2 2 2 2 5 7 2 4 1 2 4 1 1",
      "9 6 2 3 3 1 2 5 1 1 1 1 1 1 1 1 2 1 4 3"}},
    {"smollm",
     {"1 1 2 1 1 1 1 1 7 1 2 2 1 1 19 4 4 2 3 2 2 3 3", "10 2 3 1 3 1 2 1 2 1 5 1 2 2 2 2 5 7 2 5 2 5 1",
      "3 6 6 2 3 4 2 5 1 1 1 1 1 1 1 1 2 1 4 2 1"}},
    {"falcon",
     {"1 1 2 1 3 1 7 1 2 2 1 1 19 4 4 1 1 3 2 2 3 3", "10 1 1 3 1 3 1 1 1 1 2 1 5 9 5 7 1 1 5 2 4 2",
      "3 6 6 1 1 3 5 1 5 1 1 1 1 1 1 2 1 1 1 1 3 2 1"}},
    {"deepseek-coder",
     {"1 1 2 1 1 1 1 1 7 1 2 2 1 1 1 18 2 1 1 4 1 1 3 2 5 3",
      "10 2 3 1 3 1 2 1 2 1 6 2 2 2 2 5 7 1 1 1 1 1 1 1 2 1 3 1 1",
      "3 6 3 3 2 3 1 1 1 1 2 5 1 1 1 1 1 1 1 1 2 1 1 3 3"}},
    {"deepseek-llm",
     {"1 1 2 1 4 4 2 1 1 2 2 1 1 1 18 2 1 1 4 1 1 3 2 5 3",
      "10 2 3 1 3 1 2 1 2 1 5 1 8 5 3 2 2 1 1 1 1 1 1 1 2 1 3 1 1", "3 6 3 3 2 3 1 1 1 1 2 5 1 1 1 1 1 1 2 2 1 1 3 3"}},
    {"deepseek-v3",
     {"1 3 1 3 1 7 1 5 1 1 12 6 3 1 4 2 3 2 5 3", "10 2 3 4 1 2 1 2 1 5 1 6 2 5 7 2 4 1 2 5 1",
      "3 6 6 2 3 3 1 2 5 1 1 1 1 1 1 2 2 1 1 3 3"}},
    {"tekken",
     {"1 3 1 1 1 1 1 7 1 5 1 19 3 1 4 2 3 2 5 3", "10 2 3 4 1 2 1 2 1 5 1 2 2 2 2 5 7 2 4 1 2 4 1 1",
      "9 6 2 3 3 1 2 5 1 1 1 1 1 1 1 1 2 1 4 3"}},
    {"gpt-4o",
     {"4 1 3 1 7 1 5 1 19 3 1 6 3 2 5 3", "10 2 3 4 1 2 1 2 1 5 1 6 2 5 9 4 1 2 4 1 1",
      "9 6 2 3 3 1 2 5 1 1 1 1 1 1 2 2 1 4 3"}},
};

struct pieces {
    struct dl_str lengths;
    size_t at, n;
};

static int add_piece(void *ud, size_t at, size_t n)
{
    struct pieces *p = ud;
    assert_int_equal(at, p->at);
    assert_true(n > 0);
    p->at = at + n;
    return dl_str_addf(&p->lengths, p->n++ ? " %zu" : "%zu", n);
}

static int count_piece(void *ud, size_t at, size_t n)
{
    struct pieces *p = ud;
    assert_int_equal(at, p->at);
    p->at = at + n;
    p->n++;
    return DL_OK;
}

static struct eng_pretok *create(const char *pre, struct eng_pretok_traits *traits)
{
    struct eng_pretok *p = NULL;
    assert_int_equal(eng_pretok_create(pre, strlen(pre), "test", &p, traits), 0);
    assert_string_equal(traits->name, pre);
    return p;
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct eng_pretok_traits traits;
        struct eng_pretok *p = create(cases[i].pre, &traits);
        for (size_t k = 0; k < DL_COUNT_OF(texts); k++) {
            struct pieces got = {0};
            assert_int_equal(eng_pretok_split(p, texts[k], strlen(texts[k]), add_piece, &got), 0);
            if (strcmp(got.lengths.v, cases[i].lengths[k]))
                print_error("%s, text %zu\n", cases[i].pre, k);
            assert_string_equal(got.lengths.v, cases[i].lengths[k]);
            dl_str_finish(&got.lengths);
        }
        eng_pretok_destroy(&p);
        assert_null(p);
    }
}

/* What the model family wants besides. */
static void test_traits(void **state)
{
    (void)state;
    static const struct {
        const char *pre;
        bool whole_first, add_bos;
    } want[] = {{"llama-bpe", true, true}, {"tekken", true, true},     {"gpt-2", false, false},
                {"qwen2", false, false},   {"smollm", false, false},   {"deepseek-v3", false, false},
                {"gpt-4o", false, false},  {"command-r", false, false}};
    for (size_t i = 0; i < DL_COUNT_OF(want); i++) {
        struct eng_pretok_traits traits;
        struct eng_pretok *p = create(want[i].pre, &traits);
        assert_int_equal(traits.whole_first, want[i].whole_first);
        assert_int_equal(traits.add_bos, want[i].add_bos);
        eng_pretok_destroy(&p);
    }
}

/* Megabytes without a word boundary, in every family: no error and, by the test's time limit, nothing quadratic. */
static void test_long_runs(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    static const char *const runs[] = {"a",        "A",    " ",   "\n",      "1", "<", "\303\251", "\344\270\255",
                                       "\314\200", "\377", " \n", "\302\240"};
    struct dl_str s = {0};
    for (size_t k = 0; k < DL_COUNT_OF(runs); k++) {
        s.len = 0;
        while (s.len < SIZE)
            assert_int_equal(dl_str_addz(&s, runs[k]), 0);
        /* The run's end is where patterns back off. */
        assert_int_equal(dl_str_addz(&s, "7"), 0);
        for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
            struct eng_pretok_traits traits;
            struct eng_pretok *p = create(cases[i].pre, &traits);
            struct pieces got = {0};
            assert_int_equal(eng_pretok_split(p, s.v, s.len, count_piece, &got), 0);
            assert_int_equal(got.at, s.len);
            eng_pretok_destroy(&p);
        }
    }
    dl_str_finish(&s);
}

static int give_up(void *ud, size_t at, size_t n)
{
    (void)ud, (void)at, (void)n;
    return DL_ECANCELED;
}

static void test_edges(void **state)
{
    (void)state;
    struct eng_pretok_traits traits;
    struct eng_pretok *p = create("llama3", &traits);
    struct pieces got = {0};
    assert_int_equal(eng_pretok_split(p, "", 0, add_piece, &got), 0);
    assert_int_equal(got.n, 0);
    assert_int_equal(eng_pretok_split(p, "ab cd", 5, give_up, NULL), DL_ECANCELED);
    /* A byte that is no UTF-8 parts words. */
    assert_int_equal(eng_pretok_split(p, "ab\377cd", 5, add_piece, &got), 0);
    assert_string_equal(got.lengths.v, "2 3");
    dl_str_finish(&got.lengths);
    eng_pretok_destroy(&p);
    eng_pretok_destroy(&p);
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    assert_int_equal(eng_pretok_create("llama", 5, "some.gguf", &p, &traits), DL_EUNSUP);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_null(p);
    assert_int_equal(log.n, 1);
    assert_non_null(strstr(log.last, "some.gguf: pre-tokenizer 'llama' is not known here; known: default, gpt-2"));
    assert_non_null(strstr(log.last, "deepseek-r1-qwen"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_traits),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
