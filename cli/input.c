/* SPDX-License-Identifier: MIT
 *
 * cli/input.c: texts and token ids from files, stdin and arguments, exactly as they stand there.
 */
#include "cli.h"

#include <errno.h>
#include <string.h>

#define MAX_TEXT ((size_t)1 << 30)

int cli_read_file(const char *path, struct dl_str *out)
{
    bool std = !strcmp(path, "-");
    const char *name = std ? "stdin" : path;
    FILE *f = std ? stdin : fopen(path, "rb");
    if (!f)
        return dl_fail(DL_EIO, "%s: cannot open: %s", name, strerror(errno));
    char buf[1 << 14];
    int err = dl_str_add(out, "", 0);
    size_t n;
    errno = 0;
    while (!err && (n = fread(buf, 1, sizeof buf, f)) > 0) {
        err = dl_str_add(out, buf, n);
        if (!err && out->len > MAX_TEXT)
            err = dl_fail(DL_ELIMIT, "%s: longer than %zu bytes", name, MAX_TEXT);
    }
    if (!err && ferror(f))
        err = dl_fail(DL_EIO, "%s: cannot read: %s", name, strerror(errno));
    if (!std)
        fclose(f);
    return err;
}

int cli_read_ids(const char *what, const char *text, size_t n, struct dl_tokens *out)
{
    int err = DL_OK;
    for (size_t i = 0; i < n && !err;) {
        if (strchr(" ,\t\r\n", text[i]) && text[i]) {
            i++;
            continue;
        }
        size_t from = i;
        int64_t id = 0;
        for (; i < n && text[i] >= '0' && text[i] <= '9' && id <= INT32_MAX; i++)
            id = id * 10 + (text[i] - '0');
        if (i == from || id > INT32_MAX || (i < n && (!text[i] || !strchr(" ,\t\r\n", text[i])))) {
            int len = (int)DL_MIN(strcspn(text + from, " ,\t\r\n"), (size_t)20);
            return dl_fail(DL_EINVAL, "%s: '%.*s' is no token id", what, len, text + from);
        }
        err = dl_tokens_add(out, (int32_t)id);
    }
    return err;
}
