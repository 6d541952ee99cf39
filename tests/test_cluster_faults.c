/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_faults.c: whatever a node does, the others notice soon, say which one it was, in which phase and why, and give back
 * what they held: nodes that die at any message or exchange, nodes that stop, other versions, other plans, too little memory.
 */
#include "cluster_rig.h"

#include "link.h"

#define S UINT64_C(1000000000)

/* Of the last life that came to its end: what it computed. */
static float last_row[1024];

/* Loads, feeds a prompt, asks for a whole row, decodes a token. The first error. */
static int whole_life(struct rig *r, struct dl_engine_opts o, const struct dl_loopback_faults *faults)
{
    int err = rig_start(r, o, faults);
    if (err)
        return err;
    dl_session *s;
    float *row;
    assert_int_equal(dl_session_create(r->engine, &s), 0);
    struct dl_step_item item = {.want = DL_WANT_BEST};
    err = dl_session_feed(s, r->prompt, RIG_PROMPT, NULL, NULL, &item);
    int32_t token = err ? 0 : item.top[0].id;
    if (!err)
        err = dl_engine_logits(r->engine, 0, &row);
    item = (struct dl_step_item){.session = s, .tokens = &token, .n = 1, .want = DL_WANT_LAST};
    if (!err)
        err = dl_engine_step(r->engine, &item, 1);
    if (!err)
        memcpy(last_row, item.logits, rig_vocab(r) * sizeof *last_row);
    if (err) { /* and it stays so, but the tokens are known */
        const unsigned lines = rig_log_errors();
        item.want = DL_WANT_BEST;
        assert_int_equal(dl_engine_step(r->engine, &item, 1), err);
        assert_true(rig_log_errors() > lines);
        const uint32_t len = dl_session_len(s);
        assert_true(len == 0 || len == RIG_PROMPT);
        assert_memory_equal(dl_session_tokens(s), r->prompt, len * sizeof *r->prompt);
    }
    dl_session_destroy(&s);
    return err;
}

/* One life in which a node dies; true while it came to that. */
static bool dies(struct rig *r, const struct dl_loopback_faults *faults, const char *what, int *phases)
{
    struct dl_engine_opts o = rig_opts();
    rig_log_begin();
    uint64_t t0 = dl_now_ns();
    int err = whole_life(r, o, faults);
    uint64_t took = dl_now_ns() - t0;
    rig_stop(r);
    bool died = err != 0;
    if (died) {
        uint64_t last = t0;
        for (int i = 1; i < r->n; i++) {
            last = DL_MAX(last, r->workers[i].ended_ns);
            if (r->workers[i].err != DL_EPEER)
                fail_msg("%s: worker %d says %s", what, i, dl_err_name(r->workers[i].err));
        }
        /* At once, but the machine may be slow: a node that is not missed is waited for much longer. */
        if (err != DL_EPEER || took > 30 * S || last - t0 > 30 * S)
            fail_msg("%s: %s after %.2f s: %s", what, dl_err_name(err), (double)took / 1e9, rig_logged.text.v);
        char name[32];
        snprintf(name, sizeof name, "node %d", faults->die_node);
        if (faults->die_node && !rig_log_has(name))
            fail_msg("%s: who was it? %s", what, rig_logged.text.v);
        static const char *const all[] = {"joining", "planning", "loading weights", "step 1",
                                          "step 2",  ", logits", ", exchange"};
        for (size_t i = 0; i < DL_COUNT_OF(all); i++)
            if (rig_log_has(all[i]))
                *phases |= 1 << i;
    }
    rig_log_end();
    return died;
}

static void death_at_any_message(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 3);
    int seen = 0, lives = 0;
    for (int sent = 0; sent < 2; sent++) /* weights from a local file, then, with larger strides, sent */
        for (int node = 0; node < 3; node++)
            for (uint64_t k = 1;; k += !sent || k < 5 ? 1 : 9) {
                struct dl_loopback_faults faults = {.die_node = node, .die_after_sends = k};
                char what[64];
                snprintf(what, sizeof what, "node %d, message %llu", node, (unsigned long long)k);
                r.workers[1].opts.model = r.workers[2].opts.model = sent ? NULL : r.model;
                if (!dies(&r, &faults, what, &seen))
                    break;
                lives++;
            }
    printf("%d lives ended at a message\n", lives);
    assert_true(lives > 30);
    assert_int_equal(seen & 0x3f, 0x3f); /* in every phase */
    rig_close(&r);
}

static void death_at_any_exchange(void **state)
{
    (void)state;
    struct rig r;
    int seen = 0, lives = 0;
    static float healthy[1024];
    rig_open(&r, NULL, 3);
    assert_int_equal(whole_life(&r, rig_opts(), NULL), 0);
    rig_stop(&r);
    memcpy(healthy, last_row, sizeof healthy);
    for (int node = 0; node < 3; node++)
        for (uint64_t k = 1;; k++) {
            struct dl_loopback_faults faults = {.die_node = node, .die_after = k};
            char what[64];
            snprintf(what, sizeof what, "node %d, exchange %llu", node, (unsigned long long)k);
            if (!dies(&r, &faults, what, &seen))
                break;
            lives++;
            /* The devices are as good as new: their counters, too. */
            assert_int_equal(whole_life(&r, rig_opts(), NULL), 0);
            rig_stop(&r);
            assert_memory_equal(healthy, last_row, sizeof healthy);
        }
    printf("%d lives ended at an exchange\n", lives);
    assert_int_equal(lives, 3 * 2 * 4); /* two steps of two layers of two exchanges */
    assert_int_equal(seen & 0x58, 0x58);
    rig_close(&r);
}

/* A device that takes its time once, in the middle of a batch: the node lives, but keeps the others waiting. */
static void a_node_that_stops(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 3);
    dl_device *dev = r.workers[2].dev;
    rig_fault_begin(dev);
    struct dl_engine_opts o = rig_opts();
    for (int i = 0; i < 2; i++) { /* longer than the others wait, and shorter */
        rig_log_begin();
        rig_fault_at(3, i ? S / 5 : 30 * S);
        o.wait_ms = i ? 60000 : 2500; /* any thread may rest for a moment */
        uint64_t t0 = dl_now_ns();
        int err = whole_life(&r, o, NULL);
        uint64_t took = dl_now_ns() - t0;
        atomic_store(&rig_fault.noticed, true);
        rig_stop(&r);
        if (i) {
            assert_int_equal(err, DL_OK);
        } else {
            assert_int_equal(err, DL_EPEER);
            assert_true(took < 20 * S);
            assert_true(rig_log_has("step 1, exchange 2: a node keeps the others waiting"));
            assert_int_equal(r.workers[1].err, DL_EPEER);
            assert_int_equal(r.workers[2].err, DL_EPEER);
        }
    }
    rig_fault_end(dev);
    rig_close(&r);
    rig_log_end();
}

/* A device that breaks on one node: the root says which and returns DL_EPEER. */
static void a_device_that_breaks(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 3);
    for (int node = 0; node < 3; node += 2) {
        dl_device *dev = node ? r.workers[node].dev : r.dev;
        rig_fault_begin(dev);
        rig_log_begin();
        rig_fault_at(3, 0);
        int err = whole_life(&r, rig_opts(), NULL);
        rig_stop(&r);
        assert_int_equal(err, node ? DL_EPEER : DL_EDEVICE);
        assert_true(rig_log_has(node ? "node 2 (cpu" : "the root says: the root has failed"));
        rig_fault_end(dev);
        rig_log_end();
    }
    rig_close(&r);
}

/* ------------------------------------------------------------------------------------------ strangers */

/* The other end of a link, played by the test thread or by one of its own. */
struct stranger {
    dl_transport *t;
    int peer;
    struct eng_hello hello;
    struct eng_digest plan; /* answered to MODEL */
    int err;
};

static void *strange_worker(void *arg)
{
    struct stranger *s = arg;
    struct eng_link l = {.t = s->t, .node = 0, .who = "test"};
    struct eng_out o = {0};
    struct eng_in in;
    s->err = eng_link_recv(&l, ENG_CONTROL_MOST, 20 * S, &in);
    if (s->hello.build[0] && !s->err) {
        eng_hello_write(&o, &s->hello);
        s->err = eng_link_send(&l, &o);
        if (!s->err)
            s->err = eng_link_recv(&l, ENG_CONTROL_MOST, 20 * S, &in);
        if (!s->err && eng_in_type(&in) == ENG_MSG_MODEL) {
            struct eng_memory m = {.fits = true, .plan = s->plan};
            eng_memory_write(&o, &m);
            s->err = eng_link_send(&l, &o);
        }
    }
    while (!s->err && eng_in_type(&in) != ENG_MSG_ERROR)
        s->err = eng_link_recv(&l, ENG_CONTROL_MOST, 20 * S, &in);
    struct eng_error said;
    if (!s->err)
        s->err = eng_error_read(&in, &said) ? DL_EFORMAT : said.code;
    eng_link_finish(&l);
    eng_out_finish(&o);
    dl_transport_close(&s->t);
    return NULL;
}

static void root_meets(struct rig *r, struct stranger *s, int want, const char *says)
{
    dl_transport *t[2];
    pthread_t thread;
    rig_log_begin();
    assert_int_equal(dl_loopback_open(2, NULL, t), 0);
    s->t = t[1];
    assert_int_equal(pthread_create(&thread, NULL, strange_worker, s), 0);
    struct dl_engine_opts o = rig_opts();
    o.model = r->model;
    o.devices = &r->dev;
    o.n_devices = 1;
    o.transport = t[0];
    o.wait_ms = s->hello.build[0] ? 20000 : 300; /* who answers may take his time */
    int err = dl_engine_create(&o, &r->engine);
    pthread_join(thread, NULL);
    if (err != want || r->engine || rig_logged.errors != 1 || !rig_log_has(says))
        fail_msg("%s, in %u lines: %s", dl_err_name(err), rig_logged.errors, rig_logged.text.v);
    assert_int_equal(s->err, want); /* it was told why */
    rig_log_end();
}

static void the_root_refuses(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 1);
    struct stranger s = {.hello = {ENG_PROTOCOL, "0.0.1", "a test"}};
    root_meets(&r, &s, DL_EUNSUP, "node 1: joining: it is version 0.0.1");
    s.hello = (struct eng_hello){ENG_PROTOCOL + 1, DL_VERSION, "a test"};
    root_meets(&r, &s, DL_EUNSUP, "protocol");
    s.hello = (struct eng_hello){0};
    root_meets(&r, &s, DL_EPEER, "node 1: joining: it has not said anything for 0.3");
    s.hello = (struct eng_hello){ENG_PROTOCOL, DL_VERSION, "a test"};
    root_meets(&r, &s, DL_EUNSUP, "node 1 (a test): planning: it plans another computation");
    rig_close(&r);
}

/* Says these messages to a worker, one after the other, and hears what it answers; who says nothing hangs up at once. */
static int worker_meets(dl_device *dev, const struct eng_out *msgs, int n, struct eng_error *said)
{
    dl_transport *t[2];
    struct rig_worker w = {.dev = dev, .err = 1};
    assert_int_equal(dl_loopback_open(2, NULL, t), 0);
    w.t = t[1];
    assert_int_equal(pthread_create(&w.thread, NULL, rig_work, &w), 0);
    for (int i = 0; i < n; i++)
        (void)dl_transport_send(t[0], 1, msgs[i].s.v, msgs[i].s.len);
    struct eng_link l = {.t = t[0], .node = 1, .who = "test"};
    struct eng_in in;
    *said = (struct eng_error){0};
    while (n && !said->code && !eng_link_recv(&l, ENG_CONTROL_MOST, 20 * S, &in))
        if (eng_in_type(&in) == ENG_MSG_ERROR)
            assert_int_equal(eng_error_read(&in, said), 0);
        else if (eng_in_type(&in) == ENG_MSG_MEMORY)
            break;
    dl_transport_close(&t[0]);
    pthread_join(w.thread, NULL);
    eng_link_finish(&l);
    return w.err;
}

static void a_worker_refuses(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 1);
    struct eng_out msgs[2] = {{{0}, 0}, {{0}, 0}};
    struct eng_error said;
    rig_log_begin();
    struct eng_hello hello = {ENG_PROTOCOL, "9.9.9", "a test"};
    eng_hello_write(&msgs[0], &hello);
    assert_int_equal(worker_meets(r.dev, msgs, 1, &said), DL_EUNSUP);
    assert_int_equal(rig_logged.errors, 1);
    assert_true(rig_log_has("the root is version 9.9.9") && strstr(said.text, "9.9.9"));

    /* The same version, but another plan: what the root says of the slice differs in the digest alone. */
    struct eng_model_msg m = {.h = *dl_model_header(r.model), .n_nodes = 2, .node = 1};
    struct dl_slice slices[2];
    assert_int_equal(dl_model_types(r.model, &m.types), 0);
    assert_int_equal(dl_slices_make(&m.h, 32, NULL, 2, slices), 0);
    m.slices = slices;
    m.shape = (struct dl_batch_shape){16, 4, 1, 8};
    m.opts = (struct dl_plan_opts){.max_tokens = 16, .max_out = 4, .kv_blocks = 8, .kv_type = DL_F16, .wire = DL_F32};
    hello = (struct eng_hello){ENG_PROTOCOL, DL_VERSION, "a test"};
    eng_hello_write(&msgs[0], &hello);
    eng_model_write(&msgs[1], &m);
    rig_log_begin();
    assert_int_equal(worker_meets(r.dev, msgs, 2, &said), DL_EUNSUP);
    assert_int_equal(rig_logged.errors, 1);
    assert_true(rig_log_has("plans another computation"));

    /* A root that hangs up, and one that gives up. */
    const uint64_t t0 = dl_now_ns();
    assert_int_equal(worker_meets(r.dev, msgs, 0, &said), DL_EPEER);
    assert_true(dl_now_ns() - t0 < 8 * S); /* for one who is silent it waits for 10 s */
    eng_error_write(&msgs[1], DL_ELIMIT, "no room");
    rig_log_begin();
    assert_int_equal(worker_meets(r.dev, msgs, 2, &said), DL_ELIMIT);
    assert_true(rig_log_has("the root says: no room"));
    dl_tensor_types_finish(&m.types);
    eng_out_finish(&msgs[0]);
    eng_out_finish(&msgs[1]);
    rig_close(&r);
    rig_log_end();
}

static void too_little_memory(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, NULL, 3);
    rig_log_begin();
    r.workers[2].opts.memory = 1000;
    assert_int_equal(rig_start(&r, rig_opts(), NULL), DL_ELIMIT);
    assert_null(r.engine);
    rig_stop(&r);
    assert_int_equal(r.workers[2].err, DL_ELIMIT);
    assert_int_equal(r.workers[1].err, DL_ELIMIT);
    assert_true(rig_log_has("node 2 (cpu"));
    assert_true(rig_log_has("0.00 GiB are free: give it a smaller share (--split)"));
    assert_true(rig_log_has("worker: this share needs"));
    r.workers[2].opts.memory = 0;
    assert_int_equal(rig_start(&r, rig_opts(), NULL), DL_OK); /* the devices are as good as new */
    rig_stop(&r);
    rig_close(&r);
    rig_log_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_at_any_message), cmocka_unit_test(death_at_any_exchange),
        cmocka_unit_test(a_node_that_stops),    cmocka_unit_test(a_device_that_breaks),
        cmocka_unit_test(the_root_refuses),     cmocka_unit_test(a_worker_refuses),
        cmocka_unit_test(too_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
