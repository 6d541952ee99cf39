/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/fuzz_vocab.h: what fuzz_tokenizer.c and fuzz_vocab_gguf.c do with a file: open it and use what opened.
 */
#ifndef FUZZ_VOCAB_H
#define FUZZ_VOCAB_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dl/text.h"

static inline void fuzz_quiet(void *ud, enum dl_log_level level, const char *line)
{
    (void)line;
    *(unsigned *)ud += level == DL_LOG_ERROR;
}

static inline void fuzz_check(bool ok)
{
    if (!ok)
        abort();
}

static inline void fuzz_use(const dl_tokenizer *tok, const char *text, size_t n, unsigned flags)
{
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    struct dl_tokens ids = {0};
    struct dl_str whole = {0}, streamed = {0};
    struct dl_decoder d;
    fuzz_check(dl_tokenize(tok, text, n, flags, &ids) == DL_OK);
    dl_decoder_init(&d, tok, true);
    for (size_t i = 0; i < ids.len; i++) {
        fuzz_check(ids.v[i] >= 0 && (uint32_t)ids.v[i] < info->vocab);
        fuzz_check(dl_decoder_push(&d, ids.v[i], &streamed) == DL_OK);
        size_t k;
        dl_token_text(tok, ids.v[i], &k);
        dl_token_is_eog(tok, ids.v[i]);
    }
    fuzz_check(dl_decoder_flush(&d, &streamed) == DL_OK);
    struct dl_tokens fewer = {.most = ids.len > 1 ? ids.len - 1 : 1};
    int err = dl_tokenize(tok, text, n, flags, &fewer);
    fuzz_check(ids.len > 1 ? err == DL_ELIMIT && fewer.least == ids.len && fewer.len <= fewer.most : err == DL_OK);
    dl_tokens_finish(&fewer);
    fuzz_check(dl_detokenize(tok, ids.v, ids.len, &whole) == DL_OK);
    dl_str_finish(&whole);
    dl_str_finish(&streamed);
    dl_tokens_finish(&ids);
}

static inline void fuzz_vocab(const uint8_t *data, size_t size)
{
    unsigned errors = 0;
    dl_log_set(fuzz_quiet, &errors, DL_LOG_ERROR);
    dl_tokenizer *tok = NULL;
    int err = dl_tokenizer_open_mem(data, size, "fuzz", &tok);
    fuzz_check(err ? !tok && errors == 1 : tok && errors == 0);
    if (tok) {
        const char *tail = (const char *)data + (size > 512 ? size - 512 : 0);
        size_t n = size > 512 ? 512 : size;
        fuzz_use(tok, tail, n, 0);
        fuzz_use(tok, tail, n, DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL);
        fuzz_use(tok, "Hello  <s>don't\n\n 123\xf0\x9f\x98\x80\xff", 25, DL_TOKENIZE_SPECIAL);
        dl_token_by_text(tok, "<s>");
        dl_token_by_text(tok, dl_tokenizer_info(tok)->chat_template);
    }
    dl_tokenizer_close(&tok);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
}

#endif
