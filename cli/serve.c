/* SPDX-License-Identifier: MIT
 *
 * cli/serve.c: `serve`: from options to a server. The port is open before the model is loaded, so that those who wait can ask how far it is.
 */
#include "cli.h"
#include "server/server.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PARALLEL 4u
#define QUEUE 64u

/* --api-key: the key, or a file that holds it. */
static int read_key(const struct cli_opts *o, struct dl_str *key)
{
    struct dl_map file;
    if (!o->api_key)
        return DL_OK;
    if (!dl_map_try(o->api_key, &file))
        return *o->api_key ? dl_str_addz(key, o->api_key) : cli_usage("--api-key: may not be empty");
    const char *text = (const char *)file.data;
    size_t n = 0;
    while (n < file.size && n < 4096 && (unsigned char)text[n] > ' ')
        n++;
    int err = n && n < 4096 ? dl_str_add(key, text, n)
                            : cli_usage("--api-key: %s: its first line is no key of 1 to 4095 characters", o->api_key);
    dl_map_close(&file);
    return err;
}

static struct cli_server_opts server_opts(const struct cli_opts *o, const struct dl_str *key)
{
    return (struct cli_server_opts){
        .listen = o->listen ? o->listen : "127.0.0.1:8080",
        .api_key = key->v,
        .cors = o->cors,
        .insecure = o->insecure,
        .parallel = cli_given(o, CLI_OPT_PARALLEL) ? (uint32_t)o->parallel : PARALLEL,
        .queue = cli_given(o, CLI_OPT_QUEUE) ? (uint32_t)o->queue : QUEUE,
    };
}

/* A name that is UTF-8 whatever the file says. */
static void copy_name(char *to, size_t n, const char *name)
{
    json_t *valid = json_string(name);
    size_t at = 0;
    for (; *name && at + 1 < n; name++)
        to[at++] = (unsigned char)*name < 0x20 || (!valid && (unsigned char)*name > 0x7e) ? '?' : *name;
    while (at && valid && ((unsigned char)to[at - 1] & 0xc0) == 0x80 && *name) /* cut within a character */
        at--;
    if (at && *name && valid && (unsigned char)to[at - 1] >= 0xc0)
        at--;
    to[at] = 0;
    json_decref(valid);
}

/* The same as long as the same model computes in the same way. */
static void make_fingerprint(const struct cli_engine *e, char out[32])
{
    char what[512];
    int n = snprintf(what, sizeof what, "%s %.200s %llu %u %.100s", DL_VERSION, dl_model_name(e->model),
                     (unsigned long long)dl_model_file_bytes(e->model), e->n_devices, e->devices[0]->name);
    snprintf(out, 32, "fp_%08x", (unsigned)dl_hash(what, n > 0 ? strlen(what) : 0, 0));
}

static int describe(const struct cli_opts *o, const struct cli_engine *e, struct cli_served *out)
{
    *out = (struct cli_served){
        .tok = e->tok, .created = (int64_t)time(NULL), .ctx = e->info.ctx, .cluster = e->workers.n > 0};
    copy_name(out->name, sizeof out->name, dl_model_name(e->model));
    make_fingerprint(e, out->fingerprint);
    out->defaults = (struct cli_req_defaults){
        .vocab = e->info.vocab,
        .temperature = cli_given(o, CLI_OPT_TEMP) ? (float)o->temp
                       : o->model                 ? 1.0f
                                                  : 0.0f,
        .top_p = cli_given(o, CLI_OPT_TOP_P) ? (float)o->top_p : 1.0f,
        .min_p = (float)o->min_p,
        .repeat_penalty = cli_given(o, CLI_OPT_PENALTY) ? (float)o->repeat_penalty : 1.0f,
        .top_k = (uint32_t)o->top_k,
    };
    return cli_find_template(o, e, &out->kind);
}

/* A cluster loses nodes and gets them back: with fewer of them it is as good as well. */
static void on_health(void *server, const struct dl_engine_health *now)
{
    bool well = now->state == DL_HEALTH_READY || now->state == DL_HEALTH_DEGRADED;
    cli_server_health(server, well, now->text);
}

static int serve(const struct cli_opts *o, struct cli_server *s, struct cli_engine *e)
{
    struct cli_served served;
    e->max_sessions = s->opts.parallel;
    e->progress = cli_server_progress;
    e->progress_ud = s;
    e->changed = on_health;
    e->changed_ud = s;
    e->some_workers = true; /* nobody may be there to start it again when the last worker is */
    int err = cli_load(o, 0, s->opts.parallel, e);
    if (!err)
        err = describe(o, e, &served);
    if (err)
        return err;
    cli_server_nodes(s, e);
    cli_server_ready(s, &served);
    struct dl_engine_health now; /* that it begins with less than all was not for a server that was still loading */
    dl_engine_health(e->engine, &now);
    on_health(s, &now);
    cli_interrupt_begin_service();
    if (!o->quiet)
        fprintf(stderr, "%s is served on %s, context %u tokens, %u answers at once. Ctrl-C ends it.\n", served.name,
                s->url, served.ctx, s->opts.parallel);
    err = cli_server_run(s, e, o, cli_interrupted);
    cli_interrupt_end();
    return err;
}

int cli_cmd_serve(const struct cli_opts *o)
{
    struct cli_engine e = {0};
    struct cli_server s = {0};
    struct dl_str key = {0};
    int err = cli_check_template(o);
    if (!err)
        err = read_key(o, &key);
    if (!err) {
        cli_log_to(cli_capture_log, NULL);
        struct cli_server_opts opts = server_opts(o, &key);
        err = cli_server_open(&s, &opts);
    }
    if (!err && !o->quiet)
        fprintf(stderr, "listening on %s\n", s.url);
    if (!err)
        err = serve(o, &s, &e);
    cli_server_close(&s);
    cli_unload(&e);
    if (key.v)
        memset(key.v, 0, key.len);
    dl_str_finish(&key);
    return err;
}
