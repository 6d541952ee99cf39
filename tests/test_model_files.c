/* SPDX-License-Identifier: MIT
 *
 * tests/test_model_files.c: the model readers against the real models of the test data: the same numbers and the same bits from
 * both formats, and every architecture's header and tensors.
 */
#include "common.h"
#include "dl/model.h"

static void assert_headers_equal(const struct dl_model_header *a, const struct dl_model_header *b)
{
    assert_int_equal(a->arch, b->arch);
    assert_int_equal(a->dim, b->dim);
    assert_int_equal(a->hidden_dim, b->hidden_dim);
    assert_int_equal(a->n_layers, b->n_layers);
    assert_int_equal(a->n_heads, b->n_heads);
    assert_int_equal(a->n_kv_heads, b->n_kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->vocab, b->vocab);
    assert_int_equal(a->max_seq, b->max_seq);
    assert_int_equal(a->n_experts, b->n_experts);
    assert_true(a->norm_eps == b->norm_eps);
    assert_int_equal(a->act, b->act);
    assert_int_equal(a->rope_layout, b->rope_layout);
    assert_int_equal(a->n_rot, b->n_rot);
    assert_true(a->rope_theta == b->rope_theta);
    assert_int_equal(a->rope_scaling, b->rope_scaling);
    assert_int_equal(a->qkv_bias, b->qkv_bias);
    assert_int_equal(a->qk_norm, b->qk_norm);
}

static void test_both_formats_agree(void **state)
{
    (void)state;
    NEED_DATA(gguf_path, "models/stories260K.gguf");
    NEED_DATA(m_path, "models/stories260K.m");
    dl_model *gguf, *m;
    assert_int_equal(dl_model_open(gguf_path, &gguf), 0);
    assert_int_equal(dl_model_open(m_path, &m), 0);
    assert_headers_equal(dl_model_header(gguf), dl_model_header(m));
    assert_string_equal(dl_model_format(gguf), "gguf v3");
    assert_string_equal(dl_model_format(m), "distributed-llama .m");
    assert_string_equal(dl_model_name(gguf), "stories260K");
    assert_string_equal(dl_model_name(m), "stories260K.m");
    assert_string_equal(dl_model_path(m), m_path);
    assert_int_equal(dl_model_file_bytes(m), 1171336);
    assert_int_equal(dl_model_weight_bytes(m), 1171200);
    assert_int_equal(dl_model_weight_bytes(gguf), 1171200);
    unsigned same = 0;
    for (unsigned id = 0; id < DL_T_COUNT; id++)
        for (uint32_t layer = 0; layer < 6; layer++) {
            struct dl_tensor a, b;
            int err = dl_model_tensor(gguf, (enum dl_tensor_id)id, layer, &a);
            assert_int_equal(dl_model_tensor(m, (enum dl_tensor_id)id, layer, &b), err);
            if (err)
                continue;
            assert_true(a.rows == b.rows && a.cols == b.cols && a.type == b.type && a.row_bytes == b.row_bytes);
            assert_memory_equal(a.data, b.data, a.rows * a.row_bytes);
            dl_model_drop_pages(gguf, &a); /* a hint: the content stays */
            assert_memory_equal(a.data, b.data, a.rows * a.row_bytes);
            same++;
        }
    assert_int_equal(same, 5 * 9 + 3 * 6); /* per-layer tensors of 5 layers; the others for any layer */
    dl_model_close(&gguf);
    dl_model_close(&m);
    dl_model_close(&m);
}

struct expect {
    const char *file;
    struct dl_model_header h;
};

static void test_every_architecture(void **state)
{
    (void)state;
    static const struct expect expect[] = {
        {"refs/llama.gguf",
         {.arch = DL_ARCH_LLAMA,
          .dim = 128,
          .hidden_dim = 320,
          .n_layers = 3,
          .n_heads = 8,
          .n_kv_heads = 2,
          .head_dim = 16,
          .norm_eps = 1e-5f,
          .rope_layout = DL_ROPE_PAIRS,
          .rope_theta = 10000}},
        {"refs/llama31-tied.gguf",
         {.arch = DL_ARCH_LLAMA,
          .dim = 192,
          .hidden_dim = 256,
          .n_layers = 2,
          .n_heads = 6,
          .n_kv_heads = 2,
          .head_dim = 32,
          .norm_eps = 1e-5f,
          .rope_layout = DL_ROPE_PAIRS,
          .rope_theta = 500000,
          .rope_scaling = DL_ROPE_SCALE_TABLE,
          .tied = true}},
        {"refs/qwen2.gguf",
         {.arch = DL_ARCH_QWEN2,
          .dim = 128,
          .hidden_dim = 288,
          .n_layers = 3,
          .n_heads = 4,
          .n_kv_heads = 2,
          .head_dim = 32,
          .norm_eps = 1e-6f,
          .rope_layout = DL_ROPE_HALVES,
          .rope_theta = 1e6,
          .qkv_bias = true}},
        {"refs/qwen3.gguf",
         {.arch = DL_ARCH_QWEN3,
          .dim = 128,
          .hidden_dim = 320,
          .n_layers = 3,
          .n_heads = 8,
          .n_kv_heads = 4,
          .head_dim = 32,
          .norm_eps = 1e-6f,
          .rope_layout = DL_ROPE_HALVES,
          .rope_theta = 1e6,
          .qk_norm = true}},
        {"refs/qwen3moe.gguf",
         {.arch = DL_ARCH_QWEN3_MOE,
          .dim = 128,
          .n_layers = 2,
          .n_heads = 8,
          .n_kv_heads = 2,
          .head_dim = 32,
          .n_experts = 8,
          .n_experts_used = 2,
          .expert_dim = 96,
          .norm_eps = 1e-6f,
          .rope_layout = DL_ROPE_HALVES,
          .rope_theta = 1e6,
          .qk_norm = true}},
    };
    for (size_t i = 0; i < DL_COUNT_OF(expect); i++) {
        NEED_DATA(path, expect[i].file);
        dl_model *m;
        assert_int_equal(dl_model_open(path, &m), 0);
        const struct dl_model_header *h = dl_model_header(m), *e = &expect[i].h;
        struct dl_model_header full = *e;
        full.vocab = 384;
        full.max_seq = 512;
        full.n_rot = full.head_dim;
        assert_headers_equal(h, &full);
        assert_true(h->n_experts_used == e->n_experts_used && h->expert_dim == e->expert_dim && h->tied == e->tied);

        struct dl_tensor t, embed;
        assert_int_equal(dl_model_tensor(m, DL_T_EMBED, 99, &embed), 0);
        assert_true(embed.rows == 384 && embed.cols == h->dim && embed.type == DL_F32);
        assert_int_equal(dl_model_tensor(m, DL_T_OUTPUT, 0, &t), 0);
        assert_int_equal(t.data == embed.data, h->tied);
        assert_int_equal(dl_model_tensor(m, DL_T_ATTN_Q, h->n_layers - 1, &t), 0);
        assert_true(t.rows == h->n_heads * h->head_dim && t.cols == h->dim && t.n_experts == 1 && t.expert_bytes == 0);
        assert_int_equal(dl_model_tensor(m, DL_T_ATTN_Q, h->n_layers, &t), DL_EINVAL);
        assert_int_equal(dl_model_tensor(m, DL_T_COUNT, 0, &t), DL_EINVAL);
        assert_int_equal(dl_model_tensor(m, DL_T_ROPE_FREQS, 0, &t),
                         h->rope_scaling == DL_ROPE_SCALE_TABLE ? 0 : DL_EINVAL);
        assert_int_equal(dl_model_tensor(m, DL_T_ATTN_K_BIAS, 0, &t), h->qkv_bias ? 0 : DL_EINVAL);
        assert_int_equal(dl_model_tensor(m, DL_T_ATTN_K_NORM, 0, &t), h->qk_norm ? 0 : DL_EINVAL);
        assert_int_equal(dl_model_tensor(m, DL_T_FFN_UP, 0, &t), h->n_experts ? DL_EINVAL : 0);
        if (h->n_experts) {
            assert_int_equal(dl_model_tensor(m, DL_T_MOE_DOWN, 1, &t), 0);
            assert_true(t.rows == h->dim && t.cols == h->expert_dim && t.n_experts == 8);
            assert_int_equal(t.expert_bytes, 4 * h->dim * h->expert_dim);
        }
        dl_model_close(&m);
    }
}

static void test_what_is_no_model(void **state)
{
    (void)state;
    static const struct {
        const char *file, *words;
        int code;
    } cases[] = {
        {"vocab/llama3.gguf", "holds no weights", DL_EUNSUP},
        {"models/stories260K.t", "a tokenizer, not a model", DL_EUNSUP},
        {"vocab/llama3.t", "a tokenizer, not a model", DL_EUNSUP},
        {"models/stories260K.bin", "neither GGUF nor", DL_EFORMAT},
    };
    struct test_log log = {0};
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        NEED_DATA(path, cases[i].file);
        dl_model *m;
        dl_log_set(test_log_sink, &log, DL_LOG_WARN);
        int err = dl_model_open(path, &m);
        dl_log_set(NULL, NULL, DL_LOG_WARN);
        assert_int_equal(err, cases[i].code);
        assert_null(m);
        assert_int_equal(log.n, i + 1);
        assert_non_null(strstr(log.last, cases[i].words));
    }
    dl_model *m;
    dl_log_set(test_log_sink, &log, DL_LOG_WARN);
    int absent = dl_model_open("/nonexistent/model.gguf", &m), folder = dl_model_open("/", &m);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(absent, DL_EIO);
    assert_int_equal(folder, DL_EIO);
}

/* -------------------------------------------------------------------------------------------------- list */

struct rows {
    unsigned meta, tensors;
    bool found;
};

static void count_row(void *ud, const char *what, const char *name, const char *text)
{
    struct rows *r = ud;
    *(strcmp(what, "meta") == 0 ? &r->meta : &r->tensors) += 1;
    assert_true(strlen(name) < 80 && strlen(text) < 300);
    if (!strcmp(name, "blk.1.ffn_down_exps.weight"))
        r->found = !strncmp(text, "F32 (8, 128, 96) at byte ", 25);
    if (!strcmp(name, "max_seq"))
        r->found = !strcmp(text, "512");
}

static void test_list(void **state)
{
    (void)state;
    NEED_DATA(moe, "refs/qwen3moe.gguf");
    NEED_DATA(m_path, "models/stories260K.m");
    dl_model *m;
    struct rows r = {0};
    assert_int_equal(dl_model_open(moe, &m), 0);
    assert_int_equal(dl_model_list(m, count_row, &r), 0);
    assert_true(r.meta == 25 && r.tensors == 27 && r.found);
    dl_model_close(&m);
    r = (struct rows){0};
    assert_int_equal(dl_model_open(m_path, &m), 0);
    assert_int_equal(dl_model_list(m, count_row, &r), 0);
    assert_true(r.meta == 16 && r.tensors == 48 && r.found);
    dl_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_formats_agree),
        cmocka_unit_test(test_every_architecture),
        cmocka_unit_test(test_what_is_no_model),
        cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
