/* SPDX-License-Identifier: MIT
 *
 * engine/model/slices.c: who owns what of every layer (DESIGN section 5). Pure arithmetic over the header.
 */
#include "dl/model.h"

#include <stdlib.h>

/* Deals `units` out in proportion to the weights: the floor first, then each unit left to the node that is furthest below its
 * share; ties to the lower node. count[i] may become 0. */
static void deal(uint32_t units, const double *weights, uint32_t n, uint32_t *count)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += weights ? weights[i] : 1.0;
    uint32_t left = units;
    for (uint32_t i = 0; i < n; i++) {
        double share = (weights ? weights[i] : 1.0) / sum * units;
        count[i] = (uint32_t)share;
        if (count[i] > left)
            count[i] = left;
        left -= count[i];
    }
    while (left--) {
        uint32_t best = 0;
        double best_gap = -1e300;
        for (uint32_t i = 0; i < n; i++) {
            double gap = (weights ? weights[i] : 1.0) / sum * units - count[i];
            if (gap > best_gap + 1e-9) {
                best_gap = gap;
                best = i;
            }
        }
        count[best]++;
    }
}

/* Consecutive ranges of [0, total) in whole units; the last range that is not empty takes what is left of a broken unit. */
static void cut(uint32_t total, uint32_t unit, const uint32_t *count, uint32_t n, uint32_t i, uint32_t *first,
                uint32_t *len)
{
    uint64_t before = 0, upto, all = 0;
    for (uint32_t j = 0; j < n; j++)
        all += count[j];
    for (uint32_t j = 0; j < i; j++)
        before += count[j];
    upto = before + count[i];
    uint64_t a = before * unit, b = upto == all && count[i] ? total : upto * unit;
    *first = (uint32_t)DL_MIN(a, total);
    *len = (uint32_t)(DL_MIN(b, total) - *first);
}

uint32_t dl_column_unit(const struct dl_model_header *h, const struct dl_tensor_types *types)
{
    static const enum dl_tensor_id cut_ids[] = {DL_T_ATTN_OUT, DL_T_FFN_DOWN, DL_T_MOE_DOWN};
    for (uint32_t l = 0; l < h->n_layers; l++)
        for (size_t i = 0; i < DL_COUNT_OF(cut_ids); i++) {
            enum dl_type t = types->layer[(size_t)l * DL_T_COUNT + cut_ids[i]];
            if (dl_type_quantised(t))
                return DL_BLOCK;
        }
    return 4;
}

static uint32_t ffn_of(const struct dl_model_header *h)
{
    return h->n_experts ? h->expert_dim : h->hidden_dim;
}

int dl_slice_units(const struct dl_model_header *h, uint32_t column_unit, uint32_t n, bool fine,
                   struct dl_slice_units *out)
{
    if (!n || !column_unit || !h->n_kv_heads || h->n_heads % h->n_kv_heads)
        return dl_fail(DL_EINVAL, "split: needs nodes, and query heads that are a multiple of the KV heads");
    /* The columns of wo that belong to a slice must be whole blocks. */
    uint32_t step = n <= h->n_kv_heads && !fine ? h->n_heads / h->n_kv_heads : 1, unit = step;
    while (unit < h->n_heads && (uint64_t)unit * h->head_dim % column_unit)
        unit += step;
    /* 128 columns make better tiles; fine grain matters more where there are few of them. */
    bool wide = !fine && column_unit < 128 && 128 % column_unit == 0 && ffn_of(h) / 128 >= 16 * n;
    *out = (struct dl_slice_units){.head = unit, .ffn = wide ? 128 : column_unit, .vocab = 8};
    return DL_OK;
}

void dl_slices_cut(const struct dl_model_header *h, const struct dl_slice_units *units, const uint32_t *heads,
                   const uint32_t *ffn, const uint32_t *vocab, uint32_t n, struct dl_slice *out)
{
    const uint32_t group = h->n_heads / h->n_kv_heads;
    for (uint32_t i = 0; i < n; i++) {
        struct dl_slice *s = &out[i];
        cut(h->n_heads, units->head, heads, n, i, &s->head0, &s->n_heads);
        s->kv0 = s->n_heads ? s->head0 / group : 0;
        s->n_kv_heads = s->n_heads ? (s->head0 + s->n_heads - 1) / group + 1 - s->kv0 : 0;
        cut(ffn_of(h), units->ffn, ffn, n, i, &s->ffn0, &s->n_ffn);
        cut(h->vocab, units->vocab, vocab, n, i, &s->vocab0, &s->n_vocab);
    }
}

int dl_slices_make(const struct dl_model_header *h, uint32_t column_unit, const double *weights, uint32_t n,
                   struct dl_slice *out)
{
    struct dl_slice_units units;
    int err = dl_slice_units(h, column_unit, n, false, &units);
    if (err)
        return err;
    for (uint32_t i = 0; weights && i < n; i++)
        if (!(weights[i] > 0 && weights[i] < 1e30))
            return dl_fail(DL_EINVAL, "split: the share of node %u must be a number above 0", i);
    uint32_t *count = dl_calloc((size_t)n * 3, sizeof *count), *heads = count, *ffn = count + n, *vocab = ffn + n;
    if (!count)
        return DL_ENOMEM;
    deal((uint32_t)dl_div_up(h->n_heads, units.head), weights, n, heads);
    deal((uint32_t)dl_div_up(ffn_of(h), units.ffn), weights, n, ffn);
    deal((uint32_t)dl_div_up(h->vocab, units.vocab), weights, n, vocab);
    dl_slices_cut(h, &units, heads, ffn, vocab, n, out);
    free(count);
    return DL_OK;
}
