/* SPDX-License-Identifier: MIT
 *
 * cli/bench_out.c: results of the benchmarks: printed, compared with earlier ones, summed up.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

double cli_bench_number(const json_t *row, const char *key)
{
    return json_number_value(json_object_get(row, key));
}

const char *cli_bench_text(const json_t *row, const char *key)
{
    const char *text = json_string_value(json_object_get(row, key));
    return text ? text : "";
}

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

struct cli_bench_spread cli_bench_spread(double *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return (struct cli_bench_spread){v[0], n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2, v[n - 1]};
}

/* ------------------------------------------------------------------------------------------------- compare */

/* One JSON object after the other, as --json printed them. */
static int read_rows(const char *path, json_t **out)
{
    struct dl_str text = {0};
    int err = cli_read_file(path, &text);
    *out = json_array();
    for (size_t at = 0; !err && at < text.len;) {
        json_error_t why;
        json_t *row = json_loadb(text.v + at, text.len - at, JSON_DISABLE_EOF_CHECK, &why);
        if (json_is_object(row) && !json_array_append(*out, row))
            at += (size_t)why.position;
        else
            err = dl_fail(DL_EFORMAT, "%s: is not what bench --json prints: %s", path, row ? "no object" : why.text);
        json_decref(row);
        at += strspn(text.v + at, " \r\n\t");
    }
    if (!err && !json_array_size(*out))
        err = dl_fail(DL_EFORMAT, "%s: has no results in it", path);
    dl_str_finish(&text);
    return err;
}

/* The same thing measured: what says what it is must be equal where both have it. */
static bool is_same(const json_t *a, const json_t *b)
{
    static const char *const keys[] = {"test",   "depth",   "parallel", "n_nodes", "op",         "weights",
                                       "rows",   "cols",    "tokens",   "slices",  "kind",       "bytes",
                                       "worker", "experts", "heads",    "shape",   "collective", "layers"};
    for (size_t i = 0; i < DL_COUNT_OF(keys); i++) {
        const json_t *x = json_object_get(a, keys[i]), *y = json_object_get(b, keys[i]);
        bool number = json_is_number(x) && json_is_number(y);
        if (number ? json_number_value(x) != json_number_value(y) : !!x != !!y || (x && !json_equal(x, y)))
            return false;
    }
    return true;
}

static double speed(const json_t *row)
{
    double us = cli_bench_number(row, "us");
    return us > 0 ? 1 / us : cli_bench_number(row, "tok_s");
}

static void compare(const json_t *old, json_t *row)
{
    size_t i;
    json_t *before;
    json_array_foreach(old, i, before)
    {
        if (!is_same(before, row) || !(speed(before) > 0))
            continue;
        json_object_set_new(row, "ratio", json_real(speed(row) / speed(before)));
        return;
    }
}

const char *cli_bench_ratio(const json_t *row, char text[32])
{
    double ratio = cli_bench_number(row, "ratio");
    text[0] = 0;
    if (ratio > 0)
        snprintf(text, 32, "  x%.3f", ratio);
    return text;
}

/* --------------------------------------------------------------------------------------------------- output */

int cli_bench_begin(struct cli_bench_out *out)
{
    out->rows = json_array();
    return out->o->compare ? read_rows(out->o->compare, &out->old) : DL_OK;
}

int cli_bench_add(struct cli_bench_out *out, json_t *row)
{
    if (!row)
        return dl_fail(DL_ENOMEM, "bench: cannot write a result as JSON");
    if (out->old)
        compare(out->old, row);
    int err = json_array_append_new(out->rows, row) ? DL_ENOMEM : DL_OK;
    if (err)
        return dl_fail(err, "bench: cannot keep a result");
    if (!out->o->json) {
        err = out->print(out, row);
    } else {
        char *line = json_dumps(row, JSON_COMPACT | JSON_REAL_PRECISION(9));
        err = line ? cli_outf("%s\n", line) : dl_fail(DL_ENOMEM, "bench: cannot write a result as JSON");
        free(line);
    }
    return err ? err : cli_out_flush();
}

void cli_bench_finish(struct cli_bench_out *out)
{
    json_decref(out->rows);
    json_decref(out->old);
    out->rows = out->old = NULL;
}

/* -------------------------------------------------------------------------------------------- what is measured */

int cli_bench_list(const char *option, const char *text, uint64_t low, uint64_t high, uint32_t *v, uint32_t *n)
{
    *n = 0;
    for (const char *at = text; *at;) {
        char one[24];
        uint64_t value = 0;
        size_t len = strcspn(at, ",");
        bool ok = len && len < sizeof one && *n < CLI_MAX_LIST && (!at[len] || at[len + 1]);
        snprintf(one, sizeof one, "%.*s", (int)DL_MIN(len, sizeof one - 1), at);
        ok = ok && cli_parse_uint(one, true, low, high, &value) && (!*n || value > v[*n - 1]);
        if (!ok)
            return cli_usage("%s: '%s' is no list of at most %d ascending numbers from %llu to %llu", option, text,
                             CLI_MAX_LIST, (unsigned long long)low, (unsigned long long)high);
        v[(*n)++] = (uint32_t)value;
        at += len + (at[len] == ',');
    }
    return *n ? DL_OK : cli_usage("%s: is empty", option);
}

int cli_bench_model(const struct cli_opts *o, bool weights, struct cli_engine *e)
{
    if (o->shape && o->model)
        return cli_usage("--shape: in place of a MODEL, not beside one");
    if (o->layers && !o->shape)
        return cli_usage("--layers: cuts a --shape; a MODEL is measured as it is");
    if (o->shape)
        return dl_model_open_shape(o->shape, (uint32_t)o->layers, weights, &e->model);
    if (o->model)
        return dl_model_open(o->model, &e->model);
    size_t n;
    int err = dl_demo_make(&e->demo, &n);
    return err ? err : dl_model_open_mem(e->demo, n, "demo", &e->model);
}
