/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_glsl.c: the shader cache compiles nothing twice and believes no broken file; sources from a folder; includes; messages.
 * Needs no Vulkan device.
 */
#include "common.h"

#include <sys/stat.h>

#include "glsl.h"
#include "tempdir.h"

static char cache[TEMPDIR_LEN];

static int make_cache(void **state)
{
    (void)state;
    make_dir(cache);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    unsetenv("DLLAMA_SHADER_DIR");
    return 0;
}

static int drop_cache(void **state)
{
    (void)state;
    unsetenv("DLLAMA_SHADER_DIR");
    remove_dir(cache);
    return 0;
}

/* ---------------------------------------------------------------------------------------------------- the cache */

#define ADD "add.comp", "COUNT=0;LANES=128;WIRE=0;OUT=0"

static void get(const char *name, const char *defines, struct vk_spirv *out)
{
    assert_int_equal(vk_glsl_compile(name, defines, out), 0);
    assert_true(out->n > 5 && out->words[0] == 0x07230203u);
}

static void path_of_only_file(char path[2 * TEMPDIR_LEN])
{
    DIR *d = opendir(cache);
    unsigned n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (!strncmp(e->d_name, "spirv-", 6)) {
            snprintf(path, 2 * TEMPDIR_LEN, "%s/%s", cache, e->d_name);
            n++;
        }
    closedir(d);
    assert_int_equal(n, 1);
}

static long size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (long)st.st_size;
}

/* Compiles ADD and says whether glslang had to do it. */
static bool compiles(struct vk_spirv *out)
{
    struct vk_glsl_stats before = vk_glsl_stats();
    get(ADD, out);
    struct vk_glsl_stats after = vk_glsl_stats();
    assert_int_equal(after.compiled - before.compiled + after.cached - before.cached, 1);
    return after.compiled > before.compiled;
}

static void test_second_time(void **state)
{
    (void)state;
    struct vk_spirv a, b;
    assert_true(compiles(&a));
    assert_false(compiles(&b));
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.words, b.words, a.n * 4);
    vk_spirv_finish(&a);
    vk_spirv_finish(&b);
    /* Another define is another kernel. */
    struct vk_glsl_stats before = vk_glsl_stats();
    get("add.comp", "COUNT=0;LANES=64;WIRE=0;OUT=0", &a);
    assert_int_equal(vk_glsl_stats().compiled, before.compiled + 1);
    vk_spirv_finish(&a);
}

static void test_broken_files(void **state)
{
    (void)state;
    struct vk_spirv good, again;
    struct test_log log = {0};
    char path[2 * TEMPDIR_LEN];
    assert_true(compiles(&good));
    path_of_only_file(path);
    long size = size_of(path);
    assert_true(size > 100);
    dl_log_set(test_log_sink, &log, DL_LOG_DEBUG);
    enum { EMPTY, SHORT, HALF, LONGER, HEAD, KEY, LENGTH, WORDS, FOREIGN, KINDS };
    for (int kind = 0; kind < KINDS; kind++) {
        char *bytes = dl_xcalloc((size_t)size + 8, 1);
        FILE *f = fopen(path, "rb");
        assert_non_null(f);
        assert_int_equal(fread(bytes, 1, (size_t)size, f), size);
        fclose(f);
        long n = kind == EMPTY ? 0 : kind == SHORT ? 7 : kind == HALF ? size / 2 : kind == LONGER ? size + 4 : size;
        if (kind == FOREIGN)
            memset(bytes, 'x', (size_t)size);
        const long flip[KINDS] = {[HEAD] = 3, [KEY] = 12, [LENGTH] = 44, [WORDS] = size - 5};
        if (flip[kind])
            bytes[flip[kind]] ^= 0x40;
        f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, (size_t)n, f), n);
        fclose(f);
        free(bytes);
        if (!compiles(&again))
            fail_msg("a broken file of kind %d was believed", kind);
        assert_int_equal(again.n, good.n);
        assert_memory_equal(again.words, good.words, good.n * 4);
        vk_spirv_finish(&again);
        assert_int_equal(size_of(path), size);
        assert_false(compiles(&again)); /* it has been replaced */
        vk_spirv_finish(&again);
    }
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 0);
    vk_spirv_finish(&good);
}

static void test_unwritable(void **state)
{
    (void)state;
    struct vk_spirv s;
    struct test_log log = {0};
    char path[TEMPDIR_LEN + 8];
    snprintf(path, sizeof path, "%s/file", cache);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fclose(f);
    setenv("DLLAMA_CACHE_DIR", path, 1); /* no folder, and cannot become one */
    dl_log_set(test_log_sink, &log, DL_LOG_DEBUG);
    for (int i = 0; i < 2; i++) {
        assert_true(compiles(&s));
        vk_spirv_finish(&s);
    }
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 0);
}

/* --------------------------------------------------------------------------------------------------- sources */

static void put(const char *name, const char *text)
{
    char path[2 * TEMPDIR_LEN];
    snprintf(path, sizeof path, "%s/%s", cache, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static void refuses(const char *name, const char *defines, const char *part_a, const char *part_b)
{
    struct test_log log = {0};
    struct vk_spirv s;
    dl_log_set(test_log_sink, &log, DL_LOG_WARN);
    int err = vk_glsl_compile(name, defines, &s);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_true(err < 0);
    assert_null(s.words);
    assert_int_equal(log.n, 1);
    if (!strstr(log.last, part_a) || !strstr(log.last, part_b))
        fail_msg("\"%s\" says neither or not both of \"%s\" and \"%s\"", log.last, part_a, part_b);
}

#define HEAD "#version 450\n"
#define BODY "layout(local_size_x = 1) in;\nlayout(binding = 0) buffer B { uint b[]; };\n"

static void test_own_folder(void **state)
{
    (void)state;
    struct vk_spirv a, b;
    setenv("DLLAMA_SHADER_DIR", cache, 1);
    get(ADD, &a); /* the folder lacks it: from the binary */
    put("add.comp", HEAD BODY "void main() { b[0] = COUNT + WIRE; }\n");
    get(ADD, &b);
    assert_true(a.n != b.n);
    vk_spirv_finish(&a);
    vk_spirv_finish(&b);
    put("own.comp",
        HEAD "#include \"once.glsl\"\n#include \"once.glsl\"\n" BODY "void main() { b[0] = once() + N; }\n");
    put("once.glsl", "uint once() { return 1u; }\n");
    get("own.comp", "N=7", &a);
    vk_spirv_finish(&a);
}

static void test_errors(void **state)
{
    (void)state;
    setenv("DLLAMA_SHADER_DIR", cache, 1);
    refuses("none.comp", "", "none.comp", "none of this name");
    refuses("../add.comp", "", "../add.comp", "no name of a shader");
    refuses("add.comp", "LANES=128\n#extension", "add.comp", "wants NAME=value");
    refuses("add.comp", "1A=3", "add.comp", "wants NAME=value");
    put("noversion.comp", "void main() {}\n");
    refuses("noversion.comp", "", "noversion.comp", "#version");
    /* Lines are those of the files, whatever was pasted before them. */
    put("line.comp", HEAD "#include \"fine.glsl\"\n" BODY "\nvoid main() { b[0] = nonsense; }\n");
    put("fine.glsl", "uint fine() { return 1u; }\n\n\n");
    refuses("line.comp", "A=1;Z=2", "line.comp:6: ", "nonsense");
    put("outer.comp", HEAD "#include \"inner.glsl\"\n" BODY "void main() { b[0] = inner(); }\n");
    put("inner.glsl", "uint inner()\n{\n    return missing;\n}\n");
    refuses("outer.comp", "", "inner.glsl:3: ", "missing");
    put("loop.comp", HEAD "#include \"loop_a.glsl\"\n" BODY "void main() {}\n");
    put("loop_a.glsl", "#include \"loop_b.glsl\"\n");
    put("loop_b.glsl", "uint x = 1u;\n#include \"loop_a.glsl\"\n");
    refuses("loop.comp", "", "loop_b.glsl:2", "includes itself");
    put("self.comp", HEAD "#include \"self.comp\"\nvoid main() {}\n");
    refuses("self.comp", "", "self.comp:2", "includes itself");
    char name[32], text[64];
    for (int i = 0; i < 12; i++) {
        snprintf(name, sizeof name, "deep%d.glsl", i);
        snprintf(text, sizeof text, "#include \"deep%d.glsl\"\n", i + 1);
        put(name, text);
    }
    put("deep12.glsl", "\n");
    put("deep.comp", HEAD "#include \"deep0.glsl\"\nvoid main() {}\n");
    refuses("deep.comp", "", "deep.comp", "deep");
    put("quote.comp", HEAD "#include <a.glsl>\nvoid main() {}\n");
    refuses("quote.comp", "", "quote.comp:2", "wants #include");
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, make_cache, drop_cache)
    const struct CMUnitTest tests[] = {
        CASE(test_second_time), CASE(test_broken_files), CASE(test_unwritable),
        CASE(test_own_folder),  CASE(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
