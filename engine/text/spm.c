/* SPDX-License-Identifier: MIT
 *
 * engine/text/spm.c: SentencePiece BPE over plain text (spaces are spaces here, see vocab.h): characters merge into the piece of
 * the best score; what is no piece becomes byte tokens.
 */
#include "vocab.h"

size_t eng_utf8_len(const char *s, size_t n)
{
    const uint8_t *u = (const uint8_t *)s;
    uint8_t c = u[0];
    if (c < 0x80)
        return 1;
    size_t len = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (!len || len > n)
        return 0;
    /* The second byte also tells overlong forms, surrogates and what is beyond U+10FFFF. */
    uint8_t lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (u[1] < lo || u[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

int eng_emit_byte(const dl_tokenizer *t, uint8_t byte, struct dl_tokens *out)
{
    int32_t id = t->byte_id[byte] >= 0 ? t->byte_id[byte] : t->unknown;
    return id < 0 ? DL_OK : dl_tokens_add(out, id);
}

static int piece(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, struct dl_tokens *out)
{
    m->n_symbols = 0;
    int err = DL_OK;
    for (size_t i = 0, len; i < n && !err; i += len) {
        len = eng_utf8_len(text + i, n - i);
        len = len ? len : 1;
        err = eng_merger_add(m, (uint32_t)i, (uint32_t)len, eng_vocab_find(t, text + i, len));
    }
    if (!err)
        err = eng_merger_run(m, t, text);
    for (int32_t i = 0; i >= 0 && !err; i = m->symbols[i].next) {
        const struct eng_symbol *s = &m->symbols[i];
        if (s->id >= 0)
            err = dl_tokens_add(out, s->id);
        else
            for (uint32_t k = 0; k < s->n && !err; k++)
                err = eng_emit_byte(t, (uint8_t)text[s->at + k], out);
    }
    return err;
}

int eng_spm_tokenize(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, struct dl_tokens *out)
{
    int err = DL_OK;
    /* No merge crosses a space that follows another character unless some token does: word by word gives the same
     * tokens and keeps the heap in the cache. */
    for (size_t at = 0; at < n && !err;) {
        size_t end = t->spaces_start ? at + 1 : n;
        while (end < n && (text[end] != ' ' || text[end - 1] == ' '))
            end++;
        err = piece(t, m, text + at, end - at, out);
        at = end;
    }
    return err;
}
