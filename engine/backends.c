/* SPDX-License-Identifier: MIT
 *
 * engine/backends.c: which devices this build knows, by the names of --device.
 */
#include "dl/session.h"

#include <string.h>

int dl_device_open(const char *which, const struct dl_cpu_opts *cpu, dl_device **out)
{
    static const struct dl_cpu_opts defaults;
    *out = NULL;
    if (!strcmp(which, "auto") || !strcmp(which, "cpu"))
        return dl_cpu_open(cpu ? cpu : &defaults, out);
    if (!strncmp(which, "vulkan", 6))
        return dl_fail(DL_EUNSUP, "device %s: this build has no Vulkan back-end; use --device cpu", which);
    return dl_fail(DL_EUNSUP, "device %s: unknown; there are: auto, cpu", which);
}
