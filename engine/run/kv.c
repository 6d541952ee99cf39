/* SPDX-License-Identifier: MIT
 *
 * engine/run/kv.c: the KV block allocator of kv.h: reference counts and a stack of free blocks, so that everything is O(1)
 * however long the context is.
 */
#include "kv.h"

#include <assert.h>
#include <stdlib.h>

int eng_kv_init(struct eng_kv *kv, uint32_t n_blocks)
{
    *kv = (struct eng_kv){.n_blocks = n_blocks, .n_free = n_blocks, .n_buckets = 1};
    kv->oldest = kv->newest = ENG_KV_NONE;
    while (kv->n_buckets < n_blocks && kv->n_buckets < 1u << 30)
        kv->n_buckets *= 2;
    kv->refs = dl_calloc(n_blocks, sizeof *kv->refs);
    kv->free = dl_calloc(n_blocks, sizeof *kv->free);
    kv->entries = dl_calloc(n_blocks, sizeof *kv->entries);
    kv->buckets = dl_calloc(kv->n_buckets, sizeof *kv->buckets);
    if (!kv->refs || !kv->free || !kv->entries || !kv->buckets) {
        eng_kv_finish(kv);
        return DL_ENOMEM;
    }
    for (uint32_t i = 0; i < kv->n_buckets; i++)
        kv->buckets[i] = ENG_KV_NONE;
    for (uint32_t i = 0; i < n_blocks; i++)
        kv->free[i] = n_blocks - 1 - i;
    return DL_OK;
}

void eng_kv_finish(struct eng_kv *kv)
{
    free(kv->refs);
    free(kv->free);
    free(kv->entries);
    free(kv->buckets);
    *kv = (struct eng_kv){0};
}

int eng_kv_alloc(struct eng_kv *kv, uint32_t *block)
{
    if (!kv->n_free && kv->n_idle)
        eng_kv_forget(kv, kv->oldest);
    if (!kv->n_free)
        return DL_ELIMIT;
    *block = kv->free[--kv->n_free];
    kv->refs[*block] = 1;
    return DL_OK;
}

uint32_t eng_kv_ref(struct eng_kv *kv, uint32_t block)
{
    assert(block < kv->n_blocks && kv->refs[block] && kv->refs[block] < UINT32_MAX);
    return ++kv->refs[block];
}

uint32_t eng_kv_unref(struct eng_kv *kv, uint32_t block)
{
    assert(block < kv->n_blocks && kv->refs[block]);
    if (--kv->refs[block])
        return kv->refs[block];
    if (kv->entries[block].known)
        eng_kv_idle(kv, block);
    else
        kv->free[kv->n_free++] = block;
    return 0;
}

uint32_t eng_kv_free_count(const struct eng_kv *kv)
{
    return kv->n_free + kv->n_idle;
}
