/* SPDX-License-Identifier: MIT
 *
 * tests/test_embed_row.c: embedding rows as bytes: what they lose, and that the rounded row is the same bytes again, whatever is in it.
 */
#include "common.h"

#include <math.h>

#include "embed_row.h"

enum { DIM = 256 };
static const enum eng_embed kinds[] = {ENG_EMBED_F32, ENG_EMBED_F16, ENG_EMBED_BLOCKS};

/* NMSE of what comes out of a row. */
static double loss(enum eng_embed kind, const float *row)
{
    uint8_t bytes[DIM * sizeof(float)], again[DIM * sizeof(float)];
    float got[DIM], rounded[DIM];
    const uint64_t n = eng_embed_bytes(kind, DIM);
    double err = 0, all = 0;
    eng_embed_put(kind, row, DIM, bytes);
    eng_embed_get(kind, bytes, DIM, got);
    memcpy(rounded, row, sizeof rounded);
    eng_embed_round(kind, rounded, DIM);
    for (uint32_t i = 0; i < DIM; i++)
        assert_true(got[i] == rounded[i] || (isnan(got[i]) && isnan(rounded[i])));
    eng_embed_put(kind, rounded, DIM, again); /* what the root computes with is what the others get */
    assert_memory_equal(again, bytes, n);
    for (uint32_t i = 0; i < DIM; i++) {
        err += ((double)got[i] - (double)row[i]) * ((double)got[i] - (double)row[i]);
        all += (double)row[i] * (double)row[i];
    }
    return all > 0 ? err / all : err;
}

static void sizes(void **state)
{
    (void)state;
    assert_int_equal(eng_embed_of(DL_F32, 2048), ENG_EMBED_F32);
    assert_int_equal(eng_embed_of(DL_F16, 2048), ENG_EMBED_F16);
    assert_int_equal(eng_embed_of(DL_Q80, 2048), ENG_EMBED_BLOCKS);
    assert_int_equal(eng_embed_of(DL_Q80, 80), ENG_EMBED_F16); /* no whole blocks */
    assert_int_equal(eng_embed_bytes(ENG_EMBED_F32, 64), 256);
    assert_int_equal(eng_embed_bytes(ENG_EMBED_F16, 64), 128);
    assert_int_equal(eng_embed_bytes(ENG_EMBED_BLOCKS, 64), 114);
}

static void less_is_lost_than_by_f16(void **state)
{
    (void)state;
    uint64_t rng = 3;
    double sum[3] = {0};
    for (int r = 0; r < 200; r++) {
        float row[DIM], size = exp2f((float)(r % 23) - 16);
        for (uint32_t i = 0; i < DIM; i++)
            row[i] = size * (test_randf(&rng) + test_randf(&rng) + test_randf(&rng));
        for (int k = 0; k < 3; k++)
            sum[k] += loss(kinds[k], row) / 200;
    }
    assert_true(sum[0] == 0 && sum[1] > 1e-9);
    assert_true(sum[2] > 1e-9 && sum[2] < 1e-7);
    if (sum[2] > sum[1])
        fail_msg("NMSE %.2e, of f16 %.2e", sum[2], sum[1]);
}

/* Largest values around a power of two, zeros, tiny and huge ones, and what is no number at all. */
static void edges(void **state)
{
    (void)state;
    static const float most[] = {8191,   8190.5f, 8191.5f, 4095.5f, 4095.49f, 4096,  1,         0,
                                 1e-40f, 1e-45f,  3e38f,   1e-30f,  -8192,    -0.0f, -4095.75f, 2.5e-39f};
    for (size_t m = 0; m < DL_COUNT_OF(most); m++)
        for (int e = -20; e <= 20; e += 5) {
            float row[DIM];
            for (uint32_t i = 0; i < DIM; i++) {
                row[i] = ldexpf(most[m], e) * (float)(i % DL_BLOCK) / (DL_BLOCK - 1) * (i / DL_BLOCK % 2 ? -1 : 1);
                row[i] = isfinite(row[i]) ? row[i] : 3e38f;
            }
            double lost = loss(ENG_EMBED_BLOCKS, row);
            assert_true(lost < 1e-7 || fabsf(row[DL_BLOCK - 1]) < 1e-33f); /* steps are 2^-126 or more */
        }
    float odd[DIM] = {[3] = NAN, [40] = INFINITY, [41] = -1, [70] = -INFINITY, [71] = NAN, [100] = 5};
    (void)loss(ENG_EMBED_BLOCKS, odd);
    eng_embed_round(ENG_EMBED_BLOCKS, odd, DIM);
    for (uint32_t i = 0; i < DIM; i++)
        assert_true(isfinite(odd[i]));
    assert_true(odd[40] > 3e38f && odd[70] < -3e38f && odd[100] == 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sizes), cmocka_unit_test(less_is_lost_than_by_f16),
                                       cmocka_unit_test(edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
