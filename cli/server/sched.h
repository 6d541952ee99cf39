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
    struct cli_seq *parked; /* begun, but without a session: their clients do not read, and others wanted their place */
    struct dl_step_item *items; /* (most): the batch */
    struct cli_seq **in_batch;  /* (most): whose item it is; NULL: ended meanwhile */
    uint32_t n_items, n_tokens, n_decode;
    struct cli_pace pace;
    uint64_t swept_ns;
    bool worked; /* since the nodes were asked last */
};

#endif
