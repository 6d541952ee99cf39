/* SPDX-License-Identifier: MIT
 *
 * tests/heal_rig.h: a cluster_rig.h whose workers come and go: an engine with a way to connect, and the text that has to come out of it
 * whatever happens.
 */
#ifndef TESTS_HEAL_RIG_H
#define TESTS_HEAL_RIG_H

#include "cluster_rig.h"

#define S UINT64_C(1000000000)
#define N_GEN 6
#define N_MOST 5

/* A rig whose workers come and go. */
struct heal {
    struct rig r;
    bool out[N_MOST];     /* worker w cannot be had */
    bool answers[N_MOST]; /* is_back says so */
    bool working[N_MOST];
    struct dl_loopback_faults faults; /* of the first cluster, and of those after it while again > 0 */
    int again, connects, stop_at, polls;
    void *(*work[N_MOST])(void *worker); /* what worker w does when it is connected to; NULL: rig_work */
    bool dies_for_good;
    bool some;                         /* may be started without those that are out */
    uint32_t forgiven_ms, patience_ms; /* 0: of patience 300 */
    int spares;                        /* devices for the root, once its own has failed */
    int errs[N_MOST];                  /* the last of each worker's */
    enum dl_health states[64];
    int n_states;
    struct dl_engine_health health;
};

static inline void join_workers(struct heal *h)
{
    for (int w = 0; w < h->r.n - 1; w++) {
        if (!h->working[w])
            continue;
        pthread_join(h->r.workers[w + 1].thread, NULL);
        h->errs[w] = h->r.workers[w + 1].err;
        h->working[w] = false;
    }
}

static inline int heal_connect(void *ud, const bool *wanted, bool all, uint32_t *who, dl_transport **out)
{
    struct heal *h = ud;
    dl_transport *t[RIG_MOST];
    int n = 1;
    join_workers(h);
    for (int w = 0; w < h->r.n - 1; w++) {
        if (all && h->out[w])
            return dl_fail(DL_EPEER, "test: worker %d is not there", w);
        if (wanted[w] && !h->out[w])
            who[n++ - 1] = (uint32_t)w;
    }
    const bool faulty = !h->connects++ || h->again-- > 0;
    struct dl_loopback_faults f = h->faults;
    for (int i = 1; faulty && i < n; i++) /* the same worker, whatever its number is now */
        if ((int)who[i - 1] == h->faults.die_node - 1)
            f.die_node = i;
    assert_int_equal(dl_loopback_open(n, faulty ? &f : NULL, t), 0);
    for (int i = 1; i < n; i++) {
        struct rig_worker *w = &h->r.workers[who[i - 1] + 1];
        w->t = t[i];
        w->err = 1;
        void *(*work)(void *) = h->work[who[i - 1]];
        assert_int_equal(pthread_create(&w->thread, NULL, work ? work : rig_work, w), 0);
        h->working[who[i - 1]] = true;
    }
    if (faulty && h->dies_for_good)
        h->out[h->faults.die_node - 1] = true;
    *out = t[0];
    return DL_OK;
}

static inline bool heal_is_back(void *ud, uint32_t w)
{
    return ((struct heal *)ud)->answers[w];
}

static inline bool heal_stop(void *ud)
{
    struct heal *h = ud;
    return h->stop_at && ++h->polls >= h->stop_at;
}

static inline void heal_changed(void *ud, const struct dl_engine_health *now)
{
    struct heal *h = ud;
    if (h->n_states < (int)DL_COUNT_OF(h->states))
        h->states[h->n_states++] = now->state;
    h->health = *now;
    if (now->state == DL_HEALTH_HEALING)
        atomic_store(&rig_fault.noticed, true);
}

static inline int heal_replace(void *ud, dl_device **dev)
{
    struct heal *h = ud;
    assert_ptr_equal(*dev, h->r.dev);
    if (!h->spares)
        return DL_EDEVICE;
    h->spares--;
    dl_device_close(dev);
    *dev = h->r.dev = rig_cpu();
    return DL_OK;
}

static inline void heal_open(struct heal *h, const char *path, int n)
{
    *h = (struct heal){0};
    rig_open(&h->r, path, n);
    for (int i = 1; i < n; i++)
        h->r.workers[i].opts.model = h->r.model;
}

/* Somebody watches every load: what is told of workers must not need one that has just died. */
static inline void heal_progress(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    (void)ud;
    assert_true(*phase && done <= total);
}

static inline int heal_start(struct heal *h, struct dl_engine_opts o)
{
    static const char *const names[N_MOST] = {"here", "there", "yonder", "far", "farther"};
    const struct dl_cluster how = {.n_workers = (uint32_t)h->r.n - 1,
                                   .names = names,
                                   .some = h->some,
                                   .connect = heal_connect,
                                   .is_back = heal_is_back,
                                   .stop = heal_stop,
                                   .changed = heal_changed,
                                   .replace = heal_replace,
                                   .ud = h,
                                   .patience_ms = h->patience_ms ? h->patience_ms : 300,
                                   .forgiven_ms = h->forgiven_ms};
    o.model = h->r.model;
    o.devices = &h->r.dev;
    o.n_devices = 1;
    o.cluster = &how;
    o.progress = heal_progress;
    h->connects = h->n_states = h->polls = 0;
    return dl_engine_create(&o, &h->r.engine);
}

/* Looks after it, as a server without work does, until it has connected n times: how long it rests before that depends on the machine. */
static inline void heal_until(struct heal *h, int n)
{
    for (uint64_t t0 = dl_now_ns(); h->connects < n && dl_now_ns() - t0 < 60 * S; dl_sleep_ns(S / 50))
        (void)dl_engine_tend(h->r.engine);
    assert_true(h->connects >= n);
}

static inline void heal_end(struct heal *h)
{
    dl_engine_destroy(&h->r.engine);
    join_workers(h);
}

static inline void heal_close(struct heal *h)
{
    join_workers(h);
    rig_close(&h->r);
}

/* Prompt, a whole row, then token after token. ids (N_GEN). The first error. */
static inline int life(dl_engine *e, const int32_t *prompt, int32_t *ids, float *row)
{
    dl_session *s;
    struct dl_step_item item = {.want = DL_WANT_BEST};
    float *logits;
    struct dl_engine_info info;
    dl_engine_info(e, &info);
    assert_int_equal(dl_session_create(e, &s), 0);
    int err = dl_session_feed(s, prompt, RIG_PROMPT, NULL, NULL, &item);
    int32_t id = err ? 0 : item.top[0].id;
    if (!err)
        err = dl_engine_logits(e, 0, &logits);
    if (!err)
        memcpy(row, logits, info.vocab * sizeof *row);
    for (int i = 0; i < N_GEN && !err; i++) {
        ids[i] = id;
        item =
            (struct dl_step_item){.session = s, .tokens = &ids[i], .n = 1, .want = i % 2 ? DL_WANT_BEST : DL_WANT_LAST};
        err = dl_engine_step(e, &item, 1);
        if (!err)
            id = i % 2 ? item.top[0].id : rig_argmax(item.logits, info.vocab);
    }
    if (!err) {
        assert_int_equal(dl_session_len(s), RIG_PROMPT + N_GEN);
        assert_memory_equal(dl_session_tokens(s) + RIG_PROMPT, ids, N_GEN * sizeof *ids);
    }
    dl_session_destroy(&s);
    return err;
}

static int32_t want[N_GEN], got[N_GEN];
static float want_row[1024], got_row[1024];

static inline void healthy(const char *path)
{
    struct rig r;
    rig_alone(&r, path, rig_opts());
    assert_true(rig_vocab(&r) <= DL_COUNT_OF(want_row));
    assert_int_equal(life(r.engine, r.prompt, want, want_row), 0);
    dl_engine_destroy(&r.engine);
    rig_close(&r);
}

/* What the root said: the workers, in this same process, have words of their own. */
static inline unsigned root_lines(void)
{
    unsigned n = 0;
    pthread_mutex_lock(&rig_logged.lock);
    for (const char *at = rig_logged.text.v; at && *at; at = strchr(at, '\n') + 1)
        n += strncmp(at, "worker: ", 8) != 0;
    pthread_mutex_unlock(&rig_logged.lock);
    return n;
}

#endif
