/* SPDX-License-Identifier: MIT
 *
 * engine/run/link.c: see link.h.
 */
#include "link.h"

#include <stdlib.h>

#define FIRST_BYTES ((size_t)4096)

void eng_link_finish(struct eng_link *l)
{
    free(l->buf);
    *l = (struct eng_link){0};
}

int eng_link_send(const struct eng_link *l, const struct eng_out *o)
{
    return o->err ? o->err : dl_transport_send(l->t, l->node, o->s.v, o->s.len);
}

static int room(struct eng_link *l, size_t n)
{
    void *v = l->buf;
    int err = dl_grow(&v, &l->cap, n, 1);
    l->buf = v;
    return err;
}

int eng_link_recv(struct eng_link *l, size_t most, uint64_t timeout_ns, struct eng_in *in)
{
    size_t n = 0;
    int err = room(l, FIRST_BYTES);
    if (!err)
        err = dl_transport_recv(l->t, l->node, l->buf, l->cap, &n, timeout_ns);
    if (err == DL_ELIMIT) {
        if (n > most)
            return dl_fail(DL_EFORMAT, "%s: sends a message of %zu bytes where at most %zu make sense", l->who, n,
                           most);
        err = room(l, n);
        if (!err)
            err = dl_transport_recv(l->t, l->node, l->buf, l->cap, &n, 0);
    }
    if (!err && n > most)
        return dl_fail(DL_EFORMAT, "%s: sends a message of %zu bytes where at most %zu make sense", l->who, n, most);
    *in = (struct eng_in){l->who, l->buf, n};
    return err;
}

int eng_link_unexpected(const struct eng_in *in, const char *wanted)
{
    return dl_fail(DL_EFORMAT, "%s: sends %s where %s should come", in->who, eng_msg_name(eng_in_type(in)), wanted);
}

/* -------------------------------------------------------------------------------------------- plan digest */

static void put_view(struct eng_out *o, const struct dl_view *v)
{
    eng_put_u32(o, v->buf);
    if (v->buf == DL_NO_BUF)
        return;
    eng_put_u32(o, v->rows);
    eng_put_u32(o, v->cols);
    eng_put_u8(o, (uint8_t)v->type);
    eng_put_u64(o, v->offset);
    eng_put_u64(o, v->row_bytes);
}

/* The numbers inside ops (epsilons, head counts) follow from the header. */
static void put_plan(struct eng_out *o, const struct dl_model_plan *mp)
{
    const struct dl_plan *p = &mp->plan;
    for (uint32_t i = 0; i < p->n_bufs; i++) {
        eng_put_u8(o, (uint8_t)p->bufs[i].use);
        eng_put_u8(o, (uint8_t)p->bufs[i].type);
        eng_put_u32(o, p->bufs[i].rows);
        eng_put_u32(o, p->bufs[i].cols);
    }
    for (uint32_t i = 0; i < p->n_ops; i++) {
        const struct dl_op *op = &p->ops[i];
        eng_put_u8(o, (uint8_t)op->code);
        eng_put_u8(o, (uint8_t)op->count);
        eng_put_u32(o, op->mult);
        put_view(o, &op->dst);
        for (uint32_t s = 0; s < DL_COUNT_OF(op->src); s++)
            put_view(o, &op->src[s]);
    }
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const struct dl_step *s = &p->steps[i];
        eng_put_u8(o, (uint8_t)s->kind);
        eng_put_u32(o, s->lane);
        eng_put_u64(o, s->wait);
        eng_put_u64(o, s->signal);
        eng_put_u32(o, s->n_ops);
        if (s->kind == DL_STEP_EXCHANGE) {
            eng_put_u8(o, (uint8_t)s->coll);
            put_view(o, &s->view);
            eng_put_u64(o, s->slice_bytes);
        }
    }
    for (uint32_t i = 0; i < mp->n_weights; i++) {
        const struct dl_weight *w = &mp->weights[i];
        const uint32_t v[] = {w->buf, (uint32_t)w->id, w->layer, w->row0, w->rows, w->col0, w->cols};
        for (size_t j = 0; j < DL_COUNT_OF(v); j++)
            eng_put_u32(o, v[j]);
    }
}

int eng_plan_digest(const struct eng_model_msg *m, const struct dl_model_plan *mp, struct eng_digest *out)
{
    struct eng_model_msg made_from = *m;
    made_from.plan = (struct eng_digest){{0}};
    made_from.name[0] = 0;
    struct eng_out o = {0};
    struct eng_hash *hash = eng_hash_create();
    eng_model_write(&o, &made_from);
    put_plan(&o, mp);
    int err = hash ? o.err : DL_ENOMEM;
    if (!err) {
        eng_hash_add(hash, o.s.v, o.s.len);
        eng_hash_end(hash, out);
    }
    eng_hash_destroy(&hash);
    eng_out_finish(&o);
    return err;
}
