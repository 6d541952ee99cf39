/* SPDX-License-Identifier: MIT
 *
 * engine/run/weight_cache.h: a worker's slices on disk, so that the second start sends none. One folder, one file per weight buffer,
 * named by its digest, of bounded size: what was not used for the longest time goes first. Nothing in it is trusted: a file
 * is read in full and compared with its name before it is used, and one that differs is deleted. Whatever the disk refuses
 * (full, read-only, no such place) only means that nothing is kept. Several processes may use one folder.
 */
#ifndef ENG_WEIGHT_CACHE_H
#define ENG_WEIGHT_CACHE_H

#include "digest.h"

struct eng_cache;

/* `folder` is made when something is kept. `most`: bytes of all files; 0 keeps nothing. Removes what killed processes have left
 * there unfinished. DL_ENOMEM (logged). */
int eng_cache_open(const char *folder, uint64_t most, struct eng_cache **out);
void eng_cache_close(struct eng_cache **c); /* nulls, accepts &NULL */

/* Could `bytes` more be kept, as far as is known? */
bool eng_cache_could_hold(const struct eng_cache *c, uint64_t bytes);

/* These bytes are needed now: eng_cache_begin does not delete them to make room. */
void eng_cache_pin(struct eng_cache *c, const struct eng_digest *d);

/* The file with this content, mapped and checked; the caller closes the map. false where there is none, or a damaged one, which is
 * logged and deleted. `alive` (may be NULL) is called while a large file is being read. */
bool eng_cache_get(struct eng_cache *c, const struct eng_digest *d, uint64_t bytes, void (*alive)(void *ud), void *ud,
                   struct dl_map *map);

/* Keeps new content, one at a time: begin, add until `bytes` are there, commit (which maps it) or drop. begin is false when there is no
 * room or no way to write; add and commit are false when the disk refuses, after which nothing is kept any more. The
 * caller has compared the content with its digest before commit. */
bool eng_cache_begin(struct eng_cache *c, const struct eng_digest *d, uint64_t bytes);
bool eng_cache_add(struct eng_cache *c, const void *bytes, size_t n);
bool eng_cache_commit(struct eng_cache *c, struct dl_map *map);
void eng_cache_drop(struct eng_cache *c); /* nothing begun: no effect */

#endif
