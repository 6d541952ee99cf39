/* SPDX-License-Identifier: MIT
 *
 * cli/progress.c: a progress bar of one line on stderr, drawn at most ten times a second and wiped when the work is done.
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

static int screen_columns(void)
{
    struct winsize size;
    return !ioctl(STDERR_FILENO, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
}

void cli_progress_init(struct cli_progress *p, const struct cli_opts *o)
{
    /* Work that is done in a moment shows nothing. */
    *p = (struct cli_progress){.next_ns = dl_now_ns() + EVERY_NS, .on = !o->quiet && cli_is_screen(STDERR_FILENO)};
}

void cli_progress_clear(struct cli_progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
}

void cli_progress(void *ud, const char *phase, uint64_t done, uint64_t total)
{
    struct cli_progress *p = ud;
    if (!p->on)
        return;
    if (done >= total) {
        cli_progress_clear(p);
        return;
    }
    uint64_t now = dl_now_ns();
    if (now < p->next_ns)
        return;
    p->next_ns = now + EVERY_NS;
    /* A bar that is broken over two lines cannot be wiped: the phase and the percentage have to fit, the bar gets the rest. */
    int columns = screen_columns(), width = columns - (int)strlen(phase) - (int)sizeof " []  100 %";
    if (width < 0)
        return;
    width = DL_MIN(width, WIDTH);
    double part = (double)done / (double)total;
    char bar[WIDTH + 1];
    memset(bar, '-', WIDTH);
    bar[WIDTH] = 0;
    memset(bar, '#', (size_t)(part * width));
    const char *no = getenv("NO_COLOR");
    bool colour = !no || !*no;
    fprintf(stderr, "\r\033[K%s [%s%.*s%s] %3.0f %%", phase, colour ? "\033[32m" : "", width, bar,
            colour ? "\033[0m" : "", part * 100);
    fflush(stderr);
    p->shown = true;
}
