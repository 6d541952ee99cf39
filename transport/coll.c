/* SPDX-License-Identifier: MIT
 *
 * transport/coll.c: collectives over links. All are one-shot: whoever has a slice sends it to everyone who is to get it, those after
 * him first, so that not all begin with the same receiver. A slice goes straight from the collective's memory to the
 * sockets, and from the sockets to the collective's memory where it has been started, else to a bounded buffer.
 */
#include "tcp.h"

#include <stdlib.h>
#include <string.h>

static struct tp_coll *coll_of(struct tp_tcp *t, uint64_t seq)
{
    return seq >= t->ended && seq < t->started ? &t->colls[t->colls_head + (size_t)(seq - t->ended)] : NULL;
}

/* Nothing may be written to its memory any more; what of it is still queued on links goes out nevertheless. */
static void fail(struct tp_tcp *t, uint64_t seq, int status)
{
    struct tp_coll *c = coll_of(t, seq);
    if (c->status)
        return;
    c->status = status;
    for (int i = 0; i < t->base.n_nodes; i++) {
        struct tp_peer *p = &t->peers[i];
        struct tp_reader *r = p->link ? &p->link->reader : NULL;
        if (r && r->in_payload && r->frame.type == TP_DATA && r->frame.seq == seq && !p->filling)
            tp_reader_discard(r);
    }
}

static void out_of_step(struct tp_tcp *t, const struct tp_peer *p, uint64_t seq)
{
    const struct tp_coll *c = coll_of(t, seq);
    const struct dl_xfer x = c->x;
    fail(t, seq,
         dl_fail(DL_EINVAL, "transport: collective %llu is kind %d of %zu bytes here, on node %d it is not",
                 (unsigned long long)seq, (int)x.kind, x.slice_bytes, p->node));
    tp_break(t, p->node, t->base.node, false, "it is out of step");
}

/* ------------------------------------------------------------------------------------------------------ starting */

static void drop_first(struct tp_peer *p)
{
    struct tp_ahead *a = p->ahead;
    p->ahead = a->next;
    if (!p->ahead)
        p->ahead_end = &p->ahead;
    p->ahead_bytes -= sizeof *a + a->n;
    if (!p->spare || p->spare->cap < a->cap) {
        free(p->spare);
        p->spare = a;
    } else {
        free(a);
    }
}

/* The first slice that waits, which is one of collective `seq`, becomes part of it. False: it does not fit. */
static bool deliver(struct tp_peer *p, uint64_t seq)
{
    struct tp_tcp *t = p->t;
    const struct tp_coll *c = coll_of(t, seq);
    const struct tp_ahead *a = p->ahead;
    bool fits = a->kind == c->x.kind && a->n == c->x.slice_bytes && tp_receives(c->x.kind, t->base.node, p->node);
    if (fits && !c->status && a->n)
        memcpy(tp_slice_from(&c->x, p->node), a->bytes, a->n);
    drop_first(p);
    return fits;
}

/* What a peer has sent of this collective already. */
static void look_ahead(struct tp_peer *p, uint64_t seq)
{
    struct tp_tcp *t = p->t;
    struct tp_coll *c = coll_of(t, seq);
    bool due = tp_receives(c->x.kind, t->base.node, p->node);
    while (p->ahead && p->ahead != p->filling && p->ahead->seq < seq)
        drop_first(p);
    const struct tp_ahead *a = p->ahead;
    if (a && a->seq == seq) {
        c->to_get += due;
        if (a == p->filling) /* delivered when it is whole */
            return;
        if (deliver(p, seq))
            c->to_get--;
        else
            out_of_step(t, p, seq);
    } else if (due && p->got_seq > seq) {
        out_of_step(t, p, seq); /* it has gone on without this one */
    } else {
        c->to_get += due;
    }
}

static void send_slices(struct tp_tcp *t, uint64_t seq)
{
    struct tp_coll *c = coll_of(t, seq);
    const int n = t->base.n_nodes, me = t->base.node;
    const struct tp_frame f = {TP_DATA, (uint8_t)c->x.kind, (uint32_t)c->x.slice_bytes, seq};
    uint64_t bytes = 0;
    for (int k = 1; k < n; k++) {
        struct tp_peer *p = &t->peers[(me + k) % n];
        if (!tp_receives(c->x.kind, p->node, me))
            continue;
        c = coll_of(t, seq);
        c->to_send++;
        if (!p->link) { /* gone, or just being lost: tp_coll_check will say */
            c->to_send--;
            fail(t, seq, DL_EPEER);
        } else if (!tp_link_put(p->link, &f, tp_slice_to(&c->x, n, me, p->node), NULL, seq)) {
            coll_of(t, seq)->to_send--;
        } else {
            bytes += f.length;
        }
    }
    pthread_mutex_lock(&t->lock);
    t->stats.sent_bytes += bytes;
    pthread_mutex_unlock(&t->lock);
}

void tp_coll_start(struct tp_tcp *t, const struct tp_request *r)
{
    if (t->colls_head && t->colls_len == t->colls_cap) {
        memmove(t->colls, t->colls + t->colls_head, (t->colls_len - t->colls_head) * sizeof *t->colls);
        t->colls_len -= t->colls_head;
        t->colls_head = 0;
    }
    void *v = t->colls;
    int err = dl_grow(&v, &t->colls_cap, t->colls_len + 1, sizeof *t->colls);
    t->colls = v;
    if (err) {
        /* The others count on it: without it nothing works any more. */
        tp_break(t, t->base.node, t->base.node, false, "it is out of memory");
        r->done(r->ud, err);
        return;
    }
    const uint64_t seq = t->started++;
    t->colls[t->colls_len++] = (struct tp_coll){.x = r->x, .done = r->done, .ud = r->ud};
    const int n = t->base.n_nodes, me = t->base.node;
    if (t->broken && seq >= t->my_limit) {
        fail(t, seq, DL_EPEER);
        return;
    }
    for (int i = 0; i < n; i++)
        if (i != me)
            look_ahead(&t->peers[i], seq);
    tp_coll_check(t);
    if (coll_of(t, seq)->status)
        return;
    if (r->x.kind == DL_XFER_ALL_TO_ALL && r->x.slice_bytes)
        memcpy(tp_slice_from(&r->x, me), tp_slice_to(&r->x, n, me, me), r->x.slice_bytes);
    send_slices(t, seq);
}

/* ------------------------------------------------------------------------------------------------------ receiving */

static int ahead_begin(struct tp_peer *p, const struct tp_frame *f, void **dest)
{
    const size_t size = sizeof(struct tp_ahead) + f->length;
    if (p->ahead_bytes + size > TP_AHEAD_BYTES) {
        p->pause = TP_WAITS_FOR_COLL;
        return TP_LATER;
    }
    struct tp_ahead *a = p->spare;
    if (a && a->cap >= f->length) {
        p->spare = NULL;
    } else {
        a = malloc(size);
        if (!a) {
            tp_link_fail(p->link, DL_ENOMEM, "no memory for its slice of %u bytes", f->length);
            return DL_ENOMEM;
        }
        a->cap = f->length;
    }
    a->next = NULL;
    a->seq = f->seq;
    a->kind = f->flags;
    a->n = f->length;
    *p->ahead_end = a;
    p->ahead_end = &a->next;
    p->ahead_bytes += size;
    p->filling = a;
    *dest = a->bytes;
    return DL_OK;
}

int tp_coll_begin(struct tp_peer *p, const struct tp_frame *f, void **dest)
{
    struct tp_tcp *t = p->t;
    *dest = NULL;
    if (f->flags > DL_XFER_ALL_TO_ALL || f->seq < p->got_seq || f->seq >= t->started + TP_AHEAD_MOST) {
        tp_link_fail(p->link, DL_EFORMAT, "it sends a slice that cannot be");
        return DL_EFORMAT;
    }
    if (t->broken && (f->seq >= t->my_limit || f->seq < t->ended))
        return DL_OK;
    if (f->seq >= t->started)
        return ahead_begin(p, f, dest);
    const struct tp_coll *c = coll_of(t, f->seq);
    if (!c) {
        tp_link_fail(p->link, DL_EFORMAT, "it sends a slice of a collective that is over");
        return DL_EFORMAT;
    }
    if (c->status)
        return DL_OK;
    if (f->flags != c->x.kind || f->length != c->x.slice_bytes || !tp_receives(c->x.kind, t->base.node, p->node)) {
        out_of_step(t, p, f->seq);
        tp_coll_check(t);
        return DL_OK;
    }
    *dest = tp_slice_from(&c->x, p->node);
    return DL_OK;
}

int tp_coll_got(struct tp_peer *p, const struct tp_frame *f)
{
    struct tp_tcp *t = p->t;
    const bool was_ahead = p->filling != NULL;
    p->got_seq = f->seq + 1;
    p->filling = NULL;
    pthread_mutex_lock(&t->lock);
    t->stats.received_bytes += f->length;
    pthread_mutex_unlock(&t->lock);
    struct tp_coll *c = coll_of(t, f->seq);
    if (c && was_ahead && !deliver(p, f->seq)) {
        if (!c->status)
            out_of_step(t, p, f->seq);
    } else if (c && !c->status) {
        c->to_get--;
    }
    tp_coll_end(t);
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------------ ending */

void tp_coll_sent(struct tp_tcp *t, uint64_t seq, bool ok)
{
    struct tp_coll *c = coll_of(t, seq);
    c->to_send--;
    if (!ok)
        fail(t, seq, DL_EPEER);
    tp_coll_end(t);
}

/* The node without whose slice it can never be complete, -1: none. */
static int missing(const struct tp_tcp *t, const struct tp_coll *c, uint64_t seq)
{
    for (int i = 0; i < t->base.n_nodes; i++) {
        const struct tp_peer *p = &t->peers[i];
        if (tp_receives(c->x.kind, t->base.node, i) && p->limit <= seq && p->got_seq <= seq)
            return i;
    }
    return -1;
}

void tp_coll_check(struct tp_tcp *t)
{
    for (uint64_t seq = t->ended; seq < t->started; seq++) {
        const struct tp_coll *c = coll_of(t, seq);
        int node = c->status ? -1 : missing(t, c, seq);
        if (node < 0)
            continue;
        fail(t, seq, DL_EPEER);
        if (!t->broken) /* it left in order, and too early */
            tp_break(t, node, t->base.node, t->peers[node].left, "it has left");
    }
}

void tp_coll_end(struct tp_tcp *t)
{
    if (t->ending || t->inside)
        return;
    t->ending = true;
    while (t->colls_head < t->colls_len) {
        struct tp_coll c = t->colls[t->colls_head];
        if (c.to_send || (!c.status && c.to_get))
            break;
        if (++t->colls_head == t->colls_len)
            t->colls_head = t->colls_len = 0;
        t->ended++;
        c.done(c.ud, c.status);
    }
    t->ending = false;
}

void tp_coll_cancel(struct tp_tcp *t)
{
    for (uint64_t seq = t->ended; seq < t->started; seq++)
        fail(t, seq, DL_ECANCELED);
}

bool tp_coll_pending(const struct tp_tcp *t)
{
    return t->colls_head < t->colls_len;
}
