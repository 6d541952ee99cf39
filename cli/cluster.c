/* SPDX-License-Identifier: MIT
 *
 * cli/cluster.c: what a root and a worker have in common on the command line: the key, and what a node says of itself. And the
 * root's way from --workers to a connection.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

/* The root of a moment ago may still be on its way out: that long nobody is told that a worker is busy. */
#define RETRY_MS 400u

/* HOST, HOST:PORT, [IPV6] or [IPV6]:PORT. */
static int add_worker(struct cli_workers *w, const char *text, size_t n)
{
    bool port = n && memchr(text, ':', n) && text[n - 1] != ']';
    char *v = dl_xcalloc(n + sizeof ":" CLI_PORT, 1);
    memcpy(v, text, n);
    if (!port)
        memcpy(v + n, ":" CLI_PORT, sizeof ":" CLI_PORT);
    w->v[w->n++] = v;
    for (uint32_t i = 0; i + 1 < w->n; i++)
        if (!strcmp(w->v[i], v))
            return cli_usage("--workers: %s is there twice", v);
    return DL_OK;
}

int cli_workers_parse(const struct cli_opts *o, struct cli_workers *w)
{
    if (!o->workers && (o->key || (o->insecure && !o->listen))) /* those who listen may have another reason */
        return cli_usage("%s: only with --workers", o->key ? "--key" : "--insecure");
    int err = DL_OK;
    for (const char *at = o->workers; at && !err;) {
        size_t n = strcspn(at, ",");
        if (!n)
            return cli_usage("--workers: '%s' is no list such as 192.168.1.5:9990,192.168.1.6:9990", o->workers);
        if (w->n == CLI_MAX_WORKERS)
            return cli_usage("--workers: more than %d", CLI_MAX_WORKERS);
        err = add_worker(w, at, n);
        at = at[n] ? at + n + 1 : NULL;
    }
    return err;
}

void cli_workers_finish(struct cli_workers *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        free(w->v[i]);
    *w = (struct cli_workers){0};
}

int cli_key(const struct cli_opts *o, struct dl_key *key, bool *has)
{
    const char *path = o->key ? o->key : getenv("DLLAMA_KEY_FILE");
    *has = path && *path;
    return *has ? dl_key_read(path, key) : DL_OK;
}

void cli_tcp_opts(const struct cli_opts *o, const struct dl_key *key, const dl_device *dev, char about[CLI_ABOUT],
                  struct dl_tcp_opts *out)
{
    char host[64];
    dl_host_name(host, sizeof host);
    snprintf(about, CLI_ABOUT, "%s, %.100s", host, dev->name);
    *out = (struct dl_tcp_opts){.key = key, .insecure = o->insecure, .build = DL_VERSION, .about = about};
}

struct cli_cluster {
    const struct cli_opts *o;
    const struct cli_workers *workers;
    dl_device **dev; /* the root's */
    struct dl_key key;
    bool has_key;
    char about[CLI_ABOUT];
    struct dl_tcp_opts tcp;
    dl_tcp_watch *watch;
    char refusals[CLI_MAX_WORKERS][256]; /* of each worker: why it was there and could not be had, as was last said */
    struct dl_cluster how;
    void (*changed)(void *ud, const struct dl_engine_health *now);
    void *changed_ud;
};

/* What is wrong with all that failed: that some are not there, unless one is there and refuses. */
static int worst_of(const int *errs, int n)
{
    int absent = DL_OK, busy = DL_OK;
    for (int i = 0; i < n; i++) {
        if (errs[i] == DL_EPEER || errs[i] == DL_ETIMEDOUT)
            absent = errs[i];
        else if (errs[i] == DL_EBUSY) /* perhaps with this root's last life */
            busy = errs[i];
        else if (errs[i])
            return errs[i];
    }
    return absent ? absent : busy;
}

static int connect_workers(void *ud, const bool *wanted, bool all, uint32_t *who, dl_transport **out)
{
    struct cli_cluster *c = ud;
    const char *const *names = (const char *const *)c->workers->v;
    const int n = (int)c->workers->n;
    int errs[CLI_MAX_WORKERS] = {0};
    if (!all) {
        int err = dl_tcp_connect_some(names, n, wanted, &c->tcp, who, out);
        for (int i = 1; !err && i < dl_transport_n_nodes(*out); i++)
            c->refusals[who[i - 1]][0] = 0;
        return err;
    }
    for (int i = 0; i < n; i++)
        who[i] = (uint32_t)i;
    int err = dl_tcp_connect(names, n, &c->tcp, errs, out), worst = worst_of(errs, n);
    return err && worst ? worst : err;
}

/* Who is missing may have been started again in another way: then waiting for it does not help. Said once, and when it is something else. */
static void say_refusal(struct cli_cluster *c, uint32_t worker)
{
    char why[sizeof c->refusals[0]];
    if (!dl_tcp_watch_refuses(c->watch, (int)worker, why, sizeof why) || !strcmp(why, c->refusals[worker]))
        return;
    memcpy(c->refusals[worker], why, sizeof why);
    dl_log(DL_LOG_WARN, "node %u (%s) is there, but cannot be taken in: %s", worker + 1, c->workers->v[worker], why);
}

static bool is_back(void *ud, uint32_t worker)
{
    struct cli_cluster *c = ud;
    if (dl_tcp_watch_free(c->watch, (int)worker))
        return true;
    say_refusal(c, worker);
    return false;
}

static void introduce(struct cli_cluster *c)
{
    cli_tcp_opts(c->o, c->has_key ? &c->key : NULL, *c->dev, c->about, &c->tcp);
    c->tcp.retry_ms = RETRY_MS;
}

static int replace(void *ud, dl_device **dev)
{
    struct cli_cluster *c = ud;
    int err = cli_cpu_instead(c->o, c->dev);
    if (err)
        return err;
    introduce(c);
    *dev = *c->dev;
    return DL_OK;
}

static void pass_on(void *ud, const struct dl_engine_health *now)
{
    const struct cli_cluster *c = ud;
    if (c->changed)
        c->changed(c->changed_ud, now);
}

void cli_cluster_some(struct cli_cluster *c)
{
    c->how.some = true;
}

void cli_cluster_tell(struct cli_cluster *c, void (*changed)(void *ud, const struct dl_engine_health *now), void *ud)
{
    c->changed = changed;
    c->changed_ud = ud;
}

int cli_cluster_open(const struct cli_opts *o, const struct cli_workers *w, dl_device **dev, struct cli_cluster **out)
{
    struct cli_cluster *c = *out = dl_xcalloc(1, sizeof *c);
    c->o = o;
    c->workers = w;
    c->dev = dev;
    int err = cli_key(o, &c->key, &c->has_key);
    if (err)
        return err;
    introduce(c);
    c->how = (struct dl_cluster){.n_workers = w->n,
                                 .names = (const char *const *)w->v,
                                 .connect = connect_workers,
                                 .is_back = is_back,
                                 .stop = cli_interrupted,
                                 .changed = pass_on,
                                 .replace = replace,
                                 .ud = c};
    return dl_tcp_watch_open((const char *const *)w->v, (int)w->n, &c->tcp, &c->watch);
}

const struct dl_cluster *cli_cluster_how(const struct cli_cluster *c)
{
    return c ? &c->how : NULL;
}

void cli_cluster_close(struct cli_cluster **cluster)
{
    struct cli_cluster *c = *cluster;
    *cluster = NULL;
    if (!c)
        return;
    dl_tcp_watch_close(&c->watch);
    dl_key_forget(&c->key);
    free(c);
}

int cli_wire(const struct cli_opts *o, bool cluster, enum dl_type *out)
{
    static const enum dl_type types[CLI_TYPES] = {DL_Q80, DL_F16, DL_F32};
    *out = cluster ? DL_Q80 : DL_F32;
    return o->wire ? cli_type("--wire", o->wire, types, out) : DL_OK;
}

static const char *const collectives[] = {[DL_COLLECTIVE_AUTO] = "auto",
                                          [DL_COLLECTIVE_ONE_SHOT] = "oneshot",
                                          [DL_COLLECTIVE_HALVES] = "halves",
                                          [DL_COLLECTIVE_RS] = "rs"};

const char *cli_collective_name(enum dl_collective c)
{
    return collectives[c];
}

int cli_collective(const struct cli_opts *o, enum dl_collective *out)
{
    *out = DL_COLLECTIVE_AUTO;
    for (size_t i = 0; o->collective && i < DL_COUNT_OF(collectives); i++)
        if (!strcmp(o->collective, collectives[i])) {
            *out = (enum dl_collective)i;
            return DL_OK;
        }
    return o->collective ? cli_usage("--collective: '%s' is none of auto, oneshot, halves, rs", o->collective) : DL_OK;
}
