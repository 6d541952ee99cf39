/* SPDX-License-Identifier: MIT
 *
 * cli/server/sched.h: the engine thread's own: what runs, what is in the batch, and how large batches may be.
 */
#ifndef CLI_SERVER_SCHED_H
#define CLI_SERVER_SCHED_H

#include "pace.h"
#include "server.h"

struct cli_sched {
    struct cli_server *s;
    struct cli_engine *e;
    struct cli_seq **active; /* (most): those that are being made, in the order they began */
    uint32_t n_active, most;
    struct cli_seq
        *parked; /* begun, but without a session, the oldest first: their clients do not read, or room was short */
    uint64_t n_begun;
    struct dl_step_item *items; /* (most): the batch */
    struct cli_seq **in_batch;  /* (most): whose item it is; NULL: ended meanwhile */
    bool *open;                 /* (most): its next token is not settled by what the step gave */
    uint32_t n_items, n_tokens, n_decode;
    struct cli_pace pace;
    uint64_t swept_ns;
    bool worked; /* since the nodes were asked last */
};

/* sched.c. The end of a job, finished or not: the scheduler forgets it. */
void cli_sched_end(struct cli_sched *q, struct cli_job *job);
/* The same with an error for its client. */
void cli_sched_fail(struct cli_sched *q, struct cli_job *job, int status, const char *why);

/* turns.c. Ends the jobs whose clients are gone. */
void cli_sched_drop_gone(struct cli_sched *q);
/* Begins answers, as many as there is room for. */
void cli_sched_admit(struct cli_sched *q);
/* Makes room for a token of each answer that is being made: where it is short, the youngest give up theirs, and come back later. */
void cli_sched_room(struct cli_sched *q);
/* Takes a job out of the queue, where it is there. Lock. */
void cli_sched_unqueue(struct cli_server *s, struct cli_job *job);
/* The client has more than enough to read. */
bool cli_sched_stalls(const struct cli_sched *q, struct cli_job *job);

#endif
