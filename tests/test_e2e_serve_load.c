/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_load.c: 64 clients of one server, with all kinds of requests mixed: each gets what it gets alone, on the CPU, on a GPU and
 * on a cluster, also while workers of that are killed and come back; and thousands of requests leave nothing behind. Some seconds
 * each; DLLAMA_SLOW=1: a minute, and ten thousand requests.
 */
#include "e2e_procs.h"
#include "serve_load.h"

static bool slow(void)
{
    return getenv("DLLAMA_SLOW") != NULL;
}

static uint64_t duration(void)
{
    return (slow() ? 60 : SANITIZED ? 3 : 7) * SEC;
}

/* With the small model, where it is there; with the one in the program otherwise. */
static void start(struct served *s, const char *const *more)
{
    const char *argv[40] = {"serve", "--listen", "127.0.0.1:0", "--temp", "0", "--ctx", "1024"};
    size_t n = 7;
    const char *model = test_data("models/stories260K.gguf");
    if (model)
        argv[n++] = model;
    for (; *more; more++) {
        assert_true(n + 1 < DL_COUNT_OF(argv));
        argv[n++] = *more;
    }
    served_start(s, argv);
}
#define START(s, ...) start(s, (const char *const[]){__VA_ARGS__, NULL})

static double failed(int port)
{
    return metric(port, "dllama_requests_total{result=\"failed\"}") +
           metric(port, "dllama_requests_total{result=\"cancelled\"}");
}

/* Nothing is left, and all of it went well. */
static void is_clean(const struct served *s, const struct load *l)
{
    assert_true(failed(s->port) == 0);
    assert_true(metric(s->port, "dllama_requests_total{result=\"ok\"}") == (double)(l->done + l->n_asks));
    assert_true(metric(s->port, "dllama_requests_total{result=\"busy\"}") == l->full);
    assert_true(metric(s->port, "dllama_queued_requests") == 0);
    assert_true(metric(s->port, "dllama_running_sequences") == 0);
}

static void under_load(struct served *s, const char *what)
{
    static struct load l;
    struct load_ask asks[] = LOAD_ASKS;
    load_open(&l, s->port, asks, DL_COUNT_OF(asks), LOAD_CLIENTS);
    uint64_t t0 = dl_now_ns();
    load_run(&l, duration());
    load_drain(&l, 0);
    load_print(&l, what, dl_now_ns() - t0);
    assert_true(l.done >= LOAD_CLIENTS / 2); /* not all, where the queue was full */
    /* Batches held several answers. */
    assert_true(metric(s->port, "dllama_steps_total") < 0.6 * metric(s->port, "dllama_generated_tokens_total"));
    is_clean(s, &l);
    load_close(&l);
}

static void on_the_cpu(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    START(&s, "--device", "cpu", "--parallel", "8", "--queue", SANITIZED ? "4" : "40", "--batch", "64");
    under_load(&s, "CPU");
    served_stop(&s, 5000);
}

static void on_a_gpu(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_GPU();
    struct served s;
    START(&s, "--device", "vulkan:0", "--parallel", "16");
    under_load(&s, "Vulkan");
    served_stop(&s, 5000);
}

/* ---------------------------------------------------------------------------------------------------- cluster */

/* /health until it is 200 and `why` has that in it, or is empty, too; meanwhile all go on. */
static void until_health(struct load *l, const char *why)
{
    char now[400];
    for (uint64_t t0 = dl_now_ns(); health(l->port, now, sizeof now) != 200 || (*why ? !strstr(now, why) : *now);) {
        if (dl_now_ns() - t0 > 100 * SEC)
            fail_msg("/health is not 200 with '%s', but: %s", why, now);
        load_turn(l, 0);
    }
}

/* A worker dies under load, and comes back. */
static void lose_one(struct load *l, struct workers *c, int i)
{
    char name[80];
    snprintf(name, sizeof name, "node %d (%s) lost in ", i + 1, c->address[i]);
    proc_kill(&c->w[i]);
    proc_free(&c->w[i]);
    until_health(l, name);
    load_run(l, (SANITIZED ? 500 : 1000) * MS);
    worker_start(c, i);
    l->left = UINT64_MAX;
    until_health(l, "");
    load_run(l, (SANITIZED ? 500 : 1000) * MS);
}

static void on_a_cluster(void **state)
{
    (void)state;
    NEED_BIN();
    static struct load l;
    struct load_ask asks[] = LOAD_ASKS;
    struct workers c;
    struct served s;
    struct e2e r;
    char dir[TEMPDIR_LEN], key[TEMPDIR_LEN + 16];
    make_dir(dir);
    snprintf(key, sizeof key, "%s/key", dir);
    E2E(&r, "keygen", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    setenv("DLLAMA_KEY_FILE", key, 1);
    workers_start(&c, 2);
    START(&s, "--device", "cpu", "--threads", "1", "--wire", "f32", "--parallel", "8", "--workers", c.list);
    load_open(&l, s.port, asks, DL_COUNT_OF(asks), LOAD_CLIENTS);
    uint64_t t0 = dl_now_ns();
    unsigned kills = 0;
    do {
        load_run(&l, SEC);
        lose_one(&l, &c, (int)(kills++ % 2));
    } while (dl_now_ns() - t0 < duration());
    load_drain(&l, 0);
    load_print(&l, "Cluster", dl_now_ns() - t0);
    printf("workers killed meanwhile: %u\n", kills);
    is_clean(&s, &l);
    load_close(&l);
    served_stop(&s, 5000);
    workers_end(&c);
    unsetenv("DLLAMA_KEY_FILE");
    remove_dir(dir);
}

/* --------------------------------------------------------------------------------------------------- endurance */

/* Short ones, of which some are refused. */
static void leaves_nothing(void **state)
{
    (void)state;
    NEED_BIN();
    static struct load l;
    struct load_ask asks[] = {
        {TEXT, "\"prompt\":\"Once\",\"max_tokens\":2", {0}},
        {TEXT, "\"prompt\":\"" TOM "\",\"max_tokens\":3,\"n\":2", {0}},
        {CHAT, SAY("Hello") ",\"max_tokens\":3,\"logprobs\":true", {0}},
        {CHAT, SAY("Who?") "," FORM ",\"max_tokens\":4", {0}},
    };
    const unsigned rounds = slow() ? 10 : 4, each = slow() ? 1000 : SANITIZED ? 50 : 250;
    struct served s;
    long rss = 0;
    int fds = 0;
    START(&s, "--device", "cpu");
    load_open(&l, s.port, asks, DL_COUNT_OF(asks), 8);
    for (unsigned i = 0; i < rounds; i++) {
        load_drain(&l, each);
        load_hang_up(&l);
        struct http h;
        http_post(&h, s.port, CHAT, "{\"messages\":[{}]}");
        HTTP_STATUS(&h, 400);
        http_free(&h);
        while (metric(s.port, "dllama_running_sequences") != 0)
            ;
        dl_sleep_ns(50 * MS); /* for the last connections to be gone */
        if (i + 1 == (rounds + 1) / 2) {
            rss = e2e_rss(s.proc.pid);
            fds = e2e_fds(s.proc.pid);
        }
    }
    long rss_now = e2e_rss(s.proc.pid);
    int fds_now = e2e_fds(s.proc.pid);
    for (uint64_t t0 = dl_now_ns(); fds_now > fds && dl_now_ns() - t0 < 10 * SEC; fds_now = e2e_fds(s.proc.pid))
        dl_sleep_ns(20 * MS);
    printf("%u requests: %ld KiB resident and %d descriptors half way, %ld and %d at the end\n", l.done, rss, fds,
           rss_now, fds_now);
    assert_int_equal(l.done, rounds * each);
    assert_true(fds_now <= fds);
    if (rss_now > rss + 512 && !SANITIZED)
        fail_msg("it grows");
    load_close(&l);
    served_stop(&s, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVE_TEST(on_the_cpu),
        SERVE_TEST(on_a_gpu),
        SERVE_TEST(on_a_cluster),
        SERVE_TEST(leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
