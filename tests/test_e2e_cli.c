/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_cli.c: the command line as a contract: usage and exit status, help, tokenize, inspect, devices.
 */
#include "e2e.h"

#include <sys/stat.h>

#include "../cli/options.h"

/* What users and scripts may rely on; taken from the contract and not from the program's own table. */
static const struct {
    const char *command;
    const char *options[36];
} contract[] = {
    {"run", {"-p",           "-f",
             "--prompt-ids", "-n",
             "--ctx",        "--temp",
             "--top-p",      "--top-k",
             "--min-p",      "--repeat-penalty",
             "--seed",       "--stop",
             "--chat",       "--raw",
             "--system",     "--chat-template",
             "--device",     "--threads",
             "--batch",      "--kv",
             "--ids",        "--dump-logits",
             "--tokenizer",  "--quiet",
             "--verbose",    "--json",
             "--workers",    "--split",
             "--wire",       "--collective",
             "--key",
             "--insecure"}},
    {"worker",
     {"--listen", "--device", "--threads", "--model", "--cache-size", "--key", "--insecure", "--once", "--quiet",
      "--verbose", "--json"}},
    {"serve",
     {"--listen", "--api-key", "--parallel", "--queue", "--cors", "--insecure", "--ctx", "--temp", "--top-p", "--top-k",
      "--min-p", "--repeat-penalty", "--chat-template", "--device", "--threads", "--batch", "--kv", "--tokenizer",
      "--workers", "--split", "--wire", "--key", "--quiet", "--verbose"}},
    {"keygen", {"--quiet", "--json"}},
    {"plan",
     {"--shape", "--layers", "--nodes", "--link", "--workers", "--split", "--ctx", "--batch", "--kv", "--wire",
      "--device", "--threads", "--key", "--insecure", "--quiet", "--json"}},
    {"tokenize", {"-p", "--no-bos", "--no-special", "--decode", "--tokenizer", "--quiet", "--verbose", "--json"}},
    {"perplexity",
     {"-f", "--ctx", "--batch", "--device", "--threads", "--kv", "--tokenizer", "--quiet", "--json", "--workers",
      "--split", "--wire", "--collective", "--key", "--insecure"}},
    {"bench", {"--shape", "--layers",  "--pp",   "--tg",      "--reps", "--depth", "--parallel",
               "--nodes", "--compare", "--plot", "--device",  "--ctx",  "--batch", "--threads",
               "--kv",    "--split",   "--wire", "--workers", "--key",  "--json"}},
    {"bench ops",
     {"--shape", "--layers", "--reps", "--depth", "--nodes", "--compare", "--device", "--batch", "--threads", "--kv",
      "--json"}},
    {"bench link",
     {"--shape", "--layers", "--workers", "--key", "--insecure", "--wire", "--batch", "--reps", "--compare", "--json"}},
    {"inspect", {"--tokenizer", "--quiet", "--verbose", "--json"}},
    {"devices", {"--device", "--threads", "--quiet", "--verbose", "--json"}},
};

static const struct {
    const char *name;
    unsigned commands;
} table[] = {
#define X(id, letter, text, arg, kind, field, low, high, commands, help) {"--" text, commands},
    CLI_OPTION_MAP(X)
#undef X
};

/* A whole word: "--temp" is not found in "--template". */
static bool has_word(const char *text, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = text; (p = strstr(p, word)); p++)
        if ((p == text || p[-1] == ' ') && (p[n] == ' ' || p[n] == ',' || p[n] == '\n'))
            return true;
    return false;
}

static void test_help(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e all, r;
    E2E(&all, "--help");
    E2E_STATUS(&all, 0);
    assert_int_equal(all.n_err, 0);
    for (size_t c = 0; c < DL_COUNT_OF(contract); c++) {
        const char *name = contract[c].command;
        assert_true(has_word(all.out, name));
        E2E(&r, name, "--help");
        E2E_STATUS(&r, 0);
        assert_int_equal(r.n_err, 0);
        E2E_HAS(r.out, "usage: dllama-vk ");
        E2E_HAS(r.out, "\nexample: ");
        for (size_t i = 0; i < DL_COUNT_OF(contract[c].options) && contract[c].options[i]; i++)
            if (!has_word(r.out, contract[c].options[i]))
                fail_msg("%s --help does not mention %s", name, contract[c].options[i]);
        unsigned bit = !strcmp(name, "run")          ? CLI_RUN
                       : !strcmp(name, "tokenize")   ? CLI_TOKENIZE
                       : !strcmp(name, "perplexity") ? CLI_PERPLEXITY
                       : !strcmp(name, "inspect")    ? CLI_INSPECT
                       : !strcmp(name, "worker")     ? CLI_WORKER
                       : !strcmp(name, "bench")      ? CLI_BENCH
                       : !strcmp(name, "bench ops")  ? CLI_BENCH_OPS
                       : !strcmp(name, "bench link") ? CLI_BENCH_LINK
                       : !strcmp(name, "keygen")     ? CLI_KEYGEN
                       : !strcmp(name, "serve")      ? CLI_SERVE
                       : !strcmp(name, "plan")       ? CLI_PLAN
                                                     : CLI_DEVICES;
        for (size_t i = 0; i < DL_COUNT_OF(table); i++)
            if (has_word(r.out, table[i].name) != ((table[i].commands & bit) != 0))
                fail_msg("%s --help and the table disagree on %s", name, table[i].name);
        e2e_free(&r);
    }
    e2e_free(&all);
    E2E(&r, "--version");
    E2E_STATUS(&r, 0);
    assert_int_equal(strncmp(r.out, "dllama-vk ", 10), 0);
    e2e_free(&r);
}

static void test_usage(void **state)
{
    (void)state;
    NEED_BIN();
    static const struct {
        const char *argv[8], *says;
    } cases[] = {
        {{NULL}, "no command"},
        {{"frobnicate"}, "unknown command"},
        {{"run", "--frobnicate"}, "--frobnicate: unknown option"},
        {{"run", "-z"}, "-z: unknown option"},
        {{"run", "--dec"}, "--dec: unknown option"},
        {{"run", "--decode"}, "--decode: unknown option"},
        {{"run", "--json=1"}, "--json: takes no value"},
        {{"run", "-p"}, "-p: needs a value"},
        {{"run", "--temp"}, "--temp: needs a value"},
        {{"run", "--temp", "warm"}, "'warm'"},
        {{"run", "--temp=-1"}, "'-1'"},
        {{"run", "--temp=nan"}, "'nan'"},
        {{"run", "--temp="}, "--temp: ''"},
        {{"run", "--top-p", "1.5"}, "'1.5'"},
        {{"run", "-n", "-1"}, "'-1'"},
        {{"run", "-n", "1.5"}, "'1.5'"},
        {{"run", "-n5x"}, "'5x'"},
        {{"run", "--ctx", "0"}, "'0'"},
        {{"run", "--ctx", "99999999999999999999"}, "'99999999999999999999'"},
        {{"run", "--ctx=17179869184G"}, "'17179869184G'"},
        {{"run", "--seed", "18446744073709551616"}, "'18446744073709551616'"},
        {{"run", "--threads", "0"}, "--threads"},
        {{"run", "--threads", "513"}, "--threads: '513' is no whole number from 1 to 512"},
        {{"run", "", "-p", "a"}, "an argument is empty"},
        {{"run", "--ctx", "4 "}, "'4 '"},
        {{"run", "--stop", ""}, "--stop: may not be empty"},
        {{"run", "-p", "a", "-p", "b"}, "-p: given twice"},
        {{"run", "a.gguf", "b.gguf"}, "one argument too many"},
        {{"run", "--chat", "--raw", "-p", "a"}, "--chat and --raw"},
        {{"run", "-p", "a", "-f", "b"}, "one of -p"},
        {{"run", "-p", "a", "--chat-template", "frob"}, "chatml"},
        {{"run", "-p", "a", "--kv", "q40"}, "--kv: 'q40'"},
        {{"run", "-p", "a", "--device", "cpu,,cpu"}, "--device"},
        {{"run", "--quiet", "--verbose", "-p", "a"}, "--quiet and --verbose"},
        {{"serve", "--listen", "8080"}, "--listen: '8080' is not HOST:PORT"},
        {{"serve", "--listen", "127.0.0.1:99999"}, "is not HOST:PORT"},
        {{"serve", "--api-key", ""}, "--api-key"},
        {{"serve", "--parallel", "0"}, "--parallel"},
        {{"serve", "--chat-template", "frob"}, "chatml"},
        {{"tokenize"}, "needs a MODEL"},
        {{"inspect"}, "needs a FILE"},
        {{"perplexity", "m.gguf"}, "-f FILE"},
        {{"devices", "x"}, "one argument too many"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0, cases[i].argv);
        E2E_FAILS(&r, 2, cases[i].says);
        e2e_free(&r);
    }
}

static void test_missing_files(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const cases[][6] = {
        {"run", "/nonexistent/a.gguf", "-p", "x"},
        {"run", "/nonexistent/a.m", "-p", "x"},
        {"run", "/tmp", "-p", "x"},
        {"run", "-f", "/nonexistent/a.txt"},
        {"tokenize", "/nonexistent/a.gguf", "-p", "x"},
        {"tokenize", "/nonexistent/a.t", "-p", "x"},
        {"inspect", "/nonexistent/a.gguf"},
        {"inspect", "/tmp"},
        {"perplexity", "/nonexistent/a.gguf", "-f", "/dev/null"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0, cases[i]);
        E2E_FAILS(&r, 1, strcmp(cases[i][1], "/tmp") != 0 ? ": cannot open: No such file" : "not a regular file");
        e2e_free(&r);
    }
}

/* Nobody writes into these pipes: reading them would be waiting for ever. */
static void test_named_pipes(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(m, "models/stories260K.m");
    char folder[] = "/tmp/dllama-test-XXXXXX", path[3][64];
    static const char *const names[] = {"a.gguf", "b.m", "b.t"};
    assert_non_null(mkdtemp(folder));
    for (size_t i = 0; i < 3; i++)
        snprintf(path[i], sizeof path[i], "%s/%s", folder, names[i]);
    assert_int_equal(mkfifo(path[0], 0600), 0);
    assert_int_equal(symlink(m[0] == '/' ? m : "/nonexistent", path[1]), 0);
    assert_int_equal(mkfifo(path[2], 0600), 0);
    const char *const cases[][7] = {{"run", path[0], "-p", "x"},
                                    {"tokenize", path[0], "-p", "x"},
                                    {"inspect", path[0]},
                                    {"perplexity", path[0], "-f", "/dev/null"},
                                    {"run", m, "--tokenizer", path[2], "-p", "x"},
                                    {"run", path[1], "-p", "x"}};
    for (size_t i = 0; i < DL_COUNT_OF(cases) - (m[0] != '/'); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0, cases[i]);
        E2E_FAILS(&r, 1, "not a regular file");
        e2e_free(&r);
    }
    for (size_t i = 0; i < 3; i++)
        unlink(path[i]);
    rmdir(folder);
}

static void test_not_a_model(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const contents[] = {"", "GGUF", "hello\033[31m, I am a text file and no model\n",
                                           "\xcd\xab\x00\x0a----", "\x24\x71\x56----"};
    for (size_t i = 0; i < DL_COUNT_OF(contents); i++) {
        char path[64];
        e2e_temp(path, contents[i], i == 3 ? 8 : strlen(contents[i]));
        static const char *const commands[] = {"run", "tokenize", "inspect"};
        for (size_t c = 0; c < DL_COUNT_OF(commands); c++) {
            struct e2e r;
            if (c == 2)
                E2E(&r, commands[c], path);
            else
                E2E(&r, commands[c], path, "-p", "x");
            E2E_FAILS(&r, 1, "dllama-vk: ");
            e2e_free(&r);
        }
        unlink(path);
    }
}

/* Vectors of another implementation; `step` leaves some out, since each is two processes (the unit tests take all). */
static void vectors(const char *name, size_t step)
{
    char file[3][64];
    snprintf(file[0], 64, "vocab/%s.gguf", name);
    snprintf(file[1], 64, "vocab/%s.inp", name);
    snprintf(file[2], 64, "vocab/%s.out", name);
    NEED_DATA(model, file[0]);
    NEED_DATA(inp, file[1]);
    NEED_DATA(out, file[2]);
    static const char mark[] = "\n__ggml_vocab_test__\n";
    size_t n_in, n_want, checked = 0;
    char *in = e2e_slurp(inp, &n_in), *want = e2e_slurp(out, &n_want), *line = want;
    for (char *text = in, *next; text; text = next) {
        next = strstr(text, mark);
        size_t n = next ? (size_t)(next - text) : strlen(text);
        next = next ? next + strlen(mark) : NULL;
        char *end = strchr(line, '\n');
        if (!end)
            break;
        *end = 0;
        while (*line == ' ')
            line++;
        if (checked++ % step == 0) {
            struct e2e r, back;
            e2e_run(&r, text, n, (const char *const[]){"tokenize", model, "--no-bos", "--no-special", NULL});
            E2E_STATUS(&r, 0);
            char *newline = strchr(r.out, '\n');
            assert_non_null(newline);
            assert_int_equal(newline[1], 0);
            *newline = 0;
            size_t used = strlen(line);
            while (used && line[used - 1] == ' ')
                line[--used] = 0;
            assert_string_equal(r.out, line);
            E2E_IN(&back, r.out, "tokenize", model, "--decode");
            E2E_STATUS(&back, 0);
            assert_int_equal(back.n_out, n);
            assert_memory_equal(back.out, text, n);
            e2e_free(&r);
            e2e_free(&back);
        }
        line = end + 1;
    }
    assert_true(checked > 40);
    free(in);
    free(want);
}

static void test_tokenize_spm(void **state)
{
    (void)state;
    NEED_BIN();
    vectors("llama-spm", 9);
}

static void test_tokenize_gpt2(void **state)
{
    (void)state;
    NEED_BIN();
    vectors("gpt-2", 15);

    /* In the vocabulary a space and a line end are letters (U+0120, U+010A); in a text they never are. Each token before a line end: */
    NEED_DATA(model, "vocab/gpt-2.gguf");
    enum { TOKENS = 50256, LINE_END = 198 };
    struct dl_str ids = {0};
    for (int i = 0; i < TOKENS; i++)
        (void)dl_str_addf(&ids, "%d %d ", i, LINE_END);
    struct e2e r;
    e2e_run(&r, ids.v, ids.len, (const char *const[]){"tokenize", model, "--decode", NULL});
    E2E_STATUS(&r, 0);
    int lines = 0, spaces = 0, marks = 0;
    for (size_t i = 1; i < r.n_out; i++) {
        const char *two = r.out + i - 1;
        lines += two[1] == '\n';
        spaces += !memcmp(two, "\n ", 2);
        marks += !memcmp(two, "\xc4\xa0", 2) || !memcmp(two, "\xc4\x8a", 2);
    }
    assert_true(lines >= TOKENS && spaces > TOKENS / 2);
    assert_int_equal(marks, 0);
    e2e_free(&r);
    dl_str_finish(&ids);
}

static void test_tokenize_llama3(void **state)
{
    (void)state;
    NEED_BIN();
    vectors("llama3", 23);
}

static void test_tokenize_options(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, "models/stories260K.gguf");
    NEED_DATA(m, "models/stories260K.m");
    NEED_DATA(t, "models/stories260K.t");
    struct e2e a, b;
    E2E_IN(&a, "Once upon a time\n", "tokenize", gguf);
    E2E_STATUS(&a, 0);
    assert_int_equal(strncmp(a.out, "1 ", 2), 0); /* BOS */
    const char *const others[] = {m, t};
    for (size_t i = 0; i < 2; i++) {
        E2E(&b, "tokenize", others[i], "--prompt=Once upon a time\n");
        E2E_STATUS(&b, 0);
        assert_string_equal(a.out, b.out);
        e2e_free(&b);
    }
    E2E_IN(&b, "Once upon a time\n", "tokenize", gguf, "--no-bos");
    E2E_STATUS(&b, 0);
    assert_string_equal(a.out + 2, b.out); /* the line end of the text has its token */
    e2e_free(&b);
    E2E(&b, "tokenize", gguf, "--json", "-p", "Once");
    E2E_STATUS(&b, 0);
    E2E_HAS(b.out, "\"ids\":[1,");
    e2e_free(&b);
    e2e_free(&a);
    E2E_IN(&a, "1 2 banana", "tokenize", gguf, "--decode");
    E2E_FAILS(&a, 1, "banana");
    e2e_free(&a);
    E2E_IN(&a, "1 512", "tokenize", gguf, "--decode");
    E2E_FAILS(&a, 1, "512");
    e2e_free(&a);
    E2E_IN(&a, "99999999999999999999", "tokenize", gguf, "--decode");
    E2E_FAILS(&a, 1, "9999");
    e2e_free(&a);
}

static void test_inspect(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const archs[][2] = {{"refs/llama.gguf", "llama"},       {"refs/llama31-tied.gguf", "llama"},
                                           {"refs/qwen2.gguf", "qwen2"},       {"refs/qwen3.gguf", "qwen3"},
                                           {"refs/qwen3moe.gguf", "qwen3moe"}, {"models/stories260K.gguf", "llama"},
                                           {"models/stories260K.m", "llama"}};
    for (size_t i = 0; i < DL_COUNT_OF(archs); i++) {
        NEED_DATA(path, archs[i][0]);
        struct e2e r;
        char want[64];
        E2E(&r, "inspect", path);
        E2E_STATUS(&r, 0);
        assert_int_equal(r.n_err, 0);
        snprintf(want, sizeof want, "architecture  %s\n", archs[i][1]);
        E2E_HAS(r.out, want);
        E2E_HAS(r.out, "tokenizer     ");
        e2e_free(&r);
        E2E(&r, "inspect", path, "--json");
        E2E_STATUS(&r, 0);
        snprintf(want, sizeof want, "\"architecture\":\"%s\"", archs[i][1]);
        E2E_HAS(r.out, want);
        assert_ptr_equal(strchr(r.out, '\n'), r.out + r.n_out - 1); /* one object, one line */
        e2e_free(&r);
        E2E(&r, "inspect", path, "--verbose");
        E2E_STATUS(&r, 0);
        E2E_HAS(r.out, "  tensor ");
        e2e_free(&r);
    }
    NEED_DATA(stories, "models/stories260K.gguf");
    struct e2e r;
    E2E(&r, "inspect", stories, "--json");
    E2E_HAS(r.out, "\"dim\":64");
    E2E_HAS(r.out, "\"hidden_dim\":172");
    E2E_HAS(r.out, "\"layers\":5");
    E2E_HAS(r.out, "\"kv_heads\":4");
    E2E_HAS(r.out, "\"vocab\":512");
    e2e_free(&r);
    E2E(&r, "inspect", stories, "--verbose", "--json");
    E2E_HAS(r.out, "\"general.architecture\"");
    E2E_HAS(r.out, "\"blk.4.ffn_down.weight\"");
    e2e_free(&r);
}

static void test_inspect_vocabularies(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const files[][3] = {{"vocab/llama3.gguf", "128256 tokens", "\"template\":\"llama3\""},
                                           {"vocab/llama3.t", "128256 tokens", "\"kind\":\"bpe\""},
                                           {"vocab/gpt-2.gguf", "50257 tokens", "\"pre\":\"gpt-2\""},
                                           {"models/stories260K.t", "512 tokens", "\"bos\":1"}};
    for (size_t i = 0; i < DL_COUNT_OF(files); i++) {
        NEED_DATA(path, files[i][0]);
        struct e2e r;
        E2E(&r, "inspect", path);
        E2E_STATUS(&r, 0);
        E2E_HAS(r.out, files[i][1]);
        E2E_HAS(r.out, "weights       n"); /* none, or not usable: why */
        e2e_free(&r);
        E2E(&r, "inspect", path, "--json");
        E2E_STATUS(&r, 0);
        E2E_HAS(r.out, files[i][2]);
        e2e_free(&r);
    }
}

static void test_devices(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    E2E(&r, "devices", "--threads", "1");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "cpu: ");
    E2E_HAS(r.out, "threads         1\n");
    E2E_HAS(r.out, "read bandwidth  ");
    e2e_free(&r);
    E2E(&r, "devices", "--threads=1", "--json");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"device\":\"cpu\"");
    E2E_HAS(r.out, "\"threads\":1,");
    const char *rate = strstr(r.out, "\"read_bandwidth\":");
    assert_non_null(rate);
    double v = strtod(rate + 17, NULL);
    assert_true(v > 1e6 && v < 1e13); /* a busy machine leaves little of it */
    e2e_free(&r);
    E2E(&r, "devices", "--device", "abacus");
    E2E_FAILS(&r, 1, "abacus");
    e2e_free(&r);
    setenv("DLLAMA_THREADS", "many", 1);
    E2E(&r, "devices");
    unsetenv("DLLAMA_THREADS");
    E2E_FAILS(&r, 2, "DLLAMA_THREADS");
    e2e_free(&r);
    setenv("DLLAMA_THREADS", "2", 1);
    E2E(&r, "devices", "--json");
    unsetenv("DLLAMA_THREADS");
    E2E_HAS(r.out, "\"threads\":2,");
    e2e_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_named_pipes),
        cmocka_unit_test(test_not_a_model),
        cmocka_unit_test(test_tokenize_spm),
        cmocka_unit_test(test_tokenize_gpt2),
        cmocka_unit_test(test_tokenize_llama3),
        cmocka_unit_test(test_tokenize_options),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_inspect_vocabularies),
        cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
