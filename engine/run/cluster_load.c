/* SPDX-License-Identifier: MIT
 *
 * engine/run/cluster_load.c: how workers come by their plans and weights. Slices are read from the mapping, hashed and sent in pieces, to
 * all workers in turn: nothing larger than ENG_CHUNK_BYTES is ever held, and not more than ENG_WINDOW_BYTES per worker is under
 * way.
 */
#include "cluster.h"
#include "heal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reader.h"

#define STAGE_BYTES ((size_t)1 << 20)
#define OFFER_BYTES \
    (UINT64_C(64) << 20) /* hashed bytes after which digests are sent on, so that the worker can begin */
#define MOST_ROUNDS 4u   /* a worker that still asks then has a broken disk, or memory */
#define IDLE_NS UINT64_C(1000000)

/* ------------------------------------------------------------------------------------------ plans and memory */

static int send_plan(struct eng_cluster *c, struct eng_peer *p)
{
    const dl_engine *e = c->e;
    struct eng_model_msg m = {.h = *e->h,
                              .types = e->types,
                              .slices = e->slices,
                              .n_nodes = e->n_slices,
                              .node = (uint32_t)p->link.node,
                              .shape = e->shape,
                              .opts = e->plan_opts,
                              .rope_factors = e->rope_factors,
                              .made = e->model->made};
    snprintf(m.name, sizeof m.name, "%s", dl_model_name(e->model));
    struct dl_model_plan *mp;
    int err = dl_plan_build(e->h, &e->types, e->slices, m.node, m.n_nodes, &m.opts, &mp);
    if (err)
        return err;
    err = eng_plan_digest(&m, mp, &m.plan);
    struct eng_peer_load *l = &p->load;
    l->n = l->next = mp->n_weights;
    l->n_offered = m.made ? l->n : 0;
    l->weights = dl_calloc(l->n, sizeof *l->weights);
    l->offers = dl_calloc(l->n, sizeof *l->offers);
    l->wanted = dl_calloc((size_t)dl_div_up(l->n, 8), 1);
    if (!l->weights || !l->offers || !l->wanted)
        err = DL_ENOMEM;
    if (!err) {
        memcpy(l->weights, mp->weights, l->n * sizeof *l->weights);
        p->plan = m.plan;
        eng_model_write(&c->out, &m);
        err = eng_link_send(&p->link, &c->out);
        if (err == DL_EPEER)
            err = eng_cluster_lost(c, err);
    }
    dl_plan_destroy(&mp);
    return err;
}

/* The worker compares the digests as well, and says so in its own log. */
static int check_memory(struct eng_cluster *c, const struct eng_peer *p, const struct eng_memory *m)
{
    if (!eng_digest_equal(&m->plan, &p->plan))
        return eng_cluster_blame(
            c, p, DL_EUNSUP,
            "it plans another computation for its slice than the root does: install the same build "
            "on all nodes");
    double need = dl_gib(m->kv) + dl_gib(m->act) + dl_gib(m->copied);
    eng_heal_memory(c->e, p->link.node, m);
    if (!m->fits)
        return eng_cluster_blame(
            c, p, DL_ELIMIT,
            "it needs %.2f GiB (KV cache %.2f, activations %.2f, weights %.2f), %.2f GiB are free: give it a smaller "
            "share (--split), or use a smaller --ctx or --batch",
            need, dl_gib(m->kv), dl_gib(m->act), dl_gib(m->copied), dl_gib(m->avail));
    if (m->avail && dl_gib(m->mapped) > dl_gib(m->avail) - need)
        dl_log(DL_LOG_WARN,
               "%s: has %.2f GiB of weights, %.2f GiB are free: it will read them from disk again and again",
               p->link.who, dl_gib(m->mapped), dl_gib(m->avail) - need);
    return DL_OK;
}

int eng_cluster_plan(struct eng_cluster *c)
{
    int err = DL_OK, first = DL_OK;
    eng_cluster_phase(c, "planning");
    for (uint32_t i = 0; !err && i < c->n_peers; i++)
        err = send_plan(c, &c->peers[i]);
    while (!err) {
        struct eng_peer *p;
        struct eng_in in;
        struct eng_memory m;
        err = eng_cluster_next(c, ENG_CONTROL_MOST, &p, &in);
        if (err || !p)
            break;
        err = eng_in_type(&in) == ENG_MSG_MEMORY ? eng_memory_read(&in, &m) : eng_link_unexpected(&in, "MEMORY");
        if (!err) {
            int refused = check_memory(c, p, &m);
            first = first ? first : refused;
            p->done = true;
        } else {
            return eng_cluster_nonsense(c, p, err);
        }
    }
    err = err ? err : first;
    if (err)
        eng_cluster_leave(c, err, err == DL_ELIMIT ? "a node has not memory enough for its share" : "planning failed");
    return err;
}

/* ------------------------------------------------------------------------------------------------ requests */

static bool is_wanted(const struct eng_peer_load *l, uint32_t i)
{
    return l->wanted[i / 8] >> i % 8 & 1;
}

static uint32_t next_wanted(const struct eng_peer_load *l, uint32_t from)
{
    while (from < l->n && !is_wanted(l, from))
        from++;
    return from;
}

static int take_want(struct eng_peer *p, const struct eng_in *in)
{
    struct eng_peer_load *l = &p->load;
    const uint8_t *bits;
    int err = eng_want_read(in, l->n, &bits);
    if (err)
        return err;
    if (l->n_offered < l->n || l->next < l->n || l->rounds++ == MOST_ROUNDS)
        return dl_fail(DL_EFORMAT, "%s: asks for weights too early, or again and again", p->link.who);
    memcpy(l->wanted, bits, (size_t)dl_div_up(l->n, 8));
    l->next = next_wanted(l, 0);
    l->at = 0;
    if (!l->started_ns)
        l->started_ns = dl_now_ns();
    return DL_OK;
}

static int take_got(struct eng_peer *p, const struct eng_in *in)
{
    uint64_t total;
    int err = eng_got_read(in, &total);
    if (!err && (total < p->load.got || total > p->load.sent))
        err = dl_fail(DL_EFORMAT, "%s: has taken in more weights than were sent, or fewer than before", p->link.who);
    if (!err)
        p->load.got = total;
    return err;
}

static int take_ready(struct eng_peer *p, const struct eng_in *in)
{
    const struct eng_peer_load *l = &p->load;
    int err = eng_plain_read(in);
    if (!err && (l->n_offered < l->n || l->next < l->n))
        err = dl_fail(DL_EFORMAT, "%s: is ready before it has its weights", p->link.who);
    if (err)
        return err;
    double s = l->started_ns ? (double)(dl_now_ns() - l->started_ns) / 1e9 : 0;
    if (l->sent)
        dl_log(DL_LOG_INFO, "%s: got %.1f MB of weights in %.1f s, %.0f MB/s", p->link.who, (double)l->sent / 1e6, s,
               (double)l->sent / 1e6 / DL_MAX(s, 1e-3));
    else
        dl_log(DL_LOG_INFO, "%s: had all of its weights, or made them up", p->link.who);
    p->done = true;
    return DL_OK;
}

/* What a worker may say while it loads. *from NULL: nobody said anything. */
static int take_one(struct eng_cluster *c, uint64_t timeout_ns, struct eng_peer **from)
{
    struct eng_in in;
    eng_heal_loading(c->e);
    int err = eng_cluster_poll(c, ENG_CONTROL_MOST, timeout_ns, from, &in);
    if (err || !*from)
        return err;
    switch (eng_in_type(&in)) {
    case ENG_MSG_WANT:
        err = take_want(*from, &in);
        break;
    case ENG_MSG_GOT:
        err = take_got(*from, &in);
        break;
    case ENG_MSG_READY:
        err = take_ready(*from, &in);
        break;
    default:
        err = eng_link_unexpected(&in, "WANT, GOT or READY");
    }
    return err ? eng_cluster_nonsense(c, *from, err) : DL_OK;
}

/* ------------------------------------------------------------------------------------------------- digests */

static int look_up(void *ud, uint64_t bytes)
{
    (void)bytes;
    struct eng_peer *from;
    return take_one(ud, 0, &from);
}

static int offer_one(struct eng_cluster *c, struct eng_peer *p, uint32_t i, struct eng_hash *hash, void *stage)
{
    struct eng_source s;
    int err = eng_source_need(c->e->model, &p->load.weights[i], &s);
    if (err)
        return err;
    p->load.offers[i].bytes = s.bytes;
    err = eng_source_digest(&s, hash, stage, STAGE_BYTES, look_up, c, &p->load.offers[i].digest);
    dl_model_drop_pages(c->e->model, &s.t);
    return err;
}

static int send_offers(struct eng_cluster *c, struct eng_peer *p, uint32_t upto)
{
    struct eng_peer_load *l = &p->load;
    while (l->n_offered < upto) {
        uint32_t n = DL_MIN(upto - l->n_offered, ENG_OFFER_MOST);
        eng_offer_write(&c->out, l->n_offered, l->offers + l->n_offered, n);
        l->n_offered += n;
        int err = eng_link_send(&p->link, &c->out);
        if (err)
            return err == DL_EPEER ? eng_cluster_lost(c, err) : err;
    }
    return DL_OK;
}

/* Weight by weight over all workers, so that what they share of a tensor is read from the disk once. */
int eng_cluster_offer(struct eng_cluster *c)
{
    if (c->e->model->made) {
        eng_cluster_phase(c, "making weights up");
        return DL_OK;
    }
    struct eng_hash *hash = eng_hash_create();
    void *stage = dl_calloc(1, STAGE_BYTES);
    int err = hash && stage ? DL_OK : DL_ENOMEM;
    uint32_t n = 0;
    uint64_t held = 0, done = 0, total = dl_model_weight_bytes(c->e->model);
    eng_cluster_phase(c, "loading weights");
    for (uint32_t i = 0; i < c->n_peers; i++)
        n = DL_MAX(n, c->peers[i].load.n);
    for (uint32_t w = 0; !err && w < n; w++) {
        for (uint32_t i = 0; !err && i < c->n_peers; i++) {
            struct eng_peer *p = &c->peers[i];
            if (w >= p->load.n)
                continue;
            err = offer_one(c, p, w, hash, stage);
            held += p->load.offers[w].bytes;
            done += p->load.offers[w].bytes;
        }
        bool send = held >= OFFER_BYTES || w + 1 == n;
        for (uint32_t i = 0; !err && send && i < c->n_peers; i++)
            err = send_offers(c, &c->peers[i], DL_MIN(w + 1, c->peers[i].load.n));
        held = send ? 0 : held;
        if (c->e->progress)
            c->e->progress(c->e->progress_ud, "comparing weights", DL_MIN(done, total - 1), total);
    }
    if (!err && c->e->progress)
        c->e->progress(c->e->progress_ud, "comparing weights", total, total);
    eng_hash_destroy(&hash);
    free(stage);
    return err;
}

/* ------------------------------------------------------------------------------------------------- sending */

static int send_chunk(struct eng_cluster *c, struct eng_peer *p)
{
    struct eng_peer_load *l = &p->load;
    int err = l->at ? DL_OK : eng_source_need(c->e->model, &l->weights[l->next], &l->source);
    if (err)
        return err;
    size_t n = (size_t)DL_MIN(ENG_CHUNK_BYTES, l->source.bytes - l->at);
    uint8_t *room;
    eng_data_write(&c->out, l->next, l->at, n, &room);
    if (room)
        eng_source_read(&l->source, l->at, room, n);
    err = eng_link_send(&p->link, &c->out);
    if (err)
        return err == DL_EPEER ? eng_cluster_lost(c, err) : err;
    l->sent += n;
    l->at += n;
    if (l->at == l->source.bytes) {
        dl_model_drop_pages(c->e->model, &l->source.t);
        l->next = next_wanted(l, l->next + 1);
        l->at = 0;
    }
    return DL_OK;
}

/* What a worker asked for, in bytes; what is known of a later WANT comes on top. */
static uint64_t asked_bytes(const struct eng_peer_load *l)
{
    uint64_t total = l->sent - l->at;
    for (uint32_t w = l->next; w < l->n; w++)
        total += is_wanted(l, w) ? l->offers[w].bytes : 0;
    return total;
}

static void report(struct eng_cluster *c, bool end)
{
    dl_engine *e = c->e;
    uint64_t done = 0, total = 0;
    if (!e->progress)
        return;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct eng_peer_load *l = &c->peers[i].load;
        struct dl_node_info info;
        dl_transport_node_info(c->t, (int)i + 1, &info);
        c->sending[i] = (struct dl_sending){info.name, l->got, asked_bytes(l)};
        done += l->got;
        total += c->sending[i].total;
    }
    if (total && e->opts.sending)
        e->opts.sending(e->progress_ud, c->sending, end ? 0 : c->n_peers);
    else if (total)
        e->progress(e->progress_ud, "sending weights", end ? total : DL_MIN(done, total - 1), total);
}

int eng_cluster_serve(struct eng_cluster *c)
{
    int err = DL_OK;
    uint64_t reported = 0;
    c->sending = dl_calloc(c->n_peers, sizeof *c->sending);
    if (!c->sending)
        err = DL_ENOMEM;
    for (bool all = false; !err && !all;) {
        bool moved = false;
        for (uint32_t i = 0; !err && i < c->n_peers; i++) {
            struct eng_peer_load *l = &c->peers[i].load;
            if (l->next < l->n && l->sent - l->got < ENG_WINDOW_BYTES) {
                err = send_chunk(c, &c->peers[i]);
                moved = true;
            }
        }
        struct eng_peer *from = NULL;
        if (!err)
            err = take_one(c, moved ? 0 : IDLE_NS, &from);
        if (!err && dl_now_ns() - reported > UINT64_C(50000000)) { /* after an error there is no transport to ask for names */
            report(c, false);
            reported = dl_now_ns();
        }
        all = true;
        for (uint32_t i = 0; i < c->n_peers; i++)
            all = all && c->peers[i].done;
    }
    if (!err)
        report(c, true);
    return err;
}
