/* SPDX-License-Identifier: MIT
 *
 * cli/bench.c: `bench`: how fast a model is evaluated, and what share of the limit that is which memory sets. Tokens are made up: what they are does
 * not matter, but for experts, of which different tokens choose different ones.
 */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nodes.h"

#define DEFAULT_PP 288u
#define DEFAULT_TG 48u
#define DEFAULT_REPS 5u
#define MAX_REPS 100u
#define MAX_PARALLEL 256u
#define BANDWIDTH_MS 50u

struct bench {
    const struct cli_opts *o;
    struct cli_bench_out out;
    uint32_t pp, tg, reps, parallel, depth[CLI_MAX_LIST], n_depth, nodes[CLI_MAX_LIST], n_nodes;
    /* Of one engine. */
    struct cli_opts now; /* as for this many nodes */
    struct cli_engine e;
    dl_session *sessions[MAX_PARALLEL]; /* (parallel) */
    struct dl_step_item *items;         /* (parallel) */
    int32_t *ids;                       /* (n_ids): session i begins at place i */
    uint32_t n_ids;
    double gpu_bytes_per_s; /* all its GPUs together */
    double memory;          /* most that bandwidth() has ever said, in all engines */
    struct cli_progress bar;
};

/* One thing to measure. */
struct job {
    const char *what; /* "pp", "tg" */
    uint32_t n, depth, parallel;
    int (*once)(struct bench *b, const struct job *j, uint64_t *ns);
};

/* ------------------------------------------------------------------------------------------------- measuring */

/* Makes session i hold exactly the first n of its tokens. */
static int fill(struct bench *b, uint32_t i, uint32_t n)
{
    dl_session_truncate(b->sessions[i], n);
    if (!n || dl_session_len(b->sessions[i]) == n)
        return DL_OK;
    struct dl_step_item last = {.want = DL_WANT_NONE};
    return dl_session_feed(b->sessions[i], b->ids + i, n, cli_interrupted, NULL, &last);
}

static int prefill(struct bench *b, const struct job *j, uint64_t *ns)
{
    int err = fill(b, 0, j->depth);
    struct dl_step_item last = {.want = DL_WANT_BEST};
    uint64_t t0 = dl_now_ns();
    if (!err)
        err = dl_session_feed(b->sessions[0], b->ids, j->depth + j->n, cli_interrupted, NULL, &last);
    *ns = dl_now_ns() - t0;
    return err;
}

static int decode(struct bench *b, const struct job *j, uint64_t *ns)
{
    int err = DL_OK;
    for (uint32_t i = 0; i < j->parallel && !err; i++)
        err = fill(b, i, j->depth);
    uint64_t t0 = dl_now_ns();
    for (uint32_t n = 0; n < j->n && !err; n++) {
        for (uint32_t i = 0; i < j->parallel; i++)
            b->items[i] = (struct dl_step_item){
                .session = b->sessions[i], .tokens = b->ids + i + j->depth + n, .n = 1, .want = DL_WANT_BEST};
        err = cli_interrupted(NULL) ? DL_ECANCELED : dl_engine_step(b->e.engine, b->items, j->parallel);
    }
    *ns = dl_now_ns() - t0;
    return err;
}

/* What one repetition reads, in this process. */
static double bytes_read(const struct bench *b, const struct job *j)
{
    double bytes = 0;
    const bool one_by_one = j->once == decode;
    const uint32_t step = one_by_one ? 1 : b->e.info.max_batch, end = j->depth + j->n;
    for (uint32_t at = j->depth; at < end; at += step) {
        uint32_t n = DL_MIN(step, end - at);
        struct dl_batch_load load = {
            .n_tokens = one_by_one ? j->parallel : n, .n_seqs = j->parallel, .context = at + n};
        load.n_out = one_by_one ? j->parallel : at + n == end;
        bytes += (double)dl_engine_read_bytes(b->e.engine, &load);
    }
    return bytes;
}

/* Of all devices of this process together. Memory shared with others gives now more, now less: the caller takes the most. */
static double bandwidth(const struct bench *b)
{
    double sum = b->gpu_bytes_per_s;
    for (uint32_t i = 0; i < b->e.n_devices; i++)
        if (b->e.devices[i]->threads)
            sum += dl_cpu_read_bandwidth(b->e.devices[i], BANDWIDTH_MS);
    return sum;
}

/* --------------------------------------------------------------------------------------------------- results */

static int print_row(struct cli_bench_out *out, const json_t *row)
{
    int err = DL_OK;
    char name[64], ratio[32];
    if (json_array_size(out->rows) == 1)
        err =
            cli_outf("%s, %.0f layers, %s, kv %s\n%-14s %6s %6s  %9s %21s  %9s %9s %9s\n", cli_bench_text(row, "model"),
                     cli_bench_number(row, "layers"), cli_bench_text(row, "device"), cli_bench_text(row, "kv"), "test",
                     "depth", "nodes", "tok/s", "(min .. max)", "MB/token", "read GB/s", "roofline");
    double parallel = cli_bench_number(row, "parallel");
    snprintf(name, sizeof name, parallel > 1 ? "%.40s x%.0f" : "%.40s", cli_bench_text(row, "test"), parallel);
    return err ? err
               : cli_outf("%-14s %6.0f %6.0f  %9.2f %9.2f .. %9.2f  %9.2f %9.2f %8.1f%%%s\n", name,
                          cli_bench_number(row, "depth"), cli_bench_number(row, "n_nodes"),
                          cli_bench_number(row, "tok_s"), cli_bench_number(row, "tok_s_min"),
                          cli_bench_number(row, "tok_s_max"), cli_bench_number(row, "bytes_read_per_token") / 1e6,
                          cli_bench_number(row, "read_bandwidth") / 1e9, cli_bench_number(row, "roofline") * 100,
                          cli_bench_ratio(row, ratio));
}

static json_t *device_name(const struct cli_engine *e)
{
    struct dl_str s = {0};
    for (uint32_t i = 0; i < e->n_devices; i++)
        (void)dl_str_addf(&s, "%s%s", i ? " + " : "", e->devices[i]->name);
    json_t *name = json_string(s.v ? s.v : "");
    dl_str_finish(&s);
    return name;
}

/* What the nodes did in all repetitions. One that was lost meanwhile was done without: then the figures are of another cluster. */
static int take_nodes(const struct bench *b, json_t *row)
{
    struct dl_engine_health health;
    const uint32_t most = b->e.workers.n + 1;
    uint32_t n = 0;
    struct dl_node_stats *v = dl_calloc(most, sizeof *v);
    int err = v ? dl_engine_nodes(b->e.engine, v, most, &n) : DL_ENOMEM;
    dl_engine_health(b->e.engine, &health);
    if (!err && (health.state != DL_HEALTH_READY || n != most))
        err = dl_fail(DL_EPEER, "bench: %s", *health.text ? health.text : "a node was lost while it was measured");
    if (!err && json_object_set_new(row, "nodes", cli_nodes_json(&b->e, v, n)))
        err = DL_ENOMEM;
    free(v);
    return err;
}

static json_t *describe(const struct bench *b, const struct job *j, const struct cli_bench_spread *s)
{
    char test[32];
    uint32_t threads = 0;
    snprintf(test, sizeof test, "%s%u", j->what, j->n);
    for (uint32_t i = 0; i < b->e.n_devices; i++)
        threads += b->e.devices[i]->threads;
    double per_token = round(bytes_read(b, j) / ((double)j->n * j->parallel));
    return json_pack("{s:s,s:f,s:f,s:f,s:o,s:I,s:I,s:I,s:I,s:I,s:s,s:I,s:s,s:I,s:f,s:f}", "test", test, "tok_s",
                     s->median, "tok_s_min", s->least, "tok_s_max", s->most, "device", device_name(&b->e), "threads",
                     (json_int_t)threads, "n_nodes", (json_int_t)b->e.workers.n + 1, "depth", (json_int_t)j->depth,
                     "parallel", (json_int_t)j->parallel, "reps", (json_int_t)b->reps, "model",
                     dl_model_name(b->e.model), "layers", (json_int_t)dl_model_header(b->e.model)->n_layers, "kv",
                     b->o->kv ? b->o->kv : "f16", "bytes_read_per_token", (json_int_t)per_token, "read_bandwidth",
                     b->memory, "roofline", b->memory > 0 ? s->median * per_token / b->memory : 0);
}

static int measure(struct bench *b, const struct job *j)
{
    double tok_s[MAX_REPS];
    uint64_t ns = 0;
    char phase[64];
    snprintf(phase, sizeof phase, "%s%u at %u", j->what, j->n, j->depth);
    cli_progress(&b->bar, phase, 0, b->reps + 1);
    b->memory = DL_MAX(b->memory, bandwidth(b));
    int err = j->once(b, j, &ns); /* warms up */
    dl_engine_stats_reset(b->e.engine);
    for (uint32_t i = 0; i < b->reps && !err; i++) {
        cli_progress(&b->bar, phase, i + 1, b->reps + 1);
        err = j->once(b, j, &ns);
        tok_s[i] = (double)j->n * j->parallel * 1e9 / (double)DL_MAX(ns, 1);
        b->memory = DL_MAX(b->memory, bandwidth(b));
    }
    cli_progress_clear(&b->bar);
    if (err)
        return err;
    struct cli_bench_spread s = cli_bench_spread(tok_s, b->reps);
    json_t *row = describe(b, j, &s);
    err = row ? take_nodes(b, row) : DL_OK;
    if (!err)
        return cli_bench_add(&b->out, row);
    json_decref(row);
    return err;
}

/* --------------------------------------------------------------------------------------------------- engines */

static int make_sessions(struct bench *b, uint32_t ctx)
{
    b->n_ids = ctx + b->parallel;
    b->ids = dl_calloc(b->n_ids, sizeof *b->ids);
    b->items = dl_calloc(b->parallel, sizeof *b->items);
    int err = b->ids && b->items ? DL_OK : DL_ENOMEM;
    uint64_t state = 88172645463325252u;
    for (uint32_t i = 0; !err && i < b->n_ids; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->ids[i] = (int32_t)((state >> 33) % b->e.info.vocab);
    }
    for (uint32_t i = 0; !err && i < b->parallel; i++)
        err = dl_session_create(b->e.engine, &b->sessions[i]);
    return err;
}

/* GPUs are measured before the engine counts on them. */
static int open_engine(struct bench *b, uint32_t ctx)
{
    int err = cli_bench_model(&b->now, true, &b->e);
    if (!err)
        err = cli_workers_parse(&b->now, &b->e.workers);
    if (!err)
        err = cli_load_devices(&b->now, &b->e);
    if (!err)
        err = cli_choose_devices(&b->now, &b->e);
    b->gpu_bytes_per_s = 0;
    for (uint32_t i = 0; !err && i < b->e.n_devices; i++) {
        struct cli_ceiling c;
        if (b->e.devices[i]->threads)
            continue;
        err = cli_bench_ceiling(b->e.devices[i], false, &c);
        b->gpu_bytes_per_s += err ? 0 : c.bytes_per_s;
    }
    b->e.max_sessions = b->parallel;
    b->now.ctx = DL_MAX(b->now.ctx, ctx); /* also where the model was made for less: what it answers does not matter */
    if (!err)
        err = cli_load(&b->now, ctx, b->parallel, &b->e);
    return err ? err : make_sessions(b, ctx);
}

static void close_engine(struct bench *b)
{
    for (uint32_t i = 0; i < b->parallel; i++)
        dl_session_destroy(&b->sessions[i]);
    free(b->ids);
    free(b->items);
    b->ids = NULL;
    b->items = NULL;
    cli_unload(&b->e);
}

static int with_engine(struct bench *b)
{
    const uint32_t ctx = b->depth[b->n_depth - 1] + DL_MAX(b->pp, b->tg);
    int err = open_engine(b, ctx);
    cli_interrupt_begin(-1);
    for (uint32_t d = 0; d < b->n_depth && !err; d++) {
        struct job pp = {"pp", b->pp, b->depth[d], 1, prefill}, tg = {"tg", b->tg, b->depth[d], b->parallel, decode};
        if (b->pp)
            err = measure(b, &pp);
        if (b->tg && !err)
            err = measure(b, &tg);
    }
    cli_interrupt_end();
    close_engine(b);
    return err;
}

/* Options as for n nodes: the first n - 1 of --workers, whose names `list` keeps. */
static void cut_cluster(const struct cli_opts *o, uint32_t n, char *list, struct cli_opts *out)
{
    *out = *o;
    out->workers = list;
    if (n == 1) { /* what only clusters have would be refused */
        out->workers = out->key = out->wire = NULL;
        out->insecure = false;
        return;
    }
    char *end = list - 1;
    for (uint32_t i = 1; i < n; i++)
        end = strchr(end + 1, ',');
    if (end)
        *end = 0;
}

/* For each number of nodes anew. */
static int all_nodes(struct bench *b)
{
    int err = DL_OK;
    b->now = *b->o;
    if (!b->n_nodes)
        return with_engine(b);
    for (uint32_t i = 0; i < b->n_nodes && !err; i++) {
        char *list = dl_xstrdup(b->o->workers ? b->o->workers : "");
        cut_cluster(b->o, b->nodes[i], list, &b->now);
        err = with_engine(b);
        free(list);
    }
    return err;
}

static int node_counts(const struct cli_opts *o, struct bench *b)
{
    struct cli_workers w = {0};
    int err = cli_bench_list("--nodes", o->nodes, 1, CLI_MAX_WORKERS + 1, b->nodes, &b->n_nodes);
    if (!err)
        err = cli_workers_parse(o, &w);
    if (!err && b->nodes[b->n_nodes - 1] > w.n + 1)
        err = cli_usage("--nodes: %u, but with --workers there are %u", b->nodes[b->n_nodes - 1], w.n + 1);
    if (!err && o->split)
        err = cli_usage("--nodes: not with --split, which is for one number of nodes");
    cli_workers_finish(&w);
    return err;
}

static int settings(const struct cli_opts *o, struct bench *b)
{
    b->pp = cli_given(o, CLI_OPT_PP) ? (uint32_t)o->pp : DEFAULT_PP;
    b->tg = cli_given(o, CLI_OPT_TG) ? (uint32_t)o->tg : DEFAULT_TG;
    b->reps = o->reps ? (uint32_t)o->reps : DEFAULT_REPS;
    b->parallel = o->parallel ? (uint32_t)o->parallel : 1;
    b->n_depth = 1;
    if (!b->pp && !b->tg)
        return cli_usage("bench: nothing to measure: --pp and --tg are both 0");
    int err = o->nodes ? node_counts(o, b) : DL_OK;
    return err || !o->depth ? err : cli_bench_list("--depth", o->depth, 0, 1u << 23, b->depth, &b->n_depth);
}

int cli_cmd_bench(const struct cli_opts *o)
{
    struct bench b = {.o = o, .out = {.o = o, .print = print_row}};
    int err = settings(o, &b);
    cli_progress_init(&b.bar, o);
    if (!err)
        err = cli_bench_begin(&b.out);
    if (!err)
        err = all_nodes(&b);
    if (!err && o->plot)
        err = cli_bench_plot(o->plot, b.out.rows);
    cli_bench_finish(&b.out);
    return err;
}
