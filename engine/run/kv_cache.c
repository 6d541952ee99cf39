/* SPDX-License-Identifier: MIT
 *
 * engine/run/kv_cache.c: what is in blocks that are full (kv.h): a hash table over (the block before, tokens), and a list of those that nobody
 * holds, in the order in which they were given back. A session gives its blocks back from the end, so that a block goes before
 * the one that it comes after.
 */
#include "kv.h"

#include <assert.h>
#include <string.h>

static uint32_t life_of(const struct eng_kv *kv, uint32_t block)
{
    return block == ENG_KV_NONE ? 0 : kv->entries[block].life;
}

static uint32_t hash_of(const struct eng_kv *kv, uint32_t parent, const int32_t *tokens)
{
    uint64_t h = ((uint64_t)parent << 32 | life_of(kv, parent)) ^ UINT64_C(0x9e3779b97f4a7c15);
    for (uint32_t i = 0; i < DL_KV_BLOCK; i++) {
        h = (h ^ (uint32_t)tokens[i]) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    return (uint32_t)h;
}

static uint32_t look_up(const struct eng_kv *kv, uint32_t hash, uint32_t parent, const int32_t *tokens)
{
    uint32_t b = kv->buckets[hash & (kv->n_buckets - 1)];
    for (; b != ENG_KV_NONE; b = kv->entries[b].next) {
        const struct eng_kv_entry *e = &kv->entries[b];
        if (e->hash == hash && e->parent == parent && e->parent_life == life_of(kv, parent) &&
            !memcmp(e->tokens, tokens, sizeof e->tokens))
            break;
    }
    return b;
}

void eng_kv_idle(struct eng_kv *kv, uint32_t block)
{
    struct eng_kv_entry *e = &kv->entries[block];
    e->older = kv->newest;
    e->newer = ENG_KV_NONE;
    if (kv->newest == ENG_KV_NONE)
        kv->oldest = block;
    else
        kv->entries[kv->newest].newer = block;
    kv->newest = block;
    kv->n_idle++;
}

void eng_kv_wake(struct eng_kv *kv, uint32_t block)
{
    const struct eng_kv_entry *e = &kv->entries[block];
    if (e->older == ENG_KV_NONE)
        kv->oldest = e->newer;
    else
        kv->entries[e->older].newer = e->newer;
    if (e->newer == ENG_KV_NONE)
        kv->newest = e->older;
    else
        kv->entries[e->newer].older = e->older;
    kv->n_idle--;
}

static uint32_t hold(struct eng_kv *kv, uint32_t block)
{
    if (block != ENG_KV_NONE && !kv->refs[block]++)
        eng_kv_wake(kv, block);
    return block;
}

uint32_t eng_kv_look(const struct eng_kv *kv, uint32_t parent, const int32_t *tokens)
{
    return look_up(kv, hash_of(kv, parent, tokens), parent, tokens);
}

uint32_t eng_kv_find(struct eng_kv *kv, uint32_t parent, const int32_t *tokens)
{
    return hold(kv, eng_kv_look(kv, parent, tokens));
}

uint32_t eng_kv_know(struct eng_kv *kv, uint32_t block, uint32_t parent, const int32_t *tokens)
{
    struct eng_kv_entry *e = &kv->entries[block];
    uint32_t hash = hash_of(kv, parent, tokens), there = look_up(kv, hash, parent, tokens);
    assert(kv->refs[block] && (parent == ENG_KV_NONE || kv->entries[parent].known));
    if (there == block)
        return block;
    if (there != ENG_KV_NONE) {
        hold(kv, there);
        eng_kv_unref(kv, block);
        return there;
    }
    if (e->known) /* something else was in it, which is gone */
        eng_kv_forget(kv, block);
    memcpy(e->tokens, tokens, sizeof e->tokens);
    e->parent = parent;
    e->parent_life = life_of(kv, parent);
    e->hash = hash;
    e->known = true;
    e->next = kv->buckets[hash & (kv->n_buckets - 1)];
    kv->buckets[hash & (kv->n_buckets - 1)] = block;
    return block;
}

void eng_kv_forget(struct eng_kv *kv, uint32_t block)
{
    struct eng_kv_entry *e = &kv->entries[block];
    if (!e->known)
        return;
    uint32_t *at = &kv->buckets[e->hash & (kv->n_buckets - 1)];
    while (*at != block)
        at = &kv->entries[*at].next;
    *at = e->next;
    e->known = false;
    e->life++;
    if (kv->refs[block])
        return;
    eng_kv_wake(kv, block);
    kv->free[kv->n_free++] = block;
}

void eng_kv_forget_all(struct eng_kv *kv)
{
    for (uint32_t i = kv->n_blocks; i-- > 0;) /* the lowest is to be given out first */
        eng_kv_forget(kv, i);
}
