/* SPDX-License-Identifier: MIT
 *
 * cli/plan.c: `plan`: how a model would be shared, what each node would hold, and how fast it would be. The arithmetic is dl_split_make's.
 */
#include "plan.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static json_t *part_json(const struct dl_split_input *in, const struct dl_split *s, uint32_t i)
{
    const struct dl_split_part *p = &s->parts[i];
    const struct dl_slice *sl = &p->slice;
    const char *device = in->nodes[i].device;
    return json_pack(
        "{s:s,s:s,s:f,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:I,s:b}", "name", in->nodes[i].name, "device",
        device ? device : "", "share", p->share, "heads", (json_int_t)sl->n_heads, "kv_heads",
        (json_int_t)sl->n_kv_heads, "ffn", (json_int_t)sl->n_ffn, "vocab", (json_int_t)sl->n_vocab, "weight_bytes",
        (json_int_t)p->weight_bytes, "kv_bytes", (json_int_t)p->kv_bytes, "work_bytes", (json_int_t)p->act_bytes,
        "memory_bytes", (json_int_t)p->memory, "attention_ms", p->ns[DL_PHASE_ATTN] / 1e6, "ffn_ms",
        p->ns[DL_PHASE_FFN] / 1e6, "output_ms", p->ns[DL_PHASE_VOCAB] / 1e6, "sent_bytes_per_token",
        (json_int_t)(s->collective == DL_COLLECTIVE_RS ? p->sent_rs : p->sent_one_shot), "slows", p->slows);
}

static json_t *without_json(const struct dl_split_input *in, const struct dl_split *s)
{
    if (!s->n_slow)
        return json_null();
    json_t *names = json_array();
    for (uint32_t i = 0; i < s->n_nodes; i++)
        if (s->parts[i].slows)
            json_array_append_new(names, json_string(in->nodes[i].name));
    return json_pack("{s:o,s:f}", "nodes", names, "tok_s", s->tok_s_without);
}

static int print_json(const struct dl_split_input *in, const struct dl_split *s)
{
    json_t *nodes = json_array();
    double compute = 0;
    for (uint32_t i = 0; i < s->n_nodes; i++)
        json_array_append_new(nodes, part_json(in, s, i));
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        compute += s->compute_ns[p];
    json_t *halves = s->halves_ns > 0 ? json_real(s->halves_ns / 1e6) : json_null();
    json_t *all = json_pack(
        "{s:s,s:I,s:s,s:s,s:s,s:o,s:{s:f,s:f,s:s,s:f,s:o,s:f},s:f,s:f,s:f,s:f,s:I,s:o}", "model", in->model, "context",
        (json_int_t)s->ctx, "kv", dl_type_info(in->kv_type)->name, "wire", dl_type_info(in->wire)->name, "wire_sums",
        dl_type_info(dl_wire_type(in->h, in->wire))->name, "nodes", nodes, "network", "latency_ms",
        in->link.latency_ns / 1e6, "bytes_per_s", in->link.bytes_per_s, "collective",
        cli_collective_name(s->collective), "oneshot_ms", s->one_shot_ns / 1e6, "halves_ms", halves, "rs_ms",
        s->rs_ns / 1e6, "compute_ms", compute / 1e6, "exchange_ms", s->exchange_ns / 1e6, "tok_s", s->tok_s,
        "prefill_tok_s", s->prefill_tok_s, "position", (json_int_t)s->at_pos, "without", without_json(in, s));
    char *line = all ? json_dumps(all, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    int err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "plan: cannot write the result as JSON");
    free(line);
    json_decref(all);
    return err;
}

static int print_text(const struct dl_split_input *in, const struct dl_split *s)
{
    struct dl_str text = {0};
    int err = dl_split_text(in, s, &text);
    if (!err && s->n_slow) {
        err = dl_split_advice(in, s, &text);
        err = err ? err : dl_str_addz(&text, "\n");
    }
    if (!err)
        err = cli_out(text.v, text.len);
    dl_str_finish(&text);
    return err;
}

static int open_model(const struct cli_opts *o, struct cli_engine *e)
{
    if (o->shape)
        return dl_model_open_shape(o->shape, (uint32_t)o->layers, false, &e->model);
    return dl_model_open(o->model, &e->model);
}

static int check(const struct cli_opts *o)
{
    if (!o->shape == !o->model)
        return cli_usage("plan: needs a MODEL, or a --shape in place of one, e.g. dllama-vk plan --shape llama3.1-8b");
    if (o->layers && !o->shape)
        return cli_usage("--layers: cuts a --shape; a MODEL is planned as it is");
    return DL_OK;
}

static int plan(const struct cli_opts *o, struct cli_plan *p)
{
    struct dl_split_input in = {.ctx = (uint32_t)o->ctx, .max_batch = (uint32_t)o->batch};
    struct dl_tensor_types types = {0};
    struct dl_split split = {0};
    double shares[CLI_PLAN_NODES];
    int err = check(o);
    if (!err)
        err = cli_kv_type(o, &in.kv_type);
    if (!err)
        err = cli_collective(o, &in.collective);
    if (!err)
        err = cli_plan_parse(o, p);
    if (!err)
        err = cli_wire(o, p->cluster, &in.wire);
    if (!p->cluster && in.collective == DL_COLLECTIVE_HALVES) /* the devices of one process exchange at once */
        in.collective = DL_COLLECTIVE_ONE_SHOT;
    if (!err)
        err = open_model(o, &p->e);
    if (!err)
        err = dl_model_types(p->e.model, &types);
    if (!err)
        err = cli_plan_measure(o, p);
    if (!err)
        err = cli_shares(o, p->n, shares, &in.shares);
    in.model = p->e.model ? dl_model_name(p->e.model) : "";
    in.h = p->e.model ? dl_model_header(p->e.model) : NULL;
    in.types = &types;
    in.nodes = p->nodes;
    in.n_nodes = p->n;
    in.link = p->link;
    in.alike = p->alike;
    if (!err)
        err = dl_split_make(&in, &split);
    if (!err)
        err = o->json ? print_json(&in, &split) : print_text(&in, &split);
    dl_split_finish(&split);
    dl_tensor_types_finish(&types);
    return err;
}

int cli_cmd_plan(const struct cli_opts *o)
{
    struct cli_plan p = {0};
    int err = plan(o, &p);
    dl_cluster_survey_finish(&p.survey);
    cli_unload(&p.e);
    return err;
}
