/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_cluster_text.c: what a cluster of processes computes: the same text on 1 to 8 nodes, equal and uneven, on CPUs and GPUs,
 * logits near those of one machine; and what it says of itself: statistics per node.
 *
 * DLLAMA_SLOW=1: every number of nodes with every split and device.
 */
#include "e2e_cluster.h"

#include <math.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static bool slow(void)
{
    const char *v = getenv("DLLAMA_SLOW");
    return v && *v == '1';
}

#define ROOT "--device", "cpu", "--threads", "1", "--temp", "0"

static char *text_of(const char *const *argv)
{
    struct e2e r;
    e2e_run(&r, NULL, 0, argv);
    E2E_STATUS(&r, 0);
    char *text = r.out;
    r.out = NULL;
    e2e_free(&r);
    return text;
}
#define TEXT(...) text_of((const char *const[]){__VA_ARGS__, NULL})

static void same_text(const char *want, const char *what, const char *const *argv)
{
    char *got = text_of(argv);
    if (strcmp(want, got))
        fail_msg("%s:\nwant %s\ngot  %s", what, want, got);
    free(got);
}
#define SAME_TEXT(want, what, ...) same_text(want, what, (const char *const[]){__VA_ARGS__, NULL})

/* Equal shares, and 3:1:2:3:1 ... */
static const char *split_of(int nodes, bool uneven)
{
    static char split[64];
    split[0] = 0;
    for (int i = 0; i < nodes; i++)
        snprintf(split + strlen(split), sizeof split - strlen(split), "%s%c", i ? ":" : "",
                 uneven ? "312"[i % 3] : '1');
    return split;
}

#define TALE_TOKENS "48"

static void same_text_on_1_to_8_nodes(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(stories, "models/stories260K.gguf");
    char *tale = TEXT("run", stories, ROOT, "-p", "Once upon a time", "-n", TALE_TOKENS), *demo = TEXT("run", ROOT);
    assert_true(strlen(tale) > 100);
    assert_non_null(strstr(demo, "ask it something."));
    struct cluster c;
    cluster_cpus(&c, 7);
    for (int nodes = 2; nodes <= 8; nodes++)
        for (int uneven = 0; uneven < 2; uneven++) {
            if (!slow() && (SANITIZED ? nodes != 3 : uneven && nodes % 2 == 0))
                continue;
            const char *split = split_of(nodes, uneven), *list = first_workers(&c, nodes - 1);
            SAME_TEXT(tale, split, "run", stories, ROOT, "-p", "Once upon a time", "-n", TALE_TOKENS, "--workers", list,
                      "--split", split, "--wire", "f32");
            if (slow() || uneven || nodes == 8)
                SAME_TEXT(demo, split, "run", ROOT, "--workers", list, "--split", split);
        }
    cluster_close(&c);
    free(tale);
    free(demo);
}

/* The first GPU of all, a CPU pretending included. */
static bool gpu_there(void)
{
    struct e2e r;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    E2E(&r, "devices", "--json");
    bool there = r.status == 0 && strstr(r.out, "\"vulkan:0\"") != NULL;
    e2e_free(&r);
    if (!there)
        fprintf(stderr, "SKIPPED PART: there is no Vulkan device, lavapipe neither\n");
    return there;
}

static void mixed_devices_tell_the_same(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(stories, "models/stories260K.gguf");
    if (!gpu_there())
        skip();
    char *tale = TEXT("run", stories, ROOT, "-p", "Once upon a time", "-n", TALE_TOKENS);
    struct cluster c;
    cluster_open(&c);
    worker_listens(&c, WORKER(&c, "--listen", "127.0.0.1:0", "--device", "vulkan:0"));
    worker_listens(&c, WORKER(&c, CPU_WORKER));
    SAME_TEXT(tale, "cpu, vulkan, cpu", "run", stories, ROOT, "-p", "Once upon a time", "-n", TALE_TOKENS, "--workers",
              c.list, "--split", "3:2:1", "--wire", "f32");
    if (slow())
        SAME_TEXT(tale, "vulkan, vulkan, cpu", "run", stories, "--device", "vulkan:0", "--temp", "0", "-p",
                  "Once upon a time", "-n", TALE_TOKENS, "--workers", c.list, "--wire", "f32");
    char *log = worker_log(&c.w[0]);
    E2E_HAS(log, "with vulkan:0");
    if (strstr(log, "validation: "))
        fail_msg("%s", log);
    free(log);
    cluster_close(&c);
    free(tale);
}

/* ---------------------------------------------------------------------------------------------------- logits */

#define REF_PROMPT "382,10,200,33,77,90,310,5,128,64,256,300,17,42"
#define REF_VOCAB 384
#define REF_NEW 16

struct answer {
    char *ids;
    float *rows; /* (REF_NEW + 1, REF_VOCAB) */
};

static void free_answer(struct answer *a)
{
    free(a->ids);
    free(a->rows);
}

/* Rows that belong to the same tokens before them: as long as both have picked the same. */
static size_t rows_alike(const struct answer *a, const struct answer *b)
{
    size_t n = 1;
    for (const char *x = a->ids, *y = b->ids; *x && *x == *y; x++, y++)
        n += *x == ' ' || *x == '\n';
    return DL_MIN(n, (size_t)REF_NEW + 1);
}

static double nmse(const struct answer *got, const struct answer *want)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < rows_alike(got, want) * REF_VOCAB; i++) {
        double d = (double)got->rows[i] - (double)want->rows[i];
        diff += d * d;
        norm += (double)want->rows[i] * (double)want->rows[i];
    }
    return diff / norm;
}

static struct answer answer_of(const char *path, const char *const *argv)
{
    struct e2e r;
    e2e_run(&r, NULL, 0, argv);
    E2E_STATUS(&r, 0);
    struct answer a = {.ids = r.out};
    r.out = NULL;
    e2e_free(&r);
    size_t n;
    a.rows = (float *)(void *)e2e_slurp(path, &n);
    assert_int_equal(n, (REF_NEW + 1) * REF_VOCAB * sizeof(float));
    return a;
}
#define ANSWER(path, ...)                                                                                          \
    answer_of(path, (const char *const[]){"run", "--prompt-ids", REF_PROMPT, "-n", "16", "--ids", "--dump-logits", \
                                          path, ROOT, __VA_ARGS__, NULL})

static void logits_are_near_those_of_one_machine(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "refs/llama.gguf");
    (void)data;
    static const char *const refs[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};
    static const struct {
        const char *wire;
        double most;
    } wires[] = {{"f32", 1e-6}, {"q80", 1e-4}};
    struct cluster c;
    cluster_cpus(&c, slow() ? 5 : 2);
    char dump[TEMPDIR_LEN + 8];
    snprintf(dump, sizeof dump, "%s/dump", c.dir);
    for (size_t i = 0; i < DL_COUNT_OF(refs); i++) {
        char file[64];
        snprintf(file, sizeof file, "refs/%s.gguf", refs[i]);
        const char *model = test_data(file);
        struct answer one = ANSWER(dump, model);
        for (int nodes = 2; nodes <= c.n + 1; nodes++)
            for (size_t w = 0; w < DL_COUNT_OF(wires); w++) {
                if (!slow() && SANITIZED && nodes + (int)w + (int)i != 4)
                    continue;
                const char *split = split_of(nodes, nodes > 2);
                struct answer got = ANSWER(dump, model, "--workers", first_workers(&c, nodes - 1), "--wire",
                                           wires[w].wire, "--split", split);
                double e = nmse(&got, &one);
                if (!(e <= wires[w].most))
                    fail_msg("%s, %s, wire %s: NMSE %g", refs[i], split, wires[w].wire, e);
                free_answer(&got);
            }
        free_answer(&one);
    }
    cluster_close(&c);
}

/* The same with a GPU among the nodes: it rounds its own sums, and adds up those of the others. */
static void logits_with_a_gpu_are_near_those_of_one_machine(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(experts, "refs/qwen3moe.gguf");
    NEED_DATA(dense, "refs/qwen3.gguf");
    if (!gpu_there())
        skip();
    struct cluster c;
    cluster_open(&c);
    worker_listens(&c, WORKER(&c, "--listen", "127.0.0.1:0", "--device", "vulkan:0"));
    worker_listens(&c, WORKER(&c, CPU_WORKER));
    char dump[TEMPDIR_LEN + 8];
    snprintf(dump, sizeof dump, "%s/dump", c.dir);
    for (int k = 0; k < (SANITIZED && !slow() ? 1 : 4); k++) {
        const char *model = k < 2 ? experts : dense, *sums = k % 2 ? "oneshot" : "rs";
        struct answer one = ANSWER(dump, model),
                      got = ANSWER(dump, model, "--workers", c.list, "--split", "1:1:1", "--collective", sums);
        double e = nmse(&got, &one);
        if (!(e <= 1e-4))
            fail_msg("%s, %s: NMSE %g", model, sums, e);
        free_answer(&got);
        free_answer(&one);
    }
    cluster_close(&c);
}

static void perplexity_over_a_cluster(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(stories, "models/stories260K.gguf");
    NEED_DATA(text, "models/stories260K.once.greedy.txt");
    char *alone = TEXT("perplexity", stories, "-f", text, "--device", "cpu"), *p;
    struct cluster c;
    cluster_cpus(&c, 2);
    char *shared = TEXT("perplexity", stories, "-f", text, "--device", "cpu", "--workers", c.list, "--wire", "f32");
    double a = strtod(alone + strlen("perplexity "), NULL), b = strtod(shared + strlen("perplexity "), &p);
    E2E_HAS(p, " over ");
    assert_true(a > 1 && fabs(a - b) < 1e-4 * a);
    free(alone);
    free(shared);
    cluster_close(&c);
}

/* ------------------------------------------------------------------------------------------------ statistics */

/* The n-th number (from 0) behind "key": in a line of JSON. */
static double number(const char *json, const char *key, int n)
{
    char name[64];
    snprintf(name, sizeof name, "\"%s\":", key);
    for (; (json = strstr(json, name)); n--) {
        json += strlen(name);
        if (!n)
            return strtod(json, NULL);
    }
    fail_msg("there is no %s number %d", key, n);
    return 0;
}

static void every_node_counts(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    cluster_cpus(&c, 2);
    struct e2e r;
    E2E(&r, "run", ROOT, "--json", "--verbose", "--workers", c.list, "--split", "3:1:2");
    E2E_STATUS(&r, 0);
    assert_int_equal(count_of(r.out, "\"compute_ms\":"), 3);
    assert_int_equal(count_of(r.out, "\"devices\":[\"cpu\"]"), 3);
    E2E_HAS(r.out, "\"nodes\":[{\"name\":\"root\"");
    for (int i = 0; i < 2; i++)
        E2E_HAS(r.out, c.w[i].address);
    double share = 0, sent = 0, received = 0;
    for (int i = 0; i < 3; i++) {
        share += number(r.out, "share", i);
        sent += number(r.out, "sent_bytes", i);
        received += number(r.out, "received_bytes", i);
        assert_true(number(r.out, "compute_ms", i) > 0 && number(r.out, "exchange_ms", i) > 0);
        assert_true(number(r.out, "sent_bytes", i) > 1000);
    }
    assert_true(fabs(share - 1) < 1e-6);
    assert_true(number(r.out, "share", 0) > number(r.out, "share", 1) + 0.2);
    assert_true(sent == received); /* what one sends, another one gets; nothing but the decode steps counts */
    E2E_HAS(r.err, "node, per decoded token");
    e2e_free(&r);
    E2E(&r, "run", ROOT, "--json");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"nodes\":[{\"name\":\"root\",\"devices\":[\"cpu\"],\"share\":1.0,");
    assert_true(number(r.out, "sent_bytes", 0) == 0);
    e2e_free(&r);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_text_on_1_to_8_nodes),
        cmocka_unit_test(mixed_devices_tell_the_same),
        cmocka_unit_test(logits_are_near_those_of_one_machine),
        cmocka_unit_test(logits_with_a_gpu_are_near_those_of_one_machine),
        cmocka_unit_test(perplexity_over_a_cluster),
        cmocka_unit_test(every_node_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
