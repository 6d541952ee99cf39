/* SPDX-License-Identifier: MIT
 *
 * transport/loopback.c: a cluster inside one process: for several devices of one node, and for tests, for which it plays slow links
 * and a node that dies. One lock guards everything; one dispatcher thread copies the slices of a collective once all nodes
 * have started it, and calls every `done`.
 *
 * A collective is settled when its slices are copied or it is known that this will never be. What is settled ends as it is,
 * however late its `done` is due; only what is not yet settled ends with DL_EPEER when a node goes.
 */
#include "inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mailbox.h"

#define MOST_NODES 1024

/* A collective that a node has started and that has not ended for it. */
struct entry {
    struct dl_xfer x;
    dl_xfer_done *done;
    void *ud;
    bool settled;
    int status;
    uint64_t due_ns, started_ns;
};

/* One node. They are part of their cluster and live until all are closed. */
struct node {
    struct dl_transport base;
    struct cluster *c;
    char name[16];
    bool gone, closing;   /* gone: dead or closed, as the others see it */
    bool in_done;         /* the dispatcher is in a `done` of this node */
    uint64_t joined;      /* it takes part in collectives 0 .. joined - 1; fixed once it is gone */
    uint64_t started;     /* collectives that its owner has started */
    uint64_t n_sends;     /* messages that its owner has sent or tried to */
    uint64_t last_due_ns; /* of a `done`: the next one comes no earlier */
    struct entry *v;      /* those that have not ended, v[head .. len), the last one is number started - 1 */
    size_t head, len, cap;
    unsigned n_waiting;     /* threads inside recv, drain and drive */
    pthread_cond_t changed; /* for these and close */
    struct tp_mailbox *from;
    uint64_t rng_coll, rng_msg;
    uint64_t out_free_ns, in_free_ns; /* when its end of the network has carried what was given to it */
    struct dl_transport_stats stats;
};

struct cluster {
    pthread_mutex_t lock;
    pthread_cond_t wake; /* the dispatcher */
    pthread_t dispatcher;
    struct dl_loopback_faults faults;
    int n_nodes, n_open;
    bool quit, said;         /* said: the log knows that a node is gone */
    struct dl_xfer *scratch; /* one per node; the dispatcher's */
    uint64_t round;          /* collectives whose slices are copied, or being copied */
    uint64_t limit;          /* collectives from here on will never have all nodes */
    struct node nodes[];
};

static uint64_t random_of(uint64_t *state) /* SplitMix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static bool plays_network(const struct cluster *c)
{
    return c->faults.delay_ns || c->faults.jitter_ns || c->faults.bytes_per_s;
}

/* When n bytes that `from` sends at sent_ns are with `to`: they leave after what left before, and the last of them comes when `to` has
 * taken in what came before. Locked. */
static uint64_t arrival(struct node *from, struct node *to, size_t n, uint64_t sent_ns, uint64_t *rng)
{
    const struct dl_loopback_faults *f = &from->c->faults;
    if (!plays_network(from->c))
        return 0;
    uint64_t way = tp_later(f->delay_ns, f->jitter_ns ? random_of(rng) % f->jitter_ns : 0);
    if (!f->bytes_per_s)
        return tp_later(sent_ns, way);
    uint64_t takes = (uint64_t)((double)n * 1e9 / (double)f->bytes_per_s);
    from->out_free_ns = tp_later(DL_MAX(from->out_free_ns, sent_ns), takes);
    to->in_free_ns = DL_MAX(tp_later(to->in_free_ns, takes), tp_later(from->out_free_ns, way));
    return to->in_free_ns;
}

/* A node takes part in nothing from collective `joined` on. Locked. */
static void leave(struct node *t)
{
    struct cluster *c = t->c;
    t->gone = true;
    c->limit = DL_MIN(c->limit, t->joined);
    for (int i = 0; i < c->n_nodes; i++)
        pthread_cond_broadcast(&c->nodes[i].changed);
    pthread_cond_signal(&c->wake);
}

/* ------------------------------------------------------------------------------------------- the dispatcher */

static struct entry *entry_of(struct node *t, uint64_t number)
{
    return &t->v[t->len - (size_t)(t->started - number)];
}

static void settle(struct node *t, struct entry *e, int status, uint64_t due_ns)
{
    e->settled = true;
    e->status = status;
    e->due_ns = t->last_due_ns = DL_MAX(due_ns, t->last_due_ns);
}

/* All nodes have started the collective `round`: copies its slices with the lock released, which nobody disturbs, since only the
 * dispatcher ends an entry and the data is pinned until then. */
static void exchange(struct cluster *c)
{
    struct dl_xfer *x = c->scratch;
    uint64_t number = c->round++;
    const int n = c->n_nodes;
    int status = DL_OK;
    for (int i = 0; i < n; i++) {
        x[i] = entry_of(&c->nodes[i], number)->x;
        if (x[i].kind != x[0].kind || x[i].slice_bytes != x[0].slice_bytes)
            status = dl_fail(
                DL_EINVAL, "transport: collective %llu is kind %d of %zu bytes on node 0, kind %d of %zu on node %d",
                (unsigned long long)number, (int)x[0].kind, x[0].slice_bytes, (int)x[i].kind, x[i].slice_bytes, i);
    }
    pthread_mutex_unlock(&c->lock);
    const size_t bytes = x[0].slice_bytes;
    for (int to = 0; to < n && !status && bytes; to++)
        for (int from = 0; from < n; from++) {
            unsigned char *dst = tp_slice_from(&x[to], from);
            const unsigned char *src = tp_slice_to(&x[from], n, from, to);
            bool gets = tp_receives(x[0].kind, to, from) || (to == from && x[0].kind == DL_XFER_ALL_TO_ALL);
            if (gets && dst != src) /* nodes may share one buffer */
                memcpy(dst, src, bytes);
        }
    pthread_mutex_lock(&c->lock);
    for (int k = 1; k < n; k++) /* each to those after him first */
        for (int from = 0; from < n; from++) {
            struct node *sender = &c->nodes[from], *t = &c->nodes[(from + k) % n];
            if (!tp_receives(x[0].kind, t->base.node, from))
                continue;
            struct entry *e = entry_of(t, number);
            uint64_t sent = entry_of(sender, number)->started_ns;
            e->due_ns = DL_MAX(e->due_ns, arrival(sender, t, bytes, sent, &sender->rng_coll));
            if (!status) {
                t->stats.received_bytes += bytes;
                sender->stats.sent_bytes += bytes;
            }
        }
    for (int to = 0; to < n; to++) {
        struct entry *e = entry_of(&c->nodes[to], number);
        settle(&c->nodes[to], e, status, e->due_ns);
    }
}

static int who_is_gone(const struct cluster *c)
{
    int i = 0;
    while (i < c->n_nodes - 1 && !(c->nodes[i].gone && c->nodes[i].joined == c->limit))
        i++;
    return i;
}

static bool all_joined(const struct cluster *c)
{
    for (int i = 0; i < c->n_nodes; i++)
        if (c->nodes[i].joined <= c->round)
            return false;
    return true;
}

/* What can never have all nodes has lost one; what a node that is closing has not heard of yet is cancelled, and at once. */
static void settle_hopeless(struct cluster *c)
{
    if (c->limit == UINT64_MAX) /* nobody is gone */
        return;
    for (int i = 0; i < c->n_nodes; i++) {
        struct node *t = &c->nodes[i];
        for (size_t k = t->head; k < t->len; k++) {
            struct entry *e = &t->v[k];
            if (t->closing) {
                e->status = e->settled && e->status ? e->status : DL_ECANCELED;
                e->settled = true;
                e->due_ns = 0;
            } else if (!e->settled && t->started - (t->len - k) >= c->limit) {
                if (!c->said)
                    dl_log(DL_LOG_INFO, "transport: node %d is gone: what it takes part in fails", who_is_gone(c));
                c->said = true;
                settle(t, e, DL_EPEER, 0);
            }
        }
    }
}

/* The node whose oldest entry is settled and due first, NULL where none is settled. */
static struct node *next_due(struct cluster *c)
{
    struct node *first = NULL;
    for (int i = 0; i < c->n_nodes; i++) {
        struct node *t = &c->nodes[i];
        if (t->head < t->len && t->v[t->head].settled &&
            (!first || t->v[t->head].due_ns < first->v[first->head].due_ns))
            first = t;
    }
    return first;
}

static void finish(struct cluster *c, struct node *t)
{
    struct entry e = t->v[t->head++];
    if (t->head == t->len)
        t->head = t->len = 0;
    t->in_done = true;
    pthread_mutex_unlock(&c->lock);
    e.done(e.ud, e.status);
    pthread_mutex_lock(&c->lock);
    t->in_done = false;
    if (t->n_waiting || (t->closing && !t->len))
        pthread_cond_broadcast(&t->changed);
}

static void *dispatch(void *arg)
{
    struct cluster *c = arg;
    pthread_mutex_lock(&c->lock);
    while (!c->quit) {
        settle_hopeless(c);
        struct node *t = next_due(c);
        uint64_t due = t ? t->v[t->head].due_ns : UINT64_MAX;
        if (t && (!due || due <= dl_now_ns()))
            finish(c, t);
        else if (c->round < c->limit && all_joined(c))
            exchange(c);
        else
            tp_cond_wait_until(&c->wake, &c->lock, due);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* ------------------------------------------------------------------------------------- the functions of a transport */

static int push(struct node *t, const struct entry *e)
{
    if (t->head && t->len == t->cap) {
        memmove(t->v, t->v + t->head, (t->len - t->head) * sizeof *t->v);
        t->len -= t->head;
        t->head = 0;
    }
    void *v = t->v;
    int err = dl_grow(&v, &t->cap, t->len + 1, sizeof *t->v);
    t->v = v;
    if (!err)
        t->v[t->len++] = *e;
    return err;
}

static int lb_start(dl_transport *transport, const struct dl_xfer *x, dl_xfer_done *done, void *ud)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    const uint64_t now = plays_network(c) ? dl_now_ns() : 0;
    pthread_mutex_lock(&c->lock);
    int err = t->closing ? DL_ECANCELED : push(t, &(struct entry){.x = *x, .done = done, .ud = ud, .started_ns = now});
    if (!err) {
        t->started++;
        if (!t->gone && c->faults.die_after == t->started && c->faults.die_node == t->base.node)
            leave(t);
        else if (!t->gone)
            t->joined = t->started;
        if (c->limit != UINT64_MAX || all_joined(c))
            pthread_cond_signal(&c->wake);
    }
    pthread_mutex_unlock(&c->lock);
    return err;
}

static int gone(const struct node *t, int node)
{
    dl_log(DL_LOG_DEBUG, "transport: node %d has lost node %d", t->base.node, node);
    return DL_EPEER;
}

static int lb_send(dl_transport *transport, int node, const void *msg, size_t n)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    struct tp_mailbox *box = &c->nodes[node].from[t->base.node];
    int err = DL_OK;
    struct tp_msg *copy = NULL;
    if (tp_mailbox_fits(&(struct tp_mailbox){0}, n) && !(copy = tp_msg_make(msg, n)))
        return DL_ENOMEM;
    pthread_mutex_lock(&c->lock);
    if (++t->n_sends == c->faults.die_after_sends && c->faults.die_node == t->base.node && !t->gone)
        leave(t);
    if (t->closing) {
        err = DL_ECANCELED;
    } else if (t->gone || c->nodes[node].gone) {
        err = gone(t, node);
    } else if (!copy || !tp_mailbox_fits(box, n)) {
        err = dl_fail(DL_ELIMIT, "transport: node %d does not read: %zu bytes wait for it, %zu more are too many", node,
                      box->bytes, n);
    } else {
        tp_mailbox_put(box, copy, arrival(t, &c->nodes[node], n, dl_now_ns(), &t->rng_msg));
        copy = NULL;
        t->stats.sent_bytes += n;
        pthread_cond_broadcast(&c->nodes[node].changed);
    }
    pthread_mutex_unlock(&c->lock);
    free(copy);
    return err;
}

/* A thread leaves recv, drain or drive: close may be waiting for it. Locked. */
static void waited(struct node *t)
{
    t->n_waiting--;
    if (t->closing)
        pthread_cond_broadcast(&t->changed);
}

static int lb_recv(dl_transport *transport, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    int err = DL_OK;
    struct tp_mailbox *box = &t->from[node];
    struct tp_msg *got = NULL;
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    pthread_mutex_lock(&c->lock);
    t->n_waiting++;
    for (;;) {
        uint64_t now = dl_now_ns(), due = box->first ? box->first->due_ns : UINT64_MAX;
        if (t->closing) {
            err = DL_ECANCELED;
        } else if (t->gone || (!box->first && c->nodes[node].gone)) {
            err = gone(t, node);
        } else if (box->first && due <= now) {
            *n = box->first->n;
            if (*n > cap)
                err = DL_ELIMIT;
            else
                got = tp_mailbox_take(box);
        } else if (now >= deadline) {
            err = DL_ETIMEDOUT;
        } else {
            tp_cond_wait_until(&t->changed, &c->lock, DL_MIN(deadline, due));
            continue;
        }
        break;
    }
    if (got) {
        t->stats.received_bytes += got->n;
        pthread_cond_broadcast(&c->nodes[node].changed); /* it may be in drain */
    }
    waited(t);
    pthread_mutex_unlock(&c->lock);
    if (got && got->n)
        memcpy(msg, got->bytes, got->n);
    free(got);
    return err;
}

static int lb_drain(dl_transport *transport, int node, size_t most, uint64_t timeout_ns)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    const struct tp_mailbox *box = &c->nodes[node].from[t->base.node];
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    int err = DL_OK;
    pthread_mutex_lock(&c->lock);
    t->n_waiting++;
    for (;;) {
        if (t->closing)
            err = DL_ECANCELED;
        else if (t->gone || c->nodes[node].gone)
            err = gone(t, node);
        else if (box->bytes > most && dl_now_ns() >= deadline)
            err = DL_ETIMEDOUT;
        if (err || box->bytes <= most)
            break;
        tp_cond_wait_until(&t->changed, &c->lock, deadline);
    }
    waited(t);
    pthread_mutex_unlock(&c->lock);
    return err;
}

/* There is nothing that the caller could do better than the dispatcher. */
static void lb_drive(dl_transport *transport, bool (*enough)(void *ud), void *ud, uint64_t timeout_ns)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    pthread_mutex_lock(&c->lock);
    t->n_waiting++;
    while (enough && !t->closing && !enough(ud) && dl_now_ns() < deadline)
        tp_cond_wait_until(&t->changed, &c->lock, deadline);
    waited(t);
    pthread_mutex_unlock(&c->lock);
}

static void lb_stats(dl_transport *transport, struct dl_transport_stats *out)
{
    const struct node *t = (const struct node *)transport;
    pthread_mutex_lock(&t->c->lock);
    *out = t->stats;
    pthread_mutex_unlock(&t->c->lock);
}

static void lb_node_info(dl_transport *transport, int node, struct dl_node_info *out)
{
    out->name = ((const struct node *)transport)->c->nodes[node].name;
}

static int lb_lost(dl_transport *transport, char *why, size_t cap)
{
    struct cluster *c = ((struct node *)transport)->c;
    int lost = -1;
    pthread_mutex_lock(&c->lock);
    for (int i = c->n_nodes - 1; i >= 0; i--)
        if (c->nodes[i].gone && !c->nodes[i].closing)
            lost = i;
    pthread_mutex_unlock(&c->lock);
    if (lost >= 0)
        snprintf(why, cap, "it was told to die");
    return lost;
}

/* ------------------------------------------------------------------------------------------- open and close */

/* Everything but the dispatcher, which has ended or never was. */
static void cluster_free(struct cluster *c)
{
    for (int i = 0; i < c->n_nodes; i++) {
        struct node *t = &c->nodes[i];
        for (int k = 0; k < c->n_nodes && t->from; k++)
            tp_mailbox_finish(&t->from[k]);
        pthread_cond_destroy(&t->changed);
        free(t->from);
        free(t->v);
    }
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->lock);
    free(c->scratch);
    free(c);
}

static void lb_close(dl_transport *transport)
{
    struct node *t = (struct node *)transport;
    struct cluster *c = t->c;
    pthread_mutex_lock(&c->lock);
    t->closing = true;
    t->joined = DL_MIN(t->joined, c->round);
    leave(t);
    while (t->len || t->in_done || t->n_waiting)
        pthread_cond_wait(&t->changed, &c->lock);
    bool last = --c->n_open == 0;
    c->quit = last;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    if (last) {
        pthread_join(c->dispatcher, NULL);
        cluster_free(c);
    }
}

static const struct tp_fns fns = {
    .start = lb_start,
    .send = lb_send,
    .recv = lb_recv,
    .drain = lb_drain,
    .drive = lb_drive,
    .stats = lb_stats,
    .node_info = lb_node_info,
    .lost = lb_lost,
    .close = lb_close,
};

int dl_loopback_open(int n_nodes, const struct dl_loopback_faults *faults, dl_transport **out)
{
    if (n_nodes < 1 || n_nodes > MOST_NODES)
        return dl_fail(DL_EINVAL, "transport: %d nodes in one process: 1 to %d are possible", n_nodes, MOST_NODES);
    if (faults && (faults->die_after || faults->die_after_sends) &&
        (faults->die_node < 0 || faults->die_node >= n_nodes))
        return dl_fail(DL_EINVAL, "transport: node %d cannot die, there are %d nodes", faults->die_node, n_nodes);
    for (int i = 0; i < n_nodes; i++)
        out[i] = NULL;
    const size_t n = (size_t)n_nodes;
    struct cluster *c = dl_calloc(1, sizeof *c + n * sizeof c->nodes[0]);
    if (!c)
        return DL_ENOMEM;
    c->n_nodes = c->n_open = n_nodes;
    c->limit = UINT64_MAX;
    if (faults)
        c->faults = *faults;
    pthread_mutex_init(&c->lock, NULL);
    tp_cond_init(&c->wake);
    c->scratch = dl_calloc(n, sizeof *c->scratch);
    int err = c->scratch ? DL_OK : DL_ENOMEM;
    uint64_t seed = c->faults.seed;
    for (int i = 0; i < n_nodes; i++) {
        struct node *t = &c->nodes[i];
        *t = (struct node){
            .base = {&fns, i, n_nodes}, .c = c, .rng_coll = random_of(&seed), .rng_msg = random_of(&seed)};
        snprintf(t->name, sizeof t->name, "node %d", i);
        tp_cond_init(&t->changed);
        t->from = dl_calloc(n, sizeof *t->from);
        err = t->from ? err : DL_ENOMEM;
    }
    if (!err) {
        int code = pthread_create(&c->dispatcher, NULL, dispatch, c);
        if (code)
            err = dl_fail(DL_EIO, "transport: cannot start a thread: %s", strerror(code));
    }
    if (err) {
        cluster_free(c);
        return err;
    }
    for (int i = 0; i < n_nodes; i++)
        out[i] = &c->nodes[i].base;
    return DL_OK;
}
