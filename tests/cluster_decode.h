/* SPDX-License-Identifier: MIT
 *
 * tests/cluster_decode.h: any bytes as any message between a root and a worker, for test_cluster_msg.c and fuzz_cluster_msg.c: what is
 * accepted keeps what its header promises and is written back as the same bytes; what is refused says why in one line.
 */
#ifndef TESTS_CLUSTER_DECODE_H
#define TESTS_CLUSTER_DECODE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster_msg.h"

#define DECODE_WEIGHTS 21u
#define DECODE_DIM 8u
#define DECODE_NODES 3u
#define DECODE_VOCAB0 40u
#define DECODE_VOCAB 24u

static const struct dl_batch_shape decode_shape = {.max_tokens = 6, .max_out = 3, .max_tables = 2, .table_cols = 4};
static const struct eng_step_limits decode_limits = {DECODE_DIM, 8, ENG_EMBED_F16};
static const struct eng_want decode_wants[] = {{DL_WANT_LAST, 0, 0}, {DL_WANT_BEST, 1, 0}, {DL_WANT_TOP, 4, 0.5f}};

static unsigned decode_lines;
static inline void decode_count(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)line;
    decode_lines += level == DL_LOG_ERROR;
}

static inline void decode_check(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "cluster message: %s\n", what);
        abort();
    }
}

/* The header of a model that passes all checks. */
static inline struct dl_model_header decode_header(void)
{
    return (struct dl_model_header){.arch = DL_ARCH_LLAMA,
                                    .dim = 64,
                                    .hidden_dim = 96,
                                    .n_layers = 2,
                                    .n_heads = 4,
                                    .n_kv_heads = 2,
                                    .head_dim = 16,
                                    .vocab = 64,
                                    .max_seq = 512,
                                    .norm_eps = 1e-5f,
                                    .n_rot = 16,
                                    .rope_theta = 10000,
                                    .rope_scaling = DL_ROPE_SCALE_TABLE};
}

static inline int decode_model(const struct eng_in *in, struct eng_out *back)
{
    struct eng_model_msg m;
    int err = eng_model_read(in, DECODE_NODES, 1, &m);
    if (err) {
        decode_check(!m.slices && !m.types.layer && !m.rope_factors, "a refused MODEL leaves something behind");
        return err;
    }
    /* What a worker does next must be safe with anything that was accepted. */
    struct dl_model_plan *mp;
    const unsigned lines = decode_lines;
    uint64_t work = (uint64_t)m.h.n_layers * (m.h.n_experts + 1);
    if (work < 4096) {
        int planned = dl_plan_build(&m.h, &m.types, m.slices, m.node, m.n_nodes, &m.opts, &mp);
        decode_check(planned ? !mp && decode_lines == lines + 1 : mp && decode_lines == lines, "plan");
        dl_plan_destroy(&mp);
    }
    decode_lines = lines;
    eng_model_write(back, &m);
    eng_model_finish(&m);
    return DL_OK;
}

static inline int decode_step(const struct eng_in *in, struct eng_out *back)
{
    struct eng_tables t, before;
    struct eng_batch b;
    decode_check(!eng_tables_init(&t, &decode_shape) && !eng_tables_init(&before, &decode_shape) &&
                     !eng_batch_init(&b, &decode_shape),
                 "memory");
    static const uint32_t had[] = {5, 6, 7};
    memcpy(t.v, had, sizeof had); /* what the step before has left */
    memcpy(before.v, had, sizeof had);
    t.n[0] = before.n[0] = 3;
    uint64_t step;
    const uint8_t *rows = NULL;
    int err = eng_step_read(in, &decode_limits, &t, &step, &b, &rows);
    if (!err) {
        uint32_t tokens = 0;
        static float embed[6 * DECODE_DIM];
        for (uint32_t i = 0; i < b.n_seqs; i++) {
            const struct eng_seq *s = &b.seqs[i];
            decode_check(s->n_blocks * DL_KV_BLOCK >= s->pos0 + s->n && s->n_blocks <= 4, "blocks");
            for (uint32_t j = 0; j < s->n_blocks; j++)
                decode_check(s->blocks[j] < decode_limits.kv_blocks, "a block outside");
            tokens += s->n;
        }
        decode_check(tokens == b.n_tokens && tokens <= 6 && b.n_out <= 3, "too many");
        decode_check(rows + tokens * DECODE_DIM * 2 == in->bytes + in->n, "rows");
        dl_row_to_f32(DL_F16, rows, embed, (size_t)tokens * DECODE_DIM);
        bool canonical = true; /* half a NaN and a block that is sent although it was there are not */
        for (uint32_t i = 0; i < tokens * DECODE_DIM; i++)
            canonical = canonical && !isnan(embed[i]);
        eng_step_write(back, step, &b, embed, &decode_limits, &before);
        if (!canonical || back->s.len != in->n) {
            decode_check(back->s.len <= in->n, "written back longer");
            back->s.len = 0;
        }
    }
    eng_tables_finish(&t);
    eng_tables_finish(&before);
    eng_batch_finish(&b);
    return err;
}

static inline int decode_logits(const struct eng_in *in)
{
    static const struct dl_slice slice = {.vocab0 = DECODE_VOCAB0, .n_vocab = DECODE_VOCAB};
    struct eng_row rows[3] = {{0}};
    float full[DECODE_VOCAB0 + DECODE_VOCAB + 1];
    struct dl_candidate top[3][DL_TOP_MOST];
    for (size_t i = 0; i < DL_COUNT_OF(full); i++)
        full[i] = 1234;
    for (int r = 0; r < 3; r++)
        rows[r] = (struct eng_row){.full = full, .top = top[r], .log_sum = -INFINITY};
    int err = eng_logits_read(in, 7, decode_wants, 3, &slice, rows);
    decode_check(full[DECODE_VOCAB0 - 1] == 1234 && full[DECODE_VOCAB0 + DECODE_VOCAB] == 1234, "outside the slice");
    if (err)
        decode_check(full[DECODE_VOCAB0] == 1234 && !rows[1].n_top && !rows[2].n_top, "a refused message was used");
    for (int r = 1; !err && r < 3; r++) {
        decode_check(rows[r].n_top <= decode_wants[r].k && !isnan(rows[r].log_sum), "candidates");
        for (uint32_t i = 0; i < rows[r].n_top; i++)
            decode_check(top[r][i].id >= (int32_t)DECODE_VOCAB0 &&
                             top[r][i].id < (int32_t)(DECODE_VOCAB0 + DECODE_VOCAB) && !isnan(top[r][i].logit) &&
                             (!i || top[r][i - 1].logit >= top[r][i].logit),
                         "a candidate");
    }
    return err;
}

static inline int decode_offer(const struct eng_in *in, struct eng_out *back)
{
    uint32_t n;
    struct eng_offer_entry e[DECODE_WEIGHTS];
    int err = eng_offer_read(in, 5, DECODE_WEIGHTS, &n);
    if (err)
        return err;
    decode_check(n && n <= DECODE_WEIGHTS - 5, "entries");
    for (uint32_t i = 0; i < n; i++)
        e[i] = eng_offer_get(in, i);
    eng_offer_write(back, 5, e, n);
    return DL_OK;
}

/* By its first byte. `back`: the message written anew from what was read, or empty where that need not be the same. */
static inline int decode_any(const struct eng_in *in, struct eng_out *back)
{
    union {
        struct eng_hello hello;
        struct eng_error error;
        struct eng_memory memory;
        struct eng_data data;
        struct dl_engine_stats stats;
        bool reset;
        struct eng_measure measure;
        struct eng_rate rate;
        struct eng_link_job job;
    } u;
    uint64_t number;
    uint32_t row;
    const uint8_t *bits;
    uint8_t *room;
    int err;
    back->s.len = 0;
    switch (eng_in_type(in)) {
    case ENG_MSG_HELLO:
        err = eng_hello_read(in, &u.hello);
        if (!err && u.hello.protocol == ENG_PROTOCOL)
            eng_hello_write(back, &u.hello);
        return err;
    case ENG_MSG_MODEL:
        return decode_model(in, back);
    case ENG_MSG_MEASURE:
        err = eng_measure_read(in, &u.measure);
        decode_check(err || (u.measure.dim && u.measure.dim <= DL_MAX_DIM), "a width");
        if (!err)
            eng_measure_write(back, &u.measure);
        return err;
    case ENG_MSG_RATE:
        err = eng_rate_read(in, true, &u.rate);
        decode_check(err || (u.rate.rate.bytes_per_s > 0 && u.rate.rate.flops >= 0), "a rate");
        if (!err && in->bytes[in->n - 1] < 2)
            eng_rate_write(back, &u.rate);
        return err;
    case ENG_MSG_LINK:
        err = eng_link_job_read(in, &u.job);
        decode_check(err || (u.job.rounds && u.job.bytes && u.job.bytes <= ENG_LINK_BYTES_MOST), "an exchange");
        if (!err)
            eng_link_job_write(back, &u.job);
        return err;
    case ENG_MSG_MEMORY:
        err = eng_memory_read(in, &u.memory);
        if (!err && in->bytes[in->n - ENG_DIGEST_BYTES - 1] < 2)
            eng_memory_write(back, &u.memory);
        return err;
    case ENG_MSG_OFFER:
        return decode_offer(in, back);
    case ENG_MSG_WANT:
        err = eng_want_read(in, DECODE_WEIGHTS, &bits);
        if (!err)
            eng_want_write(back, bits, DECODE_WEIGHTS);
        return err;
    case ENG_MSG_DATA:
        err = eng_data_read(in, &u.data);
        if (!err) {
            eng_data_write(back, u.data.weight, u.data.at, u.data.n, &room);
            memcpy(room, u.data.bytes, u.data.n);
        }
        return err;
    case ENG_MSG_GOT:
        err = eng_got_read(in, &number);
        if (!err)
            eng_got_write(back, number);
        return err;
    case ENG_MSG_STEP:
        return decode_step(in, back);
    case ENG_MSG_LOGITS:
        return decode_logits(in);
    case ENG_MSG_FETCH:
        err = eng_fetch_read(in, &number, &row);
        if (!err)
            eng_fetch_write(back, number, row);
        return err;
    case ENG_MSG_STATS:
        err = eng_stats_read(in, &u.reset);
        if (!err)
            eng_stats_write(back, u.reset);
        return err;
    case ENG_MSG_COUNTS:
        err = eng_counts_read(in, &u.stats);
        if (!err)
            eng_counts_write(back, &u.stats);
        return err;
    case ENG_MSG_ERROR:
        err = eng_error_read(in, &u.error);
        if (!err && in->bytes[1] >= 1 && in->bytes[1] <= 11 && !in->bytes[2] && !in->bytes[3] && !in->bytes[4])
            eng_error_write(back, u.error.code, u.error.text);
        return err;
    case ENG_MSG_READY:
    case ENG_MSG_BYE:
        err = eng_plain_read(in);
        if (!err)
            eng_plain_write(back, (enum eng_msg)in->bytes[0]);
        return err;
    default:
        return dl_fail(DL_EFORMAT, "test: no such message");
    }
}

/* One message, in memory of exactly its size. */
static inline int decode_one(const uint8_t *bytes, size_t n)
{
    uint8_t *exact = malloc(n ? n : 1);
    decode_check(exact != NULL, "memory");
    if (n)
        memcpy(exact, bytes, n);
    struct eng_in in = {"test", exact, n};
    struct eng_out back = {0};
    decode_lines = 0;
    int err = decode_any(&in, &back);
    decode_check(err ? err < 0 && decode_lines == 1 : decode_lines == 0, "one line when refused, none when not");
    decode_check(err || !back.s.len || (back.s.len == n && !memcmp(back.s.v, exact, n)), "written back differently");
    eng_out_finish(&back);
    free(exact);
    return err;
}

/* ------------------------------------------------------------------------------------------ good examples */

static inline void example_model(struct eng_out *o)
{
    struct eng_model_msg m = {.h = decode_header(), .n_nodes = DECODE_NODES, .node = 1, .name = "example"};
    struct dl_slice slices[DECODE_NODES];
    enum dl_type types[2 * DL_T_COUNT] = {DL_F32};
    float factors[8] = {1, 1, 1, 2, 2, 4, 8, 8};
    types[DL_T_FFN_UP] = DL_F16;
    decode_check(!dl_slices_make(&m.h, 4, NULL, DECODE_NODES, slices), "slices");
    m.types.layer = types;
    m.slices = slices;
    m.rope_factors = factors;
    m.shape = (struct dl_batch_shape){16, 4, 2, 16};
    m.opts = (struct dl_plan_opts){.max_tokens = 16, .max_out = 4, .kv_blocks = 32, .kv_type = DL_F16, .wire = DL_Q80};
    memset(m.plan.v, 0x5a, sizeof m.plan.v);
    m.made = true;
    eng_model_write(o, &m);
}

static inline void example_step(struct eng_out *o)
{
    static const uint32_t one[] = {5, 6, 2, 1}, two[] = {3};
    struct eng_seq seqs[] = {{95, 2, DL_WANT_TOP, 4, 0.5f, one, 4}, {0, 3, DL_WANT_BEST, 0, 0, two, 1}};
    struct eng_batch b = {.seqs = seqs, .n_seqs = 2, .n_tokens = 5, .cut = 3};
    struct eng_tables t;
    float embed[5 * DECODE_DIM];
    for (size_t i = 0; i < DL_COUNT_OF(embed); i++)
        embed[i] = (float)i / 8 - 1;
    decode_check(!eng_tables_init(&t, &decode_shape), "memory");
    static const uint32_t had[] = {5, 6, 7};
    memcpy(t.v, had, sizeof had);
    t.n[0] = 3;
    eng_step_write(o, 7, &b, embed, &decode_limits, &t);
    eng_tables_finish(&t);
}

static inline void example_logits(struct eng_out *o)
{
    struct dl_candidate scratch[DL_TOP_MOST];
    float row[DECODE_VOCAB];
    eng_logits_begin(o, 7, 3);
    for (unsigned r = 0; r < 3; r++) {
        for (unsigned i = 0; i < DECODE_VOCAB; i++)
            row[i] = (float)(i * 7 % 24) / 4 - (float)r;
        eng_logits_put(o, &decode_wants[r], row, DECODE_VOCAB, DECODE_VOCAB0, scratch);
    }
}

/* A good message of each type. */
static inline void example(enum eng_msg type, struct eng_out *o)
{
    struct eng_hello hello = {ENG_PROTOCOL, "1.2.3", "cpu (avx2, 4 threads)"};
    struct eng_memory memory = {1000, 2000, 3000, 4000, 50000, true, {{1, 2, 3}}};
    struct eng_offer_entry offers[4] = {{100, {{1}}}, {200, {{2}}}, {300, {{3}}}, {400, {{4}}}};
    const struct dl_engine_stats stats = {1, 2, 3, 4, 5, 6, UINT64_C(1) << 40, 8};
    const uint8_t bits[] = {0x21, 0x00, 0x11};
    struct eng_measure measure = {2048, DL_Q40, true, true};
    struct eng_rate rate = {{1.5e10, 900, 9000, 2e11}, 8000000000, 77, true};
    uint8_t *room;
    switch (type) {
    case ENG_MSG_HELLO:
        eng_hello_write(o, &hello);
        break;
    case ENG_MSG_MODEL:
        example_model(o);
        break;
    case ENG_MSG_MEASURE:
        eng_measure_write(o, &measure);
        break;
    case ENG_MSG_RATE:
        eng_rate_write(o, &rate);
        break;
    case ENG_MSG_LINK:
        eng_link_job_write(o, &(struct eng_link_job){ENG_LINK_GIVE, 4, 1000});
        break;
    case ENG_MSG_MEMORY:
        eng_memory_write(o, &memory);
        break;
    case ENG_MSG_OFFER:
        eng_offer_write(o, 5, offers, 4);
        break;
    case ENG_MSG_WANT:
        eng_want_write(o, bits, DECODE_WEIGHTS);
        break;
    case ENG_MSG_DATA:
        eng_data_write(o, 3, 4096, 200, &room);
        memset(room, 0x77, 200);
        break;
    case ENG_MSG_GOT:
        eng_got_write(o, 123456);
        break;
    case ENG_MSG_STEP:
        example_step(o);
        break;
    case ENG_MSG_LOGITS:
        example_logits(o);
        break;
    case ENG_MSG_FETCH:
        eng_fetch_write(o, 7, 1);
        break;
    case ENG_MSG_STATS:
        eng_stats_write(o, true);
        break;
    case ENG_MSG_COUNTS:
        eng_counts_write(o, &stats);
        break;
    case ENG_MSG_ERROR:
        eng_error_write(o, DL_ELIMIT, "no room");
        break;
    default:
        eng_plain_write(o, type);
    }
    decode_check(!o->err, "writing");
}

#endif
