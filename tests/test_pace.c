/* SPDX-License-Identifier: MIT
 *
 * tests/test_pace.c: how much of a prompt goes with the tokens of others, on a machine that is made up.
 */
#include "common.h"

#include "pace.h"

/* A batch costs something in any case, and something for each token; of a prompt more the further it is. Measured with an error. */
struct machine {
    double fixed, decode, prompt, deeper, error;
    unsigned seed;
};

static double ideal(const struct machine *m, uint32_t n_decode, uint32_t n_prompt, uint32_t pos)
{
    return m->fixed + m->decode * n_decode + (m->prompt + m->deeper * pos) * n_prompt;
}

static uint64_t measured(struct machine *m, double ns)
{
    m->seed = m->seed * 1664525u + 1013904223u;
    return (uint64_t)(ns * (1 + m->error * ((double)(m->seed >> 16 & 255u) / 127.5 - 1)));
}

/* A prompt of 2000 tokens comes while n others decode, of whom one ends in the middle. Returns the longest batch, by the usual one. */
static double longest(struct machine m, uint32_t n, uint32_t *steps)
{
    struct cli_pace p = {0};
    double worst = 0;
    for (int i = 0; i < 20; i++)
        cli_pace_learn(&p, n, 0, measured(&m, ideal(&m, n, 0, 0)));
    *steps = 0;
    for (uint32_t pos = 0; pos < 2000; ++*steps) {
        const uint32_t now = pos < 1000 || n == 1 ? n : n - 1, chunk = cli_pace_chunk(&p, now, 2000 - pos);
        assert_true(chunk <= 2000 - pos);
        const double ns = ideal(&m, now, chunk, pos);
        if (*steps > 4 && chunk > 1) /* the first ones show what a prompt costs; less than a token does not go */
            worst = DL_MAX(worst, ns / ideal(&m, now, 0, pos));
        cli_pace_learn(&p, now, chunk, measured(&m, ns));
        pos += chunk;
    }
    return worst;
}

static void others_wait_twice_as_long_at_most(void **state)
{
    (void)state;
    static const struct machine machines[] = {
        {30e6, 6e6, 6e6, 0, 0, 1},         /* memory decides */
        {1e6, 6e6, 6e6, 1e3, 0.05, 2},     /* computing does, and attention */
        {20e6, 1e6, 0.5e6, 200, 0.1, 3},   /* a GPU far away */
        {5e6, 0.1e6, 0.05e6, 10, 0.15, 4}, /* a large one */
    };
    for (size_t i = 0; i < DL_COUNT_OF(machines); i++)
        for (uint32_t n = 1; n <= 16; n *= 2) {
            uint32_t steps;
            double worst = longest(machines[i], n, &steps);
            if (worst > 2)
                fail_msg("machine %zu, %u answers: %.2f times the usual gap", i, n, worst);
            /* and the prompt gets its share: a third of the time, unless a single token is more than that */
            const double alone = ideal(&machines[i], n, 0, 0), token = machines[i].prompt + machines[i].deeper * 1000;
            assert_true(steps < 1.1 * 2000 / DL_MAX(1u, (uint32_t)(0.5 * alone / token)) + 10);
        }
}

static void alone_it_gets_everything(void **state)
{
    (void)state;
    struct cli_pace p = {0};
    assert_int_equal(cli_pace_chunk(&p, 0, 128), 128);
    assert_int_equal(cli_pace_chunk(&p, 3, 125), 0); /* first three answers alone: what do they take? */
    cli_pace_learn(&p, 3, 0, 20000000);
    assert_int_equal(cli_pace_chunk(&p, 3, 125), 16); /* and now: what does a prompt? */
    assert_int_equal(cli_pace_chunk(&p, 3, 5), 5);
    assert_int_equal(cli_pace_chunk(&p, 3, 0), 0);
    cli_pace_learn(&p, 0, 128, 128000000);
    assert_int_equal(cli_pace_chunk(&p, 3, 125), 14);
    assert_int_equal(cli_pace_chunk(&p, 0, 128), 128);
    assert_int_equal(cli_pace_chunk(&p, 2, 126), 0);
    cli_pace_learn(&p, 2, 0, 15000000);
    assert_int_equal(cli_pace_chunk(&p, 2, 126), 10);
    for (int i = 0; i < 40; i++)
        cli_pace_learn(&p, 3, 14, 34000000);
    assert_int_equal(cli_pace_chunk(&p, 3, 125), 0); /* has that changed? */
    cli_pace_learn(&p, 3, 0, 40000000);
    assert_int_equal(cli_pace_chunk(&p, 3, 125), 17);
    cli_pace_learn(&p, 1000, 0, 1000);
    assert_int_equal(cli_pace_chunk(&p, 500, 125), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(others_wait_twice_as_long_at_most),
                                       cmocka_unit_test(alone_it_gets_everything)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
