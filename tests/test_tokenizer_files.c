/* SPDX-License-Identifier: MIT
 *
 * tests/test_tokenizer_files.c: tokenizer files that are damaged, hostile or made up, and finding the one beside a model.
 */
#include "common.h"
#include "count_alloc.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "dl/text.h"
#include "token_files.h"

static void check_ids(const dl_tokenizer *t, const char *text, unsigned flags, const int32_t *want, size_t n)
{
    struct dl_tokens ids = tokens_of(t, text, strlen(text), flags);
    assert_int_equal(ids.len, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ids.v[i], want[i]);
    dl_tokens_finish(&ids);
}

/* User-defined tokens match without the flag; the longest wins; of equal ones the first. */
static void test_user_defined(void **state)
{
    (void)state;
    struct dl_str f = {0};
    uint32_t head[] = {0x567124, 8 + 8 * 4, 0, 1, 1, 262, 3, 256, 10, 0};
    dl_str_add(&f, (const char *)head, sizeof head);
    static const char *const names[] = {"<x>", "<x>", "<xy>", "<think>", "<|a|>", "<think>"};
    for (uint32_t i = 0; i < 262; i++) {
        char b = (char)i;
        float score = -(float)i;
        const char *s = i < 256 ? &b : names[i - 256];
        uint32_t n = i < 256 ? 1 : (uint32_t)strlen(s);
        dl_str_add(&f, (const char *)&score, 4);
        dl_str_add(&f, (const char *)&n, 4);
        dl_str_add(&f, s, n);
    }
    dl_tokenizer *t = NULL;
    assert_int_equal(dl_tokenizer_open_mem(f.v, f.len, "made", &t), 0);
    assert_string_equal(dl_tokenizer_info(t)->pre, "qwen2");
    assert_false(dl_tokenizer_info(t)->add_bos);
    check_ids(t, "<x>a<xy><think>", 0, (int32_t[]){256, 'a', 258, 259}, 4);
    check_ids(t, "<x><|a|>", DL_TOKENIZE_SPECIAL, (int32_t[]){256, 260}, 2);
    check_most(t, "<think><think><think><think>", 28, 0); /* the longest of all */
    check_ids(t, "<|a|>", 0, (int32_t[]){'<', '|', 'a', '|', '>'}, 5);
    dl_tokenizer_close(&t);
    dl_str_finish(&f);
}

/* A vocabulary that has no token for most bytes: they come to nothing, however many there are. */
static void test_bytes_without_tokens(void **state)
{
    (void)state;
    struct dl_str f = {0};
    uint32_t head[] = {0x567124, 8 + 8 * 2, 0, 1, 1, 3};
    dl_str_add(&f, (const char *)head, sizeof head);
    static const char *const names[] = {"a", "ab", "aba"};
    for (uint32_t i = 0; i < 3; i++) {
        float score = (float)i;
        uint32_t n = (uint32_t)strlen(names[i]);
        dl_str_add(&f, (const char *)&score, 4);
        dl_str_add(&f, (const char *)&n, 4);
        dl_str_add(&f, names[i], n);
    }
    dl_tokenizer *t = NULL;
    assert_int_equal(dl_tokenizer_open_mem(f.v, f.len, "made", &t), 0);
    check_ids(t, "bbaxbbbbbbbbbbabbbbbb", 0, (int32_t[]){0, 1}, 2);
    check_most(t, "bbaxbbbbbbbbbbabbbbbb", 21, 0);
    check_most(t, "aaaaaaaabbbbbbbbbbbbbabaabababba", 32, 0);
    dl_tokenizer_close(&t);
    dl_str_finish(&f);
}

/* --------------------------------------------------------------------------------------------------- damaged files */

static void test_mutations(void **state)
{
    (void)state;
    NEED_DATA(path, "models/stories260K.t");
    struct dl_str f = slurp(path), m = {0};
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    uint64_t rnd = 4242;
    unsigned opened = 0, refused = 0;
    for (int r = 0; r < 10000; r++) {
        m.len = 0;
        assert_int_equal(dl_str_add(&m, f.v, f.len), 0);
        size_t changes = 1 + test_rand(&rnd) % 4;
        for (size_t i = 0; i < changes; i++) {
            size_t at = test_rand(&rnd) % (test_rand(&rnd) % 2 ? m.len : 200);
            uint64_t v = test_rand(&rnd);
            m.v[at] = (char)(v % 3 == 0 ? 0xff : v % 3 == 1 ? 0x7f : v >> 8);
        }
        if (test_rand(&rnd) % 8 == 0)
            m.len = test_rand(&rnd) % m.len;
        /* Its own allocation, so that reading past the end is caught. */
        char *own = malloc(m.len ? m.len : 1);
        assert_non_null(own);
        memcpy(own, m.v, m.len);
        dl_tokenizer *t = NULL;
        log.n = 0;
        size_t base = peak_bytes = live_bytes;
        clock_t start = clock(); /* of this process: the machine may be busy */
        int err = dl_tokenizer_open_mem(own, m.len, "mutant", &t);
        size_t used = peak_bytes - base;
        assert_true(clock() - start < CLOCKS_PER_SEC);
        if (err)
            assert_int_equal(live_bytes, base);
        free(own);
        /* A vocabulary that is used has tables beside it, in proportion to it; one that is refused has not got that far. */
        if (used > (err ? 2 : 8) * m.len + 8192)
            fail_msg("%zu bytes allocated for a file of %zu that was %s", used, m.len, err ? "refused" : "taken");
        if (err) {
            assert_null(t);
            assert_int_equal(log.n, 1);
            assert_true(strlen(log.last) > 20);
            refused++;
        } else {
            assert_int_equal(log.n, 0);
            check_most(t, "Once upon a time <s>\xff", 22, 3);
            assert_int_equal(log.n, 0);
            opened++;
        }
        dl_tokenizer_close(&t);
    }
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_true(opened > 500 && refused > 500);
    dl_str_finish(&f);
    dl_str_finish(&m);
}

static void refuse(const char *what, const void *bytes, size_t n, int code)
{
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    dl_tokenizer *t = NULL;
    int err = dl_tokenizer_open_mem(bytes, n, "bad", &t);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(err, code);
    assert_null(t);
    assert_int_equal(log.n, 1);
    if (!strstr(log.last, what))
        print_error("wanted '%s' in: %s\n", what, log.last);
    assert_non_null(strstr(log.last, what));
}

static void test_refused(void **state)
{
    (void)state;
    refuse("neither", "hello world", 11, DL_EFORMAT);
    refuse("neither", "", 0, DL_EFORMAT);
    refuse("old layout", (uint32_t[]){0x567123, 10, 5}, 12, DL_EUNSUP);
    refuse("tokens do not fit", (uint32_t[]){0x567124, 16, 1, 0x7fffffff}, 16, DL_EFORMAT);
    refuse("key 77", (uint32_t[]){0x567124, 16, 77, 1}, 16, DL_EUNSUP);
    refuse("version 2", (uint32_t[]){0x567124, 16, 0, 2}, 16, DL_EUNSUP);
    refuse("BOS is token 9", (uint32_t[]){0x567124, 24, 1, 1, 3, 9, 0, 0}, 32, DL_EFORMAT);
    refuse("left over", (uint32_t[]){0x567124, 16, 1, 1, 0, 0, 0}, 28, DL_EFORMAT);
    refuse("the chat template", (uint32_t[]){0x567124, 24, 1, 1, 7, 0x7fffffff}, 24, DL_EFORMAT);
    refuse("an end id is token 5", (uint32_t[]){0x567124, 24, 1, 1, 9, 1, 5, 0, 0}, 36, DL_EFORMAT);

    NEED_DATA(path, "vocab/gpt-2.gguf");
    struct dl_str f = slurp(path);
    char *pre = NULL;
    for (char *p = f.v; !pre && p + 24 < f.v + f.len; p++)
        if (!memcmp(p, "tokenizer.ggml.pre", 18))
            pre = p;
    assert_non_null(pre);
    memcpy(pre + 18 + 4 + 8, "gpt-?", 5);
    refuse("'gpt-?' is not known here; known: default, gpt-2", f.v, f.len, DL_EUNSUP);
    dl_str_finish(&f);
}

/* ------------------------------------------------------------------------------------------------- finding the .t */

static void touch(const char *folder, const char *name)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fclose(f);
}

static void test_find(void **state)
{
    (void)state;
    char folder[] = "/tmp/dl-find-XXXXXX", model[128], want[128];
    assert_non_null(mkdtemp(folder));
    struct dl_str s = {0};
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    snprintf(model, sizeof model, "%s/a.b.m", folder);
    assert_int_equal(dl_tokenizer_find(model, &s), DL_EINVAL);
    assert_non_null(strstr(log.last, "no tokenizer"));
    touch(folder, "other.t");
    assert_int_equal(dl_tokenizer_find(model, &s), 0);
    snprintf(want, sizeof want, "%s/other.t", folder);
    assert_string_equal(s.v, want);
    touch(folder, "third.t");
    assert_int_equal(dl_tokenizer_find(model, &s), DL_EINVAL);
    assert_non_null(strstr(log.last, "several"));
    touch(folder, "a.b.t");
    assert_int_equal(dl_tokenizer_find(model, &s), 0);
    snprintf(want, sizeof want, "%s/a.b.t", folder);
    assert_string_equal(s.v, want);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    static const char *const names[] = {"other.t", "third.t", "a.b.t"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(want, sizeof want, "%s/%s", folder, names[i]);
        remove(want);
    }
    rmdir(folder);
    dl_str_finish(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_user_defined), cmocka_unit_test(test_bytes_without_tokens),
        cmocka_unit_test(test_mutations),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
