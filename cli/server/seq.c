/* SPDX-License-Identifier: MIT
 *
 * cli/server/seq.c: one answer: its sampler with all that a request may ask of it, its text, its end. Knows of steps only what one gave.
 */
#include "server.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Distinct random streams for the answers of one request: scattered, since a stream that began some steps further on would say the same
 * some tokens later. */
static uint64_t seed_of(const struct cli_job *job, uint32_t index)
{
    uint64_t seed = job->req.has_seed ? job->req.seed : dl_now_ns() ^ job->id << 40;
    if (!index)
        return seed;
    uint64_t v = (seed ^ index) * UINT64_C(0xff51afd7ed558ccd);
    v = (v ^ v >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return v ^ v >> 33;
}

static bool plain(const struct cli_seq *s)
{
    const struct cli_request *r = &s->job->req;
    return s->sampler.temperature == 0 && s->sampler.repeat_penalty == 1 && r->presence_penalty == 0 &&
           r->frequency_penalty == 0 && !r->n_bias && !r->logprobs && r->format == CLI_FORMAT_TEXT;
}

static int add_stops(struct cli_seq *s, const struct cli_served *served)
{
    const struct cli_request *r = &s->job->req;
    int err = DL_OK;
    for (size_t i = 0; i < r->n_stops && !err; i++)
        err = dl_stops_add(&s->stops, r->stops[i]);
    bool chat = r->endpoint == CLI_ENDPOINT_CHAT && served->kind != DL_CHAT_NONE;
    const char *const *own = chat ? dl_chat_stops(served->kind) : NULL;
    for (; own && *own && !err; own++)
        err = dl_stops_add(&s->stops, *own);
    return err;
}

/* A completion that begins with its prompt. */
static int echo(struct cli_seq *s, const struct cli_served *served)
{
    const struct cli_request *r = &s->job->req;
    const struct cli_req_prompt *p = &r->prompts[s->index / r->n];
    if (p->text)
        return dl_str_add(&s->text, p->text, p->n);
    struct dl_decoder d;
    dl_decoder_init(&d, served->tok, true);
    int err = DL_OK;
    for (size_t i = 0; i < p->ids.len && !err; i++)
        err = dl_decoder_push(&d, p->ids.v[i], &s->text);
    return err ? err : dl_decoder_flush(&d, &s->text);
}

int cli_seq_init(struct cli_seq *s, struct cli_job *job, uint32_t index, const struct cli_served *served)
{
    const struct cli_request *r = &job->req;
    *s = (struct cli_seq){.job = job, .index = index, .max_new = r->max_tokens};
    s->state = s->max_new ? CLI_SEQ_PREFILL : CLI_SEQ_DONE;
    s->reason = s->max_new ? CLI_REASON_NONE : CLI_REASON_LENGTH;
    dl_sampler_init(&s->sampler, seed_of(job, index));
    s->sampler.temperature = r->temperature;
    s->sampler.top_p = r->top_p;
    s->sampler.min_p = r->min_p;
    s->sampler.top_k = r->top_k;
    s->sampler.repeat_penalty = r->repeat_penalty;
    const struct dl_tokens *prompt = &job->prompts[index / r->n];
    for (size_t i = prompt->len - DL_MIN(prompt->len, (size_t)DL_PENALTY_WINDOW); i < prompt->len; i++)
        dl_sampler_accept(&s->sampler, prompt->v[i]);
    dl_decoder_init(&s->decoder, served->tok, r->endpoint == CLI_ENDPOINT_CHAT && served->kind != DL_CHAT_NONE);
    int err = dl_tokens_append(&s->tokens, prompt->v, prompt->len);
    if (!err)
        err = add_stops(s, served);
    if (!err && r->echo)
        err = echo(s, served);
    if (!err && r->format != CLI_FORMAT_TEXT)
        err = cli_grammar_start(&s->form, &job->grammar);
    s->offset = s->text.len;
    return err;
}

void cli_seq_finish(struct cli_seq *s)
{
    dl_session_destroy(&s->session);
    dl_stops_finish(&s->stops);
    dl_str_finish(&s->text);
    cli_grammar_state_finish(&s->form);
    dl_tokens_finish(&s->tokens);
    dl_tokens_finish(&s->counted);
    dl_tokens_finish(&s->counts);
    free(s->logprobs.v);
    s->logprobs = (struct cli_logprobs){0};
}

/* The likeliest tokens can settle it: they are the likeliest also after all that the request asks for, and the sum of all is at the
 * temperature at which likelihoods are told. */
static bool top_helps(const struct cli_seq *s)
{
    const struct cli_request *r = &s->job->req;
    const float t = s->sampler.temperature;
    return dl_sampler_top_helps(&s->sampler) && r->presence_penalty == 0 && r->frequency_penalty == 0 && !r->n_bias &&
           (!r->logprobs || t == 0 || t == 1);
}

/* A flat distribution is not settled by candidates: after some misses in turn, rows are asked for at once, for a while. */
#define MISSES 4u
#define ROWS 32u

/* In a cluster a row costs 4 bytes per id of the vocabulary, a candidate 8 per node; alone, a row is free. */
void cli_seq_want(const struct cli_seq *s, const struct cli_served *served, struct dl_step_item *item)
{
    const struct cli_request *r = &s->job->req;
    if (plain(s)) {
        item->want = DL_WANT_BEST;
        return;
    }
    if (!served->cluster || s->rows || !top_helps(s)) {
        item->want = DL_WANT_LAST;
        return;
    }
    const uint32_t drawn = s->sampler.temperature == 0 ? 1 : s->sampler.top_k ? s->sampler.top_k : DL_TOP_MOST;
    item->want = DL_WANT_TOP;
    item->k = r->format == CLI_FORMAT_TEXT ? DL_MIN(DL_MAX(drawn, r->top_logprobs), DL_TOP_MOST) : DL_TOP_MOST;
    item->temperature = s->sampler.temperature;
}

/* ------------------------------------------------------------------------------------------------ sampling */

static double log_sum(const float *logits, uint32_t n)
{
    float most = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        most = logits[i] > most ? logits[i] : most;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += isnan(logits[i]) ? 0 : (double)expf(logits[i] - most);
    return (double)most + log(sum);
}

/* The likeliest of all, by falling logit. */
static void rank(struct cli_logprob *lp, uint32_t k, const float *logits, uint32_t n, double sum)
{
    for (uint32_t i = 0; i < n; i++) {
        if (isnan(logits[i]) || !k || (lp->n_top == k && logits[i] <= lp->top[k - 1].logprob))
            continue;
        uint32_t at = lp->n_top < k ? lp->n_top++ : k - 1;
        for (; at && logits[i] > lp->top[at - 1].logprob; at--)
            lp->top[at] = lp->top[at - 1];
        lp->top[at].id = (int32_t)i;
        lp->top[at].logprob = logits[i];
    }
    for (uint32_t i = 0; i < lp->n_top; i++)
        lp->top[i].logprob = (float)((double)lp->top[i].logprob - sum);
}

static void adjust(const struct cli_seq *s, float *logits)
{
    const struct cli_request *r = &s->job->req;
    for (size_t i = 0; i < r->n_bias; i++)
        logits[r->bias[i].id] += r->bias[i].bias;
    for (size_t i = 0; i < s->counted.len; i++)
        logits[s->counted.v[i]] -= r->presence_penalty + r->frequency_penalty * (float)s->counts.v[i];
}

static int count(struct cli_seq *s, int32_t id)
{
    const struct cli_request *r = &s->job->req;
    if (r->presence_penalty == 0 && r->frequency_penalty == 0)
        return DL_OK;
    for (size_t i = 0; i < s->counted.len; i++)
        if (s->counted.v[i] == id) {
            s->counts.v[i]++;
            return DL_OK;
        }
    int err = dl_tokens_add(&s->counted, id);
    return err ? err : dl_tokens_add(&s->counts, 1);
}

/* Whether a token keeps the answer in its form. */
static bool fits(struct cli_seq *s, const struct cli_byte_set *next, int32_t id)
{
    const dl_tokenizer *tok = s->job->server->served.tok;
    size_t n;
    const char *bytes = dl_token_bytes(tok, id, &n);
    if (dl_token_is_eog(tok, id))
        return cli_grammar_may_end(&s->form);
    return n && cli_byte_in(next, (unsigned char)*bytes) && cli_grammar_fits(&s->form, bytes, n);
}

static int go_on(struct cli_seq *s, int32_t id)
{
    size_t n;
    const char *bytes = dl_token_bytes(s->job->server->served.tok, id, &n);
    return n && !cli_grammar_accept(&s->form, bytes, n) ? DL_ENOMEM : DL_OK; /* it fitted a moment ago */
}

/* A draw among all tokens that fit. */
static int32_t draw_fitting(struct cli_seq *s, const struct cli_byte_set *next, float *logits, uint32_t vocab)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] > -INFINITY && fits(s, next, (int32_t)i))
            n++;
        else
            logits[i] = -INFINITY;
    return n ? dl_sample(&s->sampler, logits, vocab)
             : dl_fail(DL_EUNSUP, "response_format: no token of this model fits it here");
}

/* Mostly the model keeps to the form by itself: only when it does not, all tokens are looked at. Together that is a draw among those that fit,
 * with the likelihoods that they have among themselves. */
static int32_t pick_formed(struct cli_seq *s, float *logits, uint32_t vocab)
{
    struct cli_byte_set next = cli_grammar_next(&s->form);
    if (s->drawn)
        return draw_fitting(s, &next, logits, vocab);
    float *again = dl_calloc(vocab, sizeof *again);
    if (!again)
        return DL_ENOMEM;
    memcpy(again, logits, vocab * sizeof *again);
    int32_t id = dl_sample(&s->sampler, logits, vocab);
    if (id >= 0 && !fits(s, &next, id))
        id = draw_fitting(s, &next, again, vocab);
    free(again);
    return id;
}

/* Likelihoods are those of the model, before anything that the request asked for. */
static int pick_from_row(struct cli_seq *s, float *logits, uint32_t vocab)
{
    const struct cli_request *r = &s->job->req;
    struct cli_logprob *lp = &s->picked;
    double sum = 0;
    float *before = NULL;
    if (r->logprobs) { /* sampling overwrites the logits, and which one is needed is known only afterwards */
        sum = log_sum(logits, vocab);
        rank(lp, r->top_logprobs, logits, vocab, sum);
        before = dl_calloc(vocab, sizeof *before);
        if (!before)
            return DL_ENOMEM;
        memcpy(before, logits, vocab * sizeof *before);
    }
    adjust(s, logits);
    lp->id = r->format == CLI_FORMAT_TEXT ? dl_sample(&s->sampler, logits, vocab) : pick_formed(s, logits, vocab);
    if (before && lp->id >= 0)
        lp->logprob = (float)((double)before[lp->id] - sum);
    free(before);
    return DL_MIN(lp->id, 0);
}

/* As pick_formed, as far as candidates go: the first that fits is the likeliest that does. */
static bool form_from_top(struct cli_seq *s, const struct dl_step_item *item, uint32_t vocab, int32_t *id)
{
    struct cli_byte_set next = cli_grammar_next(&s->form);
    if (s->sampler.temperature > 0) {
        if (!dl_sample_top(&s->sampler, item->top, item->n_top, item->log_sum, vocab, id))
            return false;
        s->drawn = !fits(s, &next, *id);
        return !s->drawn;
    }
    for (uint32_t i = 0; i < item->n_top && item->top[i].logit > -INFINITY; i++)
        if (fits(s, &next, *id = item->top[i].id))
            return true;
    return false;
}

static int pick_from_top(struct cli_seq *s, const struct dl_step_item *item, uint32_t vocab)
{
    const struct cli_request *r = &s->job->req;
    struct cli_logprob *lp = &s->picked;
    if (!(r->format == CLI_FORMAT_TEXT
              ? dl_sample_top(&s->sampler, item->top, item->n_top, item->log_sum, vocab, &lp->id)
              : form_from_top(s, item, vocab, &lp->id)))
        return 1;
    if (!r->logprobs)
        return DL_OK;
    lp->n_top = DL_MIN(r->top_logprobs, item->n_top);
    for (uint32_t i = 0; i < item->n_top; i++) {
        const float logprob = (float)((double)item->top[i].logit - item->log_sum);
        if (i < lp->n_top) {
            lp->top[i].id = item->top[i].id;
            lp->top[i].logprob = logprob;
        }
        if (item->top[i].id == lp->id)
            lp->logprob = logprob;
    }
    return DL_OK;
}

int cli_seq_pick(struct cli_seq *s, const struct dl_step_item *item, const struct cli_served *served)
{
    const uint32_t vocab = served->defaults.vocab;
    int err = DL_OK;
    s->picked = (struct cli_logprob){0};
    if (item->logits) {
        s->rows -= item->want == DL_WANT_LAST && s->rows;
        err = pick_from_row(s, item->logits, vocab);
    } else if (!item->n_top) {
        err = dl_fail(DL_EDEVICE, "sampler: no logit is a number: the device computes nonsense");
    } else if (item->want == DL_WANT_BEST) {
        s->picked.id = item->top[0].id;
    } else {
        err = pick_from_top(s, item, vocab);
        s->misses = err > 0 ? s->misses + 1 : 0;
        if (s->misses == MISSES) {
            s->misses = 0;
            s->rows = ROWS;
        }
    }
    if (err)
        return err;
    s->drawn = false;
    return s->job->req.format == CLI_FORMAT_TEXT ? DL_OK : go_on(s, s->picked.id);
}

/* ---------------------------------------------------------------------------------------------------- text */

/* 1: a stop string ended the answer. */
static int push(struct cli_seq *s, int32_t id)
{
    struct dl_str bytes = {0};
    int err = dl_decoder_push(&s->decoder, id, &bytes);
    if (!err && bytes.len)
        err = dl_stops_push(&s->stops, bytes.v, bytes.len, &s->text);
    dl_str_finish(&bytes);
    return err;
}

/* What was held back comes out, unless it completes a stop string. */
static int flush(struct cli_seq *s)
{
    struct dl_str bytes = {0};
    int err = dl_decoder_flush(&s->decoder, &bytes);
    if (!err && bytes.len)
        err = dl_stops_push(&s->stops, bytes.v, bytes.len, &s->text);
    dl_str_finish(&bytes);
    return err < 0 ? err : err ? DL_OK : dl_stops_flush(&s->stops, &s->text);
}

static int end(struct cli_seq *s, enum cli_reason reason, bool held_back)
{
    s->state = CLI_SEQ_DONE;
    s->reason = reason;
    return held_back ? flush(s) : DL_OK;
}

static int note(struct cli_seq *s, const struct cli_logprob *lp)
{
    if (!s->job->req.logprobs)
        return DL_OK;
    void *v = s->logprobs.v;
    int err = dl_grow(&v, &s->logprobs.cap, s->logprobs.len + 1, sizeof *lp);
    s->logprobs.v = v;
    if (!err)
        s->logprobs.v[s->logprobs.len++] = *lp;
    return err;
}

int cli_seq_take(struct cli_seq *s, const struct cli_served *served)
{
    const int32_t id = s->picked.id;
    if (dl_token_is_eog(served->tok, id))
        return end(s, CLI_REASON_STOP, true);
    s->n_new++;
    dl_sampler_accept(&s->sampler, id);
    int err = count(s, id);
    int found = err ? err : push(s, id);
    if (found < 0)
        return found;
    if (found)
        return end(s, CLI_REASON_STOP, false);
    err = note(s, &s->picked);
    if (err)
        return err;
    if (s->job->req.format != CLI_FORMAT_TEXT && cli_grammar_must_end(&s->form))
        return end(s, CLI_REASON_STOP, true);
    if (s->n_new >= s->max_new || dl_session_len(s->session) >= served->ctx)
        return end(s, CLI_REASON_LENGTH, true);
    s->state = CLI_SEQ_DECODE;
    return dl_tokens_add(&s->tokens, id);
}
