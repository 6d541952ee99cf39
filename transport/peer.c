/* SPDX-License-Identifier: MIT
 *
 * transport/peer.c: what comes from a peer, the signs of life, and what follows when one is lost.
 *
 * Losing one node breaks the cluster for all: every node tells every other up to which collective it has sent its slices, so that what
 * can still be complete is completed, and everything else fails, on all nodes, soon. Messages between those that are
 * left still work, until they close.
 */
#include "tcp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool put(struct tp_peer *p, uint8_t type, uint8_t flags, uint64_t seq, const void *data, size_t n)
{
    const struct tp_frame f = {type, flags, (uint32_t)n, seq};
    return p->link && tp_link_put_copy(p->link, &f, data);
}

/* ------------------------------------------------------------------------------------------------------ frames */

static int refuse(struct tp_link *l)
{
    tp_link_fail(l, DL_EFORMAT, "it sends what does not belong here");
    return DL_EFORMAT;
}

static int begin_message(struct tp_peer *p, const struct tp_frame *f, void **dest)
{
    struct tp_tcp *t = p->t;
    pthread_mutex_lock(&t->lock);
    p->box_full = !tp_mailbox_fits(&p->box, f->length);
    bool full = p->box_full;
    pthread_mutex_unlock(&t->lock);
    if (full) {
        p->pause = TP_WAITS_FOR_READER;
        return TP_LATER;
    }
    p->incoming = tp_msg_room(f->length);
    if (!p->incoming) {
        tp_link_fail(p->link, DL_ENOMEM, "no memory for its message of %u bytes", f->length);
        return DL_ENOMEM;
    }
    *dest = p->incoming->bytes;
    return DL_OK;
}

static int peer_begin(struct tp_link *l, const struct tp_frame *f, void **dest)
{
    struct tp_peer *p = l->ud;
    switch (f->type) {
    case TP_DATA:
        return tp_coll_begin(p, f, dest);
    case TP_MSG:
        return begin_message(p, f, dest);
    case TP_PING:
    case TP_PONG:
    case TP_BROKEN:
    case TP_BYE:
    case TP_JOINED:
    case TP_MESH:
    case TP_READY:
    case TP_GO:
    case TP_FAIL:
        if (f->length > sizeof p->text)
            return refuse(l);
        *dest = p->text;
        return DL_OK;
    default:
        return refuse(l);
    }
}

static void got_message(struct tp_peer *p)
{
    struct tp_tcp *t = p->t;
    pthread_mutex_lock(&t->lock);
    tp_mailbox_put(&p->box, p->incoming, 0);
    t->stats.received_bytes += p->incoming->n;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    p->incoming = NULL;
}

static void got_pong(struct tp_peer *p, uint64_t seq)
{
    uint64_t now = dl_now_ns();
    if (!seq || seq > now)
        return;
    uint64_t least = atomic_load_explicit(&p->count.rtt_least, memory_order_relaxed), rtt = now - seq;
    atomic_store_explicit(&p->count.rtt, rtt, memory_order_relaxed);
    if (!least || rtt < least)
        atomic_store_explicit(&p->count.rtt_least, rtt, memory_order_relaxed);
}

static void set_gone(struct tp_peer *p)
{
    pthread_mutex_lock(&p->t->lock);
    p->gone = true;
    pthread_cond_broadcast(&p->t->changed);
    pthread_mutex_unlock(&p->t->lock);
}

static int got_broken(struct tp_peer *p, const struct tp_frame *f)
{
    struct tp_tcp *t = p->t;
    struct tp_broken b;
    const char *wrong = tp_broken_get(p->text, f->length, &b);
    if (wrong || b.node >= t->base.n_nodes || b.by >= t->base.n_nodes) {
        tp_link_fail(p->link, DL_EFORMAT, "%s", wrong ? wrong : "it has lost a node that there is not");
        return DL_EFORMAT;
    }
    p->limit = DL_MIN(p->limit, f->seq);
    tp_break(t, b.node, b.by, f->flags != 0, b.why);
    tp_coll_check(t);
    tp_coll_end(t);
    return DL_OK;
}

static int got_bye(struct tp_peer *p, const struct tp_frame *f)
{
    struct tp_tcp *t = p->t;
    struct tp_link *l = p->link;
    p->limit = DL_MIN(p->limit, f->seq);
    p->left = true;
    p->link = NULL;
    set_gone(p);
    tp_link_close(l);
    if (t->joining_lost)
        t->joining_lost(t, p->node, "it has left");
    tp_coll_check(t);
    tp_coll_end(t);
    return DL_ECANCELED;
}

static int peer_end(struct tp_link *l, const struct tp_frame *f)
{
    struct tp_peer *p = l->ud;
    struct tp_tcp *t = p->t;
    switch (f->type) {
    case TP_DATA:
        return tp_coll_got(p, f);
    case TP_MSG:
        got_message(p);
        return DL_OK;
    case TP_PING:
        if (put(p, TP_PONG, 0, f->seq, NULL, 0))
            tp_link_flush(l);
        return DL_OK;
    case TP_PONG:
        got_pong(p, f->seq);
        return DL_OK;
    case TP_BROKEN:
        return got_broken(p, f);
    case TP_BYE:
        return got_bye(p, f);
    default:
        return t->joining_frame ? t->joining_frame(t, p->node, f, p->text) : refuse(l);
    }
}

/* ------------------------------------------------------------------------------------------------------ the link */

static void peer_sent(struct tp_link *l, uint64_t token, bool ok)
{
    struct tp_peer *p = l->ud;
    struct tp_tcp *t = p->t;
    if (!(token & TP_MESSAGE_TOKEN)) {
        tp_coll_sent(t, token, ok);
        return;
    }
    pthread_mutex_lock(&t->lock);
    p->unsent -= (size_t)(token & ~TP_MESSAGE_TOKEN);
    if (t->n_waiting)
        pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

static void peer_lost(struct tp_link *l, int err, const char *why)
{
    struct tp_peer *p = l->ud;
    struct tp_tcp *t = p->t;
    (void)err;
    p->link = NULL;
    p->limit = DL_MIN(p->limit, p->got_seq);
    set_gone(p);
    if (t->hanging_up)
        return;
    if (t->joining_lost)
        t->joining_lost(t, p->node, why);
    else
        tp_break(t, p->node, t->base.node, false, why);
    tp_coll_check(t);
    tp_coll_end(t);
}

static void peer_gone(struct tp_link *l)
{
    struct tp_peer *p = l->ud;
    free(p->incoming);
    p->incoming = NULL;
    p->t->n_open--;
}

static const struct tp_link_fns peer_fns = {
    .begin = peer_begin,
    .end = peer_end,
    .sent = peer_sent,
    .lost = peer_lost,
    .gone = peer_gone,
};

void tp_peer_attach(struct tp_peer *p, struct tp_link *l)
{
    p->link = l;
    l->fns = &peer_fns;
    l->ud = p;
    atomic_store(&p->count.sent, atomic_load(&l->own_count.sent));
    atomic_store(&p->count.received, atomic_load(&l->own_count.received));
    l->count = &p->count;
    p->t->n_open++;
    if (tp_addr_is_near(&l->tcp))
        tp_loop_near(p->t->loop, true);
}

void tp_peer_finish(struct tp_peer *p)
{
    tp_mailbox_finish(&p->box);
    for (struct tp_ahead *a = p->ahead, *next; a; a = next) {
        next = a->next;
        free(a);
    }
    free(p->spare);
}

/* ------------------------------------------------------------------------------------------------------ life and death */

static void watch(struct tp_peer *p, uint64_t now, bool slept)
{
    struct tp_tcp *t = p->t;
    struct tp_link *l = p->link;
    if (slept)
        l->heard_ns = now;
    /* A link that is not read because there is no room says nothing about its peer. */
    if (!l->paused && now > l->heard_ns && now - l->heard_ns > t->dead_ns) {
        tp_link_fail(l, DL_EPEER, "no sign of life for %.1f s", (double)(now - l->heard_ns) * 1e-9);
        return;
    }
    /* What is queued already is a sign of life as soon as it gets through. */
    if (now > l->said_ns && now - l->said_ns >= t->beat_ns - DL_MIN(t->tick_ns, t->beat_ns) && tp_link_flushed(l) &&
        put(p, TP_PING, 0, now, NULL, 0))
        tp_link_flush(l);
}

void tp_peer_tick(struct tp_tcp *t)
{
    uint64_t now = dl_now_ns();
    /* This process was stopped, or the machine asleep: what was not heard then is nobody's fault. */
    bool slept = now - t->ticked_ns > t->tick_ns + t->dead_ns / 2;
    t->ticked_ns = now;
    for (int i = 0; i < t->base.n_nodes; i++)
        if (t->peers[i].link)
            watch(&t->peers[i], now, slept);
}

/* Who waits for room has it now: what is read is thrown away. */
static void resume_all(struct tp_tcp *t)
{
    for (int i = 0; i < t->base.n_nodes; i++) {
        struct tp_peer *p = &t->peers[i];
        if (p->link && p->pause == TP_WAITS_FOR_COLL) {
            p->pause = TP_READS;
            tp_link_resume(p->link);
        }
    }
}

void tp_break(struct tp_tcp *t, int node, int by, bool left, const char *why)
{
    if (t->broken)
        return;
    t->broken = true;
    t->my_limit = t->started;
    const int me = t->base.node;
    char seen[32] = "";
    if (by != me)
        snprintf(seen, sizeof seen, ", as node %d saw it", by);
    pthread_mutex_lock(&t->lock);
    if (!left && node == me) { /* who does not hear this node is what this node has lost */
        t->lost_node = by;
        snprintf(t->lost_why, sizeof t->lost_why, "it does not hear this node any more: %.180s", why);
    } else if (!left) {
        t->lost_node = node;
        snprintf(t->lost_why, sizeof t->lost_why, "%.200s%s", why, seen);
    }
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    if (!t->hanging_up)
        dl_log(DL_LOG_INFO, "transport: node %d (%s) is %s: %s%s", node, t->peers[node].name, left ? "gone" : "lost",
               why, seen);
    struct tp_broken b = {.node = (uint16_t)node, .by = (uint16_t)by};
    snprintf(b.why, sizeof b.why, "%s", why);
    struct dl_str text = {0};
    if (!tp_broken_put(&text, &b))
        for (int i = 0; i < t->base.n_nodes; i++)
            if (put(&t->peers[i], TP_BROKEN, left, t->my_limit, text.v, text.len) && t->peers[i].link)
                tp_link_flush(t->peers[i].link);
    dl_str_finish(&text);
    tp_coll_check(t);
    resume_all(t);
}
