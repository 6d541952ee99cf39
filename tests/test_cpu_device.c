/* SPDX-License-Identifier: MIT
 *
 * tests/test_cpu_device.c: the CPU as a device: the two counters, the queue, stages of several ops, opening and closing.
 * What the ops compute is test_ops.c's business. Meant to run under TSan too.
 */
#include "common.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "dl/device.h"

static struct test_log logged;

static int catch_log(void **state)
{
    (void)state;
    dl_log_set(test_log_sink, &logged, DL_LOG_ERROR);
    return 0;
}

static int clear_log(void **state)
{
    (void)state;
    logged = (struct test_log){0};
    return 0;
}

#define MS 1000000u
#define LONG_NS (30000ull * MS)

static void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) && errno == EINTR)
        continue;
}

/* --------------------------------------------------------------------------------------------------- a rig */

enum { N_BUFS = 3, ROWS = 32, ALL_ROWS = 2 * ROWS, COLS = 1024, PARTS = 4, PART_COLS = COLS / PARTS };

/* A device with three (ALL_ROWS, COLS) matrices, of which ops add parts of ROWS x PART_COLS. */
struct rig {
    dl_device *dev;
    dl_buf *bufs[N_BUFS], *batch;
    struct dl_run_args args;
    uint64_t signal;
};

static void rig_open(struct rig *r, uint32_t threads)
{
    *r = (struct rig){0};
    assert_int_equal(dl_cpu_open(&(struct dl_cpu_opts){.threads = threads}, &r->dev), DL_OK);
    for (int i = 0; i < N_BUFS; i++) {
        struct dl_buf_desc desc = {"matrix", DL_BUF_ACT, DL_F32, ALL_ROWS, COLS, ALL_ROWS * COLS * 4};
        assert_int_equal(dl_buf_create(r->dev, &desc, &r->bufs[i]), DL_OK);
    }
    struct dl_batch_shape shape = {ROWS, 1, 1, 1};
    uint64_t bytes = dl_batch_bytes(&shape);
    struct dl_buf_desc desc = {"batch", DL_BUF_INPUT, DL_F32, 1, (uint32_t)(bytes / 4), bytes};
    assert_int_equal(dl_buf_create(r->dev, &desc, &r->batch), DL_OK);
    struct dl_batch_head head = {ROWS, 0, ROWS, 1, 1, 1, {0, 0}};
    memcpy(dl_buf_map(r->dev, r->batch), &head, sizeof head);
    r->args = (struct dl_run_args){.n_tokens = ROWS, .batch = r->batch};
}

static void rig_close(struct rig *r)
{
    for (int i = 0; i < N_BUFS; i++)
        dl_buf_destroy(r->dev, &r->bufs[i]);
    dl_buf_destroy(r->dev, &r->batch);
    dl_device_close(&r->dev);
    assert_null(r->dev);
}

static struct dl_view part_view(uint32_t buf, uint32_t part, uint32_t first_row)
{
    return (struct dl_view){.buf = buf,
                            .rows = ROWS,
                            .cols = PART_COLS,
                            .type = DL_F32,
                            .offset = (first_row * COLS + part * PART_COLS) * 4,
                            .row_bytes = COLS * 4};
}

/* dst += src. */
static struct dl_op add_op(struct dl_view dst, struct dl_view src)
{
    struct dl_op op = {.code = DL_OP_ADD, .name = "add", .mult = 1, .dst = dst, .src = {dst, src}};
    op.src[2].buf = DL_NO_BUF;
    return op;
}

static dl_prog *make_prog(struct rig *r, const struct dl_op *ops, uint32_t n)
{
    dl_prog *prog = NULL;
    assert_int_equal(dl_prog_create(r->dev, ops, n, r->bufs, N_BUFS, &prog), DL_OK);
    return prog;
}

static dl_prog *make_add(struct rig *r, uint32_t dst, uint32_t src)
{
    struct dl_op op = add_op(part_view(dst, 0, 0), part_view(src, 0, 0));
    return make_prog(r, &op, 1);
}

static void set_first(struct rig *r, uint32_t buf, float value)
{
    assert_int_equal(dl_buf_write(r->dev, r->bufs[buf], 0, &value, 4), DL_OK);
}
static float get_first(struct rig *r, uint32_t buf)
{
    float value;
    assert_int_equal(dl_buf_read(r->dev, r->bufs[buf], 0, &value, 4), DL_OK);
    return value;
}

/* ------------------------------------------------------------------------------------------------- counters */

struct later {
    dl_device *dev;
    uint64_t value;
    long ms;
};
static void *signal_later(void *ud)
{
    struct later *l = ud;
    sleep_ms(l->ms);
    dl_device_host_signal(l->dev, l->value);
    return NULL;
}

static void test_wait_before_signal(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 2);
    dl_prog *prog = make_add(&r, 0, 1);
    set_first(&r, 1, 1);
    assert_int_equal(dl_device_wait(r.dev, 0, 0), DL_OK); /* the counter starts at 0 */
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 5, 10), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 10, 0), DL_ETIMEDOUT);
    uint64_t start = dl_now_ns();
    assert_int_equal(dl_device_wait(r.dev, 10, 20 * MS), DL_ETIMEDOUT);
    assert_true(dl_now_ns() - start >= 20 * MS);
    assert_int_equal(dl_device_host_signal(r.dev, 4), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 10, 5 * MS), DL_ETIMEDOUT);
    /* Copies would queue behind what waits, perhaps for this very thread. */
    float value = 7;
    assert_int_equal(dl_buf_write(r.dev, r.bufs[1], 0, &value, 4), DL_EINVAL);
    assert_int_equal(dl_buf_read(r.dev, r.bufs[1], 0, &value, 4), DL_EINVAL);
    assert_int_equal(logged.n, 2);
    assert_non_null(strstr(logged.last, "waits for host value 5, 4 is the highest"));
    logged = (struct test_log){0};

    struct later l = {r.dev, 5, 30};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, signal_later, &l), 0);
    assert_int_equal(dl_device_wait(r.dev, 10, LONG_NS), DL_OK); /* sleeping by now */
    assert_int_equal(dl_device_wait(r.dev, 10, 0), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 3, 0), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 11, 0), DL_ETIMEDOUT);
    assert_true(get_first(&r, 0) == 1);
    pthread_join(thread, NULL);

    /* Signals before anyone waits, out of order: the counter is the largest. */
    dl_device_host_signal(r.dev, 9);
    dl_device_host_signal(r.dev, 7);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 9, 11), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 11, UINT64_MAX), DL_OK);
    assert_int_equal(logged.n, 0); /* a time-out is an answer */
    dl_prog_destroy(r.dev, &prog);
    assert_null(prog);
    rig_close(&r);
}

/* x += y and y += x do not commute, and the sums tell in which order they ran. */
static void test_queue_order(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 2);
    dl_prog *xy = make_add(&r, 0, 1), *yx = make_add(&r, 1, 0);
    float x = 0, y = 0;
    uint64_t rng = 9, signal = 0;
    for (int round = 0; round < 40; round++) {
        x = test_randf(&rng) + 2;
        y = test_randf(&rng) + 2;
        set_first(&r, 0, x);
        set_first(&r, 1, y);
        uint64_t base = (uint64_t)round * 64;
        bool held = round % 2;
        for (uint32_t i = 0; i < 64; i++) { /* as many as may be in flight; every other round all wait at first */
            bool first = test_rand(&rng) % 2;
            assert_int_equal(dl_device_submit(r.dev, first ? xy : yx, &r.args, held ? base + i / 8 : 0, ++signal), 0);
            if (first)
                x += y;
            else
                y += x;
        }
        if (round == 1) {
            assert_int_equal(dl_device_submit(r.dev, xy, &r.args, 0, signal + 1), DL_ELIMIT);
            assert_int_equal(logged.n, 1);
        }
        for (uint32_t i = 0; held && i < 8; i++)
            dl_device_host_signal(r.dev, base + (i * 5 + 3) % 8);
        assert_int_equal(dl_device_wait(r.dev, signal, LONG_NS), DL_OK);
        if (get_first(&r, 0) != x || get_first(&r, 1) != y)
            fail_msg("round %d: %a %a, want %a %a", round, (double)get_first(&r, 0), (double)get_first(&r, 1),
                     (double)x, (double)y);
    }
    assert_true(x != y && x + y > 1e6f && x + y < 1e30f);
    dl_prog_destroy(r.dev, &xy);
    dl_prog_destroy(r.dev, &yx);
    rig_close(&r);
}

struct racer {
    dl_device *dev;
    uint64_t first, step, last;
};
static void *race_signals(void *ud)
{
    struct racer *c = ud;
    for (uint64_t v = c->first; v <= c->last; v += c->step)
        dl_device_host_signal(c->dev, v);
    return NULL;
}

/* Many short submissions, each waiting for a value that one of two threads is about to signal. */
static void test_many_submits(void **state)
{
    (void)state;
    enum { N = 4000 };
    for (uint32_t threads = 1; threads <= 5; threads += 2) { /* 5: more than processors here, so that nothing spins */
        struct rig r;
        rig_open(&r, threads);
        dl_prog *prog = make_add(&r, 0, 1);
        set_first(&r, 1, 1);
        struct racer odd = {r.dev, 1, 2, N}, even = {r.dev, 2, 2, N};
        pthread_t t[2];
        assert_int_equal(pthread_create(&t[0], NULL, race_signals, &odd), 0);
        assert_int_equal(pthread_create(&t[1], NULL, race_signals, &even), 0);
        for (uint64_t i = 1; i <= N; i++) {
            if (i > 48)
                assert_int_equal(dl_device_wait(r.dev, i - 48, LONG_NS), DL_OK);
            assert_int_equal(dl_device_submit(r.dev, prog, &r.args, i, i), DL_OK);
        }
        assert_int_equal(dl_device_wait(r.dev, N, LONG_NS), DL_OK);
        assert_true(get_first(&r, 0) == N);
        pthread_join(t[0], NULL);
        pthread_join(t[1], NULL);
        dl_prog_destroy(r.dev, &prog);
        rig_close(&r);
    }
}

/* -------------------------------------------------------------------------------------------------- programs */

static void add_on_host(float m[N_BUFS][ALL_ROWS * COLS], const struct dl_op *op)
{
    for (uint64_t i = 0; i < ROWS; i++)
        for (uint64_t j = 0; j < PART_COLS; j++)
            m[op->dst.buf][op->dst.offset / 4 + i * COLS + j] +=
                m[op->src[1].buf][op->src[1].offset / 4 + i * COLS + j];
}

/* Views of one op may be the same or apart; those of different ops overlap as they like, shifted by some rows, so that the
 * first chunk of one op needs the last of another. */
static struct dl_op random_add(uint64_t *rng)
{
    for (;;) {
        uint32_t dice = (uint32_t)test_rand(rng);
        struct dl_view to = part_view(dice % N_BUFS, dice >> 4 & 1, (dice >> 8) % 5 * 8);
        struct dl_view from = part_view((dice >> 12) % N_BUFS, dice >> 20 & 1, (dice >> 24) % 5 * 8);
        struct dl_op op = add_op(to, from), reader = op;
        reader.dst.buf = reader.src[0].buf = DL_NO_BUF;
        if ((to.buf == from.buf && to.offset == from.offset) || !dl_op_conflict(&op, &reader))
            return op;
    }
}

/* Random programs over overlapping parts: on several threads, and one op after the other on the host, which is the
 * definition. Finds a stage with ops that depend on each other, and units that are lost or run twice. */
static void test_stages(void **state)
{
    (void)state;
    enum { OPS = 24, TIMES = 2 };
    static float host[N_BUFS][ALL_ROWS * COLS], got[ALL_ROWS * COLS];
    uint64_t rng = 4;
    uint32_t independent = 0, dependent = 0;
    for (uint32_t round = 0; round < 200; round++) {
        struct rig r;
        rig_open(&r, 1 + round % 4);
        for (uint32_t b = 0; b < N_BUFS; b++) {
            for (size_t i = 0; i < DL_COUNT_OF(got); i++)
                host[b][i] = test_randf(&rng);
            assert_int_equal(dl_buf_write(r.dev, r.bufs[b], 0, host[b], sizeof host[b]), DL_OK);
        }
        struct dl_op ops[OPS];
        for (uint32_t k = 0; k < OPS; k++) {
            ops[k] = random_add(&rng);
            if (k)
                *(dl_op_conflict(&ops[k - 1], &ops[k]) ? &dependent : &independent) += 1;
        }
        dl_prog *prog = make_prog(&r, ops, OPS);
        for (int n = 0; n < TIMES; n++) {
            assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, ++r.signal), DL_OK);
            for (uint32_t k = 0; k < OPS; k++)
                add_on_host(host, &ops[k]);
        }
        memset(ops, 0xff, sizeof ops); /* the program has its own copy */
        assert_int_equal(dl_device_wait(r.dev, r.signal, LONG_NS), DL_OK);
        for (uint32_t b = 0; b < N_BUFS; b++) {
            assert_int_equal(dl_buf_read(r.dev, r.bufs[b], 0, got, sizeof got), DL_OK);
            if (memcmp(got, host[b], sizeof got))
                fail_msg("round %u: matrix %u differs", round, b);
        }
        dl_prog_destroy(r.dev, &prog);
        rig_close(&r);
    }
    assert_true(independent > 100 && dependent > 100);
}

static void test_empty_program(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 2);
    dl_prog *prog = make_prog(&r, NULL, 0);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 1), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), DL_OK);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

/* --------------------------------------------------------------------------------------------------- refusals */

static void test_refusals(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 1);
    dl_prog *prog = make_add(&r, 0, 1), *other = NULL;
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 5), DL_OK);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 5), DL_EINVAL); /* signals ascend */
    struct dl_run_args args = r.args;
    args.n_tokens = ROWS + 1;
    assert_int_equal(dl_device_submit(r.dev, prog, &args, 0, 6), DL_EINVAL);
    args.n_tokens = 0;
    assert_int_equal(dl_device_submit(r.dev, prog, &args, 0, 6), DL_EINVAL);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 6), DL_OK); /* a refused one leaves no trace */
    assert_int_equal(dl_device_wait(r.dev, 6, LONG_NS), DL_OK);

    /* A type without a kernel, a buffer that is not there, an imported destination. */
    struct dl_op op = add_op(part_view(0, 0, 0), part_view(1, 0, 0));
    op.src[1].type = DL_F16;
    assert_int_equal(dl_prog_create(r.dev, &op, 1, r.bufs, N_BUFS, &other), DL_EUNSUP);
    op = add_op(part_view(0, 0, 0), part_view(N_BUFS, 0, 0));
    assert_int_equal(dl_prog_create(r.dev, &op, 1, r.bufs, N_BUFS, &other), DL_EINVAL);
    static const float weights[ROWS * COLS];
    struct dl_buf_desc desc = {"weights", DL_BUF_WEIGHT, DL_F32, ROWS, COLS, sizeof weights};
    dl_buf *bufs[] = {r.bufs[0], NULL};
    assert_int_equal(dl_buf_import(r.dev, &desc, weights, &bufs[1]), DL_OK);
    assert_int_equal(dl_buf_write(r.dev, bufs[1], 0, weights, sizeof weights), DL_EINVAL);
    op = add_op(part_view(1, 0, 0), part_view(0, 0, 0));
    assert_int_equal(dl_prog_create(r.dev, &op, 1, bufs, 2, &other), DL_EINVAL);
    assert_null(other);
    dl_buf_destroy(r.dev, &bufs[1]);

    desc = (struct dl_buf_desc){"too large", DL_BUF_ACT, DL_F32, UINT32_MAX, 1u << 30, (uint64_t)UINT32_MAX << 32};
    unsigned n = logged.n;
    assert_int_equal(dl_buf_create(r.dev, &desc, &bufs[1]), DL_ELIMIT);
    assert_int_equal(logged.n, n + 1);
    assert_non_null(strstr(logged.last, "too large"));
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

/* ----------------------------------------------------------------------------------------------- open, close */

/* What DLLAMA_CPU (env) and opts->isa (isa) give: a word in the device's name, or an error. */
static void test_isa(void **state)
{
    (void)state;
    bool avx2 = strstr(dl_cpu_isas(), "avx2"), vnni = strstr(dl_cpu_isas(), "avxvnni"),
         avx512 = strstr(dl_cpu_isas(), "avx512");
    const char *best = strrchr(dl_cpu_isas(), ' ') ? strrchr(dl_cpu_isas(), ' ') + 1 : dl_cpu_isas();
    struct {
        const char *env, *isa, *word;
        int err;
    } cases[] = {{NULL, NULL, best, DL_OK},
                 {"", NULL, best, DL_OK},
                 {"ref", NULL, "ref", DL_OK},
                 {"avx2", NULL, "avx2", avx2 ? DL_OK : DL_EUNSUP},
                 {"avxvnni", NULL, "avxvnni", vnni ? DL_OK : DL_EUNSUP},
                 {"avx512", NULL, "avx512", avx512 ? DL_OK : DL_EUNSUP},
                 {"ref", "avx2", "avx2", avx2 ? DL_OK : DL_EUNSUP},
                 {"avx2", "ref", "ref", DL_OK},
                 {"avx", NULL, NULL, DL_EINVAL},
                 {"AVX2", NULL, NULL, DL_EINVAL},
                 {NULL, "sse9\n\x1b[31m", NULL, DL_EINVAL}};
    const char *was = getenv("DLLAMA_CPU");
    char *saved = was ? dl_xstrdup(was) : NULL;
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        if (cases[i].env)
            setenv("DLLAMA_CPU", cases[i].env, 1);
        else
            unsetenv("DLLAMA_CPU");
        logged = (struct test_log){0};
        dl_device *dev = NULL;
        int err = dl_cpu_open(&(struct dl_cpu_opts){.threads = 1, .isa = cases[i].isa}, &dev);
        if (err != cases[i].err || !dev != !!err)
            fail_msg("case %zu: %s", i, dl_err_name(err));
        if (dev && (!strstr(dev->name, cases[i].word) || strcmp(dev->kind, "cpu")))
            fail_msg("case %zu: %s is called %s", i, dev->kind, dev->name);
        assert_int_equal(logged.n, err ? 1 : 0);
        if (err == DL_EINVAL)
            assert_non_null(strstr(logged.last, "known are ref, avx2"));
        dl_device_close(&dev);
    }
    if (saved)
        setenv("DLLAMA_CPU", saved, 1);
    else
        unsetenv("DLLAMA_CPU");
    free(saved);
}

static void test_open(void **state)
{
    (void)state;
    dl_device *dev = NULL;
    assert_int_equal(dl_cpu_open(&(struct dl_cpu_opts){0}, &dev), DL_OK);
    assert_int_equal(dev->threads, dl_cpu_count());
    assert_true(dev->mem_total > 0 && dev->max_tokens == 512);
    dl_device_close(&dev);
    dl_device_close(&dev);
    assert_int_equal(dl_cpu_open(&(struct dl_cpu_opts){.threads = 100000}, &dev), DL_EINVAL);
    assert_null(dev);
}

static int count_threads(void)
{
    int n = -1;
    char line[128];
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Threads: %d", &n) == 1)
            break;
    if (f)
        fclose(f);
    return n;
}

/* Closing right away, while the threads are still on their way, and after work. */
static void test_open_close_100(void **state)
{
    (void)state;
    int before = count_threads();
    for (uint32_t i = 0; i < 100; i++) {
        struct rig r;
        rig_open(&r, 1 + i % 5);
        if (i % 2) {
            dl_prog *prog = make_add(&r, 0, 1);
            assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 1), DL_OK);
            assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), DL_OK);
            dl_prog_destroy(r.dev, &prog);
        }
        rig_close(&r);
    }
    if (before < 0)
        fprintf(stderr, "SKIPPED PART: no /proc to count threads in\n");
    const struct timespec moment = {0, MS};
    /* The system still counts one that was joined just now. */
    for (int i = 0; i < 5000 && count_threads() != before; i++)
        nanosleep(&moment, NULL);
    assert_int_equal(count_threads(), before);
}

/* A cluster that fails leaves submissions behind whose data never comes: closing must not wait for them. */
static void test_close_with_work_left(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 2);
    dl_prog *prog = make_add(&r, 0, 1);
    for (uint64_t i = 1; i < 5; i++)
        assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 100 + i, i), DL_OK);
    assert_int_equal(dl_device_wait(r.dev, 1, 3 * MS), DL_ETIMEDOUT);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

static void test_idle(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 2);
    dl_prog *prog = make_add(&r, 0, 1);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 0, 1), DL_OK);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 1, 2), DL_OK); /* waits for the host all the time */
    assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), DL_OK);
    sleep_ms(5);
    clock_t start = clock();
    sleep_ms(200);
    double ms = (double)(clock() - start) * 1e3 / CLOCKS_PER_SEC;
    if (ms > 50)
        fail_msg("an idle device used %.1f ms of 200", ms);
    dl_device_host_signal(r.dev, 1);
    assert_int_equal(dl_device_wait(r.dev, 2, LONG_NS), DL_OK);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

static void test_bandwidth(void **state)
{
    (void)state;
    struct rig r;
    rig_open(&r, 1);
    double rate = dl_cpu_read_bandwidth(r.dev, 5);
    if (rate < 1e6 || rate > 1e13)
        fail_msg("%g bytes per second", rate);
    dl_prog *prog = make_add(&r, 0, 1);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 1, 1), DL_OK);
    assert_true(dl_cpu_read_bandwidth(r.dev, 5) == 0); /* busy */
    dl_device_host_signal(r.dev, 1);
    assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), DL_OK);
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
}

#define TEST(f) cmocka_unit_test_setup(f, clear_log)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_wait_before_signal),
        TEST(test_queue_order),
        TEST(test_many_submits),
        TEST(test_stages),
        TEST(test_empty_program),
        TEST(test_refusals),
        TEST(test_isa),
        TEST(test_open),
        TEST(test_open_close_100),
        TEST(test_close_with_work_left),
        TEST(test_idle),
        TEST(test_bandwidth),
    };
    return cmocka_run_group_tests(tests, catch_log, NULL);
}
