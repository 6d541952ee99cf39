/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_cluster.c: a server on a cluster: clients notice a lost worker as a pause, /health says what is missing and, with nobody
 * asking for anything, that it is back.
 */
#include "e2e_procs.h"
#include "http.h"

#define ASK "{\"prompt\":\"Once\",\"max_tokens\":300,\"temperature\":0}"

/* Of /health. */
static int health(int port, char *why, size_t cap)
{
    struct http h;
    http_get(&h, port, "/health");
    json_t *v = http_json(&h);
    const char *text = json_string_value(json_object_get(v, "why"));
    snprintf(why, cap, "%s", text ? text : "");
    int status = h.status;
    json_decref(v);
    http_free(&h);
    return status;
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
        if (dl_now_ns() - t0 > 30 * SEC)
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

int main(void)
{
    const struct CMUnitTest tests[] = {SERVE_TEST(a_client_sees_a_pause)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
