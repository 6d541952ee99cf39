/* SPDX-License-Identifier: MIT
 *
 * engine/run/weight_cache.c: see weight_cache.h. The list of files is read when the cache is opened and when room must be made; in
 * between it is kept up to date with what this process does.
 */
#include "weight_cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_MOST 3072u
#define READ_BYTES ((size_t)1 << 22)
#define STALE_NS (UINT64_C(3600) * 1000000000u) /* nobody writes one file for this long without adding to it */

struct entry {
    char name[ENG_DIGEST_HEX + 1];
    uint64_t bytes, age_ns;
    bool pinned;
};

struct eng_cache {
    char folder[PATH_MOST];
    uint64_t most, total;
    bool closed_for_new; /* the disk has refused once */
    struct entry *v;
    size_t n, cap;
    char (*pins)[ENG_DIGEST_HEX + 1];
    size_t n_pins, cap_pins;
    struct eng_hash *hash;
    dl_new_file *file; /* being written */
    char name[ENG_DIGEST_HEX + 1];
    uint64_t bytes, at;
    int err; /* of the listing */
};

static bool is_hex(const char *s, size_t n)
{
    return strspn(s, "0123456789abcdef") == n;
}

static bool path_of(const struct eng_cache *c, const char *name, char out[PATH_MOST])
{
    int n = snprintf(out, PATH_MOST, "%s/%s", c->folder, name);
    return n > 0 && (size_t)n < PATH_MOST;
}

static struct entry *find(struct eng_cache *c, const char *name)
{
    for (size_t i = 0; i < c->n; i++)
        if (!strcmp(c->v[i].name, name))
            return &c->v[i];
    return NULL;
}

static void forget(struct eng_cache *c, struct entry *e)
{
    c->total -= e->bytes;
    *e = c->v[--c->n];
}

static bool remember(struct eng_cache *c, const char *name, uint64_t bytes, uint64_t age_ns)
{
    void *v = c->v;
    int err = dl_grow(&v, &c->cap, c->n + 1, sizeof *c->v);
    c->v = v;
    if (err)
        return false;
    struct entry *e = &c->v[c->n++];
    *e = (struct entry){.bytes = bytes, .age_ns = age_ns};
    memcpy(e->name, name, ENG_DIGEST_HEX);
    for (size_t i = 0; i < c->n_pins; i++)
        e->pinned = e->pinned || !strcmp(c->pins[i], e->name);
    c->total += bytes;
    return true;
}

/* Only files that look like ours are ever counted or deleted: somebody may point this at a folder of his own. */
static void list_one(void *ud, const char *name, uint64_t bytes, uint64_t age_ns)
{
    struct eng_cache *c = ud;
    size_t n = strlen(name);
    if (n == ENG_DIGEST_HEX && is_hex(name, n)) {
        if (!remember(c, name, bytes, age_ns))
            c->err = DL_ENOMEM;
        return;
    }
    bool unfinished = n == ENG_DIGEST_HEX + 7 && is_hex(name, ENG_DIGEST_HEX) && name[ENG_DIGEST_HEX] == '.';
    char path[PATH_MOST];
    if (unfinished && age_ns > STALE_NS && path_of(c, name, path))
        (void)dl_file_remove(path);
}

static int list(struct eng_cache *c)
{
    c->n = 0;
    c->total = 0;
    c->err = DL_OK;
    (void)dl_dir_list(c->folder, list_one, c);
    return c->err;
}

int eng_cache_open(const char *folder, uint64_t most, struct eng_cache **out)
{
    *out = NULL;
    struct eng_cache *c = dl_calloc(1, sizeof *c);
    if (!c)
        return DL_ENOMEM;
    c->most = most;
    int n = snprintf(c->folder, sizeof c->folder, "%s", folder);
    if (n <= 0 || (size_t)n >= sizeof c->folder - ENG_DIGEST_HEX - 16) {
        dl_log(DL_LOG_WARN, "cache: %s: is no folder that can be used: no weights are kept", folder);
        c->most = 0;
        c->folder[0] = 0;
    }
    c->hash = eng_hash_create();
    int err = c->hash ? DL_OK : DL_ENOMEM;
    if (!err && c->folder[0])
        err = list(c);
    if (err)
        eng_cache_close(&c);
    *out = c;
    return err;
}

void eng_cache_close(struct eng_cache **cache)
{
    struct eng_cache *c = *cache;
    *cache = NULL;
    if (!c)
        return;
    eng_cache_drop(c);
    eng_hash_destroy(&c->hash);
    free(c->v);
    free(c->pins);
    free(c);
}

bool eng_cache_could_hold(const struct eng_cache *c, uint64_t bytes)
{
    return !c->closed_for_new && bytes <= c->most;
}

void eng_cache_pin(struct eng_cache *c, const struct eng_digest *d)
{
    char name[ENG_DIGEST_HEX + 1];
    eng_digest_hex(d, name);
    void *v = c->pins;
    int err = dl_grow(&v, &c->cap_pins, c->n_pins + 1, sizeof *c->pins);
    c->pins = v;
    if (!err)
        memcpy(c->pins[c->n_pins++], name, sizeof name);
    struct entry *e = find(c, name);
    if (e)
        e->pinned = true;
}

static bool content_is(struct eng_cache *c, const struct dl_map *map, const struct eng_digest *want,
                       void (*alive)(void *ud), void *ud)
{
    struct eng_digest got;
    eng_hash_begin(c->hash);
    for (size_t at = 0; at < map->size; at += READ_BYTES) {
        eng_hash_add(c->hash, map->data + at, DL_MIN(READ_BYTES, map->size - at));
        if (alive)
            alive(ud);
    }
    eng_hash_end(c->hash, &got);
    return eng_digest_equal(&got, want);
}

bool eng_cache_get(struct eng_cache *c, const struct eng_digest *d, uint64_t bytes, void (*alive)(void *ud), void *ud,
                   struct dl_map *map)
{
    char name[ENG_DIGEST_HEX + 1], path[PATH_MOST];
    eng_digest_hex(d, name);
    struct entry *e = find(c, name);
    if (!e || !path_of(c, name, path))
        return false;
    bool there = dl_map_try(path, map);
    if (there && map->size == bytes && content_is(c, map, d, alive, ud)) {
        (void)dl_file_touch(path);
        e->age_ns = 0;
        return true;
    }
    if (there) {
        dl_log(DL_LOG_WARN, "cache: %s: is damaged and will be fetched again", path);
        dl_map_close(map);
    }
    (void)dl_file_remove(path); /* an empty file cannot be mapped and must go as well */
    forget(c, e);
    return false;
}

/* Deletes what was not used for the longest time until `bytes` more fit. */
static bool make_room(struct eng_cache *c, uint64_t bytes)
{
    if (bytes > c->most)
        return false;
    if (c->total > c->most - bytes && list(c)) /* others may have deleted, or added */
        return false;
    while (c->total > c->most - bytes) {
        struct entry *oldest = NULL;
        for (size_t i = 0; i < c->n; i++)
            if (!c->v[i].pinned && (!oldest || c->v[i].age_ns > oldest->age_ns))
                oldest = &c->v[i];
        char path[PATH_MOST];
        if (!oldest || !path_of(c, oldest->name, path) || !dl_file_remove(path))
            return false;
        forget(c, oldest);
    }
    return true;
}

bool eng_cache_begin(struct eng_cache *c, const struct eng_digest *d, uint64_t bytes)
{
    char path[PATH_MOST];
    eng_digest_hex(d, c->name);
    if (c->closed_for_new || c->file || !bytes || !path_of(c, c->name, path) || !make_room(c, bytes))
        return false;
    c->bytes = bytes;
    c->at = 0;
    if (dl_file_begin(path, &c->file))
        return true;
    c->closed_for_new = true;
    dl_log(DL_LOG_WARN, "cache: %s: cannot be written: the weights will be sent again next time", c->folder);
    return false;
}

static bool refused(struct eng_cache *c)
{
    c->closed_for_new = true;
    dl_log(DL_LOG_WARN, "cache: %s: is full or cannot be written: some weights will be sent again next time",
           c->folder);
    return false;
}

bool eng_cache_add(struct eng_cache *c, const void *bytes, size_t n)
{
    if (!c->file || n > c->bytes - c->at)
        return false;
    c->at += n;
    if (dl_file_add(c->file, bytes, n))
        return true;
    eng_cache_drop(c);
    return refused(c);
}

bool eng_cache_commit(struct eng_cache *c, struct dl_map *map)
{
    char path[PATH_MOST];
    if (!c->file || c->at != c->bytes || !path_of(c, c->name, path)) {
        eng_cache_drop(c);
        return false;
    }
    if (!dl_file_commit(&c->file))
        return refused(c);
    if (!dl_map_try(path, map))
        return refused(c);
    if (map->size != c->bytes) {
        dl_map_close(map);
        return refused(c);
    }
    struct entry *old = find(c, c->name);
    if (old)
        forget(c, old);
    (void)remember(c, c->name, c->bytes, 0);
    return true;
}

void eng_cache_drop(struct eng_cache *c)
{
    dl_file_drop(&c->file);
}
