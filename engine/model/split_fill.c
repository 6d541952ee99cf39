/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_fill.c: see split_fill.h.
 *
 * Where memory is ample, phases do not touch each other: water filling in whole units finds the least time of each exactly, because costs only
 * grow with units. Where it is not, a node's memory is shared by its phases: split_scarce.c finds what would be best if units could be
 * cut, and rounds; then a local search moves units, or trades units of two phases, until nobody is over his memory and nothing gets
 * faster.
 */
#include "split_fill.h"

#include <math.h>
#include <stdlib.h>

#define MOST_ROUNDS 1000u
#define MOST_TRIED 3u /* of nodes that are equally slow: what helps one helps the others, in later rounds */
#define BALANCE 1e-3  /* weight of being even, against the time of the slowest: says where to go on a plateau */

int eng_fill_init(struct eng_fill *f, uint32_t n)
{
    *f = (struct eng_fill){.n = n};
    f->bytes_per_s = dl_calloc(n, sizeof(double));
    f->memory = dl_calloc(n, sizeof(double));
    bool ok = f->bytes_per_s && f->memory;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        f->fixed_ns[p] = dl_calloc(n, sizeof(double));
        f->units[p] = dl_calloc(n, sizeof(uint32_t));
        ok = ok && f->fixed_ns[p] && f->units[p];
    }
    if (!ok)
        eng_fill_finish(f);
    return ok ? DL_OK : DL_ENOMEM;
}

void eng_fill_finish(struct eng_fill *f)
{
    free(f->bytes_per_s);
    free(f->memory);
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        free(f->fixed_ns[p]);
        free(f->units[p]);
    }
    *f = (struct eng_fill){0};
}

/* ------------------------------------------------------------------------------------------------------ costs */

static double amount_of(const struct eng_fill_phase *ph, uint32_t units)
{
    return (double)DL_MIN((uint64_t)units * ph->unit, ph->amount);
}

double eng_fill_ns(const struct eng_fill *f, int phase, uint32_t node, uint32_t units)
{
    const struct eng_fill_phase *ph = &f->phase[phase];
    if (!units)
        return 0;
    double amount = amount_of(ph, units), kv = ph->group ? ceil(amount / ph->group) : 0;
    return f->fixed_ns[phase][node] + (amount * ph->read_bytes + kv * ph->read_kv) / f->bytes_per_s[node] * 1e9;
}

/* KV heads of `amount` heads behind the first `before`: one for each group that they touch. */
static double kv_heads(const struct eng_fill_phase *ph, uint64_t before, double amount)
{
    if (!ph->group || !(amount > 0))
        return 0;
    double first = (double)(before / ph->group), last = floor(((double)before + amount - 1) / ph->group);
    return last - first + 1;
}

static uint64_t units_before(const struct eng_fill *f, int phase, uint32_t node)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < node; i++)
        n += f->units[phase][i];
    return n * f->phase[phase].unit;
}

static double phase_memory(const struct eng_fill_phase *ph, uint64_t before, uint32_t units)
{
    if (!units)
        return 0;
    double amount = amount_of(ph, units);
    return ph->mem_fixed + amount * ph->mem_bytes + kv_heads(ph, before, amount) * ph->mem_kv;
}

double eng_fill_memory(const struct eng_fill *f, uint32_t node)
{
    double n = 0;
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        n += phase_memory(&f->phase[p], units_before(f, p, node), f->units[p][node]);
    return n;
}

static double slowest(const struct eng_fill *f, int phase)
{
    double most = 0;
    for (uint32_t i = 0; i < f->n; i++)
        most = DL_MAX(most, eng_fill_ns(f, phase, i, f->units[phase][i]));
    return most;
}

double eng_fill_total_ns(const struct eng_fill *f)
{
    double sum = 0;
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        sum += slowest(f, p);
    return sum;
}

/* ---------------------------------------------------------------------------------------------- water filling */

/* The most units, up to `most`, that a node finishes within ns. */
static uint32_t units_within(const struct eng_fill *f, int phase, uint32_t node, double ns, uint32_t most)
{
    uint32_t low = 0, high = most; /* the answer is in [low, high] */
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        if (eng_fill_ns(f, phase, node, mid) <= ns)
            low = mid;
        else
            high = mid - 1;
    }
    return low;
}

static uint64_t fill_to(struct eng_fill *f, int phase, double ns, const uint32_t *cap)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        f->units[phase][i] = units_within(f, phase, i, ns, cap[i]);
        sum += f->units[phase][i];
    }
    return sum;
}

/* The least level at which all units are taken up; then back what is too much, from where it saves most. */
static void fill_phase(struct eng_fill *f, int phase, const uint32_t *cap)
{
    const uint32_t need = f->phase[phase].n_units;
    double low = 0, high = 0;
    for (uint32_t i = 0; i < f->n; i++)
        high = DL_MAX(high, eng_fill_ns(f, phase, i, DL_MIN(cap[i], need)));
    for (int round = 0; round < 64 && high - low > high * 1e-12; round++) {
        double mid = (low + high) / 2;
        if (fill_to(f, phase, mid, cap) >= need)
            high = mid;
        else
            low = mid;
    }
    for (uint64_t sum = fill_to(f, phase, high, cap); sum > need; sum--) {
        uint32_t from = 0;
        double most = -1;
        for (uint32_t i = 0; i < f->n; i++) {
            double ns = eng_fill_ns(f, phase, i, f->units[phase][i]);
            if (f->units[phase][i] && ns >= most * (1 - 1e-9)) {
                from = i;
                most = DL_MAX(most, ns);
            }
        }
        f->units[phase][from]--;
    }
}

/* ---------------------------------------------------------------------------------------------- scarce memory */

static double excess(const struct eng_fill *f)
{
    uint64_t before[DL_PHASE_COUNT] = {0};
    double sum = 0;
    for (uint32_t i = 0; i < f->n; i++) {
        double n = 0;
        for (int p = 0; p < DL_PHASE_COUNT; p++) {
            n += phase_memory(&f->phase[p], before[p], f->units[p][i]);
            before[p] += (uint64_t)f->units[p][i] * f->phase[p].unit;
        }
        sum += DL_MAX(0.0, n - f->memory[i]);
    }
    return sum;
}

/* ------------------------------------------------------------------------------------------------ local search */

/* How good a distribution is, less being better: first nobody is to be over his memory, then it is to be fast, then even. */
struct score {
    double over, ns;
};

static struct score rate(const struct eng_fill *f)
{
    struct score s = {.over = excess(f)};
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        double most = 0, squares = 0;
        for (uint32_t i = 0; i < f->n; i++) {
            double ns = eng_fill_ns(f, p, i, f->units[p][i]);
            most = DL_MAX(most, ns);
            squares += ns * ns;
        }
        s.ns += most + (most > 0 ? BALANCE * squares / most : 0);
    }
    return s;
}

static bool better(struct score a, struct score b)
{
    if (a.over < b.over * (1 - 1e-9) - 1)
        return true;
    return a.over <= b.over && a.ns < b.ns * (1 - 1e-9);
}

/* Of two that are better than `now`: while someone is over his memory, the one that mends most of it for the time it costs. */
static bool prefer(struct score a, struct score b, struct score now)
{
    if (!(now.over > 0) || !better(b, now))
        return better(a, b);
    double cost_a = DL_MAX(0.0, a.ns - now.ns) + 1e-3 * now.ns, cost_b = DL_MAX(0.0, b.ns - now.ns) + 1e-3 * now.ns;
    return (now.over - a.over) / cost_a > (now.over - b.over) / cost_b * (1 + 1e-9);
}

struct move {
    int phase, back; /* back: the phase of the units that are given in return; < 0: none */
    uint32_t from, to, n, n_back;
};

static void apply(struct eng_fill *f, const struct move *m, bool undo)
{
    uint32_t from = undo ? m->to : m->from, to = undo ? m->from : m->to;
    f->units[m->phase][from] -= m->n;
    f->units[m->phase][to] += m->n;
    if (m->back >= 0) {
        f->units[m->back][to] -= m->n_back;
        f->units[m->back][from] += m->n_back;
    }
}

/* The best move so far. */
struct choice {
    struct score now, score;
    struct move move;
};

static void try_move(struct eng_fill *f, const struct move *m, struct choice *best)
{
    if (m->back >= 0 && (!m->n_back || m->n_back > f->units[m->back][m->to]))
        return;
    apply(f, m, false);
    struct score s = rate(f);
    apply(f, m, true);
    if (better(s, best->now) && prefer(s, best->score, best->now)) {
        best->move = *m;
        best->score = s;
    }
}

/* Units of phase `back` that weigh as much as what the receiver is over after it got n of `phase`, and as much as those n. */
static void try_trades(struct eng_fill *f, struct move m, struct choice *best)
{
    apply(f, &m, false);
    double over = eng_fill_memory(f, m.to) - f->memory[m.to];
    apply(f, &m, true);
    if (!(over > 0))
        return;
    for (m.back = 0; m.back < DL_PHASE_COUNT; m.back++) {
        if (m.back == m.phase)
            continue;
        const struct eng_fill_phase *ph = &f->phase[m.back];
        double each = ph->unit * (ph->mem_bytes + (ph->group ? ph->mem_kv / ph->group : 0));
        double n = each > 0 ? ceil(over / each) : 0;
        if (n < 1 || n > f->units[m.back][m.to])
            continue;
        m.n_back = (uint32_t)n;
        try_move(f, &m, best);
    }
}

static void try_from(struct eng_fill *f, int phase, uint32_t from, struct choice *best)
{
    const uint32_t has = f->units[phase][from];
    for (uint32_t to = 0; to < f->n; to++)
        for (uint32_t n = 1; to != from && n <= has; n = n * 2 > has && n < has ? has : n * 2) {
            struct move m = {.phase = phase, .back = -1, .from = from, .to = to, .n = n};
            try_move(f, &m, best);
            try_trades(f, m, best);
        }
}

static uint32_t most_over(const struct eng_fill *f)
{
    uint32_t who = 0;
    double most = -INFINITY;
    for (uint32_t i = 0; i < f->n; i++) {
        double over = eng_fill_memory(f, i) - f->memory[i];
        if (over > most) {
            who = i;
            most = over;
        }
    }
    return who;
}

/* One step, from those whose having less would help: who is most over his memory, else the slowest of each phase. */
static bool improve(struct eng_fill *f)
{
    struct choice best = {.now = rate(f)};
    best.score = best.now;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        const double most = slowest(f, p);
        uint32_t tried = 0;
        if (best.now.over > 0)
            try_from(f, p, most_over(f), &best);
        for (uint32_t i = 0; !(best.now.over > 0) && i < f->n && tried < MOST_TRIED; i++)
            if (eng_fill_ns(f, p, i, f->units[p][i]) >= most * 0.98) {
                try_from(f, p, i, &best);
                tried++;
            }
    }
    if (!better(best.score, best.now))
        return false;
    apply(f, &best.move, false);
    return true;
}

/* ------------------------------------------------------------------------------------------------------ solve */

bool eng_fill_solve(struct eng_fill *f, bool thorough)
{
    uint32_t *cap = dl_calloc(f->n, sizeof *cap);
    if (!cap)
        return false;
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        for (uint32_t i = 0; i < f->n; i++)
            cap[i] = f->phase[p].n_units;
        fill_phase(f, p, cap);
    }
    free(cap);
    f->limited = excess(f) > 0;
    if (!f->limited)
        return true;
    if (!eng_fill_scarce(f))
        return false;
    for (uint32_t round = 0; thorough && round < MOST_ROUNDS && improve(f); round++)
        continue;
    return !thorough || excess(f) <= 0;
}
