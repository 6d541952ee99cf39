/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_tcp.c: a whole small cluster in one process over real sockets, where the system takes and gives a few bytes at a time:
 * weights, steps, sums and logits arrive as over the loopback transport, bit for bit, with and without a key.
 */
#include "cluster_rig.h"

#include "short_io.h"

enum { NODES = 3, N_GEN = 6 };

static const struct dl_key key = {{9, 8, 7}};
static float want[(N_GEN + 1) * 1024], got[(N_GEN + 1) * 1024];

/* As rig_start, over TCP. */
static int start_tcp(struct rig *r, struct dl_engine_opts o, const struct dl_tcp_opts *tcp, dl_tcp_listener **l)
{
    const char *names[NODES - 1];
    for (int i = 1; i < NODES; i++) {
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", tcp, &l[i]), DL_OK);
        names[i - 1] = dl_tcp_listener_address(l[i]);
    }
    assert_int_equal(dl_tcp_connect(names, NODES - 1, tcp, NULL, &o.transport), DL_OK);
    for (int i = 1; i < NODES; i++) {
        assert_int_equal(dl_tcp_accept(l[i], UINT64_C(60000000000), &r->workers[i].t), DL_OK);
        r->workers[i].err = 1;
        assert_int_equal(pthread_create(&r->workers[i].thread, NULL, rig_work, &r->workers[i]), 0);
    }
    o.model = r->model;
    o.devices = &r->dev;
    o.n_devices = 1;
    o.progress = rig_progress;
    o.progress_ud = r;
    return dl_engine_create(&o, &r->engine);
}

static void over_short_calls(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        struct rig r;
        struct dl_engine_opts o = rig_opts();
        int32_t want_ids[N_GEN], ids[N_GEN];
        o.wire = k & 2 ? DL_Q80 : DL_F32;
        o.collective = k & 2 ? DL_COLLECTIVE_RS : DL_COLLECTIVE_ONE_SHOT;
        rig_open(&r, NULL, NODES);
        assert_true(rig_vocab(&r) <= 1024);
        assert_int_equal(rig_start(&r, o, NULL), DL_OK);
        assert_int_equal(rig_continue(&r, NULL, N_GEN, want_ids, want), DL_OK);
        rig_stop(&r);

        dl_tcp_listener *l[NODES] = {NULL};
        const struct dl_tcp_opts tcp = {.key = k & 1 ? &key : NULL, .handshake_ms = 60000, .dead_ms = 60000};
        short_io_begin((uint64_t)k + 1);
        assert_int_equal(start_tcp(&r, o, &tcp, l), DL_OK);
        assert_true(r.sent_weights > 100000);
        assert_int_equal(rig_continue(&r, NULL, N_GEN, ids, got), DL_OK);
        rig_stop(&r);
        short_io_end();
        for (int i = 1; i < NODES; i++) {
            assert_int_equal(r.workers[i].err, DL_OK);
            dl_tcp_listener_close(&l[i]);
        }
        assert_memory_equal(ids, want_ids, sizeof ids);
        assert_memory_equal(got, want, (size_t)(N_GEN + 1) * rig_vocab(&r) * sizeof *want);
        rig_close(&r);
    }
}

int main(void)
{
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    const struct CMUnitTest tests[] = {cmocka_unit_test(over_short_calls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
