/* SPDX-License-Identifier: MIT
 *
 * tests/tcp_bench.h: what the tests of the TCP transport share: a cluster inside the test's process, over loopback addresses and ports
 * that the system chooses, and a log that counts lines.
 */
#ifndef TESTS_TCP_BENCH_H
#define TESTS_TCP_BENCH_H

#include "common.h"

#include <pthread.h>
#include <time.h>

#include "dl/transport.h"

enum { NODES_MOST = 8 };
#define MS ((uint64_t)1000000)
#define SEC ((uint64_t)1000000000)

static inline void pause_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / SEC), .tv_nsec = (long)(ns % SEC)};
    nanosleep(&t, NULL);
}

struct cluster {
    int n;
    dl_tcp_listener *l[NODES_MOST]; /* of node i; l[0] is not used */
    dl_transport *t[NODES_MOST];
};

static const struct dl_key test_key = {{1, 2, 3, 4, 5, 6, 7, 8, 9}};

/* For those who are all alive: however long the machine lets one of their threads wait, nobody is given up. */
static inline struct dl_tcp_opts unhurried(const struct dl_tcp_opts *opts)
{
    struct dl_tcp_opts o = *opts;
    o.handshake_ms = o.dead_ms = 60000;
    return o;
}

static inline void cluster_listen(struct cluster *c, int n, const char *address, const struct dl_tcp_opts *opts)
{
    const struct dl_tcp_opts o = unhurried(opts);
    *c = (struct cluster){.n = n};
    for (int i = 1; i < n; i++)
        assert_int_equal(dl_tcp_listen(address, &o, &c->l[i]), DL_OK);
}

/* The listeners are there. */
static inline void cluster_connect(struct cluster *c, const struct dl_tcp_opts *opts)
{
    const struct dl_tcp_opts o = unhurried(opts);
    const char *workers[NODES_MOST];
    int errs[NODES_MOST];
    for (int i = 1; i < c->n; i++)
        workers[i - 1] = dl_tcp_listener_address(c->l[i]);
    assert_int_equal(dl_tcp_connect(workers, c->n - 1, &o, errs, &c->t[0]), DL_OK);
    assert_int_equal(dl_transport_node(c->t[0]), 0);
    for (int i = 1; i < c->n; i++) {
        assert_int_equal(errs[i - 1], DL_OK);
        assert_int_equal(dl_tcp_accept(c->l[i], 60 * SEC, &c->t[i]), DL_OK);
        assert_int_equal(dl_transport_node(c->t[i]), i);
        assert_int_equal(dl_transport_n_nodes(c->t[i]), c->n);
    }
}

static inline void cluster_open(struct cluster *c, int n, const char *address, const struct dl_tcp_opts *opts)
{
    cluster_listen(c, n, address, opts);
    cluster_connect(c, opts);
}

static inline void cluster_close(struct cluster *c)
{
    for (int i = 0; i < c->n; i++) {
        dl_transport_close(&c->t[i]);
        assert_null(c->t[i]);
    }
    for (int i = 1; i < c->n; i++)
        dl_tcp_listener_close(&c->l[i]);
}

/* One collective, and waiting for it. */
struct end {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned n;
    int status;
    uint64_t at_ns;
};
static inline void end_init(struct end *e)
{
    memset(e, 0, sizeof *e);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->cond, NULL);
}
static inline void end_done(void *ud, int status)
{
    struct end *e = ud;
    pthread_mutex_lock(&e->lock);
    e->n++;
    e->status = e->status ? e->status : status;
    e->at_ns = dl_now_ns();
    pthread_cond_broadcast(&e->cond);
    pthread_mutex_unlock(&e->lock);
}
/* The first status that is none, or 0, when n have ended; 1 when that takes longer than two minutes. */
static inline int end_wait(struct end *e, unsigned n)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += 120;
    int late = 0;
    pthread_mutex_lock(&e->lock);
    while (e->n < n && !late)
        late = pthread_cond_timedwait(&e->cond, &e->lock, &at);
    int status = e->n < n ? 1 : e->status;
    pthread_mutex_unlock(&e->lock);
    return status;
}

/* Lines of the log, from any thread. */
static struct {
    pthread_mutex_t lock;
    unsigned n[DL_LOG_DEBUG + 1];
    char all[16384];
} said = {.lock = PTHREAD_MUTEX_INITIALIZER};

static inline void said_sink(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud;
    pthread_mutex_lock(&said.lock);
    said.n[level]++;
    size_t at = strlen(said.all);
    snprintf(said.all + at, sizeof said.all - at, "%s\n", line);
    pthread_mutex_unlock(&said.lock);
    if (getenv("TEST_VERBOSE"))
        fprintf(stderr, "log: %s\n", line);
}
/* Before any thread; it stays until the end of the program. */
static inline void said_catch(void)
{
    dl_log_set(said_sink, NULL, DL_LOG_INFO);
}
static inline void said_clear(void)
{
    pthread_mutex_lock(&said.lock);
    memset(said.n, 0, sizeof said.n);
    said.all[0] = 0;
    pthread_mutex_unlock(&said.lock);
}
static inline int said_has(const char *text)
{
    pthread_mutex_lock(&said.lock);
    int has = strstr(said.all, text) != NULL;
    pthread_mutex_unlock(&said.lock);
    return has;
}
#define assert_said(text)                                                      \
    do {                                                                       \
        if (!said_has(text))                                                   \
            fail_msg("the log does not say \"%s\", but:\n%s", text, said.all); \
    } while (0)

#endif
