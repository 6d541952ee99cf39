/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_kernels.c: every kernel that the lowerings can ask for compiles and is valid SPIR-V, and every shader is asked for. Needs
 * no Vulkan device: the lowerings get made-up ones.
 */
#include "common.h"

#include "glsl.h"
#include "lower.h"
#include "lower_matmul.h"
#include "tune.h"
#include "memory.h"
#include "tempdir.h"

static char cache[TEMPDIR_LEN];

static int make_cache(void **state)
{
    (void)state;
    make_dir(cache);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    unsetenv("DLLAMA_SHADER_DIR");
    return 0;
}

static int drop_cache(void **state)
{
    (void)state;
    remove_dir(cache);
    return 0;
}

/* ------------------------------------------------------------------------------------------- made-up devices */

static const struct vk_caps devices[] = {
    {.name = "the least Vulkan promises", .shared_bytes = 16384, .max_invocations = 128, .subgroup = 1},
    {.name = "software",
     .shared_bytes = 32768,
     .max_invocations = 1024,
     .subgroup = 8,
     .subgroup_min = 8,
     .subgroup_max = 8,
     .subgroup_arith = true,
     .subgroup_shuffle = true,
     .subgroup_require = true,
     .f16 = true,
     .int8 = true,
     .int_dot = true,
     .software = true},
    {.name = "a card of 32 lanes",
     .shared_bytes = 49152,
     .max_invocations = 1024,
     .subgroup = 32,
     .subgroup_min = 32,
     .subgroup_max = 32,
     .subgroup_arith = true,
     .subgroup_shuffle = true,
     .subgroup_require = true,
     .f16 = true,
     .int8 = true,
     .int_dot = true,
     .int_dot_fast = true},
    {.name = "a card of 64 lanes",
     .shared_bytes = 65536,
     .max_invocations = 1024,
     .subgroup = 64,
     .subgroup_min = 32,
     .subgroup_max = 64,
     .subgroup_arith = true,
     .subgroup_shuffle = true,
     .subgroup_require = true,
     .f16 = true},
};

#define BUFS 8u

/* One op (or a few) at a time, over buffers without memory. */
struct stage {
    struct vk_ctx ctx;
    struct vk_buf bufs[BUFS], batch;
    struct vk_buf *table[BUFS];
    uint32_t n_bufs;
    struct vk_lower l;
};

static void describe(struct stage *s, struct vk_buf *b, enum dl_buf_use use, enum dl_type type, uint32_t rows,
                     uint32_t cols)
{
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    *b = (struct vk_buf){.base.desc = {.name = "made up", .use = use, .type = type, .rows = rows, .cols = cols}};
    b->base.desc.bytes = row * rows;
    snprintf(b->name, sizeof b->name, "made up");
    assert_int_equal(vk_planes_lay_out(&s->ctx, b), 0);
}

static void stage_init(struct stage *s, const struct vk_caps *caps)
{
    *s = (struct stage){.ctx.caps = *caps};
    struct vk_caps *c = &s->ctx.caps;
    snprintf(s->ctx.label, sizeof s->ctx.label, "%s", caps->name);
    c->storage_range = c->max_alloc = (uint64_t)1 << 27;
    c->offset_align = 64;
    c->push_bytes = 128;
    c->max_binds = VK_BINDS;
    for (int i = 0; i < 3; i++) {
        c->max_groups[i] = 65535;
        c->max_local[i] = DL_MIN(c->max_invocations, i == 2 ? 64u : UINT32_MAX);
    }
    describe(s, &s->batch, DL_BUF_INPUT, DL_F32, 1, 4096);
    for (uint32_t i = 0; i < BUFS; i++)
        s->table[i] = &s->bufs[i];
}

static struct dl_view view(struct stage *s, enum dl_buf_use use, enum dl_type type, uint32_t rows, uint32_t cols)
{
    assert_true(s->n_bufs < BUFS);
    describe(s, &s->bufs[s->n_bufs], use, type, rows, cols);
    uint64_t row = 0;
    assert_true(dl_row_bytes(type, cols, &row));
    return (struct dl_view){.buf = s->n_bufs++, .rows = rows, .cols = cols, .type = type, .row_bytes = row};
}

static struct dl_op op_of(enum dl_opcode code)
{
    struct dl_op op = {.code = code, .name = dl_op_name(code), .mult = 1};
    for (int i = 0; i < 3; i++)
        op.src[i].buf = DL_NO_BUF;
    return op;
}

/* What has been seen, so that each kernel is compiled once. */
struct seen {
    char (*v)[256];
    size_t n, cap;
    unsigned invalid, compiled;
    bool validate;
};

static bool spirv_val_is_here(void)
{
    return system("spirv-val --version >/dev/null 2>&1") == 0;
}

static void compile(struct seen *seen, const struct vk_dispatch *d)
{
    char key[256], command[2 * TEMPDIR_LEN], path[TEMPDIR_LEN + 16];
    snprintf(key, sizeof key, "%s %s", d->shader, d->defines);
    for (size_t i = 0; i < seen->n; i++)
        if (!strcmp(seen->v[i], key))
            return;
    assert_int_equal(dl_grow((void **)&seen->v, &seen->cap, seen->n + 1, sizeof *seen->v), 0);
    memcpy(seen->v[seen->n++], key, sizeof key);
    assert_true(strlen(d->defines) + 1 < sizeof d->defines);

    struct vk_spirv spirv = {0};
    if (vk_glsl_compile(d->shader, d->defines, &spirv)) {
        seen->invalid++;
        return;
    }
    seen->compiled++;
    if (seen->validate) {
        snprintf(path, sizeof path, "%s/kernel.spv", cache);
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(spirv.words, 4, spirv.n, f), spirv.n);
        fclose(f);
        snprintf(command, sizeof command, "spirv-val --target-env vulkan1.1 %s", path);
        if (system(command)) {
            fprintf(stderr, "FAILED: not valid: %s\n", key);
            seen->invalid++;
        }
    }
    vk_spirv_finish(&spirv);
}

/* Lowers ops for batches of several sizes, and compiles what comes out. `taken`: how many ops one kernel does; 0: all of them for
 * up to 8 tokens, beyond that it depends on the device. */
static void lower(struct stage *s, struct seen *seen, struct dl_op *ops, uint32_t n, int taken)
{
    /* Prompts: another size of batch each time, since tiles go by it. */
    static const uint32_t prompts[] = {16, 32, 64, 128};
    static unsigned n_calls;
    const uint32_t tokens[] = {1, 8, prompts[n_calls++ % DL_COUNT_OF(prompts)]};
    for (uint32_t i = 0; i < n; i++) {
        if (!vk_supports(&s->ctx, &ops[i]))
            fail_msg("%s: no kernel for %s", s->ctx.label, ops[i].name);
    }
    for (size_t t = 0; t < DL_COUNT_OF(tokens); t++) {
        struct vk_lower *l = &s->l;
        *l = (struct vk_lower){.ctx = &s->ctx,
                               .bufs = s->table,
                               .batch = &s->batch,
                               .n_tokens = tokens[t],
                               .n_out = tokens[t],
                               .max_positions = 4096};
        int took = vk_lower_ops(l, ops, n);
        if (took != (taken ? taken : tokens[t] <= 8 ? (int)n : took))
            fail_msg("%s: %s of %u tokens and what follows: %d ops of %u taken", s->ctx.label, ops[0].name, tokens[t],
                     took, n);
        assert_true(took > 0);
        for (size_t i = 0; i < l->n; i++) {
            const struct vk_dispatch *d = &l->out[i];
            assert_true(d->n_binds > 0 && d->n_binds <= VK_BINDS && d->n_push <= VK_PUSH_WORDS);
            for (int axis = 0; axis < 3; axis++)
                assert_in_range(d->groups[axis], 1, 65535);
            for (uint32_t b = 0; b < d->n_binds; b++)
                assert_int_equal(d->binds[b].offset % s->ctx.caps.offset_align, 0);
            compile(seen, d);
        }
        free(l->out);
        l->out = NULL;
    }
    s->n_bufs = 0;
}

/* ------------------------------------------------------------------------------------------------- the kernels */

enum { ROWS = 128 };

static void values(struct stage *s, struct seen *seen)
{
    static const enum dl_type to[] = {DL_F32, DL_F16, DL_BF16, DL_Q80, DL_Q120};
    for (int wire = 0; wire < 2; wire++) {
        enum dl_buf_use use = wire ? DL_BUF_WIRE : DL_BUF_ACT;
        for (size_t i = 0; i < DL_COUNT_OF(to) - !wire; i++) { /* the last one is for wires only */
            const bool blocks = dl_type_info(to[i])->block_values > 1;
            struct dl_op op = op_of(DL_OP_CONVERT);
            op.dst = view(s, use, to[i], ROWS, 96);
            op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
            lower(s, seen, &op, 1, 1);
            if (blocks) {
                op.dst = view(s, use, to[i], ROWS, 96);
                op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
                op.src[1] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
                lower(s, seen, &op, 1, 1);
            }
            if (to[i] == DL_BF16 || blocks)
                continue;
            op.dst = view(s, use, to[i], ROWS, 96);
            op.src[0] = view(s, DL_BUF_INPUT, DL_F16, ROWS, 96);
            lower(s, seen, &op, 1, 1);
        }
        for (int act = 0; act < 2; act++)
            for (int q80 = 0; q80 < 2; q80++) {
                struct dl_op op = op_of(DL_OP_GLU);
                op.u.glu.act = act ? DL_ACT_GELU : DL_ACT_SILU;
                op.dst = view(s, use, q80 ? DL_Q80 : DL_F32, ROWS, 96);
                op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
                op.src[1] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
                lower(s, seen, &op, 1, 1);
                op = op_of(DL_OP_RMS_NORM);
                op.u.norm.group = act ? 96 : 24;
                op.dst = view(s, use, q80 ? DL_Q80 : DL_F32, ROWS, 96);
                op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
                op.src[1] = view(s, DL_BUF_WEIGHT, DL_F32, 1, op.u.norm.group);
                lower(s, seen, &op, 1, 1);
            }
    }
    struct dl_op op = op_of(DL_OP_GATHER_ROWS);
    op.count = DL_COUNT_OUT;
    op.dst = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
    op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
    lower(s, seen, &op, 1, 1);
    op = op_of(DL_OP_MOE_ROUTE);
    op.u.moe.n_experts = 8;
    op.u.moe.k = 2;
    op.dst = view(s, DL_BUF_ACT, DL_F32, ROWS, 4);
    op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 8);
    lower(s, seen, &op, 1, 1);
    op = op_of(DL_OP_MOE_SUM);
    op.dst = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
    op.src[0] = view(s, DL_BUF_ACT, DL_F32, 2 * ROWS, 96);
    op.src[1] = view(s, DL_BUF_ACT, DL_F32, ROWS, 4);
    lower(s, seen, &op, 1, 1);
}

/* ADD or MERGE, with the norms that may follow. */
static void sums(struct stage *s, struct seen *seen)
{
    static const enum dl_type wires[] = {DL_F32, DL_F16, DL_Q80, DL_Q120};
    for (int kind = -1; kind < (int)DL_COUNT_OF(wires); kind++)
        for (int norms = 0; norms < 4; norms++) { /* bit 0: F32, bit 1: Q80 */
            struct dl_op ops[3] = {op_of(kind < 0 ? DL_OP_ADD : DL_OP_MERGE)};
            uint32_t n = 1;
            ops[0].dst = ops[0].src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, 96);
            ops[0].src[1] =
                kind < 0 ? view(s, DL_BUF_ACT, DL_F32, ROWS, 96) : view(s, DL_BUF_WIRE, wires[kind], 3 * ROWS, 96);
            if (kind >= 0) {
                ops[0].u.merge.n_slices = 3;
                ops[0].u.merge.slice_bytes = ROWS * ops[0].src[1].row_bytes;
                ops[0].src[1].rows = ROWS;
            }
            struct dl_view w = view(s, DL_BUF_WEIGHT, DL_F32, 1, 96);
            for (int q80 = 0; q80 < 2; q80++) {
                if (!(norms >> q80 & 1))
                    continue;
                struct dl_op *op = &ops[n++];
                *op = op_of(DL_OP_RMS_NORM);
                op->u.norm.group = 96;
                op->u.norm.eps = 1e-5f;
                op->dst = view(s, DL_BUF_ACT, q80 ? DL_Q80 : DL_F32, ROWS, 96);
                op->src[0] = ops[0].dst;
                op->src[1] = w;
            }
            lower(s, seen, ops, n, (int)n);
        }
}

/* The three ops of a layer as one kernel, and each alone. */
static void heads(struct stage *s, struct seen *seen)
{
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    enum { HEAD = 64, Q = 4, KV = 2 };
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (int layout = 0; layout < 2; layout++) {
            struct dl_op ops[3] = {op_of(DL_OP_ROPE), op_of(DL_OP_KV_STORE), op_of(DL_OP_KV_STORE)};
            struct dl_view qkv = view(s, DL_BUF_ACT, DL_F32, ROWS, (Q + 2 * KV) * HEAD);
            ops[0].u.rope.head_dim = ops[0].u.rope.n_rot = HEAD;
            ops[0].u.rope.layout = (enum dl_rope_layout)layout;
            ops[0].dst = qkv;
            ops[0].dst.cols = (Q + KV) * HEAD;
            ops[0].src[0] = ops[0].dst;
            ops[0].src[1] = view(s, DL_BUF_INPUT, DL_F32, ROWS, HEAD);
            for (uint32_t i = 0; i < 2; i++) {
                ops[1 + i].src[0] = qkv;
                ops[1 + i].src[0].cols = KV * HEAD;
                ops[1 + i].src[0].offset = 4 * HEAD * (Q + i * KV);
                ops[1 + i].u.kv.n_kv_heads = KV;
                ops[1 + i].u.kv.head_dim = HEAD;
                ops[1 + i].dst = view(s, DL_BUF_KV, types[t], 4 * KV * DL_KV_BLOCK, HEAD);
            }
            uint32_t n = s->n_bufs;
            lower(s, seen, ops, 3, 3);
            s->n_bufs = n;
            lower(s, seen, ops, 1, 1);
            s->n_bufs = n;
            lower(s, seen, ops + 1, 2, 1);
            s->n_bufs = n;
            s->bufs[ops[1].dst.buf].chunk_rows = DL_KV_BLOCK * KV;
            lower(s, seen, ops + 1, 2, 1);
        }
}

static void matrices(struct stage *s, struct seen *seen)
{
    for (int type = 0; type < DL_WEIGHT_TYPES; type++)
        for (int moe = 0; moe < 2; moe++)
            for (int wide = 0; wide < 2; wide++)
                for (int bias = 0; bias < 2 - moe; bias++) {
                    enum dl_type w = (enum dl_type)type, x = w == DL_Q40 || w == DL_Q80 ? DL_Q80 : DL_F32;
                    uint32_t in = wide ? 4096 : 96, out = 64, experts = moe ? 4 : 1, k = moe ? 2 : 1;
                    struct dl_op op = op_of(moe ? DL_OP_MOE_MATMUL : DL_OP_MATMUL);
                    op.mult = k;
                    op.dst = view(s, DL_BUF_ACT, DL_F32, ROWS * k, out);
                    op.src[0] = view(s, DL_BUF_ACT, x, ROWS * k, in);
                    op.src[1] = view(s, DL_BUF_WEIGHT, w, out * experts, in);
                    if (moe)
                        op.src[2] = view(s, DL_BUF_ACT, DL_F32, ROWS, 2 * k);
                    else if (bias)
                        op.src[2] = view(s, DL_BUF_WEIGHT, DL_F32, 1, out);
                    op.u.moe.n_experts = experts;
                    op.u.moe.k = k;
                    lower(s, seen, &op, 1, 1);
                }
}

/* Matrices with what they take along. */
static void fused(struct stage *s, struct seen *seen)
{
    static const enum dl_type to[] = {DL_F32, DL_F16, DL_Q80};
    enum { IN = 96, OUT = 64 };
    for (int type = 0; type < DL_WEIGHT_TYPES; type++)
        for (uint32_t kind = 0; kind < 10; kind++) {
            enum dl_type w = (enum dl_type)type, x = w == DL_Q40 || w == DL_Q80 ? DL_Q80 : DL_F32;
            bool moe = kind == 1;
            if (kind == 8 && w != DL_F16 && w != DL_Q40) /* nothing new */
                continue;
            struct dl_op ops[3] = {op_of(moe ? DL_OP_MOE_MATMUL : DL_OP_MATMUL)};
            struct dl_view src = view(s, DL_BUF_ACT, x, ROWS, IN), dst[2];
            uint32_t k = moe ? 2 : 1, n = kind < 4 ? 3 : 2;
            ops[0].src[0] = src;
            ops[0].mult = ops[0].u.moe.k = k;
            ops[0].u.moe.n_experts = moe ? 4 : 0;
            ops[0].u.moe.shared_src = moe;
            if (moe)
                ops[0].src[2] = view(s, DL_BUF_ACT, DL_F32, ROWS, 4);
            ops[1] = ops[2] = ops[0];
            for (int i = 0; i < 2; i++)
                dst[i] = view(s, DL_BUF_ACT, DL_F32, ROWS * k, kind == 2 || kind == 3 ? 3 * OUT : OUT);
            struct dl_view weights = view(s, DL_BUF_WEIGHT, w, OUT * (moe ? 4 : 1), IN);
            for (uint32_t i = 0; i < 3; i++)
                ops[i].src[1] = weights;
            ops[0].dst = dst[0];
            if (kind < 2) { /* gate, up, glu */
                ops[1].dst = dst[1];
                ops[2] = op_of(DL_OP_GLU);
                ops[2].mult = k;
                ops[2].dst = view(s, DL_BUF_ACT, type % 2 ? DL_F32 : DL_Q80, ROWS * k, OUT);
                ops[2].src[0] = dst[0];
                ops[2].src[1] = dst[1];
                ops[2].u.glu.act = type % 3 ? DL_ACT_GELU : DL_ACT_SILU;
            } else if (kind < 4) { /* q, k, v */
                struct dl_view bias = view(s, DL_BUF_WEIGHT, DL_F32, 1, OUT);
                for (uint32_t i = 0; i < 3; i++) {
                    ops[i].dst = dst[0];
                    ops[i].dst.cols = OUT;
                    ops[i].dst.offset = 4 * OUT * i;
                    if (kind == 3)
                        ops[i].src[2] = bias;
                }
            } else if (kind < 7) { /* for the wire, or the next matrix */
                ops[1] = op_of(DL_OP_CONVERT);
                ops[1].dst = view(s, type % 2 ? DL_BUF_WIRE : DL_BUF_ACT, to[kind - 4], ROWS, OUT);
                ops[1].src[0] = dst[0];
            } else if (kind < 9) { /* for the wire, carrying */
                ops[1] = op_of(DL_OP_CONVERT);
                ops[1].dst = kind == 7 ? view(s, type % 2 ? DL_BUF_WIRE : DL_BUF_ACT, DL_Q80, ROWS, OUT)
                                       : view(s, DL_BUF_WIRE, DL_Q120, ROWS, OUT);
                ops[1].src[0] = dst[0];
                ops[1].src[1] = dst[1];
            } else { /* the residual */
                ops[1] = op_of(DL_OP_ADD);
                ops[1].dst = ops[1].src[0] = dst[1];
                ops[1].src[1] = dst[0];
            }
            lower(s, seen, ops, n, 0);
        }
}

static void attentions(struct stage *s, struct seen *seen)
{
    static const enum dl_type types[] = {DL_F32, DL_F16, DL_Q80};
    static const uint32_t dims[] = {64, 128}, groups[] = {1, 4, 16};
    for (size_t t = 0; t < DL_COUNT_OF(types); t++)
        for (size_t d = 0; d < DL_COUNT_OF(dims); d++)
            for (size_t g = 0; g < DL_COUNT_OF(groups); g++) {
                struct dl_op op = op_of(DL_OP_ATTENTION);
                op.u.attn.n_heads = 2 * groups[g];
                op.u.attn.n_kv_heads = 2;
                op.u.attn.head_dim = dims[d];
                op.u.attn.group = groups[g];
                op.u.attn.scale = 0.125f;
                op.dst = view(s, DL_BUF_ACT, DL_F32, ROWS, dims[d] * 2 * groups[g]);
                op.src[0] = view(s, DL_BUF_ACT, DL_F32, ROWS, dims[d] * 2 * groups[g]);
                op.src[1] = view(s, DL_BUF_KV, types[t], 2 * DL_KV_BLOCK * 128, dims[d]);
                op.src[2] = view(s, DL_BUF_KV, types[t], 2 * DL_KV_BLOCK * 128, dims[d]);
                struct dl_op ops[2] = {op, op_of(DL_OP_CONVERT)};
                ops[1].src[0] = op.dst;
                ops[1].dst = view(s, DL_BUF_ACT, DL_Q80, ROWS, op.dst.cols);
                uint32_t n_bufs = s->n_bufs;
                lower(s, seen, ops, 1, 1);
                if (groups[g] == 4) { /* in chunks */
                    for (uint32_t i = 1; i < 3; i++)
                        s->bufs[op.src[i].buf].chunk_rows = 1024;
                    lower(s, seen, ops, 1, 1);
                }
                s->n_bufs = n_bufs;
                if (groups[g] == 4)
                    lower(s, seen, ops, 2, 0);
                s->n_bufs = 0;
            }
}

/* Choices are made by measuring; here each is forced in turn, by its place in the list of candidates. */
static void force(unsigned choice)
{
    char all[1024] = "";
    for (int t = 0; t < DL_WEIGHT_TYPES; t++) {
        size_t at = strlen(all);
        const char *name = dl_type_info((enum dl_type)t)->name;
        snprintf(all + at, sizeof all - at, "matvec_%s=#%u matmul_%s=#%u moe_matvec_%s=#%u moe_matmul_%s=#%u ", name,
                 choice, name, choice, name, choice, name, choice);
    }
    size_t at = strlen(all);
    snprintf(all + at, sizeof all - at, "attention_split=#%u attention_tile=#%u", choice, choice);
    setenv("DLLAMA_VK_VARIANT", all, 1);
}

static void test_every_kernel(void **state)
{
    (void)state;
    struct seen seen = {.validate = spirv_val_is_here()};
    if (!seen.validate)
        printf("SKIPPED PART: no spirv-val: kernels are compiled, but not validated\n");
    struct stage *s = dl_xcalloc(1, sizeof *s);
    setenv("DLLAMA_VK_TUNE", "0", 1);
    for (size_t i = 0; i < DL_COUNT_OF(devices); i++) {
        stage_init(s, &devices[i]);
        values(s, &seen);
        sums(s, &seen);
        heads(s, &seen);
        for (unsigned choice = 0; choice < VK_MM_VARIANTS; choice++) {
            force(choice);
            matrices(s, &seen);
            if (choice % 4 == 0)
                fused(s, &seen);
            attentions(s, &seen);
        }
        vk_tune_close(&s->ctx); /* lowering made it */
    }
    printf("%zu kernels compiled\n", seen.n);
    assert_int_equal(seen.invalid, 0);
    assert_int_equal(seen.compiled, seen.n);
    assert_true(seen.n > 100);
    /* Every shader in the binary is used by something. */
    for (size_t i = 0; i < vk_glsl_n_sources; i++) {
        const char *name = vk_glsl_sources[i].name;
        bool used = !strstr(name, ".comp");
        for (size_t k = 0; k < seen.n && !used; k++)
            used = !strncmp(seen.v[k], name, strlen(name));
        if (!used)
            fail_msg("%s: no lowering uses it", name);
    }
    free(seen.v);
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_kernel, make_cache, drop_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
