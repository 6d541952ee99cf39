/* SPDX-License-Identifier: MIT
 *
 * cli/out.c: the only way to stdout. What a model or a file says is not trusted with the user's terminal.
 */
#include "cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Length of the control character at s (0: none): C0 without newline and tab, DEL, and C1, which is C2 80 .. C2 9F in UTF-8 and
 * a lone byte 80 .. 9F in other encodings. *whole: length of the character that starts at s. */
static size_t control(const unsigned char *s, size_t n, size_t *whole)
{
    unsigned c = s[0];
    *whole = 1;
    if (c < 0x80)
        return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
    size_t want = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 1;
    while (*whole < want && *whole < n && (s[*whole] & 0xc0) == 0x80)
        ++*whole;
    if (want == 1 || *whole < want)
        return *whole == 1 && c < 0xa0 ? 1 : *whole > 1 ? *whole : 0;
    return want == 2 && c == 0xc2 && s[1] < 0xa0 ? 2 : 0;
}

int cli_plain(struct dl_str *out, const char *bytes, size_t n)
{
    const unsigned char *s = (const unsigned char *)bytes;
    size_t from = 0, whole;
    int err = DL_OK;
    for (size_t i = 0; i < n && !err; i += whole) {
        size_t drop = control(s + i, n - i, &whole);
        if (drop) {
            err = dl_str_add(out, bytes + from, i - from);
            from = i + drop;
        }
    }
    return err ? err : dl_str_add(out, bytes + from, n - from);
}

static int failed(void)
{
    int why = errno;
    clearerr(stdout);
    if (why == EPIPE)
        return DL_ECANCELED;
    return dl_fail(DL_EIO, "stdout: cannot write: %s", strerror(why));
}

int cli_out(const char *bytes, size_t n)
{
    struct dl_str plain = {0};
    if (isatty(STDOUT_FILENO)) {
        int err = cli_plain(&plain, bytes, n);
        if (err) {
            dl_str_finish(&plain);
            return err;
        }
        bytes = plain.v;
        n = plain.len;
    }
    bool ok = !n || fwrite(bytes, 1, n, stdout) == n;
    int err = ok ? DL_OK : failed();
    dl_str_finish(&plain);
    return err;
}

int cli_outf(const char *fmt, ...)
{
    struct dl_str s = {0};
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    void *v = NULL;
    int err = n < 0 ? dl_fail(DL_EINVAL, "stdout: cannot format") : dl_grow(&v, &s.cap, (size_t)n + 1, 1);
    s.v = v;
    if (!err) {
        vsnprintf(s.v, (size_t)n + 1, fmt, again);
        err = cli_out(s.v, (size_t)n);
    }
    va_end(again);
    dl_str_finish(&s);
    return err;
}

int cli_out_flush(void)
{
    return fflush(stdout) ? failed() : DL_OK;
}

const char *cli_size(char text[32], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    size_t unit = 0;
    while (v >= 1023.95 && unit + 1 < DL_COUNT_OF(units)) {
        v /= 1024;
        unit++;
    }
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
    return text;
}
