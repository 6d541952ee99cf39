/* SPDX-License-Identifier: MIT
 *
 * engine/text/vocab_dllama.c: the vocabulary in a Distributed Llama tokenizer file (.t): a header of key and value pairs, the chat
 * template, the end ids, then a score and the bytes of each token. The file names neither the kind of tokenizer nor its
 * pattern: both are told by the tokens.
 */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "cursor.h"
#include "pretok.h"

enum { MAGIC = 0x567124, OLD_MAGIC = 0x567123, MAX_HEADER = 8 + 8 * 64 };
enum { FIRST_BYTE = 3 }; /* SentencePiece files: <0x00> to <0xFF> start here */

enum key {
    KEY_VERSION,
    KEY_VOCAB,
    KEY_LONGEST,
    KEY_BOS,
    KEY_EOS,
    KEY_PAD,
    KEY_CHAT_EOS,
    KEY_TEMPLATE,
    KEY_CHAT_STOP,
    KEY_ENDS,
    KEY_ADD_BOS,
    KEY_COUNT
};

struct header {
    bool has[KEY_COUNT];
    int32_t value[KEY_COUNT];
    const uint8_t *chat, *ends;
    size_t n_chat, n_ends, n_vocab;
};

struct piece {
    const char *v;
    uint32_t n;
    float score;
};

static int cut_short(const struct eng_cursor *c, const char *name)
{
    return dl_fail(DL_EFORMAT, "%s: ends at byte %zu where %s should be: copy or convert it again", name, c->bad_at,
                   c->bad);
}

/* A count or length out of the header: 0 when the key is absent. */
static int get_size(const struct header *h, enum key key, const char *name, size_t *out)
{
    *out = 0;
    if (!h->has[key])
        return DL_OK;
    if (h->value[key] < 0)
        return dl_fail(DL_EFORMAT, "%s: key %d is %d, which is no length: the file is damaged", name, key,
                       h->value[key]);
    *out = (size_t)h->value[key];
    return DL_OK;
}

static int read_header(struct eng_cursor *c, const char *name, struct header *h)
{
    uint32_t magic = eng_read_u32(c, "the magic number"), size = eng_read_u32(c, "the header's size");
    if (c->bad)
        return cut_short(c, name);
    if (magic == OLD_MAGIC)
        return dl_fail(DL_EUNSUP,
                       "%s: is of Distributed Llama's old layout (magic 0x567123): convert the tokenizer again", name);
    if (magic != MAGIC)
        return dl_fail(DL_EFORMAT, "%s: is no Distributed Llama tokenizer (magic 0x%x)", name, magic);
    if (size < 8 || size > MAX_HEADER || size % 8)
        return dl_fail(DL_EFORMAT, "%s: header of %u bytes: the file is damaged", name, size);
    for (uint32_t i = 8; i < size; i += 8) {
        int32_t key = eng_read_i32(c, "the header"), value = eng_read_i32(c, "the header");
        if (c->bad)
            return cut_short(c, name);
        if (key < 0 || key >= KEY_COUNT)
            return dl_fail(DL_EUNSUP, "%s: header key %d is not known here: the file is damaged or too new", name, key);
        h->has[key] = true;
        h->value[key] = value;
    }
    if (h->has[KEY_VERSION] && h->value[KEY_VERSION] != 1)
        return dl_fail(DL_EUNSUP, "%s: tokenizer version %d; known: 1", name, h->value[KEY_VERSION]);
    size_t stop;
    int err = get_size(h, KEY_VOCAB, name, &h->n_vocab);
    if (!err)
        err = get_size(h, KEY_TEMPLATE, name, &h->n_chat);
    if (!err)
        err = get_size(h, KEY_CHAT_STOP, name, &stop);
    if (!err)
        err = get_size(h, KEY_ENDS, name, &h->n_ends);
    if (err)
        return err;
    h->chat = eng_read_bytes(c, h->n_chat, "the chat template");
    eng_read_bytes(c, stop, "the chat stop");
    h->ends = eng_read_bytes(c, (uint64_t)h->n_ends * 4, "the end ids");
    if (c->bad)
        return cut_short(c, name);
    if (!h->n_vocab || h->n_vocab > eng_left(c) / 8)
        return dl_fail(DL_EFORMAT, "%s: %zu tokens do not fit into the %zu bytes left: the file is damaged", name,
                       h->n_vocab, eng_left(c));
    return DL_OK;
}

static int read_pieces(struct eng_cursor *c, const char *name, struct piece *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        p[i].score = eng_read_f32(c, "a token's score");
        p[i].n = eng_read_u32(c, "a token's length");
        p[i].v = (const char *)eng_read_bytes(c, p[i].n, "a token's bytes");
        if (c->bad)
            return cut_short(c, name);
    }
    if (eng_left(c))
        return dl_fail(DL_EFORMAT, "%s: %zu bytes are left over after the last token: the file is damaged", name,
                       eng_left(c));
    return DL_OK;
}

static bool is_sentencepiece(const struct piece *p, size_t n)
{
    if (n < FIRST_BYTE + 256)
        return false;
    for (int b = 0; b < 256; b++)
        if (eng_byte_name(p[FIRST_BYTE + b].v, p[FIRST_BYTE + b].n) != b)
            return false;
    return true;
}

static bool is_text(struct piece p, const char *text)
{
    return p.n == strlen(text) && !memcmp(p.v, text, p.n);
}

/* Llama 3 groups digits by three, so "123" is a token; Qwen takes digits one by one. Names say it first. */
static const char *pattern_of(const struct piece *p, size_t n)
{
    bool digits = false, im = false;
    for (size_t i = 0; i < n; i++) {
        if (is_text(p[i], "<|begin_of_text|>"))
            return "llama3";
        im |= is_text(p[i], "<|im_start|>");
        digits |= is_text(p[i], "123");
    }
    return im || !digits ? "qwen2" : "llama3";
}

/* "<think>", "</tool_call>": marks that models write into their answers, to be seen. */
static bool is_visible_mark(struct piece p)
{
    if (p.n < 3 || p.v[0] != '<' || p.v[p.n - 1] != '>')
        return false;
    for (uint32_t i = p.v[1] == '/' ? 2 : 1; i + 1 < p.n; i++)
        if (!(p.v[i] >= 'a' && p.v[i] <= 'z') && p.v[i] != '_')
            return false;
    return true;
}

/* SentencePiece files put newlines around <s> and </s>. */
static struct piece trimmed(struct piece p)
{
    while (p.n && p.v[0] == '\n') {
        p.v++;
        p.n--;
    }
    while (p.n && p.v[p.n - 1] == '\n')
        p.n--;
    return p;
}

static bool has_bars(struct piece p)
{
    return p.n > 4 && !memcmp(p.v, "<|", 2) && !memcmp(p.v + p.n - 2, "|>", 2);
}

static int add_spm(dl_tokenizer *t, struct piece p, size_t id, bool end)
{
    enum eng_token_type type = ENG_TOKEN_NORMAL;
    if (id >= FIRST_BYTE && id < FIRST_BYTE + 256)
        type = ENG_TOKEN_BYTE;
    else if (id == 0)
        type = ENG_TOKEN_UNKNOWN;
    else if (id < FIRST_BYTE || (int64_t)id == t->info.bos || end || has_bars(p))
        type = ENG_TOKEN_CONTROL;
    if (type == ENG_TOKEN_CONTROL)
        p = trimmed(p);
    return eng_vocab_add(t, p.v, p.n, p.score, type);
}

static int add_bpe(dl_tokenizer *t, struct piece p, size_t id, bool end)
{
    enum eng_token_type type = ENG_TOKEN_NORMAL;
    if (end || (t->info.bos >= 0 && (int64_t)id >= t->info.bos))
        type = is_visible_mark(p) && !end ? ENG_TOKEN_USER : ENG_TOKEN_CONTROL;
    return eng_vocab_add(t, p.v, p.n, p.score, type);
}

static int32_t end_id(const struct header *h, size_t i)
{
    uint32_t u = (uint32_t)h->ends[i * 4] | (uint32_t)h->ends[i * 4 + 1] << 8 | (uint32_t)h->ends[i * 4 + 2] << 16 |
                 (uint32_t)h->ends[i * 4 + 3] << 24;
    int32_t id;
    memcpy(&id, &u, sizeof id);
    return id;
}

/* ends[id] is set for each token that ends an answer; info.eos is the first of them. */
static int read_ids(dl_tokenizer *t, const struct header *h, const char *name, uint8_t *ends)
{
    static const struct {
        enum key key;
        const char *what;
    } keys[] = {{KEY_BOS, "BOS"}, {KEY_PAD, "padding"}, {KEY_EOS, "EOS"}, {KEY_CHAT_EOS, "chat EOS"}};
    for (size_t i = 0; i < DL_COUNT_OF(keys); i++) {
        int32_t id = h->has[keys[i].key] ? h->value[keys[i].key] : DL_TOK_NONE;
        int err = eng_check_id(name, keys[i].what, id, h->n_vocab);
        if (err)
            return err;
        if (keys[i].key == KEY_BOS)
            t->info.bos = id;
        else if (keys[i].key == KEY_PAD)
            t->info.pad = id;
        else if (id >= 0) {
            ends[id] = 1;
            t->info.eos = t->info.eos < 0 ? id : t->info.eos;
        }
    }
    for (size_t i = 0; i < h->n_ends; i++) {
        int32_t id = end_id(h, i);
        int err = eng_check_id(name, "an end id", id, h->n_vocab);
        if (err)
            return err;
        if (id >= 0) {
            ends[id] = 1;
            t->info.eos = t->info.eos < 0 ? id : t->info.eos;
        }
    }
    t->info.add_bos = !h->has[KEY_ADD_BOS] || h->value[KEY_ADD_BOS];
    return DL_OK;
}

static int fill(dl_tokenizer *t, const struct header *h, const struct piece *p, const uint8_t *ends, const char *name)
{
    size_t bytes = 0;
    for (size_t i = 0; i < h->n_vocab; i++)
        bytes += p[i].n;
    int err = eng_vocab_reserve(t, h->n_vocab, bytes);
    t->bpe = !is_sentencepiece(p, h->n_vocab);
    t->info.add_space_prefix = !t->bpe;
    t->unknown = t->bpe ? DL_TOK_NONE : 0;
    if (!err && t->bpe) {
        struct eng_pretok_traits traits;
        const char *pre = pattern_of(p, h->n_vocab);
        err = eng_pretok_create(pre, strlen(pre), name, &t->pretok, &traits);
        t->info.pre = err ? "" : traits.name;
        t->whole_first = !err && traits.whole_first;
    }
    for (size_t i = 0; i < h->n_vocab && !err; i++) {
        err = t->bpe ? add_bpe(t, p[i], i, ends[i]) : add_spm(t, p[i], i, ends[i]);
        if (!err)
            t->tokens[i].eog = ends[i];
    }
    if (!err && h->n_chat) {
        t->chat_template = dl_calloc(h->n_chat + 1, 1);
        if (!t->chat_template)
            return DL_ENOMEM;
        memcpy(t->chat_template, h->chat, h->n_chat);
    }
    return err ? err : eng_vocab_finish(t);
}

int eng_vocab_from_dllama(dl_tokenizer *t, const uint8_t *bytes, size_t n, const char *name)
{
    struct eng_cursor c = eng_cursor_make(bytes, n);
    struct header h = {0};
    int err = read_header(&c, name, &h);
    if (err)
        return err;
    struct piece *p = dl_calloc(h.n_vocab, sizeof *p);
    uint8_t *ends = dl_calloc(h.n_vocab, 1);
    err = p && ends ? read_pieces(&c, name, p, h.n_vocab) : DL_ENOMEM;
    if (!err)
        err = read_ids(t, &h, name, ends);
    if (!err)
        err = fill(t, &h, p, ends, name);
    free(p);
    free(ends);
    return err;
}
