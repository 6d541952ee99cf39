/* SPDX-License-Identifier: MIT
 *
 * transport/probe.c: measures the network with the collectives that it will carry, over any transport. All nodes run the same ones, and decide on
 * figures that all have (is it fast enough for larger slices?).
 */
#include <stdlib.h>
#include <string.h>

#include "inside.h"

enum {
    WARM_UP = 4,
    SMALL_ROUNDS = 33,
    LARGE_ROUNDS = 4,
    SMALL_BYTES = 8,
    LARGE_LEAST = 16 << 10,
    LARGE_MOST = 1 << 20
};
#define LONG_ENOUGH_NS ((uint64_t)20000000) /* of one round of large slices: more tell no more */

struct probe {
    dl_transport *t;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned n_done;
    int status;
    unsigned char *data; /* n_nodes slices of LARGE_MOST */
};

static void done(void *ud, int status)
{
    struct probe *p = ud;
    pthread_mutex_lock(&p->lock);
    p->n_done++;
    p->status = status;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

static int exchange(struct probe *p, enum dl_xfer_kind kind, size_t bytes, uint64_t *ns)
{
    uint64_t t0 = dl_now_ns();
    p->n_done = 0;
    int err = dl_transport_start(p->t, &(struct dl_xfer){kind, p->data, bytes, LARGE_MOST}, done, p);
    if (err)
        return err;
    pthread_mutex_lock(&p->lock);
    while (!p->n_done)
        pthread_cond_wait(&p->changed, &p->lock);
    err = p->status;
    pthread_mutex_unlock(&p->lock);
    *ns = dl_now_ns() - t0;
    return err;
}

static int by_size(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* The median of n rounds. */
static int measure(struct probe *p, size_t bytes, unsigned n, uint64_t *ns)
{
    uint64_t v[SMALL_ROUNDS];
    int err = DL_OK;
    for (unsigned i = 0; i < n && !err; i++)
        err = exchange(p, DL_XFER_ALL_GATHER, bytes, &v[i]);
    if (!err) {
        qsort(v, n, sizeof *v, by_size);
        *ns = v[n / 2];
    }
    return err;
}

/* What the slowest node saw is what all have to reckon with. */
static int slowest(struct probe *p, uint64_t *v)
{
    const int n = p->t->n_nodes;
    uint64_t ns;
    memcpy(p->data + (size_t)p->t->node * LARGE_MOST, v, sizeof *v);
    int err = exchange(p, DL_XFER_ALL_GATHER, sizeof *v, &ns);
    for (int i = 0; i < n && !err; i++) {
        uint64_t theirs;
        memcpy(&theirs, p->data + (size_t)i * LARGE_MOST, sizeof theirs);
        *v = DL_MAX(*v, theirs);
    }
    return err;
}

static int probe(struct probe *p, struct dl_link_speed *out)
{
    uint64_t warm, small = 0, large = 0;
    int err = measure(p, SMALL_BYTES, WARM_UP, &warm);
    if (!err)
        err = measure(p, SMALL_BYTES, SMALL_ROUNDS, &small);
    if (!err)
        err = slowest(p, &small);
    size_t bytes = LARGE_LEAST;
    for (; !err; bytes *= 4) {
        err = measure(p, bytes, LARGE_ROUNDS, &large);
        if (!err)
            err = slowest(p, &large);
        if (large > LONG_ENOUGH_NS || bytes >= LARGE_MOST)
            break; /* all know the same time, so all stop here */
    }
    if (err)
        return err;
    const double payload = (double)bytes * (p->t->n_nodes - 1);
    out->latency_ns = small;
    out->bytes_per_s = payload * 1e9 / (double)(large > small ? large - small : 1);
    return DL_OK;
}

int dl_transport_probe(dl_transport *t, struct dl_link_speed *out)
{
    *out = (struct dl_link_speed){0};
    if (t->n_nodes < 2)
        return DL_OK;
    struct probe p = {.t = t};
    p.data = dl_calloc((size_t)t->n_nodes, LARGE_MOST);
    if (!p.data)
        return DL_ENOMEM;
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    if (t->fns->ping)
        t->fns->ping(t);
    int err = probe(&p, out);
    pthread_cond_destroy(&p.changed);
    pthread_mutex_destroy(&p.lock);
    free(p.data);
    return err;
}
