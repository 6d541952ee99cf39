/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_cluster.c: a server on a cluster: clients notice a lost worker as a pause, /health says what is missing and, with nobody
 * asking for anything, that it is back.
 */
#include "e2e_procs.h"
#include "http.h"

#include <math.h>

/* Long enough for who is killed in it, however fast this machine is. */
#define ASK "{\"prompt\":\"Once\",\"temperature\":0,\"logit_bias\":{\"1\":-100,\"2\":-100},\"max_tokens\":" N_ANSWER "}"
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_ANSWER "600"
#else
#define N_ANSWER "1200"
#endif
#define ASK_SHORT "{\"prompt\":\"Once\",\"max_tokens\":30,\"temperature\":0}"

/* /health is 200, by all nodes if `whole`. */
static void until_served(int port, bool whole, char *why, size_t cap)
{
    for (uint64_t t0 = dl_now_ns(); health(port, why, cap) != 200 || (whole && *why); dl_sleep_ns(SEC / 50))
        assert_true(dl_now_ns() - t0 < 100 * SEC);
}

static void a_client_sees_a_pause(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct workers c;
    struct served s;
    struct http h;
    char why[400];
    workers_start(&c, 2);
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "4096", "--wire", "f32", "--workers", c.list);
    char *undisturbed = ask(s.port, "/v1/completions", ASK);
    assert_int_equal(health(s.port, why, sizeof why), 200);
    assert_string_equal(why, "");
    double made = metric(s.port, "dllama_generated_tokens_total");
    http_begin(&h, s.port, "POST", "/v1/completions", "", ASK);
    while (metric(s.port, "dllama_generated_tokens_total") <
           made + 3) /* the answer has begun, however fast this machine is */
        dl_sleep_ns(SEC / 1000);
    proc_kill(&c.w[1]);
    http_finish(&h);
    HTTP_STATUS(&h, 200);
    json_t *v = http_json(&h);
    assert_string_equal(choice_text(v, 0), undisturbed);
    json_decref(v);
    http_free(&h);
    assert_int_equal(health(s.port, why, sizeof why), 200); /* it serves */
    E2E_HAS(why, "node 2 (127.0.0.1:");
    E2E_HAS(why, " lost in step ");
    proc_free(&c.w[1]);
    worker_start(&c, 1);
    for (uint64_t t0 = dl_now_ns(); *why; dl_sleep_ns(SEC / 5)) { /* nobody has to ask it for anything */
        assert_int_not_equal(health(s.port, why, sizeof why), 404);
        if (dl_now_ns() - t0 > 100 * SEC)
            fail_msg("still: %s", why);
    }
    assert_int_equal(health(s.port, why, sizeof why), 200);
    (void)proc_says(&c.w[1], c.seen[1], "ready after");
    char *again = ask(s.port, "/v1/completions", ASK);
    assert_string_equal(again, undisturbed);
    free(undisturbed);
    free(again);
    served_stop(&s, 20000);
    workers_end(&c);
}

/* While nobody asks for anything: it notices by itself, with one line, and the next one who asks is served as ever. */
static void workers_go_between_answers(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    static const struct {
        int signal;
        const char *why;
    } ends[] = {{SIGKILL, " lost in "}, {SIGINT, ": its user has stopped it"}};
    struct workers c;
    struct served s;
    char why[400], *undisturbed, *again;
    workers_start(&c, 2);
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512", "--wire", "f32", "--workers", c.list);
    undisturbed = ask(s.port, "/v1/completions", ASK_SHORT);
    dl_sleep_ns(22 * SEC / 10); /* what each node did has been asked for, too: now it rests */
    for (size_t i = 0; i < DL_COUNT_OF(ends); i++) {
        s.n_said = 0;
        memset(s.said, 0, sizeof s.said);
        kill(c.w[1].p.pid, ends[i].signal);
        proc_wait(&c.w[1]);
        (void)served_says(&s, "; going on with ");
        if (!strstr(s.said, "warning: node 2 (127.0.0.1:") || !strstr(s.said, ends[i].why) ||
            !strstr(s.said, "; going on with 2 of 3 nodes\n"))
            fail_msg("%s", s.said);
        until_served(s.port, false, why, sizeof why);
        E2E_HAS(why, " lost in ");
        again = ask(s.port, "/v1/completions", ASK_SHORT);
        assert_string_equal(again, undisturbed);
        free(again);
        proc_free(&c.w[1]);
        worker_start(&c, 1);
        (void)served_says(&s, " is back: going on with 3 of 3 nodes");
        const char *first = strstr(s.said, "warning: ");
        assert_ptr_equal(strstr(strstr(first + 1, "warning: ") + 1, "warning: "), NULL); /* two lines, two events */
    }
    free(undisturbed);
    served_stop(&s, 20000);
    workers_end(&c);
}

/* A server that is started while a worker is down serves with the others, and takes it in when it comes. One that is refused ends. */
static void started_while_one_is_down(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct workers c;
    struct served s;
    struct e2e r;
    char why[400];
    workers_start(&c, 2);
    proc_kill(&c.w[1]);
    proc_free(&c.w[1]);
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512", "--wire", "f32", "--workers", c.list);
    E2E_HAS(s.said, "connection refused: is `dllama-vk worker` running there");
    E2E_HAS(s.said, "warning: going on with 2 of 3 nodes; who is missing is taken in when it comes\n");
    assert_int_equal(health(s.port, why, sizeof why), 200);
    assert_string_equal(why, "2 of 3 nodes are there");
    char *first = ask(s.port, "/v1/completions", ASK_SHORT);
    worker_start(&c, 1);
    (void)served_says(&s, " has come: going on with 3 of 3 nodes");
    until_served(s.port, true, why, sizeof why);
    char *second = ask(s.port, "/v1/completions", ASK_SHORT);
    assert_string_equal(first, second);
    free(first);
    free(second);
    E2E(&r, "serve", model, "--listen", "127.0.0.1:0", "--device", "cpu", "--workers",
        c.list); /* they serve another root */
    E2E_STATUS(&r, 1);
    E2E_HAS(r.err, "it is busy: it works for another root");
    e2e_free(&r);
    served_stop(&s, 20000);
    workers_end(&c);
}

/* A worker is started again with a key, which the others have not: the server says so once, and serves without it. */
static void restarted_with_another_key(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct workers c;
    struct served s;
    char key[TEMPDIR_LEN + 8], line[200];
    struct e2e r;
    workers_start(&c, 2);
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512", "--wire", "f32", "--workers", c.list);
    snprintf(key, sizeof key, "%s/key", c.dir[1]);
    E2E(&r, "keygen", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    snprintf(line, sizeof line, "warning: node 2 (%s) is there, but cannot be taken in: it runs with a key",
             c.address[1]);
    for (int i = 0; i < 2; i++) {
        s.n_said = 0;
        memset(s.said, 0, sizeof s.said);
        proc_kill(&c.w[1]);
        proc_free(&c.w[1]);
        setenv("DLLAMA_KEY_FILE", key, 1);
        worker_start(&c, 1);
        unsetenv("DLLAMA_KEY_FILE");
        (void)served_says(&s, line);
        (void)served_says(&s, ": give all nodes the same --key FILE\n");
        if (i)
            break;
        char *text = ask(s.port, "/v1/completions", ASK_SHORT);
        free(text);
        dl_sleep_ns(25 * SEC / 10); /* it is looked at again */
        proc_kill(&c.w[1]);
        proc_free(&c.w[1]);
        worker_start(&c, 1);
        (void)served_says(&s, " is back: going on with 3 of 3 nodes");
        assert_ptr_equal(strstr(strstr(s.said, line) + 1, line), NULL);
    }
    served_stop(&s, 20000);
    workers_end(&c);
}

/* A client whose server loses its GPU sees a pause, too. */
static void its_gpu_is_lost(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_GPU();
    NEED_DATA(model, "models/stories260K.gguf");
    struct workers c;
    struct served s;
    char why[400], *want, *got;
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512");
    want = ask(s.port, "/v1/completions", "{\"prompt\":\"Once\",\"max_tokens\":40,\"temperature\":0}");
    served_stop(&s, 20000);
    workers_start(&c, 1);
    setenv("DLLAMA_VK_LOSE_AFTER", "100", 1);
    SERVE(&s, model, "--device", "vulkan:0", "--ctx", "512", "--wire", "f32", "--workers", c.list, "--split", "1:1");
    unsetenv("DLLAMA_VK_LOSE_AFTER");
    for (int i = 0; i < 2; i++) {
        got = ask(s.port, "/v1/completions", "{\"prompt\":\"Once\",\"max_tokens\":40,\"temperature\":0}");
        assert_string_equal(got, want);
        free(got);
    }
    (void)served_says(&s, ": the device was lost (");
    (void)served_says(&s, "going on with cpu (");
    assert_int_equal(health(s.port, why, sizeof why), 200);
    free(want);
    served_stop(&s, 20000);
    workers_end(&c);
}

/* ------------------------------------------------------------------------------------------------- sampling */

#define TEXT "/v1/completions"
#define DRAW "{\"prompt\":\"Once\",\"max_tokens\":60,\"seed\":7,"

static const char *const draws[] = {
    DRAW "\"temperature\":1}",
    DRAW "\"temperature\":0.8,\"top_p\":0.9}",
    DRAW "\"temperature\":1.3,\"top_k\":40}",
    DRAW "\"temperature\":1.5,\"min_p\":0.02,\"n\":3}",
    DRAW "\"temperature\":1,\"logprobs\":5}",
    DRAW "\"temperature\":0,\"logprobs\":3}",
    DRAW "\"temperature\":0.7,\"logprobs\":2}",
    DRAW "\"temperature\":1,\"logit_bias\":{\"300\":4,\"9\":-100}}",
    DRAW "\"temperature\":1,\"presence_penalty\":0.5,\"frequency_penalty\":0.2}",
    DRAW "\"temperature\":0,\"repeat_penalty\":1.3}",
    DRAW "\"temperature\":1,\"response_format\":{\"type\":\"json_object\"}}",
    DRAW "\"temperature\":0,\"response_format\":{\"type\":\"json_object\"}}",
};

static json_t *answer(int port, const char *body)
{
    struct http h;
    http_post(&h, port, TEXT, body);
    HTTP_STATUS(&h, 200);
    json_t *v = http_json(&h);
    http_free(&h);
    return v;
}

/* Numbers of two documents of one form, which may differ by rounding. */
static void alike(json_t *a, const json_t *b, double most)
{
    const char *key;
    json_t *v;
    assert_int_equal(json_typeof(a), json_typeof(b));
    assert_int_equal(json_object_size(a), json_object_size(b));
    assert_int_equal(json_array_size(a), json_array_size(b));
    if (json_is_real(a) && fabs(json_real_value(a) - json_real_value(b)) > most)
        fail_msg("%g, not %g", json_real_value(a), json_real_value(b));
    if (json_is_string(a))
        assert_string_equal(json_string_value(a), json_string_value(b));
    json_object_foreach(a, key, v) alike(v, json_object_get(b, key), most);
    for (size_t i = 0; i < json_array_size(a); i++)
        alike(json_array_get(a, i), json_array_get(b, i), most);
}

/* The same text for the same seed, whether nodes send candidates, all logits (which a bias asks for, of nothing at all, too), or there is
 * only one of them. */
static void the_same_draws_as_alone(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    json_t *alone[DL_COUNT_OF(draws)];
    struct workers c;
    struct served s;
    char full[512];
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512");
    for (size_t i = 0; i < DL_COUNT_OF(draws); i++)
        alone[i] = answer(s.port, draws[i]);
    served_stop(&s, 20000);
    workers_start(&c, 2);
    SERVE(&s, model, "--device", "cpu", "--threads", "1", "--ctx", "512", "--wire", "f32", "--workers", c.list);
    for (size_t i = 0; i < DL_COUNT_OF(draws); i++) {
        json_t *v = answer(s.port, draws[i]);
        alike(json_object_get(alone[i], "choices"), json_object_get(v, "choices"), 0.02); /* sums in another order */
        alike(json_object_get(alone[i], "usage"), json_object_get(v, "usage"), 0);
        if (!strstr(draws[i], "logit_bias")) {
            snprintf(full, sizeof full, "{\"logit_bias\":{\"5\":0},%s", draws[i] + 1);
            json_t *w = answer(s.port, full);
            alike(json_object_get(v, "choices"), json_object_get(w, "choices"), 1e-5);
            json_decref(w);
        }
        json_decref(alone[i]);
        json_decref(v);
    }
    assert_true(metric(s.port, "dllama_fetched_rows_total") > 0); /* a draw that did not fit the form */
    served_stop(&s, 20000);
    workers_end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {SERVE_TEST(a_client_sees_a_pause),     SERVE_TEST(workers_go_between_answers),
                                       SERVE_TEST(started_while_one_is_down), SERVE_TEST(restarted_with_another_key),
                                       SERVE_TEST(its_gpu_is_lost),           SERVE_TEST(the_same_draws_as_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
