/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_pause.c: workers that go while nothing is computed. Whoever notices, and however late, the log has one line about it that
 * is true: who, when, why, and with how many nodes it goes on. Who has been started again meanwhile is part of it at once.
 */
#include "heal_rig.h"

#include <stdatomic.h>

#include "link.h"
#include "tempdir.h"

static atomic_bool told[N_MOST];

static bool told_to(void *ud)
{
    return atomic_load((atomic_bool *)ud);
}

struct pause {
    struct heal h;
    dl_session *s;
    int n; /* tokens so far */
};

/* In the middle of an answer of all three. */
static void begin(struct pause *p)
{
    struct dl_step_item item = {.want = DL_WANT_BEST};
    struct dl_engine_opts o = rig_opts();
    o.max_sessions = 2;
    rig_log_begin();
    assert_int_equal(heal_start(&p->h, o), 0);
    assert_int_equal(dl_session_create(p->h.r.engine, &p->s), 0);
    assert_int_equal(dl_session_feed(p->s, p->h.r.prompt, RIG_PROMPT, NULL, NULL, &item), 0);
    assert_int_equal(item.top[0].id, want[0]);
    p->n = 0;
}

static void one_more(struct pause *p)
{
    struct dl_step_item item = {.session = p->s, .tokens = &want[p->n], .n = 1, .want = DL_WANT_BEST};
    assert_int_equal(dl_engine_step(p->h.r.engine, &item, 1), 0);
    p->n++;
    assert_int_equal(item.top[0].id, want[p->n]);
}

static void end(struct pause *p)
{
    dl_session_destroy(&p->s);
    heal_end(&p->h);
    for (int w = 0; w < N_MOST; w++)
        p->h.out[w] = p->h.answers[w] = false;
    p->h.faults = (struct dl_loopback_faults){0};
    p->h.again = 0;
    rig_log_end();
}

static void open_pause(struct pause *p)
{
    healthy(NULL);
    heal_open(&p->h, NULL, 3);
    for (int w = 0; w < 2; w++) {
        atomic_store(&told[w], false);
        p->h.r.workers[w + 1].opts.stop = told_to;
        p->h.r.workers[w + 1].opts.stop_ud = &told[w];
    }
}

/* Ctrl-C at worker w. */
static void user_stops(struct pause *p, int w)
{
    struct rig_worker *worker = &p->h.r.workers[w + 1];
    atomic_store(&told[w], true);
    pthread_join(worker->thread, NULL);
    p->h.working[w] = false;
    assert_int_equal(worker->err, DL_ECANCELED);
    atomic_store(&told[w], false);
}

static void said(const struct pause *p, unsigned lines, uint32_t n_nodes, const char *text)
{
    const struct dl_engine_health *now = &p->h.health;
    if (root_lines() != lines || !rig_log_has(text) || now->n_nodes != n_nodes ||
        (now->state == DL_HEALTH_READY) != (n_nodes == 3))
        fail_msg("no '%s' in %u lines, or %u nodes: %s", text, root_lines(), now->n_nodes, rig_logged.text.v);
}

/* The ways to notice: before the next batch, by looking after it, by asking what the nodes did. */
enum way { BY_STEP, BY_TENDING, BY_NODES, BY_RESET, N_WAYS };

static void notice(struct pause *p, enum way way)
{
    struct dl_node_stats v[3];
    uint32_t n;
    if (way == BY_STEP)
        dl_sleep_ns(11 * S / 10);
    else if (way == BY_TENDING)
        assert_int_equal(dl_engine_tend(p->h.r.engine), 0);
    else if (way == BY_NODES)
        assert_int_equal(dl_engine_nodes(p->h.r.engine, v, 3, &n), DL_EPEER);
    else
        dl_engine_stats_reset(p->h.r.engine);
    if (way == BY_NODES || way == BY_RESET) /* it has noticed: nothing is ready any more */
        assert_int_equal(p->h.health.state, DL_HEALTH_HEALING);
}

static const char *const phases[N_WAYS] = {"a pause", "a pause", "statistics", "statistics"};

static void stopped_in_a_pause(void **state)
{
    (void)state;
    struct pause p;
    char line[128];
    open_pause(&p);
    for (enum way way = 0; way < N_WAYS; way++) {
        begin(&p);
        one_more(&p);
        user_stops(&p, 1);
        p.h.out[1] = true;
        notice(&p, way);
        if (way == BY_TENDING) /* nobody has to ask for anything first */
            assert_int_equal(p.h.health.n_nodes, 2);
        one_more(&p);
        snprintf(line, sizeof line, "node 2 lost in %s: its user has stopped it; going on with 2 of 3 nodes\n",
                 phases[way]);
        said(&p, 1, 2, line);
        assert_int_equal(p.h.connects, 2);
        one_more(&p);
        end(&p);
    }
    heal_close(&p.h);
}

/* It is there again when that is noticed: it is not left out for a while, unless that happens again and again. */
static void started_again_in_a_pause(void **state)
{
    (void)state;
    struct pause p;
    open_pause(&p);
    for (enum way way = 0; way < N_WAYS; way++) {
        begin(&p);
        one_more(&p);
        user_stops(&p, 1);
        notice(&p, way);
        one_more(&p);
        said(&p, 1, 3, ": its user has stopped it; going on with 3 of 3 nodes\n");
        assert_int_equal(p.h.connects, 2);
        user_stops(&p, 1);
        notice(&p, way);
        one_more(&p);
        said(&p, 2, 2, ": its user has stopped it; going on with 2 of 3 nodes\n");
        assert_int_equal(p.h.connects, 3);
        end(&p);
    }
    heal_close(&p.h);
}

/* It could be connected to once more, but was about to end: that is no second event. */
static void asked_in_vain(void **state)
{
    (void)state;
    struct pause p;
    open_pause(&p);
    begin(&p);
    one_more(&p);
    user_stops(&p, 1);
    p.h.faults = (struct dl_loopback_faults){.die_node = 2, .die_after_sends = 1};
    p.h.again = 1;
    notice(&p, BY_NODES);
    one_more(&p);
    said(&p, 1, 2, "node 2 lost in statistics: its user has stopped it; going on with 2 of 3 nodes\n");
    assert_int_equal(p.h.connects, 3);
    p.h.answers[1] = true;
    heal_until(&p.h, 4);
    one_more(&p);
    said(&p, 2, 3, "node 2 is back: going on with 3 of 3 nodes\n");
    end(&p);
    heal_close(&p.h);
}

/* Before it is known how it goes on without the one, the other is lost: two events. */
static void another_one_meanwhile(void **state)
{
    (void)state;
    struct pause p;
    open_pause(&p);
    begin(&p);
    one_more(&p);
    user_stops(&p, 1);
    p.h.out[1] = true;
    p.h.faults = (struct dl_loopback_faults){.die_node = 1, .die_after_sends = 1};
    p.h.again = 1;
    notice(&p, BY_NODES);
    one_more(&p);
    said(&p, 2, 1, "node 2 lost in statistics: its user has stopped it\n");
    said(&p, 2, 1, "node 1 lost in joining: ");
    said(&p, 2, 1, "; going on with 1 of 3 nodes\n");
    assert_int_equal(life(p.h.r.engine, p.h.r.prompt, got, got_row), 0); /* a second session, alone */
    assert_memory_equal(got, want, sizeof want);
    end(&p);
    heal_close(&p.h);
}

/* Not there yet when the engine is made: only who asks for it starts without it, and it is taken in when it comes. */
static void started_without_one(void **state)
{
    (void)state;
    struct pause p;
    open_pause(&p);
    p.h.out[1] = true;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, rig_opts()), DL_EPEER);
    heal_end(&p.h);
    p.h.some = true;
    begin(&p);
    said(&p, 2, 2, "going on with 2 of 3 nodes; who is missing is taken in when it comes\n");
    assert_string_equal(p.h.health.text, "2 of 3 nodes are there");
    one_more(&p);
    p.h.out[1] = false;
    p.h.answers[1] = true;
    heal_until(&p.h, 2);
    one_more(&p);
    said(&p, 3, 3, "node 2 has come: going on with 3 of 3 nodes\n"); /* it was never there */
    user_stops(&p, 1);
    p.h.out[1] = true;
    notice(&p, BY_TENDING);
    p.h.out[1] = false;
    heal_until(&p.h, 4);
    said(&p, 5, 3, "node 2 is back: going on with 3 of 3 nodes\n");
    one_more(&p);
    end(&p);
    for (int w = 0; w < 2; w++) /* nobody but the root is there */
        p.h.out[w] = true;
    begin(&p);
    said(&p, 2, 1, "going on with 1 of 3 nodes; who is missing is taken in when it comes\n");
    one_more(&p);
    end(&p);
    heal_close(&p.h);
}

/* Those that are there cannot hold the model, by what is free or by the shares that they were given: one line says who is missing, too. */
static void too_large_without_one(void **state)
{
    (void)state;
    struct pause p;
    struct dl_engine_opts o = rig_opts();
    static const double shares[] = {1, 1, 1};
    open_pause(&p);
    p.h.some = p.h.out[1] = true;
    o.ctx = DL_MAX_SEQ;
    o.max_sessions = 60;
    o.measure = true;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, o), DL_ELIMIT);
    heal_end(&p.h);
    if (!rig_log_has("memory: dllama-vk demo needs ") ||
        !rig_log_has("); node 2 (there) is missing; free, of which a ") ||
        !rig_log_has("): start who is missing, or some ") || root_lines() != 2)
        fail_msg("%s", rig_logged.text.v);
    o = rig_opts();
    o.shares = shares;
    p.h.r.workers[1].opts.memory = 1000;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, o), DL_ELIMIT);
    heal_end(&p.h);
    if (!rig_log_has("node 1 failed in planning: it needs ") || !rig_log_has("; node 2 (there) is missing\n") ||
        root_lines() != 2)
        fail_msg("%s", rig_logged.text.v);
    heal_close(&p.h);
    rig_log_end();
}

/* One is there at the start, but has no memory for anything: only who does with some starts without it, and asks it again later. */
static void started_with_one_too_small(void **state)
{
    (void)state;
    struct pause p;
    struct dl_engine_opts o = rig_opts();
    char dir[TEMPDIR_LEN], rates[TEMPDIR_LEN + 8];
    open_pause(&p);
    make_dir(dir);
    snprintf(rates, sizeof rates, "%s/rates", dir);
    o.measure = true; /* once */
    o.rates_file = rates;
    p.h.forgiven_ms = 100;
    p.h.r.workers[2].opts.memory = 100000;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, o), DL_ELIMIT);
    heal_end(&p.h);
    assert_true(rig_log_has("memory: node 2 has 0.1 MiB free, "));
    p.h.some = true;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, o), 0);
    assert_int_equal(p.h.connects, 2);
    const unsigned lines = root_lines(); /* there may be advice */
    said(&p, lines, 2,
         "node 2 failed in planning: it has 0.00 GiB free, too little even for the activations that every node "
         "needs; going on with 2 of 3 nodes\n");
    assert_int_equal(life(p.h.r.engine, p.h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    p.h.answers[1] = true;
    p.h.r.workers[2].opts.memory = 0;
    heal_until(&p.h, 3);
    assert_true(rig_log_has("node 2 is back: going on with 3 of 3 nodes\n"));
    assert_int_equal(life(p.h.r.engine, p.h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    heal_end(&p.h);
    remove_dir(dir);
    heal_close(&p.h);
    rig_log_end();
}

/* A worker that comes back without memory for anything, where shares follow memory: the others go on without it. */
static void comes_back_with_next_to_nothing(void **state)
{
    (void)state;
    struct pause p;
    struct dl_engine_opts o = rig_opts();
    open_pause(&p);
    o.measure = true;
    rig_log_begin();
    assert_int_equal(heal_start(&p.h, o), 0);
    user_stops(&p, 1);
    p.h.r.workers[2].opts.memory = 100000;
    const unsigned lines = root_lines(); /* there may be advice */
    assert_int_equal(dl_engine_tend(p.h.r.engine), 0);
    said(&p, lines + 2, 2, "node 2 lost in a pause: its user has stopped it\n");
    said(&p, lines + 2, 2,
         "node 2 failed in planning: it has 0.00 GiB free, too little even for the activations that every node "
         "needs; going on with 2 of 3 nodes\n");
    assert_int_equal(life(p.h.r.engine, p.h.r.prompt, got, got_row), 0);
    assert_memory_equal(got, want, sizeof want);
    heal_end(&p.h);
    heal_close(&p.h);
    rig_log_end();
}

/* A worker of another version, which can be connected to. */
static void *work_as_a_stranger(void *arg)
{
    struct rig_worker *w = arg;
    struct eng_link l = {.t = w->t, .node = 0, .who = "test"};
    const struct eng_hello hello = {ENG_PROTOCOL, "0.0.1", "a test"};
    struct eng_out o = {0};
    struct eng_in in;
    w->err = eng_link_recv(&l, ENG_CONTROL_MOST, 5 * S, &in);
    eng_hello_write(&o, &hello);
    if (!w->err)
        w->err = eng_link_send(&l, &o);
    while (!w->err && eng_in_type(&in) != ENG_MSG_ERROR)
        w->err = eng_link_recv(&l, ENG_CONTROL_MOST, 5 * S, &in);
    eng_link_finish(&l);
    eng_out_finish(&o);
    dl_transport_close(&w->t);
    return NULL;
}

/* It was started again as something that does not belong here: that is said once, however often it is asked, and again after it was back. */
static void comes_back_as_another(void **state)
{
    (void)state;
    struct pause p;
    open_pause(&p);
    p.h.forgiven_ms = 100;
    begin(&p);
    one_more(&p);
    for (int i = 0; i < 2; i++) {
        const int at = p.h.connects;
        const unsigned lines = root_lines();
        user_stops(&p, 1);
        p.h.work[1] = work_as_a_stranger;
        notice(&p, BY_TENDING);
        heal_until(&p.h, at + 2); /* with it, and without */
        said(&p, lines + 2, 2, "node 2 lost in a pause: its user has stopped it\n");
        said(&p, lines + 2, 2, "node 2 failed in joining: it is version 0.0.1 (protocol ");
        said(&p, lines + 2, 2, "): install the same on all nodes; going on with 2 of 3 nodes\n");
        one_more(&p);
        if (i)
            break;
        p.h.answers[1] = true;
        heal_until(&p.h, at + 4);
        said(&p, lines + 2, 2, "");
        p.h.work[1] = NULL;
        heal_until(&p.h, at + 5);
        said(&p, lines + 3, 3, "node 2 is back: going on with 3 of 3 nodes\n");
        p.h.answers[1] = false;
        one_more(&p);
    }
    end(&p);
    heal_close(&p.h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_in_a_pause),
        cmocka_unit_test(started_again_in_a_pause),
        cmocka_unit_test(asked_in_vain),
        cmocka_unit_test(another_one_meanwhile),
        cmocka_unit_test(started_without_one),
        cmocka_unit_test(comes_back_as_another),
        cmocka_unit_test(too_large_without_one),
        cmocka_unit_test(comes_back_with_next_to_nothing),
        cmocka_unit_test(started_with_one_too_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
