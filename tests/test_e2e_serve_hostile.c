/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_serve_hostile.c: `serve` against those who may not ask, and against bytes that are no request. Whatever comes, the next one
 * is answered.
 */
#include "http.h"

#define ASK "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":3}"

static int status_of(int port, const char *method, const char *path, const char *headers, const char *body)
{
    struct http h;
    http_begin(&h, port, method, path, headers, body);
    http_finish(&h);
    int status = h.status;
    http_free(&h);
    return status;
}

static void test_names(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    struct http h;
    SERVE(&s, "--device", "cpu");
    static const struct {
        const char *headers;
        int status;
    } cases[] = {
        {"Host: localhost:99\r\n", 200},
        {"host: LOCALHOST\r\n", 200},
        {"Host: [::1]:8080\r\n", 200},
        {"Host: app.localhost\r\n", 200},
        {"Host: evil.example\r\n", 403}, /* a name that its owner has pointed at 127.0.0.1 */
        {"Host: evil.example:8080\r\n", 403},
        {"Host: 127.0.0.1.evil.example\r\n", 403},
        {"Host: notlocalhost\r\n", 403},
        {"Host: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n", 200},
        {"Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n", 403}, /* a page of another site */
        {"Host: 127.0.0.1\r\nOrigin: null\r\n", 403},
        {"Host: 127.0.0.1\r\nOrigin: http://127.0.0.1:81\r\n", 403},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++)
        if (status_of(s.port, "POST", CHAT, cases[i].headers, ASK) != cases[i].status)
            fail_msg("%s: not %d", cases[i].headers, cases[i].status);
    assert_int_equal(status_of(s.port, "OPTIONS", CHAT, "Origin: http://evil.example\r\n", NULL), 403);
    http_get(&h, s.port, "/health");
    assert_null(strstr(h.all, "Access-Control"));
    http_free(&h);
    served_stop(&s, 5000);

    SERVE(&s, "--device", "cpu", "--cors", "https://a.example,http://b.example:3000");
    http_begin(&h, s.port, "POST", CHAT, "Origin: http://b.example:3000\r\n", ASK);
    http_finish(&h);
    HTTP_STATUS(&h, 200);
    E2E_HAS(h.all, "Access-Control-Allow-Origin: http://b.example:3000\r\n");
    http_free(&h);
    http_begin(&h, s.port, "OPTIONS", CHAT, "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n",
               NULL);
    http_finish(&h);
    HTTP_STATUS(&h, 204);
    E2E_HAS(h.all, "Access-Control-Allow-Headers: Authorization, Content-Type");
    http_free(&h);
    assert_int_equal(status_of(s.port, "POST", CHAT, "Origin: http://b.example\r\n", ASK), 403);
    served_stop(&s, 5000);
}

static void test_key(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    char path[64];
    struct http h;
    e2e_temp(path, "s3cret\n", 7);
    SERVE(&s, "--device", "cpu", "--api-key", path);
    static const struct {
        const char *path, *headers;
        int status;
    } cases[] = {
        {"/health", "", 200}, /* for those who watch over it */
        {"/v1/models", "", 401},
        {"/metrics", "", 401},
        {"/v1/cluster", "", 401},
        {"/v1/models", "Authorization: Bearer s3cret\r\n", 200},
        {"/v1/models", "authorization: bearer s3cret\r\n", 200},
        {"/v1/models", "Authorization: Bearer s3cres\r\n", 401},
        {"/v1/models", "Authorization: Bearer s3cre\r\n", 401},
        {"/v1/models", "Authorization: Bearer s3crett\r\n", 401},
        {"/v1/models", "Authorization: Bearer \r\n", 401},
        {"/v1/models", "Authorization: Basic s3cret\r\n", 401},
        {"/v1/models", "Authorization: Bearer s3cret\r\nHost: my.server.example\r\n", 200},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++)
        if (status_of(s.port, "GET", cases[i].path, cases[i].headers, NULL) != cases[i].status)
            fail_msg("%s with %s: not %d", cases[i].path, cases[i].headers, cases[i].status);
    http_post(&h, s.port, CHAT, ASK);
    HTTP_STATUS(&h, 401);
    E2E_HAS(h.body, "invalid_api_key");
    E2E_HAS(h.all, "WWW-Authenticate: Bearer");
    assert_null(strstr(h.all, "s3cret"));
    http_free(&h);
    assert_int_equal(status_of(s.port, "POST", CHAT, "Authorization: Bearer s3cret\r\n", ASK), 200);
    served_stop(&s, 5000);
    remove(path);

    struct e2e r;
    E2E(&r, "serve", "--listen", "0.0.0.0:0", "--device", "cpu");
    E2E_FAILS(&r, 1, "give --api-key");
    e2e_free(&r);
    served_start(&s, (const char *const[]){"serve", "--listen", "0.0.0.0:0", "--insecure", "--device", "cpu", NULL});
    assert_int_equal(status_of(s.port, "GET", "/v1/models", "Host: mybox\r\n", NULL), 200);
    assert_int_equal(status_of(s.port, "GET", "/v1/models", "Host: mybox.lan:8080\r\n", NULL), 200);
    assert_int_equal(status_of(s.port, "GET", "/v1/models", "Host: evil.example\r\n", NULL), 403);
    served_stop(&s, 5000);
}

/* Requests as they come over the wire; status 0: the connection may just be closed. */
static void test_raw(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    SERVE(&s, "--device", "cpu");
#define POST(rest) "POST " CHAT " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" rest
    static const struct {
        const char *bytes;
        int status;
    } cases[] = {
        {"", 0},
        {"\r\n", 0},
        {"G", 0},
        {"GET", 0},
        {"GET / HTTP/9.9\r\n\r\n", 0},
        {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 0}, /* TLS */
        {"GET /health\r\n\r\n", 0},
        {"GET /health HTTP/1.1\nHost: localhost\nConnection: close\n\n", 200},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX\n\r\n", 0},
        {"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 0},
        {POST("Content-Length: 2\r\n\r\n{}"), 400},
        {POST("Content-Length: 0\r\n\r\n"), 400},
        {POST("\r\n"), 400},
        {POST("Content-Length: abc\r\n\r\n{}"), 0},
        {POST("Content-Length: -1\r\n\r\n{}"), 0},
        {POST("Content-Length: 99999999999999999999999\r\n\r\n{}"), 0},
        {POST("Content-Length: 9999999999\r\n\r\n{}"), 413},
        {POST("Content-Length: 2\r\n\r\n{}and more than was said"), 400},
        {POST("Content-Length: 50\r\n\r\n{}"), 0},
        {POST("Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"), 400},
        {POST("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n"), 0},
        {POST("Transfer-Encoding: chunked\r\n\r\nzz\r\n"), 0},
        {POST("content-LENGTH: 2\r\n\r\n[]"), 400},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct http h = {.fd = http_connect(s.port)};
        http_write(h.fd, cases[i].bytes, strlen(cases[i].bytes));
        struct pollfd answer = {.fd = h.fd, .events = POLLIN};
        if (!cases[i].status && !poll(&answer, 1, 50)) { /* it waits for the rest, which will not come */
            http_free(&h);
            continue;
        }
        http_finish(&h);
        if (cases[i].status && h.status != cases[i].status)
            fail_msg("%s: status %d, not %d: %s", cases[i].bytes, h.status, cases[i].status, h.all);
        if (h.status >= 500 && h.status != 505) /* what HTTP/9.9 gets */
            fail_msg("%s: status %d: %s", cases[i].bytes, h.status, h.all);
        http_free(&h);
    }
    /* Headers without end, and a body that is too long and does not say so. */
    struct dl_str much = {0};
    (void)dl_str_addz(&much, "GET /health HTTP/1.1\r\nX: ");
    for (int i = 0; i < 200000; i++)
        (void)dl_str_addz(&much, "x");
    struct http h = {.fd = http_connect(s.port)};
    http_write(h.fd, much.v, much.len);
    http_finish(&h);
    assert_true(h.status != 200 && h.status < 500);
    http_free(&h);
    much.len = 0;
    (void)dl_str_addz(&much, POST("Transfer-Encoding: chunked\r\n\r\n"));
    for (int i = 0; i < 9; i++) {
        (void)dl_str_addz(&much, "100000\r\n");
        for (int k = 0; k < 0x100000 / 16; k++)
            (void)dl_str_addz(&much, "[[[[[[[[[[[[[[[[");
        (void)dl_str_addz(&much, "\r\n");
    }
    (void)dl_str_addz(&much, "0\r\n\r\n");
    h = (struct http){.fd = http_connect(s.port)};
    http_write(h.fd, much.v, much.len);
    http_finish(&h);
    HTTP_STATUS(&h, 413);
    http_free(&h);
    dl_str_finish(&much);
    char *text = ask(s.port, CHAT, ASK);
    assert_true(*text);
    free(text);
    served_stop(&s, 5000);
}

/* A thousand bodies that are more or less requests, in whatever order the server gets to them, with clients that leave in between. */
static void test_random(void **state)
{
    (void)state;
    NEED_BIN();
    struct served s;
    SERVE(&s, "--device", "cpu");
    static const char *const parts[] = {
        "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]",
        "\"prompt\":\"b\"",
        "\"n\":2",
        "\"n\":-2",
        "\"stop\":\"o\"",
        "\"stop\":[]",
        "\"stream\":true",
        "\"stream\":1",
        "\"max_tokens\":4",
        "\"max_tokens\":{}",
        "\"temperature\":1e9",
        "\"temperature\":[]",
        "\"logit_bias\":{\"7\":5}",
        "\"logit_bias\":{\"x\":5}",
        "\"logprobs\":true",
        "\"logprobs\":3",
        "\"top_logprobs\":3",
        "\"seed\":1e99",
        "\"prompt\":[1,2]",
        "\"prompt\":[[1],[2,99999]]",
        "\"messages\":{}",
        "\"a\":[",
        "}",
        "\xff",
        "\"echo\":true",
        "\"top_k\":-3",
        "\"presence_penalty\":1",
        "\"response_format\":{\"type\":\"text\"}",
    };
    uint64_t rng = 7;
    unsigned counts[6] = {0};
    for (unsigned i = 0; i < 1000; i++) {
        char body[1024] = "{";
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        for (unsigned k = 0; k <= (rng >> 60); k++) {
            uint64_t which = rng >> (13 + 3 * k);
            if (k)
                strcat(body, ",");
            strcat(body, parts[which % DL_COUNT_OF(parts)]);
            if (k == 5)
                break;
        }
        if (rng >> 40 & 7)
            strcat(body, "}");
        struct http h;
        http_begin(&h, s.port, "POST", rng >> 33 & 1 ? CHAT : "/v1/completions", "", body);
        if (i % 16 == 3) { /* gone already */
            http_free(&h);
            continue;
        }
        http_finish(&h);
        if (h.status != 200 && h.status != 400)
            fail_msg("%s: status %d", body, h.status);
        counts[h.status / 100]++;
        http_free(&h);
    }
    assert_true(counts[2] > 20 && counts[4] > 400); /* the bodies differ */
    char *text = ask(s.port, CHAT, ASK);
    assert_true(*text);
    free(text);
    assert_true(metric(s.port, "dllama_requests_total{result=\"failed\"}") == 0);
    served_stop(&s, 5000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVE_TEST(test_names),
        SERVE_TEST(test_key),
        SERVE_TEST(test_raw),
        SERVE_TEST(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
