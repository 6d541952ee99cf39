/* SPDX-License-Identifier: MIT
 *
 * tests/token_files.h: whole files and whole texts at once, for tests of tokenizers.
 */
#ifndef TESTS_TOKEN_FILES_H
#define TESTS_TOKEN_FILES_H

#include "common.h"
#include "dl/text.h"

static inline struct dl_str slurp(const char *path)
{
    struct dl_str s = {0};
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char buf[65536];
    for (size_t n; (n = fread(buf, 1, sizeof buf, f));)
        assert_int_equal(dl_str_add(&s, buf, n), 0);
    fclose(f);
    return s;
}

static inline struct dl_tokens tokens_of(const dl_tokenizer *t, const char *text, size_t n, unsigned flags)
{
    struct dl_tokens ids = {0};
    assert_int_equal(dl_tokenize(t, text, n, flags, &ids), 0);
    return ids;
}

/* Where only so many are wanted: the same tokens while they are no more than that, else a count that is not too high, and no word. */
static inline void check_most(const dl_tokenizer *t, const char *text, size_t n, unsigned flags)
{
    struct dl_tokens want = tokens_of(t, text, n, flags);
    const size_t limits[] = {want.len, want.len - 1, want.len / 2, 1};
    for (size_t i = 0; i < DL_COUNT_OF(limits); i++) {
        const size_t most = limits[i];
        struct dl_tokens ids = {.most = most};
        if (!want.len || !most || most > want.len)
            continue;
        assert_int_equal(dl_tokenize(t, text, n, flags, &ids), most < want.len ? DL_ELIMIT : DL_OK);
        assert_true(ids.len <= most && (!ids.len || !memcmp(ids.v, want.v, ids.len * sizeof *ids.v)));
        if (most < want.len)
            assert_in_range(ids.least, most + 1, want.len);
        else
            assert_true(ids.len == most && ids.least <= most);
        dl_tokens_finish(&ids);
    }
    dl_tokens_finish(&want);
}

#endif
