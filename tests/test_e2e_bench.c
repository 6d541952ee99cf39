/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_bench.c: the benchmarks as a user runs them: the fields of --json and the arithmetic between them, tables, --compare, --plot,
 * made-up weights, and what is refused. Speeds themselves are nobody's business here.
 */
#include "e2e_cluster.h"

#include <jansson.h>
#include <math.h>

#include "dl/model.h"

#define MAX_ROWS 512

struct rows {
    json_t *v[MAX_ROWS];
    size_t n;
};

/* Each line of stdout is one object. */
static void read_rows(const struct e2e *r, struct rows *rows)
{
    *rows = (struct rows){.n = 0};
    for (const char *at = r->out; *at;) {
        const char *end = strchr(at, '\n');
        assert_non_null(end);
        json_error_t why;
        assert_true(rows->n < MAX_ROWS);
        json_t *row = json_loadb(at, (size_t)(end - at), 0, &why);
        if (!json_is_object(row))
            fail_msg("no JSON object: %s: %.*s", why.text, (int)(end - at), at);
        rows->v[rows->n++] = row;
        at = end + 1;
    }
}

static void drop_rows(struct rows *rows)
{
    for (size_t i = 0; i < rows->n; i++)
        json_decref(rows->v[i]);
}

static double number(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    if (!json_is_number(v) || !isfinite(json_number_value(v)))
        fail_msg("'%s' is no number", key);
    return json_number_value(v);
}

static const char *text(const json_t *row, const char *key)
{
    const char *v = json_string_value(json_object_get(row, key));
    if (!v)
        fail_msg("'%s' is no text", key);
    return v;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-6 * fabs(b);
}

/* ------------------------------------------------------------------------------------------------ the model */

/* What decoding the demo reads: weights without the embedding, and KV cache per position. */
static void demo_bytes(double *weights, double *kv)
{
    void *bytes;
    size_t n;
    dl_model *m;
    struct dl_tensor t;
    assert_int_equal(dl_demo_make(&bytes, &n), 0);
    assert_int_equal(dl_model_open_mem(bytes, n, "demo", &m), 0);
    const struct dl_model_header *h = dl_model_header(m);
    *weights = 0;
    for (int id = 0; id < DL_T_COUNT; id++)
        for (uint32_t l = 0; l < (dl_tensor_per_layer((enum dl_tensor_id)id) ? h->n_layers : 1); l++)
            if (id != DL_T_EMBED && !dl_model_tensor(m, (enum dl_tensor_id)id, l, &t))
                *weights += (double)t.row_bytes * t.rows * t.n_experts;
    *kv = 2.0 * h->n_layers * h->n_kv_heads * h->head_dim * sizeof(uint16_t);
    dl_model_close(&m);
    free(bytes);
}

static void check_row(const json_t *row, const char *test, double depth, double parallel)
{
    double median = number(row, "tok_s");
    assert_string_equal(text(row, "test"), test);
    assert_true(number(row, "depth") == depth && number(row, "parallel") == parallel);
    assert_true(number(row, "threads") == 2 && number(row, "n_nodes") == 1);
    assert_true(number(row, "tok_s_min") > 0 && number(row, "tok_s_min") <= median);
    assert_true(number(row, "tok_s_max") >= median);
    E2E_HAS(text(row, "device"), "cpu (");
    E2E_HAS(text(row, "device"), "2 threads");
    double share = median * number(row, "bytes_read_per_token") / number(row, "read_bandwidth");
    if (number(row, "read_bandwidth") < 1e6 || !near(number(row, "roofline"), share))
        fail_msg("roofline %g, by its parts %g", number(row, "roofline"), share);
}

static void fields_and_arithmetic(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    struct rows rows;
    double weights, kv;
    demo_bytes(&weights, &kv);
    E2E(&r, "bench", "--device", "cpu", "--threads", "2", "--pp", "40", "--tg", "6", "--reps", "3", "--depth", "0,64",
        "--batch", "32", "--json", "--quiet");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_int_equal(rows.n, 4);
    static const char *const tests[] = {"pp40", "tg6", "pp40", "tg6"};
    for (size_t i = 0; i < 4; i++)
        check_row(rows.v[i], tests[i], i < 2 ? 0 : 64, 1);
    /* Tokens 1 to 6 see as many positions; two batches of the prompt read the layers twice and the output once. */
    assert_true(fabs(number(rows.v[1], "bytes_read_per_token") - (weights + 3.5 * kv)) <= 1);
    assert_true(fabs(number(rows.v[3], "bytes_read_per_token") - (weights + 67.5 * kv)) <= 1);
    double prompt = number(rows.v[0], "bytes_read_per_token") * 40;
    assert_true(prompt > weights + 72 * kv - 40 && prompt < 2 * weights + 72 * kv);
    assert_true(fabs(number(rows.v[2], "bytes_read_per_token") * 40 - prompt - 128 * kv) <= 40);
    drop_rows(&rows);
    e2e_free(&r);
}

/* Two nodes that make up their halves: nothing is sent but what is computed. */
static void on_a_cluster(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    struct e2e r;
    struct rows rows;
    cluster_cpus(&c, 1);
    E2E(&r, "bench", "--shape", "qwen3-0.6b", "--layers", "2", "--pp", "6", "--tg", "3", "--reps", "1", "--threads",
        "1", "--workers", c.list, "--nodes", "1,2", "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_int_equal(rows.n, 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *nodes = json_object_get(rows.v[i], "nodes");
        const size_t n = i < 2 ? 1 : 2;
        double share = 0;
        assert_int_equal(json_array_size(nodes), n);
        assert_true(number(rows.v[i], "n_nodes") == (double)n);
        for (size_t k = 0; k < n; k++) {
            const json_t *node = json_array_get(nodes, k);
            share += number(node, "share");
            assert_true(number(node, "compute_ms") > 0 && number(node, "idle_ms") >= 0);
            assert_true((number(node, "sent_bytes") > 0) == (n > 1));
            assert_true(number(node, "sent_bytes") < 1e6);
        }
        assert_true(near(share, 1));
    }
    double one = number(rows.v[1], "bytes_read_per_token"), two = number(rows.v[3], "bytes_read_per_token");
    assert_true(two > one * 0.49 && two < one * 0.51);
    drop_rows(&rows);
    e2e_free(&r);
    E2E(&r, "bench", "--workers", c.list, "--nodes", "1,3");
    E2E_FAILS(&r, 2, "--nodes: 3, but with --workers there are 2");
    e2e_free(&r);
    cluster_close(&c);
}

/* Over encrypted links; the sizes are those of the model. */
static void the_network(void **state)
{
    (void)state;
    NEED_BIN();
    struct cluster c;
    struct e2e r;
    struct rows rows;
    char key[TEMPDIR_LEN + 32];
    cluster_open(&c);
    snprintf(key, sizeof key, "%s/key", c.dir);
    E2E(&r, "keygen", key);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    for (int i = 0; i < 2; i++)
        worker_listens(&c, WORKER(&c, CPU_WORKER, "--key", key));
    E2E(&r, "bench", "link", "--shape", "llama3.2-1b", "--workers", c.list, "--key", key, "--batch", "16", "--reps",
        "3", "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_int_equal(rows.n, 2 + 1 + 4);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(text(rows.v[i], "test"), "link");
        assert_string_equal(text(rows.v[i], "worker"), c.w[i].address);
        assert_true(number(rows.v[i], "us") >= number(rows.v[i], "us_min") && number(rows.v[i], "us_min") > 0);
        assert_true(number(rows.v[i], "send_bytes_s") > 0 && number(rows.v[i], "receive_bytes_s") > 0);
    }
    assert_true(number(rows.v[2], "n_nodes") == 3 && number(rows.v[2], "bytes_s") > 0);
    for (size_t i = 3; i < 7; i++) {
        const json_t *row = rows.v[i];
        const double tokens = i < 5 ? 1 : 16, bytes = tokens * 2048 / 32 * 34, us = number(row, "us");
        assert_string_equal(text(row, "collective"), i % 2 ? "oneshot" : "rs");
        assert_true(json_is_true(json_object_get(row, "tls")));
        assert_true(number(row, "tokens") == tokens && number(row, "bytes") == bytes);
        assert_true(number(row, "sent_bytes") == (i % 2 ? 2 * bytes : 4 * ceil(bytes / 3)));
        assert_true(us > 0 && number(row, "us_min") <= us && us <= number(row, "us_max"));
        assert_true(number(row, "floor_us") > 0 && near(number(row, "batch_ms"), us / 1000 * 2 * 16));
    }
    drop_rows(&rows);
    e2e_free(&r);
    E2E(&r, "bench", "link", "--workers", c.w[0].address, "--key", key, "--reps", "1");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "2 nodes, encrypted, all at once");
    E2E_HAS(r.out, "\noneshot ");
    e2e_free(&r);
    E2E(&r, "bench", "link", "--shape", "qwen3-30b-a3b", "--workers", c.w[0].address, "--key", key, "--batch", "1",
        "--reps", "1", "--json"); /* finer, of experts */
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "\"bytes\":3200,");
    E2E_HAS(r.out, "\"wire\":\"q120\"");
    e2e_free(&r);
    cluster_close(&c);
    E2E(&r, "bench", "link");
    E2E_FAILS(&r, 2, "--workers");
    e2e_free(&r);
}

static void several_sequences(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    struct rows rows;
    double weights, kv;
    demo_bytes(&weights, &kv);
    E2E(&r, "bench", "--device", "cpu", "--threads", "2", "--pp", "0", "--tg", "5", "--reps", "1", "--parallel", "4",
        "--depth", "7", "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_int_equal(rows.n, 1);
    check_row(rows.v[0], "tg5", 7, 4);
    assert_true(fabs(number(rows.v[0], "bytes_read_per_token") - (weights / 4 + 10 * kv)) <= 1);
    drop_rows(&rows);
    e2e_free(&r);
}

static void table_and_comparison(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e old, r;
    struct rows rows;
    char path[64], broken[64];
    E2E(&old, "bench", "--pp", "16", "--tg", "4", "--reps", "2", "--json");
    E2E_STATUS(&old, 0);
    e2e_temp(path, old.out, old.n_out);
    e2e_temp(broken, "[1,2]\n", 6);
    read_rows(&old, &rows);
    double before = number(rows.v[1], "tok_s");
    drop_rows(&rows);

    E2E(&r, "bench", "--pp", "16", "--tg", "4", "--reps", "2", "--compare", path);
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "roofline");
    E2E_HAS(r.out, "\ntg4 ");
    E2E_HAS(r.out, "  x");
    e2e_free(&r);

    E2E(&r, "bench", "--pp", "17", "--tg", "4", "--reps", "2", "--compare", path, "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_null(json_object_get(rows.v[0], "ratio")); /* pp17 was not measured before */
    assert_true(near(number(rows.v[1], "ratio"), number(rows.v[1], "tok_s") / before));
    drop_rows(&rows);
    e2e_free(&r);

    E2E(&r, "bench", "--compare", broken);
    E2E_FAILS(&r, 1, "is not what bench --json prints");
    e2e_free(&r);
    E2E(&r, "bench", "--compare", "/nonexistent/old.json");
    E2E_FAILS(&r, 1, "/nonexistent/old.json: cannot open");
    e2e_free(&r);
    e2e_free(&old);
    unlink(path);
    unlink(broken);
}

/* ------------------------------------------------------------------------------------------------- pictures */

/* Every element is closed, in order, and every '&' begins one of the three entities. */
static void well_formed(const char *s)
{
    char open[16][16];
    size_t depth = 0, roots = 0;
    for (const char *at = s; *at; at++) {
        if (*at == '&' && strncmp(at, "&lt;", 4) != 0 && strncmp(at, "&gt;", 4) != 0 && strncmp(at, "&amp;", 5) != 0)
            fail_msg("a lone '&': %.40s", at);
        if (*at != '<')
            continue;
        const char *end = strchr(at, '>'), *name = at + 1 + (at[1] == '/');
        assert_non_null(end);
        int n = (int)strcspn(name, " />\n");
        assert_true(n > 0 && n < 16);
        if (at[1] == '/') {
            assert_true(depth > 0);
            depth--;
            if (strncmp(open[depth], name, (size_t)n) != 0 || open[depth][n])
                fail_msg("%s is closed by %.*s", open[depth], n, name);
        } else if (end[-1] != '/') {
            assert_true(depth < 16);
            roots += !depth;
            snprintf(open[depth++], 16, "%.*s", n, name);
        }
        unsigned quotes = 0;
        for (const char *q = at; q < end; q++)
            quotes += *q == '"';
        assert_int_equal(quotes % 2, 0);
        at = end;
    }
    assert_int_equal(depth, 0);
    assert_int_equal(roots, 1);
}

static void pictures(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    char path[64];
    size_t n;
    e2e_temp(path, "", 0);
    E2E(&r, "bench", "--pp", "8", "--tg", "2", "--reps", "1", "--depth", "0,32,64", "--plot", path);
    E2E_STATUS(&r, 0);
    e2e_free(&r);
    char *svg = e2e_slurp(path, &n);
    assert_int_equal(strlen(svg), n);
    well_formed(svg);
    assert_int_equal(strncmp(svg, "<svg xmlns=\"http://www.w3.org/2000/svg\"", 39), 0);
    static const char *const has[] = {"prefill, tok/s", "decode, tok/s", "tokens of context", "stroke-dasharray"};
    for (size_t i = 0; i < DL_COUNT_OF(has); i++)
        E2E_HAS(svg, has[i]);
    unsigned dots = 0;
    for (const char *at = svg; (at = strstr(at, "<circle")); at++)
        dots++;
    assert_int_equal(dots, 6);
    if (strstr(svg, "nan") || strstr(svg, "inf"))
        fail_msg("a coordinate is no number");
    free(svg);
    unlink(path);
    E2E(&r, "bench", "--pp", "0", "--tg", "1", "--reps", "1", "--quiet", "--plot", "/nonexistent/a.svg");
    E2E_STATUS(&r, 1);
    E2E_HAS(r.err, "/nonexistent/a.svg: cannot write");
    e2e_free(&r);
}

/* ------------------------------------------------------------------------------------------------- shapes, ops */

static void made_up_weights(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    struct rows rows;
    E2E(&r, "bench", "--shape", "qwen3-0.6b", "--layers", "1", "--pp", "3", "--tg", "2", "--reps", "1", "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    assert_int_equal(rows.n, 2);
    assert_string_equal(text(rows.v[1], "model"), "qwen3-0.6b");
    assert_true(number(rows.v[1], "layers") == 1);
    /* q, k, v, o, gate, up, down and the tied output, 18 bytes for 32 weights, and some norms and KV cache */
    double matrices = (2.0 * 2048 + 2 * 1024 + 3 * 3072 + 151936) * 1024 * 18 / 32;
    double bytes = number(rows.v[1], "bytes_read_per_token");
    assert_true(bytes > matrices && bytes < matrices * 1.001);
    drop_rows(&rows);
    e2e_free(&r);
}

static void every_op(void **state)
{
    (void)state;
    NEED_BIN();
    struct e2e r;
    struct rows rows;
    E2E(&r, "bench", "ops", "--device", "cpu", "--threads", "1", "--nodes", "1,2", "--batch", "16", "--reps", "1",
        "--depth", "64", "--json");
    E2E_STATUS(&r, 0);
    read_rows(&r, &rows);
    static const char *const ops[] = {"convert",   "rms_norm", "matmul", "rope",        "kv_store", "glu",
                                      "attention", "merge",    "add",    "gather_rows", "layer"};
    unsigned seen[DL_COUNT_OF(ops)] = {0}, tokens[17] = {0}, slices[3] = {0};
    for (size_t i = 0; i < rows.n; i++) {
        const json_t *row = rows.v[i];
        double us = number(row, "us"), gb_s = number(row, "gb_s");
        assert_string_equal(text(row, "kind"), "cpu");
        assert_true(us > 0 && number(row, "us_min") <= us && gb_s > 0);
        assert_true(near(gb_s * us, number(row, "bytes") / 1e3));
        bool product = number(row, "gflop_s") > 0;
        if (product) {
            double memory = gb_s * 1e9 / number(row, "read_bandwidth");
            double arithmetic = number(row, "gflop_s") * 1e9 / number(row, "peak_flop_s");
            assert_true(near(number(row, "fraction"), fmax(memory, arithmetic)));
            assert_true(number(row, "fraction") > 0 && number(row, "fraction") <= 1 + 1e-9);
            assert_string_equal(text(row, "bound"), memory > arithmetic ? "memory" : "arithmetic");
            assert_true(number(row, "copies") > 1); /* the demo's matrices are small */
        } else {
            assert_true(json_is_null(json_object_get(row, "fraction")));
        }
        for (size_t k = 0; k < DL_COUNT_OF(ops); k++)
            seen[k] += !strcmp(text(row, "op"), ops[k]);
        tokens[(unsigned)number(row, "tokens")]++;
        slices[(unsigned)number(row, "slices")]++;
    }
    for (size_t k = 0; k < DL_COUNT_OF(ops); k++)
        if (!seen[k])
            fail_msg("no %s", ops[k]);
    assert_true(tokens[1] && tokens[8] && tokens[16] && slices[1] && slices[2]);
    drop_rows(&rows);
    e2e_free(&r);
    E2E(&r, "bench", "ops", "--nodes", "1", "--batch", "1", "--reps", "1");
    E2E_STATUS(&r, 0);
    E2E_HAS(r.out, "of limit\ncpu ");
    e2e_free(&r);
}

static void what_is_wrong_is_said(void **state)
{
    (void)state;
    NEED_BIN();
    static const struct {
        const char *argv[8], *says;
        int status;
    } cases[] = {
        {{"bench", "--layers", "2"}, "--layers: cuts a --shape", 2},
        {{"bench", "m.gguf", "--shape", "qwen3-8b"}, "--shape: in place of a MODEL", 2},
        {{"bench", "--shape", "llama4"}, "llama3.2-1b, llama3.1-8b", 1},
        {{"bench", "--depth", "5,5"}, "--depth: '5,5'", 2},
        {{"bench", "--depth", "1,"}, "--depth: '1,'", 2},
        {{"bench", "--depth", ""}, "--depth: is empty", 2},
        {{"bench", "--pp", "0", "--tg", "0"}, "nothing to measure", 2},
        {{"bench", "--reps", "0"}, "--reps: '0'", 2},
        {{"bench", "/nonexistent/a.gguf"}, "cannot open", 1},
        {{"bench", "ops", "--nodes", "0"}, "--nodes: '0'", 2},
        {{"bench", "ops", "--plot", "x"}, "--plot: unknown option of bench ops", 2},
        {{"bench", "ops", "--kv", "q40"}, "--kv: 'q40'", 2},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct e2e r;
        e2e_run(&r, NULL, 0, cases[i].argv);
        E2E_FAILS(&r, cases[i].status, cases[i].says);
        e2e_free(&r);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_and_arithmetic), cmocka_unit_test(several_sequences),
        cmocka_unit_test(on_a_cluster),          cmocka_unit_test(the_network),
        cmocka_unit_test(table_and_comparison),  cmocka_unit_test(pictures),
        cmocka_unit_test(made_up_weights),       cmocka_unit_test(every_op),
        cmocka_unit_test(what_is_wrong_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
