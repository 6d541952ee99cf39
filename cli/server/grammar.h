/* SPDX-License-Identifier: MIT
 *
 * cli/server/grammar.h: a context-free grammar over bytes, and how far a text has got in it. A rule is a choice of sequences, each
 * of byte sets and other rules; rule 0 is the whole. A grammar does not change once it is built; a state belongs to one text. No
 * sequence may come back to its own rule before a byte (left recursion): such a choice leads nowhere.
 */
#ifndef CLI_SERVER_GRAMMAR_H
#define CLI_SERVER_GRAMMAR_H

#include "dl/base.h"

struct cli_byte_set {
    uint64_t bits[4];
};

/* Zero-initialised is empty. The first error sticks in err. */
struct cli_grammar {
    uint32_t *rules; /* (n_rules): its last sequence, which leads to the others */
    size_t n_rules, cap_rules;
    struct cli_sequence {
        uint32_t at, next; /* first symbol; another sequence of the rule */
    } * sequences;
    size_t n_sequences, cap_sequences;
    uint32_t *symbols;
    size_t n_symbols, cap_symbols;
    struct cli_byte_set *sets;
    size_t n_sets, cap_sets;
    int err; /* DL_ENOMEM, or DL_ELIMIT: too large */
};

uint32_t cli_grammar_rule(struct cli_grammar *g); /* a new one, without sequences */
/* Adds a sequence to a rule: begin, then its parts, then end. One at a time. */
void cli_grammar_begin(struct cli_grammar *g, uint32_t rule);
void cli_grammar_text(struct cli_grammar *g, const char *bytes, size_t n);
void cli_grammar_class(struct cli_grammar *g, const char *ranges); /* "azAZ__": pairs of first and last */
void cli_grammar_ref(struct cli_grammar *g, uint32_t rule);
void cli_grammar_end(struct cli_grammar *g);
void cli_grammar_finish(struct cli_grammar *g);

/* Where a text can be: several stacks of places in sequences, the next byte on top; an empty one says that it may end here. */
#define CLI_GRAMMAR_DEPTH 250u
struct cli_stack {
    uint32_t n;
    uint32_t at[CLI_GRAMMAR_DEPTH];
};
struct cli_grammar_state {
    const struct cli_grammar *g; /* outlives it */
    struct cli_stack *v, *spare;
    size_t n, cap, n_spare, cap_spare;
};
/* At the beginning. DL_ENOMEM, DL_EINVAL: the grammar has no text at all. Finished in any case. */
int cli_grammar_start(struct cli_grammar_state *s, const struct cli_grammar *g);
void cli_grammar_state_finish(struct cli_grammar_state *s);
/* Goes on by these bytes; false: they do not fit, and the state is as before. */
bool cli_grammar_accept(struct cli_grammar_state *s, const char *bytes, size_t n);
/* Whether they would fit. */
bool cli_grammar_fits(struct cli_grammar_state *s, const char *bytes, size_t n);
bool cli_grammar_may_end(const struct cli_grammar_state *s);
bool cli_grammar_must_end(const struct cli_grammar_state *s);
/* The bytes that can come next. */
struct cli_byte_set cli_grammar_next(const struct cli_grammar_state *s);
static inline bool cli_byte_in(const struct cli_byte_set *set, unsigned char c)
{
    return set->bits[c >> 6] >> (c & 63) & 1;
}

#endif
