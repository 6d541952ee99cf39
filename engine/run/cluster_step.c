/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_step.c: with every batch the root sends one message to each worker, and each that has rows of the output matrix answers
 * with one when logits are wanted.
 */
#include "cluster.h"

static int start_tables(struct eng_cluster *c)
{
    const dl_engine *e = c->e;
    c->limits = (struct eng_step_limits){e->h->dim, e->plan_opts.kv_blocks, e->embed_kind};
    return c->tables.v ? DL_OK : eng_tables_init(&c->tables, &e->shape);
}

int eng_cluster_step(struct eng_cluster *c, const float *embed)
{
    int err = start_tables(c);
    if (err)
        return err;
    eng_cluster_phase(c, "step %llu", (unsigned long long)++c->step);
    eng_step_write(&c->out, c->step, &c->e->batch, embed, &c->limits, &c->tables);
    return eng_cluster_tell_all(c);
}

/* Answers of everyone who has a part of the vocabulary. */
static int hear_all(struct eng_cluster *c, const struct eng_want *wants, uint32_t n_rows, struct eng_row *rows)
{
    for (uint32_t i = 0; i < c->n_peers; i++)
        c->peers[i].done = !c->e->slices[c->peers[i].link.node].n_vocab;
    for (;;) {
        struct eng_peer *p;
        struct eng_in in;
        int err = eng_cluster_next(c, ENG_BULK_MOST, &p, &in);
        if (err || !p)
            return err ? DL_EPEER : DL_OK;
        err = eng_in_type(&in) == ENG_MSG_LOGITS
                  ? eng_logits_read(&in, c->step, wants, n_rows, &c->e->slices[p->link.node], rows)
                  : eng_link_unexpected(&in, "LOGITS");
        if (err) {
            (void)eng_cluster_nonsense(c, p, err);
            return DL_EPEER;
        }
        p->done = true;
    }
}

int eng_cluster_logits(struct eng_cluster *c)
{
    eng_cluster_phase(c, "step %llu, logits", (unsigned long long)c->step);
    return hear_all(c, c->e->batch.wants, c->e->batch.n_out, c->e->rows);
}

int eng_cluster_fetch(struct eng_cluster *c, uint32_t row)
{
    static const struct eng_want full = {.kind = DL_WANT_LAST};
    eng_cluster_phase(c, "logits of step %llu", (unsigned long long)c->step);
    eng_fetch_write(&c->out, c->step, row);
    int err = eng_cluster_tell_all(c);
    return err ? err : hear_all(c, &full, 1, &c->e->rows[row]);
}
