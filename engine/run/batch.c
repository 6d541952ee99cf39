/* SPDX-License-Identifier: MIT
 *
 * engine/run/batch.c: see batch.h. Pure.
 */
#include "batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int eng_batch_init(struct eng_batch *b, const struct dl_batch_shape *shape)
{
    *b = (struct eng_batch){0};
    b->seqs = dl_calloc(shape->max_tables, sizeof *b->seqs);
    b->wants = dl_calloc(shape->max_out, sizeof *b->wants);
    return b->seqs && b->wants ? DL_OK : DL_ENOMEM;
}

void eng_batch_finish(struct eng_batch *b)
{
    free(b->seqs);
    free(b->wants);
    *b = (struct eng_batch){0};
}

uint32_t eng_wanted(enum dl_want want, uint32_t n)
{
    return want == DL_WANT_ALL ? n : want == DL_WANT_NONE ? 0 : 1;
}

bool eng_batch_count(struct eng_batch *b, const struct dl_batch_shape *shape)
{
    uint64_t tokens = 0, out = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        const struct eng_seq *s = &b->seqs[i];
        uint32_t rows = eng_wanted(s->want, s->n);
        tokens += s->n;
        if (tokens > shape->max_tokens || out + rows > shape->max_out)
            return false;
        for (uint32_t r = 0; r < rows; r++)
            b->wants[out + r] = s->want == DL_WANT_TOP ? (struct eng_want){s->want, s->k, s->temperature}
                                                       : (struct eng_want){s->want, s->want == DL_WANT_BEST, 0};
        out += rows;
    }
    b->n_tokens = b->cut = (uint32_t)tokens;
    b->n_out = (uint32_t)out;
    return true;
}

static bool before(struct dl_candidate a, struct dl_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

uint32_t eng_top_add(struct dl_candidate *v, uint32_t n, uint32_t k, struct dl_candidate c)
{
    if (isnan(c.logit) || (n == k && !before(c, v[n - 1])))
        return n;
    uint32_t at = n == k ? n - 1 : n++;
    for (; at && before(c, v[at - 1]); at--)
        v[at] = v[at - 1];
    v[at] = c;
    return n;
}

uint32_t eng_top_scan(struct dl_candidate *v, uint32_t n, uint32_t k, const float *row, uint32_t n_row, uint32_t id0)
{
    enum { STEP = 32 }; /* values looked at together, as vectors: few of a long row are candidates */
    for (uint32_t first = 0; first < n_row; first += STEP) {
        const float *at = row + first;
        const uint32_t some = DL_MIN(n_row - first, (uint32_t)STEP);
        if (n == k && some == STEP) {
            const float least = v[n - 1].logit;
            int any = 0;
            for (uint32_t i = 0; i < STEP; i++)
                any |= at[i] >= least;
            if (!any)
                continue;
        }
        for (uint32_t i = 0; i < some; i++)
            if (n < k || at[i] >= v[n - 1].logit)
                n = eng_top_add(v, n, k, (struct dl_candidate){(int32_t)(id0 + first + i), at[i]});
    }
    return n;
}

double eng_log_sum(const float *row, uint32_t n, float temperature)
{
    float most = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        most = row[i] > most ? row[i] : most;
    if (isinf(most))
        return (double)most;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(row[i]))
            sum += exp(((double)row[i] - (double)most) / (double)temperature);
    return (double)most / (double)temperature + log(sum);
}

double eng_log_add(double a, double b)
{
    double most = fmax(a, b);
    return isinf(most) ? most : most + log(exp(a - most) + exp(b - most));
}
