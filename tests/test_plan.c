/* SPDX-License-Identifier: MIT
 *
 * tests/test_plan.c: slices cover a model exactly once; plans of every family, node count and weight type pass the checker; the checker
 * refuses each way to break one.
 */
#include "common.h"

#include <string.h>

#include "dl/model.h"

static const enum dl_type weight_types[] = {DL_F32, DL_F16, DL_BF16, DL_Q40, DL_Q80};

static struct dl_model_header header(bool moe, bool extras)
{
    struct dl_model_header h = {.arch = moe ? DL_ARCH_QWEN3_MOE : DL_ARCH_LLAMA,
                                .dim = 256,
                                .hidden_dim = 704,
                                .n_layers = 3,
                                .n_heads = 8,
                                .n_kv_heads = 4,
                                .head_dim = 32,
                                .vocab = 515,
                                .max_seq = 256,
                                .norm_eps = 1e-5f,
                                .n_rot = 32,
                                .rope_theta = 10000,
                                .qkv_bias = extras,
                                .qk_norm = extras};
    if (moe) {
        h.n_experts = 8;
        h.n_experts_used = 2;
        h.expert_dim = 96;
        h.hidden_dim = 0;
    }
    return h;
}

static struct dl_tensor_types types_of(const struct dl_model_header *h, enum dl_type t)
{
    struct dl_tensor_types types = {.output = t,
                                    .layer = dl_xcalloc((size_t)h->n_layers * DL_T_COUNT, sizeof(enum dl_type))};
    for (uint32_t l = 0; l < h->n_layers; l++)
        for (int id = 0; id < DL_T_COUNT; id++) {
            bool vector = id == DL_T_ATTN_NORM || id == DL_T_FFN_NORM || id == DL_T_ATTN_Q_NORM ||
                          id == DL_T_ATTN_K_NORM || id == DL_T_ATTN_Q_BIAS || id == DL_T_ATTN_K_BIAS ||
                          id == DL_T_ATTN_V_BIAS || id == DL_T_MOE_ROUTER;
            types.layer[l * DL_T_COUNT + (uint32_t)id] = vector ? DL_F32 : t;
        }
    return types;
}

/* Of the plans that are built. */
static struct dl_plan_opts plan_opts = {
    .max_tokens = 16, .max_out = 4, .kv_blocks = 8, .kv_type = DL_F16, .wire = DL_Q80};

static struct dl_model_plan *build(bool moe, bool extras, enum dl_type t, uint32_t node, uint32_t n,
                                   const double *weights)
{
    struct dl_model_header h = header(moe, extras);
    struct dl_tensor_types types = types_of(&h, t);
    struct dl_slice *slices = dl_xcalloc(n, sizeof *slices);
    struct dl_model_plan *mp = NULL;
    assert_int_equal(dl_slices_make(&h, t == DL_Q40 || t == DL_Q80 ? 32 : 4, weights, n, slices), 0);
    assert_int_equal(dl_plan_build(&h, &types, slices, node, n, &plan_opts, &mp), 0);
    free(slices);
    dl_tensor_types_finish(&types);
    return mp;
}

static void slices_cover_once(void **state)
{
    (void)state;
    static const uint32_t dims[][4] = {/* heads, kv, head_dim, ffn */
                                       {32, 8, 64, 8192}, {128, 8, 128, 53248}, {8, 4, 32, 704},  {52, 4, 80, 1000},
                                       {6, 2, 16, 172},   {1, 1, 8, 32},        {64, 64, 128, 96}};
    uint64_t rng = 5;
    for (size_t c = 0; c < DL_COUNT_OF(dims); c++)
        for (uint32_t unit = 4; unit <= 32; unit *= 8)
            for (uint32_t n = 1; n <= 17; n++)
                for (int uneven = 0; uneven < 3; uneven++) {
                    struct dl_model_header h = header(false, false);
                    h.n_heads = dims[c][0], h.n_kv_heads = dims[c][1], h.head_dim = dims[c][2],
                    h.hidden_dim = dims[c][3];
                    struct dl_slice s[17];
                    double w[17];
                    for (uint32_t i = 0; i < n; i++)
                        w[i] = uneven == 1 ? 1.0 + (double)(test_rand(&rng) % 9) : i ? 1.0 : 1000.0;
                    assert_int_equal(dl_slices_make(&h, unit, uneven ? w : NULL, n, s), 0);
                    uint32_t head = 0, ffn = 0, vocab = 0, group = h.n_heads / h.n_kv_heads;
                    for (uint32_t i = 0; i < n; i++) {
                        if (s[i].n_heads) {
                            assert_int_equal(s[i].head0, head);
                            assert_int_equal(s[i].kv0, head / group);
                            assert_int_equal(s[i].kv0 + s[i].n_kv_heads - 1, (head + s[i].n_heads - 1) / group);
                            assert_true(head * h.head_dim % unit == 0 || head + s[i].n_heads == h.n_heads);
                        }
                        if (s[i].n_ffn) {
                            assert_int_equal(s[i].ffn0, ffn);
                            assert_int_equal(ffn % unit, 0);
                        }
                        head += s[i].n_heads, ffn += s[i].n_ffn, vocab += s[i].n_vocab;
                    }
                    assert_int_equal(head, h.n_heads);
                    assert_int_equal(ffn, h.hidden_dim);
                    assert_int_equal(vocab, h.vocab);
                }
}

static void shares_are_kept(void **state)
{
    (void)state;
    struct dl_model_header h = header(false, false);
    h.hidden_dim = 8192;
    struct dl_slice s[3];
    const double w[] = {3, 1, 2};
    assert_int_equal(dl_slices_make(&h, 32, w, 3, s), 0);
    assert_true(s[0].n_ffn > s[2].n_ffn && s[2].n_ffn > s[1].n_ffn);
    assert_in_range(s[0].n_ffn, 4096 - 128, 4096 + 128);
    const double bad[] = {1, 0, 1};
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_WARN);
    assert_int_equal(dl_slices_make(&h, 32, bad, 3, s), DL_EINVAL);
    assert_non_null(strstr(log.last, "node 1"));
    dl_log_set(NULL, NULL, DL_LOG_WARN);
}

static void every_plan_passes(void **state)
{
    (void)state;
    static const double uneven[] = {3, 1, 2, 1, 1, 5, 1, 1};
    for (int moe = 0; moe < 2; moe++)
        for (int extras = 0; extras < 2; extras++)
            for (size_t t = 0; t < DL_COUNT_OF(weight_types); t++)
                for (uint32_t n = 1; n <= 8; n++)
                    for (uint32_t k = 0; k < n * 6; k++) {
                        const uint32_t node = k % n, lanes = k / n % 2 + 1, in_two = k / n / 2 == 1,
                                       halves = k / n / 2 == 2;
                        plan_opts.lanes = lanes;
                        plan_opts.collective = in_two ? DL_SUM_IN_TWO : DL_SUM_ONE_SHOT;
                        plan_opts.halves = halves;
                        struct dl_model_plan *mp =
                            build(moe, extras, weight_types[t], node, n, node % 2 ? uneven : NULL);
                        uint32_t runs = 0, exchanges = 0, at_once = 0; /* without a share, both halves */
                        for (uint32_t i = 0; i < mp->plan.n_steps; i++) {
                            const struct dl_step *s = &mp->plan.steps[i];
                            *(s->kind == DL_STEP_RUN ? &runs : &exchanges) += 1;
                            at_once += i && s->kind == DL_STEP_EXCHANGE && s[-1].kind == DL_STEP_EXCHANGE;
                        }
                        assert_true(halves || !at_once);
                        /* two sums a layer, whatever the batch; in halves, but for those of experts, twice as many */
                        uint32_t more = in_two ? 6 : halves ? moe ? 3 : 6 : 0;
                        assert_int_equal(exchanges, n == 1 ? 0 : (6 + more) * lanes);
                        assert_int_equal(runs + at_once, exchanges + (n == 1 ? 1 : lanes));
                        assert_int_equal(mp->plan.lane_tokens, n == 1 ? 16 : 16 / lanes);
                        assert_int_equal(dl_plan_lane_tokens(&mp->plan, 0, 11), n == 1 || lanes == 1 ? 11 : 8);
                        assert_int_equal(dl_plan_lane_tokens(&mp->plan, 1, 11), n == 1 || lanes == 1 ? 0 : 3);
                        dl_plan_destroy(&mp);
                        assert_null(mp);
                    }
    plan_opts.lanes = 0;
    plan_opts.collective = DL_SUM_ONE_SHOT;
    plan_opts.halves = false;
}

/* In halves, the second product of a sum is in a segment that waits for no more than the first; together they are the matrix. A node without
 * a share sends both halves at once. */
static void halves_are_a_row(void **state)
{
    (void)state;
    plan_opts.halves = true;
    struct dl_model_plan *mp = build(false, false, DL_Q40, 1, 3, NULL);
    const struct dl_plan *p = &mp->plan;
    uint32_t found = 0;
    for (uint32_t i = 0; i + 3 < p->n_steps; i++) {
        const struct dl_step *s = &p->steps[i], *x = &s[1], *next = &s[2];
        const struct dl_op *a = &p->ops[s->first_op + s->n_ops - 2], *b = &p->ops[next->first_op];
        if (s->kind != DL_STEP_RUN || strcmp(a->name, "blk.1.ffn_down"))
            continue;
        found++;
        assert_string_equal(b->name, a->name);
        assert_int_equal(x->kind, DL_STEP_EXCHANGE);
        assert_int_equal(next->kind, DL_STEP_RUN);
        assert_int_equal(next->wait, s->wait);
        assert_int_equal(x->wait, s->signal);
        assert_int_equal(x->view.cols, 128);
        assert_int_equal(a->src[1].rows, 128);
        assert_int_equal(b->src[1].rows, 128);
        assert_int_equal(b->src[1].offset, 128 * a->src[1].row_bytes);
        assert_int_equal(b->dst.offset, a->dst.offset + 128 * sizeof(float));
        assert_int_equal(p->steps[i + 4].wait, p->steps[i + 3].signal);
        assert_true(x->view.buf != p->steps[i + 3].view.buf);
        i += 2;
    }
    assert_int_equal(found, 1);
    dl_plan_destroy(&mp);

    static const double none[] = {1, 1, 1e-9};
    mp = build(false, false, DL_Q40, 2, 3, none);
    found = 0;
    for (uint32_t i = 0; i + 1 < mp->plan.n_steps; i++)
        found += mp->plan.steps[i].kind == DL_STEP_EXCHANGE && mp->plan.steps[i + 1].kind == DL_STEP_EXCHANGE;
    assert_true(found > 0);
    dl_plan_destroy(&mp);
    plan_opts.halves = false;
}

/* In two stages, each node adds up and gives away a chunk of its own, and all of them together are the row. */
static void chunks_are_a_row(void **state)
{
    (void)state;
    plan_opts.collective = DL_SUM_IN_TWO;
    for (uint32_t n = 2; n <= 8; n++) {
        uint32_t given = 0;
        for (uint32_t node = 0; node < n; node++) {
            struct dl_model_plan *mp = build(false, false, DL_Q40, node, n, NULL);
            const struct dl_plan *p = &mp->plan;
            uint32_t taken = 0;
            for (uint32_t i = 0; i < p->n_ops; i++) {
                const struct dl_op *op = &p->ops[i];
                if (!strcmp(op->name, "blk.1.attn_merge")) {
                    assert_int_equal(op->dst.offset, taken * sizeof(float));
                    taken += op->dst.cols;
                } else if (!strcmp(op->name, "blk.1.attn_reduce")) {
                    given += op->dst.cols;
                    assert_int_equal(op->u.merge.n_slices, n);
                }
            }
            assert_int_equal(taken, 256);
            dl_plan_destroy(&mp);
        }
        assert_int_equal(given, 256);
    }
    /* more nodes than blocks: at once */
    struct dl_model_plan *mp = build(false, false, DL_Q40, 0, 9, NULL);
    for (uint32_t i = 0; i < mp->plan.n_steps; i++)
        assert_true(mp->plan.steps[i].kind == DL_STEP_RUN || mp->plan.steps[i].coll == DL_COLL_ALL_GATHER);
    dl_plan_destroy(&mp);
    plan_opts.collective = DL_SUM_ONE_SHOT;
}

static struct dl_op *find_op(struct dl_plan *p, enum dl_opcode code)
{
    for (uint32_t i = 0; i < p->n_ops; i++)
        if (p->ops[i].code == code)
            return &p->ops[i];
    fail_msg("plan has no %s", dl_op_name(code));
    return NULL;
}

static struct dl_op *find_carrying(struct dl_plan *p)
{
    uint32_t i = 0;
    while (i < p->n_ops && !dl_op_carries(&p->ops[i]))
        i++;
    assert_true(i < p->n_ops);
    return &p->ops[i];
}

static struct dl_step *find_step(struct dl_plan *p, enum dl_step_kind kind, int nth)
{
    for (uint32_t i = 0; i < p->n_steps; i++)
        if (p->steps[i].kind == kind && nth-- == 0)
            return &p->steps[i];
    fail_msg("plan has no such step");
    return NULL;
}

static void breaks(int how, struct dl_plan *p)
{
    struct dl_op *mm = find_op(p, DL_OP_MATMUL);
    switch (how) {
    case 0:
        mm->src[1].cols -= 32;
        break; /* inner sizes differ */
    case 1:
        mm->src[0].type = DL_F32;
        break; /* view type is not the buffer's */
    case 2:
        mm->dst.offset += p->bufs[mm->dst.buf].bytes;
        break; /* outside */
    case 3:
        mm->dst.buf = p->n_bufs;
        break; /* no such buffer */
    case 4:
        mm->dst = find_op(p, DL_OP_CONVERT)->src[0];
        break; /* writes an INPUT */
    case 5:
        find_op(p, DL_OP_RMS_NORM)->u.norm.group = 7;
        break; /* not whole groups */
    case 6:
        find_op(p, DL_OP_ROPE)->u.rope.n_rot = 33;
        break; /* odd */
    case 7:
        find_op(p, DL_OP_ATTENTION)->u.attn.group = 1;
        break; /* heads without a KV head */
    case 8:
        find_op(p, DL_OP_KV_STORE)->u.kv.n_kv_heads++;
        break; /* not the columns */
    case 9:
        find_op(p, DL_OP_ATTENTION)->src[2].rows -= 32;
        break; /* K and V differ */
    case 10:
        find_op(p, DL_OP_GATHER_ROWS)->count = DL_COUNT_TOKENS;
        break;
    case 11:
        find_op(p, DL_OP_MERGE)->u.merge.n_slices++;
        break; /* past the wire buffer */
    case 12:
        mm->mult = 0;
        break;
    case 13:
        mm->code = DL_OP_COUNT;
        break;
    case 14:
        find_step(p, DL_STEP_RUN, 1)->wait = 0;
        break; /* does not wait for the exchange it merges */
    case 15:
        find_step(p, DL_STEP_RUN, 1)->signal = 1;
        break; /* does not ascend */
    case 16:
        find_step(p, DL_STEP_EXCHANGE, 0)->wait = 0;
        break; /* sends before it is computed */
    case 17:
        find_step(p, DL_STEP_EXCHANGE, 0)->wait = 99;
        break; /* nobody signals that */
    case 18:
        find_step(p, DL_STEP_RUN, 1)->first_op++;
        break; /* an op is in no step */
    case 19:
        find_step(p, DL_STEP_EXCHANGE, 0)->slice_bytes -= 34;
        break; /* slices overlap */
    case 20:
        find_step(p, DL_STEP_EXCHANGE, 0)->view.buf = mm->dst.buf;
        break; /* not wire memory */
    case 21:
        p->bufs[0].bytes++;
        break;
    case 22:
        p->n_slices = 0;
        break;
    case 23:
        find_op(p, DL_OP_GLU)->dst = find_op(p, DL_OP_GLU)->src[0], find_op(p, DL_OP_GLU)->dst.offset += 4;
        break;
    case 24:
        mm->src[0].offset += 1;
        break; /* off block borders */
    case 25:
        p->n_steps--;
        break;
    case 26:
        find_op(p, DL_OP_GLU)->u.glu.act = (enum dl_act_fn)9;
        break;
    case 27:
        p->lane_tokens--;
        break; /* too few for a batch */
    case 28:
        p->n_lanes = 3;
        break;
    case 29:
        find_step(p, DL_STEP_RUN, 0)->lane = 2;
        break;
    case 30: /* the second RUN of lane 0 comes after both of the first segment; the exchange of lane 1 may not be there */
        assert_int_equal(find_step(p, DL_STEP_RUN, 2)->lane, 0);
        find_step(p, DL_STEP_RUN, 2)->wait = 2;
        break;
    case 31:
        find_step(p, DL_STEP_EXCHANGE, 0)->coll = DL_COLL_ALL_TO_ALL;
        break; /* twice the slices */
    case 32:
        find_carrying(p)->src[1].cols -= 32;
        break; /* not what is sent */
    case 33:
        find_carrying(p)->src[1] = find_carrying(p)->src[0];
        break; /* would be lost */
    case 34:
        find_carrying(p)->src[1].buf = find_op(p, DL_OP_CONVERT)->src[0].buf;
        break; /* an INPUT is not written */
    default:
        fail();
    }
}

static void broken_plans_are_refused(void **state)
{
    (void)state;
    struct test_log log = {0};
    for (int how = 0; how < 35; how++) {
        plan_opts.lanes = how < 27 ? 1 : 2;
        struct dl_model_plan *mp = build(false, true, DL_Q40, 0, 2, NULL);
        assert_int_equal(dl_plan_check(&mp->plan), 0);
        breaks(how, &mp->plan);
        log.n = 0;
        dl_log_set(test_log_sink, &log, DL_LOG_WARN);
        int err = dl_plan_check(&mp->plan);
        dl_log_set(NULL, NULL, DL_LOG_WARN);
        if (err != DL_EINVAL || log.n != 1)
            fail_msg("break %d: check gave %d with %u lines (%s)", how, err, log.n, log.last);
        dl_plan_destroy(&mp);
    }
}

static void conflicts(void **state)
{
    (void)state;
    struct dl_view a = {0, 4, 8, DL_F32, 0, 96}, b = a, none = {.buf = DL_NO_BUF};
    b.offset = 32; /* the next 8 columns of the same rows */
    struct dl_op w = {.code = DL_OP_ADD, .dst = a, .src = {none, none, none}};
    struct dl_op r = {
        .code = DL_OP_ADD, .dst = {.buf = 9, .rows = 4, .cols = 8, .row_bytes = 32}, .src = {b, none, none}};
    assert_false(dl_op_conflict(&w, &r));
    r.src[0].offset = 28; /* one column too many */
    assert_true(dl_op_conflict(&w, &r));
    r.src[0] = a;
    assert_true(dl_op_conflict(&w, &r)); /* read after write */
    assert_true(dl_op_conflict(&r, &w)); /* write after read */
    r.src[0].buf = 1;
    assert_false(dl_op_conflict(&w, &r));
    r.dst = a;
    assert_true(dl_op_conflict(&w, &r)); /* write after write */
    r.dst.buf = 9;
    for (int carries = 0; carries < 2; carries++) {
        w.code = carries ? DL_OP_CONVERT : DL_OP_ADD;
        w.src[1] = a;
        w.dst.buf = 2;
        r.src[0] = a;
        assert_int_equal(dl_op_conflict(&w, &r), carries); /* what is carried is written */
        assert_int_equal(dl_op_conflict(&r, &w), carries);
        r.src[0] = b;
        assert_false(dl_op_conflict(&w, &r));
    }
}

/* A q80 wire: in each lane, all rounded sums of a node carry on from the first, in the columns that they send; others carry nothing. */
static void losses_are_carried(void **state)
{
    (void)state;
    static const double none[] = {1, 1, 1e-9};
    for (int k = 0; k < 24; k++) {
        plan_opts.wire = k % 3 == 0 ? DL_Q80 : k % 3 == 1 ? DL_F16 : DL_F32;
        plan_opts.collective = k / 3 % 4 == 1 ? DL_SUM_IN_TWO : DL_SUM_ONE_SHOT;
        plan_opts.halves = k / 3 % 4 == 2;
        plan_opts.lanes = 2;
        const uint32_t node = k / 3 % 4 == 3 ? 2 : 1;
        struct dl_model_plan *mp = build(k / 12, false, DL_Q40, node, 3, none);
        const struct dl_plan *p = &mp->plan;
        uint32_t first[16] = {0}, bufs[16], n_bufs = 0, n = 0;
        for (uint32_t i = 0; i < p->n_ops; i++) {
            const struct dl_op *op = &p->ops[i];
            const bool sent = op->code == DL_OP_CONVERT && p->bufs[op->dst.buf].use == DL_BUF_WIRE;
            assert_int_equal(sent && k % 3 == 0, dl_op_carries(op));
            if (!dl_op_carries(op))
                continue;
            uint32_t b = 0;
            while (b < n_bufs && bufs[b] != op->src[1].buf)
                b++;
            bufs[b] = op->src[1].buf;
            n_bufs = DL_MAX(n_bufs, b + 1);
            const char *layer0 = "blk.0."; /* the layer's first sum is the first of all */
            const bool begins = !strncmp(op->name, layer0, strlen(layer0)) && strstr(op->name, "attn_");
            assert_int_equal(op->u.convert.first, begins);
            first[b] += op->u.convert.first ? op->src[1].cols : 0;
            assert_int_equal(op->src[1].offset / sizeof(float) % DL_BLOCK, 0);
            if (strstr(op->name, "attn_wire") || strstr(op->name, "ffn_wire"))
                assert_int_equal(op->src[1].offset, op->src[0].offset); /* the same columns */
            n++;
        }
        assert_int_equal(n_bufs, k % 3 || node == 2 ? 0 : plan_opts.collective == DL_SUM_IN_TWO ? 4 : 2);
        for (uint32_t b = 0; b < n_bufs; b++)
            assert_int_equal(first[b], p->bufs[bufs[b]].cols);
        const uint32_t pieces = plan_opts.collective == DL_SUM_IN_TWO ? 4 : 1;
        if (n_bufs && !plan_opts.halves)
            assert_int_equal(n, 2 * 3 * 2 * pieces); /* lanes, layers, sums */
        dl_plan_destroy(&mp);
    }
    plan_opts.wire = DL_Q80;
    plan_opts.lanes = 0;
    plan_opts.collective = DL_SUM_ONE_SHOT;
    plan_opts.halves = false;
}

/* The op has rows of Q120, all that its buffer holds, where it had a view of that buffer. */
static void in_q120(struct dl_op *op, uint32_t buf, struct dl_buf_desc *b)
{
    b->bytes = 0;
    b->type = DL_Q120;
    for (int s = -1; s < 3; s++) {
        struct dl_view *v = s < 0 ? &op->dst : &op->src[s];
        if (v->buf != buf)
            continue;
        v->type = DL_Q120;
        v->offset = 0;
        assert_true(dl_row_bytes(DL_Q120, v->cols, &v->row_bytes));
        b->bytes = DL_MAX(b->bytes, v->row_bytes * v->rows);
    }
}

/* A q80 wire is finer for experts. That type only travels: no op but the two that end and begin a segment takes it, and they only on a wire. */
static void a_wire_for_experts(void **state)
{
    (void)state;
    struct dl_model_header h = header(true, false), odd = h, dense = header(false, false);
    odd.dim = 40;
    assert_int_equal(dl_wire_type(&h, DL_Q80), DL_Q120);
    assert_int_equal(dl_wire_type(&h, DL_F16), DL_F16);
    assert_int_equal(dl_wire_type(&odd, DL_Q80), DL_F32);
    assert_int_equal(dl_wire_type(&dense, DL_Q80), DL_Q80);
    struct test_log log = {0};
    unsigned on_wires = 0, elsewhere = 0;
    for (int k = 0; k < 4; k++) {
        plan_opts.collective = k & 1 ? DL_SUM_IN_TWO : DL_SUM_ONE_SHOT;
        struct dl_model_plan *mp = build(true, true, k & 2 ? DL_F16 : DL_Q40, 0, 2, NULL);
        struct dl_plan *p = &mp->plan;
        for (uint32_t b = 0; b < p->n_bufs; b++)
            assert_int_equal(p->bufs[b].type == DL_Q120, p->bufs[b].use == DL_BUF_WIRE);
        dl_log_set(test_log_sink, &log, DL_LOG_WARN);
        for (uint32_t i = 0; i < p->n_ops; i++)
            for (int s = -1; s < 3; s++) {
                struct dl_op op = p->ops[i];
                const struct dl_view *v = s < 0 ? &op.dst : &op.src[s];
                if (v->buf == DL_NO_BUF || v->cols % DL_BLOCK)
                    continue;
                struct dl_buf_desc *b = &p->bufs[v->buf], keep = *b;
                const bool wire = b->use == DL_BUF_WIRE;
                if (wire)
                    b->use = DL_BUF_ACT;
                else
                    in_q120(&op, v->buf, b);
                assert_int_equal(dl_op_check(&op, p->bufs, p->n_bufs, p->lane_tokens, 4), DL_EINVAL);
                assert_null(strstr(log.last, "of another type than it")); /* but for what it is */
                *b = keep;
                assert_int_equal(dl_op_check(&p->ops[i], p->bufs, p->n_bufs, p->lane_tokens, 4), DL_OK);
                on_wires += wire;
                elsewhere += !wire;
            }
        dl_log_set(NULL, NULL, DL_LOG_WARN);
        dl_plan_destroy(&mp);
    }
    plan_opts.collective = DL_SUM_ONE_SHOT;
    assert_true(on_wires > 40 && elsewhere > 100);
}

static uint64_t weight_bytes(const struct dl_plan *p, enum dl_count count)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < p->n_ops; i++)
        for (int s = 0; s < 3 && p->ops[i].count == count; s++) {
            uint32_t buf = p->ops[i].src[s].buf;
            n += buf != DL_NO_BUF && p->bufs[buf].use == DL_BUF_WEIGHT ? p->bufs[buf].bytes : 0;
        }
    return n;
}

/* Each weight once, the output only where it is wanted, K and V of all positions, and as many experts as are chosen. */
static void bytes_read(void **state)
{
    (void)state;
    const uint64_t kv = 2 * 3 * 4 * 32 * sizeof(uint16_t); /* K and V, layers, heads, values */
    struct dl_model_plan *mp = build(false, true, DL_Q40, 0, 1, NULL);
    uint64_t inner = weight_bytes(&mp->plan, DL_COUNT_TOKENS), outer = weight_bytes(&mp->plan, DL_COUNT_OUT);
    assert_true(outer > 515 * 256 / 32 * 18 && inner > 3 * outer);
    assert_int_equal(dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){1, 1, 1, 100}), inner + outer + 100 * kv);
    assert_int_equal(dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){16, 0, 1, 16}), inner + 16 * kv);
    assert_int_equal(dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){4, 4, 4, 7}), inner + outer + 28 * kv);
    dl_plan_destroy(&mp);

    uint64_t parts = 0;
    for (uint32_t node = 0; node < 2; node++) {
        mp = build(false, false, DL_Q40, node, 2, NULL);
        parts += dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){1, 1, 1, 100});
        dl_plan_destroy(&mp);
    }
    mp = build(false, false, DL_Q40, 0, 1, NULL);
    uint64_t whole = dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){1, 1, 1, 100});
    assert_int_equal(parts, whole + (2 * 3 + 1) * 256 * sizeof(float)); /* both have the norms */
    dl_plan_destroy(&mp);

    mp = build(true, false, DL_Q40, 0, 1, NULL);
    uint64_t experts = UINT64_C(3) * 3 * 8 * 96 * 256 / 32 * 18; /* layers, matrices */
    uint64_t rest = weight_bytes(&mp->plan, DL_COUNT_TOKENS) - experts;
    assert_int_equal(dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){1, 0, 1, 0}), rest + experts / 4);
    /* two tokens with 2 of 8 experts each: on average they share half of one */
    assert_int_equal(dl_plan_read_bytes(&mp->plan, &(struct dl_batch_load){2, 0, 1, 0}), rest + experts / 8 * 7 / 2);
    dl_plan_destroy(&mp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_cover_once),  cmocka_unit_test(shares_are_kept),
        cmocka_unit_test(every_plan_passes),  cmocka_unit_test(halves_are_a_row),
        cmocka_unit_test(chunks_are_a_row),   cmocka_unit_test(broken_plans_are_refused),
        cmocka_unit_test(conflicts),          cmocka_unit_test(losses_are_carried),
        cmocka_unit_test(a_wire_for_experts), cmocka_unit_test(bytes_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
