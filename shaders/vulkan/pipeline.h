/* SPDX-License-Identifier: MIT
 *
 * pipeline.h: SPIR-V to pipelines: one per (shader, defines, binds, push words), made once and kept until the device closes.
 * The driver's own compilation is kept in a VkPipelineCache on disk, by device and driver.
 *
 * A shader that a dispatch names has set 0 with storage buffers at bindings 0 .. n_binds and n_push words of push constants.
 * "SG=n" with n > 1 among the defines asks for subgroups of n, all full, where the device can promise that: the shader's
 * workgroup is a multiple of n along x.
 */
#ifndef VK_PIPELINE_H
#define VK_PIPELINE_H

#include "glsl.h"
#include "vk.h"

struct vk_pipe {
    VkPipeline pipeline;
    VkPipelineLayout layout;
    VkDescriptorSetLayout set_layout; /* n_binds storage buffers */
    uint32_t n_binds, n_push;
};

/* All pipes of one device. The engine thread's. */
struct vk_pipes;
int vk_pipes_create(struct vk_ctx *c, struct vk_pipes **out);
void vk_pipes_destroy(
    struct vk_pipes **p); /* saves the pipeline cache; nothing uses the pipes any more; accepts &NULL */

/* Makes what these dispatches need, compiling in threads what is new. `progress` may be NULL. The
 * first failure in order of arrival, or 0; a pipe that could not be made stays so. */
int vk_pipes_prepare(struct vk_pipes *p, const struct vk_dispatch *d, size_t n, vk_glsl_progress *progress, void *ud);

/* The pipe of a dispatch, made now if it is new. Valid until vk_pipes_destroy. */
int vk_pipe_get(struct vk_pipes *p, const struct vk_dispatch *d, const struct vk_pipe **out);

/* Writes the pipeline cache to disk if pipes were made since it was last written. */
void vk_pipes_save(struct vk_pipes *p);

#endif
