/* SPDX-License-Identifier: MIT
 *
 * engine/run/weights.c: from tensors in the mapping to weight buffers on a device. What lies in one piece is imported (the CPU
 * computes float weights from the mapping, and packs quantised ones); columns, and experts that a file scatters, are gathered and written.
 */
#include "engine.h"
#include "source.h"

#include <stdlib.h>

#define STAGE_BYTES ((size_t)1 << 20)
#define PAGE 4096u

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

int eng_weights_write(dl_device *dev, dl_buf *buf, const struct eng_source *s, eng_source_tick *tick, void *ud)
{
    size_t per = (size_t)DL_MAX(1, STAGE_BYTES / s->row_bytes) * (size_t)s->row_bytes;
    uint8_t *stage = dl_calloc(1, (size_t)DL_MIN(per, s->bytes));
    int err = stage ? DL_OK : DL_ENOMEM;
    for (uint64_t at = 0; !err && at < s->bytes;) {
        size_t n = (size_t)DL_MIN(per, s->bytes - at);
        eng_source_read(s, at, stage, n);
        err = dl_buf_write(dev, buf, at, stage, n);
        at += n;
        if (!err && tick)
            err = tick(ud, n);
    }
    free(stage);
    return err;
}

struct progress {
    const dl_engine *e;
    uint64_t *done, total;
};

static int advance(void *ud, uint64_t bytes)
{
    struct progress *p = ud;
    *p->done += bytes;
    report(p->e, *p->done, p->total);
    return DL_OK;
}

bool eng_weights_copied(const dl_device *dev, enum dl_type type)
{
    return dev->copies >> type & 1;
}

int eng_weights_load(dl_engine *e, struct eng_node *n, uint64_t *done, uint64_t total)
{
    for (uint32_t i = 0; i < n->mp->n_weights; i++) {
        const struct dl_weight *w = &n->mp->weights[i];
        const struct dl_buf_desc *desc = &n->mp->plan.bufs[w->buf];
        struct eng_source s;
        int err = eng_source_need(e->model, w, &s);
        if (!err && s.in_place) {
            const uint8_t *p = eng_source_bytes(&s);
            err = dl_buf_import(n->dev, desc, p, &n->bufs[w->buf]);
            if (!err && !eng_weights_copied(n->dev, s.t.type)) {
                touch(e, p, s.bytes, done, total);
            } else {
                *done += s.bytes;
                dl_model_drop_pages(e->model, &s.t);
            }
            report(e, *done, total);
        } else if (!err) {
            struct progress p = {e, done, total};
            err = dl_buf_create(n->dev, desc, &n->bufs[w->buf]);
            if (!err)
                err = eng_weights_write(n->dev, n->bufs[w->buf], &s, advance, &p);
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
        struct eng_source s;
        int err = eng_source_need(e->model, &n->mp->weights[i], &s);
        if (err)
            return err;
        *bytes += s.bytes;
        if (!s.in_place || eng_weights_copied(n->dev, s.t.type))
            *copied += s.bytes;
    }
    return DL_OK;
}
