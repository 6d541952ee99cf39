/* SPDX-License-Identifier: MIT
 *
 * cli/server/reply.c: answers in the shapes that OpenAI's clients read: whole, or as server-sent events.
 */
#include "server.h"

#include <stdlib.h>
#include <string.h>

static json_t *text_json(const char *v, size_t n)
{
    return json_stringn(v ? v : "", n); /* decoders give whole characters only */
}

/* A token's bytes as text, for people: what is no character becomes U+FFFD. */
static json_t *token_json(const struct cli_served *served, int32_t id)
{
    struct dl_decoder d;
    struct dl_str s = {0};
    dl_decoder_init(&d, served->tok, false);
    json_t *v = dl_decoder_push(&d, id, &s) || dl_decoder_flush(&d, &s) ? NULL : text_json(s.v, s.len);
    dl_str_finish(&s);
    return v;
}

static json_t *bytes_json(const struct cli_served *served, int32_t id)
{
    size_t n;
    const char *s = dl_token_bytes(served->tok, id, &n);
    json_t *v = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(v, json_integer((unsigned char)s[i]));
    return v;
}

static json_t *one_logprob(const struct cli_served *served, int32_t id, float logprob)
{
    return json_pack("{s:o,s:f,s:o}", "token", token_json(served, id), "logprob", (double)logprob, "bytes",
                     bytes_json(served, id));
}

/* {"content": [...]}: the form of chats. */
static json_t *chat_logprobs(const struct cli_seq *s, const struct cli_served *served)
{
    json_t *list = json_array();
    for (size_t i = 0; i < s->logprobs.len; i++) {
        const struct cli_logprob *lp = &s->logprobs.v[i];
        json_t *top = json_array(), *entry = one_logprob(served, lp->id, lp->logprob);
        for (uint32_t k = 0; k < lp->n_top; k++)
            json_array_append_new(top, one_logprob(served, lp->top[k].id, lp->top[k].logprob));
        json_object_set_new(entry, "top_logprobs", top);
        json_array_append_new(list, entry);
    }
    return json_pack("{s:o,s:n}", "content", list, "refusal");
}

/* Lists side by side: the form of completions. Offsets count bytes of the text of this answer, an echoed prompt included. */
static json_t *text_logprobs(struct cli_seq *s, const struct cli_served *served)
{
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(), *offsets = json_array();
    for (size_t i = 0; i < s->logprobs.len; i++) {
        const struct cli_logprob *lp = &s->logprobs.v[i];
        json_t *top = json_object(), *token = token_json(served, lp->id);
        for (uint32_t k = 0; k < lp->n_top; k++) {
            json_t *name = token_json(served, lp->top[k].id);
            json_object_set_new(top, name ? json_string_value(name) : "", json_real((double)lp->top[k].logprob));
            json_decref(name);
        }
        json_array_append_new(offsets, json_integer((json_int_t)s->offset));
        s->offset += json_string_length(token);
        json_array_append_new(tokens, token);
        json_array_append_new(values, json_real((double)lp->logprob));
        json_array_append_new(tops, top);
    }
    return json_pack("{s:o,s:o,s:o,s:o}", "tokens", tokens, "token_logprobs", values, "top_logprobs", tops,
                     "text_offset", offsets);
}

static json_t *logprobs(struct cli_seq *s, const struct cli_served *served)
{
    if (!s->job->req.logprobs)
        return json_null();
    return s->job->req.endpoint == CLI_ENDPOINT_CHAT ? chat_logprobs(s, served) : text_logprobs(s, served);
}

static json_t *reason(const struct cli_seq *s)
{
    return s->state != CLI_SEQ_DONE ? json_null() : json_string(s->reason == CLI_REASON_STOP ? "stop" : "length");
}

static json_t *usage(const struct cli_job *job)
{
    uint64_t prompt = 0;
    for (uint32_t i = 0; i < job->n_prompts; i++)
        prompt += job->prompts[i].len;
    return json_pack("{s:I,s:I,s:I,s:{s:I}}", "prompt_tokens", (json_int_t)prompt, "completion_tokens",
                     (json_int_t)job->new_tokens, "total_tokens", (json_int_t)(prompt + job->new_tokens),
                     "prompt_tokens_details", "cached_tokens", (json_int_t)job->cached_tokens);
}

/* What all answers begin with. Takes choices over. */
static json_t *envelope(const struct cli_job *job, const struct cli_served *served, bool chunk, json_t *choices)
{
    char id[48];
    bool chat = job->req.endpoint == CLI_ENDPOINT_CHAT;
    snprintf(id, sizeof id, "%s-%08llx%08llx", chat ? "chatcmpl" : "cmpl", (unsigned long long)job->created,
             (unsigned long long)job->id);
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:o}", "id", id, "object",
                     !chat   ? "text_completion"
                     : chunk ? "chat.completion.chunk"
                             : "chat.completion",
                     "created", (json_int_t)job->created, "model", served->name, "system_fingerprint",
                     served->fingerprint, "choices", choices);
}

/* Takes the document over. */
static int write_json(json_t *all, const char *before, const char *after, struct dl_str *out)
{
    char *text = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    int err = text ? dl_str_addf(out, "%s", before) : dl_fail(DL_ENOMEM, "server: an answer does not fit the memory");
    if (!err)
        err = dl_str_addz(out, text);
    if (!err)
        err = dl_str_addz(out, after);
    free(text);
    json_decref(all);
    return err;
}

static int event(const struct cli_job *job, const struct cli_served *served, json_t *choice, struct dl_str *out)
{
    json_t *all = envelope(job, served, true, json_pack("[o]", choice));
    if (job->req.include_usage)
        json_object_set_new(all, "usage", json_null());
    return write_json(all, "data: ", "\n\n", out);
}

static json_t *chunk_choice(struct cli_seq *s, json_t *delta, json_t *finish, json_t *lp)
{
    return json_pack("{s:i,s:o,s:o,s:o}", "index", (int)s->index, "delta", delta, "logprobs", lp, "finish_reason",
                     finish);
}

int cli_reply_events(struct cli_job *job, struct cli_seq *s, const struct cli_served *served, struct dl_str *out)
{
    bool chat = job->req.endpoint == CLI_ENDPOINT_CHAT, done = s->state == CLI_SEQ_DONE;
    int err = DL_OK;
    if (chat && !s->greeted) {
        s->greeted = true;
        json_t *delta = json_pack("{s:s,s:s}", "role", "assistant", "content", "");
        err = event(job, served, chunk_choice(s, delta, json_null(), json_null()), out);
    }
    if (!err && (s->text.len || s->logprobs.len)) {
        json_t *text = text_json(s->text.v, s->text.len), *lp = logprobs(s, served);
        if (chat)
            err = event(job, served, chunk_choice(s, json_pack("{s:o}", "content", text), json_null(), lp), out);
        else
            err = event(
                job, served,
                json_pack("{s:i,s:o,s:o,s:n}", "index", (int)s->index, "text", text, "logprobs", lp, "finish_reason"),
                out);
        s->logprobs.len = 0; /* nobody asks for them again */
        s->text.len = 0;
    }
    if (!err && done && chat)
        err = event(job, served, chunk_choice(s, json_object(), reason(s), json_null()), out);
    else if (!err && done)
        err = event(
            job, served,
            json_pack("{s:i,s:s,s:n,s:o}", "index", (int)s->index, "text", "", "logprobs", "finish_reason", reason(s)),
            out);
    return err;
}

int cli_reply_end(struct cli_job *job, const struct cli_served *served, struct dl_str *out)
{
    int err = DL_OK;
    if (job->req.include_usage) {
        json_t *all = envelope(job, served, true, json_array());
        json_object_set_new(all, "usage", usage(job));
        err = write_json(all, "data: ", "\n\n", out);
    }
    return err ? err : dl_str_addz(out, "data: [DONE]\n\n");
}

int cli_reply_whole(struct cli_job *job, const struct cli_served *served, struct dl_str *out)
{
    json_t *choices = json_array();
    for (uint32_t i = 0; i < job->n_seqs; i++) {
        struct cli_seq *s = &job->seqs[i];
        json_t *text = text_json(s->text.v, s->text.len), *lp = logprobs(s, served), *choice;
        if (job->req.endpoint == CLI_ENDPOINT_CHAT)
            choice = json_pack("{s:i,s:{s:s,s:o,s:n},s:o,s:o}", "index", (int)i, "message", "role", "assistant",
                               "content", text, "refusal", "logprobs", lp, "finish_reason", reason(s));
        else
            choice = json_pack("{s:i,s:o,s:o,s:o}", "index", (int)i, "text", text, "logprobs", lp, "finish_reason",
                               reason(s));
        json_array_append_new(choices, choice);
    }
    json_t *all = envelope(job, served, false, choices);
    json_object_set_new(all, "usage", usage(job));
    return write_json(all, "", "\n", out);
}

int cli_reply_error(const struct cli_req_error *error, struct dl_str *out)
{
    return write_json(cli_req_error_json(error), "data: ", "\n\n", out);
}
