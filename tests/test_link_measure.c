/* SPDX-License-Identifier: MIT
 *
 * tests/test_link_measure.c: dl_link_measure over the loopback: what it reports of a network whose delay is known, and that it ends, with the
 * name of the culprit, when a node is lost meanwhile.
 */
#include "cluster_rig.h"

static const uint64_t sizes[] = {4352, 40000};

/* Node 0 measures, the others serve. */
static int measure(int n, const struct dl_loopback_faults *faults, struct dl_link_report *out, int *worker_err)
{
    struct rig r;
    dl_transport *t[RIG_MOST];
    rig_open(&r, NULL, n);
    assert_int_equal(dl_loopback_open(n, faults, t), 0);
    for (int i = 1; i < n; i++) {
        r.workers[i].t = t[i];
        r.workers[i].err = 1;
        assert_int_equal(pthread_create(&r.workers[i].thread, NULL, rig_work, &r.workers[i]), 0);
    }
    int err = dl_link_measure(t[0], r.dev, sizes, DL_COUNT_OF(sizes), 3, out);
    for (int i = 1; i < n; i++) {
        pthread_join(r.workers[i].thread, NULL);
        *worker_err = r.workers[i].err;
    }
    rig_close(&r);
    return err;
}

static void a_slow_network(void **state)
{
    (void)state;
    const double delay = 2e6;
    const struct dl_loopback_faults faults = {.delay_ns = (uint64_t)delay};
    struct dl_link_report r;
    int worker_err = 1;
    assert_int_equal(measure(3, &faults, &r, &worker_err), 0);
    assert_int_equal(worker_err, 0);
    assert_int_equal(r.n_peers, 2);
    assert_int_equal(r.n_times, 4);
    for (uint32_t i = 0; i < r.n_peers; i++) {
        assert_true(*r.peers[i].name);
        assert_true(r.peers[i].send_bytes_per_s > 1e5 && r.peers[i].receive_bytes_per_s > 1e5);
    }
    for (uint32_t i = 0; i < r.n_times; i++) {
        const struct dl_link_time *t = &r.times[i];
        const bool rs = i % 2;
        const uint64_t bytes = sizes[i / 2], piece = (bytes + 2) / 3;
        assert_string_equal(t->name, rs ? "rs" : "oneshot");
        assert_int_equal(t->bytes, bytes);
        assert_int_equal(t->sent_bytes, rs ? 4 * piece : 2 * bytes);
        /* who was ahead finds slices there, but several rounds together take as many delays */
        assert_true(t->least_ns > (rs ? 1.2 : 0.6) * delay && t->least_ns <= t->ns && t->ns <= t->most_ns);
        assert_true(t->floor_ns > (rs ? 1.2 : 0.6) * delay && t->floor_ns < 3 * t->most_ns);
    }
    dl_link_report_finish(&r);
    assert_null(r.peers);
}

static void a_node_is_lost(void **state)
{
    (void)state;
    static const uint64_t after[] = {2, 60, 75};
    for (size_t i = 0; i < DL_COUNT_OF(after); i++) {
        const struct dl_loopback_faults faults = {.die_node = 2, .die_after = after[i]};
        struct dl_link_report r;
        int worker_err = 0;
        rig_log_begin();
        assert_int_equal(measure(3, &faults, &r, &worker_err), DL_EPEER);
        assert_null(r.peers);
        assert_true(worker_err != 0);
        assert_true(rig_log_has("node 2"));
        assert_true(rig_log_has("measuring the network"));
        rig_log_end();
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {cmocka_unit_test(a_slow_network), cmocka_unit_test(a_node_is_lost)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
