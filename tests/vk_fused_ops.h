/* SPDX-License-Identifier: MIT
 *
 * tests/vk_fused_ops.h: matrices with what may follow them, as programs that are run in one kernel, op by op, and on the CPU. For tests
 * that include it once; ROWS, CHECK_FIRST and CHECK_STEP say for which sizes of batches.
 */
#ifndef TESTS_VK_FUSED_OPS_H
#define TESTS_VK_FUSED_OPS_H

#include "vk_fused.h"

static int open_devices(void **state)
{
    (void)state;
    setenv("DLLAMA_ALLOW_SOFTWARE_GPU", "1", 1);
    setenv("DLLAMA_VK_TUNE", "0", 1);
    setenv("DLLAMA_VK_VALIDATION", "1", 1); /* where the layers are installed */
    struct dl_cpu_opts ref = {.threads = 1, .isa = "ref"};
    struct dl_vulkan_opts opts = {.index = -1};
    int err = dl_vulkan_open(&opts, &gpu);
    if (err && err != DL_EUNSUP)
        return err;
    return dl_cpu_open(&ref, &cpu);
}

static int close_devices(void **state)
{
    (void)state;
    dl_device_close(&gpu);
    dl_device_close(&cpu);
    return 0;
}

#ifndef CHECK_FIRST
#define CHECK_FIRST 1u
#define CHECK_STEP(p) ((p)->dispatches ? 4u : 2u) /* kernels of matrices take longer to compile */
#endif

static char variant[128]; /* that DLLAMA_VK_VARIANT is to force, or "" */
static bool may_be_apart; /* whether one kernel does it depends on the variant; op by op is left out */
static unsigned n_fused, n_apart;

static void check(struct prog *p, const char *what)
{
    char apart[160];
    snprintf(apart, sizeof apart, "fuse=no %s", variant);
    for (uint32_t n = CHECK_FIRST; n < ROWS; n += CHECK_STEP(p)) {
        size_t bytes;
        setenv("DLLAMA_VK_VARIANT", variant, 1);
        uint8_t *got = run(gpu, p, n, &bytes), *want = run(cpu, p, n, &bytes);
        compare_all(p, got, want, what);
        free(got);
        n_fused += n_dispatches == p->dispatches;
        n_apart += n_dispatches != p->dispatches;
        if (p->dispatches && !may_be_apart) {
            if (n_dispatches != p->dispatches)
                fail_msg("%s: %u dispatches for %u tokens, not %u", what, n_dispatches, n, p->dispatches);
            setenv("DLLAMA_VK_VARIANT", apart, 1);
            got = run(gpu, p, n, &bytes);
            compare_all(p, got, want, what);
            assert_true(n_dispatches > p->dispatches);
            free(got);
        }
        free(want);
    }
    unsetenv("DLLAMA_VK_VARIANT");
    for (uint32_t i = 0; i < p->n_bufs; i++)
        free(p->bytes[i]);
}

static const enum dl_type weight_types[] = {DL_Q40, DL_Q80, DL_F16, DL_F32, DL_BF16};

static void gate_up_glu(enum dl_type type, uint32_t in, uint32_t out, enum dl_type to, enum dl_act_fn act)
{
    struct prog p = {.rng = in + out, .bound = 1e-10, .dispatches = 1};
    struct dl_view x = acts(&p, type, in), gate = view(&p, DL_BUF_ACT, DL_F32, ROWS, out),
                   up = view(&p, DL_BUF_ACT, DL_F32, ROWS, out);
    matmul(&p, gate, x, type, false);
    matmul(&p, up, x, type, false);
    struct dl_op *o = op(&p, DL_OP_GLU, view(&p, DL_BUF_ACT, to, ROWS, out), gate);
    o->src[1] = up;
    o->u.glu.act = act;
    check(&p, "gate, up and glu");
}

static void q_k_v(enum dl_type type, uint32_t in, bool bias)
{
    struct prog p = {.rng = in, .bound = 1e-10, .dispatches = 1};
    static const uint32_t cols[] = {96, 32, 40};
    struct dl_view x = acts(&p, type, in), qkv = view(&p, DL_BUF_ACT, DL_F32, ROWS, 200);
    uint32_t at = 16; /* neither at the begin nor at the end */
    for (uint32_t i = 0; i < 3; i++) {
        struct dl_view dst = qkv;
        dst.cols = cols[i];
        dst.offset = 4 * (uint64_t)at;
        matmul(&p, dst, x, type, bias);
        at += cols[i];
    }
    check(&p, "q, k and v");
}

static void to_the_wire(enum dl_type type, uint32_t in, uint32_t out, enum dl_buf_use use, enum dl_type to, bool bias)
{
    struct prog p = {.rng = in + 1, .bound = 1e-10, .dispatches = 1};
    struct dl_view part = view(&p, DL_BUF_ACT, DL_F32, ROWS, out);
    matmul(&p, part, acts(&p, type, in), type, bias);
    struct dl_view slice = view(&p, use, to, 3 * ROWS, out);
    slice.rows = ROWS;
    slice.offset = ROWS * slice.row_bytes; /* the second of three */
    op(&p, DL_OP_CONVERT, slice, part);
    check(&p, "matrix and wire");
}

/* What rounding loses is carried, from the first time or from before. */
static void to_the_wire_carrying(enum dl_type type, uint32_t in, uint32_t out, enum dl_buf_use use, enum dl_type to,
                                 bool first)
{
    struct prog p = {.rng = in + 3, .bound = 1e-10, .dispatches = 1, .fine = to == DL_Q120};
    struct dl_view part = view(&p, DL_BUF_ACT, DL_F32, ROWS, out), carry = view(&p, DL_BUF_ACT, DL_F32, ROWS, out + 32);
    p.carried = carry.buf + 1;
    carry.offset = 16 * sizeof(float);
    carry.cols = out;
    matmul(&p, part, acts(&p, type, in), type, !first);
    struct dl_op *o = op(&p, DL_OP_CONVERT, view(&p, use, to, ROWS, out), part);
    o->src[1] = carry;
    o->u.convert.first = first;
    check(&p, "matrix and wire, carrying");
}

/* In place or not, the result as first or second operand. */
static void residual(enum dl_type type, uint32_t in, uint32_t out, unsigned kind)
{
    struct prog p = {.rng = in + 2, .bound = 1e-10, .dispatches = 1};
    struct dl_view part = view(&p, DL_BUF_ACT, DL_F32, ROWS, out), x = view(&p, DL_BUF_ACT, DL_F32, ROWS, out), to = x;
    if (kind & 1)
        to = view(&p, DL_BUF_ACT, DL_F32, ROWS, out);
    matmul(&p, part, acts(&p, type, in), type, false);
    struct dl_op *o = op(&p, DL_OP_ADD, to, kind & 2 ? part : x);
    o->src[1] = kind & 2 ? x : part;
    check(&p, "matrix and residual");
}

#endif
