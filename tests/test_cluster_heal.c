/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_heal.c: an engine outlives its nodes. Whichever worker dies at whichever message or exchange, while loading or computing,
 * the same text comes out, one line says who was lost where and why, and who is back is taken in again. What cannot be mended fails
 * with a reason, and heals later. All in one process, over the loopback transport, whose faults are exact; test_e2e_faults.c
 * does it with processes.
 */
#include "heal_rig.h"

static unsigned lines_with(const char *text)
{
    unsigned n = 0;
    for (const char *at = rig_logged.text.v; at && (at = strstr(at, text)); at++)
        n++;
    return n;
}

static enum dl_type wire;

/* A life in which a node dies; false when it did not come to that. */
static bool survives(struct heal *h, const char *what, int *phases)
{
    rig_log_begin();
    uint64_t t0 = dl_now_ns();
    for (int w = 0; w < N_MOST; w++)
        h->out[w] = false;
    struct dl_engine_opts o = rig_opts();
    o.wire = wire;
    int err = heal_start(h, o);
    if (!err)
        err = life(h->r.engine, h->r.prompt, got, got_row);
    uint64_t took = dl_now_ns() - t0;
    struct dl_engine_health now = {0};
    if (!err)
        dl_engine_health(h->r.engine, &now);
    heal_end(h);
    char name[64];
    snprintf(name, sizeof name, "node %d lost in ", h->faults.die_node);
    const bool died = h->connects > 1;
    if (err || memcmp(got, want, sizeof want) != 0 ||
        rig_nmse(got_row, want_row, 300) > (wire == DL_F32 ? 1e-6 : 1e-3) ||
        took > 60 * S) /* half of what a node that is not missed is waited for */
        fail_msg("%s: %s after %.2f s: %s", what, dl_err_name(err), (double)took / 1e9, rig_logged.text.v);
    if (died && (lines_with(name) != 1 || root_lines() != 1 || !rig_log_has("; going on with 2 of 3 nodes") ||
                 now.state != DL_HEALTH_DEGRADED || now.n_nodes != 2))
        fail_msg("%s: %s", what, rig_logged.text.v);
    if (!died && (root_lines() || now.state != DL_HEALTH_READY))
        fail_msg("%s: %s", what, rig_logged.text.v);
    static const char *const all[] = {"in joining", "in planning", "in loading weights", "in step 1",
                                      "in step 2",  ", logits",    "logits of"};
    for (size_t i = 0; i < DL_COUNT_OF(all); i++)
        if (rig_log_has(all[i]))
            *phases |= 1 << i;
    rig_log_end();
    return died;
}

static void death_at_any_message(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    int seen = 0, lives = 0;
    wire = DL_F32;
    for (int sent = 0; sent < 2; sent++) /* weights from a local file, then, with larger strides, sent */
        for (int node = 1; node < 3; node++)
            for (uint64_t k = 1;; k += !sent || k < 4 ? 1 : 11) {
                char what[64];
                snprintf(what, sizeof what, "node %d, message %llu", node, (unsigned long long)k);
                h.faults = (struct dl_loopback_faults){.die_node = node, .die_after_sends = k};
                h.r.workers[1].opts.model = h.r.workers[2].opts.model = sent ? NULL : h.r.model;
                if (!survives(&h, what, &seen))
                    break;
                lives++;
            }
    printf("%d workers died at a message, none of the texts\n", lives);
    assert_true(lives > 24);
    assert_int_equal(seen, 0x7f); /* in every phase */
    heal_close(&h);
}

static void death_at_any_exchange(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    int seen = 0, lives = 0;
    for (int node = 1; node < 3; node++)
        for (uint64_t k = 1;; k++) {
            char what[64];
            snprintf(what, sizeof what, "node %d, exchange %llu", node, (unsigned long long)k);
            h.faults = (struct dl_loopback_faults){.die_node = node, .die_after = k};
            wire = k % 3 ? DL_F32 : DL_Q80; /* the demo is robust enough to say the same */
            if (!survives(&h, what, &seen))
                break;
            lives++;
        }
    printf("%d workers died at an exchange, none of the texts\n", lives);
    assert_int_equal(lives, 2 * (1 + N_GEN) * 4); /* batches of two layers of two exchanges */
    heal_close(&h);
}

/* Both workers, one after the other, then the root alone, then all again: the text and the sessions do not care. */
static void one_by_one_and_back(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    rig_log_begin();
    h.faults = (struct dl_loopback_faults){.die_node = 2, .die_after = 6};
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    dl_session *s;
    assert_int_equal(dl_session_create(h.r.engine, &s), 0);
    struct dl_step_item item = {.want = DL_WANT_BEST};
    assert_int_equal(dl_session_feed(s, h.r.prompt, RIG_PROMPT, NULL, NULL, &item), 0);
    assert_int_equal(h.connects, 1);
    uint32_t nodes[N_GEN];
    for (int i = 0; i < N_GEN; i++) {
        int32_t id = item.top[0].id;
        assert_int_equal(id, want[i]);
        item = (struct dl_step_item){.session = s, .tokens = &id, .n = 1, .want = DL_WANT_BEST};
        if (i ==
            2) { /* the second cluster loses its only worker, as soon as it is formed again for the first one's sake */
            h.out[1] = true;
            h.faults = (struct dl_loopback_faults){.die_node = 1, .die_after = 2};
            h.again = 1;
            h.answers[1] = h.out[1] = true;
        }
        if (i == 3) {
            h.out[1] = h.out[0] = false;
            h.answers[0] = true;
        }
        if (i == 2 || i == 3)
            heal_until(&h, h.connects + 1);
        assert_int_equal(dl_engine_step(h.r.engine, &item, 1), 0);
        struct dl_engine_health now;
        dl_engine_health(h.r.engine, &now);
        nodes[i] = now.n_nodes;
        assert_int_equal(now.n_all, 3);
        assert_int_equal(now.state == DL_HEALTH_READY, now.n_nodes == 3);
        assert_int_equal(now.text[0] == 0, now.n_nodes == 3);
        if (i == 2)
            h.out[0] = true;
    }
    static const uint32_t expected[] = {2, 2, 1, 3, 3, 3};
    for (int i = 0; i < N_GEN; i++)
        if (nodes[i] != expected[i])
            fail_msg("token %d on %u nodes: %s", i, nodes[i], rig_logged.text.v);
    assert_true(rig_log_has("node 2 lost in step 2"));
    assert_true(rig_log_has("node 1 lost in step 1"));
    assert_true(rig_log_has("; going on with 1 of 3 nodes"));
    assert_true(rig_log_has("node 1 is back: going on with 3 of 3 nodes"));
    assert_true(rig_log_has("node 2 is back: going on with 3 of 3 nodes"));
    assert_int_equal(root_lines(), 4);
    dl_session_destroy(&s);
    heal_end(&h);
    assert_int_equal(h.errs[0], DL_OK); /* said goodbye to */
    assert_int_equal(h.errs[1], DL_OK);
    rig_log_end();
    heal_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_at_any_message),
        cmocka_unit_test(death_at_any_exchange),
        cmocka_unit_test(one_by_one_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
