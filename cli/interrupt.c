/* SPDX-License-Identifier: MIT
 *
 * cli/interrupt.c: what Ctrl-C means at the moment. The two variables are global because a signal handler has nothing else.
 */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t interrupts;
static volatile sig_atomic_t wake = -1;

static void on_interrupt(int sig)
{
    int saved = errno;
    if (wake >= 0) {
        char number = (char)sig;
        /* Any thread may run this, so the prompt is woken by the pipe and not by an interrupted read. A full pipe has
         * woken it already. */
        ssize_t n = write(wake, &number, 1);
        (void)n;
    } else if (interrupts++) {
        signal(sig, SIG_DFL);
        raise(sig); /* delivered when the handler returns */
    }
    errno = saved;
}

void cli_interrupt_begin(int wake_fd)
{
    interrupts = 0;
    wake = wake_fd;
    struct sigaction sa = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    if (wake_fd >= 0) {
        sigaction(SIGTERM, &sa, NULL);
        sigaction(SIGHUP, &sa, NULL);
    }
}

void cli_interrupt_begin_service(void)
{
    cli_interrupt_begin(-1);
    struct sigaction sa = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGTERM, &sa, NULL);
}

void cli_interrupt_end(void)
{
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (wake >= 0)
        signal(SIGHUP, SIG_DFL);
    wake = -1;
}

bool cli_interrupted(void *unused)
{
    (void)unused;
    return interrupts != 0;
}
