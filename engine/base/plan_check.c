/* SPDX-License-Identifier: MIT
 *
 * engine/base/plan_check.c: is a whole plan sound? Every op by itself (op_check.c), every op in exactly one RUN and in order,
 * counters that ascend and can be reached, also where only lane 0 runs, and no RUN that touches wire memory while an exchange
 * still owns it.
 */
#include "dl/op.h"

static int check_bufs(const struct dl_plan *p)
{
    for (uint32_t i = 0; i < p->n_bufs; i++) {
        const struct dl_buf_desc *b = &p->bufs[i];
        uint64_t row, bytes;
        if (!b->name || (unsigned)b->use >= DL_BUF_USE_COUNT || !b->rows || !b->cols ||
            !dl_row_bytes(b->type, b->cols, &row) || !dl_mul_u64(row, b->rows, &bytes) || bytes != b->bytes)
            return dl_fail(DL_EINVAL, "plan: buffer %u (%s): size does not match its shape", i,
                           b->name ? b->name : "?");
    }
    return DL_OK;
}

static bool touches(const struct dl_op *op, uint32_t buf)
{
    return op->dst.buf == buf || op->src[0].buf == buf || op->src[1].buf == buf || op->src[2].buf == buf;
}

static int check_exchange(const struct dl_plan *p, uint32_t at, const struct dl_step *s)
{
    const struct dl_view *v = &s->view;
    uint64_t row, span, slices = (uint64_t)p->n_slices * (s->coll == DL_COLL_ALL_TO_ALL ? 2 : 1);
    if ((unsigned)s->coll >= DL_COLL_COUNT || v->buf >= p->n_bufs || p->bufs[v->buf].use != DL_BUF_WIRE ||
        v->type != p->bufs[v->buf].type || !v->rows || !v->cols)
        return dl_fail(DL_EINVAL, "plan: step %u: an exchange needs a view of a wire buffer", at);
    if (!dl_row_bytes(v->type, v->cols, &row) || v->row_bytes != row || !dl_mul_u64(row, v->rows, &span) ||
        span > s->slice_bytes || !dl_mul_u64(s->slice_bytes, slices - 1, &span) ||
        !dl_add_u64(span, v->offset + row * v->rows, &span) || span > p->bufs[v->buf].bytes)
        return dl_fail(DL_EINVAL, "plan: step %u: slices do not fit the wire buffer", at);
    if (v->rows != (s->count == DL_COUNT_OUT ? p->max_out : p->lane_tokens))
        return dl_fail(DL_EINVAL, "plan: step %u: an exchange carries a row per token", at);
    return DL_OK;
}

/* The last exchange before step `at` that uses a wire buffer this RUN touches must be finished when it starts. */
static int check_wire(const struct dl_plan *p, uint32_t at, const struct dl_step *run)
{
    for (uint32_t e = at; e-- > 0;) {
        const struct dl_step *x = &p->steps[e];
        if (x->kind != DL_STEP_EXCHANGE || run->wait >= x->signal)
            continue;
        for (uint32_t i = run->first_op; i < run->first_op + run->n_ops; i++)
            if (touches(&p->ops[i], x->view.buf))
                return dl_fail(DL_EINVAL, "plan: step %u: op %s uses wire buffer %s without waiting for step %u", at,
                               p->ops[i].name, p->bufs[x->view.buf].name, e);
    }
    return DL_OK;
}

/* The exchange must wait for the RUN before it that last touched its buffer. None: this node's slice stays all zero. */
static int check_fed(const struct dl_plan *p, uint32_t at, const struct dl_step *x)
{
    for (uint32_t r = at; r-- > 0;) {
        const struct dl_step *run = &p->steps[r];
        if (run->kind != DL_STEP_RUN || x->wait >= run->signal)
            continue;
        for (uint32_t i = run->first_op; i < run->first_op + run->n_ops; i++)
            if (touches(&p->ops[i], x->view.buf))
                return dl_fail(DL_EINVAL, "plan: step %u: the exchange of %s does not wait for step %u, which uses it",
                               at, p->bufs[x->view.buf].name, r);
    }
    return DL_OK;
}

/* What a step waits for is signalled by an earlier step, and in lane 0 by one of lane 0: the others may be left out. */
static int check_wait(const struct dl_plan *p, uint32_t at, const struct dl_step *s)
{
    bool there = !s->wait;
    for (uint32_t i = at; i-- > 0 && !there;)
        there = p->steps[i].kind != s->kind && p->steps[i].signal == s->wait && (s->lane || !p->steps[i].lane);
    return there
               ? DL_OK
               : dl_fail(DL_EINVAL, "plan: step %u waits for %llu, which no earlier step that is always there signals",
                         at, (unsigned long long)s->wait);
}

static int check_steps(const struct dl_plan *p)
{
    uint64_t host = 0, device = 0; /* highest signal so far */
    uint32_t next_op = 0;
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const struct dl_step *s = &p->steps[i];
        bool run = s->kind == DL_STEP_RUN;
        uint64_t *own = run ? &device : &host;
        if ((!run && s->kind != DL_STEP_EXCHANGE) || s->lane >= p->n_lanes)
            return dl_fail(DL_EINVAL, "plan: step %u: unknown kind or lane", i);
        int err = check_wait(p, i, s);
        if (err)
            return err;
        if (s->signal <= *own)
            return dl_fail(DL_EINVAL, "plan: step %u: signal %llu does not ascend", i, (unsigned long long)s->signal);
        *own = s->signal;
        if (run) {
            if (s->first_op != next_op || !s->n_ops || s->n_ops > p->n_ops - next_op)
                return dl_fail(DL_EINVAL, "plan: step %u: ops must run once each and in order", i);
            next_op += s->n_ops;
            err = check_wire(p, i, s);
        } else {
            err = check_exchange(p, i, s);
            if (!err)
                err = check_fed(p, i, s);
        }
        if (err)
            return err;
    }
    if (next_op != p->n_ops)
        return dl_fail(DL_EINVAL, "plan: op %s is in no step", p->ops[next_op].name);
    return DL_OK;
}

int dl_plan_check(const struct dl_plan *p)
{
    if (!p->max_tokens || !p->max_out || !p->n_slices || p->slice >= p->n_slices)
        return dl_fail(DL_EINVAL, "plan: batch sizes and slices must not be zero");
    if (!p->n_lanes || p->n_lanes > DL_PLAN_LANES || p->lane_tokens > p->max_tokens ||
        (uint64_t)p->lane_tokens * p->n_lanes < p->max_tokens)
        return dl_fail(DL_EINVAL, "plan: %u lanes of %u tokens do not hold batches of %u", p->n_lanes, p->lane_tokens,
                       p->max_tokens);
    int err = check_bufs(p);
    for (uint32_t i = 0; !err && i < p->n_ops; i++) /* wanted rows are gathered from all lanes */
        err = dl_op_check(&p->ops[i], p->bufs, p->n_bufs,
                          p->ops[i].code == DL_OP_GATHER_ROWS ? p->max_tokens : p->lane_tokens, p->max_out);
    return err ? err : check_steps(p);
}
