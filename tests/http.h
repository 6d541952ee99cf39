/* SPDX-License-Identifier: MIT
 *
 * tests/http.h: a small HTTP client over sockets, and a server of ours to talk to. One request per connection; what arrives is kept
 * whole, so that a test can look at every byte.
 */
#ifndef TESTS_HTTP_H
#define TESTS_HTTP_H

#include "e2e.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define HTTP_TIMEOUT_MS 60000
#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"

/* Where everything is slower, and memory that was freed is kept. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* A server that runs, and what it has said. */
struct served {
    struct e2e_proc proc;
    int port;
    char said[4096];
    size_t n_said;
};

/* The one that a failed test leaves behind. */
static pid_t served_pid;

static inline int served_end(void **state)
{
    (void)state;
    if (served_pid)
        kill(served_pid, SIGKILL);
    served_pid = 0;
    return 0;
}
#define SERVE_TEST(test) cmocka_unit_test_teardown(test, served_end)

/* Reads stderr until it says so, to the end of that line. */
static inline char *served_says(struct served *s, const char *text)
{
    uint64_t end = dl_now_ns() + (uint64_t)HTTP_TIMEOUT_MS * 1000000u;
    for (char *at; !(at = strstr(s->said, text)) || !strchr(at, '\n');) {
        struct pollfd fd = {.fd = s->proc.err, .events = POLLIN};
        ssize_t got =
            poll(&fd, 1, 1000) > 0 ? read(s->proc.err, s->said + s->n_said, sizeof s->said - 1 - s->n_said) : 0;
        s->n_said += got > 0 ? (size_t)got : 0;
        if (dl_now_ns() > end || (fd.revents && got <= 0))
            fail_msg("the server does not say '%s': %s", text, s->said);
    }
    return strstr(s->said, text) + strlen(text);
}

/* Answers, and is still loading. */
static inline void served_begin(struct served *s, const char *const *argv)
{
    *s = (struct served){.port = -1};
    e2e_start(&s->proc, argv, NULL);
    served_pid = s->proc.pid;
    const char *url = served_says(s, "listening on http://");
    s->port = atoi(strchr(*url == '[' ? strchr(url, ']') : url, ':') + 1);
    assert_true(s->port > 0);
}

static inline void served_start(struct served *s, const char *const *argv)
{
    served_begin(s, argv);
    (void)served_says(s, " is served on http://");
}
#define SERVE(s, ...) served_start(s, (const char *const[]){"serve", "--listen", "127.0.0.1:0", __VA_ARGS__, NULL})

/* Ends it as Ctrl-C does; it has to be done within `ms` (sanitizers have more to say at the end), and to be content. */
static inline void served_stop(struct served *s, int ms)
{
    struct e2e r;
    uint64_t start = dl_now_ns();
    kill(s->proc.pid, SIGINT);
    e2e_finish(&s->proc, NULL, 0, &r);
    served_pid = 0;
    uint64_t took = (dl_now_ns() - start) / 1000000;
    if (r.status || took > (uint64_t)ms * (SANITIZED ? 4 : 1))
        fail_msg("status %d after %d ms, stderr: %s", r.status, (int)took, r.err);
    e2e_free(&r);
}

struct http {
    int fd, status;
    char *all; /* NUL-terminated */
    size_t n;
    char *body; /* within all; of a chunked answer put together */
    size_t n_body;
};

/* How much the system may take in for a client that does not read; 0: what it likes. */
static int http_receive_bytes;

static inline int http_connect(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    if (http_receive_bytes)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &http_receive_bytes, sizeof http_receive_bytes);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* What is written may be refused half way: that is for the answer to say. */
static inline void http_write(int fd, const char *bytes, size_t n)
{
    while (n) {
        ssize_t put = send(fd, bytes, n, MSG_NOSIGNAL);
        if (put <= 0)
            return;
        bytes += put;
        n -= (size_t)put;
    }
}

static inline void http_unchunk(struct http *h)
{
    char *to = h->body, *at = h->body, *end = h->all + h->n;
    while (at < end) {
        char *data;
        size_t n = strtoul(at, &data, 16);
        if (data + 2 + n > end)
            break;
        memmove(to, data + 2, n);
        to += n;
        at = data + 2 + n + 2;
        if (!n)
            break;
    }
    h->n_body = (size_t)(to - h->body);
    *to = 0;
}

/* What follows a header's name and colon, among the headers; NULL: it is not there, or they are not all there. */
static inline const char *http_header(const struct http *h, const char *name_colon)
{
    const char *blank = strstr(h->all, "\r\n\r\n"), *at = strstr(h->all, name_colon);
    return blank && at && at < blank ? at + strlen(name_colon) : NULL;
}

/* Whether an answer is all there, without waiting for the server to close. */
static inline bool http_complete(const struct http *h)
{
    const char *length = http_header(h, "Content-Length: "), *blank = strstr(h->all, "\r\n\r\n");
    size_t head = blank ? (size_t)(blank + 4 - h->all) : 0;
    if (length)
        return h->n >= head + strtoul(length, NULL, 10);
    return blank && h->n >= head + 5 && !memcmp(h->all + h->n - 5, "0\r\n\r\n", 5);
}

/* Of all that came: status and body. */
static inline void http_parse(struct http *h)
{
    h->all[h->n] = 0;
    h->status = h->n > 12 && !strncmp(h->all, "HTTP/1.", 7) ? atoi(h->all + 9) : 0;
    char *blank = strstr(h->all, "\r\n\r\n");
    h->body = blank ? blank + 4 : h->all + h->n;
    h->n_body = h->n - (size_t)(h->body - h->all);
    if (http_header(h, "Transfer-Encoding: chunked"))
        http_unchunk(h);
}

/* Everything until the server closes. */
static inline void http_finish(struct http *h)
{
    uint64_t end = dl_now_ns() + (uint64_t)HTTP_TIMEOUT_MS * 1000000u;
    for (;;) {
        struct pollfd fd = {.fd = h->fd, .events = POLLIN};
        h->all = realloc(h->all, h->n + 65536);
        assert_non_null(h->all);
        ssize_t got = poll(&fd, 1, 1000) > 0 ? recv(h->fd, h->all + h->n, 65535, 0) : -2;
        if (dl_now_ns() > end)
            fail_msg("no end of the answer: %.*s", (int)h->n, h->all);
        if (got == -2)
            continue;
        if (got <= 0)
            break;
        h->n += (size_t)got;
    }
    close(h->fd);
    h->fd = -1;
    http_parse(h);
}

static inline void http_free(struct http *h)
{
    if (h->fd >= 0)
        close(h->fd);
    free(h->all);
    *h = (struct http){.fd = -1};
}

/* What a request begins with. headers: further ones, each with its line end. body NULL: none. */
static inline void http_head(char head[1024], const char *method, const char *path, const char *headers,
                             const char *body)
{
    int n = snprintf(head, 1024, "%s %s HTTP/1.1\r\n%s%s", method, path,
                     strstr(headers, "Host:") ? "" : "Host: 127.0.0.1\r\n", headers);
    if (body)
        n += snprintf(head + n, 1024 - (size_t)n, "Content-Length: %zu\r\n", strlen(body));
    assert_true(n > 0 && (size_t)n + 2 < 1024);
    strcat(head, "\r\n");
}

/* Sends. */
static inline void http_begin(struct http *h, int port, const char *method, const char *path, const char *headers,
                              const char *body)
{
    char head[1024], all[900];
    snprintf(all, sizeof all, "Connection: close\r\n%s", headers);
    http_head(head, method, path, all, body);
    *h = (struct http){.fd = http_connect(port)};
    http_write(h->fd, head, strlen(head));
    if (body)
        http_write(h->fd, body, strlen(body));
}

static inline void http_get(struct http *h, int port, const char *path)
{
    http_begin(h, port, "GET", path, "", NULL);
    http_finish(h);
}

static inline void http_post(struct http *h, int port, const char *path, const char *body)
{
    http_begin(h, port, "POST", path, "", body);
    http_finish(h);
}

#define HTTP_STATUS(h, want)                                                                     \
    do {                                                                                         \
        if ((h)->status != (want))                                                               \
            fail_msg("status %d, expected %d: %s", (h)->status, want, (h)->all ? (h)->all : ""); \
    } while (0)

/* The answer as JSON; the caller gives it back. */
static inline json_t *http_json(const struct http *h)
{
    json_error_t at;
    json_t *v = json_loadb(h->body, h->n_body, 0, &at);
    if (!v)
        fail_msg("no JSON (%s): %s", at.text, h->all);
    return v;
}

/* Of a whole answer: choices[i].message.content, or choices[i].text. */
static inline const char *choice_text(const json_t *v, size_t i)
{
    const json_t *c = json_array_get(json_object_get(v, "choices"), i), *m = json_object_get(c, "message");
    const char *text = json_string_value(m ? json_object_get(m, "content") : json_object_get(c, "text"));
    assert_non_null(text);
    return text;
}

static inline const char *finish_of(const json_t *v, size_t i)
{
    return json_string_value(json_object_get(json_array_get(json_object_get(v, "choices"), i), "finish_reason"));
}

/* The text of answer 0, for the caller to free. */
static inline char *ask(int port, const char *path, const char *body)
{
    struct http h;
    http_post(&h, port, path, body);
    HTTP_STATUS(&h, 200);
    json_t *v = http_json(&h);
    char *text = strdup(choice_text(v, 0));
    json_decref(v);
    http_free(&h);
    return text;
}

/* The next event of a stream, for the caller to give back; *at moves on. NULL: there is no further one, or it is no JSON: then **at is
 * not 0. */
static inline json_t *next_event(char **at)
{
    char *end = !strncmp(*at, "data: ", 6) ? strstr(*at, "\n\n") : NULL;
    json_t *v = end ? json_loadb(*at + 6, (size_t)(end - *at) - 6, 0, NULL) : NULL;
    if (v)
        *at = end + 2;
    else if (!strcmp(*at, "data: [DONE]\n\n"))
        *at += strlen(*at);
    return v;
}

/* What /health says: its status, and why. */
static inline int health(int port, char *why, size_t cap)
{
    struct http h;
    http_get(&h, port, "/health");
    json_t *v = http_json(&h);
    const char *text = json_string_value(json_object_get(v, "why"));
    snprintf(why, cap, "%s", text ? text : "");
    int status = h.status;
    if ((status == 503) != (http_header(&h, "Retry-After: ") != NULL))
        fail_msg("Retry-After goes with 503: %s", h.all);
    json_decref(v);
    http_free(&h);
    return status;
}

/* The value of a line of /metrics; -1: there is none. */
static inline double metric(int port, const char *name)
{
    struct http h;
    http_get(&h, port, "/metrics");
    HTTP_STATUS(&h, 200);
    char *at = strstr(h.body, name);
    while (at && (at == h.body || at[-1] != '\n' || at[strlen(name)] != ' '))
        at = strstr(at + 1, name);
    double v = at ? atof(at + strlen(name)) : -1;
    http_free(&h);
    return v;
}

#endif
