/* SPDX-License-Identifier: MIT
 *
 * cli/server/turns.c: who is there and whose turn it is: clients that hang up or do not read, and answers that begin.
 */
#define _GNU_SOURCE /* POLLRDHUP */
#include "sched.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "cli.h"

#define STALLED_BYTES ((size_t)256 << 10) /* of a stream that its client does not read: its answer waits */

/* The client hung up, or is gone without that. A socket that is readable without a byte is at its end; one with bytes has the next
 * request, or what somebody said who hung up then: where the system knows of an end behind bytes, it is asked. Lock. */
static bool hung_up(const struct cli_job *job)
{
    char byte;
    ssize_t n = job->fd >= 0 ? recv(job->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : 1;
#ifdef POLLRDHUP
    struct pollfd fd = {.fd = job->fd, .events = POLLRDHUP};
    if (n > 0 && poll(&fd, 1, 0) > 0)
        return true;
#endif
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static bool look_after(struct cli_job *job)
{
    if (!job->gone && hung_up(job)) {
        job->gone = true;
        cli_job_resume(job); /* its thread has to see it, too */
    }
    return job->gone;
}

/* Ends the jobs whose clients are gone. */
void cli_sched_drop_gone(struct cli_sched *q)
{
    struct cli_job *gone;
    do {
        gone = NULL;
        pthread_mutex_lock(&q->s->lock);
        for (uint32_t i = 0; i < q->n_active && !gone; i++)
            if (look_after(q->active[i]->job))
                gone = q->active[i]->job;
        for (struct cli_seq *p = q->parked; p && !gone; p = p->next)
            if (look_after(p->job))
                gone = p->job;
        for (struct cli_job *j = q->s->first; j && !gone; j = j->next)
            if (look_after(j))
                gone = j;
        pthread_mutex_unlock(&q->s->lock);
        if (gone)
            cli_sched_end(q, gone);
    } while (gone);
}

/* Out of the queue, where it is there. Lock. */
void cli_sched_unqueue(struct cli_server *s, struct cli_job *job)
{
    struct cli_job *prev = NULL;
    for (struct cli_job *j = s->first; j; prev = j, j = j->next) {
        if (j != job)
            continue;
        if (prev)
            prev->next = j->next;
        else
            s->first = j->next;
        if (s->last == j)
            s->last = prev;
        j->next = NULL;
        s->n_queued -= !j->n_admitted;
        return;
    }
}

static uint32_t running_of(const struct cli_sched *q, uint64_t client)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < q->n_active; i++)
        n += q->active[i]->job->client == client;
    return n;
}

/* The next answer to the same prompt waits until that is read: then it is found in the cache. */
static bool wait_for_prompt(const struct cli_job *job)
{
    const struct cli_seq *last = job->n_admitted ? &job->seqs[job->n_admitted - 1] : NULL;
    return last && last->state == CLI_SEQ_PREFILL && !last->n_new && job->n_admitted % job->req.n;
}

/* ------------------------------------------------------------------------------------------------- the KV cache */

#define OPEN_ENDED 256u /* tokens that are kept free for an answer of which nobody said how long it may get */
#define PASSES 8u       /* so many may begin before one that was there earlier, for which there is no room yet */

/* Blocks for these tokens and those that may come of them. */
static uint32_t blocks_of(const struct cli_sched *q, const struct cli_request *r, size_t n_tokens, uint64_t n_new)
{
    const uint64_t more = r->max_tokens == UINT64_MAX ? OPEN_ENDED : r->max_tokens - n_new;
    return (uint32_t)dl_div_up(DL_MIN(n_tokens + DL_MIN(more, q->s->served.ctx), q->s->served.ctx), DL_KV_BLOCK);
}

/* Free, and not kept for those that are in work. */
static uint32_t room(const struct cli_sched *q)
{
    uint64_t kept = 0;
    for (uint32_t i = 0; i < q->n_active; i++) {
        const struct cli_seq *s = q->active[i];
        kept += s->reserve - DL_MIN(s->reserve, dl_session_blocks(s->session));
    }
    const uint32_t n = dl_engine_free_blocks(q->e->engine);
    return n - (uint32_t)DL_MIN(kept, n);
}

/* Room for `blocks`, of which a beginning that others hold, too, takes none. */
static bool has_room(const struct cli_sched *q, const struct dl_tokens *t, uint32_t blocks)
{
    const uint32_t n = room(q);
    return blocks <= n || blocks - dl_engine_shared_blocks(q->e->engine, t->v, t->len) <= n;
}

static bool fits_seq(const struct cli_sched *q, const struct cli_seq *s)
{
    return has_room(q, &s->tokens, blocks_of(q, &s->job->req, s->tokens.len, s->n_new));
}

static bool fits_next(const struct cli_sched *q, const struct cli_job *job)
{
    const struct dl_tokens *prompt = &job->prompts[job->n_admitted / job->req.n];
    return has_room(q, prompt, blocks_of(q, &job->req, prompt->len, 0));
}

/* -------------------------------------------------------------------------------------------------------- turns */

/* The job whose turn it is: the one that has the least in work; of those, whose client has; of those, the one that came first. With
 * `that_fits`, of those for which there is room. Lock. */
static struct cli_job *next_job(const struct cli_sched *q, bool that_fits)
{
    struct cli_job *best = NULL;
    uint64_t least = UINT64_MAX;
    for (struct cli_job *j = q->s->first; j; j = j->next) {
        if (wait_for_prompt(j))
            continue;
        uint64_t n = (uint64_t)j->n_active << 32 | running_of(q, j->client);
        if (n < least && (!that_fits || fits_next(q, j))) {
            least = n;
            best = j;
        }
    }
    return best;
}

static void count_active(struct cli_sched *q)
{
    pthread_mutex_lock(&q->s->lock);
    q->s->n_running = q->n_active;
    q->s->metrics.free_blocks = dl_engine_free_blocks(q->e->engine);
    q->s->metrics.kv_blocks = q->e->info.kv_blocks;
    pthread_mutex_unlock(&q->s->lock);
}

static int activate(struct cli_sched *q, struct cli_seq *s)
{
    int err = dl_session_create(q->e->engine, &s->session);
    if (err)
        return err;
    uint32_t known = dl_session_reuse(s->session, s->tokens.v, s->tokens.len);
    if (!s->n_new) {
        s->job->cached_tokens += known;
        pthread_mutex_lock(&q->s->lock);
        q->s->metrics.cached_tokens += known;
        pthread_mutex_unlock(&q->s->lock);
    }
    s->reserve = blocks_of(q, &s->job->req, s->tokens.len, s->n_new);
    q->active[q->n_active++] = s;
    s->job->n_active++;
    return DL_OK;
}

/* The next answer of a job begins. */
static int begin(struct cli_sched *q, struct cli_job *job)
{
    struct cli_seq *s = &job->seqs[job->n_admitted];
    int err = cli_seq_init(s, job, job->n_admitted, &q->s->served);
    s->began = ++q->n_begun;
    if (!err)
        err = activate(q, s);
    if (err)
        return err;
    struct cli_server *server = q->s;
    pthread_mutex_lock(&server->lock);
    if (job->n_admitted + 1 == job->n_seqs)
        cli_sched_unqueue(server, job);
    else if (!job->n_admitted)
        server->n_queued--;
    if (!job->n_admitted++) {
        cli_metrics_seconds(&server->metrics.queue_seconds, dl_now_ns() - job->queued_ns);
        for (uint32_t i = 0; i < job->n_prompts; i++)
            server->metrics.prompt_tokens += job->prompts[i].len;
        job->started = true;
        if (job->req.stream)
            cli_job_resume(job);
    }
    pthread_mutex_unlock(&server->lock);
    return DL_OK;
}

/* The client has more than enough to read. */
bool cli_sched_stalls(const struct cli_sched *q, struct cli_job *job)
{
    pthread_mutex_lock(&q->s->lock);
    bool stalled = job->stalled = job->out.len - job->out_at > STALLED_BYTES;
    pthread_mutex_unlock(&q->s->lock);
    return stalled;
}

/* Its place is free. What is lost can be evaluated again from its tokens. */
static void park(struct cli_sched *q, uint32_t i)
{
    struct cli_seq *s = q->active[i], **at = &q->parked;
    dl_session_destroy(&s->session);
    s->state = CLI_SEQ_PREFILL;
    s->job->n_active--;
    while (*at && (*at)->began < s->began)
        at = &(*at)->next;
    s->next = *at;
    *at = s;
    memmove(&q->active[i], &q->active[i + 1], (--q->n_active - i) * sizeof(struct cli_seq *));
}

/* One whose client does not read. */
static bool park_idle(struct cli_sched *q)
{
    for (uint32_t i = 0; i < q->n_active; i++)
        if (cli_sched_stalls(q, q->active[i]->job)) {
            park(q, i);
            return true;
        }
    return false;
}

/* The oldest whose client reads; NULL: there is none. */
static struct cli_seq *first_parked(const struct cli_sched *q)
{
    struct cli_seq *s = q->parked;
    while (s && cli_sched_stalls(q, s->job))
        s = s->next;
    return s;
}

/* By its address: whose client reads may be another one by now, and others may have been parked. */
static void unpark(struct cli_sched *q, const struct cli_seq *s)
{
    struct cli_seq **at = &q->parked;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
}

/* The job that is to begin: the one whose turn it is, or, where there is no room for it, another one a few times. */
static struct cli_job *choose(struct cli_sched *q)
{
    pthread_mutex_lock(&q->s->lock);
    struct cli_job *job = next_job(q, false);
    if (job && q->n_active < q->most && job->passed < PASSES && !fits_next(q, job)) {
        struct cli_job *other = next_job(q, true);
        job->passed += other != NULL;
        job = other ? other : job;
    }
    pthread_mutex_unlock(&q->s->lock);
    return job;
}

/* The next to begin, or to go on: those that were parked come first, and while there is no room for one of them, nobody else begins. */
static bool admit_one(struct cli_sched *q)
{
    struct cli_seq *back = first_parked(q);
    struct cli_job *job = back ? NULL : choose(q);
    if (!back && !job)
        return false;
    while (q->n_active == q->most || !(back ? fits_seq(q, back) : fits_next(q, job)))
        if (!park_idle(q))
            return false;
    char why[200];
    cli_capture_begin(why, sizeof why, true);
    if (back)
        unpark(q, back);
    int err = back ? activate(q, back) : begin(q, job);
    cli_capture_end();
    if (err)
        cli_sched_fail(q, back ? back->job : job, 500, why);
    return true;
}

void cli_sched_admit(struct cli_sched *q)
{
    while (admit_one(q))
        ;
    count_active(q);
}

/* The one to give up its place: one whose client does not read, else the youngest. */
static uint32_t victim(const struct cli_sched *q)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < q->n_active; i++) {
        if (cli_sched_stalls(q, q->active[i]->job))
            return i;
        if (q->active[i]->began > q->active[at]->began)
            at = i;
    }
    return at;
}

static void count_preempted(struct cli_sched *q)
{
    pthread_mutex_lock(&q->s->lock);
    q->s->metrics.preempted++;
    pthread_mutex_unlock(&q->s->lock);
}

void cli_sched_room(struct cli_sched *q)
{
    for (uint32_t i = 0; i < q->n_active;) {
        struct cli_seq *s = q->active[i];
        const uint32_t need = (uint32_t)dl_div_up((uint64_t)dl_session_len(s->session) + 1, DL_KV_BLOCK);
        if (s->state != CLI_SEQ_DECODE || need <= s->reserve) {
            i++;
        } else if (room(q) >= need - s->reserve) {
            s->reserve = need;
            i++;
        } else {
            park(q, victim(q));
            count_preempted(q);
            i = 0;
        }
    }
}
