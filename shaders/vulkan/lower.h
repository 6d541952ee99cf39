/* SPDX-License-Identifier: MIT
 *
 * lower.h: the kernel registry: one row per opcode, and what lowering functions share. A lowering turns an op (or several) into
 * dispatches; it chooses the shader, its defines, what is bound where, and the push constants. All functions log and return DL_E*.
 */
#ifndef VK_LOWER_H
#define VK_LOWER_H

#include "vk.h"

struct vk_kernel {
    vk_lower_fn *lower;
    bool (*supports)(const struct vk_ctx *c,
                     const struct dl_op *op); /* types and shapes; the op itself is well-formed */
    const char *note;                         /* which shaders, for those who look for them */
};

/* Never NULL for a valid opcode. */
const struct vk_kernel *vk_lower_find(enum dl_opcode code);
bool vk_supports(const struct vk_ctx *c, const struct dl_op *op);

/* Lowers ops[0 .. ) with the first one's function; returns how many it took. Ops that are taken together have no barrier
 * between them, so a lowering takes several only where one kernel does the work of all. */
int vk_lower_ops(struct vk_lower *l, const struct dl_op *ops, uint32_t n);

/* Each in the file of its name. */
vk_lower_fn vk_lower_matmul, vk_lower_moe_matmul, vk_lower_attention;
bool vk_supports_matmul(const struct vk_ctx *c, const struct dl_op *op);
bool vk_supports_moe_matmul(const struct vk_ctx *c, const struct dl_op *op);
bool vk_supports_attention(const struct vk_ctx *c, const struct dl_op *op);

/* --------------------------------------------------------------------------------------------- building blocks */

/* Rows that dst of the op has in a batch of the largest size of l's class. */
uint32_t vk_rows(const struct vk_lower *l, const struct dl_op *op);

/* A new dispatch at the end of l->out, to be filled in: no binds, no push words, groups 1, 1, 1. NULL (logged) when memory is out.
 * Valid until the next one is added. */
struct vk_dispatch *vk_dispatch_new(struct vk_lower *l, const char *shader);

/* Appends "NAME=value" to the defines. */
void vk_define(struct vk_dispatch *d, const char *name, uint32_t value);

void vk_push(struct vk_dispatch *d, uint32_t word);
void vk_push_f32(struct vk_dispatch *d, float value);

/* Appends a binding of bytes [at, end) of a plane, which must fit the largest range, and returns in *rest how far inside the
 * binding `at` lies (bindings start on multiples of caps.offset_align). DL_ELIMIT (logged) where it does not fit. */
int vk_bind_bytes(struct vk_lower *l, struct vk_dispatch *d, const struct vk_buf *b, uint32_t plane, uint64_t at,
                  uint64_t end, uint64_t *rest);

/* Binds the batch buffer, whole. */
int vk_bind_batch(struct vk_lower *l, struct vk_dispatch *d);

/* The first `rows` rows of a view as bound: where they start in the binding and how far apart they are, in units of
 * PLAIN: values for F32, 16-bit words for all others (a block of Q80 is 17 of them, one of Q120 25);
 * SOA_A: blocks, for each of the n_planes bindings that it appends (codes, scales, sums). */
struct vk_bound {
    uint32_t at[VK_PLANES], stride; /* at[p]: inside binding p of this view */
};
int vk_bind_view(struct vk_lower *l, struct vk_dispatch *d, const struct dl_view *v, uint32_t rows, uint32_t n_planes,
                 struct vk_bound *out);

/* Groups along x for n items, spread over y where one axis does not hold them: the shader's group number is
 * gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x, and it may be >= n. */
void vk_groups(const struct vk_lower *l, struct vk_dispatch *d, uint64_t n);

#endif
