/* SPDX-License-Identifier: MIT
 *
 * engine/run/weights.c: from tensors in the mapping to weight buffers on a device. What lies in one piece is imported (the CPU
 * computes from the mapping); columns, and experts that a file scatters, are gathered and written.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

#define STAGE_BYTES ((size_t)1 << 20)
#define PAGE 4096u

struct source {
    struct dl_tensor t;
    uint64_t row_bytes; /* of the slice */
    uint64_t col_at;    /* bytes before the slice in a row */
    uint64_t bytes;     /* of the slice, all experts */
    bool in_place;
};

static int find(const dl_engine *e, const struct dl_weight *w, struct source *s)
{
    if (dl_model_tensor(e->model, w->id, w->layer, &s->t))
        return dl_fail(DL_EFORMAT, "%s: layer %u has no %s", dl_model_name(e->model), w->layer, dl_tensor_name(w->id));
    uint64_t left;
    if (!dl_row_bytes(s->t.type, w->cols, &s->row_bytes) || !dl_row_bytes(s->t.type, w->col0, &s->col_at) ||
        !dl_add_u64(s->row_bytes, s->col_at, &left) || left > s->t.row_bytes || w->row0 > s->t.rows ||
        w->rows > s->t.rows - w->row0)
        return dl_fail(DL_EINVAL, "%s: %s of layer %u is %u x %u, too small for the slice (%u + %u, %u + %u)",
                       dl_model_name(e->model), dl_tensor_name(w->id), w->layer, s->t.rows, s->t.cols, w->row0, w->rows,
                       w->col0, w->cols);
    s->bytes = s->row_bytes * w->rows * s->t.n_experts;
    bool rows_whole = s->row_bytes == s->t.row_bytes || w->rows == 1;
    bool experts_whole = s->t.n_experts == 1 || s->t.expert_bytes == s->row_bytes * w->rows;
    s->in_place = rows_whole && experts_whole;
    return DL_OK;
}

static const uint8_t *row_at(const struct source *s, const struct dl_weight *w, uint32_t expert, uint32_t row)
{
    return s->t.data + expert * s->t.expert_bytes + (uint64_t)(w->row0 + row) * s->t.row_bytes + s->col_at;
}

static void report(const dl_engine *e, uint64_t done, uint64_t total)
{
    if (e->progress)
        e->progress(e->progress_ud, "loading weights", done, total);
}

/* Reads a byte of every page, so that a cold file is read now, under the progress bar, and not during the first token. */
static void touch(const dl_engine *e, const uint8_t *p, uint64_t n, uint64_t *done, uint64_t total)
{
    volatile uint8_t sink = 0;
    for (uint64_t at = 0; at < n; at += PAGE) {
        sink = (uint8_t)(sink + p[at]);
        if (at % (16 * STAGE_BYTES) == 0)
            report(e, *done + at, total);
    }
    (void)sink;
    *done += n;
}

static int gather(dl_engine *e, struct eng_node *n, const struct dl_weight *w, const struct source *s, uint64_t *done,
                  uint64_t total)
{
    uint32_t per = (uint32_t)DL_MAX(1, DL_MIN(w->rows, STAGE_BYTES / s->row_bytes));
    uint8_t *stage = dl_calloc(per, (size_t)s->row_bytes);
    int err = stage ? DL_OK : DL_ENOMEM;
    uint64_t at = 0;
    for (uint32_t x = 0; !err && x < s->t.n_experts; x++)
        for (uint32_t r = 0; !err && r < w->rows; r += per) {
            uint32_t rows = DL_MIN(per, w->rows - r);
            for (uint32_t i = 0; i < rows; i++)
                memcpy(stage + i * s->row_bytes, row_at(s, w, x, r + i), (size_t)s->row_bytes);
            uint64_t bytes = rows * s->row_bytes;
            err = dl_buf_write(n->dev, n->bufs[w->buf], at, stage, (size_t)bytes);
            at += bytes;
            *done += bytes;
            report(e, *done, total);
        }
    free(stage);
    return err;
}

int eng_weights_load(dl_engine *e, struct eng_node *n, uint64_t *done, uint64_t total)
{
    for (uint32_t i = 0; i < n->mp->n_weights; i++) {
        const struct dl_weight *w = &n->mp->weights[i];
        const struct dl_buf_desc *desc = &n->mp->plan.bufs[w->buf];
        struct source s;
        int err = find(e, w, &s);
        if (!err && s.in_place) {
            const uint8_t *p = row_at(&s, w, 0, 0);
            err = dl_buf_import(n->dev, desc, p, &n->bufs[w->buf]);
            if (!err && n->dev->threads) {
                touch(e, p, s.bytes, done, total);
            } else {
                *done += s.bytes;
                dl_model_drop_pages(e->model, &s.t);
            }
            report(e, *done, total);
        } else if (!err) {
            err = dl_buf_create(n->dev, desc, &n->bufs[w->buf]);
            if (!err)
                err = gather(e, n, w, &s, done, total);
            dl_model_drop_pages(e->model, &s.t);
        }
        if (err)
            return err;
    }
    return DL_OK;
}

int eng_weights_size(const dl_engine *e, const struct eng_node *n, uint64_t *bytes, uint64_t *copied)
{
    *bytes = *copied = 0;
    for (uint32_t i = 0; i < n->mp->n_weights; i++) {
        struct source s;
        int err = find(e, &n->mp->weights[i], &s);
        if (err)
            return err;
        *bytes += s.bytes;
        if (!s.in_place)
            *copied += s.bytes;
    }
    return DL_OK;
}
