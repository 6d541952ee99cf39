/* SPDX-License-Identifier: MIT
 *
 * engine/text/chat_tokens.c: conversations as tokens. Marks are looked up by name, never parsed out of text: whatever a message
 * says stays text. A mark that a vocabulary does not know is text as well, tokenized together with its neighbours.
 */
#include "chat_render.h"

#include <string.h>

/* The token of a mark, DL_TOK_NONE for what is text. `name` is scratch. */
static int mark_token(const dl_tokenizer *tok, const struct eng_chat_parts *parts, const struct eng_chat_part *part,
                      struct dl_str *name, int32_t *id)
{
    *id = DL_TOK_NONE;
    if (part->what != ENG_CHAT_MARK)
        return DL_OK;
    name->len = 0;
    int err = dl_str_add(name, parts->text.v + part->at, part->n);
    if (!err)
        *id = dl_token_by_text(tok, name->v);
    return err;
}

static struct eng_chat_style style_of(const dl_tokenizer *tok, enum dl_chat_kind kind)
{
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    bool spm = strcmp(info->kind, "spm") == 0;
    bool inst = kind == DL_CHAT_MISTRAL && dl_token_by_text(tok, "[INST]") != DL_TOK_NONE;
    return (struct eng_chat_style){
        .inst_is_token = inst,
        /* SentencePiece puts the space there by itself, if it does so at all. */
        .inst_no_space = inst && (!spm || info->add_space_prefix),
        .system_is_token = inst && dl_token_by_text(tok, "[SYSTEM_PROMPT]") != DL_TOK_NONE,
        .marks_eat_spaces = spm && kind == DL_CHAT_PHI3,
    };
}

int dl_chat_tokens(const dl_tokenizer *tok, enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n,
                   bool add_answer, struct dl_tokens *out)
{
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    struct eng_chat_style style = style_of(tok, kind);
    struct eng_chat_parts parts = {0};
    struct dl_str name = {0};
    size_t at = 0, end = 0; /* text that waits for its neighbours; parts lie one after the other */
    int32_t bos = info->add_bos ? info->bos : DL_TOK_NONE;
    int err = eng_chat_render(kind, &style, msgs, n, add_answer, &parts);
    if (!err && bos != DL_TOK_NONE)
        err = dl_tokens_add(out, bos);
    for (size_t i = 0; !err && i < parts.len; i++) {
        const struct eng_chat_part *part = &parts.v[i];
        int32_t id;
        err = mark_token(tok, &parts, part, &name, &id);
        if (part->what == ENG_CHAT_BOS)
            id = bos;
        else if (part->what == ENG_CHAT_EOS)
            id = info->eos;
        bool is_text = part->what == ENG_CHAT_PLAIN || (part->what == ENG_CHAT_MARK && id == DL_TOK_NONE);
        if (is_text) {
            end = part->at + part->n;
            continue;
        }
        if (!err && end > at)
            err = dl_tokenize(tok, parts.text.v + at, end - at, 0, out);
        if (!err && id != DL_TOK_NONE)
            err = dl_tokens_add(out, id);
        at = end = part->at + part->n;
    }
    if (!err && end > at)
        err = dl_tokenize(tok, parts.text.v + at, end - at, 0, out);
    dl_str_finish(&name);
    eng_chat_parts_finish(&parts);
    return err;
}
