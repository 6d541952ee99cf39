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
    if (!o->workers && (o->key || o->insecure))
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

int cli_connect(const struct cli_opts *o, const struct cli_workers *w, const dl_device *dev, dl_transport **out)
{
    struct dl_key key;
    struct dl_tcp_opts opts;
    char about[CLI_ABOUT];
    bool has;
    *out = NULL;
    int err = cli_key(o, &key, &has);
    if (err)
        return err;
    cli_tcp_opts(o, has ? &key : NULL, dev, about, &opts);
    opts.retry_ms = RETRY_MS;
    err = dl_tcp_connect((const char *const *)w->v, (int)w->n, &opts, NULL, out);
    if (has)
        dl_key_forget(&key);
    return err;
}

int cli_wire(const struct cli_opts *o, bool cluster, enum dl_type *out)
{
    static const enum dl_type types[] = {DL_Q80, DL_F16, DL_F32};
    *out = cluster ? DL_Q80 : DL_F32;
    for (size_t i = 0; o->wire && i < DL_COUNT_OF(types); i++)
        if (!strcmp(o->wire, dl_type_info(types[i])->name)) {
            *out = types[i];
            return DL_OK;
        }
    return o->wire ? cli_usage("--wire: '%s' is none of q80, f16, f32", o->wire) : DL_OK;
}
