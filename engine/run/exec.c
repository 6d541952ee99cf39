/* SPDX-License-Identifier: MIT
 *
 * engine/run/exec.c: runs a plan. A RUN is submitted as soon as the exchange before it is on its way, so that the device starts
 * the moment the data is there; the schedule itself is data (dl/op.h).
 *
 * The thread that waits is not idle where it can be of use. With one device it computes, if the device is of that kind; and while nothing can
 * be computed before an exchange is over, it does the transport's work. So where a core has nothing but this node, an
 * exchange changes no threads at all: what computes sends, sleeps for the answer and goes on. With two lanes the
 * transport's own thread does that work, since there is something to compute meanwhile.
 */
#include "engine.h"

/* On a thread of the transport's, or on this one while it drives. */
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

/* Steps of a lane without tokens are left out. */
static bool takes_part(const struct eng_node *n, uint32_t at)
{
    return n->lane_tokens[n->mp->plan.steps[at].lane];
}

static int start(struct eng_node *n, uint32_t at, uint32_t n_out)
{
    const struct dl_step *s = &n->mp->plan.steps[at];
    struct eng_xfer *x = &n->xfers[at];
    static const enum dl_xfer_kind kinds[DL_COLL_COUNT] = {[DL_COLL_ALL_GATHER] = DL_XFER_ALL_GATHER,
                                                           [DL_COLL_BROADCAST] = DL_XFER_BROADCAST,
                                                           [DL_COLL_GATHER_ROOT] = DL_XFER_GATHER_ROOT,
                                                           [DL_COLL_ALL_TO_ALL] = DL_XFER_ALL_TO_ALL};
    uint8_t *base = dl_buf_map(n->dev, n->bufs[s->view.buf]);
    uint64_t rows = s->count == DL_COUNT_OUT ? n_out : n->lane_tokens[s->lane];
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
static int submit_until(struct eng_node *n, uint32_t last, uint32_t n_out)
{
    const struct dl_plan *p = &n->mp->plan;
    for (; n->next_submit <= last && n->next_submit < p->n_steps; n->next_submit++) {
        const struct dl_step *s = &p->steps[n->next_submit];
        if (s->kind != DL_STEP_RUN || !takes_part(n, n->next_submit))
            continue;
        struct dl_run_args args = {n->lane_tokens[s->lane], s->lane ? 0 : n_out, n->batch[s->lane]};
        int err = dl_device_submit(n->dev, n->progs[n->next_submit], &args, n->host_base + s->wait,
                                   n->device_base + s->signal);
        if (err)
            return err; /* next_submit stays: drain must not wait for what was never submitted */
    }
    return DL_OK;
}

/* The RUN after step `at`. */
static uint32_t next_run(const struct eng_node *n, uint32_t at)
{
    const struct dl_plan *p = &n->mp->plan;
    do
        at++;
    while (at < p->n_steps && (p->steps[at].kind != DL_STEP_RUN || !takes_part(n, at)));
    return at;
}

#define LOOK_NS UINT64_C(100000000) /* how often a wait looks at the exchange it depends on */

/* Which exchange of the batch, from 1. */
static uint32_t number_of(const struct eng_node *n, const struct eng_xfer *x)
{
    uint32_t number = 0;
    for (uint32_t i = 0; i <= (uint32_t)(x - n->xfers); i++)
        number += n->mp->plan.steps[i].kind == DL_STEP_EXCHANGE && takes_part(n, i);
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

/* The exchange that RUN step `at` waits for; NULL: none. */
static struct eng_xfer *needed(const struct eng_node *n, uint32_t at)
{
    const struct dl_plan *p = &n->mp->plan;
    for (uint32_t i = at; p->steps[at].wait && i-- > 0;)
        if (p->steps[i].kind == DL_STEP_EXCHANGE && p->steps[i].signal == p->steps[at].wait)
            return &n->xfers[i];
    return NULL;
}

static bool is_done(void *xfer)
{
    return atomic_load_explicit(&((struct eng_xfer *)xfer)->done, memory_order_acquire);
}

/* Waits for RUN step `at`. */
static int wait_for(dl_engine *e, struct eng_node *n, uint32_t at)
{
    const uint64_t slice = e->wait_ns == UINT64_MAX ? UINT64_MAX : LOOK_NS;
    struct eng_xfer *x = needed(n, at);
    int err = DL_OK;
    while (n->drives && x && !err && !is_done(x)) {
        dl_transport_drive(n->transport, is_done, x, slice);
        if (!is_done(x))
            err = check_last(e, n, true);
    }
    while (!err && (err = dl_device_wait(n->dev, n->device_base + n->mp->plan.steps[at].signal, slice)) == DL_ETIMEDOUT)
        err = check_last(e, n, true);
    n->xfers[at].finished_ns = dl_now_ns();
    return err ? err : check_last(e, n, false);
}

/* Lets everything that was submitted run out, whatever it computes, so that buffers and counters are at rest. The host counter is
 * raised no further than that takes: the next user of the device counts on from the highest value that anything has waited
 * for, and a counter beyond that would let his programs start before their data is there. */
static void drain(struct eng_node *n)
{
    const struct dl_plan *p = &n->mp->plan;
    uint64_t wait = 0, signal = 0;
    for (uint32_t i = 0; i < n->next_submit; i++)
        if (p->steps[i].kind == DL_STEP_RUN && takes_part(n, i)) {
            wait = DL_MAX(wait, p->steps[i].wait);
            signal = p->steps[i].signal;
        }
    (void)dl_device_host_signal(n->dev, n->host_base + wait);
    (void)dl_device_wait(n->dev, n->device_base + signal, UINT64_MAX);
}

static int run_step(dl_engine *e, struct eng_node *n, uint32_t at, uint32_t n_out)
{
    if (n->mp->plan.steps[at].kind == DL_STEP_RUN) {
        n->last_run = at;
        return submit_until(n, at, n_out);
    }
    int err = submit_until(n, next_run(n, at), n_out);
    if (!err)
        err = wait_for(e, n, n->last_run);
    return err ? err : start(n, at, n_out);
}

static int run_steps(dl_engine *e, uint32_t n_out)
{
    const uint32_t n_steps = e->nodes[0].mp->plan.n_steps; /* the same steps on every node */
    int err = DL_OK;
    for (uint32_t i = 0; i < n_steps; i++)
        for (uint32_t d = 0; d < e->n_nodes && !err; d++)
            if (takes_part(&e->nodes[d], i))
                err = run_step(e, &e->nodes[d], i, n_out);
    for (uint32_t d = 0; d < e->n_nodes && !err; d++)
        err = wait_for(e, &e->nodes[d], e->nodes[d].last_run);
    return err;
}

/* After a batch: did every exchange work? */
static int settle(dl_engine *e)
{
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct eng_node *n = &e->nodes[d];
        for (uint32_t i = 0; i < n->mp->plan.n_steps; i++)
            if (n->mp->plan.steps[i].kind == DL_STEP_EXCHANGE && takes_part(n, i) && n->xfers[i].status) {
                e->bad_exchange = number_of(n, &n->xfers[i]);
                return n->xfers[i].status;
            }
    }
    return DL_OK;
}

/* ---------------------------------------------------------------------------------------------------- times */

/* Both kinds of steps come one after the other, each in the order of the plan: a RUN begins when the one before it is over and what it waits
 * for is there, and exchanges end as they have begun. `from` is advanced to the next of a kind. */
struct span {
    uint64_t from, to;
};
static bool next_span(const struct eng_node *n, enum dl_step_kind kind, uint32_t *at, struct span *s)
{
    const struct dl_plan *p = &n->mp->plan;
    for (; *at < p->n_steps; ++*at) {
        const struct eng_xfer *x = &n->xfers[*at];
        if (p->steps[*at].kind != kind || !takes_part(n, *at) || x->finished_ns <= s->to)
            continue;
        uint64_t from = x->started_ns;
        if (kind == DL_STEP_RUN) {
            const struct eng_xfer *data = needed(n, *at);
            from = data ? data->finished_ns : n->began_ns;
        }
        *s = (struct span){DL_MAX(from, s->to), x->finished_ns};
        ++*at;
        return true;
    }
    return false;
}

/* What the first node did in this batch. */
static void count_times(dl_engine *e)
{
    const struct eng_node *n = &e->nodes[0];
    struct span run = {n->began_ns, n->began_ns}, xfer = run;
    uint32_t run_at = 0, xfer_at = 0;
    uint64_t compute = 0, exchange = 0, both = 0;
    bool runs = next_span(n, DL_STEP_RUN, &run_at, &run), xfers = next_span(n, DL_STEP_EXCHANGE, &xfer_at, &xfer);
    compute += runs ? run.to - run.from : 0;
    exchange += xfers ? xfer.to - xfer.from : 0;
    while (runs && xfers) {
        uint64_t from = DL_MAX(run.from, xfer.from), to = DL_MIN(run.to, xfer.to);
        both += to > from ? to - from : 0;
        if (run.to <= xfer.to) {
            runs = next_span(n, DL_STEP_RUN, &run_at, &run);
            compute += runs ? run.to - run.from : 0;
        } else {
            xfers = next_span(n, DL_STEP_EXCHANGE, &xfer_at, &xfer);
            exchange += xfers ? xfer.to - xfer.from : 0;
        }
    }
    while (runs && next_span(n, DL_STEP_RUN, &run_at, &run))
        compute += run.to - run.from;
    while (xfers && next_span(n, DL_STEP_EXCHANGE, &xfer_at, &xfer))
        exchange += xfer.to - xfer.from;
    uint64_t wall = dl_now_ns() - n->began_ns, busy = compute + exchange - both;
    e->stats.compute_ns += compute;
    e->stats.exchange_ns += exchange;
    e->stats.exchange_hidden_ns += both;
    e->stats.idle_ns += wall > busy ? wall - busy : 0;
}

/* ---------------------------------------------------------------------------------------------------- a batch */

/* Highest signal of a kind among the steps that took part. */
static uint64_t last_signal(const struct eng_node *n, enum dl_step_kind kind)
{
    const struct dl_plan *p = &n->mp->plan;
    uint64_t v = 0;
    for (uint32_t i = 0; i < p->n_steps; i++)
        if (p->steps[i].kind == kind && takes_part(n, i))
            v = p->steps[i].signal;
    return v;
}

static void next_bases(dl_engine *e)
{
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        struct eng_node *n = &e->nodes[d];
        n->device_base += last_signal(n, DL_STEP_RUN);
        n->host_base += last_signal(n, DL_STEP_EXCHANGE);
    }
}

static void begin(dl_engine *e, struct eng_node *n)
{
    n->lane_tokens[0] = e->batch.cut;
    n->lane_tokens[1] = e->batch.n_tokens - e->batch.cut;
    n->next_submit = n->last_run = 0;
    n->last_xfer = NULL;
    n->began_ns = dl_now_ns();
    bool alone = e->n_nodes == 1; /* the only device that this thread has to look after */
    n->drives = alone && n->transport && !n->lane_tokens[1];
    n->dev->computes_in_wait = alone;
    if (alone && n->transport && !n->drives)
        dl_transport_drive(n->transport, NULL, NULL, 0);
}

int eng_exec(dl_engine *e)
{
    const uint32_t n_tokens = e->batch.n_tokens, n_out = e->batch.n_out;
    e->bad_exchange = 0;
    e->bad_silence = false;
    for (uint32_t d = 0; d < e->n_nodes; d++)
        begin(e, &e->nodes[d]);
    int err = run_steps(e, n_out);
    if (!err)
        err = settle(e);
    for (uint32_t d = 0; d < e->n_nodes; d++)
        e->nodes[d].dev->computes_in_wait = false;
    if (!err) {
        count_times(e);
        next_bases(e);
    }
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
