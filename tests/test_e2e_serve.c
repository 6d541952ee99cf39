/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve.c: `serve` over real connections, with the demo model: every endpoint, and what clients may ask for. Many of them at
 * once: test_e2e_serve_load.c; the slow, the vanishing and the hostile: test_e2e_serve_clients.c, test_e2e_serve_hostile.c.
 */
#include "http.h"

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]"

static void test_endpoints(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu");
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *has;
    } cases[] = {
        {"GET", "/health", NULL, 200, "\"status\":\"ok\""},
        {"HEAD", "/health", NULL, 200, ""},
        {"GET", "/v1/models", NULL, 200, "\"object\":\"list\""},
        {"GET", "/v1/models/dllama-vk%20demo", NULL, 200, "\"object\":\"model\""},
        {"GET", "/v1/models/other", NULL, 404, "model_not_found"},
        {"GET", "/v1/cluster", NULL, 200, "\"nodes\":[{"},
        {"GET", "/metrics", NULL, 200, "# TYPE dllama_token_seconds histogram"},
        {"POST", "/tokenize", "{\"content\":\"Hello world\"}", 200, "\"count\":"},
        {"POST", "/detokenize", "{\"tokens\":[300]}", 200, "\"content\":"},
        {"POST", "/v1/embeddings", "{\"input\":\"a\"}", 404, "embeddings are not offered"},
        {"GET", "/", NULL, 200, "<title>dllama-vk</title>"},
        {"HEAD", "/page/app.js", NULL, 200, ""},
        {"GET", "/page/index.html", NULL, 404, "nothing at /page/index.html"},
        {"POST", "/page/app.js", "{}", 405, "takes GET, not POST"},
        {"GET", "/nowhere", NULL, 404, "nothing at /nowhere"},
        {"GET", "/v1/modelsx", NULL, 404, "nothing at"},
        {"GET", CHAT, NULL, 405, "takes POST, not GET"},
        {"POST", "/health", "{}", 405, "takes GET, not POST"},
        {"BREW", "/health", NULL, 405, "takes GET"},
        {"POST", CHAT, "{\"messages\":5}", 400, "\"param\":\"messages\""},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        http_begin(&h, s.port, cases[i].method, cases[i].path, "", cases[i].body);
        http_finish(&h);
        HTTP_STATUS(&h, cases[i].status);
        E2E_HAS(h.all, cases[i].has);
        if (cases[i].status >= 400) {
            json_t *v = http_json(&h);
            assert_true(json_is_string(json_object_get(json_object_get(v, "error"), "message")));
            json_decref(v);
        }
        http_free(&h);
    }
    char body[256], *once = ask(s.port, TEXT, "{\"prompt\":\"\",\"max_tokens\":9}"), want[256];
    http_post(&h, s.port, "/tokenize", "{\"content\":\"your own machines, and Zebra\"}");
    json_t *v = http_json(&h);
    char *ids = json_dumps(json_object_get(v, "tokens"), 0);
    snprintf(body, sizeof body, "{\"tokens\":%s}", ids);
    http_free(&h);
    http_post(&h, s.port, "/detokenize", body);
    snprintf(want, sizeof want, "{\"content\":\"your own machines, and Zebra\"}");
    assert_string_equal(h.body, want);
    http_free(&h);
    json_decref(v);
    free(ids);
    free(once);
    served_stop(&s, 5000);
}

/* The text of the answer that `run` gives. */
static char *run_alone(const char *prompt)
{
    struct e2e r;
    E2E(&r, "run", "--device", "cpu", "--temp", "0", "--json", "-n", "40", "--raw", "-p", prompt);
    E2E_STATUS(&r, 0);
    json_t *v = json_loads(r.out, 0, NULL);
    char *text = strdup(json_string_value(json_object_get(v, "text")));
    json_decref(v);
    e2e_free(&r);
    return text;
}

/* What says, to those who compare answers, that the same model has computed them in the same way. */
static const char *fingerprint_of(const json_t *v)
{
    const char *print = json_string_value(json_object_get(v, "system_fingerprint"));
    assert_non_null(print);
    return print;
}

static void test_answers(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu");
    char *alone = run_alone("One model"), *text = ask(s.port, TEXT, "{\"prompt\":\"One model\",\"max_tokens\":40}");
    assert_string_equal(text, alone);
    assert_true(strlen(text) > 40);
    free(text);

    /* Whole and in pieces: the same, and by the same. */
    http_post(&h, s.port, CHAT, "{" HELLO "}");
    json_t *all = http_json(&h);
    char *whole = strdup(choice_text(all, 0)), print[32];
    snprintf(print, sizeof print, "%s", fingerprint_of(all));
    assert_true(!strncmp(print, "fp_", 3) && strlen(print) > 8);
    json_decref(all);
    http_free(&h);
    struct dl_str pieces = {0};
    http_post(&h, s.port, CHAT, "{" HELLO ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    HTTP_STATUS(&h, 200);
    E2E_HAS(h.all, "text/event-stream");
    unsigned events = 0, roles = 0, finishes = 0, usages = 0;
    char *at = h.body;
    for (json_t *v; (v = next_event(&at)); events++) {
        const json_t *choice = json_array_get(json_object_get(v, "choices"), 0),
                     *delta = json_object_get(choice, "delta");
        const char *piece = json_string_value(json_object_get(delta, "content"));
        (void)dl_str_addz(&pieces, piece ? piece : "");
        roles += json_object_get(delta, "role") != NULL;
        finishes += json_is_string(json_object_get(choice, "finish_reason"));
        usages += json_is_object(json_object_get(v, "usage"));
        assert_string_equal(fingerprint_of(v), print);
        json_decref(v);
    }
    assert_string_equal(at, ""); /* and [DONE] was the last one */
    assert_string_equal(pieces.v, whole);
    assert_true(events > 10 && roles == 1 && finishes == 1 && usages == 1);
    http_free(&h);
    dl_str_finish(&pieces);

    /* The end of the text, a stop string, the number of tokens. */
    http_post(&h, s.port, CHAT, "{" HELLO "}");
    json_t *v = http_json(&h);
    assert_string_equal(finish_of(v, 0), "stop");
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, CHAT, "{" HELLO ",\"stop\":\"machines\"}");
    v = http_json(&h);
    assert_string_equal(finish_of(v, 0), "stop");
    assert_true(strstr(whole, "machines") && strlen(choice_text(v, 0)) == (size_t)(strstr(whole, "machines") - whole));
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, CHAT, "{" HELLO ",\"max_completion_tokens\":3}");
    v = http_json(&h);
    assert_string_equal(finish_of(v, 0), "length");
    const json_t *usage = json_object_get(v, "usage");
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 3);
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, CHAT, "{" HELLO ",\"max_tokens\":0}");
    v = http_json(&h);
    assert_string_equal(finish_of(v, 0), "length");
    assert_string_equal(choice_text(v, 0), "");
    json_decref(v);
    http_free(&h);
    free(whole);
    free(alone);
    served_stop(&s, 5000);
}

/* The end of the context is the end of an answer, and no failure: whole or streamed, and whatever was asked for. */
static void test_full_context(void **state)
{
    (void)state;
    NEED_BIN();
    enum { CTX = 32 };
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu", "--ctx", "32");
    char *alone = run_alone("One model");
    static const char *const more[] = {"", ",\"max_tokens\":500", ",\"stream\":true"};
    for (size_t i = 0; i < DL_COUNT_OF(more); i++) {
        char body[128];
        struct dl_str text = {0};
        json_t *v = NULL;
        snprintf(body, sizeof body, "{\"prompt\":\"One model\"%s}", more[i]);
        http_post(&h, s.port, TEXT, body);
        HTTP_STATUS(&h, 200);
        if (i == 2) {
            char *at = h.body;
            for (json_t *piece; (piece = next_event(&at)); v = piece) {
                (void)dl_str_addz(&text, choice_text(piece, 0));
                json_decref(v);
            }
            assert_string_equal(at, ""); /* [DONE] */
        } else {
            v = http_json(&h);
            (void)dl_str_addz(&text, choice_text(v, 0));
            const json_t *usage = json_object_get(v, "usage");
            const json_int_t prompt = json_integer_value(json_object_get(usage, "prompt_tokens"));
            /* The last one is not evaluated any more, so it takes no place. */
            assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), CTX + 1 - prompt);
        }
        assert_string_equal(finish_of(v, 0), "length");
        assert_true(text.len > 60 && !strncmp(alone, text.v, text.len)); /* 30 of the 40 tokens that it wrote alone */
        json_decref(v);
        dl_str_finish(&text);
        http_free(&h);
    }
    free(alone);
    served_stop(&s, 5000);
}

/* As much as a request may hold, of which the tokens need not be counted to see that they do not fit. */
static void far_too_long(int port, const char *path, const char *param)
{
    enum { WORDS = (7 << 20) / 8 };
    struct dl_str body = {0};
    struct http h;
    (void)dl_str_addf(&body, "%s",
                      *param == 'm' ? "{\"messages\":[{\"role\":\"user\",\"content\":\"" : "{\"prompt\":\"");
    for (int i = 0; i < WORDS; i++)
        (void)dl_str_addz(&body, "a dragon");
    (void)dl_str_addz(&body, *param == 'm' ? "\"}]}" : "\"}");
    http_post(&h, port, path, body.v);
    HTTP_STATUS(&h, 400);
    json_t *v = http_json(&h), *e = json_object_get(v, "error");
    const char *why = json_string_value(json_object_get(e, "message")), *number = strstr(why, ": at least ");
    assert_string_equal(json_string_value(json_object_get(e, "param")), param);
    assert_string_equal(json_string_value(json_object_get(e, "code")), "context_length_exceeded");
    E2E_HAS(why, " tokens do not fit the context of 1024 tokens: shorten them");
    if (!number || atol(number + 11) <= 1024 || atol(number + 11) > 8 * WORDS)
        fail_msg("%s", why);
    json_decref(v);
    http_free(&h);
    dl_str_finish(&body);
}

/* Every request has its own settings, and none of another's. */
static void test_sampling(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu");
#define WARM "{\"prompt\":\"a\",\"max_tokens\":30,\"temperature\":90,"
    char *a = ask(s.port, TEXT, WARM "\"seed\":1}"), *b = ask(s.port, TEXT, WARM "\"seed\":1}");
    char *c = ask(s.port, TEXT, WARM "\"seed\":2}");
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    char *greedy = ask(s.port, TEXT, "{\"prompt\":\"a\",\"max_tokens\":30}");
    char *k1 = ask(s.port, TEXT, WARM "\"top_k\":1}"), *p0 = ask(s.port, TEXT, WARM "\"top_p\":0}");
    assert_string_equal(k1, greedy);
    assert_string_equal(p0, greedy);
    assert_string_not_equal(a, greedy);
    free(a);
    free(b);
    free(c);
    free(k1);
    free(p0);

    http_post(&h, s.port, TEXT, WARM "\"seed\":1,\"n\":3}");
    json_t *v = http_json(&h);
    assert_int_equal(json_array_size(json_object_get(v, "choices")), 3);
    assert_string_not_equal(choice_text(v, 0), choice_text(v, 1));
    assert_string_not_equal(choice_text(v, 1), choice_text(v, 2));
    /* Nor is one a later part of another. */
    const char *half = choice_text(v, 1);
    assert_null(strstr(choice_text(v, 0), half + strlen(half) / 2));
    char start[13];
    snprintf(start, sizeof start, "%s", half); /* of answer 1 */
    assert_null(strstr(choice_text(v, 0), start));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(v, "usage"), "completion_tokens")), 90);
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, TEXT, "{\"prompt\":[\"One\",[1]],\"max_tokens\":4,\"n\":2,\"echo\":true}");
    v = http_json(&h);
    assert_int_equal(json_array_size(json_object_get(v, "choices")), 4);
    assert_int_equal(strncmp(choice_text(v, 1), "One", 3), 0);
    assert_string_equal(choice_text(v, 2), choice_text(v, 3));
    json_decref(v);
    http_free(&h);

    /* A token that is pushed away is not taken; one that is pulled up is. Likelihoods are those before that. */
    http_post(&h, s.port, TEXT, "{\"prompt\":\"One\",\"max_tokens\":1,\"logprobs\":3}");
    v = http_json(&h);
    const json_t *lp = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    const json_t *top = json_array_get(json_object_get(lp, "top_logprobs"), 0);
    assert_int_equal(json_object_size(top), 3);
    double best = json_number_value(json_array_get(json_object_get(lp, "token_logprobs"), 0));
    assert_true(best <= 0 && best > -0.1);
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, TEXT, "{\"prompt\":\"One\",\"max_tokens\":5,\"logit_bias\":{\"300\":100},\"logprobs\":0}");
    v = http_json(&h);
    lp = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    const char *same = json_string_value(json_array_get(json_object_get(lp, "tokens"), 0));
    assert_true(json_number_value(json_array_get(json_object_get(lp, "token_logprobs"), 0)) < -20);
    assert_string_equal(same, json_string_value(json_array_get(json_object_get(lp, "tokens"), 4)));
    json_decref(v);
    http_free(&h);
    /* The same pull, against a penalty that grows with every use: others get their turn. */
    http_post(&h, s.port, TEXT,
              "{\"prompt\":\"One\",\"max_tokens\":9,\"logit_bias\":{\"300\":26,\"301\":25},\"frequency_penalty\":2,"
              "\"logprobs\":0}");
    v = http_json(&h);
    lp = json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs");
    unsigned changes = 0;
    for (size_t i = 1; i < 9; i++)
        changes += strcmp(json_string_value(json_array_get(json_object_get(lp, "tokens"), i)),
                          json_string_value(json_array_get(json_object_get(lp, "tokens"), i - 1))) != 0;
    assert_true(changes > 1);
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, CHAT, "{" HELLO ",\"max_tokens\":2,\"logprobs\":true,\"top_logprobs\":2}");
    v = http_json(&h);
    lp = json_object_get(json_object_get(json_array_get(json_object_get(v, "choices"), 0), "logprobs"), "content");
    assert_int_equal(json_array_size(lp), 2);
    const json_t *first = json_array_get(lp, 0);
    assert_int_equal(json_array_size(json_object_get(first, "top_logprobs")), 2);
    assert_string_equal(
        json_string_value(json_object_get(first, "token")),
        json_string_value(json_object_get(json_array_get(json_object_get(first, "top_logprobs"), 0), "token")));
    json_decref(v);
    http_free(&h);
    char *after = ask(s.port, TEXT, "{\"prompt\":\"a\",\"max_tokens\":30}");
    assert_string_equal(after, greedy);
    free(after);
    free(greedy);

    /* Both numbers. */
    struct dl_str body = {0};
    (void)dl_str_addz(&body, "{\"prompt\":\"");
    for (int i = 0; i < 3000; i++)
        (void)dl_str_addz(&body, "zq");
    (void)dl_str_addz(&body, "\"}");
    http_post(&h, s.port, TEXT, body.v);
    HTTP_STATUS(&h, 400);
    E2E_HAS(h.body, "tokens do not fit the context of 1024");
    E2E_HAS(h.body, "context_length_exceeded");
    assert_null(strstr(h.body, "at least"));
    http_free(&h);
    dl_str_finish(&body);
    far_too_long(s.port, TEXT, "prompt");
    far_too_long(s.port, CHAT, "messages");
    served_stop(&s, 5000);
}

/* A model that knows only one text, which is no JSON: what it says is JSON that fits nevertheless. */
static void test_formats(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu");
    static const char schema[] =
        "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":\"object\","
        "\"properties\":{\"colour\":{\"enum\":[\"red\",\"green\"]},\"n\":{\"type\":\"integer\"},\"list\":{\"type\":"
        "\"array\","
        "\"items\":{\"type\":\"boolean\"},\"minItems\":1,\"maxItems\":2}},\"required\":[\"colour\",\"n\",\"list\"]}}}";
    unsigned reds = 0;
    for (unsigned i = 0; i < 12; i++) {
        char body[1024];
        snprintf(body, sizeof body, "{%s,\"max_tokens\":900,\"temperature\":%u,\"seed\":%u,%s}", HELLO, i ? 1000 : 0, i,
                 schema);
        http_post(&h, s.port, CHAT, body);
        HTTP_STATUS(&h, 200);
        json_t *v = http_json(&h);
        assert_string_equal(finish_of(v, 0), "stop");
        json_t *answer = json_loads(choice_text(v, 0), 0, NULL);
        if (!answer)
            fail_msg("no JSON: %s", choice_text(v, 0));
        const char *colour = json_string_value(json_object_get(answer, "colour"));
        const json_t *list = json_object_get(answer, "list");
        assert_true(colour && (!strcmp(colour, "red") || !strcmp(colour, "green")));
        assert_true(json_is_integer(json_object_get(answer, "n")));
        assert_true(json_array_size(list) >= 1 && json_array_size(list) <= 2 &&
                    json_is_boolean(json_array_get(list, 0)));
        reds += *colour == 'r';
        json_decref(answer);
        json_decref(v);
        http_free(&h);
    }
    assert_true(reds > 0 && reds < 12); /* a choice it is, where the temperature is high */
    /* Any object, streamed, and cut by the number of tokens only. */
    http_post(&h, s.port, CHAT,
              "{" HELLO
              ",\"temperature\":100,\"seed\":4,\"max_tokens\":300,\"response_format\":{\"type\":\"json_object\"}}");
    json_t *v = http_json(&h);
    json_t *answer = json_loads(choice_text(v, 0), 0, NULL);
    if (!strcmp(finish_of(v, 0), "stop") && !json_is_object(answer))
        fail_msg("no object: %s", choice_text(v, 0));
    assert_true(choice_text(v, 0)[strspn(choice_text(v, 0), " \n")] == '{');
    json_decref(answer);
    json_decref(v);
    http_free(&h);
    http_post(&h, s.port, CHAT,
              "{" HELLO ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"oneOf\":[]}}}}");
    HTTP_STATUS(&h, 400);
    E2E_HAS(h.body, "'oneOf' is not supported");
    http_free(&h);
    served_stop(&s, 5000);
}

static int cached_of(const struct http *h, char **text)
{
    json_t *v = http_json(h);
    const json_t *details = json_object_get(json_object_get(v, "usage"), "prompt_tokens_details");
    int n = (int)json_integer_value(json_object_get(details, "cached_tokens"));
    *text = strdup(choice_text(v, 0));
    json_decref(v);
    return n;
}

/* What was read before is not read again: the same prompt, the next turn, other answers to the same. */
static void test_cache(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    char body[2048], prompt[1024] = "", *first, *text;
    SERVE(&s, "--device", "cpu", "--batch", "16");
    for (int i = 0; i < 20; i++)
        strcat(prompt, "One model runs across the machines. ");
    snprintf(body, sizeof body, "{\"prompt\":\"%s\",\"max_tokens\":40}", prompt);
    http_post(&h, s.port, TEXT, body);
    assert_int_equal(cached_of(&h, &first), 0);
    http_free(&h);
    http_post(&h, s.port, TEXT, body);
    int again = cached_of(&h, &text);
    assert_true(again >= 64 && again % 32 == 0);
    assert_string_equal(text, first);
    free(text);
    http_free(&h);
    snprintf(body, sizeof body, "{\"prompt\":\"%s%s And now?\",\"max_tokens\":5}", prompt, first);
    http_post(&h, s.port, TEXT, body);
    assert_true(cached_of(&h, &text) >= again + 32); /* of the answer, too */
    free(text);
    http_free(&h);
    snprintf(body, sizeof body, "{\"prompt\":\"Another one. %s\",\"max_tokens\":40,\"n\":3}", prompt);
    http_post(&h, s.port, TEXT, body);
    int others = cached_of(&h, &text);
    assert_true(others >= 2 * 64 && others <= 2 * (again + 32)); /* the first of them reads it */
    assert_true(metric(s.port, "dllama_cached_tokens_total") > 64 * 4);
    free(text);
    http_free(&h);
    free(first);
    served_stop(&s, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVE_TEST(test_endpoints), SERVE_TEST(test_answers), SERVE_TEST(test_full_context),
        SERVE_TEST(test_sampling),  SERVE_TEST(test_cache),   SERVE_TEST(test_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
