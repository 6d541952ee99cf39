/* SPDX-License-Identifier: MIT
 *
 * engine/model/coll_cost.h: what it takes to add up one partial sum per node over a network, by the collectives there are for it. The one place
 * for these formulas: the planner predicts with them, and a cluster picks its collective by them. Pure arithmetic.
 */
#ifndef ENG_COLL_COST_H
#define ENG_COLL_COST_H

#include "dl/base.h"

enum eng_coll {
    ENG_COLL_ONE_SHOT, /* every node sends its whole partial to every other, and all add up all of them */
    ENG_COLL_RS, /* reduce-scatter + all-gather: node i adds up piece i of all partials, then all send their sums */
    ENG_COLL_COUNT
};
const char *eng_coll_name(enum eng_coll kind); /* "oneshot", "rs" */

/* Payload that one node sends for one sum of n nodes, `bytes` being a partial in its form on the wire. It receives as much. */
uint64_t eng_coll_bytes(enum eng_coll kind, uint32_t n, uint64_t bytes);

/* Time of one such sum, from the last partial's being computed to the sum's being everywhere. latency_ns: an exchange of next to nothing
 * between these n nodes, bytes_per_s: what a node sends while all send to all; both as dl_transport_probe measures them
 * (bytes_per_s <= 0: infinitely fast). 0 for one node. */
double eng_coll_ns(enum eng_coll kind, uint32_t n, uint64_t bytes, double latency_ns, double bytes_per_s);

/* The faster one; one-shot where both are. */
enum eng_coll eng_coll_pick(uint32_t n, uint64_t bytes, double latency_ns, double bytes_per_s);

/* What a one-shot sum gains, in ns, if it goes in two halves, of which one is computed in compute_ns while the other travels: what the network
 * takes for that, less what a second message to each peer costs. Negative: it loses. */
double eng_coll_halves_ns(uint32_t n, uint64_t bytes, double bytes_per_s, double compute_ns);

/* latency_ns of a network that nobody has measured: of n nodes, each of which needs one_way_ns to reach another. */
double eng_coll_latency_ns(double one_way_ns, uint32_t n);

#endif
