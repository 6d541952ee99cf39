/* SPDX-License-Identifier: MIT
 *
 * cli/bench_ops.c: `bench ops`: every kernel by itself, for the matrices of one layer and the output as nodes of clusters of several sizes hold
 * them, and what share it reaches of what the device can do. The ops are those of real plans.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define DEFAULT_CONTEXT 512u
#define FEW_TOKENS 8u

#define LEAST_LAYERS 2u
#define MOST_LAYERS 64u

static const uint32_t default_slices[] = {1, 2, 4, 8};

struct ops {
    const struct cli_opts *o;
    struct cli_bench_out out;
    struct dl_model_header h; /* one layer of the model's */
    struct dl_tensor_types types;
    uint32_t column_unit;
    uint32_t slices[CLI_MAX_LIST], n_slices, tokens[3], n_tokens, context;
    enum dl_type kv;
    struct cli_ceiling ceiling; /* of the device */
    json_t *measured;           /* of the device: rows that still lack their share */
    struct cli_progress bar;
};

/* --------------------------------------------------------------------------------------------------- results */

static const char *type_name(enum dl_type t)
{
    return dl_type_info(t)->name;
}

/* What tells this op from others, and what was measured. */
static json_t *describe(const struct ops *b, const dl_device *dev, const struct dl_op *op, uint32_t n_slices,
                        const struct dl_batch_load *load, const struct cli_rig_time *t)
{
    const bool weights = op->code == DL_OP_MATMUL || op->code == DL_OP_MOE_MATMUL;
    const bool cache = op->code == DL_OP_ATTENTION || op->code == DL_OP_KV_STORE;
    const char *of = strrchr(op->name, '.');
    char shape[96] = "";
    if (weights)
        snprintf(shape, sizeof shape, "%s %ux%u", type_name(op->src[1].type), op->src[1].rows, op->src[1].cols);
    else if (op->code == DL_OP_ATTENTION)
        snprintf(shape, sizeof shape, "%s %u heads, %u kv, of %u, at %u", type_name(op->src[1].type),
                 op->u.attn.n_heads, op->u.attn.n_kv_heads, op->u.attn.head_dim, load->context);
    else
        snprintf(shape, sizeof shape, "%s to %s, %u", type_name(op->src[0].type), type_name(op->dst.type),
                 cache ? op->src[0].cols : op->dst.cols);
    enum dl_type arithmetic =
        weights ? op->src[1].type : DL_F32; /* attention multiplies floats, however they are stored */
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I,s:s,s:s,s:s}", "test", "ops", "device",
                     dev->name, "kind", dev->kind, "op", dl_op_name(op->code), "shape", shape, "tokens",
                     (json_int_t)load->n_tokens, "slices", (json_int_t)n_slices, "us", t->ns / 1e3, "us_min",
                     t->least_ns / 1e3, "gb_s", (double)(t->memory_bytes ? t->memory_bytes : t->bytes) / t->ns,
                     "gflop_s", t->flop / t->ns, "bytes", (json_int_t)(t->memory_bytes ? t->memory_bytes : t->bytes),
                     "copies", (json_int_t)t->copies, "name", of ? of + 1 : op->name, "model", dl_arch_name(b->h.arch),
                     "arithmetic", type_name(arithmetic));
}

static int print_row(struct cli_bench_out *out, const json_t *row)
{
    char ratio[32];
    int err = DL_OK;
    if (json_array_size(out->rows) == 1)
        err = cli_outf("%-9s %-12s %-34s %6s %6s %10s %8s %9s  %8s\n", "device", "op", "shape", "tokens", "slices",
                       "us", "GB/s", "GFLOP/s", "of limit");
    const json_t *part = json_object_get(row, "fraction");
    char share[16] = "-";
    if (json_is_number(part))
        snprintf(share, sizeof share, "%.1f%%", json_number_value(part) * 100);
    return err ? err
               : cli_outf("%-9s %-12s %-34s %6.0f %6.0f %10.1f %8.2f %9.2f  %8s%s\n", cli_bench_text(row, "kind"),
                          cli_bench_text(row, "op"), cli_bench_text(row, "shape"), cli_bench_number(row, "tokens"),
                          cli_bench_number(row, "slices"), cli_bench_number(row, "us"), cli_bench_number(row, "gb_s"),
                          cli_bench_number(row, "gflop_s"), share, cli_bench_ratio(row, ratio));
}

static double *peak(struct ops *b, const json_t *row)
{
    int type = DL_WEIGHT_TYPES - 1;
    while (type > 0 && strcmp(type_name((enum dl_type)type), cli_bench_text(row, "arithmetic")) != 0)
        type--;
    return &b->ceiling.flop_per_s[type];
}

/* The limit of an op is what memory or arithmetic allows, whichever is less; of one whose data caches hold, unknown. The arithmetic's is
 * what the best matrix product of that type reached, and what reads faster than reading alone did has found it slow. */
static int give_out(struct ops *b)
{
    size_t i;
    json_t *row;
    int err = DL_OK;
    json_array_foreach(b->measured, i, row) /* first: the rows share it */
    {
        double flop = cli_bench_number(row, "gflop_s") * 1e9;
        *peak(b, row) = DL_MAX(*peak(b, row), flop);
        if (flop > 0)
            b->ceiling.bytes_per_s = DL_MAX(b->ceiling.bytes_per_s, cli_bench_number(row, "gb_s") * 1e9);
    }
    json_array_foreach(b->measured, i, row)
    {
        double flop = cli_bench_number(row, "gflop_s") * 1e9, memory = cli_bench_number(row, "gb_s") * 1e9;
        bool known = flop > 0;
        memory /= b->ceiling.bytes_per_s;
        flop /= *peak(b, row);
        json_object_set_new(row, "read_bandwidth", json_real(b->ceiling.bytes_per_s));
        json_object_set_new(row, "peak_flop_s", known ? json_real(*peak(b, row)) : json_null());
        json_object_set_new(row, "bound", known ? json_string(memory > flop ? "memory" : "arithmetic") : json_null());
        json_object_set_new(row, "fraction", known ? json_real(DL_MAX(memory, flop)) : json_null());
        err = err ? err : cli_bench_add(&b->out, json_incref(row));
    }
    json_array_clear(b->measured);
    return err;
}

/* ------------------------------------------------------------------------------------------------- measuring */

static bool is_known(const struct ops *b, const json_t *row)
{
    static const char *const keys[] = {"op", "shape", "tokens"};
    size_t i;
    json_t *other;
    json_array_foreach(b->measured, i, other)
    {
        bool same = true;
        for (size_t k = 0; k < DL_COUNT_OF(keys); k++)
            same = same && json_equal(json_object_get(other, keys[k]), json_object_get(row, keys[k]));
        if (same)
            return true;
    }
    return false;
}

static int one_op(struct ops *b, struct cli_rig *r, const struct dl_op *op, uint32_t n_slices)
{
    struct cli_rig_time t = {.ns = 1};
    json_t *row = describe(b, r->dev, op, n_slices, &r->load, &t);
    bool known = !row || is_known(b, row);
    json_decref(row);
    if (known)
        return row ? DL_OK : DL_ENOMEM;
    int err = cli_rig_time(r, op, true, &t);
    if (err)
        return err;
    row = describe(b, r->dev, op, n_slices, &r->load, &t);
    return row && !json_array_append_new(b->measured, row) ? DL_OK : DL_ENOMEM;
}

/* What one layer takes in the run, where a device may make one kernel of several ops: so many layers that no cache holds their weights. */
static int layers(struct ops *b, dl_device *dev, const struct dl_plan_opts *opts, const struct dl_slice *slices,
                  uint32_t n_slices, const struct dl_batch_load *load)
{
    const struct dl_batch_load inner = {load->n_tokens, 0, 1, load->context};
    struct dl_model_header h = b->h;
    struct dl_tensor_types types = {.output = b->types.output};
    struct dl_model_plan *mp = NULL;
    struct cli_rig r = {0};
    struct cli_rig_time t = {0};
    int err = dl_plan_build(&h, &b->types, slices, 0, n_slices, opts, &mp);
    uint64_t one = err ? 0 : dl_plan_read_bytes(&mp->plan, &inner);
    dl_plan_destroy(&mp);
    h.n_layers = (uint32_t)DL_MIN(DL_MAX(dl_div_up(CLI_RIG_SPREAD, DL_MAX(one, 1)), LEAST_LAYERS), MOST_LAYERS);
    types.layer = dl_calloc((size_t)h.n_layers * DL_T_COUNT, sizeof *types.layer);
    if (!err && !types.layer)
        err = DL_ENOMEM;
    for (uint32_t l = 0; !err && l < h.n_layers; l++)
        memcpy(types.layer + (size_t)l * DL_T_COUNT, b->types.layer, DL_T_COUNT * sizeof *types.layer);
    if (!err)
        err = dl_plan_build(&h, &types, slices, 0, n_slices, opts, &mp);
    if (!err)
        err = cli_rig_open(&r, dev, mp, &inner);
    r.reps = (uint32_t)b->o->reps;
    if (!err)
        err = cli_rig_time_plan(&r, &t);
    cli_rig_close(&r);
    dl_plan_destroy(&mp);
    dl_tensor_types_finish(&types);
    if (err)
        return err;
    const double n = h.n_layers, bytes = round((double)t.memory_bytes / n);
    char shape[64];
    snprintf(shape, sizeof shape, "dim %u, at %u", h.dim, load->context);
    json_t *row = json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I,s:s,s:s,s:s}", "test", "ops",
                            "device", dev->name, "kind", dev->kind, "op", "layer", "shape", shape, "tokens",
                            (json_int_t)load->n_tokens, "slices", (json_int_t)n_slices, "us", t.ns / n / 1e3, "us_min",
                            t.least_ns / n / 1e3, "gb_s", bytes * n / t.ns, "gflop_s", t.flop / t.ns, "bytes",
                            (json_int_t)bytes, "copies", (json_int_t)h.n_layers, "name", "layer", "model",
                            dl_arch_name(h.arch), "arithmetic", type_name(b->types.layer[DL_T_ATTN_Q]));
    return row && !json_array_append_new(b->measured, row) ? DL_OK : DL_ENOMEM;
}

/* Node 0 of a cluster of n has the largest share. */
static int one_plan(struct ops *b, dl_device *dev, uint32_t n_slices, uint32_t n_tokens)
{
    const uint32_t n_out = DL_MIN(n_tokens, FEW_TOKENS);
    const struct dl_plan_opts opts = {.max_tokens = n_tokens,
                                      .max_out = n_out,
                                      .kv_blocks = (uint32_t)dl_div_up(b->context, DL_KV_BLOCK),
                                      .kv_type = b->kv,
                                      .wire = n_slices > 1 ? DL_Q80 : DL_F32};
    const struct dl_batch_load load = {n_tokens, n_out, 1, b->context};
    struct dl_slice slices[CLI_MAX_WORKERS + 1];
    struct dl_model_plan *mp = NULL;
    struct cli_rig r = {0};
    int err = dl_slices_make(&b->h, b->column_unit, NULL, n_slices, slices);
    if (!err)
        err = dl_plan_build(&b->h, &b->types, slices, 0, n_slices, &opts, &mp);
    if (!err)
        err = cli_rig_open(&r, dev, mp, &load);
    r.reps = (uint32_t)b->o->reps;
    if (!err && dev->threads) /* a busy machine gives now more, now less */
        b->ceiling.bytes_per_s = DL_MAX(b->ceiling.bytes_per_s, dl_cpu_read_bandwidth(dev, 60));
    char phase[64];
    snprintf(phase, sizeof phase, "%s, 1/%u, %u tokens", dev->kind, n_slices, n_tokens);
    for (uint32_t i = 0; !err && i < mp->plan.n_ops; i++) {
        cli_progress(&b->bar, phase, i, mp->plan.n_ops);
        err = one_op(b, &r, &mp->plan.ops[i], n_slices);
    }
    cli_rig_close(&r);
    dl_plan_destroy(&mp);
    if (!err)
        err = layers(b, dev, &opts, slices, n_slices, &load);
    cli_progress_clear(&b->bar);
    return err;
}

static int one_device(struct ops *b, dl_device *dev)
{
    int err = cli_bench_ceiling(dev, true, &b->ceiling);
    for (uint32_t s = 0; s < b->n_slices && !err; s++)
        for (uint32_t t = 0; t < b->n_tokens && !err; t++)
            err = one_plan(b, dev, b->slices[s], b->tokens[t]);
    int printed = give_out(b); /* also what was measured before Ctrl-C */
    return err ? err : printed;
}

static int settings(const struct cli_opts *o, struct ops *b)
{
    const uint32_t batch = o->batch ? (uint32_t)o->batch : 128;
    b->tokens[b->n_tokens++] = 1;
    if (batch > FEW_TOKENS)
        b->tokens[b->n_tokens++] = FEW_TOKENS;
    if (batch > 1)
        b->tokens[b->n_tokens++] = batch;
    b->context = DEFAULT_CONTEXT;
    uint32_t depth[CLI_MAX_LIST], n;
    int err = cli_kv_type(o, &b->kv);
    if (!err && o->depth) {
        err = cli_bench_list("--depth", o->depth, 1, 1u << 23, depth, &n);
        b->context = err ? 1 : depth[n - 1];
    }
    b->context = DL_MAX(b->context, batch);
    b->n_slices = DL_COUNT_OF(default_slices);
    memcpy(b->slices, default_slices, sizeof default_slices);
    if (!err && o->nodes)
        err = cli_bench_list("--nodes", o->nodes, 1, CLI_MAX_WORKERS + 1, b->slices, &b->n_slices);
    return err;
}

/* Layers are alike, but for their weights. */
static int one_layer(const dl_model *m, struct ops *b)
{
    b->h = *dl_model_header(m);
    b->h.n_layers = 1;
    int err = dl_model_types(m, &b->types);
    b->column_unit = err ? 4 : dl_column_unit(&b->h, &b->types);
    while (!err && b->n_slices > 1 && b->slices[b->n_slices - 1] > b->h.n_heads)
        b->n_slices--; /* more nodes than it can be cut for */
    return err;
}

int cli_cmd_bench_ops(const struct cli_opts *o)
{
    struct ops b = {.o = o, .out = {.o = o, .print = print_row}, .measured = json_array()};
    struct cli_engine e = {0};
    int err = settings(o, &b);
    cli_progress_init(&b.bar, o);
    if (!err)
        err = cli_bench_begin(&b.out);
    if (!err)
        err = cli_bench_model(o, false, &e);
    if (!err)
        err = one_layer(e.model, &b);
    if (!err)
        err = cli_load_devices(o, &e);
    if (!err)
        err = cli_choose_devices(o, &e);
    cli_interrupt_begin(-1);
    for (uint32_t i = 0; i < e.n_devices && !err; i++)
        err = one_device(&b, e.devices[i]);
    cli_interrupt_end();
    dl_tensor_types_finish(&b.types);
    json_decref(b.measured);
    cli_bench_finish(&b.out);
    cli_unload(&e);
    return err;
}
