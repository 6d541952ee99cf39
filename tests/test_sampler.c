/* SPDX-License-Identifier: MIT
 *
 * tests/test_sampler.c: the sampler against a naive one that sorts everything, over random logits: which tokens each filter
 * keeps and how often each is drawn; ties, NaN, infinities, the penalty, seeds, settings that make no sense.
 */
#include "common.h"

#include <math.h>

#include "dl/sampler.h"

enum { N = 50 };

static void ignore_log(void *ud, enum dl_log_level level, const char *line)
{
    (void)ud, (void)level, (void)line;
}

static void greedy(void **state)
{
    (void)state;
    struct dl_sampler s;
    dl_sampler_init(&s, 1);
    assert_int_equal(dl_sampler_check(&s), DL_OK);
    float ties[] = {1, 5, 5, -2, 5};
    assert_int_equal(dl_sample(&s, ties, 5), 1);
    float nan[] = {NAN, -3, NAN, -2, -INFINITY};
    assert_int_equal(dl_sample(&s, nan, 5), 3);
    float inf[] = {0, INFINITY, 3, INFINITY};
    assert_int_equal(dl_sample(&s, inf, 4), 1);
    assert_int_equal(s.rng, 1);
}

static void no_number(void **state)
{
    (void)state;
    struct test_log log = {0};
    struct dl_sampler s;
    dl_sampler_init(&s, 1);
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    float none[] = {NAN, -INFINITY, NAN};
    assert_int_equal(dl_sample(&s, none, 3), DL_EDEVICE);
    s.temperature = 1;
    float again[] = {NAN, -INFINITY, NAN};
    assert_int_equal(dl_sample(&s, again, 3), DL_EDEVICE);
    assert_int_equal(dl_sample(&s, again, 0), DL_EDEVICE);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    assert_int_equal(log.n, 3);
}

static void infinite_is_certain(void **state)
{
    (void)state;
    struct dl_sampler s;
    dl_sampler_init(&s, 3);
    s.temperature = 0.7f;
    s.top_p = 0.95f;
    for (unsigned i = 0; i < 50; i++) {
        float l[] = {3, INFINITY, NAN, 88, -INFINITY};
        s.top_k = i % 4;
        assert_int_equal(dl_sample(&s, l, 5), 1);
    }
}

/* ------------------------------------------------------------------------------------ against a naive sampler */

struct item {
    double p, logit;
    int32_t id;
};

static int by_logit(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Probability of each token, by the header's order of filters. */
static void naive(const struct dl_sampler *s, const float *logits, uint32_t n, double *p)
{
    struct item *v = calloc(n, sizeof *v);
    assert_non_null(v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = (struct item){.logit = isnan(logits[i]) ? -INFINITY : (double)logits[i], .id = (int32_t)i};
    qsort(v, n, sizeof *v, by_logit);
    uint32_t m = s->top_k && s->top_k < n ? s->top_k : n, kept = 0;
    double sum = 0, seen = 0;
    for (uint32_t i = 0; i < m; i++)
        sum += v[i].p = exp((v[i].logit - v[0].logit) / (double)s->temperature);
    while (kept < m && (!kept || s->top_p >= 1 || seen < (double)s->top_p * sum))
        seen += v[kept++].p;
    while (kept > 1 && v[kept - 1].p < (double)s->min_p)
        kept--;
    sum = 0;
    for (uint32_t i = 0; i < kept; i++)
        sum += v[i].p;
    memset(p, 0, n * sizeof *p);
    for (uint32_t i = 0; i < kept; i++)
        p[v[i].id] = v[i].p / sum;
    free(v);
}

/* Draws many times and compares the frequencies; a token that is filtered out must never come. */
static void same_distribution(struct dl_sampler *s, uint64_t *rng, uint32_t n, unsigned draws)
{
    float logits[N], work[N];
    double p[N];
    unsigned seen[N] = {0};
    for (uint32_t i = 0; i < n; i++)
        logits[i] = 4 * test_randf(rng);
    if (n > 10)
        logits[3] = NAN, logits[4] = logits[5], logits[7] = -INFINITY;
    naive(s, logits, n, p);
    for (unsigned i = 0; i < draws; i++) {
        memcpy(work, logits, n * sizeof *work);
        int32_t id = dl_sample(s, work, n);
        assert_in_range(id, 0, n - 1);
        seen[id]++;
    }
    for (uint32_t i = 0; i < n; i++) {
        double want = p[i] * draws, sigma = sqrt(want * (1 - p[i]));
        if (p[i] == 0)
            assert_int_equal(seen[i], 0);
        else if (fabs(seen[i] - want) > 6 * sigma + 1)
            fail_msg("token %u: drawn %u times, expected %.1f (top_k %u top_p %g min_p %g temperature %g)", i, seen[i],
                     want, s->top_k, (double)s->top_p, (double)s->min_p, (double)s->temperature);
    }
}

static void filters(void **state)
{
    (void)state;
    static const struct {
        float temperature;
        uint32_t top_k;
        float top_p, min_p;
    } settings[] = {
        {1, 0, 1, 0},        {0.5f, 0, 1, 0},
        {3, 0, 1, 0},        {1, 1, 1, 0},
        {1, 2, 1, 0},        {1, 7, 1, 0},
        {1, 49, 1, 0},       {1, 50, 1, 0},
        {1, 1000, 1, 0},     {1, 0, 0.9f, 0},
        {1, 0, 0.5f, 0},     {1, 0, 0.01f, 0},
        {1, 0, 0, 0},        {2, 0, 0.99f, 0},
        {1, 0, 1, 0.1f},     {1, 0, 1, 0.9f},
        {1, 0, 1, 1},        {0.8f, 20, 0.8f, 0},
        {1, 10, 1, 0.2f},    {1, 0, 0.7f, 0.2f},
        {1, 0, 0.9f, 0.01f}, {1.3f, 30, 0.95f, 0.05f},
    };
    uint64_t rng = 5;
    for (size_t i = 0; i < DL_COUNT_OF(settings); i++)
        for (unsigned round = 0; round < 3; round++) {
            struct dl_sampler s;
            dl_sampler_init(&s, 100 * i + round);
            s.temperature = settings[i].temperature;
            s.top_k = settings[i].top_k;
            s.top_p = settings[i].top_p;
            s.min_p = settings[i].min_p;
            assert_int_equal(dl_sampler_check(&s), DL_OK);
            same_distribution(&s, &rng, round == 2 ? 1 + (uint32_t)(test_rand(&rng) % 9) : N, 20000);
        }
}

/* Equal logits: the filters keep the lowest ids. */
static void ties_keep_low_ids(void **state)
{
    (void)state;
    struct dl_sampler s;
    bool seen[2] = {false};
    for (unsigned i = 0; i < 400; i++) {
        float l[] = {0, 2, 2, 2, 2, 0};
        dl_sampler_init(&s, i);
        s.temperature = 1;
        if (i % 2)
            s.top_k = 2;
        else
            s.top_p = 0.4f; /* the four twos have 0.94 of the whole */
        int32_t id = dl_sample(&s, l, 6);
        assert_in_range(id, 1, 2);
        seen[id - 1] = true;
    }
    assert_true(seen[0] && seen[1]);
}

/* A vocabulary of real size: the set that comes out must lie in what the naive one keeps. */
static void large_vocabulary(void **state)
{
    (void)state;
    enum { BIG = 32000 };
    float *logits = calloc(BIG, sizeof *logits), *work = calloc(BIG, sizeof *work);
    double *p = calloc(BIG, sizeof *p);
    assert_true(logits && work && p);
    uint64_t rng = 17;
    for (unsigned flat = 0; flat < 2; flat++) {
        for (uint32_t i = 0; i < BIG; i++)
            logits[i] = (flat ? 0.01f : 6.0f) * test_randf(&rng);
        for (unsigned k = 0; k < 4; k++) {
            struct dl_sampler s;
            dl_sampler_init(&s, k);
            s.temperature = 1;
            s.top_p = k < 2 ? 0.9f : 1;
            s.top_k = k % 2 ? 40 : 0;
            naive(&s, logits, BIG, p);
            for (unsigned i = 0; i < 20; i++) {
                memcpy(work, logits, BIG * sizeof *work);
                int32_t id = dl_sample(&s, work, BIG);
                assert_in_range(id, 0, BIG - 1);
                assert_true(p[id] > 0);
            }
        }
    }
    free(logits);
    free(work);
    free(p);
}

static void seeds(void **state)
{
    (void)state;
    unsigned same = 0;
    struct dl_sampler a, b, c;
    dl_sampler_init(&a, 42);
    a.temperature = 1;
    a.top_p = 0.95f;
    b = c = a;
    c.rng = 43;
    for (unsigned i = 0; i < 200; i++) {
        float l[3][N];
        uint64_t rng = i;
        for (unsigned k = 0; k < N; k++)
            l[0][k] = l[1][k] = l[2][k] = test_randf(&rng);
        int32_t x = dl_sample(&a, l[0], N), y = dl_sample(&b, l[1], N), z = dl_sample(&c, l[2], N);
        assert_int_equal(x, y);
        same += x == z;
        if (i == 100)
            b = a; /* a copy forks the stream */
    }
    assert_true(same < 50);
}

/* A known stream: the same seed must mean the same text in every build. */
static void pinned(void **state)
{
    (void)state;
    static const int32_t want[] = {3, 1, 0, 3, 0, 1, 0, 3};
    struct dl_sampler s;
    dl_sampler_init(&s, 0);
    s.temperature = 1;
    for (size_t i = 0; i < DL_COUNT_OF(want); i++) {
        float l[] = {0, 0, 0, 0};
        uint64_t rng = s.rng;
        double u = (double)(test_rand(&rng) >> 11) * 0x1p-53;
        int32_t by_hand = (int32_t)(u * 4);
        int32_t id = dl_sample(&s, l, 4);
        assert_int_equal(id, by_hand);
        assert_int_equal(id, want[i]);
    }
}

/* From the likeliest alone: either exactly what all logits give, with the same random stream after it, or nothing at all. */
static int by_candidate(const void *a, const void *b)
{
    const struct dl_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void from_the_likeliest(void **state)
{
    (void)state;
    enum { BIG = 1000 };
    static const float top_p[] = {1, 0.9f, 0.5f, 0}, min_p[] = {0, 0.05f, 1}, temperature[] = {0, 0.7f, 1, 2.5f};
    static const uint32_t top_k[] = {0, 1, 40, 256, 700, BIG}, n_top[] = {1, 8, 40, 256};
    static float logits[BIG], work[BIG];
    static struct dl_candidate v[BIG];
    uint64_t rng = 23;
    unsigned settled = 0, asked = 0, usual = 0, usual_settled = 0;
    for (unsigned round = 0; round < 4 * 3 * 4 * 6 * 4 * 4; round++) {
        const float spread = round % 4 == 0 ? 0.1f : round % 4 == 1 ? 2 : 9;
        uint32_t vocab = round % 7 ? BIG : 256;
        struct dl_sampler a;
        dl_sampler_init(&a, round);
        a.top_p = top_p[round / 4 % 4];
        a.min_p = min_p[round / 16 % 3];
        a.temperature = temperature[round / 48 % 4];
        a.top_k = top_k[round / 192 % 6];
        uint32_t n = n_top[round / 1152 % 4];
        double sum = 0;
        for (uint32_t i = 0; i < vocab; i++) {
            logits[i] = spread * (test_randf(&rng) + test_randf(&rng) + test_randf(&rng));
            if (i % 10 == 9)
                logits[i] = logits[i - 1];
            v[i] = (struct dl_candidate){(int32_t)i, logits[i]};
            sum += exp((double)logits[i] / (double)(a.temperature > 0 ? a.temperature : 1));
        }
        qsort(v, vocab, sizeof *v, by_candidate);
        for (unsigned draw = 0; draw < 4; draw++) {
            struct dl_sampler b = a, before = a;
            int32_t id = -1;
            memcpy(work, logits, vocab * sizeof *work);
            bool ok = dl_sample_top(&b, v, n, log(sum), vocab, &id);
            int32_t want = dl_sample(&a, work, vocab);
            asked++;
            settled += ok;
            if (round % 4 > 1 && n == 256 && a.top_k != 700) { /* of more than it is given, top_k needs the sum */
                usual++;
                usual_settled += ok;
            }
            if (ok)
                assert_int_equal(id, want);
            assert_int_equal(b.rng, ok ? a.rng : before.rng);
        }
    }
    assert_in_range(settled, asked / 3, asked - asked / 20); /* both happen */
    assert_true(usual_settled > usual * 9 / 10);
    struct dl_sampler s;
    dl_sampler_init(&s, 1);
    s.temperature = 1;
    s.repeat_penalty = 1.1f;
    int32_t id;
    assert_false(dl_sampler_top_helps(&s));
    assert_false(dl_sample_top(&s, v, 40, 0, BIG, &id));
    s.repeat_penalty = 1;
    v[0].logit = INFINITY;
    assert_false(dl_sample_top(&s, v, 40, INFINITY, BIG, &id));
    assert_false(dl_sample_top(&s, v, 0, 0, BIG, &id));
}

static void penalty(void **state)
{
    (void)state;
    struct dl_sampler s;
    dl_sampler_init(&s, 1);
    s.repeat_penalty = 2;
    dl_sampler_accept(&s, 1);
    dl_sampler_accept(&s, 1); /* twice in the text, penalised once */
    dl_sampler_accept(&s, 2);
    dl_sampler_accept(&s, -1);
    dl_sampler_accept(&s, 99);
    float l[] = {3, 8, -2, 1};
    assert_int_equal(dl_sample(&s, l, 4), 1);
    assert_true(l[0] == 3 && l[1] == 4 && l[2] == -4 && l[3] == 1);
    float close[] = {4.5f, 8, -2, 1};
    assert_int_equal(dl_sample(&s, close, 4), 0);
    /* The window forgets: after 64 others, token 1 is as good as new. */
    for (unsigned i = 0; i < DL_PENALTY_WINDOW; i++)
        dl_sampler_accept(&s, 3);
    assert_int_equal(s.n_recent, DL_PENALTY_WINDOW);
    float late[] = {4.5f, 8, -2, 17};
    assert_int_equal(dl_sample(&s, late, 4), 3);
    assert_true(late[1] == 8 && late[3] == 8.5f);
}

static void settings_checked(void **state)
{
    (void)state;
    static const float bad[4][4] = {{-0.1f, NAN, INFINITY, -INFINITY},
                                    {-0.1f, 1.1f, NAN, INFINITY},
                                    {-0.1f, 1.1f, NAN, INFINITY},
                                    {0, -1, NAN, INFINITY}};
    static const char *const names[] = {"temperature", "top_p", "min_p", "repeat_penalty"};
    for (unsigned k = 0; k < 4; k++)
        for (unsigned i = 0; i < 4; i++) {
            struct dl_sampler s;
            struct test_log log = {0};
            dl_sampler_init(&s, 1);
            s.temperature = 1;
            *(k == 0 ? &s.temperature : k == 1 ? &s.top_p : k == 2 ? &s.min_p : &s.repeat_penalty) = bad[k][i];
            dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
            assert_int_equal(dl_sampler_check(&s), DL_EINVAL);
            dl_log_set(ignore_log, NULL, DL_LOG_ERROR);
            assert_non_null(strstr(log.last, names[k]));
            float l[] = {1, 2, 3};
            int32_t id = dl_sample(&s, l, 3); /* nonsense in, but a token out */
            assert_in_range(id, 0, 2);
            dl_log_set(NULL, NULL, DL_LOG_WARN);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy),
        cmocka_unit_test(no_number),
        cmocka_unit_test(infinite_is_certain),
        cmocka_unit_test(filters),
        cmocka_unit_test(ties_keep_low_ids),
        cmocka_unit_test(large_vocabulary),
        cmocka_unit_test(seeds),
        cmocka_unit_test(pinned),
        cmocka_unit_test(from_the_likeliest),
        cmocka_unit_test(penalty),
        cmocka_unit_test(settings_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
