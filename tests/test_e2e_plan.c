/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_plan.c: `plan` as a command: for described nodes, for this machine and for workers that are there; what it refuses, and
 * that a run after it takes over what was measured.
 */
#include "e2e_cluster.h"

#include <jansson.h>

#define FOUR "pc:400:24,old:40:32,nas:20:16,pi:8:7"

static void described_nodes(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    E2E(&r, "plan", "--shape", "llama3.3-70b", "--nodes", FOUR, "--link", "2.5gbe:0.3ms");
    E2E_STATUS(&r, 0);
    static const char *const parts[] = {"\npc ",
                                        "\nold ",
                                        "\nnas ",
                                        "\npi ",
                                        "latency 0.150 ms, 292.5 MB/s",
                                        "160 sums",
                                        "tok/s at position 512",
                                        "context 8192\n"};
    for (size_t i = 0; i < DL_COUNT_OF(parts); i++)
        E2E_HAS(r.out, parts[i]);
    assert_int_equal(r.n_err, 0);
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "llama3.1-405b", "--layers", "8", "--nodes", "a:20:32,b:20:32,c:20:32", "--json",
        "--ctx", "4K", "--collective", "rs", "--kv", "q80", "--wire", "f16", "--batch", "32");
    E2E_STATUS(&r, 0);
    static const char *const fields[] = {"{\"model\":\"llama3.1-405b\",\"context\":4096,\"kv\":\"q80\",\"wire\":"
                                         "\"f16\",\"wire_sums\":\"f16\",\"nodes\":[{\"name\":\"a\"",
                                         "\"kv_heads\":",
                                         "\"weight_bytes\":",
                                         "\"sent_bytes_per_token\":",
                                         "\"slows\":false",
                                         "\"network\":{\"latency_ms\":",
                                         "\"collective\":\"",
                                         "\"tok_s\":",
                                         "\"without\":null}\n"};
    for (size_t i = 0; i < DL_COUNT_OF(fields); i++)
        E2E_HAS(r.out, fields[i]);
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "qwen3-8b", "--nodes", "a:20:10:100,b:20:10:100", "--split", "1:3", "--link",
        "940mbit:400us");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "latency 0.200 ms, 117.5 MB/s");
    E2E_HAS(r.out, "prompts at ");
    E2E_HAS(r.out, "\na     25.");
    e2e_free(&r);
    /* Described nodes are CPUs; of a slow network's time some is hidden. */
    static const char *const kinds[] = {"auto", "halves", "oneshot"};
    for (size_t i = 0; i < DL_COUNT_OF(kinds); i++) {
        E2E(&r, "plan", "--shape", "llama3.1-8b", "--nodes", "a:20:32,b:20:32", "--link", "300mbit", "--collective",
            kinds[i], "--json");
        E2E_STATUS(&r, 0);
        json_t *all = json_loads(r.out, 0, NULL), *net = json_object_get(all, "network");
        const char *kind = json_string_value(json_object_get(net, "collective"));
        assert_non_null(kind);
        assert_string_equal(kind, i < 2 ? "halves" : "oneshot");
        double one = json_number_value(json_object_get(net, "oneshot_ms")),
               halves = json_number_value(json_object_get(net, "halves_ms")),
               taken = json_number_value(json_object_get(all, "exchange_ms"));
        assert_true(halves > one / 2 && halves < one);
        assert_true(taken == (i < 2 ? halves : one));
        json_decref(all);
        e2e_free(&r);
    }
    /* What travels for --wire q80 where there are experts. */
    E2E(&r, "plan", "--shape", "qwen3-30b-a3b", "--nodes", "a:20:32,b:20:32", "--json");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"wire\":\"q80\",\"wire_sums\":\"q120\"");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "qwen3-30b-a3b", "--nodes", "a:20:32,b:20:32");
    E2E_HAS(r.out, "root sends 310.8 kB as q120, and ");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "llama3.1-8b", "--nodes", "gpu:400:24,pi:8:8", "--link", "1gbe:2ms");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "fewer nodes would be faster: without pi about ");
    e2e_free(&r);
}

static void what_does_not_fit(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    E2E(&r, "plan", "--shape", "llama3.1-405b", "--nodes", "a:20:15,b:20:15");
    E2E_FAILS(&r, 1, "llama3.1-405b needs 211.9 GiB");
    E2E_HAS(r.err, "30.0 GiB (a 15.0 GiB, b 15.0 GiB): some 16 nodes like these would do");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "llama3.3-70b", "--nodes", "a:20:60,b:20:10", "--split", "1:1");
    E2E_FAILS(&r, 1, "b 18");
    E2E_HAS(r.err, "of 10.0 GiB");
    e2e_free(&r);
}

static void what_is_not_understood(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const nodes[] = {"a",     "a:1",    "a:x:1",     "a:1:1:",  "a:1:1,",      ",a:1:1",
                                        "a:0:1", "a:1:-1", "a:1:1:1:1", "a:nan:1", "a:1:1,a:1:1", ":1:1"};
    static const char *const links[] = {"",     "1",     "gbe",     "1gbe:",      "1gbe:1",  "1gbe:0ms",
                                        "0gbe", "-1gbe", "1parsec", "1gbe:1ms:1", "1e999gbe"};
    struct e2e r;
    for (size_t i = 0; i < DL_COUNT_OF(nodes); i++) {
        E2E(&r, "plan", "--shape", "qwen3-8b", "--nodes", nodes[i]);
        E2E_FAILS(&r, 2, "--nodes: ");
        e2e_free(&r);
    }
    for (size_t i = 0; i < DL_COUNT_OF(links); i++) {
        E2E(&r, "plan", "--shape", "qwen3-8b", "--nodes", "a:1:10,b:1:10", "--link", links[i]);
        E2E_FAILS(&r, 2, "--link: ");
        e2e_free(&r);
    }
    E2E(&r, "plan");
    E2E_FAILS(&r, 2, "needs a MODEL, or a --shape");
    e2e_free(&r);
    E2E(&r, "plan", "x.gguf", "--shape", "qwen3-8b");
    E2E_FAILS(&r, 2, "needs a MODEL, or a --shape");
    e2e_free(&r);
    E2E(&r, "plan", "x.gguf", "--layers", "3");
    E2E_FAILS(&r, 2, "--layers");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "gpt-9", "--nodes", "a:1:10");
    E2E_FAILS(&r, 1, "llama3.2-1b, llama3.1-8b");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "qwen3-8b", "--nodes", "a:1:10", "--device", "cpu");
    E2E_FAILS(&r, 2, "--nodes");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "qwen3-8b", "--link", "1gbe");
    E2E_FAILS(&r, 2, "--link: only with --nodes");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "qwen3-8b", "--nodes", "a:1:10,b:1:10", "--split", "1:2:3");
    E2E_FAILS(&r, 2, "--split");
    e2e_free(&r);
}

static void this_machine(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct e2e r;
    E2E(&r, "plan", model, "--device", "cpu", "--threads", "1");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\ncpu  100.0%");
    E2E_HAS(r.out, "1 thread");
    E2E_HAS(r.out, "exchange 0.00");
    e2e_free(&r);
    E2E(&r, "plan", model, "--nodes", "a:20:1,b:20:1,c:20:1", "--collective", "rs",
        "--json"); /* 64 columns, two blocks */
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"collective\":\"oneshot\"");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "llama3.1-405b", "--device", "cpu", "--layers", "1024");
    E2E_FAILS(&r, 1, "memory: llama3.1-405b needs ");
    e2e_free(&r);
}

/* They measure themselves, serve on, and the next run takes what they found. */
static void workers_that_are_there(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    struct cluster c;
    struct e2e r;
    char cache[TEMPDIR_LEN], *kept = strdup(getenv("DLLAMA_CACHE_DIR") ? getenv("DLLAMA_CACHE_DIR") : "");
    make_dir(cache); /* other tests have roots that remember, too */
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    cluster_cpus(&c, 2);
    E2E(&r, "run", model, "--device", "cpu", "--threads", "1", "--workers", first_workers(&c, 2), "--raw", "-p", "Once",
        "-n", "3", "--temp", "0", "--verbose");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.err, "network latency");
    E2E_HAS(r.err, "tok/s at position");
    assert_null(strstr(r.err, "as measured before"));
    e2e_free(&r);
    for (int i = 0; i < 2; i++) {
        E2E(&r, "plan", model, "--device", "cpu", "--threads", "1", "--workers", first_workers(&c, 2));
        E2E_STATUS(&r, 0);
        E2E_HAS(r.out, "\nroot ");
        E2E_HAS(r.out, "\nnode 1 at 127.0.0.1:");
        E2E_HAS(r.out, "\nnode 2 at 127.0.0.1:");
        E2E_HAS(r.out, "  cpu (");
        e2e_free(&r);
    }
    E2E(&r, "run", model, "--device", "cpu", "--threads", "1", "--workers", first_workers(&c, 2), "--raw", "-p", "Once",
        "-n", "3", "--temp", "0", "--verbose");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.err, "as measured before");
    e2e_free(&r);
    const char *experts = test_data("refs/qwen3moe.gguf");
    for (int rs = 0; experts && rs < 2; rs++) { /* what travels, and how */
        E2E(&r, "run", experts, "--device", "cpu", "--threads", "1", "--workers", first_workers(&c, 2), "--prompt-ids",
            "1,2", "-n", "2", "--json", "--collective", rs ? "rs" : "oneshot");
        E2E_STATUS(&r, 0);
        E2E_HAS(r.out, rs ? "\"collective\":\"rs\",\"wire_sums\":\"q120\",\"nodes\""
                          : "\"collective\":\"oneshot\",\"wire_sums\":\"q120\",\"nodes\"");
        e2e_free(&r);
    }
    E2E(&r, "run", model, "--device", "cpu", "--threads", "1", "--workers", first_workers(&c, 2), "--prompt-ids", "1,2",
        "-n", "2", "--json", "--collective", "rs"); /* too narrow */
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"collective\":\"oneshot\",\"wire_sums\":\"q80\",\"nodes\"");
    e2e_free(&r);
    E2E(&r, "plan", "--shape", "llama3.1-405b", "--device", "cpu", "--workers", first_workers(&c, 2));
    E2E_FAILS(&r, 1, "memory: llama3.1-405b needs ");
    E2E_HAS(r.err, "node 2 at ");
    e2e_free(&r);
    cluster_close(&c);
    setenv("DLLAMA_CACHE_DIR", kept, 1);
    free(kept);
    remove_tree(cache);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(described_nodes),        cmocka_unit_test(what_does_not_fit),
        cmocka_unit_test(what_is_not_understood), cmocka_unit_test(this_machine),
        cmocka_unit_test(workers_that_are_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
