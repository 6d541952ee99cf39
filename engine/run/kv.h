/* SPDX-License-Identifier: MIT
 *
 * engine/run/kv.h: which KV blocks are in use and by how many, and what is in those that are full. A block is a number (the same in every
 * layer and on every device); its memory is elsewhere. Sessions that share a prefix share its blocks. What nobody holds is free, but
 * remembered until it is needed: the longest unused goes first. Belongs to the engine thread.
 */
#ifndef ENG_KV_H
#define ENG_KV_H

#include "dl/op.h"

#define ENG_KV_NONE UINT32_MAX

/* What a block that is known holds: these tokens, after those of `parent` and all before it. Exact: no hash stands for tokens. */
struct eng_kv_entry {
    int32_t tokens[DL_KV_BLOCK];
    uint32_t parent, parent_life; /* which block, and in which of its lives; ENG_KV_NONE: the first */
    uint32_t life;                /* counts what was in the block over time */
    uint32_t hash, next;          /* in its bucket */
    uint32_t older, newer;        /* among those that nobody holds */
    bool known;
};

/* Zero-initialised is an allocator without blocks. */
struct eng_kv {
    uint32_t n_blocks;
    uint32_t *refs; /* per block; 0: free */
    uint32_t *free; /* stack of the free ones without content, the next to give out last */
    uint32_t n_free;
    struct eng_kv_entry *entries; /* (n_blocks) */
    uint32_t *buckets;            /* (n_buckets), a power of two: first block of each */
    uint32_t n_buckets;
    uint32_t oldest, newest, n_idle; /* those that are known, and held by nobody */
};

/* All n_blocks are free. DL_ENOMEM (logged). */
int eng_kv_init(struct eng_kv *kv, uint32_t n_blocks);
void eng_kv_finish(
    struct eng_kv *kv); /* back to zero-initialised; whoever still holds blocks must not give them back */

/* A free block with one reference: the one given back last, else the lowest one that was never used, so that memory in use
 * stays small and warm; else the one whose content was not used for longest, which is forgotten. DL_ELIMIT, not logged, when there is none: the caller may free something and try again. */
int eng_kv_alloc(struct eng_kv *kv, uint32_t *block);

/* One more holder of a block that is in use; one less, and the last one frees it. Returns the references that are left. */
uint32_t eng_kv_ref(struct eng_kv *kv, uint32_t block);
uint32_t eng_kv_unref(struct eng_kv *kv, uint32_t block);

uint32_t eng_kv_free_count(const struct eng_kv *kv); /* that can be had: with those whose content is remembered */

/* kv_cache.c. A block that the caller holds is full, of these DL_KV_BLOCK tokens: from here on it can be found. parent: the one before it,
 * which is known (ENG_KV_NONE: none is before it). Returns the block that the caller holds from now on instead: the same, or one
 * that was known for the same before. */
uint32_t eng_kv_know(struct eng_kv *kv, uint32_t block, uint32_t parent, const int32_t *tokens);
/* The block that holds these tokens after `parent`, with one more reference; ENG_KV_NONE: there is none. */
uint32_t eng_kv_find(struct eng_kv *kv, uint32_t parent, const int32_t *tokens);
/* The same without becoming a holder. */
uint32_t eng_kv_look(const struct eng_kv *kv, uint32_t parent, const int32_t *tokens);
/* What is in a block is about to change: it and what comes after it is not found any more. */
void eng_kv_forget(struct eng_kv *kv, uint32_t block);
void eng_kv_forget_all(struct eng_kv *kv);
/* For kv.c: the last holder of a known block is gone; somebody holds it again; the one to give up. */
void eng_kv_idle(struct eng_kv *kv, uint32_t block);
void eng_kv_wake(struct eng_kv *kv, uint32_t block);

#endif
