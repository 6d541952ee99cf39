/* SPDX-License-Identifier: MIT
 *
 * tests/test_model_parts.c: split GGUF models, written into a temporary folder: read like the whole, and one clear line for each
 * way in which the parts do not belong together.
 */
#include "common.h"
#include "dl/model.h"
#include "model_files.h"

#include <unistd.h>

static char folder[64];
static struct test_log log_lines;

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dl-parts-XXXXXX");
    log_lines = (struct test_log){0};
    dl_log_set(test_log_sink, &log_lines, DL_LOG_DEBUG);
    return mkdtemp(folder) ? 0 : -1;
}

static const char *part_path(const char *stem, unsigned no, unsigned count)
{
    static char path[4][160];
    static unsigned at;
    char *p = path[at++ % 4];
    snprintf(p, sizeof path[0], "%s/%s-%05u-of-%05u.gguf", folder, stem, no, count);
    return p;
}

static int remove_folder(void **state)
{
    (void)state;
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    for (unsigned i = 1; i <= 3; i++)
        unlink(part_path("m", i, 3));
    char one[160];
    snprintf(one, sizeof one, "%s/one.gguf", folder);
    unlink(one);
    return rmdir(folder);
}

static void write_file(const char *path, struct dl_str f)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(f.v, 1, f.len, out), f.len);
    assert_int_equal(fclose(out), 0);
    dl_str_finish(&f);
}

/* The first has metadata and no tensors, as converters do it; the second the embedding and layer 0; the third the rest. */
struct split {
    uint32_t no[3], count[3], n_tensors;
};

static void write_parts(const struct split *s)
{
    const struct tiny t = {.arch = "llama", .type = 2, .layers = 1}, last = {.arch = "llama", .type = 8, .layers = 2};
    for (unsigned i = 0; i < 3; i++) {
        struct gw w = {0};
        if (i == 0) {
            struct tiny two = {.arch = "llama", .layers = 2};
            tiny_meta(&w, &two);
            gw_u32(&w, "split.tensors.count", s->n_tensors);
        }
        gw_u32(&w, "split.no", s->no[i]);
        gw_u32(&w, "split.count", s->count[i]);
        if (i == 1) {
            tiny_tensors(&w, &t);
        } else if (i == 2) {
            for (unsigned id = DL_T_ATTN_NORM; id < DL_T_COUNT; id++) {
                bool vector = id == DL_T_ATTN_NORM || id == DL_T_FFN_NORM,
                     ffn = id >= DL_T_FFN_GATE && id <= DL_T_FFN_DOWN;
                if ((id >= DL_T_ATTN_Q_BIAS && id <= DL_T_ATTN_K_NORM) || id > DL_T_FFN_DOWN)
                    continue;
                uint64_t rows = vector                                   ? 1
                                : id == DL_T_ATTN_K || id == DL_T_ATTN_V ? 16
                                : ffn && id != DL_T_FFN_DOWN             ? 64
                                                                         : 32;
                tiny_tensor(&w, &last, (enum dl_tensor_id)id, 1, rows, id == DL_T_FFN_DOWN ? 64 : 32, 0, vector);
            }
        }
        write_file(part_path("m", i + 1, 3), gw_finish(&w));
    }
}

static const struct split good = {{0, 1, 2}, {3, 3, 3}, 12 + 9};

static void test_parts(void **state)
{
    (void)state;
    struct split s = good;
    write_parts(&s);
    dl_model *m;
    struct dl_tensor t;
    assert_int_equal(dl_model_open(part_path("m", 1, 3), &m), 0);
    for (uint32_t layer = 0; layer < 2; layer++)
        for (unsigned id = 0; id < DL_T_COUNT; id++) {
            uint32_t mark;
            if (dl_model_tensor(m, (enum dl_tensor_id)id, layer, &t))
                continue;
            memcpy(&mark, t.data, sizeof mark);
            uint32_t l = dl_tensor_per_layer((enum dl_tensor_id)id) ? layer : 0;
            assert_int_equal(mark, tensor_mark((enum dl_tensor_id)id, l, 0));
            dl_model_drop_pages(m, &t);
        }
    assert_int_equal(dl_model_tensor(m, DL_T_FFN_UP, 0, &t), 0);
    assert_int_equal(t.type, DL_Q40);
    assert_int_equal(dl_model_tensor(m, DL_T_FFN_UP, 1, &t), 0);
    assert_int_equal(t.type, DL_Q80);
    assert_true(dl_model_file_bytes(m) > dl_model_weight_bytes(m));
    assert_int_equal(log_lines.n, 0);
    dl_model_close(&m);
}

static void check_refused(const char *path, int code, const char *words)
{
    dl_model *m;
    unsigned before = log_lines.n;
    int err = dl_model_open(path, &m);
    if (err != code || m || log_lines.n != before + 1 || !strstr(log_lines.last, words))
        fail_msg("%d instead of %d, %u lines, '%s' without '%s'", err, code, log_lines.n - before, log_lines.last,
                 words);
}

static void test_faults(void **state)
{
    (void)state;
    struct split s = good;
    write_parts(&s);
    check_refused(part_path("m", 2, 3), DL_EUNSUP,
                  "part 2 of 3 of a split model: open the first one (-00001-of-00003.gguf)");

    char one[160];
    snprintf(one, sizeof one, "%s/one.gguf", folder);
    assert_int_equal(rename(part_path("m", 1, 3), one), 0);
    check_refused(one, DL_EUNSUP, "the first of 3 parts must be named NAME-00001-of-00003.gguf");

    write_parts(&s);
    unlink(part_path("m", 3, 3));
    check_refused(part_path("m", 1, 3), DL_EIO, "-00003-of-00003.gguf: part 3 of 3 of this model is missing");

    struct split swapped = good, other = good, short_of = good;
    swapped.no[2] = 1;
    write_parts(&swapped);
    check_refused(part_path("m", 1, 3), DL_EFORMAT, "-00003-of-00003.gguf: says that it is part 2 of 3");
    other.count[1] = 5;
    write_parts(&other);
    check_refused(part_path("m", 1, 3), DL_EFORMAT, "-00002-of-00003.gguf: says that it is part 2 of 5");
    short_of.n_tensors = 40;
    write_parts(&short_of);
    check_refused(part_path("m", 1, 3), DL_EFORMAT, "hold 21 tensors, not 40");

    write_parts(&s);
    assert_int_equal(truncate(part_path("m", 3, 3), 5000), 0);
    check_refused(part_path("m", 1, 3), DL_EFORMAT, "-00003-of-00003.gguf: tensor blk.1.");
    assert_int_equal(truncate(part_path("m", 2, 3), 0), 0);
    check_refused(part_path("m", 1, 3), DL_EFORMAT, "-00002-of-00003.gguf: the file is empty");
}

#define T(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
int main(void)
{
    const struct CMUnitTest tests[] = {T(test_parts), T(test_faults)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
