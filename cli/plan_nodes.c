/* SPDX-License-Identifier: MIT
 *
 * cli/plan_nodes.c: the nodes that `plan` plans for: described on the command line, found at the other end of --workers, or the devices of
 * this machine.
 */
#include "plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of nodes that are only described, as CPUs have them. */
#define OP_NS 1500
#define SUBMIT_NS 15000

/* Between devices of one process. */
#define NEAR_NS 5000
#define NEAR_BYTES_PER_S 5e9

/* -------------------------------------------------------------------------------------------------- --nodes */

/* The next number of "a:b:c", at most to the comma. */
static bool number(const char **at, double most, double *out)
{
    char *end;
    if (**at != ':' || ((*at)[1] < '0' || (*at)[1] > '9'))
        return false;
    *out = strtod(*at + 1, &end);
    *at = end;
    return isfinite(*out) && *out > 0 && *out <= most;
}

/* name:GB/s:GiB[:GFLOP/s] */
static bool parse_node(struct cli_plan *p, const char **at)
{
    double speed, memory, flops = 0;
    const size_t n = strcspn(*at, ":,");
    if (!n || n >= sizeof p->names[0])
        return false;
    memcpy(p->names[p->n], *at, n);
    *at += n;
    if (!number(at, 1e6, &speed) || !number(at, 1e6, &memory) || (**at == ':' && !number(at, 1e9, &flops)))
        return false;
    p->nodes[p->n] = (struct dl_split_node){.name = p->names[p->n],
                                            .bytes_per_s = speed * 1e9,
                                            .op_ns = OP_NS,
                                            .submit_ns = SUBMIT_NS,
                                            .flops = flops * 1e9,
                                            .memory = (uint64_t)(memory * 0x1p30),
                                            .host = true};
    p->n++;
    return **at == ',' || !**at;
}

static int parse_nodes(const struct cli_opts *o, struct cli_plan *p)
{
    for (const char *at = o->nodes;; at++) {
        if (p->n == CLI_PLAN_NODES)
            return cli_usage("--nodes: more than %d", CLI_PLAN_NODES);
        if (!parse_node(p, &at))
            return cli_usage("--nodes: '%s' is no list such as pc:400:24,nas:20:16 (name:GB/s:GiB[:GFLOP/s])",
                             o->nodes);
        for (uint32_t i = 0; i + 1 < p->n; i++)
            if (!strcmp(p->names[i], p->names[p->n - 1]))
                return cli_usage("--nodes: %s is there twice", p->names[i]);
        if (!*at)
            return DL_OK;
    }
}

/* --------------------------------------------------------------------------------------------------- --link */

struct unit {
    const char *name;
    double value;
};

/* A number above 0 and a unit. */
static bool quantity(const char *text, size_t n, const struct unit *units, size_t n_units, double *out)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    *out = strtod(text, &end);
    size_t left = n - (size_t)(end - text);
    for (size_t i = 0; i < n_units; i++)
        if (end <= text + n && strlen(units[i].name) == left && !memcmp(end, units[i].name, left)) {
            *out *= units[i].value;
            return isfinite(*out) && *out > 0;
        }
    return false;
}

/* Ethernet carries 117 MB/s of payload per Gbit/s; a number with a unit is taken at its word. PING goes there and back. */
static int parse_link(const struct cli_opts *o, struct cli_plan *p)
{
    static const struct unit speeds[] = {{"gbe", 117e6},  {"kbit", 125}, {"mbit", 125e3},
                                         {"gbit", 125e6}, {"MB/s", 1e6}, {"GB/s", 1e9}};
    static const struct unit times[] = {{"us", 500}, {"ms", 500e3}, {"s", 500e6}};
    const char *text = o->link ? o->link : "1gbe:0.2ms";
    const size_t n = strcspn(text, ":");
    bool ok = quantity(text, n, speeds, DL_COUNT_OF(speeds), &p->link.bytes_per_s);
    p->link.latency_ns = 100e3;
    if (ok && text[n])
        ok = quantity(text + n + 1, strlen(text + n + 1), times, DL_COUNT_OF(times), &p->link.latency_ns);
    return ok ? DL_OK : cli_usage("--link: '%s' is no network such as 1gbe:0.2ms, 2.5gbe or 940mbit:300us", text);
}

int cli_plan_parse(const struct cli_opts *o, struct cli_plan *p)
{
    if (o->nodes && (o->workers || o->device || o->threads))
        return cli_usage("--nodes: describes nodes; --workers, --device and --threads are about those there are");
    if (o->link && !o->nodes)
        return cli_usage("--link: only with --nodes; of --workers the network is measured");
    p->cluster = o->nodes || o->workers;
    if (!o->nodes)
        return cli_workers_parse(o, &p->e.workers);
    int err = parse_nodes(o, p);
    return err ? err : parse_link(o, p);
}

/* ------------------------------------------------------------------------------------------------- measuring */

static int measure_workers(const struct cli_opts *o, struct cli_plan *p)
{
    char file[512];
    uint32_t who[CLI_MAX_WORKERS];
    dl_transport *t = NULL;
    int err = cli_cluster_open(o, &p->e.workers, &p->e.devices[0], &p->e.cluster);
    if (err)
        return err;
    const struct dl_cluster *how = cli_cluster_how(p->e.cluster);
    err = how->connect(how->ud, NULL, true, who, &t);
    if (err)
        return err;
    err = dl_cluster_survey(p->e.model, p->e.devices[0], t, dl_cache_path("rates", file, sizeof file) ? file : NULL,
                            &p->survey);
    if (err)
        return err;
    p->n = p->survey.n_nodes;
    memcpy(p->nodes, p->survey.nodes, p->n * sizeof *p->nodes);
    p->link = p->survey.link;
    p->alike = DL_SPLIT_ALIKE;
    return DL_OK;
}

static int measure_devices(struct cli_plan *p)
{
    struct dl_tensor t;
    enum dl_type weight = dl_model_tensor(p->e.model, DL_T_ATTN_Q, 0, &t) ? DL_Q40 : t.type;
    for (uint32_t i = 0; i < p->e.n_devices; i++) {
        dl_device *dev = p->e.devices[i];
        struct dl_device_rate r;
        int err = dl_device_measure(dev, dl_model_header(p->e.model), weight, &r);
        if (err)
            return err;
        p->nodes[p->n++] = (struct dl_split_node){.name = dev->kind,
                                                  .device = dev->name,
                                                  .bytes_per_s = r.bytes_per_s,
                                                  .op_ns = r.op_ns,
                                                  .submit_ns = r.submit_ns,
                                                  .flops = r.flops,
                                                  .memory = dev->threads ? dl_mem_available() : dev->mem_free};
    }
    p->link = (struct dl_split_link){.latency_ns = NEAR_NS, .bytes_per_s = NEAR_BYTES_PER_S};
    return DL_OK;
}

_Static_assert(CLI_MAX_DEVICES <= CLI_PLAN_NODES, "all fit");

int cli_plan_measure(const struct cli_opts *o, struct cli_plan *p)
{
    if (o->nodes)
        return DL_OK;
    int err = cli_load_devices(o, &p->e);
    if (!err && p->e.workers.n && p->e.n_devices > 1)
        err = cli_usage("--device: in a cluster a node computes with one device: start a worker for each other");
    if (!err)
        err = cli_choose_devices(o, &p->e);
    if (err)
        return err;
    return p->e.workers.n ? measure_workers(o, p) : measure_devices(p);
}
