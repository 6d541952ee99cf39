/* SPDX-License-Identifier: MIT
 *
 * engine/text/sampler.c: from logits to a token (dl/sampler.h). Every filter keeps a prefix of the tokens in descending order
 * (equals by ascending id), so that none needs them sorted: top_k has a heap of k, top_p selects by mass, and only among
 * those that could matter. Probabilities are expf relative to the largest logit, added up in double in a fixed order.
 */
#include "dl/sampler.h"

#include <math.h>
#include <stdlib.h>

#define MOST_TOP 256u /* candidates that dl_sample_top takes */

void dl_sampler_init(struct dl_sampler *s, uint64_t seed)
{
    *s = (struct dl_sampler){.top_p = 1, .repeat_penalty = 1, .rng = seed};
}

int dl_sampler_check(const struct dl_sampler *s)
{
    if (!(s->temperature >= 0) || isinf(s->temperature))
        return dl_fail(DL_EINVAL, "temperature: %g is not a number from 0 up", (double)s->temperature);
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return dl_fail(DL_EINVAL, "top_p: %g is not between 0 and 1", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return dl_fail(DL_EINVAL, "min_p: %g is not between 0 and 1", (double)s->min_p);
    if (!(s->repeat_penalty > 0) || isinf(s->repeat_penalty))
        return dl_fail(DL_EINVAL, "repeat_penalty: %g is not a number above 0", (double)s->repeat_penalty);
    return DL_OK;
}

void dl_sampler_accept(struct dl_sampler *s, int32_t token)
{
    s->recent[s->at_recent] = token;
    s->at_recent = (s->at_recent + 1) % DL_PENALTY_WINDOW;
    if (s->n_recent < DL_PENALTY_WINDOW)
        s->n_recent++;
}

static void penalise(const struct dl_sampler *s, float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < s->n_recent; i++) {
        int32_t id = s->recent[i];
        if (id < 0 || (uint32_t)id >= n)
            continue;
        uint32_t j = 0;
        while (s->recent[j] != id)
            j++;
        if (j == i) /* once, however often it occurs */
            logits[id] = logits[id] > 0 ? logits[id] / s->repeat_penalty : logits[id] * s->repeat_penalty;
    }
}

/* A candidate: a logit at first, later its probability relative to the likeliest. */
struct cand {
    float p;
    int32_t id;
};

static bool before(struct cand a, struct cand b)
{
    return a.p > b.p || (a.p == b.p && a.id < b.id);
}

/* Restores the heap below i; its root is the last candidate in order. */
static void sift(struct cand *v, uint32_t n, uint32_t i)
{
    struct cand x = v[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(v[child], v[child + 1]))
            child++;
        if (before(v[child], x))
            break;
        v[i] = v[child];
    }
    v[i] = x;
}

/* The k first of n logits: a heap whose root is the worst one that is in, which the next better one replaces. */
static struct cand *select_top(const float *logits, uint32_t n, uint32_t k)
{
    struct cand *v = dl_calloc(k, sizeof *v);
    if (!v)
        return NULL;
    for (uint32_t i = 0; i < k; i++)
        v[i] = (struct cand){logits[i], (int32_t)i};
    for (uint32_t i = k / 2; i-- > 0;)
        sift(v, k, i);
    for (uint32_t i = k; i < n; i++) {
        struct cand c = {logits[i], (int32_t)i};
        if (before(c, v[0])) {
            v[0] = c;
            sift(v, k, 0);
        }
    }
    return v;
}

/* exp((logit - most) / temperature). Equal is 1 also where both are infinite. */
static float relative(float logit, float most, float temperature)
{
    return logit == most ? 1 : expf((logit - most) / temperature);
}

static uint64_t random_of(uint64_t *state) /* SplitMix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double uniform(uint64_t *state) /* [0, 1) */
{
    return (double)(random_of(state) >> 11) * 0x1p-53;
}

/* Puts the fewest first candidates that together reach `target` in front and returns how many they are, at least one. Like
 * quickselect, by mass instead of by rank: what lies before a pivot is either too much, and the border is in there, or all of
 * it is in. */
static uint32_t nucleus(struct cand *v, uint32_t n, double target)
{
    uint32_t lo = 0, hi = n; /* v[0 .. lo) is in, v[hi .. n) is not needed */
    double have = 0;         /* of v[0 .. lo) */
    uint64_t pivots = 0;     /* a fixed stream: the same choice everywhere */
    while (lo < hi && (!lo || have < target)) {
        uint32_t at = lo + (uint32_t)(random_of(&pivots) % (hi - lo)), mid = lo;
        struct cand pivot = v[at];
        double mass = 0;
        v[at] = v[hi - 1];
        for (uint32_t i = lo; i < hi - 1; i++)
            if (before(v[i], pivot)) {
                struct cand c = v[i];
                v[i] = v[mid];
                v[mid++] = c;
                mass += (double)c.p;
            }
        v[hi - 1] = v[mid];
        v[mid] = pivot;
        if (mid > lo && have + mass >= target) {
            hi = mid;
        } else {
            have += mass + (double)pivot.p;
            lo = mid + 1;
        }
    }
    return lo;
}

/* Everything that can still be picked, in *out (to be freed). Drops what min_p drops and, where top_p is on, what lies in its
 * tail for sure: n tokens that each have less than (1 - top_p) / n of the whole cannot be needed to reach top_p. *total is
 * the sum before that. */
static int candidates(const struct dl_sampler *s, float *logits, uint32_t n, float most, struct cand **out,
                      uint32_t *n_out, double *total)
{
    struct cand *v = NULL;
    uint32_t m = s->top_k && s->top_k < n ? s->top_k : n, kept = 0;
    if (m < n && !(v = select_top(logits, n, m)))
        return DL_ENOMEM;
    double sum = 0;
    for (uint32_t i = 0; i < m; i++) {
        float *p = v ? &v[i].p : &logits[i];
        *p = relative(*p, most, s->temperature);
        sum += (double)*p;
    }
    double tail = s->top_p < 1 ? (1 - (double)s->top_p) * sum / m : 0, least = DL_MAX((double)s->min_p, tail);
    if (!v) {
        for (uint32_t i = 0; i < n; i++)
            kept += logits[i] > 0 && (double)logits[i] >= least;
        v = dl_calloc(kept, sizeof *v);
        if (!v)
            return DL_ENOMEM;
        kept = 0;
        for (uint32_t i = 0; i < n; i++)
            if (logits[i] > 0 && (double)logits[i] >= least)
                v[kept++] = (struct cand){logits[i], (int32_t)i};
    } else {
        for (uint32_t i = 0; i < m; i++)
            if (v[i].p > 0 && (double)v[i].p >= least)
                v[kept++] = v[i];
    }
    *out = v;
    *n_out = kept;
    *total = sum;
    return DL_OK;
}

int32_t dl_sample(struct dl_sampler *s, float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (isnan(logits[i]))
            logits[i] = -INFINITY;
    if (s->repeat_penalty != 1)
        penalise(s, logits, n);
    int32_t best = -1;
    float most = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        if (logits[i] > most) {
            most = logits[i];
            best = (int32_t)i;
        }
    if (best < 0)
        return dl_fail(DL_EDEVICE, "sampler: none of %u logits is a number: the device computes nonsense", n);
    if (s->temperature == 0)
        return best;

    struct cand *v;
    uint32_t n_v;
    double total;
    int err = candidates(s, logits, n, most, &v, &n_v, &total);
    if (err)
        return err;
    if (s->top_p < 1)
        n_v = nucleus(v, n_v, (double)s->top_p * total);
    double sum = 0;
    for (uint32_t i = 0; i < n_v; i++)
        sum += (double)v[i].p;
    n_v = nucleus(v, n_v, uniform(&s->rng) * sum);
    struct cand last = n_v ? v[0] : (struct cand){0, best}; /* settings out of range can leave nothing */
    for (uint32_t i = 1; i < n_v; i++)
        if (before(last, v[i]))
            last = v[i];
    free(v);
    return last.id;
}

/* ------------------------------------------------------------------------------------------ from the likeliest alone */

/* How far sums of rounded probabilities may be off, relative to the whole: what is nearer to a border than that is not settled. */
#define DOUBT 2e-5

bool dl_sampler_top_helps(const struct dl_sampler *s)
{
    return s->repeat_penalty == 1;
}

/* The candidates that can be picked, and all that they weigh together. */
struct pool {
    uint32_t n;
    double sum;
};

/* False where it depends on tokens that are not there. total: of all tokens that top_k lets pass; all: they are all there. */
static bool pool_of(const struct dl_sampler *s, const struct cand *v, uint32_t n, bool all, double total,
                    struct pool *out)
{
    const double need = s->top_p < 1 ? (double)s->top_p * total : INFINITY;
    *out = (struct pool){0};
    for (uint32_t i = 0; i < n; i++) {
        if (i && (!(v[i].p > 0) || v[i].p < s->min_p))
            return true; /* those behind it are not likelier */
        out->sum += (double)v[i].p;
        out->n++;
        if (s->top_p < 1 && fabs(out->sum - need) < DOUBT * total)
            return false;
        if (out->sum >= need)
            return true;
    }
    if (all)
        return true;
    out->sum = total; /* the rest is there, somewhere: good enough for a draw that hits one of these */
    return s->top_p >= 1 && !(s->min_p > 0);
}

bool dl_sample_top(struct dl_sampler *s, const struct dl_candidate *top, uint32_t n, double log_sum, uint32_t vocab,
                   int32_t *id)
{
    struct cand v[MOST_TOP];
    if (!dl_sampler_top_helps(s) || !n || n > MOST_TOP || isinf(top[0].logit))
        return false;
    *id = top[0].id;
    if (s->temperature == 0)
        return true;
    const double most = (double)top[0].logit;
    uint32_t pass = s->top_k && s->top_k < vocab ? s->top_k : vocab, m = DL_MIN(n, pass);
    double total = 0;
    for (uint32_t i = 0; i < m; i++) {
        v[i] = (struct cand){relative(top[i].logit, top[0].logit, s->temperature), top[i].id};
        total += (double)v[i].p;
    }
    if (m < pass && pass < vocab)
        return false; /* what else top_k lets pass is not known, nor its sum */
    if (m < pass)
        total = exp(log_sum - most / (double)s->temperature);
    struct pool pool;
    if (!isfinite(total) || !pool_of(s, v, m, m == pass, total, &pool))
        return false;
    uint64_t rng = s->rng;
    double target = uniform(&rng) * pool.sum, seen = 0, doubt = DOUBT * total;
    for (uint32_t i = 0; i < pool.n; i++) {
        seen += (double)v[i].p;
        bool last = i + 1 == pool.n && pool.sum <= seen; /* nothing is behind it */
        if (!last && fabs(seen - target) < doubt)
            return false;
        if (seen >= target || last) {
            s->rng = rng;
            *id = v[i].id;
            return true;
        }
    }
    return false;
}
