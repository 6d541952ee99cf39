/* SPDX-License-Identifier: MIT
 *
 * cli/server/access.c: who may ask. A page of another site can make a browser send requests here, also under a name that the site's owner has
 * pointed at this machine (DNS rebinding); neither may get through.
 */
#include "server.h"

#include <string.h>
#include <strings.h>

/* Without the port. */
static size_t host_len(const char *host)
{
    const char *end = *host == '[' ? strchr(host, ']') : NULL;
    return end ? (size_t)(end - host) + 1 : strcspn(host, ":");
}

static bool ends_with(const char *text, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n >= m && !strncasecmp(text + n - m, end, m);
}

/* Nobody else can own these names. */
static bool is_private_name(const char *host, size_t n)
{
    static const char *const ends[] = {".local", ".lan", ".home.arpa", ".internal"};
    for (size_t i = 0; i < DL_COUNT_OF(ends); i++)
        if (ends_with(host, n, ends[i]))
            return true;
    return !memchr(host, '.', n);
}

bool cli_host_allowed(const struct cli_server *s, const char *host)
{
    if (!host || s->opts.api_key) /* a browser always says; and a foreign page has no key */
        return true;
    size_t n = host_len(host);
    bool address = *host == '[' || strspn(host, "0123456789.") == n;
    bool here = (n == 9 && ends_with(host, n, "localhost")) || ends_with(host, n, ".localhost") ||
                (n == strlen(s->host) && !strncasecmp(host, s->host, n));
    return n && (address || here || (!s->loopback && is_private_name(host, n)));
}

const char *cli_cors_origin(const struct cli_server *s, const char *origin)
{
    if (!origin || !s->opts.cors)
        return NULL;
    if (!strcmp(s->opts.cors, "*"))
        return "*";
    size_t n = strlen(origin);
    for (const char *at = s->opts.cors; *at; at += at[strcspn(at, ",")] ? strcspn(at, ",") + 1 : strcspn(at, ","))
        if (strcspn(at, ",") == n && !strncasecmp(at, origin, n))
            return origin;
    return NULL;
}

bool cli_origin_allowed(const struct cli_server *s, const char *host, const char *origin)
{
    if (!origin || cli_cors_origin(s, origin))
        return true;
    const char *name = !strncasecmp(origin, "http://", 7)    ? origin + 7
                       : !strncasecmp(origin, "https://", 8) ? origin + 8
                                                             : NULL;
    return name && host && !strcasecmp(name, host);
}

bool cli_key_allowed(const struct cli_server *s, const char *authorization)
{
    const char *key = s->opts.api_key;
    if (!key)
        return true;
    if (!authorization || strncasecmp(authorization, "Bearer ", 7) != 0)
        return false;
    /* In a time that says nothing about how much of it is right. */
    const char *given = authorization + 7;
    size_t n = strlen(key), m = strlen(given);
    volatile unsigned char differs = n != m;
    for (size_t i = 0; i < n; i++)
        differs |= (unsigned char)(key[i] ^ given[i < m ? i : m]); /* given[m] is the 0 at its end */
    return !differs;
}
