/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_measure.c: how fast the nodes of a cluster are, and the network between them. All measure at the same time: so nodes
 * that share a machine share its memory bandwidth in that, as they will when they compute.
 */
#include "cluster.h"
#include "rates.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHO_BYTES 400u

/* Nodes as they are told apart from one start to the next: by address and device, not by number. */
struct names {
    char (*text)[WHO_BYTES];
    const char **who;
    uint32_t n;
};

static int names_init(const struct eng_cluster *c, struct names *m)
{
    m->n = c->n_peers + 1;
    m->text = dl_calloc(m->n, sizeof *m->text);
    m->who = dl_calloc(m->n, sizeof *m->who);
    if (!m->text || !m->who)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < m->n; i++) {
        struct dl_node_info info;
        dl_transport_node_info(c->t, (int)i, &info);
        snprintf(m->text[i], WHO_BYTES, "%.150s, %.200s", i ? info.name : "root", eng_cluster_device(c, i));
        m->who[i] = m->text[i];
    }
    return DL_OK;
}

static void names_finish(struct names *m)
{
    free((void *)m->who);
    free(m->text);
}

/* The type of most weights: that of the first layer's queries. */
static enum dl_type weight_type(const dl_engine *e)
{
    return e->types.layer[DL_T_ATTN_Q];
}

static int ask(struct eng_cluster *c, const struct eng_measure *m)
{
    eng_cluster_phase(c, "measuring");
    eng_measure_write(&c->out, m);
    return eng_cluster_tell_all(c);
}

static int hear(struct eng_cluster *c, bool speed)
{
    for (;;) {
        struct eng_peer *p;
        struct eng_in in;
        struct eng_rate r;
        int err = eng_cluster_next(c, ENG_CONTROL_MOST, &p, &in);
        if (err || !p)
            return err;
        err = eng_in_type(&in) == ENG_MSG_RATE ? eng_rate_read(&in, speed, &r) : eng_link_unexpected(&in, "RATE");
        if (err)
            return eng_cluster_nonsense(c, p, err);
        struct eng_rate *to = &c->e->rates[p->link.node];
        if (!speed)
            r.rate = to->rate;
        *to = r;
        p->done = true;
    }
}

static int measure_all(struct eng_cluster *c, const struct eng_measure *m)
{
    dl_engine *e = c->e;
    dl_device *dev = e->nodes[0].dev;
    int err = ask(c, m);
    if (!err && m->speed)
        err = dl_device_measure(dev, e->h, m->weight, &e->rates[0].rate);
    e->rates[0].memory = dev->threads ? dl_mem_available() : dev->mem_free;
    e->rates[0].machine = dl_machine_id();
    e->rates[0].host = dev->threads;
    if (!err)
        err = hear(c, m->speed);
    if (err || !m->link)
        return err;
    err = dl_transport_probe(c->t, &e->link);
    e->link_nodes = e->n_slices;
    return err ? eng_cluster_lost(c, err) : DL_OK;
}

int eng_cluster_measure(struct eng_cluster *c, bool anew)
{
    dl_engine *e = c->e;
    struct names names = {0};
    struct eng_link_rate link = {0};
    struct eng_measure m = {.dim = e->h->dim, .weight = weight_type(e), .speed = e->balance, .link = true};
    e->rates = dl_calloc(e->n_slices, sizeof *e->rates);
    int err = e->rates ? names_init(c, &names) : DL_ENOMEM;
    struct eng_rates_key key = {m.dim, m.weight, names.who, names.n};
    if (!err && !anew && e->opts.rates_file && eng_rates_recall(e->opts.rates_file, &key, e->rates, &link)) {
        m.speed = m.link = false;
        e->link = link.speed;
        e->link_nodes = link.n_nodes;
    }
    bool known = !m.link;
    if (!err)
        err = measure_all(c, &m);
    if (!err)
        dl_log(DL_LOG_INFO, "cluster: network latency %.3f ms, %.1f MB/s%s", (double)e->link.latency_ns / 1e6,
               e->link.bytes_per_s / 1e6, known ? ", as measured before" : "");
    if (!err && !known && m.speed && e->opts.rates_file) {
        link = (struct eng_link_rate){e->link, e->link_nodes};
        eng_rates_remember(e->opts.rates_file, &key, e->rates, &link);
    }
    names_finish(&names);
    return err;
}
