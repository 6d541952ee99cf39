/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_engine.c: whole models on the Vulkan device, alone and together with the CPU, against the logits of another engine
 * (refs/) and against the text that the demo model knows. With the validation layers on, which must stay silent.
 */
#include "common.h"

#ifdef DL_HAVE_VULKAN

#include "demo.h"
#include "dl/session.h"
#include "vk_rig.h"

enum { N_PROMPT = 14, N_GEN = 16, VOCAB = 384, ROWS = (N_GEN + 1) * VOCAB };

static const int32_t prompt[N_PROMPT] = {382, 10, 200, 33, 77, 90, 310, 5, 128, 64, 256, 300, 17, 42};

/* Devices in order: "v" a GPU, "c" the CPU. */
struct cast {
    const char *devices, *disable, *validation;
    const double *shares;
    enum dl_type kv_type, wire;
    double bound;
};

struct stage {
    dl_model *model;
    dl_device *dev[4];
    uint32_t n;
    dl_engine *engine;
};

static void stage_open(struct stage *s, dl_model *model, const struct cast *cast)
{
    setenv("DLLAMA_VK_VALIDATION", cast->validation, 1);
    *s = (struct stage){.model = model, .n = (uint32_t)strlen(cast->devices)};
    for (uint32_t i = 0; i < s->n; i++) {
        struct dl_vulkan_opts opts = vk_test_opts(cast->disable);
        struct dl_cpu_opts cpu = {.threads = 1};
        assert_int_equal(cast->devices[i] == 'v' ? dl_vulkan_open(&opts, &s->dev[i]) : dl_cpu_open(&cpu, &s->dev[i]),
                         0);
    }
    struct dl_engine_opts opts = {.model = model,
                                  .devices = s->dev,
                                  .n_devices = s->n,
                                  .shares = cast->shares,
                                  .ctx = 256,
                                  .kv_type = cast->kv_type,
                                  .wire = cast->wire};
    assert_int_equal(dl_engine_create(&opts, &s->engine), 0);
}

static void stage_close(struct stage *s)
{
    dl_engine_destroy(&s->engine);
    for (uint32_t i = 0; i < s->n; i++) {
        if (vk_ctx_of(s->dev[i]))
            vk_test_close(&s->dev[i]);
        else
            dl_device_close(&s->dev[i]);
    }
    dl_model_close(&s->model);
}

static int32_t argmax(const float *v, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (v[i] > v[best])
            best = i;
    return (int32_t)best;
}

/* NMSE of all rows while the reference's own tokens are fed; every argmax must be the reference's where `same`. */
static double against_reference(dl_engine *e, const int32_t *ids, const float *rows, bool same)
{
    dl_session *s;
    float *logits;
    double err = 0, sum = 0;
    assert_int_equal(dl_session_create(e, &s), 0);
    assert_int_equal(dl_session_sync(s, prompt, N_PROMPT, NULL, NULL, &logits), 0);
    for (int i = 0;; i++) {
        for (int k = 0; k < VOCAB; k++) {
            double want = (double)rows[i * VOCAB + k], d = (double)logits[k] - want;
            err += d * d;
            sum += want * want;
        }
        if (i == N_GEN)
            break;
        if (same)
            assert_int_equal(argmax(logits, VOCAB), ids[i]);
        assert_int_equal(dl_session_eval(s, ids[i], &logits), 0);
    }
    dl_session_destroy(&s);
    assert_true(sum > 0);
    return err / sum;
}

static void test_families(void **state)
{
    (void)state;
    NEED_VULKAN();
    NEED_DATA(any, "refs/llama.gguf");
    static const char *const families[] = {"llama", "llama31-tied", "qwen2", "qwen3", "qwen3moe"};
    static const double uneven[] = {3, 1, 2};
    static const struct cast casts[] = {
        {"v", "", "1", NULL, DL_F16, DL_F32, 1e-5},
        {"v", "int-dot,subgroup", "1", NULL, DL_F32, DL_F32, 1e-5},
        {"vc", "timeline", "1", uneven, DL_F16, DL_F32, 1e-5},
        /* Layers of 1.3.239 stall for seconds over semaphores that the host signals. Wire noise may swap an expert that is
         * nearly tied. */
        {"cvv", "", "0", uneven, DL_F16, DL_Q80, 1e-2},
    };
    static float rows[ROWS];
    for (size_t f = 0; f < DL_COUNT_OF(families); f++) {
        char file[64];
        int32_t ids[N_GEN];
        snprintf(file, sizeof file, "refs/%s.ids", families[f]);
        FILE *in = fopen(test_data(file), "r");
        for (int i = 0; i < N_GEN; i++)
            assert_int_equal(fscanf(in, "%d", &ids[i]), 1);
        fclose(in);
        snprintf(file, sizeof file, "refs/%s.f32", families[f]);
        in = fopen(test_data(file), "rb");
        assert_int_equal(fread(rows, sizeof *rows, ROWS, in), ROWS);
        fclose(in);
        snprintf(file, sizeof file, "refs/%s.gguf", families[f]);
        for (size_t c = 0; c < DL_COUNT_OF(casts); c++) {
            struct stage s;
            dl_model *model;
            assert_int_equal(dl_model_open(test_data(file), &model), 0);
            stage_open(&s, model, &casts[c]);
            double d = against_reference(s.engine, ids, rows, casts[c].wire == DL_F32);
            printf("%s on %s%s%s: NMSE %.2e\n", families[f], casts[c].devices, *casts[c].disable ? " without " : "",
                   casts[c].disable, d);
            assert_true(d <= casts[c].bound);
            stage_close(&s);
        }
    }
}

/* Its weights are Q40, and a wrong number anywhere shows in the text. */
static void test_recital(void **state)
{
    (void)state;
    NEED_VULKAN();
    static const double uneven[] = {3, 1};
    static const struct cast casts[] = {{"v", "", "1", NULL, DL_F16, DL_F32, 0},
                                        {"v", "int-dot,subgroup,timeline", "1", NULL, DL_Q80, DL_F32, 0},
                                        {"vc", "", "0", uneven, DL_F16, DL_Q80, 0}};
    int32_t want[160];
    for (size_t c = 0; c <= DL_COUNT_OF(casts); c++) { /* the CPU alone first */
        static const struct cast cpu = {"c", "", "0", NULL, DL_F16, DL_F32, 0};
        void *bytes;
        size_t n;
        dl_model *model;
        struct stage s;
        dl_session *session;
        float *logits;
        assert_int_equal(dl_demo_make(&bytes, &n), 0);
        assert_int_equal(dl_model_open_mem(bytes, n, "demo", &model), 0);
        uint32_t vocab = dl_model_header(model)->vocab;
        stage_open(&s, model, c ? &casts[c - 1] : &cpu);
        assert_int_equal(dl_session_create(s.engine, &session), 0);
        /* The first words of the text, as the model's own bytes give them. */
        int32_t at[] = {1, 2, 3};
        assert_int_equal(dl_session_sync(session, at, 3, NULL, NULL, &logits), 0);
        bool varies = false;
        for (size_t i = 0; i < DL_COUNT_OF(want); i++) {
            int32_t id = argmax(logits, vocab);
            if (!c)
                want[i] = id;
            assert_int_equal(id, want[i]);
            varies = varies || id != want[0];
            assert_int_equal(dl_session_eval(session, id, &logits), 0);
        }
        assert_true(varies);
        dl_session_destroy(&session);
        stage_close(&s);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recital), cmocka_unit_test(test_families)};
    return cmocka_run_group_tests(tests, vk_test_begin, NULL);
}

#else

int main(void)
{
    fprintf(stderr, "SKIPPED: built without Vulkan\n");
    return 0;
}

#endif
