/* SPDX-License-Identifier: MIT
 *
 * cli/server/server.c: the server as a whole: its socket, its state, and the log while several threads write to it.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli.h"

/* Where the errors of this thread go. */
static _Thread_local struct {
    char *why;
    size_t n;
    bool also_log;
} capture;

void cli_capture_begin(char *why, size_t n, bool also_log)
{
    capture.why = why;
    capture.n = n;
    capture.also_log = also_log;
    *why = 0;
}

void cli_capture_end(void)
{
    capture.why = NULL;
}

void cli_capture_log(void *unused, enum dl_log_level level, const char *line)
{
    (void)unused;
    if (capture.why && level == DL_LOG_ERROR)
        snprintf(capture.why, capture.n, "%s", line);
    if (!capture.why || capture.also_log)
        cli_log_line(level, line);
}

const char *cli_server_state_name(enum cli_server_state state)
{
    static const char *const names[] = {"loading", "ok", "healing", "failed", "stopping"};
    return names[state];
}

void cli_server_wake(struct cli_server *s)
{
    ssize_t n = write(s->wake[1], "", 1); /* a full pipe has woken it already */
    (void)n;
}

/* What goes into JSON: names of files and machines need not be UTF-8. */
static void copy_text(char *to, size_t n, const char *text)
{
    size_t i = 0;
    for (; text[i] && i + 1 < n; i++)
        to[i] = (unsigned char)text[i] < 0x20 || (unsigned char)text[i] > 0x7e ? '?' : text[i];
    to[i] = 0;
}

void cli_server_state(struct cli_server *s, enum cli_server_state state, const char *why)
{
    pthread_mutex_lock(&s->lock);
    if (s->state != CLI_SERVER_STOPPING) { /* that is for good: nobody new is let in */
        s->state = state;
        copy_text(s->why, sizeof s->why, why);
    }
    pthread_mutex_unlock(&s->lock);
}

void cli_server_health(struct cli_server *s, bool well, const char *why)
{
    pthread_mutex_lock(&s->lock);
    if (s->state == CLI_SERVER_READY || s->state == CLI_SERVER_HEALING) {
        s->state = well ? CLI_SERVER_READY : CLI_SERVER_HEALING;
        copy_text(s->why, sizeof s->why, why);
    }
    pthread_mutex_unlock(&s->lock);
}

void cli_server_ready(struct cli_server *s, const struct cli_served *served)
{
    pthread_mutex_lock(&s->lock);
    s->served = *served;
    s->state = CLI_SERVER_READY;
    pthread_mutex_unlock(&s->lock);
}

void cli_server_progress(void *server, const char *phase, uint64_t done, uint64_t total)
{
    struct cli_server *s = server;
    pthread_mutex_lock(&s->lock);
    snprintf(s->load_phase, sizeof s->load_phase, "%s", phase);
    s->load_done = done;
    s->load_total = total;
    pthread_mutex_unlock(&s->lock);
}

/* -------------------------------------------------------------------------------------------------- socket */

/* "HOST:PORT", "[::1]:8080", ":8080" (loopback). */
static int split(const char *listen, char host[256], char port[8])
{
    const char *colon = strrchr(listen, ':');
    bool bracket = *listen == '[';
    size_t n = colon ? (size_t)(colon - listen) : 0;
    uint64_t number;
    if (!colon || n >= 256 || !cli_parse_uint(colon + 1, false, 0, 65535, &number) ||
        (bracket && (n < 3 || listen[n - 1] != ']')) || (!bracket && memchr(listen, ':', n)))
        return cli_usage("--listen: '%s' is not HOST:PORT, e.g. 127.0.0.1:8080 or [::1]:8080", listen);
    snprintf(host, 256, "%.*s", (int)(bracket ? n - 2 : n), listen + bracket);
    snprintf(port, 8, "%u", (unsigned)number);
    if (!*host)
        snprintf(host, 256, "127.0.0.1");
    return DL_OK;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

static int open_socket(struct cli_server *s, const struct addrinfo *a)
{
    int one = 1;
    s->listen_fd = socket(a->ai_family, SOCK_STREAM, 0);
    if (s->listen_fd < 0)
        return DL_EIO;
    fcntl(s->listen_fd, F_SETFD, FD_CLOEXEC);
    setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (!bind(s->listen_fd, a->ai_addr, a->ai_addrlen) && !listen(s->listen_fd, 128))
        return DL_OK;
    int saved = errno;
    close(s->listen_fd);
    s->listen_fd = -1;
    errno = saved;
    return DL_EIO;
}

/* The address that people type: with the port that the system chose for port 0. */
static void name_url(struct cli_server *s)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    char host[NI_MAXHOST], port[16];
    if (getsockname(s->listen_fd, (struct sockaddr *)&a, &n) ||
        getnameinfo((struct sockaddr *)&a, n, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
        return;
    snprintf(s->url, sizeof s->url, strchr(host, ':') ? "http://[%.200s]:%s" : "http://%.200s:%s", host, port);
}

static int bind_listen(struct cli_server *s)
{
    char port[8];
    int err = split(s->opts.listen, s->host, port);
    if (err)
        return err;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int why = getaddrinfo(s->host, port, &hints, &found);
    if (why)
        return dl_fail(DL_EIO, "--listen: %s: %s", s->host, gai_strerror(why));
    s->loopback = is_loopback(found->ai_addr);
    if (!s->loopback && !s->opts.api_key && !s->opts.insecure)
        err = dl_fail(DL_EINVAL,
                      "--listen: %s can be reached from other machines: give --api-key KEY, or --insecure to let "
                      "anyone in",
                      s->opts.listen);
    else if (open_socket(s, found))
        err = dl_fail(DL_EIO, "--listen: %s: %s%s", s->opts.listen, strerror(errno),
                      errno == EADDRINUSE ? ": choose another port" : "");
    freeaddrinfo(found);
    if (!err)
        name_url(s);
    return err;
}

int cli_server_open(struct cli_server *s, const struct cli_server_opts *opts)
{
    *s = (struct cli_server){.opts = *opts, .listen_fd = -1, .wake = {-1, -1}};
    pthread_mutex_init(&s->lock, NULL);
    if (pipe(s->wake))
        return dl_fail(DL_EIO, "server: cannot make a pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        fcntl(s->wake[i], F_SETFL, O_NONBLOCK);
        fcntl(s->wake[i], F_SETFD, FD_CLOEXEC);
    }
    int err = bind_listen(s);
    return err ? err : cli_http_start(s);
}

void cli_server_close(struct cli_server *s)
{
    if (!s->opts.listen)
        return;
    cli_http_stop(s);
    for (int i = 0; i < 2; i++)
        if (s->wake[i] >= 0)
            close(s->wake[i]);
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    pthread_mutex_destroy(&s->lock);
    free(s->nodes);
    *s = (struct cli_server){0};
}
