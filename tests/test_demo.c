/* SPDX-License-Identifier: MIT
 *
 * tests/test_demo.c: the built-in demo model: its bytes, the rules that its text obeys, that the readers open it, and that the
 * engine recites with it, on every instruction set, from anywhere in the text; and that it stops doing so as soon as any
 * head or any part of the FFN is missing, which is what makes it a test of everything else.
 */
#include "common.h"

#include "cpu_sets.h"
#include "demo.h"
#include "dl/sampler.h"
#include "dl/session.h"
#include "dl/text.h"

/* Of the image. A change of demo*.c or gguf_out.c that is meant brings the new value, which the test prints. */
#define DEMO_HASH 0x004dbd4de4301260u

static struct eng_demo_text text;

static int setup(void **state)
{
    (void)state;
    eng_demo_text_make(&text);
    return 0;
}

/* --------------------------------------------------------------------------------------- bytes and readers */

static void test_same_bytes_every_time(void **state)
{
    (void)state;
    void *a, *b;
    size_t n_a, n_b;
    assert_int_equal(dl_demo_make(&a, &n_a), 0);
    assert_int_equal(dl_demo_make(&b, &n_b), 0);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a: the same on every machine and with every compiler */
    for (size_t i = 0; i < n_a; i++)
        hash = (hash ^ ((const uint8_t *)a)[i]) * 0x100000001b3u;
    printf("demo model: %zu bytes, hash %016llx\n", n_a, (unsigned long long)hash);
    assert_true(hash == DEMO_HASH);
    free(a);
    free(b);
}

static void test_readers_open_it(void **state)
{
    (void)state;
    void *bytes;
    size_t n;
    dl_model *model;
    assert_int_equal(dl_demo_make(&bytes, &n), 0);
    assert_int_equal(dl_model_open_mem(bytes, n, "demo", &model), 0);
    const struct dl_model_header *h = dl_model_header(model);
    assert_string_equal(dl_model_name(model), "dllama-vk demo");
    assert_int_equal(h->arch, DL_ARCH_LLAMA);
    assert_int_equal(h->n_layers, 2);
    assert_int_equal(h->n_heads, 8);
    assert_int_equal(h->n_kv_heads, 4);
    assert_int_equal(h->n_heads * h->head_dim, h->dim);
    assert_int_equal(h->rope_layout, DL_ROPE_PAIRS);
    assert_int_equal(h->vocab, text.n_pieces);
    assert_int_equal(h->vocab % 8, 0);
    assert_int_equal(h->hidden_dim % (8 * DL_BLOCK), 0);
    assert_false(h->tied);
    for (int id = 0; id < DL_T_COUNT; id++) {
        struct dl_tensor t;
        if (dl_model_tensor(model, (enum dl_tensor_id)id, 0, &t) == 0)
            assert_int_equal(t.type, t.rows > 1 ? DL_Q40 : DL_F32);
    }
    dl_model_close(&model);
    free(bytes);
}

/* ------------------------------------------------------------------------------------------------ the text */

static void test_two_words_tell_the_place_and_one_does_not(void **state)
{
    (void)state;
    uint32_t several = 0, n_words = 0;
    for (const char *p = dl_demo_text(); *p; p++)
        n_words += *p == ' ' || !p[1];
    assert_in_range(n_words, 110, 130);
    for (uint32_t i = 0; i < text.n_ids; i++) {
        assert_true(i == 0 || text.ids[i] != text.ids[0]);
        bool other = false, seen = false;
        for (uint32_t j = 0; j < text.n_ids; j++) {
            if (text.ids[j] != text.ids[i] || j == i)
                continue;
            assert_false(i > 0 && j > 0 && text.ids[j - 1] == text.ids[i - 1]);
            other |= text.ids[j + 1] != text.ids[i + 1];
            seen |= j < i;
        }
        several += other && !seen;
    }
    printf("%u words, %u tokens, %u of them with several followers\n", n_words, text.n_ids, several);
    assert_true(several >= 12);
    assert_int_equal(strncmp(dl_demo_text(), dl_demo_prompt(), strlen(dl_demo_prompt())), 0);
}

static void test_a_word_is_a_token(void **state)
{
    (void)state;
    void *bytes;
    size_t n;
    dl_tokenizer *tok;
    struct dl_tokens ids = {0};
    struct dl_str back = {0};
    assert_int_equal(dl_demo_make(&bytes, &n), 0);
    assert_int_equal(dl_tokenizer_open_mem(bytes, n, "demo", &tok), 0);
    free(bytes);
    const struct dl_tokenizer_info *info = dl_tokenizer_info(tok);
    assert_string_equal(info->kind, "spm");
    assert_string_equal(info->chat_template, "");
    assert_int_equal(info->vocab, text.n_pieces);
    assert_int_equal(info->bos, ENG_DEMO_BOS);
    assert_true(dl_token_is_eog(tok, ENG_DEMO_EOS));

    assert_int_equal(dl_tokenize(tok, dl_demo_text(), strlen(dl_demo_text()), DL_TOKENIZE_BOS, &ids), 0);
    assert_int_equal(ids.len, text.n_ids + 1);
    assert_int_equal(ids.v[0], ENG_DEMO_BOS);
    for (uint32_t i = 0; i < text.n_ids; i++)
        assert_int_equal(ids.v[i + 1], text.ids[i]);
    assert_int_equal(dl_detokenize(tok, ids.v, ids.len, &back), 0);
    assert_string_equal(back.v, dl_demo_text());

    ids.len = back.len = 0;
    static const char strange[] = "Hello  w\xc3\xb6rld, One modelling \xff";
    assert_int_equal(dl_tokenize(tok, strange, sizeof strange - 1, 0, &ids), 0);
    assert_int_equal(dl_detokenize(tok, ids.v, ids.len, &back), 0);
    assert_int_equal(back.len, sizeof strange - 1);
    assert_memory_equal(back.v, strange, back.len);
    dl_str_finish(&back);
    dl_tokens_finish(&ids);
    dl_tokenizer_close(&tok);
}

/* ---------------------------------------------------------------------------------------------- the recital */

enum { MAX_DEVICES = 8 };

struct stage {
    void *bytes;
    dl_model *model;
    dl_device *devices[MAX_DEVICES];
    uint32_t n_devices;
    dl_engine *engine;
    dl_session *session;
};

struct setting {
    const char *isa; /* NULL: the best there is */
    enum dl_type kv_type, wire;
    uint32_t n_devices; /* 0: one */
    const double *shares;
};

/* With the demo model, or an altered image of it, which the stage then owns. */
static void stage_open(struct stage *s, const struct setting *how, void *bytes, size_t n)
{
    memset(s, 0, sizeof *s);
    s->bytes = bytes;
    if (!bytes)
        assert_int_equal(dl_demo_make(&s->bytes, &n), 0);
    assert_int_equal(dl_model_open_mem(s->bytes, n, "demo", &s->model), 0);
    s->n_devices = how->n_devices ? how->n_devices : 1;
    struct dl_cpu_opts cpu = {.threads = s->n_devices == 1 ? 2 : 1, .isa = how->isa};
    for (uint32_t i = 0; i < s->n_devices; i++)
        assert_int_equal(dl_device_open("cpu", &cpu, &s->devices[i]), 0);
    struct dl_engine_opts opts = {.model = s->model,
                                  .devices = s->devices,
                                  .n_devices = s->n_devices,
                                  .shares = how->shares,
                                  .max_out = ENG_DEMO_MAX_TEXT,
                                  .max_batch = 256,
                                  .kv_type = how->kv_type,
                                  .wire = how->wire};
    assert_int_equal(dl_engine_create(&opts, &s->engine), 0);
    assert_int_equal(dl_session_create(s->engine, &s->session), 0);
}

static void stage_close(struct stage *s)
{
    dl_session_destroy(&s->session);
    dl_engine_destroy(&s->engine);
    for (uint32_t i = 0; i < s->n_devices; i++)
        dl_device_close(&s->devices[i]);
    dl_model_close(&s->model);
    free(s->bytes);
}

/* Generates greedily after a prompt, as long as the text from place `at` on is what comes, to its end and EOS. Returns how
 * many tokens were right, and in *margin the least distance of the best to the second best logit. */
static uint32_t recite(struct stage *s, const int32_t *prompt, size_t n, uint32_t at, float *margin)
{
    struct dl_sampler greedy;
    dl_sampler_init(&greedy, 0);
    float *logits;
    uint32_t right = 0;
    assert_int_equal(dl_session_sync(s->session, prompt, n, NULL, NULL, &logits), 0);
    for (;; right++) {
        uint32_t want = text.ids[at + right];
        for (uint32_t i = 0; i < text.n_pieces; i++)
            if (i != want)
                *margin = DL_MIN(*margin, logits[want] - logits[i]);
        int32_t id = dl_sample(&greedy, logits, text.n_pieces);
        if (id != (int32_t)want)
            return right;
        if (id == ENG_DEMO_EOS)
            return right + 1;
        assert_int_equal(dl_session_eval(s->session, id, &logits), 0);
    }
}

/* From words [at, at + n) of the text, with BOS in front. */
static uint32_t recite_from(struct stage *s, uint32_t at, uint32_t n, float *margin)
{
    int32_t prompt[ENG_DEMO_MAX_TEXT + 1] = {ENG_DEMO_BOS};
    for (uint32_t i = 0; i < n; i++)
        prompt[i + 1] = (int32_t)text.ids[at + i];
    return recite(s, prompt, n + 1, at + n, margin);
}

/* All of the text as one batch: the best logit at each position is the next token. */
static void check_batch(struct stage *s)
{
    int32_t tokens[ENG_DEMO_MAX_TEXT + 1] = {ENG_DEMO_BOS};
    for (uint32_t i = 0; i < text.n_ids; i++)
        tokens[i + 1] = (int32_t)text.ids[i];
    dl_session_truncate(s->session, 0);
    struct dl_step_item item = {.session = s->session, .tokens = tokens, .n = text.n_ids + 1, .want = DL_WANT_ALL};
    assert_int_equal(dl_engine_step(s->engine, &item, 1), 0);
    for (uint32_t i = 0; i <= text.n_ids; i++) {
        const float *logits = item.logits + (size_t)i * text.n_pieces;
        uint32_t best = 0;
        for (uint32_t id = 1; id < text.n_pieces; id++)
            if (logits[id] > logits[best])
                best = id;
        assert_int_equal(best, text.ids[i]);
    }
}

/* `all`: from many places; else once and as a batch. */
static void check_recital(const char *isa, enum dl_type kv_type, bool all)
{
    static const uint32_t middles[] = {9, 38, 57, 77, 101, 120};
    struct stage s;
    float margin = 1e30f;
    stage_open(&s, &(struct setting){.isa = isa, .kv_type = kv_type}, NULL, 0);
    for (uint32_t n = all ? 0 : 3; n <= 3; n++)
        assert_int_equal(recite_from(&s, 0, n, &margin), text.n_ids + 1 - n);
    for (size_t i = 0; i < DL_COUNT_OF(middles) && all; i++)
        assert_int_equal(recite_from(&s, middles[i], 2, &margin), text.n_ids + 1 - middles[i] - 2);
    check_batch(&s);

    /* Strangers, and far from position 0: it starts its text. */
    int32_t strangers[700];
    for (size_t i = 0; i < DL_COUNT_OF(strangers); i++)
        strangers[i] = (int32_t)(3 + i * 7 % 256);
    assert_int_equal(recite(&s, strangers, DL_COUNT_OF(strangers), 0, &margin), text.n_ids + 1);
    printf("%s, kv %s: margin %.2f\n", isa, dl_type_info(kv_type)->name, (double)margin);
    assert_true(margin > 15);
    stage_close(&s);
}

static void test_recital_ref(void **state)
{
    (void)state;
    check_recital("ref", DL_F16, true);
    check_recital("ref", DL_F32, false);
    check_recital("ref", DL_Q80, false);
}

static void recital(const char *isa)
{
    if (!has_cpu_set(isa)) {
        fprintf(stderr, "SKIPPED: this CPU has no %s\n", isa);
        skip();
    }
    check_recital(isa, DL_F16, true);
    check_recital(isa, DL_F32, false);
    check_recital(isa, DL_Q80, false);
}

static void test_recital_fast(void **state)
{
    (void)state;
    recital(cpu_sets[0]);
}

static void test_recital_faster(void **state)
{
    (void)state;
    recital(cpu_sets[1]);
}

#ifndef __aarch64__
static void test_recital_fastest(void **state)
{
    (void)state;
    recital(cpu_sets[2]);
}
#endif

/* Cut over several devices, up to one head each, evenly or not: each holds what no other has, so all must be right. */
static void test_recital_in_slices(void **state)
{
    (void)state;
    static const double uneven[] = {5, 1, 2};
    static const struct setting settings[] = {
        {.kv_type = DL_F16, .wire = DL_F32, .n_devices = 2},
        {.kv_type = DL_F16, .wire = DL_Q80, .n_devices = 3, .shares = uneven},
        {.kv_type = DL_F16, .wire = DL_Q80, .n_devices = 8},
        {.kv_type = DL_Q80, .wire = DL_F16, .n_devices = 8},
    };
    for (size_t i = 0; i < DL_COUNT_OF(settings); i++) {
        struct stage s;
        float margin = 1e30f;
        stage_open(&s, &settings[i], NULL, 0);
        assert_int_equal(recite_from(&s, 0, 3, &margin), text.n_ids - 2);
        check_batch(&s);
        printf("%u devices, wire %s: margin %.2f\n", s.n_devices, dl_type_info(settings[i].wire)->name, (double)margin);
        assert_true(margin > 15);
        stage_close(&s);
    }
}

/* ------------------------------------------------------------------------------------- nothing can be missed */

/* A recital with some columns (n_blocks blocks of 32 from `block`) of attn_output or ffn_down zeroed. */
static uint32_t recite_without(enum dl_tensor_id id, uint32_t layer, uint32_t block, uint32_t n_blocks)
{
    void *bytes;
    size_t n;
    dl_model *model;
    struct dl_tensor t;
    assert_int_equal(dl_demo_make(&bytes, &n), 0);
    assert_int_equal(dl_model_open_mem(bytes, n, "demo", &model), 0);
    assert_int_equal(dl_model_tensor(model, id, layer, &t), 0);
    size_t at = (size_t)(t.data - (const uint8_t *)bytes);
    for (uint32_t row = 0; row < t.rows; row++)
        for (uint32_t b = block; b < block + n_blocks; b++)
            memset((uint8_t *)bytes + at + row * t.row_bytes + b * sizeof(struct dl_q40), 0, 2); /* the scale */
    dl_model_close(&model);

    struct stage s;
    float margin = 0;
    stage_open(&s, &(struct setting){.kv_type = DL_F16}, bytes, n);
    uint32_t right = recite_from(&s, 0, 3, &margin);
    stage_close(&s);
    return right;
}

static void test_attention_is_needed(void **state)
{
    (void)state;
    assert_int_equal(recite_without(DL_T_ATTN_OUT, 0, 0, 0), text.n_ids - 2);
    for (uint32_t layer = 0; layer < 2; layer++) {
        assert_int_equal(recite_without(DL_T_ATTN_OUT, layer, 0, 8), 0);
        for (uint32_t head = 0; head < 8; head++)
            assert_true(recite_without(DL_T_ATTN_OUT, layer, head, 1) < text.n_ids - 2);
    }
}

static void test_every_slice_of_the_ffn_is_needed(void **state)
{
    (void)state;
    for (uint32_t layer = 0; layer < 2; layer++)
        for (uint32_t block = 0; block < 8; block++)
            assert_true(recite_without(DL_T_FFN_DOWN, layer, block, 1) < text.n_ids - 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes_every_time),
        cmocka_unit_test(test_readers_open_it),
        cmocka_unit_test(test_two_words_tell_the_place_and_one_does_not),
        cmocka_unit_test(test_a_word_is_a_token),
        cmocka_unit_test(test_recital_ref),
        cmocka_unit_test(test_recital_fast),
        cmocka_unit_test(test_recital_faster),
#ifndef __aarch64__
        cmocka_unit_test(test_recital_fastest),
#endif
        cmocka_unit_test(test_recital_in_slices),
        cmocka_unit_test(test_attention_is_needed),
        cmocka_unit_test(test_every_slice_of_the_ffn_is_needed),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
