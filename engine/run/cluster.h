/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster.h: the root's side of a cluster: its workers, from the first word to the last. cluster.c joins, waits and
 * finds out who failed; cluster_load.c gives them plans and weights; cluster_step.c batches. Belongs to the engine thread. A failure of
 * any worker ends the cluster: the line in the log names the node, the phase and the cause.
 */
#ifndef ENG_CLUSTER_H
#define ENG_CLUSTER_H

#include "engine.h"
#include "link.h"

/* Where a worker's weights stand. */
struct eng_peer_load {
    struct dl_weight *weights; /* (n): of its plan */
    struct eng_offer_entry *offers;
    uint8_t *wanted; /* a bit per weight */
    uint32_t n, n_offered;
    uint32_t rounds, next; /* WANTs so far; the weight that is being sent, n: none */
    uint64_t at;           /* bytes of it that are sent */
    struct eng_source source;
    uint64_t sent, got; /* bytes of DATA, in all and taken in */
    uint64_t started_ns;
};

struct eng_peer {
    struct eng_link link;   /* node i + 1 */
    struct eng_digest plan; /* of its plan */
    bool done;              /* nothing more is expected of it in this phase */
    bool gone;              /* the transport has said so */
    bool explained;         /* there are words about it that say more than that it is lost */
    uint64_t silent_ns;     /* how long we have waited for it */
    struct eng_peer_load load;
    char device[192];             /* what computes there */
    struct dl_engine_stats stats; /* as of the last eng_cluster_stats */
};

struct eng_cluster {
    dl_engine *e;
    dl_transport *t; /* that of e->nodes[0]; NULL once it is given up */
    struct eng_peer *peers;
    struct dl_sending *sending; /* (n_peers), for the progress bars */
    uint32_t n_peers, turn;
    char blame[2 * ENG_TEXT_MOST]; /* the line about who failed */
    char phase[48];                /* what the log says that we were doing: "joining", "step 12" */
    uint64_t step;
    struct eng_out out;
    struct eng_tables tables;
    struct eng_step_limits limits;
};

/* Says hello to all and waits for their answers. t is the transport of e->nodes[0], which owns it. */
int eng_cluster_join(dl_engine *e, dl_transport *t);
/* Says goodbye (err 0), or why not, to those that are still there; ends the transport. */
void eng_cluster_leave(struct eng_cluster *c, int err, const char *why);
void eng_cluster_destroy(struct eng_cluster **c); /* nulls, accepts &NULL */
/* cluster_measure.c: asks all for their memory, and lets them measure themselves and the network, as the root does meanwhile, if that is not
 * remembered, or in any case (anew): into e->rates and e->link. */
int eng_cluster_measure(struct eng_cluster *c, bool anew);

/* Between batches, when nobody has anything to say: is everyone still there? Does not wait. Errors as of eng_cluster_poll. */
int eng_cluster_look(struct eng_cluster *c);

/* What c->out holds, to every worker; one that cannot be told is lost. */
int eng_cluster_tell_all(struct eng_cluster *c);
/* The name of what node `node` computes with; 0: the root. */
const char *eng_cluster_device(const struct eng_cluster *c, uint32_t node);
/* A new phase, in which something is expected of everyone. */
void eng_cluster_phase(struct eng_cluster *c, const char *fmt, ...) DL_PRINTF(2, 3);
/* The next message from anyone who is not done. *from NULL: none within timeout_ns. An ERROR, a lost node and one that was waited for
 * longer than e->wait_ns end in an error, logged. */
int eng_cluster_poll(struct eng_cluster *c, size_t most, uint64_t timeout_ns, struct eng_peer **from,
                     struct eng_in *in);
/* Waits until there is one. NULL: everybody is done. */
int eng_cluster_next(struct eng_cluster *c, size_t most, struct eng_peer **from, struct eng_in *in);
/* A worker (NULL: nobody knows which) has failed in this phase. The line in the log, or what the engine that heals says of it. Returns
 * err. */
int eng_cluster_blame(struct eng_cluster *c, const struct eng_peer *p, int err, const char *fmt, ...) DL_PRINTF(4, 5);
/* A message of a worker's makes no sense, which is logged: ends the cluster. Returns err. */
int eng_cluster_nonsense(struct eng_cluster *c, const struct eng_peer *p, int err);
/* An exchange of the current phase ended in `err`: finds out who is to blame, logs it, ends the transport. Returns DL_EPEER. */
int eng_cluster_lost(struct eng_cluster *c, int err);

/* Plans and what they need: all nodes get theirs and answer. DL_ELIMIT when one lacks memory (each is named), DL_EUNSUP where a plan
 * differs. */
int eng_cluster_plan(struct eng_cluster *c);
/* Digests of all weights, to all. */
int eng_cluster_offer(struct eng_cluster *c);
/* Sends what is wanted until everyone is ready. */
int eng_cluster_serve(struct eng_cluster *c);

/* The batch in e->batch, whose embedding rows are given, to all. */
int eng_cluster_step(struct eng_cluster *c, const float *embed);
/* Their parts of the wanted rows, into e->rows. */
int eng_cluster_logits(struct eng_cluster *c);
/* cluster_stats.c: everyone's counts, into peers[].stats. reset: they begin at zero from here on. */
int eng_cluster_stats(struct eng_cluster *c, bool reset);
/* Their parts of one row of the last batch, in full. */
int eng_cluster_fetch(struct eng_cluster *c, uint32_t row);

#endif
