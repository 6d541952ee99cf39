/* SPDX-License-Identifier: MIT
 *
 * kernels.h: the rows of the registry that no other header names, and what their files share.
 *   lower_values.c   value by value, block by block, row by row without neighbours
 *   lower_norm.c     RMS_NORM; ADD and MERGE, alone or before norms
 *   lower_heads.c    ROPE and KV_STORE, alone or together
 */
#ifndef VK_KERNELS_H
#define VK_KERNELS_H

#include "lower.h"

vk_lower_fn vk_lower_convert, vk_lower_glu, vk_lower_gather_rows, vk_lower_moe_route, vk_lower_moe_sum;
bool vk_supports_values(const struct vk_ctx *c, const struct dl_op *op);

vk_lower_fn vk_lower_rms_norm, vk_lower_add, vk_lower_merge;

vk_lower_fn vk_lower_rope, vk_lower_kv_store;
bool vk_supports_heads(const struct vk_ctx *c, const struct dl_op *op);

/* Lanes of a workgroup of the kernels above: what every device has. Each lane takes four neighbouring values. */
#define VK_LANES 128u
#define VK_LANE_VALUES 4u

/* What a kernel reads or writes, as f16.glsl numbers it: types of dl/quant.h, and Q80 in planes. */
enum vk_form { VK_FORM_F32, VK_FORM_F16, VK_FORM_BF16, VK_FORM_Q80 = 4, VK_FORM_PLANES, VK_FORM_Q120 };
enum vk_form vk_form_of(const struct vk_lower *l, const struct dl_view *v);
const char *vk_form_name(enum vk_form form);

/* Binds dst and pushes where it starts and its stride, in the order that out.glsl has them. */
int vk_bind_out(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *dst, uint32_t rows);

/* Binds an F32, F16 or plain Q80 source and pushes start and stride. */
int vk_bind_in(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *src, uint32_t rows);

/* A new dispatch with the batch bound at 0, COUNT and LANES defined, `mult` and `cols` of the op pushed. */
struct vk_dispatch *vk_dispatch_op(struct vk_lower *l, const char *shader, const struct dl_op *op);

#endif
