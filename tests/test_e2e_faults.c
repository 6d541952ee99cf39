/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_faults.c: what goes wrong in real clusters, with real processes: workers and roots that are killed, stopped or cut off at
 * any time, and strangers at a worker's door. Whatever happens, the text is that of one machine, a pause lasts seconds, and
 * nobody has to be restarted by hand. With exact timing, inside one process, test_cluster_heal.c does the same.
 *
 * The failures that users of such systems report most, and the tests that keep them away:
 *
 *    1  a port scan, a silent or a one-byte client ends or blocks a worker    strangers_at_the_door; test_transport_strangers: scans, silent_ones
 *    2  random bytes, cut frames, lengths without limit                       strangers_at_the_door; test_transport_strangers: garbage; fuzz_frames
 *    3  messages with pointers, offsets, graphs                               test_cluster_msg, test_cluster_hostile; fuzz_cluster_msg
 *    4  messages in an order that frees what is used                          test_cluster_hostile: out_of_order
 *    5  no key, another key, a hello that is replayed                         test_transport_strangers: keys, a_replay, without_a_key; test_e2e_netns
 *    6  another version, model or plan                                        test_cluster_faults: the_root_refuses, a_worker_refuses; test_transport_strangers: other_builds
 *    7  a second root hangs                                                   strangers_at_the_door; test_transport_strangers: a_second_root
 *    8  memory that stays away after a root's crash                           roots_that_crash
 *    9  a worker is killed while loading, in the prompt, in the answer        a_worker_is_killed_*; test_cluster_heal: death_at_any_*
 *   10  the root is killed                                                    roots_that_crash, the_root_is_killed_while_loading
 *   11  a worker is stopped, or packets get lost without a word               a_worker_is_stopped, a_link_is_cut; test_cluster_faults: a_node_that_stops; test_e2e_netns
 *   12  long service: memory, descriptors, processor time when idle, log      test_e2e_soak
 *   13  three endpoints and more deadlock                                     test_e2e_soak; test_tcp: collectives
 *   14  a worker without memory enough                                        test_cluster_faults: too_little_memory; test_cluster_mend: less_for_the_small_one
 *   15  other tokens on 1 to 8 nodes, uneven, mixed                           test_cluster: families, the_demo; test_cluster_sums; test_e2e_cluster_text; test_vk_engine
 *   16  more nodes than KV heads                                              test_cluster: families (8 nodes); test_plan
 *   17  a damaged or full cache                                               test_cluster_weights, test_weight_cache
 *   18  one node has to hold the whole model                                  test_cluster_mend: the_root_holds_its_share
 *   19  byte marks in the text, an answer without an end, a full context      test_tokenizer: test_vectors_gpt2; test_e2e_cli: test_tokenize_gpt2; test_chat: stops; test_e2e_run: test_stops; test_e2e_serve: test_full_context
 *   20  requests that are none: bad JSON, wrong types, lengths that lie       test_e2e_serve_hostile: test_raw, test_random; test_request; fuzz_request
 *   21  settings that do nothing or leak; names of headers in other letters   test_e2e_serve: test_sampling, test_answers; test_e2e_serve_hostile: test_raw, test_key
 *   22  prompts beyond the context, numbers beyond their range                test_e2e_serve: test_sampling; test_request: test_clamped
 *   23  who hangs up, reads slowly or is one of many                          test_e2e_serve_clients; test_e2e_serve_load
 *   24  pages of other sites use the server                                   test_e2e_serve_hostile: test_names
 */
#include "e2e_procs.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

/* Long enough for what happens meanwhile, also where sanitizers slow all of it down. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PROMPT_BYTES 1000
#define N_AFTER_PROMPT "300"
#else
#define PROMPT_BYTES 6000
#define N_AFTER_PROMPT "1000"
#endif
#define N_TEXT "4000"

/* The text that one machine writes, and the model that writes it. */
static char *one;
static const char *model;

static int setup(void **state)
{
    (void)state;
    model = test_data("models/stories260K.gguf");
    if (!model || !e2e_bin())
        return 0; /* the tests say so */
    struct e2e r;
    E2E(&r, "run", model, "-p", "Once", "-n", N_TEXT, "--ctx", "4096", "--temp", "0", "--threads", "2", "--device",
        "cpu", "--quiet");
    E2E_STATUS(&r, 0);
    one = strdup(r.out);
    e2e_free(&r);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(one);
    return 0;
}

#define NEED_ALL() \
    NEED_BIN();    \
    if (!one) {    \
        skip();    \
        return;    \
    }

static void root_start(struct proc *root, const char *list)
{
    proc_start(root,
               (const char *const[]){"run", model, "-p", "Once", "-n", N_TEXT, "--ctx", "4096", "--temp", "0", "--wire",
                                     "f32", "--threads", "1", "--device", "cpu", "--workers", list, NULL});
}

/* What came so far is the beginning of the text, byte for byte. */
static void same_text(const struct proc *root)
{
    size_t n = root->n_out;
    if (n && root->out[n - 1] == '\n') /* the end of an answer */
        n--;
    if (n > strlen(one) || memcmp(root->out, one, n) != 0)
        fail_msg("another text: %s; stderr: %s", root->out, root->err);
}

/* More text, then Ctrl-C. */
static void root_end(struct proc *root, size_t more)
{
    proc_wrote(root, root->n_out + more);
    kill(root->p.pid, SIGINT);
    proc_wait(root);
    same_text(root);
}

/* Until it says that all three are there again. */
static void all_are_back(struct proc *root, size_t from)
{
    root->lingers = true;
    (void)proc_says(root, from, " is back: going on with 3 of 3 nodes\n");
    root->lingers = false;
}

static unsigned count(const char *in, const char *text)
{
    unsigned n = 0;
    for (const char *at = in; (at = strstr(at, text)); at++)
        n++;
    return n;
}

/* The pause of the text, which a busy machine may stretch; said for the records. */
static void short_pause(const struct proc *root, const char *what, double most)
{
    double s = (double)root->pause_ns / 1e9;
    printf("%s: the text paused for %.2f s\n", what, s);
    if (s > most)
        fail_msg("%s: a pause of %.2f s; stderr: %s", what, s, root->err);
}

static void a_worker_is_killed_in_the_answer(void **state)
{
    (void)state;
    NEED_ALL();
    struct workers c;
    struct proc root;
    workers_start(&c, 2);
    root_start(&root, c.list);
    proc_wrote(&root, 60);
    const size_t from = root.n_err;
    proc_mark(&root);
    proc_kill(&c.w[1]);
    proc_wrote(&root, root.n_out + 60);
    short_pause(&root, "kill -9", 6);
    size_t at = proc_says(&root, from, "node 2 (127.0.0.1:");
    at = proc_says(&root, at, " lost in step ");
    at = proc_says(&root, at, "; going on with 2 of 3 nodes\n");
    /* It is started again, and nobody has to tell the root. */
    proc_free(&c.w[1]);
    worker_start(&c, 1);
    all_are_back(&root, at);
    size_t up = proc_says(&c.w[1], c.seen[1], "joined: stories260K, as node 2 of 3");
    (void)proc_says(&c.w[1], up, "ready after");
    assert_non_null(strstr(c.w[1].err + up, ": 0 B of weights were sent")); /* it kept them */
    root_end(&root, 60);
    assert_int_equal(count(root.err, "warning: node"), 2); /* a line per event */
    proc_free(&root);
    workers_end(&c);
}

static void a_worker_is_killed_in_the_prompt(void **state)
{
    (void)state;
    NEED_ALL();
    char path[64], text[8000];
    size_t n = 0;
    while (n < PROMPT_BYTES)
        n += (size_t)snprintf(text + n, sizeof text - n, "Once there was a little girl who saw a red ball. ");
    e2e_temp(path, text, n);
    struct e2e alone;
    E2E(&alone, "run", model, "-f", path, "-n", N_AFTER_PROMPT, "--ctx", "4096", "--temp", "0", "--threads", "2",
        "--device", "cpu", "--quiet");
    E2E_STATUS(&alone, 0);
    struct workers c;
    workers_start(&c, 2);
    for (int last = 0; last < 2; last++) { /* one of two, then the only one that is left */
        struct proc root;
        proc_start(&root, (const char *const[]){"run",       model,
                                                "-f",        path,
                                                "-n",        N_AFTER_PROMPT,
                                                "--ctx",     "4096",
                                                "--temp",    "0",
                                                "--wire",    "f32",
                                                "--threads", "1",
                                                "--device",  "cpu",
                                                "--batch",   "16",
                                                "--workers", last ? c.address[0] : c.list,
                                                NULL});
        (void)proc_says(&c.w[!last], c.seen[!last], "ready after");
        const size_t from = root.n_err;
        proc_kill(&c.w[!last]);
        proc_wait(&root);
        if (root.status)
            fail_msg("status %d: %s", root.status, root.err);
        assert_string_equal(root.out, alone.out);
        (void)proc_says(&root, from, last ? "; going on with 1 of 2 nodes\n" : "; going on with 2 of 3 nodes\n");
        assert_non_null(strstr(root.err, "finish: length"));
        proc_free(&root);
        if (!last) {
            c.seen[0] = proc_says(&c.w[0], c.seen[0], ": finished, ");
            worker_is_free(&c, 0);
        }
    }
    e2e_free(&alone);
    unlink(path);
    workers_end(&c);
}

static void a_worker_is_killed_while_loading(void **state)
{
    (void)state;
    NEED_ALL();
    struct workers c;
    struct proc root;
    workers_start(&c, 3);
    root_start(&root, c.list);
    (void)proc_says(&c.w[2], c.seen[2], "joined: stories260K");
    proc_kill(&c.w[2]);
    (void)proc_says(&root, 0, "; going on with 3 of 4 nodes\n");
    root_end(&root, 40);
    proc_free(&root);
    workers_end(&c);
}

static void a_worker_is_stopped(void **state)
{
    (void)state;
    NEED_ALL();
    struct workers c;
    struct proc root;
    workers_start(&c, 2);
    root_start(&root, c.list);
    proc_wrote(&root, 60);
    const size_t from = root.n_err;
    proc_mark(&root);
    kill(c.w[0].p.pid, SIGSTOP);
    proc_wrote(&root, root.n_out + 60);
    short_pause(&root, "SIGSTOP", 7);
    size_t at = proc_says(&root, from, ": no sign of life for ");
    at = proc_says(&root, at, "; going on with 2 of 3 nodes\n");
    kill(c.w[0].p.pid, SIGCONT); /* it notices what it has missed, and is of use again */
    all_are_back(&root, at);
    (void)proc_says(&root, at, "node 1 (");
    root_end(&root, 60);
    worker_is_free(&c, 0);
    proc_free(&root);
    workers_end(&c);
}

/* The CPU takes the place of the root's GPU, the workers stay, the text goes on. */
static void the_roots_gpu_is_lost(void **state)
{
    (void)state;
    NEED_ALL();
    NEED_GPU();
    struct workers c;
    static const struct {
        const char *after, *split;
    } when[] = {{"2", "auto"}, {"3", "1:1:1"}, {"200", "1:1:1"}}; /* measuring itself, in the prompt, in the answer */
    workers_start(&c, 2);
    for (size_t i = 0; i < DL_COUNT_OF(when); i++) {
        struct proc root;
        setenv("DLLAMA_VK_LOSE_AFTER", when[i].after, 1);
        proc_start(&root, (const char *const[]){"run",       model,         "-p",       "Once",     "-n",        "60",
                                                "--ctx",     "4096",        "--temp",   "0",        "--wire",    "f32",
                                                "--threads", "1",           "--device", "vulkan:0", "--workers", c.list,
                                                "--split",   when[i].split, NULL});
        unsetenv("DLLAMA_VK_LOSE_AFTER");
        proc_wait(&root);
        if (root.status)
            fail_msg("status %d: %s", root.status, root.err);
        same_text(&root);
        size_t at = proc_says(&root, 0, ": the device was lost (");
        at = proc_says(&root, at, "going on with cpu (");
        (void)proc_says(&root, at, "60 generated");
        assert_int_equal(count(root.err, "going on with "),
                         1); /* a line about what was lost, a line about what is there */
        assert_null(strstr(root.err, "warning: node"));
        proc_free(&root);
        worker_is_free(&c, 0);
        worker_is_free(&c, 1);
    }
    workers_end(&c);
}

/* ------------------------------------------------------------------------------------------------- a cut link */

/* Passes bytes on between whoever connects and one worker, until it is cut: then nothing moves any more, and nobody is told. */
struct relay {
    int listener, fds[64];
    uint16_t to;
    char address[32];
    atomic_bool cut, quit;
    pthread_t thread;
};

static int tcp_socket(uint16_t port, bool connects)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int r = connects ? connect(fd, (struct sockaddr *)&a, sizeof a) : bind(fd, (struct sockaddr *)&a, sizeof a);
    if (!r && !connects)
        r = listen(fd, 16);
    if (r) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What came on fds[i] goes to its twin. */
static void pass(struct relay *r, int i)
{
    char buf[65536];
    ssize_t n = r->fds[i] < 0 ? 0 : read(r->fds[i], buf, sizeof buf);
    for (ssize_t at = 0, put; at < n; at += put)
        if ((put = write(r->fds[i ^ 1], buf + at, (size_t)(n - at))) <= 0)
            n = 0;
    if (n > 0 || r->fds[i] < 0)
        return;
    close(r->fds[i]);
    close(r->fds[i ^ 1]);
    r->fds[i] = r->fds[i ^ 1] = -1;
}

static void take(struct relay *r)
{
    int fd = accept(r->listener, NULL, NULL);
    for (int i = 0; fd >= 0 && i < (int)DL_COUNT_OF(r->fds); i += 2)
        if (r->fds[i] < 0) {
            r->fds[i] = fd;
            r->fds[i + 1] = tcp_socket(r->to, true);
            if (r->fds[i + 1] < 0) {
                close(fd);
                r->fds[i] = -1;
            }
            return;
        }
    close(fd);
}

static void *relay_run(void *arg)
{
    struct relay *r = arg;
    bool was_cut = false;
    while (!atomic_load(&r->quit)) {
        if (atomic_load(&r->cut)) {
            was_cut = true;
            dl_sleep_ns(10 * MS);
            continue;
        }
        for (int i = 0; was_cut && i < (int)DL_COUNT_OF(r->fds);
             i++) { /* as after a long while: the old connections are dead */
            if (r->fds[i] >= 0)
                close(r->fds[i]);
            r->fds[i] = -1;
        }
        was_cut = false;
        struct pollfd fds[65] = {{.fd = r->listener, .events = POLLIN}};
        for (int i = 0; i < 64; i++)
            fds[i + 1] = (struct pollfd){.fd = r->fds[i], .events = POLLIN};
        if (poll(fds, 65, 20) <= 0)
            continue;
        if (fds[0].revents)
            take(r);
        for (int i = 0; i < 64; i++)
            if (fds[i + 1].revents)
                pass(r, i);
    }
    return NULL;
}

static void relay_open(struct relay *r, const char *worker)
{
    struct sockaddr_in a;
    socklen_t n = sizeof a;
    memset(r, 0, sizeof *r);
    memset(r->fds, 0xff, sizeof r->fds);
    r->to = (uint16_t)atoi(strrchr(worker, ':') + 1);
    r->listener = tcp_socket(0, false);
    assert_true(r->listener >= 0);
    assert_int_equal(getsockname(r->listener, (struct sockaddr *)&a, &n), 0);
    snprintf(r->address, sizeof r->address, "127.0.0.1:%u", ntohs(a.sin_port));
    assert_int_equal(pthread_create(&r->thread, NULL, relay_run, r), 0);
}

static void relay_close(struct relay *r)
{
    atomic_store(&r->quit, true);
    pthread_join(r->thread, NULL);
    for (int i = 0; i < 64; i++)
        if (r->fds[i] >= 0)
            close(r->fds[i]);
    close(r->listener);
}

static void a_link_is_cut(void **state)
{
    (void)state;
    NEED_ALL();
    signal(SIGPIPE, SIG_IGN);
    static struct relay r; /* its thread outlives a test that fails */
    struct workers c;
    struct proc root;
    char list[160];
    workers_start(&c, 2);
    relay_open(&r, c.address[1]);
    snprintf(list, sizeof list, "%s,%s", c.address[0], r.address);
    root_start(&root, list);
    proc_wrote(&root, 60);
    const size_t from = root.n_err;
    proc_mark(&root);
    atomic_store(&r.cut, true);
    proc_wrote(&root, root.n_out + 60);
    short_pause(&root, "a link that is cut", 7);
    size_t at = proc_says(&root, from, "node 2 (");
    at = proc_says(&root, at, "no sign of life for ");
    at = proc_says(&root, at, "; going on with 2 of 3 nodes\n");
    worker_is_free(&c, 1); /* it has noticed on its own */
    atomic_store(&r.cut, false);
    all_are_back(&root, at);
    root_end(&root, 60);
    proc_free(&root);
    relay_close(&r);
    workers_end(&c);
}

/* ----------------------------------------------------------------------------------------------------- roots */

static void the_root_is_killed_while_loading(void **state)
{
    (void)state;
    NEED_ALL();
    struct workers c;
    struct proc root;
    workers_start(&c, 2);
    for (int i = 0; i < 3; i++) {
        root_start(&root, c.list);
        c.seen[0] = proc_says(&c.w[0], c.seen[0], i == 2 ? "ready after" : "joined: ");
        proc_kill(&root);
        proc_free(&root);
        worker_is_free(&c, 0);
        worker_is_free(&c, 1);
    }
    root_start(&root, c.list);
    root_end(&root, 40);
    proc_free(&root);
    workers_end(&c);
}

/* Again and again, and what a worker holds in between stays what it was. DLLAMA_SLOW=1: fifty times. */
static void roots_that_crash(void **state)
{
    (void)state;
    NEED_ALL();
    const int cycles = getenv("DLLAMA_SLOW") ? 50 : 10, warm = 4;
    struct workers c;
    long rss = 0;
    int fds = 0;
    uint64_t longest = 0;
    workers_start(&c, 2);
    for (int i = 0; i < cycles; i++) {
        struct proc root;
        root_start(&root, c.list);
        proc_wrote(&root, 20 + (size_t)i % 7 * 8);
        same_text(&root);
        uint64_t t0 = dl_now_ns();
        proc_kill(&root);
        worker_is_free(&c, 0);
        worker_is_free(&c, 1);
        longest = DL_MAX(longest, dl_now_ns() - t0);
        proc_free(&root);
        if (i == warm - 1) {
            rss = proc_rss(&c.w[0]);
            fds = proc_fds(&c.w[0]);
        }
    }
    printf("%d roots crashed; a worker was free after %.2f s at most; %ld KiB and %d descriptors, then %ld and %d\n",
           cycles, (double)longest / 1e9, rss, fds, proc_rss(&c.w[0]), proc_fds(&c.w[0]));
    assert_true(longest < 15 * SEC);
    assert_int_equal(proc_fds(&c.w[0]), fds);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(proc_rss(&c.w[0]) < rss + 1024); /* their memory is kept aside by sanitizers */
#endif
    workers_end(&c);
}

/* ------------------------------------------------------------------------------------------------- strangers */

static void strangers_at_the_door(void **state)
{
    (void)state;
    NEED_ALL();
    signal(SIGPIPE, SIG_IGN);
    struct workers c;
    struct proc root;
    uint64_t rng = 5;
    workers_start(&c, 2);
    root_start(&root, c.list);
    proc_wrote(&root, 30);
    const uint16_t port = (uint16_t)atoi(strrchr(c.address[0], ':') + 1);
    int held[10];
    for (int i = 0; i < 10; i++) /* silent */
        held[i] = tcp_socket(port, true);
    for (int i = 0; i < 100; i++) { /* a scan; one byte; garbage */
        int fd = tcp_socket(port, true);
        assert_true(fd >= 0);
        char junk[3000];
        for (size_t b = 0; b < sizeof junk; b++)
            junk[b] = (char)test_rand(&rng);
        if (i % 3)
            (void)!write(fd, junk, i % 3 == 1 ? 1 : sizeof junk);
        close(fd);
    }
    /* A second root is told, at once, why not. */
    struct e2e second;
    uint64_t t0 = dl_now_ns();
    E2E(&second, "run", model, "-p", "Once", "-n", "5", "--device", "cpu", "--workers", c.address[0]);
    assert_true(dl_now_ns() - t0 < 10 * SEC);
    assert_int_not_equal(second.status, 0);
    E2E_HAS(second.err, "it is busy: it works for another root");
    e2e_free(&second);
    assert_null(strstr(root.err, "warning: node")); /* none of this has disturbed it */
    root_end(&root, 60);
    for (int i = 0; i < 10; i++)
        close(held[i]);
    assert_true(c.w[0].n_err < 8000); /* a line a second at most */
    proc_free(&root);
    worker_is_free(&c, 0);
    worker_is_free(&c, 1);
    root_start(&root, c.list);
    root_end(&root, 30);
    proc_free(&root);
    workers_end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_is_killed_in_the_answer),
        cmocka_unit_test(a_worker_is_killed_in_the_prompt),
        cmocka_unit_test(a_worker_is_killed_while_loading),
        cmocka_unit_test(a_worker_is_stopped),
        cmocka_unit_test(the_roots_gpu_is_lost),
        cmocka_unit_test(a_link_is_cut),
        cmocka_unit_test(the_root_is_killed_while_loading),
        cmocka_unit_test(roots_that_crash),
        cmocka_unit_test(strangers_at_the_door),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
