/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_cost.c: see split_cost.h.
 */
#include "split_cost.h"

#include <stdlib.h>

#include "embed_row.h"

#define DEFAULT_BATCH 128u
#define DEFAULT_OUT 8u
#define FIXED_BYTES_OF_A_VALUE 4 /* norms are f32 */
#define HALVES_OPS 3             /* that a sum in halves has more: a product, a conversion, a merge */

/* Small ops of a segment beside its matrices; 12 a layer in all, 16 with experts, as dl_device_token_ns has it. */
static double ops_of(const struct dl_model_header *h, enum dl_phase p)
{
    return p == DL_PHASE_ATTN ? 7 : p == DL_PHASE_VOCAB ? 3 : h->n_experts ? 9 : 5;
}

double eng_bytes_per_value(enum dl_type t)
{
    const struct dl_type_info *i = dl_type_info(t);
    return (double)i->block_bytes / i->block_values;
}

/* Bytes of `rows` x `cols` of a tensor, over all layers. */
static double layers_bytes(const struct dl_split_input *in, enum dl_tensor_id id, double rows, double cols)
{
    double per = 0;
    for (uint32_t l = 0; l < in->h->n_layers; l++)
        per += eng_bytes_per_value(in->types->layer[(size_t)l * DL_T_COUNT + id]);
    return per * rows * cols;
}

/* ------------------------------------------------------------------------------------------------- activations */

int eng_split_sizes(const struct dl_model_header *h, const struct dl_tensor_types *types, const struct dl_slice *slices,
                    uint32_t node, uint32_t n, const struct dl_plan_opts *opts, struct dl_split_part *out)
{
    struct dl_model_plan *mp;
    int err = dl_plan_build(h, types, slices, node, n, opts, &mp);
    out->weight_bytes = out->kv_bytes = out->act_bytes = 0;
    for (uint32_t i = 0; !err && i < mp->plan.n_bufs; i++) {
        const struct dl_buf_desc *b = &mp->plan.bufs[i];
        uint64_t *to = b->use == DL_BUF_KV       ? &out->kv_bytes
                       : b->use == DL_BUF_WEIGHT ? &out->weight_bytes
                                                 : &out->act_bytes;
        if (!dl_add_u64(*to, b->bytes, to))
            err = dl_fail(DL_ELIMIT, "plan: a node's buffers are more than can be counted");
    }
    dl_plan_destroy(&mp);
    return err;
}

/* Activations are what the plan of one layer says: of a node with nothing, and of one with all heads, all columns, all rows. */
static int activations(struct eng_split_cost *c)
{
    const struct dl_split_input *in = c->in;
    struct dl_model_header h = *in->h;
    h.n_layers = 1;
    const uint32_t ffn = h.n_experts ? h.expert_dim : h.hidden_dim;
    const struct dl_slice all[] = {
        {0}, {.n_heads = h.n_heads, .n_kv_heads = h.n_kv_heads}, {.n_ffn = ffn}, {.n_vocab = h.vocab}};
    struct dl_slice *slices = dl_calloc(in->n_nodes, sizeof *slices);
    int err = slices ? DL_OK : DL_ENOMEM;
    for (int i = 0; !err && i < 1 + DL_PHASE_COUNT; i++) {
        struct dl_split_part part;
        slices[0] = all[i];
        err = eng_split_sizes(&h, in->types, slices, 0, in->n_nodes, &c->opts, &part);
        double act = err ? 0 : (double)part.act_bytes;
        if (!i)
            c->act_base = act;
        else
            c->phase[i - 1].mem_bytes += (act - c->act_base) / c->phase[i - 1].amount;
    }
    free(slices);
    return err;
}

/* ------------------------------------------------------------------------------------------------------- costs */

static void attention_cost(struct eng_split_cost *c, uint32_t ctx)
{
    const struct dl_model_header *h = c->in->h;
    struct eng_fill_phase *p = &c->phase[DL_PHASE_ATTN];
    double row = eng_bytes_per_value(c->opts.kv_type) * h->head_dim * 2 * h->n_layers; /* k and v of a position */
    p->amount = h->n_heads;
    p->group = h->n_heads / h->n_kv_heads;
    p->read_bytes =
        layers_bytes(c->in, DL_T_ATTN_Q, h->head_dim, h->dim) + layers_bytes(c->in, DL_T_ATTN_OUT, h->dim, h->head_dim);
    p->read_kv =
        layers_bytes(c->in, DL_T_ATTN_K, h->head_dim, h->dim) + layers_bytes(c->in, DL_T_ATTN_V, h->head_dim, h->dim);
    p->mem_bytes = p->read_bytes;
    p->mem_kv = p->read_kv + row * c->opts.kv_blocks * DL_KV_BLOCK;
    p->read_kv += row * DL_MIN(ctx, ENG_PREDICT_POS);
    c->head_bytes = layers_bytes(c->in, DL_T_ATTN_OUT, h->dim, h->head_dim) / h->n_layers;
    c->values[DL_PHASE_ATTN] = 2.0 * h->n_layers * h->head_dim * h->dim * (h->n_heads + h->n_kv_heads);
}

static void ffn_cost(struct eng_split_cost *c)
{
    const struct dl_model_header *h = c->in->h;
    struct eng_fill_phase *p = &c->phase[DL_PHASE_FFN];
    const bool moe = h->n_experts > 0;
    p->amount = moe ? h->expert_dim : h->hidden_dim;
    double column = layers_bytes(c->in, moe ? DL_T_MOE_GATE : DL_T_FFN_GATE, 1, h->dim) +
                    layers_bytes(c->in, moe ? DL_T_MOE_UP : DL_T_FFN_UP, 1, h->dim) +
                    layers_bytes(c->in, moe ? DL_T_MOE_DOWN : DL_T_FFN_DOWN, h->dim, 1);
    c->col_bytes = moe ? 0 : layers_bytes(c->in, DL_T_FFN_DOWN, h->dim, 1) / h->n_layers;
    p->read_bytes = column * (moe ? h->n_experts_used : 1);
    p->mem_bytes = column * (moe ? h->n_experts : 1);
    if (moe)
        p->mem_fixed = layers_bytes(c->in, DL_T_MOE_ROUTER, h->n_experts, h->dim);
    c->values[DL_PHASE_FFN] = 3.0 * h->n_layers * h->dim * p->amount * (moe ? h->n_experts_used : 1);
}

double eng_split_latency_ns(const struct dl_split_link *link, uint32_t n)
{
    if (!link->of_nodes)
        return eng_coll_latency_ns(link->latency_ns, n);
    if (n < 2)
        return 0;
    double each = eng_coll_latency_ns(0, 2); /* but not more than half of what was measured is that */
    if (link->of_nodes > 1)
        each = DL_MIN(each, link->latency_ns / 2 / (link->of_nodes - 1));
    return link->latency_ns + ((double)n - link->of_nodes) * each;
}

/* The way sums go among n nodes, if each is in one piece: as asked for, else the faster one. */
static enum eng_coll sums_of(const struct eng_split_cost *c, uint32_t n)
{
    const struct dl_split_link *link = &c->in->link;
    if (!dl_plan_in_two(c->in->h, n))
        return ENG_COLL_ONE_SHOT;
    if (c->in->collective != DL_COLLECTIVE_AUTO)
        return c->in->collective == DL_COLLECTIVE_RS ? ENG_COLL_RS : ENG_COLL_ONE_SHOT;
    return eng_coll_pick(n, c->sum_bytes, eng_split_latency_ns(link, n), link->bytes_per_s);
}

int eng_split_cost(struct eng_split_cost *c, uint32_t ctx)
{
    const struct dl_split_input *in = c->in;
    const struct dl_model_header *h = in->h;
    uint64_t blocks = dl_div_up(ctx, DL_KV_BLOCK) * (in->max_sessions ? in->max_sessions : 1);
    if (in->kv_tokens)
        blocks = DL_MIN(blocks, dl_div_up(in->kv_tokens, DL_KV_BLOCK));
    if (ctx > DL_MAX_SEQ || blocks > UINT32_MAX / DL_KV_BLOCK / h->n_kv_heads)
        return dl_fail(DL_ELIMIT, "context: %u positions for %u sessions are too many", ctx, in->max_sessions);
    c->opts = (struct dl_plan_opts){.max_tokens = in->max_batch ? in->max_batch : DEFAULT_BATCH,
                                    .max_out = in->max_out ? in->max_out : DEFAULT_OUT,
                                    .kv_blocks = (uint32_t)blocks,
                                    .kv_type = in->kv_type,
                                    .wire = in->wire};
    c->opts.max_out = DL_MIN(c->opts.max_out, c->opts.max_tokens);
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        c->phase[p] = (struct eng_fill_phase){0};
    attention_cost(c, ctx);
    ffn_cost(c);
    struct eng_fill_phase *v = &c->phase[DL_PHASE_VOCAB];
    v->amount = h->vocab;
    v->read_bytes = v->mem_bytes = eng_bytes_per_value(in->types->output) * h->dim;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        double norms = (double)FIXED_BYTES_OF_A_VALUE * h->dim * (p == DL_PHASE_VOCAB ? 1 : h->n_layers);
        c->phase[p].mem_fixed += norms;
        c->fixed_read[p] = c->phase[p].mem_fixed;
    }
    (void)dl_row_bytes(dl_wire_type(h, in->wire), h->dim, &c->sum_bytes);
    c->opts.lanes = dl_plan_lanes(in->n_nodes, c->opts.max_tokens);
    c->opts.collective = sums_of(c, in->n_nodes) == ENG_COLL_RS ? DL_SUM_IN_TWO : DL_SUM_ONE_SHOT;
    return activations(c);
}

int eng_split_even(struct eng_split_cost *c)
{
    const struct dl_split_input *in = c->in;
    const uint32_t n = in->n_nodes;
    c->nodes = dl_calloc(n, sizeof *c->nodes);
    uint32_t *order = dl_calloc(n, sizeof *order);
    if (!c->nodes || !order) {
        free(order);
        return DL_ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        c->nodes[i] = in->nodes[i];
        for (; at && in->nodes[order[at - 1]].bytes_per_s < in->nodes[i].bytes_per_s; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    for (uint32_t first = 0, end; first < n; first = end) {
        struct dl_split_node sum = {0};
        double least = in->nodes[order[first]].bytes_per_s * (1 - in->alike);
        for (end = first; end < n && (end == first || in->nodes[order[end]].bytes_per_s > least); end++) {
            const struct dl_split_node *d = &in->nodes[order[end]];
            sum.bytes_per_s += d->bytes_per_s;
            sum.op_ns += d->op_ns;
            sum.submit_ns += d->submit_ns;
            sum.flops += d->flops;
        }
        for (uint32_t i = first; i < end; i++) {
            struct dl_split_node *d = &c->nodes[order[i]];
            d->bytes_per_s = sum.bytes_per_s / (end - first);
            d->op_ns = sum.op_ns / (end - first);
            d->submit_ns = sum.submit_ns / (end - first);
            d->flops = d->flops > 0 ? sum.flops / (end - first) : 0;
        }
    }
    free(order);
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------------- times */

double eng_split_fixed_ns(const struct eng_split_cost *c, const struct dl_split_node *d, enum dl_phase p, uint32_t n)
{
    const double layers = p == DL_PHASE_VOCAB ? 1 : c->in->h->n_layers;
    return layers * ((n > 1 ? d->submit_ns : 0) + ops_of(c->in->h, p) * d->op_ns) +
           c->fixed_read[p] / d->bytes_per_s * 1e9 + (n == 1 && p == DL_PHASE_VOCAB ? d->submit_ns : 0);
}

double eng_split_phase_ns(const struct eng_split_cost *c, uint32_t node, enum dl_phase p, uint32_t amount, uint32_t kv)
{
    const struct eng_fill_phase *ph = &c->phase[p];
    const struct dl_split_node *d = &c->nodes[node];
    return amount ? eng_split_fixed_ns(c, d, p, c->in->n_nodes) +
                        (amount * ph->read_bytes + kv * ph->read_kv) / d->bytes_per_s * 1e9
                  : 0;
}

static double exchange_ns(const struct eng_split_cost *c, uint32_t n, enum eng_coll kind)
{
    if (n < 2)
        return 0;
    const struct dl_split_link *link = &c->in->link;
    double latency = eng_split_latency_ns(link, n),
           row = (double)eng_embed_bytes(eng_embed_of(c->in->wire, c->in->h->dim), c->in->h->dim);
    double sum = eng_coll_ns(kind, n, c->sum_bytes, latency, link->bytes_per_s);
    double send = link->bytes_per_s > 0 ? (n - 1) * row / link->bytes_per_s * 1e9 : 0;
    return 2.0 * c->in->h->n_layers * sum + 2 * latency + send;
}

/* On a GPU the second half is one more submit, too. */
void eng_halves_add(const struct eng_split_cost *c, uint32_t node, uint32_t heads, uint32_t columns,
                    struct eng_halves *h)
{
    const struct dl_split_node *d = &c->nodes[node];
    const double attn = heads * c->head_bytes / 2 / d->bytes_per_s * 1e9,
                 ffn = columns * c->col_bytes / 2 / d->bytes_per_s * 1e9;
    if (attn > 0 && !(h->attn_ns > 0 && h->attn_ns < attn))
        h->attn_ns = attn;
    if (ffn > 0 && !(h->ffn_ns > 0 && h->ffn_ns < ffn))
        h->ffn_ns = ffn;
    h->more_ns = DL_MAX(h->more_ns, HALVES_OPS * d->op_ns + (d->host ? 0 : d->submit_ns));
    h->no_host = h->no_host || !d->host;
}

/* What all sums of a token gain by it. */
static double halves_gain(const struct eng_split_cost *c, uint32_t n, const struct eng_halves *h)
{
    const double rate = c->in->link.bytes_per_s;
    double gain = 0;
    if (c->head_bytes > 0)
        gain += eng_coll_halves_ns(n, c->sum_bytes, rate, h->attn_ns) - h->more_ns;
    if (c->col_bytes > 0)
        gain += eng_coll_halves_ns(n, c->sum_bytes, rate, h->ffn_ns) - h->more_ns;
    return c->in->h->n_layers * gain;
}

void eng_split_exchange(const struct eng_split_cost *c, uint32_t n, const struct eng_halves *h,
                        struct eng_exchange *out)
{
    const enum dl_collective asked = c->in->collective;
    *out =
        (struct eng_exchange){.one_shot = exchange_ns(c, n, ENG_COLL_ONE_SHOT), .rs = exchange_ns(c, n, ENG_COLL_RS)};
    if (n > 1 && dl_plan_half(c->in->h) && (asked == DL_COLLECTIVE_HALVES || !h->no_host))
        out->halves = out->one_shot - halves_gain(c, n, h);
    if (sums_of(c, n) == ENG_COLL_RS) {
        out->collective = DL_COLLECTIVE_RS;
        out->taken = out->rs;
    } else if (out->halves > 0 && (asked == DL_COLLECTIVE_HALVES ||
                                   (asked == DL_COLLECTIVE_AUTO && !c->in->shares && out->halves < out->one_shot))) {
        out->collective = DL_COLLECTIVE_HALVES;
        out->taken = out->halves;
    } else {
        out->collective = DL_COLLECTIVE_ONE_SHOT;
        out->taken = out->one_shot;
    }
}

double eng_split_prefill(const struct eng_split_cost *c, const struct dl_split *s)
{
    const uint32_t n = c->in->n_nodes, half = DL_MAX(1, c->opts.max_tokens / 2);
    const struct dl_split_link *link = &c->in->link;
    double compute = 0;
    for (int p = 0; p < DL_PHASE_VOCAB; p++) {
        double most = 0;
        for (uint32_t i = 0; i < n; i++) {
            const struct dl_slice *sl = &s->parts[i].slice;
            double part = (double)(p == DL_PHASE_ATTN ? sl->n_heads : sl->n_ffn) / c->phase[p].amount;
            if (part > 0 && !(c->nodes[i].flops > 0))
                return 0;
            most = DL_MAX(most, part > 0 ? 2 * part * c->values[p] / c->nodes[i].flops * 1e9 : 0);
        }
        compute += most;
    }
    double latency = eng_split_latency_ns(link, n), bytes = (double)half * (double)c->sum_bytes;
    enum eng_coll kind = eng_coll_pick(n, (uint64_t)bytes, latency, link->bytes_per_s);
    double sums = 2.0 * c->in->h->n_layers * eng_coll_ns(kind, n, (uint64_t)bytes, latency, link->bytes_per_s);
    return 1e9 / DL_MAX(compute, sums / half);
}
