/* SPDX-License-Identifier: MIT
 *
 * engine/text/vocab_gguf.c: the vocabulary in the tokenizer.ggml.* keys of a GGUF file: SentencePiece ("llama") and byte-level
 * BPE ("gpt2"). Bounds of the file are gguf.c's; here only ids and counts need care.
 */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "gguf.h"
#include "pretok.h"

#define KEY "tokenizer.ggml."

/* GPT-2 writes bytes as letters: those that are visible in Latin-1 as themselves, the others, in order, from U+0100. The byte of
 * a code point, or -1. */
static int alphabet_byte(uint32_t c)
{
    static const uint8_t visible[][2] = {{0x21, 0x7e}, {0xa1, 0xac}, {0xae, 0xff}};
    if (c < 0x100) {
        for (size_t i = 0; i < DL_COUNT_OF(visible); i++)
            if (c >= visible[i][0] && c <= visible[i][1])
                return (int)c;
        return -1;
    }
    static const uint8_t hidden[][2] = {{0x00, 0x20}, {0x7f, 0xa0}, {0xad, 0xad}};
    uint32_t k = c - 0x100;
    for (size_t i = 0; i < DL_COUNT_OF(hidden); i++) {
        uint32_t n = (uint32_t)hidden[i][1] - hidden[i][0] + 1;
        if (k < n)
            return (int)(hidden[i][0] + k);
        k -= n;
    }
    return -1;
}

/* Out of GPT-2's alphabet into `out` (room for s.n bytes); false where something else is in it. */
static bool from_alphabet(struct eng_span s, char *out, size_t *n)
{
    *n = 0;
    for (size_t i = 0; i < s.n;) {
        uint8_t c = (uint8_t)s.v[i];
        size_t len = eng_utf8_len(s.v + i, s.n - i);
        if (len != 1 && len != 2)
            return false;
        int b = alphabet_byte(len == 1 ? c : (uint32_t)(c & 0x1f) << 6 | ((uint8_t)s.v[i + 1] & 0x3f));
        if (b < 0)
            return false;
        out[(*n)++] = (char)b;
        i += len;
    }
    return true;
}

static size_t from_pieces(struct eng_span s, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n;) {
        if (s.n - i >= 3 && !memcmp(s.v + i, "\xe2\x96\x81", 3)) {
            out[n++] = ' ';
            i += 3;
        } else
            out[n++] = s.v[i++];
    }
    return n;
}

static const struct eng_gguf_kv *array(const struct eng_gguf *g, const char *key, bool strings)
{
    const struct eng_gguf_kv *kv = eng_gguf_find(g, key);
    return kv && kv->type == ENG_GGUF_ARR && (kv->elem_type == ENG_GGUF_STR) == strings && kv->elem_type != ENG_GGUF_ARR
               ? kv
               : NULL;
}

static int read_id(const struct eng_gguf *g, const char *key, size_t n, int32_t *id)
{
    uint64_t v;
    if (!eng_gguf_u64(g, key, &v) || v == UINT32_MAX) /* the latter: -1, "none" */
        return DL_OK;
    int err = eng_check_id(g->name, key, v > INT64_MAX ? INT64_MAX : (int64_t)v, n);
    if (!err)
        *id = (int32_t)v;
    return err;
}

static enum eng_token_type type_of(const dl_tokenizer *t, const struct eng_gguf_kv *types, struct eng_span s,
                                   int32_t id)
{
    if (types) {
        int64_t v = eng_gguf_arr_i64(types, (uint64_t)id);
        return v >= ENG_TOKEN_NORMAL && v <= ENG_TOKEN_BYTE ? (enum eng_token_type)v : ENG_TOKEN_NORMAL;
    }
    /* Old files have no types. */
    if (id == t->info.bos || id == t->info.eos)
        return ENG_TOKEN_CONTROL;
    if (!t->bpe && id == t->unknown)
        return ENG_TOKEN_UNKNOWN;
    return !t->bpe && eng_byte_name(s.v, s.n) >= 0 ? ENG_TOKEN_BYTE : ENG_TOKEN_NORMAL;
}

static int read_tokens(dl_tokenizer *t, const struct eng_gguf *g, const struct eng_gguf_kv *tokens, char *scratch)
{
    const struct eng_gguf_kv *scores = array(g, KEY "scores", false), *types = array(g, KEY "token_type", false);
    if ((scores && scores->n < tokens->n) || (types && types->n < tokens->n))
        return dl_fail(DL_EFORMAT, "%s: %llu tokens, but fewer scores or types: the file is damaged", g->name,
                       (unsigned long long)tokens->n);
    size_t at = 0;
    struct eng_span s;
    for (int32_t id = 0; eng_gguf_next_str(tokens, &at, &s); id++) {
        enum eng_token_type type = type_of(t, types, s, id);
        bool normal = type == ENG_TOKEN_NORMAL, unmatched = false;
        size_t n = s.n;
        const char *v = s.v;
        if (t->bpe && normal) {
            if (from_alphabet(s, scratch, &n))
                v = scratch;
            else {
                unmatched = true;
                n = s.n;
            }
        } else if (!t->bpe && (normal || type == ENG_TOKEN_USER)) {
            n = from_pieces(s, scratch);
            v = scratch;
        }
        int err = eng_vocab_add(t, v, n, scores ? (float)eng_gguf_arr_f64(scores, (uint64_t)id) : 0, type);
        if (err)
            return err;
        t->tokens[id].unmatched = unmatched;
    }
    return t->n == tokens->n ? DL_OK : dl_fail(DL_EFORMAT, "%s: " KEY "tokens ends early", g->name);
}

static int read_merges(dl_tokenizer *t, const struct eng_gguf *g)
{
    const struct eng_gguf_kv *merges = array(g, KEY "merges", true);
    if (!merges)
        return dl_fail(DL_EFORMAT, "%s: a gpt2 tokenizer without " KEY "merges: convert the model again", g->name);
    int err = eng_vocab_reserve_pairs(t, (size_t)merges->n);
    char *both = err ? NULL : dl_calloc(merges->bytes + 1, 1);
    if (!both)
        return err ? err : DL_ENOMEM;
    size_t at = 0;
    struct eng_span s;
    for (uint32_t rank = 0; eng_gguf_next_str(merges, &at, &s); rank++) {
        const char *space = s.n > 1 ? memchr(s.v + 1, ' ', s.n - 1) : NULL;
        size_t n_left, n_right;
        if (!space || !from_alphabet((struct eng_span){s.v, (size_t)(space - s.v)}, both, &n_left) ||
            !from_alphabet((struct eng_span){space + 1, s.n - (size_t)(space + 1 - s.v)}, both + n_left, &n_right))
            continue;
        int32_t left = eng_vocab_find(t, both, n_left), right = eng_vocab_find(t, both + n_left, n_right);
        int32_t id = eng_vocab_find(t, both, n_left + n_right);
        if (left >= 0 && right >= 0 && id >= 0)
            eng_vocab_add_pair(t, left, right, id, rank);
    }
    free(both);
    return DL_OK;
}

static int read_kind(dl_tokenizer *t, const struct eng_gguf *g)
{
    struct eng_span model;
    if (!eng_gguf_str(g, KEY "model", &model))
        return dl_fail(DL_EFORMAT, "%s: has no tokenizer (" KEY "model is missing)", g->name);
    t->bpe = eng_span_is(model, "gpt2");
    if (!t->bpe && !eng_span_is(model, "llama"))
        return dl_fail(DL_EUNSUP, "%s: tokenizer model '%.*s' is not known here; known: llama, gpt2", g->name,
                       (int)DL_MIN(model.n, 64), model.v);
    if (!t->bpe) {
        t->info.add_bos = t->info.add_space_prefix = true;
        eng_gguf_bool(g, KEY "add_space_prefix", &t->info.add_space_prefix);
    } else {
        struct eng_span pre = {"", 0};
        struct eng_pretok_traits traits;
        eng_gguf_str(g, KEY "pre", &pre);
        int err = eng_pretok_create(pre.v, pre.n, g->name, &t->pretok, &traits);
        if (err)
            return err;
        t->info.pre = traits.name;
        t->info.add_bos = traits.add_bos;
        t->whole_first = traits.whole_first;
    }
    eng_gguf_bool(g, KEY "add_bos_token", &t->info.add_bos);
    eng_gguf_bool(g, KEY "add_eos_token", &t->info.add_eos);
    struct eng_span chat;
    if (eng_gguf_str(g, "tokenizer.chat_template", &chat) && chat.n) {
        t->chat_template = dl_calloc(chat.n + 1, 1);
        if (!t->chat_template)
            return DL_ENOMEM;
        memcpy(t->chat_template, chat.v, chat.n);
    }
    return DL_OK;
}

static int read_ids(dl_tokenizer *t, const struct eng_gguf *g, size_t n)
{
    if (!t->bpe && n > 2) {
        t->unknown = 0;
        t->info.bos = 1;
        t->info.eos = 2;
    }
    int err = read_id(g, KEY "bos_token_id", n, &t->info.bos);
    if (!err)
        err = read_id(g, KEY "eos_token_id", n, &t->info.eos);
    if (!err)
        err = read_id(g, KEY "padding_token_id", n, &t->info.pad);
    if (!err)
        err = read_id(g, KEY "unknown_token_id", n, &t->unknown);
    return err;
}

static int read_vocab(dl_tokenizer *t, const struct eng_gguf *g)
{
    int err = read_kind(t, g);
    if (err)
        return err;
    const struct eng_gguf_kv *tokens = array(g, KEY "tokens", true);
    if (!tokens || !tokens->n)
        return dl_fail(DL_EFORMAT, "%s: has no vocabulary (" KEY "tokens is missing)", g->name);
    err = read_ids(t, g, (size_t)tokens->n);
    if (!err)
        err = eng_vocab_reserve(t, (size_t)tokens->n, tokens->bytes);
    char *scratch = err ? NULL : dl_calloc(tokens->bytes + 1, 1);
    if (!err && !scratch)
        err = DL_ENOMEM;
    if (!err)
        err = read_tokens(t, g, tokens, scratch);
    free(scratch);
    int32_t ends[2] = {DL_TOK_NONE, DL_TOK_NONE};
    if (!err)
        err = read_id(g, KEY "eot_token_id", t->n, &ends[0]);
    if (!err)
        err = read_id(g, KEY "eom_token_id", t->n, &ends[1]);
    for (int i = 0; i < 2 && !err; i++)
        if (ends[i] >= 0)
            t->tokens[ends[i]].eog = true;
    if (!err)
        err = eng_vocab_finish(t);
    if (!err && t->bpe)
        err = read_merges(t, g);
    return err;
}

int eng_vocab_from_gguf(dl_tokenizer *t, const uint8_t *bytes, size_t n, const char *name)
{
    struct eng_gguf g;
    int err = eng_gguf_parse(bytes, n, name, &g);
    if (err)
        return err;
    err = read_vocab(t, &g);
    eng_gguf_finish(&g);
    return err;
}
