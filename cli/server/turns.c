/* SPDX-License-Identifier: MIT
 *
 * cli/server/turns.c: who is there and whose turn it is: clients that hang up or do not read, and answers that begin.
 */
#include "sched.h"

#include <string.h>
#include <sys/socket.h>

#include "cli.h"

#define STALLED_BYTES ((size_t)256 << 10) /* of a stream that its client does not read: its answer waits */

/* The client hung up. A socket that is readable without a byte is at its end; one with bytes has the next request. Lock. */
static bool hung_up(const struct cli_job *job)
{
    char byte;
    return job->fd >= 0 && recv(job->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
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

/* The job whose turn it is: the one that has the least in work; of those, whose client has; of those, the one that came first. Lock. */
static struct cli_job *next_job(const struct cli_sched *q)
{
    struct cli_job *best = NULL;
    uint64_t least = UINT64_MAX;
    for (struct cli_job *j = q->s->first; j; j = j->next) {
        if (wait_for_prompt(j))
            continue;
        uint64_t n = (uint64_t)j->n_active << 32 | running_of(q, j->client);
        if (n < least) {
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
    q->active[q->n_active++] = s;
    s->job->n_active++;
    return DL_OK;
}

/* The next answer of a job begins. */
static int begin(struct cli_sched *q, struct cli_job *job)
{
    struct cli_seq *s = &job->seqs[job->n_admitted];
    int err = cli_seq_init(s, job, job->n_admitted, &q->s->served);
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

/* Makes room for those who wait. What is lost can be evaluated again from its tokens. */
static bool park_one(struct cli_sched *q)
{
    for (uint32_t i = 0; i < q->n_active; i++) {
        struct cli_seq *s = q->active[i];
        if (!cli_sched_stalls(q, s->job))
            continue;
        dl_session_destroy(&s->session);
        s->state = CLI_SEQ_PREFILL;
        s->job->n_active--;
        s->next = q->parked;
        q->parked = s;
        memmove(&q->active[i], &q->active[i + 1], (--q->n_active - i) * sizeof(struct cli_seq *));
        return true;
    }
    return false;
}

/* One whose client reads again. */
static struct cli_seq *unpark(struct cli_sched *q)
{
    for (struct cli_seq **at = &q->parked; *at; at = &(*at)->next) {
        struct cli_seq *s = *at;
        if (cli_sched_stalls(q, s->job))
            continue;
        *at = s->next;
        return s;
    }
    return NULL;
}

void cli_sched_admit(struct cli_sched *q)
{
    for (;;) {
        pthread_mutex_lock(&q->s->lock);
        struct cli_job *job = next_job(q);
        pthread_mutex_unlock(&q->s->lock);
        struct cli_seq *back = q->n_active < q->most ? unpark(q) : NULL;
        if ((!job && !back) || (q->n_active == q->most && !park_one(q)))
            break;
        char why[200];
        cli_capture_begin(why, sizeof why, true);
        int err = back ? activate(q, back) : begin(q, job);
        cli_capture_end();
        if (err)
            cli_sched_fail(q, back ? back->job : job, 500, why);
    }
    count_active(q);
}
