/* SPDX-License-Identifier: MIT
 *
 * kernels.c: the kernel registry. Whoever adds an op to dl/op.h adds its row here.
 */
#include "kernels.h"

static const struct vk_kernel kernels[] = {
    [DL_OP_CONVERT] = {vk_lower_convert, vk_supports_values, "convert.comp"},
    [DL_OP_RMS_NORM] = {vk_lower_rms_norm, vk_supports_values, "rms_norm.comp"},
    [DL_OP_MATMUL] = {vk_lower_matmul, vk_supports_matmul, "matvec_*.comp, matmul_*.comp"},
    [DL_OP_ROPE] = {vk_lower_rope, vk_supports_heads, "rope_kv.comp"},
    [DL_OP_KV_STORE] = {vk_lower_kv_store, vk_supports_heads, "rope_kv.comp"},
    [DL_OP_ATTENTION] = {vk_lower_attention, vk_supports_attention, "attention_*.comp"},
    [DL_OP_GLU] = {vk_lower_glu, vk_supports_values, "glu.comp"},
    [DL_OP_ADD] = {vk_lower_add, vk_supports_values, "add.comp; rms_norm.comp where a norm follows"},
    [DL_OP_MERGE] = {vk_lower_merge, vk_supports_values, "add.comp; rms_norm.comp where a norm follows"},
    [DL_OP_GATHER_ROWS] = {vk_lower_gather_rows, vk_supports_values, "gather_rows.comp"},
    [DL_OP_MOE_ROUTE] = {vk_lower_moe_route, vk_supports_values, "moe_route.comp"},
    [DL_OP_MOE_MATMUL] = {vk_lower_moe_matmul, vk_supports_moe_matmul, "matvec_*.comp"},
    [DL_OP_MOE_SUM] = {vk_lower_moe_sum, vk_supports_values, "moe_sum.comp"},
};
_Static_assert(DL_COUNT_OF(kernels) == DL_OP_COUNT, "every opcode has its row");

const struct vk_kernel *vk_lower_find(enum dl_opcode code)
{
    return (unsigned)code < DL_OP_COUNT ? &kernels[code] : NULL;
}

bool vk_supports(const struct vk_ctx *c, const struct dl_op *op)
{
    const struct vk_kernel *k = vk_lower_find(op->code);
    return k && k->supports(c, op);
}

int vk_lower_ops(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    return vk_lower_find(ops[0].code)->lower(l, ops, n);
}
