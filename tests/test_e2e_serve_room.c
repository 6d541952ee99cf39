/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_room.c: a server whose KV cache is smaller than what its clients would like to have: all get the text that they get
 * alone, some of them later.
 */
#include "http.h"

#include <pthread.h>

#define TEXT "/v1/completions"
#define ENDLESS \
    "\"temperature\":0,\"logit_bias\":{\"1\":-100,\"2\":-100}}" /* without the ends of texts: until the context is full */
#define SMALL 30

struct client {
    int port;
    char body[256];
    char *text;
    uint64_t done_ns;
    pthread_t thread;
};

static void *work(void *client)
{
    struct client *c = client;
    c->text = ask(c->port, TEXT, c->body);
    c->done_ns = dl_now_ns();
    return NULL;
}

static void begin(struct client *c, int port)
{
    c->port = port;
    assert_int_equal(pthread_create(&c->thread, NULL, work, c), 0);
}

static void until(int port, const char *name, double least)
{
    for (uint64_t t0 = dl_now_ns(); metric(port, name) < least; dl_sleep_ns(1000000))
        if (dl_now_ns() - t0 > UINT64_C(30000000000))
            fail_msg("%s does not become %g", name, least);
}

static void serve(struct served *s, const char *model)
{
    if (!SANITIZED)
        setenv("DLLAMA_CPU", "ref", 1); /* answers that last longer than it takes to ask */
    SERVE(s, model, "--device", "cpu", "--threads", "1", "--ctx", "1024", "--kv-size", "1024", "--parallel", "6");
    unsetenv("DLLAMA_CPU");
    until(s->port, "dllama_kv_free_blocks", 32);
}

/* Answers of which nobody said how long they get fill the cache: those that began last give way, and go on later. */
static void answers_that_outgrow_the_cache(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    static const char *const prompts[] = {"Once", "Tom and Lily", "The", "One day a big dog", "Once upon", "She"};
    struct client c[DL_COUNT_OF(prompts)];
    char *alone[DL_COUNT_OF(prompts)];
    struct served s;
    serve(&s, model);
    for (size_t i = 0; i < DL_COUNT_OF(c); i++) {
        snprintf(c[i].body, sizeof c[i].body,
                 i % 2 ? "{\"prompt\":\"%s\",\"max_tokens\":300," ENDLESS : "{\"prompt\":\"%s\"," ENDLESS, prompts[i]);
        alone[i] = ask(s.port, TEXT, c[i].body);
        assert_true(strlen(alone[i]) > (i % 2 ? 300 : 1000));
    }
    assert_true(metric(s.port, "dllama_preempted_total") == 0);
    for (size_t i = 0; i < DL_COUNT_OF(c); i++)
        begin(&c[i], s.port);
    for (size_t i = 0; i < DL_COUNT_OF(c); i++) {
        pthread_join(c[i].thread, NULL);
        assert_string_equal(c[i].text, alone[i]);
        free(c[i].text);
        free(alone[i]);
    }
    assert_true(metric(s.port, "dllama_preempted_total") > 0);
    assert_true(metric(s.port, "dllama_requests_total{result=\"failed\"}") == 0);
    until(s.port, "dllama_kv_free_blocks", 32);
    served_stop(&s, 5000);
}

/* One that wants nearly all of it is not passed by small ones for ever. */
static void a_big_one_gets_its_turn(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct client first = {.body = "{\"prompt\":\"Once\",\"max_tokens\":600," ENDLESS};
    struct client big = {.body = "{\"prompt\":\"The\",\"max_tokens\":900,\"stop\":[\"e\"]," ENDLESS}, small[SMALL];
    struct served s;
    serve(&s, model);
    begin(&first, s.port);
    until(s.port, "dllama_running_sequences", 1);
    begin(&big, s.port);
    until(s.port, "dllama_queued_requests", 1);
    for (unsigned i = 0; i < SMALL; i++) {
        snprintf(small[i].body, sizeof small[i].body, "{\"prompt\":\"%c\",\"max_tokens\":40," ENDLESS, 'a' + i % 26);
        begin(&small[i], s.port);
    }
    unsigned before = 0;
    pthread_join(first.thread, NULL);
    pthread_join(big.thread, NULL);
    for (unsigned i = 0; i < SMALL; i++) {
        pthread_join(small[i].thread, NULL);
        before += small[i].done_ns < big.done_ns;
        free(small[i].text);
    }
    free(first.text);
    free(big.text);
    assert_true(before < SMALL / 2);
    served_stop(&s, 5000);
}

static void less_than_a_context(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    E2E(&r, "serve", "--device", "cpu", "--ctx", "512", "--kv-size", "256", "--listen", "127.0.0.1:0");
    E2E_STATUS(&r, 1);
    E2E_HAS(r.err, "context: 512 tokens do not fit the 256 that all are to have together");
    e2e_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {SERVE_TEST(answers_that_outgrow_the_cache), SERVE_TEST(a_big_one_gets_its_turn),
                                       SERVE_TEST(less_than_a_context)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
