/* SPDX-License-Identifier: MIT
 *
 * engine/text/pretok.c: see pretok.h. A model has one or more patterns; each cuts every piece that the ones before it left,
 * into its matches and what lies between them.
 *
 * The patterns avoid what would cost more than linear time or deep stacks on hostile text: no repeated groups, and class repeats
 * that can only back off once.
 */
#include "pretok.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vocab.h"

enum { MAX_STAGES = 6 };

/* Unicode's White_Space inside a class. Not \s, which in PCRE2 also takes U+180E. */
#define WS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
/* A run of white space, except the last one where a word follows: that one belongs to the word. */
#define SPACE_RUN "[" WS "]+(?![^" WS "])"
#define CONTRACTION "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
#define CAPITALISED "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACE_RUN
#define TAIL "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|" SPACE_RUN "|[" WS "]+"
#define LLAMA3 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" TAIL
#define QWEN2 CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" TAIL
#define CASED_TAIL "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|[" WS "]*[\\r\\n]+|" SPACE_RUN "|[" WS "]+"
#define TEKKEN                                                                                      \
    "[^\\r\\n\\p{L}\\p{N}]?" CAPITALISED "*" SMALL "+|[^\\r\\n\\p{L}\\p{N}]?" CAPITALISED "+" SMALL \
    "*|\\p{N}" CASED_TAIL
#define GPT4O                                                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?" CAPITALISED "*" SMALL "+(?:" CONTRACTION ")?|[^\\r\\n\\p{L}\\p{N}]?" CAPITALISED \
    "+" SMALL "*(?:" CONTRACTION ")?|\\p{N}{1,3}" CASED_TAIL
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define DEEPSEEK3                                                                                       \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+" \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|[" WS "]*[\\r\\n]+|" SPACE_RUN "|[" WS "]+"
/* The letters with case, as of the Unicode of the model's day. */
#define DEEPSEEK_LETTERS                                                                                               \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}"   \
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}"     \
    "\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}"       \
    "\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{"    \
    "1d9a}"                                                                                                            \
    "\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{"     \
    "1f5b}"                                                                                                            \
    "\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{"     \
    "1fcc}"                                                                                                            \
    "\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{"     \
    "2107}"                                                                                                            \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}" \
    "\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}" \
    "\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{"     \
    "a787}"                                                                                                            \
    "\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{"    \
    "ff5a}"                                                                                                            \
    "\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"        \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

/* clang-format off */
static const char *const families[][MAX_STAGES] = {
    {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"},
    {GPT2},
    {LLAMA3},
    {QWEN2},
    {"\\p{N}", GPT2},
    {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"},
    {"[\\r\\n]", "[" WS "]?[" DEEPSEEK_LETTERS "]+",
     "[" WS "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
     "(?<![" WS "])[" WS "]++$", CJK, "\\p{N}+"},
    {"[\\r\\n]", "[" WS "]?\\p{L}+", "[" WS "]?\\p{P}+", CJK, "\\p{N}"},
    {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+", DEEPSEEK3},
    {TEKKEN},
    {GPT4O},
};
/* clang-format on */
enum family {
    F_DEFAULT,
    F_GPT2,
    F_LLAMA3,
    F_QWEN2,
    F_DIGITS,
    F_FALCON,
    F_DEEPSEEK,
    F_DEEPSEEK_CODER,
    F_DEEPSEEK3,
    F_TEKKEN,
    F_GPT4O
};

static const struct {
    const char *name;
    enum family family;
    bool whole_first, add_bos;
} known[] = {
    {"default", F_DEFAULT, false, false},
    {"gpt-2", F_GPT2, false, false},
    {"phi-2", F_GPT2, false, false},
    {"mpt", F_GPT2, false, false},
    {"olmo", F_GPT2, false, false},
    {"llama3", F_LLAMA3, true, true},
    {"llama-v3", F_LLAMA3, true, true},
    {"llama-bpe", F_LLAMA3, true, true},
    {"falcon3", F_LLAMA3, true, true},
    {"pixtral", F_LLAMA3, true, true},
    {"lfm2", F_LLAMA3, true, true},
    {"dbrx", F_LLAMA3, false, false},
    {"smaug-bpe", F_LLAMA3, false, false},
    {"glm4", F_LLAMA3, false, false},
    {"chatglm-bpe", F_LLAMA3, false, false},
    {"qwen2", F_QWEN2, false, false},
    {"deepseek-r1-qwen", F_QWEN2, false, false},
    {"stablelm2", F_QWEN2, false, false},
    {"megrez", F_QWEN2, false, false},
    {"hunyuan", F_QWEN2, false, false},
    {"starcoder", F_DIGITS, false, false},
    {"refact", F_DIGITS, false, false},
    {"command-r", F_DIGITS, false, false},
    {"smollm", F_DIGITS, false, false},
    {"codeshell", F_DIGITS, false, false},
    {"exaone", F_DIGITS, false, false},
    {"minerva-7b", F_DIGITS, false, false},
    {"falcon", F_FALCON, false, false},
    {"deepseek-llm", F_DEEPSEEK, false, false},
    {"deepseek-coder", F_DEEPSEEK_CODER, false, false},
    {"deepseek-v3", F_DEEPSEEK3, false, false},
    {"tekken", F_TEKKEN, true, true},
    {"gpt-4o", F_GPT4O, false, false},
    {"llama4", F_GPT4O, false, false},
};

struct eng_pretok {
    pcre2_match_context *limits;
    pcre2_code *stages[MAX_STAGES];
    size_t n;
};

static int unknown_name(const char *pre, size_t n, const char *file)
{
    char names[640];
    size_t at = 0;
    for (size_t i = 0; i < DL_COUNT_OF(known) && at < sizeof names; i++)
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", known[i].name);
    return dl_fail(DL_EUNSUP, "%s: pre-tokenizer '%.*s' is not known here; known: %s", file, (int)DL_MIN(n, 64), pre,
                   names);
}

int eng_pretok_create(const char *pre, size_t n, const char *file, struct eng_pretok **out,
                      struct eng_pretok_traits *traits)
{
    if (!n) {
        dl_log(DL_LOG_WARN,
               "%s: no tokenizer.ggml.pre, so text is cut by the default rules, which may not be the model's", file);
        pre = known[0].name;
        n = strlen(pre);
    }
    size_t k = 0;
    while (k < DL_COUNT_OF(known) && (strlen(known[k].name) != n || memcmp(known[k].name, pre, n)))
        k++;
    if (k == DL_COUNT_OF(known))
        return unknown_name(pre, n, file);
    struct eng_pretok *p = dl_xcalloc(1, sizeof *p);
    p->limits = pcre2_match_context_create(NULL);
    if (!p->limits) {
        eng_pretok_destroy(&p);
        return dl_fail(DL_ENOMEM, "memory: no room for a pre-tokenizer");
    }
    /* The default of ten million steps is less than one long run of spaces may take; see the top of this file. */
    pcre2_set_match_limit(p->limits, UINT32_MAX);
    for (; p->n < MAX_STAGES && families[known[k].family][p->n]; p->n++) {
        int code;
        PCRE2_SIZE where;
        const char *pattern = families[known[k].family][p->n];
        pcre2_code *c = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &code, &where, NULL);
        if (!c) {
            char why[128] = "";
            pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
            eng_pretok_destroy(&p);
            return dl_fail(DL_EUNSUP,
                           "pre-tokenizer %s: PCRE2 refuses its pattern: %s at %zu; it needs PCRE2 with Unicode",
                           known[k].name, why, (size_t)where);
        }
        pcre2_jit_compile(c, PCRE2_JIT_COMPLETE); /* where there is no JIT, the interpreter does */
        p->stages[p->n] = c;
    }
    *traits = (struct eng_pretok_traits){known[k].name, known[k].whole_first, known[k].add_bos};
    *out = p;
    return DL_OK;
}

void eng_pretok_destroy(struct eng_pretok **p)
{
    if (!p || !*p)
        return;
    for (size_t i = 0; i < (*p)->n; i++)
        pcre2_code_free((*p)->stages[i]);
    pcre2_match_context_free((*p)->limits);
    free(*p);
    *p = NULL;
}

struct split {
    const struct eng_pretok *p;
    const char *text; /* valid UTF-8 */
    pcre2_match_data *match;
    eng_piece_fn *fn;
    void *ud;
};

/* The text [at, at + n) through stage `s` and those after it. */
static int cut(const struct split *x, size_t s, size_t at, size_t n)
{
    if (!n)
        return DL_OK;
    if (s == x->p->n)
        return x->fn(x->ud, at, n);
    size_t done = 0, from = 0;
    while (from < n) {
        int rc =
            pcre2_match(x->p->stages[s], (PCRE2_SPTR)x->text + at, n, from, PCRE2_NO_UTF_CHECK, x->match, x->p->limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc == PCRE2_ERROR_NOMEMORY)
            return dl_fail(DL_ENOMEM, "memory: no room to cut %zu bytes of text into words", n);
        if (rc < 0)
            return dl_fail(DL_ELIMIT, "text: cannot cut %zu bytes into words: PCRE2 error %d", n, rc);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(x->match);
        size_t start = v[0], end = v[1];
        if (end <= start)
            break; /* no pattern matches nothing; never loop on one that does */
        int err = cut(x, s + 1, at + done, start - done);
        if (!err)
            err = cut(x, s + 1, at + start, end - start);
        if (err)
            return err;
        done = from = end;
    }
    return cut(x, s + 1, at + done, n - done);
}

/* A copy in which each byte that is no part of a valid character is U+0001, so that offsets stay. NULL in *copy: text is
 * valid as it is. */
static int make_valid(const char *text, size_t n, char **copy)
{
    *copy = NULL;
    for (size_t i = 0, len; i < n; i += len) {
        len = eng_utf8_len(text + i, n - i);
        if (len)
            continue;
        if (!*copy) {
            *copy = dl_calloc(n, 1);
            if (!*copy)
                return DL_ENOMEM;
            memcpy(*copy, text, n);
        }
        (*copy)[i] = 1;
        len = 1;
    }
    return DL_OK;
}

int eng_pretok_split(const struct eng_pretok *p, const char *text, size_t n, eng_piece_fn *fn, void *ud)
{
    char *copy;
    int err = make_valid(text, n, &copy);
    if (err)
        return err;
    struct split x = {p, copy ? copy : text, pcre2_match_data_create(1, NULL), fn, ud};
    err = x.match ? cut(&x, 0, 0, n) : dl_fail(DL_ENOMEM, "memory: no room for matching text");
    pcre2_match_data_free(x.match);
    free(copy);
    return err;
}
