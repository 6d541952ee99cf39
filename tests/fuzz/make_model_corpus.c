/* SPDX-License-Identifier: MIT
 *
 * tests/fuzz/make_model_corpus.c: writes the seeds in corpus/gguf and corpus/dllama. Not part of the build; after a change, in the
 * source folder:
 *   cc -std=c17 -D_DEFAULT_SOURCE -Iengine/include -Itests tests/fuzz/make_model_corpus.c build/release/engine/libdl_base.a -lm
 *   ./a.out tests/fuzz/corpus
 */
#include <stdio.h>

#include "model_files.h"

const char *dl_tensor_name(enum dl_tensor_id id)
{
#define X(name, gguf) gguf,
    static const char *const names[] = {DL_TENSOR_MAP(X)};
#undef X
    return names[id];
}

static void save(const char *folder, const char *name, struct dl_str f)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(f.v, 1, f.len, out) != f.len || fclose(out)) {
        perror(path);
        exit(1);
    }
    dl_str_finish(&f);
}

/* One value instead of 32 where a number allows it: the smallest files that are whole. */
static struct tiny_m smallest(int32_t arch)
{
    static const int32_t pairs[][2] = {{2, 2}, {3, 2}, {4, 1}, {5, 1}, {6, 1}, {9, 2}, {19, 2}, {18, 0}};
    struct tiny_m t = tiny_m(arch, 0);
    for (size_t i = 0; i < DL_COUNT_OF(pairs); i++)
        tm_set(&t, pairs[i][0], pairs[i][1]);
    if (arch == 0xABCD02)
        tm_set(&t, 7, 2), tm_set(&t, 8, 1), tm_set(&t, 21, 2);
    else
        tm_set(&t, 14, 8), tm_set(&t, 15, 1), tm_set(&t, 16, 4), tm_set(&t, 17, 8192), tm_set(&t, 18, 2);
    return t;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    struct tiny_m llama = smallest(0xABCD00), moe = smallest(0xABCD02);
    save(argv[1], "dllama/llama.m", tm_finish(&llama));
    save(argv[1], "dllama/qwen3moe.m", tm_finish(&moe));
    save(argv[1], "gguf/llama.gguf",
         tiny_gguf(&(struct tiny){.arch = "llama", .type = 2, .layers = 1, .tied = true, .factors = true}));
    save(argv[1], "gguf/qwen2.gguf", tiny_gguf(&(struct tiny){.arch = "qwen2", .type = 2, .layers = 1, .bias = true}));
    struct gw w = {0};
    tiny_meta(&w, &(struct tiny){.arch = "qwen3moe", .experts = 4});
    gw_str(&w, "qwen3moe.rope.scaling.type", "linear");
    gw_u32(&w, "general.alignment", 32);
    save(argv[1], "gguf/metadata.gguf", gw_finish(&w));
    return 0;
}
