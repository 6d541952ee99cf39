/* SPDX-License-Identifier: MIT
 *
 * engine/text/chat_detect.c: names of the chat formats, which of them a model's template is, and what ends an answer. A
 * template is a Jinja program; it is not run. Its marks are rare enough to tell the families apart.
 */
#include "dl/text.h"

#include <string.h>

#define X(name, text) text,
static const char *const names[] = {DL_CHAT_MAP(X)};
#undef X
_Static_assert(DL_COUNT_OF(names) == DL_CHAT_COUNT, "a name per format");

const char *dl_chat_name(enum dl_chat_kind kind)
{
    return (unsigned)kind < DL_CHAT_COUNT ? names[kind] : "?";
}

enum dl_chat_kind dl_chat_by_name(const char *name)
{
    int i = 0;
    while (i < DL_CHAT_COUNT && strcmp(names[i], name) != 0)
        i++;
    return (enum dl_chat_kind)i;
}

/* Bytes with a length: a template out of a file may hold NULs. */
struct text {
    const char *v;
    size_t n;
};

/* What begins at the first `what`; n == 0 where it does not occur. */
static struct text from(struct text t, const char *what)
{
    size_t n = strlen(what);
    while (t.n >= n) {
        const char *p = memchr(t.v, what[0], t.n - n + 1);
        if (!p)
            break;
        t.n -= (size_t)(p - t.v);
        t.v = p;
        if (memcmp(p, what, n) == 0)
            return t;
        t.v++;
        t.n--;
    }
    return (struct text){0};
}

static bool has(struct text t, const char *what)
{
    return from(t, what).n > 0;
}

/* Many formats say <|user|>. Zephyr's is the one that ends the user's turn with EOS: in the same {{ }} as the mark. */
static bool is_zephyr(struct text t)
{
    if (!has(t, "<|assistant|>"))
        return false;
    struct text turn = from(t, "<|user|>"), end = from(turn, "}}");
    turn.n -= end.n;
    return end.n && (has(turn, "eos_token") || has(turn, "</s>") || has(turn, "<|endoftext|>"));
}

enum dl_chat_kind dl_chat_detect(const char *template_text, size_t n)
{
    struct text t = {template_text, n};
    if (has(t, "<|start_header_id|>") && has(t, "<|end_header_id|>"))
        return DL_CHAT_LLAMA3;
    if (has(t, "<|im_start|>"))
        return has(t, "<|im_sep|>") ? DL_CHAT_PHI4 : DL_CHAT_CHATML;
    if (has(t, "<start_of_turn>"))
        return DL_CHAT_GEMMA;
    if (has(t, "<｜User｜>") && has(t, "<｜Assistant｜>"))
        return DL_CHAT_DEEPSEEK3;
    if (has(t, "[INST]"))
        return has(t, "<<SYS>>") ? DL_CHAT_LLAMA2 : DL_CHAT_MISTRAL;
    if (has(t, "<|user|>") && has(t, "<|end|>"))
        return DL_CHAT_PHI3;
    if (is_zephyr(t))
        return DL_CHAT_ZEPHYR;
    if (has(t, "User: ") && has(t, "Assistant:") && (has(t, "eos_token") || has(t, "<｜end▁of▁sentence｜>")))
        return DL_CHAT_DEEPSEEK;
    return DL_CHAT_NONE;
}

/* "</s>" is in no list: as a token it is caught by its id, and as text it is HTML. */
static const char *const stops_none[] = {NULL};
static const char *const stops_inst[] = {"[INST]", NULL};
static const char *const stops_llama3[] = {"<|eot_id|>", "<|start_header_id|>", NULL};
static const char *const stops_im[] = {"<|im_end|>", "<|im_start|>", NULL};
static const char *const stops_deepseek[] = {"\n\nUser:", "<｜end▁of▁sentence｜>", NULL};
static const char *const stops_deepseek3[] = {"<｜end▁of▁sentence｜>", "<｜User｜>", NULL};
static const char *const stops_gemma[] = {"<end_of_turn>", "<start_of_turn>", NULL};
static const char *const stops_phi3[] = {"<|end|>", "<|user|>", "<|assistant|>", NULL};
static const char *const stops_zephyr[] = {"<|user|>", "<|system|>", "<|assistant|>", NULL};

const char *const *dl_chat_stops(enum dl_chat_kind kind)
{
    switch (kind) {
    case DL_CHAT_LLAMA2:
    case DL_CHAT_MISTRAL:
        return stops_inst;
    case DL_CHAT_LLAMA3:
        return stops_llama3;
    case DL_CHAT_CHATML:
    case DL_CHAT_PHI4:
        return stops_im;
    case DL_CHAT_DEEPSEEK:
        return stops_deepseek;
    case DL_CHAT_DEEPSEEK3:
        return stops_deepseek3;
    case DL_CHAT_GEMMA:
        return stops_gemma;
    case DL_CHAT_PHI3:
        return stops_phi3;
    case DL_CHAT_ZEPHYR:
        return stops_zephyr;
    case DL_CHAT_NONE:
    case DL_CHAT_COUNT:
        break;
    }
    return stops_none;
}
