/* SPDX-License-Identifier: MIT
 *
 * engine/run/worker_weights.c: a worker's weights. The root offers a digest per buffer; what a local file or the cache has is used from
 * there, the rest is asked for, compared with its digest, kept in the cache where that is possible, and asked for again when
 * it arrived damaged or the disk has lost it. What the device does not copy stays in the file and is mapped.
 */
#include "worker.h"

#include <stdlib.h>
#include <string.h>

#define STAGE_BYTES ((size_t)1 << 20)
#define ROUNDS 4u /* of asking again, as the root allows */

struct loader {
    struct eng_worker *w;
    struct eng_node *node;
    uint32_t n;
    struct eng_offer_entry *offers;
    uint8_t *wanted; /* a bit each */
    struct eng_hash *hash;
    uint8_t *stage;
};

/* Where the bytes of a buffer go while they arrive. */
struct sink {
    bool to_cache, lost; /* lost: the disk refused, or the bytes are wrong: asked for again */
    dl_buf *buf;         /* else: into the device, in whole rows */
    uint8_t *rows;
    size_t cap, n;
    uint64_t written;
};

static const struct dl_buf_desc *desc_of(const struct loader *l, uint32_t i)
{
    return &l->node->mp->plan.bufs[l->node->mp->weights[i].buf];
}

static dl_buf **buf_of(const struct loader *l, uint32_t i)
{
    return &l->node->bufs[l->node->mp->weights[i].buf];
}

static int tick(void *ud, uint64_t bytes)
{
    (void)bytes;
    eng_worker_alive(ud);
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------- what there is */

/* 1: used, 0: not there, < 0: failed. */
static int from_model(struct loader *l, uint32_t i)
{
    struct eng_worker *w = l->w;
    const dl_model *m = w->opts->model;
    struct eng_source s;
    struct eng_digest got;
    if (!m || w->local_off)
        return 0;
    bool same = eng_source_find(m, &l->node->mp->weights[i], &s) && s.bytes == l->offers[i].bytes &&
                !eng_source_digest(&s, l->hash, l->stage, STAGE_BYTES, tick, w, &got) &&
                eng_digest_equal(&got, &l->offers[i].digest);
    if (!same) {
        w->local_off = true;
        dl_log(DL_LOG_WARN, "worker: %s is not the root's model: weights come from the cache or the root",
               dl_model_name(m));
        return 0;
    }
    int err;
    if (s.in_place) {
        err = dl_buf_import(l->node->dev, desc_of(l, i), eng_source_bytes(&s), buf_of(l, i));
    } else {
        err = dl_buf_create(l->node->dev, desc_of(l, i), buf_of(l, i));
        if (!err)
            err = eng_weights_write(l->node->dev, *buf_of(l, i), &s, tick, w);
    }
    if (!s.in_place || eng_weights_copied(l->node->dev, s.t.type))
        dl_model_drop_pages(m, &s.t);
    return err ? err : 1;
}

/* Takes over the map. */
static int use_map(struct loader *l, uint32_t i, const struct dl_map *map)
{
    struct eng_worker *w = l->w;
    w->maps[w->n_maps++] = *map;
    int err = dl_buf_import(l->node->dev, desc_of(l, i), map->data, buf_of(l, i));
    if (eng_weights_copied(l->node->dev, desc_of(l, i)->type))
        dl_map_drop(map, 0, map->size);
    return err;
}

static int from_cache(struct loader *l, uint32_t i)
{
    struct dl_map map;
    struct eng_cache *c = l->w->cache;
    if (!c)
        return 0;
    eng_cache_pin(c, &l->offers[i].digest);
    if (!eng_cache_get(c, &l->offers[i].digest, l->offers[i].bytes, eng_worker_alive, l->w, &map))
        return 0;
    int err = use_map(l, i, &map);
    return err ? err : 1;
}

static int take_offers(struct loader *l)
{
    for (uint32_t have = 0; have < l->n;) {
        struct eng_in in;
        uint32_t n;
        int err = eng_worker_recv(l->w, ENG_CONTROL_MOST, UINT64_MAX, &in);
        if (!err && eng_in_type(&in) != ENG_MSG_OFFER)
            err = eng_link_unexpected(&in, "OFFER");
        if (!err)
            err = eng_offer_read(&in, have, l->n, &n);
        if (err)
            return err;
        for (uint32_t i = 0; i < n; i++) {
            l->offers[have + i] = eng_offer_get(&in, i);
            if (l->offers[have + i].bytes != desc_of(l, have + i)->bytes)
                return dl_fail(DL_EFORMAT, "%s: offers %llu bytes for %s, which has %llu", in.who,
                               (unsigned long long)l->offers[have + i].bytes, desc_of(l, have + i)->name,
                               (unsigned long long)desc_of(l, have + i)->bytes);
        }
        for (uint32_t end = have + n; have < end; have++) {
            int used = from_model(l, have);
            if (!used)
                used = from_cache(l, have);
            if (used < 0)
                return used;
            if (!used)
                l->wanted[have / 8] |= (uint8_t)(1u << have % 8);
        }
    }
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------- what is sent */

static int sink_begin(struct loader *l, uint32_t i, struct sink *s)
{
    const struct dl_buf_desc *d = desc_of(l, i);
    *s = (struct sink){.to_cache = l->w->cache && eng_cache_begin(l->w->cache, &l->offers[i].digest, d->bytes)};
    eng_hash_begin(l->hash);
    if (s->to_cache)
        return DL_OK;
    size_t row = (size_t)(d->bytes / d->rows);
    s->cap = DL_MAX(STAGE_BYTES / row, 1) * row;
    s->cap = (size_t)DL_MIN(s->cap, d->bytes);
    s->rows = dl_calloc(1, s->cap);
    return s->rows ? dl_buf_create(l->node->dev, d, &s->buf) : DL_ENOMEM;
}

static int sink_rows(struct loader *l, struct sink *s, const uint8_t *bytes, size_t n)
{
    while (n) {
        size_t part = DL_MIN(n, s->cap - s->n);
        memcpy(s->rows + s->n, bytes, part);
        s->n += part;
        bytes += part;
        n -= part;
        if (s->n < s->cap)
            continue;
        int err = dl_buf_write(l->node->dev, s->buf, s->written, s->rows, s->n);
        if (err)
            return err;
        s->written += s->n;
        s->n = 0;
    }
    return DL_OK;
}

static int sink_add(struct loader *l, struct sink *s, const uint8_t *bytes, size_t n)
{
    eng_hash_add(l->hash, bytes, n);
    if (!s->to_cache)
        return sink_rows(l, s, bytes, n);
    s->lost = s->lost || !eng_cache_add(l->w->cache, bytes, n);
    return DL_OK;
}

/* All bytes have come. The bit stays set where they are of no use. */
static int sink_end(struct loader *l, uint32_t i, struct sink *s)
{
    struct eng_digest got;
    struct dl_map map;
    int err = DL_OK;
    eng_hash_end(l->hash, &got);
    bool same = eng_digest_equal(&got, &l->offers[i].digest);
    if (!same)
        dl_log(DL_LOG_WARN, "worker: %s arrived damaged and is asked for again", desc_of(l, i)->name);
    if (s->to_cache) {
        if (!same || s->lost)
            eng_cache_drop(l->w->cache);
        else if (eng_cache_commit(l->w->cache, &map))
            err = use_map(l, i, &map);
        else
            s->lost = true;
    } else if (same) {
        if (s->n)
            err = dl_buf_write(l->node->dev, s->buf, s->written, s->rows, s->n);
        *buf_of(l, i) = s->buf;
        s->buf = NULL;
    }
    if (same && !s->lost)
        l->wanted[i / 8] &= (uint8_t) ~(1u << i % 8);
    return err;
}

static int receive(struct loader *l, uint32_t i, struct sink *s)
{
    struct eng_worker *w = l->w;
    uint64_t bytes = desc_of(l, i)->bytes;
    for (uint64_t at = 0; at < bytes;) {
        struct eng_in in;
        struct eng_data d;
        int err = eng_worker_recv(w, ENG_CONTROL_MOST, UINT64_MAX, &in);
        if (!err && eng_in_type(&in) != ENG_MSG_DATA)
            err = eng_link_unexpected(&in, "DATA");
        if (!err)
            err = eng_data_read(&in, &d);
        if (!err && (d.weight != i || d.at != at || d.n > bytes - at))
            err = dl_fail(DL_EFORMAT, "%s: sends other bytes of the weights than those that come next", in.who);
        if (!err)
            err = sink_add(l, s, d.bytes, d.n);
        if (err)
            return err;
        at += d.n;
        w->got += d.n;
        eng_got_write(&w->out, w->got);
        err = eng_worker_send(w);
        if (err)
            return err;
    }
    return sink_end(l, i, s);
}

static bool wants_any(const struct loader *l)
{
    for (size_t i = 0; i < dl_div_up(l->n, 8); i++)
        if (l->wanted[i])
            return true;
    return false;
}

static int fetch_wanted(struct loader *l)
{
    eng_want_write(&l->w->out, l->wanted, l->n);
    int err = eng_worker_send(l->w);
    for (uint32_t i = 0; !err && i < l->n; i++) {
        if (!(l->wanted[i / 8] >> i % 8 & 1))
            continue;
        struct sink s;
        err = sink_begin(l, i, &s);
        if (!err)
            err = receive(l, i, &s);
        dl_buf_destroy(l->node->dev, &s.buf);
        free(s.rows);
    }
    return err;
}

static int make_all(struct eng_worker *w)
{
    struct eng_node *n = &w->e->nodes[0];
    struct eng_made *made = eng_made_create();
    int err = made ? DL_OK : DL_ENOMEM;
    for (uint32_t i = 0; !err && i < n->mp->n_weights; i++) {
        const struct dl_weight *weight = &n->mp->weights[i];
        const struct dl_buf_desc *d = &n->mp->plan.bufs[weight->buf];
        struct eng_source s;
        err = eng_source_make(w->e->h, made, weight, &s);
        if (!err && (s.t.type != d->type || s.bytes != d->bytes))
            err = dl_fail(DL_EFORMAT, "%s: wants %s made up as %s, which it never is", w->link.who, d->name,
                          dl_type_info(d->type)->name);
        if (!err)
            err = dl_buf_create(n->dev, d, &n->bufs[weight->buf]);
        if (!err)
            err = eng_weights_write(n->dev, n->bufs[weight->buf], &s, tick, w);
    }
    eng_made_destroy(&made);
    return err;
}

int eng_worker_weights(struct eng_worker *w)
{
    if (w->model.made)
        return make_all(w);
    struct loader l = {.w = w, .node = &w->e->nodes[0], .n = w->e->nodes[0].mp->n_weights};
    l.offers = dl_calloc(l.n, sizeof *l.offers);
    l.wanted = dl_calloc((size_t)dl_div_up(l.n, 8), 1);
    l.stage = dl_calloc(1, STAGE_BYTES);
    l.hash = eng_hash_create();
    w->maps = dl_calloc(l.n, sizeof *w->maps);
    int err = l.offers && l.wanted && l.stage && l.hash && w->maps ? DL_OK : DL_ENOMEM;
    if (!err)
        err = take_offers(&l);
    for (uint32_t round = 0; !err && wants_any(&l); round++) {
        if (round == ROUNDS)
            err = eng_worker_fail(w, DL_EFORMAT, "weights keep arriving damaged");
        else
            err = fetch_wanted(&l);
    }
    eng_hash_destroy(&l.hash);
    free(l.offers);
    free(l.wanted);
    free(l.stage);
    return err;
}
