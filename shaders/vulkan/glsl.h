/* SPDX-License-Identifier: MIT
 *
 * glsl.h: GLSL text to SPIR-V. A kernel is a shader and a line of defines; it is compiled for Vulkan 1.1 (SPIR-V 1.3) by glslang
 * and kept on disk, so that the next start compiles nothing. Knows no device and no pipeline.
 *
 * Text comes from the table in the binary, or, where DLLAMA_SHADER_DIR is set, from that folder. `#include "x.glsl"` pastes a
 * file of the same place once per shader. Defines become `#define NAME VALUE` lines behind `#version`.
 */
#ifndef VK_GLSL_H
#define VK_GLSL_H

#include "dl/base.h"

/* Every shaders/X.comp and shaders/X.glsl; made by embed.cmake. */
struct vk_glsl_source {
    const char *name, *text; /* "add.comp"; text is NUL-terminated */
    size_t n;                /* bytes of text */
};
extern const struct vk_glsl_source vk_glsl_sources[];
extern const size_t vk_glsl_n_sources;

struct vk_spirv {
    uint32_t *words; /* NULL: none */
    size_t n;        /* words */
};
void vk_spirv_finish(struct vk_spirv *s);

/* The shader `name` with defines "A=1;B=2" (no spaces; NULL or "" for none). *out is the caller's, to be finished. DL_EINVAL for
 * text that does not compile: one line with shader, line and message. Any thread. */
int vk_glsl_compile(const char *name, const char *defines, struct vk_spirv *out);

/* Told now and then by whoever makes many, on the thread that asked for them. */
typedef void vk_glsl_progress(void *ud, size_t done, size_t all);

/* Since the process began. Any thread. */
struct vk_glsl_stats {
    uint64_t compiled, cached; /* by glslang; from disk */
    uint64_t compile_ns;       /* summed over threads */
};
struct vk_glsl_stats vk_glsl_stats(void);

#endif
