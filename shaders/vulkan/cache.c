/* SPDX-License-Identifier: MIT
 *
 * cache.c: files "KIND-KEY" in the cache folder: a head that says what follows, then the bytes. Everything is checked on the way
 * in, since files get cut off, copied between machines and written by other versions.
 */
#include "cache.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRY ((uint64_t)256 << 20) /* larger than any pipeline cache; a length beyond it is damage */

struct head {
    char magic[8];
    struct vk_hash key, content;
    uint64_t n;
};
static const char magic[8] = {'d', 'l', 'v', 'k', 'c', '0', '0', '1'};

/* Two hashes of each piece, each seeded with what the pieces before it left. */
void vk_hash_add(struct vk_hash *h, const void *bytes, size_t n)
{
    *h = (struct vk_hash){dl_hash(bytes, n, h->a), dl_hash(bytes, n, h->b)};
}

void vk_hash_text(struct vk_hash *h, const char *text)
{
    vk_hash_add(h, text, strlen(text) + 1);
}

static bool path_of(const char *kind, struct vk_hash key, char *out, size_t n)
{
    char name[128];
    int len = snprintf(name, sizeof name, "%s-%016" PRIx64 "%016" PRIx64, kind, key.a, key.b);
    return len > 0 && (size_t)len < sizeof name && dl_cache_path(name, out, n);
}

static struct vk_hash hash_of(const void *bytes, size_t n)
{
    struct vk_hash h = VK_HASH_START;
    vk_hash_add(&h, bytes, n);
    return h;
}

void *vk_cache_load(const char *kind, struct vk_hash key, size_t *n)
{
    char path[4096];
    FILE *f = path_of(kind, key, path, sizeof path) ? fopen(path, "rb") : NULL;
    if (!f)
        return NULL;
    struct head head;
    void *bytes = NULL;
    bool ok = fread(&head, sizeof head, 1, f) == 1 && !memcmp(head.magic, magic, sizeof magic) && head.key.a == key.a &&
              head.key.b == key.b && head.n > 0 && head.n <= MAX_ENTRY;
    if (ok) {
        bytes = malloc((size_t)head.n);
        ok = bytes && fread(bytes, (size_t)head.n, 1, f) == 1 && fgetc(f) == EOF;
    }
    fclose(f);
    if (ok) {
        struct vk_hash content = hash_of(bytes, (size_t)head.n);
        ok = content.a == head.content.a && content.b == head.content.b;
    }
    if (!ok) {
        free(bytes);
        return NULL;
    }
    *n = (size_t)head.n;
    return bytes;
}

void vk_cache_store(const char *kind, struct vk_hash key, const void *bytes, size_t n)
{
    char path[4096];
    if (n > MAX_ENTRY || !path_of(kind, key, path, sizeof path))
        return;
    struct head head = {.key = key, .content = hash_of(bytes, n), .n = n};
    memcpy(head.magic, magic, sizeof magic);
    char *all = malloc(sizeof head + n);
    if (!all)
        return;
    memcpy(all, &head, sizeof head);
    memcpy(all + sizeof head, bytes, n);
    (void)dl_file_replace(path, all, sizeof head + n);
    free(all);
}
