/* SPDX-License-Identifier: MIT
 *
 * engine/run/sums.c: how the nodes of an engine add up their partial sums.
 */
#include "coll_cost.h"
#include "engine.h"

/* By the network as it was measured, for the sums of one token. */
static enum eng_coll by_network(const dl_engine *e)
{
    const uint32_t n = e->n_slices;
    uint64_t row = 0;
    (void)dl_row_bytes(e->plan_opts.wire == DL_Q80 && e->h->dim % DL_BLOCK ? DL_F32 : e->plan_opts.wire, e->h->dim,
                       &row);
    if (!e->link.latency_ns)
        return ENG_COLL_ONE_SHOT;
    const double ns = (double)e->link.latency_ns, rate = e->link.bytes_per_s;
    enum eng_coll kind = eng_coll_pick(n, row, ns, rate);
    dl_log(DL_LOG_INFO, "cluster: sums by %s: %.0f us each by the network as measured, %.0f by %s", eng_coll_name(kind),
           eng_coll_ns(kind, n, row, ns, rate) / 1e3,
           eng_coll_ns(kind == ENG_COLL_RS ? ENG_COLL_ONE_SHOT : ENG_COLL_RS, n, row, ns, rate) / 1e3,
           eng_coll_name(kind == ENG_COLL_RS ? ENG_COLL_ONE_SHOT : ENG_COLL_RS));
    return kind;
}

static enum dl_sum_kind pick(const dl_engine *e)
{
    const enum dl_collective asked = e->opts.collective;
    if (asked == DL_COLLECTIVE_ONE_SHOT || (asked == DL_COLLECTIVE_AUTO && by_network(e) != ENG_COLL_RS))
        return DL_SUM_ONE_SHOT;
    if (asked == DL_COLLECTIVE_RS && (e->h->dim % DL_BLOCK || e->h->dim / DL_BLOCK < e->n_slices))
        dl_log(DL_LOG_WARN, "cluster: %u columns cannot be shared out to %u nodes: sums go at once, not by rs",
               e->h->dim, e->n_slices);
    return DL_SUM_IN_TWO;
}

void eng_sums_choose(dl_engine *e)
{
    e->plan_opts.lanes = dl_plan_lanes(e->n_slices, e->shape.max_tokens);
    e->plan_opts.collective = e->n_slices > 1 ? pick(e) : DL_SUM_ONE_SHOT;
}
