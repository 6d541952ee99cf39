/* SPDX-License-Identifier: MIT
 *
 * transport/watch.c: which workers could be had, asked of themselves: a connection with all that a root shows (key, protocol, build), to which
 * a free worker answers with its hello and others with why not. Everything happens on the thread of a loop; callers and it share
 * two numbers and a text per worker.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dial.h"

#define LOOK_NS ((uint64_t)1000000000)      /* from the end of one look to the next */
#define ASKED_NS ((uint64_t)5 * 1000000000) /* nobody has wanted to know for so long: it is not looked at */
#define FRESH_NS ((uint64_t)3 * 1000000000) /* what is older than that is not known any more */
#define SILENT_NS ((uint64_t)2 * 1000000000)
#define TICK_MS 100

struct looked_at {
    struct dl_tcp_watch *w;
    struct tp_dial dial;
    struct tp_link *link; /* connected: ours from there on */
    bool looking;
    uint64_t next_ns, deadline_ns;
    uint8_t text[1024], id[TP_ID_BYTES];     /* id: whose answer the last one was */
    atomic_uint_least64_t asked_ns, free_ns; /* any thread: when somebody wanted to know, and when it last was free */
    char refusal[TP_WHY_MOST + 1];           /* (w->lock): why it refuses; empty: it does not */
    uint64_t refused_ns;                     /* (w->lock): when */
};

struct dl_tcp_watch {
    struct tp_loop *loop;
    struct tp_conf conf;
    int n;
    struct looked_at *v;
    uv_timer_t tick;
    unsigned n_open; /* the timer, and links of ours */
    pthread_mutex_t lock;
};

/* A look is over. */
static void looked(struct looked_at *k, bool is_free, const char *refusal)
{
    uint64_t now = dl_now_ns();
    k->looking = false;
    k->link = NULL;
    k->next_ns = now + LOOK_NS;
    atomic_store_explicit(&k->free_ns, is_free ? now : 0, memory_order_relaxed);
    pthread_mutex_lock(&k->w->lock);
    snprintf(k->refusal, sizeof k->refusal, "%s", refusal);
    k->refused_ns = now;
    pthread_mutex_unlock(&k->w->lock);
}

static void look_failed(struct tp_dial *d, int err, const char *why)
{
    struct looked_at *k = d->ud;
    const bool refuses = err == DL_EUNSUP || err == DL_EFORMAT || err == DL_EINVAL;
    dl_log(DL_LOG_DEBUG, "transport: %s cannot be had: %s", d->target, why);
    looked(k, false, refuses ? why : "");
}

static void link_open(struct tp_link *l)
{
    struct looked_at *k = l->ud;
    struct tp_hello h = {.purpose = TP_FOR_LOOK};
    tp_dial_hello(l, &k->w->conf, &h);
}

static int link_begin(struct tp_link *l, const struct tp_frame *f, void **dest)
{
    struct looked_at *k = l->ud;
    if ((f->type != TP_REFUSE && f->type != TP_HELLO) || f->length > sizeof k->text) {
        tp_link_fail(l, DL_EFORMAT, "it answers what it was not asked");
        return DL_EFORMAT;
    }
    *dest = k->text;
    return DL_OK;
}

/* Is it the one that was free at the look before, as far as it says? Once told apart, the new one is known. */
static bool is_same(struct looked_at *k, const uint8_t id[TP_ID_BYTES])
{
    static const uint8_t unsaid[TP_ID_BYTES];
    const uint64_t seen = atomic_load_explicit(&k->free_ns, memory_order_relaxed);
    const bool other = seen && dl_now_ns() < seen + FRESH_NS && memcmp(k->id, id, TP_ID_BYTES) != 0 &&
                       memcmp(k->id, unsaid, TP_ID_BYTES) != 0 && memcmp(id, unsaid, TP_ID_BYTES) != 0;
    memcpy(k->id, id, TP_ID_BYTES);
    return !other;
}

static int link_end(struct tp_link *l, const struct tp_frame *f)
{
    struct looked_at *k = l->ud;
    struct tp_hello h;
    char why[TP_WHY_MOST + 1] = "";
    bool is_free = f->type == TP_HELLO && !tp_hello_get(k->text, f->length, &h) && h.purpose == TP_ANSWER;
    if (is_free && !is_same(k, h.id))
        is_free = false;
    if (f->type == TP_REFUSE && f->flags != TP_NO_BUSY)
        tp_text_get(k->text, f->length, why, TP_WHY_MOST);
    tp_link_close(l);
    looked(k, is_free, why);
    return DL_ECANCELED;
}

static void link_sent(struct tp_link *l, uint64_t token, bool ok)
{
    (void)l, (void)token, (void)ok;
}

static void link_lost(struct tp_link *l, int err, const char *why)
{
    struct looked_at *k = l->ud;
    look_failed(&k->dial, err, why);
}

static void link_gone(struct tp_link *l)
{
    ((struct looked_at *)l->ud)->w->n_open--;
}

static const struct tp_link_fns link_fns = {
    .open = link_open,
    .begin = link_begin,
    .end = link_end,
    .sent = link_sent,
    .lost = link_lost,
    .gone = link_gone,
};

static void dial_connected(struct tp_dial *d, struct tp_link *l)
{
    struct looked_at *k = d->ud;
    k->link = l;
    l->fns = &link_fns;
    l->ud = k;
    k->w->n_open++;
}

static void give_up(struct looked_at *k)
{
    struct tp_link *l = k->link;
    tp_dial_stop(&k->dial);
    if (l)
        tp_link_close(l);
    looked(k, false, "");
}

static void tick(uv_timer_t *timer)
{
    struct dl_tcp_watch *w = timer->data;
    uint64_t now = dl_now_ns();
    for (int i = 0; i < w->n; i++) {
        struct looked_at *k = &w->v[i];
        uint64_t asked = atomic_load_explicit(&k->asked_ns, memory_order_relaxed);
        if (k->looking && now >= k->deadline_ns) {
            give_up(k);
        } else if (!k->looking && asked && now < asked + ASKED_NS && now >= k->next_ns && !k->dial.n_open) {
            k->looking = true;
            k->deadline_ns = now + SILENT_NS;
            tp_dial_start(&k->dial);
        }
    }
}

static void handle_closed(uv_handle_t *handle)
{
    ((struct dl_tcp_watch *)handle->data)->n_open--;
}

static void begin(struct dl_tcp_watch *w, const char *const *workers)
{
    for (int i = 0; i < w->n; i++) {
        struct looked_at *k = &w->v[i];
        k->w = w;
        k->dial = (struct tp_dial){.loop = w->loop,
                                   .conf = &w->conf,
                                   .purpose = TP_FOR_LOOK,
                                   .connected = dial_connected,
                                   .failed = look_failed,
                                   .ud = k};
        snprintf(k->dial.target, sizeof k->dial.target, "%s", workers[i]);
    }
    (void)uv_timer_init(tp_loop_uv(w->loop), &w->tick);
    w->tick.data = w;
    w->n_open++;
}

int dl_tcp_watch_open(const char *const *workers, int n, const struct dl_tcp_opts *opts, dl_tcp_watch **out)
{
    *out = NULL;
    if (n < 0 || n >= TP_NODES_MOST)
        return dl_fail(DL_EINVAL, "transport: %d workers: up to %d are possible", n, TP_NODES_MOST - 1);
    dl_tcp_watch *w = dl_calloc(1, sizeof *w);
    if (!w)
        return DL_ENOMEM;
    pthread_mutex_init(&w->lock, NULL);
    w->n = n;
    w->v = dl_calloc((size_t)n + 1, sizeof *w->v);
    int err = w->v ? tp_conf_init(&w->conf, opts) : DL_ENOMEM;
    if (!err)
        err = tp_loop_create(0, &w->loop);
    if (!err) {
        tp_loop_enter(w->loop);
        begin(w, workers);
        int code = tp_timer_start(w->loop, &w->tick, tick, TICK_MS);
        tp_loop_leave(w->loop);
        err = code ? dl_fail(DL_EIO, "transport: no timer: %s", uv_strerror(code)) : DL_OK;
    }
    if (err)
        dl_tcp_watch_close(&w);
    *out = w;
    return err;
}

bool dl_tcp_watch_free(dl_tcp_watch *w, int i)
{
    if (i < 0 || i >= w->n)
        return false;
    uint64_t now = dl_now_ns(), seen = atomic_load_explicit(&w->v[i].free_ns, memory_order_relaxed);
    atomic_store_explicit(&w->v[i].asked_ns, now, memory_order_relaxed);
    return seen && now < seen + FRESH_NS;
}

bool dl_tcp_watch_refuses(dl_tcp_watch *w, int i, char *why, size_t cap)
{
    *why = 0;
    if (i < 0 || i >= w->n)
        return false;
    pthread_mutex_lock(&w->lock);
    if (dl_now_ns() < w->v[i].refused_ns + FRESH_NS)
        snprintf(why, cap, "%s", w->v[i].refusal);
    pthread_mutex_unlock(&w->lock);
    return *why;
}

/* Nothing of it is left on the loop. */
static void end(struct dl_tcp_watch *w)
{
    for (int i = 0; i < w->n; i++)
        give_up(&w->v[i]);
    uv_close((uv_handle_t *)&w->tick, handle_closed);
    for (;;) {
        unsigned n = w->n_open;
        for (int i = 0; i < w->n; i++)
            n += w->v[i].dial.n_open;
        if (!n)
            break;
        tp_loop_turn(w->loop, true);
    }
}

void dl_tcp_watch_close(dl_tcp_watch **watch)
{
    dl_tcp_watch *w = *watch;
    *watch = NULL;
    if (!w)
        return;
    if (w->loop) {
        tp_loop_enter(w->loop);
        end(w);
        tp_loop_leave(w->loop);
    }
    tp_loop_destroy(&w->loop);
    tp_conf_finish(&w->conf);
    pthread_mutex_destroy(&w->lock);
    free(w->v);
    free(w);
}
