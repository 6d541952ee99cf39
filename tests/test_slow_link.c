/* SPDX-License-Identifier: MIT
 *
 * tests/test_slow_link.c: what a cluster of two nodes with a thread each takes over a link of 1 Gbit/s whose round trip is 0.2 ms (or
 * $DLLAMA_LINK, "MBIT:US": that rate, and so long there and back), with a key and without, by turns: exchanges of a decoded token
 * against what the network takes, what of them is hidden in prefill, and what encryption costs. Real processes and TCP, on tun_link.h,
 * the shape of Llama 3.2 1B with weights made up. Takes minutes, Linux and root: runs only with DLLAMA_SLOW=1.
 *
 * A node that waits for the other's computing is in its exchange, too, so on a machine with other work figures are too high: medians of
 * $DLLAMA_LINK_ROUNDS (8) rounds.
 */
#ifdef __linux__
#include "tun_link.h"

#include <jansson.h>
#include <math.h>

#include "e2e_procs.h"

enum { ROUNDS_MOST = 64, TOKENS = 32, LAYERS = 16, DIM = 2048, PROMPT = 288 };
#define SHAPE "llama3.2-1b"

static double mbit = 1000, rtt_us = 200;
static unsigned n_rounds = 8;
static struct tun_link net;
static struct proc workers[2]; /* with a key; without */
static const char *const ports[2] = {"10.97.0.2:9990", "10.97.0.2:9991"};
static char dir[TEMPDIR_LEN], key[TEMPDIR_LEN + 8];
static int before = -1;

static void enter(int namespace)
{
    assert_int_equal(setns(namespace, CLONE_NEWNET), 0);
}

static int setup(void **state)
{
    (void)state;
    const char *slow = getenv("DLLAMA_SLOW"), *link = getenv("DLLAMA_LINK"), *rounds = getenv("DLLAMA_LINK_ROUNDS");
    if (!slow || strcmp(slow, "1")) {
        snprintf(net.why_not, sizeof net.why_not, "set DLLAMA_SLOW=1 (minutes, a quiet machine)");
        return 0;
    }
    if (!e2e_bin())
        return 0;
    if (link && (sscanf(link, "%lf:%lf", &mbit, &rtt_us) != 2 || !(mbit > 0) || !(rtt_us >= 0)))
        fail_msg("DLLAMA_LINK: '%s' is not MBIT:US", link);
    if (rounds)
        n_rounds = (unsigned)DL_MIN(DL_MAX(strtoul(rounds, NULL, 10), 1), ROUNDS_MOST);
    before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (!tun_link_open(&net, mbit * 1e6, (uint64_t)(rtt_us * 500)))
        return 0;
    make_dir(dir);
    setenv("DLLAMA_CACHE_DIR", dir, 1);
    snprintf(key, sizeof key, "%s/key", dir);
    struct e2e r;
    E2E(&r, "keygen", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    enter(net.ns[1]);
    for (int i = 0; i < 2; i++) {
        proc_start(&workers[i], (const char *const[]){"worker", "--listen", ports[i], "--threads", "1", "--device",
                                                      "cpu", i ? "--insecure" : "--key", i ? NULL : key, NULL});
        (void)proc_says(&workers[i], 0, "listening on ");
    }
    enter(before);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        if (workers[i].p.pid)
            proc_free(&workers[i]);
    tun_link_close(&net);
    if (dir[0])
        remove_tree(dir);
    return 0;
}

#define NEED_NET()                                                       \
    NEED_BIN();                                                          \
    if (net.why_not[0]) {                                                \
        fprintf(stderr, "SKIPPED PART: a slow link: %s\n", net.why_not); \
        skip();                                                          \
        return;                                                          \
    }

/* ------------------------------------------------------------------------------------------------- measuring */

struct figures {
    double tok_s;
    double compute[2], exchange[2], hidden[2]; /* ms of the root and of the worker, per token */
};

static double number(const json_t *row, const char *name)
{
    const json_t *v = json_object_get(row, name);
    if (!json_is_number(v))
        fail_msg("'%s' is no number", name);
    return json_number_value(v);
}

/* One repetition of `bench`, after one that warms up. */
static struct figures measure(bool tls, const char *what, const char *n)
{
    struct e2e r;
    struct figures f;
    enter(net.ns[0]);
    E2E(&r, "bench", "--shape", SHAPE, "--pp", *what == 'p' ? n : "0", "--tg", *what == 't' ? n : "0", "--reps", "1",
        "--json", "--quiet", "--split", "1:1", "--wire", "q80", "--device", "cpu", "--threads", "1", "--workers",
        ports[!tls], tls ? "--key" : "--insecure", tls ? key : NULL);
    enter(before);
    E2E_STATUS(&r, 0);
    json_t *row = json_loads(r.out, 0, NULL);
    assert_non_null(row);
    f.tok_s = number(row, "tok_s");
    for (size_t i = 0; i < 2; i++) {
        const json_t *node = json_array_get(json_object_get(row, "nodes"), i);
        const double tokens = strtod(n, NULL);
        f.compute[i] = number(node, "compute_ms") / tokens;
        f.exchange[i] = number(node, "exchange_ms") / tokens;
        f.hidden[i] = number(node, "exchange_hidden_ms") / tokens;
    }
    json_decref(row);
    e2e_free(&r);
    return f;
}

static int by_size(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static double median(const double *v, unsigned n)
{
    double w[ROUNDS_MOST];
    memcpy(w, v, n * sizeof *w);
    qsort(w, n, sizeof *w, by_size);
    return (w[n / 2] + w[(n - 1) / 2]) / 2;
}

/* KERNELS: each of the 2 sums of a layer takes the way of the first bit and the bits, with their heads, of one row of q80. */
static double floor_ms(void)
{
    const double row = DIM / 32 * 34 + 20, bits = 8 * (row + 2 * (20 + 32 + TUN_AROUND));
    return 2 * LAYERS * (rtt_us / 2e3 + bits / mbit / 1e3);
}

static void decode(void **state)
{
    (void)state;
    NEED_NET();
    static double speed[2][ROUNDS_MOST], exchange[2][ROUNDS_MOST], ratio[ROUNDS_MOST];
    const char *const names[2] = {"plain", "TLS  "};
    for (unsigned i = 0; i < n_rounds; i++) {
        for (int k = 0; k < 2; k++) {
            const bool tls = (i + (unsigned)k) % 2; /* each is first every other time */
            const struct figures f = measure(tls, "tg", "32");
            speed[tls][i] = f.tok_s;
            exchange[tls][i] = fmin(f.exchange[0] - f.hidden[0], f.exchange[1] - f.hidden[1]);
            printf("%s  %6.2f tok/s; ms per token of the root, the worker: exchange %6.3f %6.3f, hidden %6.3f %6.3f, "
                   "compute %6.3f %6.3f\n",
                   names[tls], f.tok_s, f.exchange[0], f.exchange[1], f.hidden[0], f.hidden[1], f.compute[0],
                   f.compute[1]);
            fflush(stdout);
        }
        ratio[i] = speed[1][i] / speed[0][i];
    }
    const double least = floor_ms(), plain = median(exchange[0], n_rounds), tls = median(exchange[1], n_rounds);
    const double token = 1e3 / median(speed[0], n_rounds);
    printf("decode: exchange %.3f ms per token without a key, %.2f x the network's %.3f; %.3f with one, %.2f x\n",
           plain, plain / least, least, tls, tls / least);
    printf(
        "TLS: speed x %.3f (median of pairs), x %.3f (of medians); exchange +%.3f ms of %.2f ms per token: %.1f %%\n",
        median(ratio, n_rounds), median(speed[1], n_rounds) / median(speed[0], n_rounds), tls - plain, token,
        (tls - plain) / token * 100);
    assert_true(plain <= 1.5 * least);
    assert_true(tls - plain <= 0.03 * token);
}

static void prefill(void **state)
{
    (void)state;
    NEED_NET();
    double hidden[2][ROUNDS_MOST];
    for (unsigned i = 0; i < n_rounds; i++) {
        const struct figures f = measure(i % 2, "pp", "288");
        for (int k = 0; k < 2; k++) {
            assert_true(f.compute[k] >= f.exchange[k]);
            hidden[k][i] = f.hidden[k] / f.exchange[k];
        }
        printf("%s  %6.2f tok/s; ms per token of the root, the worker: exchange %6.3f %6.3f, hidden %3.0f %3.0f %%, "
               "compute %6.3f %6.3f\n",
               i % 2 ? "TLS  " : "plain", f.tok_s, f.exchange[0], f.exchange[1], hidden[0][i] * 100, hidden[1][i] * 100,
               f.compute[0], f.compute[1]);
        fflush(stdout);
    }
    printf("prefill: %.0f %% of the root's exchanges are hidden, %.0f %% of the worker's\n",
           median(hidden[0], n_rounds) * 100, median(hidden[1], n_rounds) * 100);
    assert_true(median(hidden[0], n_rounds) >= 0.8 && median(hidden[1], n_rounds) >= 0.8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(decode), cmocka_unit_test(prefill)};
    return cmocka_run_group_tests_name("slow_link", tests, setup, teardown);
}
#else
#include "common.h"

static void on_linux(void **state)
{
    (void)state;
    fprintf(stderr, "SKIPPED PART: a slow link: this is not Linux\n");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(on_linux)};
    return cmocka_run_group_tests_name("slow_link", tests, NULL, NULL);
}
#endif
