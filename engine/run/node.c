/* SPDX-License-Identifier: MIT
 *
 * engine/run/node.c: what a device needs to run its plan: buffers and programs. And how a batch gets into its INPUT buffers. The same in
 * the root and in a worker.
 */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int eng_node_buffers(const dl_engine *e, struct eng_node *n)
{
    const struct dl_plan *p = &n->mp->plan;
    n->bufs = dl_calloc(p->n_bufs, sizeof(dl_buf *));
    n->progs = dl_calloc(p->n_steps, sizeof(dl_prog *));
    n->xfers = dl_calloc(p->n_steps, sizeof *n->xfers);
    if (!n->bufs || !n->progs || !n->xfers)
        return DL_ENOMEM;
    uint32_t words = (uint32_t)(dl_batch_bytes(&e->shape) / sizeof(uint32_t));
    struct dl_buf_desc batch = {"batch", DL_BUF_INPUT, DL_F32, 1, words, (uint64_t)words * sizeof(uint32_t)};
    int err = DL_OK;
    for (uint32_t l = 0; !err && l < p->n_lanes; l++)
        err = dl_buf_create(n->dev, &batch, &n->batch[l]);
    for (uint32_t i = 0; !err && i < p->n_bufs; i++)
        if (p->bufs[i].use != DL_BUF_WEIGHT)
            err = dl_buf_create(n->dev, &p->bufs[i], &n->bufs[i]);
    return err;
}

int eng_node_programs(struct eng_node *n, void (*alive)(void *ud), void *ud)
{
    const struct dl_plan *p = &n->mp->plan;
    int err = DL_OK;
    for (uint32_t i = 0; !err && i < p->n_steps; i++) {
        if (p->steps[i].kind == DL_STEP_RUN)
            err = dl_prog_create(n->dev, p->ops + p->steps[i].first_op, p->steps[i].n_ops, n->bufs, p->n_bufs,
                                 &n->progs[i]);
        if (alive)
            alive(ud);
    }
    return err;
}

void eng_node_finish(struct eng_node *n)
{
    dl_transport_close(&n->transport);
    if (n->mp) {
        for (uint32_t i = 0; n->progs && i < n->mp->plan.n_steps; i++)
            dl_prog_destroy(n->dev, &n->progs[i]);
        for (uint32_t i = 0; n->bufs && i < n->mp->plan.n_bufs; i++)
            dl_buf_destroy(n->dev, &n->bufs[i]);
    }
    for (uint32_t l = 0; l < DL_PLAN_LANES; l++)
        dl_buf_destroy(n->dev, &n->batch[l]);
    free(n->progs);
    free(n->xfers);
    free((void *)n->bufs);
    dl_plan_destroy(&n->mp);
}

bool eng_node_sizes(const struct eng_node *n, uint64_t *kv, uint64_t *act, uint64_t *weights)
{
    *kv = *act = *weights = 0;
    bool ok = true;
    for (uint32_t i = 0; i < n->mp->plan.n_bufs; i++) {
        const struct dl_buf_desc *b = &n->mp->plan.bufs[i];
        uint64_t *to = b->use == DL_BUF_KV ? kv : b->use == DL_BUF_WEIGHT ? weights : act;
        ok = ok && dl_add_u64(*to, b->bytes, to);
    }
    return ok;
}

double eng_slice_share(const struct dl_model_header *h, const struct dl_slice *slices, uint32_t n, uint32_t i)
{
    double all = 0, mine = 0;
    for (uint32_t k = 0; k < n; k++) {
        const struct dl_slice *s = &slices[k];
        double heads = 2.0 * h->head_dim * ((double)s->n_heads + s->n_kv_heads);
        double ffn = 3.0 * s->n_ffn * DL_MAX(h->n_experts, 1u);
        double weights = h->n_layers * (heads + ffn) + s->n_vocab; /* rows of `dim` values */
        all += weights;
        mine = k == i ? weights : mine;
    }
    return all > 0 ? mine / all : 0;
}

uint64_t dl_engine_read_bytes(const dl_engine *e, const struct dl_batch_load *b)
{
    uint64_t n = 0;
    for (uint32_t d = 0; d < e->n_nodes; d++)
        n += dl_plan_read_bytes(&e->nodes[d].mp->plan, b);
    return n;
}

int eng_batch_buffers(dl_engine *e)
{
    int err = eng_batch_init(&e->batch, &e->shape);
    e->rows = dl_calloc(e->shape.max_out, sizeof *e->rows);
    e->row_of = dl_calloc(e->shape.max_out, sizeof *e->row_of);
    e->tops = dl_calloc(e->shape.max_out, DL_TOP_MOST * sizeof *e->tops);
    if (!e->rows || !e->row_of || !e->tops)
        err = DL_ENOMEM;
    for (uint32_t r = 0; !err && r < e->shape.max_out; r++)
        e->rows[r].top = e->tops + (size_t)r * DL_TOP_MOST;
    return err;
}

/* Where a lane's part of the batch is written. */
struct lane_at {
    struct dl_batch_row *rows;
    uint32_t *out_rows, *tables;
};

static struct lane_at begin_lane(const dl_engine *e, struct eng_node *n, uint32_t lane)
{
    const struct eng_batch *b = &e->batch;
    uint8_t *batch = dl_buf_map(n->dev, n->batch[lane]);
    struct lane_at at = {.rows = (void *)(batch + dl_batch_rows_at()),
                         .out_rows = (void *)(batch + dl_batch_out_at(&e->shape)),
                         .tables = (void *)(batch + dl_batch_tables_at(&e->shape))};
    struct dl_batch_head *head = (void *)batch;
    *head = (struct dl_batch_head){.n_tokens = lane ? b->n_tokens - b->cut : b->cut,
                                   .n_out = lane ? 0 : b->n_out,
                                   .max_tokens = e->shape.max_tokens,
                                   .max_out = e->shape.max_out,
                                   .max_tables = e->shape.max_tables,
                                   .table_cols = e->shape.table_cols};
    for (uint32_t i = 0; head->n_tokens && i < b->n_seqs; i++)
        memcpy(at.tables + (size_t)i * e->shape.table_cols, b->seqs[i].blocks, b->seqs[i].n_blocks * sizeof *at.tables);
    return at;
}

bool eng_batch_suits(const struct eng_batch *b, const struct dl_plan *p)
{
    const uint32_t rest = b->n_tokens - b->cut; /* the last lane is the shorter one */
    return b->cut && b->cut <= DL_MIN(b->n_tokens, p->lane_tokens) &&
           (!rest || (p->n_lanes > 1 && rest <= p->max_tokens - p->lane_tokens));
}

uint32_t eng_batch_row(const struct eng_batch *b, const struct dl_plan *p, uint32_t t)
{
    return t < b->cut ? t : p->lane_tokens + t - b->cut;
}

/* Rows of a lane count from its first one; those whose logits are wanted, from the batch's, and they are all with lane 0. */
void eng_batch_fill(const dl_engine *e, struct eng_node *n)
{
    const struct eng_batch *b = &e->batch;
    float *angles = dl_buf_map(n->dev, n->bufs[n->mp->rope_buf]);
    struct lane_at lanes[DL_PLAN_LANES];
    for (uint32_t l = 0; l < n->mp->plan.n_lanes; l++)
        lanes[l] = begin_lane(e, n, l);
    uint32_t t = 0, o = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct eng_seq *s = &b->seqs[i];
        for (uint32_t j = 0; j < s->n; j++, t++) {
            const uint32_t row = eng_batch_row(b, &n->mp->plan, t), lane = t >= b->cut;
            lanes[lane].rows[t - lane * b->cut] = (struct dl_batch_row){.pos = s->pos0 + j, .table = i};
            dl_rope_angles(e->h, e->rope_factors, s->pos0 + j, angles + (size_t)row * e->h->n_rot);
            if (s->want == DL_WANT_ALL || (s->want != DL_WANT_NONE && j == s->n - 1))
                lanes[0].out_rows[o++] = row;
        }
    }
}
