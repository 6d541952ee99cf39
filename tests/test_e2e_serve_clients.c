/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_clients.c: clients that are slow, that vanish, that never finish what they say, and what they hold up: nobody. And what
 * clients see of a server that is still loading, whose GPU is lost, and that is told to end.
 */
#include "e2e_procs.h"
#include "serve_load.h"

#include <math.h>

/* To the end of the context, the end of the text being ruled out; 16 answers, or with likelihoods that make each piece long. */
#define LONG "{\"prompt\":\"One\",\"n\":16,\"logit_bias\":{\"2\":-100},\"stream\":true}"
#define LONG_WHOLE "{\"prompt\":\"One\",\"n\":16,\"logit_bias\":{\"2\":-100}}"
#define MUCH "{\"prompt\":\"One\",\"n\":16,\"logit_bias\":{\"2\":-100},\"stream\":true,\"logprobs\":20}"

static bool wait_for(int port, const char *name, double want)
{
    for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < 60 * SEC; dl_sleep_ns(MS))
        if (metric(port, name) == want)
            return true;
    return false;
}

/* --------------------------------------------------------------------------------------------------- leaving */

static void leave(int fd, bool at_once)
{
    struct linger none = {.l_onoff = 1};
    if (at_once)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    close(fd);
}

/* Whether it streams or is waited for as a whole, whether its client says goodbye or not, or something else before: the step that is under
 * way is the last one. */
static void the_next_step_is_without_them(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    if (!SANITIZED)
        setenv("DLLAMA_CPU", "ref", 1); /* steps that last longer than it takes to ask */
    SERVE(&s, "--device", "cpu", "--threads", "1", "--parallel", "16");
    unsetenv("DLLAMA_CPU");
    unsigned gone = 0;
    for (unsigned i = 0; i < 6; i++) {
        /* The one under way, and those that began while this asked: of the short ones of fast kernels, more. Other programs may have the cores
         * just then, so the best of some counts. */
        double more = HUGE_VAL;
        for (unsigned k = 0; k < 5 && more > (SANITIZED ? 12 : 4); k++) {
            http_begin(&h, s.port, "POST", TEXT, "", i & 1 ? LONG : LONG_WHOLE);
            assert_true(wait_for(s.port, "dllama_running_sequences", 16));
            if (i >= 4)
                http_write(h.fd, "GET /health", 11);
            dl_sleep_ns(20 * MS);
            double before = metric(s.port, "dllama_steps_total");
            leave(h.fd, i & 2);
            while (metric(s.port, "dllama_running_sequences") != 0)
                ;
            more = fmin(more, metric(s.port, "dllama_steps_total") - before);
            assert_true(metric(s.port, "dllama_requests_total{result=\"cancelled\"}") == ++gone);
        }
        if (more > (SANITIZED ? 12 : 4))
            fail_msg("case %u: %.0f more steps", i, more);
    }
    served_stop(&s, 5000);
}

static void they_may_leave_the_queue(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h, other, third;
    SERVE(&s, "--device", "cpu", "--parallel", "1", "--queue", "1");
    http_begin(&h, s.port, "POST", TEXT, "", LONG_WHOLE);
    assert_true(wait_for(s.port, "dllama_running_sequences", 1));
    http_begin(&other, s.port, "POST", TEXT, "", LONG);
    assert_true(wait_for(s.port, "dllama_queued_requests", 1));
    http_post(&third, s.port, TEXT, "{\"prompt\":\"a\"}");
    HTTP_STATUS(&third, 429);
    assert_non_null(http_header(&third, "Retry-After: "));
    E2E_HAS(third.body, "rate_limit_error");
    http_free(&third);
    http_free(&other);
    assert_true(wait_for(s.port, "dllama_queued_requests", 0));
    http_free(&h);
    assert_true(wait_for(s.port, "dllama_running_sequences", 0));
    assert_true(metric(s.port, "dllama_requests_total{result=\"cancelled\"}") == 2);
    char *text = ask(s.port, TEXT, "{\"prompt\":\"One model\",\"max_tokens\":3}");
    assert_true(*text);
    free(text);
    served_stop(&s, 5000);
}

/* ------------------------------------------------------------------------------------------------------ slow */

static void begin_slow(struct http *h, int port, const char *body)
{
    http_receive_bytes = 4096;
    http_begin(h, port, "POST", TEXT, "", body);
    http_receive_bytes = 0;
}

/* One that does not read what it asked for gets it all once it does. */
static void who_does_not_read_is_waited_for(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http slow;
    SERVE(&s, "--device", "cpu", "--parallel", "2");
    begin_slow(
        &slow, s.port,
        "{\"prompt\":\"One\",\"n\":16,\"max_tokens\":100,\"logit_bias\":{\"2\":-100},\"stream\":true,\"logprobs\":20}");
    /* Its answers fill what the sockets and the server keep for it, and wait then. */
    assert_true(wait_for(s.port, "dllama_running_sequences", 2));
    double before = -1, now = metric(s.port, "dllama_generated_tokens_total");
    for (int i = 0; i < 100 && now != before; i++) {
        before = now;
        poll(NULL, 0, 300);
        now = metric(s.port, "dllama_generated_tokens_total");
    }
    assert_true(now == before && now < 16 * 100);
    assert_true(metric(s.port, "dllama_running_sequences") >= 1);
    http_finish(&slow);
    HTTP_STATUS(&slow, 200);
    assert_true(slow.n_body > 14 && !strcmp(slow.body + slow.n_body - 14, "data: [DONE]\n\n"));
    unsigned ends = 0;
    for (char *at = slow.body; (at = strstr(at, "\"finish_reason\":\"length\"")); at++)
        ends++;
    assert_int_equal(ends, 16);
    http_free(&slow);
    served_stop(&s, 5000);
}

/* Readers that take a byte a second, more of them than there are places (but with sanitizers): the others hardly notice, and memory does not either. Bounds are wide:
 * on a machine that does other things too, all of this takes its time, but who is stalled would get nothing at all. */
#define SLOW_ONES (SANITIZED ? 3 : 12)
#define SLOW_MOST 12

static void who_reads_slowly_stalls_nobody(void **state)
{
    (void)state;
    NEED_BIN();
    static struct load l;
    struct load_ask asks[] = LOAD_ASKS;
    struct served s;
    struct http slow[SLOW_MOST];
    char byte;
    SERVE(&s, "--device", "cpu", "--temp", "0", "--parallel", SANITIZED ? "4" : "8", "--queue", "100");
    load_open(&l, s.port, asks, DL_COUNT_OF(asks), SANITIZED ? 3 : 8);
    const double others = metric(s.port, "dllama_requests_total{result=\"ok\"}");
    load_run(&l, 2 * SEC);
    double median = times_at(&l.gaps, 0.5), most = times_at(&l.gaps, 1);
    load_print(&l, "among themselves", 2 * SEC);
    long rss = e2e_rss(s.proc.pid);
    for (unsigned i = 0; i < SLOW_ONES; i++)
        begin_slow(&slow[i], s.port, MUCH);
    /* Each has its turn, and then fills what there is for it. */
    for (uint64_t t0 = dl_now_ns(), n = 0; n < SLOW_ONES;) {
        load_run(&l, 100 * MS);
        for (n = 0; n < SLOW_ONES && recv(slow[n].fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 1;)
            n++;
        if (dl_now_ns() - t0 > 60 * SEC)
            fail_msg("slow reader %d waits for its turn", (int)n);
    }
    load_run(&l, SEC);
    l.gaps.n = l.whole.n = 0;
    unsigned done = l.done;
    for (uint64_t t0 = dl_now_ns(), t = t0, bytes = 0; t - t0 < (l.done > done ? 3 : 60) * SEC; t = dl_now_ns()) {
        load_turn(&l, 5);
        for (; bytes <= (t - t0) / SEC; bytes++)
            for (unsigned i = 0; i < SLOW_ONES; i++)
                assert_int_equal(recv(slow[i].fd, &byte, 1, MSG_DONTWAIT), 1);
    }
    load_print(&l, "beside slow readers", 3 * SEC);
    long more = e2e_rss(s.proc.pid) - rss;
    printf("%d slow readers take %ld KiB\n", SLOW_ONES, more);
    assert_true(l.done > done);
    if (times_at(&l.gaps, 0.5) > 10 * median + 100 || times_at(&l.gaps, 1) > 10 * most + 3000)
        fail_msg("others wait for them");
    if (more > SLOW_ONES * 768 && !SANITIZED)
        fail_msg("they take %ld KiB", more);
    load_drain(&l, 0);
    assert_true(metric(s.port, "dllama_requests_total{result=\"ok\"}") ==
                others + l.done); /* they did not get it all */
    for (unsigned i = 0; i < SLOW_ONES; i++)
        http_free(&slow[i]);
    assert_true(wait_for(s.port, "dllama_running_sequences", 0) && wait_for(s.port, "dllama_queued_requests", 0));
    load_close(&l);
    served_stop(&s, 5000);
}

/* Closed by the server. */
static bool is_closed(int fd)
{
    char bytes[4096];
    ssize_t n;
    while ((n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
        ;
    return n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

/* What is not said in time is not waited for; an answer that takes longer than that is. */
static void half_a_request_has_its_time(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h, runs;
    static const char *const halves[] = {"", "POST /v1/chat", "GET /health HTTP/1.1\r\nHost: x\r\nX-Y",
                                         "POST " TEXT " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n",
                                         "POST " TEXT
                                         " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{\"pro"};
    enum { N = DL_COUNT_OF(halves) };
    int fds[N + 2];
    setenv("DLLAMA_SERVE_TIMEOUT", "6", 1);
    setenv("DLLAMA_CPU", "ref", 1); /* which takes its time */
    SERVE(&s, "--device", "cpu", "--threads", "1", "--parallel", "1");
    unsetenv("DLLAMA_CPU");
    unsetenv("DLLAMA_SERVE_TIMEOUT");
    http_get(&h, s.port, "/health");
    http_free(&h);
    dl_sleep_ns(50 * MS);
    const int before = e2e_fds(s.proc.pid);
    http_begin(&runs, s.port, "POST", TEXT, "", LONG_WHOLE);
    assert_true(wait_for(s.port, "dllama_running_sequences", 1));
    uint64_t t0 = dl_now_ns(), closed[N + 2] = {0};
    for (int i = 0; i < N + 2; i++) {
        const char *half = i < N ? halves[i] : i == N ? "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" : halves[4];
        fds[i] = http_connect(s.port);
        http_write(fds[i], half, strlen(half));
    }
    /* The last one says a little now and then; the one before has its answer, and nothing more to ask. */
    for (unsigned n = 0; n < N + 2 && dl_now_ns() - t0 < 30 * SEC; dl_sleep_ns(50 * MS)) {
        if (!closed[N + 1])
            http_write(fds[N + 1], " ", 1);
        n = 0;
        for (int i = 0; i < N + 2; i++) {
            if (!closed[i] && is_closed(fds[i]))
                closed[i] = dl_now_ns() - t0;
            n += closed[i] != 0;
        }
    }
    for (int i = 0; i < N + 2; i++) {
        if (closed[i] < 2900 * MS || closed[i] > 15 * SEC || (i == N + 1 && closed[i] < 5900 * MS))
            fail_msg("half a request, number %d, is closed after %.2f s", i, (double)closed[i] * 1e-9);
        close(fds[i]);
    }
    while (dl_now_ns() - t0 < 9 * SEC)
        dl_sleep_ns(50 * MS);
    assert_false(is_closed(runs.fd));
    assert_true(metric(s.port, "dllama_running_sequences") == 1);
    http_free(&runs);
    for (t0 = dl_now_ns(); e2e_fds(s.proc.pid) > before; dl_sleep_ns(20 * MS))
        assert_true(dl_now_ns() - t0 < 5 * SEC);
    served_stop(&s, 5000);
}

/* ----------------------------------------------------------------------------------------- states of a server */

/* A worker that has stopped keeps the root at its loading until it goes on. */
static void who_comes_too_early(void **state)
{
    (void)state;
    NEED_BIN();
    struct workers c;
    struct served s;
    struct http h;
    static const char *const posts[] = {CHAT, TEXT, "/tokenize", "/detokenize"};
    char why[400];
    workers_start(&c, 1);
    kill(c.w[0].p.pid, SIGSTOP);
    served_begin(&s, (const char *const[]){"serve", "--listen", "127.0.0.1:0", "--device", "cpu", "--threads", "1",
                                           "--workers", c.list, NULL});
    http_get(&h, s.port, "/health");
    HTTP_STATUS(&h, 503);
    assert_non_null(http_header(&h, "Retry-After: "));
    E2E_HAS(h.body, "\"status\":\"loading\"");
    http_free(&h);
    for (size_t i = 0; i < DL_COUNT_OF(posts); i++) {
        http_post(&h, s.port, posts[i], "{\"prompt\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}");
        HTTP_STATUS(&h, 503);
        assert_non_null(http_header(&h, "Retry-After: "));
        E2E_HAS(h.body, "{\"error\":{\"message\":\"the model is still being loaded");
        http_free(&h);
    }
    http_get(&h, s.port, "/");
    HTTP_STATUS(&h, 200); /* the page, which says so */
    http_free(&h);
    kill(c.w[0].p.pid, SIGCONT);
    (void)served_says(&s, " is served on http://");
    assert_int_equal(health(s.port, why, sizeof why), 200);
    char *text = ask(s.port, TEXT, "{\"prompt\":\"One model\",\"max_tokens\":3}");
    assert_true(*text);
    free(text);
    served_stop(&s, 5000);
    workers_end(&c);
}

/* It runs into nothing after some steps: who was being served gets a word, who comes then is served by the CPU. */
static void a_gpu_is_lost(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_GPU();
    enum { N = 6 };
    struct served s;
    struct http h[N];
    char why[400];
    unsigned lost = 0;
    SERVE(&s, "--device", "cpu");
    char *want = ask(s.port, TEXT, "{\"prompt\":\"One model\",\"max_tokens\":40}");
    served_stop(&s, 5000);
    setenv("DLLAMA_VK_LOSE_AFTER", "40", 1);
    SERVE(&s, "--device", "vulkan:0", "--parallel", "4");
    unsetenv("DLLAMA_VK_LOSE_AFTER");
    assert_int_equal(health(s.port, why, sizeof why), 200);
    assert_string_equal(why, "");
    for (unsigned i = 0; i < N; i++)
        http_begin(&h[i], s.port, "POST", TEXT, "",
                   i & 1 ? "{\"prompt\":\"One model\",\"logit_bias\":{\"2\":-100},\"max_tokens\":200,\"stream\":true}"
                         : "{\"prompt\":\"One model\",\"logit_bias\":{\"2\":-100},\"max_tokens\":200}");
    for (unsigned i = 0; i < N; i++) {
        http_finish(&h[i]);
        const bool word = strstr(h[i].body, "{\"error\":{\"message\":\"") != NULL;
        lost += word;
        assert_int_equal(h[i].status, word && !(i & 1) ? 503 : 200);
        if (word) {
            E2E_HAS(h[i].body, "the device was lost");
            assert_null(strstr(h[i].body, "[DONE]"));
        } else {
            E2E_HAS(h[i].body, "\"finish_reason\":\"length\"");
        }
        http_free(&h[i]);
    }
    assert_true(lost >= 1 && lost <= 4); /* the two that waited meanwhile do not even know */
    assert_true(metric(s.port, "dllama_requests_total{result=\"failed\"}") == lost);
    assert_int_equal(health(s.port, why, sizeof why), 200);
    E2E_HAS(why, "the device was lost");
    E2E_HAS(why, "going on with the CPU");
    char *text = ask(s.port, TEXT, "{\"prompt\":\"One model\",\"max_tokens\":40}");
    assert_string_equal(text, want);
    free(text);
    free(want);
    served_stop(&s, 5000);
}

/* Ctrl-C: what runs may end, what takes too long is cut, with a word, whoever reads or does not. */
static void it_ends_in_time(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http runs[3], slow[3], waits, quiet, half;
    struct e2e r;
    SERVE(&s, "--device", "cpu", "--parallel", "6");
    for (unsigned i = 0; i < 3; i++)
        begin_slow(&slow[i], s.port, MUCH);
    for (unsigned i = 0; i < 3; i++)
        http_begin(&runs[i], s.port, "POST", TEXT, "", LONG);
    for (unsigned i = 0; i < 3; i++) {
        struct pollfd fd = {.fd = runs[i].fd, .events = POLLIN};
        assert_int_equal(poll(&fd, 1, 20000), 1);
    }
    http_begin(&waits, s.port, "POST", TEXT, "", LONG_WHOLE);
    quiet = (struct http){.fd = http_connect(s.port)};
    half = (struct http){.fd = http_connect(s.port)};
    http_write(half.fd, "POST /v1", 8);
    assert_true(wait_for(s.port, "dllama_running_sequences", 6));
    uint64_t t0 = dl_now_ns();
    kill(s.proc.pid, SIGINT);
    for (unsigned i = 0; i < 3; i++) {
        http_finish(&runs[i]);
        HTTP_STATUS(&runs[i], 200);
        if (!strstr(runs[i].body, "[DONE]"))
            E2E_HAS(runs[i].body, "data: {\"error\":{\"message\":\"the server is shutting down\"");
        http_free(&runs[i]);
    }
    http_finish(&waits);
    assert_true(waits.status == 503 || waits.status == 200);
    E2E_HAS(waits.body, waits.status == 503 ? "the server is shutting down" : "\"finish_reason\":\"length\"");
    e2e_finish(&s.proc, NULL, 0, &r);
    uint64_t took = dl_now_ns() - t0;
    served_pid = 0;
    E2E_STATUS(&r, 0);
    if (took > (SANITIZED ? 10 : 5) * SEC)
        fail_msg("it takes %.2f s to end", (double)took * 1e-9);
    e2e_free(&r);
    http_free(&waits);
    http_free(&quiet);
    http_free(&half);
    for (unsigned i = 0; i < 3; i++)
        http_free(&slow[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVE_TEST(the_next_step_is_without_them),
        SERVE_TEST(they_may_leave_the_queue),
        SERVE_TEST(who_does_not_read_is_waited_for),
        SERVE_TEST(who_reads_slowly_stalls_nobody),
        SERVE_TEST(half_a_request_has_its_time),
        SERVE_TEST(who_comes_too_early),
        SERVE_TEST(a_gpu_is_lost),
        SERVE_TEST(it_ends_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
