/* SPDX-License-Identifier: MIT
 *
 * tests/cpu_sets.h: the sets of fast CPU kernels that exist for this architecture, whether or not this CPU has them.
 */
#ifndef TESTS_CPU_SETS_H
#define TESTS_CPU_SETS_H

#include <stdbool.h>
#include <string.h>

#include "dl/device.h"

/* The first one has every op; the others give its bits. */
#ifdef __aarch64__
static const char *const cpu_sets[] = {"neon", "dotprod"};
#else
static const char *const cpu_sets[] = {"avx2", "avxvnni", "avx512"};
#endif

static inline bool has_cpu_set(const char *name)
{
    size_t n = strlen(name);
    for (const char *p = dl_cpu_isas(); *p; p += strcspn(p, " "), p += *p == ' ')
        if (strcspn(p, " ") == n && !strncmp(p, name, n))
            return true;
    return false;
}

#endif
