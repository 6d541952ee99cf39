/* SPDX-License-Identifier: MIT
 *
 * engine/run/sums.c: how the nodes of an engine add up their partial sums.
 */
#include <math.h>

#include "engine.h"
#include "split_cost.h"

/* Bytes of a partial sum of one token. */
static uint64_t sum_bytes(const dl_engine *e)
{
    uint64_t row = 0;
    (void)dl_row_bytes(dl_wire_type(e->h, e->plan_opts.wire), e->h->dim, &row);
    return row;
}

/* By the network as it was measured, for the sums of one token. */
static enum eng_coll by_network(const dl_engine *e)
{
    const uint32_t n = e->n_slices;
    const uint64_t row = sum_bytes(e);
    if (!e->link.latency_ns)
        return ENG_COLL_ONE_SHOT;
    const struct dl_split_link link = {(double)e->link.latency_ns, e->link.bytes_per_s, e->link_nodes};
    const double ns = eng_split_latency_ns(&link, n), rate = link.bytes_per_s;
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
    if (asked == DL_COLLECTIVE_ONE_SHOT || asked == DL_COLLECTIVE_HALVES ||
        (asked == DL_COLLECTIVE_AUTO && by_network(e) != ENG_COLL_RS))
        return DL_SUM_ONE_SHOT;
    if (dl_plan_in_two(e->h, e->n_slices))
        return DL_SUM_IN_TWO;
    if (asked == DL_COLLECTIVE_RS)
        dl_log(DL_LOG_WARN, "cluster: %u columns cannot be shared out to %u nodes: sums go at once, not by rs",
               e->h->dim, e->n_slices);
    return DL_SUM_ONE_SHOT;
}

/* Does it pay to send the first half of each sum while the second is computed? Only where all nodes are CPUs: on a GPU one more submit costs
 * more than a link takes for half a row. And only where their speed was measured: then whoever planned the slices has worked it out. */
static bool by_halves(const dl_engine *e)
{
    const double gain = e->halves_gain_ns;
    if (!(gain < 0 || gain > 0))
        return false;
    dl_log(DL_LOG_INFO, "cluster: sums in halves, one computed while the other travels, would take %.0f us %s each: %s",
           fabs(gain) / (e->h->n_layers * (e->h->n_experts ? 1 : 2)) / 1e3, gain > 0 ? "less" : "more",
           gain > 0 ? "they do" : "they go whole");
    return gain > 0;
}

void eng_sums_choose(dl_engine *e)
{
    e->plan_opts.lanes = dl_plan_lanes(e->n_slices, e->shape.max_tokens);
    e->plan_opts.collective = e->n_slices > 1 ? pick(e) : DL_SUM_ONE_SHOT;
    const enum dl_collective asked = e->opts.collective;
    e->plan_opts.halves = e->n_slices > 1 && e->n_nodes == 1 && e->plan_opts.collective == DL_SUM_ONE_SHOT &&
                          (asked == DL_COLLECTIVE_HALVES || (asked == DL_COLLECTIVE_AUTO && by_halves(e)));
}
