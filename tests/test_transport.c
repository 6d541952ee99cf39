/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport.c: the loopback transport: every collective over 1 to 8 nodes that run at uneven speed, injected delay, a
 * node that dies, closing at bad moments. Threads only record; the test thread asserts.
 */
#include "transport_bench.h"

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
    const struct dl_loopback_faults faults = {.delay_ns = 1000 * MS, .jitter_ns = 20 * MS, .seed = 1};
    struct bench *b = bench_open(2, &faults);
    uint64_t t0 = dl_now_ns();
    for (unsigned k = 0; k < 5; k++) {
        bench_start(b, 0);
        bench_start(b, 1);
    }
    for (int i = 0; i < 2; i++) {
        ends_wait(&b->ends[i], 5);
        for (unsigned k = 0; k < 5; k++)
            assert_true(b->ends[i].at_ns[k] - t0 >= 1000 * MS);
        /* All five are on their way at once: latency does not add up. */
        assert_true(b->ends[i].at_ns[4] - t0 < 4000 * MS);
    }
    t0 = dl_now_ns();
    char c;
    size_t n;
    assert_int_equal(dl_transport_send(b->t[0], 1, "x", 1), DL_OK);
    assert_int_equal(dl_transport_recv(b->t[1], 0, &c, 1, &n, 5 * MS), DL_ETIMEDOUT);
    assert_int_equal(dl_transport_recv(b->t[1], 0, &c, 1, &n, UINT64_MAX), DL_OK);
    assert_true(dl_now_ns() - t0 >= 1000 * MS);
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
    const struct dl_loopback_faults faults = {.delay_ns = 2000 * MS};
    struct bench *b = bench_open(2, &faults);
    bench_start(b, 0);
    bench_start(b, 1);
    pause_ns(5 * MS);
    uint64_t t0 = dl_now_ns();
    dl_transport_close(&b->t[0]);
    assert_true(dl_now_ns() - t0 < 1500 * MS);
    assert_int_equal(b->ends[0].status[0], DL_ECANCELED);
    ends_wait(&b->ends[1], 1);
    assert_int_equal(b->ends[1].status[0], DL_OK);
    assert_int_equal(b->data[1][0][0], 0);
    bench_close(b);
    log_release(NULL);
    assert_int_equal(log_seen.n, 0);
}

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
        {(enum dl_xfer_kind)4, data, 8, 8},
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
        cmocka_unit_test(statistics),
        cmocka_unit_test(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
