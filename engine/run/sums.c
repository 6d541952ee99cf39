/* SPDX-License-Identifier: MIT
 *
 * engine/run/sums.c: how the nodes of an engine add up their partial sums.
 */
#include <math.h>

#include "coll_cost.h"
#include "cluster_msg.h"
#include "engine.h"

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
    if (asked == DL_COLLECTIVE_ONE_SHOT || asked == DL_COLLECTIVE_HALVES ||
        (asked == DL_COLLECTIVE_AUTO && by_network(e) != ENG_COLL_RS))
        return DL_SUM_ONE_SHOT;
    if (asked == DL_COLLECTIVE_RS && (e->h->dim % DL_BLOCK || e->h->dim / DL_BLOCK < e->n_slices))
        dl_log(DL_LOG_WARN, "cluster: %u columns cannot be shared out to %u nodes: sums go at once, not by rs",
               e->h->dim, e->n_slices);
    return DL_SUM_IN_TWO;
}

/* The shortest that any node computes for half of the rows of wo, or of w2. */
static double half_ns(const dl_engine *e, enum dl_tensor_id id)
{
    double least = INFINITY;
    for (uint32_t i = 0; i < e->n_slices; i++) {
        const struct dl_slice *s = &e->slices[i];
        const struct dl_device_rate *r = &e->rates[i].rate;
        const uint32_t cols = id == DL_T_ATTN_OUT ? s->n_heads * e->h->head_dim : s->n_ffn;
        uint64_t row;
        if (cols && dl_row_bytes(e->types.layer[id], cols, &row))
            least = fmin(least, (double)row * e->h->dim / 2 / r->bytes_per_s * 1e9);
    }
    return isfinite(least) ? least : 0;
}

/* Does it pay to send the first half of each sum while the second is computed? Only where all nodes are CPUs: on a GPU one more submit costs
 * more than a link takes for half a row. And only where their speed was measured. */
static bool by_halves(const dl_engine *e)
{
    const uint32_t n = e->n_slices;
    if (!e->rates || !e->link.latency_ns || !dl_plan_half(e->h))
        return false;
    double more = 0; /* small ops that a sum has more: a product, a conversion, a merge */
    for (uint32_t i = 0; i < n; i++) {
        const struct dl_device_rate *r = &e->rates[i].rate;
        if (!e->rates[i].host || !(r->bytes_per_s > 0))
            return false;
        more = fmax(more, 3 * r->op_ns);
    }
    double gain = eng_coll_halves_ns(n, sum_bytes(e), e->link.bytes_per_s, half_ns(e, DL_T_ATTN_OUT)) - more;
    uint32_t sums = 1;
    if (!e->h->n_experts) {
        gain += eng_coll_halves_ns(n, sum_bytes(e), e->link.bytes_per_s, half_ns(e, DL_T_FFN_DOWN)) - more;
        sums = 2;
    }
    dl_log(DL_LOG_INFO, "cluster: sums in halves, one computed while the other travels, would take %.0f us %s each: %s",
           fabs(gain) / sums / 1e3, gain > 0 ? "less" : "more", gain > 0 ? "they do" : "they go whole");
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
