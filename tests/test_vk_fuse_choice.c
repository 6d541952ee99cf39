/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_fuse_choice.c: a kernel for several ops is checked before it is used: what a wrong one would compute is done op by op, after
 * one line about it. And the choice is kept: the next start checks, measures and compiles nothing.
 */
#include "glsl.h"
#include "tempdir.h"
#include "tune.h"
#include "vk_fused.h"
#include "vk_spoil.h"

static unsigned n_dropped;
static char last_dropped[300];

static void on_line(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud;
    if (strstr(line, "dropped")) {
        n_dropped++;
        snprintf(last_dropped, sizeof last_dropped, "%s", line);
    } else if (level == DL_LOG_ERROR) {
        fprintf(stderr, "%s\n", line);
    }
}

static char cache[TEMPDIR_LEN];

static int set_up(void **state)
{
    (void)state;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    setenv("DLLAMA_VK_TUNE", "1000", 1); /* machines that run tests may be slow */
    setenv("DLLAMA_VK_VALIDATION", "1", 1);
    make_dir(cache);
    setenv("DLLAMA_CACHE_DIR", cache, 1);
    struct dl_cpu_opts ref = {.threads = 1, .isa = "ref"};
    return dl_cpu_open(&ref, &cpu);
}

static int tear_down(void **state)
{
    (void)state;
    dl_device_close(&cpu);
    remove_dir(cache);
    return 0;
}

static void open_gpu(void)
{
    struct dl_vulkan_opts opts = {.index = -1};
    int err = dl_vulkan_open(&opts, &gpu);
    assert_true(!err || err == DL_EUNSUP);
    n_dropped = 0;
}

static void close_gpu(void)
{
    dl_device_close(&gpu);
}

/* -------------------------------------------------------------------------------------------------- the programs */

static void build_glu(struct prog *p)
{
    struct dl_view x = acts(p, DL_Q40, 2048), gate = view(p, DL_BUF_ACT, DL_F32, ROWS, 512),
                   up = view(p, DL_BUF_ACT, DL_F32, ROWS, 512);
    matmul(p, gate, x, DL_Q40, false); /* large enough to be timed */
    matmul(p, up, x, DL_Q40, false);
    op(p, DL_OP_GLU, view(p, DL_BUF_ACT, DL_Q80, ROWS, 512), gate)->src[1] = up;
}

static void build_beside(struct prog *p)
{
    struct dl_view x = acts(p, DL_Q40, 256), qk = view(p, DL_BUF_ACT, DL_F32, ROWS, 96);
    struct dl_view q = qk, k = qk;
    q.cols = 64;
    k.cols = 32;
    k.offset = 64 * sizeof(float);
    matmul(p, q, x, DL_Q40, true);
    matmul(p, k, x, DL_Q40, true);
}

static void build_convert(struct prog *p)
{
    struct dl_view part = view(p, DL_BUF_ACT, DL_F32, ROWS, 96);
    matmul(p, part, acts(p, DL_F16, 128), DL_F16, false);
    op(p, DL_OP_CONVERT, view(p, DL_BUF_WIRE, DL_Q80, ROWS, 96), part);
}

static void carry_to(struct prog *p, enum dl_type to)
{
    struct dl_view part = view(p, DL_BUF_ACT, DL_F32, ROWS, 96), carry = view(p, DL_BUF_ACT, DL_F32, ROWS, 96);
    matmul(p, part, acts(p, DL_Q40, 128), DL_Q40, false);
    op(p, DL_OP_CONVERT, view(p, DL_BUF_WIRE, to, ROWS, 96), part)->src[1] = carry;
    p->carried = carry.buf + 1;
}

static void build_carry(struct prog *p)
{
    carry_to(p, DL_Q80);
}

static void build_carry_finer(struct prog *p)
{
    carry_to(p, DL_Q120);
}

static void build_add(struct prog *p)
{
    struct dl_view part = view(p, DL_BUF_ACT, DL_F32, ROWS, 72), x = view(p, DL_BUF_ACT, DL_F32, ROWS, 72);
    matmul(p, part, acts(p, DL_Q80, 128), DL_Q80, false);
    op(p, DL_OP_ADD, x, x)->src[1] = part;
}

static void build_attention(struct prog *p)
{
    struct dl_view out = view(p, DL_BUF_ACT, DL_F32, ROWS, 256);
    struct dl_op *o = op(p, DL_OP_ATTENTION, out, view(p, DL_BUF_ACT, DL_F32, ROWS, 256));
    for (int i = 1; i < 3; i++)
        o->src[i] = view(p, DL_BUF_KV, DL_F16, 3 * 2 * DL_KV_BLOCK, 64);
    o->u.attn.n_heads = 4;
    o->u.attn.n_kv_heads = 2;
    o->u.attn.head_dim = 64;
    o->u.attn.group = 2;
    o->u.attn.scale = 0.2f;
    op(p, DL_OP_CONVERT, view(p, DL_BUF_ACT, DL_Q80, ROWS, 256), out);
}

static void build_experts(struct prog *p)
{
    enum { EXPERTS = 4, K = 2, OUT = 96 };
    struct dl_view x = acts(p, DL_Q40, 128), route = view(p, DL_BUF_ACT, DL_F32, ROWS, 2 * K), dst[2];
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t s = 0; s < 2 * K; s++) {
            float v = s < K ? (float)((r * 3 + s) % EXPERTS) : 0.5f;
            memcpy(p->bytes[route.buf] + r * route.row_bytes + s * sizeof v, &v, sizeof v);
        }
    for (int i = 0; i < 2; i++) {
        dst[i] = view(p, DL_BUF_ACT, DL_F32, K * ROWS, OUT);
        struct dl_op *o = op(p, DL_OP_MOE_MATMUL, dst[i], x);
        o->src[1] = view(p, DL_BUF_WEIGHT, DL_Q40, EXPERTS * OUT, 128);
        o->src[2] = route;
        o->mult = o->u.moe.k = K;
        o->u.moe.n_experts = EXPERTS;
        o->u.moe.shared_src = true;
    }
    struct dl_op *o = op(p, DL_OP_GLU, view(p, DL_BUF_ACT, DL_Q80, K * ROWS, OUT), dst[0]);
    o->src[1] = dst[1];
    o->mult = K;
}

/* The residual of three nodes, then norms for a matrix and for a router. */
static void build_norms(struct prog *p)
{
    struct dl_view x = view(p, DL_BUF_ACT, DL_F32, ROWS, 96), wire = view(p, DL_BUF_WIRE, DL_Q80, 3 * ROWS, 96);
    struct dl_view w = view(p, DL_BUF_WEIGHT, DL_F32, 1, 96);
    struct dl_op *o = op(p, DL_OP_MERGE, x, x);
    o->src[1] = wire;
    o->src[1].rows = ROWS;
    o->u.merge.n_slices = 3;
    o->u.merge.slice_bytes = ROWS * wire.row_bytes;
    for (int i = 0; i < 2; i++) {
        o = op(p, DL_OP_RMS_NORM, view(p, DL_BUF_ACT, i ? DL_Q80 : DL_F32, ROWS, 96), x);
        o->src[1] = w;
        o->u.norm.group = 96;
        o->u.norm.eps = 1e-5f;
    }
}

static void heads_to(struct prog *p, enum dl_type type, enum dl_rope_layout layout)
{
    enum { Q = 4, KV = 2, HEAD = 64 };
    struct dl_view qkv = view(p, DL_BUF_ACT, DL_F32, ROWS, (Q + 2 * KV) * HEAD), turned = qkv;
    turned.cols = (Q + KV) * HEAD;
    struct dl_op *o = op(p, DL_OP_ROPE, turned, turned);
    o->src[1] = view(p, DL_BUF_INPUT, DL_F32, ROWS, 48);
    o->u.rope.head_dim = HEAD;
    o->u.rope.n_rot = 48;
    o->u.rope.layout = layout;
    for (uint32_t i = 0; i < 2; i++) {
        struct dl_view src = qkv;
        src.cols = KV * HEAD;
        src.offset = sizeof(float) * HEAD * (Q + i * KV);
        o = op(p, DL_OP_KV_STORE, view(p, DL_BUF_KV, type, 3 * KV * DL_KV_BLOCK, HEAD), src);
        o->u.kv.n_kv_heads = KV;
        o->u.kv.head_dim = HEAD;
    }
}

static void build_heads(struct prog *p)
{
    heads_to(p, DL_F16, DL_ROPE_HALVES);
}

static void build_heads_q80(struct prog *p)
{
    heads_to(p, DL_Q80, DL_ROPE_PAIRS);
}

/* The first guess of each op's own kernel: what is about several is chosen all the same, and quickly. */
static void set_own(bool forced)
{
    if (forced)
        setenv("DLLAMA_VK_VARIANT", "matvec_q40=#0 matvec_q80=#0 matvec_f16=#0 moe_matvec_q40=#0 attention_split=#0",
               1);
    else
        unsetenv("DLLAMA_VK_VARIANT");
}

typedef void build_fn(struct prog *p);

/* Runs it on both; returns the GPU's dispatches. */
static uint32_t run_both(build_fn *build, const char *what)
{
    struct prog p = {.rng = 11, .bound = 1e-9};
    size_t n;
    build(&p);
    uint8_t *got = run(gpu, &p, 3, &n), *want = run(cpu, &p, 3, &n);
    compare_all(&p, got, want, what);
    free(got);
    free(want);
    for (uint32_t i = 0; i < p.n_bufs; i++)
        free(p.bytes[i]);
    return n_dispatches;
}

/* ----------------------------------------------------------------------------------------------------- the tests */

static void test_wrong_is_dropped(void **state)
{
    (void)state;
    static const char emit[] = "OUT_PUT(to, row, v, n);", emit_wrong[] = "OUT_PUT(to, row, v * 1.01, n);\n";
    static const struct {
        build_fn *build;
        uint32_t ops;
        const char *name, *file, *line, *by;
    } cases[] = {
        {build_glu, 3, "fuse_glu_matvec_q40_to_planes", "mm_emit.glsl", emit, emit_wrong},
        {build_glu, 3, "fuse_glu_matvec_q40_to_planes", "out.glsl",
         "out_sums[at.z] =", /* seen by no one but matrices */
         "#ifdef EPI\nscale *= 1.01;\n#endif\nout_sums[at.z] = scale * float(q80_sum());\n"},
        {build_convert, 2, "fuse_convert_matvec_f16_to_q80", "mm_emit.glsl", emit, emit_wrong},
        {build_carry, 2, "fuse_carry_matvec_q40_to_q80", "mm_emit.glsl", emit, emit_wrong},
        {build_carry, 2, "fuse_carry_matvec_q40_to_q80", "mm_emit.glsl", "v -= out_stored;", "v = vec4(0);\n"},
        {build_carry_finer, 2, "fuse_carry_matvec_q40_to_q120", "mm_emit.glsl", "v -= out_stored;", "v = vec4(0);\n"},
        {build_add, 2, "fuse_add_matvec_q80_to_f32", "mm_emit.glsl", emit, emit_wrong},
        {build_beside, 2, "fuse_beside_matvec_q40_2_bias", "mm_parts.glsl", "mm_rows = p.rows1;",
         "mm_rows = p.rows1 - 1u;\n"},
        {build_norms, 3, "fuse_merge_norm_q80_to_f32_planes", "rms_norm.comp", "x[row_at + at + i + j] = v[j];",
         "x[row_at + at + i + j] = v[j] * 1.01;\n"},
        {build_heads, 3, "fuse_rope_stores_f16_halves", "rope_kv.comp", "kv_put(to_v, row, i, v, kept",
         "kv_put(to_v, row, i, v * (BOTH != 0 && to_v ? 1.01 : 1.0), kept ? n : 0u);\n"},
        {build_heads_q80, 3, "fuse_rope_stores_planes", "rope_kv.comp", "uint h = to_v",
         "uint h = to_v ? slot - push.heads : slot - push.k_first;\n#if BOTH\nif (h == 1u && !to_v)\nv *= "
         "1.01;\n#endif\n"},
        {build_attention, 2, "fuse_convert_attention_to_planes", "attention_split.comp", "v[k] = head[col + k];",
         "v[k] = head[col + k] * 1.01;\n"},
    };
    char folder[TEMPDIR_LEN];
    make_dir(folder);
    set_own(true);
    dl_log_set(on_line, NULL, DL_LOG_WARN);
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        spoil(folder, cases[i].file, cases[i].line, cases[i].by);
        open_gpu();
        if (!gpu)
            break;
        assert_int_equal(run_both(cases[i].build, cases[i].name), cases[i].ops); /* right all the same */
        unsigned dropped = n_dropped; /* other variants for other sizes of batches */
        assert_true(dropped >= 1);
        assert_int_equal(vk_tune_stats(vk_ctx_of(gpu)).dropped, dropped);
        if (!strstr(last_dropped, cases[i].name) || !strstr(last_dropped, "wrong"))
            fail_msg("%s: %s", cases[i].name, last_dropped);
        assert_int_equal(run_both(cases[i].build, cases[i].name), cases[i].ops); /* known by now */
        assert_int_equal(n_dropped, dropped);
        close_gpu();
    }
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    unsetenv("DLLAMA_SHADER_DIR");
    set_own(false);
    remove_dir(folder);
}

/* Two that may be timed, and those that are too small for it. The first N_OWN begin with an op that has kernels to choose from. */
static build_fn *const builds[] = {build_glu, build_attention, build_beside, build_convert, build_carry,
                                   build_add, build_experts,   build_norms,  build_heads,   build_heads_q80};
enum { N_TIMED = 2, N_OWN = 7 };

static void test_kept(void **state)
{
    (void)state;
    uint32_t dispatches[2][DL_COUNT_OF(builds)];
    struct vk_tune_stats stats[2];
    uint64_t compiled[2];
    dl_log_set(on_line, NULL, DL_LOG_WARN);
    for (int start = 0; start < 2; start++) {
        open_gpu();
        NEED_GPU();
        compiled[start] = vk_glsl_stats().compiled;
        for (size_t i = 0; i < DL_COUNT_OF(builds); i++)
            dispatches[start][i] = run_both(builds[i], "kept");
        compiled[start] = vk_glsl_stats().compiled - compiled[start];
        stats[start] = vk_tune_stats(vk_ctx_of(gpu));
        close_gpu();
    }
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(n_dropped + stats[0].dropped, 0);
    assert_true(stats[0].checked >= DL_COUNT_OF(builds) + N_OWN); /* the one for all, and the first op's own */
    assert_true(stats[0].timed >= 2 && compiled[0] > 0);
    assert_int_equal(stats[1].checked + stats[1].timed + compiled[1], 0);
    for (size_t i = N_TIMED; i < DL_COUNT_OF(builds); i++) /* too small to be timed: one kernel, if it is right */
        assert_int_equal(dispatches[0][i], 1);
    assert_memory_equal(dispatches[0], dispatches[1], sizeof dispatches[0]);
}

/* The kernels for cards are right, too, and so is what they are compared with. */
static void test_cards(void **state)
{
    (void)state;
    dl_log_set(on_line, NULL, DL_LOG_WARN);
    open_gpu();
    NEED_GPU();
    set_own(true);
    vk_ctx_of(gpu)->caps.software = false;
    for (size_t i = 0; i < DL_COUNT_OF(builds); i++)
        run_both(builds[i], "cards");
    struct vk_tune_stats stats = vk_tune_stats(vk_ctx_of(gpu));
    close_gpu();
    set_own(false);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(n_dropped, 0);
    assert_true(stats.checked >= DL_COUNT_OF(builds));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kept), cmocka_unit_test(test_cards),
                                       cmocka_unit_test(test_wrong_is_dropped)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
