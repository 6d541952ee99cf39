/* SPDX-License-Identifier: MIT
 *
 * tests/test_model_hostile.c: model files as an attacker or a bad disk would make them: cut at every byte, and thousands of seeded
 * mutations of each format. Opening ends in success, with every tensor inside the file, or in one logged line; and what it
 * allocates stays in proportion to the file. (The fuzz targets go on from here.)
 */
#include "common.h"
#include "count_alloc.h"
#include "dl/model.h"
#include "model_files.h"
#include "watch_log.h"

#include <time.h>

#define MUTANTS 10000u

/* Twice the file, and what a model of any size needs (its struct, its name and path, small tables; rounding by malloc). */
static size_t allowance(size_t file_bytes)
{
    return 2 * file_bytes + 8192;
}

/* ---------------------------------------------------------------------------------------------------- open */

static volatile uint8_t touched;

static void check_inside(const dl_model *m, const uint8_t *bytes, size_t n)
{
    for (unsigned id = 0; id < DL_T_COUNT; id++)
        for (uint32_t l = 0; l < (dl_tensor_per_layer((enum dl_tensor_id)id) ? dl_model_header(m)->n_layers : 1); l++) {
            struct dl_tensor t;
            if (dl_model_tensor(m, (enum dl_tensor_id)id, l, &t))
                continue;
            assert_true(t.rows && t.cols && t.n_experts && t.row_bytes && t.data >= bytes);
            uint64_t end = t.row_bytes * t.rows + t.expert_bytes * (t.n_experts - 1);
            assert_true(t.data < bytes + n && end <= (uint64_t)(bytes + n - t.data));
            touched = (uint8_t)(t.data[0] ^ t.data[end - 1]);
        }
}

static void check_row(void *ud, const char *what, const char *name, const char *text)
{
    (void)what;
    *(unsigned *)ud += 1;
    for (const char *p = name; *p; p++)
        assert_true((unsigned char)*p >= 0x20 && *p != 0x7f);
    for (const char *p = text; *p; p++)
        assert_true((unsigned char)*p >= 0x20 && *p != 0x7f);
}

/* Opens an exact-size copy; true when that worked. All that must hold of any bytes is checked here. */
static bool open_checked(const char *bytes, size_t n)
{
    uint8_t *exact = malloc(n ? n : 1);
    assert_non_null(exact);
    memcpy(exact, bytes, n);
    dl_model *m;
    unsigned before = log_lines.n, rows = 0;
    size_t base = peak_bytes = live_bytes;
    clock_t start = clock(); /* of this process: the machine may be busy */
    int err = dl_model_open_mem(exact, n, "mutant", &m);
    assert_true(clock() - start < CLOCKS_PER_SEC);
    if (peak_bytes - base > allowance(n))
        fail_msg("%zu bytes allocated for a file of %zu", peak_bytes - base, n);
    if (err) {
        assert_true(err < 0 && err != DL_ENOMEM && !m);
        if (log_lines.n != before + 1)
            fail_msg("%d with %u lines, the last '%s'", err, log_lines.n - before, log_lines.last);
    } else {
        assert_int_equal(log_lines.n, before);
        check_inside(m, exact, n);
        assert_int_equal(dl_model_list(m, check_row, &rows), 0);
        assert_true(rows > 10);
    }
    dl_model_close(&m);
    if (live_bytes != base)
        fail_msg("%zu bytes leaked", live_bytes - base);
    free(exact);
    return !err;
}

/* ------------------------------------------------------------------------------------------------ mutants */

static void set_le(char *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (char)(unsigned char)(v >> 8 * i);
}

static uint64_t hostile(uint64_t *seed, size_t n)
{
    static const uint64_t values[] = {0,          1,          2,          31,         33,         255,
                                      65536,      INT32_MAX,  1u << 31,   UINT32_MAX, 1ull << 32, INT64_MAX,
                                      1ull << 63, UINT64_MAX, 1ull << 61, 0xffffff00, 1ull << 40, 1u << 20};
    uint64_t r = test_rand(seed);
    switch (r % 4) {
    case 0:
        return n - (r >> 8) % 64; /* about the size of the file */
    case 1:
        return (r >> 8) % 128;
    default:
        return values[(r >> 8) % DL_COUNT_OF(values)];
    }
}

/* One to three changes, most of them in the first `header` bytes; fields are places that hold numbers. */
static size_t mutate(char *v, size_t n, size_t header, const uint32_t *fields, unsigned n_fields, uint64_t *seed)
{
    for (uint64_t changes = 1 + test_rand(seed) % 3; changes && n > 16; changes--) {
        uint64_t r = test_rand(seed), kind = r % 16, where = r >> 8;
        size_t at = kind == 0 ? where % n : where % DL_MIN(header, n);
        size_t field = n_fields ? fields[where % n_fields] : at;
        unsigned width = r & 0x10 ? 8 : 4;
        if (kind < 4) {
            v[at] = (char)(v[at] ^ (char)(1 << (r >> 5) % 8));
        } else if (kind < 5) {
            n = where % n;
        } else if (kind < 6) {
            n -= DL_MIN(n - 1, where % 40);
        } else if (kind < 8) {
            size_t from = where % n, len = DL_MIN(DL_MIN((r >> 40) % 64, n - from), n - at);
            memmove(v + at, v + from, len);
        } else if (kind < 14 && field + width <= n) {
            set_le(v + field, hostile(seed, n), width);
        } else if (at + width <= n) {
            set_le(v + at, hostile(seed, n), width);
        }
    }
    return n;
}

/* Returns how many of the mutants opened. */
static unsigned run_mutants(struct dl_str f, size_t header, const uint32_t *fields, unsigned n_fields, unsigned n,
                            uint64_t *seed)
{
    unsigned opened = 0;
    char *v = malloc(f.len);
    assert_non_null(v);
    assert_true(open_checked(f.v, f.len));
    for (unsigned i = 0; i < n; i++) {
        memcpy(v, f.v, f.len);
        size_t len = mutate(v, f.len, header, fields, n_fields, seed);
        opened += open_checked(v, len);
    }
    free(v);
    return opened;
}

static const struct tiny tinies[] = {
    {.arch = "llama", .type = 2, .layers = 1, .tied = true, .factors = true},
    {.arch = "llama", .type = 1, .layers = 2, .experts = 2},
    {.arch = "qwen2", .type = 8, .layers = 2, .bias = true},
    {.arch = "qwen3", .type = 0, .layers = 1},
    {.arch = "qwen3moe", .type = 2, .layers = 1, .experts = 4},
};

static void test_gguf_mutants(void **state)
{
    (void)state;
    uint64_t seed = 20240601;
    unsigned opened = 0;
    for (size_t i = 0; i < DL_COUNT_OF(tinies); i++) {
        struct gw w = {0};
        tiny_meta(&w, &tinies[i]);
        if (i == 0) { /* the rarer keys, too */
            gw_u32(&w, "general.alignment", 32);
            gw_str(&w, "llama.rope.scaling.type", "none");
            gw_f32(&w, "llama.rope.scaling.factor", 2);
            gw_u32(&w, "llama.rope.dimension_count", 8);
            gw_u32(&w, "split.count", 1);
        }
        tiny_tensors(&w, &tinies[i]);
        size_t data = w.data.len;
        struct dl_str f = gw_finish(&w);
        opened += run_mutants(f, f.len - data, w.fields, w.n_fields, MUTANTS / DL_COUNT_OF(tinies), &seed);
        dl_str_finish(&f);
    }
    /* Some changes do no harm (a name, a weight): were it none or all, the mutations would miss the point. */
    assert_in_range(opened, MUTANTS / 50, MUTANTS / 2);
}

static void test_m_mutants(void **state)
{
    (void)state;
    uint64_t seed = 19700101;
    unsigned opened = 0;
    for (int32_t arch = 0xABCD00; arch <= 0xABCD02; arch++)
        for (int32_t weight = 0; weight < 4; weight++) {
            struct tiny_m t = tiny_m(arch, weight);
            tm_set(&t, 14, 1), tm_set(&t, 17, 8192), tm_set(&t, 18, 0);
            struct dl_str f = tm_finish(&t);
            opened += run_mutants(f, 8 + 8 * t.n, NULL, 0, MUTANTS / 12 + 1, &seed);
            dl_str_finish(&f);
        }
    assert_in_range(opened, MUTANTS / 50, MUTANTS / 2);
}

/* Headers that describe far more than there is: the smallest layers, as many as allowed. */
static void test_large_claims(void **state)
{
    (void)state;
    struct tiny_m t = tiny_m(0xABCD00, 0);
    tm_set(&t, 2, 1), tm_set(&t, 3, 1), tm_set(&t, 4, 1024), tm_set(&t, 5, 1), tm_set(&t, 6, 1), tm_set(&t, 9, 1),
        tm_set(&t, 19, 2);
    struct dl_str f = tm_finish(&t);
    assert_true(open_checked(f.v, f.len)); /* 1024 layers of 60 bytes */
    assert_false(open_checked(f.v, f.len - 1));
    dl_str_finish(&f);

    t = tiny_m(0xABCD02, 0);
    static const int32_t most[][2] = {{2, 1 << 20}, {4, 1024},    {5, 4096}, {6, 4096},
                                      {7, 4095},    {9, 1 << 22}, {19, 256}, {21, 1 << 20}};
    f = tm_finish(&t);
    for (size_t i = 0; i < DL_COUNT_OF(most); i++) {
        tm_set(&t, most[i][0], most[i][1]);
        for (unsigned p = 0; p < t.n; p++)
            set_le(f.v + 8 + 8 * p, (uint32_t)t.keys[p], 4), set_le(f.v + 12 + 8 * p, (uint32_t)t.values[p], 4);
        assert_false(open_checked(f.v, f.len));
    }
    dl_str_finish(&f);
}

/* ---------------------------------------------------------------------------------------------------- cuts */

static void test_cut_everywhere(void **state)
{
    (void)state;
    struct dl_str f = tiny_gguf(&tinies[0]);
    for (size_t n = 0; n < f.len; n++)
        assert_false(open_checked(f.v, n));
    assert_true(open_checked(f.v, f.len));
    dl_str_finish(&f);
    for (int32_t arch = 0xABCD00; arch <= 0xABCD02; arch += 2) {
        struct tiny_m t = tiny_m(arch, 2);
        tm_set(&t, 4, 1);
        f = tm_finish(&t);
        for (size_t n = 0; n < f.len; n++)
            assert_false(open_checked(f.v, n));
        assert_true(open_checked(f.v, f.len));
        put_le(&f, 0, 1);
        assert_false(open_checked(f.v, f.len));
        dl_str_finish(&f);
    }
}

#define T(name) cmocka_unit_test_setup_teardown(name, watch_log, unwatch_log)
int main(void)
{
    const struct CMUnitTest tests[] = {T(test_gguf_mutants), T(test_m_mutants), T(test_large_claims),
                                       T(test_cut_everywhere)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
