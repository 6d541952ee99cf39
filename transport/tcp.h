/* SPDX-License-Identifier: MIT
 *
 * transport/tcp.h: the inside of a TCP transport: a node's view of a cluster whose nodes are connected to each other, each pair by one link.
 *
 *   tcp.c        the functions of a transport: they put work into an inbox and wake the loop, or wait for what it brings
 *   coll.c       collectives: which slices go where, what is still missing, when one ends
 *   peer.c       what comes from a peer, heartbeats, who is lost and what follows from it
 *   join_root.c, join_worker.c, listen.c   how a cluster comes to be
 *   watch.c      whether a worker that is missing could be part of the next one
 *
 * What is marked (lock) is shared with the callers' threads, under `lock`; all else belongs to who holds the loop.
 */
#ifndef TP_TCP_H
#define TP_TCP_H

#include "inside.h"
#include "link.h"
#include "mailbox.h"

enum {
    TP_AHEAD_BYTES = 64 << 20, /* slices that wait for their collective to be started here, per peer */
    TP_AHEAD_MOST = 4096,      /* and how many collectives a peer may be ahead */
    TP_CLOSE_MS = 1000         /* how long a node that leaves waits for its last words to leave */
};

/* A collective that is started and has not ended. */
struct tp_coll {
    struct dl_xfer x;
    dl_xfer_done *done;
    void *ud;
    int status;
    uint32_t to_get, to_send; /* slices that are still to come, and that the links still hold */
};

/* A slice that came before its collective was started. */
struct tp_ahead {
    struct tp_ahead *next;
    uint64_t seq;
    uint8_t kind;
    uint32_t n;
    size_t cap;
    uint8_t bytes[];
};

#define TP_MESSAGE_TOKEN ((uint64_t)1 << 63) /* a token of a message, with its bytes; others are collectives */

struct tp_tcp;
struct tp_peer {
    struct tp_tcp *t;
    int node;
    struct tp_link *link; /* NULL: this node itself, or none yet, or gone */
    struct tp_count count;
    char name[TP_NAME_MOST + 1], about[TP_ABOUT_MOST + 1], addr[TP_ADDR_MOST + 1];
    uint64_t features;

    uint64_t got_seq;                    /* its slices of collectives before this one are in, as far as it sends any */
    uint64_t limit;                      /* it takes part in collectives before this one; UINT64_MAX: in all */
    bool left;                           /* it said goodbye */
    struct tp_ahead *ahead, **ahead_end; /* in order */
    struct tp_ahead *filling, *spare;    /* the last of them while it is received; one kept for the next */
    size_t ahead_bytes;
    enum { TP_READS, TP_WAITS_FOR_COLL, TP_WAITS_FOR_READER } pause;
    struct tp_msg *incoming;
    uint8_t text[512]; /* payload of a small frame that is being received */

    struct tp_mailbox box; /* (lock) */
    bool box_full;         /* (lock) the link waits for somebody to read */
    size_t unsent;         /* (lock) bytes of messages that are not yet with the link or the system */
    bool gone;             /* (lock) */
};

/* What callers want: a collective, or a message to be sent. */
struct tp_request {
    struct dl_xfer x;
    dl_xfer_done *done;
    void *ud;
    struct tp_msg *msg; /* NULL: a collective */
    int node;
};
struct tp_requests {
    struct tp_request *v;
    size_t n, cap;
};

struct tp_tcp {
    struct dl_transport base;
    struct tp_loop *loop;
    bool own_loop;
    struct tp_client client;
    uv_timer_t tick;
    bool ticking;
    uint64_t beat_ns, dead_ns, tick_ns, ticked_ns;
    uint8_t cluster[TP_ID_BYTES];
    int n_open;                 /* links that are not gone, and the timer: they call back */
    bool hanging_up;            /* what is lost from here on is nobody's loss */
    struct tp_peer *peers;      /* [base.n_nodes] */
    void (*released)(void *ud); /* on close, by the holder, when it uses the loop no more */
    void *released_ud;

    /* coll.c */
    struct tp_coll *colls; /* [colls_head .. colls_len): number `ended` and following */
    size_t colls_head, colls_len, colls_cap;
    uint64_t ended, started;
    bool ending, inside;     /* inside a `done`, which must not nest; in a caller's start, where no `done` may run */
    struct tp_requests work; /* being worked on */

    /* peer.c */
    bool broken;
    uint64_t my_limit;                                                 /* collectives from here on fail */
    void (*joining_lost)(struct tp_tcp *t, int node, const char *why); /* while the cluster forms, else NULL */
    int (*joining_frame)(struct tp_tcp *t, int node, const struct tp_frame *f, const uint8_t *payload); /* likewise */
    void *joining;

    pthread_mutex_t lock;
    pthread_cond_t changed;          /* (lock) for recv, drain, close */
    struct tp_requests inbox;        /* (lock) */
    struct dl_transport_stats stats; /* (lock) */
    unsigned n_waiting;              /* (lock) threads inside recv and drain */
    bool receiving;                  /* (lock) a thread inside recv drives the loop */
    bool closing, ping;              /* (lock) ping: the probe wants round trips */
    int lost_node;                   /* (lock) -1: none */
    char lost_why[TP_WHY_MOST + 1];  /* (lock) */
};

/* tcp.c: one without links. The loop is the caller's, who holds it. tp_tcp_destroy: all links are gone. */
int tp_tcp_create(struct tp_loop *loop, int node, int n_nodes, struct tp_tcp **out);
void tp_tcp_destroy(struct tp_tcp *t);
/* The timer that beats and watches. */
int tp_tcp_watch(struct tp_tcp *t, uint32_t beat_ms, uint32_t dead_ms);
/* Closes all links and turns the loop until they are gone and it is no client of the loop any more. Not from a callback. Holder. */
void tp_tcp_hang_up(struct tp_tcp *t);
/* Only begins that: over when t->n_open is 0. */
void tp_tcp_close_links(struct tp_tcp *t);

/* coll.c; holder. A request becomes a collective; what can be sent is queued on the links. */
void tp_coll_start(struct tp_tcp *t, const struct tp_request *r);
/* Where the payload of a slice goes; as tp_reader_fns.begin. */
int tp_coll_begin(struct tp_peer *p, const struct tp_frame *f, void **dest);
int tp_coll_got(struct tp_peer *p, const struct tp_frame *f);
void tp_coll_sent(struct tp_tcp *t, uint64_t seq, bool ok);
/* After limits have changed: what can never be complete fails. */
void tp_coll_check(struct tp_tcp *t);
/* Calls the `done`s of those that are over. Not while libuv or a link is in the middle of something that they may change. */
void tp_coll_end(struct tp_tcp *t);
void tp_coll_cancel(struct tp_tcp *t);
bool tp_coll_pending(const struct tp_tcp *t);

/* peer.c; holder. A link whose peer has said who it is becomes this one's. */
void tp_peer_attach(struct tp_peer *p, struct tp_link *link);
void tp_peer_tick(struct tp_tcp *t);
/* A link is lost, a peer knows of somebody lost, or the nodes are out of step: nothing new will work any more. */
void tp_break(struct tp_tcp *t, int node, int by, bool left, const char *why);
void tp_peer_finish(struct tp_peer *p);

#endif
