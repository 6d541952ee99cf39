/* SPDX-License-Identifier: MIT
 *
 * engine/text/vocab.h: the in-memory vocabulary and the parts of a tokenizer, shared by the files of engine/text. A file reader
 * (vocab_gguf.c, vocab_dllama.c) fills a dl_tokenizer with eng_vocab_reserve, eng_vocab_add and its own fields, then calls
 * eng_vocab_finish once; after that nothing changes any more.
 *
 * Token strings are held as the bytes that the token stands for: GPT-2's byte alphabet and SentencePiece's U+2581 are undone
 * when the file is read, so that all later code works on plain text.
 */
#ifndef ENG_VOCAB_H
#define ENG_VOCAB_H

#include "dl/text.h"

enum eng_token_type { /* the numbers of tokenizer.ggml.token_type */
                      ENG_TOKEN_NORMAL = 1,
                      ENG_TOKEN_UNKNOWN,
                      ENG_TOKEN_CONTROL,
                      ENG_TOKEN_USER,
                      ENG_TOKEN_UNUSED,
                      ENG_TOKEN_BYTE
};

struct eng_token {
    uint32_t at, n; /* its string in the arena */
    uint32_t prio;  /* merge order: smaller first (from the score) */
    uint8_t type;   /* enum eng_token_type */
    uint8_t byte;   /* BYTE tokens: its value */
    bool eog;
    bool unmatched; /* never comes out of plain text (a string that is not in the file's byte alphabet) */
};

/* Open addressing; id < 0: free. */
struct eng_slot {
    uint32_t hash;
    int32_t id;
};

/* A merge of two tokens into a third; left < 0: free. */
struct eng_pair {
    int32_t left, right, id;
    uint32_t rank;
};

struct eng_pretok;

struct dl_tokenizer {
    struct dl_tokenizer_info info; /* strings: static, or owned here */
    char *chat_template;
    bool bpe;
    bool by_pairs; /* merges are listed pairs; else any two parts whose join is a token merge, in order of that token */
    bool whole_first;  /* a piece that is one token stays whole, whatever the merges say */
    bool spaces_start; /* no token has a space after another character: text may be cut before each such space */

    char *arena;
    size_t arena_n, arena_cap;
    struct eng_token *tokens;
    size_t n, cap;
    size_t longest; /* bytes of the longest token in `slots` */
    uint32_t longest_with[256]; /* of the longest that text can become and that has this byte; 0: the byte may come to nothing */

    uint64_t seed;          /* of the hash: a hostile file cannot aim at collisions */
    struct eng_slot *slots; /* what plain text can become: NORMAL tokens by their bytes */
    size_t slot_mask;
    struct eng_pair *pairs;
    size_t pair_mask;

    int32_t byte_id[256]; /* the token of one byte, or -1 */
    int32_t unknown;      /* id for what cannot be expressed, or -1 */

    int32_t *specials; /* CONTROL, USER and UNKNOWN ids, sorted by their bytes */
    size_t n_specials;
    bool special_first[256], user_first[256]; /* bytes that some special / user-defined token begins with */

    struct eng_pretok *pretok; /* BPE */
};

int eng_vocab_reserve(dl_tokenizer *t, size_t n_tokens, size_t n_bytes);
/* Appends a token (its id is t->n before the call). The string is copied. */
int eng_vocab_add(dl_tokenizer *t, const char *bytes, size_t n, float score, enum eng_token_type type);
/* Builds the hash maps and lists; marks end-of-generation tokens by their well-known names. */
int eng_vocab_finish(dl_tokenizer *t);
/* Room for n merges; then one call per merge, in order of rank. The first of equal pairs stays. After eng_vocab_finish. */
int eng_vocab_reserve_pairs(dl_tokenizer *t, size_t n);
void eng_vocab_add_pair(dl_tokenizer *t, int32_t left, int32_t right, int32_t id, uint32_t rank);

/* The id of these bytes as plain text, or -1. */
int32_t eng_vocab_find(const dl_tokenizer *t, const char *bytes, size_t n);
const struct eng_pair *eng_vocab_find_pair(const dl_tokenizer *t, int32_t left, int32_t right);
/* The longest special token at `text`, or -1; control: control and unknown tokens count too, else only user-defined ones. */
int32_t eng_vocab_special_at(const dl_tokenizer *t, const char *text, size_t n, bool control);
/* A number of tokens that the text comes to at least. */
size_t eng_vocab_least(const dl_tokenizer *t, const char *text, size_t n);
/* "<0xNN>" to its value, or -1. */
int eng_byte_name(const char *text, size_t n);
/* DL_EFORMAT (logged) unless -1 <= id < n. */
int eng_check_id(const char *file, const char *what, int64_t id, size_t n);

static inline const char *eng_token_str(const dl_tokenizer *t, int32_t id)
{
    return t->arena + t->tokens[id].at;
}

/* File readers: fill a zeroed *t. */
int eng_vocab_from_gguf(dl_tokenizer *t, const uint8_t *bytes, size_t n, const char *name);
int eng_vocab_from_dllama(dl_tokenizer *t, const uint8_t *bytes, size_t n, const char *name);

/* ------------------------------------------------------------------------------------------------ merges (merge.c) */

struct eng_symbol {
    uint32_t at, n; /* bytes of the text; n == 0: merged into another */
    int32_t prev, next;
    int32_t id;
};
struct eng_candidate {
    uint64_t key; /* priority, then position: the smallest is merged first */
    uint32_t n;   /* bytes of both parts: tells a candidate that has been overtaken */
    int32_t id;
};
/* Scratch, kept from piece to piece. Zero-initialised is empty. */
struct eng_merger {
    struct eng_symbol *symbols;
    size_t n_symbols, cap_symbols;
    struct eng_candidate *heap;
    size_t n_heap, cap_heap;
    struct eng_candidate *first; /* long pieces: the candidates of the start, in order */
    size_t n_first, cap_first;
    bool gather;
};
int eng_merger_add(struct eng_merger *m, uint32_t at, uint32_t n, int32_t id); /* the next symbol of the piece */
/* Merges all symbols of the piece over `text`; the list then starts at symbol 0 and goes on by `next`. */
int eng_merger_run(struct eng_merger *m, const dl_tokenizer *t, const char *text);
void eng_merger_finish(struct eng_merger *m);

/* -------------------------------------------------------------------------------------- the two kinds (spm.c, bpe.c) */

int eng_spm_tokenize(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, struct dl_tokens *out);
int eng_bpe_tokenize(const dl_tokenizer *t, struct eng_merger *m, const char *text, size_t n, struct dl_tokens *out);
/* One byte that no other token covers. */
int eng_emit_byte(const dl_tokenizer *t, uint8_t byte, struct dl_tokens *out);

/* Bytes of the valid UTF-8 character at s (n > 0), 0 where there is none. */
size_t eng_utf8_len(const char *s, size_t n);

#endif
