/* SPDX-License-Identifier: MIT
 *
 * cli/server/sched.c: the engine thread: what goes into the next batch, and what comes of it. Every batch takes one token of each answer that is
 * being made and, in what time that leaves, a piece of the prompts that are still to be read: so that a long prompt makes others
 * a little slower and stops nobody.
 */
#include "sched.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

#define IDLE_MS 250
#define SWEEP_NS UINT64_C(1000000000)
#define DRAIN_NS UINT64_C(2500000000)    /* for running answers, once the server is to stop */
#define FAREWELL_NS UINT64_C(1000000000) /* for what they say at the end to leave */

/* -------------------------------------------------------------------------------------------- the ends of jobs */

/* What it said goes out, and nothing more comes. Lock. */
static void close_job(struct cli_job *job)
{
    struct cli_metrics *m = &job->server->metrics;
    job->done = true;
    if (job->gone)
        m->cancelled++;
    else if (job->failed)
        m->failed++;
    else
        m->ok++;
    if (!job->gone)
        cli_metrics_seconds(&m->request_seconds, dl_now_ns() - job->queued_ns);
    cli_job_resume(job);
}

static void free_seqs(struct cli_job *job)
{
    for (uint32_t i = 0; i < job->n_seqs; i++)
        cli_seq_finish(&job->seqs[i]);
}

/* Out of the batch and out of the car park. */
static void drop_seqs(struct cli_sched *q, const struct cli_job *job)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < q->n_active; i++)
        if (q->active[i]->job != job)
            q->active[kept++] = q->active[i];
    q->n_active = kept;
    for (struct cli_seq **at = &q->parked; *at;)
        if ((*at)->job == job)
            *at = (*at)->next;
        else
            at = &(*at)->next;
}

/* The end of a job, finished or not; the scheduler forgets it. */
void cli_sched_end(struct cli_sched *q, struct cli_job *job)
{
    struct cli_server *s = q->s;
    drop_seqs(q, job);
    free_seqs(job);
    pthread_mutex_lock(&s->lock);
    cli_sched_unqueue(s, job);
    close_job(job);
    s->n_running = q->n_active;
    cli_job_unref(job);
    pthread_mutex_unlock(&s->lock);
}

void cli_sched_fail(struct cli_sched *q, struct cli_job *job, int status, const char *why)
{
    struct cli_req_error error;
    cli_req_refuse(&error, status, NULL, NULL, "%s", why);
    pthread_mutex_lock(&q->s->lock);
    job->failed = true;
    job->error = error;
    if (job->started && job->req.stream)
        (void)cli_reply_error(&error, &job->out); /* without memory the stream ends as it is */
    pthread_mutex_unlock(&q->s->lock);
    cli_sched_end(q, job);
}

/* All that were begun, and with `queued` also the others. */
static void fail_all(struct cli_sched *q, bool queued, int status, const char *why)
{
    while (q->n_active)
        cli_sched_fail(q, q->active[0]->job, status, why);
    while (q->parked)
        cli_sched_fail(q, q->parked->job, status, why);
    for (;;) {
        pthread_mutex_lock(&q->s->lock);
        struct cli_job *job = q->s->first;
        pthread_mutex_unlock(&q->s->lock);
        if (!queued || !job)
            return;
        cli_sched_fail(q, job, status, why);
    }
}

/* -------------------------------------------------------------------------------------------------- a batch */

static void add(struct cli_sched *q, struct cli_seq *s, uint32_t n)
{
    struct dl_step_item *item = &q->items[q->n_items];
    uint32_t len = dl_session_len(s->session);
    *item = (struct dl_step_item){.session = s->session, .tokens = s->tokens.v + len, .n = n};
    if (len + n == s->tokens.len)
        cli_seq_want(s, &q->s->served, item);
    q->in_batch[q->n_items++] = s;
    q->n_tokens += n;
}

/* One token of each answer, then as much of the prompts as may be: a share for each, so that short ones are soon done. */
static void gather(struct cli_sched *q)
{
    uint32_t n_prefill = 0;
    q->n_items = q->n_tokens = 0;
    for (uint32_t i = 0; i < q->n_active; i++) {
        struct cli_seq *s = q->active[i];
        n_prefill += s->state == CLI_SEQ_PREFILL;
        if (s->state == CLI_SEQ_DECODE && !cli_sched_stalls(q, s->job))
            add(q, s, 1);
    }
    q->n_decode = q->n_tokens;
    uint32_t budget = cli_pace_chunk(&q->pace, q->n_decode, q->e->info.max_batch - q->n_decode);
    for (uint32_t i = 0; i < q->n_active && budget; i++) {
        struct cli_seq *s = q->active[i];
        if (s->state != CLI_SEQ_PREFILL)
            continue;
        uint32_t rest = (uint32_t)s->tokens.len - dl_session_len(s->session);
        uint32_t n = DL_MIN(rest, DL_MAX(budget / n_prefill, 1));
        n_prefill--;
        budget -= n;
        add(q, s, n);
    }
}

/* What a sequence has to say goes to its client. */
static int tell(struct cli_sched *q, struct cli_seq *s)
{
    struct cli_job *job = s->job;
    struct cli_server *server = q->s;
    struct dl_str news = {0};
    bool done = s->state == CLI_SEQ_DONE, last = done && ++job->n_done == job->n_seqs;
    if (done) {
        dl_session_destroy(&s->session);
        job->n_active--;
    }
    int err = job->req.stream ? cli_reply_events(job, s, &server->served, &news) : DL_OK;
    if (!err && last)
        err =
            job->req.stream ? cli_reply_end(job, &server->served, &news) : cli_reply_whole(job, &server->served, &news);
    pthread_mutex_lock(&server->lock);
    if (!err && news.len) {
        if (job->out_at) { /* what was read makes room */
            memmove(job->out.v, job->out.v + job->out_at, job->out.len -= job->out_at);
            job->out_at = 0;
        }
        err = dl_str_add(&job->out, news.v, news.len);
        cli_job_resume(job);
    }
    pthread_mutex_unlock(&server->lock);
    dl_str_finish(&news);
    if (!err && last)
        cli_sched_end(q, job);
    return err;
}

/* A token of an answer: times are taken, and its client is told. */
static int take(struct cli_sched *q, struct cli_seq *s)
{
    struct cli_metrics *m = &q->s->metrics;
    struct cli_job *job = s->job;
    uint64_t before = s->n_new;
    int err = cli_seq_take(s, &q->s->served);
    if (err)
        return err;
    uint64_t now = dl_now_ns();
    pthread_mutex_lock(&q->s->lock);
    if (s->n_new > before) {
        m->generated_tokens++;
        job->new_tokens++;
        if (before)
            cli_metrics_seconds(&m->token_seconds, now - s->last_ns);
        else if (!job->first_ns) {
            job->first_ns = now;
            cli_metrics_seconds(&m->first_token_seconds, now - job->queued_ns);
        }
    }
    pthread_mutex_unlock(&q->s->lock);
    s->last_ns = now;
    return tell(q, s);
}

/* The job of an item has failed: its other answers end with it. */
static void fail_item(struct cli_sched *q, uint32_t i, const char *why)
{
    struct cli_job *job = q->in_batch[i]->job;
    for (uint32_t k = 0; k < q->n_items; k++)
        if (q->in_batch[k] && q->in_batch[k]->job == job)
            q->in_batch[k] = NULL;
    cli_sched_fail(q, job, 500, why);
}

/* The next token of an item, from what there is of its logits. */
static void pick(struct cli_sched *q, uint32_t i)
{
    char why[200];
    cli_capture_begin(why, sizeof why, true);
    int err = cli_seq_pick(q->in_batch[i], &q->items[i], &q->s->served);
    cli_capture_end();
    q->open[i] = err > 0;
    if (err < 0)
        fail_item(q, i, why);
}

/* The row of an item in full. What fails here is the engine, and not this answer alone. */
static int fetch(struct cli_sched *q, uint32_t row, struct dl_step_item *item, char *why, size_t n)
{
    cli_capture_begin(why, n, true);
    int err = dl_engine_logits(q->e->engine, row, &item->logits);
    cli_capture_end();
    pthread_mutex_lock(&q->s->lock);
    q->s->metrics.fetched_rows += !err;
    pthread_mutex_unlock(&q->s->lock);
    return err;
}

/* First all that is settled by what the step gave: what is fetched then takes its place. */
static int pick_all(struct cli_sched *q, char *why, size_t n)
{
    uint32_t row = 0;
    int err = DL_OK;
    for (uint32_t i = 0; i < q->n_items; i++) {
        q->open[i] = false;
        if (q->in_batch[i] && q->items[i].want != DL_WANT_NONE)
            pick(q, i);
    }
    for (uint32_t i = 0; i < q->n_items && !err; i++) {
        if (q->items[i].want == DL_WANT_NONE)
            continue;
        if (q->in_batch[i] && q->open[i]) {
            err = fetch(q, row, &q->items[i], why, n);
            if (!err)
                pick(q, i);
        }
        row++;
    }
    return err;
}

static void take_all(struct cli_sched *q)
{
    for (uint32_t i = 0; i < q->n_items; i++) {
        struct cli_seq *s = q->in_batch[i];
        if (!s || q->items[i].want == DL_WANT_NONE)
            continue;
        char why[200];
        cli_capture_begin(why, sizeof why, true);
        int err = take(q, s);
        cli_capture_end();
        if (err)
            fail_item(q, i, why);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < q->n_active; i++)
        if (q->active[i]->state != CLI_SEQ_DONE)
            q->active[kept++] = q->active[i];
    q->n_active = kept;
}

/* The engine is of no use any more: those who waited for it are told, and it is made anew, with the CPU where a GPU failed. That of a
 * cluster mends itself; it has said already that it could not. */
static void heal(struct cli_sched *q, const char *why)
{
    if (q->e->cluster) {
        cli_server_health(q->s, false, why);
        fail_all(q, false, 503, why);
        return;
    }
    cli_server_state(q->s, CLI_SERVER_HEALING, why);
    fail_all(q, false, 503, why);
    char now[400];
    int err = cli_fall_back(q->s->load_opts, q->e);
    snprintf(now, sizeof now, err ? "%.300s" : "%.300s: going on with the CPU", why);
    cli_server_state(q->s, err ? CLI_SERVER_FAILED : CLI_SERVER_READY, now);
    if (err)
        fail_all(q, true, 503, why);
}

void cli_server_nodes(struct cli_server *s, struct cli_engine *e)
{
    uint32_t cap = e->workers.n + 1, n = 0;
    struct dl_node_stats *v = dl_calloc(cap, sizeof *v);
    if (!v)
        return; /* then the old ones are looked at */
    int err = dl_engine_nodes(e->engine, v, cap, &n);
    struct dl_engine_info info;
    dl_engine_info(e->engine, &info);
    pthread_mutex_lock(&s->lock);
    if (!err) {
        struct dl_node_stats *old = s->nodes;
        s->nodes = v;
        s->n_nodes = DL_MIN(n, cap);
        v = old;
    }
    s->n_all = cap;
    s->weight_bytes = info.weight_bytes;
    s->kv_bytes = info.kv_bytes;
    s->act_bytes = info.act_bytes;
    pthread_mutex_unlock(&s->lock);
    free(v); /* a node that is lost: the next step does something about it */
}

static void step(struct cli_sched *q)
{
    char why[300];
    struct cli_server *s = q->s;
    uint64_t start = dl_now_ns();
    cli_capture_begin(why, sizeof why, true);
    int err = dl_engine_step(q->e->engine, q->items, q->n_items);
    cli_capture_end();
    if (err == DL_ECANCELED) /* Ctrl-C, while nodes were waited for */
        return;
    if (!err && (err = pick_all(q, why, sizeof why)) == DL_ECANCELED) { /* likewise, but what was picked is lost */
        fail_all(q, false, 503, "the server is shutting down");
        return;
    }
    if (err == DL_EDEVICE || err == DL_EPEER || err == DL_ETIMEDOUT || err == DL_ENOMEM || err == DL_EIO) {
        heal(q, *why ? why : dl_err_text(err));
        return;
    }
    if (err) {
        fail_all(q, false, 500, why);
        return;
    }
    take_all(q);
    cli_pace_learn(&q->pace, q->n_decode, q->n_tokens - q->n_decode, dl_now_ns() - start);
    q->worked = true;
    pthread_mutex_lock(&s->lock);
    s->metrics.steps++;
    cli_metrics_tokens(&s->metrics.batch_tokens, q->n_tokens);
    pthread_mutex_unlock(&s->lock);
}

/* Answers that need no step: those of no tokens at all. */
static void settle(struct cli_sched *q)
{
    for (uint32_t i = 0; i < q->n_active;) {
        struct cli_seq *s = q->active[i];
        if (s->state != CLI_SEQ_DONE) {
            i++;
            continue;
        }
        q->active[i] = q->active[--q->n_active];
        if (tell(q, s))
            cli_sched_fail(q, s->job, 500, "the server is out of memory");
        i = 0; /* telling the last one took others away */
    }
}

/* ------------------------------------------------------------------------------------------------------ the loop */

static void wait_for_work(struct cli_sched *q, int ms)
{
    struct pollfd fd = {.fd = q->s->wake[0], .events = POLLIN};
    char bytes[256];
    if (poll(&fd, 1, ms) > 0)
        while (read(fd.fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes)
            ;
}

static void sweep(struct cli_sched *q)
{
    uint64_t now = dl_now_ns();
    if (now < q->swept_ns + SWEEP_NS)
        return;
    q->swept_ns = now;
    cli_http_sweep(q->s);
    if (q->worked)
        cli_server_nodes(q->s, q->e);
    q->worked = false;
}

static bool idle(const struct cli_sched *q)
{
    pthread_mutex_lock(&q->s->lock);
    bool none = !q->n_active && !q->parked && !q->s->first;
    pthread_mutex_unlock(&q->s->lock);
    return none;
}

static void serve(struct cli_sched *q, dl_stop_fn *stop)
{
    uint64_t until = 0;
    for (;;) {
        if (!until && stop(NULL)) {
            until = dl_now_ns() + DRAIN_NS;
            cli_server_state(q->s, CLI_SERVER_STOPPING, "it was told to end");
        }
        if (until && (dl_now_ns() > until || idle(q)))
            return;
        sweep(q);
        cli_sched_drop_gone(q);
        cli_sched_admit(q);
        settle(q);
        cli_sched_room(q);
        gather(q);
        if (q->n_items)
            step(q);
        else {
            wait_for_work(q, q->n_active ? 20 : IDLE_MS);
            if (q->e->cluster)
                (void)dl_engine_tend(q->e->engine); /* what that means is for cli_server_health */
        }
    }
}

/* Lets the last words leave. */
static void farewell(struct cli_sched *q)
{
    fail_all(q, true, 503, "the server is shutting down");
    for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < FAREWELL_NS && cli_http_busy(q->s);)
        poll(NULL, 0, 10);
}

int cli_server_run(struct cli_server *s, struct cli_engine *e, const struct cli_opts *load_opts, dl_stop_fn *stop)
{
    struct cli_sched q = {.s = s, .e = e, .most = s->opts.parallel};
    s->load_opts = load_opts;
    q.active = dl_calloc(q.most, sizeof(struct cli_seq *));
    q.in_batch = dl_calloc(q.most, sizeof(struct cli_seq *));
    q.items = dl_calloc(q.most, sizeof *q.items);
    q.open = dl_calloc(q.most, sizeof *q.open);
    int err = q.active && q.in_batch && q.items && q.open ? DL_OK : DL_ENOMEM;
    if (!err) {
        serve(&q, stop);
        farewell(&q);
    }
    free(q.active);
    free(q.in_batch);
    free(q.items);
    free(q.open);
    return err;
}
