/* SPDX-License-Identifier: MIT
 *
 * dl/transport.h: moves bytes between the nodes of a cluster; knows no tensors, models or devices. Implementations: tcp (the nodes
 * are processes, on one machine or many) and loopback (n nodes in one process, for several devices of one node and for tests).
 *
 * A cluster of processes: each worker listens and accepts, the root connects to all of them and is node 0, the workers connect to
 * each other by themselves. Then every node has a dl_transport, and all are alike. What breaks is never repaired: the nodes
 * that are left close their transports, and the root connects anew.
 */
#ifndef DL_TRANSPORT_H
#define DL_TRANSPORT_H

#include "dl/base.h"

typedef struct dl_transport dl_transport;

/* ALL_GATHER: everyone gets slice i from node i. BROADCAST: everyone gets slice 0 from node 0. GATHER_ROOT: node 0 gets slice i from
 * node i. ALL_TO_ALL, half of a reduce-scatter: there are 2 * n_nodes slices; slice n_nodes + j of node i becomes slice i
 * of node j (also where i == j), so that slices [0, n_nodes) are what is to be added up, in node order. */
enum dl_xfer_kind { DL_XFER_ALL_GATHER, DL_XFER_BROADCAST, DL_XFER_GATHER_ROOT, DL_XFER_ALL_TO_ALL };

/* n_nodes slices at data (see above), slice_stride apart, of which the first slice_bytes (at most DL_XFER_BYTES_MOST) travel; mine
 * is filled. slice_bytes is the same on all nodes, the stride is each one's own. */
struct dl_xfer {
    enum dl_xfer_kind kind;
    void *data;
    size_t slice_bytes, slice_stride;
};
#define DL_XFER_BYTES_MOST ((size_t)1 << 30)

/* Called once per started collective, in the order they were started, on a thread of the transport's or in dl_transport_drive;
 * must not block. It may start further collectives and send. */
typedef void dl_xfer_done(void *ud, int status);

int dl_transport_node(const dl_transport *t);
int dl_transport_n_nodes(const dl_transport *t);

/* Any thread. 0: `done` runs exactly once, when my slice is handed over and the slices I am to get are in; data is pinned until
 * then. < 0: done never runs. All nodes start the same collectives in the same order; DL_EINVAL (logged) where it shows that they do
 * not. A node that is lost or has left ends with DL_EPEER what still needs it, and soon everything, on all nodes. */
int dl_transport_start(dl_transport *t, const struct dl_xfer *x, dl_xfer_done *done, void *ud);

/* Control messages between two different nodes, in order. send copies and does not wait for the peer; DL_ELIMIT (logged) when
 * tens of MiB wait for it unread. recv waits at most timeout_ns (UINT64_MAX: for ever; DL_ETIMEDOUT, not logged); a message
 * larger than cap is DL_ELIMIT (not logged), stays queued, and *n says how large it is. DL_EPEER (not logged: dl_transport_lost
 * knows more) when the node is gone and nothing of it is left to read; DL_ECANCELED when this node is being closed meanwhile. Any thread. */
int dl_transport_send(dl_transport *t, int node, const void *msg, size_t n);
int dl_transport_recv(dl_transport *t, int node, void *msg, size_t cap, size_t *n, uint64_t timeout_ns);

/* Waits until at most `most` bytes of messages to the node have not left yet: called after each piece, it sends a long stream in
 * little memory. DL_ETIMEDOUT, DL_EPEER (neither is logged), DL_ECANCELED. Any thread. */
int dl_transport_drain(dl_transport *t, int node, size_t most, uint64_t timeout_ns);

/* The calling thread, which would only wait, does the transport's work itself until enough(ud) says so, timeout_ns are over, or for
 * no reason at all: callers look themselves. enough is called on this thread, now and then and after each `done` that runs here; it
 * sees what those of this transport have written, and calls nothing of it. That saves two changes of threads per exchange
 * where no core is free; the transport's own thread stays out of the way for some ms and takes over again by itself. So
 * for exchanges that follow each other closely, not for those during which this thread does something else. Without `enough` and time
 * it takes over at once. Not from a `done`. */
void dl_transport_drive(dl_transport *t, bool (*enough)(void *ud), void *ud, uint64_t timeout_ns);

/* The payload of collectives and messages. Any thread. */
struct dl_transport_stats {
    uint64_t sent_bytes, received_bytes;
};
void dl_transport_stats(const dl_transport *t, struct dl_transport_stats *out);

/* The connection to one other node: bytes on the wire with all that is around the payload, and round trips as the heartbeats and
 * dl_transport_probe saw them (0: not measured; always so in one process). Any thread. */
struct dl_link_stats {
    uint64_t sent_bytes, received_bytes;
    uint64_t rtt_ns, rtt_least_ns; /* the last one, and the shortest */
};
void dl_transport_link_stats(const dl_transport *t, int node, struct dl_link_stats *out);

/* Who a node is: its address as the root was given it (of node 0 "root", at workers "root at 10.0.0.1:40312"; "node 2" in one
 * process), and what it said of itself (dl_tcp_opts.about, .features). The texts live as long as the transport. */
struct dl_node_info {
    const char *name, *about;
    uint64_t features;
};
void dl_transport_node_info(const dl_transport *t, int node, struct dl_node_info *out);

/* The first node that this one knows to be lost (not: that has left in order), or -1; and why, in words ("no sign of life for 1.5 s,
 * as node 2 saw it"). Any thread. */
int dl_transport_lost(const dl_transport *t, char *why, size_t cap);

/* What the formulas for collectives take, measured by collectives: started by all nodes at once, with nothing else going on. All
 * get the same figures, those of the slowest node. latency_ns: an exchange of next to nothing, from start to done, as a
 * waiting thread sees it. bytes_per_s: what a node sends while all send to all. Takes some 50 ms on a fast network, at most about a
 * second on a slow one. With one node: zeros. */
struct dl_link_speed {
    uint64_t latency_ns;
    double bytes_per_s;
};
int dl_transport_probe(dl_transport *t, struct dl_link_speed *out);

/* Pending collectives end with DL_ECANCELED here and, unless all nodes had started them, with DL_EPEER at the others, which still
 * get what this node handed over before (it waits for that, at most a second). Blocks until their `done`s have run, so not to
 * be called from one. Nulls *t, accepts &NULL. */
void dl_transport_close(dl_transport **t);

/* ------------------------------------------------------------------------------------------------------ loopback */

/* Faults that the loopback can play, for tests. Zero: none. */
struct dl_loopback_faults {
    uint64_t delay_ns, jitter_ns; /* before a slice or message arrives, from when it was sent; jitter is drawn from seed */
    uint64_t bytes_per_s; /* that a node sends, and that it gets: slices and messages go one after the other; 0: all at once */
    uint64_t seed;
    int die_node;             /* this node ... */
    uint64_t die_after;       /* ... is gone from its n-th collective on (1-based; 0: never) */
    uint64_t die_after_sends; /* ... or from its n-th message on, which nobody gets (1-based; 0: never) */
};

/* n nodes in this process: out[0 .. n). Each is closed on its own. faults may be NULL. */
int dl_loopback_open(int n_nodes, const struct dl_loopback_faults *faults, dl_transport **out);

/* ------------------------------------------------------------------------------------------------------ cluster keys */

/* 32 secret random bytes that all nodes of a cluster share. Who has it may compute, and read all that is computed. */
struct dl_key {
    uint8_t bytes[32];
};

/* From the system's source of random numbers. */
int dl_key_create(struct dl_key *out);

/* A key file is one line: "dllama-vk-key-1 " and 64 hexadecimal digits. write makes a new file with mode 0600 and never replaces one
 * (DL_EIO, logged). read: DL_EIO, DL_EFORMAT (logged); it warns of a file that other users may read. */
int dl_key_write(const char *path, const struct dl_key *key);
int dl_key_read(const char *path, struct dl_key *out);

/* Overwrites it, so that it does not stay in memory. */
void dl_key_forget(struct dl_key *key);

/* ------------------------------------------------------------------------------------------------------ tcp */

/* Zero-initialised: no key, loopback addresses only, default times. Copied by the calls that take it. */
struct dl_tcp_opts {
    const struct dl_key *key; /* with one, all links are TLS 1.3 keyed by it, and who has another is refused */
    bool insecure;            /* without a key, addresses off this machine are refused unless this is set */
    const char *build;        /* has to be the same text on all nodes, at most 47 bytes */
    const char *about;        /* tells the others of this node: its host, its devices; at most 255 bytes */
    uint64_t features;        /* tells the others, too; no meaning here */
    uint32_t retry_ms; /* connect: how long to try again where nobody listens or the worker is busy; 0: not at all */
    uint32_t handshake_ms; /* a peer has this long to show who it is, and the cluster to form after that; 0: 5000 */
    uint32_t beat_ms;      /* a link that is silent this long gets a sign of life; 0: 300. The root's counts for all */
    uint32_t dead_ms;      /* a peer without any sign of life this long is lost; 0: 1500. The root's counts for all */
    uint32_t
        spin_us; /* while an exchange is pending, the transport's thread does not sleep, at most this long: the lowest
                               * latency where a core is free, a loss where none is. 0: it sleeps */
};

/* A worker's side. It listens on "HOST:PORT", "[IPV6]:PORT" or "NAME:PORT" (port 0: the system chooses) and serves from a thread of
 * its own, whatever comes: one cluster at a time, roots that come meanwhile are told "busy", strangers are dropped, and in
 * the log all that is at most a line a second. In a process whose SIGPIPE is at its default, that signal is ignored from here on.
 * DL_EINVAL where the address is none, or is one that other machines reach and there is no key; DL_EIO (both logged). */
typedef struct dl_tcp_listener dl_tcp_listener;
int dl_tcp_listen(const char *address, const struct dl_tcp_opts *opts, dl_tcp_listener **out);

/* "127.0.0.1:9990": the (first) address it listens on. Lives as long as the listener. */
const char *dl_tcp_listener_address(const dl_tcp_listener *l);

/* Waits until a root has formed a cluster with this worker in it: the transport is then the caller's. A cluster may form before this
 * is called, but only one, and only after the transport of the one before is closed. DL_ETIMEDOUT (not logged). */
int dl_tcp_accept(dl_tcp_listener *l, uint64_t timeout_ns, dl_transport **out);

/* From now on nobody can connect; what was accepted goes on. For a worker that is about to tell its root that it ends: a root that
 * tries again at once is refused at once. May be called again. */
void dl_tcp_listener_shut(dl_tcp_listener *l);

/* After the transports that it accepted are closed. Nulls *l, accepts &NULL. */
void dl_tcp_listener_close(dl_tcp_listener **l);

/* The root's side: connects to n workers (0: a cluster of one) at once, lets them connect to each other, and returns when all can talk
 * to all. Worker i is node i + 1. Otherwise each worker that failed is named in the log with the reason and what to do, errs[i]
 * (unless errs is NULL; n values) is its error or 0, and the result is the first of them: DL_EBUSY (it works for another root),
 * DL_EPEER (nobody there, or it went away), DL_ETIMEDOUT (silence), DL_EUNSUP (wrong key, other version or build), DL_EINVAL. */
int dl_tcp_connect(const char *const *workers, int n, const struct dl_tcp_opts *opts, int *errs, dl_transport **out);

/* For a cluster that is to go on: with those of the workers i with wanted[i] that can be had. Left out is who is not there, who does not
 * answer within about a second, who is busy for longer than three, and who is refused or fails meanwhile (why is logged at
 * INFO); if need be that is everyone. who[i] (room for n) is the worker behind node i + 1. */
int dl_tcp_connect_some(const char *const *workers, int n, const bool *wanted, const struct dl_tcp_opts *opts,
                        uint32_t *who, dl_transport **out);

/* Looks, from a thread of its own, which workers could be had: there, with the same key and build, and free. About once a second, and only
 * those that were asked for within the last few. They notice next to nothing of it. */
typedef struct dl_tcp_watch dl_tcp_watch;
int dl_tcp_watch_open(const char *const *workers, int n, const struct dl_tcp_opts *opts, dl_tcp_watch **out);
/* Was worker i free when last looked at, at most three seconds ago? One that was started again since the look before, when it was free, too, is
 * not, for this look: so that who asks on and on hears of it. Does not wait. Any thread. */
bool dl_tcp_watch_free(dl_tcp_watch *w, int i);
/* Was it there when last looked at, at most three seconds ago, and refused this side: another key, version, program? Then why, in words with
 * what to do (cap > 0). Not who is only busy. Does not wait. Any thread. */
bool dl_tcp_watch_refuses(dl_tcp_watch *w, int i, char *why, size_t cap);
void dl_tcp_watch_close(dl_tcp_watch **w); /* nulls *w, accepts &NULL */

#endif
