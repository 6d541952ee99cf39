/* SPDX-License-Identifier: MIT
 *
 * cli/progress.c: a progress bar of one line on stderr, drawn at most ten times a second and wiped when the work is done.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WIDTH 30
#define EVERY_NS 100000000u

void cli_progress_init(struct cli_progress *p, const struct cli_opts *o)
{
    const char *term = getenv("TERM");
    /* Work that is done in a moment shows nothing. */
    *p = (struct cli_progress){.next_ns = dl_now_ns() + EVERY_NS,
                               .on = !o->quiet && isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0};
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
    double part = (double)done / (double)total;
    int full = (int)(part * WIDTH);
    char bar[WIDTH + 1];
    memset(bar, '-', WIDTH);
    memset(bar, '#', (size_t)full);
    bar[WIDTH] = 0;
    const char *no = getenv("NO_COLOR");
    bool colour = !no || !*no;
    fprintf(stderr, "\r\033[K%s [%s%s%s] %3.0f %%", phase, colour ? "\033[32m" : "", bar, colour ? "\033[0m" : "",
            part * 100);
    fflush(stderr);
    p->shown = true;
}
