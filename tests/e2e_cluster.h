/* SPDX-License-Identifier: MIT
 *
 * tests/e2e_cluster.h: workers as processes: `dllama-vk worker` on a free port of this machine, its log in a file. A root is a run of the
 * program as in e2e.h, with --workers.
 */
#ifndef TESTS_E2E_CLUSTER_H
#define TESTS_E2E_CLUSTER_H

#include "e2e.h"
#include "tempdir.h"

#define WORKERS_MOST 8
#define WORKER_WAIT_MS 60000

struct worker_proc {
    pid_t pid; /* 0: ended */
    char log[TEMPDIR_LEN + 32], address[64];
};

struct cluster {
    char dir[TEMPDIR_LEN];
    struct worker_proc w[WORKERS_MOST];
    int n;
    char list[64 * WORKERS_MOST]; /* for --workers */
};

/* All that the worker has said so far; the caller frees it. */
static inline char *worker_log(const struct worker_proc *w)
{
    size_t n;
    return e2e_slurp(w->log, &n);
}

static inline unsigned count_of(const char *text, const char *part)
{
    unsigned n = 0;
    for (; (text = strstr(text, part)); text += strlen(part))
        n++;
    return n;
}

static inline void short_sleep(unsigned ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* Until its log has `part` n times. */
static inline void worker_says(const struct worker_proc *w, const char *part, unsigned n)
{
    const uint64_t end = dl_now_ns() + (uint64_t)WORKER_WAIT_MS * 1000000u;
    for (;;) {
        char *log = worker_log(w);
        bool there = count_of(log, part) >= n;
        if (!there && (dl_now_ns() > end || waitpid(w->pid, NULL, WNOHANG)))
            fail_msg("a worker did not say '%s' %u times:\n%s", part, n, log);
        free(log);
        if (there)
            return;
        short_sleep(10);
    }
}

/* Exit status, as in e2e. The log stays. */
static inline int worker_end(struct worker_proc *w, int sig)
{
    int status = 0;
    if (!w->pid)
        return 0;
    if (sig)
        kill(w->pid, sig);
    const uint64_t end = dl_now_ns() + (uint64_t)WORKER_WAIT_MS * 1000000u;
    while (!waitpid(w->pid, &status, WNOHANG)) {
        if (dl_now_ns() > end) {
            kill(w->pid, SIGKILL);
            char *log = worker_log(w);
            fail_msg("a worker does not end:\n%s", log);
        }
        short_sleep(5);
    }
    w->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : E2E_SIGNALLED + WTERMSIG(status);
}

static inline void cluster_open(struct cluster *c)
{
    *c = (struct cluster){0};
    make_dir(c->dir);
}

/* Starts `worker` with the arguments up to NULL, without waiting for it to listen. It has the environment of this moment. */
static inline struct worker_proc *worker_start(struct cluster *c, const char *const *argv)
{
    char *args[32] = {(char *)(uintptr_t)e2e_bin(), (char *)(uintptr_t) "worker"};
    size_t k = 2;
    for (; *argv; argv++) {
        assert_true(k + 1 < DL_COUNT_OF(args));
        args[k++] = (char *)(uintptr_t)*argv;
    }
    assert_true(c->n < WORKERS_MOST);
    struct worker_proc *w = &c->w[c->n];
    const size_t len = strlen(c->dir);
    memcpy(w->log, c->dir, len);
    snprintf(w->log + len, sizeof w->log - len, "/worker%d.log", c->n++);
    fflush(NULL);
    w->pid = fork();
    assert_true(w->pid >= 0);
    if (!w->pid) {
#ifdef __linux__
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
#endif
        int in = open("/dev/null", O_RDONLY), err = open(w->log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
        dup2(in, 0);
        dup2(err, 1);
        dup2(err, 2);
        for (int i = 3; i < 64; i++)
            close(i);
        execv(args[0], args);
        _exit(127);
    }
    while (access(w->log, R_OK))
        short_sleep(1);
    return w;
}

static inline void worker_listens(struct cluster *c, struct worker_proc *w)
{
    worker_says(w, "listening on ", 1);
    char *log = worker_log(w), *at = strstr(log, "listening on ") + strlen("listening on ");
    snprintf(w->address, sizeof w->address, "%.*s", (int)DL_MIN(strcspn(at, " \n"), sizeof w->address - 1), at);
    free(log);
    size_t n = strlen(c->list);
    snprintf(c->list + n, sizeof c->list - n, "%s%.63s", n ? "," : "", w->address);
}

/* A worker on the CPU, with one thread, and further arguments. */
#define CPU_WORKER "--listen", "127.0.0.1:0", "--device", "cpu", "--threads", "1"
#define WORKER(c, ...) worker_start(c, (const char *const[]){__VA_ARGS__, NULL})

static inline void cluster_cpus(struct cluster *c, int n)
{
    cluster_open(c);
    for (int i = 0; i < n; i++)
        WORKER(c, CPU_WORKER);
    for (int i = 0; i < n; i++)
        worker_listens(c, &c->w[i]);
}

/* Every worker that still runs serves on, and ends when it is told to. */
static inline void cluster_close(struct cluster *c)
{
    for (int i = 0; i < c->n; i++) {
        if (!c->w[i].pid)
            continue;
        int status = worker_end(&c->w[i], SIGTERM);
        char *log = worker_log(&c->w[i]);
        if (status || !strstr(log, "worker: stopped\n"))
            fail_msg("worker %d ended with %d:\n%s", i, status, log);
        free(log);
    }
    remove_dir(c->dir);
    *c = (struct cluster){0};
}

/* The first n workers, for --workers. Static. */
static inline const char *first_workers(const struct cluster *c, int n)
{
    static char list[sizeof c->list];
    list[0] = 0;
    for (int i = 0; i < n; i++) {
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s%.63s", len ? "," : "", c->w[i].address);
    }
    return list;
}

#endif
