/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_hostile.c: a worker among altered messages of a root's, and a root among altered messages of a worker's: one end is
 * the real one, the other a script that says all the right things but for one. Whatever that one holds, the real end goes on or
 * ends with an error and a line in the log, soon, and its device is as good as new. test_cluster_msg.c does the same with the
 * messages alone, a thousand times each.
 *
 * DLLAMA_HOSTILE=N: how many alterations per type (200).
 */
#include "cluster_rig.h"

#include <stdatomic.h>
#include <time.h>

#include "link.h"
#include "source.h"

#define MS UINT64_C(1000000)
#define SOON_MS 400u    /* how long the ends wait for each other where one of them may wait in vain */
#define LATER_MS 20000u /* and where nothing is to be missing, however slow the machine is */
#define MOST_WEIGHTS 64u

/* What both scripts know of the model: the demo on two nodes. */
static struct rig the_rig;
static struct eng_model_msg plan_msg;
static struct dl_slice slices[2];
static struct dl_model_plan *plan;
static struct eng_offer_entry offers[MOST_WEIGHTS];
static uint32_t n_exchanges;
static unsigned n_alterations = 200;

static int setup(void **state)
{
    (void)state;
    const char *env = getenv("DLLAMA_HOSTILE");
    n_alterations = env ? (unsigned)atoi(env) : n_alterations;
    rig_open(&the_rig, NULL, 2);
    struct eng_model_msg *m = &plan_msg;
    *m = (struct eng_model_msg){.h = *dl_model_header(the_rig.model), .slices = slices, .n_nodes = 2, .node = 1};
    assert_int_equal(dl_model_types(the_rig.model, &m->types), 0);
    assert_int_equal(dl_slices_make(&m->h, DL_BLOCK, NULL, 2, slices), 0);
    m->shape = (struct dl_batch_shape){16, 4, 1, 8};
    m->opts = (struct dl_plan_opts){.max_tokens = 16, .max_out = 4, .kv_blocks = 8, .kv_type = DL_F16, .wire = DL_F32};
    assert_int_equal(dl_plan_build(&m->h, &m->types, slices, 1, 2, &m->opts, &plan), 0);
    assert_int_equal(eng_plan_digest(m, plan, &m->plan), 0);
    assert_true(plan->n_weights <= MOST_WEIGHTS);
    struct eng_hash *hash = eng_hash_create();
    static uint8_t stage[4096];
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        struct eng_source s;
        assert_true(eng_source_find(the_rig.model, &plan->weights[i], &s));
        offers[i].bytes = s.bytes;
        assert_int_equal(eng_source_digest(&s, hash, stage, sizeof stage, NULL, NULL, &offers[i].digest), 0);
    }
    eng_hash_destroy(&hash);
    for (uint32_t i = 0; i < plan->plan.n_steps; i++)
        n_exchanges += plan->plan.steps[i].kind == DL_STEP_EXCHANGE;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dl_plan_destroy(&plan);
    dl_tensor_types_finish(&plan_msg.types);
    rig_close(&the_rig);
    return 0;
}

/* -------------------------------------------------------------------------------------------- the scripts */

struct life {
    enum eng_msg target; /* ENG_MSG_END: nothing is altered */
    uint64_t seed;
    uint32_t wait_ms; /* both ends' */
};
static const struct life unaltered = {ENG_MSG_END, 1, LATER_MS};

struct script {
    struct eng_link l;
    struct eng_out o;
    struct eng_in in;
    enum eng_msg target; /* the first message of this type is altered */
    bool hit;
    uint64_t patience_ns;
    uint64_t rng;
    atomic_uint ended;
    float *wire; /* for exchanges: zeros */
};

static void alter(struct script *s)
{
    static const uint32_t ends[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff};
    struct dl_str *m = &s->o.s;
    uint64_t how = test_rand(&s->rng) % 10;
    s->hit = true;
    if (how == 0) {
        m->len = (size_t)(test_rand(&s->rng) % (m->len + 1)); /* cut, maybe to nothing */
    } else if (how == 1) {
        for (uint64_t n = test_rand(&s->rng) % 5000; n != UINT64_MAX; n--)
            eng_put_u8(&s->o, (uint8_t)n);
    } else if (how == 2) {
        m->v[0] = (char)test_rand(&s->rng); /* another type, or none */
    } else {
        for (uint64_t k = 1 + test_rand(&s->rng) % 3; k && m->len > 5; k--) {
            size_t at = 1 + (size_t)(test_rand(&s->rng) % (DL_MIN(m->len, 200) - 5));
            if (how < 6)
                m->v[at] ^= (char)(1u << test_rand(&s->rng) % 8);
            else
                memcpy(m->v + at, &ends[test_rand(&s->rng) % DL_COUNT_OF(ends)], 4);
        }
    }
}

static bool say(struct script *s)
{
    if (!s->hit && s->o.s.v[0] == (char)s->target)
        alter(s);
    return !eng_link_send(&s->l, &s->o);
}

/* The next message of this type; false when something else ends it. */
static bool hear(struct script *s, enum eng_msg type)
{
    for (;;) {
        if (eng_link_recv(&s->l, ENG_BULK_MOST, s->patience_ns, &s->in) || eng_in_type(&s->in) == ENG_MSG_ERROR)
            return false;
        if (eng_in_type(&s->in) == type)
            return true;
        if (eng_in_type(&s->in) != ENG_MSG_GOT)
            return false;
    }
}

static void ended(void *ud, int status)
{
    (void)status;
    atomic_fetch_add(&((struct script *)ud)->ended, 1);
}

/* Takes part in the exchanges of one token. */
static bool exchange(struct script *s)
{
    const size_t slice = plan_msg.h.dim * sizeof(float);
    atomic_store(&s->ended, 0);
    for (uint32_t i = 0; i < n_exchanges; i++) {
        struct dl_xfer x = {DL_XFER_ALL_GATHER, s->wire, slice, slice};
        if (dl_transport_start(s->l.t, &x, ended, s))
            return false;
        for (uint64_t t0 = dl_now_ns(); atomic_load(&s->ended) <= i && dl_now_ns() - t0 < s->patience_ns;) {
            struct timespec t = {.tv_nsec = 20000};
            nanosleep(&t, NULL);
        }
        if (atomic_load(&s->ended) <= i)
            return false;
    }
    return true;
}

static bool send_wanted(struct script *s)
{
    const uint8_t *bits;
    if (eng_want_read(&s->in, plan->n_weights, &bits))
        return false;
    uint8_t mine[MOST_WEIGHTS / 8];
    memcpy(mine, bits, dl_div_up(plan->n_weights, 8));
    for (uint32_t w = 0; w < plan->n_weights; w++) {
        struct eng_source src;
        if (!(mine[w / 8] >> w % 8 & 1) || !eng_source_find(the_rig.model, &plan->weights[w], &src))
            continue;
        for (uint64_t at = 0; at < src.bytes; at += ENG_CHUNK_BYTES) {
            size_t n = (size_t)DL_MIN(ENG_CHUNK_BYTES, src.bytes - at);
            uint8_t *room;
            eng_data_write(&s->o, w, at, n, &room);
            eng_source_read(&src, at, room, n);
            if (!say(s))
                return false;
        }
    }
    return true;
}

static bool load_worker(struct script *s)
{
    for (;;) {
        if (eng_link_recv(&s->l, ENG_BULK_MOST, s->patience_ns, &s->in))
            return false;
        if (eng_in_type(&s->in) == ENG_MSG_READY)
            return true;
        if (eng_in_type(&s->in) == ENG_MSG_WANT ? !send_wanted(s) : eng_in_type(&s->in) != ENG_MSG_GOT)
            return false;
    }
}

static void play_root(struct script *s)
{
    struct eng_hello hello = {ENG_PROTOCOL, DL_VERSION, "a script"};
    eng_hello_write(&s->o, &hello);
    if (!say(s) || !hear(s, ENG_MSG_HELLO))
        return;
    eng_model_write(&s->o, &plan_msg);
    if (!say(s) || !hear(s, ENG_MSG_MEMORY))
        return;
    eng_offer_write(&s->o, 0, offers, plan->n_weights);
    if (!say(s) || !load_worker(s))
        return;
    uint32_t block = 3;
    struct eng_seq seq = {0, 1, DL_WANT_TOP, 5, 1, &block, 1};
    struct eng_batch b = {.seqs = &seq, .n_seqs = 1, .n_tokens = 1, .n_out = 1, .cut = 1};
    struct eng_step_limits limits = {plan_msg.h.dim, plan_msg.opts.kv_blocks, ENG_EMBED_F32};
    struct eng_tables tables;
    if (eng_tables_init(&tables, &plan_msg.shape))
        return;
    eng_step_write(&s->o, 1, &b, s->wire, &limits, &tables);
    bool ok = say(s) && exchange(s) && hear(s, ENG_MSG_LOGITS);
    eng_tables_finish(&tables);
    eng_fetch_write(&s->o, 1, 0);
    if (!ok || !say(s) || !hear(s, ENG_MSG_LOGITS))
        return;
    if (s->target == ENG_MSG_ERROR) {
        eng_error_write(&s->o, DL_EPEER, "a test");
        (void)say(s);
    }
    eng_plain_write(&s->o, ENG_MSG_BYE);
    (void)say(s);
}

static bool take_data(struct script *s)
{
    uint64_t total = 0, all = 0;
    for (uint32_t i = 0; i < plan->n_weights; i++)
        all += offers[i].bytes;
    while (total < all) {
        struct eng_data d;
        if (!hear(s, ENG_MSG_DATA) || eng_data_read(&s->in, &d))
            return false;
        total += d.n;
        eng_got_write(&s->o, total);
        if (!say(s))
            return false;
    }
    return true;
}

static void play_worker(struct script *s)
{
    const struct dl_slice *slice = &slices[1];
    struct eng_hello hello = {ENG_PROTOCOL, DL_VERSION, "a script"};
    if (!hear(s, ENG_MSG_HELLO))
        return;
    eng_hello_write(&s->o, &hello);
    if (!say(s) || !hear(s, ENG_MSG_MODEL))
        return;
    struct eng_memory m = {.fits = true, .avail = 1u << 30};
    memcpy(m.plan.v, s->in.bytes + s->in.n - sizeof m.plan.v, sizeof m.plan.v);
    eng_memory_write(&s->o, &m);
    if (!say(s))
        return;
    for (uint32_t have = 0, n; have < plan->n_weights; have += n)
        if (!hear(s, ENG_MSG_OFFER) || eng_offer_read(&s->in, have, plan->n_weights, &n))
            return;
    uint8_t bits[MOST_WEIGHTS / 8] = {0};
    for (uint32_t i = 0; i < plan->n_weights; i++)
        bits[i / 8] |= (uint8_t)(1u << i % 8);
    eng_want_write(&s->o, bits, plan->n_weights);
    if (!say(s) || !take_data(s))
        return;
    if (s->target == ENG_MSG_ERROR) {
        eng_error_write(&s->o, DL_EDEVICE, "a test");
        (void)say(s);
    }
    eng_plain_write(&s->o, ENG_MSG_READY);
    if (!say(s) || !hear(s, ENG_MSG_STEP) || !exchange(s))
        return;
    struct dl_candidate scratch[DL_TOP_MOST];
    struct eng_want want = {DL_WANT_TOP, 5, 1};
    eng_logits_begin(&s->o, 1, 1);
    eng_logits_put(&s->o, &want, s->wire, slice->n_vocab, slice->vocab0, scratch);
    if (!say(s) || !hear(s, ENG_MSG_FETCH))
        return;
    want = (struct eng_want){DL_WANT_LAST, 0, 0};
    eng_logits_begin(&s->o, 1, 1);
    eng_logits_put(&s->o, &want, s->wire, slice->n_vocab, slice->vocab0, scratch);
    if (say(s))
        (void)hear(s, ENG_MSG_BYE);
}

static void *worker_script(void *arg)
{
    struct script *s = arg;
    play_worker(s);
    dl_transport_close(&s->l.t);
    return NULL;
}

static void script_init(struct script *s, dl_transport *t, int node, const struct life *life)
{
    *s = (struct script){.l = {.t = t, .node = node, .who = "test"},
                         .target = life->target,
                         .rng = life->seed,
                         .patience_ns = life->wait_ms * MS};
    size_t n = DL_MAX(2 * plan_msg.h.dim, plan_msg.h.vocab);
    s->wire = calloc(n, sizeof *s->wire);
    assert_non_null(s->wire);
}

static void script_finish(struct script *s)
{
    eng_link_finish(&s->l);
    eng_out_finish(&s->o);
    free(s->wire);
}

/* ---------------------------------------------------------------------------------------------- real ends */

static int worker_life(const struct life *life, bool *hit)
{
    dl_transport *t[2];
    struct script s;
    struct rig_worker *w = &the_rig.workers[1];
    assert_int_equal(dl_loopback_open(2, NULL, t), 0);
    script_init(&s, t[0], 1, life);
    w->t = t[1];
    w->opts =
        (struct dl_worker_opts){.model = life->target == ENG_MSG_DATA ? NULL : the_rig.model, .wait_ms = life->wait_ms};
    assert_int_equal(pthread_create(&w->thread, NULL, rig_work, w), 0);
    play_root(&s);
    dl_transport_close(&s.l.t);
    pthread_join(w->thread, NULL);
    *hit = s.hit;
    script_finish(&s);
    return w->err;
}

static int root_life(const struct life *life, bool *hit)
{
    dl_transport *t[2];
    struct script s;
    pthread_t thread;
    assert_int_equal(dl_loopback_open(2, NULL, t), 0);
    script_init(&s, t[1], 0, life);
    assert_int_equal(pthread_create(&thread, NULL, worker_script, &s), 0);
    struct dl_engine_opts o = rig_opts();
    o.model = the_rig.model;
    o.devices = &the_rig.dev;
    o.n_devices = 1;
    o.transport = t[0];
    o.wait_ms = life->wait_ms;
    o.max_batch = 16;
    o.max_out = 4;
    int err = dl_engine_create(&o, &the_rig.engine);
    dl_session *session = NULL;
    float *row;
    int32_t token = 1;
    if (!err)
        err = dl_session_create(the_rig.engine, &session);
    struct dl_step_item item = {.session = session, .tokens = &token, .n = 1, .want = DL_WANT_TOP, .k = 5};
    if (!err)
        err = dl_engine_step(the_rig.engine, &item, 1);
    if (!err)
        err = dl_engine_logits(the_rig.engine, 0, &row);
    dl_session_destroy(&session);
    dl_engine_destroy(&the_rig.engine);
    pthread_join(thread, NULL);
    *hit = s.hit;
    script_finish(&s);
    return err;
}

static void torment(int (*live)(const struct life *, bool *), const enum eng_msg *types, size_t n_types)
{
    bool hit;
    rig_log_begin();
    int unharmed = live(&unaltered, &hit);
    if (unharmed || rig_logged.errors)
        fail_msg("the script itself: %s: %s", dl_err_name(unharmed), rig_logged.text.v);
    for (size_t i = 0; i < n_types; i++) {
        unsigned bad = 0, again = 0;
        for (unsigned k = 0; k < n_alterations; k++) {
            uint64_t took, limit;
            int err;
            unsigned tries = 3;
            struct life l = {types[i], 1000 * i + k, SOON_MS};
            do { /* where the machine rests for longer than the ends wait for each other, nothing was altered */
                rig_log_begin();
                uint64_t t0 = dl_now_ns();
                err = live(&l, &hit);
                took = dl_now_ns() - t0;
                limit = (4000 + 4 * l.wait_ms) * MS;
                l.wait_ms *= hit ? 1 : 4;
                again += !hit || took > limit;
            } while ((!hit || took > limit) && --tries);
            bad += err != 0;
            if (!hit || err > 0 || (err && !rig_logged.errors) || rig_logged.errors > 8 || took > limit)
                fail_msg("%s, seed %zu: %s after %.1f s: %s", eng_msg_name(types[i]), 1000 * i + k, dl_err_name(err),
                         (double)took / 1e9, rig_logged.text.v ? rig_logged.text.v : "");
        }
        printf("%s: %u of %u ended it (%u times again)\n", eng_msg_name(types[i]), bad, n_alterations, again);
        assert_true(bad > 0);
    }
    rig_log_begin();
    assert_int_equal(live(&unaltered, &hit), 0); /* as good as new */
    rig_log_end();
}

static void into_a_worker(void **state)
{
    (void)state;
    static const enum eng_msg types[] = {ENG_MSG_HELLO, ENG_MSG_MODEL, ENG_MSG_OFFER, ENG_MSG_DATA,
                                         ENG_MSG_STEP,  ENG_MSG_FETCH, ENG_MSG_ERROR, ENG_MSG_BYE};
    torment(worker_life, types, DL_COUNT_OF(types));
}

static void into_the_root(void **state)
{
    (void)state;
    static const enum eng_msg types[] = {ENG_MSG_HELLO, ENG_MSG_MEMORY, ENG_MSG_WANT, ENG_MSG_GOT,
                                         ENG_MSG_READY, ENG_MSG_LOGITS, ENG_MSG_ERROR};
    torment(root_life, types, DL_COUNT_OF(types));
}

/* ------------------------------------------------------------------------------------------- out of order */

/* A message of this type that would be right at another time. */
static void write_good(struct script *s, enum eng_msg type, uint64_t step, struct eng_tables *tables)
{
    static const struct eng_hello hello = {ENG_PROTOCOL, DL_VERSION, "a script"};
    static const uint8_t bits[MOST_WEIGHTS / 8] = {1};
    const struct eng_memory memory = {.fits = true, .plan = plan_msg.plan};
    uint32_t block = 3;
    struct eng_seq seq = {(uint32_t)step - 1, 1, DL_WANT_LAST, 0, 0, &block, 1};
    struct eng_batch b = {.seqs = &seq, .n_seqs = 1, .n_tokens = 1, .n_out = 1, .cut = 1};
    struct eng_step_limits limits = {plan_msg.h.dim, plan_msg.opts.kv_blocks, ENG_EMBED_F32};
    uint8_t *room;
    switch (type) {
    case ENG_MSG_HELLO:
        eng_hello_write(&s->o, &hello);
        break;
    case ENG_MSG_MODEL:
        eng_model_write(&s->o, &plan_msg);
        break;
    case ENG_MSG_MEMORY:
        eng_memory_write(&s->o, &memory);
        break;
    case ENG_MSG_OFFER:
        eng_offer_write(&s->o, 0, offers, plan->n_weights);
        break;
    case ENG_MSG_WANT:
        eng_want_write(&s->o, bits, plan->n_weights);
        break;
    case ENG_MSG_DATA:
        eng_data_write(&s->o, 0, 0, 64, &room);
        if (room)
            memset(room, 7, 64);
        break;
    case ENG_MSG_GOT:
        eng_got_write(&s->o, 64);
        break;
    case ENG_MSG_STEP:
        eng_step_write(&s->o, step, &b, s->wire, &limits, tables);
        break;
    case ENG_MSG_LOGITS:
        eng_logits_begin(&s->o, step, 1);
        break;
    case ENG_MSG_FETCH:
        eng_fetch_write(&s->o, step, 0);
        break;
    default:
        eng_plain_write(&s->o, type);
    }
}

/* Comes as far as `stage`: what it has said by then, in order, all of it right. */
enum { AT_FIRST, MET, PLANNED, LOADED, STEPPED, STAGES };
static bool come_to(struct script *s, int stage, struct eng_tables *tables)
{
    static const enum eng_msg says[] = {ENG_MSG_HELLO, ENG_MSG_MODEL, ENG_MSG_OFFER, ENG_MSG_STEP};
    static const enum eng_msg hears[] = {ENG_MSG_HELLO, ENG_MSG_MEMORY, ENG_MSG_READY, ENG_MSG_LOGITS};
    for (int i = 0; i < stage; i++) {
        write_good(s, says[i], 1, tables);
        if (!say(s) || (says[i] == ENG_MSG_STEP && !exchange(s)) || !hear(s, hears[i]))
            return false;
    }
    return true;
}

/* Uses what is not there yet, makes twice what there is, frees it and goes on: a worker that is told so ends, with a line. */
static void out_of_order(void **state)
{
    (void)state;
    static const enum eng_msg right[STAGES] = {ENG_MSG_HELLO, ENG_MSG_MODEL, ENG_MSG_OFFER, ENG_MSG_STEP, ENG_MSG_STEP};
    struct rig_worker *w = &the_rig.workers[1];
    int lives = 0;
    for (int stage = 0; stage < STAGES; stage++)
        for (enum eng_msg type = ENG_MSG_HELLO; type < ENG_MSG_END; type++) {
            if (type == right[stage] || type == ENG_MSG_ERROR || type == ENG_MSG_BYE ||
                (type == ENG_MSG_FETCH && stage == STEPPED))
                continue;
            dl_transport *t[2];
            struct script s;
            struct eng_tables tables = {0};
            rig_log_begin();
            assert_int_equal(dl_loopback_open(2, NULL, t), 0);
            assert_int_equal(eng_tables_init(&tables, &plan_msg.shape), 0);
            script_init(&s, t[0], 1, &unaltered);
            w->t = t[1];
            w->opts = (struct dl_worker_opts){.model = the_rig.model, .wait_ms = LATER_MS};
            assert_int_equal(pthread_create(&w->thread, NULL, rig_work, w), 0);
            bool came = come_to(&s, stage, &tables);
            write_good(&s, type, 2, &tables);
            (void)say(&s);
            write_good(&s, ENG_MSG_STEP, stage == STEPPED ? 2 : 1, &tables); /* as if nothing had been */
            (void)say(&s);
            bool said = false;
            while (!said && !eng_link_recv(&s.l, ENG_BULK_MOST, s.patience_ns, &s.in))
                said = eng_in_type(&s.in) == ENG_MSG_ERROR;
            dl_transport_close(&s.l.t);
            pthread_join(w->thread, NULL);
            if (!came || !said || w->err != DL_EFORMAT || rig_logged.errors != 1)
                fail_msg("%s at stage %d: %s in %u lines: %s", eng_msg_name(type), stage, dl_err_name(w->err),
                         rig_logged.errors, rig_logged.text.v ? rig_logged.text.v : "");
            eng_tables_finish(&tables);
            script_finish(&s);
            lives++;
        }
    printf("%d messages at the wrong time\n", lives);
    bool hit;
    rig_log_begin();
    assert_int_equal(worker_life(&unaltered, &hit), 0); /* as good as new */
    assert_int_equal(rig_logged.errors, 0);
    rig_log_end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(into_a_worker),
        cmocka_unit_test(into_the_root),
        cmocka_unit_test(out_of_order),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
