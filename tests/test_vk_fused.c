/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_fused.c: ops that the Vulkan device runs as one kernel give what the CPU's definition gives one after the other; so do
 * the same ops in neighbourhoods where they may not be taken together.
 */
#include "vk_fused_ops.h"

static void norm(struct prog *p, enum dl_type to, struct dl_view x, struct dl_view w, float eps)
{
    struct dl_op *o = op(p, DL_OP_RMS_NORM, view(p, DL_BUF_ACT, to, ROWS, x.cols), x);
    o->src[1] = w;
    o->u.norm.group = w.cols;
    o->u.norm.eps = eps;
}

static void test_sum_and_norms(void **state)
{
    (void)state;
    NEED_GPU();
    static const enum dl_type wires[] = {DL_F32, DL_F16, DL_Q80, DL_Q120};
    static const uint32_t cols[] = {64, 544, 4128};
    for (size_t c = 0; c < DL_COUNT_OF(cols); c++)
        for (int kind = -1; kind < (int)DL_COUNT_OF(wires); kind++)
            for (int in_place = 0; in_place < 2; in_place++)
                for (int norms = 0; norms < 4; norms++) {
                    struct prog p = {.rng = (uint64_t)(kind + 9)};
                    struct dl_view x = view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c]), to = x;
                    if (!in_place)
                        to = view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c]);
                    struct dl_op *o = op(&p, kind < 0 ? DL_OP_ADD : DL_OP_MERGE, to, x);
                    o->src[1] = kind < 0 ? view(&p, DL_BUF_ACT, DL_F32, ROWS, cols[c])
                                         : view(&p, DL_BUF_WIRE, wires[kind], 3 * ROWS, cols[c]);
                    if (kind >= 0) {
                        o->src[1].rows = ROWS;
                        o->u.merge.n_slices = 3;
                        o->u.merge.slice_bytes = ROWS * o->src[1].row_bytes;
                    }
                    struct dl_view w = view(&p, DL_BUF_WEIGHT, DL_F32, 1, cols[c]);
                    if (norms & 1)
                        norm(&p, DL_F32, to, w, 1e-5f);
                    if (norms & 2)
                        norm(&p, DL_Q80, to, w, 1e-5f);
                    check(&p, "sum and norms");
                }
}

/* Close to what may be one kernel, but not it. */
static void test_not_together(void **state)
{
    (void)state;
    NEED_GPU();
    for (int kind = 0; kind < 5; kind++) {
        struct prog p = {.rng = 5};
        struct dl_view x = view(&p, DL_BUF_ACT, DL_F32, ROWS, 128), part = view(&p, DL_BUF_ACT, DL_F32, ROWS, 128);
        struct dl_view w = view(&p, DL_BUF_WEIGHT, DL_F32, 1, kind == 0 ? 64 : 128);
        op(&p, DL_OP_ADD, x, x)->src[1] = part;
        if (kind == 0) { /* norms of heads */
            norm(&p, DL_F32, x, w, 1e-5f);
        } else if (kind == 1) { /* in place: the sum itself would be lost */
            struct dl_op *o = op(&p, DL_OP_RMS_NORM, x, x);
            o->src[1] = w;
            o->u.norm.group = 128;
        } else if (kind == 2) { /* another epsilon */
            norm(&p, DL_F32, x, w, 1e-5f);
            norm(&p, DL_Q80, x, w, 0.5f);
        } else if (kind == 3) { /* of something else */
            norm(&p, DL_F32, part, w, 1e-5f);
        } else { /* into what the sum has read */
            struct dl_op *o = op(&p, DL_OP_RMS_NORM, part, x);
            o->src[1] = w;
            o->u.norm.group = 128;
        }
        check(&p, "not together");
    }
}

/* kind: bit 0: halves, bit 1: k and v change places in the row. */
static void rope_and_stores(enum dl_type type, uint32_t hd, uint32_t n_kv, unsigned kind, uint32_t rot)
{
    enum { Q = 6 };
    struct prog p = {.rng = hd + 1};
    struct dl_view qkv = view(&p, DL_BUF_ACT, DL_F32, ROWS, (Q + 2 * n_kv) * hd), turned = qkv;
    turned.cols = (Q + n_kv) * hd;
    struct dl_op *o = op(&p, DL_OP_ROPE, turned, turned);
    o->src[1] = view(&p, DL_BUF_INPUT, DL_F32, ROWS, rot);
    o->u.rope.head_dim = hd;
    o->u.rope.n_rot = rot;
    o->u.rope.layout = kind & 1 ? DL_ROPE_HALVES : DL_ROPE_PAIRS;
    for (uint32_t i = 0; i < 2; i++) {
        struct dl_view src = qkv;
        src.cols = n_kv * hd;
        src.offset = 4 * (uint64_t)hd * (Q + (kind & 2 ? 1 - i : i) * n_kv);
        o = op(&p, DL_OP_KV_STORE, view(&p, DL_BUF_KV, type, 3 * n_kv * DL_KV_BLOCK, hd), src);
        o->u.kv.n_kv_heads = n_kv;
        o->u.kv.head_dim = hd;
    }
    check(&p, "rope and stores");
}

static void test_rope_and_stores(void **state)
{
    (void)state;
    NEED_GPU();
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t dims[] = {8, 64, 96, 128, 256};
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (unsigned kind = 0; kind < 4; kind++)
                if (types[t] != DL_Q80 || dims[d] % DL_BLOCK == 0)
                    rope_and_stores(types[t], dims[d], 2, kind, d % 2 ? dims[d] : dims[d] / 4 * 2);
}

/* Into caches of 768 rows, which take several descriptors. */
static void test_stores_in_chunks(void **state)
{
    (void)state;
    NEED_GPU();
    struct vk_caps *caps = &vk_ctx_of(gpu)->caps, as_it_is = *caps;
    caps->storage_range = 48 << 10;
    rope_and_stores(DL_F16, 64, 8, 0, 64);
    assert_int_equal(n_dispatches, 1 + 3 + 3);
    rope_and_stores(DL_F32, 32, 8, 1, 32);
    assert_int_equal(n_dispatches, 1 + 3 + 3);
    rope_and_stores(DL_Q80, 64, 8, 2, 64);
    assert_int_equal(n_dispatches, 1 + 2 + 2);
    *caps = as_it_is;
}

/* ---------------------------------------------------------------------------------------------------- matrices */

/* Each shape with all types of weights; other shapes each time. */
static void matrices(uint32_t n_types)
{
    for (uint32_t t = 0; t < n_types; t++) {
        enum dl_type type = weight_types[t];
        gate_up_glu(type, 96, 160, DL_Q80, DL_ACT_SILU);
        gate_up_glu(type, 544, 64, DL_F32, DL_ACT_GELU);
        q_k_v(type, 64 + 32 * t, t % 2);
        q_k_v(type, 288, t % 2 == 0);
        to_the_wire(type, 96, 288, DL_BUF_WIRE, DL_Q80, false);
        to_the_wire(type, 352, 64, DL_BUF_WIRE, t % 2 ? DL_F16 : DL_F32, true);
        to_the_wire(type, 32, 96, DL_BUF_ACT, DL_Q80, false);
        to_the_wire_carrying(type, 96, 288, DL_BUF_WIRE, DL_Q80, t % 2);
        to_the_wire_carrying(type, 352, 64, t % 2 ? DL_BUF_WIRE : DL_BUF_ACT, DL_Q80, t % 2 == 0);
        to_the_wire_carrying(type, 96, t % 2 ? 288 : 64, DL_BUF_WIRE, DL_Q120, t % 2 == 0);
        residual(type, 160, t % 2 ? 36 : 320, t);
    }
}

static void test_matrices(void **state)
{
    (void)state;
    NEED_GPU();
    struct vk_caps *caps = &vk_ctx_of(gpu)->caps, as_it_is = *caps;
    matrices(DL_COUNT_OF(weight_types));
    caps->software = false; /* kernels for cards */
    matrices(3);
    caps->max_invocations = 128; /* not enough lanes for a block at once: several passes */
    matrices(1);
    caps->subgroup = 1;
    caps->subgroup_shuffle = false;
    matrices(1);
    *caps = as_it_is;
}

/* Experts: gate and up of those that a token chose. */
static void test_experts(void **state)
{
    (void)state;
    NEED_GPU();
    enum { EXPERTS = 4, K = 2, OUT = 96 };
    for (size_t t = 0; t < 3; t++) {
        struct prog p = {.rng = t + 3, .bound = 1e-10, .dispatches = 1};
        struct dl_view x = acts(&p, weight_types[t], 128), route = view(&p, DL_BUF_ACT, DL_F32, ROWS, 2 * K), dst[2];
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t s = 0; s < 2 * K; s++) {
                float v = s < K ? (float)((r * 3 + s) % EXPERTS) : 0.5f;
                memcpy(p.bytes[route.buf] + r * route.row_bytes + s * sizeof v, &v, sizeof v);
            }
        for (int i = 0; i < 2; i++) {
            dst[i] = view(&p, DL_BUF_ACT, DL_F32, K * ROWS, OUT);
            struct dl_op *o = op(&p, DL_OP_MOE_MATMUL, dst[i], x);
            o->src[1] = view(&p, DL_BUF_WEIGHT, weight_types[t], EXPERTS * OUT, 128);
            o->src[2] = route;
            o->mult = o->u.moe.k = K;
            o->u.moe.n_experts = EXPERTS;
            o->u.moe.shared_src = true;
        }
        struct dl_op *o = op(&p, DL_OP_GLU, view(&p, DL_BUF_ACT, t < 2 ? DL_Q80 : DL_F32, K * ROWS, OUT), dst[0]);
        o->src[1] = dst[1];
        o->mult = K;
        check(&p, "experts");
    }
}

static void test_matrices_apart(void **state)
{
    (void)state;
    NEED_GPU();
    for (int kind = 0; kind < 5; kind++) {
        struct prog p = {.rng = 8, .bound = 1e-10};
        struct dl_view x = view(&p, DL_BUF_ACT, DL_F32, ROWS, 64), a = view(&p, DL_BUF_ACT, DL_F32, ROWS, 64),
                       b = view(&p, DL_BUF_ACT, DL_F32, ROWS, 64);
        matmul(&p, a, x, DL_F32, false);
        if (kind == 0) { /* into what the matrix reads */
            op(&p, DL_OP_CONVERT, x, a);
        } else if (kind == 1) { /* of something else */
            op(&p, DL_OP_CONVERT, view(&p, DL_BUF_ACT, DL_Q80, ROWS, 64), b);
        } else if (kind == 2) { /* the second matrix reads what the first made */
            matmul(&p, b, a, DL_F32, false);
            op(&p, DL_OP_GLU, view(&p, DL_BUF_ACT, DL_F32, ROWS, 64), a)->src[1] = b;
        } else if (kind == 3) { /* carries into what the matrix reads */
            op(&p, DL_OP_CONVERT, view(&p, DL_BUF_ACT, DL_Q80, ROWS, 64), a)->src[1] = x;
            p.carried = x.buf + 1;
        } else { /* glu in place */
            matmul(&p, b, x, DL_F32, false);
            op(&p, DL_OP_GLU, a, a)->src[1] = b;
        }
        check(&p, "matrices apart");
    }
}

static void test_attention_converted(void **state)
{
    (void)state;
    NEED_GPU();
    static const struct {
        enum dl_type kv, to;
        uint32_t head_dim;
    } kinds[] = {
        {DL_F16, DL_Q80, 64}, {DL_F32, DL_Q80, 128}, {DL_Q80, DL_Q80, 96}, {DL_F16, DL_F16, 24}, {DL_F16, DL_Q80, 24}};
    enum { Q = 8, KV = 2 };
    struct vk_caps *caps = &vk_ctx_of(gpu)->caps, as_it_is = *caps;
    for (int card = 0; card < 2; card++) {
        caps->software = !card;
        for (size_t k = 0; k < DL_COUNT_OF(kinds); k++) {
            uint32_t hd = kinds[k].head_dim;
            struct prog p = {.rng = k + 1, .bound = 1e-9};
            p.dispatches = kinds[k].to == DL_Q80 && hd % DL_BLOCK ? 0 : 1;
            struct dl_view q = view(&p, DL_BUF_ACT, DL_F32, ROWS, Q * hd),
                           out = view(&p, DL_BUF_ACT, DL_F32, ROWS, Q * hd);
            struct dl_op *o = op(&p, DL_OP_ATTENTION, out, q);
            for (int i = 1; i < 3; i++)
                o->src[i] = view(&p, DL_BUF_KV, kinds[k].kv, 3 * KV * DL_KV_BLOCK, hd);
            o->u.attn.n_heads = Q;
            o->u.attn.n_kv_heads = KV;
            o->u.attn.head_dim = hd;
            o->u.attn.group = Q / KV;
            o->u.attn.scale = 0.2f;
            op(&p, DL_OP_CONVERT, view(&p, DL_BUF_ACT, kinds[k].to, ROWS, Q * hd), out);
            check(&p, "attention and conversion");
        }
    }
    *caps = as_it_is;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_and_norms),   cmocka_unit_test(test_not_together),
        cmocka_unit_test(test_rope_and_stores), cmocka_unit_test(test_stores_in_chunks),
        cmocka_unit_test(test_matrices),        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_matrices_apart),  cmocka_unit_test(test_attention_converted),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
