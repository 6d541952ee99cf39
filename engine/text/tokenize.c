/* SPDX-License-Identifier: MIT
 *
 * engine/text/tokenize.c: opening and closing a tokenizer, and text to tokens: special tokens are found first, what lies between
 * them goes to the model's kind of merging.
 */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "pretok.h"

enum { MAX_TEXT = 1 << 30 }; /* symbols are numbered with 32 bits */

int dl_tokenizer_open(const char *path, dl_tokenizer **out)
{
    struct dl_map map;
    int err = dl_map_open(path, &map);
    if (err)
        return err;
    err = dl_tokenizer_open_mem(map.data, map.size, path, out);
    dl_map_close(&map);
    return err;
}

int dl_tokenizer_open_mem(const void *bytes, size_t n, const char *name, dl_tokenizer **out)
{
    static const uint8_t gguf[4] = {'G', 'G', 'U', 'F'}, dllama[3] = {0x71, 0x56, 0}; /* 0x567123, 0x567124 */
    *out = NULL;
    bool is_gguf = n >= 8 && !memcmp(bytes, gguf, 4);
    if (!is_gguf && (n < 8 || memcmp((const uint8_t *)bytes + 1, dllama, 3)))
        return dl_fail(DL_EFORMAT, "%s: is neither a .gguf nor a Distributed Llama tokenizer (.t)", name);
    dl_tokenizer *t = dl_xcalloc(1, sizeof *t);
    t->info.pre = "";
    t->info.bos = t->info.eos = t->info.pad = t->unknown = DL_TOK_NONE;
    int err = is_gguf ? eng_vocab_from_gguf(t, bytes, n, name) : eng_vocab_from_dllama(t, bytes, n, name);
    if (err)
        dl_tokenizer_close(&t);
    *out = t;
    return err;
}

void dl_tokenizer_close(dl_tokenizer **tok)
{
    if (!tok || !*tok)
        return;
    dl_tokenizer *t = *tok;
    eng_pretok_destroy(&t->pretok);
    free(t->chat_template);
    free(t->arena);
    free(t->tokens);
    free(t->slots);
    free(t->pairs);
    free(t->specials);
    free(t);
    *tok = NULL;
}

const struct dl_tokenizer_info *dl_tokenizer_info(const dl_tokenizer *tok)
{
    return &tok->info;
}

/* Text without special tokens. `prefix`: SentencePiece's space goes in front. */
static int plain(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, bool prefix,
                 struct dl_tokens *out)
{
    if (t->bpe)
        return eng_bpe_tokenize(t, m, text, n, out);
    if (!prefix)
        return eng_spm_tokenize(t, m, text, n, out);
    char *copy = dl_calloc(n + 1, 1);
    if (!copy)
        return DL_ENOMEM;
    copy[0] = ' ';
    memcpy(copy + 1, text, n);
    int err = eng_spm_tokenize(t, m, copy, n + 1, out);
    free(copy);
    return err;
}

int dl_tokenize(const dl_tokenizer *tok, const char *text, size_t n, unsigned flags, struct dl_tokens *out)
{
    if (n > MAX_TEXT)
        return dl_fail(DL_ELIMIT, "text: %zu bytes are more than %d, give it in parts", n, MAX_TEXT);
    bool control = flags & DL_TOKENIZE_SPECIAL;
    struct eng_merger m = {0};
    int err = DL_OK;
    if (out->most) {
        const size_t least = out->len + eng_vocab_least(tok, text, n);
        out->least = DL_MAX(out->least, least);
        if (least > out->most)
            return DL_ELIMIT;
    }
    if ((flags & DL_TOKENIZE_BOS) && tok->info.add_bos)
        err = dl_tokens_add(out, tok->info.bos);
    size_t start = 0; /* of the plain text that is being gathered */
    bool prefix = tok->info.add_space_prefix;
    for (size_t i = 0; i < n && !err;) {
        int32_t id = eng_vocab_special_at(tok, text + i, n - i, control);
        if (id < 0) {
            i++;
            continue;
        }
        if (i > start)
            err = plain(tok, &m, text + start, i - start, prefix, out);
        if (!err)
            err = dl_tokens_add(out, id);
        i = start = i + tok->tokens[id].n;
        prefix = tok->info.add_space_prefix;
    }
    if (!err && start < n)
        err = plain(tok, &m, text + start, n - start, prefix, out);
    eng_merger_finish(&m);
    return err;
}
