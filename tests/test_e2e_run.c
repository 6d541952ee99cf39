/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_run.c: `run` and `perplexity` as a user sees them: where text goes, how an answer ends, what the JSON says,
 * interruptions and broken outputs. That the tokens are the right ones is looked at with small models.
 */
#include "e2e.h"

#include <math.h>
#include <sys/resource.h>

#define STORIES "models/stories260K.gguf"

static void test_text(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    NEED_DATA(m, "models/stories260K.m");
    NEED_DATA(file, "models/stories260K.once.greedy.txt");
    size_t n;
    char *want = e2e_slurp(file, &n);
    const char *const models[] = {gguf, m};
    for (size_t i = 0; i < 2; i++) {
        struct e2e r;
        E2E(&r, "run", models[i], "-p", "Once upon a time", "-n", "190", "--temp", "0");
        E2E_STATUS(&r, 0);
        /* The prompt is part of it; both stop where their number of tokens is reached. */
        assert_true(r.n_out > 300 && r.out[r.n_out - 1] == '\n');
        assert_memory_equal(r.out, want, DL_MIN(n, r.n_out) - 1);
        E2E_HAS(r.err, "190 generated");
        E2E_HAS(r.err, "finish: length");
        e2e_free(&r);
    }
    /* A model cut over two devices says the same. */
    struct e2e r;
    E2E(&r, "run", gguf, "-p", "Once upon a time", "-n", "60", "--temp", "0", "--device", "cpu,cpu", "--threads", "1");
    E2E_STATUS(&r, 0);
    assert_true(r.n_out > 100);
    assert_memory_equal(r.out, want, r.n_out - 1);
    e2e_free(&r);
    free(want);
}

/* The text goes on where it was, whether the GPU is lost in the prompt or later. */
static void test_lost_gpu(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    NEED_GPU();
    struct e2e want, r;
    E2E(&want, "run", gguf, "-p", "Once upon a time", "-n", "20", "--temp", "0", "--device", "cpu");
    E2E_STATUS(&want, 0);
    static const char *const after[] = {"1", "9"};
    for (size_t i = 0; i < DL_COUNT_OF(after); i++) {
        setenv("DLLAMA_VK_LOSE_AFTER", after[i], 1);
        E2E(&r, "run", gguf, "-p", "Once upon a time", "-n", "20", "--temp", "0", "--device", "vulkan:0", "--batch",
            "2");
        unsetenv("DLLAMA_VK_LOSE_AFTER");
        E2E_STATUS(&r, 0);
        assert_string_equal(r.out, want.out);
        E2E_HAS(r.err, "the device was lost");
        E2E_HAS(r.err, "going on with cpu");
        E2E_HAS(r.err, "20 generated");
        e2e_free(&r);
    }
    e2e_free(&want);
}

static void test_prompt_sources(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e want, r;
    char path[64];
    static const char text[] = "The big dog\n"; /* the line end of an editor or echo is not part of the prompt */
    e2e_temp(path, text, sizeof text - 1);
    E2E(&want, "run", gguf, "-p", "The big dog", "-n", "12", "--temp", "0");
    E2E_STATUS(&want, 0);
    assert_int_equal(strncmp(want.out, "The big dog ", 12), 0);
    E2E(&r, "run", gguf, "-f", path, "-n", "12", "--temp", "0", "--quiet");
    E2E_STATUS(&r, 0);
    assert_string_equal(r.out, want.out);
    assert_int_equal(r.n_err, 0); /* --quiet */
    e2e_free(&r);
    E2E_IN(&r, text, "run", gguf, "-n", "12", "--temp", "0");
    E2E_STATUS(&r, 0);
    assert_string_equal(r.out, want.out);
    e2e_free(&r);
    E2E_IN(&r, text, "run", gguf, "-f", "-", "-n12", "--temp=0", "--raw");
    E2E_STATUS(&r, 0);
    assert_string_equal(r.out, want.out);
    e2e_free(&r);
    e2e_free(&want);
    unlink(path);
    E2E(&r, "run", gguf);
    E2E_FAILS(&r, 2, "no prompt");
    e2e_free(&r);
}

static void test_ids_and_logits(void **state)
{
    (void)state;
    NEED_BIN();
    static const char *const names[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};
    for (size_t i = 0; i < DL_COUNT_OF(names); i++) {
        char file[3][64];
        snprintf(file[0], 64, "refs/%s.gguf", names[i]);
        snprintf(file[1], 64, "refs/%s.ids", names[i]);
        snprintf(file[2], 64, "refs/%s.f32", names[i]);
        NEED_DATA(model, file[0]);
        NEED_DATA(ids, file[1]);
        NEED_DATA(f32, file[2]);
        char path[64];
        e2e_temp(path, "", 0);
        struct e2e r;
        E2E(&r, "run", model, "--prompt-ids", "382,10,200,33,77,90,310,5,128,64,256,300,17,42", "-n", "16", "--temp",
            "0", "--ids", "--dump-logits", path);
        E2E_STATUS(&r, 0);
        size_t n, n_want, n_got;
        char *want_ids = e2e_slurp(ids, &n), *want = e2e_slurp(f32, &n_want), *got = e2e_slurp(path, &n_got);
        char *space = strstr(want_ids, " \n");
        if (space)
            strcpy(space, "\n");
        assert_string_equal(r.out, want_ids);
        assert_int_equal(n_got, n_want);
        double noise = 0, power = 0;
        for (size_t k = 0; k + 4 <= n_got; k += 4) {
            float a, b;
            memcpy(&a, want + k, 4);
            memcpy(&b, got + k, 4);
            noise += ((double)a - (double)b) * ((double)a - (double)b);
            power += (double)a * (double)a;
        }
        if (!(noise <= 1e-5 * power))
            fail_msg("%s: NMSE %g", names[i], noise / power);
        free(want_ids);
        free(want);
        free(got);
        e2e_free(&r);
        unlink(path);
    }
}

static void test_json(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e r;
    E2E(&r, "run", gguf, "-p", "Once upon a time", "-n", "5", "--temp", "0", "--json");
    E2E_STATUS(&r, 0);
    assert_ptr_equal(strchr(r.out, '\n'), r.out + r.n_out - 1);
    static const char *const parts[] = {
        "{\"prompt_tokens\":5,\"generated_tokens\":5,\"prefill_tok_s\":",
        "\"decode_tok_s\":",
        "\"ttft_ms\":",
        "\"load_ms\":",
        "\"finish_reason\":\"length\",\"text\":\", there was a",
        "\"collective\":null,\"wire_sums\":null,\"nodes\":[{\"name\":\"root\",\"devices\":[\"cpu\"],\"share\":",
        "\"compute_ms\":",
        "\"exchange_ms\":",
        "\"exchange_hidden_ms\":",
        "\"idle_ms\":",
        "\"sent_bytes\":",
        "\"received_bytes\":"};
    for (size_t i = 0; i < DL_COUNT_OF(parts); i++)
        E2E_HAS(r.out, parts[i]);
    e2e_free(&r);
    E2E(&r, "run", gguf, "-p", "Once upon a time", "-n", "0", "--json");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"generated_tokens\":0,");
    E2E_HAS(r.out, "\"finish_reason\":\"length\",\"text\":\"\"");
    e2e_free(&r);
}

static void test_stops(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e r;
    E2E(&r, "run", gguf, "-p", "Once upon a time", "-n", "100", "--temp", "0", "--stop", "zebra", "--stop",
        "play outside");
    E2E_STATUS(&r, 0);
    assert_string_equal(r.out, "Once upon a time, there was a little girl named Lily. She loved to \n");
    E2E_HAS(r.err, "finish: stop");
    e2e_free(&r);
    /* The end of the context is a result with a message, not a failure. */
    E2E(&r, "run", gguf, "-p", "Once upon a time", "--temp", "0", "--ctx", "32", "--json");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"finish_reason\":\"length\"");
    E2E_HAS(r.err, "context: full at 32 tokens");
    e2e_free(&r);
    E2E(&r, "run", gguf, "-p", "Once upon a time, there was a little girl named Lily.", "--ctx", "8");
    E2E_FAILS(&r, 1, "do not fit the context of 8"); /* and the text that is not continued is not shown */
    e2e_free(&r);
}

static void test_sampling(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e a, b;
    E2E(&a, "run", gguf, "-p", "Once", "-n", "40", "--temp", "1", "--seed", "7");
    E2E(&b, "run", gguf, "-p", "Once", "-n", "40", "--temp", "1", "--seed", "7", "--threads", "1");
    E2E_STATUS(&a, 0);
    E2E_STATUS(&b, 0);
    assert_string_equal(a.out, b.out);
    e2e_free(&b);
    E2E(&b, "run", gguf, "-p", "Once", "-n", "40", "--temp", "1", "--seed", "8");
    assert_string_not_equal(a.out, b.out);
    e2e_free(&b);
    e2e_free(&a);
    /* One candidate is left: greedy, whatever the temperature. */
    E2E(&a, "run", gguf, "-p", "Once", "-n", "40", "--temp", "0");
    E2E(&b, "run", gguf, "-p", "Once", "-n", "40", "--temp", "2", "--top-k", "1");
    assert_string_equal(a.out, b.out);
    e2e_free(&a);
    e2e_free(&b);
}

static void test_templates(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e r;
    E2E(&r, "run", gguf, "-p", "hello", "--chat");
    E2E_FAILS(&r, 1, "--chat-template");
    e2e_free(&r);
    E2E(&r, "run", gguf, "-p", "hello", "--system", "be brief");
    E2E_FAILS(&r, 1, "has no chat template");
    e2e_free(&r);
    /* A chat prints the answer alone. */
    E2E(&r, "run", gguf, "-p", "hello", "--chat-template", "llama2", "-n", "8", "--temp", "0");
    E2E_STATUS(&r, 0);
    assert_null(strstr(r.out, "hello"));
    assert_null(strstr(r.out, "INST"));
    e2e_free(&r);
}

/* Starts an endless generation and reads some of it. */
static void start_endless(struct e2e_proc *p, const char *model)
{
    e2e_start(p,
              (const char *const[]){"run", model, "-p", "Once", "--temp", "1", "--ctx", "100000", "--top-p", "1", NULL},
              NULL);
    char buf[64];
    size_t n = 0;
    while (n < sizeof buf) {
        ssize_t got = read(p->out, buf + n, sizeof buf - n);
        assert_true(got > 0);
        n += (size_t)got;
    }
}

static void test_interrupt(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e_proc p;
    struct e2e r;
    start_endless(&p, gguf);
    kill(p.pid, SIGINT);
    e2e_finish(&p, NULL, 0, &r);
    E2E_STATUS(&r, 0);
    E2E_HAS(r.err, "finish: cancelled");
    e2e_free(&r);
}

/* A second Ctrl-C does not wait for anything: here a large batch of the prompt is under way. */
static void test_second_interrupt(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
#ifdef __SANITIZE_THREAD__ /* the thread that was to hear of it computes, and calls nothing */
    fputs("SKIPPED PART: ThreadSanitizer holds signals back, so nobody is killed in a batch\n", stderr);
    skip();
#endif
    size_t n = 40000;
    char path[64], *text = malloc(n), buf[64];
    assert_non_null(text);
    for (size_t i = 0; i < n; i++)
        text[i] = "zqx "[i % 4];
    e2e_temp(path, text, n);
    free(text);
    struct e2e_proc p;
    struct e2e r;
    uint64_t start = dl_now_ns();
    e2e_start(&p,
              (const char *const[]){"run", gguf, "-f", path, "--ctx", "100000", "--batch", "65536", "--threads", "1",
                                    "--quiet", NULL},
              NULL);
    assert_true(read(p.out, buf, sizeof buf) > 0); /* the prompt is shown, its evaluation begins */
    e2e_catches(&p, SIGINT);
    usleep(200000);
    kill(p.pid, SIGINT);
    usleep(200000);
    assert_int_equal(waitpid(p.pid, NULL, WNOHANG), 0); /* the first one waits for the batch */
    kill(p.pid, SIGINT);
    e2e_finish(&p, NULL, 0, &r);
    E2E_STATUS(&r, E2E_SIGNALLED + SIGINT);
    assert_true(dl_now_ns() - start < (uint64_t)30 * 1000000000u);
    e2e_free(&r);
    unlink(path);
}

static void test_broken_outputs(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    struct e2e_proc p;
    struct e2e r;
    /* The reader goes away: the end, without a complaint. */
    start_endless(&p, gguf);
    close(p.out);
    p.out = -1;
    e2e_finish(&p, NULL, 0, &r);
    E2E_STATUS(&r, 0);
    assert_null(strstr(r.err, "stdout"));
    e2e_free(&r);
    if (access("/dev/full", W_OK))
        skip();
    static const char *const cases[][8] = {{"run", "MODEL", "-p", "Once", "-n", "3", "--temp", NULL},
                                           {"tokenize", "MODEL", "-p", "Once"},
                                           {"inspect", "MODEL"},
                                           {"--help"}};
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        const char *argv[10] = {0};
        for (size_t k = 0; k < 8 && cases[i][k]; k++)
            argv[k] = strcmp(cases[i][k], "MODEL") != 0 ? cases[i][k] : gguf;
        if (!i)
            argv[7] = "0";
        e2e_start(&p, argv, "/dev/full");
        e2e_finish(&p, NULL, 0, &r);
        E2E_FAILS(&r, 1, "stdout: cannot write");
        e2e_free(&r);
    }
    E2E(&r, "run", gguf, "-p", "Once", "-n", "3", "--json", "--dump-logits", "/dev/full");
    E2E_FAILS(&r, 1, "/dev/full: cannot write");
    e2e_free(&r);
}

/* The number of a closed stdout must not go to the next file that is opened: the text would be among the logits. */
static void test_closed_output(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    char path[64];
    e2e_temp(path, "", 0);
    struct e2e_proc p;
    struct e2e r;
    e2e_start(&p,
              (const char *const[]){"run", gguf, "-p", "Once", "-n", "3", "--temp", "0", "--dump-logits", path, NULL},
              "");
    e2e_finish(&p, NULL, 0, &r);
    E2E_FAILS(&r, 1, "stdout: cannot write");
    e2e_free(&r);
    size_t n;
    char *dump = e2e_slurp(path, &n);
    assert_null(strstr(dump, "Once"));
    free(dump);
    /* A file that may not grow is a failure with a word to it, not a death by signal. */
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){4096, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    E2E(&r, "run", gguf, "-p", "Once", "-n", "9", "--json", "--dump-logits", path);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    E2E_FAILS(&r, 1, "cannot write: File too large");
    e2e_free(&r);
    unlink(path);
}

static void test_demo(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    E2E(&r, "run");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.err, "demo model");
    size_t words = 0;
    for (char *p = r.out; *p; p++)
        words += *p == ' ';
    assert_in_range(words, 80, 200);
    E2E_HAS(r.err, "finish: stop");
    e2e_free(&r);
    E2E(&r, "run", "--quiet");
    assert_int_equal(r.n_err, 0);
    e2e_free(&r);
}

/* -log p of `target` after `prefix`, from the logits that run dumps: another way through the engine than perplexity's. */
static double nll_after(const char *model, const char *prefix, int target)
{
    char path[64];
    e2e_temp(path, "", 0);
    struct e2e r;
    E2E(&r, "run", model, "--prompt-ids", prefix, "-n", "0", "--dump-logits", path);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    size_t n;
    char *bytes = e2e_slurp(path, &n);
    unlink(path);
    assert_int_equal(n, 512 * sizeof(float));
    float *logits = (float *)(void *)bytes;
    double sum = 0;
    for (int i = 0; i < 512; i++)
        sum += exp((double)logits[i]);
    double nll = log(sum) - (double)logits[target];
    free(bytes);
    return nll;
}

static void test_perplexity(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(gguf, STORIES);
    static const char text[] = "Once upon a time, there was";
    struct e2e ids, r;
    E2E(&ids, "tokenize", gguf, "--no-bos", "-p", text);
    E2E_STATUS(&ids, 0);
    double sum = 0;
    size_t scored = 0;
    /* Chunks of 5: BOS and four tokens; each chunk begins anew. */
    char prefix[128] = "1";
    for (char *p = ids.out, *end; *p && *p != '\n'; p = end + (*end == ' ')) {
        long id = strtol(p, &end, 10);
        if (scored % 4 == 0)
            snprintf(prefix, sizeof prefix, "1");
        sum += nll_after(gguf, prefix, (int)id);
        scored++;
        snprintf(prefix + strlen(prefix), sizeof prefix - strlen(prefix), ",%ld", id);
    }
    e2e_free(&ids);
    assert_true(scored >= 6 && scored % 4); /* the last chunk is shorter */
    E2E_IN(&r, text, "perplexity", gguf, "-f", "-", "--ctx", "5", "--json");
    E2E_STATUS(&r, 0);
    char want[64];
    snprintf(want, sizeof want, "{\"tokens\":%zu,\"perplexity\":", scored);
    E2E_HAS(r.out, want);
    const char *nll = strstr(r.out, "\"nll\":"), *ppl = strstr(r.out, "\"perplexity\":");
    assert_non_null(nll);
    double got = strtod(nll + 6, NULL), mean = sum / (double)scored;
    if (fabs(got - mean) > 1e-4)
        fail_msg("nll %.9g, from single steps %.9g", got, mean);
    assert_true(fabs(strtod(ppl + 13, NULL) - exp(got)) < 1e-6 * exp(got));
    e2e_free(&r);
    E2E_IN(&r, text, "perplexity", gguf, "-f", "-", "--ctx", "5", "--batch", "2");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "perplexity ");
    assert_true(fabs(strtod(r.out + 11, NULL) - exp(got)) < 1e-4 * exp(got));
    e2e_free(&r);
    E2E(&r, "perplexity", gguf, "-f", "/dev/null");
    E2E_FAILS(&r, 1, "nothing to predict");
    e2e_free(&r);
    /* A model that knows one position: BOS fills it. */
    size_t n;
    char *model = e2e_slurp(gguf, &n), path[64];
    static const char key[] = "llama.context_length";
    for (size_t i = 0; i + 64 < n; i++)
        if (!memcmp(model + i, key, sizeof key - 1)) {
            memcpy(model + i + sizeof key - 1 + 4, "\1\0\0\0", 4);
            break;
        }
    e2e_temp(path, model, n);
    free(model);
    E2E_IN(&r, text, "perplexity", path, "-f", "-");
    E2E_FAILS(&r, 1, "needs a context of 2");
    e2e_free(&r);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),           cmocka_unit_test(test_lost_gpu),
        cmocka_unit_test(test_prompt_sources), cmocka_unit_test(test_ids_and_logits),
        cmocka_unit_test(test_json),           cmocka_unit_test(test_stops),
        cmocka_unit_test(test_sampling),       cmocka_unit_test(test_templates),
        cmocka_unit_test(test_interrupt),      cmocka_unit_test(test_second_interrupt),
        cmocka_unit_test(test_broken_outputs), cmocka_unit_test(test_closed_output),
        cmocka_unit_test(test_demo),           cmocka_unit_test(test_perplexity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
