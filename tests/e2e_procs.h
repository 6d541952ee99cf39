/* SPDX-License-Identifier: MIT
 *
 * tests/e2e_procs.h: clusters of real processes: workers on ports that the system chooses, each with a cache of its own, a root whose text
 * can be watched as it comes, and what /proc knows of them.
 */
#ifndef TESTS_E2E_PROCS_H
#define TESTS_E2E_PROCS_H

#include "e2e.h"

#include "tempdir.h"

/* A process and what it has said so far. */
struct proc {
    struct e2e_proc p;
    char *out, *err;
    size_t n_out, n_err;
    uint64_t last_ns, pause_ns; /* when stdout last moved, and the longest time that it did not, since proc_mark */
    bool lingers;               /* it rests after each piece of text, so that the text lasts on any machine */
    bool ended;
    int status;
};

/* Reads what there is, for at most so long; ends early when something came. */
static inline void proc_read(struct proc *p, uint64_t ns)
{
    struct pollfd fds[2] = {{.fd = p->p.out, .events = POLLIN}, {.fd = p->p.err, .events = POLLIN}};
    if (poll(fds, 2, (int)(ns / MS)) <= 0)
        return;
    if (p->p.out >= 0 && fds[0].revents) {
        uint64_t now = dl_now_ns();
        p->pause_ns = DL_MAX(p->pause_ns, now - p->last_ns);
        p->last_ns = now;
        e2e_more(&p->p.out, &p->out, &p->n_out);
        if (p->lingers) {
            kill(p->p.pid, SIGSTOP);
            dl_sleep_ns(10 * MS);
            kill(p->p.pid, SIGCONT);
        }
    }
    if (p->p.err >= 0 && fds[1].revents)
        e2e_more(&p->p.err, &p->err, &p->n_err);
}

static inline void proc_mark(struct proc *p)
{
    p->last_ns = dl_now_ns();
    p->pause_ns = 0;
}

static inline void proc_start(struct proc *p, const char *const *argv)
{
    *p = (struct proc){.out = calloc(1, 1), .err = calloc(1, 1)};
    e2e_start(&p->p, argv, NULL);
    close(p->p.in);
#ifdef F_SETPIPE_SZ
    /* So that one whom nobody reads waits, and its text is not over meanwhile. */
    (void)fcntl(p->p.out, F_SETPIPE_SZ, 4096);
#endif
    proc_mark(p);
}

/* Until stderr says it (again, beyond `from`). Returns where that ends; fails after 100 s. */
static inline size_t proc_says(struct proc *p, size_t from, const char *text)
{
    for (uint64_t t0 = dl_now_ns();; proc_read(p, 50 * MS)) {
        const char *at = from <= p->n_err ? strstr(p->err + from, text) : NULL;
        if (at)
            return (size_t)(at - p->err) + strlen(text);
        if (dl_now_ns() - t0 > 100 * SEC || (p->p.err < 0 && p->p.out < 0))
            fail_msg("no '%s' in: %s", text, p->err + DL_MIN(from, p->n_err));
    }
}

static inline void proc_wrote(struct proc *p, size_t n)
{
    for (uint64_t t0 = dl_now_ns(); p->n_out < n; proc_read(p, 50 * MS))
        if (dl_now_ns() - t0 > 100 * SEC || (p->p.out < 0 && p->p.err < 0))
            fail_msg("only %zu bytes of text: %s; stderr: %s", p->n_out, p->out, p->err);
}

/* Reads to the end and waits. */
static inline void proc_wait(struct proc *p)
{
    for (uint64_t t0 = dl_now_ns(); p->p.out >= 0 || p->p.err >= 0; proc_read(p, 200 * MS))
        if (dl_now_ns() - t0 > 100 * SEC) {
            kill(p->p.pid, SIGKILL);
            fail_msg("no end; stderr: %s", p->err);
        }
    if (!p->ended) {
        while (waitpid(p->p.pid, &p->status, 0) < 0 && errno == EINTR)
            ;
        p->ended = true;
        p->status = WIFEXITED(p->status) ? WEXITSTATUS(p->status) : E2E_SIGNALLED + WTERMSIG(p->status);
    }
}

static inline void proc_free(struct proc *p)
{
    if (!p->ended && p->p.pid > 0) {
        kill(p->p.pid, SIGCONT);
        kill(p->p.pid, SIGKILL);
        proc_wait(p);
    }
    free(p->out);
    free(p->err);
    *p = (struct proc){0};
}

static inline void proc_kill(struct proc *p)
{
    kill(p->p.pid, SIGKILL);
    proc_wait(p);
}

static inline long proc_rss(const struct proc *p)
{
    return e2e_rss(p->p.pid);
}
static inline int proc_fds(const struct proc *p)
{
    return e2e_fds(p->p.pid);
}
/* User and system time in ticks. */
static inline long proc_cpu(const struct proc *p)
{
    char path[64], line[1024];
    long user = 0, sys = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)p->p.pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    const char *at = strrchr(line, ')');
    assert_non_null(at);
    assert_int_equal(sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &sys), 2);
    return user + sys;
}

#define WORKERS_MOST 4
struct workers {
    int n;
    struct proc w[WORKERS_MOST];
    char address[WORKERS_MOST][64], dir[WORKERS_MOST][TEMPDIR_LEN], list[WORKERS_MOST * 64];
    size_t seen[WORKERS_MOST]; /* bytes of its stderr that were looked at */
};

/* A folder for caches per worker: the environment is this process's own for that moment. */
static inline void worker_start(struct workers *c, int i)
{
    char cache[TEMPDIR_LEN], *old = getenv("DLLAMA_CACHE_DIR");
    char kept[1024];
    snprintf(kept, sizeof kept, "%s", old ? old : "");
    snprintf(cache, sizeof cache, "%s", c->dir[i]);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    const char *at = c->address[i][0] ? c->address[i] : "127.0.0.1:0";
    proc_start(&c->w[i], (const char *const[]){"worker", "--listen", at, "--threads", "1", "--device", "cpu", NULL});
    if (old)
        setenv("DLLAMA_CACHE_DIR", kept, 1);
    else
        unsetenv("DLLAMA_CACHE_DIR");
    c->seen[i] = proc_says(&c->w[i], 0, "listening on ");
    (void)proc_says(&c->w[i], c->seen[i], " with ");
    (void)sscanf(c->w[i].err + c->seen[i], "%63s", c->address[i]);
}

static inline void workers_start(struct workers *c, int n)
{
    *c = (struct workers){.n = n};
    for (int i = 0; i < n; i++) {
        make_dir(c->dir[i]);
        worker_start(c, i);
        snprintf(c->list + strlen(c->list), sizeof c->list - strlen(c->list), "%s%s", i ? "," : "", c->address[i]);
    }
}

static inline void workers_end(struct workers *c)
{
    for (int i = 0; i < c->n; i++) {
        proc_free(&c->w[i]);
        remove_tree(c->dir[i]);
    }
}

/* Until worker i listens again after what it did last. */
static inline void worker_is_free(struct workers *c, int i)
{
    c->seen[i] = proc_says(&c->w[i], c->seen[i], "listening on ");
}

#endif
