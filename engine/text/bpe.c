/* SPDX-License-Identifier: MIT
 *
 * engine/text/bpe.c: byte-level BPE: text is cut into pieces by the model's pattern (pretok.c); the bytes of a piece merge by rank.
 */
#include "vocab.h"
#include "pretok.h"

struct run {
    const dl_tokenizer *t;
    struct eng_merger *m;
    const char *text;
    struct dl_tokens *out;
};

static int piece(void *ud, size_t at, size_t n)
{
    struct run *r = ud;
    const dl_tokenizer *t = r->t;
    const char *text = r->text + at;
    if (t->whole_first) {
        int32_t id = eng_vocab_find(t, text, n);
        if (id >= 0)
            return dl_tokens_add(r->out, id);
    }
    r->m->n_symbols = 0;
    int err = DL_OK;
    for (size_t i = 0; i < n && !err; i++)
        err = eng_merger_add(r->m, (uint32_t)i, 1, t->byte_id[(uint8_t)text[i]]);
    if (!err)
        err = eng_merger_run(r->m, t, text);
    for (int32_t i = 0; i >= 0 && !err; i = r->m->symbols[i].next) {
        const struct eng_symbol *s = &r->m->symbols[i];
        err = s->id >= 0 ? dl_tokens_add(r->out, s->id) : eng_emit_byte(t, (uint8_t)text[s->at], r->out);
    }
    return err;
}

int eng_bpe_tokenize(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, struct dl_tokens *out)
{
    struct run r = {t, m, text, out};
    return eng_pretok_split(t->pretok, text, n, piece, &r);
}
