/* SPDX-License-Identifier: MIT
 *
 * engine/run/worker.c: serves one cluster: hello, plan, memory, weights, then batch after batch. All that it allocates on the device is
 * given back when it returns, whatever happened.
 */
#include "link_job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_WAIT_MS 120000u
#define HELLO_NS (UINT64_C(10) * 1000000000u)
#define ALIVE_NS UINT64_C(1000000000)
#define EXPLAIN_NS UINT64_C(500000000)
#define STOP_NS UINT64_C(200000000) /* how often a wait asks whether it is to end */
#define FOREVER UINT64_MAX          /* while the root's link lives: the transport notices when it does not */

/* -------------------------------------------------------------------------------------------------- talking */

int eng_worker_send(struct eng_worker *w)
{
    int err = eng_link_send(&w->link, &w->out);
    w->deaf = w->deaf || err == DL_EPEER;
    w->said_ns = dl_now_ns();
    return err;
}

void eng_worker_alive(void *ud)
{
    struct eng_worker *w = ud;
    if (w->deaf || dl_now_ns() - w->said_ns < ALIVE_NS)
        return;
    eng_got_write(&w->out, w->got);
    (void)eng_worker_send(w);
}

static void tell(struct eng_worker *w, int err, const char *text)
{
    if (w->deaf)
        return;
    eng_error_write(&w->out, err, text);
    (void)eng_worker_send(w);
    w->deaf = true;
}

int eng_worker_fail(struct eng_worker *w, int err, const char *fmt, ...)
{
    char line[ENG_TEXT_MOST + 1];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    dl_log(DL_LOG_ERROR, "worker: %s", line);
    tell(w, err, line);
    return err;
}

/* The root itself, or the node whose loss made it end the cluster. */
static const char *who_is_gone(const struct eng_worker *w, char *out, size_t cap)
{
    char why[160];
    struct dl_node_info info;
    int lost = dl_transport_lost(w->link.t, why, sizeof why);
    if (lost < 0)
        return "the root is gone";
    dl_transport_node_info(w->link.t, lost, &info);
    snprintf(out, cap, "node %d (%.60s) is lost: %s", lost, info.name, why);
    return out;
}

static bool stopped(const struct eng_worker *w)
{
    return w->opts->stop && w->opts->stop(w->opts->stop_ud);
}

/* A message, or the end of this worker. */
static int recv_or_stop(struct eng_worker *w, size_t most, uint64_t timeout_ns, struct eng_in *in)
{
    int err = DL_ETIMEDOUT;
    for (uint64_t left = timeout_ns; err == DL_ETIMEDOUT && left;) {
        uint64_t part = w->opts->stop ? DL_MIN(left, STOP_NS) : left;
        if (stopped(w)) {
            tell(w, DL_ECANCELED, "its user has stopped it");
            w->stopped = true;
            return DL_ECANCELED;
        }
        err = eng_link_recv(&w->link, most, part, in);
        left -= left == FOREVER ? 0 : part;
    }
    return err;
}

int eng_worker_recv(struct eng_worker *w, size_t most, uint64_t timeout_ns, struct eng_in *in)
{
    int err = recv_or_stop(w, most, timeout_ns, in);
    if (w->stopped)
        return err;
    if (err == DL_ETIMEDOUT)
        return dl_fail(DL_EPEER, "worker: %s: the root has not said anything for %.1f s", w->phase,
                       (double)timeout_ns / 1e9);
    if (err == DL_EPEER || err == DL_ECANCELED) {
        char why[256];
        w->deaf = true;
        return dl_fail(DL_EPEER, "worker: %s: %s", w->phase, who_is_gone(w, why, sizeof why));
    }
    if (err)
        return err;
    if (eng_in_type(in) == ENG_MSG_BYE) {
        err = eng_plain_read(in);
        w->deaf = true;
        return err ? err : DL_ECANCELED;
    }
    if (eng_in_type(in) == ENG_MSG_ERROR) {
        struct eng_error said;
        w->deaf = true;
        err = eng_error_read(in, &said);
        return err ? err : dl_fail(said.code, "worker: %s: the root says: %s", w->phase, said.text);
    }
    return DL_OK;
}

/* ---------------------------------------------------------------------------------------------- hello, plan */

static void phase(struct eng_worker *w, const char *text)
{
    snprintf(w->phase, sizeof w->phase, "%s", text);
}

static int meet(struct eng_worker *w)
{
    struct eng_in in;
    struct eng_hello root, me = {.protocol = ENG_PROTOCOL};
    phase(w, "joining");
    int err = eng_worker_recv(w, ENG_CONTROL_MOST, HELLO_NS, &in);
    if (err)
        return err;
    err = eng_in_type(&in) == ENG_MSG_HELLO ? eng_hello_read(&in, &root) : eng_link_unexpected(&in, "HELLO");
    if (err)
        return err;
    snprintf(me.build, sizeof me.build, "%s", DL_VERSION);
    snprintf(me.about, sizeof me.about, "%s", w->e->nodes[0].dev->name);
    eng_hello_write(&w->out, &me);
    err = eng_worker_send(w);
    if (!err && (root.protocol != ENG_PROTOCOL || strcmp(root.build, DL_VERSION) != 0))
        err = eng_worker_fail(w, DL_EUNSUP,
                              "the root is version %s (protocol %u), this worker is %s (protocol %u): install the same "
                              "on all nodes",
                              root.build, root.protocol, DL_VERSION, ENG_PROTOCOL);
    return err;
}

/* The engine takes what it needs of the message over; dl_engine_destroy frees it. */
static void adopt(struct eng_worker *w)
{
    dl_engine *e = w->e;
    struct eng_model_msg *m = &w->model;
    e->h = &m->h;
    e->types = m->types;
    e->slices = m->slices;
    e->rope_factors = m->rope_factors;
    e->n_slices = m->n_nodes;
    e->first_slice = m->node;
    e->shape = m->shape;
    e->plan_opts = m->opts;
    e->embed_kind = eng_embed_of(m->opts.wire, m->h.dim);
    e->ctx = m->shape.table_cols * DL_KV_BLOCK;
    w->limits = (struct eng_step_limits){m->h.dim, m->opts.kv_blocks, e->embed_kind};
}

static int check_ops(struct eng_worker *w)
{
    struct eng_node *n = &w->e->nodes[0];
    for (uint32_t i = 0; i < n->mp->plan.n_ops; i++)
        if (!dl_device_supports(n->dev, &n->mp->plan.ops[i]))
            return eng_worker_fail(w, DL_EUNSUP, "%s has no kernel for op %s: use another device here", n->dev->name,
                                   n->mp->plan.ops[i].name);
    return DL_OK;
}

static uint64_t free_memory(const struct eng_worker *w)
{
    const dl_device *dev = w->e->nodes[0].dev;
    uint64_t n = dev->threads ? dl_mem_available() : dev->mem_free;
    return w->opts->memory && (!n || w->opts->memory < n) ? w->opts->memory : n;
}

/* Weights that need memory of their own, and those that stay in files. */
static void split_weights(const struct eng_worker *w, uint64_t weights, struct eng_memory *m)
{
    const struct eng_node *n = &w->e->nodes[0];
    bool cached = w->cache && eng_cache_could_hold(w->cache, weights);
    for (uint32_t i = 0; !w->model.made && i < n->mp->n_weights; i++) {
        const struct dl_buf_desc *d = &n->mp->plan.bufs[n->mp->weights[i].buf];
        struct eng_source s;
        if (!eng_weights_copied(n->dev, d->type) &&
            (cached || (w->opts->model && eng_source_find(w->opts->model, &n->mp->weights[i], &s) && s.in_place)))
            m->mapped += d->bytes;
    }
    m->copied = weights - m->mapped;
}

static int check_memory(struct eng_worker *w, struct eng_memory *m)
{
    const struct eng_node *n = &w->e->nodes[0];
    const struct dl_batch_shape *s = &w->e->shape;
    uint64_t weights, tables = 3 * (uint64_t)s->max_tables * s->table_cols * sizeof(uint32_t), need;
    bool ok = eng_node_sizes(n, &m->kv, &m->act, &weights) && dl_add_u64(m->act, tables, &m->act);
    split_weights(w, weights, m);
    m->avail = free_memory(w);
    ok = ok && dl_add_u64(m->kv, m->act, &need) && dl_add_u64(need, m->copied, &need);
    m->fits = ok && (!m->avail || need <= m->avail);
    if (m->fits)
        return DL_OK;
    return dl_fail(DL_ELIMIT,
                   "worker: this share needs %.2f GiB (KV cache %.2f, activations %.2f, weights %.2f), %.2f GiB are "
                   "free",
                   dl_gib(m->kv) + dl_gib(m->act) + dl_gib(m->copied), dl_gib(m->kv), dl_gib(m->act), dl_gib(m->copied),
                   dl_gib(m->avail));
}

/* For the one who started this worker. */
static void report(struct eng_worker *w, enum dl_worker_phase phase)
{
    const dl_engine *e = w->e;
    struct dl_worker_job *j = &w->job;
    j->sent_bytes = w->got;
    j->steps += e ? e->stats.steps : 0; /* since the root last asked to count from zero */
    j->tokens += e ? e->stats.tokens : 0;
    if (w->opts->tell)
        w->opts->tell(w->opts->tell_ud, phase, j);
}

static void joined(struct eng_worker *w, const struct eng_memory *m)
{
    w->job = (struct dl_worker_job){.root = w->root,
                                    .root_about = w->root_about,
                                    .model = w->model.name,
                                    .node = w->model.node,
                                    .n_nodes = w->model.n_nodes,
                                    .share = eng_slice_share(w->e->h, w->model.slices, w->model.n_nodes, w->model.node),
                                    .weight_bytes = m->copied + m->mapped,
                                    .kv_bytes = m->kv,
                                    .act_bytes = m->act};
    report(w, DL_WORKER_JOINED);
}

static int measure(struct eng_worker *w, const struct eng_in *in)
{
    struct eng_measure m;
    dl_device *dev = w->e->nodes[0].dev;
    struct eng_rate r = {.memory = free_memory(w), .machine = dl_machine_id(), .host = dev->threads};
    struct dl_link_speed link;
    char why[256];
    phase(w, "measuring");
    int err = eng_measure_read(in, &m);
    if (!err && m.speed)
        err = dl_device_measure(dev, &(struct dl_model_header){.dim = m.dim}, m.weight, &r.rate);
    w->e->nodes[0].device_base = dev->device_at; /* measuring has counted, too */
    w->e->nodes[0].host_base = dev->host_at;
    if (err)
        return err;
    eng_rate_write(&w->out, &r);
    err = eng_worker_send(w);
    if (!err && m.link && (err = dl_transport_probe(w->link.t, &link)))
        (void)dl_fail(err, "worker: measuring the network: %s",
                      err == DL_EPEER ? who_is_gone(w, why, sizeof why) : dl_err_text(err));
    return err;
}

static int plan(struct eng_worker *w)
{
    struct eng_in in;
    dl_engine *e = w->e;
    int err;
    do {
        phase(w, "planning");
        err = eng_worker_recv(w, ENG_CONTROL_MOST, FOREVER, &in);
        if (!err && eng_in_type(&in) == ENG_MSG_MEASURE)
            err = measure(w, &in);
        else if (!err && eng_in_type(&in) == ENG_MSG_LINK)
            err = eng_link_job_serve(w, &in);
        else
            break;
    } while (!err);
    if (!err && eng_in_type(&in) != ENG_MSG_MODEL)
        err = eng_link_unexpected(&in, "MODEL");
    if (!err)
        err = eng_model_read(&in, (uint32_t)dl_transport_n_nodes(w->link.t), (uint32_t)dl_transport_node(w->link.t),
                             &w->model);
    if (err)
        return err;
    adopt(w);
    err = dl_plan_build(e->h, &e->types, e->slices, e->first_slice, e->n_slices, &e->plan_opts, &e->nodes[0].mp);
    if (!err)
        err = check_ops(w);
    struct eng_memory m = {0};
    if (!err)
        err = eng_plan_digest(&w->model, e->nodes[0].mp, &m.plan);
    if (err)
        return err;
    err = check_memory(w, &m);
    bool same = eng_digest_equal(&m.plan, &w->model.plan);
    eng_memory_write(&w->out, &m);
    int sent = eng_worker_send(w);
    if (!same || err)
        w->deaf = true; /* the root knows, and answers nothing that we would act on */
    if (!same)
        return dl_fail(DL_EUNSUP, "worker: the root plans another computation for this slice than this worker does: "
                                  "install the same build on all nodes");
    if (!err)
        joined(w, &m);
    return err ? err : sent;
}

static int load(struct eng_worker *w)
{
    struct eng_node *n = &w->e->nodes[0];
    phase(w, "loading weights");
    int err = eng_node_buffers(w->e, n);
    if (!err)
        err = eng_batch_buffers(w->e);
    if (!err)
        err = eng_tables_init(&w->tables, &w->e->shape);
    if (!err)
        err = eng_worker_weights(w);
    if (!err)
        err = eng_node_programs(n, eng_worker_alive, w);
    if (err)
        return err;
    eng_plain_write(&w->out, ENG_MSG_READY);
    err = eng_worker_send(w);
    if (!err)
        report(w, DL_WORKER_READY);
    return err;
}

/* ------------------------------------------------------------------------------------------------- batches */

static int send_logits(struct eng_worker *w, const struct eng_want *wants, uint32_t first, uint32_t n_rows)
{
    dl_engine *e = w->e;
    const struct eng_node *n = &e->nodes[0];
    const struct dl_slice *s = &e->slices[e->first_slice];
    const float *part = dl_buf_map(n->dev, n->bufs[n->mp->logits_buf]);
    eng_logits_begin(&w->out, w->step, n_rows);
    for (uint32_t r = 0; r < n_rows; r++)
        eng_logits_put(&w->out, &wants[r], part + (size_t)(first + r) * s->n_vocab, s->n_vocab, s->vocab0, e->tops);
    return eng_worker_send(w);
}

/* Why a batch failed is best known to the root, which hears of all: it says so before it ends the cluster. */
static bool root_explains(struct eng_worker *w, struct eng_error *said)
{
    struct eng_in in;
    while (!eng_link_recv(&w->link, ENG_BULK_MOST, EXPLAIN_NS, &in))
        if (eng_in_type(&in) == ENG_MSG_ERROR)
            return !eng_error_read(&in, said);
    return false;
}

/* A failed batch: the transport is closed before the device is waited for, so that nothing writes into its buffers any more. */
static int stop(struct eng_worker *w, int err)
{
    dl_engine *e = w->e;
    char line[ENG_TEXT_MOST + 1], why[256];
    struct eng_error said;
    if (e->bad_exchange) {
        const char *what = e->bad_silence    ? "a node keeps the others waiting"
                           : err == DL_EPEER ? who_is_gone(w, why, sizeof why)
                                             : dl_err_text(err);
        snprintf(line, sizeof line, "step %llu, exchange %u: %s", (unsigned long long)w->step, e->bad_exchange, what);
        tell(w, err, line);
        if (!e->bad_silence && root_explains(w, &said))
            dl_log(DL_LOG_ERROR, "worker: step %llu: the root says: %s", (unsigned long long)w->step, said.text);
        else
            dl_log(DL_LOG_ERROR, "worker: %s", line);
    } else {
        tell(w, err, "its device has failed");
    }
    dl_transport_close(&e->nodes[0].transport);
    eng_exec_abort(e);
    return err;
}

static int step(struct eng_worker *w, const struct eng_in *in)
{
    dl_engine *e = w->e;
    struct eng_node *n = &e->nodes[0];
    uint64_t number;
    const uint8_t *rows;
    int err = eng_step_read(in, &w->limits, &w->tables, &number, &e->batch, &rows);
    if (!err && number != w->step + 1)
        err = dl_fail(DL_EFORMAT, "%s: sends step %llu after step %llu", in->who, (unsigned long long)number,
                      (unsigned long long)w->step);
    const struct eng_batch *b = &e->batch;
    if (!err && !eng_batch_suits(b, &n->mp->plan))
        err = dl_fail(DL_EFORMAT, "%s: puts %u of %u tokens into the first lane, which does not suit the plan", in->who,
                      b->cut, b->n_tokens);
    if (err)
        return err;
    w->step = number;
    float *embed = dl_buf_map(n->dev, n->bufs[n->mp->embed_buf]);
    for (uint32_t t = 0; t < b->n_tokens; t++, rows += eng_embed_bytes(e->embed_kind, e->h->dim))
        eng_embed_get(e->embed_kind, rows, e->h->dim, embed + (size_t)eng_batch_row(b, &n->mp->plan, t) * e->h->dim);
    eng_batch_fill(e, n);
    err = eng_exec(e);
    if (err)
        return stop(w, err);
    bool some = e->batch.n_out && e->slices[e->first_slice].n_vocab;
    return some ? send_logits(w, e->batch.wants, 0, e->batch.n_out) : DL_OK;
}

static int fetch(struct eng_worker *w, const struct eng_in *in)
{
    static const struct eng_want full = {.kind = DL_WANT_LAST};
    uint64_t of;
    uint32_t row;
    int err = eng_fetch_read(in, &of, &row);
    if (!err && (!w->step || of != w->step || row >= w->e->batch.n_out))
        err = dl_fail(DL_EFORMAT, "%s: asks for row %u of step %llu, which there is not", in->who, row,
                      (unsigned long long)of);
    if (err || !w->e->slices[w->e->first_slice].n_vocab)
        return err;
    return send_logits(w, &full, row, 1);
}

/* Question and answer do not count. */
static int count(struct eng_worker *w, const struct eng_in *in)
{
    bool reset;
    struct dl_engine_stats s;
    int err = eng_stats_read(in, &reset);
    if (err)
        return err;
    dl_engine_stats(w->e, &s);
    s.received_bytes -= DL_MIN(s.received_bytes, in->n);
    eng_counts_write(&w->out, &s);
    err = eng_worker_send(w);
    if (reset) {
        w->job.steps += w->e->stats.steps;
        w->job.tokens += w->e->stats.tokens;
        dl_engine_stats_reset(w->e);
    }
    return err;
}

static int serve(struct eng_worker *w)
{
    int err = DL_OK;
    phase(w, "serving");
    while (!err) {
        struct eng_in in;
        err = eng_worker_recv(w, ENG_BULK_MOST, FOREVER, &in);
        if (err)
            break;
        if (eng_in_type(&in) == ENG_MSG_STEP)
            err = step(w, &in);
        else if (eng_in_type(&in) == ENG_MSG_FETCH)
            err = fetch(w, &in);
        else if (eng_in_type(&in) == ENG_MSG_STATS)
            err = count(w, &in);
        else
            err = eng_link_unexpected(&in, "STEP, FETCH, STATS or BYE");
    }
    return err == DL_ECANCELED ? DL_OK : err; /* BYE */
}

/* ------------------------------------------------------------------------------------------------------ all */

/* Takes over the transport, also when memory is out. */
static int start(struct eng_worker *w, dl_transport *t, dl_device *dev, const struct dl_worker_opts *opts)
{
    dl_engine *e = w->e = dl_calloc(1, sizeof *e);
    if (e)
        e->nodes = dl_calloc(1, sizeof *e->nodes);
    if (!e || !e->nodes) {
        dl_transport_close(&t);
        return DL_ENOMEM;
    }
    e->n_nodes = 1;
    e->nodes[0].dev = dev;
    e->nodes[0].transport = t;
    e->nodes[0].device_base = dev->device_at;
    e->nodes[0].host_base = dev->host_at;
    e->wait_ns = (uint64_t)(opts->wait_ms ? opts->wait_ms : DEFAULT_WAIT_MS) * 1000000u;
    w->opts = opts;
    w->link = (struct eng_link){.t = t, .who = "the root"};
    struct dl_node_info root;
    dl_transport_node_info(t, 0, &root);
    snprintf(w->root, sizeof w->root, "%s", root.name);
    snprintf(w->root_about, sizeof w->root_about, "%s", root.about);
    w->job = (struct dl_worker_job){.root = w->root, .root_about = w->root_about};
    w->deaf = dl_transport_node(t) == 0;
    if (w->deaf)
        return dl_fail(DL_EINVAL, "worker: node 0 is the root's");
    return opts->cache ? eng_cache_open(opts->cache, opts->cache_bytes, &w->cache) : DL_OK;
}

static void finish(struct eng_worker *w)
{
    dl_engine_destroy(&w->e);
    for (uint32_t i = 0; i < w->n_maps; i++)
        dl_map_close(&w->maps[i]);
    free(w->maps);
    eng_cache_close(&w->cache);
    eng_tables_finish(&w->tables);
    eng_link_finish(&w->link);
    eng_out_finish(&w->out);
}

int dl_worker_run(dl_transport *t, dl_device *dev, const struct dl_worker_opts *opts)
{
    static const struct dl_worker_opts none;
    struct eng_worker w = {0};
    int err = start(&w, t, dev, opts ? opts : &none);
    if (!err)
        err = meet(&w);
    if (!err)
        err = plan(&w);
    if (!err)
        err = load(&w);
    if (!err)
        err = serve(&w);
    if (err && w.e && w.e->nodes && w.e->nodes[0].transport) /* what is not told yet; why is in this node's log */
        tell(&w, err, dl_err_text(err));
    err = w.stopped             ? DL_ECANCELED
          : err == DL_ECANCELED ? DL_OK /* the root said BYE before anything was computed */
                                : err;
    report(&w, DL_WORKER_ENDED);
    finish(&w);
    return err;
}
