/* SPDX-License-Identifier: MIT
 *
 * engine/text/chat.c: conversations as text, in the format that each family of models was trained on. Written after what the
 * models' own templates produce, without the parts that need a clock or tools (Llama 3.1's date) and without default
 * system prompts. Where templates disagree about the system message of a format that has no place for one, it goes to the first
 * user message: there it stays put, and the cached tokens of a conversation stay valid.
 */
#include "chat_render.h"

#include <stdlib.h>
#include <string.h>

void eng_chat_parts_finish(struct eng_chat_parts *parts)
{
    free(parts->v);
    dl_str_finish(&parts->text);
    *parts = (struct eng_chat_parts){0};
}

/* The writer: its first error sticks, so that the formats below read as lists of what they say. */
struct render {
    struct eng_chat_parts *out;
    const struct eng_chat_style *style;
    const struct dl_chat_msg *msgs;
    size_t n;
    bool add_answer;
    int err;
};

static void add(struct render *r, enum eng_chat_what what, const char *text, size_t n)
{
    struct eng_chat_parts *o = r->out;
    if (r->err || !n)
        return;
    size_t at = o->text.len;
    r->err = dl_str_add(&o->text, text, n);
    if (r->err)
        return;
    if (what == ENG_CHAT_PLAIN && o->len && o->v[o->len - 1].what == ENG_CHAT_PLAIN) {
        o->v[o->len - 1].n += n;
        return;
    }
    void *v = o->v;
    r->err = dl_grow(&v, &o->cap, o->len + 1, sizeof *o->v);
    o->v = v;
    if (!r->err)
        o->v[o->len++] = (struct eng_chat_part){what, at, n};
}

static void plain(struct render *r, const char *text)
{
    add(r, ENG_CHAT_PLAIN, text, strlen(text));
}
static void mark(struct render *r, const char *name)
{
    add(r, ENG_CHAT_MARK, name, strlen(name));
}
static void eos(struct render *r, const char *shown)
{
    add(r, ENG_CHAT_EOS, shown, strlen(shown));
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void trimmed(struct render *r, const char *text)
{
    size_t n = strlen(text);
    while (n && is_space(text[n - 1]))
        n--;
    while (n && is_space(*text))
        text++, n--;
    add(r, ENG_CHAT_PLAIN, text, n);
}

static bool is(const struct dl_chat_msg *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

/* What a model thought before it answered is not part of the conversation that it sees next. */
static const char *without_thoughts(const char *answer)
{
    static const char end[] = "</think>";
    for (const char *p; (p = strstr(answer, end));)
        answer = p + sizeof end - 1;
    return answer;
}

/* -------------------------------------------------------------------- formats where a turn stands for itself */

struct turns {
    const char *open;      /* mark before the role; NULL: the role is the mark itself, <|role|> */
    const char *after;     /* mark after the role, or NULL */
    const char *head;      /* plain text before the content */
    const char *close;     /* mark after the content; NULL: EOS */
    const char *tail;      /* plain text after that */
    const char *assistant; /* what the assistant's role is called */
    bool trim;
};

static const struct turns turns_of[DL_CHAT_COUNT] = {
    [DL_CHAT_LLAMA3] = {"<|start_header_id|>", "<|end_header_id|>", "\n\n", "<|eot_id|>", "", "assistant", true},
    [DL_CHAT_CHATML] = {"<|im_start|>", NULL, "\n", "<|im_end|>", "\n", "assistant", false},
    [DL_CHAT_PHI4] = {"<|im_start|>", "<|im_sep|>", "", "<|im_end|>", "", "assistant", false},
    [DL_CHAT_GEMMA] = {"<start_of_turn>", NULL, "\n", "<end_of_turn>", "\n", "model", true},
    [DL_CHAT_PHI3] = {NULL, NULL, "\n", "<|end|>", "\n", "assistant", false},
    [DL_CHAT_ZEPHYR] = {NULL, NULL, "\n", NULL, "\n", "assistant", false},
};

static void turn_head(struct render *r, const struct turns *t, const char *role)
{
    if (strcmp(role, "assistant") == 0)
        role = t->assistant;
    if (t->open) {
        mark(r, t->open);
        plain(r, role);
        if (t->after)
            mark(r, t->after);
    } else {
        char name[32] = "<|";
        strcat(strcat(name, role), "|>"); /* one of three roles */
        mark(r, name);
    }
    if (!r->style->marks_eat_spaces)
        plain(r, t->head);
}

static void render_turns(struct render *r, enum dl_chat_kind kind)
{
    const struct turns *t = &turns_of[kind];
    size_t first = kind == DL_CHAT_GEMMA && is(&r->msgs[0], "system"), last_user = 0;
    for (size_t i = 0; i < r->n; i++)
        if (is(&r->msgs[i], "user"))
            last_user = i;
    for (size_t i = first; i < r->n; i++) {
        const struct dl_chat_msg *m = &r->msgs[i];
        const char *text = m->content;
        turn_head(r, t, m->role);
        if (i == 1 && first == 1) {
            plain(r, r->msgs[0].content);
            plain(r, "\n\n");
        }
        if (kind == DL_CHAT_CHATML && i < last_user && is(m, "assistant") && strstr(text, "</think>")) {
            text = without_thoughts(text);
            text += strspn(text, "\n");
        }
        if (t->trim)
            trimmed(r, text);
        else
            plain(r, text);
        if (t->close)
            mark(r, t->close);
        else
            eos(r, "</s>");
        if (!r->style->marks_eat_spaces)
            plain(r, t->tail);
    }
    if (r->add_answer)
        turn_head(r, t, "assistant");
}

/* ------------------------------------------------------------------------------------------ [INST] formats */

static void render_llama2(struct render *r)
{
    size_t first = is(&r->msgs[0], "system");
    for (size_t i = first; i < r->n; i++) {
        const struct dl_chat_msg *m = &r->msgs[i];
        if (is(m, "assistant")) {
            plain(r, " ");
            trimmed(r, m->content);
            plain(r, " ");
            eos(r, "</s>");
            continue;
        }
        if (i > first)
            add(r, ENG_CHAT_BOS, "<s>", 3);
        mark(r, "[INST]");
        plain(r, " ");
        if (first && i == 1) {
            /* The template strips the two as one text: only what is at its very end goes. */
            plain(r, "<<SYS>>\n");
            plain(r, r->msgs[0].content);
            plain(r, "\n<</SYS>>\n\n");
            size_t n = strlen(m->content);
            while (n && is_space(m->content[n - 1]))
                n--;
            add(r, ENG_CHAT_PLAIN, m->content, n);
        } else {
            trimmed(r, m->content);
        }
        plain(r, " ");
        mark(r, "[/INST]");
    }
}

/* Three spacings are in use: "[INST] u [/INST] a</s>" while [INST] is text (v1), "[INST] u[/INST] a</s>" with control tokens in a
 * SentencePiece vocabulary (v3), and "[INST]u[/INST]a</s>" with control tokens in a byte-level one (Tekken). */
static void render_mistral(struct render *r)
{
    size_t first = is(&r->msgs[0], "system");
    const char *space = r->style->inst_no_space ? "" : " ";
    if (first && r->style->system_is_token) {
        mark(r, "[SYSTEM_PROMPT]");
        plain(r, space);
        plain(r, r->msgs[0].content);
        mark(r, "[/SYSTEM_PROMPT]");
    }
    for (size_t i = first; i < r->n; i++) {
        const struct dl_chat_msg *m = &r->msgs[i];
        if (is(m, "assistant")) {
            plain(r, space);
            trimmed(r, m->content);
            eos(r, "</s>");
            continue;
        }
        mark(r, "[INST]");
        plain(r, space);
        if (first && i == 1 && !r->style->system_is_token) {
            plain(r, r->msgs[0].content);
            plain(r, "\n\n");
        }
        plain(r, m->content);
        if (!r->style->inst_is_token)
            plain(r, " ");
        mark(r, "[/INST]");
    }
}

/* ------------------------------------------------------------------------------------------------ DeepSeek */

static const char end_of_sentence[] = "<｜end▁of▁sentence｜>";

static void render_deepseek(struct render *r)
{
    for (size_t i = 0; i < r->n; i++) {
        const struct dl_chat_msg *m = &r->msgs[i];
        if (is(m, "assistant")) {
            plain(r, "Assistant: ");
            trimmed(r, m->content);
            eos(r, end_of_sentence);
            continue;
        }
        plain(r, is(m, "user") ? "User: " : "");
        plain(r, m->content);
        plain(r, "\n\n");
    }
    if (r->add_answer)
        plain(r, "Assistant:");
}

static void render_deepseek3(struct render *r)
{
    bool more = false;
    for (size_t i = 0; i < r->n; i++)
        if (is(&r->msgs[i], "system")) {
            plain(r, more ? "\n\n" : "");
            plain(r, r->msgs[i].content);
            more = true;
        }
    for (size_t i = 0; i < r->n; i++) {
        const struct dl_chat_msg *m = &r->msgs[i];
        if (is(m, "user")) {
            mark(r, "<｜User｜>");
            plain(r, m->content);
        } else if (is(m, "assistant")) {
            mark(r, "<｜Assistant｜>");
            plain(r, without_thoughts(m->content));
            eos(r, end_of_sentence);
        }
    }
    if (r->add_answer)
        mark(r, "<｜Assistant｜>");
}

/* ------------------------------------------------------------------------------------------------- front */

static int check_roles(enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n, bool add_answer)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        if (!msgs[i].role || !msgs[i].content)
            return dl_fail(DL_EINVAL, "chat: message %zu has no %s", i + 1, msgs[i].role ? "content" : "role");
        for (size_t k = 0; k < DL_COUNT_OF(roles); k++)
            known |= is(&msgs[i], roles[k]);
        if (!known)
            return dl_fail(DL_EINVAL, "chat: message %zu has role \"%.40s\": use system, user or assistant", i + 1,
                           msgs[i].role);
    }
    bool inst = kind == DL_CHAT_LLAMA2 || kind == DL_CHAT_MISTRAL;
    if (!inst && kind != DL_CHAT_GEMMA)
        return DL_OK;
    /* These know a system message only as part of the first user message; [INST] formats also only a strict exchange. */
    size_t first = is(&msgs[0], "system");
    for (size_t i = first; i < n; i++) {
        const char *want = inst && (i - first) % 2 ? "assistant" : "user";
        if (is(&msgs[i], want) || (!inst && i > first && is(&msgs[i], "assistant")))
            continue;
        return dl_fail(DL_EINVAL, "chat: message %zu is of role \"%s\", where the %s format can only have \"%s\"",
                       i + 1, msgs[i].role, dl_chat_name(kind), want);
    }
    if (first == n)
        return dl_fail(DL_EINVAL, "chat: the %s format needs a user message after the system message",
                       dl_chat_name(kind));
    if (inst && add_answer && is(&msgs[n - 1], "assistant"))
        return dl_fail(DL_EINVAL, "chat: the %s format needs a user message before the next answer",
                       dl_chat_name(kind));
    return DL_OK;
}

int eng_chat_render(enum dl_chat_kind kind, const struct eng_chat_style *style, const struct dl_chat_msg *msgs,
                    size_t n, bool add_answer, struct eng_chat_parts *out)
{
    if ((unsigned)kind >= DL_CHAT_COUNT || kind == DL_CHAT_NONE)
        return dl_fail(DL_EINVAL, "chat: the model has no chat template that is known here: name one of the formats "
                                  "(--chat-template) or use it without (--raw)");
    if (!n)
        return dl_fail(DL_EINVAL, "chat: there are no messages");
    int err = check_roles(kind, msgs, n, add_answer);
    if (err)
        return err;
    struct render r = {.out = out, .style = style, .msgs = msgs, .n = n, .add_answer = add_answer};
    switch (kind) {
    case DL_CHAT_LLAMA2:
        render_llama2(&r);
        break;
    case DL_CHAT_MISTRAL:
        render_mistral(&r);
        break;
    case DL_CHAT_DEEPSEEK:
        render_deepseek(&r);
        break;
    case DL_CHAT_DEEPSEEK3:
        render_deepseek3(&r);
        break;
    default:
        render_turns(&r, kind);
        break;
    }
    return r.err;
}

int dl_chat_text(enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n, bool add_answer, struct dl_str *out)
{
    static const struct eng_chat_style shown;
    struct eng_chat_parts parts = {0};
    int err = eng_chat_render(kind, &shown, msgs, n, add_answer, &parts);
    if (!err)
        err = dl_str_add(out, parts.text.len ? parts.text.v : "", parts.text.len);
    eng_chat_parts_finish(&parts);
    return err;
}
