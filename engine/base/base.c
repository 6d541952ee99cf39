/* SPDX-License-Identifier: MIT
 *
 * engine/base/base.c: error names, the log, checked sizes, hashes, memory and growable arrays of dl/base.h.
 */
#include "dl/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

/* ------------------------------------------------------------------------------------------------- errors */

#define X(name, value, text) {value, #name, text},
static const struct {
    int value;
    const char *name, *text;
} errors[] = {{0, "OK", "ok"}, DL_ERR_MAP(X)};
#undef X

const char *dl_err_name(int err)
{
    for (size_t i = 0; i < DL_COUNT_OF(errors); i++)
        if (errors[i].value == err)
            return errors[i].name;
    return "?";
}

const char *dl_err_text(int err)
{
    for (size_t i = 0; i < DL_COUNT_OF(errors); i++)
        if (errors[i].value == err)
            return errors[i].text;
    return "unknown error";
}

/* ---------------------------------------------------------------------------------------------------- log */

static void log_stderr(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)level;
    fprintf(stderr, "%s\n", line);
}

/* The only mutable globals: set once, before any thread is started. */
static dl_log_fn *log_fn = log_stderr;
static void *log_ud;
static enum dl_log_level log_most = DL_LOG_WARN;

void dl_log_set(dl_log_fn *fn, void *ud, enum dl_log_level most)
{
    log_fn = fn ? fn : log_stderr;
    log_ud = ud;
    log_most = most;
}

bool dl_log_wants(enum dl_log_level level)
{
    return level <= log_most;
}

void dl_vlog(enum dl_log_level level, const char *fmt, va_list ap)
{
    if (!dl_log_wants(level))
        return;
    char line[1024];
    int n = vsnprintf(line, sizeof line, fmt, ap);
    if (n < 0)
        return;
    if ((size_t)n >= sizeof line)
        memcpy(line + sizeof line - 4, "...", 4);
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    log_fn(log_ud, level, line);
}

void dl_log(enum dl_log_level level, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    dl_vlog(level, fmt, ap);
    va_end(ap);
}

int dl_fail(int err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    dl_vlog(DL_LOG_ERROR, fmt, ap);
    va_end(ap);
    return err;
}

/* --------------------------------------------------------------------------------------------------- sizes */

bool dl_mul_size(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool dl_add_size(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

bool dl_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b && a > UINT64_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool dl_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    if (a > UINT64_MAX - b)
        return false;
    *out = a + b;
    return true;
}

/* ------------------------------------------------------------------------------------------------- memory */

void *dl_calloc(size_t n, size_t size)
{
    size_t bytes;
    void *p = dl_mul_size(n, size, &bytes) ? calloc(1, bytes ? bytes : 1) : NULL;
    if (!p)
        dl_log(DL_LOG_ERROR, "memory: cannot allocate %zu x %zu bytes", n, size);
    return p;
}

void *dl_xcalloc(size_t n, size_t size)
{
    void *p = dl_calloc(n, size);
    if (!p)
        abort();
    return p;
}

char *dl_xstrdup(const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(dl_xcalloc(n, 1), s, n);
}

uint64_t dl_hash(const void *bytes, size_t n, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, n, seed);
}

double dl_gib(uint64_t bytes)
{
    return (double)bytes / 0x1p30;
}

int dl_grow(void **v, size_t *cap, size_t want, size_t item)
{
    if (want <= *cap)
        return DL_OK;
    size_t next = *cap + *cap / 2;
    if (next < want)
        next = want;
    if (next < 16)
        next = 16;
    size_t bytes;
    void *p = dl_mul_size(next, item, &bytes) ? realloc(*v, bytes) : NULL;
    if (!p)
        return dl_fail(DL_ENOMEM, "memory: cannot grow to %zu x %zu bytes", next, item);
    *v = p;
    *cap = next;
    return DL_OK;
}

int dl_str_add(struct dl_str *s, const char *bytes, size_t n)
{
    size_t want;
    if (!dl_add_size(s->len, n, &want) || !dl_add_size(want, 1, &want))
        return dl_fail(DL_ENOMEM, "memory: text of %zu + %zu bytes is too long", s->len, n);
    void *v = s->v;
    int err = dl_grow(&v, &s->cap, want, 1);
    s->v = v;
    if (err)
        return err;
    if (n)
        memcpy(s->v + s->len, bytes, n);
    s->len += n;
    s->v[s->len] = 0;
    return DL_OK;
}

int dl_str_addz(struct dl_str *s, const char *text)
{
    return dl_str_add(s, text, strlen(text));
}

int dl_str_addf(struct dl_str *s, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int err = n < 0 ? dl_fail(DL_EINVAL, "text: bad format") : DL_OK;
    void *v = s->v;
    if (!err)
        err = dl_grow(&v, &s->cap, s->len + (size_t)n + 1, 1);
    s->v = v;
    if (!err) {
        vsnprintf(s->v + s->len, (size_t)n + 1, fmt, again);
        s->len += (size_t)n;
    }
    va_end(again);
    return err;
}

void dl_str_finish(struct dl_str *s)
{
    free(s->v);
    *s = (struct dl_str){0};
}

int dl_tokens_append(struct dl_tokens *t, const int32_t *ids, size_t n)
{
    size_t want;
    if (!dl_add_size(t->len, n, &want))
        return dl_fail(DL_ENOMEM, "memory: %zu + %zu tokens are too many", t->len, n);
    if (t->most && want > t->most) {
        t->least = DL_MAX(t->least, want);
        return DL_ELIMIT;
    }
    void *v = t->v;
    int err = dl_grow(&v, &t->cap, want, sizeof *t->v);
    t->v = v;
    if (err)
        return err;
    if (n)
        memcpy(t->v + t->len, ids, n * sizeof *ids);
    t->len = want;
    return DL_OK;
}

int dl_tokens_add(struct dl_tokens *t, int32_t id)
{
    return dl_tokens_append(t, &id, 1);
}

void dl_tokens_finish(struct dl_tokens *t)
{
    free(t->v);
    *t = (struct dl_tokens){0};
}
