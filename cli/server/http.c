/* SPDX-License-Identifier: MIT
 *
 * cli/server/http.c: the front over libmicrohttpd. Its threads read requests, make jobs of them and pass on what the engine thread
 * writes; while there is nothing to pass on a connection is suspended and costs nothing.
 */
#include "http.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "cli.h"

#define MAX_BODY ((size_t)8 << 20)
#define MAX_BODIES ((size_t)64 << 20) /* of all requests that are being read */
#define CONNECTIONS 512u
#define THREADS 2u
#define REQUEST_S 60u /* to say what one wants; half of it without a byte either way */
#define BLOCK_BYTES ((size_t)16 << 10)
#define SEND_BYTES \
    (256 << 10) /* that the system may hold for a client that does not read: by itself it takes megabytes */

/* A connection, for the sweep. */
struct cli_socket {
    struct cli_server *server;
    int fd;
    uint64_t since_ns; /* when it began to owe a request; 0: it does not */
    struct cli_socket *prev, *next;
};

/* ------------------------------------------------------------------------------------------------ answering */

static void add_headers(struct cli_http *h, struct MHD_Response *response, int status)
{
    const char *cors = cli_cors_origin(h->server, h->origin);
    MHD_add_response_header(response, "Server", "dllama-vk/" DL_VERSION);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    if (!MHD_get_response_header(response, "Cache-Control"))
        MHD_add_response_header(response, "Cache-Control", "no-store");
    if (cors) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", cors);
        MHD_add_response_header(response, "Vary", "Origin");
    }
    if (status == 429 || status == 503)
        MHD_add_response_header(response, "Retry-After", status == 429 ? "1" : "5");
    if (status == 401)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
}

enum MHD_Result cli_http_response(struct cli_http *h, int status, struct MHD_Response *response)
{
    if (!response)
        return MHD_NO;
    add_headers(h, response, status);
    enum MHD_Result done = MHD_queue_response(h->conn, (unsigned)status, response);
    MHD_destroy_response(response);
    return done;
}

enum MHD_Result cli_http_bytes(struct cli_http *h, int status, const char *type, const char *bytes, size_t n)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(n, (void *)(uintptr_t)(n ? bytes : ""), MHD_RESPMEM_MUST_COPY);
    if (r)
        MHD_add_response_header(r, "Content-Type", type);
    return cli_http_response(h, status, r);
}

enum MHD_Result cli_http_json(struct cli_http *h, int status, json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(v);
    if (!text)
        return MHD_NO;
    enum MHD_Result done = cli_http_bytes(h, status, "application/json", text, strlen(text));
    free(text);
    return done;
}

enum MHD_Result cli_http_error(struct cli_http *h, const struct cli_req_error *e)
{
    struct cli_server *s = h->server;
    if (h->answers) {
        pthread_mutex_lock(&s->lock);
        if (e->status == 429 || e->status == 503)
            s->metrics.busy++;
        else
            s->metrics.refused++;
        pthread_mutex_unlock(&s->lock);
    }
    return cli_http_json(h, e->status, cli_req_error_json(e));
}

/* ----------------------------------------------------------------------------------------------------- jobs */

/* The next bytes of a stream; none for now: the connection is suspended until there are some. */
static ssize_t stream(void *ud, uint64_t pos, char *buf, size_t max)
{
    (void)pos;
    struct cli_job *job = ud;
    struct cli_server *s = job->server;
    pthread_mutex_lock(&s->lock);
    ssize_t n = (ssize_t)DL_MIN(max, job->out.len - job->out_at);
    if (n) {
        memcpy(buf, job->out.v + job->out_at, (size_t)n);
        job->out_at += (size_t)n;
        if (job->out_at == job->out.len)
            job->out.len = job->out_at = 0;
        if (job->stalled && !job->out.len) {
            job->stalled = false;
            cli_server_wake(s);
        }
    } else if (job->done || job->gone) {
        n = job->gone ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        job->suspended = true;
        MHD_suspend_connection(job->conn);
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void stream_end(void *ud)
{
    struct cli_job *job = ud;
    struct cli_server *s = job->server;
    pthread_mutex_lock(&s->lock);
    cli_job_unref(job);
    pthread_mutex_unlock(&s->lock);
}

static enum MHD_Result begin_stream(struct cli_http *h, struct cli_job *job)
{
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, stream, job, stream_end);
    if (!r)
        return MHD_NO;
    pthread_mutex_lock(&h->server->lock);
    job->refs++;
    pthread_mutex_unlock(&h->server->lock);
    MHD_add_response_header(r, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(r, "X-Accel-Buffering", "no");
    return cli_http_response(h, 200, r);
}

/* A job that was submitted: waits, or has something to say. */
static enum MHD_Result serve_job(struct cli_http *h)
{
    struct cli_job *job = h->job;
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    bool begun = job->started && job->req.stream, wait = !job->done && !begun && !job->gone;
    bool gone = job->gone, failed = job->failed && !begun;
    if (wait) {
        job->suspended = true;
        MHD_suspend_connection(h->conn);
    }
    pthread_mutex_unlock(&s->lock);
    if (wait)
        return MHD_YES;
    if (gone)
        return MHD_NO;
    if (failed)
        return cli_http_json(h, job->error.status, cli_req_error_json(&job->error));
    if (begun)
        return begin_stream(h, job);
    return cli_http_bytes(h, 200, "application/json", job->out.v,
                          job->out.len); /* done: nobody writes to it any more */
}

/* Who asks, as far as a turn goes. */
static uint64_t client_of(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = info ? info->client_addr : NULL;
    const void *bytes = NULL;
    size_t n = 0;
    if (a && a->sa_family == AF_INET) {
        bytes = &((const struct sockaddr_in *)(const void *)a)->sin_addr;
        n = 4;
    } else if (a && a->sa_family == AF_INET6) {
        bytes = &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;
        n = 8; /* one network is one client */
    }
    uint64_t v = 0;
    memcpy(&v, bytes ? bytes : &v, n);
    return v;
}

static int make_job(struct cli_http *h, enum cli_endpoint endpoint, struct cli_req_error *error)
{
    struct cli_server *s = h->server;
    struct cli_served served;
    pthread_mutex_lock(&s->lock);
    served = s->served;
    bool loaded = served.tok != NULL;
    pthread_mutex_unlock(&s->lock);
    if (!loaded)
        return cli_req_refuse(error, 503, NULL, NULL, "the model is still being loaded: try again later");
    struct cli_request req;
    int err = cli_request_read(endpoint, h->body.v, h->body.len, &served.defaults, &req, error);
    struct cli_job *job = err ? NULL : cli_job_create(s, &req);
    if (!err && !job)
        err = cli_req_refuse(error, 500, NULL, NULL, "the server is out of memory");
    cli_request_finish(&req);
    if (!err)
        err = cli_job_tokenize(job, &served, error);
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(h->conn, MHD_CONNECTION_INFO_CONNECTION_FD);
    pthread_mutex_lock(&s->lock);
    if (!err) {
        job->conn = h->conn;
        job->fd = info ? info->connect_fd : -1;
        job->client = client_of(h->conn);
        err = cli_job_submit(job, error);
    }
    if (!err)
        h->job = job;
    else if (job)
        cli_job_unref(job);
    pthread_mutex_unlock(&s->lock);
    return err;
}

enum MHD_Result cli_http_answer(struct cli_http *h, enum cli_endpoint endpoint)
{
    struct cli_req_error error;
    return make_job(h, endpoint, &error) ? cli_http_error(h, &error) : serve_job(h);
}

/* --------------------------------------------------------------------------------------------------- requests */

/* What can be refused before the body is read; it is read nevertheless, so that the client gets to see the answer. */
static void check_headers(struct cli_http *h, const char *method, const char *path)
{
    struct cli_server *s = h->server;
    const char *host = MHD_lookup_connection_value(h->conn, MHD_HEADER_KIND, "Host");
    const char *length = MHD_lookup_connection_value(h->conn, MHD_HEADER_KIND, "Content-Length");
    h->origin = MHD_lookup_connection_value(h->conn, MHD_HEADER_KIND, "Origin");
    cli_http_route(h, method, path);
    if (!cli_host_allowed(s, host))
        cli_req_refuse(&h->refused, 403, NULL, NULL,
                       "the Host '%.100s' is not this server's: use its address, or start it with --listen NAME:PORT",
                       host);
    else if (!cli_origin_allowed(s, host, h->origin))
        cli_req_refuse(&h->refused, 403, NULL, NULL,
                       "pages of '%.100s' may not use this server: start it with --cors ORIGIN to let them", h->origin);
    else if (h->needs_key &&
             !cli_key_allowed(s, MHD_lookup_connection_value(h->conn, MHD_HEADER_KIND, "Authorization")))
        cli_req_refuse(&h->refused, 401, "invalid_api_key", NULL,
                       "this server wants its API key: \"Authorization: Bearer KEY\"");
    h->too_long = length && (strlen(length) > 12 || strtoull(length, NULL, 10) > MAX_BODY);
}

static int too_long(struct cli_http *h)
{
    return cli_req_refuse(&h->refused, 413, NULL, NULL, "the request is longer than %zu MiB", MAX_BODY >> 20);
}

/* More of the body. What is refused already is thrown away. */
static enum MHD_Result more_body(struct cli_http *h, const char *bytes, size_t n)
{
    struct cli_server *s = h->server;
    h->received += n;
    if (h->refused.status)
        return h->received > 2 * MAX_BODY ? MHD_NO : MHD_YES;
    if (h->received > MAX_BODY) {
        too_long(h);
        return MHD_YES;
    }
    pthread_mutex_lock(&s->lock);
    bool fits = s->body_bytes + n <= MAX_BODIES;
    if (fits) {
        s->body_bytes += n;
        h->counted += n;
    }
    pthread_mutex_unlock(&s->lock);
    if (!fits || dl_str_add(&h->body, bytes, n))
        cli_req_refuse(&h->refused, 503, NULL, NULL, "too many large requests at once: try again later");
    return MHD_YES;
}

static void body_done(struct cli_http *h)
{
    struct cli_server *s = h->server;
    pthread_mutex_lock(&s->lock);
    s->body_bytes -= h->counted;
    h->counted = 0;
    pthread_mutex_unlock(&s->lock);
    dl_str_finish(&h->body);
}

/* A connection owes a request from `now` on; 0: not now. */
static void owe(struct cli_http *h, uint64_t now)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(h->conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct cli_socket *socket = info ? info->socket_context : NULL;
    pthread_mutex_lock(&h->server->lock);
    if (socket)
        socket->since_ns = now;
    pthread_mutex_unlock(&h->server->lock);
}

static enum MHD_Result handle(void *ud, struct MHD_Connection *conn, const char *path, const char *method,
                              const char *version, const char *bytes, size_t *n, void **state)
{
    (void)version;
    struct cli_http *h = *state;
    if (!h) {
        h = dl_calloc(1, sizeof *h);
        if (!h)
            return MHD_NO;
        h->server = ud;
        h->conn = conn;
        *state = h;
        check_headers(h, method, path);
        if (h->too_long) {
            too_long(h);
            return cli_http_error(h, &h->refused);
        }
        return MHD_YES;
    }
    if (h->job)
        return serve_job(h);
    if (*n) {
        enum MHD_Result more = more_body(h, bytes, *n);
        *n = 0;
        return more;
    }
    owe(h, 0);
    enum MHD_Result done = h->refused.status ? cli_http_error(h, &h->refused) : h->route(h, path);
    body_done(h);
    return done;
}

/* The end of a request, whatever it was. */
static void completed(void *ud, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode why)
{
    (void)ud;
    (void)conn;
    (void)why;
    struct cli_http *h = *state;
    if (!h)
        return;
    struct cli_server *s = h->server;
    body_done(h);
    owe(h, dl_now_ns());
    if (h->job) {
        pthread_mutex_lock(&s->lock);
        h->job->conn = NULL;
        h->job->fd = -1;
        if (!h->job->done) {
            h->job->gone = true;
            cli_server_wake(s);
        }
        cli_job_unref(h->job);
        pthread_mutex_unlock(&s->lock);
    }
    free(h);
    *state = NULL;
}

static void connection(void *ud, struct MHD_Connection *conn, void **context, enum MHD_ConnectionNotificationCode what)
{
    struct cli_server *s = ud;
    struct cli_socket *c = *context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
        c = info ? dl_calloc(1, sizeof *c) : NULL;
        if (!c)
            return;
        int most = SEND_BYTES;
        setsockopt(info->connect_fd, SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
        *c = (struct cli_socket){s, info->connect_fd, dl_now_ns(), NULL, NULL};
        *context = c;
        pthread_mutex_lock(&s->lock);
        c->next = s->sockets;
        if (c->next)
            c->next->prev = c;
        s->sockets = c;
        pthread_mutex_unlock(&s->lock);
    } else if (c) {
        pthread_mutex_lock(&s->lock);
        if (c->prev)
            c->prev->next = c->next;
        else
            s->sockets = c->next;
        if (c->next)
            c->next->prev = c->prev;
        pthread_mutex_unlock(&s->lock);
        free(c);
        *context = NULL;
    }
}

void cli_http_sweep(struct cli_server *s)
{
    uint64_t now = dl_now_ns();
    pthread_mutex_lock(&s->lock);
    for (struct cli_socket *c = s->sockets; c; c = c->next)
        if (c->since_ns && now > c->since_ns + s->request_ns) {
            shutdown(c->fd, SHUT_RDWR); /* its thread sees the end and closes it */
            c->since_ns = 0;
        }
    pthread_mutex_unlock(&s->lock);
}

bool cli_http_busy(struct cli_server *s)
{
    bool busy = false;
    pthread_mutex_lock(&s->lock);
    for (const struct cli_socket *c = s->sockets; c && !busy; c = c->next)
        busy = !c->since_ns;
    pthread_mutex_unlock(&s->lock);
    return busy;
}

/* ------------------------------------------------------------------------------------------------- the daemon */

static void log_it(void *ud, const char *fmt, va_list ap)
{
    (void)ud;
    char line[300];
    vsnprintf(line, sizeof line, fmt, ap);
    line[strcspn(line, "\n")] = 0;
    dl_log(DL_LOG_INFO, "http: %s", line);
}

int cli_http_start(struct cli_server *s)
{
    sigset_t all, before;
    const char *text = getenv("DLLAMA_SERVE_TIMEOUT");
    uint64_t seconds;
    if (!text || !cli_parse_uint(text, false, 2, 86400, &seconds))
        seconds = REQUEST_S;
    s->request_ns = seconds * UINT64_C(1000000000);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* Ctrl-C is for the engine thread */
    s->daemon = MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
                                 NULL, handle, s, MHD_OPTION_EXTERNAL_LOGGER, log_it, NULL, MHD_OPTION_LISTEN_SOCKET,
                                 s->listen_fd, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
                                 (unsigned)(seconds / 2), MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)64 << 10,
                                 MHD_OPTION_THREAD_POOL_SIZE, THREADS, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
                                 MHD_OPTION_NOTIFY_CONNECTION, connection, s, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->daemon)
        return dl_fail(DL_EIO, "server: libmicrohttpd does not start (--verbose says more)");
    return DL_OK;
}

void cli_http_stop(struct cli_server *s)
{
    if (!s->daemon)
        return;
    MHD_stop_daemon(s->daemon);
    s->daemon = NULL;
}
