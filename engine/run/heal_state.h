/* SPDX-License-Identifier: MIT
 *
 * engine/run/heal_state.h: what heal.c and heal_share.c know of a cluster that outlives its nodes. Nobody else looks inside.
 */
#ifndef ENG_HEAL_STATE_H
#define ENG_HEAL_STATE_H

#include "heal.h"

struct eng_member {
    char name[160];            /* "node 2 (10.0.0.7:9990)" */
    double share, first_share; /* now, and before it turned out to lack memory */
    double tried_share;        /* when the engine was last formed */
    uint64_t room;             /* where shares follow memory: bytes that it may have; else 0 */
    double use, least;         /* what parts of that the first share, and activations alone, take; else 1 and 0 */
    unsigned faults, drops;    /* drops: how often it had not even memory for LEAST_SHARE, since it last was in */
    uint64_t fault_ns, not_before_ns, seen_ns; /* seen_ns: free, since it was dropped */
    bool went;                                 /* it was not any more, since then: something there has changed */
    bool is_in, was_in;                        /* now, and when the log last said who is */
    bool known;                                /* it was in once */
    char refusal[240];                         /* why it refused to be in, as the log has said; empty since it was in */
};

struct eng_heal {
    struct dl_cluster how;
    struct eng_member *members; /* (n_workers) */
    bool *wanted;
    uint32_t *who; /* (n_workers): the worker behind node i + 1 */
    double root_share;
    uint64_t forgiven_ns; /* without a fault this long, the next one counts as the first */
    bool shares_given;
    bool stood;      /* it was whole once */
    bool down;       /* and the last attempt at that has failed */
    bool noted;      /* a fault, not yet told */
    bool charged;    /* and what it costs who did it is settled */
    bool stale;      /* and the log has it already: a refusal that was repeated */
    uint32_t faulty; /* the worker; n_workers: nobody knows */
    int code;
    unsigned unknowns; /* such faults since a step succeeded */
    char fault[544];
    uint64_t formed_ns, took_ns, tried_ns; /* when it last was whole, how long that took, when it was tried last */
    uint64_t planned_ns;                   /* while weights are loaded: since when */
    struct dl_engine_health health;
};

/* Out of memory, of whatever kind. */
static inline bool eng_heal_is_memory(int code)
{
    return code == DL_ELIMIT || code == DL_ENOMEM;
}

/* A worker that had room by its own count, but not when it came to it: from now on half of its share, or of the memory that this took beside
 * activations, which every node needs; 0 where that is of no use. */
void eng_heal_halve(struct eng_member *m);

#endif
