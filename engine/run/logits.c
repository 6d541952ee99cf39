/* SPDX-License-Identifier: MIT
 *
 * engine/run/logits.c: from what the devices hold of the logits to what the caller wanted of them.
 */
#include "cluster.h"

#include <math.h>
#include <string.h>

/* One device's part of the rows, put where it belongs. */
static void take_part(dl_engine *e, const struct eng_node *n, const struct dl_slice *s)
{
    float *part = dl_buf_map(n->dev, n->bufs[n->mp->logits_buf]);
    for (uint32_t r = 0; r < e->batch.n_out; r++, part += s->n_vocab) {
        const struct eng_want *w = &e->batch.wants[r];
        struct eng_row *row = &e->rows[r];
        if (!w->k && e->logits)
            memcpy(row->full + s->vocab0, part, s->n_vocab * sizeof *part);
        else if (!w->k)
            row->full = part; /* alone: no need to copy */
        else
            row->n_top = eng_top_scan(row->top, row->n_top, w->k, part, s->n_vocab, s->vocab0);
        if (w->kind == DL_WANT_TOP)
            row->log_sum = eng_log_add(row->log_sum, eng_log_sum(part, s->n_vocab, w->temperature));
    }
}

int eng_logits_collect(dl_engine *e)
{
    for (uint32_t r = 0; r < e->batch.n_out; r++) {
        e->rows[r].full = e->logits ? e->logits + (size_t)r * e->h->vocab : NULL;
        e->rows[r].n_top = 0;
        e->rows[r].log_sum = -INFINITY;
    }
    for (uint32_t d = 0; d < e->n_nodes; d++)
        if (e->slices[e->first_slice + d].n_vocab)
            take_part(e, &e->nodes[d], &e->slices[e->first_slice + d]);
    return e->cluster && e->batch.n_out ? eng_cluster_logits(e->cluster) : DL_OK;
}

int eng_logits_row(dl_engine *e, uint32_t row, float **logits)
{
    if (!e->logits) {
        float *all = dl_buf_map(e->nodes[0].dev, e->nodes[0].bufs[e->nodes[0].mp->logits_buf]);
        *logits = all + (size_t)row * e->h->vocab;
        return DL_OK;
    }
    struct eng_row *to = &e->rows[row];
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct eng_node *n = &e->nodes[d];
        const struct dl_slice *s = &e->slices[e->first_slice + d];
        if (!s->n_vocab)
            continue;
        const float *part = dl_buf_map(n->dev, n->bufs[n->mp->logits_buf]);
        memcpy(to->full + s->vocab0, part + (size_t)row * s->n_vocab, s->n_vocab * sizeof *part);
    }
    *logits = to->full;
    return e->cluster ? eng_cluster_fetch(e->cluster, row) : DL_OK;
}
