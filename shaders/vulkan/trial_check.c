/* SPDX-License-Identifier: MIT
 *
 * trial_check.c: the results of a trial against what was expected (trial_data.c), as a mean of squares.
 */
#include <stdlib.h>

#include "trial_data.h"

struct error {
    double wrong, all;
};

static void add_error(struct error *e, double got, double want)
{
    e->wrong += (got - want) * (got - want);
    e->all += want * want;
}

/* What a row should be once it is rounded to its type. */
static void round_to(enum dl_type type, const double *want, void *bytes, float *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)want[i];
    dl_row_from_f32(type, out, bytes, n);
    dl_row_to_f32(type, bytes, out, n);
}

/* The third plane, which the host's form lacks: each block's scale times the sum of its codes. Of the blocks that are there. */
static int sums_error(const struct vk_trial *t, struct vk_buf *b, uint32_t row, const struct dl_q80 *blocks,
                      float *sums, uint32_t n, struct error *e)
{
    struct vk_part part = b->parts[0];
    struct vk_buf plain = *b; /* the same bytes as values */
    part.plane_at[0] = part.plane_at[2];
    plain.parts = &part;
    plain.layout = VK_PLAIN;
    plain.n_planes = 1;
    plain.plane_row[0] = b->plane_row[2];
    plain.plane_bytes[0] = b->plane_bytes[2];
    int err = vk_buf_read(t->ctx, &plain, row * b->plane_row[2], sums, n * sizeof *sums);
    for (uint32_t i = 0; !err && i < n; i++) {
        int codes = 0;
        for (uint32_t k = 0; k < DL_BLOCK; k++)
            codes += blocks[i].qs[k];
        add_error(e, (double)sums[i], (double)dl_f16_to_f32(blocks[i].d) * codes);
    }
    return err;
}

static int compare(struct vk_trial *t, const struct trial_result *r, bool *right, double *nmse)
{
    const struct dl_view *v = &r->view;
    struct vk_buf *b = vk_buf_of(t->bufs[v->buf]);
    uint64_t bytes = 0;
    bool whole = dl_row_bytes(v->type, v->cols, &bytes);
    float *got = dl_calloc(v->cols, sizeof *got), *want = dl_calloc(v->cols, sizeof *want);
    uint8_t *row = dl_calloc(whole ? bytes : 1, 1);
    struct error e = {0}, sums = {0};
    int err = !whole ? DL_EINVAL : got && want && row ? 0 : DL_ENOMEM;
    for (uint32_t i = 0; !err && i < r->n_rows; i++) {
        round_to(v->type, r->want + (size_t)i * v->cols, row, want, v->cols);
        err = vk_buf_read(t->ctx, b, v->offset + r->row[i] * v->row_bytes, row, bytes);
        if (err)
            break;
        dl_row_to_f32(v->type, row, got, v->cols);
        for (uint32_t k = 0; k < v->cols; k++)
            add_error(&e, (double)got[k], (double)want[k]);
        if (b->layout == VK_SOA_A)
            err = sums_error(t, b, r->row[i], (const struct dl_q80 *)(const void *)row, got, v->cols / DL_BLOCK, &sums);
    }
    free(got);
    free(want);
    free(row);
    *nmse = e.wrong / e.all;
    *right = *nmse <= r->bound; /* false for NaN */
    if (*right && b->layout == VK_SOA_A) {
        *nmse = sums.wrong / sums.all;
        *right = *nmse <= 1e-9;
    }
    return err;
}

int vk_trial_compare(struct vk_trial *t, bool *right, double *nmse)
{
    int err = 0;
    *right = true;
    for (uint32_t i = 0; !err && *right && i < t->n_results; i++)
        err = compare(t, &t->results[i], right, nmse);
    return err;
}
