/* SPDX-License-Identifier: MIT
 *
 * engine/run/source.c: see source.h.
 */
#include "source.h"

#include <string.h>

#include "reader.h"

static bool place(struct eng_source *s)
{
    const struct dl_weight *w = &s->w;
    uint64_t upto;
    if (!dl_row_bytes(s->t.type, w->cols, &s->row_bytes) || !dl_row_bytes(s->t.type, w->col0, &s->col_at) ||
        !dl_add_u64(s->row_bytes, s->col_at, &upto) || upto > s->t.row_bytes || w->row0 > s->t.rows ||
        w->rows > s->t.rows - w->row0)
        return false;
    s->bytes = s->row_bytes * w->rows * s->t.n_experts;
    bool rows_whole = s->row_bytes == s->t.row_bytes || w->rows == 1;
    bool experts_whole = s->t.n_experts == 1 || s->t.expert_bytes == s->row_bytes * w->rows;
    s->in_place = rows_whole && experts_whole && !s->made;
    return true;
}

/* What is made up follows from the name of the tensor. */
static struct eng_source begin(const struct dl_model_header *h, const struct eng_made *made, const struct dl_weight *w)
{
    struct eng_source s = {.w = *w, .made = made};
    if (made && h->tied && w->id == DL_T_OUTPUT)
        s.w.id = DL_T_EMBED;
    return s;
}

bool eng_source_find(const dl_model *m, const struct dl_weight *w, struct eng_source *s)
{
    *s = begin(&m->h, m->made, w);
    return !dl_model_tensor(m, w->id, w->layer, &s->t) && (s->t.data || s->made) && place(s);
}

int eng_source_make(const struct dl_model_header *h, const struct eng_made *made, const struct dl_weight *w,
                    struct eng_source *s)
{
    *s = begin(h, made, w);
    if (eng_made_tensor(h, s->w.id, &s->t) && place(s))
        return DL_OK;
    return dl_fail(DL_EINVAL, "weights: a made-up model has no such part of %s", dl_tensor_name(w->id));
}

int eng_source_need(const dl_model *m, const struct dl_weight *w, struct eng_source *s)
{
    if (eng_source_find(m, w, s))
        return DL_OK;
    if (!s->t.data && !(s->made && s->t.rows))
        return dl_fail(DL_EFORMAT, "%s: layer %u has no %s", dl_model_name(m), w->layer, dl_tensor_name(w->id));
    return dl_fail(DL_EINVAL, "%s: %s of layer %u is %u x %u, too small for the slice (%u + %u, %u + %u)",
                   dl_model_name(m), dl_tensor_name(w->id), w->layer, s->t.rows, s->t.cols, w->row0, w->rows, w->col0,
                   w->cols);
}

/* Which row of the tensor, counted through its experts, is row `row` of the slice. */
static uint64_t row_of(const struct eng_source *s, uint64_t row)
{
    return row / s->w.rows * s->t.rows + s->w.row0 + row % s->w.rows;
}

static const uint8_t *row_at(const struct eng_source *s, uint64_t row)
{
    uint64_t expert = row / s->w.rows, r = row % s->w.rows;
    return s->t.data + expert * s->t.expert_bytes + (s->w.row0 + r) * s->t.row_bytes + s->col_at;
}

const uint8_t *eng_source_bytes(const struct eng_source *s)
{
    return row_at(s, 0);
}

void eng_source_read(const struct eng_source *s, uint64_t at, void *out, size_t n)
{
    uint8_t *to = out;
    if (s->in_place) {
        memcpy(to, row_at(s, 0) + at, n);
        return;
    }
    while (n) {
        uint64_t row = at / s->row_bytes, skip = at % s->row_bytes;
        size_t part = (size_t)DL_MIN(n, s->row_bytes - skip);
        if (s->made)
            eng_made_read(s->made, &s->t, s->w.id, s->w.layer, row_of(s, row), s->col_at + skip, to, part);
        else
            memcpy(to, row_at(s, row) + skip, part);
        to += part;
        at += part;
        n -= part;
    }
}

int eng_source_digest(const struct eng_source *s, struct eng_hash *hash, void *stage, size_t stage_bytes,
                      eng_source_tick *tick, void *ud, struct eng_digest *out)
{
    eng_hash_begin(hash);
    for (uint64_t at = 0; at < s->bytes;) {
        size_t n = (size_t)DL_MIN(stage_bytes, s->bytes - at);
        if (s->in_place) {
            eng_hash_add(hash, row_at(s, 0) + at, n);
        } else {
            eng_source_read(s, at, stage, n);
            eng_hash_add(hash, stage, n);
        }
        at += n;
        int stop = tick ? tick(ud, n) : 0;
        if (stop)
            return stop;
    }
    eng_hash_end(hash, out);
    return DL_OK;
}
