/* SPDX-License-Identifier: MIT
 *
 * engine/run/session.c: sequences and the batches made of them. A batch is the host-written INPUT buffers: embedding rows, rope angles,
 * positions, block tables; everything else is in the plan.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

int dl_session_create(dl_engine *e, dl_session **out)
{
    *out = NULL;
    dl_session *s = dl_calloc(1, sizeof *s);
    if (!s)
        return DL_ENOMEM;
    s->engine = e;
    s->tokens = dl_calloc(e->ctx, sizeof *s->tokens);
    s->blocks = dl_calloc(e->shape.table_cols, sizeof *s->blocks);
    e->n_sessions++;
    if (!s->tokens || !s->blocks)
        dl_session_destroy(&s);
    *out = s;
    return s ? DL_OK : DL_ENOMEM;
}

void dl_session_destroy(dl_session **session)
{
    dl_session *s = *session;
    if (!s)
        return;
    dl_session_truncate(s, 0);
    s->engine->n_sessions--;
    free(s->tokens);
    free(s->blocks);
    free(s);
    *session = NULL;
}

uint32_t dl_session_len(const dl_session *s)
{
    return s->len;
}

const int32_t *dl_session_tokens(const dl_session *s)
{
    return s->tokens;
}

/* Gives back the blocks beyond those that n positions need. */
static void keep_blocks(dl_session *s, uint32_t n)
{
    while (s->n_blocks > dl_div_up(n, DL_KV_BLOCK))
        eng_kv_unref(&s->engine->kv, s->blocks[--s->n_blocks]);
}

void dl_session_truncate(dl_session *s, uint32_t n)
{
    if (n < s->len)
        s->len = n;
    keep_blocks(s, s->len);
}

/* The blocks for positions up to n. */
static int need_blocks(dl_session *s, uint32_t n)
{
    while (s->n_blocks < dl_div_up(n, DL_KV_BLOCK)) {
        int err = eng_kv_alloc(&s->engine->kv, &s->blocks[s->n_blocks]);
        if (err)
            return dl_fail(err,
                           "context: the KV cache is full (%u blocks of %d positions): end another session or raise "
                           "--ctx",
                           s->engine->kv.n_blocks, DL_KV_BLOCK);
        s->n_blocks++;
    }
    return DL_OK;
}

static uint32_t wanted(const struct dl_step_item *it)
{
    return it->want == DL_WANT_ALL ? it->n : it->want == DL_WANT_LAST ? 1 : 0;
}

static int check_items(dl_engine *e, const struct dl_step_item *items, uint32_t n_items, uint32_t *n_tokens,
                       uint32_t *n_out)
{
    uint64_t tokens = 0, out = 0;
    if (e->failed)
        return dl_fail(e->failed, "engine: cannot go on after an earlier failure (%s)", dl_err_text(e->failed));
    if (!n_items || n_items > e->shape.max_tables)
        return dl_fail(DL_EINVAL, "batch: %u sessions, this engine takes 1 to %u", n_items, e->shape.max_tables);
    e->step_id++;
    for (uint32_t i = 0; i < n_items; i++) {
        const struct dl_step_item *it = &items[i];
        dl_session *s = it->session;
        if (s->engine != e || !it->n || s->step_id == e->step_id)
            return dl_fail(DL_EINVAL, "batch: item %u is empty, of another engine, or there twice", i);
        s->step_id = e->step_id;
        if (it->n > e->ctx - s->len)
            return dl_fail(DL_ELIMIT,
                           "context: %u + %u tokens do not fit the context of %u: raise --ctx or shorten the text",
                           s->len, it->n, e->ctx);
        for (uint32_t j = 0; j < it->n; j++)
            if (it->tokens[j] < 0 || (uint32_t)it->tokens[j] >= e->h->vocab)
                return dl_fail(DL_EINVAL, "batch: token id %d is outside the vocabulary of %u", it->tokens[j],
                               e->h->vocab);
        tokens += it->n;
        out += wanted(it);
    }
    if (tokens > e->shape.max_tokens || out > e->shape.max_out)
        return dl_fail(DL_EINVAL, "batch: %llu tokens with %llu logits rows, this engine takes %u and %u",
                       (unsigned long long)tokens, (unsigned long long)out, e->shape.max_tokens, e->shape.max_out);
    *n_tokens = (uint32_t)tokens;
    *n_out = (uint32_t)out;
    return DL_OK;
}

/* Writes the batch into one node's INPUT buffers. */
static void fill(const dl_engine *e, struct eng_node *n, const struct dl_step_item *items, uint32_t n_items,
                 uint32_t n_tokens, uint32_t n_out)
{
    uint8_t *batch = dl_buf_map(n->dev, n->batch);
    float *embed = dl_buf_map(n->dev, n->bufs[n->mp->embed_buf]);
    float *angles = dl_buf_map(n->dev, n->bufs[n->mp->rope_buf]);
    struct dl_batch_head *head = (void *)batch;
    struct dl_batch_row *rows = (void *)(batch + dl_batch_rows_at());
    uint32_t *out_rows = (void *)(batch + dl_batch_out_at(&e->shape));
    uint32_t *tables = (void *)(batch + dl_batch_tables_at(&e->shape));
    *head = (struct dl_batch_head){.n_tokens = n_tokens,
                                   .n_out = n_out,
                                   .max_tokens = e->shape.max_tokens,
                                   .max_out = e->shape.max_out,
                                   .max_tables = e->shape.max_tables,
                                   .table_cols = e->shape.table_cols};
    uint32_t t = 0, o = 0;
    for (uint32_t i = 0; i < n_items; i++) {
        const struct dl_step_item *it = &items[i];
        memcpy(tables + (size_t)i * e->shape.table_cols, it->session->blocks, it->session->n_blocks * sizeof *tables);
        for (uint32_t j = 0; j < it->n; j++, t++) {
            rows[t] = (struct dl_batch_row){.pos = it->session->len + j, .table = i};
            dl_row_to_f32(e->embed.type, e->embed.data + (uint64_t)it->tokens[j] * e->embed.row_bytes,
                          embed + (size_t)t * e->h->dim, e->h->dim);
            dl_rope_angles(e->h, e->rope_factors, rows[t].pos, angles + (size_t)t * e->h->n_rot);
            if (it->want == DL_WANT_ALL || (it->want == DL_WANT_LAST && j == it->n - 1))
                out_rows[o++] = t;
        }
    }
}

/* (n_out, vocab) logits: one device's own buffer, or put together from every device's rows. */
static float *collect(dl_engine *e, uint32_t n_out)
{
    if (e->n_nodes == 1)
        return dl_buf_map(e->nodes[0].dev, e->nodes[0].bufs[e->nodes[0].mp->logits_buf]);
    for (uint32_t d = 0; d < e->n_nodes; d++) {
        const struct eng_node *n = &e->nodes[d];
        const struct dl_slice *s = &e->slices[d];
        if (!s->n_vocab)
            continue;
        const float *part = dl_buf_map(n->dev, n->bufs[n->mp->logits_buf]);
        for (uint32_t r = 0; r < n_out; r++)
            memcpy(e->logits + (size_t)r * e->h->vocab + s->vocab0, part + (size_t)r * s->n_vocab,
                   s->n_vocab * sizeof *part);
    }
    return e->logits;
}

int dl_engine_step(dl_engine *e, struct dl_step_item *items, uint32_t n_items)
{
    uint32_t n_tokens = 0, n_out = 0;
    int err = check_items(e, items, n_items, &n_tokens, &n_out);
    if (err)
        return err;
    for (uint32_t i = 0; !err && i < n_items; i++)
        err = need_blocks(items[i].session, items[i].session->len + items[i].n);
    if (!err) {
        for (uint32_t d = 0; d < e->n_nodes; d++)
            fill(e, &e->nodes[d], items, n_items, n_tokens, n_out);
        err = eng_exec(e, n_tokens, n_out);
    }
    if (err) {
        for (uint32_t i = 0; i < n_items; i++)
            keep_blocks(items[i].session, items[i].session->len);
        return err;
    }
    float *logits = collect(e, n_out);
    for (uint32_t i = 0; i < n_items; i++) {
        struct dl_step_item *it = &items[i];
        memcpy(it->session->tokens + it->session->len, it->tokens, it->n * sizeof *it->tokens);
        it->session->len += it->n;
        it->logits = it->want == DL_WANT_NONE ? NULL : logits;
        logits += (size_t)wanted(it) * e->h->vocab;
    }
    return DL_OK;
}

int dl_session_sync(dl_session *s, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud, float **logits)
{
    dl_engine *e = s->engine;
    *logits = NULL;
    if (!n)
        return dl_fail(DL_EINVAL, "prompt: it is empty; a model needs at least one token");
    if (n > e->ctx)
        return dl_fail(DL_ELIMIT, "prompt: %zu tokens do not fit the context of %u: raise --ctx or shorten the prompt",
                       n, e->ctx);
    uint32_t same = 0;
    while (same < s->len && same < n - 1 && s->tokens[same] == tokens[same])
        same++;
    dl_session_truncate(s, same);
    while (s->len < n) {
        if (stop && stop(ud))
            return DL_ECANCELED;
        uint32_t left = (uint32_t)n - s->len, chunk = DL_MIN(left, e->shape.max_tokens);
        struct dl_step_item item = {s, tokens + s->len, chunk, chunk == left ? DL_WANT_LAST : DL_WANT_NONE, NULL};
        int err = dl_engine_step(e, &item, 1);
        if (err)
            return err;
        *logits = item.logits;
    }
    return DL_OK;
}

int dl_session_eval(dl_session *s, int32_t token, float **logits)
{
    struct dl_step_item item = {s, &token, 1, DL_WANT_LAST, NULL};
    *logits = NULL;
    int err = dl_engine_step(s->engine, &item, 1);
    if (!err)
        *logits = item.logits;
    return err;
}
