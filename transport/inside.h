/* SPDX-License-Identifier: MIT
 *
 * transport/inside.h: what every implementation of a transport is to transport.c, the front of all of them: it checks arguments, the
 * implementations trust theirs.
 */
#ifndef TP_INSIDE_H
#define TP_INSIDE_H

#include <pthread.h>

#include "dl/transport.h"

/* As the functions of dl/transport.h; those that are marked may be NULL. */
struct tp_fns {
    int (*start)(dl_transport *t, const struct dl_xfer *x, dl_xfer_done *done, void *ud);
    int (*send)(dl_transport *t, int node, const void *msg, size_t n);
    int (*recv)(dl_transport *t, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns);
    int (*drain)(dl_transport *t, int node, size_t most, uint64_t timeout_ns);
    void (*drive)(dl_transport *t, bool (*enough)(void *ud), void *ud, uint64_t timeout_ns);
    void (*stats)(dl_transport *t, struct dl_transport_stats *out);
    void (*link_stats)(dl_transport *t, int node, struct dl_link_stats *out); /* NULL: zeros */
    void (*node_info)(dl_transport *t, int node, struct dl_node_info *out);
    int (*lost)(dl_transport *t, char *why, size_t cap);
    void (*ping)(dl_transport *t); /* NULL: nothing to ask; by the probe */
    void (*close)(dl_transport *t);
};

/* First member of each implementation's own struct. */
struct dl_transport {
    const struct tp_fns *fns;
    int node, n_nodes;
};

/* Of the slices at x->data: the one that `node` sends to `to`, and where `node` puts the one that comes from `from`. */
unsigned char *tp_slice_to(const struct dl_xfer *x, int n_nodes, int node, int to);
unsigned char *tp_slice_from(const struct dl_xfer *x, int from);

/* Does `node` get a slice of this kind from another one, `from`? */
bool tp_receives(enum dl_xfer_kind kind, int node, int from);

/* A condition whose timeouts are on the clock of dl_now_ns, and waiting for it at most until `at` (UINT64_MAX: for ever). */
void tp_cond_init(pthread_cond_t *cond);
void tp_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t at);

/* t + ns without overflow. */
uint64_t tp_later(uint64_t t, uint64_t ns);

#endif
