/* SPDX-License-Identifier: MIT
 *
 * engine/run/link.h: messages to and from one other node: a transport, who is at the other end, and a buffer that grows to what arrives.
 */
#ifndef ENG_LINK_H
#define ENG_LINK_H

#include "cluster_msg.h"
#include "dl/transport.h"

/* Zero-initialised with t, node and who filled in. */
struct eng_link {
    dl_transport *t; /* borrowed */
    int node;
    char who[224]; /* "node 2 (cpu (avx2, 4 threads))" */
    uint8_t *buf;
    size_t cap;
};

void eng_link_finish(struct eng_link *l);

/* What dl_transport_send says, or the error of writing the message. */
int eng_link_send(const struct eng_link *l, const struct eng_out *o);

/* The next message, valid until the next call. DL_ETIMEDOUT (not logged), DL_EPEER (not logged), DL_EFORMAT (logged) for one larger than
 * `most`: nothing is allocated for it. */
int eng_link_recv(struct eng_link *l, size_t most, uint64_t timeout_ns, struct eng_in *in);

/* A message of a type that is not expected now: DL_EFORMAT, logged. */
int eng_link_unexpected(const struct eng_in *in, const char *wanted);

/* The digest of a node's plan: of all that it was made from (m, but for m->plan and m->name) and of what came of it, so that two builds that
 * plan differently do not compute together. DL_ENOMEM. */
int eng_plan_digest(const struct eng_model_msg *m, const struct dl_model_plan *mp, struct eng_digest *out);

#endif
