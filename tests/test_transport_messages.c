/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport_messages.c: the loopback transport's control messages: order, limits, timeouts, both ways at once, and what
 * wakes those who wait.
 */
#include "transport_bench.h"

#include <stdatomic.h>

#include "mailbox.h"

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

struct receiver {
    dl_transport *t;
    int from, err;
    atomic_bool begun;
};
static void *receive(void *arg)
{
    struct receiver *r = arg;
    char c;
    size_t n;
    atomic_store(&r->begun, true);
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
    struct receiver r[2] = {{.t = t[0], .from = 1, .err = 1}, {.t = t[2], .from = 0, .err = 1}};
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, receive, &r[i]), 0);
    while (!atomic_load(&r[0].begun) || !atomic_load(&r[1].begun))
        pause_ns(MS);
    pause_ns(50 * MS);
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

/* What it sent before can still be read, its n-th message nobody gets. */
static void dies_at_a_message(void **state)
{
    (void)state;
    log_catch();
    dl_transport *t[3];
    struct dl_loopback_faults faults = {.die_node = 1, .die_after_sends = 3};
    char c;
    size_t n;
    assert_int_equal(dl_loopback_open(3, &faults, t), DL_OK);
    assert_int_equal(dl_transport_send(t[1], 0, "a", 1), DL_OK);
    assert_int_equal(dl_transport_send(t[1], 2, "b", 1), DL_OK);
    assert_int_equal(dl_transport_send(t[1], 0, "c", 1), DL_EPEER);
    assert_int_equal(dl_transport_send(t[1], 2, "d", 1), DL_EPEER);
    assert_int_equal(dl_transport_recv(t[0], 1, &c, 1, &n, UINT64_MAX), DL_OK);
    assert_int_equal(c, 'a');
    assert_int_equal(dl_transport_recv(t[0], 1, &c, 1, &n, UINT64_MAX), DL_EPEER);
    assert_int_equal(dl_transport_send(t[0], 1, "e", 1), DL_EPEER);
    assert_int_equal(dl_transport_recv(t[2], 1, &c, 1, &n, 0), DL_OK);
    assert_int_equal(dl_transport_send(t[0], 2, "f", 1), DL_OK); /* the others go on */
    for (int i = 0; i < 3; i++)
        dl_transport_close(&t[i]);
    log_release(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages),           cmocka_unit_test(unread_messages_are_bounded),
        cmocka_unit_test(messages_both_ways), cmocka_unit_test(close_wakes_receivers),
        cmocka_unit_test(dies_at_a_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
