/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_cluster.c: a root and its workers as processes: who may join, what each side is told, that a worker outlives its
 * roots, and what is sent at a second start. What they compute is for test_e2e_cluster_text.c.
 */
#include "e2e_cluster.h"

#include <sys/stat.h>

/* A text of the model that everyone has. */
#define DEMO_END "ask it something."

static void keygen_makes_a_key_for_one_user(void **state)
{
    (void)state;
    NEED_BIN();
    char dir[TEMPDIR_LEN], path[TEMPDIR_LEN + 16], again[TEMPDIR_LEN + 16];
    make_dir(dir);
    snprintf(path, sizeof path, "%s/key", dir);
    snprintf(again, sizeof again, "%s/key2", dir);
    struct e2e r;
    mode_t mask = umask(0);
    E2E(&r, "keygen", path);
    umask(mask);
    E2E_STATUS(&r, 0);
    assert_int_equal(r.n_out, 0);
    e2e_free(&r);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    E2E(&r, "keygen", path);
    E2E_FAILS(&r, 1, "exists and is not replaced");
    e2e_free(&r);
    E2E(&r, "keygen", again, "--quiet", "--json");
    E2E_STATUS(&r, 0);
    assert_int_equal(r.n_err, 0);
    E2E_HAS(r.out, "{\"file\":\"");
    e2e_free(&r);
    size_t n, n2;
    char *one = e2e_slurp(path, &n), *two = e2e_slurp(again, &n2);
    assert_int_equal(n, n2);
    assert_int_equal(strncmp(one, "dllama-vk-key-1 ", 16), 0);
    assert_string_not_equal(one, two);
    free(one);
    free(two);
    E2E(&r, "keygen", "/nowhere/key");
    E2E_FAILS(&r, 1, "no such file or directory");
    e2e_free(&r);
    remove_dir(dir);
}

static void off_this_machine_a_key_is_needed(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    unsetenv("DLLAMA_KEY_FILE");
    E2E(&r, "worker", "--listen", "0.0.0.0:0", "--device", "cpu");
    E2E_FAILS(&r, 1, "dllama-vk keygen FILE");
    e2e_free(&r);
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", "192.0.2.1");
    E2E_FAILS(&r, 1, "worker 192.0.2.1:9990: it is another machine and there is no key");
    e2e_free(&r);
    struct cluster c;
    cluster_open(&c);
    struct worker_proc *w = WORKER(&c, "--listen", "0.0.0.0:0", "--device", "cpu", "--insecure");
    worker_says(w, "without a key: whoever reaches this port may use it", 1);
    cluster_close(&c);
}

static void who_has_the_key_is_in(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    char key[TEMPDIR_LEN + 8], other[TEMPDIR_LEN + 8];
    cluster_open(&c);
    snprintf(key, sizeof key, "%s/key", c.dir);
    snprintf(other, sizeof other, "%s/other", c.dir);
    struct e2e r;
    E2E(&r, "keygen", key);
    e2e_free(&r);
    E2E(&r, "keygen", other);
    e2e_free(&r);
    worker_listens(&c, WORKER(&c, CPU_WORKER, "--key", key));
    setenv("DLLAMA_KEY_FILE", key, 1);
    worker_listens(&c, WORKER(&c, CPU_WORKER));
    worker_says(&c.w[1], ", encrypted", 1);
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list);
    unsetenv("DLLAMA_KEY_FILE");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, DEMO_END);
    e2e_free(&r);

    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", first_workers(&c, 1), "--key", other);
    E2E_FAILS(&r, 1, c.w[0].address);
    E2E_HAS(r.err, "key");
    e2e_free(&r);
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", first_workers(&c, 1));
    E2E_FAILS(&r, 1, c.w[0].address);
    E2E_HAS(r.err, "--key FILE");
    e2e_free(&r);
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list, "--key", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    char *log = worker_log(&c.w[0]);
    E2E_HAS(log, "is refused: ");
    free(log);
    cluster_close(&c);
}

static void a_worker_that_is_not_there_is_named(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    cluster_cpus(&c, 1);
    worker_end(&c.w[0], SIGKILL);
    struct e2e r;
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list);
    E2E_FAILS(&r, 1, c.w[0].address);
    E2E_HAS(r.err, "connection refused: is `dllama-vk worker` running there");
    e2e_free(&r);
    cluster_close(&c);
}

/* A long text, so that this root is there until it is ended. What it says does not depend on how a sum is rounded for the wire. */
static void root_start(struct e2e_proc *root, const char *model, const char *workers)
{
    static const char ids[] = "382,10,200,33,77,90,310,5,128,64,256,300,17,42";
    const char *const argv[] = {"run",    model,     "--prompt-ids", ids,        "--temp", "0",         "--ctx",
                                "100000", "--batch", "16",           "--device", "cpu",    "--threads", "1",
                                "--wire", "f32",     "--workers",    workers,    "--json", NULL};
    e2e_start(root, argv, NULL);
}

/* What it says on stderr until that has `text`. The caller frees it. */
static void root_says(struct e2e_proc *root, struct e2e *r, const char *text)
{
    *r = (struct e2e){.err = calloc(1, 1)};
    const uint64_t end = dl_now_ns() + UINT64_C(60000000000);
    while (!strstr(r->err, text)) {
        struct pollfd fd = {.fd = root->err, .events = POLLIN};
        if (root->err < 0 || dl_now_ns() > end)
            fail_msg("no '%s' in: %s", text, r->err);
        if (poll(&fd, 1, 1000) > 0)
            e2e_more(&root->err, &r->err, &r->n_err);
    }
}

static void the_second_root_is_told_busy(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "refs/qwen3.gguf");
    struct cluster c;
    cluster_cpus(&c, 1);
    struct e2e_proc root;
    root_start(&root, model, c.list);
    worker_says(&c.w[0], "ready after", 1);
    uint64_t t0 = dl_now_ns();
    struct e2e r;
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list);
    uint64_t took = dl_now_ns() - t0;
    E2E_FAILS(&r, 1, "busy: it works for another root");
    E2E_HAS(r.err, c.w[0].address);
    e2e_free(&r);
    assert_true(took < UINT64_C(10000000000));
    e2e_catches(&root, SIGINT);
    kill(root.pid, SIGINT); /* its answer ends, and so does it */
    e2e_finish(&root, NULL, 0, &r);
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"finish_reason\":\"cancelled\"");
    e2e_free(&r);
    worker_says(&c.w[0], "finished, ", 1);
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    cluster_close(&c);
}

/* In mid-answer: the root is killed, then a worker is stopped by its user. */
static void a_worker_outlives_its_root(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "refs/qwen3.gguf");
    struct cluster c;
    cluster_cpus(&c, 2);
    struct e2e_proc root;
    struct e2e r;
    root_start(&root, model, c.list);
    for (int i = 0; i < 2; i++)
        worker_says(&c.w[i], "ready after", 1);
    kill(root.pid, SIGKILL);
    e2e_finish(&root, NULL, 0, &r);
    assert_int_equal(r.status, E2E_SIGNALLED + SIGKILL);
    e2e_free(&r);
    for (int i = 0; i < 2; i++) {
        worker_says(&c.w[i], "ended, node lost", 1);
        worker_says(&c.w[i], "listening on ", 2);
    }
    root_start(&root, model, c.list);
    for (int i = 0; i < 2; i++)
        worker_says(&c.w[i], "ready after", 2);
    assert_int_equal(worker_end(&c.w[0], SIGINT), 0);
    char *log = worker_log(&c.w[0]);
    E2E_HAS(log, "stopped while it served root at ");
    free(log);
    worker_says(&c.w[1], "ready after", 3); /* and then so is the root, which is told to end only after that */
    root_says(&root, &r, ": its user has stopped it; going on with 2 of 3 nodes");
    E2E_HAS(r.err, c.w[0].address);
    e2e_free(&r);
    kill(root.pid, SIGINT);
    e2e_finish(&root, NULL, 0, &r);
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"finish_reason\":\"cancelled\"");
    e2e_free(&r);
    worker_says(&c.w[1], "listening on ", 4);
    cluster_close(&c);
}

static void once_serves_one_root(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    cluster_open(&c);
    worker_listens(&c, WORKER(&c, CPU_WORKER, "--once"));
    struct e2e r;
    E2E(&r, "run", "--quiet", "--device", "cpu", "--workers", c.list);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    assert_int_equal(worker_end(&c.w[0], 0), 0);
    cluster_close(&c);
}

static void other_use_is_refused(void **state)
{
    (void)state;
    NEED_BIN();
    static const struct {
        const char *argv[8], *says;
        int status;
    } cases[] = {
        {{"worker", "x"}, "one argument too many", 2},
        {{"worker", "--device", "cpu,cpu"}, "one device", 2},
        {{"worker", "--listen", "127.0.0.1"}, "there is no port", 1},
        {{"worker", "--listen", "127.0.0.1:99999"}, "65535", 1},
        {{"worker", "--device", "cpu", "--model", "/nowhere"}, "/nowhere", 1},
        {{"worker", "--cache-size", "much"}, "'much'", 2},
        {{"worker", "--key", "/nowhere"}, "dllama-vk keygen /nowhere", 1},
        {{"keygen"}, "needs a FILE", 2},
        {{"run", "--workers", ""}, "no list", 2},
        {{"run", "--workers", "a:1,,b:1"}, "no list", 2},
        {{"run", "--workers", "a,a:9990"}, "a:9990 is there twice", 2},
        {{"run", "--workers", "a", "--device", "cpu,cpu"}, "one device", 2},
        {{"run", "--workers", "a", "--split", "1:2:3"}, "2 shares above 0", 2},
        {{"run", "--workers", "a", "--wire", "q40"}, "--wire: 'q40'", 2},
        {{"run", "--workers", "a", "--collective", "ring"}, "--collective: 'ring'", 2},
        {{"run", "--key", "k"}, "--key: only with --workers", 2},
        {{"run", "--insecure"}, "--insecure: only with --workers", 2},
        {{"run", "--quiet", "--workers", "a:b"}, "port", 1},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0, cases[i].argv);
        E2E_FAILS(&r, cases[i].status, cases[i].says);
        e2e_free(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keygen_makes_a_key_for_one_user),
        cmocka_unit_test(off_this_machine_a_key_is_needed),
        cmocka_unit_test(who_has_the_key_is_in),
        cmocka_unit_test(a_worker_that_is_not_there_is_named),
        cmocka_unit_test(the_second_root_is_told_busy),
        cmocka_unit_test(a_worker_outlives_its_root),
        cmocka_unit_test(once_serves_one_root),
        cmocka_unit_test(other_use_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
