/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_netns.c: a cluster on a network of its own: a root and two workers, each in a network namespace, on a switch (a bridge) with
 * links of 1 Gbit/s (veth pairs, each end limited by tc). IPv4 and IPv6, with a key, which is refused to be without; and a cable that is
 * pulled and plugged in again. Takes Linux, root and iproute2, else all of it says why it is skipped.
 *
 * The namespaces have no names: this process and the nodes hold them, so that the kernel takes them away, and all that is in them, when the
 * last of these has ended, however that comes.
 */
#define _GNU_SOURCE /* setns, unshare */
#include "e2e_procs.h"

#ifdef __linux__
#include <sched.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_TEXT "800"
#define DETECTED_NS (5 * SEC)
#else
#define N_TEXT "4000"
#define DETECTED_NS (2 * SEC)
#endif

enum { ROOT, WORKER_1, WORKER_2, NODES };

static struct {
    int before, bridge, node[NODES];                /* namespaces; -1 */
    char why_not[400], no_limit[200], no_ipv6[200]; /* empty where all is well */
} net = {.before = -1, .bridge = -1, .node = {-1, -1, -1}};
static char key_dir[TEMPDIR_LEN], key[TEMPDIR_LEN + 8];
static const char *model;
static char *one; /* the text that one machine writes */

static void enter(int namespace)
{
    assert_int_equal(setns(namespace, CLONE_NEWNET), 0);
}

/* Runs a command line; false, and what it said in `said`, when it fails. */
static bool command(char *said, size_t size, const char *line)
{
    char all[600];
    snprintf(all, sizeof all, "{ %s; } 2>&1", line);
    FILE *p = popen(all, "r");
    assert_non_null(p);
    size_t n = fread(all, 1, sizeof all - 1, p);
    all[n] = 0;
    if (!pclose(p))
        return true;
    all[strcspn(all, "\n")] = 0;
    snprintf(said, size, "`%.150s`: %.150s", line, all);
    return false;
}

/* A new namespace, in which this process is then, or -1. */
static int new_namespace(void)
{
    if (unshare(CLONE_NEWNET)) {
        snprintf(net.why_not, sizeof net.why_not, "no network namespace: %s", strerror(errno));
        return -1;
    }
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

/* Node i and its cable: eth0 in its namespace, port<i> at the bridge. */
static bool plug_in(int i)
{
    char line[400];
    enter(net.bridge);
    snprintf(line, sizeof line,
             "ip link add port%d type veth peer name eth0 netns /proc/%d/fd/%d && ip link set port%d master br0 up", i,
             (int)getpid(), net.node[i], i);
    if (!command(net.why_not, sizeof net.why_not, line))
        return false;
    snprintf(line, sizeof line, "tc qdisc add dev port%d root tbf rate 1gbit burst 128kb latency 20ms", i);
    if (!command(net.no_limit, sizeof net.no_limit, line))
        printf("SKIPPED PART: no limit of 1 Gbit/s: %s\n", net.no_limit);
    enter(net.node[i]);
    snprintf(line, sizeof line, "ip addr add 10.99.0.%d/24 dev eth0 && ip link set lo up && ip link set eth0 up",
             i + 1);
    if (!command(net.why_not, sizeof net.why_not, line))
        return false;
    if (!net.no_limit[0] && !command(net.no_limit, sizeof net.no_limit,
                                     "tc qdisc add dev eth0 root tbf rate 1gbit burst 128kb latency 20ms"))
        printf("SKIPPED PART: no limit of 1 Gbit/s: %s\n", net.no_limit);
    snprintf(line, sizeof line, "ip -6 addr add fd99::%d/64 dev eth0 nodad", i + 1);
    (void)command(net.no_ipv6, sizeof net.no_ipv6, line);
    return true;
}

static void build_net(void)
{
    net.before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (geteuid() || net.before < 0) {
        snprintf(net.why_not, sizeof net.why_not, "network namespaces take root");
        return;
    }
    if (!command(net.why_not, sizeof net.why_not, "ip -V"))
        return;
    for (int i = 0; i < NODES; i++)
        if ((net.node[i] = new_namespace()) < 0)
            return;
    if ((net.bridge = new_namespace()) < 0 ||
        !command(net.why_not, sizeof net.why_not, "ip link add br0 type bridge forward_delay 0 && ip link set br0 up"))
        return;
    for (int i = 0; i < NODES; i++)
        if (!plug_in(i))
            return;
    enter(net.bridge);
}

static int setup(void **state)
{
    (void)state;
    model = test_data("models/stories260K.gguf");
    if (!model || !e2e_bin())
        return 0; /* the tests say so */
    unsetenv("DLLAMA_KEY_FILE");
    build_net();
    if (net.why_not[0])
        return 0;
    make_dir(key_dir);
    snprintf(key, sizeof key, "%s/key", key_dir);
    struct e2e r;
    E2E(&r, "keygen", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    E2E(&r, "run", model, "-p", "Once", "-n", N_TEXT, "--ctx", "4096", "--temp", "0", "--threads", "1", "--device",
        "cpu", "--quiet");
    E2E_STATUS(&r, 0);
    one = strdup(r.out);
    e2e_free(&r);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (net.before >= 0 && setns(net.before, CLONE_NEWNET) && !geteuid())
        return -1;
    for (int i = 0; i < NODES; i++)
        if (net.node[i] >= 0)
            close(net.node[i]);
    if (net.bridge >= 0)
        close(net.bridge);
    if (net.before >= 0)
        close(net.before);
    if (key_dir[0])
        remove_dir(key_dir);
    free(one);
    return 0;
}

#define NEED_NET()                                                                    \
    NEED_BIN();                                                                       \
    if (net.why_not[0])                                                               \
        fprintf(stderr, "SKIPPED PART: no network of namespaces: %s\n", net.why_not); \
    if (!one) {                                                                       \
        skip();                                                                       \
        return;                                                                       \
    }

/* ------------------------------------------------------------------------------------------------- what runs there */

/* Of the test that runs, so that what is left of one that failed ends in rest(). */
static struct workers workers;
static struct proc root;

static int rest(void **state)
{
    (void)state;
    if (net.bridge >= 0)
        enter(net.bridge);
    if (root.p.pid)
        proc_free(&root);
    workers_end(&workers);
    workers = (struct workers){0};
    unsetenv("DLLAMA_KEY_FILE");
    return 0;
}

/* Workers with the key at these addresses, which %d completes, each in its namespace. */
static void workers_at(const char *address)
{
    assert_int_equal(setenv("DLLAMA_KEY_FILE", key, 1), 0);
    for (int i = 0; i < NODES - 1; i++) {
        snprintf(workers.address[i], sizeof workers.address[i], "%s%d%s:9990", address, WORKER_1 + i + 1,
                 address[0] == '[' ? "]" : "");
        make_dir(workers.dir[i]);
        enter(net.node[WORKER_1 + i]);
        workers.n++;
        worker_start(&workers, i);
        assert_null(strstr(workers.w[i].err, "without a key"));
    }
    enter(net.bridge);
    snprintf(workers.list, sizeof workers.list, "%s,%s", workers.address[0], workers.address[1]);
}

static void root_start(const char *n_text)
{
    enter(net.node[ROOT]);
    proc_start(&root,
               (const char *const[]){"run", model, "-p", "Once", "-n", n_text, "--ctx", "4096", "--temp", "0", "--wire",
                                     "f32", "--threads", "1", "--device", "cpu", "--workers", workers.list, NULL});
    enter(net.bridge);
}

/* What came is the beginning of the text, byte for byte. */
static void same_text(void)
{
    size_t n = root.n_out;
    if (n && root.out[n - 1] == '\n') /* the end of an answer */
        n--;
    if (n < 60 || n > strlen(one) || memcmp(root.out, one, n) != 0)
        fail_msg("another text: %s; stderr: %s", root.out, root.err);
}

/* A short answer of all three, to its end. */
static void answers(void)
{
    root_start("60");
    proc_wait(&root);
    if (root.status || strstr(root.err, "warning: node"))
        fail_msg("status %d: %s", root.status, root.err);
    same_text();
    proc_free(&root);
    for (int i = 0; i < workers.n; i++) {
        workers.seen[i] = proc_says(&workers.w[i], workers.seen[i], ": finished, ");
        worker_is_free(&workers, i);
    }
}

static void without_a_key(void **state)
{
    (void)state;
    NEED_NET();
    struct e2e r;
    enter(net.node[WORKER_1]);
    E2E(&r, "worker", "--listen", "10.99.0.2:9990", "--device", "cpu");
    E2E_FAILS(&r, 1, "dllama-vk keygen FILE");
    e2e_free(&r);
    enter(net.node[ROOT]);
    E2E(&r, "run", model, "-p", "Once", "-n", "4", "--quiet", "--device", "cpu", "--workers", "10.99.0.2");
    E2E_FAILS(&r, 1, "worker 10.99.0.2:9990: it is another machine and there is no key");
    e2e_free(&r);
}

static void over_ipv6(void **state)
{
    (void)state;
    NEED_NET();
    if (net.no_ipv6[0]) {
        fprintf(stderr, "SKIPPED PART: no IPv6 in namespaces: %s\n", net.no_ipv6);
        skip();
        return;
    }
    workers_at("[fd99::");
    answers();
}

static void cable(const char *state)
{
    char line[64], why[400];
    snprintf(line, sizeof line, "ip link set port%d %s", WORKER_2, state);
    if (!command(why, sizeof why, line))
        fail_msg("%s", why);
}

/* The cable of the second worker is pulled in mid-answer, and plugged in again. Returns after how long the root has noticed. */
static uint64_t pull(void)
{
    root_start(N_TEXT);
    proc_wrote(&root, 60);
    proc_mark(&root);
    const size_t from = root.n_err;
    const uint64_t t0 = dl_now_ns();
    cable("down");
    size_t said = proc_says(&root, from, "node 2 (10.99.0.3:9990)");
    const uint64_t t = dl_now_ns() - t0;
    said = proc_says(&root, said, "no sign of life for ");
    said = proc_says(&root, said, "; going on with 2 of 3 nodes\n");
    proc_wrote(&root, root.n_out + 20);
    const uint64_t pause = root.pause_ns;
    worker_is_free(&workers, 1); /* it has noticed on its own */
    cable("up");
    root.lingers = true;
    (void)proc_says(&root, said, " is back: going on with 3 of 3 nodes\n");
    root.lingers = false;
    proc_wrote(&root, root.n_out + 60);
    kill(root.p.pid, SIGINT);
    proc_wait(&root);
    same_text();
    printf("a cable that is pulled: noticed after %.2f s, the text paused for %.2f s\n", (double)t / 1e9,
           (double)pause / 1e9);
    assert_true(pause < 20 * SEC);
    proc_free(&root);
    for (int i = 0; i < workers.n; i++)
        worker_is_free(&workers, i);
    return t;
}

static void over_ipv4_and_a_cable_is_pulled(void **state)
{
    (void)state;
    NEED_NET();
    workers_at("10.99.0.");
    answers();
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 6 && best > DETECTED_NS; i++) { /* other programs may take the cores */
        const uint64_t t = pull();
        best = DL_MIN(best, t);
        answers(); /* of all three again */
    }
    assert_true(best <= DETECTED_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(without_a_key, NULL, rest),
        cmocka_unit_test_setup_teardown(over_ipv6, NULL, rest),
        cmocka_unit_test_setup_teardown(over_ipv4_and_a_cable_is_pulled, NULL, rest),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
#else
static void without_namespaces(void **state)
{
    (void)state;
    fprintf(stderr, "SKIPPED PART: no network of namespaces: this is not Linux\n");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(without_namespaces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
