/* SPDX-License-Identifier: MIT
 *
 * tests/test_tokenizer.c: text to tokens and back: the published vectors, .t against .gguf, byte-exact round trips on anything,
 * streaming, special tokens, time. Damaged and made-up files: test_tokenizer_files.c.
 */
#include "common.h"

#include <stdbool.h>
#include <time.h>
#include "dl/text.h"
#include "token_files.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif
#else
enum { SANITIZED = 0 };
#endif

static dl_tokenizer *open_ok(const char *path)
{
    dl_tokenizer *t = NULL;
    assert_int_equal(dl_tokenizer_open(path, &t), 0);
    assert_non_null(t);
    return t;
}

/* Back to the same bytes, in one go. */
static void check_round_trip(const dl_tokenizer *t, const char *text, size_t n)
{
    struct dl_tokens ids = tokens_of(t, text, n, 0);
    struct dl_str back = {0};
    assert_int_equal(dl_detokenize(t, ids.v, ids.len, &back), 0);
    assert_int_equal(back.len, n);
    if (n)
        assert_memory_equal(back.v, text, n);
    dl_str_finish(&back);
    dl_tokens_finish(&ids);
}

/* Valid text, streamed: at every token only whole characters are out, and at the end all of them. */
static void check_stream(const dl_tokenizer *t, const char *text, size_t n)
{
    struct dl_tokens ids = tokens_of(t, text, n, 0);
    struct dl_decoder d;
    struct dl_str out = {0};
    dl_decoder_init(&d, t, true);
    for (size_t i = 0; i < ids.len; i++) {
        assert_int_equal(dl_decoder_push(&d, ids.v[i], &out), 0);
        assert_true(out.len <= n);
        if (out.len)
            assert_memory_equal(out.v, text, out.len);
        assert_true(out.len == n || ((unsigned char)text[out.len] & 0xc0) != 0x80);
        assert_true(d.n_held < 4);
    }
    assert_int_equal(dl_decoder_flush(&d, &out), 0);
    assert_int_equal(out.len, n);
    dl_str_finish(&out);
    dl_tokens_finish(&ids);
}

static void put_char(struct dl_str *s, uint32_t c)
{
    char b[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6)
        b[i] = (char)(0x80 | (c & 0x3f));
    b[0] = (char)(lead[n] | c);
    assert_int_equal(dl_str_add(s, b, n), 0);
}

/* kind 0: bytes, 1: any characters, 2: much white space, letters, digits and quotes. */
static void random_text(struct dl_str *s, uint64_t *rnd, int kind)
{
    static const char common[] = "  \n\t aaeiou  'sSt''reTHELLo 0123456789 ...!?\r\n<|>_";
    s->len = 0;
    size_t n = test_rand(rnd) % 60;
    assert_int_equal(dl_str_add(s, "", 0), 0);
    for (size_t i = 0; i < n; i++) {
        uint64_t r = test_rand(rnd);
        if (kind == 0) {
            char c = (char)(r & 0xff);
            assert_int_equal(dl_str_add(s, &c, 1), 0);
        } else if (kind == 1 || r % 7 == 0) {
            static const uint32_t most[] = {0x80, 0x800, 0x3100, 0x10000, 0x110000};
            uint32_t c = (uint32_t)(r >> 16) % most[r % 5];
            put_char(s, c >= 0xd800 && c < 0xe000 ? 0x4e2d : c);
        } else
            put_char(s, (unsigned char)common[(r >> 16) % (sizeof common - 1)]);
    }
}

/* ------------------------------------------------------------------------------------------------ published vectors */

static void check_vectors(const char *vocab, const char *inp, const char *out, const char *twin)
{
    dl_tokenizer *t = open_ok(vocab), *t2 = twin ? open_ok(twin) : NULL;
    struct dl_str in = slurp(inp), want = slurp(out);
    static const char mark[] = "\n__ggml_vocab_test__\n";
    const char *text = in.v, *line = want.v;
    size_t n_texts = 0, n_ids = 0;
    while (*line) {
        const char *end = strstr(text, mark);
        assert_non_null(end);
        size_t n = (size_t)(end - text);
        struct dl_tokens ids = tokens_of(t, text, n, 0);
        size_t k = 0;
        for (; *line != '\n'; k++) {
            char *next;
            long id = strtol(line, &next, 10);
            if (next == line)
                break;
            line = next;
            if (k >= ids.len || ids.v[k] != id)
                print_error("%s: text %zu \"%.*s\", token %zu: %ld wanted, %ld found\n", inp, n_texts, (int)n, text, k,
                            id, k < ids.len ? (long)ids.v[k] : -1L);
            assert_true(k < ids.len && ids.v[k] == id);
        }
        assert_int_equal(k, ids.len);
        line += strcspn(line, "\n") + 1;
        check_round_trip(t, text, n);
        check_stream(t, text, n);
        if (t2) {
            struct dl_tokens again = tokens_of(t2, text, n, 0);
            assert_int_equal(again.len, ids.len);
            if (ids.len)
                assert_memory_equal(again.v, ids.v, ids.len * sizeof *ids.v);
            dl_tokens_finish(&again);
        }
        dl_tokens_finish(&ids);
        text = end + sizeof mark - 1;
        n_texts++;
        n_ids += k;
    }
    assert_true(n_texts == 46 && n_ids > 350); /* the files are what they should be */
    assert_int_equal(text - in.v, in.len);
    dl_str_finish(&in);
    dl_str_finish(&want);
    dl_tokenizer_close(&t);
    dl_tokenizer_close(&t2);
}

static void test_vectors_llama3(void **state)
{
    (void)state;
    NEED_DATA(vocab, "vocab/llama3.gguf");
    NEED_DATA(twin, "vocab/llama3.t");
    NEED_DATA(inp, "vocab/llama3.inp");
    NEED_DATA(out, "vocab/llama3.out");
    check_vectors(vocab, inp, out, twin);
}

static void test_vectors_spm(void **state)
{
    (void)state;
    NEED_DATA(vocab, "vocab/llama-spm.gguf");
    NEED_DATA(inp, "vocab/llama-spm.inp");
    NEED_DATA(out, "vocab/llama-spm.out");
    check_vectors(vocab, inp, out, NULL);
}

static void test_vectors_gpt2(void **state)
{
    (void)state;
    NEED_DATA(vocab, "vocab/gpt-2.gguf");
    NEED_DATA(inp, "vocab/gpt-2.inp");
    NEED_DATA(out, "vocab/gpt-2.out");
    check_vectors(vocab, inp, out, NULL);
}

/* ------------------------------------------------------------------------------------------ .t is what the .gguf is */

static void check_twins(const char *a, const char *b, int rounds)
{
    dl_tokenizer *x = open_ok(a), *y = open_ok(b);
    const struct dl_tokenizer_info *i = dl_tokenizer_info(x), *k = dl_tokenizer_info(y);
    assert_string_equal(i->kind, k->kind);
    assert_int_equal(i->vocab, k->vocab);
    assert_int_equal(i->bos, k->bos);
    assert_int_equal(i->add_bos, k->add_bos);
    assert_int_equal(i->add_space_prefix, k->add_space_prefix);
    for (int32_t id = -1; id <= (int32_t)i->vocab; id++) {
        size_t n, m;
        const char *s = dl_token_bytes(x, id, &n), *r = dl_token_bytes(y, id, &m);
        assert_int_equal(n, m);
        assert_memory_equal(s, r, n ? n : 1);
        s = dl_token_text(x, id, &n);
        r = dl_token_text(y, id, &m);
        assert_int_equal(n, m);
        assert_memory_equal(s, r, n ? n : 1);
        assert_int_equal(dl_token_is_control(x, id), dl_token_is_control(y, id));
        assert_int_equal(dl_token_is_eog(x, id), dl_token_is_eog(y, id));
    }
    struct dl_str s = {0};
    uint64_t rnd = 20240607;
    for (int r = 0; r < rounds; r++) {
        random_text(&s, &rnd, r % 3);
        struct dl_tokens u = tokens_of(x, s.v, s.len, (unsigned)(r & 3)),
                         v = tokens_of(y, s.v, s.len, (unsigned)(r & 3));
        assert_int_equal(u.len, v.len);
        if (u.len)
            assert_memory_equal(u.v, v.v, u.len * sizeof *u.v);
        dl_tokens_finish(&u);
        dl_tokens_finish(&v);
        check_round_trip(x, s.v, s.len);
        if (r % 8 == 0)
            check_most(x, s.v, s.len, (unsigned)r / 8 & 3);
        if (r % 3)
            check_stream(x, s.v, s.len);
    }
    dl_str_finish(&s);
    dl_tokenizer_close(&x);
    dl_tokenizer_close(&y);
}

static void test_twins_llama3(void **state)
{
    (void)state;
    NEED_DATA(a, "vocab/llama3.gguf");
    NEED_DATA(b, "vocab/llama3.t");
    check_twins(a, b, SANITIZED ? 3000 : 20000);
}

static void test_twins_stories(void **state)
{
    (void)state;
    NEED_DATA(a, "models/stories260K.gguf");
    NEED_DATA(b, "models/stories260K.t");
    check_twins(a, b, SANITIZED ? 3000 : 20000);
}

static void test_round_trip_random(void **state)
{
    (void)state;
    static const char *const files[] = {"vocab/llama-spm.gguf", "vocab/gpt-2.gguf", "refs/qwen2.gguf"};
    struct dl_str s = {0};
    uint64_t rnd = 99;
    for (size_t f = 0; f < DL_COUNT_OF(files); f++) {
        NEED_DATA(path, files[f]);
        dl_tokenizer *t = open_ok(path);
        for (int r = 0; r < 3000; r++) {
            random_text(&s, &rnd, r % 3);
            check_round_trip(t, s.v, s.len);
            check_most(t, s.v, s.len, (unsigned)r & 3);
            if (r % 3)
                check_stream(t, s.v, s.len);
        }
        dl_tokenizer_close(&t);
    }
    dl_str_finish(&s);
}

/* ------------------------------------------------------------------------------------------------- special tokens */

static void check_ids(const dl_tokenizer *t, const char *text, unsigned flags, const int32_t *want, size_t n)
{
    struct dl_tokens ids = tokens_of(t, text, strlen(text), flags);
    assert_int_equal(ids.len, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ids.v[i], want[i]);
    dl_tokens_finish(&ids);
}

static void test_special(void **state)
{
    (void)state;
    NEED_DATA(path, "vocab/llama3.gguf");
    dl_tokenizer *t = open_ok(path);
    const struct dl_tokenizer_info *i = dl_tokenizer_info(t);
    assert_string_equal(i->kind, "bpe");
    assert_string_equal(i->pre, "llama-bpe");
    assert_int_equal(i->bos, 128000);
    assert_int_equal(i->eos, 128009);
    assert_true(i->add_bos);
    assert_false(i->add_eos);
    assert_non_null(strstr(i->chat_template, "<|start_header_id|>"));
    check_ids(t, "Hello<|eot_id|><|x|>", DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL,
              (int32_t[]){128000, 9906, 128009, 27, 91, 87, 91, 29}, 8);
    struct dl_tokens plain = tokens_of(t, "<|eot_id|>", 10, 0);
    assert_true(plain.len > 1);
    for (size_t k = 0; k < plain.len; k++)
        assert_false(dl_token_is_control(t, plain.v[k]));
    dl_tokens_finish(&plain);
    assert_int_equal(dl_token_by_text(t, "<|eot_id|>"), 128009);
    assert_int_equal(dl_token_by_text(t, "<|eot_id|>x"), DL_TOK_NONE);
    assert_int_equal(dl_token_by_text(t, "<|eot_id|"), DL_TOK_NONE);
    assert_int_equal(dl_token_by_text(t, "Hello"), DL_TOK_NONE);
    size_t n;
    dl_token_bytes(t, 128009, &n);
    assert_int_equal(n, 0);
    assert_memory_equal(dl_token_text(t, 128009, &n), "<|eot_id|>", 10);
    assert_int_equal(n, 10);
    assert_memory_equal(dl_token_bytes(t, 220, &n), " ", 1); /* never GPT-2's mark for it */
    assert_true(dl_token_is_eog(t, 128001) && dl_token_is_eog(t, 128008) && dl_token_is_eog(t, 128009));
    assert_false(dl_token_is_eog(t, 128000) || dl_token_is_eog(t, 128006) || dl_token_is_eog(t, 9906));
    dl_tokenizer_close(&t);
    dl_tokenizer_close(&t);

    NEED_DATA(spm, "vocab/llama-spm.gguf");
    t = open_ok(spm);
    /* Each text after a special token gets its space, and gives it back. */
    check_ids(t, "Hello</s>Hello", DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL, (int32_t[]){1, 15043, 2, 15043}, 4);
    struct dl_str s = {0};
    assert_int_equal(dl_detokenize(t, (int32_t[]){1, 15043, 2, 15043}, 4, &s), 0);
    assert_string_equal(s.v, "HelloHello");
    struct dl_tokens ids = tokens_of(t, "</s><0x41>", 10, 0);
    for (size_t k = 0; k < ids.len; k++)
        assert_true(ids.v[k] > 2 + 256);
    dl_tokens_finish(&ids);
    dl_str_finish(&s);
    dl_tokenizer_close(&t);
}

/* ---------------------------------------------------------------------------------------------------- the decoder */

static void test_decoder_bad_bytes(void **state)
{
    (void)state;
    NEED_DATA(path, "models/stories260K.t");
    dl_tokenizer *t = open_ok(path);
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\xff"
         "b",
         "a\xef\xbf\xbd"
         "b"},
        {"\xe2\x82\xac", "\xe2\x82\xac"},
        {"\xe2\x82", "\xef\xbf\xbd"},
        {"\xe2\x82"
         "A",
         "\xef\xbf\xbd"
         "A"},
        {"\xe2\xf0\x9f\x98\x80", "\xef\xbf\xbd\xf0\x9f\x98\x80"},
        {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* a surrogate */
        {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                 /* overlong */
        {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
        {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct dl_decoder d;
        struct dl_str out = {0};
        dl_decoder_init(&d, t, false);
        for (const char *p = cases[i].in; *p; p++) /* <0x00> is token 3 */
            assert_int_equal(dl_decoder_push(&d, 3 + (unsigned char)*p, &out), 0);
        assert_int_equal(dl_decoder_flush(&d, &out), 0);
        assert_string_equal(out.v, cases[i].out);
        dl_str_finish(&out);
    }
    /* The space in front goes only at the start. */
    struct dl_str out = {0};
    struct dl_decoder d;
    dl_decoder_init(&d, t, true);
    assert_int_equal(dl_decoder_push(&d, 261, &out), 0); /* " a" */
    assert_int_equal(dl_decoder_push(&d, 261, &out), 0);
    assert_int_equal(dl_decoder_push(&d, 100000, &out), 0);
    assert_int_equal(dl_decoder_push(&d, -1, &out), 0);
    assert_string_equal(out.v, "a a");
    out.len = 0;
    dl_decoder_init(&d, t, false);
    assert_int_equal(dl_decoder_push(&d, 261, &out), 0);
    assert_string_equal(out.v, " a");
    dl_str_finish(&out);
    dl_tokenizer_close(&t);
}

/* -------------------------------------------------------------------------------------------------------- time */

static void timed(const dl_tokenizer *t, const char *what, const struct dl_str *s)
{
    clock_t start = clock(); /* processor time: the machine may be busy with other tests */
    struct dl_tokens ids = tokens_of(t, s->v, s->len, DL_TOKENIZE_SPECIAL);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("    %-22s %zu bytes, %zu tokens, %.0f ms\n", what, s->len, ids.len, seconds * 1e3);
    assert_true(ids.len > 0);
    if (!SANITIZED)
        assert_true(seconds < 1.0);
    struct dl_str back = {0};
    assert_int_equal(dl_detokenize(t, ids.v, ids.len, &back), 0);
    assert_true(back.len == s->len && !memcmp(back.v, s->v, s->len));
    dl_str_finish(&back);
    dl_tokens_finish(&ids);
}

/* More than is wanted by far: of one word not a single token is made, of many no more than are wanted. */
static void ends_early(const dl_tokenizer *t, const struct dl_str *word, const struct dl_str *words)
{
    struct dl_tokens ids = {.most = 4096};
    assert_int_equal(dl_tokenize(t, word->v, word->len, DL_TOKENIZE_BOS, &ids), DL_ELIMIT);
    assert_true(!ids.len && !ids.cap && ids.least > 4096);
    ids.most = words->len / 6;
    assert_int_equal(dl_tokenize(t, words->v, words->len, DL_TOKENIZE_BOS, &ids), DL_ELIMIT);
    assert_true(ids.len == ids.most && ids.least == ids.most + 1);
    dl_tokens_finish(&ids);
}

static void test_speed(void **state)
{
    (void)state;
    static const char *const files[] = {"vocab/llama3.gguf", "vocab/llama3.t", "vocab/llama-spm.gguf",
                                        "vocab/gpt-2.gguf"};
    enum { SIZE = 1 << 20 };
    static const char words[] =
        "the of and to in is you that it he was for on are as with his they I at be this have from or one "
        "had by word but not what all were we when your can said there use an each which she do how their "
        "if will up other about out many then them these so some her would make like him into time has";
    uint64_t rnd = 7;
    struct dl_str text = {0}, same = {0}, line = {0}, spaces = {0}, marks = {0}, bytes = {0};
    while (text.len < SIZE) {
        size_t at = test_rand(&rnd) % (sizeof words - 20);
        dl_str_add(&text, words + at, 3 + test_rand(&rnd) % 12);
        dl_str_addz(&text, test_rand(&rnd) % 9 ? " " : test_rand(&rnd) % 2 ? ", " : ".\n\n");
    }
    while (same.len < SIZE) {
        char letter = (char)('a' + test_rand(&rnd) % 26), byte = (char)(test_rand(&rnd) & 0xff);
        dl_str_add(&same, "a", 1);
        dl_str_add(&line, &letter, 1);
        dl_str_add(&spaces, " ", 1);
        dl_str_add(&marks, "<", 1);
        dl_str_add(&bytes, &byte, 1);
    }
    spaces.v[SIZE / 2] = '5';
    for (size_t f = 0; f < DL_COUNT_OF(files); f++) {
        NEED_DATA(path, files[f]);
        uint64_t start = dl_now_ns();
        dl_tokenizer *t = open_ok(path);
        print_message("  %s: opened in %.0f ms\n", files[f], (double)(dl_now_ns() - start) / 1e6);
        timed(t, "English-like", &text);
        timed(t, "one letter", &same);
        timed(t, "one word", &line);
        timed(t, "spaces", &spaces);
        timed(t, "marks", &marks);
        timed(t, "bytes", &bytes);
        ends_early(t, &line, &text);
        dl_tokenizer_close(&t);
    }
    dl_str_finish(&text);
    dl_str_finish(&same);
    dl_str_finish(&line);
    dl_str_finish(&spaces);
    dl_str_finish(&marks);
    dl_str_finish(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors_llama3), cmocka_unit_test(test_vectors_spm),
        cmocka_unit_test(test_vectors_gpt2),   cmocka_unit_test(test_twins_llama3),
        cmocka_unit_test(test_twins_stories),  cmocka_unit_test(test_round_trip_random),
        cmocka_unit_test(test_special),        cmocka_unit_test(test_decoder_bad_bytes),
        cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
