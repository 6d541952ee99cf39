/* SPDX-License-Identifier: MIT
 *
 * tests/test_gguf.c: the GGUF parser on hand-made files: what it reads, what it refuses and with which words, and that no
 * cut and no mutation gets it out of its bytes or makes it allocate more than twice the file.
 */
#include "common.h"
#include "gguf.h"
#include "model_files.h"
#include "watch_log.h"

/* Parses an exact-size copy, so that sanitizers see any byte beyond; takes the file. */
static void check_refused(struct dl_str f, int code, const char *words)
{
    uint8_t *exact = malloc(f.len ? f.len : 1);
    assert_non_null(exact);
    if (f.len)
        memcpy(exact, f.v, f.len);
    struct eng_gguf g;
    unsigned before = log_lines.n;
    int err = eng_gguf_parse(exact, f.len, "file.gguf", &g);
    if (err != code || log_lines.n != before + 1 || !strstr(log_lines.last, words))
        fail_msg("%d instead of %d, %u lines, '%s' without '%s'", err, code, log_lines.n - before, log_lines.last,
                 words);
    assert_null(g.kvs);
    eng_gguf_finish(&g);
    free(exact);
    dl_str_finish(&f);
}

/* ------------------------------------------------------------------------------------------------ values */

static void test_every_type(void **state)
{
    (void)state;
    struct gw w = {0};
    gw_key(&w, "u8", 0), put_le(&w.meta, 250, 1);
    gw_key(&w, "i8", 1), put_le(&w.meta, 0x80, 1);
    gw_key(&w, "u16", 2), put_le(&w.meta, 65535, 2);
    gw_key(&w, "i16", 3), put_le(&w.meta, 0x8000, 2);
    gw_key(&w, "u32", 4), put_le(&w.meta, 4000000000u, 4);
    gw_key(&w, "i32", 5), put_le(&w.meta, 0x80000000u, 4);
    gw_key(&w, "f32", 6), put_f32(&w.meta, -1.5f);
    gw_key(&w, "bool", 7), put_le(&w.meta, 1, 1);
    gw_str(&w, "str", "text");
    gw_str(&w, "empty", "");
    gw_key(&w, "u64", 10), put_le(&w.meta, UINT64_MAX, 8);
    gw_key(&w, "i64", 11), put_le(&w.meta, (uint64_t)INT64_MIN, 8);
    gw_key(&w, "f64", 12), put_le(&w.meta, 0x7fefffffffffffff, 8); /* the largest double */
    gw_array(&w, "strs", 8, 3), gw_text(&w, &w.meta, "a"), gw_text(&w, &w.meta, ""), gw_text(&w, &w.meta, "ccc");
    gw_array(&w, "i16s", 3, 2), put_le(&w.meta, 0xffff, 2), put_le(&w.meta, 7, 2);
    gw_array(&w, "none", 4, 0);
    struct dl_str f = gw_finish(&w);
    struct eng_gguf g;
    assert_int_equal(eng_gguf_parse((const uint8_t *)f.v, f.len, "x", &g), 0);
    assert_int_equal(g.n_kvs, 16);
    assert_int_equal(g.version, 3);
    assert_int_equal(g.data_start, f.len);

    uint64_t u = 77;
    uint32_t u32 = 77;
    double d = 77;
    bool b = false;
    struct eng_span s;
    assert_true(eng_gguf_u64(&g, "u8", &u) && u == 250);
    assert_true(eng_gguf_u64(&g, "u16", &u) && u == 65535);
    assert_true(eng_gguf_u32(&g, "u32", &u32) && u32 == 4000000000u);
    assert_true(eng_gguf_u64(&g, "u64", &u) && u == UINT64_MAX);
    u = 5;
    u32 = 5;
    assert_false(eng_gguf_u32(&g, "u64", &u32) || eng_gguf_u64(&g, "i8", &u) || eng_gguf_u64(&g, "i16", &u));
    assert_false(eng_gguf_u64(&g, "i32", &u) || eng_gguf_u64(&g, "i64", &u) || eng_gguf_u64(&g, "f32", &u));
    assert_false(eng_gguf_u64(&g, "bool", &u) || eng_gguf_u64(&g, "str", &u) || eng_gguf_u64(&g, "i16s", &u));
    assert_false(eng_gguf_u64(&g, "absent", &u) || eng_gguf_str(&g, "u8", &s) || eng_gguf_bool(&g, "u8", &b));
    assert_true(u == 5 && u32 == 5 && !b);
    assert_true(eng_gguf_bool(&g, "bool", &b) && b);
    assert_true(eng_gguf_f64(&g, "f32", &d) && d == -1.5);
    assert_true(eng_gguf_f64(&g, "i8", &d) && d == -128);
    assert_true(eng_gguf_f64(&g, "u64", &d) && d == 0x1p64);
    assert_true(eng_gguf_f64(&g, "f64", &d) && d > 1e308);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "f64"), 0), INT64_MAX);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "u64"), 0), INT64_MAX);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "i64"), 0), INT64_MIN);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "i32"), 0), INT32_MIN);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "i16s"), 0), -1);
    assert_true(eng_gguf_arr_f64(eng_gguf_find(&g, "i16s"), 1) == 7);
    assert_int_equal(eng_gguf_arr_i64(eng_gguf_find(&g, "str"), 0), 0);
    assert_true(eng_gguf_str(&g, "str", &s) && eng_span_is(s, "text") && !eng_span_is(s, "tex") &&
                !eng_span_is(s, "texts"));
    assert_true(eng_gguf_str(&g, "empty", &s) && s.n == 0);
    size_t at = 0;
    const struct eng_gguf_kv *strs = eng_gguf_find(&g, "strs");
    assert_true(eng_gguf_next_str(strs, &at, &s) && eng_span_is(s, "a"));
    assert_true(eng_gguf_next_str(strs, &at, &s) && eng_span_is(s, ""));
    assert_true(eng_gguf_next_str(strs, &at, &s) && eng_span_is(s, "ccc"));
    assert_false(eng_gguf_next_str(strs, &at, &s));
    at = 0;
    assert_false(eng_gguf_next_str(eng_gguf_find(&g, "i16s"), &at, &s));
    assert_null(eng_gguf_find(&g, "stR"));
    assert_null(eng_gguf_find_tensor(&g, "str"));
    eng_gguf_finish(&g);
    eng_gguf_finish(&g);
    dl_str_finish(&f);
}

static void test_tensors(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        struct gw w = {.version = version, .alignment = 64};
        gw_u32(&w, "general.alignment", 64);
        gw_tensor(&w, "b", 0, 1, (uint64_t[]){3}, "0123456789ab", 12);
        gw_tensor(&w, "a", 39, 4, (uint64_t[]){2, 3, 4, 5}, "z", 1);
        struct dl_str f = gw_finish(&w);
        struct eng_gguf g;
        assert_int_equal(eng_gguf_parse((const uint8_t *)f.v, f.len, "x", &g), 0);
        assert_int_equal(g.version, version);
        assert_int_equal(g.data_start % 64, 0);
        const struct eng_gguf_tensor *a = eng_gguf_find_tensor(&g, "a"), *b = eng_gguf_find_tensor(&g, "b");
        assert_true(a && b && b == g.tensors);
        assert_true(b->n_dims == 1 && b->dims[0] == 3 && b->dims[1] == 1 && b->dims[2] == 1 && b->dims[3] == 1);
        assert_true(a->n_dims == 4 && a->dims[3] == 5 && a->type == 39 && a->offset == 64);
        assert_int_equal(f.v[g.data_start + a->offset], 'z');
        eng_gguf_finish(&g);
        dl_str_finish(&f);
    }
}

/* ----------------------------------------------------------------------------------------------- refusals */

static struct dl_str one_key(uint32_t type, const char *bytes, size_t n)
{
    struct gw w = {0};
    gw_key(&w, "some.key", type);
    put_bytes(&w.meta, bytes, n);
    return gw_finish(&w);
}

static struct dl_str one_tensor(const char *name, uint32_t n_dims, const uint64_t *dims)
{
    struct gw w = {0};
    gw_str(&w, "k", "filler that makes room for the tables of a tiny file");
    gw_tensor(&w, name, 0, n_dims, dims, "0123456789abcdef", 16);
    return gw_finish(&w);
}

static void test_refusals(void **state)
{
    (void)state;
    struct dl_str f = {0};
    check_refused(f, DL_EFORMAT, "magic");
    put_bytes(&f, "GGUX\3\0\0\0", 8);
    check_refused(f, DL_EFORMAT, "not a GGUF file");
    struct gw old = {.version = 1}, big = {.version = 0x03000000};
    check_refused(gw_finish(&old), DL_EUNSUP, "version 1");
    check_refused(gw_finish(&big), DL_EUNSUP, "big-endian");

    struct gw many = {.n_kvs = UINT64_MAX}, lots = {.n_tensors = 1u << 30};
    check_refused(gw_finish(&many), DL_EFORMAT, "claims");
    check_refused(gw_finish(&lots), DL_EFORMAT, "claims");
    struct gw ends = {.n_kvs = 1};
    put_bytes(&ends.meta, "\377\377\377\377\377\377\377\377some text here", 22);
    check_refused(gw_finish(&ends), DL_EFORMAT, "byte 32: the file ends inside a metadata key");

    check_refused(one_key(13, "12345678", 8), DL_EFORMAT, "some.key has the unknown type 13");
    check_refused(one_key(9, "\11\0\0\0\1\0\0\0\0\0\0\0", 12), DL_EFORMAT, "array of arrays");
    check_refused(one_key(9, "\15\0\0\0\1\0\0\0\0\0\0\0", 12), DL_EFORMAT, "unknown type 13");
    check_refused(one_key(9, "\12\0\0\0\0\0\0\0\0\0\0\40", 12), DL_EFORMAT, "claims 2305843009213693952 values");
    check_refused(one_key(9, "\10\0\0\0\377\377\377\377\377\377\377\377", 12), DL_EFORMAT, "claims");
    check_refused(one_key(8, "\377\377\377\377\377\377\377\377abcd", 12), DL_EFORMAT, "ends inside a metadata string");
    check_refused(one_key(4, "abc", 3), DL_EFORMAT, "some.key claims 1 values");

    struct gw twice = {0}, empty = {0};
    gw_str(&twice, "key", "a"), gw_str(&twice, "other", "b"), gw_str(&twice, "key", "c");
    check_refused(gw_finish(&twice), DL_EFORMAT, "key key is there twice");
    gw_str(&empty, "", "a");
    check_refused(gw_finish(&empty), DL_EFORMAT, "a metadata key of 0 bytes");
    for (uint32_t align = 0; align <= 48; align += 24) {
        struct gw w = {0};
        gw_u32(&w, "general.alignment", align);
        check_refused(gw_finish(&w), DL_EFORMAT, "no power of two");
    }
    struct gw words = {0};
    gw_str(&words, "general.alignment", "32");
    check_refused(gw_finish(&words), DL_EFORMAT, "no power of two");
    struct gw wide = {0};
    gw_u32(&wide, "general.alignment", 1u << 31);
    gw_tensor(&wide, "a.tensor", 0, 1, (uint64_t[]){4}, "0123456789abcdef", 16);
    check_refused(gw_finish(&wide), DL_EFORMAT, "ends before its tensors");

    check_refused(one_tensor("t", 0, NULL), DL_EFORMAT, "tensor t has 0 dimensions");
    check_refused(one_tensor("t", 5, (uint64_t[]){1, 1, 1, 1, 1}), DL_EFORMAT, "tensor t has 5 dimensions");
    check_refused(one_tensor("t", 4, (uint64_t[]){1u << 31, 1u << 31, 2, 1}), DL_EFORMAT, "more values");
    check_refused(one_tensor("t", 2, (uint64_t[]){UINT64_MAX, UINT64_MAX}), DL_EFORMAT, "more values");
    check_refused(one_tensor("", 1, (uint64_t[]){4}), DL_EFORMAT, "a tensor's name of 0 bytes");
    struct gw pair = {0};
    gw_tensor(&pair, "one.and.the.same", 0, 1, (uint64_t[]){4}, "0123456789abcdef", 16);
    gw_tensor(&pair, "one.and.the.same", 0, 1, (uint64_t[]){4}, "0123456789abcdef", 16);
    check_refused(gw_finish(&pair), DL_EFORMAT, "one.and.the.same is there twice");

    /* As many entries as could be in the bytes, but with tables far larger than the file. */
    struct gw tiny = {0};
    for (unsigned i = 0; i < 400; i++) {
        char key[] = {(char)('a' + i % 20), (char)('a' + i / 20), 0};
        gw_key(&tiny, key, 0), put_le(&tiny.meta, 1, 1);
    }
    check_refused(gw_finish(&tiny), DL_EFORMAT, "claims 0 tensors and 400 metadata entries");
}

static void test_cut_anywhere(void **state)
{
    (void)state;
    struct dl_str f = tiny_gguf(&(struct tiny){.arch = "qwen2", .type = 8, .bias = true});
    struct eng_gguf g;
    assert_int_equal(eng_gguf_parse((const uint8_t *)f.v, f.len, "x", &g), 0);
    size_t header = g.data_start;
    eng_gguf_finish(&g);
    for (size_t n = 0; n < header; n++) {
        uint8_t *exact = malloc(n ? n : 1);
        assert_non_null(exact);
        memcpy(exact, f.v, n);
        unsigned before = log_lines.n;
        assert_int_equal(eng_gguf_parse(exact, n, "x", &g), DL_EFORMAT);
        assert_int_equal(log_lines.n, before + 1);
        free(exact);
    }
    dl_str_finish(&f);
}

/* -------------------------------------------------------------------------------------------------- files */

static void test_vocabularies(void **state)
{
    (void)state;
    NEED_DATA(llama3, "vocab/llama3.gguf");
    struct dl_map map;
    struct eng_gguf g;
    assert_int_equal(dl_map_open(llama3, &map), 0);
    assert_int_equal(eng_gguf_parse(map.data, map.size, llama3, &g), 0);
    assert_int_equal(g.n_tensors, 0);
    const struct eng_gguf_kv *tokens = eng_gguf_find(&g, "tokenizer.ggml.tokens");
    assert_non_null(tokens);
    assert_int_equal(tokens->n, 128256);
    struct eng_span s = {0};
    size_t at = 0, n = 0;
    while (eng_gguf_next_str(tokens, &at, &s))
        n++;
    assert_int_equal(n, 128256);
    assert_true(eng_span_is(s, "<|reserved_special_token_247|>"));
    assert_true(eng_gguf_str(&g, "tokenizer.ggml.model", &s) && eng_span_is(s, "gpt2"));
    eng_gguf_finish(&g);
    dl_map_close(&map);
}

#define T(name) cmocka_unit_test_setup_teardown(name, watch_log, unwatch_log)
int main(void)
{
    const struct CMUnitTest tests[] = {T(test_every_type), T(test_tensors), T(test_refusals), T(test_cut_anywhere),
                                       T(test_vocabularies)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
