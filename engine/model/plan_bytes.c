/* SPDX-License-Identifier: MIT
 *
 * engine/model/plan_bytes.c: what a batch cannot do without reading from memory: the bytes that a roofline is made of.
 */
#include <math.h>

#include "dl/model.h"

static bool is_weight(const struct dl_plan *p, const struct dl_view *v)
{
    return v->buf != DL_NO_BUF && p->bufs[v->buf].use == DL_BUF_WEIGHT;
}

/* Of `all` experts, how many n independent tokens choose that take k each, on average. */
static double experts(double all, double k, double n)
{
    return all * (1 - pow(1 - k / all, n));
}

uint64_t dl_op_read_bytes(const struct dl_plan *p, const struct dl_op *op, const struct dl_batch_load *b)
{
    uint64_t bytes = 0;
    if (!(op->count == DL_COUNT_OUT ? b->n_out : b->n_tokens))
        return 0;
    for (uint32_t i = 0; i < DL_COUNT_OF(op->src); i++) {
        const struct dl_view *v = &op->src[i];
        if (!is_weight(p, v))
            continue;
        uint64_t all = v->row_bytes * v->rows;
        if (op->code == DL_OP_MOE_MATMUL) {
            double n = experts(op->u.moe.n_experts, op->u.moe.k, b->n_tokens);
            all = (uint64_t)((double)all * n / op->u.moe.n_experts);
        }
        bytes += all;
    }
    if (op->code == DL_OP_ATTENTION) /* of K and of V, what the query heads of a KV head share counts once */
        bytes += (op->src[1].row_bytes + op->src[2].row_bytes) * op->u.attn.n_kv_heads * b->context * b->n_seqs;
    return bytes;
}

uint64_t dl_plan_read_bytes(const struct dl_plan *p, const struct dl_batch_load *b)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const struct dl_step *s = &p->steps[i];
        struct dl_batch_load lane = *b; /* each lane reads everything once; wanted rows are looked up in the first */
        lane.n_tokens = dl_plan_lane_tokens(p, s->lane, b->n_tokens);
        lane.n_out = s->lane ? 0 : b->n_out;
        for (uint32_t k = 0; s->kind == DL_STEP_RUN && lane.n_tokens && k < s->n_ops; k++)
            bytes += dl_op_read_bytes(p, &p->ops[s->first_op + k], &lane);
    }
    return bytes;
}
