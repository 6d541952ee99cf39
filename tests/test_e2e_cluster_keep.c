/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_cluster_keep.c: what a worker keeps and what it gives back: weights stay on its disk, so that a second start sends none,
 * unless they were damaged there; memory, descriptors and processor time are back when a root has gone.
 */
#include "e2e_cluster.h"

#include <sys/stat.h>

#define MODEL "refs/qwen3.gguf"

static char *answer_of(const char *const *argv)
{
    struct e2e r;
    e2e_run(&r, NULL, 0, argv);
    E2E_STATUS(&r, 0);
    char *text = r.out;
    r.out = NULL;
    e2e_free(&r);
    return text;
}
#define ANSWER(...)                                                                                                  \
    answer_of((const char *const[]){"run", __VA_ARGS__, "--prompt-ids", "1,5,9", "-n", "12", "--temp", "0", "--ids", \
                                    "--device", "cpu", "--threads", "1", NULL})

/* "1.5 MiB" in the last line of that kind, as bytes. */
static double sent_bytes(const struct worker_proc *w)
{
    static const char *const units[] = {" B ", " KiB ", " MiB "};
    char *log = worker_log(w), *at = NULL, *end;
    for (char *p = log; (p = strstr(p, "ready after ")); at = p++)
        ;
    assert_non_null(at);
    at = strstr(at, " s: ");
    assert_non_null(at);
    double v = strtod(at + 4, &end), factor = 1;
    for (size_t i = 0; i < DL_COUNT_OF(units) && strncmp(end, units[i], strlen(units[i])) != 0; i++)
        factor *= 1024;
    assert_true(factor <= 1024 * 1024);
    free(log);
    return v * factor;
}

/* at: where it listens, NULL for a port of its own. */
static struct worker_proc *keeper(struct cluster *c, const char *at, const char *size, const char *model)
{
    const char *const argv[] = {
        "--listen", at ? at : "127.0.0.1:0",  "--device", "cpu", "--threads", "1", "--cache-size",
        size,       model ? "--model" : NULL, model,      NULL};
    struct worker_proc *w = worker_start(c, argv);
    c->list[0] = 0;
    worker_listens(c, w);
    return w;
}

/* Its folder for what it can make again. */
static void cache_begin(const struct cluster *c, char dir[TEMPDIR_LEN + 8])
{
    snprintf(dir, TEMPDIR_LEN + 8, "%s/c", c->dir);
    assert_int_equal(setenv("DLLAMA_CACHE_DIR", dir, 1), 0);
}

static void cache_end(const char *dir, const char *before)
{
    char sub[TEMPDIR_LEN + 32];
    snprintf(sub, sizeof sub, "%s/weights", dir);
    if (!access(sub, F_OK))
        remove_dir(sub);
    if (!access(dir, F_OK))
        remove_dir(dir);
    if (before)
        setenv("DLLAMA_CACHE_DIR", before, 1);
    else
        unsetenv("DLLAMA_CACHE_DIR");
}

/* Turns a bit in the middle of the largest file there. */
static void damage_one(const char *dir)
{
    char sub[TEMPDIR_LEN + 32], path[2 * TEMPDIR_LEN], best[2 * TEMPDIR_LEN] = "";
    off_t most = 0;
    snprintf(sub, sizeof sub, "%s/weights", dir);
    DIR *d = opendir(sub);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", sub, e->d_name);
        if (!stat(path, &st) && S_ISREG(st.st_mode) && st.st_size > most) {
            most = st.st_size;
            memcpy(best, path, sizeof best);
        }
    }
    closedir(d);
    assert_true(most > 1000);
    FILE *f = fopen(best, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)most / 2, SEEK_SET), 0);
    int byte = fgetc(f);
    assert_int_equal(fseek(f, (long)most / 2, SEEK_SET), 0);
    fputc(byte ^ 4, f);
    fclose(f);
}

static void a_second_start_sends_nothing(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, MODEL);
    const char *before = getenv("DLLAMA_CACHE_DIR");
    char dir[TEMPDIR_LEN + 8], *old = before ? strdup(before) : NULL;
    struct cluster c;
    cluster_open(&c);
    cache_begin(&c, dir);
    char *alone = ANSWER(model), *one, *two, *three;
    struct worker_proc *w = keeper(&c, NULL, "100M", NULL);
    one = ANSWER(model, "--workers", c.list, "--wire", "f32");
    double all = sent_bytes(w);
    assert_true(all > 800000);
    two = ANSWER(model, "--workers", c.list, "--wire", "f32");
    assert_true(sent_bytes(w) == 0);
    assert_int_equal(worker_end(w, SIGTERM), 0);

    char at[64];
    memcpy(at, w->address, sizeof at);
    w = keeper(&c, at, "100M", NULL); /* another process */
    struct e2e r;
    E2E(&r, "run", model, "--prompt-ids", "1", "-n", "1", "--device", "cpu", "--threads", "1", "--verbose", "--workers",
        c.list);
    E2E_STATUS(&r, 0);
    E2E_HAS(r.err, "had all of its weights");
    e2e_free(&r);
    assert_true(sent_bytes(w) == 0);
    damage_one(dir);
    three = ANSWER(model, "--workers", c.list, "--wire", "f32");
    assert_true(sent_bytes(w) > 0 && sent_bytes(w) < all / 2);
    assert_string_equal(one, alone);
    assert_string_equal(two, alone);
    assert_string_equal(three, alone);
    free(alone);
    free(one);
    free(two);
    free(three);
    cache_end(dir, old);
    free(old);
    cluster_close(&c);
}

static void a_copy_of_the_model_needs_no_transfer(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, MODEL);
    NEED_DATA(other, "refs/llama.gguf");
    struct cluster c;
    cluster_open(&c);
    struct worker_proc *w = keeper(&c, NULL, "0", model);
    char *alone = ANSWER(model), *shared = ANSWER(model, "--workers", c.list, "--wire", "f32");
    assert_true(sent_bytes(w) == 0);
    assert_string_equal(alone, shared);
    free(shared);
    w = keeper(&c, NULL, "0", other);
    shared = ANSWER(model, "--workers", c.list, "--wire", "f32");
    assert_true(sent_bytes(w) > 800000);
    char *log = worker_log(w);
    E2E_HAS(log, "is not the root's model");
    free(log);
    assert_string_equal(alone, shared);
    free(shared);
    w = keeper(&c, NULL, "0", NULL); /* and without anything, everything, every time */
    for (int i = 0; i < 2; i++) {
        shared = ANSWER(model, "--workers", c.list);
        assert_true(sent_bytes(w) > 800000);
        free(shared);
    }
    free(alone);
    cluster_close(&c);
}

/* ---------------------------------------------------------------------------------------------- what is given back */

#ifdef __linux__
static long status_number(pid_t pid, const char *key)
{
    char value[64];
    assert_true(e2e_status(pid, key, value));
    return strtol(value, NULL, 10);
}

/* Ticks of processor time, of all its threads. */
static long ticks(pid_t pid)
{
    char path[64], line[1024];
    unsigned long user = 0, sys = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    assert_int_equal(
        sscanf(strrchr(line, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys), 2);
    return (long)(user + sys);
}

static void all_is_back_after_each_root(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, MODEL);
    struct cluster c;
    cluster_cpus(&c, 1);
    const pid_t pid = c.w[0].pid;
    long anon = 0, threads = 0;
    int fds = 0;
    for (int i = 0; i < 8; i++) {
        free(ANSWER(model, "--workers", c.list, "--ctx", i % 2 ? "30000" : "500"));
        worker_says(&c.w[0], "listening on ", (unsigned)i + 2);
        short_sleep(100); /* threads that have just ended are still counted for a moment */
        if (i == 2) {
            anon = status_number(pid, "RssAnon:");
            threads = status_number(pid, "Threads:");
            fds = e2e_fds(pid);
        }
    }
    long more = status_number(pid, "RssAnon:") - anon;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they keep what was freed, and shadows of all */
    if (more > 1024)
        fail_msg("%ld KiB more than %ld after five more roots", more, anon);
#else
    (void)more;
#endif
    for (int i = 0; i < 100 && (status_number(pid, "Threads:") != threads || e2e_fds(pid) != fds); i++)
        short_sleep(50);
    assert_int_equal(status_number(pid, "Threads:"), threads);
    assert_int_equal(e2e_fds(pid), fds);

    /* Idle, it sleeps, and says nothing. */
    char *log = worker_log(&c.w[0]);
    size_t said = strlen(log);
    free(log);
    long t0 = ticks(pid);
    short_sleep(1500);
    long spent = ticks(pid) - t0;
    if (spent > sysconf(_SC_CLK_TCK) / 20)
        fail_msg("%ld ticks in 1.5 s of doing nothing", spent);
    log = worker_log(&c.w[0]);
    assert_int_equal(strlen(log), said);
    free(log);
    cluster_close(&c);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_second_start_sends_nothing),
        cmocka_unit_test(a_copy_of_the_model_needs_no_transfer),
#ifdef __linux__
        cmocka_unit_test(all_is_back_after_each_root),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
