/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_scarce.c: shares where memory limits them, first for nodes that could be given any fraction.
 *
 * If phase p is to take t[p], node i can do cap[p][i] of it, and its memory bounds the sum over phases. That is a flow from nodes to phases, and
 * the least cut says when there is one: every set of phases must find enough on all nodes, counting for each node its time or its
 * memory, whichever is less. So whether times are possible is a formula, the least sum of times is looked for on a grid that is made finer, and
 * the flow that belongs to it is found by a few augmentations. Then phases are rounded to units one after the other, the coarsest
 * first, and those that are left are solved again with the memory that is left.
 */
#include "split_fill.h"

#include <math.h>
#include <stdlib.h>

#define PLACES 12       /* of the grid, in each direction */
#define ROUNDS 4        /* of making it finer */
#define WIDEST 1e3      /* times looked at are up to this times the least that is looked at */
#define BISECTIONS 24   /* of the last phase's time */
#define MOST_PATHS 1000 /* augmentations; each fills up a node or a phase */

/* All in bytes of memory. Phases before `first` are dealt out. */
struct flow {
    struct eng_fill *f;
    int first;
    double need[DL_PHASE_COUNT];
    double each[DL_PHASE_COUNT];  /* bytes of one head, column or row, with its part of a KV head */
    double least[DL_PHASE_COUNT]; /* a time below any that is possible */
    double *room;                 /* (n) */
    double *cap[DL_PHASE_COUNT], *x[DL_PHASE_COUNT];
};

static int flow_init(struct flow *w, struct eng_fill *f)
{
    const uint32_t n = f->n;
    *w = (struct flow){.f = f};
    w->room = dl_calloc((size_t)n * (1 + 2 * DL_PHASE_COUNT), sizeof(double));
    if (!w->room)
        return DL_ENOMEM;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        const struct eng_fill_phase *ph = &f->phase[p];
        w->cap[p] = w->room + (size_t)n * (size_t)(1 + p);
        w->x[p] = w->room + (size_t)n * (size_t)(1 + DL_PHASE_COUNT + p);
        w->each[p] = ph->mem_bytes + (ph->group ? ph->mem_kv / ph->group : 0);
        w->need[p] = w->each[p] * ph->amount;
        for (uint32_t i = 0; i < n; i++)
            w->room[i] -= ph->mem_fixed;
    }
    for (uint32_t i = 0; i < n; i++)
        w->room[i] = DL_MAX(0.0, w->room[i] + f->memory[i]);
    return DL_OK;
}

/* Bytes of the phase that node i has done after ns. */
static double done_within(const struct flow *w, int p, uint32_t i, double ns)
{
    const struct eng_fill *f = w->f;
    const struct eng_fill_phase *ph = &f->phase[p];
    double read = ph->read_bytes + (ph->group ? ph->read_kv / ph->group : 0);
    double left = ns - f->fixed_ns[p][i];
    return left > 0 ? left * 1e-9 * f->bytes_per_s[i] / read * w->each[p] : 0;
}

static void set_time(struct flow *w, int p, double ns)
{
    for (uint32_t i = 0; i < w->f->n; i++)
        w->cap[p][i] = done_within(w, p, i, ns);
}

/* Are the times that cap[] was made of possible? */
static bool possible(const struct flow *w)
{
    for (int set = 1; set < 1 << DL_PHASE_COUNT; set++) {
        double need = 0, can = 0;
        if (set & ((1 << w->first) - 1))
            continue;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            need += set >> p & 1 ? w->need[p] : 0;
        for (uint32_t i = 0; i < w->f->n; i++) {
            double time = 0;
            for (int p = 0; p < DL_PHASE_COUNT; p++)
                time += set >> p & 1 ? w->cap[p][i] : 0;
            can += DL_MIN(time, w->room[i]);
        }
        if (can < need)
            return false;
    }
    return true;
}

/* The least sum of the times of phases p and later; best[] gets them. INFINITY: there are none. */
static double least_times(struct flow *w, int p, double *best)
{
    for (int q = p; q < DL_PHASE_COUNT; q++)
        set_time(w, q, w->least[q] * WIDEST);
    if (!possible(w))
        return INFINITY;
    double low = 0, high = log(WIDEST), sum = INFINITY; /* of the factor to the least time */
    if (p == DL_PHASE_COUNT - 1) {
        for (int i = 0; i < BISECTIONS; i++) {
            double mid = (low + high) / 2;
            set_time(w, p, w->least[p] * exp(mid));
            if (possible(w))
                high = mid;
            else
                low = mid;
        }
        best[p] = w->least[p] * exp(high);
        return best[p];
    }
    for (int round = 0; round < ROUNDS; round++) {
        double step = (high - low) / PLACES;
        for (int i = 0; i <= PLACES; i++) {
            double t[DL_PHASE_COUNT], here = w->least[p] * exp(low + step * i);
            set_time(w, p, here);
            double all = here + least_times(w, p + 1, t);
            if (all < sum) {
                sum = all;
                best[p] = here;
                for (int q = p + 1; q < DL_PHASE_COUNT; q++)
                    best[q] = t[q];
            }
        }
        if (isinf(sum))
            return sum;
        double at = log(best[p] / w->least[p]);
        low = DL_MAX(0.0, at - step);
        high = at + step;
    }
    return sum;
}

/* ------------------------------------------------------------------------------------------------------- flow */

static double spare(const struct flow *w, uint32_t i)
{
    double used = 0;
    for (int p = w->first; p < DL_PHASE_COUNT; p++)
        used += w->x[p][i];
    return w->room[i] - used;
}

static double missing(const struct flow *w, int p)
{
    double done = 0;
    for (uint32_t i = 0; i < w->f->n; i++)
        done += w->x[p][i];
    return w->need[p] - done;
}

/* Node `node` does n more of phase p; what it gives up for that, if from[p] is a phase, is done elsewhere, and so on. */
struct path {
    int from[DL_PHASE_COUNT]; /* the phase given up for this one; -1: the node has room; -2: not reached */
    uint32_t node[DL_PHASE_COUNT];
};

/* Who can take more of phase p at once? n: none. */
static uint32_t has_room(const struct flow *w, int p, double eps)
{
    for (uint32_t i = 0; i < w->f->n; i++)
        if (w->cap[p][i] - w->x[p][i] > eps && spare(w, i) > eps)
            return i;
    return w->f->n;
}

/* From the phase that lacks something to one that somebody has room for. */
static int search(const struct flow *w, int start, struct path *path, double eps)
{
    int queue[DL_PHASE_COUNT], n = 0;
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        path->from[p] = -2;
    path->from[start] = -1;
    queue[n++] = start;
    for (int at = 0; at < n; at++) {
        const int p = queue[at];
        if (has_room(w, p, eps) < w->f->n)
            return p;
        for (int q = w->first; q < DL_PHASE_COUNT; q++)
            for (uint32_t j = 0; path->from[q] == -2 && j < w->f->n; j++)
                if (w->cap[p][j] - w->x[p][j] > eps && w->x[q][j] > eps) {
                    path->from[q] = p;
                    path->node[q] = j;
                    queue[n++] = q;
                }
    }
    return -1;
}

/* Along the path: phase `end` is done more by who has room, node[end] does that much less of it and more of from[end], ... */
static void augment(struct flow *w, const struct path *path, int start, int end, double eps)
{
    const uint32_t last = has_room(w, end, eps);
    double n = DL_MIN(missing(w, start), DL_MIN(spare(w, last), w->cap[end][last] - w->x[end][last]));
    for (int q = end; q != start; q = path->from[q]) {
        const uint32_t j = path->node[q];
        const int p = path->from[q];
        n = DL_MIN(n, DL_MIN(w->x[q][j], w->cap[p][j] - w->x[p][j]));
    }
    w->x[end][last] += n;
    for (int q = end; q != start; q = path->from[q]) {
        w->x[q][path->node[q]] -= n;
        w->x[path->from[q]][path->node[q]] += n;
    }
}

static void find_flow(struct flow *w)
{
    for (int p = w->first; p < DL_PHASE_COUNT; p++)
        for (uint32_t i = 0; i < w->f->n; i++)
            w->x[p][i] = 0;
    for (int p = w->first; p < DL_PHASE_COUNT; p++) {
        const double eps = w->need[p] * 1e-9;
        struct path path;
        int end;
        for (int i = 0; i < MOST_PATHS && missing(w, p) > eps && (end = search(w, p, &path, eps)) >= 0; i++)
            augment(w, &path, p, end, eps);
    }
}

/* ------------------------------------------------------------------------------------------------------ units */

/* Whole units of phase `p`: at least those that the flow fills, and the rest where it is done soonest, if that has the memory. */
static void round_phase(struct flow *w, int p)
{
    struct eng_fill *f = w->f;
    const struct eng_fill_phase *ph = &f->phase[p];
    const double unit = ph->unit * w->each[p];
    uint64_t sum = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        f->units[p][i] = (uint32_t)(w->x[p][i] / unit + 1e-6);
        sum += f->units[p][i];
    }
    for (; sum < ph->n_units; sum++) {
        uint32_t to = 0;
        double best = INFINITY, most = -INFINITY;
        for (uint32_t i = 0; i < f->n; i++) {
            double left = w->room[i] - (f->units[p][i] + 1) * unit;
            double ns = eng_fill_ns(f, p, i, f->units[p][i] + 1);
            if (left < 0 ? isinf(best) && left > most : ns < best) {
                to = i;
                best = left < 0 ? INFINITY : ns;
                most = left < 0 ? left : INFINITY;
            }
        }
        f->units[p][to]++;
    }
    for (uint32_t i = 0; i < f->n; i++)
        w->room[i] = DL_MAX(0.0, w->room[i] - f->units[p][i] * unit);
}

bool eng_fill_scarce(struct eng_fill *f)
{
    struct flow w;
    if (flow_init(&w, f))
        return false;
    bool fits = true;
    for (int p = 0; p < DL_PHASE_COUNT; p++) /* f->units are those for memory enough */
        for (uint32_t i = 0; i < f->n; i++)
            w.least[p] = DL_MAX(w.least[p], eng_fill_ns(f, p, i, f->units[p][i]) * 0.25);
    for (; fits && w.first < DL_PHASE_COUNT; w.first++) {
        double t[DL_PHASE_COUNT] = {INFINITY, INFINITY, INFINITY};
        /* Rounding may leave too little for the phases after it: then as well as it goes. */
        fits = isfinite(least_times(&w, w.first, t)) || w.first;
        for (int p = w.first; fits && p < DL_PHASE_COUNT; p++)
            set_time(&w, p, t[p] * (1 + 1e-6));
        if (!fits)
            break;
        find_flow(&w);
        round_phase(&w, w.first);
    }
    free(w.room);
    return fits;
}
