/* SPDX-License-Identifier: MIT
 *
 * engine/text/vocab.c: the token table, its hash maps and the list of special tokens. Knows no file format; strings come in
 * as the bytes that tokens stand for.
 */
#include "vocab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Names that end an answer in the models that people run, whatever a converter called their type. */
static const char *const end_names[] = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<turn|>",
    "[e~[",
    "<｜end▁of▁sentence｜>",
};
/* The same, but short enough to be a plain word in some vocabularies: only where the file says that they are special. */
static const char *const weak_end_names[] = {"</s>", "<eos>"};

/* ------------------------------------------------------------------------------------------------------ hashing */

static uint64_t mix(uint64_t h)
{
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 29;
}

static uint32_t hash_bytes(uint64_t seed, const char *s, size_t n)
{
    uint64_t h = seed + n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = mix(h ^ w);
    }
    uint64_t w = 0;
    if (n)
        memcpy(&w, s, n);
    h = mix(h ^ w);
    return (uint32_t)(h ^ h >> 32);
}

static size_t hash_pair(uint64_t seed, int32_t left, int32_t right)
{
    return (size_t)mix(seed ^ ((uint64_t)(uint32_t)left << 32 | (uint32_t)right));
}

/* A power of two with at most half of it used. */
static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < n * 2)
        size *= 2;
    return size;
}

int32_t eng_vocab_find(const dl_tokenizer *t, const char *bytes, size_t n)
{
    if (n > t->longest)
        return -1;
    uint32_t hash = hash_bytes(t->seed, bytes, n);
    for (size_t i = hash & t->slot_mask;; i = (i + 1) & t->slot_mask) {
        struct eng_slot s = t->slots[i];
        if (s.id < 0)
            return -1;
        if (s.hash == hash && t->tokens[s.id].n == n && !memcmp(eng_token_str(t, s.id), bytes, n))
            return s.id;
    }
}

const struct eng_pair *eng_vocab_find_pair(const dl_tokenizer *t, int32_t left, int32_t right)
{
    for (size_t i = hash_pair(t->seed, left, right) & t->pair_mask;; i = (i + 1) & t->pair_mask) {
        const struct eng_pair *p = &t->pairs[i];
        if (p->left < 0)
            return NULL;
        if (p->left == left && p->right == right)
            return p;
    }
}

/* ------------------------------------------------------------------------------------------------------ building */

int eng_check_id(const char *file, const char *what, int64_t id, size_t n)
{
    if (id >= -1 && (id < 0 || (uint64_t)id < n))
        return DL_OK;
    return dl_fail(DL_EFORMAT, "%s: %s is token %lld, but there are only %zu tokens: the file is damaged", file, what,
                   (long long)id, n);
}

int eng_byte_name(const char *text, size_t n)
{
    if (n != 6 || memcmp(text, "<0x", 3) || text[5] != '>')
        return -1;
    int v = 0;
    for (int i = 3; i < 5; i++) {
        char c = text[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

int eng_vocab_reserve(dl_tokenizer *t, size_t n_tokens, size_t n_bytes)
{
    if (n_tokens > INT32_MAX / 2 || n_bytes > UINT32_MAX)
        return dl_fail(DL_ELIMIT, "vocabulary: %zu tokens in %zu bytes are too many", n_tokens, n_bytes);
    t->tokens = dl_calloc(n_tokens, sizeof *t->tokens);
    t->arena = dl_calloc(n_bytes + 1, 1);
    if (!t->tokens || !t->arena)
        return DL_ENOMEM;
    t->cap = n_tokens;
    t->arena_cap = n_bytes;
    return DL_OK;
}

/* Higher scores merge first: the float's order, turned around, as an unsigned number. */
static uint32_t score_prio(float score)
{
    if (isnan(score))
        return UINT32_MAX;
    if (score == 0)
        score = 0; /* -0 is 0 */
    uint32_t u;
    memcpy(&u, &score, sizeof u);
    return u >> 31 ? u : 0x7fffffffu - u;
}

int eng_vocab_add(dl_tokenizer *t, const char *bytes, size_t n, float score, enum eng_token_type type)
{
    if (t->n == t->cap || n > t->arena_cap - t->arena_n)
        return dl_fail(DL_EFORMAT, "vocabulary: more tokens than announced (%zu)", t->cap);
    int byte = type == ENG_TOKEN_BYTE ? eng_byte_name(bytes, n) : 0;
    t->tokens[t->n++] = (struct eng_token){
        .at = (uint32_t)t->arena_n,
        .n = (uint32_t)n,
        .prio = score_prio(score),
        .type = (uint8_t)(byte < 0 ? ENG_TOKEN_NORMAL : type),
        .byte = (uint8_t)(byte < 0 ? 0 : byte),
    };
    if (n)
        memcpy(t->arena + t->arena_n, bytes, n);
    t->arena_n += n;
    return DL_OK;
}

static bool is_one_of(const char *const *names, size_t n_names, const char *s, size_t n)
{
    for (size_t i = 0; i < n_names; i++)
        if (strlen(names[i]) == n && !memcmp(names[i], s, n))
            return true;
    return false;
}

static void mark_ends(dl_tokenizer *t)
{
    bool has_return = false, has_call = false;
    for (size_t i = 0; i < t->n; i++) {
        struct eng_token *k = &t->tokens[i];
        const char *s = t->arena + k->at;
        if (k->n < 4 || k->n > 32)
            continue;
        bool strong = is_one_of(end_names, DL_COUNT_OF(end_names), s, k->n);
        if (strong ||
            (k->type != ENG_TOKEN_NORMAL && is_one_of(weak_end_names, DL_COUNT_OF(weak_end_names), s, k->n))) {
            k->eog = true;
            k->type = ENG_TOKEN_CONTROL;
        }
        has_return |= k->n == 10 && !memcmp(s, "<|return|>", 10);
        has_call |= k->n == 8 && !memcmp(s, "<|call|>", 8);
    }
    /* In gpt-oss vocabularies <|end|> only closes one of several messages of an answer. */
    for (size_t i = 0; has_return && has_call && i < t->n; i++)
        if (t->tokens[i].n == 7 && !memcmp(t->arena + t->tokens[i].at, "<|end|>", 7))
            t->tokens[i].eog = false;
    if (t->info.eos >= 0) {
        t->tokens[t->info.eos].eog = true;
        if (t->tokens[t->info.eos].type == ENG_TOKEN_NORMAL)
            t->tokens[t->info.eos].type = ENG_TOKEN_CONTROL;
    }
}

static int build_slots(dl_tokenizer *t)
{
    size_t size = table_size(t->n);
    t->slots = dl_calloc(size, sizeof *t->slots);
    if (!t->slots)
        return DL_ENOMEM;
    for (size_t i = 0; i < size; i++)
        t->slots[i].id = -1;
    t->slot_mask = size - 1;
    t->spaces_start = true;
    for (size_t id = 0; id < t->n; id++) {
        struct eng_token k = t->tokens[id];
        if (k.type != ENG_TOKEN_NORMAL || k.unmatched || !k.n)
            continue;
        const char *s = t->arena + k.at;
        uint32_t hash = hash_bytes(t->seed, s, k.n);
        size_t i = hash & t->slot_mask;
        bool twice = false;
        for (; t->slots[i].id >= 0 && !twice; i = (i + 1) & t->slot_mask)
            twice = t->slots[i].hash == hash && t->tokens[t->slots[i].id].n == k.n &&
                    !memcmp(eng_token_str(t, t->slots[i].id), s, k.n);
        if (twice)
            continue;
        t->slots[i] = (struct eng_slot){hash, (int32_t)id};
        t->longest = DL_MAX(t->longest, k.n);
        for (uint32_t j = 1; j < k.n && t->spaces_start; j++)
            t->spaces_start = s[j] != ' ' || s[j - 1] == ' ';
    }
    return DL_OK;
}

static void build_bytes(dl_tokenizer *t)
{
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_id[b] = eng_vocab_find(t, &c, 1);
    }
    for (size_t id = t->n; id-- > 0;)
        if (t->tokens[id].type == ENG_TOKEN_BYTE)
            t->byte_id[t->tokens[id].byte] = (int32_t)id;
}

/* qsort has no argument for the table, so the strings travel with the ids. */
struct special {
    const char *s;
    uint32_t n;
    int32_t id;
};

static int compare_special(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    int c = memcmp(x->s, y->s, DL_MIN(x->n, y->n));
    if (c)
        return c;
    if (x->n != y->n)
        return x->n < y->n ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static bool is_special(const struct eng_token *k)
{
    return k->n && (k->type == ENG_TOKEN_CONTROL || k->type == ENG_TOKEN_USER || k->type == ENG_TOKEN_UNKNOWN);
}

static int build_specials(dl_tokenizer *t)
{
    size_t n = 0;
    for (size_t i = 0; i < t->n; i++)
        n += is_special(&t->tokens[i]);
    struct special *sorted = dl_calloc(n, sizeof *sorted);
    t->specials = dl_calloc(n, sizeof *t->specials);
    if (!sorted || !t->specials) {
        free(sorted);
        return DL_ENOMEM;
    }
    for (size_t i = 0, k = 0; i < t->n; i++)
        if (is_special(&t->tokens[i]))
            sorted[k++] = (struct special){t->arena + t->tokens[i].at, t->tokens[i].n, (int32_t)i};
    if (n)
        qsort(sorted, n, sizeof *sorted, compare_special);
    for (size_t i = 0; i < n; i++) {
        t->specials[i] = sorted[i].id;
        t->special_first[(uint8_t)sorted[i].s[0]] = true;
        if (t->tokens[sorted[i].id].type == ENG_TOKEN_USER)
            t->user_first[(uint8_t)sorted[i].s[0]] = true;
    }
    t->n_specials = n;
    free(sorted);
    return DL_OK;
}

/* After the bytes' own tokens are known. */
static void build_longest(dl_tokenizer *t)
{
    for (int b = 0; b < 256; b++)
        t->longest_with[b] = 1;
    for (size_t id = 0; id < t->n; id++) {
        const struct eng_token *k = &t->tokens[id];
        const uint8_t *s = (const uint8_t *)t->arena + k->at;
        if (is_special(k) || (k->type == ENG_TOKEN_NORMAL && !k->unmatched))
            for (uint32_t i = 0; i < k->n; i++)
                t->longest_with[s[i]] = DL_MAX(t->longest_with[s[i]], k->n);
    }
    for (int b = 0; b < 256; b++)
        if (t->byte_id[b] < 0 && t->unknown < 0)
            t->longest_with[b] = 0;
}

/* Each token is as long as the longest with any of its bytes at most: if each byte counts as one part in so many, no token counts
 * as more than one. */
size_t eng_vocab_least(const dl_tokenizer *t, const char *text, size_t n)
{
    size_t count[256] = {0}, least = 0;
    for (size_t i = 0; i < n; i++)
        count[(uint8_t)text[i]]++;
    for (int b = 0; b < 256; b++)
        least += t->longest_with[b] ? count[b] / t->longest_with[b] : 0;
    return least;
}

int eng_vocab_finish(dl_tokenizer *t)
{
    t->seed = mix(dl_now_ns() ^ 0x5851f42d4c957f2du);
    t->info.kind = t->bpe ? "bpe" : "spm";
    t->info.vocab = (uint32_t)t->n;
    t->info.chat_template = t->chat_template ? t->chat_template : "";
    t->info.add_bos = t->info.add_bos && t->info.bos >= 0;
    t->info.add_eos = t->info.add_eos && t->info.eos >= 0;
    mark_ends(t);
    int err = build_slots(t);
    if (!err)
        err = build_specials(t);
    if (!err) {
        build_bytes(t);
        build_longest(t);
    }
    return err;
}

int eng_vocab_reserve_pairs(dl_tokenizer *t, size_t n)
{
    if (n > INT32_MAX / 2)
        return dl_fail(DL_ELIMIT, "vocabulary: %zu merges are too many", n);
    size_t size = table_size(n);
    t->pairs = dl_calloc(size, sizeof *t->pairs);
    if (!t->pairs)
        return DL_ENOMEM;
    for (size_t i = 0; i < size; i++)
        t->pairs[i].left = -1;
    t->pair_mask = size - 1;
    t->by_pairs = true;
    return DL_OK;
}

void eng_vocab_add_pair(dl_tokenizer *t, int32_t left, int32_t right, int32_t id, uint32_t rank)
{
    size_t i = hash_pair(t->seed, left, right) & t->pair_mask;
    for (; t->pairs[i].left >= 0; i = (i + 1) & t->pair_mask)
        if (t->pairs[i].left == left && t->pairs[i].right == right)
            return;
    t->pairs[i] = (struct eng_pair){left, right, id, rank};
}

/* ------------------------------------------------------------------------------------------------- special tokens */

/* The specials that share the text's first d bytes are a range of the sorted list, narrowed byte by byte. */
int32_t eng_vocab_special_at(const dl_tokenizer *t, const char *text, size_t n, bool control)
{
    if (!n || !(control ? t->special_first : t->user_first)[(uint8_t)*text])
        return -1;
    size_t lo = 0, hi = t->n_specials;
    int32_t best = -1;
    for (size_t d = 0; d < n && lo < hi; d++) {
        uint8_t want = (uint8_t)text[d];
        for (int end = 0; end < 2; end++) { /* first index with byte >= want, then first with byte > want */
            size_t a = lo, b = hi;
            while (a < b) {
                size_t mid = a + (b - a) / 2;
                const struct eng_token *k = &t->tokens[t->specials[mid]];
                int byte = k->n > d ? (uint8_t)t->arena[k->at + d] : -1;
                if (byte < want + end)
                    a = mid + 1;
                else
                    b = mid;
            }
            if (end)
                hi = a;
            else
                lo = a;
        }
        for (size_t i = lo; i < hi && t->tokens[t->specials[i]].n == d + 1; i++)
            if (control || t->tokens[t->specials[i]].type == ENG_TOKEN_USER) {
                best = t->specials[i];
                break;
            }
    }
    return best;
}
