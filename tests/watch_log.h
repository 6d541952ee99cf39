/* SPDX-License-Identifier: MIT
 *
 * tests/watch_log.h: setup and teardown of tests that read what is logged.
 */
#ifndef TESTS_WATCH_LOG_H
#define TESTS_WATCH_LOG_H

#include "common.h"

static struct test_log log_lines;

static inline int watch_log(void **state)
{
    (void)state;
    log_lines = (struct test_log){0};
    dl_log_set(test_log_sink, &log_lines, DL_LOG_DEBUG);
    return 0;
}

static inline int unwatch_log(void **state)
{
    (void)state;
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    return 0;
}

#endif
