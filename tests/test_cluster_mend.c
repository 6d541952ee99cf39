/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_mend.c: what else an engine that outlives its nodes has to get right: rows of logits and sessions that were not part of
 * the step, workers that fail but live, nodes that are too small, and an end to the waiting.
 */
#include "heal_rig.h"

/* Several sessions, of which one rests while nodes go: its KV is made again when it is its turn. And rows of a step whose nodes are gone. */
static void sessions_and_rows(void **state)
{
    (void)state;
    struct heal h;
    struct rig r;
    struct dl_engine_opts o = rig_opts();
    o.max_sessions = 3;
    o.max_batch = 8; /* again in several pieces */
    rig_alone(&r, NULL, o);
    heal_open(&h, NULL, 3);
    h.faults = (struct dl_loopback_faults){.die_node = 1, .die_after_sends = 7}; /* the answer to a FETCH below */
    rig_log_begin();
    assert_int_equal(heal_start(&h, o), 0);
    const uint32_t vocab = rig_vocab(&r);
    for (int first = 7; first < 40 && !h.out[0]; first++) {
        float *row, *again;
        dl_session *s[2][3];
        dl_engine *e[2] = {r.engine, h.r.engine};
        struct dl_step_item items[2][2];
        for (int i = 0; i < 2; i++) {
            struct dl_step_item one = {.want = DL_WANT_NONE};
            for (int k = 0; k < 3; k++)
                assert_int_equal(dl_session_create(e[i], &s[i][k]), 0);
            assert_int_equal(dl_session_feed(s[i][2], r.prompt, 11, NULL, NULL, &one), 0);
            items[i][0] = (struct dl_step_item){.session = s[i][0], .tokens = r.prompt, .n = 3, .want = DL_WANT_ALL};
            items[i][1] =
                (struct dl_step_item){.session = s[i][1], .tokens = r.prompt + 4, .n = 5, .want = DL_WANT_TOP, .k = 4};
            assert_int_equal(dl_engine_step(e[i], items[i], 2), 0);
        }
        assert_true(rig_nmse(items[1][0].logits, items[0][0].logits, 3 * vocab) < 1e-6);
        for (int k = 0; k < 4; k++)
            assert_int_equal(items[0][1].top[k].id, items[1][1].top[k].id);
        for (uint32_t w = 0; w < 4; w++) {
            assert_int_equal(dl_engine_logits(e[0], w, &row), 0);
            assert_int_equal(dl_engine_logits(e[1], w, &again), 0);
            assert_true(rig_nmse(again, row, vocab) < 1e-6);
        }
        assert_int_equal(dl_engine_logits(e[1], 4, &again), DL_EINVAL);
        for (int i = 0; i < 2; i++) { /* the one that rested */
            struct dl_step_item one = {.session = s[i][2], .tokens = r.prompt + 11, .n = 2, .want = DL_WANT_LAST};
            assert_int_equal(dl_engine_step(e[i], &one, 1), 0);
            items[i][0] = one;
        }
        assert_true(rig_nmse(items[1][0].logits, items[0][0].logits, vocab) < 1e-6);
        assert_int_equal(dl_session_len(s[1][0]), 3);
        assert_int_equal(dl_session_len(s[1][2]), 13);
        for (int i = 0; i < 2; i++)
            for (int k = 0; k < 3; k++)
                dl_session_destroy(&s[i][k]);
        struct dl_engine_stats stats;
        dl_engine_stats(h.r.engine, &stats);
        assert_true(stats.sent_bytes > 0 && stats.sent_bytes < UINT64_C(1) << 40);
        if (h.connects > 1) { /* the next life, in which it happens a message later */
            heal_end(&h);
            h.faults.die_after_sends = (uint64_t)first;
            assert_int_equal(heal_start(&h, o), 0);
        } else {
            break;
        }
    }
    assert_true(rig_log_has("logits of step"));
    assert_true(rig_log_has(", logits: "));
    heal_end(&h);
    heal_close(&h);
    dl_engine_destroy(&r.engine);
    rig_close(&r);
    rig_log_end();
}

/* A worker that fails and lives is no reason to do without it; one that does so again and again is. */
static void a_device_that_breaks(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    dl_device *dev = h.r.workers[2].dev;
    rig_fault_begin(dev);
    rig_log_begin();
    rig_fault_at(9, 0);
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    assert_true(rig_log_has("node 2 failed in step 2: its device has failed; going on with 3 of 3 nodes"));
    rig_fault_at(9, 0);
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    assert_true(rig_log_has("its device has failed; going on with 2 of 3 nodes"));
    rig_fault_end(dev);
    heal_end(&h);
    heal_close(&h);
    rig_log_end();
}

/* A node that keeps the others waiting: nobody knows which, so all get another chance, each time that it happens, but not twice in a row. */
static void a_node_that_stops(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    dl_device *dev = h.r.workers[2].dev;
    rig_fault_begin(dev);
    rig_log_begin();
    struct dl_engine_opts o = rig_opts();
    o.wait_ms = 3000; /* any thread may rest for a moment */
    assert_int_equal(heal_start(&h, o), 0);
    for (int i = 0; i < 3; i++) {
        rig_fault_at(8, 30 * S);
        assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
        assert_memory_equal(got, want, sizeof want);
        assert_int_equal(h.connects, i + 2);
        assert_int_equal(h.health.state, DL_HEALTH_READY);
    }
    assert_true(rig_log_has("a node lost in step "));
    assert_true(rig_log_has(": a node keeps the others waiting; going on with 3 of 3 nodes"));
    rig_fault_end(dev);
    heal_end(&h);
    heal_close(&h);
    rig_log_end();
}

/* The root's device is lost, at any of its submits: another one takes its place and the text goes on, with all nodes. Without another one the
 * step fails; the engine lives. */
static void the_roots_device_breaks(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    int lives = 0;
    for (uint64_t at = 1;; at += lives < 12 ? 1 : 7) {
        rig_log_begin();
        rig_fault_begin(h.r.dev);
        h.spares = 1;
        rig_fault_at(at, 0);
        assert_int_equal(heal_start(&h, rig_opts()), 0);
        int err = life(h.r.engine, h.r.prompt, got, got_row);
        const bool broke = !h.spares;
        if (err || h.connects != 1 + broke || root_lines() != broke || h.health.state != DL_HEALTH_READY ||
            memcmp(got, want, sizeof want) != 0)
            fail_msg("submit %d: %s, %d connections: %s", (int)at, dl_err_name(err), h.connects, rig_logged.text.v);
        assert_true(rig_nmse(got_row, want_row, 300) < 1e-6);
        heal_end(&h);
        rig_log_end();
        if (!broke)
            break;
        lives++;
    }
    printf("the root's device broke %d times, none of the texts\n", lives);
    assert_true(lives > 12);
    rig_log_begin();
    rig_fault_at(2, 0);
    h.spares = 0;
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), DL_EDEVICE);
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0); /* it has not broken for good */
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(root_lines(), 1);
    rig_fault_end(h.r.dev);
    heal_end(&h);
    heal_close(&h);
    rig_log_end();
}

/* A device that makes its buffers in another way, until its fns are true_fns again. One at a time. */
static const struct dl_device_fns *true_fns;
static struct dl_device_fns odd_fns;
static void makes_buffers_by(dl_device *dev, int (*create)(dl_device *, const struct dl_buf_desc *, dl_buf **))
{
    true_fns = dev->fns;
    odd_fns = *true_fns;
    odd_fns.buf_create = create;
    dev->fns = &odd_fns;
}

/* Node `node` is lost in step 2 of the first cluster, and stays away. */
static void lose_for_good(struct heal *h, int node)
{
    h->faults = (struct dl_loopback_faults){.die_node = node, .die_after = 6};
    h->dies_for_good = true;
}

/* Only so much memory on a device, as its driver would say it. */
static uint64_t room, refused_bytes;
static int refusal = DL_ELIMIT;
static int scarce_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    if (room && desc->use == DL_BUF_ACT && desc->bytes > room) {
        refused_bytes = desc->bytes;
        return dl_fail(refusal, "test: no room for %s", desc->name);
    }
    return true_fns->buf_create(dev, desc, out);
}

/* A session that was fed the prompt, and what comes next. */
static dl_session *prompted(const struct heal *h, int32_t *id)
{
    dl_session *s;
    struct dl_step_item item = {.want = DL_WANT_BEST};
    assert_int_equal(dl_session_create(h->r.engine, &s), 0);
    assert_int_equal(dl_session_feed(s, h->r.prompt, RIG_PROMPT, NULL, NULL, &item), 0);
    *id = item.top[0].id;
    return s;
}

/* What is left cannot hold the model: the step fails with a reason; the engine lives, and is whole again when a node is. */
static void what_is_left_is_too_small(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    makes_buffers_by(h.r.dev, scarce_create);
    rig_log_begin();
    lose_for_good(&h, 2);
    h.patience_ms = 3000;
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    int32_t id;
    dl_session *s = prompted(&h, &id);
    struct dl_step_item item;
    room = 1; /* from here on it takes all three */
    for (int i = 0; i < 2; i++) {
        item = (struct dl_step_item){.session = s, .tokens = &id, .n = 1, .want = DL_WANT_BEST};
        h.n_states = 0;
        uint64_t t0 = dl_now_ns();
        int err = dl_engine_step(h.r.engine, &item, 1);
        uint64_t took = dl_now_ns() - t0;
        if (err != DL_EPEER)
            fail_msg("%s: %s", dl_err_name(err), rig_logged.text.v);
        assert_true((took < 3 * S) == (i == 1)); /* waited for the lost one; once is enough */
        assert_true(rig_log_has("node 2 lost in step 2: "));
        assert_true(rig_log_has("; the 2 of 3 nodes that are left cannot go on: over a limit"));
        assert_false(rig_log_has("going on with"));
        assert_int_equal(h.states[0], DL_HEALTH_HEALING);
        assert_int_equal(h.health.state, DL_HEALTH_DOWN);
        assert_int_equal(h.health.n_nodes, 0);
        assert_non_null(strstr(h.health.text, "node 2 lost in step 2"));
        assert_int_equal(dl_session_len(s), RIG_PROMPT);
    }
    assert_true(refused_bytes > 0);
    h.out[1] = false; /* it is back, with all of its memory */
    h.answers[1] = true;
    dl_sleep_ns(11 * S / 10);
    room = 0;
    for (int i = 0; i < N_GEN; i++) {
        id = i ? item.top[0].id : id;
        assert_int_equal(id, want[i]);
        item = (struct dl_step_item){.session = s, .tokens = &id, .n = 1, .want = DL_WANT_BEST};
        assert_int_equal(dl_engine_step(h.r.engine, &item, 1), 0);
    }
    assert_int_equal(h.health.state, DL_HEALTH_READY);
    assert_true(rig_log_has("node 2 is back: going on with 3 of 3 nodes"));
    assert_int_equal(dl_engine_tend(h.r.engine), 0); /* nothing to do */
    dl_session_destroy(&s);
    heal_end(&h);
    h.r.dev->fns = true_fns;
    heal_close(&h);
    rig_log_end();
}

/* A worker with so much to load that the root says meanwhile how it goes on. */
static bool slow, heard;
static int slow_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    for (uint64_t t0 = dl_now_ns(); slow && !heard && dl_now_ns() - t0 < 60 * S; dl_sleep_ns(S / 50))
        heard = rig_log_has("; going on with 2 of 3 nodes\n");
    return true_fns->buf_create(dev, desc, out);
}

static void said_while_it_loads(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    dl_device *dev = h.r.workers[1].dev;
    makes_buffers_by(dev, slow_create);
    lose_for_good(&h, 2);
    slow = heard = false;
    rig_log_begin();
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    slow = true;
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    assert_true(heard);
    assert_int_equal(root_lines(), 1); /* once is enough */
    heal_end(&h);
    dev->fns = true_fns;
    heal_close(&h);
    rig_log_end();
}

/* A worker is lost, and when the engine is formed without it, the root's device turns out to be lost, too. */
static void both_at_once(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    makes_buffers_by(h.r.dev, scarce_create);
    lose_for_good(&h, 2);
    h.spares = 1;
    rig_log_begin();
    room = 0;
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    room = 1;
    refusal = DL_EDEVICE;
    assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    assert_int_equal(h.spares, 0);
    assert_int_equal(h.health.state, DL_HEALTH_DEGRADED);
    if (root_lines() != 2 || !rig_log_has("node 2 lost in step 2: ") || !rig_log_has("; going on with 2 of 3 nodes\n"))
        fail_msg("%s", rig_logged.text.v);
    room = 0;
    refusal = DL_ELIMIT;
    heal_end(&h);
    heal_close(&h);
    rig_log_end();
}

/* Ctrl-C while it waits; and afterwards it goes on. */
static void stopped_while_it_waits(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 2);
    makes_buffers_by(h.r.dev, scarce_create);
    lose_for_good(&h, 1);
    h.patience_ms = 20000;
    rig_log_begin();
    room = 0;
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    int32_t id;
    dl_session *s = prompted(&h, &id);
    struct dl_step_item item = {.session = s, .tokens = &id, .n = 1, .want = DL_WANT_BEST};
    room = 1;
    h.polls = 0;
    h.stop_at = 8;
    const unsigned before = root_lines();
    assert_int_equal(dl_engine_step(h.r.engine, &item, 1), DL_ECANCELED);
    assert_true(root_lines() <= before + 2); /* who was lost; the device's refusal */
    h.stop_at = 0;
    room = 0;
    assert_int_equal(dl_engine_step(h.r.engine, &item, 1), 0);
    assert_int_equal(item.top[0].id, want[1]);
    dl_session_destroy(&s);
    heal_end(&h);
    h.r.dev->fns = true_fns;
    heal_close(&h);
    rig_log_end();
}

/* A worker with less memory than its share takes gets less of the model, or nothing; with shares that the user gave it is an error. */
static void less_for_the_small_one(void **state)
{
    (void)state;
    struct heal h;
    struct dl_engine_opts o = rig_opts();
    healthy(NULL);
    heal_open(&h, NULL, 3);
    static const double given[] = {1, 1, 1};
    /* What an equal share takes, as the worker counts it: below, a bit less than that, and next to nothing. */
    uint64_t fits = 0;
    for (uint64_t m = 1 << 16; !fits; m += m / 8) {
        rig_log_begin();
        o.shares = given;
        h.r.workers[2].opts.memory = m;
        int err = heal_start(&h, o);
        heal_end(&h);
        if (!err)
            fits = m;
        else if (err != DL_ELIMIT || !rig_log_has("node 2 failed in planning: it needs ") ||
                 !rig_log_has("GiB are free"))
            fail_msg("%s: %s", dl_err_name(err), rig_logged.text.v);
    }
    o.shares = NULL;
    for (int none = 0; none < 2; none++) {
        rig_log_begin();
        h.r.workers[2].opts.memory = none ? 1000 : fits - fits / 6;
        assert_int_equal(heal_start(&h, o), 0);
        struct dl_engine_health now;
        dl_engine_health(h.r.engine, &now);
        if (now.n_nodes != (none ? 2 : 3) || !rig_log_has("node 2 failed in planning: it needs "))
            fail_msg("on %u nodes: %s", now.n_nodes, rig_logged.text.v);
        assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
        assert_memory_equal(got, want, sizeof want);
        heal_end(&h);
    }
    heal_close(&h);
    rig_log_end();
}

/* A GPU that had room by what it says of itself, and refuses the cache of its share, or its buffers, when they are made. */
static uint64_t kv_room, kv_most, refusals; /* kv_room 0: no room for anything */
static int full_create(dl_device *dev, const struct dl_buf_desc *desc, dl_buf **out)
{
    if (desc->use == DL_BUF_KV)
        kv_most = DL_MAX(kv_most, desc->bytes);
    if (kv_room && (desc->use != DL_BUF_KV || desc->bytes <= kv_room))
        return true_fns->buf_create(dev, desc, out);
    refusals++;
    return refusal; /* what it says itself is in this node's log */
}

/* It gets half of its share each time, or is left out, and there is one line about it. */
static void less_for_one_that_cannot_say_why(void **state)
{
    (void)state;
    struct heal h;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    dl_device *dev = h.r.workers[2].dev;
    makes_buffers_by(dev, full_create);
    for (int round = 0; round < 5; round++) {
        const bool none = round % 2;
        struct dl_engine_opts o = rig_opts();
        o.measure = round == 4; /* shares follow speed, and memory, of which there is more than enough */
        refusal = round < 2 ? DL_ELIMIT : DL_ENOMEM;
        kv_room = UINT64_MAX;
        kv_most = refusals = 0;
        rig_log_begin();
        assert_int_equal(heal_start(&h, o), 0);
        heal_end(&h);
        rig_log_begin();
        kv_room = none ? 0 : kv_most - 1;
        assert_int_equal(heal_start(&h, o), 0);
        assert_int_equal(h.health.n_nodes, none ? 2 : 3);
        assert_true(refusals > 0 && refusals < 8);
        if ((root_lines() != 1 && !o.measure) || /* which gives advice as well */
            !rig_log_has("node 2 failed in loading weights: ") ||
            !rig_log_has(none ? "; going on with 2 of 3 nodes\n" : "; going on with 3 of 3 nodes\n"))
            fail_msg("%s", rig_logged.text.v);
        assert_int_equal(life(h.r.engine, h.r.prompt, got, got_row), 0);
        assert_memory_equal(got, want, sizeof want);
        heal_end(&h);
    }
    refusal = DL_ELIMIT;
    dev->fns = true_fns;
    heal_close(&h);
    rig_log_end();
}

static void one_token(struct heal *h, dl_session *s, int i)
{
    struct dl_step_item item = {.session = s, .tokens = &want[i], .n = 1, .want = DL_WANT_BEST};
    assert_int_equal(dl_engine_step(h->r.engine, &item, 1), 0);
    if (i + 1 < N_GEN)
        assert_int_equal(item.top[0].id, want[i + 1]);
}

/* A worker without memory for any share is asked again after a while, seldom while that does not help, and at once when it was
 * started anew; the others compute meanwhile. */
static void asked_again_when_it_may_have_more(void **state)
{
    (void)state;
    struct heal h;
    int32_t id;
    healthy(NULL);
    heal_open(&h, NULL, 3);
    h.forgiven_ms = 3000;
    h.r.workers[2].opts.memory = 1000;
    rig_log_begin();
    const uint64_t t0 = dl_now_ns(); /* where the machine was so slow that it may be asked again, it may */
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    assert_int_equal(h.health.n_nodes, 2);
    dl_session *s = prompted(&h, &id);
    const int first = h.connects;
    h.answers[1] = true;
    one_token(&h, s, 0);
    assert_true(h.connects == first || dl_now_ns() - t0 > 3 * S);
    heal_until(&h, first + 1); /* in vain */
    one_token(&h, s, 1);
    const int second = h.connects;
    if (h.health.n_nodes != 2 || root_lines() != 2)
        fail_msg("on %u nodes: %s", h.health.n_nodes, rig_logged.text.v);
    for (uint64_t t1 = dl_now_ns(); dl_now_ns() - t1 < 35 * S / 10; dl_sleep_ns(S / 50))
        assert_int_equal(dl_engine_tend(h.r.engine), 0);
    one_token(&h, s, 2);
    const int third = h.connects;
    const unsigned lines = root_lines();
    assert_true(third == second || dl_now_ns() - t0 > 9 * S); /* twice as long is not over yet */
    h.answers[1] = false;
    one_token(&h, s, 3);
    h.answers[1] = true;
    h.r.workers[2].opts.memory = 0;
    heal_until(&h, third + 1);
    one_token(&h, s, 4);
    if (h.connects != third + 1 || h.health.state != DL_HEALTH_READY)
        fail_msg("on %u nodes: %s", h.health.n_nodes, rig_logged.text.v);
    assert_true(rig_log_has("node 2 is back: going on with 3 of 3 nodes"));
    assert_int_equal(root_lines(), lines + 1);
    dl_session_destroy(&s);
    heal_end(&h);
    heal_close(&h);
    rig_log_end();
}

/* No node holds more than its share: not even the one that has the file. */
static void the_root_holds_its_share(void **state)
{
    (void)state;
    struct heal h;
    heal_open(&h, test_data("refs/llama.gguf"), 4);
    struct dl_engine_info info;
    assert_int_equal(heal_start(&h, rig_opts()), 0);
    dl_engine_info(h.r.engine, &info);
    const uint64_t all = dl_model_weight_bytes(h.r.model);
    printf("the root of four nodes holds %.1f %% of the weights\n", 100.0 * (double)info.weight_bytes / (double)all);
    assert_true(info.weight_bytes < all * 35 / 100);
    assert_true(info.weight_bytes > all / 10);
    heal_end(&h);
    heal_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions_and_rows),
        cmocka_unit_test(a_device_that_breaks),
        cmocka_unit_test(a_node_that_stops),
        cmocka_unit_test(the_roots_device_breaks),
        cmocka_unit_test(said_while_it_loads),
        cmocka_unit_test(both_at_once),
        cmocka_unit_test(what_is_left_is_too_small),
        cmocka_unit_test(stopped_while_it_waits),
        cmocka_unit_test(less_for_the_small_one),
        cmocka_unit_test(less_for_one_that_cannot_say_why),
        cmocka_unit_test(asked_again_when_it_may_have_more),
        cmocka_unit_test(the_root_holds_its_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
