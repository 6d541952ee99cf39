/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_fused_tiles.c: what follows a matrix of a prompt is done by the tiles that cards multiply with: each of them, with each op that it
 * can take along, against the CPU's definition.
 */
#define ROWS 68u
#define CHECK_FIRST 9u
#define CHECK_STEP(p) 29u /* batches for the narrow tiles, the wide and the largest */
#include "vk_fused_ops.h"

#include "lower_matmul.h"

/* Candidate number `at` for each size of batch, with one or two of the ops that may follow. */
static void tiles(enum dl_type type, uint32_t at)
{
    snprintf(variant, sizeof variant, "matmul_%s=#%u", dl_type_info(type)->name, (unsigned)at);
    switch (((unsigned)type + at) % 4) {
    case 0:
        q_k_v(type, 96, at % 8 < 4);
        break;
    case 1:
        to_the_wire(type, 288, 160, DL_BUF_WIRE, DL_Q80, at % 8 < 4);
        break;
    case 2:
        to_the_wire_carrying(type, 96, 160, DL_BUF_WIRE, at % 8 < 4 ? DL_Q80 : DL_Q120, at % 8 < 4);
        to_the_wire(type, 32, 64, DL_BUF_ACT, at % 8 < 4 ? DL_Q80 : DL_F16, false);
        break;
    default:
        residual(type, 160, at % 8 < 4 ? 100 : 320, at);
    }
    if (type == DL_Q40 || at == 3)
        gate_up_glu(type, 96, 160, at % 3 ? DL_Q80 : DL_F32, at % 2 ? DL_ACT_GELU : DL_ACT_SILU);
    *variant = 0;
}

static void test_tiles(void **state)
{
    (void)state;
    NEED_GPU();
    static const enum dl_type types[] = {DL_Q40, DL_Q80, DL_F16};
    struct vk_caps *caps = &vk_ctx_of(gpu)->caps, as_it_is = *caps;
    struct vk_mm_variant all[VK_MM_VARIANTS];
    caps->software = false;
    caps->int_dot_fast = caps->int_dot;
    may_be_apart = true;
    carried_bound = 0.5; /* with so many values one will fall on a border, and carries a whole step */
    for (size_t t = 0; t < DL_COUNT_OF(types); t++) {
        uint32_t n = vk_mm_many_variants(caps, types[t], 288, 16, all);
        n = DL_MAX(n, vk_mm_many_variants(caps, types[t], 288, 128, all));
        for (uint32_t i = 0; i < n; i += t ? 3 : 1)
            tiles(types[t], i);
    }
    may_be_apart = false;
    *caps = as_it_is;
    printf("%u programs as one kernel, %u not\n", n_fused, n_apart);
    assert_true(n_apart < n_fused / 4); /* GLUs for tiles of 32 rows, which have only half a block of each matrix */
}

/* Too little shared memory for a tile and its results: op by op, and right. */
static void test_small_device(void **state)
{
    (void)state;
    NEED_GPU();
    struct vk_caps *caps = &vk_ctx_of(gpu)->caps, as_it_is = *caps;
    caps->software = false;
    caps->shared_bytes = 12 << 10;
    snprintf(variant, sizeof variant, "matmul_q40=#9");
    struct prog p = {.rng = 4, .bound = 1e-10};
    struct dl_view part = view(&p, DL_BUF_ACT, DL_F32, ROWS, 96);
    matmul(&p, part, acts(&p, DL_Q40, 64), DL_Q40, false);
    op(&p, DL_OP_CONVERT, view(&p, DL_BUF_ACT, DL_Q80, ROWS, 96), part);
    may_be_apart = true;
    check(&p, "a small device");
    may_be_apart = false;
    assert_int_equal(n_dispatches, 2);
    *variant = 0;
    *caps = as_it_is;
}

static void test_no_message(void **state)
{
    (void)state;
    NEED_GPU();
    assert_int_equal(atomic_load(&vk_ctx_of(gpu)->messages), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_small_device),
        cmocka_unit_test(test_no_message),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
