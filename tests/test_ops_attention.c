/* SPDX-License-Identifier: MIT
 *
 * tests/test_ops_attention.c: ATTENTION on the CPU where the ops suite does not reach: contexts of several parts, walked by one
 * thread or shared by many, prompts whose tokens go over the cache together. Against the formula, and bit for bit between
 * numbers of threads and batches: what a token gets depends on its own sequence alone.
 */
#include "ops_build.h"
#include "ops_case.h"
#include "ops_oracle.h"

/* One thread walks alone; so many that few tokens are always cut into parts. */
static const uint32_t threads[] = {1, 2, 9};

struct set {
    dl_device *dev[DL_COUNT_OF(threads)]; /* all with the same kernels */
};
static struct set sets[8];
static uint32_t n_sets;

/* The reference has no parts, and takes minutes here; test_ops has it. */
static int open_devices(void **state)
{
    (void)state;
    char isas[128], *save = NULL;
    snprintf(isas, sizeof isas, "%s", dl_cpu_isas());
    for (char *isa = strtok_r(isas, " ", &save); isa; isa = strtok_r(NULL, " ", &save)) {
        if (!strcmp(isa, "ref"))
            continue;
        assert_true(n_sets < DL_COUNT_OF(sets));
        for (size_t i = 0; i < DL_COUNT_OF(threads); i++) {
            struct dl_cpu_opts opts = {.threads = threads[i], .isa = isa};
            if (dl_cpu_open(&opts, &sets[n_sets].dev[i]))
                return -1;
        }
        n_sets++;
    }
    if (!n_sets)
        printf("SKIPPED PART: no kernels here but the reference\n");
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    for (uint32_t s = 0; s < n_sets; s++)
        for (size_t i = 0; i < DL_COUNT_OF(threads); i++)
            dl_device_close(&sets[s].dev[i]);
    return 0;
}

/* On all devices; returns what the first of set s gave, to be freed. */
static uint8_t *run(const struct ops_case *c, uint32_t s)
{
    uint8_t *first = NULL;
    for (size_t i = 0; i < DL_COUNT_OF(threads); i++) {
        dl_device *dev = sets[s].dev[i];
        uint8_t *result = ops_run(dev, c);
        if (!first) {
            first = result;
            continue;
        }
        OPS_CHECK(c, dev, !memcmp(first, result, c->bufs[c->op.dst.buf].desc.bytes), "other bits than with one thread");
        free(result);
    }
    return first;
}

static void against_formula(const struct attention_shape *shape, enum ops_fill fill, double sharpness, uint32_t variant)
{
    struct ops_case c;
    build_attention(&c, shape, fill, sharpness, variant);
    c.varies = fill != FILL_ZERO;
    ops_ready(&c);
    ops_oracle(&c);
    for (uint32_t s = 0; s < n_sets; s++) {
        uint8_t *result = run(&c, s);
        ops_compare(&c, sets[s].dev[0], result);
        free(result);
    }
    ops_free(&c);
}

static const enum dl_type types[] = {DL_F16, DL_Q80, DL_F32};

/* A token each of sequences of many lengths: about a block, a part, two parts. */
static void test_lengths(void **state)
{
    (void)state;
    static const uint32_t last[] = {0, 30, 31, 32, 254, 255, 256, 510, 511, 512},
                          seq[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const uint32_t dims[] = {64, 80, 128, 256};
    static const struct {
        uint32_t n_heads, n_kv, group, first_head;
    } heads[] = {{2, 2, 1, 0}, {8, 2, 4, 0}, {8, 1, 8, 0}, {16, 1, 16, 0}, {7, 1, 7, 0}, {5, 3, 4, 3}};
    uint32_t variant = 0;
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (size_t h = t; h < DL_COUNT_OF(heads); h += 2, variant++) {
                struct attention_shape s = {.type = types[t],
                                            .n_heads = heads[h].n_heads,
                                            .n_kv = heads[h].n_kv,
                                            .group = heads[h].group,
                                            .first_head = heads[h].first_head,
                                            .head_dim = dims[d],
                                            .last = last,
                                            .seq = seq,
                                            .n = DL_COUNT_OF(last)};
                if (types[t] == DL_Q80 && dims[d] % DL_BLOCK)
                    continue;
                against_formula(&s, (enum ops_fill)(variant % FILL_COUNT), variant % 2 ? 8 : 1, variant);
            }
}

static void test_long(void **state)
{
    (void)state;
    static const uint32_t last[] = {4096, 2047}, seq[] = {0, 1};
    for (size_t t = 0; t < DL_COUNT_OF(types); t++) {
        struct attention_shape s = {.type = types[t],
                                    .n_heads = 4,
                                    .n_kv = 1,
                                    .group = 4,
                                    .head_dim = 64,
                                    .last = last,
                                    .seq = seq,
                                    .n = 1 + (uint32_t)t % 2};
        against_formula(&s, FILL_RANDOM, 4, (uint32_t)t);
    }
}

/* A piece of a prompt across the border of a part, then tokens of other sequences, two of them of the same one. */
enum { PIECE = 70, OTHERS = 5, MIXED = PIECE + OTHERS };
static uint32_t mixed_last[MIXED], mixed_seq[MIXED];

static struct attention_shape mixed(enum dl_type type, uint32_t group, uint32_t head_dim)
{
    static const uint32_t last[OTHERS] = {3, 300, 301, 40, 600}, seq[OTHERS] = {1, 2, 2, 3, 4};
    for (uint32_t i = 0; i < MIXED; i++) {
        mixed_last[i] = i < PIECE ? 225 + i : last[i - PIECE];
        mixed_seq[i] = i < PIECE ? 0 : seq[i - PIECE];
    }
    return (struct attention_shape){.type = type,
                                    .n_heads = 2 * group,
                                    .n_kv = 2,
                                    .group = group,
                                    .head_dim = head_dim,
                                    .last = mixed_last,
                                    .seq = mixed_seq,
                                    .n = MIXED};
}

static const struct {
    enum dl_type type;
    uint32_t group, head_dim;
} kinds[] = {{DL_F16, 4, 64}, {DL_Q80, 4, 64}, {DL_F16, 1, 80}, {DL_F32, 3, 32}, {DL_F16, 16, 64}, {DL_Q80, 2, 320}};

static void test_prompt(void **state)
{
    (void)state;
    for (size_t k = 0; k < DL_COUNT_OF(kinds); k++) {
        struct attention_shape s = mixed(kinds[k].type, kinds[k].group, kinds[k].head_dim);
        against_formula(&s, FILL_RANDOM, 2, (uint32_t)k);
    }
}

/* Leaves `count` tokens of the batch, from `first` on, whose queries are those of `queries`. */
static void keep_tokens(struct ops_case *c, const uint8_t *queries, uint32_t first, uint32_t count)
{
    const struct dl_view *q = &c->op.src[0];
    memcpy(c->bufs[q->buf].bytes, queries + first * q->row_bytes, count * q->row_bytes);
    for (uint32_t t = 0; t < count; t++)
        ops_batch_rows(c)[t] = (struct dl_batch_row){mixed_last[first + t], mixed_seq[first + t]};
    struct dl_batch_head *head = (struct dl_batch_head *)(void *)c->batch;
    head->n_tokens = c->n_tokens = count;
}

static void test_alone(void **state)
{
    (void)state;
    static const uint32_t first[] = {0, 30, 31, 69, 5, 60, 71, 74}, count[] = {1, 1, 2, 1, 37, 15, 2, 1};
    for (size_t k = 0; k < DL_COUNT_OF(kinds); k++) {
        struct attention_shape shape = mixed(kinds[k].type, kinds[k].group, kinds[k].head_dim);
        struct ops_case c;
        build_attention(&c, &shape, FILL_RANDOM, 2, (uint32_t)k);
        ops_ready(&c);
        const struct dl_view *q = &c.op.src[0], *d = &c.op.dst;
        uint8_t *queries = dl_xcalloc(c.bufs[q->buf].desc.bytes, 1);
        memcpy(queries, c.bufs[q->buf].bytes, c.bufs[q->buf].desc.bytes);
        for (uint32_t s = 0; s < n_sets; s++) {
            keep_tokens(&c, queries, 0, MIXED);
            uint8_t *all = run(&c, s);
            for (size_t i = 0; i < DL_COUNT_OF(first); i++) {
                keep_tokens(&c, queries, first[i], count[i]);
                uint8_t *some = run(&c, s);
                for (uint32_t r = 0; r < count[i]; r++)
                    OPS_CHECK(&c, sets[s].dev[0],
                              !memcmp(some + d->offset + r * d->row_bytes,
                                      all + d->offset + (first[i] + r) * d->row_bytes, d->cols * sizeof(float)),
                              "token %u differs when it is token %u of %u", first[i] + r, r, count[i]);
                free(some);
            }
            free(all);
        }
        free(queries);
        ops_free(&c);
    }
}

/* What a token of the batch stored is no business of those before it, even where it overflowed. */
static void test_later_rows(void **state)
{
    (void)state;
    for (size_t k = 0; k < DL_COUNT_OF(kinds); k++) {
        struct attention_shape shape = mixed(kinds[k].type, kinds[k].group, kinds[k].head_dim);
        struct ops_case c;
        build_attention(&c, &shape, FILL_RANDOM, 2, (uint32_t)k);
        ops_ready(&c);
        ops_oracle(&c);
        const uint32_t bad[] = {33, 50, PIECE - 1};
        for (size_t b = 0; b < DL_COUNT_OF(bad); b++)
            for (uint32_t h = 0; h < shape.n_kv; h++)
                for (int i = 1; i <= 2; i++)
                    memset(ops_row(&c, &c.op.src[i], ops_kv_row(&c, bad[b], shape.n_kv, h, mixed_last[bad[b]])), 0xff,
                           c.op.src[i].row_bytes);
        for (uint32_t s = 0; s < n_sets; s++) {
            uint8_t *result = run(&c, s);
            for (uint32_t t = 0; t < MIXED; t++)
                if (t < bad[0] || t >= PIECE)
                    ops_check_f32(&c, sets[s].dev[0], result + c.op.dst.offset + t * c.op.dst.row_bytes,
                                  c.want + (size_t)t * c.op.dst.cols, t);
            free(result);
        }
        ops_free(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths), cmocka_unit_test(test_long),       cmocka_unit_test(test_prompt),
        cmocka_unit_test(test_alone),   cmocka_unit_test(test_later_rows),
    };
    return cmocka_run_group_tests(tests, open_devices, close_devices);
}
