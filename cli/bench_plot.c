/* SPDX-License-Identifier: MIT
 *
 * cli/bench_plot.c: results of `bench` as a picture: an SVG that needs nothing else. One panel for prefill, one for decode, above each other over the
 * same axis: the tokens of context, or the nodes where their number varies. Dashes show the limit that reading memory sets.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "bench.h"

#define WIDTH 760.0
#define PANEL_HEIGHT 250.0
#define LEFT 80.0
#define RIGHT 30.0
#define TOP 56.0
#define GAP 62.0
#define MAX_SERIES 8u

static const char *const colours[MAX_SERIES] = {"#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce",
                                                "#a16207", "#0f766e", "#be123c", "#475569"};

/* The axis: what varies, and what makes a line of its own. */
struct axes {
    bool nodes;
    double x_most;
    double line[MAX_SERIES]; /* value of `other` for each line */
    size_t n_lines;
};
static const char *x_key(const struct axes *a)
{
    return a->nodes ? "n_nodes" : "depth";
}
static const char *line_key(const struct axes *a)
{
    return a->nodes ? "depth" : "n_nodes";
}

/* Panel 0 is prefill, 1 decode. */
static bool in_panel(const json_t *row, int panel)
{
    return !strncmp(cli_bench_text(row, "test"), panel ? "tg" : "pp", 2);
}

static double limit(const json_t *row)
{
    double bytes = cli_bench_number(row, "bytes_read_per_token");
    return bytes > 0 ? cli_bench_number(row, "read_bandwidth") / bytes : 0;
}

/* A round number such that about four of it make `most`. */
static double step_of(double most)
{
    double unit = pow(10, floor(log10(most / 4)));
    static const double times[] = {1, 2, 2.5, 5, 10};
    for (size_t i = 0; i < DL_COUNT_OF(times); i++)
        if (most / (unit * times[i]) <= 5)
            return unit * times[i];
    return unit * 10;
}

static void find_axes(const json_t *rows, struct axes *a)
{
    size_t i;
    json_t *row;
    double first = cli_bench_number(json_array_get(rows, 0), "n_nodes");
    *a = (struct axes){0};
    json_array_foreach(rows, i, row) a->nodes = a->nodes || cli_bench_number(row, "n_nodes") != first;
    json_array_foreach(rows, i, row)
    {
        double line = cli_bench_number(row, line_key(a));
        bool known = false;
        a->x_most = DL_MAX(a->x_most, cli_bench_number(row, x_key(a)));
        for (size_t k = 0; k < a->n_lines; k++)
            known = known || a->line[k] == line;
        if (!known && a->n_lines < MAX_SERIES)
            a->line[a->n_lines++] = line;
    }
    if (!(a->x_most > 0))
        a->x_most = 1;
}

static double x_at(const struct axes *a, double x)
{
    return LEFT + (WIDTH - LEFT - RIGHT) * (a->nodes ? (x - 0.5) / a->x_most : x / a->x_most * 0.97 + 0.015);
}

struct panel {
    const struct axes *a;
    int which;
    double top, y_most;
};
static double y_at(const struct panel *p, double y)
{
    return p->top + PANEL_HEIGHT * (1 - y / p->y_most);
}

static int frame(const struct panel *p, struct dl_str *s)
{
    static const char *const titles[] = {"prefill, tok/s", "decode, tok/s (dashes: what reading memory allows)"};
    int err = dl_str_addf(s, "<text x=\"%.0f\" y=\"%.1f\" font-weight=\"bold\">%s</text>\n", LEFT, p->top - 10,
                          titles[p->which]);
    double step = step_of(p->y_most);
    for (double y = 0; y <= p->y_most * 1.0001 && !err; y += step)
        err = dl_str_addf(s,
                          "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>"
                          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                          LEFT, WIDTH - RIGHT, y_at(p, y), y_at(p, y), y > 0 ? "#e2e2e2" : "#555", LEFT - 8,
                          y_at(p, y) + 4, y);
    step = p->a->nodes ? 1 : step_of(p->a->x_most);
    for (double x = p->a->nodes ? 1 : 0; x <= p->a->x_most * 1.0001 && !err; x += step)
        err = dl_str_addf(s, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g</text>\n", x_at(p->a, x),
                          p->top + PANEL_HEIGHT + 18, x);
    return err ? err
               : dl_str_addf(s, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
                             (LEFT + WIDTH - RIGHT) / 2, p->top + PANEL_HEIGHT + 36,
                             p->a->nodes ? "nodes" : "tokens of context before");
}

/* One point of a line: a bar from least to most, and a dot at the median. */
static int point(const struct panel *p, const json_t *row, const char *colour, struct dl_str *s)
{
    double x = x_at(p->a, cli_bench_number(row, x_key(p->a)));
    return dl_str_addf(s,
                       "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>"
                       "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"><title>%.2f tok/s</title></circle>\n",
                       x, x, y_at(p, cli_bench_number(row, "tok_s_min")), y_at(p, cli_bench_number(row, "tok_s_max")),
                       colour, x, y_at(p, cli_bench_number(row, "tok_s")), colour, cli_bench_number(row, "tok_s"));
}

static int line(const struct panel *p, const json_t *rows, size_t k, struct dl_str *s)
{
    const char *colour = colours[k];
    struct dl_str path = {0}, dashes = {0}, points = {0};
    int err = DL_OK, n = 0;
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (err || !in_panel(row, p->which) || cli_bench_number(row, line_key(p->a)) != p->a->line[k])
            continue;
        double x = x_at(p->a, cli_bench_number(row, x_key(p->a))), most = limit(row);
        err = dl_str_addf(&path, "%s%.1f,%.1f", n ? " " : "", x, y_at(p, cli_bench_number(row, "tok_s")));
        if (!err && most > 0 && most <= p->y_most)
            err = dl_str_addf(&dashes, "%s%.1f,%.1f", dashes.len ? " " : "", x, y_at(p, most));
        if (!err)
            err = point(p, row, colour, &points);
        n++;
    }
    if (!err && dashes.len)
        err = dl_str_addf(s, "<polyline fill=\"none\" stroke=\"%s\" stroke-dasharray=\"5 4\" points=\"%s\"/>\n", colour,
                          dashes.v);
    if (!err && path.len)
        err = dl_str_addf(s, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"%s\"/>\n%s", colour,
                          path.v, points.v);
    dl_str_finish(&path);
    dl_str_finish(&dashes);
    dl_str_finish(&points);
    return err;
}

static int panel(const struct axes *a, const json_t *rows, int which, double top, struct dl_str *s)
{
    struct panel p = {.a = a, .which = which, .top = top};
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (!in_panel(row, which))
            continue;
        double most = which ? limit(row) : 0; /* what memory allows a prompt is far above what can be computed */
        p.y_most = DL_MAX(p.y_most, DL_MAX(cli_bench_number(row, "tok_s_max"), most) * 1.05);
    }
    p.y_most = ceil(p.y_most / step_of(p.y_most)) * step_of(p.y_most);
    int err = frame(&p, s);
    for (size_t k = 0; k < a->n_lines && !err; k++)
        err = line(&p, rows, k, s);
    return err;
}

/* Names of devices and models are not ours. */
static int escaped(struct dl_str *s, const char *text)
{
    int err = DL_OK;
    for (; *text && !err; text++) {
        const char *as = *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : *text == '&' ? "&amp;" : NULL;
        if (as)
            err = dl_str_addz(s, as);
        else
            err = dl_str_add(s, (unsigned char)*text < 0x20 ? "?" : text, 1);
    }
    return err;
}

static int title(const struct axes *a, const json_t *rows, struct dl_str *s)
{
    const json_t *row = json_array_get(rows, 0);
    int err = dl_str_addf(s, "<text x=\"%.0f\" y=\"22\" font-size=\"15\">", LEFT);
    if (!err)
        err = escaped(s, cli_bench_text(row, "model"));
    if (!err)
        err = dl_str_addf(s, ", %.0f layers: ", cli_bench_number(row, "layers"));
    if (!err)
        err = escaped(s, cli_bench_text(row, "device"));
    if (!err)
        err = dl_str_addz(s, "</text>\n");
    for (size_t k = 0; k < a->n_lines && !err && a->n_lines > 1; k++) {
        const char *many = a->line[k] != 1 && !a->nodes ? "s" : "";
        err = dl_str_addf(s, "<text x=\"%.0f\" y=\"22\" fill=\"%s\" text-anchor=\"end\">%s%g%s%s</text>\n",
                          WIDTH - RIGHT - 90.0 * (double)(a->n_lines - 1 - k), colours[k], a->nodes ? "at " : "",
                          a->line[k], a->nodes ? "" : " node", many);
    }
    return err;
}

static int draw(const json_t *rows, struct dl_str *s)
{
    struct axes a;
    bool has[2] = {false, false};
    size_t i;
    json_t *row;
    find_axes(rows, &a);
    json_array_foreach(rows, i, row) for (int p = 0; p < 2; p++) has[p] = has[p] || in_panel(row, p);
    int n = has[0] + has[1];
    double height = TOP + n * PANEL_HEIGHT + n * GAP;
    int err = dl_str_addf(s,
                          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
                          "height=\"%.0f\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n"
                          "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
                          WIDTH, height, WIDTH, height);
    if (!err)
        err = title(&a, rows, s);
    double top = TOP;
    for (int p = 0; p < 2 && !err; p++) {
        if (has[p])
            err = panel(&a, rows, p, top, s);
        top += has[p] ? PANEL_HEIGHT + GAP : 0;
    }
    return err ? err : dl_str_addz(s, "</svg>\n");
}

int cli_bench_plot(const char *path, const json_t *rows)
{
    if (!json_array_size(rows))
        return dl_fail(DL_EINVAL, "%s: there is nothing to draw", path);
    struct dl_str s = {0};
    int err = draw(rows, &s);
    if (!err) {
        FILE *f = fopen(path, "wb");
        bool ok = f && fwrite(s.v, 1, s.len, f) == s.len;
        ok = f && !fclose(f) && ok;
        if (!ok)
            err = dl_fail(DL_EIO, "%s: cannot write: %s", path, strerror(errno));
    }
    dl_str_finish(&s);
    return err;
}
