/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport.c: the loopback transport: every collective over 1 to 8 nodes that run at uneven speed, messages, injected
 * delay, a node that dies, closing at bad moments. Threads only record; the test thread asserts.
 */
#include "common.h"

#include <pthread.h>
#include <time.h>

#include "dl/transport.h"
#include "mailbox.h"

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

static void ends_init(struct ends *e)
{
    memset(e, 0, sizeof *e);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->cond, NULL);
}

static void ends_finish(struct ends *e)
{
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->cond);
}

static void ended(void *ud, int status)
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

static void ends_wait(struct ends *e, unsigned n)
{
    pthread_mutex_lock(&e->lock);
    while (e->n < n)
        pthread_cond_wait(&e->cond, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

static unsigned ends_count(struct ends *e)
{
    pthread_mutex_lock(&e->lock);
    unsigned n = e->n;
    pthread_mutex_unlock(&e->lock);
    return n;
}

static void pause_ns(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&t, NULL);
}

/* ---------------------------------------------------------------------------------------------- collectives */

/* A node with a thread of its own that starts ROUNDS collectives, up to `depth` ahead, each in a buffer of its own with canaries. */
struct runner {
    dl_transport *t;
    pthread_t thread;
    struct ends ends;
    struct end_arg args[ROUNDS];
    unsigned char *buf[ROUNDS];
    uint64_t rng;
    unsigned depth;
    int start_err;
};

static enum dl_xfer_kind kind_of(unsigned round)
{
    return (enum dl_xfer_kind)(round % 3);
}
static size_t bytes_of(unsigned round)
{
    return round * 37 % 300;
}
static size_t stride_of(unsigned round, int node)
{
    return bytes_of(round) + (size_t)node * 8 % 24 + 3;
}
static unsigned char value(unsigned round, int node, size_t i)
{
    return (unsigned char)(1 + (round * 31 + (unsigned)node * 7 + i) % 250);
}

static void *run(void *arg)
{
    struct runner *r = arg;
    const int node = dl_transport_node(r->t), n = dl_transport_n_nodes(r->t);
    for (unsigned k = 0; k < ROUNDS && !r->start_err; k++) {
        size_t stride = stride_of(k, node);
        r->buf[k] = calloc((size_t)n, stride);
        for (size_t i = 0; i < bytes_of(k); i++)
            r->buf[k][(size_t)node * stride + i] = value(k, node, i);
        if (k >= r->depth)
            ends_wait(&r->ends, k - r->depth + 1);
        if (test_rand(&r->rng) % 4 == 0)
            pause_ns(test_rand(&r->rng) % 300000);
        r->args[k] = (struct end_arg){&r->ends, k};
        struct dl_xfer x = {kind_of(k), r->buf[k], bytes_of(k), stride};
        r->start_err = dl_transport_start(r->t, &x, ended, &r->args[k]);
    }
    if (!r->start_err)
        ends_wait(&r->ends, ROUNDS);
    dl_transport_close(&r->t); /* fast nodes close while slow ones still wait for their last `done` */
    return NULL;
}

static void check_round(const struct runner *r, unsigned k, int node, int n)
{
    size_t stride = stride_of(k, node);
    for (int from = 0; from < n; from++)
        for (size_t i = 0; i < stride; i++) {
            bool has = kind_of(k) == DL_XFER_ALL_GATHER || from == node ||
                       (kind_of(k) == DL_XFER_BROADCAST ? from == 0 : node == 0);
            unsigned char want = has && i < bytes_of(k) ? value(k, from, i) : 0,
                          got = r->buf[k][(size_t)from * stride + i];
            if (got != want)
                fail_msg("%d nodes, round %u, node %d, slice %d, byte %zu: %u, not %u", n, k, node, from, i, got, want);
        }
}

static void cluster_of(int n, unsigned depth, const struct dl_loopback_faults *faults)
{
    dl_transport *t[MOST];
    struct runner *r = calloc((size_t)n, sizeof *r);
    assert_non_null(r);
    assert_int_equal(dl_loopback_open(n, faults, t), DL_OK);
    for (int i = 0; i < n; i++) {
        r[i].t = t[i];
        r[i].depth = depth;
        r[i].rng = (uint64_t)i + 100 * (uint64_t)n;
        ends_init(&r[i].ends);
        assert_int_equal(pthread_create(&r[i].thread, NULL, run, &r[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(r[i].thread, NULL);
    for (int i = 0; i < n; i++) {
        assert_null(r[i].t);
        assert_int_equal(r[i].start_err, DL_OK);
        assert_int_equal(r[i].ends.n, ROUNDS);
        assert_false(r[i].ends.order_broken);
        for (unsigned k = 0; k < ROUNDS; k++) {
            assert_int_equal(r[i].ends.status[k], DL_OK);
            check_round(&r[i], k, i, n);
            free(r[i].buf[k]);
        }
        ends_finish(&r[i].ends);
    }
    free(r);
}

static void collectives(void **state)
{
    (void)state;
    for (int n = 1; n <= MOST; n++)
        cluster_of(n, n % 2 ? 1 : 5, NULL);
}

static void collectives_late(void **state)
{
    (void)state;
    const struct dl_loopback_faults faults = {.delay_ns = 100000, .jitter_ns = 400000, .seed = 9};
    cluster_of(1, 2, &faults);
    cluster_of(3, 1, &faults);
    cluster_of(5, 8, &faults);
}

/* ------------------------------------------------------------------------------------------ from one thread */

/* n nodes that the test thread drives: node i's k-th collective is one all-gather of 8 bytes. */
struct bench {
    int n;
    dl_transport *t[MOST];
    struct ends ends[MOST];
    struct end_arg args[MOST][ROUNDS];
    unsigned started[MOST];
    uint64_t data[MOST][ROUNDS][MOST];
};

static struct bench *bench_open(int n, const struct dl_loopback_faults *faults)
{
    struct bench *b = calloc(1, sizeof *b);
    assert_non_null(b);
    b->n = n;
    assert_int_equal(dl_loopback_open(n, faults, b->t), DL_OK);
    for (int i = 0; i < n; i++)
        ends_init(&b->ends[i]);
    return b;
}

static int bench_start_as(struct bench *b, int node, enum dl_xfer_kind kind, size_t bytes)
{
    unsigned k = b->started[node]++;
    b->data[node][k][node] = 1000u * k + (unsigned)node;
    b->args[node][k] = (struct end_arg){&b->ends[node], k};
    struct dl_xfer x = {kind, b->data[node][k], bytes, sizeof(uint64_t)};
    return dl_transport_start(b->t[node], &x, ended, &b->args[node][k]);
}

static void bench_start(struct bench *b, int node)
{
    assert_int_equal(bench_start_as(b, node, DL_XFER_ALL_GATHER, sizeof(uint64_t)), DL_OK);
}

static void bench_close(struct bench *b)
{
    for (int i = 0; i < b->n; i++) {
        dl_transport_close(&b->t[i]);
        assert_int_equal(b->ends[i].n, b->started[i]);
        assert_false(b->ends[i].order_broken);
        ends_finish(&b->ends[i]);
    }
    free(b);
}

static struct test_log log_seen;
static void log_catch(void)
{
    log_seen = (struct test_log){0};
    dl_log_set(test_log_sink, &log_seen, DL_LOG_ERROR);
}
/* After everything is closed: the sink is no place to change while a dispatcher may log. */
static void log_release(const char *says)
{
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    if (says && !strstr(log_seen.last, says))
        fail_msg("the log says: %s", log_seen.last);
}

static void waits_for_all(void **state)
{
    (void)state;
    struct bench *b = bench_open(3, NULL);
    bench_start(b, 0);
    bench_start(b, 0);
    bench_start(b, 2);
    pause_ns(5 * MS);
    assert_int_equal(ends_count(&b->ends[0]), 0);
    bench_start(b, 1);
    for (int i = 0; i < 3; i++)
        ends_wait(&b->ends[i], 1);
    assert_int_equal(b->data[2][0][1], 1);
    assert_int_equal(b->data[0][0][2], 2);
    pause_ns(2 * MS);
    assert_int_equal(ends_count(&b->ends[0]), 1);
    bench_start(b, 1);
    bench_start(b, 2);
    ends_wait(&b->ends[0], 2);
    assert_int_equal(b->data[0][1][1], 1001);
    bench_close(b);
}

static void delay_is_kept(void **state)
{
    (void)state;
    const struct dl_loopback_faults faults = {.delay_ns = 100 * MS, .jitter_ns = 20 * MS, .seed = 1};
    struct bench *b = bench_open(2, &faults);
    uint64_t t0 = dl_now_ns();
    for (unsigned k = 0; k < 5; k++) {
        bench_start(b, 0);
        bench_start(b, 1);
    }
    for (int i = 0; i < 2; i++) {
        ends_wait(&b->ends[i], 5);
        for (unsigned k = 0; k < 5; k++)
            assert_true(b->ends[i].at_ns[k] - t0 >= 100 * MS);
        /* All five are on their way at once: latency does not add up. */
        assert_true(b->ends[i].at_ns[4] - t0 < 400 * MS);
    }
    t0 = dl_now_ns();
    char c;
    size_t n;
    assert_int_equal(dl_transport_send(b->t[0], 1, "x", 1), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[1], 0, &c, 1, &n, 5 * MS), DL_ETIMEDOUT);
    assert_int_equal(dl_transport_recv(b->t[1], 0, &c, 1, &n, UINT64_MAX), DL_OK);
    assert_true(dl_now_ns() - t0 >= 100 * MS);
    bench_close(b);
}

static void out_of_step(void **state)
{
    (void)state;
    log_catch();
    struct bench *b = bench_open(2, NULL);
    assert_int_equal(bench_start_as(b, 0, DL_XFER_ALL_GATHER, 8), DL_OK);
    assert_int_equal(bench_start_as(b, 1, DL_XFER_ALL_GATHER, 4), DL_OK);
    assert_int_equal(bench_start_as(b, 0, DL_XFER_ALL_GATHER, 8), DL_OK);
    assert_int_equal(bench_start_as(b, 1, DL_XFER_BROADCAST, 8), DL_OK);
    for (int i = 0; i < 2; i++) {
        ends_wait(&b->ends[i], 2);
        assert_int_equal(b->ends[i].status[0], DL_EINVAL);
        assert_int_equal(b->ends[i].status[1], DL_EINVAL);
    }
    assert_int_equal(b->data[0][0][1], 0);
    bench_close(b);
    log_release("collective 1");
    assert_int_equal(log_seen.n, 2);
}

static void death(void **state)
{
    (void)state;
    log_catch();
    const struct dl_loopback_faults faults = {.die_node = 1, .die_after = 3};
    struct bench *b = bench_open(3, &faults);
    char c;
    size_t n;
    assert_int_equal(dl_transport_send(b->t[1], 0, "w", 1), DL_OK);
    /* 0 is ahead of everyone: its third is pending when 1 dies; its first two are not yet done, but will be. */
    for (unsigned k = 0; k < 3; k++)
        bench_start(b, 0);
    for (unsigned k = 0; k < 4; k++)
        bench_start(b, 1);
    ends_wait(&b->ends[1], 0);
    pause_ns(5 * MS);
    assert_int_equal(ends_count(&b->ends[0]), 0);
    for (unsigned k = 0; k < 4; k++)
        bench_start(b, 2);
    bench_start(b, 0);
    for (int i = 0; i < 3; i++) {
        ends_wait(&b->ends[i], 4);
        for (unsigned k = 0; k < 4; k++)
            assert_int_equal(b->ends[i].status[k], k < 2 ? DL_OK : DL_EPEER);
    }
    assert_int_equal(b->data[2][1][1], 1001);
    /* What it said while it lived is there; then it is gone, for both directions, and for itself everyone is. */
    assert_int_equal(dl_transport_recv(b->t[0], 1, &c, 1, &n, UINT64_MAX), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[0], 1, &c, 1, &n, UINT64_MAX), DL_EPEER);
    assert_int_equal(dl_transport_send(b->t[0], 1, "x", 1), DL_EPEER);
    assert_int_equal(dl_transport_send(b->t[1], 2, "x", 1), DL_EPEER);
    assert_int_equal(dl_transport_recv(b->t[1], 2, &c, 1, &n, UINT64_MAX), DL_EPEER);
    /* The others still talk. */
    assert_int_equal(dl_transport_send(b->t[0], 2, "y", 1), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[2], 0, &c, 1, &n, UINT64_MAX), DL_OK);
    bench_close(b);
    log_release("node 1");
}

/* A lone node that dies: nobody else is left to tell, but its own collectives still end. */
static void death_alone(void **state)
{
    (void)state;
    log_catch();
    const struct dl_loopback_faults faults = {.die_node = 0, .die_after = 1};
    struct bench *b = bench_open(1, &faults);
    bench_start(b, 0);
    ends_wait(&b->ends[0], 1);
    assert_int_equal(b->ends[0].status[0], DL_EPEER);
    bench_close(b);
    log_release("node 0 is gone");
}

/* ------------------------------------------------------------------------------------------------- closing */

static void close_while_pending(void **state)
{
    (void)state;
    log_catch();
    struct bench *b = bench_open(3, NULL);
    for (int i = 0; i < 3; i++)
        bench_start(b, i);
    for (int i = 0; i < 3; i++)
        ends_wait(&b->ends[i], 1);
    bench_start(b, 0);
    bench_start(b, 0);
    bench_start(b, 1);
    dl_transport_close(&b->t[0]);
    assert_null(b->t[0]);
    assert_int_equal(b->ends[0].n, 3); /* close returns after the last `done` */
    assert_int_equal(b->ends[0].status[0], DL_OK);
    assert_int_equal(b->ends[0].status[1], DL_ECANCELED);
    assert_int_equal(b->ends[0].status[2], DL_ECANCELED);
    ends_wait(&b->ends[1], 2);
    assert_int_equal(b->ends[1].status[1], DL_EPEER);
    bench_start(b, 2); /* starts what can no longer be */
    ends_wait(&b->ends[2], 2);
    assert_int_equal(b->ends[2].status[1], DL_EPEER);
    bench_close(b);
    log_release("node 0 is gone");
    assert_int_equal(log_seen.n, 1);
}

/* All have started, one closes before its `done` is due: it does not wait for that, the others get their data. */
static void close_while_on_the_way(void **state)
{
    (void)state;
    log_catch();
    const struct dl_loopback_faults faults = {.delay_ns = 500 * MS};
    struct bench *b = bench_open(2, &faults);
    bench_start(b, 0);
    bench_start(b, 1);
    pause_ns(5 * MS);
    uint64_t t0 = dl_now_ns();
    dl_transport_close(&b->t[0]);
    assert_true(dl_now_ns() - t0 < 400 * MS);
    assert_int_equal(b->ends[0].status[0], DL_ECANCELED);
    ends_wait(&b->ends[1], 1);
    assert_int_equal(b->ends[1].status[0], DL_OK);
    assert_int_equal(b->data[1][0][0], 0);
    bench_close(b);
    log_release(NULL);
    assert_int_equal(log_seen.n, 0);
}

struct receiver {
    dl_transport *t;
    int from, err;
};
static void *receive(void *arg)
{
    struct receiver *r = arg;
    char c;
    size_t n;
    r->err = dl_transport_recv(r->t, r->from, &c, 1, &n, UINT64_MAX);
    return NULL;
}

/* A thread waits for a message: closing its own node and losing the peer both wake it. */
static void close_wakes_receivers(void **state)
{
    (void)state;
    log_catch();
    dl_transport *t[3];
    pthread_t thread[2];
    assert_int_equal(dl_loopback_open(3, NULL, t), DL_OK);
    struct receiver r[2] = {{t[0], 1, 1}, {t[2], 0, 1}};
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, receive, &r[i]), 0);
    pause_ns(10 * MS);
    dl_transport_close(&t[0]);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    assert_true(r[0].err == DL_ECANCELED);
    assert_true(r[1].err == DL_EPEER);
    dl_transport_close(&t[0]);
    dl_transport_close(&t[1]);
    dl_transport_close(&t[2]);
    log_release("node 2 has lost node 0");
}

/* ------------------------------------------------------------------------------------------------ messages */

static void messages(void **state)
{
    (void)state;
    log_catch();
    struct bench *b = bench_open(3, NULL);
    char buf[16];
    size_t n = 77;
    assert_int_equal(dl_transport_recv(b->t[1], 0, buf, sizeof buf, &n, 0), DL_ETIMEDOUT);
    assert_int_equal(dl_transport_recv(b->t[1], 0, buf, sizeof buf, &n, 2 * MS), DL_ETIMEDOUT);
    assert_int_equal(log_seen.n, 0);
    assert_int_equal(dl_transport_send(b->t[0], 1, "first", 5), DL_OK);
    assert_int_equal(dl_transport_send(b->t[2], 1, "other", 5), DL_OK);
    assert_int_equal(dl_transport_send(b->t[0], 1, NULL, 0), DL_OK);
    assert_int_equal(dl_transport_send(b->t[0], 1, "third!", 6), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[1], 0, buf, 4, &n, 0), DL_ELIMIT);
    assert_int_equal(n, 5);
    assert_int_equal(dl_transport_recv(b->t[1], 0, buf, 5, &n, 0), DL_OK);
    assert_int_equal(n, 5);
    assert_memory_equal(buf, "first", 5);
    assert_int_equal(dl_transport_recv(b->t[1], 0, NULL, 0, &n, 0), DL_OK);
    assert_int_equal(n, 0);
    assert_int_equal(dl_transport_recv(b->t[1], 0, buf, sizeof buf, &n, 0), DL_OK);
    assert_memory_equal(buf, "third!", 6);
    assert_int_equal(dl_transport_recv(b->t[1], 2, buf, sizeof buf, &n, 0), DL_OK);
    assert_memory_equal(buf, "other", 5);
    assert_int_equal(dl_transport_send(b->t[0], 0, "x", 1), DL_EINVAL);
    assert_int_equal(dl_transport_send(b->t[0], 3, "x", 1), DL_EINVAL);
    assert_int_equal(dl_transport_recv(b->t[0], -1, buf, 1, &n, 0), DL_EINVAL);
    assert_int_equal(log_seen.n, 3);
    /* Left unread on purpose: closing frees it. */
    assert_int_equal(dl_transport_send(b->t[0], 1, "unread", 6), DL_OK);
    bench_close(b);
    log_release(NULL);
}

static void unread_messages_are_bounded(void **state)
{
    (void)state;
    log_catch();
    dl_transport *t[2];
    assert_int_equal(dl_loopback_open(2, NULL, t), DL_OK);
    const size_t piece = (size_t)1 << 20;
    char *data = calloc(piece, 1);
    assert_non_null(data);
    size_t n, sent = 0;
    int err;
    assert_int_equal(dl_transport_send(t[0], 1, data, SIZE_MAX), DL_ELIMIT); /* refused before it is copied */
    while (!(err = dl_transport_send(t[0], 1, data, piece)))
        assert_true(++sent < 100);
    assert_int_equal(err, DL_ELIMIT);
    assert_int_equal(sent, TP_MAILBOX_BYTES / piece - 1);
    assert_int_equal(log_seen.n, 2);
    assert_int_equal(dl_transport_recv(t[1], 0, data, piece, &n, 0), DL_OK);
    assert_int_equal(dl_transport_send(t[0], 1, data, piece), DL_OK);
    free(data);
    dl_transport_close(&t[0]);
    dl_transport_close(&t[1]);
    log_release("does not read");
}

/* Both ways at once, from threads, while collectives run. */
struct talker {
    dl_transport *t;
    uint64_t rng;
    unsigned wrong;
};
static void *talk(void *arg)
{
    struct talker *a = arg;
    int other = 1 - dl_transport_node(a->t);
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t got = 0;
        size_t n = 0;
        a->wrong += dl_transport_send(a->t, other, &i, sizeof i) != DL_OK;
        if (test_rand(&a->rng) % 64 == 0)
            pause_ns(10000);
        if (i < 10)
            continue; /* some are always on the way */
        a->wrong +=
            dl_transport_recv(a->t, other, &got, sizeof got, &n, UINT64_MAX) != DL_OK || n != 4 || got != i - 10;
    }
    return NULL;
}
static void messages_both_ways(void **state)
{
    (void)state;
    struct bench *b = bench_open(2, NULL);
    struct talker a[2] = {{b->t[0], 1, 0}, {b->t[1], 2, 0}};
    pthread_t thread[2];
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, talk, &a[i]), 0);
    for (unsigned k = 0; k < ROUNDS; k++) {
        bench_start(b, (int)(k % 2));
        bench_start(b, (int)(1 - k % 2));
        ends_wait(&b->ends[0], k + 1);
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(a[i].wrong, 0);
    }
    bench_close(b);
}

/* ---------------------------------------------------------------------------------------------------- rest */

static void statistics(void **state)
{
    (void)state;
    struct bench *b = bench_open(3, NULL);
    struct dl_transport_stats s[3];
    char c[5];
    size_t n;
    static const enum dl_xfer_kind kinds[] = {DL_XFER_ALL_GATHER, DL_XFER_BROADCAST, DL_XFER_GATHER_ROOT};
    static const size_t bytes[] = {8, 4, 2};
    for (unsigned k = 0; k < 3; k++)
        for (int i = 0; i < 3; i++)
            assert_int_equal(bench_start_as(b, i, kinds[k], bytes[k]), DL_OK);
    for (int i = 0; i < 3; i++)
        ends_wait(&b->ends[i], 3);
    assert_int_equal(dl_transport_send(b->t[1], 2, "hello", 5), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[2], 1, c, 5, &n, 0), DL_OK);
    for (int i = 0; i < 3; i++)
        dl_transport_stats(b->t[i], &s[i]);
    assert_int_equal(s[0].sent_bytes, 2 * 8 + 2 * 4);
    assert_int_equal(s[0].received_bytes, 2 * 8 + 2 * 2);
    assert_int_equal(s[1].sent_bytes, 2 * 8 + 2 + 5);
    assert_int_equal(s[1].received_bytes, 2 * 8 + 4);
    assert_int_equal(s[2].sent_bytes, 2 * 8 + 2);
    assert_int_equal(s[2].received_bytes, 2 * 8 + 4 + 5);
    bench_close(b);
}

static void bad_arguments(void **state)
{
    (void)state;
    log_catch();
    dl_transport *t[2];
    uint64_t data[2] = {0};
    const struct dl_loopback_faults nobody = {.die_node = 2, .die_after = 1};
    assert_int_equal(dl_loopback_open(0, NULL, t), DL_EINVAL);
    assert_int_equal(dl_loopback_open(1000000, NULL, t), DL_EINVAL);
    assert_int_equal(dl_loopback_open(2, &nobody, t), DL_EINVAL);
    assert_int_equal(dl_loopback_open(2, NULL, t), DL_OK);
    assert_int_equal(dl_transport_node(t[1]), 1);
    assert_int_equal(dl_transport_n_nodes(t[1]), 2);
    const struct dl_xfer bad[] = {
        {(enum dl_xfer_kind)3, data, 8, 8},
        {DL_XFER_ALL_GATHER, data, 9, 8},
        {DL_XFER_ALL_GATHER, NULL, 8, 8},
        {DL_XFER_ALL_GATHER, data, 8, SIZE_MAX},
    };
    for (size_t i = 0; i < DL_COUNT_OF(bad); i++)
        assert_int_equal(dl_transport_start(t[0], &bad[i], ended, NULL), DL_EINVAL);
    dl_transport_close(&t[0]);
    dl_transport_close(&t[1]);
    dl_transport_close(&t[1]);
    log_release(NULL);
    assert_int_equal(log_seen.n, 3 + DL_COUNT_OF(bad));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives),
        cmocka_unit_test(collectives_late),
        cmocka_unit_test(waits_for_all),
        cmocka_unit_test(delay_is_kept),
        cmocka_unit_test(out_of_step),
        cmocka_unit_test(death),
        cmocka_unit_test(death_alone),
        cmocka_unit_test(close_while_pending),
        cmocka_unit_test(close_while_on_the_way),
        cmocka_unit_test(close_wakes_receivers),
        cmocka_unit_test(messages),
        cmocka_unit_test(unread_messages_are_bounded),
        cmocka_unit_test(messages_both_ways),
        cmocka_unit_test(statistics),
        cmocka_unit_test(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
