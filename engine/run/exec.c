/* SPDX-License-Identifier: MIT
 *
 * engine/run/exec.c: runs a plan. A RUN is submitted as soon as the exchange before it is on its way, so that the device starts
 * the moment the data is there; the schedule itself is data (dl/op.h).
 */
#include "engine.h"

/* On a thread of the transport's. */
static void exchanged(void *ud, int status)
{
    struct eng_xfer *x = ud;
    x->status = status;
    x->finished_ns = dl_now_ns();
    dl_device *dev = x->node->dev;
    uint64_t host_value = x->host_value;
    atomic_store_explicit(&x->done, true, memory_order_release);
    /* Also after a failure: what was submitted must run out before the engine can report it. */
    (void)dl_device_host_signal(dev, host_value);
}

static int start(struct eng_node *n, uint32_t at, uint32_t n_tokens, uint32_t n_out)
{
    const struct dl_step *s = &n->mp->plan.steps[at];
    struct eng_xfer *x = &n->xfers[at];
    static const enum dl_xfer_kind kinds[DL_COLL_COUNT] = {[DL_COLL_ALL_GATHER] = DL_XFER_ALL_GATHER,
                                                           [DL_COLL_BROADCAST] = DL_XFER_BROADCAST,
                                                           [DL_COLL_GATHER_ROOT] = DL_XFER_GATHER_ROOT};
    uint8_t *base = dl_buf_map(n->dev, n->bufs[s->view.buf]);
    uint64_t rows = s->count == DL_COUNT_OUT ? n_out : n_tokens;
    struct dl_xfer xfer = {kinds[s->coll], base + s->view.offset, (size_t)(rows * s->view.row_bytes),
                           (size_t)s->slice_bytes};
    x->node = n;
    x->host_value = n->host_base + s->signal;
    x->started_ns = dl_now_ns();
    x->status = DL_OK;
    atomic_store_explicit(&x->done, false, memory_order_relaxed);
    n->last_xfer = x;
    int err = dl_transport_start(n->transport, &xfer, exchanged, x);
    if (err)
        exchanged(x, err);
    return err;
}

/* Submits the node's RUN steps up to and including step `last`. */
static int submit_until(struct eng_node *n, uint32_t last, const struct dl_run_args *args)
{
    const struct dl_plan *p = &n->mp->plan;
    for (; n->next_submit <= last && n->next_submit < p->n_steps; n->next_submit++) {
        const struct dl_step *s = &p->steps[n->next_submit];
        if (s->kind != DL_STEP_RUN)
            continue;
        int err = dl_device_submit(n->dev, n->progs[n->next_submit], args, n->host_base + s->wait,
                                   n->device_base + s->signal);
        if (err)
            return err; /* next_submit stays: drain must not wait for what was never submitted */
    }
    return DL_OK;
}

/* Highest signal of a kind among the first `end` steps. */
static uint64_t last_signal(const struct dl_plan *p, enum dl_step_kind kind, uint32_t end)
{
    uint64_t v = 0;
    for (uint32_t i = 0; i < end; i++)
        if (p->steps[i].kind == kind)
            v = p->steps[i].signal;
    return v;
}

#define LOOK_NS UINT64_C(100000000) /* how often a wait looks at the exchange it depends on */

/* Which exchange of the plan, from 1. */
static uint32_t number_of(const struct eng_node *n, const struct eng_xfer *x)
{
    uint32_t number = 0;
    for (uint32_t i = 0; i <= (uint32_t)(x - n->xfers); i++)
        number += n->mp->plan.steps[i].kind == DL_STEP_EXCHANGE;
    return number;
}

/* Did the exchange that came last before this moment work? One that is still under way has not failed yet. */
static int check_last(dl_engine *e, const struct eng_node *n, bool waited)
{
    const struct eng_xfer *x = n->last_xfer;
    if (!x)
        return DL_OK;
    bool done = atomic_load_explicit(&x->done, memory_order_acquire);
    bool silent = !done && waited && dl_now_ns() - x->started_ns > e->wait_ns;
    if (silent || (done && x->status)) {
        e->bad_exchange = number_of(n, x);
        e->bad_silence = silent;
        return silent ? DL_EPEER : x->status;
    }
    return DL_OK;
}

static int wait_for(dl_engine *e, struct eng_node *n, uint64_t value)
{
    uint64_t t0 = dl_now_ns(), slice = e->wait_ns == UINT64_MAX ? UINT64_MAX : LOOK_NS;
    int err;
    while ((err = dl_device_wait(n->dev, n->device_base + value, slice)) == DL_ETIMEDOUT && slice != UINT64_MAX)
        if ((err = check_last(e, n, true)))
            break;
    if (!err)
        err = check_last(e, n, false);
    if (n == e->nodes)
        e->stats.compute_ns += dl_now_ns() - t0;
    return err;
}

/* Lets everything that was submitted run out, whatever it computes, so that buffers and counters are at rest. The host counter is
 * raised no further than that takes: the next user of the device counts on from the highest value that anything has waited
 * for, and a counter beyond that would let his programs start before their data is there. */
static void drain(struct eng_node *n)
{
    const struct dl_plan *p = &n->mp->plan;
    uint64_t wait = 0;
    for (uint32_t i = 0; i < n->next_submit; i++)
        if (p->steps[i].kind == DL_STEP_RUN)
            wait = DL_MAX(wait, p->steps[i].wait);
    (void)dl_device_host_signal(n->dev, n->host_base + wait);
    (void)dl_device_wait(n->dev, n->device_base + last_signal(p, DL_STEP_RUN, n->next_submit), UINT64_MAX);
}

static int run_steps(dl_engine *e, uint32_t n_tokens, uint32_t n_out)
{
    const uint32_t n_steps = e->nodes[0].mp->plan.n_steps; /* the same steps on every node */
    for (uint32_t i = 0; i < n_steps; i++)
        for (uint32_t d = 0; d < e->n_nodes; d++) {
            struct eng_node *n = &e->nodes[d];
            const struct dl_step *s = &n->mp->plan.steps[i];
            struct dl_run_args args = {n_tokens, n_out, n->batch};
            int err = submit_until(n, s->kind == DL_STEP_EXCHANGE ? i + 1 : i, &args);
            if (!err && s->kind == DL_STEP_EXCHANGE) {
                err = wait_for(e, n, s->wait);
                if (!err)
                    err = start(n, i, n_tokens, n_out);
            }
            if (err)
                return err;
        }
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct dl_plan *p = &e->nodes[d].mp->plan;
        int err = wait_for(e, &e->nodes[d], last_signal(p, DL_STEP_RUN, p->n_steps));
        if (err)
            return err;
    }
    return DL_OK;
}

/* After a batch: did every exchange work, and how long did the first node's take? */
static int settle(dl_engine *e)
{
    int err = DL_OK;
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct eng_node *n = &e->nodes[d];
        for (uint32_t i = 0; i < n->mp->plan.n_steps; i++) {
            const struct eng_xfer *x = &n->xfers[i];
            if (n->mp->plan.steps[i].kind != DL_STEP_EXCHANGE)
                continue;
            if (x->status && !err) {
                err = x->status;
                e->bad_exchange = number_of(n, x);
            }
            if (d == 0)
                e->stats.exchange_ns += x->finished_ns - x->started_ns;
        }
    }
    return err;
}

static void next_bases(dl_engine *e)
{
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct dl_plan *p = &e->nodes[d].mp->plan;
        e->nodes[d].device_base += last_signal(p, DL_STEP_RUN, p->n_steps);
        e->nodes[d].host_base += last_signal(p, DL_STEP_EXCHANGE, p->n_steps);
    }
}

int eng_exec(dl_engine *e, uint32_t n_tokens, uint32_t n_out)
{
    uint64_t t0 = dl_now_ns(), busy0 = e->stats.compute_ns + e->stats.exchange_ns;
    e->bad_exchange = 0;
    e->bad_silence = false;
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        e->nodes[d].next_submit = 0;
        e->nodes[d].last_xfer = NULL;
    }
    int err = run_steps(e, n_tokens, n_out);
    if (!err)
        err = settle(e);
    if (!err)
        next_bases(e);
    uint64_t wall = dl_now_ns() - t0, busy = e->stats.compute_ns + e->stats.exchange_ns - busy0;
    e->stats.idle_ns += wall > busy ? wall - busy : 0;
    e->stats.steps++;
    e->stats.tokens += n_tokens;
    if (err)
        e->failed = err;
    return err;
}

void eng_exec_abort(dl_engine *e)
{
    for (uint32_t d = 0; d < e->n_nodes; d++)
        drain(&e->nodes[d]);
    next_bases(e);
}
