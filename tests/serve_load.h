/* SPDX-License-Identifier: MIT
 *
 * tests/serve_load.h: many clients of one server at once, in one thread: mixed requests, whole and streamed, on connections that are kept and
 * that are not. What each request is to get is learnt from the same server first, while nobody else asks; from then on anything else
 * is a failed test. Times are kept, for tests that look at them.
 */
#ifndef TESTS_SERVE_LOAD_H
#define TESTS_SERVE_LOAD_H

#include "http.h"

#define LOAD_CLIENTS (SANITIZED ? 16 : 64)
#define LOAD_MOST 64
#define LOAD_ANSWERS 4

/* A request but for "stream", and its answers: how each ends, and its text. */
struct load_ask {
    const char *path, *fields;
    char *want[LOAD_ANSWERS];
};

struct load_times {
    uint32_t *us;
    size_t n, cap;
};

struct load_client {
    const struct load_ask *ask;
    bool busy, stream, keep;
    char *out; /* the request, of which `put` bytes are sent */
    size_t n_out, put, cap;
    struct http in;
    uint64_t began_ns, last_ns, rest_ns; /* rest: until then, after a 429 */
    uint64_t rng;
};

struct load {
    int port;
    struct load_ask *asks;
    size_t n_asks;
    struct load_client c[LOAD_MOST];
    unsigned n_clients;
    uint64_t left;           /* requests that may still begin */
    unsigned done, full;     /* right answers; refusals by a full queue */
    struct load_times gaps;  /* between two pieces of a stream */
    struct load_times whole; /* from a request to the end of its answer */
};

#define SAY(text) "\"messages\":[{\"role\":\"user\",\"content\":\"" text "\"}]"
#define LILY "Once upon a time, there was a little girl named Lily. She loved to play with her red ball in the park. "
#define TOM "One day, a boy named Tom found a big box under the old tree. He wanted to see what was in it. "
#define FORM                                                                                                       \
    "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":"          \
    "\"object\",\"properties\":{\"name\":{\"enum\":[\"Lily\",\"Tom\"]},\"big\":{\"type\":\"boolean\"}},\"required" \
    "\":[\"name\",\"big\"],\"additionalProperties\":false}}}"
#define LOAD_ASKS                                                                                                  \
    {                                                                                                              \
        {TEXT, "\"prompt\":\"Once\",\"max_tokens\":24", {0}},                                                      \
            {TEXT, "\"prompt\":\"" LILY "\",\"max_tokens\":60", {0}},                                              \
            {TEXT, "\"prompt\":\"" LILY LILY TOM TOM LILY TOM LILY TOM "\",\"max_tokens\":9", {0}},                \
            {TEXT, "\"prompt\":\"" LILY LILY TOM LILY LILY TOM TOM "\",\"max_tokens\":30", {0}},                   \
            {TEXT, "\"prompt\":[\"The dog\",\"A cat\",\"" TOM "\"],\"max_tokens\":10", {0}},                       \
            {TEXT, "\"prompt\":\"" TOM "\",\"n\":2,\"max_tokens\":20", {0}},                                       \
            {TEXT, "\"prompt\":\"Tom\",\"n\":3,\"temperature\":0.9,\"seed\":5,\"max_tokens\":16", {0}},            \
            {TEXT, "\"prompt\":\"The\",\"presence_penalty\":1,\"logit_bias\":{\"300\":3},\"max_tokens\":25", {0}}, \
            {TEXT, "\"prompt\":\"She\",\"echo\":true,\"logprobs\":3,\"max_tokens\":5", {0}},                       \
            {TEXT, "\"prompt\":\"" LILY "\",\"max_tokens\":1", {0}},                                               \
            {CHAT, SAY("Tell me of a bird") ",\"max_tokens\":40", {0}},                                            \
            {CHAT, SAY(LILY TOM) ",\"stop\":\".\",\"max_tokens\":80", {0}},                                        \
            {CHAT, SAY("A big dog") ",\"stop\":[\" was\",\" the\"],\"n\":2,\"max_tokens\":80", {0}},               \
            {CHAT, SAY(TOM LILY "Who is it?") "," FORM ",\"max_tokens\":60", {0}},                                 \
            {CHAT, SAY("Who?") "," FORM ",\"n\":2,\"temperature\":2,\"seed\":3,\"max_tokens\":60", {0}},           \
    }

/* ------------------------------------------------------------------------------------------------------ times */

static inline void times_add(struct load_times *t, uint64_t ns)
{
    if (t->n == t->cap) {
        t->cap = t->cap ? 2 * t->cap : 4096;
        t->us = realloc(t->us, t->cap * sizeof *t->us);
        assert_non_null(t->us);
    }
    t->us[t->n++] = (uint32_t)DL_MIN(ns / 1000, UINT32_MAX);
}

static inline int times_order(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* In ms, below which `part` of them are. */
static inline double times_at(struct load_times *t, double part)
{
    if (!t->n)
        return 0;
    qsort(t->us, t->n, sizeof *t->us, times_order);
    return t->us[(size_t)(part * (double)(t->n - 1))] / 1e3;
}

/* ---------------------------------------------------------------------------------------------------- answers */

static inline void add_piece(struct dl_str text[LOAD_ANSWERS], const char *ends[LOAD_ANSWERS], const json_t *choice)
{
    json_int_t i = json_integer_value(json_object_get(choice, "index"));
    const json_t *in = json_object_get(choice, "delta");
    in = in ? in : json_object_get(choice, "message");
    const char *piece = json_string_value(in ? json_object_get(in, "content") : json_object_get(choice, "text"));
    const char *end = json_string_value(json_object_get(choice, "finish_reason"));
    assert_true(i >= 0 && i < LOAD_ANSWERS);
    assert_int_equal(dl_str_addz(&text[i], piece ? piece : ""), 0);
    if (end)
        ends[i] = !strcmp(end, "stop") ? "stop: " : !strcmp(end, "length") ? "length: " : "? ";
}

/* All answers of one request, each for the caller to free; NULL beyond the last. */
static inline void load_answers(struct http *h, bool stream, char *out[LOAD_ANSWERS])
{
    struct dl_str text[LOAD_ANSWERS] = {{0}};
    const char *ends[LOAD_ANSWERS] = {0};
    char *at = h->body;
    size_t k;
    json_t *choice, *v = stream ? next_event(&at) : http_json(h);
    for (; v; v = stream ? next_event(&at) : NULL) {
        json_array_foreach(json_object_get(v, "choices"), k, choice) add_piece(text, ends, choice);
        json_decref(v);
    }
    if (stream && (*at || h->n_body < 14 || strcmp(h->body + h->n_body - 14, "data: [DONE]\n\n") != 0))
        fail_msg("a stream ends with: %s", at);
    for (size_t i = 0; i < LOAD_ANSWERS; i++) {
        out[i] = NULL;
        if (ends[i]) {
            out[i] = malloc(text[i].len + 16);
            assert_non_null(out[i]);
            sprintf(out[i], "%s%s", ends[i], text[i].v ? text[i].v : "");
        }
        dl_str_finish(&text[i]);
    }
}

static inline void load_check(const struct load_ask *a, struct http *h, bool stream)
{
    char *got[LOAD_ANSWERS];
    load_answers(h, stream, got);
    for (size_t i = 0; i < LOAD_ANSWERS; i++) {
        if (!got[i] != !a->want[i] || (got[i] && strcmp(got[i], a->want[i]) != 0))
            fail_msg("%s {%s}, %s, answer %zu:\n%s\nalone it is:\n%s", a->path, a->fields,
                     stream ? "streamed" : "whole", i, got[i] ? got[i] : "(none)", a->want[i] ? a->want[i] : "(none)");
        free(got[i]);
    }
}

/* ---------------------------------------------------------------------------------------------------- clients */

static inline void load_next(struct load *l, struct load_client *c)
{
    char head[1024], body[4096];
    uint64_t r = test_rand(&c->rng);
    c->ask = &l->asks[r % l->n_asks];
    c->stream = r >> 32 & 1;
    c->keep = r >> 33 & 1;
    snprintf(body, sizeof body, "{%s,\"stream\":%s}", c->ask->fields, c->stream ? "true" : "false");
    http_head(head, "POST", c->ask->path, c->keep ? "" : "Connection: close\r\n", body);
    free(c->out);
    c->n_out = strlen(head) + strlen(body);
    c->out = malloc(c->n_out + 1);
    assert_non_null(c->out);
    sprintf(c->out, "%s%s", head, body);
    if (c->in.fd < 0) {
        c->in.fd = http_connect(l->port);
        fcntl(c->in.fd, F_SETFL, O_NONBLOCK);
    }
    c->put = c->in.n = 0;
    c->busy = true;
    c->began_ns = dl_now_ns();
    c->last_ns = 0;
    l->left--;
}

/* An answer is there as a whole. */
static inline void load_take(struct load *l, struct load_client *c)
{
    uint64_t now = dl_now_ns();
    http_parse(&c->in);
    c->busy = false;
    if (!c->keep) {
        close(c->in.fd);
        c->in.fd = -1;
    }
    if (c->in.status == 429) {
        c->rest_ns = now + 20 * UINT64_C(1000000);
        l->full++;
        l->left++;
        return;
    }
    HTTP_STATUS(&c->in, 200);
    load_check(c->ask, &c->in, c->stream);
    times_add(&l->whole, now - c->began_ns);
    l->done++;
}

static inline void load_read(struct load *l, struct load_client *c)
{
    for (;;) {
        if (c->in.n + 4096 > c->cap) {
            c->cap = c->in.n + 16384;
            c->in.all = realloc(c->in.all, c->cap);
            assert_non_null(c->in.all);
        }
        ssize_t got = recv(c->in.fd, c->in.all + c->in.n, 4095, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got <= 0)
            fail_msg("closed in the middle of {%s}, after: %.*s", c->ask->fields, (int)c->in.n, c->in.all);
        uint64_t now = dl_now_ns();
        if (c->stream && c->last_ns)
            times_add(&l->gaps, now - c->last_ns);
        c->last_ns = now;
        c->in.n += (size_t)got;
        c->in.all[c->in.n] = 0;
        if (http_complete(&c->in)) {
            load_take(l, c);
            return;
        }
    }
}

/* Everybody does what can be done; waits for that, `ms` at most. */
static inline void load_turn(struct load *l, int ms)
{
    struct pollfd fds[LOAD_MOST];
    uint64_t now = dl_now_ns();
    for (unsigned i = 0; i < l->n_clients; i++) {
        struct load_client *c = &l->c[i];
        if (!c->busy && l->left && now >= c->rest_ns)
            load_next(l, c);
        fds[i] = (struct pollfd){.fd = c->busy ? c->in.fd : -1,
                                 .events = (short)(c->put < c->n_out ? POLLIN | POLLOUT : POLLIN)};
    }
    if (poll(fds, l->n_clients, ms) <= 0)
        return;
    for (unsigned i = 0; i < l->n_clients; i++) {
        struct load_client *c = &l->c[i];
        if (fds[i].revents & POLLOUT) {
            ssize_t put = send(c->in.fd, c->out + c->put, c->n_out - c->put, MSG_NOSIGNAL);
            c->put += put > 0 ? (size_t)put : 0;
        }
        if (fds[i].revents & (POLLIN | POLLHUP | POLLERR))
            load_read(l, c);
    }
}

static inline void load_run(struct load *l, uint64_t ns)
{
    l->left = UINT64_MAX;
    for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < ns;)
        load_turn(l, 10);
}

static inline unsigned load_busy(const struct load *l)
{
    unsigned n = 0;
    for (unsigned i = 0; i < l->n_clients; i++)
        n += l->c[i].busy;
    return n;
}

/* What runs ends, after `more` requests. */
static inline void load_drain(struct load *l, uint64_t more)
{
    unsigned before = l->done;
    l->left = more;
    for (uint64_t t0 = dl_now_ns(); load_busy(l) || l->left; load_turn(l, 10)) {
        if (l->done != before)
            t0 = dl_now_ns();
        before = l->done;
        if (dl_now_ns() - t0 > (uint64_t)HTTP_TIMEOUT_MS * 1000000u)
            fail_msg("%u clients wait, and nobody gets anything", load_busy(l));
    }
}

/* Learns the answers. */
static inline void load_open(struct load *l, int port, struct load_ask *asks, size_t n_asks, unsigned n_clients)
{
    char body[4096];
    *l = (struct load){.port = port, .asks = asks, .n_asks = n_asks, .n_clients = n_clients};
    for (size_t i = 0; i < n_asks; i++) {
        struct http h;
        snprintf(body, sizeof body, "{%s}", asks[i].fields);
        http_post(&h, port, asks[i].path, body);
        HTTP_STATUS(&h, 200);
        load_answers(&h, false, asks[i].want);
        assert_non_null(asks[i].want[0]);
        http_free(&h);
    }
    for (unsigned i = 0; i < n_clients; i++)
        l->c[i] = (struct load_client){.in.fd = -1, .rng = i};
}

static inline void load_hang_up(struct load *l)
{
    for (unsigned i = 0; i < l->n_clients; i++) {
        http_free(&l->c[i].in);
        free(l->c[i].out);
        l->c[i] = (struct load_client){.in.fd = -1};
    }
}

static inline void load_close(struct load *l)
{
    load_hang_up(l);
    for (size_t i = 0; i < l->n_asks; i++)
        for (size_t k = 0; k < LOAD_ANSWERS; k++)
            free(l->asks[i].want[k]);
    free(l->gaps.us);
    free(l->whole.us);
    *l = (struct load){0};
}

static inline void load_print(struct load *l, const char *what, uint64_t ns)
{
    printf("%s: %u right answers in %.1f s, %u refused; a piece of a stream after %.1f ms (median), %.1f (99 %%), %.1f "
           "(most); an answer after %.0f ms (median), %.0f (most)\n",
           what, l->done, (double)ns * 1e-9, l->full, times_at(&l->gaps, 0.5), times_at(&l->gaps, 0.99),
           times_at(&l->gaps, 1), times_at(&l->whole, 0.5), times_at(&l->whole, 1));
    fflush(stdout);
}

#endif
