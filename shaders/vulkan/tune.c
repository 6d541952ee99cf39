/* SPDX-License-Identifier: MIT
 *
 * tune.c: the choice between candidates: what the environment forces, else the first.
 */
#include "tune.h"

#include <stdlib.h>
#include <string.h>

/* The name that DLLAMA_VK_VARIANT gives for a kernel: "kernel=name kernel=name". */
static const char *forced(const char *kernel, size_t *n)
{
    const char *p = getenv("DLLAMA_VK_VARIANT");
    size_t length = strlen(kernel);
    while (p && *p) {
        p += strspn(p, " ");
        size_t word = strcspn(p, " ");
        if (word > length && !strncmp(p, kernel, length) && p[length] == '=') {
            *n = word - length - 1;
            return p + length + 1;
        }
        p += word;
    }
    return NULL;
}

int vk_tune_pick(struct vk_lower *l, const char *kernel, const struct dl_op *op, const char *const *names, uint32_t n)
{
    (void)l;
    (void)op;
    size_t length;
    const char *name = forced(kernel, &length);
    for (uint32_t i = 0; name && i < n; i++)
        if (strlen(names[i]) == length && !strncmp(names[i], name, length))
            return (int)i;
    return 0;
}
