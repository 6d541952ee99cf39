/* SPDX-License-Identifier: MIT
 *
 * engine/backends.c: which devices this build knows, by the names of --device.
 */
#include "dl/session.h"

#include <stdlib.h>
#include <string.h>

#ifndef DL_HAVE_VULKAN /* by the build: the library with the real ones is linked */
int dl_vulkan_open(const struct dl_vulkan_opts *opts, dl_device **out)
{
    (void)opts;
    *out = NULL;
    return dl_fail(DL_EUNSUP, "vulkan: this build has no Vulkan back-end; use --device cpu");
}

int dl_vulkan_list(struct dl_vulkan_info *out, uint32_t cap, uint32_t *n)
{
    (void)out;
    (void)cap;
    *n = 0;
    return dl_fail(DL_EUNSUP, "vulkan: this build has no Vulkan back-end");
}
#endif

/* "vulkan" or "vulkan:N". */
static bool vulkan_index(const char *which, int *index)
{
    *index = -1;
    if (strncmp(which, "vulkan", 6))
        return false;
    if (!which[6])
        return true;
    char *end;
    if (which[6] != ':' || which[7] < '0' || which[7] > '9')
        return false;
    unsigned long n = strtoul(which + 7, &end, 10);
    *index = (int)n;
    return !*end && n < 1000;
}

int dl_device_open(const char *which, const struct dl_cpu_opts *cpu, dl_device **out)
{
    static const struct dl_cpu_opts defaults;
    *out = NULL;
    if (!strcmp(which, "auto") || !strcmp(which, "cpu"))
        return dl_cpu_open(cpu ? cpu : &defaults, out);
    struct dl_vulkan_opts opts = {0};
    if (vulkan_index(which, &opts.index))
        return dl_vulkan_open(&opts, out);
    return dl_fail(DL_EUNSUP, "device %s: unknown; there are: auto, cpu, vulkan, vulkan:0, vulkan:1 ...", which);
}
