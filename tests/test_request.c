/* SPDX-License-Identifier: MIT
 *
 * tests/test_request.c: what the server reads from JSON (cli/server/request.h): both legal forms of a field, wrong types by name, numbers
 * beyond their range; and how large its batches may be (cli/server/pace.h).
 */
#include "common.h"

#include "pace.h"
#include "request.h"

static const struct cli_req_defaults defaults = {
    .vocab = 1000, .temperature = 0.5f, .top_p = 0.75f, .repeat_penalty = 1, .top_k = 3};

static int read_it(enum cli_endpoint endpoint, const char *body, struct cli_request *r, struct cli_req_error *e)
{
    return cli_request_read(endpoint, body, strlen(body), &defaults, r, e);
}

#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        enum cli_endpoint endpoint;
        const char *body, *param, *says;
    } cases[] = {
        {CLI_ENDPOINT_CHAT, "", "", "no JSON"},
        {CLI_ENDPOINT_CHAT, "{", "", "no JSON"},
        {CLI_ENDPOINT_CHAT, "{} x", "", "no JSON"},
        {CLI_ENDPOINT_CHAT, "[]", "", "must be a JSON object, not a list"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}", "", "no JSON"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "", "no JSON"},
        {CLI_ENDPOINT_CHAT, "{}", "messages", "is missing"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":null}", "messages", "is missing"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":\"hi\"}", "messages", "must be a list, not a string"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[]}", "messages", "is empty"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[3]}", "messages[0]", "an object, not a number"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"content\":\"a\"}]}", "messages[0].role", "must be a string"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"a\"}]}", "messages[0].role", "'tool'"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "is missing"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}", "messages[0].content", "an object"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[1]}]}", "messages[0].content[0]",
         "a number"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "messages[0].content[0].type", "only parts of type"},
        {CLI_ENDPOINT_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":1}]}]}",
         "messages[0].content[0].text", "must be a string"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"stream\":1}", "stream", "true or false, not a number"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"stream_options\":1}", "stream_options", "an object"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"stream_options\":{\"include_usage\":\"y\"}}", "stream_options.include_usage",
         "true or false"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"max_tokens\":\"5\"}", "max_tokens", "a whole number, not a string"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"max_completion_tokens\":1.5}", "max_completion_tokens", "a whole number"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"temperature\":\"hot\"}", "temperature", "a number, not a string"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"top_p\":true}", "top_p", "a number, not a boolean"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"stop\":5}", "stop", "a string or a list of strings"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"stop\":[\"a\",5]}", "stop", "a string or a list of strings"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"n\":0}", "n", "not from 1 to 16"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"n\":99999999999999999999}", "n", "not from 1 to 16"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logit_bias\":[]}", "logit_bias", "an object"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logit_bias\":{\"1000\":1}}", "logit_bias", "'1000' is no token id"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logit_bias\":{\"x\":1}}", "logit_bias", "'x' is no token id"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logit_bias\":{\"-1\":1}}", "logit_bias", "'-1' is no token id"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logit_bias\":{\"5\":\"1\"}}", "logit_bias", "not a string"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logprobs\":2}", "logprobs", "true or false"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"top_logprobs\":2}", "top_logprobs", "needs \"logprobs\": true"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"logprobs\":true,\"top_logprobs\":21}", "top_logprobs", "not from 0 to 20"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"response_format\":\"json\"}", "response_format", "an object"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"response_format\":{\"type\":\"xml\"}}", "response_format.type", "'xml'"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"response_format\":{\"type\":\"json_schema\"}}",
         "response_format.json_schema.schema", "must be an object"},
        {CLI_ENDPOINT_CHAT, "{" MSG ",\"tool_choice\":\"required\"}", "tool_choice", "not supported"},
        {CLI_ENDPOINT_COMPLETION, "{}", "prompt", "is missing"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":5}", "prompt", "a string or a list of token ids, not a number"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":[\"a\",5]}", "prompt[1]", "not a number"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":[1,1000]}", "prompt", "1000 is no token id"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":[1,-1]}", "prompt", "-1 is no token id"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":[]}", "prompt", "empty list"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":[\"a\",\"b\"],\"n\":9}", "n", "are more than 16"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs", "a whole number"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":\"a\",\"best_of\":2}", "best_of", "not supported"},
        {CLI_ENDPOINT_COMPLETION, "{\"prompt\":\"a\",\"suffix\":\"b\"}", "suffix", "not supported"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct cli_request r;
        struct cli_req_error e;
        int err = read_it(cases[i].endpoint, cases[i].body, &r, &e);
        if (err != DL_EINVAL || e.status != 400 || strcmp(e.param, cases[i].param) != 0 ||
            !strstr(e.message, cases[i].says))
            fail_msg("%s: %d, status %d, param '%s', message '%s'", cases[i].body, err, e.status, e.param, e.message);
        json_t *all = cli_req_error_json(&e), *error = json_object_get(all, "error");
        assert_string_equal(json_string_value(json_object_get(error, "type")), "invalid_request_error");
        assert_string_equal(json_string_value(json_object_get(error, "message")), e.message);
        const char *param = json_string_value(json_object_get(error, "param"));
        assert_string_equal(param ? param : "", cases[i].param);
        json_decref(all);
        cli_request_finish(&r);
    }
}

/* A message may quote bytes that are no text. */
static void test_error_text(void **state)
{
    (void)state;
    struct cli_req_error e;
    assert_int_equal(cli_req_refuse(&e, 503, NULL, NULL, "it is \xc3"), DL_EINVAL);
    json_t *all = cli_req_error_json(&e), *error = json_object_get(all, "error");
    assert_string_equal(json_string_value(json_object_get(error, "message")), "it is ?");
    assert_string_equal(json_string_value(json_object_get(error, "type")), "server_error");
    assert_true(json_is_null(json_object_get(error, "param")));
    json_decref(all);
}

static void test_chat(void **state)
{
    (void)state;
    struct cli_request r;
    struct cli_req_error e;
    static const char body[] =
        "{\"model\":\"x\",\"messages\":[{\"role\":\"developer\",\"content\":\"be kind\"},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"\\u00e9\"}]},"
        "{\"role\":\"assistant\",\"content\":null}],\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"stop\":[\"x\",\"\",\"yz\"],\"max_tokens\":7,\"n\":3,\"seed\":-5,\"temperature\":0.25,\"logit_bias\":{\"5\":-"
        "200,"
        "\"7\":1.5},\"logprobs\":true,\"top_logprobs\":4,\"frobnicate\":[1,{}],\"user\":null,\"presence_penalty\":9,"
        "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"n\",\"schema\":{\"type\":\"object\"}"
        "}}}";
    assert_int_equal(read_it(CLI_ENDPOINT_CHAT, body, &r, &e), DL_OK);
    assert_int_equal(r.n_msgs, 3);
    assert_string_equal(r.msgs[0].role, "system");
    assert_string_equal(r.msgs[1].content, "a\xc3\xa9");
    assert_string_equal(r.msgs[2].content, "");
    assert_true(r.stream && r.include_usage && r.logprobs && r.has_seed);
    assert_int_equal(r.n_stops, 2);
    assert_string_equal(r.stops[1], "yz");
    assert_int_equal(r.max_tokens, 7);
    assert_int_equal(r.n, 3);
    assert_true(r.seed == (uint64_t)-5);
    assert_true(r.temperature == 0.25f && r.top_p == 0.75f && r.presence_penalty == 2 && r.top_k == 3);
    assert_int_equal(r.n_bias, 2);
    assert_true((r.bias[0].id == 5 ? r.bias[0] : r.bias[1]).bias == -100);
    assert_int_equal(r.top_logprobs, 4);
    assert_int_equal(r.format, CLI_FORMAT_JSON_SCHEMA);
    assert_true(json_is_object(r.schema));
    cli_request_finish(&r);
}

static void test_completion(void **state)
{
    (void)state;
    struct cli_request r;
    struct cli_req_error e;
    assert_int_equal(
        read_it(CLI_ENDPOINT_COMPLETION, "{\"prompt\":\"\",\"stop\":\"q\",\"echo\":true,\"logprobs\":0}", &r, &e),
        DL_OK);
    assert_true(r.n_prompts == 1 && r.prompts[0].n == 0 && r.n_stops == 1 && r.echo && r.logprobs && !r.stream);
    assert_true(r.max_tokens == UINT64_MAX && r.temperature == 0.5f && !r.has_seed);
    cli_request_finish(&r);
    assert_int_equal(read_it(CLI_ENDPOINT_COMPLETION, "{\"prompt\":[3,999,0]}", &r, &e), DL_OK);
    assert_true(r.n_prompts == 1 && r.prompts[0].ids.len == 3 && r.prompts[0].ids.v[1] == 999);
    cli_request_finish(&r);
    assert_int_equal(read_it(CLI_ENDPOINT_COMPLETION, "{\"prompt\":[[3],\"a\",[1,2]],\"n\":5}", &r, &e), DL_OK);
    assert_true(r.n_prompts == 3 && r.prompts[2].ids.len == 2 && !strcmp(r.prompts[1].text, "a"));
    cli_request_finish(&r);
}

static void test_clamped(void **state)
{
    (void)state;
    struct cli_request r;
    struct cli_req_error e;
    assert_int_equal(read_it(CLI_ENDPOINT_CHAT,
                             "{" MSG ",\"temperature\":-1,\"top_p\":9,\"min_p\":-9,\"top_k\":-4,\"max_tokens\":-1,"
                             "\"repeat_penalty\":0,\"frequency_penalty\":-99,\"seed\":1e300}",
                             &r, &e),
                     DL_OK);
    assert_true(r.temperature == 0 && r.top_p == 1 && r.min_p == 0 && r.top_k == 0 && r.frequency_penalty == -2);
    assert_true(r.repeat_penalty == 0.1f && r.max_tokens == UINT64_MAX && r.has_seed);
    cli_request_finish(&r);
    assert_int_equal(read_it(CLI_ENDPOINT_CHAT,
                             "{" MSG ",\"max_tokens\":123456789012345678901234567890,\"top_k\":1e18,"
                             "\"temperature\":1e300}",
                             &r, &e),
                     DL_OK);
    assert_true(r.max_tokens == UINT64_MAX && r.top_k == 1 << 22 && r.temperature == 100);
    cli_request_finish(&r);
}

static void test_tokenize(void **state)
{
    (void)state;
    struct cli_req_tokenize t;
    struct cli_req_error e;
    struct dl_tokens ids = {0};
    static const char text[] = "{\"content\":\"a b\",\"add_special\":true,\"parse_special\":false}";
    assert_int_equal(cli_tokenize_read(text, strlen(text), &t, &e), DL_OK);
    assert_true(t.n == 3 && t.bos && !t.special);
    free(t.text);
    assert_int_equal(cli_tokenize_read("{\"content\":5}", 13, &t, &e), DL_EINVAL);
    assert_string_equal(e.param, "content");
    assert_int_equal(cli_detokenize_read("{\"tokens\":[5,6]}", 16, 7, &ids, &e), DL_OK);
    assert_int_equal(ids.len, 2);
    assert_int_equal(cli_detokenize_read("{\"tokens\":[7]}", 14, 7, &ids, &e), DL_EINVAL);
    assert_string_equal(e.param, "tokens");
    dl_tokens_finish(&ids);
}

/* Whole bodies that are nearly right: one byte changed, taken out or doubled. Nothing but an answer or a refusal. */
static void test_altered(void **state)
{
    (void)state;
    static const char body[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}],\"stop\":[\"x\"],"
        "\"max_tokens\":7,\"logit_bias\":{\"5\":-2},\"logprobs\":true,\"n\":2,\"stream\":false}";
    uint64_t rng = 1;
    unsigned refused = 0, taken = 0;
    for (unsigned i = 0; i < 1000; i++) {
        char altered[sizeof body + 1];
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        size_t at = (size_t)(rng >> 33) % (sizeof body - 1), n = sizeof body - 1;
        memcpy(altered, body, sizeof body);
        switch (rng >> 32 & 3) {
        case 0:
            altered[at] = "{}[]\",:0-.entf\\\xc3 "[rng >> 60];
            break;
        case 1:
            memmove(altered + at, altered + at + 1, n - at);
            n--;
            break;
        case 2:
            memmove(altered + at + 1, altered + at, n - at);
            n++;
            break;
        default:
            n = at;
        }
        struct cli_request r;
        struct cli_req_error e;
        if (cli_request_read(CLI_ENDPOINT_CHAT, altered, n, &defaults, &r, &e)) {
            assert_int_equal(e.status, 400);
            assert_true(*e.message);
            refused++;
        } else {
            taken++;
        }
        cli_request_finish(&r);
    }
    assert_true(refused > 500 && taken > 50); /* the bodies differ */
}

static void test_pace(void **state)
{
    (void)state;
    struct cli_pace p = {0};
    assert_int_equal(cli_pace_chunk(&p, 0, 128), 128); /* nobody waits for a token */
    assert_int_equal(cli_pace_chunk(&p, 3, 128), 0);   /* what three take alone comes first */
    cli_pace_learn(&p, 3, 0, 8000000);
    assert_int_equal(cli_pace_chunk(&p, 3, 128), 16);
    assert_int_equal(cli_pace_chunk(&p, 3, 5), 5);
    for (int i = 0; i < 100; i++) {
        cli_pace_learn(&p, 4, 0, 10000000); /* a token of each of four: 10 ms, and 1 ms for each of a prompt */
        cli_pace_learn(&p, 4, 16, 26000000);
    }
    uint32_t n = cli_pace_chunk(&p, 4, 128);
    assert_in_range(n, 5, 10); /* at most as long again */
    assert_int_equal(cli_pace_chunk(&p, 4, 3), 3);
    for (int i = 0; i < 100; i++)
        cli_pace_learn(&p, 4, 1, 100000000000);      /* something is very slow: still on, token by token */
    assert_int_equal(cli_pace_chunk(&p, 4, 128), 0); /* after a look at four alone */
    cli_pace_learn(&p, 4, 0, 10000000);
    assert_int_equal(cli_pace_chunk(&p, 4, 128), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_error_text), cmocka_unit_test(test_chat),
        cmocka_unit_test(test_completion), cmocka_unit_test(test_clamped),    cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_altered),    cmocka_unit_test(test_pace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
