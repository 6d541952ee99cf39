/* SPDX-License-Identifier: MIT
 *
 * engine/model/split.c: see dl/split.h. From a model and nodes (split_cost.c) to a problem for split_fill.c, and from its solution to
 * slices, their exact sizes, and the speed to be expected. split_text.c writes it down for people.
 */
#include "split_cost.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embed_row.h"

#define DEFAULT_CTX 8192u
#define SHORT_CTX 2048u     /* not less than this to be faster ... */
#define LEAST_CTX 512u      /* ... and not less than this to fit at all */
#define WORTH_SHORTER 1.1   /* gain in speed for which a context is halved */
#define RESERVE_MOST 0x1p30 /* of a node's memory a twentieth stays free, at most this */
#define WORTH_FINE 0.98     /* finer units, which kernels like less, are only taken where that saves as much */
#define WORTH_LEAVING 1.03  /* and a node is only called slow where doing without it gains as much */

/* ---------------------------------------------------------------------------------------------------- the search */

/* Free memory is never twice the same. Where it limits what a node gets, and that is to be the same every time, it is rounded down to
 * five binary digits. */
static double usable(uint64_t memory, bool coarse)
{
    if (!memory)
        return INFINITY;
    double n = (double)memory - DL_MIN((double)memory / 20, RESERVE_MOST);
    int exponent;
    (void)frexp(n, &exponent);
    return coarse ? floor(ldexp(n, 5 - exponent)) * ldexp(1, exponent - 5) : n;
}

/* The nodes whose places are set in `with`, as a problem for the search. */
static int make_problem(const struct eng_split_cost *c, const bool *with, uint32_t n, bool fine, struct eng_fill *f,
                        struct dl_slice_units *units)
{
    int err = dl_slice_units(c->in->h, dl_column_unit(c->in->h, c->in->types), n, fine, units);
    if (!err)
        err = eng_fill_init(f, n);
    if (err)
        return err;
    const uint32_t unit[] = {units->head, units->ffn, units->vocab};
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        f->phase[p] = c->phase[p];
        f->phase[p].unit = unit[p];
        f->phase[p].n_units = (uint32_t)dl_div_up(c->phase[p].amount, unit[p]);
    }
    for (uint32_t i = 0, at = 0; i < c->in->n_nodes; i++) {
        if (with && !with[i])
            continue;
        f->bytes_per_s[at] = c->nodes[i].bytes_per_s;
        f->memory[at] = usable(c->nodes[i].memory, c->coarse) - c->act_base;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            f->fixed_ns[p][at] = eng_split_fixed_ns(c, &c->nodes[i], (enum dl_phase)p, n);
        at++;
    }
    return DL_OK;
}

/* The time of a token, exchanges included. */
static double total_ns(const struct eng_split_cost *c, const bool *with, const struct eng_fill *f)
{
    struct eng_halves halves = {0};
    struct eng_exchange x;
    for (uint32_t i = 0, at = 0; i < c->in->n_nodes; i++) {
        if (with && !with[i])
            continue;
        eng_halves_add(c, i, f->units[DL_PHASE_ATTN][at] * f->phase[DL_PHASE_ATTN].unit,
                       f->units[DL_PHASE_FFN][at] * f->phase[DL_PHASE_FFN].unit, &halves);
        at++;
    }
    eng_split_exchange(c, f->n, &halves, &x);
    return eng_fill_total_ns(f) + x.taken;
}

/* The best distribution over these nodes; *ns: the time of a token, exchanges included, INFINITY where it does not fit. Units are
 * finer where that saves enough. f and units may be NULL. */
static int search(const struct eng_split_cost *c, const bool *with, uint32_t n, bool thorough, struct eng_fill *f,
                  struct dl_slice_units *units, double *ns)
{
    struct eng_fill best = {0};
    struct dl_slice_units best_units = {0};
    double best_ns = INFINITY;
    int err = DL_OK;
    for (int fine = 0; !err && fine < (n > 1 ? 2 : 1); fine++) {
        struct eng_fill one = {0};
        struct dl_slice_units u;
        err = make_problem(c, with, n, fine, &one, &u);
        if (!err && fine && u.head == best_units.head && u.ffn == best_units.ffn) {
            eng_fill_finish(&one);
            break;
        }
        double t = !err && eng_fill_solve(&one, thorough) ? eng_fill_total_ns(&one) : INFINITY;
        if (!err && (!best.n || t < best_ns * (isfinite(best_ns) ? WORTH_FINE : 1))) {
            eng_fill_finish(&best);
            best = one;
            best_units = u;
            best_ns = t;
        } else {
            eng_fill_finish(&one);
        }
    }
    *ns = err || isinf(best_ns) ? INFINITY : total_ns(c, with, &best);
    if (f && !err) {
        *f = best;
        *units = best_units;
    } else {
        eng_fill_finish(&best);
    }
    return err;
}

/* The slowest of the nodes in `with`, or the one whose small ops cost most; 0: there is none but the root. Of equals the last. */
static uint32_t least_useful(const struct eng_split_cost *c, const bool *with, bool by_ops)
{
    uint32_t worst = 0;
    double most = -1;
    for (uint32_t i = 1; i < c->in->n_nodes; i++) {
        double bad = by_ops ? eng_split_fixed_ns(c, &c->nodes[i], DL_PHASE_ATTN, 2) : 1 / c->nodes[i].bytes_per_s;
        if (with[i] && bad >= most) {
            worst = i;
            most = bad;
        }
    }
    return worst;
}

/* Which of the n nodes in `with` is best left out; 0: none can be. */
static int worst_of(const struct eng_split_cost *c, bool *with, uint32_t n, uint32_t *worst, double *without)
{
    int err = DL_OK;
    *worst = 0;
    *without = INFINITY;
    for (int by_ops = 0; !err && by_ops < 2; by_ops++) {
        uint32_t i = least_useful(c, with, by_ops);
        double ns;
        with[i] = false;
        err = search(c, with, n - 1, false, NULL, NULL, &ns);
        with[i] = true;
        if (isfinite(ns) && ns < *without) {
            *worst = i;
            *without = ns;
        }
    }
    return err;
}

/* Leaves out node after node, down to the root alone, and remembers when it was fastest: often one less is slower, but none is not. */
static int find_slow(const struct eng_split_cost *c, struct dl_split *s)
{
    const uint32_t all = c->in->n_nodes;
    bool *with = dl_calloc(all, 2 * sizeof *with), *best = with + all;
    int err = with ? DL_OK : DL_ENOMEM;
    double best_ns = INFINITY, ns;
    uint32_t n_best = all;
    for (uint32_t i = 0; !err && i < all; i++)
        with[i] = best[i] = true;
    for (uint32_t n = all; !err && n > 1; n--) {
        uint32_t worst;
        err = worst_of(c, with, n, &worst, &ns);
        if (!worst)
            break;
        with[worst] = false;
        if (!err && ns < best_ns) {
            best_ns = ns;
            n_best = n - 1;
            memcpy(best, with, all * sizeof *best);
        }
    }
    double all_ns = INFINITY;
    if (!err)
        err = search(c, NULL, all, true, NULL, NULL, &all_ns);
    if (!err && n_best < all && best_ns * WORTH_LEAVING < all_ns)
        err = search(c, best, n_best, true, NULL, NULL, &best_ns);
    if (!err && n_best < all && best_ns * WORTH_LEAVING < all_ns) {
        for (uint32_t i = 0; i < all; i++)
            s->parts[i].slows = !best[i];
        s->n_slow = all - n_best;
        s->tok_s_without = 1e9 / best_ns;
    }
    free(with);
    return err;
}

/* ------------------------------------------------------------------------------------------------------ results */

/* "12.3 GiB", "0.5 MiB" */
static const char *size_text(char text[24], double bytes)
{
    bool large = bytes >= 0.1 * 0x1p30;
    snprintf(text, 24, "%.1f %s", bytes / (large ? 0x1p30 : 0x1p20), large ? "GiB" : "MiB");
    return text;
}

/* "root 7.5 GiB, nas 12.0 GiB"; with shares "root 3.1 GiB of 7.5 GiB, ..." */
static void per_node(const struct eng_split_cost *c, const struct dl_split *s, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < c->in->n_nodes && at < cap; i++) {
        const struct dl_split_part *p = &s->parts[i];
        char need[24], has[24];
        if (i == 8 && c->in->n_nodes > 9) {
            snprintf(out + at, cap - at, " and %u more", c->in->n_nodes - i);
            break;
        }
        size_text(need, (double)p->weight_bytes + (double)p->kv_bytes + (double)p->act_bytes);
        size_text(has, (double)c->in->nodes[i].memory);
        int n = snprintf(out + at, cap - at, "%s%.60s %s%s%s", i ? ", " : "", c->in->nodes[i].name,
                         c->in->shares ? need : "", c->in->shares ? " of " : "", has);
        at += n > 0 ? (size_t)n : 0;
    }
}

/* A node that has no room even for what every node has. */
static const struct dl_split_node *too_small(const struct eng_split_cost *c)
{
    for (uint32_t i = 0; i < c->in->n_nodes; i++)
        if (usable(c->in->nodes[i].memory, false) < c->act_base)
            return &c->in->nodes[i];
    return NULL;
}

static int refuse(const struct eng_split_cost *c, const struct dl_split *s, uint32_t ctx)
{
    char nodes[768], all[24], w[24], k[24], a[24], free_text[24];
    double weights = 0, kv = 0, act = c->act_base * c->in->n_nodes, have = 0;
    const struct dl_split_node *small = too_small(c);
    const bool missing = c->in->missing && *c->in->missing;
    per_node(c, s, nodes, sizeof nodes);
    if (c->in->shares)
        return dl_fail(DL_ELIMIT,
                       "memory: %s does not fit in these shares with a context of %u: needed of what is free: %s: use "
                       "other shares or --split auto, a smaller --ctx or --batch, or --kv q80",
                       c->in->model, ctx, nodes);
    if (small && c->in->small && small != c->in->nodes) {
        *c->in->small = (uint32_t)(small - c->in->nodes);
        return DL_ELIMIT;
    }
    if (small)
        return dl_fail(DL_ELIMIT,
                       "memory: %s has %s free, of which a twentieth stays so; a node needs %s for activations alone: "
                       "leave it out, or use a smaller --batch",
                       small->name, size_text(free_text, (double)small->memory), size_text(a, c->act_base));
    for (uint32_t i = 0; i < c->in->n_nodes; i++)
        have += (double)c->in->nodes[i].memory;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        const struct eng_fill_phase *ph = &c->phase[p];
        double cache = ph->group ? eng_bytes_per_value(c->opts.kv_type) * c->in->h->head_dim * 2 * c->in->h->n_layers *
                                       c->opts.kv_blocks * DL_KV_BLOCK
                                 : 0;
        double heads = ph->group ? (double)ph->amount / ph->group : 0;
        weights += ph->mem_bytes * ph->amount + (ph->mem_kv - cache) * heads;
        kv += cache * heads;
    }
    double each = usable((uint64_t)(have / c->in->n_nodes), false) - c->act_base; /* > 0: none is too small */
    return dl_fail(
        DL_ELIMIT,
        "memory: %s needs %s (weights %s, KV cache %s for a context of %u, activations %s)%s%s; free, of which a "
        "twentieth stays so: %s (%s): %ssome %.0f nodes like these would do, or a smaller --ctx or --batch, or "
        "--kv q80",
        c->in->model, size_text(all, weights + kv + act), size_text(w, weights), size_text(k, kv), ctx,
        size_text(a, act), missing ? "; " : "", missing ? c->in->missing : "", size_text(free_text, have), nodes,
        missing ? "start who is missing, or " : "", ceil((weights + kv) / each) + 1);
}

/* Sizes and times of the slices that are in s->parts. */
static int describe(const struct eng_split_cost *c, struct dl_split *s, bool *fits)
{
    const struct dl_split_input *in = c->in;
    struct dl_slice *slices = dl_calloc(in->n_nodes, sizeof *slices);
    int err = slices ? DL_OK : DL_ENOMEM;
    struct eng_halves halves = {0};
    double read = 0;
    for (uint32_t i = 0; !err && i < in->n_nodes; i++)
        slices[i] = s->parts[i].slice;
    *fits = true;
    for (uint32_t i = 0; !err && i < in->n_nodes; i++) {
        struct dl_split_part *p = &s->parts[i];
        const struct dl_slice *sl = &p->slice;
        err = eng_split_sizes(in->h, in->types, slices, i, in->n_nodes, &c->opts, p);
        p->memory = in->nodes[i].memory;
        if (p->memory && p->weight_bytes + p->kv_bytes + p->act_bytes > p->memory)
            *fits = false;
        const uint32_t amount[] = {sl->n_heads, sl->n_ffn, sl->n_vocab};
        for (int ph = 0; ph < DL_PHASE_COUNT; ph++) {
            uint32_t kv = ph == DL_PHASE_ATTN ? sl->n_kv_heads : 0;
            p->ns[ph] = eng_split_phase_ns(c, i, (enum dl_phase)ph, amount[ph], kv);
            s->compute_ns[ph] = DL_MAX(s->compute_ns[ph], p->ns[ph]);
            p->share += amount[ph] * c->phase[ph].read_bytes + kv * c->phase[ph].read_kv;
        }
        read += p->share;
        eng_halves_add(c, i, sl->n_heads, sl->n_ffn, &halves);
        uint64_t row = i || in->n_nodes == 1
                           ? 0
                           : (in->n_nodes - 1) * eng_embed_bytes(eng_embed_of(in->wire, in->h->dim), in->h->dim);
        p->sent_one_shot = 2 * in->h->n_layers * eng_coll_bytes(ENG_COLL_ONE_SHOT, in->n_nodes, c->sum_bytes) + row;
        p->sent_rs = 2 * in->h->n_layers * eng_coll_bytes(ENG_COLL_RS, in->n_nodes, c->sum_bytes) + row;
    }
    for (uint32_t i = 0; i < in->n_nodes; i++)
        s->parts[i].share /= read > 0 ? read : 1;
    free(slices);
    struct eng_exchange x;
    eng_split_exchange(c, in->n_nodes, &halves, &x);
    s->one_shot_ns = x.one_shot;
    s->halves_ns = x.halves;
    s->rs_ns = x.rs;
    s->exchange_ns = x.taken;
    s->collective = x.collective;
    s->tok_s = 1e9 / (s->compute_ns[DL_PHASE_ATTN] + s->compute_ns[DL_PHASE_FFN] + s->compute_ns[DL_PHASE_VOCAB] +
                      s->exchange_ns);
    s->prefill_tok_s = err ? 0 : eng_split_prefill(c, s);
    return err;
}

/* Slices for this context, described; *fits false: it was not to be. */
static int attempt(struct eng_split_cost *c, uint32_t ctx, struct dl_split *s, bool *fits)
{
    const struct dl_split_input *in = c->in;
    struct dl_slice *slices = dl_calloc(in->n_nodes, sizeof *slices);
    int err = slices ? eng_split_cost(c, ctx) : DL_ENOMEM;
    *fits = true;
    if (!err && in->shares) {
        err = dl_slices_make(in->h, dl_column_unit(in->h, in->types), in->shares, in->n_nodes, slices);
    } else if (!err) {
        struct eng_fill f = {0};
        struct dl_slice_units units;
        double ns;
        err = search(c, NULL, in->n_nodes, true, &f, &units, &ns);
        *fits = isfinite(ns);
        c->limited = f.limited;
        if (!err)
            dl_slices_cut(in->h, &units, f.units[DL_PHASE_ATTN], f.units[DL_PHASE_FFN], f.units[DL_PHASE_VOCAB],
                          in->n_nodes, slices);
        eng_fill_finish(&f);
    }
    for (uint32_t i = 0; !err && i < in->n_nodes; i++)
        s->parts[i] = (struct dl_split_part){.slice = slices[i]};
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        s->compute_ns[p] = 0;
    s->ctx = ctx;
    s->at_pos = DL_MIN(ctx, ENG_PREDICT_POS);
    bool really = true;
    if (!err)
        err = describe(c, s, &really);
    *fits = *fits && really;
    free(slices);
    return err;
}

static int check_input(const struct dl_split_input *in)
{
    if (!in->n_nodes)
        return dl_fail(DL_EINVAL, "plan: needs at least one node");
    for (uint32_t i = 0; i < in->n_nodes; i++) {
        const struct dl_split_node *d = &in->nodes[i];
        if (!(d->bytes_per_s > 0) || !isfinite(d->bytes_per_s) || !(d->op_ns >= 0) || !isfinite(d->op_ns) ||
            !(d->submit_ns >= 0) || !isfinite(d->submit_ns) || !(d->flops >= 0) || !isfinite(d->flops))
            return dl_fail(DL_EINVAL, "plan: %s: its speed is no sensible number", d->name);
    }
    if (!(in->link.latency_ns >= 0) || !isfinite(in->link.latency_ns) || !isfinite(in->link.bytes_per_s))
        return dl_fail(DL_EINVAL, "plan: the speed of the network is no sensible number");
    return DL_OK;
}

/* Where what a node gets is limited by its memory, first with the rounded figures. */
static int attempt_ctx(struct eng_split_cost *c, uint32_t ctx, struct dl_split *s, bool *fits)
{
    c->coarse = c->in->alike > 0;
    int err = attempt(c, ctx, s, fits);
    if (err || *fits || !c->coarse)
        return err;
    c->coarse = false;
    return attempt(c, ctx, s, fits);
}

/* The longest context that fits; a shorter one where memory is so scarce that its cache drives weights to slower nodes. */
static int pick_ctx(struct eng_split_cost *c, struct dl_split *s, bool *fits)
{
    uint32_t ctx = DL_MIN(c->in->h->max_seq, DEFAULT_CTX);
    if (c->in->kv_tokens)
        ctx = DL_MIN(ctx, c->in->kv_tokens);
    double before = 0;
    for (;; ctx /= 2) {
        int err = attempt_ctx(c, ctx, s, fits);
        if (!err && *fits && s->tok_s < before * WORTH_SHORTER) { /* not worth it: the one before */
            ctx *= 2;
            return attempt_ctx(c, ctx, s, fits);
        }
        bool shorter = *fits ? c->limited && ctx / 2 >= SHORT_CTX : ctx / 2 >= LEAST_CTX;
        if (err || !shorter)
            return err;
        before = *fits ? s->tok_s : 0;
    }
}

int dl_split_make(const struct dl_split_input *in, struct dl_split *out)
{
    *out = (struct dl_split){.n_nodes = in->n_nodes};
    int err = check_input(in);
    if (err)
        return err;
    struct eng_split_cost c = {.in = in};
    out->parts = dl_calloc(in->n_nodes, sizeof *out->parts);
    err = out->parts ? eng_split_even(&c) : DL_ENOMEM;
    bool fits = false;
    if (!err)
        err = in->ctx ? attempt_ctx(&c, in->ctx, out, &fits) : pick_ctx(&c, out, &fits);
    if (!err && !fits)
        err = refuse(&c, out, out->ctx);
    if (!err && in->n_nodes > 1)
        err = find_slow(&c, out);
    free(c.nodes);
    if (err)
        dl_split_finish(out);
    return err;
}

void dl_split_finish(struct dl_split *s)
{
    free(s->parts);
    *s = (struct dl_split){0};
}
