/* SPDX-License-Identifier: MIT
 *
 * dl/transport.h: moves bytes between the nodes of a cluster; knows no tensors, models or devices. Implementations: loopback
 * (n nodes in one process, for several devices of one node and for tests).
 */
#ifndef DL_TRANSPORT_H
#define DL_TRANSPORT_H

#include "dl/base.h"

typedef struct dl_transport dl_transport;

enum dl_xfer_kind { DL_XFER_ALL_GATHER, DL_XFER_BROADCAST, DL_XFER_GATHER_ROOT };

/* n_nodes slices at data, slice_stride apart, of which the first slice_bytes travel; mine is filled. */
struct dl_xfer {
    enum dl_xfer_kind kind;
    void *data;
    size_t slice_bytes, slice_stride;
};

/* Called once per started collective, in the order they were started, on a thread of the transport's; must not block. */
typedef void dl_xfer_done(void *ud, int status);

int dl_transport_node(const dl_transport *t);
int dl_transport_n_nodes(const dl_transport *t);

/* Any thread. 0: `done` runs exactly once, when my slice is handed over and the slices I am to get are in; data is pinned until
 * then. < 0: done never runs. All nodes start the same collectives in the same order. */
int dl_transport_start(dl_transport *t, const struct dl_xfer *x, dl_xfer_done *done, void *ud);

/* Control messages between two different nodes, in order. send copies and does not wait for the peer; DL_ELIMIT (logged) when
 * tens of MiB wait for it unread. recv waits at most timeout_ns (UINT64_MAX: for ever; DL_ETIMEDOUT, not logged); a message
 * larger than cap is DL_ELIMIT (not logged), stays queued, and *n says how large it is. DL_EPEER (logged) when the node is gone
 * and nothing of it is left to read; DL_ECANCELED when this node is being closed meanwhile. Any thread. */
int dl_transport_send(dl_transport *t, int node, const void *msg, size_t n);
int dl_transport_recv(dl_transport *t, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns);

struct dl_transport_stats {
    uint64_t sent_bytes, received_bytes; /* payload of collectives and messages */
};
void dl_transport_stats(const dl_transport *t, struct dl_transport_stats *out);

/* Pending collectives end with DL_ECANCELED here and, unless all nodes had started them, with DL_EPEER at the others. Blocks
 * until their `done`s have run, so not to be called from one. Nulls *t, accepts &NULL. */
void dl_transport_close(dl_transport **t);

/* Faults that the loopback can play, for tests. Zero: none. */
struct dl_loopback_faults {
    uint64_t delay_ns, jitter_ns; /* before a slice or message arrives; jitter is drawn from seed */
    uint64_t seed;
    int die_node;             /* this node ... */
    uint64_t die_after;       /* ... is gone from its n-th collective on (1-based; 0: never) */
    uint64_t die_after_sends; /* ... or from its n-th message on, which nobody gets (1-based; 0: never) */
};

/* n nodes in this process: out[0 .. n). Each is closed on its own. faults may be NULL. */
int dl_loopback_open(int n_nodes, const struct dl_loopback_faults *faults, dl_transport **out);

#endif
