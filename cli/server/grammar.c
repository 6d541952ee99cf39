/* SPDX-License-Identifier: MIT
 *
 * cli/server/grammar.c: see grammar.h. All ways through the grammar are followed at once; what JSON needs are a few, since its texts are
 * never ambiguous for long.
 */
#include "grammar.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX
#define MOST_SYMBOLS (1u << 20)
#define MOST_STACKS 4096u
#define MOST_STEPS 20000u /* of one expansion */

/* A symbol: its kind in the upper two bits. */
enum { END = 0u, SET = 1u << 30, RULE = 2u << 30, KIND = 3u << 30 };

static bool room(struct cli_grammar *g, void **v, size_t *cap, size_t n, size_t item)
{
    if (!g->err && n >= MOST_SYMBOLS)
        g->err = DL_ELIMIT;
    if (!g->err)
        g->err = dl_grow(v, cap, n + 1, item);
    return !g->err;
}

uint32_t cli_grammar_rule(struct cli_grammar *g)
{
    void *v = g->rules;
    bool ok = room(g, &v, &g->cap_rules, g->n_rules, sizeof *g->rules);
    g->rules = v;
    if (!ok)
        return 0;
    g->rules[g->n_rules] = NONE;
    return (uint32_t)g->n_rules++;
}

static void symbol(struct cli_grammar *g, uint32_t value)
{
    void *v = g->symbols;
    bool ok = room(g, &v, &g->cap_symbols, g->n_symbols, sizeof *g->symbols);
    g->symbols = v;
    if (ok)
        g->symbols[g->n_symbols++] = value;
}

/* In the order in which they are added: a state lists what comes first first. */
void cli_grammar_begin(struct cli_grammar *g, uint32_t rule)
{
    void *v = g->sequences;
    bool ok = room(g, &v, &g->cap_sequences, g->n_sequences, sizeof *g->sequences);
    g->sequences = v;
    if (!ok)
        return;
    g->sequences[g->n_sequences] = (struct cli_sequence){(uint32_t)g->n_symbols, g->rules[rule]};
    g->rules[rule] = (uint32_t)g->n_sequences++;
}

static void add_set(struct cli_grammar *g, struct cli_byte_set set)
{
    size_t i = 0;
    while (i < g->n_sets && memcmp(&g->sets[i], &set, sizeof set) != 0)
        i++;
    if (i == g->n_sets) {
        void *v = g->sets;
        bool ok = room(g, &v, &g->cap_sets, g->n_sets, sizeof *g->sets);
        g->sets = v;
        if (!ok)
            return;
        g->sets[g->n_sets++] = set;
    }
    symbol(g, SET | (uint32_t)i);
}

static void set_range(struct cli_byte_set *set, unsigned first, unsigned last)
{
    for (unsigned c = first; c <= last; c++)
        set->bits[c >> 6] |= UINT64_C(1) << (c & 63);
}

void cli_grammar_text(struct cli_grammar *g, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct cli_byte_set set = {{0}};
        set_range(&set, (unsigned char)bytes[i], (unsigned char)bytes[i]);
        add_set(g, set);
    }
}

void cli_grammar_class(struct cli_grammar *g, const char *ranges)
{
    struct cli_byte_set set = {{0}};
    for (; *ranges; ranges += 2)
        set_range(&set, (unsigned char)ranges[0], (unsigned char)ranges[1]);
    add_set(g, set);
}

void cli_grammar_ref(struct cli_grammar *g, uint32_t rule)
{
    symbol(g, RULE | rule);
}

void cli_grammar_end(struct cli_grammar *g)
{
    symbol(g, END);
}

void cli_grammar_finish(struct cli_grammar *g)
{
    free(g->rules);
    free(g->sequences);
    free(g->symbols);
    free(g->sets);
    *g = (struct cli_grammar){0};
}

/* --------------------------------------------------------------------------------------------------- states */

static bool push_stack(struct cli_stack **v, size_t *n, size_t *cap, const struct cli_stack *s)
{
    for (size_t i = 0; i < *n; i++)
        if ((*v)[i].n == s->n && !memcmp((*v)[i].at, s->at, s->n * sizeof *s->at))
            return true;
    void *grown = *v;
    if (*n >= MOST_STACKS || dl_grow(&grown, cap, *n + 1, sizeof *s))
        return false;
    *v = grown;
    (*v)[*n].n = s->n;
    memcpy((*v)[(*n)++].at, s->at, s->n * sizeof *s->at);
    return true;
}

struct expansion {
    const struct cli_grammar *g;
    struct cli_stack **v;
    size_t *n, *cap;
    uint32_t steps;
    bool failed; /* memory */
};

/* Everything that a stack can be before its next byte. A stack that would become too deep is given up. */
static void expand(struct expansion *x, const struct cli_stack *from, unsigned depth)
{
    struct cli_stack s;
    s.n = from->n;
    memcpy(s.at, from->at, s.n * sizeof *s.at);
    while (s.n && (x->g->symbols[s.at[s.n - 1]] & KIND) == END)
        s.n--;
    uint32_t top = s.n ? x->g->symbols[s.at[s.n - 1]] : SET;
    if ((top & KIND) == SET) {
        x->failed = x->failed || !push_stack(x->v, x->n, x->cap, &s);
        return;
    }
    if (++x->steps > MOST_STEPS || depth > CLI_GRAMMAR_DEPTH)
        return;
    s.at[s.n - 1]++;
    if (x->g->symbols[s.at[s.n - 1]] == END) /* nothing is left to come back to */
        s.n--;
    if (s.n == CLI_GRAMMAR_DEPTH)
        return;
    s.n++;
    for (uint32_t q = x->g->rules[top & ~(uint32_t)KIND]; q != NONE; q = x->g->sequences[q].next) {
        s.at[s.n - 1] = x->g->sequences[q].at;
        expand(x, &s, depth + 1);
    }
}

/* Whether rule 0 has a text that comes to an end: a rule has where one of its sequences has only bytes, and rules that have. */
static int check_productive(const struct cli_grammar *g)
{
    bool *has = dl_calloc(g->n_rules + 1, sizeof *has), more = true;
    if (!has)
        return DL_ENOMEM;
    while (more) {
        more = false;
        for (size_t r = 0; r < g->n_rules; r++)
            for (uint32_t q = g->rules[r]; q != NONE && !has[r]; q = g->sequences[q].next) {
                const uint32_t *at = &g->symbols[g->sequences[q].at];
                while (*at && ((*at & KIND) == SET || has[*at & ~(uint32_t)KIND]))
                    at++;
                more = more || !*at;
                has[r] = !*at;
            }
    }
    bool ok = g->n_rules && has[0];
    free(has);
    return ok ? DL_OK : DL_EINVAL;
}

int cli_grammar_start(struct cli_grammar_state *s, const struct cli_grammar *g)
{
    *s = (struct cli_grammar_state){.g = g};
    struct expansion x = {.g = g, .v = &s->v, .n = &s->n, .cap = &s->cap};
    int err = g->err ? g->err : check_productive(g);
    if (err)
        return err;
    struct cli_stack first = {.n = 1};
    for (uint32_t q = g->n_rules ? g->rules[0] : NONE; q != NONE; q = g->sequences[q].next) {
        first.at[0] = g->sequences[q].at;
        expand(&x, &first, 0);
    }
    return x.failed ? DL_ENOMEM : s->n ? DL_OK : DL_EINVAL;
}

void cli_grammar_state_finish(struct cli_grammar_state *s)
{
    free(s->v);
    free(s->spare);
    *s = (struct cli_grammar_state){0};
}

/* From `from` by one byte into `to`. */
static void advance(const struct cli_grammar *g, const struct cli_stack *from, size_t n_from, unsigned char c,
                    struct cli_stack **to, size_t *n_to, size_t *cap_to)
{
    struct expansion x = {.g = g, .v = to, .n = n_to, .cap = cap_to};
    *n_to = 0;
    for (size_t i = 0; i < n_from; i++) {
        if (!from[i].n || !cli_byte_in(&g->sets[g->symbols[from[i].at[from[i].n - 1]] & ~(uint32_t)KIND], c))
            continue;
        struct cli_stack s;
        s.n = from[i].n;
        memcpy(s.at, from[i].at, s.n * sizeof *s.at);
        s.at[s.n - 1]++;
        expand(&x, &s, 0);
    }
}

bool cli_grammar_accept(struct cli_grammar_state *s, const char *bytes, size_t n)
{
    if (!cli_grammar_fits(s, bytes, n))
        return false;
    for (size_t i = 0; i < n; i++) {
        advance(s->g, s->v, s->n, (unsigned char)bytes[i], &s->spare, &s->n_spare, &s->cap_spare);
        struct cli_stack *v = s->v;
        size_t cap = s->cap;
        s->v = s->spare;
        s->n = s->n_spare;
        s->cap = s->cap_spare;
        s->spare = v;
        s->cap_spare = cap;
    }
    return true;
}

bool cli_grammar_fits(struct cli_grammar_state *s, const char *bytes, size_t n)
{
    struct cli_stack *other = NULL;
    size_t n_other = 0, cap_other = 0;
    const struct cli_stack *at = s->v;
    size_t n_at = s->n;
    for (size_t i = 0; i < n && n_at; i++) {
        bool odd = i & 1;
        if (odd)
            advance(s->g, at, n_at, (unsigned char)bytes[i], &other, &n_other, &cap_other);
        else
            advance(s->g, at, n_at, (unsigned char)bytes[i], &s->spare, &s->n_spare, &s->cap_spare);
        at = odd ? other : s->spare;
        n_at = odd ? n_other : s->n_spare;
    }
    free(other);
    return n_at > 0;
}

bool cli_grammar_may_end(const struct cli_grammar_state *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (!s->v[i].n)
            return true;
    return false;
}

bool cli_grammar_must_end(const struct cli_grammar_state *s)
{
    return s->n == 1 && !s->v[0].n;
}

struct cli_byte_set cli_grammar_next(const struct cli_grammar_state *s)
{
    struct cli_byte_set all = {{0}};
    for (size_t i = 0; i < s->n; i++)
        for (int k = 0; s->v[i].n && k < 4; k++)
            all.bits[k] |= s->g->sets[s->g->symbols[s->v[i].at[s->v[i].n - 1]] & ~(uint32_t)KIND].bits[k];
    return all;
}
