/* SPDX-License-Identifier: MIT
 *
 * tests/test_model.c: the model readers on files made here: that each tensor's bytes are found (also of experts, and in the
 * parts of a split file), what the keys mean, and the line that each fault gets.
 */
#include "common.h"
#include "dl/model.h"
#include "model_files.h"
#include "watch_log.h"

#include <unistd.h>

/* ------------------------------------------------------------------------------------------ right bytes */

/* Each tensor that the model has begins with its mark; returns how many there are (experts count one each). */
static unsigned check_marks(const dl_model *m)
{
    const struct dl_model_header *h = dl_model_header(m);
    unsigned n = 0;
    for (unsigned id = 0; id < DL_T_COUNT; id++)
        for (uint32_t l = 0; l < (dl_tensor_per_layer((enum dl_tensor_id)id) ? h->n_layers : 1); l++) {
            struct dl_tensor t;
            if (dl_model_tensor(m, (enum dl_tensor_id)id, l, &t) || id == DL_T_ROPE_FREQS)
                continue;
            for (uint32_t e = 0; e < t.n_experts; e++, n++) {
                uint32_t mark, own = id == DL_T_OUTPUT && h->tied ? DL_T_EMBED : id;
                memcpy(&mark, t.data + e * t.expert_bytes, sizeof mark);
                if (mark != tensor_mark((enum dl_tensor_id)own, l, e))
                    fail_msg("%s of layer %u, expert %u: bytes of %08x", dl_tensor_name((enum dl_tensor_id)id), l, e,
                             mark);
            }
        }
    return n;
}

static void test_gguf_shapes(void **state)
{
    (void)state;
    static const struct {
        struct tiny t;
        unsigned n;
        enum dl_type type;
    } cases[] = {
        {{.arch = "llama", .type = 0}, 3 + 2 * 9, DL_F32},
        {{.arch = "llama", .type = 2, .tied = true, .factors = true}, 3 + 2 * 9, DL_Q40},
        {{.arch = "llama", .type = 1, .experts = 3}, 3 + 2 * (7 + 9), DL_F16},
        {{.arch = "llama", .type = 30, .bias = true}, 3 + 2 * 12, DL_BF16},
        {{.arch = "qwen2", .type = 8, .bias = true}, 3 + 2 * 12, DL_Q80},
        {{.arch = "qwen2", .type = 8}, 3 + 2 * 9, DL_Q80},
        {{.arch = "qwen3", .type = 2, .layers = 3}, 3 + 3 * 11, DL_Q40},
        {{.arch = "qwen3moe", .type = 8, .experts = 4}, 3 + 2 * (9 + 12), DL_Q80},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct dl_str f = tiny_gguf(&cases[i].t);
        dl_model *m;
        struct dl_tensor t;
        assert_int_equal(dl_model_open_mem(f.v, f.len, "dir/tiny.gguf", &m), 0);
        assert_string_equal(dl_model_name(m), "tiny");
        assert_int_equal(check_marks(m), cases[i].n);
        const struct dl_model_header *h = dl_model_header(m);
        assert_true(h->dim == 32 && h->head_dim == 8 && h->n_rot == 8 && h->vocab == 16);
        assert_int_equal(h->hidden_dim, cases[i].t.experts ? 0 : 64);
        assert_int_equal(h->qkv_bias, cases[i].t.bias);
        assert_int_equal(h->tied, cases[i].t.tied);
        assert_int_equal(dl_model_tensor(m, DL_T_ATTN_OUT, 1, &t), 0);
        assert_int_equal(t.type, cases[i].type);
        if (cases[i].t.factors)
            assert_true(h->rope_scaling == DL_ROPE_SCALE_TABLE && !dl_model_tensor(m, DL_T_ROPE_FREQS, 0, &t) &&
                        t.cols == 4);
        dl_model_close(&m);
        dl_str_finish(&f);
    }
    assert_int_equal(log_lines.n, 0);
}

static void test_m_shapes(void **state)
{
    (void)state;
    for (int32_t arch = 0xABCD00; arch <= 0xABCD02; arch++)
        for (int32_t weight = 0; weight < 4; weight++) {
            struct tiny_m t = tiny_m(arch, weight);
            struct dl_str f = tm_finish(&t);
            dl_model *m;
            struct dl_tensor router;
            assert_int_equal(dl_model_open_mem(f.v, f.len, "dir/tiny.m", &m), 0);
            assert_string_equal(dl_model_name(m), "tiny.m");
            const struct dl_model_header *h = dl_model_header(m);
            bool moe = arch == 0xABCD02, qwen = arch != 0xABCD00;
            assert_int_equal(check_marks(m), moe ? 3 + 2 * (9 + 12) : qwen ? 3 + 2 * 11 : 3 + 2 * 9);
            assert_int_equal(h->rope_layout, qwen ? DL_ROPE_HALVES : DL_ROPE_PAIRS);
            assert_true(h->qk_norm == qwen && !h->tied && !h->qkv_bias);
            assert_true(h->n_experts == (moe ? 4 : 0) && h->n_experts_used == (moe ? 2 : 0) &&
                        h->expert_dim == (moe ? 32 : 0));
            assert_int_equal(h->hidden_dim, moe ? 0 : 64);
            if (moe)
                assert_true(!dl_model_tensor(m, DL_T_MOE_ROUTER, 1, &router) && router.type == DL_F32 &&
                            router.rows == 4);
            assert_int_equal(dl_model_weight_bytes(m), f.len - 8 - 8 * t.n);
            dl_model_close(&m);
            dl_str_finish(&f);
        }
    assert_int_equal(log_lines.n, 0);
}

/* -------------------------------------------------------------------------------------------------- keys */

/* A tiny GGUF llama with more keys; add(w) puts them there. NULL after a refusal. */
typedef void add_fn(struct gw *w);
static dl_model *with_keys(const struct tiny *t, add_fn *add, struct dl_str *f)
{
    struct gw w = {0};
    tiny_meta(&w, t);
    add(&w);
    tiny_tensors(&w, t);
    *f = gw_finish(&w);
    dl_model *m;
    (void)dl_model_open_mem(f->v, f->len, "tiny.gguf", &m);
    return m;
}

static void add_linear(struct gw *w)
{
    gw_str(w, "llama.rope.scaling.type", "linear"), gw_f32(w, "llama.rope.scaling.factor", 4);
}
static void add_linear_1(struct gw *w)
{
    gw_str(w, "llama.rope.scaling.type", "linear");
}
static void add_old_linear(struct gw *w)
{
    gw_f32(w, "llama.rope.scale_linear", 2);
}
static void add_llama3(struct gw *w)
{
    gw_str(w, "llama.rope.scaling.type", "llama3"), gw_f32(w, "llama.rope.scaling.factor", 32);
    gw_f32(w, "llama.rope.scaling.high_freq_factor", 5), gw_u32(w, "llama.rope.scaling.original_context_length", 64);
}
static void add_rest(struct gw *w)
{
    gw_f32(w, "llama.rope.freq_base", 5e5f), gw_u32(w, "llama.rope.dimension_count", 4);
    gw_u32(w, "llama.attention.key_length", 8), gw_u32(w, "llama.attention.value_length", 8);
    gw_tensor(w, "some.other", 12, 1, (uint64_t[]){256}, "x", 1); /* of no use and of an unknown type: passed over */
}
static void add_heads(struct gw *w)
{
    gw_array(w, "llama.attention.head_count_kv", 5, 2);
    put_le(&w->meta, 2, 4), put_le(&w->meta, 2, 4);
}

static void test_gguf_keys(void **state)
{
    (void)state;
    const struct tiny llama = {.arch = "llama", .type = 2}, table = {.arch = "llama", .type = 2, .factors = true};
    const struct tiny no_kv = {.arch = "llama", .type = 2, .skip = "llama.attention.head_count_kv"};
    struct dl_str f;
    dl_model *m = with_keys(&llama, add_linear, &f);
    assert_non_null(m);
    assert_true(dl_model_header(m)->rope_scaling == DL_ROPE_SCALE_LINEAR && dl_model_header(m)->rope_factor == 4);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&llama, add_linear_1, &f);
    assert_true(m && dl_model_header(m)->rope_scaling == DL_ROPE_SCALE_NONE);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&llama, add_old_linear, &f);
    assert_true(m && dl_model_header(m)->rope_scaling == DL_ROPE_SCALE_LINEAR && dl_model_header(m)->rope_factor == 2);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&llama, add_llama3, &f);
    assert_non_null(m);
    const struct dl_model_header *h = dl_model_header(m);
    assert_true(h->rope_scaling == DL_ROPE_SCALE_LLAMA31 && h->rope_factor == 32 && h->rope_low_freq == 1);
    assert_true(h->rope_high_freq == 5 && h->rope_orig_ctx == 64);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&table, add_llama3, &f);
    assert_true(m && dl_model_header(m)->rope_scaling == DL_ROPE_SCALE_TABLE);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&llama, add_rest, &f);
    assert_true(m && dl_model_header(m)->rope_theta == 5e5 && dl_model_header(m)->n_rot == 4);
    dl_model_close(&m), dl_str_finish(&f);
    m = with_keys(&no_kv, add_heads, &f);
    assert_true(m && dl_model_header(m)->n_kv_heads == 2);
    dl_model_close(&m), dl_str_finish(&f);
    assert_int_equal(log_lines.n, 0);
    m = with_keys(&table, add_linear, &f);
    assert_null(m);
    assert_non_null(strstr(log_lines.last, "both rope_freqs.weight and linear"));
    dl_str_finish(&f);
}

static void test_m_keys(void **state)
{
    (void)state;
    struct tiny_m t = tiny_m(0xABCD00, 2);
    tm_set(&t, 14, 32), tm_set(&t, 15, 1), tm_set(&t, 16, 4), tm_set(&t, 17, 8192), tm_set(&t, 18, 2);
    tm_set(&t, 11, 0), tm_set(&t, 12, 500000), tm_set(&t, 20, 6);
    tm_remove(&t, 19);
    struct dl_str f = tm_finish(&t);
    dl_model *m;
    assert_int_equal(dl_model_open_mem(f.v, f.len, "x.m", &m), 0);
    const struct dl_model_header *h = dl_model_header(m);
    assert_true(h->rope_scaling == DL_ROPE_SCALE_LLAMA31 && h->rope_factor == 32 && h->rope_low_freq == 1);
    assert_true(h->rope_high_freq == 4 && h->rope_orig_ctx == 8192 && h->rope_layout == DL_ROPE_PAIRS);
    assert_true(h->act == DL_ACT_GELU && h->rope_theta == 500000 && h->norm_eps == 1e-6f && h->head_dim == 8);
    dl_model_close(&m), dl_str_finish(&f);

    t = tiny_m(0xABCD00, 2);
    tm_remove(&t, 11), tm_remove(&t, 12), tm_remove(&t, 20), tm_set(&t, 18, 1);
    f = tm_finish(&t);
    assert_int_equal(dl_model_open_mem(f.v, f.len, "x.m", &m), 0);
    h = dl_model_header(m);
    assert_true(h->act == DL_ACT_SILU && h->rope_theta == 10000 && h->norm_eps == 1e-5f);
    assert_true(h->rope_layout == DL_ROPE_HALVES && h->rope_scaling == DL_ROPE_SCALE_NONE);
    dl_model_close(&m), dl_str_finish(&f);
}

/* ----------------------------------------------------------------------------------------------- refusals */

static void check_refused(struct dl_str f, int code, const char *words)
{
    unsigned before = log_lines.n;
    dl_model *m;
    int err = dl_model_open_mem(f.v ? f.v : "", f.len, "file", &m);
    if (err != code || m || log_lines.n != before + 1 || !strstr(log_lines.last, words))
        fail_msg("%d instead of %d, %u lines, '%s' without '%s'", err, code, log_lines.n - before, log_lines.last,
                 words);
    dl_str_finish(&f);
}

static void test_gguf_refusals(void **state)
{
    (void)state;
    static const struct {
        struct tiny t;
        int code;
        const char *words;
    } cases[] = {
        {{.arch = "gemma2", .type = 0},
         DL_EUNSUP,
         "architecture gemma2 is not supported (llama, qwen2, qwen3 and qwen3moe"},
        {{.arch = "llama", .skip = "general.architecture"}, DL_EFORMAT, "general.architecture is missing"},
        {{.arch = "llama", .skip = "llama.block_count"}, DL_EFORMAT, "key llama.block_count is missing"},
        {{.arch = "llama", .skip = "llama.context_length"}, DL_EFORMAT, "key llama.context_length is missing"},
        {{.arch = "llama", .skip = "llama.feed_forward_length"}, DL_EFORMAT, "gives no feed-forward length"},
        {{.arch = "qwen3moe", .experts = 2, .skip = "qwen3moe.expert_count"}, DL_EFORMAT, "expert_count is missing"},
        {{.arch = "qwen3moe", .experts = 1}, DL_EFORMAT, "uses 2 of 1 experts"},
        {{.arch = "qwen2", .experts = 2}, DL_EUNSUP, "qwen2 with experts"},
        {{.arch = "llama", .skip = "token_embd.weight"}, DL_EFORMAT, "tensor token_embd.weight is missing"},
        {{.arch = "llama", .skip = "blk.1.ffn_norm.weight"}, DL_EFORMAT, "tensor blk.1.ffn_norm.weight is missing"},
        {{.arch = "qwen3", .skip = "blk.0.attn_k_norm.weight"}, DL_EFORMAT, "blk.0.attn_k_norm.weight is missing"},
        {{.arch = "qwen2", .bias = true, .skip = "blk.1.attn_v.bias"}, DL_EFORMAT, "blk.1.attn_v.bias is missing"},
        {{.arch = "llama", .odd = "blk.1.attn_k.weight", .odd_rows = 8}, DL_EFORMAT, "blk.1.attn_k.weight is 32 x 24"},
        {{.arch = "llama", .odd = "output.weight", .odd_rows = 1}, DL_EFORMAT, "output.weight is 32 x 17"},
        {{.arch = "llama", .odd = "blk.0.ffn_up.weight", .odd_type = 12},
         DL_EUNSUP,
         "blk.0.ffn_up.weight is Q4_K, which"},
        {{.arch = "llama", .odd = "output.weight", .odd_type = 14}, DL_EUNSUP, "output.weight is Q6_K"},
        {{.arch = "llama", .odd = "output.weight", .odd_type = 17}, DL_EUNSUP, "IQ2_XS"},
        {{.arch = "llama", .odd = "output.weight", .odd_type = 4711}, DL_EUNSUP, "is type 4711, which"},
        {{.arch = "llama", .odd = "output_norm.weight", .odd_type = 1},
         DL_EUNSUP,
         "output_norm.weight is F16, but norms"},
        {{.arch = "qwen2", .bias = true, .odd = "blk.0.attn_q.bias", .odd_type = 30}, DL_EUNSUP, "is BF16, but norms"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++)
        check_refused(tiny_gguf(&cases[i].t), cases[i].code, cases[i].words);

    struct gw none = {0};
    gw_str(&none, "general.architecture", "llama");
    check_refused(gw_finish(&none), DL_EUNSUP, "holds no weights");
    struct dl_str f = tiny_gguf(&(struct tiny){.arch = "llama"});
    f.len--; /* the output matrix */
    check_refused(f, DL_EFORMAT, "tensor output.weight lies at");
}

static void add_yarn(struct gw *w)
{
    gw_str(w, "llama.rope.scaling.type", "yarn");
}
static void add_bias(struct gw *w)
{
    gw_tensor(w, "blk.1.attn_output.bias", 0, 1, (uint64_t[]){1}, "0000", 4);
}
static void add_q_norm(struct gw *w)
{
    gw_tensor(w, "blk.1.attn_q_norm.weight", 0, 1, (uint64_t[]){1}, "0000", 4);
}
static void add_value_length(struct gw *w)
{
    gw_u32(w, "llama.attention.value_length", 16);
}
static void add_odd_rot(struct gw *w)
{
    gw_u32(w, "llama.rope.dimension_count", 10);
}
static void add_theta(struct gw *w)
{
    gw_f32(w, "llama.rope.freq_base", 0);
}
static void add_nan(struct gw *w)
{
    gw_key(w, "llama.rope.freq_base", 6), put_le(&w->meta, 0x7fc00000, 4);
}
static void add_key_text(struct gw *w)
{
    gw_str(w, "llama.attention.key_length", "8");
}
static void add_layers(struct gw *w)
{
    gw_array(w, "llama.attention.head_count_kv", 5, 2);
    put_le(&w->meta, 2, 4), put_le(&w->meta, 4, 4);
}
static void add_big(struct gw *w)
{
    gw_u32(w, "llama.context_length", 1u << 25);
}
static void add_split(struct gw *w)
{
    gw_u32(w, "split.count", 3), gw_u32(w, "split.no", 0);
}
static void add_bad_split(struct gw *w)
{
    gw_u32(w, "split.count", 3), gw_u32(w, "split.no", 3);
}

static void test_gguf_refused_keys(void **state)
{
    (void)state;
    static const struct {
        add_fn *add;
        const char *skip, *words;
    } cases[] = {
        {add_yarn, NULL, "rope scaling yarn is not supported"},
        {add_bias, NULL, "blk.1.attn_output.bias has no place"},
        {add_q_norm, NULL, "blk.1.attn_q_norm.weight has no place"},
        {add_value_length, NULL, "keys and values of different length"},
        {add_odd_rot, NULL, "rope turns 10 values of heads of 8"},
        {add_theta, NULL, "rope theta 0 makes no sense"},
        {add_nan, NULL, "llama.rope.freq_base is no number in range"},
        {add_key_text, NULL, "llama.attention.key_length is no whole number"},
        {add_layers, "llama.attention.head_count_kv", "head_count_kv differs between layers"},
        {add_big, "llama.context_length", "context length 33554432 is over the limit of 16777216"},
        {add_split, NULL, "one part of a split model"},
        {add_bad_split, NULL, "split.* keys make no sense"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct dl_str f;
        struct tiny t = {.arch = "llama", .skip = cases[i].skip};
        dl_model *m = with_keys(&t, cases[i].add, &f);
        if (m || log_lines.n != i + 1 || !strstr(log_lines.last, cases[i].words))
            fail_msg("%u lines, '%s' without '%s'", log_lines.n, log_lines.last, cases[i].words);
        dl_str_finish(&f);
    }
}

static void check_m_refused(int32_t arch, int32_t key, int32_t value, int code, const char *words)
{
    struct tiny_m t = tiny_m(arch, 2);
    struct dl_str f = tm_finish(&t);
    unsigned i = 0;
    while (i < t.n && t.keys[i] != key)
        i++;
    if (i < t.n) { /* changes the header only, so that what follows no longer fits it */
        memcpy(f.v + 8 + 8 * i + 4, &value, 4);
    } else {
        dl_str_finish(&f);
        tm_set(&t, key, value);
        f = tm_finish(&t);
    }
    check_refused(f, code, words);
}

static void test_m_refusals(void **state)
{
    (void)state;
    check_m_refused(0xABCD00, 1, 0xABCD05, DL_EUNSUP, "architecture 0xABCD05");
    check_m_refused(0xABCD00, 13, 4, DL_EUNSUP, "header key 13 (weight_type) is 4");
    check_m_refused(0xABCD00, 11, 2, DL_EUNSUP, "(hidden_act) is 2");
    check_m_refused(0xABCD00, 18, 3, DL_EUNSUP, "(rope_type) is 3");
    check_m_refused(0xABCD00, 14, 8, DL_EUNSUP, "(rope_scaling_factor) is 8");
    check_m_refused(0xABCD00, 20, 7, DL_EUNSUP, "(norm_epsilon) is 7");
    check_m_refused(0xABCD00, 7, 2, DL_EUNSUP, "(n_experts) is 2");
    check_m_refused(0xABCD02, 7, 0, DL_EFORMAT, "(n_experts) is missing or 0");
    check_m_refused(0xABCD02, 8, 5, DL_EFORMAT, "uses 5 of 4 experts");
    check_m_refused(0xABCD00, 18, 2, DL_EFORMAT, "rope scaling factor 0 makes no sense");
    check_m_refused(0xABCD00, 22, 0, DL_EUNSUP, "header key 22 is not known");
    check_m_refused(0xABCD00, 2, -32, DL_EFORMAT, "(dim) is negative");
    check_m_refused(0xABCD00, 4, 2000, DL_EUNSUP, "layers 2000 is over the limit");
    check_m_refused(0xABCD00, 4, 1, DL_EFORMAT, "bytes more");
    check_m_refused(0xABCD00, 4, 3, DL_EFORMAT, "the file ends here, but");
    check_m_refused(0xABCD00, 6, 3, DL_EFORMAT, "4 attention heads cannot share 3 KV heads");
    check_m_refused(0xABCD00, 3, 65, DL_EFORMAT, "rows of 65 values are no whole number of q40 blocks");
    check_m_refused(0xABCD00, 5, 0, DL_EFORMAT, "gives no attention heads");

    struct tiny_m t = tiny_m(0xABCD01, 0);
    tm_remove(&t, 9);
    check_refused(tm_finish(&t), DL_EFORMAT, "header key 9 (vocab) is missing");
    t = tiny_m(0xABCD01, 0);
    t.keys[t.n] = 2, t.values[t.n++] = 32;
    check_refused(tm_finish(&t), DL_EFORMAT, "header key 2 (dim) is there twice");
    for (uint32_t size = 0; size < 5; size++) {
        static const uint32_t sizes[] = {0, 7, 20, 8 + 65 * 8, 0xffffffff};
        t = tiny_m(0xABCD01, 0);
        struct dl_str f = tm_finish(&t);
        memcpy(f.v + 4, &sizes[size], 4);
        check_refused(f, DL_EFORMAT, "a header of");
    }
    static const uint32_t magics[] = {0xABCD00, 0xABCD01};
    for (size_t i = 0; i < 2; i++) {
        struct dl_str f = {0};
        put_le(&f, magics[i], 4), put_le(&f, 32, 4);
        check_refused(f, DL_EUNSUP, i ? "old layout (magic 0xABCD01)" : "old layout (magic 0xABCD00)");
    }
    check_refused((struct dl_str){0}, DL_EFORMAT, "neither GGUF nor");
}

#define T(name) cmocka_unit_test_setup_teardown(name, watch_log, unwatch_log)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_gguf_shapes),   T(test_m_shapes),          T(test_gguf_keys),  T(test_m_keys),
        T(test_gguf_refusals), T(test_gguf_refused_keys), T(test_m_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
