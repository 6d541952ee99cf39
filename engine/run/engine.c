/* SPDX-License-Identifier: MIT
 *
 * engine/run/engine.c: makes an engine: slices, plans, buffers, weights, programs. Says before loading when it cannot fit.
 */
#include "cluster.h"
#include "heal.h"

#include <stdlib.h>

#include "reader.h"

#define DEFAULT_CTX 8192u
#define DEFAULT_BATCH 128u
#define DEFAULT_OUT 8u
#define DEFAULT_WAIT_MS 120000u

/* Bytes of KV cache per position, all layers of n slices. */
static uint64_t kv_bytes_per_pos(const dl_engine *e, enum dl_type type, uint32_t first, uint32_t n)
{
    uint64_t row = 0, heads = 0;
    (void)dl_row_bytes(type, e->h->head_dim, &row);
    for (uint32_t i = 0; i < n; i++)
        heads += e->slices[first + i].n_kv_heads;
    return 2 * row * heads * e->h->n_layers;
}

/* The context where none was asked for: what the model knows, at most DEFAULT_CTX and half of the memory that is free, on each node as far
 * as that is known. */
static uint32_t pick_ctx(const dl_engine *e, enum dl_type kv, uint32_t sessions)
{
    uint32_t ctx = DL_MIN(e->h->max_seq, DEFAULT_CTX);
    for (uint32_t i = 0; i < (e->rates ? e->n_slices : 1); i++) {
        uint64_t budget = (e->rates ? e->rates[i].memory : dl_mem_available()) / 2;
        uint64_t per =
            (e->rates ? kv_bytes_per_pos(e, kv, i, 1) : kv_bytes_per_pos(e, kv, e->first_slice, e->n_nodes)) * sessions;
        while (ctx > 512 && budget && per && ctx > budget / per)
            ctx /= 2;
    }
    return ctx;
}

/* Refuses with numbers what cannot fit. Weights that stay in the mapping only make the machine slow, so they warn. */
static int check_memory(const dl_engine *e, uint64_t copied)
{
    uint64_t need = 0, avail = dl_mem_available();
    bool host_only = true;
    char buf[300];
    const char *missing = eng_heal_missing(e, buf, sizeof buf);
    for (uint32_t d = 0; d < e->n_nodes; d++)
        host_only = host_only && e->nodes[d].dev->threads;
    if (!avail || !host_only)
        return DL_OK; /* a GPU answers for its own memory when buffers are made */
    need = e->info.kv_bytes + e->info.act_bytes + copied;
    if (need > avail)
        return dl_fail(
            DL_ELIMIT,
            "memory: %s needs %.2f GiB beside its file (KV cache %.2f for a context of %u, activations %.2f, weights "
            "%.2f), %.2f GiB are free: use a smaller --ctx or --batch%s%s%s",
            dl_model_name(e->model), dl_gib(need), dl_gib(e->info.kv_bytes), e->ctx, dl_gib(e->info.act_bytes),
            dl_gib(copied), dl_gib(avail), e->model->made ? ", or fewer --layers" : "", *missing ? "; " : "", missing);
    if (e->info.weight_bytes - copied > avail - need)
        dl_log(DL_LOG_WARN,
               "memory: %s has %.2f GiB of weights, %.2f GiB are free: they will be read from disk again and again",
               dl_model_name(e->model), dl_gib(e->info.weight_bytes - copied), dl_gib(avail - need));
    return DL_OK;
}

/* What travels with a batch fits into one message: the transport takes no larger ones. */
static int suit_messages(dl_engine *e)
{
    uint64_t embed = eng_embed_bytes(e->embed_kind, e->h->dim);
    uint64_t tokens = ENG_BULK_MOST / 2 / embed, out = ENG_BULK_MOST / 2 / (e->h->vocab * sizeof(float));
    e->shape.max_tokens = (uint32_t)DL_MIN(e->shape.max_tokens, DL_MAX(tokens, 1));
    e->shape.max_out = (uint32_t)DL_MIN(e->shape.max_out, DL_MAX(out, 1));
    if ((uint64_t)e->shape.max_tables * e->shape.table_cols * sizeof(uint32_t) > ENG_BULK_MOST / 4)
        return dl_fail(DL_ELIMIT, "context: %u positions for %u sessions are too many for a cluster", e->ctx,
                       e->shape.max_tables);
    return DL_OK;
}

/* What stays when nodes come and go: sessions rely on it. */
static int make_shape(dl_engine *e)
{
    const struct dl_engine_opts *o = &e->opts;
    uint32_t sessions = o->max_sessions ? o->max_sessions : 1;
    if (o->ctx > e->h->max_seq)
        dl_log(DL_LOG_WARN, "context: %u is more than the %u that the model was made for; answers may degrade", o->ctx,
               e->h->max_seq);
    if (o->ctx)
        e->ctx = o->ctx;
    else if (!e->ctx) /* not planned */
        e->ctx = o->kv_tokens ? DL_MIN(pick_ctx(e, o->kv_type, 1), o->kv_tokens) : pick_ctx(e, o->kv_type, sessions);
    if (o->kv_tokens && o->kv_tokens < e->ctx)
        return dl_fail(DL_ELIMIT, "context: %u tokens do not fit the %u that all are to have together", e->ctx,
                       o->kv_tokens);
    const uint64_t cols = dl_div_up(e->ctx, DL_KV_BLOCK);
    uint64_t blocks = cols * sessions;
    if (o->kv_tokens)
        blocks = DL_MIN(blocks, dl_div_up(o->kv_tokens, DL_KV_BLOCK));
    if (e->ctx > DL_MAX_SEQ || blocks > UINT32_MAX / DL_KV_BLOCK / e->h->n_kv_heads)
        return dl_fail(DL_ELIMIT, "context: %u positions for %u sessions are too many", e->ctx, sessions);
    e->shape = (struct dl_batch_shape){.max_tokens = o->max_batch ? o->max_batch : DEFAULT_BATCH,
                                       .max_out = o->max_out ? o->max_out : DEFAULT_OUT,
                                       .max_tables = sessions,
                                       .table_cols = (uint32_t)cols};
    e->plan_opts = (struct dl_plan_opts){.kv_blocks = (uint32_t)blocks, .kv_type = o->kv_type, .wire = o->wire};
    int err = e->cluster || e->heal ? suit_messages(e) : DL_OK;
    e->shape.max_out = DL_MIN(e->shape.max_out, e->shape.max_tokens);
    e->plan_opts.max_tokens = e->shape.max_tokens;
    e->plan_opts.max_out = e->shape.max_out;
    if (!err)
        err = eng_kv_init(&e->kv, (uint32_t)blocks);
    if (!err)
        err = eng_batch_buffers(e);
    return err;
}

static int make_slices(dl_engine *e)
{
    double shares[ENG_MOST_NODES];
    if (e->balance && e->rates)
        return eng_balance(e);
    return dl_slices_make(e->h, dl_column_unit(e->h, &e->types), e->heal ? eng_heal_shares(e, shares) : e->opts.shares,
                          e->n_slices, e->slices);
}

static int make_plans(dl_engine *e)
{
    int err = make_slices(e);
    if (!err && !e->kv.refs)
        err = make_shape(e);
    if (!err)
        eng_sums_choose(e);
    for (uint32_t d = 0; !err && d < e->n_nodes; d++)
        err =
            dl_plan_build(e->h, &e->types, e->slices, e->first_slice + d, e->n_slices, &e->plan_opts, &e->nodes[d].mp);
    return err;
}

static int make_transports(dl_engine *e)
{
    if (e->n_nodes == 1) /* alone, or with the transport that the caller gave */
        return DL_OK;
    dl_transport **t = dl_calloc(e->n_nodes, sizeof(dl_transport *));
    int err = t ? dl_loopback_open((int)e->n_nodes, NULL, t) : DL_ENOMEM;
    for (uint32_t d = 0; !err && d < e->n_nodes; d++)
        e->nodes[d].transport = t[d];
    free(t);
    return err;
}

static void sum_sizes(dl_engine *e)
{
    e->info.kv_bytes = e->info.act_bytes = 0;
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        uint64_t kv, act, weights;
        (void)eng_node_sizes(&e->nodes[d], &kv, &act, &weights); /* of a file that is there: they can be counted */
        e->info.kv_bytes += kv;
        e->info.act_bytes += act;
    }
    e->info.ctx = e->ctx;
    e->info.max_batch = e->shape.max_tokens;
    e->info.max_out = e->shape.max_out;
    e->info.kv_blocks = e->kv.n_blocks;
    e->info.vocab = e->h->vocab;
}

/* The workers begin to look for their weights while the root loads its own. */
static int load(dl_engine *e)
{
    uint64_t total = 0, copied = 0, done = 0;
    int err = DL_OK;
    for (uint32_t d = 0; !err && d < e->n_nodes; d++) {
        uint64_t b, c;
        err = eng_weights_size(e, &e->nodes[d], &b, &c);
        total += err ? 0 : b;
        copied += err ? 0 : c;
    }
    e->info.weight_bytes = total;
    if (!err)
        err = check_memory(e, copied);
    if (!err && e->cluster)
        err = eng_cluster_plan(e->cluster);
    if (!err)
        eng_heal_planned(e);
    if (!err && e->cluster)
        err = eng_cluster_offer(e->cluster);
    for (uint32_t d = 0; !err && d < e->n_nodes; d++)
        err = eng_node_buffers(e, &e->nodes[d]);
    for (uint32_t d = 0; !err && d < e->n_nodes; d++)
        err = eng_weights_load(e, &e->nodes[d], &done, total);
    for (uint32_t d = 0; !err && d < e->n_nodes; d++) {
        e->nodes[d].dev->progress = e->progress;
        e->nodes[d].dev->progress_ud = e->progress_ud;
        err = eng_node_programs(&e->nodes[d], NULL, NULL);
        e->nodes[d].dev->progress = NULL;
    }
    if (!err && e->progress)
        e->progress(e->progress_ud, "loading weights", total, total);
    if (!err && e->cluster)
        err = eng_cluster_serve(e->cluster);
    return err;
}

/* Rope factors and embedding rows are read by the host. */
static int find_host_tensors(dl_engine *e)
{
    struct dl_tensor t;
    if (dl_model_tensor(e->model, DL_T_EMBED, 0, &e->embed))
        return dl_fail(DL_EFORMAT, "%s: has no embedding table", dl_model_name(e->model));
    if (e->h->rope_scaling != DL_ROPE_SCALE_TABLE)
        return DL_OK;
    if (dl_model_tensor(e->model, DL_T_ROPE_FREQS, 0, &t) || t.cols < e->h->n_rot / 2)
        return dl_fail(DL_EFORMAT, "%s: its rope factors are missing or too few", dl_model_name(e->model));
    e->rope_factors = dl_calloc(t.cols, sizeof *e->rope_factors);
    if (!e->rope_factors)
        return DL_ENOMEM;
    dl_row_to_f32(t.type, t.data, e->rope_factors, t.cols);
    return DL_OK;
}

static int check_opts(const struct dl_engine_opts *o)
{
    if (!o->model || !o->n_devices || (o->kv_type != DL_F16 && o->kv_type != DL_F32 && o->kv_type != DL_Q80) ||
        (o->wire != DL_F16 && o->wire != DL_F32 && o->wire != DL_Q80))
        return dl_fail(DL_EINVAL, "engine: needs a model, devices, and f16, f32 or q80 for the KV cache and the wire");
    if (o->cluster && (o->transport || !o->cluster->connect || o->cluster->n_workers >= ENG_MOST_NODES))
        return dl_fail(DL_EINVAL, "engine: a cluster has a way to connect and less than %u workers", ENG_MOST_NODES);
    if (!o->transport && !o->cluster)
        return DL_OK;
    if (o->n_devices != 1)
        return dl_fail(DL_EUNSUP,
                       "engine: in a cluster a node computes with one device: start a worker for each other");
    if (o->transport &&
        (dl_transport_node(o->transport) != 0 || dl_transport_n_nodes(o->transport) > (int)ENG_MOST_NODES))
        return dl_fail(DL_EINVAL, "engine: the root is node 0 of at most %u", ENG_MOST_NODES);
    return DL_OK;
}

int eng_form(dl_engine *e, dl_transport *t)
{
    e->n_slices = t ? (uint32_t)dl_transport_n_nodes(t) : e->n_nodes;
    e->nodes[0].transport = t;
    e->slices = dl_calloc(e->n_slices, sizeof *e->slices);
    int err = e->slices ? DL_OK : DL_ENOMEM;
    if (!err && t && e->n_slices > 1)
        err = eng_cluster_join(e, t);
    if (!err && e->cluster && e->opts.measure)
        err = eng_cluster_measure(e->cluster, false);
    for (uint32_t d = 0; d < e->n_nodes; d++) { /* measuring has counted, too */
        e->nodes[d].device_base = e->nodes[d].dev->device_at;
        e->nodes[d].host_base = e->nodes[d].dev->host_at;
    }
    if (!err)
        err = make_plans(e);
    if (!err)
        err = make_transports(e);
    if (!err) {
        sum_sizes(e);
        err = load(e);
    }
    if (!err && !e->logits && (e->n_slices > 1 || e->heal)) {
        e->logits = dl_calloc((size_t)e->shape.max_out * e->h->vocab, sizeof *e->logits);
        err = e->logits ? DL_OK : DL_ENOMEM;
    }
    if (err) {
        eng_unform(e, err, "the root could not load its part of the model");
        return err;
    }
    e->epoch++;
    e->lanes = (struct eng_lanes){0}; /* other nodes, other times */
    e->formed = true;
    return DL_OK;
}

void eng_unform(dl_engine *e, int err, const char *why)
{
    e->formed = false;
    e->rows_gone = true;
    if (e->cluster)
        eng_cluster_leave(e->cluster, err, why);
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        dl_device *dev = e->nodes[d].dev;
        eng_node_finish(&e->nodes[d]);
        e->nodes[d] = (struct eng_node){.dev = dev};
    }
    eng_cluster_destroy(&e->cluster);
    free(e->slices);
    free(e->rates);
    e->slices = NULL;
    e->rates = NULL;
    e->n_slices = 0;
}

static int make_nodes(dl_engine *e, const struct dl_engine_opts *o)
{
    e->nodes = dl_calloc(o->n_devices, sizeof *e->nodes);
    if (!e->nodes)
        return DL_ENOMEM;
    e->n_nodes = o->n_devices;
    for (uint32_t d = 0; d < e->n_nodes; d++)
        e->nodes[d].dev = o->devices[d];
    bool travels = o->cluster || (o->transport && dl_transport_n_nodes(o->transport) > 1);
    e->embed_kind = travels ? eng_embed_of(o->wire, dl_model_header(o->model)->dim) : ENG_EMBED_F32;
    e->wait_ns =
        o->cluster || o->transport ? (uint64_t)(o->wait_ms ? o->wait_ms : DEFAULT_WAIT_MS) * 1000000u : UINT64_MAX;
    return DL_OK;
}

int dl_engine_create(const struct dl_engine_opts *o, dl_engine **out)
{
    *out = NULL;
    dl_transport *t = o->transport;
    int err = check_opts(o);
    dl_engine *e = err ? NULL : dl_calloc(1, sizeof *e);
    if (!e) {
        dl_transport_close(&t);
        return err ? err : DL_ENOMEM;
    }
    e->model = o->model;
    e->h = dl_model_header(o->model);
    e->opts = *o;
    e->opts.devices = NULL;
    e->opts.transport = NULL;
    e->opts.cluster = NULL;
    e->balance = o->measure && !o->shares;
    e->progress = o->progress;
    e->progress_ud = o->progress_ud;
    err = make_nodes(e, o);
    if (!err)
        err = find_host_tensors(e);
    if (!err)
        err = dl_model_types(e->model, &e->types);
    if (err)
        dl_transport_close(&t);
    else if (o->cluster)
        err = eng_heal_create(e, o->cluster);
    else
        err = eng_form(e, t);
    e->progress = NULL;
    e->opts.shares = NULL;
    if (err)
        dl_engine_destroy(&e);
    *out = e;
    return err;
}

void dl_engine_destroy(dl_engine **engine)
{
    dl_engine *e = *engine;
    if (!e)
        return;
    eng_unform(e, e->failed, "the root has given up");
    eng_heal_destroy(&e->heal);
    eng_kv_finish(&e->kv);
    eng_batch_finish(&e->batch);
    dl_tensor_types_finish(&e->types);
    free(e->nodes);
    free(e->rope_factors);
    free(e->logits);
    free(e->rows);
    free(e->row_of);
    free(e->tops);
    free(e);
    *engine = NULL;
}

void dl_engine_info(const dl_engine *e, struct dl_engine_info *out)
{
    *out = e->info;
    out->wire = dl_wire_type(e->h, e->plan_opts.wire);
    out->collective = e->plan_opts.collective == DL_SUM_IN_TWO ? DL_COLLECTIVE_RS
                      : e->plan_opts.halves                    ? DL_COLLECTIVE_HALVES
                                                               : DL_COLLECTIVE_ONE_SHOT;
}

static void link_stats(const dl_engine *e, struct dl_transport_stats *out)
{
    *out = (struct dl_transport_stats){0};
    if (e->nodes[0].transport)
        dl_transport_stats(e->nodes[0].transport, out);
    out->sent_bytes += e->carried.sent_bytes;
    out->received_bytes += e->carried.received_bytes;
}

void dl_engine_stats(const dl_engine *e, struct dl_engine_stats *out)
{
    struct dl_transport_stats t;
    link_stats(e, &t);
    *out = e->stats;
    out->sent_bytes = t.sent_bytes - e->stats.sent_bytes;
    out->received_bytes = t.received_bytes - e->stats.received_bytes;
}

void dl_engine_stats_reset(dl_engine *e)
{
    struct dl_transport_stats t;
    int err = e->cluster && e->formed ? eng_cluster_stats(e->cluster, true) : DL_OK;
    if (err)
        (void)eng_give_up(e, err); /* the next step says it, or mends it */
    link_stats(e, &t);
    e->stats = (struct dl_engine_stats){0};
    e->stats.sent_bytes = t.sent_bytes; /* what the link has carried so far is not counted again */
    e->stats.received_bytes = t.received_bytes;
}
