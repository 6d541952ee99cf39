/* SPDX-License-Identifier: MIT
 *
 * engine/text/chat_tokens.c: conversations as tokens. Marks are looked up by name, never parsed out of text: whatever a message
 * says stays text. A mark that a vocabulary does not know is text as well, tokenized together with its neighbours.
 */
#include "chat_render.h"

#include <string.h>

static int token_named(const dl_tokenizer *tok, const char *name, size_t n, int32_t *id)
{
    struct dl_str s = {0};
    int err = dl_str_add(&s, name, n);
    if (!err)
        *id = dl_token_by_text(tok, s.v);
    dl_str_finish(&s);
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

/* Names of the format's marks that the tokenizer finds in plain text as well: some files (DeepSeek's) have them as
 * user-defined instead of control tokens. Each ends with NUL. */
static int add_name(const dl_tokenizer *tok, int32_t id, struct dl_str *names)
{
    size_t n;
    const char *name = dl_token_text(tok, id, &n);
    if (id == DL_TOK_NONE || !n || memchr(name, 0, n) || dl_token_is_control(tok, id))
        return DL_OK;
    int err = dl_str_add(names, name, n);
    return err ? err : dl_str_add(names, "", 1);
}

static int forgeable(const dl_tokenizer *tok, enum dl_chat_kind kind, const struct eng_chat_style *style,
                     struct dl_str *names)
{
    static const struct dl_chat_msg all[] = {{"system", "s"}, {"user", "u"}, {"assistant", "a"}, {"user", "u"}};
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    struct eng_chat_parts parts = {0};
    int err = eng_chat_render(kind, style, all, DL_COUNT_OF(all), true, &parts);
    for (size_t i = 0; !err && i < parts.len; i++) {
        int32_t id;
        if (parts.v[i].what != ENG_CHAT_MARK)
            continue;
        err = token_named(tok, parts.text.v + parts.v[i].at, parts.v[i].n, &id);
        if (!err)
            err = add_name(tok, id, names);
    }
    eng_chat_parts_finish(&parts);
    if (!err)
        err = add_name(tok, info->bos, names);
    return err ? err : add_name(tok, info->eos, names);
}

/* Text goes to the tokenizer in one piece, but for a forged mark: that is cut after its first byte, where no mark is left. */
static int add_text(const dl_tokenizer *tok, const struct dl_str *names, const char *text, size_t n,
                    struct dl_tokens *out)
{
    size_t start = 0;
    int err = DL_OK;
    for (size_t i = 0; names->len && i < n && !err; i++)
        for (const char *name = names->v; name < names->v + names->len; name += strlen(name) + 1) {
            size_t len = strlen(name);
            if (len > n - i || memcmp(text + i, name, len) != 0)
                continue;
            err = dl_tokenize(tok, text + start, i + 1 - start, 0, out);
            start = i + 1;
            break;
        }
    if (!err && start < n)
        err = dl_tokenize(tok, text + start, n - start, 0, out);
    return err;
}

static int add_parts(const dl_tokenizer *tok, const struct eng_chat_parts *parts, const struct dl_str *names,
                     int32_t bos, struct dl_tokens *out)
{
    const char *text = parts->text.v;
    size_t at = 0, end = 0; /* text that waits for its neighbours; parts lie one after the other */
    int err = bos != DL_TOK_NONE ? dl_tokens_add(out, bos) : DL_OK;
    for (size_t i = 0; !err && i < parts->len; i++) {
        const struct eng_chat_part *part = &parts->v[i];
        int32_t id = part->what == ENG_CHAT_BOS   ? bos
                     : part->what == ENG_CHAT_EOS ? dl_tokenizer_info(tok)->eos
                                                  : DL_TOK_NONE;
        if (part->what == ENG_CHAT_MARK)
            err = token_named(tok, text + part->at, part->n, &id);
        if (part->what == ENG_CHAT_PLAIN || (part->what == ENG_CHAT_MARK && id == DL_TOK_NONE)) {
            end = part->at + part->n;
            continue;
        }
        if (!err && end > at)
            err = add_text(tok, names, text + at, end - at, out);
        if (!err && id != DL_TOK_NONE)
            err = dl_tokens_add(out, id);
        at = end = part->at + part->n;
    }
    if (!err && end > at)
        err = add_text(tok, names, text + at, end - at, out);
    return err;
}

int dl_chat_tokens(const dl_tokenizer *tok, enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n,
                   bool add_answer, struct dl_tokens *out)
{
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    struct eng_chat_style style = style_of(tok, kind);
    struct eng_chat_parts parts = {0};
    struct dl_str names = {0};
    int err = eng_chat_render(kind, &style, msgs, n, add_answer, &parts);
    if (!err)
        err = forgeable(tok, kind, &style, &names);
    if (!err)
        err = add_parts(tok, &parts, &names, info->add_bos ? info->bos : DL_TOK_NONE, out);
    dl_str_finish(&names);
    eng_chat_parts_finish(&parts);
    return err;
}
