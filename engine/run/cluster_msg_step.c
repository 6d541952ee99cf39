/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_msg_step.c: the messages of cluster_msg.h that travel with every token: as few bytes as can be, and no memory
 * allocated once the first batches have shown how large they get.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cluster_msg_in.h"

int eng_tables_init(struct eng_tables *t, const struct dl_batch_shape *shape)
{
    *t = (struct eng_tables){.shape = *shape};
    t->v = dl_calloc((size_t)shape->max_tables * shape->table_cols, sizeof *t->v);
    t->n = dl_calloc(shape->max_tables, sizeof *t->n);
    return t->v && t->n ? DL_OK : DL_ENOMEM;
}

void eng_tables_finish(struct eng_tables *t)
{
    free(t->v);
    free(t->n);
    *t = (struct eng_tables){0};
}

/* ---------------------------------------------------------------------------------------------------- STEP */

static void put_rows(struct eng_out *o, const float *embed, uint32_t n_tokens, const struct eng_step_limits *l)
{
    uint8_t part[64 * sizeof(float)];
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t at = 0, n; at < l->dim; at += n, embed += n) {
            n = DL_MIN(l->dim - at, 64);
            eng_embed_put(l->embed, embed, n, part);
            eng_put_bytes(o, part, eng_embed_bytes(l->embed, n));
        }
}

void eng_step_write(struct eng_out *o, uint64_t step, const struct eng_batch *b, const float *embed,
                    const struct eng_step_limits *limits, struct eng_tables *t)
{
    eng_out_begin(o, ENG_MSG_STEP);
    eng_put_u64(o, step);
    eng_put_u32(o, b->n_seqs);
    eng_put_u32(o, b->cut);
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct eng_seq *s = &b->seqs[i];
        uint32_t *table = t->v + (size_t)i * t->shape.table_cols, keep = 0;
        while (keep < t->n[i] && keep < s->n_blocks && table[keep] == s->blocks[keep])
            keep++;
        eng_put_u32(o, s->pos0);
        eng_put_u32(o, s->n);
        eng_put_u8(o, (uint8_t)s->want);
        if (s->want == DL_WANT_TOP) {
            eng_put_u32(o, s->k);
            eng_put_f32(o, s->temperature);
        }
        eng_put_u32(o, keep);
        for (uint32_t j = keep; j < s->n_blocks; j++)
            eng_put_u32(o, table[j] = s->blocks[j]);
        t->n[i] = s->n_blocks;
    }
    put_rows(o, embed, b->n_tokens, limits);
}

/* One sequence. What is wrong with it, or NULL. */
static const char *read_seq(struct eng_cursor *c, const struct eng_step_limits *l, struct eng_tables *t, uint32_t i,
                            struct eng_seq *s)
{
    *s = (struct eng_seq){.pos0 = eng_read_u32(c, "sequence"), .n = eng_read_u32(c, "sequence")};
    uint8_t want = eng_read_u8(c, "sequence");
    s->k = want == DL_WANT_TOP ? eng_read_u32(c, "sequence") : 0;
    s->temperature = want == DL_WANT_TOP ? eng_read_f32(c, "sequence") : 0;
    uint32_t keep = eng_read_u32(c, "sequence");
    if (c->bad)
        return NULL;
    uint64_t upto = (uint64_t)s->pos0 + s->n;
    if (!s->n || upto > (uint64_t)t->shape.table_cols * DL_KV_BLOCK)
        return "positions outside the context";
    if (want > DL_WANT_TOP ||
        (want == DL_WANT_TOP && (!s->k || s->k > DL_TOP_MOST || !(s->temperature > 0 && s->temperature < INFINITY))))
        return "what it wants of the logits is unknown";
    s->want = (enum dl_want)want;
    s->n_blocks = (uint32_t)dl_div_up(upto, DL_KV_BLOCK);
    if (keep > t->n[i] || keep > s->n_blocks)
        return "it keeps blocks that were not there";
    uint32_t *table = t->v + (size_t)i * t->shape.table_cols;
    for (uint32_t j = keep; j < s->n_blocks; j++) {
        table[j] = eng_read_u32(c, "blocks");
        if (table[j] >= l->kv_blocks)
            return "a block outside the KV cache";
    }
    t->n[i] = s->n_blocks;
    s->blocks = table;
    return NULL;
}

int eng_step_read(const struct eng_in *in, const struct eng_step_limits *limits, struct eng_tables *t, uint64_t *step,
                  struct eng_batch *b, const uint8_t **embed_rows)
{
    struct eng_cursor c = eng_in_open(in);
    *step = eng_read_u64(&c, "step");
    b->n_seqs = eng_read_u32(&c, "sequences");
    uint32_t cut = eng_read_u32(&c, "lanes");
    if (!c.bad && (!b->n_seqs || b->n_seqs > t->shape.max_tables))
        return eng_in_wrong(in, "too many sequences, or none");
    for (uint32_t i = 0; i < b->n_seqs && !c.bad; i++) {
        const char *wrong = read_seq(&c, limits, t, i, &b->seqs[i]);
        if (wrong)
            return eng_in_wrong(in, wrong);
    }
    if (!c.bad && !eng_batch_count(b, &t->shape))
        return eng_in_wrong(in, "more tokens or logits than were agreed on");
    if (!c.bad && (!cut || cut > b->n_tokens))
        return eng_in_wrong(in, "lanes of other tokens than there are");
    b->cut = cut;
    if (!c.bad)
        *embed_rows = eng_read_bytes(&c, b->n_tokens * eng_embed_bytes(limits->embed, limits->dim), "embedding rows");
    return eng_in_close(in, &c);
}

/* -------------------------------------------------------------------------------------------------- LOGITS */

/* A full row is its floats; else the number of candidates, each as id and logit, and for DL_WANT_TOP the log of the sum. */
#define CANDIDATE_BYTES 8u

void eng_logits_begin(struct eng_out *o, uint64_t step, uint32_t n_rows)
{
    eng_out_begin(o, ENG_MSG_LOGITS);
    eng_put_u64(o, step);
    eng_put_u32(o, n_rows);
}

static void put_floats(struct eng_out *o, const float *v, uint32_t n)
{
    uint8_t part[64 * sizeof(float)];
    for (uint32_t at = 0; at < n;) {
        uint32_t k = DL_MIN(n - at, 64);
        for (uint32_t i = 0; i < k; i++) {
            uint32_t u;
            memcpy(&u, &v[at + i], sizeof u);
            for (uint32_t b = 0; b < 4; b++)
                part[i * 4 + b] = (uint8_t)(u >> 8 * b);
        }
        eng_put_bytes(o, part, (size_t)k * sizeof(float));
        at += k;
    }
}

void eng_logits_put(struct eng_out *o, const struct eng_want *want, const float *row, uint32_t n_vocab, uint32_t vocab0,
                    struct dl_candidate *scratch)
{
    if (!want->k) {
        put_floats(o, row, n_vocab);
        return;
    }
    uint32_t n = eng_top_scan(scratch, 0, want->k, row, n_vocab, vocab0);
    eng_put_u32(o, n);
    for (uint32_t i = 0; i < n; i++) {
        eng_put_u32(o, (uint32_t)scratch[i].id);
        eng_put_f32(o, scratch[i].logit);
    }
    if (want->kind == DL_WANT_TOP)
        eng_put_f64(o, eng_log_sum(row, n_vocab, want->temperature));
}

/* Candidates of one row, in falling order and from the node's own slice. */
static const char *read_top(struct eng_cursor *c, const struct eng_want *want, const struct dl_slice *slice,
                            struct eng_row *row)
{
    uint32_t n = eng_read_u32(c, "number of candidates");
    if (n > want->k || n > slice->n_vocab)
        return "more candidates than were asked for";
    struct dl_candidate last = {0, INFINITY};
    for (uint32_t i = 0; i < n && !c->bad; i++) {
        uint32_t id = eng_read_u32(c, "candidate");
        struct dl_candidate k = {(int32_t)id, eng_read_f32(c, "candidate")};
        if (id < slice->vocab0 || id - slice->vocab0 >= slice->n_vocab)
            return "a candidate from another node's part of the vocabulary";
        if (isnan(k.logit) || k.logit > last.logit || (i && k.logit == last.logit && k.id <= last.id))
            return "candidates out of order";
        last = k;
        if (row)
            row->n_top = eng_top_add(row->top, row->n_top, want->k, k);
    }
    if (want->kind != DL_WANT_TOP)
        return NULL;
    double sum = eng_in_f64(c, "log-sum");
    if (isnan(sum))
        return "a sum that is no number";
    if (row)
        row->log_sum = eng_log_add(row->log_sum, sum);
    return NULL;
}

static int walk(const struct eng_in *in, uint64_t step, const struct eng_want *wants, uint32_t n_rows,
                const struct dl_slice *slice, struct eng_row *out)
{
    struct eng_cursor c = eng_in_open(in);
    uint64_t of = eng_read_u64(&c, "step");
    uint32_t n = eng_read_u32(&c, "rows");
    if (!c.bad && (of != step || n != n_rows))
        return eng_in_wrong(in, "it is not for this step");
    for (uint32_t r = 0; r < n_rows && !c.bad; r++) {
        const char *wrong = NULL;
        if (wants[r].k) {
            wrong = read_top(&c, &wants[r], slice, out ? &out[r] : NULL);
        } else {
            const uint8_t *p = eng_read_bytes(&c, (uint64_t)slice->n_vocab * sizeof(float), "logits");
            for (uint32_t i = 0; out && p && i < slice->n_vocab; i++, p += 4) {
                uint32_t u = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
                memcpy(&out[r].full[slice->vocab0 + i], &u, sizeof u);
            }
        }
        if (wrong)
            return eng_in_wrong(in, wrong);
    }
    return eng_in_close(in, &c);
}

int eng_logits_read(const struct eng_in *in, uint64_t step, const struct eng_want *wants, uint32_t n_rows,
                    const struct dl_slice *slice, struct eng_row *out)
{
    int err = walk(in, step, wants, n_rows, slice, NULL);
    return err ? err : walk(in, step, wants, n_rows, slice, out);
}

void eng_fetch_write(struct eng_out *o, uint64_t step, uint32_t row)
{
    eng_out_begin(o, ENG_MSG_FETCH);
    eng_put_u64(o, step);
    eng_put_u32(o, row);
}

int eng_fetch_read(const struct eng_in *in, uint64_t *step, uint32_t *row)
{
    struct eng_cursor c = eng_in_open(in);
    *step = eng_read_u64(&c, "step");
    *row = eng_read_u32(&c, "row");
    return eng_in_close(in, &c);
}
