/* SPDX-License-Identifier: MIT
 *
 * engine/text/stops.c: stop strings of dl/text.h over text that comes in pieces. Holds back only what may still become one;
 * how the text is cut into pieces does not change what comes out.
 */
#include "dl/text.h"

#include <stdlib.h>
#include <string.h>

int dl_stops_add(struct dl_stops *s, const char *text)
{
    if (!text || !*text)
        return dl_fail(DL_EINVAL, "stop string: is empty: give at least one character");
    char **v = realloc(s->v, (s->n + 1) * sizeof *v);
    if (!v)
        return dl_fail(DL_ENOMEM, "memory: cannot keep %zu stop strings", s->n + 1);
    s->v = v;
    size_t size = strlen(text) + 1;
    char *copy = dl_calloc(size, 1);
    if (!copy)
        return DL_ENOMEM;
    memcpy(copy, text, size);
    s->v[s->n++] = copy;
    return DL_OK;
}

/* The stop string that is complete first (of those that end at one place the longest): that is the one that a reader of
 * single bytes would have met, whatever the pieces are. False: none is complete. */
static bool first_complete(const struct dl_stops *s, size_t *start)
{
    size_t best_end = SIZE_MAX;
    for (size_t i = 0; i < s->n; i++) {
        size_t n = strlen(s->v[i]), last = DL_MIN(best_end, s->held.len);
        for (size_t at = 0; at + n <= last; at++) {
            if (memcmp(s->held.v + at, s->v[i], n) != 0)
                continue;
            if (at + n < best_end || at < *start)
                *start = at;
            best_end = at + n;
            break;
        }
    }
    return best_end != SIZE_MAX;
}

/* Bytes at the end of what is held that begin a stop string. */
static size_t unfinished(const struct dl_stops *s)
{
    size_t most = 0;
    for (size_t i = 0; i < s->n; i++) {
        size_t n = DL_MIN(strlen(s->v[i]) - 1, s->held.len);
        while (n > most && memcmp(s->held.v + s->held.len - n, s->v[i], n) != 0)
            n--;
        most = DL_MAX(most, n);
    }
    return most;
}

static int release(struct dl_stops *s, size_t n, struct dl_str *out)
{
    int err = n ? dl_str_add(out, s->held.v, n) : DL_OK;
    if (err)
        return err;
    s->held.len -= n;
    if (n && s->held.len)
        memmove(s->held.v, s->held.v + n, s->held.len);
    return DL_OK;
}

int dl_stops_push(struct dl_stops *s, const char *text, size_t n, struct dl_str *out)
{
    int err = dl_str_add(&s->held, text, n);
    if (err)
        return err;
    size_t start = 0;
    bool found = first_complete(s, &start);
    err = release(s, found ? start : s->held.len - unfinished(s), out);
    if (err)
        return err;
    if (found)
        dl_stops_reset(s);
    return found;
}

int dl_stops_flush(struct dl_stops *s, struct dl_str *out)
{
    return release(s, s->held.len, out);
}

void dl_stops_reset(struct dl_stops *s)
{
    s->held.len = 0;
}

void dl_stops_finish(struct dl_stops *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->v[i]);
    free(s->v);
    dl_str_finish(&s->held);
    *s = (struct dl_stops){0};
}
