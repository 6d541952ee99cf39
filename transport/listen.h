/* SPDX-License-Identifier: MIT
 *
 * transport/listen.h: the inside of a worker's listener.
 *
 *   listen.c       sockets, strangers, and whom to let in
 *   join_worker.c  one cluster at a time: from the root's hello to its GO
 */
#ifndef TP_LISTEN_H
#define TP_LISTEN_H

#include "dial.h"
#include "tcp.h"

enum { TP_GUESTS_MOST = 64 };

/* A connection that is nobody's yet, or the root's until its JOIN. */
struct tp_guest {
    dl_tcp_listener *l;
    struct tp_link *link; /* NULL: it is on its way out */
    struct tp_guest *next;
    bool is_root, looks; /* looks: wants to know whether we are free, and no more */
    uint8_t *text; /* payload of a frame that is being received */
    uint8_t small[1024];
};

/* A link to another worker that this one dials. */
struct tp_mesh {
    dl_tcp_listener *l;
    int node;
    struct tp_dial dial;
    struct tp_link *link;
    uint8_t text[1024];
};

struct dl_tcp_listener {
    struct tp_loop *loop;
    struct tp_conf conf;
    uv_tcp_t servers[TP_ADDRS_MOST];
    unsigned n_servers;
    char address[TP_ADDR_MOST + 1];
    uint8_t id[TP_ID_BYTES]; /* random: who asks twice can tell whether it was started again in between */
    uv_timer_t tick;
    bool ticking;
    unsigned n_open; /* handles and links that call back */
    bool closing;
    struct tp_guest *guests; /* the oldest first */
    unsigned n_guests;
    uint64_t said_ns; /* the log: when last, and what was kept back since */
    unsigned kept_back;

    /* TP_FREE: no cluster. TP_JOINING: from a root's hello on. TP_LEAVING: what has failed is cleaned up. TP_TAKEN: until the transport
     * is closed. */
    enum { TP_FREE, TP_JOINING, TP_LEAVING, TP_TAKEN } state;
    struct tp_guest *root; /* TP_JOINING, until its JOIN */
    struct tp_tcp *t;      /* TP_JOINING after it, and TP_LEAVING */
    struct tp_mesh *mesh;  /* [n_mesh]: 0 is not used; until nothing of them is on the loop */
    int n_mesh;
    unsigned n_mesh_links; /* theirs, that call back */
    uint64_t deadline_ns;
    bool ready, failing; /* READY is sent; FAIL is, and the root is to hang up */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct tp_tcp *formed; /* (lock) waits for dl_tcp_accept */
};

/* listen.c: one line in the log, unless there was one just now. */
void tp_listen_say(dl_tcp_listener *l, const char *fmt, ...) DL_PRINTF(2, 3);
void tp_guest_answer(struct tp_guest *g);
void tp_guest_refuse(struct tp_guest *g, enum tp_refusal code, const char *why);
/* Its link belongs to a transport now. */
void tp_guest_forget(struct tp_guest *g);

/* join_worker.c; holder. The payload of a JOIN; a worker's hello from the mesh. */
void tp_join_begin(dl_tcp_listener *l, struct tp_guest *root, const uint8_t *payload, size_t n);
void tp_join_mesh(dl_tcp_listener *l, struct tp_guest *g, const struct tp_hello *h);
void tp_join_tick(dl_tcp_listener *l, uint64_t now);
/* Forgets the dials of the cluster before. False: some of them still end, and the next one has to wait. */
bool tp_join_clean(dl_tcp_listener *l);
/* No cluster will come of it. Cleans up at the following ticks. */
void tp_join_abort(dl_tcp_listener *l);

#endif
