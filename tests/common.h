/* SPDX-License-Identifier: MIT
 *
 * tests/common.h: what every test file needs: cmocka with its headers, the shared test data, a seeded random stream.
 */
#ifndef TESTS_COMMON_H
#define TESTS_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dl/base.h"

/* $CMOCKA_TEST_FILTER names the cases to run, with * and ?, also where cmocka itself does not look at it. */
#undef cmocka_run_group_tests
#define cmocka_run_group_tests(tests, setup, teardown)     \
    (cmocka_set_test_filter(getenv("CMOCKA_TEST_FILTER")), \
     _cmocka_run_group_tests(#tests, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown))

/* Where models and vectors for tests lie: $DLLAMA_TEST_DATA, else ../shared (tests run in the source folder). Path of
 * `file` in there, or NULL when it is absent: then the test is to say so and skip(). Static buffer per call site of 8. */
static inline const char *test_data(const char *file)
{
    static char path[8][512];
    static unsigned at;
    const char *root = getenv("DLLAMA_TEST_DATA");
    char *p = path[at++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", root && *root ? root : "../shared", file);
    FILE *f = fopen(p, "rb");
    if (!f) {
        fprintf(stderr, "SKIPPED PART: no test data at %s\n", p);
        return NULL;
    }
    fclose(f);
    return p;
}

#define NEED_DATA(var, file)           \
    const char *var = test_data(file); \
    if (!var)                          \
    skip()

/* SplitMix64: a small, well-mixed stream; the same numbers everywhere. */
static inline uint64_t test_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
/* In [-1, 1). */
static inline float test_randf(uint64_t *state)
{
    return (float)((double)(test_rand(state) >> 11) * 0x1p-52 - 1.0);
}

/* Collects log lines instead of printing them, so that a test can look at the message. */
struct test_log {
    char last[1024];
    unsigned n;
};
static inline void test_log_sink(void *ud, enum dl_log_level level, const char *line)
{
    struct test_log *l = ud;
    if (level == DL_LOG_ERROR) {
        snprintf(l->last, sizeof l->last, "%s", line);
        l->n++;
    }
}

#endif
