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

int dl_slices_make(const struct dl_model_header *h, uint32_t ffn_unit, const double *weights, uint32_t n,
                   struct dl_slice *out)
{
    if (!n || !ffn_unit || !h->n_kv_heads || h->n_heads % h->n_kv_heads)
        return dl_fail(DL_EINVAL, "split: needs nodes, and query heads that are a multiple of the KV heads");
    for (uint32_t i = 0; weights && i < n; i++)
        if (!(weights[i] > 0 && weights[i] < 1e30))
            return dl_fail(DL_EINVAL, "split: the share of node %u must be a number above 0", i);
    uint32_t *count = dl_calloc(n, sizeof *count);
    if (!count)
        return DL_ENOMEM;

    /* The columns of wo that belong to a slice must be whole blocks. */
    uint32_t group = h->n_heads / h->n_kv_heads, step = n <= h->n_kv_heads ? group : 1, unit = step;
    while (unit < h->n_heads && (uint64_t)unit * h->head_dim % ffn_unit)
        unit += step;
    deal((uint32_t)dl_div_up(h->n_heads, unit), weights, n, count);
    for (uint32_t i = 0; i < n; i++) {
        struct dl_slice *s = &out[i];
        cut(h->n_heads, unit, count, n, i, &s->head0, &s->n_heads);
        s->kv0 = s->n_heads ? s->head0 / group : 0;
        s->n_kv_heads = s->n_heads ? (s->head0 + s->n_heads - 1) / group + 1 - s->kv0 : 0;
    }

    /* 128 columns make better tiles; fine grain matters more where there are few of them. */
    uint32_t ffn = h->n_experts ? h->expert_dim : h->hidden_dim;
    unit = ffn_unit < 128 && 128 % ffn_unit == 0 && ffn / 128 >= 16 * n ? 128 : ffn_unit;
    deal((uint32_t)dl_div_up(ffn, unit), weights, n, count);
    for (uint32_t i = 0; i < n; i++)
        cut(ffn, unit, count, n, i, &out[i].ffn0, &out[i].n_ffn);

    deal((uint32_t)dl_div_up(h->vocab, 8), weights, n, count);
    for (uint32_t i = 0; i < n; i++)
        cut(h->vocab, 8, count, n, i, &out[i].vocab0, &out[i].n_vocab);
    free(count);
    return DL_OK;
}
