/* SPDX-License-Identifier: MIT
 *
 * engine/run/kv.h: which KV blocks are in use and by how many. A block is a number (the same in every layer and on every
 * device); its memory is elsewhere. Sessions that share a prefix share its blocks. Belongs to the engine thread.
 */
#ifndef ENG_KV_H
#define ENG_KV_H

#include "dl/base.h"

/* Zero-initialised is an allocator without blocks. */
struct eng_kv {
    uint32_t n_blocks;
    uint32_t *refs; /* per block; 0: free */
    uint32_t *free; /* stack of the free ones, the next to give out last */
    uint32_t n_free;
};

/* All n_blocks are free. DL_ENOMEM (logged). */
int eng_kv_init(struct eng_kv *kv, uint32_t n_blocks);
void eng_kv_finish(
    struct eng_kv *kv); /* back to zero-initialised; whoever still holds blocks must not give them back */

/* A free block with one reference: the one given back last, else the lowest one that was never used, so that memory in use
 * stays small and warm. DL_ELIMIT, not logged, when there is none: the caller may free something and try again. */
int eng_kv_alloc(struct eng_kv *kv, uint32_t *block);

/* One more holder of a block that is in use; one less, and the last one frees it. Returns the references that are left. */
uint32_t eng_kv_ref(struct eng_kv *kv, uint32_t block);
uint32_t eng_kv_unref(struct eng_kv *kv, uint32_t block);

uint32_t eng_kv_free_count(const struct eng_kv *kv);

#endif
