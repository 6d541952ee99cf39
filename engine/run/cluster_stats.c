/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_stats.c: where the time of each node of a cluster went, and what it sent: asked for after an answer, not while it is
 * made. The STATS and COUNTS messages.
 */
#include "cluster.h"

#include <stdio.h>
#include <string.h>

#include "cluster_msg_in.h"

#define FIELDS(X) \
    X(steps) X(tokens) X(compute_ns) X(exchange_ns) X(exchange_hidden_ns) X(idle_ns) X(sent_bytes) X(received_bytes)

void eng_stats_write(struct eng_out *o, bool reset)
{
    eng_out_begin(o, ENG_MSG_STATS);
    eng_put_u8(o, reset);
}

int eng_stats_read(const struct eng_in *in, bool *reset)
{
    struct eng_cursor c = eng_in_open(in);
    uint8_t v = eng_read_u8(&c, "what to do");
    *reset = v;
    return v > 1 ? eng_in_wrong(in, "it is neither a question nor a reset") : eng_in_close(in, &c);
}

void eng_counts_write(struct eng_out *o, const struct dl_engine_stats *s)
{
    eng_out_begin(o, ENG_MSG_COUNTS);
#define X(field) eng_put_u64(o, s->field);
    FIELDS(X)
#undef X
}

int eng_counts_read(const struct eng_in *in, struct dl_engine_stats *out)
{
    struct eng_cursor c = eng_in_open(in);
    uint64_t all = 0;
#define X(field) all |= out->field = eng_read_u64(&c, "counts");
    FIELDS(X)
#undef X
    return all >> 62 ? eng_in_wrong(in, "nothing happens so often") : eng_in_close(in, &c);
}

int eng_cluster_stats(struct eng_cluster *c, bool reset)
{
    if (!c->t)
        return DL_EPEER;
    eng_cluster_phase(c, "statistics");
    eng_stats_write(&c->out, reset);
    int told = eng_cluster_tell_all(c);
    if (told)
        return told;
    for (;;) {
        struct eng_peer *p;
        struct eng_in in;
        int err = eng_cluster_next(c, ENG_CONTROL_MOST, &p, &in);
        if (err || !p)
            return err;
        err = eng_in_type(&in) == ENG_MSG_COUNTS ? eng_counts_read(&in, &p->stats) : eng_link_unexpected(&in, "COUNTS");
        if (err)
            return eng_cluster_nonsense(c, p, err);
        p->done = true;
    }
}

int dl_engine_nodes(dl_engine *e, struct dl_node_stats *out, uint32_t cap, uint32_t *n)
{
    *n = 0;
    if (!e->formed)
        return DL_EPEER;
    struct dl_engine_stats mine;
    dl_engine_stats(e, &mine); /* before the question, which is not part of what it asks for */
    const struct eng_cluster *c = e->cluster;
    int err = c ? eng_cluster_stats(e->cluster, false) : DL_OK;
    if (err)
        return eng_give_up(e, err);
    *n = 1 + (c ? c->n_peers : 0);
    for (uint32_t i = 0; i < DL_MIN(*n, cap); i++) {
        struct dl_node_info info = {.name = "root"};
        if (i)
            dl_transport_node_info(c->t, (int)i, &info);
        out[i] = (struct dl_node_stats){.share = c ? eng_slice_share(e->h, e->slices, e->n_slices, i) : 1,
                                        .stats = i ? c->peers[i - 1].stats : mine};
        snprintf(out[i].name, sizeof out[i].name, "%.*s", (int)sizeof out[i].name - 1, info.name);
        snprintf(out[i].device, sizeof out[i].device, "%s", c ? eng_cluster_device(c, i) : e->nodes[0].dev->name);
    }
    return DL_OK;
}
