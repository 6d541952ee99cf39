/* SPDX-License-Identifier: MIT
 *
 * engine/run/balance.c: from what the nodes of a cluster have measured to their slices. The search itself is dl_split_make; here is what only a
 * real cluster has: machines that are shared, nodes that turned out to lack memory, and somebody to tell. And who only wants to know.
 */
#include "cluster.h"
#include "dl/split.h"
#include "heal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 384u
#define SURVEY_NS UINT64_C(120000000000) /* nobody takes this long to measure itself */

/* Nodes of one machine with the same device are equal, whatever it was doing while they measured. */
static bool twins(const struct eng_cluster *c, uint32_t a, uint32_t b)
{
    const struct eng_rate *r = c->e->rates;
    return r[a].machine && r[a].machine == r[b].machine && r[a].host == r[b].host &&
           !strcmp(eng_cluster_device(c, a), eng_cluster_device(c, b));
}

static struct dl_device_rate mean_rate(const struct eng_cluster *c, uint32_t node)
{
    struct dl_device_rate sum = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->e->n_slices; i++) {
        const struct dl_device_rate *r = &c->e->rates[i].rate;
        if (i != node && !twins(c, i, node))
            continue;
        sum = (struct dl_device_rate){sum.bytes_per_s + r->bytes_per_s, sum.op_ns + r->op_ns,
                                      sum.submit_ns + r->submit_ns, sum.flops + r->flops};
        n++;
    }
    return (struct dl_device_rate){sum.bytes_per_s / n, sum.op_ns / n, sum.submit_ns / n, sum.flops / n};
}

/* What is free on a machine is free for all of its nodes together; a node may have been allowed less. */
static uint64_t memory_of(const dl_engine *e, uint32_t node)
{
    const struct eng_rate *r = e->rates;
    uint64_t n = 0, most = 0;
    for (uint32_t i = 0; i < e->n_slices; i++)
        if (i == node || (r[i].host && r[node].host && r[node].machine && r[i].machine == r[node].machine)) {
            most = DL_MAX(most, r[i].memory);
            n++;
        }
    return DL_MIN(r[node].memory, most / n);
}

static void describe(const struct eng_cluster *c, uint32_t i, char name[NAME_BYTES], struct dl_split_node *out)
{
    const dl_engine *e = c->e;
    struct dl_device_rate r = mean_rate(c, i);
    const char *who = i ? c->peers[i - 1].link.who : "root";
    const char *device = eng_cluster_device(c, i);
    size_t len = strlen(who), tail = i ? strlen(device) + 3 : 0; /* "node 2 at 10.0.0.7:9990 (cpu ...)" */
    snprintf(name, NAME_BYTES, "%.*s", (int)(len > tail ? len - tail : len), who);
    *out = (struct dl_split_node){.name = name,
                                  .device = device,
                                  .bytes_per_s = r.bytes_per_s,
                                  .op_ns = r.op_ns,
                                  .submit_ns = r.submit_ns,
                                  .flops = r.flops,
                                  .memory = memory_of(e, i),
                                  .host = e->rates[i].host};
}

/* *names is what the nodes' names are in; both are the caller's to free. */
static int describe_all(const dl_engine *e, struct dl_split_node **nodes, char **names)
{
    *nodes = dl_calloc(e->n_slices, sizeof **nodes);
    *names = dl_calloc(e->n_slices, NAME_BYTES);
    if (!*nodes || !*names)
        return DL_ENOMEM;
    for (uint32_t i = 0; i < e->n_slices; i++)
        describe(e->cluster, i, *names + (size_t)i * NAME_BYTES, &(*nodes)[i]);
    return DL_OK;
}

static struct dl_split_link link_of(const dl_engine *e)
{
    return (struct dl_split_link){(double)e->link.latency_ns, e->link.bytes_per_s, e->link_nodes};
}

static int log_lines(enum dl_log_level level, struct dl_str *s)
{
    for (char *line = s->v; line && *line;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = 0;
        dl_log(level, "%s", line);
        line = end ? end + 1 : NULL;
    }
    s->len = 0;
    return DL_OK;
}

static int tell(const dl_engine *e, const struct dl_split_input *in, const struct dl_split *s)
{
    struct dl_str text = {0};
    int err = dl_split_text(in, s, &text);
    if (!err)
        err = log_lines(DL_LOG_INFO, &text);
    if (!err)
        err = dl_split_advice(in, s, &text);
    if (!err && text.len)
        err = log_lines(e->epoch ? DL_LOG_INFO : DL_LOG_WARN, &text); /* once is enough */
    dl_str_finish(&text);
    return err;
}

int eng_balance(dl_engine *e)
{
    const struct dl_engine_opts *o = &e->opts;
    const uint32_t n = e->n_slices;
    struct dl_split_node *nodes;
    char *names;
    uint32_t small = 0;
    char missing[300];
    int err = describe_all(e, &nodes, &names);
    for (uint32_t i = 0; i < n && !err; i++)
        nodes[i].memory = eng_heal_room(e, i, nodes[i].memory);
    struct dl_split_input in = {.model = dl_model_name(e->model),
                                .h = e->h,
                                .types = &e->types,
                                .nodes = nodes,
                                .n_nodes = n,
                                .missing = eng_heal_missing(e, missing, sizeof missing),
                                .small = eng_heal_does_without(e) ? &small : NULL,
                                .link = link_of(e),
                                .alike = DL_SPLIT_ALIKE,
                                .ctx = e->kv.refs ? e->ctx : o->ctx,
                                .max_batch = o->max_batch,
                                .max_out = o->max_out,
                                .max_sessions = o->max_sessions,
                                .kv_tokens = o->kv_tokens,
                                .collective = o->collective,
                                .kv_type = o->kv_type,
                                .wire = o->wire};
    struct dl_split split = {0};
    if (!err)
        err = dl_split_make(&in, &split);
    if (err == DL_ELIMIT && small) {
        struct eng_cluster *c = e->cluster;
        eng_heal_no_room(e, (int)small);
        eng_cluster_phase(c, "planning");
        (void)eng_cluster_blame(c, &c->peers[small - 1], err,
                                "it has %.2f GiB free, too little even for the activations that every node needs",
                                dl_gib(nodes[small].memory));
        eng_cluster_leave(c, err, c->blame);
    }
    if (!err) {
        for (uint32_t i = 0; i < n; i++)
            e->slices[i] = split.parts[i].slice;
        e->ctx = split.ctx;
        e->halves_gain_ns = split.halves_ns > 0 ? split.one_shot_ns - split.halves_ns : 0;
        err = tell(e, &in, &split);
    }
    dl_split_finish(&split);
    free(nodes);
    free(names);
    return err;
}

/* -------------------------------------------------------------------------------------------------- survey */

int dl_cluster_survey(const dl_model *model, dl_device *dev, dl_transport *t, const char *rates_file,
                      struct dl_cluster_survey *out)
{
    *out = (struct dl_cluster_survey){0};
    dl_engine *e = dl_calloc(1, sizeof *e);
    if (e)
        e->nodes = dl_calloc(1, sizeof *e->nodes);
    if (!e || !e->nodes) {
        dl_transport_close(&t);
        free(e);
        return DL_ENOMEM;
    }
    e->model = model;
    e->h = dl_model_header(model);
    e->opts.rates_file = rates_file;
    e->balance = true;
    e->wait_ns = SURVEY_NS;
    e->n_nodes = 1;
    e->nodes[0] = (struct eng_node){.dev = dev, .transport = t};
    e->n_slices = (uint32_t)dl_transport_n_nodes(t);
    int err = dl_model_types(model, &e->types);
    if (!err)
        err = eng_cluster_join(e, t);
    if (!err)
        err = eng_cluster_measure(e->cluster, true);
    if (!err)
        err = describe_all(e, &out->nodes, &out->names);
    for (uint32_t i = 0; !err && i < e->n_slices; i++) { /* the devices' names are the engine's */
        char *name = out->names + (size_t)i * NAME_BYTES;
        size_t n = strlen(name);
        snprintf(name + n, NAME_BYTES - n, "%c%s", 0, out->nodes[i].device);
        out->nodes[i].device = n + 1 < NAME_BYTES ? name + n + 1 : NULL;
    }
    out->n_nodes = e->n_slices;
    out->link = link_of(e);
    dl_engine_destroy(&e);
    if (err)
        dl_cluster_survey_finish(out);
    return err;
}

void dl_cluster_survey_finish(struct dl_cluster_survey *s)
{
    free(s->nodes);
    free(s->names);
    *s = (struct dl_cluster_survey){0};
}
