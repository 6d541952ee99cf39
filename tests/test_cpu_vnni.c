/* SPDX-License-Identifier: MIT
 *
 * tests/test_cpu_vnni.c: what AVX-VNNI's matrix products give against AVX2's, bit for bit, also on a CPU that has the
 * instruction only in AVX-512's encoding: there the same source, compiled for that. Codes at both ends of their range, which no
 * rounding would make, are among the weights.
 */
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "cpu_features.h"
#include "dl/device.h"
#include "kernels.h"

#ifdef HAVE_EVEX
cpu_kernel *cpu_avxvnni_evex_pick(const struct dl_op *op);
#endif

static uint32_t state = 1;
static uint32_t next(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* Blocks of any bytes with a scale of ordinary size; as activations (x), codes are never -128. */
static void fill(uint8_t *p, size_t blocks, size_t block_bytes, bool x)
{
    for (size_t b = 0; b < blocks; b++, p += block_bytes) {
        uint16_t scale = (uint16_t)(0x2000 + next() % 0x1c00);
        memcpy(p, &scale, sizeof scale);
        for (size_t i = 2; i < block_bytes; i++) {
            uint32_t what = next();
            p[i] = what % 5 == 0 ? 0x7f : what % 5 == 1 ? 0x81 : (uint8_t)(what >> 8);
            if (x && p[i] == 0x80)
                p[i] = 0;
            else if (!x && what % 5 == 2)
                p[i] = 0x80;
        }
    }
}

static void compare(cpu_kernel *(*pick)(const struct dl_op *op), enum dl_type type, uint32_t n, uint32_t rows,
                    uint32_t cols)
{
    uint64_t w_row, x_row, packed_bytes;
    assert_true(dl_row_bytes(type, cols, &w_row));
    assert_true(dl_row_bytes(DL_Q80, cols, &x_row));
    struct dl_buf_desc desc = {"w", DL_BUF_WEIGHT, type, rows, cols, rows * w_row};
    assert_true(cpu_pack_bytes(&desc, &packed_bytes));
    uint8_t *w = dl_xcalloc(rows, w_row), *x = dl_xcalloc(n, x_row), *packed = dl_xcalloc(1, packed_bytes);
    float *want = dl_xcalloc((size_t)n * rows, sizeof *want), *got = dl_xcalloc((size_t)n * rows, sizeof *got);
    fill(w, (size_t)rows * cols / DL_BLOCK, w_row * DL_BLOCK / cols, false);
    fill(x, (size_t)n * cols / DL_BLOCK, sizeof(struct dl_q80), true);
    cpu_pack_rows(&desc, packed, 0, w, rows);
    struct dl_op op = {.code = DL_OP_MATMUL,
                       .mult = 1,
                       .dst = {.rows = n, .cols = rows, .type = DL_F32, .row_bytes = rows * sizeof(float)},
                       .src = {{.rows = n, .cols = cols, .type = DL_Q80, .row_bytes = x_row},
                               {.rows = rows, .cols = cols, .type = type, .row_bytes = w_row}}};
    struct cpu_task task = {.op = &op, .dst = (uint8_t *)want, .src = {x, packed}, .n = n};
    cpu_avx2_pick (&op)(&task, 0, (uint32_t)cpu_units(&op, n));
    task.dst = (uint8_t *)got;
    pick (&op)(&task, 0, (uint32_t)cpu_units(&op, n));
    bool varies = false;
    for (size_t i = 0; i < (size_t)n * rows; i++) {
        varies = varies || want[i] != want[0];
        if (memcmp(&want[i], &got[i], sizeof *got))
            fail_msg("%s, %u tokens, %u x %u: value %zu is %g, want %g", dl_type_info(type)->name, n, rows, cols, i,
                     (double)got[i], (double)want[i]);
    }
    assert_true(varies);
    free(w);
    free(x);
    free(packed);
    free(want);
    free(got);
}

static void compare_all(cpu_kernel *(*pick)(const struct dl_op *op))
{
    static const uint32_t rows[] = {16, 37}, cols[] = {32, 160, 544, 4128};
    for (uint32_t n = 1; n < 40; n += n < 9 ? 1 : 11)
        for (size_t r = 0; r < DL_COUNT_OF(rows); r++)
            for (size_t c = 0; c < DL_COUNT_OF(cols); c++) {
                compare(pick, DL_Q40, n, rows[r], cols[c]);
                compare(pick, DL_Q80, n, rows[r], cols[c]);
            }
}

static void test_evex(void **unused)
{
    (void)unused;
#ifdef HAVE_EVEX
    if (cpu_isa_detect() & CPU_ISA_AVX512) {
        compare_all(cpu_avxvnni_evex_pick);
        return;
    }
#endif
    fprintf(stderr, "SKIPPED: no AVX-512 with VNNI, or a compiler that does not know it\n");
    skip();
}

static void test_vex(void **unused)
{
    (void)unused;
#ifdef HAVE_EVEX /* a compiler with AVX-VNNI knows AVX-512, too */
    if (cpu_isa_detect() & CPU_ISA_AVXVNNI) {
        compare_all(cpu_avxvnni_pick);
        return;
    }
#endif
    fprintf(stderr, "SKIPPED: no AVX-VNNI here\n");
    skip();
}

static void test_zmm(void **unused)
{
    (void)unused;
#ifdef HAVE_EVEX
    if (cpu_isa_detect() & CPU_ISA_AVX512) {
        compare_all(cpu_avx512_pick);
        return;
    }
#endif
    fprintf(stderr, "SKIPPED: no AVX-512 with VNNI here\n");
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_evex), cmocka_unit_test(test_vex),
                                       cmocka_unit_test(test_zmm)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
