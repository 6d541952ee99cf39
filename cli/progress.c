/* SPDX-License-Identifier: MIT
 *
 * cli/progress.c: progress bars on stderr, one or one per node, drawn at most ten times a second and wiped when the work is done.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define WIDTH 30
#define EVERY_NS 100000000u

bool cli_is_screen(int fd)
{
    const char *term = getenv("TERM");
    return isatty(fd) && term && *term && strcmp(term, "dumb") != 0;
}

static int screen(bool rows)
{
    struct winsize size;
    bool known = !ioctl(STDERR_FILENO, TIOCGWINSZ, &size);
    return rows ? (known && size.ws_row ? size.ws_row : 24) : known && size.ws_col ? size.ws_col : 80;
}

void cli_progress_init(struct cli_progress *p, const struct cli_opts *o)
{
    /* Work that is done in a moment shows nothing. */
    *p = (struct cli_progress){.next_ns = dl_now_ns() + EVERY_NS, .on = !o->quiet && cli_is_screen(STDERR_FILENO)};
}

void cli_progress_clear(struct cli_progress *p)
{
    if (p->shown)
        fputs("\r\033[J", stderr); /* the lines below as well */
    p->shown = false;
}

static bool is_due(struct cli_progress *p)
{
    uint64_t now = dl_now_ns();
    if (!p->on || now < p->next_ns)
        return false;
    p->next_ns = now + EVERY_NS;
    return true;
}

/* What stands beside a bar has to fit, the bar gets the rest: a line that is broken cannot be wiped. */
static void draw(struct dl_str *out, const char *what, double part, const char *more)
{
    int width = screen(false) - (int)strlen(what) - (int)strlen(more) - (int)sizeof " []  100 %";
    if (width < 0)
        return;
    width = DL_MIN(width, WIDTH);
    char bar[WIDTH + 1];
    memset(bar, '-', WIDTH);
    bar[WIDTH] = 0;
    memset(bar, '#', (size_t)(part * width));
    const char *no = getenv("NO_COLOR");
    bool colour = !no || !*no;
    (void)dl_str_addf(out, "\r\033[K%s [%s%.*s%s] %3.0f %%%s", what, colour ? "\033[32m" : "", width, bar,
                      colour ? "\033[0m" : "", part * 100, more);
}

static void show(struct cli_progress *p, struct dl_str *out)
{
    if (out->len)
        fwrite(out->v, 1, out->len, stderr);
    fflush(stderr);
    p->shown = p->shown || out->len;
    dl_str_finish(out);
}

void cli_progress(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    struct cli_progress *p = ud;
    if (done >= total) {
        cli_progress_clear(p);
        return;
    }
    if (!is_due(p))
        return;
    struct dl_str out = {0};
    draw(&out, phase, (double)done / (double)total, "");
    show(p, &out);
}

/* "  118 MB/s  1:05 left", by the bytes since the bar began. */
static void pace(struct cli_progress *p, uint32_t i, const struct dl_sending *n, char out[48])
{
    uint64_t now = dl_now_ns();
    *out = 0;
    if (!p->nodes[i].from_ns && n->total) {
        p->nodes[i].from_ns = now;
        p->nodes[i].from = n->done;
    }
    double seconds = p->nodes[i].from_ns ? (double)(now - p->nodes[i].from_ns) / 1e9 : 0;
    double rate = seconds > 0.05 ? (double)(n->done - p->nodes[i].from) / seconds : 0;
    double left = rate > 0 ? (double)(n->total - n->done) / rate : 0;
    if (rate > 0 && left < 360000)
        snprintf(out, 48, "  %.0f MB/s  %d:%02d left", rate / 1e6, (int)left / 60, (int)left % 60);
}

void cli_progress_nodes(void *ud, const struct dl_sending *nodes, uint32_t n)
{
    struct cli_progress *p = ud;
    if (!n) {
        cli_progress_clear(p);
        return;
    }
    if (!is_due(p))
        return;
    struct dl_str out = {0};
    const uint32_t most = DL_MIN((uint32_t)CLI_BARS, (uint32_t)DL_MAX(screen(true) - 2, 1));
    uint32_t lines = 0;
    for (uint32_t i = 0; i < DL_MIN(n, (uint32_t)CLI_BARS) && lines < most; i++) {
        char what[64], more[48];
        if (!nodes[i].total) /* it has all, or has not said yet */
            continue;
        lines++;
        pace(p, i, &nodes[i], more);
        snprintf(what, sizeof what, "sending to %.40s", nodes[i].name);
        draw(&out, what, nodes[i].total ? (double)nodes[i].done / (double)nodes[i].total : 0, more);
        (void)dl_str_addz(&out, "\n");
    }
    if (lines)
        (void)dl_str_addf(&out, "\033[%uA", lines);
    show(p, &out);
}
