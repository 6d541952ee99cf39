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

#endif
