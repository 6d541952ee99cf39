/* SPDX-License-Identifier: MIT
 *
 * cli/chat.c: the interactive conversation: messages in, answers out, a few commands. The conversation is kept as text; the
 * session keeps the KV cache of whatever part of its tokens is unchanged.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

struct chat {
    const struct cli_opts *o;
    enum dl_chat_kind kind;
    struct cli_gen *g;
    struct dl_chat_msg *msgs; /* contents owned */
    size_t n, cap;
    struct dl_sampler fresh; /* as it was before the first token */
    bool answered;
};

static int add(struct chat *c, const char *role, const char *content)
{
    void *v = c->msgs;
    int err = dl_grow(&v, &c->cap, c->n + 1, sizeof *c->msgs);
    c->msgs = v;
    if (!err)
        c->msgs[c->n++] = (struct dl_chat_msg){role, dl_xstrdup(content)};
    return err;
}

static void cut(struct chat *c, size_t n)
{
    while (c->n > n)
        free((void *)(uintptr_t)c->msgs[--c->n].content);
}

static int reset(struct chat *c)
{
    cut(c, 0);
    dl_session_truncate(c->g->session, 0);
    return c->o->system ? add(c, "system", c->o->system) : DL_OK;
}

static void help(bool base)
{
    fprintf(stderr,
            "%s\n"
            "  /reset   forget the conversation\n"
            "  /stats   context, memory and speed\n"
            "  /help    this text\n"
            "  /quit    leave (also Ctrl-D)\n"
            "Ctrl-C stops the answer. A line that ends in \\ goes on in the next one; so do lines between \"\"\" and "
            "\"\"\".\n",
            base ? "This is a base model: it continues the text that you type." : "Type a message; the model answers.");
}

static void stats(const struct chat *c)
{
    const struct dl_engine_info *info = &c->g->e->info;
    char kv[32], weights[32], act[32];
    fprintf(stderr, "context: %u of %u tokens, %zu messages\nmemory: weights %s, KV cache %s, activations %s\n",
            dl_session_len(c->g->session), info->ctx, c->n, cli_size(weights, info->weight_bytes),
            cli_size(kv, info->kv_bytes), cli_size(act, info->act_bytes));
    if (c->answered)
        cli_gen_summary(c->g);
}

/* What one answer is made of; the message is already in the list. */
static int answer(struct chat *c, const struct dl_str *text)
{
    struct dl_tokens prompt = {0};
    const dl_tokenizer *tok = c->g->e->tok;
    int err = c->kind == DL_CHAT_NONE
                  ? dl_tokenize(tok, text->v, text->len, DL_TOKENIZE_BOS | DL_TOKENIZE_SPECIAL, &prompt)
                  : dl_chat_tokens(tok, c->kind, c->msgs, c->n, true, &prompt);
    bool echo = c->kind == DL_CHAT_NONE && c->g->show == CLI_SHOW_TEXT;
    c->g->at_start = c->kind != DL_CHAT_NONE;
    if (!err && prompt.len > c->g->e->info.ctx)
        err = dl_fail(DL_ELIMIT,
                      "context: the conversation has %zu tokens, the context %u; /reset begins a new one, "
                      "--ctx N makes room",
                      prompt.len, c->g->e->info.ctx);
    if (!err && echo)
        err = cli_out(text->v, text->len);
    if (!err && prompt.len)
        err = cli_generate(c->g, prompt.v, prompt.len);
    if (!err)
        err = cli_out("\n", 1);
    if (!err)
        err = cli_out_flush();
    dl_tokens_finish(&prompt);
    return err;
}

/* A message. Failures of one answer (a context that is full, a GPU that is lost, a cluster without nodes enough) do not end the chat. */
static int message(struct chat *c, const struct dl_str *text)
{
    size_t before = c->n;
    int err = add(c, "user", text->v);
    if (err)
        return err;
    err = answer(c, text);
    if (err == DL_ELIMIT || err == DL_EINVAL || (err == DL_EPEER && c->g->e->cluster)) {
        cut(c, before);
        return DL_OK;
    }
    if (err == DL_EDEVICE || err == DL_ENOMEM) {
        cut(c, before);
        dl_session_destroy(&c->g->session);
        err = cli_fall_back(c->o, c->g->e);
        return err ? err : dl_session_create(c->g->e->engine, &c->g->session);
    }
    if (err)
        return err;
    c->answered = true;
    if (c->kind == DL_CHAT_NONE) { /* every text stands alone */
        cut(c, before);
        return DL_OK;
    }
    return add(c, "assistant", c->g->text.v ? c->g->text.v : "");
}

/* 1: leave. A slash alone does not make a command: "/etc/fstab, what is it?" is a message. */
static int command(struct chat *c, const char *text, bool *taken)
{
    size_t n = *text == '/' ? 1 + strspn(text + 1, "abcdefghijklmnopqrstuvwxyz") : 0;
    *taken = n > 1 && !text[n];
    if (!*taken)
        return DL_OK;
    if (!strcmp(text, "/quit") || !strcmp(text, "/exit"))
        return 1;
    if (!strcmp(text, "/reset")) {
        fputs("The conversation is forgotten.\n", stderr);
        *c->g->sampler = c->fresh;
        return reset(c);
    }
    if (!strcmp(text, "/stats"))
        stats(c);
    else if (!strcmp(text, "/help"))
        help(c->kind == DL_CHAT_NONE);
    else
        fprintf(stderr, "%s is no command; /help lists them\n", text);
    return DL_OK;
}

static int converse(struct chat *c, cli_prompt *prompt)
{
    struct dl_str text = {0};
    int err = reset(c);
    unsigned interrupts = 0;
    while (!err) {
        int what = cli_prompt_read(prompt, &text);
        if (what < 0)
            err = what;
        if (what == CLI_LINE_INTERRUPT) {
            fputs(interrupts++ ? "\n" : "\nCtrl-C again or /quit leaves\n", stderr);
            if (interrupts == 2)
                break;
            continue;
        }
        interrupts = 0;
        if (what == CLI_LINE_END) {
            fputs("\n", stderr);
            break;
        }
        bool taken = false;
        if (!err)
            err = command(c, text.v, &taken);
        if (!err && !taken && text.v[strspn(text.v, " \t\n")])
            err = message(c, &text);
    }
    dl_str_finish(&text);
    return err < 0 ? err : DL_OK;
}

int cli_chat(const struct cli_opts *o, enum dl_chat_kind kind, struct cli_gen *g)
{
    struct chat c = {.o = o, .kind = kind, .g = g, .fresh = *g->sampler};
    cli_prompt *prompt = cli_prompt_open();
    if (!prompt)
        return DL_EUNSUP;
    if (!o->quiet) {
        fprintf(stderr, "%s, context %u tokens%s%s. /help shows the commands.\n", dl_model_name(g->e->model),
                g->e->info.ctx, kind == DL_CHAT_NONE ? "" : ", chat template ",
                kind == DL_CHAT_NONE ? ", a base model: it continues your text" : dl_chat_name(kind));
    }
    int err = converse(&c, prompt);
    cut(&c, 0);
    free(c.msgs);
    cli_prompt_close(&prompt);
    return err;
}
