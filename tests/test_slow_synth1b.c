/* SPDX-License-Identifier: MIT
 *
 * tests/test_slow_synth1b.c: a made-up model of the size of Llama 3.2 1B, from both file formats: the same tokens, and resident
 * memory within 1.15 x the file plus the KV cache. Takes minutes, python3 and 4 GB in $TMPDIR: runs only with DLLAMA_SLOW=1.
 */
#include "common.h"

#include <sys/resource.h>

#include "e2e.h"
#include "tempdir.h"

#define CTX 512
#define KV_BYTES (16ull * 2 * CTX * 8 * 64 * 2) /* layers, K and V, positions, KV heads, head_dim, f16 */

static uint64_t file_bytes(const char *path)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    long n = ftell(f);
    fclose(f);
    assert_true(n > 1000000000);
    return (uint64_t)n;
}

/* The most that any program started so far held; the one that makes the files needs far less than those that read them. */
static uint64_t peak_bytes(void)
{
    struct rusage u;
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &u), 0);
    return (uint64_t)u.ru_maxrss * 1024;
}

static void run_1b(void **state)
{
    (void)state;
    const char *slow = getenv("DLLAMA_SLOW");
    if (!slow || strcmp(slow, "1")) {
        fprintf(stderr, "SKIPPED PART: the 1B model, set DLLAMA_SLOW=1 (minutes, 4 GB in $TMPDIR)\n");
        skip();
    }
    NEED_BIN();
    NEED_DATA(tool, "tools/synth.py");
    char dir[TEMPDIR_LEN], command[2048], path[600];
    make_dir(dir);
    snprintf(command, sizeof command, "python3 '%s' llama3.2-1b '%s'", tool, dir);
    assert_int_equal(system(command), 0);

    static const char *const formats[] = {"gguf", "m"};
    char *first = NULL;
    for (size_t i = 0; i < DL_COUNT_OF(formats); i++) {
        snprintf(path, sizeof path, "%s/llama3.2-1b.%s", dir, formats[i]);
        uint64_t bytes = file_bytes(path);
        struct e2e r;
        e2e_run(&r, NULL, 0,
                (const char *const[]){"run", path, "--prompt-ids", "5,9,77,300,12,4000,128000", "-n", "12", "--temp", "0", "--ids",
                                 "--ctx", "512", NULL});
        if (r.status)
            fail_msg("%s: exit status %d: %s", path, r.status, r.err);
        uint64_t peak = peak_bytes(), limit = bytes + bytes * 15 / 100 + KV_BYTES;
        fprintf(stderr, "%s: %.0f MiB, at most %.0f MiB resident\n%s", formats[i], (double)bytes / 0x1p20,
                (double)peak / 0x1p20, r.out);
        if (!first)
            first = strdup(r.out);
        assert_string_equal(r.out, first);
        assert_true(peak > 0 && peak <= limit);
        e2e_free(&r);
    }
    free(first);
    remove_dir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(run_1b)};
    return cmocka_run_group_tests_name("slow_synth1b", tests, NULL, NULL);
}
