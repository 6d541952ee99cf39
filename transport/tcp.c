/* SPDX-License-Identifier: MIT
 *
 * transport/tcp.c: a TCP transport as its callers see it: the functions of inside.h. Callers and the loop meet in an inbox for what is to
 * be done and in mailboxes for what has come; both are guarded by one lock that nobody holds while waiting for the network.
 */
#include "tcp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------------ the loop's side */

static void work_off(struct tp_tcp *t)
{
    for (size_t i = 0; i < t->work.n; i++) {
        struct tp_request *r = &t->work.v[i];
        if (!r->msg) {
            tp_coll_start(t, r);
            continue;
        }
        struct tp_peer *p = &t->peers[r->node];
        const struct tp_frame f = {TP_MSG, 0, (uint32_t)r->msg->n, 0};
        const size_t n = r->msg->n;
        if (p->link) {
            (void)tp_link_put(p->link, &f, r->msg->bytes, r->msg, TP_MESSAGE_TOKEN | n);
        } else {
            free(r->msg);
            pthread_mutex_lock(&t->lock);
            p->unsent -= n;
            pthread_cond_broadcast(&t->changed);
            pthread_mutex_unlock(&t->lock);
        }
    }
    t->work.n = 0;
}

/* A link that had to wait goes on when there is room again. */
static void resume(struct tp_peer *p, bool box_full)
{
    if (!p->link || p->pause == TP_READS || (p->pause == TP_WAITS_FOR_READER && box_full))
        return;
    p->pause = TP_READS;
    tp_link_resume(p->link);
}

static void wake(void *ud, bool inside)
{
    struct tp_tcp *t = ud;
    const int n = t->base.n_nodes, me = t->base.node;
    t->inside = inside;
    pthread_mutex_lock(&t->lock);
    struct tp_requests work = t->inbox;
    t->inbox = t->work;
    t->work = work;
    bool ping = t->ping;
    t->ping = false;
    pthread_mutex_unlock(&t->lock);
    /* What ends meanwhile waits until the tables are at rest. */
    t->ending = true;
    work_off(t);
    t->ending = false;
    for (int k = 1; k < n; k++) {
        struct tp_peer *p = &t->peers[(me + k) % n];
        const struct tp_frame f = {TP_PING, 0, 0, dl_now_ns()};
        if (ping && p->link)
            (void)tp_link_put(p->link, &f, NULL, NULL, TP_NO_TOKEN);
        if (p->link)
            tp_link_flush(p->link);
    }
    for (int i = 0; i < n && !inside; i++) {
        struct tp_peer *p = &t->peers[i];
        if (!p->link || p->pause == TP_READS)
            continue;
        pthread_mutex_lock(&t->lock);
        bool full = p->box_full;
        pthread_mutex_unlock(&t->lock);
        resume(p, full);
    }
    t->inside = false;
    if (!inside)
        tp_coll_end(t);
}

static bool busy(void *ud)
{
    return tp_coll_pending(ud);
}

static void ticked(uv_timer_t *timer)
{
    tp_peer_tick(timer->data);
}

/* ------------------------------------------------------------------------------------------------------ the callers' side */

static struct tp_tcp *tcp_of(dl_transport *t)
{
    return (struct tp_tcp *)t;
}

/* Locked. */
static int request(struct tp_tcp *t, const struct tp_request *r)
{
    void *v = t->inbox.v;
    int err = dl_grow(&v, &t->inbox.cap, t->inbox.n + 1, sizeof *t->inbox.v);
    t->inbox.v = v;
    if (!err)
        t->inbox.v[t->inbox.n++] = *r;
    return err;
}

static int tcp_start(dl_transport *transport, const struct dl_xfer *x, dl_xfer_done *done, void *ud)
{
    struct tp_tcp *t = tcp_of(transport);
    pthread_mutex_lock(&t->lock);
    int err = t->closing ? DL_ECANCELED : request(t, &(struct tp_request){.x = *x, .done = done, .ud = ud});
    pthread_mutex_unlock(&t->lock);
    if (!err)
        tp_loop_wake(t->loop);
    return err;
}

static int gone(const struct tp_tcp *t, int node)
{
    dl_log(DL_LOG_DEBUG, "transport: node %d has lost node %d", t->base.node, node);
    return DL_EPEER;
}

static int tcp_send(dl_transport *transport, int node, const void *msg, size_t n)
{
    struct tp_tcp *t = tcp_of(transport);
    struct tp_peer *p = &t->peers[node];
    const size_t most = TP_MAILBOX_BYTES - sizeof(struct tp_msg);
    struct tp_msg *copy = NULL;
    if (n <= most && !(copy = tp_msg_make(msg, n)))
        return DL_ENOMEM;
    pthread_mutex_lock(&t->lock);
    int err = DL_OK;
    if (t->closing)
        err = DL_ECANCELED;
    else if (p->gone)
        err = gone(t, node);
    else if (!copy || n > most - DL_MIN(most, p->unsent))
        err = dl_fail(DL_ELIMIT, "transport: node %d does not read: %zu bytes wait for it, %zu more are too many", node,
                      p->unsent, n);
    else
        err = request(t, &(struct tp_request){.msg = copy, .node = node});
    if (!err) {
        p->unsent += n;
        t->stats.sent_bytes += n;
        copy = NULL;
    }
    pthread_mutex_unlock(&t->lock);
    free(copy);
    if (!err)
        tp_loop_wake(t->loop);
    return err;
}

/* A thread leaves recv or drain: close may be waiting for it. Locked. */
static void waited(struct tp_tcp *t)
{
    t->n_waiting--;
    if (t->closing)
        pthread_cond_broadcast(&t->changed);
}

struct news {
    struct tp_tcp *t;
    const struct tp_peer *p;
};

/* Locked. */
static bool any_news(const struct news *n)
{
    return n->t->closing || n->p->box.first || n->p->gone;
}

static bool has_news(void *ud)
{
    const struct news *n = ud;
    pthread_mutex_lock(&n->t->lock);
    bool any = any_news(n);
    pthread_mutex_unlock(&n->t->lock);
    return any;
}

/* Waits for a message, or why there is none; one thread at a time drives the loop where its own thread stays away. Locked. */
static void wait_for_news(struct news *n, uint64_t deadline)
{
    struct tp_tcp *t = n->t;
    while (!any_news(n) && dl_now_ns() < deadline) {
        if (t->receiving || !tp_loop_leased(t->loop)) {
            tp_cond_wait_until(&t->changed, &t->lock, deadline);
            continue;
        }
        t->receiving = true;
        pthread_mutex_unlock(&t->lock);
        tp_loop_drive(t->loop, has_news, n, deadline);
        pthread_mutex_lock(&t->lock);
        t->receiving = false;
        if (t->n_waiting > 1)
            pthread_cond_broadcast(&t->changed); /* another one drives from here on */
    }
}

static int tcp_recv(dl_transport *transport, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns)
{
    struct tp_tcp *t = tcp_of(transport);
    struct tp_peer *p = &t->peers[node];
    struct tp_msg *got = NULL;
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    int err = DL_OK;
    pthread_mutex_lock(&t->lock);
    t->n_waiting++;
    wait_for_news(&(struct news){t, p}, deadline);
    if (t->closing)
        err = DL_ECANCELED;
    else if (!p->box.first)
        err = p->gone ? gone(t, node) : DL_ETIMEDOUT;
    else if ((*n = p->box.first->n) > cap)
        err = DL_ELIMIT;
    else
        got = tp_mailbox_take(&p->box);
    bool room = got && p->box_full && p->box.bytes <= TP_MAILBOX_BYTES / 2;
    if (room)
        p->box_full = false;
    waited(t);
    pthread_mutex_unlock(&t->lock);
    if (room)
        tp_loop_wake(t->loop);
    if (got && got->n)
        memcpy(msg, got->bytes, got->n);
    free(got);
    return err;
}

static int tcp_drain(dl_transport *transport, int node, size_t most, uint64_t timeout_ns)
{
    struct tp_tcp *t = tcp_of(transport);
    const struct tp_peer *p = &t->peers[node];
    const uint64_t deadline = tp_later(dl_now_ns(), timeout_ns);
    int err = DL_OK;
    pthread_mutex_lock(&t->lock);
    t->n_waiting++;
    while (!t->closing && !p->gone && p->unsent > most && dl_now_ns() < deadline)
        tp_cond_wait_until(&t->changed, &t->lock, deadline);
    if (t->closing)
        err = DL_ECANCELED;
    else if (p->gone)
        err = gone(t, node);
    else if (p->unsent > most)
        err = DL_ETIMEDOUT;
    waited(t);
    pthread_mutex_unlock(&t->lock);
    return err;
}

static void tcp_drive(dl_transport *transport, bool (*enough)(void *ud), void *ud, uint64_t timeout_ns)
{
    tp_loop_drive(tcp_of(transport)->loop, enough, ud, tp_later(dl_now_ns(), timeout_ns));
}

static void tcp_stats(dl_transport *transport, struct dl_transport_stats *out)
{
    struct tp_tcp *t = tcp_of(transport);
    pthread_mutex_lock(&t->lock);
    *out = t->stats;
    pthread_mutex_unlock(&t->lock);
}

static void tcp_link_stats(dl_transport *transport, int node, struct dl_link_stats *out)
{
    struct tp_count *c = &tcp_of(transport)->peers[node].count;
    out->sent_bytes = atomic_load_explicit(&c->sent, memory_order_relaxed);
    out->received_bytes = atomic_load_explicit(&c->received, memory_order_relaxed);
    out->rtt_ns = atomic_load_explicit(&c->rtt, memory_order_relaxed);
    out->rtt_least_ns = atomic_load_explicit(&c->rtt_least, memory_order_relaxed);
}

static void tcp_node_info(dl_transport *transport, int node, struct dl_node_info *out)
{
    const struct tp_peer *p = &tcp_of(transport)->peers[node];
    *out = (struct dl_node_info){p->name, p->about, p->features};
}

static int tcp_lost(dl_transport *transport, char *why, size_t cap)
{
    struct tp_tcp *t = tcp_of(transport);
    pthread_mutex_lock(&t->lock);
    int node = t->lost_node;
    if (node >= 0)
        snprintf(why, cap, "%s", t->lost_why);
    pthread_mutex_unlock(&t->lock);
    return node;
}

static void tcp_ping(dl_transport *transport)
{
    struct tp_tcp *t = tcp_of(transport);
    pthread_mutex_lock(&t->lock);
    t->ping = true;
    pthread_mutex_unlock(&t->lock);
    tp_loop_wake(t->loop);
}

/* ------------------------------------------------------------------------------------------------------ closing */

static void timer_closed(uv_handle_t *handle)
{
    struct tp_tcp *t = handle->data;
    t->n_open--;
}

void tp_tcp_close_links(struct tp_tcp *t)
{
    t->hanging_up = true;
    t->joining_lost = NULL;
    t->joining_frame = NULL;
    for (int i = 0; i < t->base.n_nodes; i++) {
        struct tp_link *l = t->peers[i].link;
        t->peers[i].link = NULL;
        if (l)
            tp_link_close(l);
    }
    if (t->ticking)
        uv_close((uv_handle_t *)&t->tick, timer_closed);
    t->ticking = false;
}

void tp_tcp_hang_up(struct tp_tcp *t)
{
    tp_tcp_close_links(t);
    while (t->n_open)
        tp_loop_turn(t->loop, true);
    tp_loop_remove(t->loop, &t->client);
}

static bool any_link(const struct tp_tcp *t)
{
    for (int i = 0; i < t->base.n_nodes; i++)
        if (t->peers[i].link)
            return true;
    return false;
}

/* Each peer closes its end when it has read everything, so that nothing that is on the way gets lost. */
static void say_goodbye(struct tp_tcp *t)
{
    t->hanging_up = true;
    const struct tp_frame bye = {TP_BYE, 0, 0, t->started};
    for (int i = 0; i < t->base.n_nodes; i++)
        if (t->peers[i].link && tp_link_put(t->peers[i].link, &bye, NULL, NULL, TP_NO_TOKEN) && t->peers[i].link)
            tp_link_flush(t->peers[i].link);
    const uint64_t deadline = dl_now_ns() + (uint64_t)TP_CLOSE_MS * 1000000;
    while (any_link(t) && dl_now_ns() < deadline)
        tp_loop_turn(t->loop, true); /* the tick ends its sleep */
}

static void tcp_close(dl_transport *transport)
{
    struct tp_tcp *t = tcp_of(transport);
    pthread_mutex_lock(&t->lock);
    t->closing = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    struct tp_loop *loop = t->loop;
    tp_loop_enter(loop);
    wake(t, false);
    tp_coll_cancel(t);
    say_goodbye(t);
    tp_tcp_hang_up(t);
    tp_coll_end(t); /* now no link holds anything of theirs */
    if (t->released)
        t->released(t->released_ud);
    tp_loop_leave(loop);
    pthread_mutex_lock(&t->lock);
    while (t->n_waiting)
        pthread_cond_wait(&t->changed, &t->lock);
    pthread_mutex_unlock(&t->lock);
    bool own = t->own_loop;
    tp_tcp_destroy(t);
    if (own)
        tp_loop_destroy(&loop);
}

/* ------------------------------------------------------------------------------------------------------ creating */

static const struct tp_fns fns = {
    .start = tcp_start,
    .send = tcp_send,
    .recv = tcp_recv,
    .drain = tcp_drain,
    .drive = tcp_drive,
    .stats = tcp_stats,
    .link_stats = tcp_link_stats,
    .node_info = tcp_node_info,
    .lost = tcp_lost,
    .ping = tcp_ping,
    .close = tcp_close,
};

int tp_tcp_create(struct tp_loop *loop, int node, int n_nodes, struct tp_tcp **out)
{
    struct tp_tcp *t = dl_calloc(1, sizeof *t);
    struct tp_peer *peers = dl_calloc((size_t)n_nodes, sizeof *peers);
    if (!t || !peers) {
        free(t);
        free(peers);
        return DL_ENOMEM;
    }
    t->base = (struct dl_transport){&fns, node, n_nodes};
    t->loop = loop;
    t->peers = peers;
    t->client = (struct tp_client){.wake = wake, .busy = busy, .ud = t};
    t->lost_node = -1;
    pthread_mutex_init(&t->lock, NULL);
    tp_cond_init(&t->changed);
    for (int i = 0; i < n_nodes; i++)
        peers[i] = (struct tp_peer){.t = t, .node = i, .limit = UINT64_MAX};
    for (int i = 0; i < n_nodes; i++)
        peers[i].ahead_end = &peers[i].ahead;
    tp_loop_add(loop, &t->client);
    tp_loop_near(loop, false);
    *out = t;
    return DL_OK;
}

int tp_tcp_watch(struct tp_tcp *t, uint32_t beat_ms, uint32_t dead_ms)
{
    t->beat_ns = (uint64_t)beat_ms * 1000000;
    t->dead_ns = (uint64_t)dead_ms * 1000000;
    const uint64_t tick_ms = DL_MAX(beat_ms / 3, 1u);
    t->tick_ns = tick_ms * 1000000;
    t->ticked_ns = dl_now_ns();
    int code = uv_timer_init(tp_loop_uv(t->loop), &t->tick);
    if (code)
        return dl_fail(DL_EIO, "transport: no timer: %s", uv_strerror(code));
    t->tick.data = t;
    t->ticking = true;
    t->n_open++;
    code = tp_timer_start(t->loop, &t->tick, ticked, tick_ms);
    return code ? dl_fail(DL_EIO, "transport: no timer: %s", uv_strerror(code)) : DL_OK;
}

void tp_tcp_destroy(struct tp_tcp *t)
{
    for (int i = 0; i < t->base.n_nodes; i++)
        tp_peer_finish(&t->peers[i]);
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
    free(t->peers);
    free(t->colls);
    free(t->inbox.v);
    free(t->work.v);
    free(t);
}
