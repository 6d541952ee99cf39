/* SPDX-License-Identifier: MIT
 *
 * tests/test_quant.c: the number formats of dl/quant.h, against oracles that compute each value from its meaning.
 */
#include "common.h"

#include <float.h>
#include <math.h>

#include "dl/quant.h"

static float float_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t bits_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* ------------------------------------------------------------------------------------- 16-bit float formats */

/* What a format of 1 sign bit, `exp_bits` and `man_bits` says. */
static double meaning(uint32_t h, int exp_bits, int man_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1, exp = (int)(h >> man_bits) & ((1 << exp_bits) - 1);
    int man = (int)h & ((1 << man_bits) - 1);
    double sign = h >> (exp_bits + man_bits) & 1 ? -1.0 : 1.0;
    if (exp == (1 << exp_bits) - 1)
        return man ? (double)NAN : sign * (double)INFINITY;
    return sign * (exp ? ldexp(1 + ldexp(man, -man_bits), exp - bias) : ldexp(man, 1 - bias - man_bits));
}

/* The nearest value of the format, ties to even; infinite from half a step above the largest. */
static double nearest(double x, int exp_bits, int man_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1, exp;
    if (x == 0 || !isfinite(x))
        return x;
    frexp(x, &exp); /* |x| in [2^(exp - 1), 2^exp) */
    exp = exp - 1 < 1 - bias ? 1 - bias : exp - 1;
    double step = ldexp(1, exp - man_bits), rounded = nearbyint(x / step) * step;
    return fabs(rounded) >= ldexp(1, bias + 1) ? copysign((double)INFINITY, x) : rounded;
}

static bool same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a == b && !signbit(a) == !signbit(b));
}

static void check_f32(float f)
{
    double h = (double)dl_f16_to_f32(dl_f32_to_f16(f)), b = (double)dl_bf16_to_f32(dl_f32_to_bf16(f));
    if (same(h, nearest((double)f, 5, 10)) && same(b, nearest((double)f, 8, 7)))
        return;
    fprintf(stderr, "%a (%#x): f16 %a, bf16 %a\n", (double)f, bits_float(f), h, b);
    fail();
}

static void test_halves_all(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = dl_f16_to_f32((uint16_t)h), b = dl_bf16_to_f32((uint16_t)h);
        if (!same((double)f, meaning(h, 5, 10)) || !same((double)b, meaning(h, 8, 7)))
            fail_msg("0x%04x: f16 %a, bf16 %a", h, (double)f, (double)b);
        bool back = isnan(f) ? isnan(dl_f16_to_f32(dl_f32_to_f16(f))) : dl_f32_to_f16(f) == h;
        bool back_b = isnan(b) ? isnan(dl_bf16_to_f32(dl_f32_to_bf16(b))) : dl_f32_to_bf16(b) == h;
        if (!back || !back_b)
            fail_msg("0x%04x does not come back: f16 %d, bf16 %d", h, back, back_b);
    }
}

static void test_halves_rounding(void **state)
{
    (void)state;
    static const float edges[] = {0.0f,     65504.0f, 65519.99f, 65520.0f, 65535.0f, 65536.0f, FLT_MAX,   FLT_MIN,
                                  INFINITY, 1.0f,     0x1p-14f,  0x1p-24f, 0x1p-25f, 0x1p-26f, 0x1.8p-25f};
    for (size_t i = 0; i < DL_COUNT_OF(edges); i++)
        for (int step = -2; step <= 2; step++) {
            uint32_t u = bits_float(edges[i]) + (uint32_t)step;
            check_f32(float_bits(u & 0x7fffffffu));
            check_f32(float_bits(u | 0x80000000u));
        }
    /* Around every half, and midway to the next. */
    for (uint32_t h = 0; h < 0x7c00; h++)
        for (int step = -1; step <= 1; step++) {
            float f = dl_f16_to_f32((uint16_t)h), g = h + 1 < 0x7c00 ? dl_f16_to_f32((uint16_t)(h + 1)) : 65536.0f;
            check_f32(float_bits((bits_float(f) + (uint32_t)step) & 0x7fffffffu));
            check_f32(float_bits((bits_float((f + g) / 2) + (uint32_t)step) & 0x7fffffffu));
        }
    uint64_t rng = 1;
    for (int i = 0; i < 1000000; i++) {
        uint32_t u = (uint32_t)test_rand(&rng);
        check_f32(float_bits(u));
        check_f32(float_bits((u & 0x87ffffffu) + 0x33000000u)); /* the range of f16 and its borders */
    }
}

/* ------------------------------------------------------------------------------------------------- blocks */

static float scale_of(const uint8_t *block)
{
    return dl_f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

static float clamp_scale(float d)
{
    return dl_f16_to_f32(dl_f32_to_f16(fmaxf(fminf(d, 65504.0f), -65504.0f)));
}

static void check_q80(const float *x, const char *what)
{
    uint8_t block[1 + sizeof(struct dl_q80)]; /* at an odd address */
    float amax = 0, back[DL_BLOCK];
    for (int i = 0; i < DL_BLOCK; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    dl_row_from_f32(DL_Q80, x, block + 1, DL_BLOCK);
    dl_row_to_f32(DL_Q80, block + 1, back, DL_BLOCK);
    float d = scale_of(block + 1);
    bool ok = isfinite(d) && d == clamp_scale(amax / 127.0f);
    for (int i = 0; i < DL_BLOCK && ok; i++) {
        int q = (int8_t)block[3 + i];
        double exact = d > 0 ? (double)x[i] * 127.0 / (double)amax : q;
        ok = abs(q) <= 127 && fabs(q - exact) <= 0.50001 && back[i] == (float)q * d && (amax > 0 || q == 0);
    }
    if (!ok)
        fail_msg("q80 of %s: amax %a, d %a", what, (double)amax, (double)d);
}

static void check_q40(const float *x, const char *what)
{
    uint8_t block[1 + sizeof(struct dl_q40)];
    float m = 0, back[DL_BLOCK];
    for (int i = 0; i < DL_BLOCK; i++)
        m = fabsf(x[i]) > fabsf(m) ? x[i] : m;
    dl_row_from_f32(DL_Q40, x, block + 1, DL_BLOCK);
    dl_row_to_f32(DL_Q40, block + 1, back, DL_BLOCK);
    float d = scale_of(block + 1);
    bool ok = isfinite(d) && d == clamp_scale(m / -8.0f);
    for (int i = 0; i < DL_BLOCK && ok; i++) {
        int nibble = i < 16 ? block[3 + i] & 15 : block[3 + i - 16] >> 4;
        double at = d != 0 ? fmin((double)x[i] / ((double)m / -8) + 8.5, 15.99) : nibble; /* the code is its floor */
        ok = nibble <= at + 1e-4 && nibble + 1 >= at - 1e-4 && back[i] == (float)(nibble - 8) * d;
    }
    if (!ok)
        fail_msg("q40 of %s: m %a, d %a", what, (double)m, (double)d);
}

/* Scale and codes apart, from the text of dl/quant.h. */
static void check_q120(const float *x, const char *what)
{
    uint8_t block[1 + sizeof(struct dl_q120)], *p = block + 1;
    float amax = 0, back[DL_BLOCK], d;
    for (int i = 0; i < DL_BLOCK; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    dl_row_from_f32(DL_Q120, x, p, DL_BLOCK);
    dl_row_to_f32(DL_Q120, p, back, DL_BLOCK);
    uint32_t bits = (uint32_t)p[1] << 24 | (uint32_t)p[0] << 16;
    memcpy(&d, &bits, sizeof d);
    const double least = (double)amax / 2047;
    bool zero = amax < ldexpf(1, -100),
         ok = zero ? d == 0 : (double)d >= least * (1 - 2e-7) && (double)d < least * (1 + 1.0 / 127);
    for (int i = 0; i < DL_BLOCK && ok; i++) {
        int q = (int8_t)p[2 + i] * 16 + (i < 16 ? p[34 + i] & 15 : p[18 + i] >> 4);
        ok = abs(q) <= 2047 && fabs(q - (zero ? 0 : (double)x[i] / (double)d)) <= 0.501 && back[i] == (float)q * d;
    }
    if (!ok)
        fail_msg("q120 of %s: amax %a, d %a", what, (double)amax, (double)d);
}

static void check_block(const float *x, const char *what)
{
    check_q80(x, what);
    check_q120(x, what);
    check_q40(x, what);
}

static void test_blocks_random(void **state)
{
    (void)state;
    uint64_t rng = 7;
    float least = INFINITY, most = 0;
    for (int n = 0; n < 20000; n++) {
        float x[DL_BLOCK], scale = ldexpf(1, (int)(test_rand(&rng) % 60) - 40);
        for (int i = 0; i < DL_BLOCK; i++) {
            x[i] = test_randf(&rng) * scale;
            least = fminf(least, fabsf(x[i]));
            most = fmaxf(most, fabsf(x[i]));
        }
        char what[64];
        snprintf(what, sizeof what, "random block %d, scale %g", n, (double)scale);
        check_block(x, what);
    }
    assert_true(least < 1e-12f && most > 1e5f);
}

static void test_blocks_edges(void **state)
{
    (void)state;
    static const float peaks[] = {0.0f,       -0.0f, FLT_TRUE_MIN, -FLT_TRUE_MIN, 1e-40f, FLT_MIN, 1e-20f, 1e-7f,
                                  0.0078125f, 1.0f,  -127.0f,      65504.0f,      8e6f,   1e7f,    -1e30f, FLT_MAX};
    for (size_t p = 0; p < DL_COUNT_OF(peaks); p++)
        for (int fill = 0; fill < 3; fill++) {
            float x[DL_BLOCK];
            for (int i = 0; i < DL_BLOCK; i++) /* one peak among zeros; all peaks; alternating signs */
                x[i] = fill == 0 ? 0.0f : fill == 1 ? peaks[p] : i % 2 ? peaks[p] : -peaks[p];
            x[p % DL_BLOCK] = peaks[p];
            char what[64];
            snprintf(what, sizeof what, "peak %a, fill %d", (double)peaks[p], fill);
            check_block(x, what);
        }
    /* Ties of q80 go to even: 2.5 -> 2, 3.5 -> 4 where 127 is the peak. */
    float x[DL_BLOCK] = {127, 2.5f, 3.5f, -2.5f, -3.5f, 0.5f, -0.5f, 1.5f};
    uint8_t block[sizeof(struct dl_q80)];
    dl_row_from_f32(DL_Q80, x, block, DL_BLOCK);
    static const int8_t want[] = {127, 2, 4, -2, -4, 0, 0, 2, 0};
    for (size_t i = 0; i < sizeof want; i++)
        assert_int_equal((int8_t)block[2 + i], want[i]);
    /* So do those of q120, where 2047 is the peak; its codes lie in two places; and zeros, as a wire has them at the begin, are zeros. */
    static const float y[DL_BLOCK] = {2047, 2.5f, 3.5f, -2.5f, -3.5f, -2047, 16, -1, 0, 0, 0, 0, 0, 0, 0, 0, 31, -17};
    static const uint8_t bytes[sizeof(struct dl_q120)] = {
        0x80, 0x3f, 127, 0, 0, 255, 255, 128, 1, 255, 0, 0, 0, 0,    0,    0, 0,   0,   1, 254, 0,
        0,    0,    0,   0, 0, 0,   0,   0,   0, 0,   0, 0, 0, 0xff, 0xf2, 4, 0xe, 0xc, 1, 0,   0xf};
    uint8_t got[sizeof bytes];
    dl_row_from_f32(DL_Q120, y, got, DL_BLOCK);
    assert_memory_equal(got, bytes, sizeof got);
    memset(got, 0, sizeof got);
    dl_row_to_f32(DL_Q120, got, x, DL_BLOCK);
    for (int i = 0; i < DL_BLOCK; i++)
        assert_true(x[i] == 0);
}

/* ---------------------------------------------------------------------------------------------------- rows */

static void test_rows(void **state)
{
    (void)state;
    enum { N = 96 };
    float x[N], back[N];
    uint8_t row[N * 4 + 3];
    uint64_t rng = 3;
    for (int i = 0; i < N; i++)
        x[i] = test_randf(&rng) * 3;
    for (int t = 0; t < DL_TYPE_COUNT; t++)
        for (size_t shift = 0; shift < 2; shift++) {
            uint64_t bytes = 0;
            assert_true(dl_row_bytes((enum dl_type)t, N, &bytes));
            memset(row, 0xee, sizeof row);
            dl_row_from_f32((enum dl_type)t, x, row + shift, N);
            assert_int_equal(row[shift + bytes], 0xee); /* not a byte more */
            dl_row_to_f32((enum dl_type)t, row + shift, back, N);
            double err = 0, ref = 0;
            for (int i = 0; i < N; i++) {
                err += pow((double)back[i] - (double)x[i], 2);
                ref += pow((double)x[i], 2);
            }
            static const double bound[] = {0, 1e-7, 1e-5, 1e-2, 1e-4, 1e-7};
            if (err > bound[t] * ref)
                fail_msg("%s: NMSE %g", dl_type_info((enum dl_type)t)->name, err / ref);
        }
}

static void test_row_bytes(void **state)
{
    (void)state;
    static const struct {
        enum dl_type type;
        uint64_t cols, bytes;
        bool ok;
    } rows[] = {{DL_F32, 3, 12, true},         {DL_F16, 3, 6, true},     {DL_BF16, 5, 10, true},
                {DL_Q40, 64, 36, true},        {DL_Q80, 64, 68, true},   {DL_Q40, 33, 0, false},
                {DL_Q80, 31, 0, false},        {DL_Q80, 0, 0, true},     {DL_F32, UINT64_MAX / 2, 0, false},
                {DL_TYPE_COUNT, 32, 0, false}, {DL_Q120, 96, 150, true}, {DL_Q120, 48, 0, false}};
    for (size_t i = 0; i < DL_COUNT_OF(rows); i++) {
        uint64_t bytes = 0;
        bool ok = dl_row_bytes(rows[i].type, rows[i].cols, &bytes);
        if (ok != rows[i].ok || (ok && bytes != rows[i].bytes))
            fail_msg("row %zu: %d, %llu bytes", i, ok, (unsigned long long)bytes);
    }
    assert_null(dl_type_info(DL_TYPE_COUNT));
    assert_string_equal(dl_type_info(DL_Q40)->name, "q40");
    assert_int_equal(dl_type_info(DL_Q80)->block_bytes, 34);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves_all),    cmocka_unit_test(test_halves_rounding),
        cmocka_unit_test(test_blocks_random), cmocka_unit_test(test_blocks_edges),
        cmocka_unit_test(test_rows),          cmocka_unit_test(test_row_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
