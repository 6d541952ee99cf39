/* SPDX-License-Identifier: MIT
 *
 * tests/test_split_fill.c: what the search for shares finds, against every possible distribution where there are few, and against what no
 * distribution can beat where there are many: nodes that may be given any fraction.
 */
#include "common.h"
#include "split_fill.h"

#include <math.h>

static double draw(uint64_t *rng, double low, double high)
{
    return low + (high - low) * ((double)test_randf(rng) + 1) / 2;
}

/* Speeds of 5 to 400 GB/s, and fixed costs of next to nothing up to `most`, which on some is more than all the rest. */
static void make_nodes(struct eng_fill *f, uint32_t n, double most, uint64_t *rng)
{
    assert_int_equal(eng_fill_init(f, n), 0);
    for (uint32_t i = 0; i < n; i++) {
        f->bytes_per_s[i] = 5e9 * pow(80, draw(rng, 0, 1));
        f->memory[i] = INFINITY;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            f->fixed_ns[p][i] = draw(rng, 0, 1) < 0.5 ? draw(rng, 0, 1e5) : draw(rng, 0, most);
    }
}

static struct eng_fill_phase make_phase(uint32_t amount, uint32_t unit, double bytes)
{
    return (struct eng_fill_phase){.amount = amount,
                                   .unit = unit,
                                   .n_units = (uint32_t)dl_div_up(amount, unit),
                                   .read_bytes = bytes,
                                   .mem_bytes = bytes};
}

static bool fits(const struct eng_fill *f)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (eng_fill_memory(f, i) > f->memory[i])
            return false;
    return true;
}

static void all_dealt(const struct eng_fill *f)
{
    for (int p = 0; p < DL_PHASE_COUNT; p++) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < f->n; i++)
            sum += f->units[p][i];
        assert_int_equal(sum, f->phase[p].n_units);
    }
}

/* --------------------------------------------------------------------------------------------------- everything */

/* All ways to deal out the units of `phase` and of those after it, from `node` on; the least total. */
static void deal_all(struct eng_fill *f, int phase, uint32_t node, uint32_t left, double *best)
{
    if (phase == DL_PHASE_COUNT) {
        if (fits(f))
            *best = DL_MIN(*best, eng_fill_total_ns(f));
        return;
    }
    if (node + 1 == f->n) {
        f->units[phase][node] = left;
        uint32_t next = phase + 1 < DL_PHASE_COUNT ? f->phase[phase + 1].n_units : 0;
        deal_all(f, phase + 1, 0, next, best);
        return;
    }
    for (uint32_t u = 0; u <= left; u++) {
        f->units[phase][node] = u;
        deal_all(f, phase, node + 1, left - u, best);
    }
}

static void make_small(struct eng_fill *f, double most, uint64_t *rng)
{
    make_nodes(f, 1 + (uint32_t)(test_rand(rng) % 3), most, rng);
    f->phase[0] = make_phase(8, test_rand(rng) % 2 ? 2 : 1, 4e6);
    f->phase[0].group = 2;
    f->phase[0].read_kv = 1e6;
    f->phase[0].mem_kv = 3e6;
    f->phase[1] = make_phase(100, 16, 8e5);
    f->phase[1].mem_fixed = 1e6;
    f->phase[2] = make_phase(30, 8, 6e5);
}

static void as_good_as_trying_everything(void **state)
{
    (void)state;
    uint64_t rng = 1;
    for (int round = 0; round < 300; round++) {
        struct eng_fill f;
        double best = INFINITY;
        make_small(&f, 2e7, &rng);
        deal_all(&f, 0, 0, f.phase[0].n_units, &best);
        assert_true(eng_fill_solve(&f, true));
        all_dealt(&f);
        assert_false(f.limited);
        double ns = eng_fill_total_ns(&f);
        if (!(ns <= best * (1 + 1e-9)))
            fail_msg("round %d, %u nodes: %g ns, possible are %g", round, f.n, ns, best);
        eng_fill_finish(&f);
    }
}

/* With memory that just suffices, or does not, and few units, so that hardly anything fits: what is found fits, and is mostly the best
 * there is. */
static void scarce_memory_as_good_as_trying_everything(void **state)
{
    (void)state;
    uint64_t rng = 2;
    unsigned possible = 0, found = 0, good = 0;
    double worst = 1;
    for (int round = 0; round < 300; round++) {
        struct eng_fill f;
        double best = INFINITY, all = 4e6 * 8 + 4 * 3e6 + 8e5 * 100 + 6e5 * 30;
        make_small(&f, 1e6, &rng);
        for (uint32_t i = 0; i < f.n; i++)
            f.memory[i] = all / f.n * draw(&rng, 0.7, 1.8);
        deal_all(&f, 0, 0, f.phase[0].n_units, &best);
        bool ok = eng_fill_solve(&f, true);
        assert_false(ok && !fits(&f));
        assert_false(ok && isinf(best));
        if (ok)
            all_dealt(&f);
        possible += isfinite(best) ? 1 : 0;
        found += ok;
        if (ok) {
            double ratio = eng_fill_total_ns(&f) / best;
            good += ratio <= 1.03;
            worst = DL_MAX(worst, ratio);
        }
        eng_fill_finish(&f);
    }
    printf("scarce memory: %u of 300 possible, %u found, %u within 3 %%, worst %.3f\n", possible, found, good, worst);
    assert_true(possible > 100 && possible < 300);
    assert_true(found * 100 >= possible * 95);
    assert_true(good * 100 >= found * 85);
    assert_true(worst < 1.5);
}

/* ----------------------------------------------------------------------------------------------- any fraction */

/* The most of the phase's bytes that node i can do within ns. */
static double within(const struct eng_fill *f, int p, uint32_t i, double ns)
{
    return DL_MAX(0.0, ns - f->fixed_ns[p][i]) * f->bytes_per_s[i] / 1e9;
}

static double bytes_of(const struct eng_fill *f, int p)
{
    return f->phase[p].amount * f->phase[p].read_bytes;
}

/* Fractions that take no longer than t[p] each exist if and only if every set of phases fits: the nodes that are to do them have the time
 * and the memory (maximum flow from nodes to phases is the least cut). Bytes read are bytes in memory here. */
static bool can_be(const struct eng_fill *f, const double *t)
{
    for (int set = 1; set < 1 << DL_PHASE_COUNT; set++) {
        double need = 0, can = 0;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            need += set >> p & 1 ? bytes_of(f, p) : 0;
        for (uint32_t i = 0; i < f->n; i++) {
            double time = 0;
            for (int p = 0; p < DL_PHASE_COUNT; p++)
                time += set >> p & 1 ? within(f, p, i, t[p]) : 0;
            can += DL_MIN(time, f->memory[i]);
        }
        if (can < need * (1 - 1e-12))
            return false;
    }
    return true;
}

/* The least sum of t[p .. 2], given those before: the last by bisection, the others by looking ever closer around the best of a
 * few places. What is found is never below the least there is by more than the last step. */
static double least_from(const struct eng_fill *f, double *t, int p, double most)
{
    double low = 0, high = most;
    t[p] = most;
    for (int q = p + 1; q < DL_PHASE_COUNT; q++)
        t[q] = most;
    if (!can_be(f, t))
        return INFINITY;
    if (p + 1 == DL_PHASE_COUNT) {
        for (int round = 0; round < 40; round++) {
            t[p] = (low + high) / 2;
            if (can_be(f, t))
                high = t[p];
            else
                low = t[p];
        }
        t[p] = high;
        return high;
    }
    double best = INFINITY;
    for (int round = 0; round < 9; round++) {
        enum { PLACES = 8 };
        double at = low, step = (high - low) / PLACES;
        for (int i = 0; i <= PLACES; i++) {
            t[p] = low + step * i;
            double sum = t[p] + least_from(f, t, p + 1, most);
            if (sum < best) {
                best = sum;
                at = low + step * i;
            }
        }
        low = DL_MAX(0.0, at - step);
        high = DL_MIN(most, at + step);
    }
    return best;
}

static void make_large(struct eng_fill *f, uint32_t n, double most, uint64_t *rng)
{
    make_nodes(f, n, most, rng);
    f->phase[0] = make_phase(2048, 1, 2e5); /* finer than any model's heads, so that fractions are nearly possible */
    f->phase[1] = make_phase(14336, 32, 1.4e5);
    f->phase[2] = make_phase(128256, 8, 2304);
}

static void ample_memory_within_3_percent_of_fractions(void **state)
{
    (void)state;
    uint64_t rng = 3;
    for (uint32_t n = 1; n <= 16; n++)
        for (int round = 0; round < 20; round++) {
            struct eng_fill f;
            make_large(&f, n, 2e7, &rng);
            double bound = 0;
            assert_true(eng_fill_solve(&f, true));
            all_dealt(&f);
            for (int p = 0; p < DL_PHASE_COUNT;
                 p++) { /* each alone: the sum of all nodes' bytes within t grows with t */
                double low = 0, high = 1e12;
                for (int i = 0; i < 80; i++) {
                    double mid = (low + high) / 2, sum = 0;
                    for (uint32_t k = 0; k < n; k++)
                        sum += within(&f, p, k, mid);
                    if (sum >= bytes_of(&f, p))
                        high = mid;
                    else
                        low = mid;
                }
                bound += high;
            }
            double ns = eng_fill_total_ns(&f);
            if (ns < bound * 0.999999 || ns > bound * 1.03)
                fail_msg("%u nodes, round %d: %g ms, by fractions %g", n, round, ns / 1e6, bound / 1e6);
            eng_fill_finish(&f);
        }
}

static void scarce_memory_within_3_percent_of_fractions(void **state)
{
    (void)state;
    uint64_t rng = 4;
    double worst = 1;
    unsigned limited = 0;
    for (uint32_t n = 2; n <= 16; n += n < 6 ? 1 : 5)
        for (int round = 0; round < 8; round++) {
            struct eng_fill f;
            double all = 0, room = 0, t[DL_PHASE_COUNT];
            make_large(&f, n, 1e6, &rng);
            for (int p = 0; p < DL_PHASE_COUNT; p++)
                all += bytes_of(&f, p);
            for (uint32_t i = 0; i < n; i++)
                room += f.memory[i] = draw(&rng, 0.2, 1);
            for (uint32_t i = 0; i < n; i++)
                f.memory[i] *= all * draw(&rng, 1.03, 1.06) / room;
            double bound = least_from(&f, t, 0, 1e11);
            assert_true(eng_fill_solve(&f, true));
            all_dealt(&f);
            assert_true(fits(&f));
            limited += f.limited;
            double ratio = eng_fill_total_ns(&f) / bound;
            worst = DL_MAX(worst, ratio);
            if (ratio > 1.03 || ratio < 0.97) /* the bound is found on a grid */
                fail_msg("%u nodes, round %d: %g ms, by fractions %g", n, round, eng_fill_total_ns(&f) / 1e6,
                         bound / 1e6);
            eng_fill_finish(&f);
        }
    printf("scarce memory: %u limited, worst %.3f of fractions\n", limited, worst);
    assert_true(limited > 30);
}

/* Equal nodes: the same for all, the first get what is left over; whoever costs more than he can do gets nothing. */
static void equal_nodes_and_useless_ones(void **state)
{
    (void)state;
    struct eng_fill f;
    uint64_t rng = 5;
    make_large(&f, 5, 0, &rng);
    f.phase[0] = make_phase(8, 1, 1e8);
    for (uint32_t i = 0; i < 5; i++) {
        f.bytes_per_s[i] = 2e10;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            f.fixed_ns[p][i] = i == 3 ? 1e10 : 1e5;
    }
    assert_true(eng_fill_solve(&f, true));
    assert_int_equal(f.units[0][0], 2);
    assert_int_equal(f.units[0][4], 2);
    assert_int_equal(f.units[1][0], 112);
    assert_int_equal(f.units[1][4], 112);
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        assert_int_equal(f.units[p][3], 0);
    eng_fill_finish(&f);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_good_as_trying_everything),
        cmocka_unit_test(scarce_memory_as_good_as_trying_everything),
        cmocka_unit_test(ample_memory_within_3_percent_of_fractions),
        cmocka_unit_test(scarce_memory_within_3_percent_of_fractions),
        cmocka_unit_test(equal_nodes_and_useless_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
