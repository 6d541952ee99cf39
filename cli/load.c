/* SPDX-License-Identifier: MIT
 *
 * cli/load.c: from options to a loaded model: which files, which devices, which sizes. The engine does the work.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

#define DEMO_NAME "demo"

enum cli_file cli_file_kind(const char *path)
{
    struct dl_map file;
    if (!dl_map_try(path, &file))
        return CLI_FILE_OTHER;
    const uint8_t *m = file.data;
    uint32_t magic = file.size < 4 ? 0 : m[0] | (uint32_t)m[1] << 8 | (uint32_t)m[2] << 16 | (uint32_t)m[3] << 24;
    dl_map_close(&file);
    switch (magic) {
    case 0x46554747: /* "GGUF" */
        return CLI_FILE_GGUF;
    case 0x0a00abcd:
    case 0x00abcd00: /* the older layouts of a .m ... */
    case 0x00abcd01:
        return CLI_FILE_M;
    case 0x00567124:
    case 0x00567123: /* ... and of a .t, which their readers refuse by name */
        return CLI_FILE_T;
    default:
        return CLI_FILE_OTHER;
    }
}

int cli_load_tokenizer(const char *model, const char *tokenizer, dl_tokenizer **out)
{
    if (tokenizer)
        return dl_tokenizer_open(tokenizer, out);
    if (cli_file_kind(model) != CLI_FILE_M)
        return dl_tokenizer_open(model, out);
    struct dl_str path = {0};
    int err = dl_tokenizer_find(model, &path);
    if (!err)
        err = dl_tokenizer_open(path.v, out);
    dl_str_finish(&path);
    return err;
}

static int demo_open(struct cli_engine *e, bool quiet)
{
    size_t n;
    int err = dl_demo_make(&e->demo, &n);
    if (!err)
        err = dl_model_open_mem(e->demo, n, DEMO_NAME, &e->model);
    if (!err)
        err = dl_tokenizer_open_mem(e->demo, n, DEMO_NAME, &e->tok);
    if (!err && !quiet)
        fputs("This is the built-in demo model: it only recites one text. For a real model: dllama-vk run MODEL.gguf\n",
              stderr);
    return err;
}

static int model_open(const struct cli_opts *o, struct cli_engine *e)
{
    if (!o->model) {
        if (o->tokenizer)
            return cli_usage("--tokenizer: only with a MODEL");
        return demo_open(e, o->quiet);
    }
    int err = dl_model_open(o->model, &e->model);
    if (!err)
        err = cli_load_tokenizer(o->model, o->tokenizer, &e->tok);
    if (err)
        return err;
    uint32_t has = dl_tokenizer_info(e->tok)->vocab, rows = dl_model_header(e->model)->vocab;
    if (has > rows)
        return dl_fail(DL_EINVAL,
                       "%s: knows %u tokens, but its tokenizer %u: they do not belong together; "
                       "give the right one with --tokenizer",
                       o->model, rows, has);
    return DL_OK;
}

static int cpu_opts(const struct cli_opts *o, struct dl_cpu_opts *cpu)
{
    *cpu = (struct dl_cpu_opts){.threads = (uint32_t)o->threads};
    const char *env = getenv("DLLAMA_THREADS");
    uint64_t threads;
    if (o->threads || !env || !*env)
        return DL_OK;
    if (!cli_parse_uint(env, false, 1, DL_CPU_MAX_THREADS, &threads))
        return cli_usage("DLLAMA_THREADS: '%s' is no whole number from 1 to %u", env, DL_CPU_MAX_THREADS);
    cpu->threads = (uint32_t)threads;
    return DL_OK;
}

int cli_load_devices(const struct cli_opts *o, struct cli_engine *e)
{
    struct dl_cpu_opts cpu;
    int err = cpu_opts(o, &cpu);
    const char *at = o->device ? o->device : "auto";
    while (!err) {
        char which[64];
        size_t n = strcspn(at, ",");
        if (!n || n >= sizeof which)
            return cli_usage("--device: '%s' is no list of devices such as cpu or vulkan:0,cpu", o->device);
        if (e->n_devices == CLI_MAX_DEVICES)
            return cli_usage("--device: more than %d devices", CLI_MAX_DEVICES);
        memcpy(which, at, n);
        which[n] = 0;
        if (strcmp(which, "auto"))
            err = dl_device_open(which, &cpu, &e->devices[e->n_devices]);
        e->n_devices += !err;
        if (!at[n])
            break;
        at += n + 1;
    }
    return err;
}

/* Which device `auto` is depends on the model. */
int cli_choose_devices(const struct cli_opts *o, struct cli_engine *e)
{
    struct dl_cpu_opts cpu;
    struct cli_progress bar;
    int err = cpu_opts(o, &cpu);
    cli_progress_init(&bar, o);
    for (uint32_t i = 0; i < e->n_devices && !err; i++)
        if (!e->devices[i])
            err = dl_device_open_best(e->model, e->workers.n + 1, &cpu, cli_progress, &bar, &e->devices[i]);
    cli_progress_clear(&bar);
    return err;
}

/* How many share the model: the devices of this process, or the nodes of a cluster. */
static uint32_t n_shares(const struct cli_engine *e)
{
    return e->workers.n ? e->workers.n + 1 : e->n_devices;
}

/* --split 3:1: one share each, 0 where it says auto. */
static int parse_split(const struct cli_opts *o, uint32_t n, double *out)
{
    const char *at = o->split;
    memset(out, 0, n * sizeof *out);
    for (uint32_t i = 0; strcmp(o->split, "auto") && i < n; i++) {
        char *end;
        out[i] = strtod(at, &end);
        if (end == at || !(out[i] > 0 && out[i] < 1e6) || *end != (i + 1 < n ? ':' : 0))
            return cli_usage("--split: '%s' is not auto or %u shares above 0 with colons between, one per %s", o->split,
                             n, o->workers || o->nodes ? "node, root first" : "device");
        at = end + 1;
    }
    return DL_OK;
}

int cli_shares(const struct cli_opts *o, uint32_t n, double *v, const double **out)
{
    int err = o->split ? parse_split(o, n, v) : DL_OK;
    *out = !err && o->split && v[0] > 0 ? v : NULL;
    return err;
}

/* Several devices share the model as --split says, else by their measured speed. *out NULL: equally. */
static int shares(const struct cli_opts *o, const struct cli_engine *e, double *v, const double **out)
{
    *out = NULL;
    if (n_shares(e) < 2)
        return DL_OK;
    int err = cli_shares(o, n_shares(e), v, out);
    if (err || *out || e->workers.n)
        return err;
    *out = v;
    struct cli_progress bar;
    cli_progress_init(&bar, o);
    for (uint32_t i = 0; i < e->n_devices; i++) {
        e->devices[i]->progress = cli_progress;
        e->devices[i]->progress_ud = &bar;
    }
    err = dl_devices_shares(e->model, e->devices, e->n_devices, v);
    for (uint32_t i = 0; i < e->n_devices; i++)
        e->devices[i]->progress = NULL;
    cli_progress_clear(&bar);
    return err;
}

int cli_type(const char *option, const char *text, const enum dl_type types[CLI_TYPES], enum dl_type *out)
{
    for (size_t i = 0; i < CLI_TYPES; i++)
        if (!strcmp(text, dl_type_info(types[i])->name)) {
            *out = types[i];
            return DL_OK;
        }
    return cli_usage("%s: '%s' is none of %s, %s, %s", option, text, dl_type_info(types[0])->name,
                     dl_type_info(types[1])->name, dl_type_info(types[2])->name);
}

int cli_kv_type(const struct cli_opts *o, enum dl_type *out)
{
    static const enum dl_type types[CLI_TYPES] = {DL_F16, DL_Q80, DL_F32};
    *out = DL_F16;
    return o->kv ? cli_type("--kv", o->kv, types, out) : DL_OK;
}

struct both {
    const struct cli_engine *e;
    struct cli_progress bar;
};

static void progress(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    struct both *b = ud;
    cli_progress(&b->bar, phase, done, total);
    if (b->e->progress)
        b->e->progress(b->e->progress_ud, phase, done, total);
}

static void sending(void *ud, const struct dl_sending *nodes, uint32_t n)
{
    struct both *b = ud;
    cli_progress_nodes(&b->bar, nodes, n);
    uint64_t done = 0, total = 0;
    for (uint32_t i = 0; i < n; i++) {
        done += nodes[i].done;
        total += nodes[i].total;
    }
    if (b->e->progress)
        b->e->progress(b->e->progress_ud, "sending weights", n ? DL_MIN(done, total - 1) : 1, n ? total : 1);
}

static int make_engine(const struct cli_opts *o, uint32_t ctx, uint32_t max_out, struct cli_engine *e)
{
    double share[CLI_MAX_WORKERS + 1] = {0};
    const double *by = NULL;
    enum dl_type kv, wire;
    enum dl_collective sums;
    int err = cli_kv_type(o, &kv);
    if (!err)
        err = cli_wire(o, e->workers.n, &wire);
    if (!err)
        err = cli_collective(o, &sums);
    if (!err)
        err = shares(o, e, share, &by);
    if (!err && e->workers.n)
        err = cli_cluster_open(o, &e->workers, &e->devices[0], &e->cluster);
    if (!err && e->cluster)
        cli_cluster_tell(e->cluster, e->changed, e->changed_ud);
    if (!err && e->cluster && e->some_workers)
        cli_cluster_some(e->cluster);
    if (err)
        return err;
    struct both both = {.e = e};
    cli_progress_init(&both.bar, o);
    struct dl_engine_opts opts = {
        .model = e->model,
        .devices = e->devices,
        .n_devices = e->n_devices,
        .shares = by,
        .cluster = cli_cluster_how(e->cluster),
        .measure = e->workers.n,
        .rates_file = dl_cache_path("rates", e->rates, sizeof e->rates) ? e->rates : NULL,
        .ctx = ctx,
        .max_batch = (uint32_t)o->batch,
        .max_out = max_out,
        .max_sessions = e->max_sessions,
        .kv_tokens = (uint32_t)o->kv_size,
        .kv_type = kv,
        .wire = wire,
        .collective = sums,
        .progress = progress,
        .sending = sending,
        .progress_ud = &both,
    };
    err = dl_engine_create(&opts, &e->engine);
    cli_progress_clear(&both.bar);
    if (!err)
        dl_engine_info(e->engine, &e->info);
    return err;
}

int cli_load(const struct cli_opts *o, uint32_t ctx, uint32_t max_out, struct cli_engine *e)
{
    uint64_t start = dl_now_ns();
    enum dl_type kv, wire;
    enum dl_collective sums;
    int err = cli_kv_type(o, &kv);
    if (!err && !e->workers.n)
        err = cli_workers_parse(o, &e->workers);
    if (!err)
        err = cli_wire(o, e->workers.n, &wire);
    if (!err)
        err = cli_collective(o, &sums);
    if (!err && !e->n_devices)
        err = cli_load_devices(o, e); /* first: a wrong option is to be seen before a large file is read */
    if (!err && e->workers.n && e->n_devices > 1)
        err = cli_usage("--device: in a cluster a node computes with one device: start a worker for each other");
    double share[CLI_MAX_WORKERS + 1];
    if (!err && o->split)
        err = parse_split(o, n_shares(e), share);
    if (!err && !e->model)
        err = model_open(o, e);
    if (!err)
        err = cli_choose_devices(o, e);
    if (err)
        return err;
    uint32_t knows = dl_model_header(e->model)->max_seq;
    uint32_t want = o->ctx ? (uint32_t)o->ctx : knows ? DL_MIN(ctx, knows) : ctx;
    err = make_engine(o, want, max_out, e);
    if (err)
        return err;
    e->load_ns = dl_now_ns() - start;
    char weights[32], cache[32];
    dl_log(DL_LOG_INFO, "%s: %s weights, %s KV cache for %u tokens, loaded in %.0f ms", dl_model_name(e->model),
           cli_size(weights, e->info.weight_bytes), cli_size(cache, e->info.kv_bytes), e->info.ctx,
           (double)e->load_ns / 1e6);
    return DL_OK;
}

static int open_cpu_instead(const struct cli_opts *o, dl_device **out)
{
    struct dl_cpu_opts cpu;
    int err = cpu_opts(o, &cpu);
    if (!err)
        err = dl_device_open("cpu", &cpu, out);
    if (!err)
        dl_log(DL_LOG_WARN, "going on with %s", (*out)->name);
    return err;
}

int cli_cpu_instead(const struct cli_opts *o, dl_device **dev)
{
    dl_device *other;
    if ((*dev)->threads)
        return DL_EDEVICE;
    int err = open_cpu_instead(o, &other);
    if (err)
        return err;
    dl_device_close(dev);
    *dev = other;
    return DL_OK;
}

int cli_fall_back(const struct cli_opts *o, struct cli_engine *e)
{
    bool gpu = false;
    for (uint32_t i = 0; i < e->n_devices; i++)
        gpu = gpu || !e->devices[i]->threads;
    if (!gpu || e->workers.n)
        return DL_EDEVICE; /* there is nothing to fall back to, and what failed has said so */
    dl_engine_destroy(&e->engine);
    for (uint32_t i = 0; i < e->n_devices; i++)
        dl_device_close(&e->devices[i]);
    e->n_devices = 0;
    int err = open_cpu_instead(o, &e->devices[0]);
    if (err)
        return err;
    e->n_devices = 1;
    return make_engine(o, e->info.ctx, e->info.max_out, e);
}

void cli_unload(struct cli_engine *e)
{
    dl_engine_destroy(&e->engine);
    cli_cluster_close(&e->cluster);
    for (uint32_t i = 0; i < e->n_devices; i++)
        dl_device_close(&e->devices[i]);
    dl_tokenizer_close(&e->tok);
    dl_model_close(&e->model);
    free(e->demo);
    cli_workers_finish(&e->workers);
    *e = (struct cli_engine){0};
}
