/* SPDX-License-Identifier: MIT
 *
 * tests/test_tcp.c: clusters of 1 to 8 nodes over TCP in one process: every collective gives what the loopback transport gives, for
 * slices of any size, with nodes at uneven speed, with and without a key, over IPv4, IPv6 and names, and where the system takes and
 * gives a few bytes at a time; so do messages.
 */
#include "tcp_bench.h"

#include "short_io.h"

enum { ROUNDS = 40 };

/* ---------------------------------------------------------------------------------------------- collectives */

struct runner {
    dl_transport *t;
    pthread_t thread;
    uint64_t seed, rng;
    unsigned depth;
    struct end end;
    unsigned char *buf[ROUNDS];
    size_t size[ROUNDS];
    int err, drives;
};

static enum dl_xfer_kind kind_of(uint64_t seed, unsigned k)
{
    uint64_t s = seed + k * 7919;
    return (enum dl_xfer_kind)(test_rand(&s) % 4);
}
static size_t bytes_of(uint64_t seed, unsigned k)
{
    uint64_t s = seed ^ (k * 104729 + 1), r = test_rand(&s);
    switch (r % 8) {
    case 0:
        return 0;
    case 1:
        return (size_t)1 << 20;
    case 2:
        return 1 + (r >> 8) % 200000;
    default:
        return 1 + (r >> 8) % 5000;
    }
}

struct until {
    struct end *e;
    unsigned n;
};
static bool ended_enough(void *ud)
{
    const struct until *u = ud;
    pthread_mutex_lock(&u->e->lock);
    bool enough = u->e->n >= u->n;
    pthread_mutex_unlock(&u->e->lock);
    return enough;
}

static void wait_for(struct runner *r, unsigned n)
{
    struct until u = {&r->end, n};
    while (r->drives && !ended_enough(&u))
        dl_transport_drive(r->t, ended_enough, &u, test_rand(&r->rng) % 2 ? UINT64_MAX : 5 * MS);
    int status = end_wait(&r->end, n);
    if (!r->err)
        r->err = status;
}

static void *run(void *arg)
{
    struct runner *r = arg;
    const int node = dl_transport_node(r->t), n = dl_transport_n_nodes(r->t);
    for (unsigned k = 0; k < ROUNDS && !r->err; k++) {
        const size_t bytes = bytes_of(r->seed, k), stride = bytes + (size_t)node * 8 % 24 + 3;
        const enum dl_xfer_kind kind = kind_of(r->seed, k);
        const size_t slices = (size_t)n * (kind == DL_XFER_ALL_TO_ALL ? 2 : 1);
        r->size[k] = slices * stride;
        r->buf[k] = calloc(slices, stride);
        uint64_t s = r->seed + k * 100 + (uint64_t)node;
        const size_t from = kind == DL_XFER_ALL_TO_ALL ? (size_t)n : (size_t)node,
                     to = slices > (size_t)n ? slices : from + 1;
        for (size_t i = from; i < to; i++)
            for (size_t b = 0; b < bytes; b++)
                r->buf[k][i * stride + b] =
                    (unsigned char)(b % 8 ? r->buf[k][i * stride + b - 1] * 5u + 1 : test_rand(&s));
        if (k >= r->depth)
            wait_for(r, k - r->depth + 1);
        if (test_rand(&r->rng) % 4 == 0)
            pause_ns(test_rand(&r->rng) % 300000);
        struct dl_xfer x = {kind, r->buf[k], bytes, stride};
        int err = dl_transport_start(r->t, &x, end_done, &r->end);
        if (!r->err)
            r->err = err;
    }
    if (!r->err)
        wait_for(r, ROUNDS);
    dl_transport_close(&r->t); /* fast nodes close while slow ones still wait for their last `done` */
    return NULL;
}

static struct runner *run_all(dl_transport **t, int n, uint64_t seed, unsigned depth, int drives)
{
    struct runner *r = calloc((size_t)n, sizeof *r);
    assert_non_null(r);
    for (int i = 0; i < n; i++) {
        r[i].t = t[i];
        r[i].seed = seed;
        r[i].rng = seed + (uint64_t)i;
        r[i].depth = depth;
        r[i].drives = drives;
        end_init(&r[i].end);
        assert_int_equal(pthread_create(&r[i].thread, NULL, run, &r[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(r[i].thread, NULL);
    for (int i = 0; i < n; i++) {
        if (r[i].err)
            fail_msg("node %d of %d, seed %llu: %d after %u rounds", i, n, (unsigned long long)seed, r[i].err,
                     r[i].end.n);
        assert_int_equal(r[i].end.n, ROUNDS);
        t[i] = NULL;
    }
    return r;
}

static void free_all(struct runner *r, int n)
{
    for (int i = 0; i < n; i++)
        for (unsigned k = 0; k < ROUNDS; k++)
            free(r[i].buf[k]);
    free(r);
}

static void same_as_loopback(int n, const char *address, const struct dl_tcp_opts *opts, int drives)
{
    const uint64_t seed = (uint64_t)n * 31 + (opts->key != NULL) + (uint64_t)drives * 1000;
    const unsigned depth = n % 2 ? 1 : 5;
    struct cluster c;
    cluster_open(&c, n, address, opts);
    struct runner *tcp = run_all(c.t, n, seed, depth, drives);
    cluster_close(&c);
    dl_transport *t[NODES_MOST];
    assert_int_equal(dl_loopback_open(n, NULL, t), DL_OK);
    struct runner *loop = run_all(t, n, seed, depth, drives);
    size_t bytes = 0, zeros = 0;
    for (int i = 0; i < n; i++)
        for (unsigned k = 0; k < ROUNDS; k++) {
            assert_int_equal(tcp[i].size[k], loop[i].size[k]);
            if (memcmp(tcp[i].buf[k], loop[i].buf[k], tcp[i].size[k]) != 0)
                fail_msg("%d nodes, node %d, collective %u (kind %d of %zu bytes) differs", n, i, k,
                         (int)kind_of(seed, k), bytes_of(seed, k));
            bytes += bytes_of(seed, k);
            zeros += !bytes_of(seed, k);
        }
    assert_true(bytes > 0 && zeros > 0);
    free_all(tcp, n);
    free_all(loop, n);
}

static void collectives(void **state)
{
    (void)state;
    for (int n = 1; n <= NODES_MOST; n++)
        same_as_loopback(n, "127.0.0.1:0", &(struct dl_tcp_opts){0}, 0);
}
static void collectives_with_key(void **state)
{
    (void)state;
    for (int n = 2; n <= NODES_MOST; n += 2)
        same_as_loopback(n, "127.0.0.1:0", &(struct dl_tcp_opts){.key = &test_key}, 0);
}
static void collectives_driven(void **state)
{
    (void)state;
    same_as_loopback(2, "127.0.0.1:0", &(struct dl_tcp_opts){0}, 1);
    same_as_loopback(3, "127.0.0.1:0", &(struct dl_tcp_opts){.key = &test_key}, 1);
    same_as_loopback(4, "127.0.0.1:0", &(struct dl_tcp_opts){.spin_us = 100}, 1);
}
static void collectives_spinning(void **state)
{
    (void)state;
    same_as_loopback(3, "127.0.0.1:0", &(struct dl_tcp_opts){.spin_us = 200}, 0);
}
static void other_addresses(void **state)
{
    (void)state;
    same_as_loopback(3, "localhost:0", &(struct dl_tcp_opts){0}, 0);
    dl_tcp_listener *l;
    if (dl_tcp_listen("[::1]:0", &(struct dl_tcp_opts){0}, &l)) {
        fprintf(stderr, "SKIPPED PART: this machine has no IPv6\n");
        return;
    }
    dl_tcp_listener_close(&l);
    same_as_loopback(3, "[::1]:0", &(struct dl_tcp_opts){.key = &test_key}, 0);
}

/* Heads, payloads and records end anywhere in what is read and written. */
static void in_pieces(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++) {
        short_io_begin((uint64_t)n);
        same_as_loopback(n, "127.0.0.1:0", &(struct dl_tcp_opts){.key = n == 3 ? NULL : &test_key}, n == 4);
        short_io_end();
        short_io_begin((uint64_t)n + 10);
        same_as_loopback(n, "127.0.0.1:0", &(struct dl_tcp_opts){.key = n == 3 ? &test_key : NULL}, n == 4);
        short_io_end();
    }
}

enum { TALKS = 60, TALK_MOST = 300000 };
static size_t talk_bytes(int from, unsigned k)
{
    uint64_t s = (uint64_t)from * 1000 + k, r = test_rand(&s);
    return r % 3 ? (r >> 8) % 100 : (r >> 8) % TALK_MOST;
}
struct talker {
    dl_transport *t;
    unsigned char *out, *in;
    unsigned wrong;
};
static void *talk(void *arg)
{
    struct talker *a = arg;
    const int me = dl_transport_node(a->t);
    for (unsigned k = 0; k < TALKS; k++) {
        size_t n = talk_bytes(me, k), got = 0;
        for (size_t i = 0; i < n; i++)
            a->out[i] = (unsigned char)(i * 7 + k + (size_t)me);
        a->wrong += dl_transport_send(a->t, 1 - me, a->out, n) != DL_OK;
        n = talk_bytes(1 - me, k);
        a->wrong += dl_transport_recv(a->t, 1 - me, a->in, TALK_MOST, &got, 60 * SEC) != DL_OK || got != n;
        for (size_t i = 0; i < got; i++)
            a->wrong += a->in[i] != (unsigned char)(i * 7 + k + (size_t)(1 - me));
    }
    return NULL;
}

/* Messages of all sizes, both ways at once. */
static void messages_in_pieces(void **state)
{
    (void)state;
    for (int key = 0; key < 2; key++) {
        struct cluster c;
        short_io_begin((uint64_t)key + 20);
        cluster_open(&c, 2, "127.0.0.1:0", &(struct dl_tcp_opts){.key = key ? &test_key : NULL});
        struct talker a[2];
        pthread_t thread[2];
        for (int i = 0; i < 2; i++) {
            a[i] = (struct talker){c.t[i], dl_xcalloc(TALK_MOST, 1), dl_xcalloc(TALK_MOST, 1), 0};
            assert_int_equal(pthread_create(&thread[i], NULL, talk, &a[i]), 0);
        }
        for (int i = 0; i < 2; i++) {
            pthread_join(thread[i], NULL);
            assert_int_equal(a[i].wrong, 0);
            free(a[i].out);
            free(a[i].in);
        }
        cluster_close(&c);
        short_io_end();
    }
}

/* A loop that ends just when its thread begins: nobody waits for ever. Names without a port are refused after the loop stands. */
static void loops_that_hardly_live(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    int n = 1000;
#else
    int n = 8000;
#endif
    for (int i = 0; i < n; i++) {
        dl_tcp_listener *l;
        assert_int_equal(dl_tcp_listen("nowhere", &(struct dl_tcp_opts){0}, &l), DL_EINVAL);
        assert_null(l);
    }
}

int main(void)
{
    said_catch();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives),        cmocka_unit_test(collectives_with_key),
        cmocka_unit_test(collectives_driven), cmocka_unit_test(collectives_spinning),
        cmocka_unit_test(other_addresses),    cmocka_unit_test(in_pieces),
        cmocka_unit_test(messages_in_pieces), cmocka_unit_test(loops_that_hardly_live),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
