/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_models.c: the program against what other programs made of the same models: texts of llama2.c for
 * stories260K, ids and logits of an independent engine for one small model per architecture, token ids of llama.cpp for whole
 * vocabularies; and the demo model against its text. For every kernel set and number of threads that must not matter.
 */
#include "common.h"

#include <math.h>

#include "dl/model.h"
#include "cpu_sets.h"
#include "e2e.h"
#include "tempdir.h"

/* Sanitized programs are slow to start: they get a sample of the many small cases. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SAMPLE 9
#else
#define SAMPLE 1
#endif
#if defined(__SANITIZE_THREAD__) /* 50 times slower: what is about threads, once */
#define FEW 1
#else
#define FEW 0
#endif

static bool is_fast(void)
{
    return has_cpu_set(cpu_sets[0]);
}

static void assert_ok(const struct e2e *r, const char *what)
{
    if (r->status)
        fail_msg("%s: exit status %d: %s", what, r->status, r->err);
}

/* ------------------------------------------------------------------------------------------------ stories */

static const struct story {
    const char *prompt, *text;
} stories[] = {
    {"Once upon a time", "models/stories260K.once.greedy.txt"},
    {"The big dog", "models/stories260K.dog.greedy.txt"},
    {"", "models/stories260K.bos.greedy.txt"},
};

static size_t without_newline(const char *v, size_t n)
{
    return n && v[n - 1] == '\n' ? n - 1 : n;
}

/* Both texts as far as both go, which is to the end of one of them. */
static void assert_story(const struct e2e *r, const struct story *story, const char *what)
{
    assert_ok(r, what);
    size_t n_want;
    char *want = e2e_slurp(test_data(story->text), &n_want);
    size_t n = DL_MIN(without_newline(want, n_want), without_newline(r->out, r->n_out));
    assert_true(n > 300);
    if (memcmp(r->out, want, n))
        fail_msg("%s, prompt \"%s\":\nwant %.*s\ngot  %.*s", what, story->prompt, (int)n, want, (int)n, r->out);
    free(want);
}

static void tell_stories(const char *model, const char *isa, const char *threads)
{
    setenv("DLLAMA_CPU", isa, 1);
    for (size_t i = 0; i < DL_COUNT_OF(stories); i++) {
        struct e2e r;
        char what[128];
        snprintf(what, sizeof what, "%s, %s, %s threads", model, isa, threads);
        e2e_run(&r, NULL, 0,
                (const char *const[]){"run", test_data(model), "-p", stories[i].prompt, "-n", "190", "--temp", "0",
                                      "--threads", threads, NULL});
        assert_story(&r, &stories[i], what);
        e2e_free(&r);
    }
    unsetenv("DLLAMA_CPU");
}

static void stories_from_both_formats(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "models/stories260K.gguf");
    (void)data;
    static const char *const models[] = {"models/stories260K.gguf", "models/stories260K.m"};
    static const char *const threads[] = {"1", "2", "3"};
    for (size_t m = 0; m < DL_COUNT_OF(models); m++)
        for (size_t t = FEW ? 2 : 0; t < DL_COUNT_OF(threads); t++) {
            if (!FEW || !is_fast())
                tell_stories(models[m], "ref", threads[t]);
            if (is_fast())
                tell_stories(models[m], cpu_sets[0], threads[t]);
        }
}

/* The result must not depend on how the prompt is cut into batches. */
static void stories_for_any_batch_size(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    size_t n;
    char *text = e2e_slurp(test_data(stories[0].text), &n);
    text[300] = 0;
    char *first = NULL;
    static const char *const batches[] = {"1", "2", "7", "128"};
    for (size_t i = 0; i < DL_COUNT_OF(batches); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0,
                (const char *const[]){"run", model, "-p", text, "-n", "20", "--temp", "0", "--ids", "--batch",
                                      batches[i], NULL});
        assert_ok(&r, batches[i]);
        if (!first)
            first = strdup(r.out);
        assert_string_equal(r.out, first);
        e2e_free(&r);
    }
    free(first);
    free(text);
}

/* ------------------------------------------------------------------------------------------- refs: logits */

#define REF_PROMPT "382,10,200,33,77,90,310,5,128,64,256,300,17,42"
#define REF_VOCAB 384
#define REF_ROWS 17

static const char *const refs[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};

static double nmse(const float *got, const float *want, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        diff += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return diff / norm;
}

/* Returns the logits: REF_ROWS * REF_VOCAB floats. */
static char *one_ref(const char *name, const char *isa, const char *dir)
{
    char file[64], dump[600], key[64];
    snprintf(file, sizeof file, "refs/%s.gguf", name);
    const char *model = test_data(file);
    snprintf(file, sizeof file, "refs/%s.ids", name);
    size_t n_ids, n_logits, n;
    char *ids = e2e_slurp(test_data(file), &n_ids);
    while (n_ids && (ids[n_ids - 1] == '\n' || ids[n_ids - 1] == ' '))
        ids[--n_ids] = 0;
    snprintf(file, sizeof file, "refs/%s.f32", name);
    char *logits = e2e_slurp(test_data(file), &n_logits), *first = NULL;
    assert_int_equal(n_logits, REF_ROWS * REF_VOCAB * sizeof(float));

    setenv("DLLAMA_CPU", isa, 1);
    static const char *const threads[] = {"1", "2", "3", "3"}; /* and twice the same */
    for (size_t t = 0; t < DL_COUNT_OF(threads) - (FEW ? 2 : 0); t++) {
        struct e2e r;
        snprintf(key, sizeof key, "%s, %s, %s threads", name, isa, threads[t]);
        snprintf(dump, sizeof dump, "%s/logits.f32", dir);
        remove(dump);
        e2e_run(&r, NULL, 0,
                (const char *const[]){"run", model, "--prompt-ids", REF_PROMPT, "-n", "16", "--temp", "0", "--ids",
                                      "--dump-logits", dump, "--threads", threads[t], NULL});
        assert_ok(&r, key);
        r.out[without_newline(r.out, r.n_out)] = 0;
        if (strcmp(r.out, ids))
            fail_msg("%s: ids\nwant %s\ngot  %s", key, ids, r.out);
        char *got = e2e_slurp(dump, &n);
        assert_int_equal(n, n_logits);
        for (size_t row = 0; !first && row < REF_ROWS; row++) {
            double e = nmse((const float *)(const void *)got + row * REF_VOCAB,
                            (const float *)(const void *)logits + row * REF_VOCAB, REF_VOCAB);
            if (!(e <= 1e-5))
                fail_msg("%s: logits row %zu: NMSE %g", key, row, e);
        }
        if (!first)
            first = got;
        else {
            if (memcmp(first, got, n))
                fail_msg("%s: logits differ from those with 1 thread", key);
            free(got);
        }
        e2e_free(&r);
    }
    remove(dump);
    unsetenv("DLLAMA_CPU");
    free(logits);
    free(ids);
    return first;
}

static void refs_ids_and_logits(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "refs/llama.gguf");
    (void)data;
    char dir[TEMPDIR_LEN];
    make_dir(dir);
    for (size_t i = 0; i < DL_COUNT_OF(refs); i++) {
        free(one_ref(refs[i], "ref", dir));
        if (!is_fast())
            continue;
        char *first = one_ref(refs[i], cpu_sets[0], dir);
        for (size_t j = 1; j < DL_COUNT_OF(cpu_sets); j++) { /* nodes of one cluster may have different ones */
            if (!has_cpu_set(cpu_sets[j])) {
                fprintf(stderr, "SKIPPED PART: this CPU has no %s\n", cpu_sets[j]);
                continue;
            }
            char *same = one_ref(refs[i], cpu_sets[j], dir);
            if (memcmp(same, first, REF_ROWS * REF_VOCAB * sizeof(float)))
                fail_msg("%s: logits of %s are not those of %s", refs[i], cpu_sets[j], cpu_sets[0]);
            free(same);
        }
        free(first);
    }
    remove_dir(dir);
}

/* -------------------------------------------------------------------------------------------- tokenization */

#define SEPARATOR "\n__ggml_vocab_test__\n"

/* Line `at` of the expected ids, without spaces at its ends. */
static char *ids_line(char **at)
{
    char *line = *at, *end = strchr(line, '\n');
    assert_non_null(end);
    *at = end + 1;
    while (*line == ' ')
        line++;
    while (end > line && end[-1] == ' ')
        end--;
    *end = 0;
    return line;
}

static void one_vocab(const char *vectors, const char *model)
{
    char file[64];
    snprintf(file, sizeof file, "vocab/%s.inp", vectors);
    size_t n_inp, n_out;
    char *inp = e2e_slurp(test_data(file), &n_inp);
    snprintf(file, sizeof file, "vocab/%s.out", vectors);
    char *out = e2e_slurp(test_data(file), &n_out), *line = out, *text = inp;
    unsigned n = 0;
    for (char *end; (end = strstr(text, SEPARATOR)); text = end + strlen(SEPARATOR), n++) {
        size_t len = (size_t)(end - text);
        char *want = ids_line(&line);
        if (n % SAMPLE)
            continue;
        struct e2e r, back;
        e2e_run(&r, text, len, (const char *const[]){"tokenize", test_data(model), "--no-bos", "--no-special", NULL});
        assert_ok(&r, model);
        r.out[without_newline(r.out, r.n_out)] = 0;
        if (strcmp(r.out, want))
            fail_msg("%s, text %u \"%.*s\":\nwant %s\ngot  %s", model, n, (int)len, text, want, r.out);
        e2e_run(&back, r.out, strlen(r.out), (const char *const[]){"tokenize", test_data(model), "--decode", NULL});
        assert_ok(&back, model);
        if (back.n_out != len || memcmp(back.out, text, len))
            fail_msg("%s, text %u: \"%.*s\" came back as \"%.*s\"", model, n, (int)len, text, (int)back.n_out,
                     back.out);
        e2e_free(&back);
        e2e_free(&r);
    }
    assert_true(n > 40);
    assert_ptr_equal(line, out + n_out);
    free(inp);
    free(out);
}

static void vocab_llama3_gguf(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "vocab/llama3.gguf");
    (void)data;
    one_vocab("llama3", "vocab/llama3.gguf");
}

static void vocab_llama3_t(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "vocab/llama3.t");
    (void)data;
    one_vocab("llama3", "vocab/llama3.t");
}

static void vocab_spm(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "vocab/llama-spm.gguf");
    (void)data;
    one_vocab("llama-spm", "vocab/llama-spm.gguf");
}

static void vocab_gpt2(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(data, "vocab/gpt-2.gguf");
    (void)data;
    one_vocab("gpt-2", "vocab/gpt-2.gguf");
}

/* --------------------------------------------------------------------------------------- Q40, both formats */

static void synthetic_from_both_formats(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(tool, "tools/synth.py");
    char dir[TEMPDIR_LEN], command[2048], m[600], gguf[600];
    make_dir(dir);
    snprintf(command, sizeof command, "python3 '%s' tiny '%s' >/dev/null", tool, dir);
    if (system("python3 -c '' 2>/dev/null")) {
        fprintf(stderr, "SKIPPED PART: no python3 to make a synthetic model\n");
        remove_dir(dir);
        skip();
    }
    assert_int_equal(system(command), 0);
    snprintf(m, sizeof m, "%s/tiny.m", dir);
    snprintf(gguf, sizeof gguf, "%s/tiny.gguf", dir);

    const char *const isas[] = {"ref", cpu_sets[0]};
    for (size_t i = 0; i < DL_COUNT_OF(isas); i++) {
        if (i && !is_fast())
            continue;
        setenv("DLLAMA_CPU", isas[i], 1);
        struct e2e a, b;
        e2e_run(
            &a, NULL, 0,
            (const char *const[]){"run", m, "--prompt-ids", "5,9,77,300,12", "-n", "40", "--temp", "0", "--ids", NULL});
        e2e_run(&b, NULL, 0,
                (const char *const[]){"run", gguf, "--prompt-ids", "5,9,77,300,12", "-n", "40", "--temp", "0", "--ids",
                                      NULL});
        unsetenv("DLLAMA_CPU");
        assert_ok(&a, m);
        assert_ok(&b, gguf);
        assert_true(a.n_out > 40);
        assert_string_equal(a.out, b.out);
        e2e_free(&a);
        e2e_free(&b);
    }
    remove_dir(dir);
}

/* ----------------------------------------------------------------------------------------------- the demo */

static void demo_recites(void **state)
{
    (void)state;
    NEED_BIN();
    const char *const isas[] = {"ref", cpu_sets[0]};
    for (size_t i = 0; i < DL_COUNT_OF(isas); i++) {
        if (i && !is_fast())
            continue;
        setenv("DLLAMA_CPU", isas[i], 1);
        struct e2e r;
        E2E(&r, "run");
        unsetenv("DLLAMA_CPU");
        assert_ok(&r, isas[i]);
        r.out[without_newline(r.out, r.n_out)] = 0;
        assert_string_equal(r.out, dl_demo_text());
        assert_non_null(strstr(r.err, "demo"));
        e2e_free(&r);
    }
}

/* -------------------------------------------------------------------------------------------- broken files */

/* One line on stderr that names the file, nothing on stdout, exit status 1. */
static void assert_refused(const char *path)
{
    struct e2e r;
    e2e_run(&r, NULL, 0, (const char *const[]){"run", path, "-p", "x", "-n", "1", "--quiet", NULL});
    size_t lines = 0;
    for (const char *p = r.err; (p = strchr(p, '\n')); p++)
        lines++;
    if (r.status != 1 || lines != 1 || strncmp(r.err, "dllama-vk: ", 11) || r.n_out)
        fail_msg("%s: exit status %d, %zu bytes on stdout, stderr: %s", path, r.status, r.n_out, r.err);
    e2e_free(&r);
}

static void broken_files_are_refused(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    char dir[TEMPDIR_LEN], path[600];
    make_dir(dir);
    size_t n;
    char *bytes = e2e_slurp(model, &n);
    size_t cuts[] = {1, 4, 30, 5000, n / 2, n - 1};
    snprintf(path, sizeof path, "%s/cut.gguf", dir);
    for (size_t i = 0; i < DL_COUNT_OF(cuts); i++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, cuts[i], f), cuts[i]);
        assert_int_equal(fclose(f), 0);
        assert_refused(path);
    }
    free(bytes);
    assert_int_equal(truncate(path, 0), 0);
    assert_refused(path);
    assert_refused(dir);
    snprintf(path, sizeof path, "%s/none.gguf", dir);
    assert_refused(path);
    remove_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(demo_recites),
        cmocka_unit_test(stories_from_both_formats),
        cmocka_unit_test(stories_for_any_batch_size),
        cmocka_unit_test(refs_ids_and_logits),
        cmocka_unit_test(vocab_llama3_gguf),
        cmocka_unit_test(vocab_llama3_t),
        cmocka_unit_test(vocab_spm),
        cmocka_unit_test(vocab_gpt2),
        cmocka_unit_test(synthetic_from_both_formats),
        cmocka_unit_test(broken_files_are_refused),
    };
    return cmocka_run_group_tests_name("e2e_models", tests, NULL, NULL);
}
