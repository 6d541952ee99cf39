/* SPDX-License-Identifier: MIT
 *
 * transport/transport.c: the front of all transports: checks arguments once, then calls the implementation. And the few things that
 * implementations share.
 */
#include "inside.h"

#include <time.h>

int dl_transport_node(const dl_transport *t)
{
    return t->node;
}
int dl_transport_n_nodes(const dl_transport *t)
{
    return t->n_nodes;
}

static int check_xfer(int n_nodes, const struct dl_xfer *x)
{
    size_t bytes, slices = (size_t)n_nodes * (x->kind == DL_XFER_ALL_TO_ALL ? 2 : 1);
    if ((unsigned)x->kind > DL_XFER_ALL_TO_ALL)
        return dl_fail(DL_EINVAL, "transport: there is no kind %d of collectives", (int)x->kind);
    if (x->slice_bytes > x->slice_stride && slices > 1)
        return dl_fail(DL_EINVAL, "transport: slices of %zu bytes are only %zu apart", x->slice_bytes, x->slice_stride);
    if (!dl_mul_size(slices, x->slice_stride, &bytes) || (!x->data && x->slice_bytes))
        return dl_fail(DL_EINVAL, "transport: %zu slices that are %zu apart are no memory", slices, x->slice_stride);
    if (x->slice_bytes > DL_XFER_BYTES_MOST)
        return dl_fail(DL_EINVAL, "transport: a slice of %zu bytes: at most %zu travel at once", x->slice_bytes,
                       DL_XFER_BYTES_MOST);
    return DL_OK;
}

int dl_transport_start(dl_transport *t, const struct dl_xfer *x, dl_xfer_done *done, void *ud)
{
    int err = check_xfer(t->n_nodes, x);
    return err ? err : t->fns->start(t, x, done, ud);
}

static int check_peer(const dl_transport *t, int node)
{
    if (node < 0 || node >= t->n_nodes || node == t->node)
        return dl_fail(DL_EINVAL, "transport: node %d has no peer %d among %d nodes", t->node, node, t->n_nodes);
    return DL_OK;
}

int dl_transport_send(dl_transport *t, int node, const void *msg, size_t n)
{
    int err = check_peer(t, node);
    return err ? err : t->fns->send(t, node, msg, n);
}

int dl_transport_recv(dl_transport *t, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns)
{
    int err = check_peer(t, node);
    return err ? err : t->fns->recv(t, node, msg, cap, n, timeout_ns);
}

int dl_transport_drain(dl_transport *t, int node, size_t most, uint64_t timeout_ns)
{
    int err = check_peer(t, node);
    return err ? err : t->fns->drain(t, node, most, timeout_ns);
}

void dl_transport_drive(dl_transport *t, bool (*enough)(void *ud), void *ud, uint64_t timeout_ns)
{
    t->fns->drive(t, enough, ud, timeout_ns);
}

/* Looking at a transport takes its lock. */
static dl_transport *whole(const dl_transport *t)
{
    union {
        const dl_transport *seen;
        dl_transport *whole;
    } u = {t};
    return u.whole;
}

void dl_transport_stats(const dl_transport *t, struct dl_transport_stats *out)
{
    t->fns->stats(whole(t), out);
}

void dl_transport_link_stats(const dl_transport *t, int node, struct dl_link_stats *out)
{
    *out = (struct dl_link_stats){0};
    if (!check_peer(t, node) && t->fns->link_stats)
        t->fns->link_stats(whole(t), node, out);
}

void dl_transport_node_info(const dl_transport *t, int node, struct dl_node_info *out)
{
    *out = (struct dl_node_info){"", "", 0};
    if (node >= 0 && node < t->n_nodes)
        t->fns->node_info(whole(t), node, out);
}

int dl_transport_lost(const dl_transport *t, char *why, size_t cap)
{
    if (cap)
        *why = 0;
    return t->fns->lost(whole(t), why, cap);
}

void dl_transport_close(dl_transport **t)
{
    dl_transport *old = *t;
    *t = NULL;
    if (old)
        old->fns->close(old);
}

/* -------------------------------------------------------------------------------------------------- shared parts */

bool tp_receives(enum dl_xfer_kind kind, int node, int from)
{
    if (node == from)
        return false;
    if (kind == DL_XFER_BROADCAST)
        return from == 0;
    return kind != DL_XFER_GATHER_ROOT || node == 0;
}

unsigned char *tp_slice_to(const struct dl_xfer *x, int n_nodes, int node, int to)
{
    size_t slice = x->kind == DL_XFER_ALL_TO_ALL ? (size_t)n_nodes + (size_t)to : (size_t)node;
    return x->slice_bytes ? (unsigned char *)x->data + slice * x->slice_stride : x->data;
}

unsigned char *tp_slice_from(const struct dl_xfer *x, int from)
{
    return x->slice_bytes ? (unsigned char *)x->data + (size_t)from * x->slice_stride : x->data;
}

void tp_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

void tp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t at)
{
    if (at == UINT64_MAX) {
        pthread_cond_wait(cond, lock);
        return;
    }
    struct timespec t = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)};
    (void)pthread_cond_timedwait(cond, lock, &t);
}

uint64_t tp_later(uint64_t t, uint64_t ns)
{
    return t > UINT64_MAX - ns ? UINT64_MAX : t + ns;
}
