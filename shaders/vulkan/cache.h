/* SPDX-License-Identifier: MIT
 *
 * cache.h: what this part keeps on disk from one start to the next: SPIR-V, pipeline caches, choices. An entry is a kind and a
 * key; what is broken, foreign or missing is simply not there, and a folder that cannot be written costs nothing but time.
 * Deleting the folder is always safe.
 */
#ifndef VK_CACHE_H
#define VK_CACHE_H

#include "dl/base.h"

/* 128 bits of whatever went in, in order. Not against forgery: the folder belongs to the user. */
struct vk_hash {
    uint64_t a, b;
};
#define VK_HASH_START ((struct vk_hash){0x9ae16a3b2f90404fu, 0xc949d7c7509e6557u})
void vk_hash_add(struct vk_hash *h, const void *bytes, size_t n);
void vk_hash_text(struct vk_hash *h, const char *text); /* with its end, so that "a" "bc" is not "ab" "c" */

/* The bytes stored under (kind, key), to be freed with free(), and *n > 0; NULL where there are none. `kind` is a short word
 * that may stand in a file name. Any thread. */
void *vk_cache_load(const char *kind, struct vk_hash key, size_t *n);

/* Keeps n > 0 bytes under (kind, key); another process sees all of them or none. Any thread. */
void vk_cache_store(const char *kind, struct vk_hash key, const void *bytes, size_t n);

#endif
