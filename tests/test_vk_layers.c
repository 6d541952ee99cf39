/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_layers.c: how many dispatches a layer of a real plan is on the Vulkan device, alone and as one of two nodes. Needs no
 * device: the lowerings get made-up ones.
 */
#include "common.h"

#include "dl/model.h"
#include "lower.h"
#include "memory.h"
#include "tune.h"

enum { CTX = 4096 };

struct kind {
    const char *what;
    enum dl_type weights;
    bool extras, experts; /* biases and norms of heads */
    uint32_t n_nodes, n_tokens;
    bool software, few_binds, apart;
    uint32_t want;
};

static struct dl_model_header header(const struct kind *k, uint32_t n_layers)
{
    struct dl_model_header h = {.arch = k->experts ? DL_ARCH_QWEN3_MOE : DL_ARCH_LLAMA,
                                .dim = 2048,
                                .hidden_dim = k->experts ? 0 : 8192,
                                .n_layers = n_layers,
                                .n_heads = 32,
                                .n_kv_heads = 8,
                                .head_dim = 64,
                                .vocab = 32000,
                                .max_seq = CTX,
                                .norm_eps = 1e-5f,
                                .n_rot = 64,
                                .rope_theta = 10000,
                                .qkv_bias = k->extras,
                                .qk_norm = k->experts};
    if (k->experts) {
        h.n_experts = 16;
        h.n_experts_used = 2;
        h.expert_dim = 768;
    }
    return h;
}

static struct dl_model_plan *build(const struct kind *k, uint32_t n_layers)
{
    struct dl_model_header h = header(k, n_layers);
    struct dl_tensor_types types = {.output = k->weights,
                                    .layer = dl_xcalloc((size_t)n_layers * DL_T_COUNT, sizeof(enum dl_type))};
    for (uint32_t l = 0; l < n_layers; l++) {
        static const int matrices[] = {DL_T_ATTN_Q, DL_T_ATTN_K,   DL_T_ATTN_V,   DL_T_ATTN_OUT, DL_T_FFN_GATE,
                                       DL_T_FFN_UP, DL_T_FFN_DOWN, DL_T_MOE_GATE, DL_T_MOE_UP,   DL_T_MOE_DOWN};
        for (int id = 0; id < DL_T_COUNT; id++)
            types.layer[l * DL_T_COUNT + (uint32_t)id] = DL_F32;
        for (size_t i = 0; i < DL_COUNT_OF(matrices); i++)
            types.layer[l * DL_T_COUNT + (uint32_t)matrices[i]] = k->weights;
    }
    struct dl_slice slices[2];
    struct dl_plan_opts opts = {
        .max_tokens = 32, .max_out = 8, .kv_blocks = CTX / DL_KV_BLOCK, .kv_type = DL_F16, .wire = DL_Q80};
    struct dl_model_plan *mp;
    assert_int_equal(dl_slices_make(&h, 32, NULL, k->n_nodes, slices), 0);
    assert_int_equal(dl_plan_build(&h, &types, slices, 0, k->n_nodes, &opts, &mp), 0);
    dl_tensor_types_finish(&types);
    return mp;
}

/* Dispatches of a whole batch. */
static uint32_t count(const struct kind *k, uint32_t n_layers)
{
    struct vk_ctx *c = dl_xcalloc(1, sizeof *c);
    c->caps = (struct vk_caps){.shared_bytes = 49152,
                               .max_invocations = 1024,
                               .max_local = {1024, 1024, 64},
                               .max_groups = {65535, 65535, 65535},
                               .storage_range = (uint64_t)1 << 31,
                               .max_alloc = (uint64_t)1 << 31,
                               .offset_align = 64,
                               .max_binds = k->few_binds ? 9 : VK_BINDS,
                               .subgroup = k->software ? 8 : 32,
                               .subgroup_arith = true,
                               .subgroup_shuffle = true,
                               .subgroup_require = true,
                               .software = k->software};
    snprintf(c->label, sizeof c->label, "%s", k->what);
    struct dl_model_plan *mp = build(k, n_layers);
    struct vk_buf *bufs = dl_xcalloc(mp->plan.n_bufs + 1, sizeof *bufs),
                  **table = dl_xcalloc(mp->plan.n_bufs, sizeof *table);
    struct vk_buf *batch = &bufs[mp->plan.n_bufs];
    batch->base.desc = (struct dl_buf_desc){"batch", DL_BUF_INPUT, DL_F32, 1, 4096, 16384};
    assert_int_equal(vk_planes_lay_out(c, batch), 0);
    for (uint32_t i = 0; i < mp->plan.n_bufs; i++) {
        bufs[i].base.desc = mp->plan.bufs[i];
        table[i] = &bufs[i];
        assert_int_equal(vk_planes_lay_out(c, table[i]), 0);
    }
    if (k->apart)
        setenv("DLLAMA_VK_VARIANT", "fuse=no", 1);
    uint32_t n = 0;
    for (uint32_t s = 0; s < mp->plan.n_steps; s++) {
        const struct dl_step *step = &mp->plan.steps[s];
        struct vk_lower l = {.ctx = c,
                             .bufs = table,
                             .batch = batch,
                             .n_tokens = k->n_tokens,
                             .n_out = k->n_tokens,
                             .max_positions = CTX};
        for (uint32_t i = 0; step->kind == DL_STEP_RUN && i < step->n_ops;) {
            int took = vk_lower_ops(&l, &mp->plan.ops[step->first_op + i], step->n_ops - i);
            assert_true(took > 0);
            i += (uint32_t)took;
        }
        n += (uint32_t)l.n;
        free(l.out);
    }
    unsetenv("DLLAMA_VK_VARIANT");
    vk_tune_close(c);
    dl_plan_destroy(&mp);
    free(table);
    free(bufs);
    free(c);
    return n;
}

static void test_dispatches_per_layer(void **state)
{
    (void)state;
    setenv("DLLAMA_VK_TUNE", "0", 1);
    static const struct kind kinds[] = {
        {.what = "Q40", .weights = DL_Q40, .n_nodes = 1, .n_tokens = 1, .want = 9},
        {.what = "Q40, 8 tokens", .weights = DL_Q40, .n_nodes = 1, .n_tokens = 8, .want = 9},
        {.what = "Q40, one of 2 nodes", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 1, .want = 9},
        {.what = "Q40, one of 2 nodes, 8 tokens", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 8, .want = 9},
        {.what = "Q40 with biases", .weights = DL_Q40, .extras = true, .n_nodes = 1, .n_tokens = 1, .want = 9},
        {.what = "F16", .weights = DL_F16, .n_nodes = 1, .n_tokens = 1, .want = 9},
        {.what = "F16, one of 2 nodes", .weights = DL_F16, .n_nodes = 2, .n_tokens = 1, .want = 9},
        {.what = "Q40, software", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 32, .software = true, .want = 8},
        {.what = "Q40, 32 tokens", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 32, .want = 11},
        {.what = "experts", .weights = DL_Q40, .experts = true, .n_nodes = 1, .n_tokens = 1, .want = 14},
        {.what = "experts, 1 of 2", .weights = DL_Q40, .experts = true, .n_nodes = 2, .n_tokens = 1, .want = 15},
        {.what = "Q40, few bindings", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 1, .few_binds = true, .want = 16},
        {.what = "Q40, op by op", .weights = DL_Q40, .n_nodes = 2, .n_tokens = 1, .apart = true, .want = 20},
    };
    for (size_t i = 0; i < DL_COUNT_OF(kinds); i++) {
        uint32_t one = count(&kinds[i], 1), three = count(&kinds[i], 3), each = (three - one) / 2;
        printf("%s: %u dispatches per layer, %u around them\n", kinds[i].what, each, one - each);
        assert_int_equal((three - one) % 2, 0);
        assert_int_equal(each, kinds[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_dispatches_per_layer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
