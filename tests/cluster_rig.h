/* SPDX-License-Identifier: MIT
 *
 * tests/cluster_rig.h: a cluster inside one process: the test thread is the root, each worker has a thread and a CPU device of its own, the
 * loopback transport joins them. Worker threads only record; the test thread asserts.
 */
#ifndef TESTS_CLUSTER_RIG_H
#define TESTS_CLUSTER_RIG_H

#include "common.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "demo.h"
#include "dl/session.h"

#define RIG_MOST 8
#define RIG_PROMPT 14

struct rig_worker {
    pthread_t thread;
    dl_transport *t;
    dl_device *dev;
    struct dl_worker_opts opts;
    int err;
    uint64_t ended_ns;
};

struct rig {
    int n;
    dl_model *model;
    void *bytes; /* of a model that is in memory */
    int32_t prompt[RIG_PROMPT];
    dl_device *dev;
    struct rig_worker workers[RIG_MOST]; /* [1, n) */
    dl_engine *engine;
    uint64_t sent_weights; /* as the progress said */
};

static inline void *rig_work(void *arg)
{
    struct rig_worker *w = arg;
    w->err = dl_worker_run(w->t, w->dev, &w->opts);
    w->ended_ns = dl_now_ns();
    return NULL;
}

static inline void rig_progress(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    struct rig *r = ud;
    (void)done;
    if (!strcmp(phase, "sending weights"))
        r->sent_weights = total;
}

static inline dl_device *rig_cpu(void)
{
    dl_device *dev;
    struct dl_cpu_opts cpu = {.threads = 1};
    assert_int_equal(dl_cpu_open(&cpu, &dev), 0);
    return dev;
}

/* The model, and a device for each node. They outlive any number of starts. */
static inline void rig_open(struct rig *r, const char *path, int n)
{
    *r = (struct rig){.n = n};
    if (path) {
        static const int32_t ids[RIG_PROMPT] = {382, 10, 200, 33, 77, 90, 310, 5, 128, 64, 256, 300, 17, 42};
        memcpy(r->prompt, ids, sizeof ids);
        assert_int_equal(dl_model_open(path, &r->model), 0);
    } else { /* a place in its text: what is not out of that leaves it unmoved */
        static struct eng_demo_text text;
        size_t size;
        text = (struct eng_demo_text){.n_ids = 0};
        eng_demo_text_make(&text);
        for (int i = 0; i < RIG_PROMPT; i++)
            r->prompt[i] = (int32_t)text.ids[i + 5];
        assert_int_equal(dl_demo_make(&r->bytes, &size), 0);
        assert_int_equal(dl_model_open_mem(r->bytes, size, "demo", &r->model), 0);
    }
    r->dev = rig_cpu();
    for (int i = 1; i < n; i++)
        r->workers[i].dev = rig_cpu();
}

static inline struct dl_engine_opts rig_opts(void)
{
    return (struct dl_engine_opts){.ctx = 256, .kv_type = DL_F16, .wire = DL_F32};
}

/* Joins; what dl_engine_create says. */
static inline int rig_start(struct rig *r, struct dl_engine_opts opts, const struct dl_loopback_faults *faults)
{
    dl_transport *t[RIG_MOST];
    assert_int_equal(dl_loopback_open(r->n, faults, t), 0);
    for (int i = 1; i < r->n; i++) {
        r->workers[i].t = t[i];
        r->workers[i].err = 1;
        assert_int_equal(pthread_create(&r->workers[i].thread, NULL, rig_work, &r->workers[i]), 0);
    }
    opts.model = r->model;
    opts.devices = &r->dev;
    opts.n_devices = 1;
    opts.transport = t[0];
    opts.progress = rig_progress;
    opts.progress_ud = r;
    r->sent_weights = 0;
    return dl_engine_create(&opts, &r->engine);
}

/* Ends what rig_start began. */
static inline void rig_stop(struct rig *r)
{
    dl_engine_destroy(&r->engine);
    for (int i = 1; i < r->n; i++)
        pthread_join(r->workers[i].thread, NULL);
}

static inline void rig_close(struct rig *r)
{
    for (int i = 1; i < r->n; i++)
        dl_device_close(&r->workers[i].dev);
    dl_device_close(&r->dev);
    dl_model_close(&r->model);
    free(r->bytes);
}

/* This process alone, for what is to be compared with. */
static inline void rig_alone(struct rig *r, const char *path, struct dl_engine_opts opts)
{
    rig_open(r, path, 1);
    opts.model = r->model;
    opts.devices = &r->dev;
    opts.n_devices = 1;
    assert_int_equal(dl_engine_create(&opts, &r->engine), 0);
}

static inline uint32_t rig_vocab(const struct rig *r)
{
    return dl_model_header(r->model)->vocab;
}

static inline int32_t rig_argmax(const float *v, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best])
            best = i;
    return (int32_t)best;
}

/* Continues the prompt by n tokens, greedily or by `forced`; ids (n) and rows (n + 1, vocab). Returns the first error. */
static inline int rig_continue(struct rig *r, const int32_t *forced, int n, int32_t *ids, float *rows)
{
    dl_session *s;
    float *logits;
    const uint32_t vocab = rig_vocab(r);
    assert_int_equal(dl_session_create(r->engine, &s), 0);
    int err = dl_session_sync(s, r->prompt, RIG_PROMPT, NULL, NULL, &logits);
    for (int i = 0; !err; i++) {
        memcpy(rows + (size_t)i * vocab, logits, vocab * sizeof *logits);
        if (i == n)
            break;
        ids[i] = rig_argmax(logits, vocab);
        err = dl_session_eval(s, forced ? forced[i] : ids[i], &logits);
    }
    dl_session_destroy(&s);
    return err;
}

static inline double rig_nmse(const float *a, const float *ref, size_t n)
{
    double err = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        err += ((double)a[i] - (double)ref[i]) * ((double)a[i] - (double)ref[i]);
        sum += (double)ref[i] * (double)ref[i];
    }
    assert_true(sum > 0);
    return err / sum;
}

/* A device that breaks, or rests once, at its at-th submit from now: the only one at a time. Rests that others are to notice last until
 * `noticed`: how long that takes depends on the machine. */
static struct rig_fault {
    const struct dl_device_fns *sound;
    struct dl_device_fns fns;
    uint64_t submitted, at;
    uint64_t slow_ns; /* at most so long; 0: it breaks */
    atomic_bool noticed;
} rig_fault;

static inline int rig_fault_submit(dl_device *dev, dl_prog *prog, const struct dl_run_args *args, uint64_t wait,
                                   uint64_t signal)
{
    if (++rig_fault.submitted == rig_fault.at) {
        if (!rig_fault.slow_ns)
            return dl_fail(DL_EDEVICE, "test: this device has broken");
        for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < rig_fault.slow_ns && !atomic_load(&rig_fault.noticed);)
            dl_sleep_ns(UINT64_C(5000000));
    }
    return rig_fault.sound->submit(dev, prog, args, wait, signal);
}

static inline void rig_fault_begin(dl_device *dev)
{
    rig_fault.sound = dev->fns;
    rig_fault.fns = *dev->fns;
    rig_fault.fns.submit = rig_fault_submit;
    dev->fns = &rig_fault.fns;
}

static inline void rig_fault_at(uint64_t at, uint64_t slow_ns)
{
    rig_fault.submitted = 0;
    rig_fault.at = at;
    rig_fault.slow_ns = slow_ns;
    atomic_store(&rig_fault.noticed, false);
}

static inline void rig_fault_end(dl_device *dev)
{
    dev->fns = rig_fault.sound;
}

/* Collects log lines of all threads. */
struct rig_log {
    pthread_mutex_t lock;
    struct dl_str text;
    unsigned errors;
};
static struct rig_log rig_logged = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline void rig_log_sink(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud;
    pthread_mutex_lock(&rig_logged.lock);
    (void)dl_str_addz(&rig_logged.text, line);
    (void)dl_str_addz(&rig_logged.text, "\n");
    rig_logged.errors += level == DL_LOG_ERROR;
    pthread_mutex_unlock(&rig_logged.lock);
}
/* Begins to collect, or forgets what was collected. Only while no worker runs. */
static inline void rig_log_begin(void)
{
    dl_log_set(rig_log_sink, NULL, DL_LOG_WARN);
    dl_str_finish(&rig_logged.text);
    rig_logged.errors = 0;
}
static inline void rig_log_end(void)
{
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    dl_str_finish(&rig_logged.text);
    rig_logged.errors = 0;
}
static inline bool rig_log_has(const char *text)
{
    pthread_mutex_lock(&rig_logged.lock);
    bool has = rig_logged.text.v && strstr(rig_logged.text.v, text);
    pthread_mutex_unlock(&rig_logged.lock);
    return has;
}
static inline unsigned rig_log_errors(void)
{
    pthread_mutex_lock(&rig_logged.lock);
    unsigned n = rig_logged.errors;
    pthread_mutex_unlock(&rig_logged.lock);
    return n;
}

#endif
