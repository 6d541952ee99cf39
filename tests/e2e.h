/* SPDX-License-Identifier: MIT
 *
 * tests/e2e.h: runs the built binary ($DLLAMA_BIN) as a user would: arguments and stdin in; stdout, stderr and exit status
 * out. Every run has a deadline, so that a hang is a failed test.
 */
#ifndef TESTS_E2E_H
#define TESTS_E2E_H

#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dl/device.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

#define E2E_SIGNALLED 1000 /* status of a process that a signal ended: this + signal */
#define E2E_TIMEOUT_MS 280000
#define MS UINT64_C(1000000)
#define SEC UINT64_C(1000000000)

struct e2e {
    int status;
    char *out, *err; /* NUL-terminated, may hold others before */
    size_t n_out, n_err;
};

static inline const char *e2e_bin(void)
{
    const char *bin = getenv("DLLAMA_BIN");
    if (!bin || !*bin)
        fprintf(stderr, "SKIPPED PART: DLLAMA_BIN does not name the binary\n");
    return bin && *bin ? bin : NULL;
}
#define NEED_BIN()  \
    if (!e2e_bin()) \
    skip()

/* Whether vulkan:0 is there; the software one of the system will do. */
static inline bool e2e_gpu(void)
{
    struct dl_vulkan_info gpu;
    uint32_t n = 0;
    bool there = !dl_vulkan_list(&gpu, 1, &n, DL_LOG_DEBUG) && n && !*gpu.unusable;
    if (!there)
        fputs("SKIPPED PART: no Vulkan device here\n", stderr);
    return there;
}
#define NEED_GPU()  \
    if (!e2e_gpu()) \
    skip()

static inline void e2e_free(struct e2e *r)
{
    free(r->out);
    free(r->err);
    *r = (struct e2e){0};
}

/* A running process. Pipes are -1 once closed. */
struct e2e_proc {
    pid_t pid;
    int in, out, err;
};

/* Starts the binary with the arguments argv[0 ..] up to NULL. stdout_path: a file instead of the pipe, "" closes it, or NULL. */
static inline void e2e_start(struct e2e_proc *p, const char *const *argv, const char *stdout_path)
{
    int in[2], out[2], err[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    assert_int_equal(pipe(err), 0);
    char *args[64] = {(char *)(uintptr_t)e2e_bin()};
    size_t n = 0;
    while (argv[n]) {
        assert_true(n + 2 < DL_COUNT_OF(args));
        args[n + 1] = (char *)(uintptr_t)argv[n];
        n++;
    }
    fflush(NULL);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (!p->pid) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
#endif
        int fd = stdout_path && *stdout_path ? open(stdout_path, O_WRONLY) : out[1];
        dup2(in[0], 0);
        dup2(fd, 1);
        dup2(err[1], 2);
        for (int i = 3; i < 64; i++)
            close(i);
        if (stdout_path && !*stdout_path)
            close(1);
        execv(args[0], args);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    p->in = in[1];
    p->out = out[0];
    p->err = err[0];
}

/* What /proc/PID/status has behind `key`; false: nothing, or there is no /proc. */
static inline bool e2e_status(pid_t pid, const char *key, char value[64])
{
    char path[64], line[256];
    bool found = false;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        found = !strncmp(line, key, strlen(key));
        if (found)
            snprintf(value, 64, "%.63s", line + strlen(key));
    }
    if (f)
        fclose(f);
    return found;
}

#ifdef __linux__
/* Until it catches that signal, rather than being ended by it. */
static inline void e2e_catches(const struct e2e_proc *p, int sig)
{
    char caught[64];
    for (uint64_t t0 = dl_now_ns();; poll(NULL, 0, 1)) {
        assert_true(e2e_status(p->pid, "SigCgt:", caught));
        if (strtoull(caught, NULL, 16) >> (sig - 1) & 1)
            return;
        if (dl_now_ns() - t0 > (uint64_t)E2E_TIMEOUT_MS * 1000000u)
            fail_msg("it does not catch signal %d", sig);
    }
}
#else
static inline void e2e_catches(const struct e2e_proc *p, int sig)
{
    (void)p, (void)sig;
    poll(NULL, 0, 1000);
}
#endif

static inline void e2e_more(int *fd, char **v, size_t *n)
{
    *v = realloc(*v, *n + 65536);
    assert_non_null(*v);
    ssize_t got = read(*fd, *v + *n, 65535);
    if (got <= 0) {
        close(*fd);
        *fd = -1;
        got = 0;
    }
    *n += (size_t)got;
    (*v)[*n] = 0;
}

/* Feeds stdin, collects what comes and waits for the end. */
static inline void e2e_finish(struct e2e_proc *p, const char *in, size_t n_in, struct e2e *r)
{
    *r = (struct e2e){.out = calloc(1, 1), .err = calloc(1, 1)};
    signal(SIGPIPE, SIG_IGN);
    fcntl(p->in, F_SETFL, O_NONBLOCK);
    uint64_t end = dl_now_ns() + (uint64_t)E2E_TIMEOUT_MS * 1000000u;
    bool killed = false;
    while (p->in >= 0 || p->out >= 0 || p->err >= 0) {
        if (p->in >= 0 && !n_in) {
            close(p->in);
            p->in = -1;
            continue;
        }
        struct pollfd fds[3] = {
            {.fd = p->in, .events = POLLOUT}, {.fd = p->out, .events = POLLIN}, {.fd = p->err, .events = POLLIN}};
        if (poll(fds, 3, 1000) < 0 && errno != EINTR)
            break;
        if (fds[0].revents) {
            ssize_t put = write(p->in, in, n_in);
            if (put > 0) {
                in += put;
                n_in -= (size_t)put;
            } else if (put < 0 && errno != EAGAIN) {
                n_in = 0;
            }
        }
        if (p->out >= 0 && fds[1].revents)
            e2e_more(&p->out, &r->out, &r->n_out);
        if (p->err >= 0 && fds[2].revents)
            e2e_more(&p->err, &r->err, &r->n_err);
        if (!killed && dl_now_ns() > end) {
            kill(p->pid, SIGKILL);
            killed = true;
        }
    }
    int status = 0;
    while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
        ;
    r->status = WIFEXITED(status) ? WEXITSTATUS(status) : E2E_SIGNALLED + WTERMSIG(status);
    if (killed)
        fail_msg("no end within %d ms; stderr: %s", E2E_TIMEOUT_MS, r->err);
}

static inline void e2e_run(struct e2e *r, const char *in, size_t n_in, const char *const *argv)
{
    struct e2e_proc p;
    e2e_start(&p, argv, NULL);
    e2e_finish(&p, in, n_in, r);
}

/* E2E(&r, "run", model, "-p", "text") with an empty stdin; E2E_IN with a string as stdin. */
#define E2E(r, ...) e2e_run(r, NULL, 0, (const char *const[]){__VA_ARGS__, NULL})
#define E2E_IN(r, in, ...) e2e_run(r, in, strlen(in), (const char *const[]){__VA_ARGS__, NULL})

/* Fails with everything that the process said when the status is another one. */
#define E2E_STATUS(r, want)                                                                                         \
    do {                                                                                                            \
        if ((r)->status != (want))                                                                                  \
            fail_msg("exit status %d, expected %d\nstdout: %s\nstderr: %s", (r)->status, want, (r)->out, (r)->err); \
    } while (0)

/* Exactly one line on stderr, "dllama-vk: <what>: <why>" with `part` in it, and nothing on stdout. */
#define E2E_FAILS(r, want, part)                                                                                  \
    do {                                                                                                          \
        E2E_STATUS(r, want);                                                                                      \
        const char *line_end_ = strchr((r)->err, '\n');                                                           \
        if (strncmp((r)->err, "dllama-vk: ", 11) != 0 || !line_end_ || line_end_[1] || !strstr((r)->err, part) || \
            (r)->n_out)                                                                                           \
            fail_msg("expected one line with '%s'\nstdout: %s\nstderr: %s", part, (r)->out, (r)->err);            \
    } while (0)

#define E2E_HAS(text, part)                         \
    do {                                            \
        if (!strstr(text, part))                    \
            fail_msg("no '%s' in: %s", part, text); \
    } while (0)

/* VmRSS of a process in KiB, and its open descriptors, as /proc has them; -1: there is no /proc. */
static inline long e2e_rss(pid_t pid)
{
    char kib[64];
    return e2e_status(pid, "VmRSS:", kib) ? strtol(kib, NULL, 10) : -1;
}
static inline int e2e_fds(pid_t pid)
{
    char path[64];
    int n = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = opendir(path);
    if (!d)
        return -1;
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* The whole of a file, NUL-terminated; the caller frees it. */
static inline char *e2e_slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *v = NULL;
    *n = 0;
    for (size_t got = 1; got; *n += got) {
        v = realloc(v, *n + 65536);
        assert_non_null(v);
        got = fread(v + *n, 1, 65535, f);
    }
    v[*n] = 0;
    fclose(f);
    return v;
}

/* A file of n bytes in the folder for temporary files; its name is written to `path`. */
static inline void e2e_temp(char path[64], const void *bytes, size_t n)
{
    snprintf(path, 64, "/tmp/dllama-test-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), (ssize_t)n);
    close(fd);
}

#endif
