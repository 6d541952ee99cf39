/* SPDX-License-Identifier: MIT
 *
 * engine/run/session.c: sequences and the batches made of them. A batch is the host-written INPUT buffers: embedding rows, rope angles,
 * positions, block tables; everything else is in the plan.
 */
#include "cluster.h"
#include "heal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reader.h"

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
    for (uint32_t r = 0; r < s->engine->n_rows; r++)
        if (s->engine->row_of[r].session == s)
            s->engine->row_of[r].session = NULL;
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

/* The last block that is left gets other positions than it has: one that others hold, too, is left to them, and what of it
 * is needed will be evaluated again. */
static void part_with_last(dl_session *s)
{
    uint32_t last = s->len / DL_KV_BLOCK;
    if (!s->shares || s->len % DL_KV_BLOCK == 0 || last >= s->n_known)
        return;
    if (s->engine->kv.refs[s->blocks[last]] > 1) {
        s->kv = DL_MIN(s->kv, last * DL_KV_BLOCK);
        keep_blocks(s, s->kv);
    } else {
        eng_kv_forget(&s->engine->kv, s->blocks[last]);
    }
}

void dl_session_truncate(dl_session *s, uint32_t n)
{
    s->len = DL_MIN(s->len, n);
    s->kv = DL_MIN(s->kv, n);
    keep_blocks(s, s->len);
    part_with_last(s);
    s->n_known = DL_MIN(s->n_known, s->len / DL_KV_BLOCK);
}

/* What is remembered is in the devices' memory, unless they were given up meanwhile. */
static void check_epoch(dl_engine *e)
{
    if (e->kv_epoch != e->epoch)
        eng_kv_forget_all(&e->kv);
    e->kv_epoch = e->epoch;
}

uint32_t dl_session_reuse(dl_session *s, const int32_t *tokens, size_t n)
{
    dl_engine *e = s->engine;
    s->shares = true;
    if (s->len || !e->formed)
        return 0;
    check_epoch(e);
    while (s->n_blocks < e->shape.table_cols && s->len + (size_t)DL_KV_BLOCK < n) {
        uint32_t b = eng_kv_find(&e->kv, s->n_blocks ? s->blocks[s->n_blocks - 1] : ENG_KV_NONE, tokens + s->len);
        if (b == ENG_KV_NONE)
            break;
        s->blocks[s->n_blocks++] = b;
        memcpy(s->tokens + s->len, tokens + s->len, DL_KV_BLOCK * sizeof *tokens);
        s->len += DL_KV_BLOCK;
    }
    s->kv = s->len;
    s->epoch = e->epoch;
    s->n_known = s->n_blocks;
    return s->len;
}

uint32_t dl_engine_free_blocks(const dl_engine *e)
{
    return eng_kv_free_count(&e->kv);
}

uint32_t dl_session_blocks(const dl_session *s)
{
    return s->n_blocks;
}

uint32_t dl_engine_shared_blocks(dl_engine *e, const int32_t *tokens, size_t n)
{
    uint32_t b = ENG_KV_NONE, shared = 0;
    if (!e->formed)
        return 0;
    check_epoch(e);
    for (size_t at = 0; at + DL_KV_BLOCK < n; at += DL_KV_BLOCK) {
        b = eng_kv_look(&e->kv, b, tokens + at);
        if (b == ENG_KV_NONE)
            break;
        shared += e->kv.refs[b] > 0;
    }
    return shared;
}

/* Blocks that have become full can be found by others from now on. What was known before under the same tokens is as good, and
 * frees ours. */
static void know_blocks(dl_session *s)
{
    struct eng_kv *kv = &s->engine->kv;
    if (!s->shares)
        return;
    check_epoch(s->engine);
    for (; s->n_known < s->len / DL_KV_BLOCK; s->n_known++) {
        uint32_t i = s->n_known, before = i ? s->blocks[i - 1] : ENG_KV_NONE;
        s->blocks[i] = eng_kv_know(kv, s->blocks[i], before, s->tokens + (size_t)i * DL_KV_BLOCK);
    }
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

static int check_items(dl_engine *e, const struct dl_step_item *items, uint32_t n_items)
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
        if (it->want > DL_WANT_TOP || (it->want == DL_WANT_TOP && (!it->k || it->k > DL_TOP_MOST)))
            return dl_fail(DL_EINVAL, "batch: item %u wants %u candidates, 1 to %u can be had", i, it->k, DL_TOP_MOST);
        if (it->want == DL_WANT_TOP && !(it->temperature >= 0 && it->temperature < INFINITY))
            return dl_fail(DL_EINVAL, "batch: item %u has a temperature of %g", i, (double)it->temperature);
        tokens += it->n;
        out += eng_wanted(it->want, it->n);
    }
    if (tokens > e->shape.max_tokens || out > e->shape.max_out)
        return dl_fail(DL_EINVAL, "batch: %llu tokens with %llu logits rows, this engine takes %u and %u",
                       (unsigned long long)tokens, (unsigned long long)out, e->shape.max_tokens, e->shape.max_out);
    return DL_OK;
}

/* The embedding rows of the batch, for the first device; rounded to what the others get, so that all nodes begin alike. */
static void embed(const dl_engine *e, const struct dl_step_item *items, uint32_t n_items, float *to)
{
    for (uint32_t i = 0; i < n_items; i++)
        for (uint32_t j = 0; j < items[i].n; j++, to += e->h->dim) {
            const uint64_t row = (uint64_t)items[i].tokens[j];
            if (e->model->made)
                eng_made_row_f32(e->model->made, &e->embed, DL_T_EMBED, 0, row, to);
            else
                dl_row_to_f32(e->embed.type, e->embed.data + row * e->embed.row_bytes, to, e->h->dim);
            eng_embed_round(e->embed_kind, to, e->h->dim);
        }
}

/* The rows of all tokens, put where their lanes have them. */
static void spread(const dl_engine *e, struct eng_node *n, const float *rows)
{
    const struct eng_batch *b = &e->batch;
    const size_t dim = e->h->dim;
    float *to = dl_buf_map(n->dev, n->bufs[n->mp->embed_buf]);
    if (b->cut < b->n_tokens)
        memmove(to + eng_batch_row(b, &n->mp->plan, b->cut) * dim, rows + b->cut * dim,
                (b->n_tokens - b->cut) * dim * sizeof *to);
    if (to != rows)
        memcpy(to, rows, b->cut * dim * sizeof *to);
}

/* Workers hear of the batch as early as can be; the rest is done while the message travels. */
static int give_batch(dl_engine *e, const struct dl_step_item *items, uint32_t n_items)
{
    struct eng_batch *b = &e->batch;
    b->n_seqs = n_items;
    for (uint32_t i = 0; i < n_items; i++) {
        const struct dl_session *s = items[i].session;
        uint32_t n_blocks = (uint32_t)dl_div_up(s->kv + items[i].n, DL_KV_BLOCK);
        b->seqs[i] = (struct eng_seq){
            s->kv,     items[i].n, items[i].want, items[i].k, items[i].temperature > 0 ? items[i].temperature : 1,
            s->blocks, n_blocks};
    }
    (void)eng_batch_count(b, &e->shape); /* the items are checked */
    const struct dl_plan *plan = &e->nodes[0].mp->plan;
    b->cut = eng_lanes_cut(&e->lanes, b->n_tokens, plan->n_lanes, plan->lane_tokens);
    float *first = dl_buf_map(e->nodes[0].dev, e->nodes[0].bufs[e->nodes[0].mp->embed_buf]);
    embed(e, items, n_items, first);
    int err = e->cluster ? eng_cluster_step(e->cluster, first) : DL_OK;
    for (uint32_t d = e->n_nodes; !err && d-- > 0;) { /* the first, which has the rows, last */
        spread(e, &e->nodes[d], first);
        eng_batch_fill(e, &e->nodes[d]);
    }
    return err;
}

/* A batch that was begun has failed: nothing of the devices' state is of use any more. Who failed, and the log, first. */
static int give_up(dl_engine *e, int err, bool running)
{
    bool exchange = e->bad_exchange;
    if (e->cluster && exchange)
        err = eng_cluster_lost(e->cluster, err);
    else if (e->cluster)
        eng_cluster_leave(e->cluster, err, "the root has failed");
    else if (exchange)
        err = dl_fail(err, "engine: exchange %u between the devices: %s", e->bad_exchange, dl_err_text(err));
    if (running)
        eng_exec_abort(e);
    if (e->heal)
        eng_unform(e, err, "the root has failed");
    e->failed = e->heal ? DL_OK : err;
    return err;
}

int eng_give_up(dl_engine *e, int err)
{
    e->bad_exchange = 0;
    err = give_up(e, err, false);
    eng_heal_between(e);
    return err;
}

static int run_batch(dl_engine *e, const struct dl_step_item *items, uint32_t n_items)
{
    e->bad_exchange = 0;
    e->bad_silence = false;
    int err = give_batch(e, items, n_items);
    if (err)
        return give_up(e, err, false);
    const uint64_t start = dl_now_ns();
    err = eng_exec(e);
    if (err)
        return give_up(e, err, true);
    eng_lanes_learn(&e->lanes, e->batch.n_tokens, e->batch.cut, dl_now_ns() - start);
    err = eng_logits_collect(e);
    e->batch_ns = dl_now_ns();
    return err ? give_up(e, err, false) : DL_OK;
}

/* Positions [kv, upto) again, after the devices have lost them. */
static int evaluate_again(dl_session *s, uint32_t upto)
{
    dl_engine *e = s->engine;
    if (s->epoch != e->epoch)
        s->kv = s->n_known = 0;
    s->epoch = e->epoch;
    while (s->kv < upto) {
        uint32_t chunk = DL_MIN(upto - s->kv, e->shape.max_tokens);
        const struct dl_step_item item = {.session = s, .tokens = s->tokens + s->kv, .n = chunk};
        int err = eng_heal_stop(e);
        if (!err)
            err = run_batch(e, &item, 1);
        if (err)
            return err;
        s->kv += chunk;
    }
    return DL_OK;
}

/* A batch at the end of its sessions, on an engine that may have to be mended first, and meanwhile. */
static int run_healing(dl_engine *e, const struct dl_step_item *items, uint32_t n_items)
{
    for (unsigned attempt = 0;; attempt++) {
        int err = eng_heal_ready(e);
        for (uint32_t i = 0; !err && i < n_items; i++)
            err = evaluate_again(items[i].session, items[i].session->len);
        if (!err)
            err = run_batch(e, items, n_items);
        if (!err || !eng_heal_again(e, err, attempt))
            return err;
    }
}

/* The rows that the step gave, in the order of the items. */
static void note_rows(dl_engine *e, const struct dl_step_item *it)
{
    uint32_t n = eng_wanted(it->want, it->n);
    for (uint32_t r = 0; r < n; r++)
        e->row_of[e->n_rows++] = (struct eng_row_of){it->session, it->session->len - n + r};
}

int dl_engine_step(dl_engine *e, struct dl_step_item *items, uint32_t n_items)
{
    int err = check_items(e, items, n_items);
    if (err)
        return err;
    e->n_rows = 0;
    for (uint32_t i = 0; !err && i < n_items; i++)
        err = need_blocks(items[i].session, items[i].session->len + items[i].n);
    if (!err)
        err = run_healing(e, items, n_items);
    if (err) {
        for (uint32_t i = 0; i < n_items; i++)
            keep_blocks(items[i].session, items[i].session->len);
        return err;
    }
    const struct eng_row *row = e->rows;
    for (uint32_t i = 0; i < n_items; i++) {
        struct dl_step_item *it = &items[i];
        memcpy(it->session->tokens + it->session->len, it->tokens, it->n * sizeof *it->tokens);
        it->session->len += it->n;
        it->session->kv = it->session->len;
        bool some = it->want == DL_WANT_BEST || it->want == DL_WANT_TOP;
        it->logits = it->want == DL_WANT_NONE || some ? NULL : row->full;
        it->top = some ? row->top : NULL;
        it->n_top = some ? row->n_top : 0;
        it->log_sum = it->want == DL_WANT_TOP ? row->log_sum : 0;
        row += eng_wanted(it->want, it->n);
        note_rows(e, it);
        know_blocks(it->session);
    }
    e->rows_gone = false;
    return DL_OK;
}

/* The devices that held a row of the last step are gone: its token is evaluated once more. */
static int logits_again(dl_engine *e, uint32_t row, float **logits)
{
    dl_session *s = e->row_of[row].session;
    const uint32_t pos = e->row_of[row].pos;
    if (!s || pos >= s->len)
        return dl_fail(DL_EINVAL, "logits: the session of row %u is gone, or cut before it", row);
    for (unsigned attempt = 0;; attempt++) {
        const struct dl_step_item item = {.session = s, .tokens = s->tokens + pos, .n = 1, .want = DL_WANT_LAST};
        int err = eng_heal_ready(e);
        s->kv = DL_MIN(s->kv, pos);
        if (!err)
            err = evaluate_again(s, pos);
        if (!err)
            err = run_batch(e, &item, 1);
        if (!err) {
            s->kv = pos + 1;
            *logits = e->rows[0].full;
            return DL_OK;
        }
        if (!eng_heal_again(e, err, attempt))
            return err;
    }
}

int dl_engine_logits(dl_engine *e, uint32_t row, float **logits)
{
    *logits = NULL;
    if (e->failed)
        return dl_fail(e->failed, "engine: cannot go on after an earlier failure (%s)", dl_err_text(e->failed));
    if (row >= e->n_rows)
        return dl_fail(DL_EINVAL, "logits: the last step has no row %u", row);
    if (e->rows_gone)
        return logits_again(e, row, logits);
    int err = eng_logits_row(e, row, logits);
    if (!err)
        return DL_OK;
    *logits = NULL;
    err = give_up(e, err, false);
    return eng_heal_again(e, err, 0) ? logits_again(e, row, logits) : err;
}

int dl_session_feed(dl_session *s, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud,
                    struct dl_step_item *last)
{
    dl_engine *e = s->engine;
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
        struct dl_step_item item = {.session = s, .tokens = tokens + s->len, .n = chunk};
        if (chunk == left) {
            item.want = last->want;
            item.k = last->k;
            item.temperature = last->temperature;
        }
        int err = dl_engine_step(e, &item, 1);
        if (err)
            return err;
        if (chunk == left)
            *last = item;
    }
    return DL_OK;
}

int dl_session_sync(dl_session *s, const int32_t *tokens, size_t n, dl_stop_fn *stop, void *ud, float **logits)
{
    struct dl_step_item last = {.want = DL_WANT_LAST};
    int err = dl_session_feed(s, tokens, n, stop, ud, &last);
    *logits = err ? NULL : last.logits;
    return err;
}

int dl_session_eval(dl_session *s, int32_t token, float **logits)
{
    struct dl_step_item item = {.session = s, .tokens = &token, .n = 1, .want = DL_WANT_LAST};
    int err = dl_engine_step(s->engine, &item, 1);
    *logits = err ? NULL : item.logits;
    return err;
}
