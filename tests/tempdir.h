/* SPDX-License-Identifier: MIT
 *
 * tests/tempdir.h: a folder of its own for the files that a test makes, in $TMPDIR or /tmp.
 */
#ifndef TESTS_TEMPDIR_H
#define TESTS_TEMPDIR_H

#include "common.h"

#include <dirent.h>
#include <unistd.h>

#define TEMPDIR_LEN 512

static inline void make_dir(char dir[TEMPDIR_LEN])
{
    const char *root = getenv("TMPDIR");
    int n = snprintf(dir, TEMPDIR_LEN, "%s/dllama-test-XXXXXX", root && *root ? root : "/tmp");
    assert_true(n < TEMPDIR_LEN);
    assert_non_null(mkdtemp(dir));
}

/* With the files in it. */
static inline void remove_dir(const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[2 * TEMPDIR_LEN];
        assert_true(snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < (int)sizeof path);
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            unlink(path);
    }
    closedir(d);
    assert_int_equal(rmdir(dir), 0);
}

/* With the files in it and in its folders. */
static inline void remove_tree(const char *dir)
{
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[2 * TEMPDIR_LEN];
        assert_true(snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < (int)sizeof path);
        DIR *sub = strcmp(e->d_name, ".") && strcmp(e->d_name, "..") ? opendir(path) : NULL;
        if (sub) {
            closedir(sub);
            remove_dir(path);
        }
    }
    closedir(d);
    remove_dir(dir);
}

#endif
