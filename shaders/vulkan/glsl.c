/* SPDX-License-Identifier: MIT
 *
 * glsl.c: puts the text of a shader together (includes, defines), asks the cache, else glslang. The only file that knows glslang.
 */
#include "glsl.h"

#include <ctype.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <glslang/Include/glslang_c_interface.h>
#include <glslang/build_info.h>

#include "cache.h"

#define MAX_FILES 16u /* in one shader, itself included */
#define MAX_DEPTH 8u
#define MAX_TEXT ((size_t)1 << 20)

/* Increased when the same text is to give other SPIR-V than before. */
#define FORMAT "glsl 1"

static struct {
    _Atomic uint64_t compiled, cached, compile_ns;
} stats;

struct vk_glsl_stats vk_glsl_stats(void)
{
    return (struct vk_glsl_stats){atomic_load(&stats.compiled), atomic_load(&stats.cached),
                                  atomic_load(&stats.compile_ns)};
}

void vk_spirv_finish(struct vk_spirv *s)
{
    free(s->words);
    *s = (struct vk_spirv){0};
}

/* ------------------------------------------------------------------------------------------------- the text */

/* One shader being put together. Files are numbered in the order in which they come up; `#line n k` carries the number, so that
 * glslang's messages lead back to the file. */
struct text {
    const char *shader;
    struct dl_str out;
    char file[MAX_FILES][64];
    bool open[MAX_FILES];
    uint32_t n_files, depth;
};

static bool plain_name(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < sizeof((struct text *)0)->file[0] && name[0] != '.' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == n;
}

/* *out: the file's bytes, to be freed with free(). A file that the folder lacks is taken from the binary: whoever changes one kernel
 * need not copy the others. */
static int read_override(const char *folder, const char *name, char **out)
{
    char path[4096];
    int len = snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = len > 0 && (size_t)len < sizeof path ? fopen(path, "rb") : NULL;
    if (!f)
        return 0;
    char *bytes = malloc(MAX_TEXT + 1);
    size_t n = bytes ? fread(bytes, 1, MAX_TEXT + 1, f) : 0;
    bool failed = ferror(f) != 0;
    fclose(f);
    int err = 0;
    if (!bytes)
        err = dl_fail(DL_ENOMEM, "shader %s: out of memory", name);
    else if (failed)
        err = dl_fail(DL_EIO, "shader %s: cannot read %s", name, path);
    else if (n > MAX_TEXT || memchr(bytes, 0, n))
        err = dl_fail(DL_EINVAL, "shader %s: %s is no text of at most %zu bytes", name, path, MAX_TEXT);
    if (err) {
        free(bytes);
        return err;
    }
    bytes[n] = 0;
    *out = bytes;
    return 0;
}

static int source_of(const char *name, const char **text, char **owned)
{
    *text = NULL;
    *owned = NULL;
    const char *folder = getenv("DLLAMA_SHADER_DIR");
    if (folder && *folder) {
        int err = read_override(folder, name, owned);
        *text = *owned;
        if (err || *text)
            return err;
    }
    for (size_t i = 0; i < vk_glsl_n_sources && !*text; i++)
        if (!strcmp(vk_glsl_sources[i].name, name))
            *text = vk_glsl_sources[i].text;
    return *text ? 0 : dl_fail(DL_EINVAL, "shader %s: there is none of this name", name);
}

/* "A=1;B=2" as lines `#define A 1`. */
static int add_defines(struct text *t, const char *defines)
{
    for (const char *p = defines ? defines : ""; *p;) {
        size_t name = strspn(p, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"), all = strcspn(p, ";");
        if (!name || isdigit((unsigned char)p[0]) || p[name] != '=' || strcspn(p, " \n\\") < all)
            return dl_fail(DL_EINVAL, "shader %s: defines \"%s\": wants NAME=value;NAME=value", t->shader, defines);
        int err = dl_str_addf(&t->out, "#define %.*s %.*s\n", (int)name, p, (int)(all - name - 1), p + name + 1);
        if (err)
            return err;
        p += all + (p[all] == ';');
    }
    return 0;
}

static int add_file(struct text *t, const char *name, const char *defines);

/* `#include "x.glsl"`: pasted the first time, nothing after that. Includes stand at the top level; inside of #if only
 * where nothing else includes the file. */
static int include(struct text *t, const char *line, size_t n, uint32_t from, uint32_t line_no)
{
    char name[sizeof t->file[0]];
    const char *open = memchr(line, '"', n), *end = open ? memchr(open + 1, '"', n - (size_t)(open + 1 - line)) : NULL;
    size_t len = end ? (size_t)(end - open - 1) : 0;
    if (!len || len >= sizeof name)
        return dl_fail(DL_EINVAL, "shader %s, %s:%u: wants #include \"name\"", t->shader, t->file[from], line_no);
    memcpy(name, open + 1, len);
    name[len] = 0;
    for (uint32_t i = 0; i < t->n_files; i++)
        if (!strcmp(t->file[i], name))
            return t->open[i] ? dl_fail(DL_EINVAL, "shader %s, %s:%u: %s includes itself", t->shader, t->file[from],
                                        line_no, name)
                              : 0;
    int err = add_file(t, name, NULL);
    return err ? err : dl_str_addf(&t->out, "#line %u %u\n", line_no + 1, from);
}

/* The directive word of a line, without '#', or NULL. */
static const char *directive(const char *line, size_t n)
{
    size_t i = 0;
    while (i < n && (line[i] == ' ' || line[i] == '\t'))
        i++;
    if (i == n || line[i++] != '#')
        return NULL;
    while (i < n && (line[i] == ' ' || line[i] == '\t'))
        i++;
    return line + i;
}

static int add_lines(struct text *t, uint32_t file, const char *text, const char *defines)
{
    uint32_t line_no = 1;
    bool version = false;
    for (const char *p = text; *p; line_no++) {
        const char *end = strchr(p, '\n');
        size_t n = end ? (size_t)(end - p) : strlen(p);
        const char *word = directive(p, n);
        int err;
        if (word && !strncmp(word, "include", 7)) {
            err = include(t, p, n, file, line_no);
        } else {
            err = dl_str_add(&t->out, p, n);
            if (!err)
                err = dl_str_add(&t->out, "\n", 1);
            if (!err && file == 0 && !version && word && !strncmp(word, "version", 7)) {
                version = true;
                err = add_defines(t, defines);
                if (!err)
                    err = dl_str_addf(&t->out, "#line %u 0\n", line_no + 1);
            }
        }
        if (err)
            return err;
        if (t->out.len > MAX_TEXT)
            return dl_fail(DL_ELIMIT, "shader %s: more than %zu bytes of text", t->shader, MAX_TEXT);
        p += n + (end != NULL);
    }
    return file || version ? 0 : dl_fail(DL_EINVAL, "shader %s: no #version line", t->shader);
}

static int add_file(struct text *t, const char *name, const char *defines)
{
    if (!plain_name(name))
        return dl_fail(DL_EINVAL, "shader %s: \"%s\" is no name of a shader", t->shader, name);
    if (t->n_files == MAX_FILES || t->depth == MAX_DEPTH)
        return dl_fail(DL_ELIMIT, "shader %s: %s: more than %u files, or %u deep", t->shader, name, MAX_FILES,
                       MAX_DEPTH);
    const char *text;
    char *owned;
    int err = source_of(name, &text, &owned);
    if (err)
        return err;
    uint32_t file = t->n_files++;
    snprintf(t->file[file], sizeof t->file[file], "%s", name);
    t->open[file] = true;
    t->depth++;
    if (file)
        err = dl_str_addf(&t->out, "#line 1 %u\n", file);
    if (!err)
        err = add_lines(t, file, text, defines);
    t->depth--;
    t->open[file] = false;
    free(owned);
    return err;
}

/* -------------------------------------------------------------------------------------------------- glslang */

/* Our own, since where glslang keeps its defaults differs from release to release. Only what compute shaders meet. */
static const glslang_resource_t resources = {
    .max_compute_work_group_count_x = 65535,
    .max_compute_work_group_count_y = 65535,
    .max_compute_work_group_count_z = 65535,
    .max_compute_work_group_size_x = 1024,
    .max_compute_work_group_size_y = 1024,
    .max_compute_work_group_size_z = 64,
    .max_compute_uniform_components = 1024,
    .limits = {.non_inductive_for_loops = 1,
               .while_loops = 1,
               .do_while_loops = 1,
               .general_uniform_indexing = 1,
               .general_attribute_matrix_vector_indexing = 1,
               .general_varying_indexing = 1,
               .general_sampler_indexing = 1,
               .general_variable_indexing = 1,
               .general_constant_matrix_vector_indexing = 1},
};

static void start_glslang(void)
{
    glslang_initialize_process();
}

/* The first message of glslang's log ("ERROR: 1:12: 'x' : undeclared identifier"), with the file that it is about. */
static int complain(const struct text *t, const char *defines, const char *log)
{
    const char *at = log ? strstr(log, "ERROR: ") : NULL;
    const char *line = at ? at + 7 : log ? log : "";
    unsigned file, line_no;
    int skip = 0, n = (int)strcspn(line, "\r\n");
    if (sscanf(line, "%u:%u: %n", &file, &line_no, &skip) == 2 && skip > 0 && skip <= n && file < t->n_files)
        return dl_fail(DL_EINVAL, "shader %s (%s), %s:%u: %.*s", t->shader, defines, t->file[file], line_no, n - skip,
                       line + skip);
    return dl_fail(DL_EINVAL, "shader %s (%s): %.*s", t->shader, defines, n, line);
}

static int generate(const struct text *t, const char *defines, glslang_shader_t *shader, glslang_program_t *program,
                    struct vk_spirv *out)
{
    if (!shader || !program)
        return dl_fail(DL_ENOMEM, "shader %s: glslang is out of memory", t->shader);
    glslang_program_add_shader(program, shader);
    if (!glslang_program_link(program, GLSLANG_MSG_SPV_RULES_BIT | GLSLANG_MSG_VULKAN_RULES_BIT))
        return complain(t, defines, glslang_program_get_info_log(program));
    glslang_program_SPIRV_generate(program, GLSLANG_STAGE_COMPUTE);
    size_t n = glslang_program_SPIRV_get_size(program);
    if (!n)
        return complain(t, defines, glslang_program_SPIRV_get_messages(program));
    out->words = dl_calloc(n, sizeof *out->words);
    if (!out->words)
        return DL_ENOMEM;
    out->n = n;
    glslang_program_SPIRV_get(program, out->words);
    return 0;
}

static int compile(const struct text *t, const char *defines, struct vk_spirv *out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_glslang);
    uint64_t start = dl_now_ns();
    glslang_input_t input = {
        .language = GLSLANG_SOURCE_GLSL,
        .stage = GLSLANG_STAGE_COMPUTE,
        .client = GLSLANG_CLIENT_VULKAN,
        .client_version = GLSLANG_TARGET_VULKAN_1_1,
        .target_language = GLSLANG_TARGET_SPV,
        .target_language_version = GLSLANG_TARGET_SPV_1_3,
        .code = t->out.v,
        .default_version = 450,
        .default_profile = GLSLANG_NO_PROFILE,
        .messages = GLSLANG_MSG_SPV_RULES_BIT | GLSLANG_MSG_VULKAN_RULES_BIT,
        .resource = &resources,
    };
    glslang_shader_t *shader = glslang_shader_create(&input);
    glslang_program_t *program = glslang_program_create();
    int err = 0;
    if (shader && (!glslang_shader_preprocess(shader, &input) || !glslang_shader_parse(shader, &input)))
        err = complain(t, defines, glslang_shader_get_info_log(shader));
    else
        err = generate(t, defines, shader, program, out);
    if (program)
        glslang_program_delete(program);
    if (shader)
        glslang_shader_delete(shader);
    atomic_fetch_add(&stats.compiled, 1);
    atomic_fetch_add(&stats.compile_ns, dl_now_ns() - start);
    return err;
}

/* ---------------------------------------------------------------------------------------------------- cache */

static struct vk_hash key_of(const struct text *t)
{
    char version[64];
    snprintf(version, sizeof version, FORMAT " glslang %d.%d.%d%s", GLSLANG_VERSION_MAJOR, GLSLANG_VERSION_MINOR,
             GLSLANG_VERSION_PATCH, GLSLANG_VERSION_FLAVOR);
    struct vk_hash key = VK_HASH_START;
    vk_hash_text(&key, version);
    vk_hash_add(&key, t->out.v, t->out.len);
    return key;
}

static bool from_cache(struct vk_hash key, struct vk_spirv *out)
{
    size_t n = 0;
    uint32_t *words = vk_cache_load("spirv", key, &n);
    if (words && (n % 4 || n < 20 || words[0] != 0x07230203u)) {
        free(words);
        words = NULL;
    }
    *out = (struct vk_spirv){words, words ? n / 4 : 0};
    return words != NULL;
}

int vk_glsl_compile(const char *name, const char *defines, struct vk_spirv *out)
{
    *out = (struct vk_spirv){0};
    struct text *t = dl_calloc(1, sizeof *t);
    if (!t)
        return DL_ENOMEM;
    t->shader = name;
    defines = defines ? defines : "";
    int err = add_file(t, name, defines);
    if (!err) {
        struct vk_hash key = key_of(t);
        if (from_cache(key, out)) {
            atomic_fetch_add(&stats.cached, 1);
        } else {
            err = compile(t, defines, out);
            if (!err)
                vk_cache_store("spirv", key, out->words, out->n * sizeof *out->words);
        }
    }
    dl_str_finish(&t->out);
    free(t);
    return err;
}
