/* SPDX-License-Identifier: MIT
 *
 * engine/text/decode.c: tokens back to bytes, in one go or as they are made, and what may be asked of one token.
 */
#include "vocab.h"

#include <string.h>

static const struct eng_token *token(const dl_tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->n ? &t->tokens[id] : NULL;
}

const char *dl_token_bytes(const dl_tokenizer *tok, int32_t id, size_t *n)
{
    const struct eng_token *k = token(tok, id);
    *n = 0;
    if (!k)
        return "";
    if (k->type == ENG_TOKEN_BYTE) {
        *n = 1;
        return (const char *)&k->byte;
    }
    if (k->type == ENG_TOKEN_NORMAL || k->type == ENG_TOKEN_USER)
        *n = k->n;
    return tok->arena + k->at;
}

const char *dl_token_text(const dl_tokenizer *tok, int32_t id, size_t *n)
{
    const struct eng_token *k = token(tok, id);
    *n = k ? k->n : 0;
    return k ? tok->arena + k->at : "";
}

bool dl_token_is_control(const dl_tokenizer *tok, int32_t id)
{
    const struct eng_token *k = token(tok, id);
    return k && (k->type == ENG_TOKEN_CONTROL || k->type == ENG_TOKEN_UNKNOWN);
}

bool dl_token_is_eog(const dl_tokenizer *tok, int32_t id)
{
    const struct eng_token *k = token(tok, id);
    return k && k->eog;
}

int32_t dl_token_by_text(const dl_tokenizer *tok, const char *text)
{
    size_t n = strlen(text);
    int32_t id = eng_vocab_special_at(tok, text, n, true);
    return id >= 0 && tok->tokens[id].n == n ? id : DL_TOK_NONE;
}

/* The bytes of a token in a row of tokens: without the space that dl_tokenize put in front, which it does at the start
 * and after each special token. */
static const char *row_bytes(const dl_tokenizer *t, int32_t id, bool *strip, size_t *n)
{
    const char *s = dl_token_bytes(t, id, n);
    const struct eng_token *k = token(t, id);
    if (k && k->type != ENG_TOKEN_NORMAL && k->type != ENG_TOKEN_BYTE) {
        *strip = t->info.add_space_prefix;
        return s;
    }
    if (*strip && *n && *s == ' ') {
        s++;
        --*n;
    }
    *strip = *strip && !k;
    return s;
}

int dl_detokenize(const dl_tokenizer *tok, const int32_t *ids, size_t n, struct dl_str *out)
{
    bool strip = tok->info.add_space_prefix;
    int err = DL_OK;
    for (size_t i = 0; i < n && !err; i++) {
        size_t len;
        const char *s = row_bytes(tok, ids[i], &strip, &len);
        err = dl_str_add(out, s, len);
    }
    return err;
}

/* ----------------------------------------------------------------------------------------------- as they are made */

void dl_decoder_init(struct dl_decoder *d, const dl_tokenizer *tok, bool at_start)
{
    *d = (struct dl_decoder){.tok = tok, .strip_space = at_start && tok->info.add_space_prefix};
}

/* Whether n bytes (1 to 3) may be the start of a longer character: some last bytes complete them. */
static bool may_grow(const char *s, uint8_t n)
{
    uint8_t c = (uint8_t)s[0];
    uint8_t len = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || n >= len)
        return false;
    /* All third and fourth bytes share one range; a second byte's range has 0x80 or 0xbf or lies in between. */
    static const char seconds[] = {(char)0x80, (char)0x8f, (char)0x90, (char)0xbf};
    char try[4] = {s[0], n > 1 ? s[1] : 0, n > 2 ? s[2] : (char)0x80, (char)0x80};
    for (size_t i = 0; i < DL_COUNT_OF(seconds); i++) {
        if (n == 1)
            try[1] = seconds[i];
        if (eng_utf8_len(try, len) == len)
            return true;
    }
    return false;
}

static int bad_char(struct dl_str *out)
{
    return dl_str_add(out, "\xef\xbf\xbd", 3);
}

static int push_byte(struct dl_decoder *d, char c, struct dl_str *out)
{
    d->held[d->n_held++] = c;
    size_t len = eng_utf8_len(d->held, d->n_held);
    if (len == d->n_held) {
        d->n_held = 0;
        return dl_str_add(out, d->held, len);
    }
    if (may_grow(d->held, d->n_held))
        return DL_OK;
    bool alone = d->n_held == 1;
    d->n_held = 0;
    int err = bad_char(out);
    return err || alone ? err : push_byte(d, c, out); /* the new byte broke the old ones, but may itself be good */
}

int dl_decoder_push(struct dl_decoder *d, int32_t id, struct dl_str *out)
{
    size_t n;
    const char *s = row_bytes(d->tok, id, &d->strip_space, &n);
    int err = DL_OK;
    for (size_t i = 0; i < n && !err; i++)
        err = push_byte(d, s[i], out);
    return err;
}

int dl_decoder_flush(struct dl_decoder *d, struct dl_str *out)
{
    bool any = d->n_held > 0;
    d->n_held = 0;
    return any ? bad_char(out) : DL_OK;
}
