/* SPDX-License-Identifier: MIT
 *
 * tests/vk_spoil.h: shaders with a mistake in them, for tests of what notices.
 */
#ifndef TESTS_VK_SPOIL_H
#define TESTS_VK_SPOIL_H

#include "tempdir.h"

/* All shaders in `folder`, the line of one of them that starts with `line` replaced, for devices that compile from now on. */
static inline void spoil(const char *folder, const char *file, const char *line, const char *by)
{
    char text[1000], path[TEMPDIR_LEN + 64];
    snprintf(text, sizeof text, "cp shaders/*.comp shaders/*.glsl '%s'/", folder);
    assert_int_equal(system(text), 0);
    snprintf(text, sizeof text, "shaders/%s", file);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *in = fopen(text, "r"), *out = fopen(path, "w");
    assert_non_null(in);
    assert_non_null(out);
    unsigned found = 0;
    while (fgets(text, sizeof text, in)) {
        bool here = !strncmp(text + strspn(text, " "), line, strlen(line));
        found += here;
        fputs(here ? by : text, out);
    }
    fclose(in);
    assert_int_equal(fclose(out), 0);
    assert_int_equal(found, 1);
    setenv("DLLAMA_SHADER_DIR", folder, 1);
}

#endif
