/* SPDX-License-Identifier: MIT
 *
 * tests/transport_bench.h: what the tests of the transport share: how collectives ended, recorded by the transport's thread and read
 * by the test's, and a small cluster that the test thread drives.
 */
#ifndef TESTS_TRANSPORT_BENCH_H
#define TESTS_TRANSPORT_BENCH_H

#include "common.h"

#include <pthread.h>
#include <time.h>

#include "dl/transport.h"

enum { MOST = 8, ROUNDS = 40 };
#define MS ((uint64_t)1000000)

/* What a node's collectives ended with, in order. */
struct ends {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    unsigned n;
    int status[ROUNDS];
    uint64_t at_ns[ROUNDS];
    int order_broken;
};
struct end_arg {
    struct ends *ends;
    unsigned number;
};

static inline void ends_init(struct ends *e)
{
    memset(e, 0, sizeof *e);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->cond, NULL);
}

static inline void ends_finish(struct ends *e)
{
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->cond);
}

static inline void ended(void *ud, int status)
{
    struct end_arg *a = ud;
    struct ends *e = a->ends;
    pthread_mutex_lock(&e->lock);
    e->order_broken |= a->number != e->n;
    e->status[e->n] = status;
    e->at_ns[e->n++] = dl_now_ns();
    pthread_cond_broadcast(&e->cond);
    pthread_mutex_unlock(&e->lock);
}

static inline void ends_wait(struct ends *e, unsigned n)
{
    pthread_mutex_lock(&e->lock);
    while (e->n < n)
        pthread_cond_wait(&e->cond, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

static inline unsigned ends_count(struct ends *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = e->n;
    pthread_mutex_unlock(&e->lock);
    return n;
}

static inline void pause_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* n nodes that the test thread drives: node i's k-th collective is one all-gather of 8 bytes. */
struct bench {
    int n;
    dl_transport *t[MOST];
    struct ends ends[MOST];
    struct end_arg args[MOST][ROUNDS];
    unsigned started[MOST];
    uint64_t data[MOST][ROUNDS][MOST];
};

static inline struct bench *bench_open(int n, const struct dl_loopback_faults *faults)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->n = n;
    assert_int_equal(dl_loopback_open(n, faults, b->t), DL_OK);
    for (int i = 0; i < n; i++)
        ends_init(&b->ends[i]);
    return b;
}

static inline int bench_start_as(struct bench *b, int node, enum dl_xfer_kind kind, size_t bytes)
{
    unsigned k = b->started[node]++;
    b->data[node][k][node] = 1000u * k + (unsigned)node;
    b->args[node][k] = (struct end_arg){&b->ends[node], k};
    struct dl_xfer x = {kind, b->data[node][k], bytes, sizeof(uint64_t)};
    return dl_transport_start(b->t[node], &x, ended, &b->args[node][k]);
}

static inline void bench_start(struct bench *b, int node)
{
    assert_int_equal(bench_start_as(b, node, DL_XFER_ALL_GATHER, sizeof(uint64_t)), DL_OK);
}

static inline void bench_close(struct bench *b)
{
    for (int i = 0; i < b->n; i++) {
        dl_transport_close(&b->t[i]);
        assert_int_equal(b->ends[i].n, b->started[i]);
        assert_false(b->ends[i].order_broken);
        ends_finish(&b->ends[i]);
    }
    free(b);
}

/* Who is lost is no error to the transport: its callers know what that means. */
static struct test_log log_seen;
static inline void log_any(void *ud, enum dl_log_level level, const char *line)
{
    (void)level;
    test_log_sink(ud, DL_LOG_ERROR, line);
}
static inline void log_catch(void)
{
    log_seen = (struct test_log){0};
    dl_log_set(log_any, &log_seen, DL_LOG_DEBUG);
}
/* After everything is closed: the sink is no place to change while a dispatcher may log. */
static inline void log_release(const char *says)
{
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    if (says && !strstr(log_seen.last, says))
        fail_msg("the log says: %s", log_seen.last);
}

#endif
