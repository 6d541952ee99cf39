/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_matmul.c: MATMUL and MOE_MATMUL of float weights: hands eight rows of the weight at a time to the
 * dot kernel of its type, together with all tokens that need it. Every (row, token) has its own sum in a fixed order, so
 * a token's result does not depend on the batch around it.
 */
#include "avx2.h"

#define ROWS 8u /* half of a tile */

static cpu_avx2_dot *const dots[DL_TYPE_COUNT] = {
    [DL_F32] = cpu_avx2_dot_f32, [DL_F16] = cpu_avx2_dot_f16, [DL_BF16] = cpu_avx2_dot_bf16};

/* Weight rows [first, first + 8) of the view, as far as they are below `end`. */
static void set_rows(struct cpu_avx2_tile *tile, const uint8_t *w, const struct dl_view *v, uint32_t first,
                     uint32_t end)
{
    tile->rows = DL_MIN(end - first, ROWS);
    for (uint32_t r = 0; r < ROWS; r++)
        tile->w[r] = cpu_row(w, v, first + DL_MIN(r, tile->rows - 1));
}

static void matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    const float *bias = (const float *)(const void *)task->src[2];
    while (unit0 < unit1) {
        struct cpu_rect r = cpu_rect_next(&unit0, unit1, task->n);
        for (uint32_t first = r.tile0 * CPU_TILE; first < DL_MIN(r.tile1 * CPU_TILE, op->dst.cols); first += ROWS) {
            struct cpu_avx2_tile tile = {
                .x = cpu_row(task->src[0], &op->src[0], r.t0),
                .x_row = op->src[0].row_bytes,
                .y = (float *)(void *)cpu_row_out(task->dst, &op->dst, r.t0) + first,
                .y_row = op->dst.row_bytes / sizeof(float),
                .bias = bias ? bias + first : NULL,
                .n = r.t1 - r.t0,
                .cols = op->src[1].cols,
            };
            set_rows(&tile, task->src[1], &op->src[1], first, op->dst.cols);
            dots[op->src[1].type](&tile);
        }
    }
}

/* Weight rows [first, first + 8) of expert e for one row of dst. */
static void eight_rows(const struct cpu_task *task, uint32_t row, uint32_t e, uint32_t first)
{
    const struct dl_op *op = task->op;
    struct cpu_avx2_tile tile = {
        .x = cpu_row(task->src[0], &op->src[0], op->u.moe.shared_src ? row / op->u.moe.k : row),
        .y = (float *)(void *)cpu_row_out(task->dst, &op->dst, row) + first,
        .n = 1,
        .cols = op->src[1].cols,
    };
    set_rows(&tile, cpu_row(task->src[1], &op->src[1], e * op->dst.cols), &op->src[1], first, op->dst.cols);
    dots[op->src[1].type](&tile);
}

static void moe_row(const struct cpu_task *task, uint32_t row, uint32_t e, uint32_t first)
{
    for (uint32_t at = first; at < DL_MIN(first + CPU_TILE, task->op->dst.cols); at += ROWS)
        eight_rows(task, row, e, at);
}

static void moe_matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    uint32_t tiles = cpu_tiles(task->op->dst.cols);
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t first = u % tiles * CPU_TILE;
        if (!cpu_by_expert(task->op, task->n)) {
            moe_row(task, u / tiles, avx2_expert(task, u / tiles), first);
            continue;
        }
        for (uint32_t row = 0; row < task->n; row++)
            if (avx2_expert(task, row) == u / tiles)
                moe_row(task, row, u / tiles, first);
    }
}

cpu_kernel *cpu_avx2_pick_matmul(const struct dl_op *op)
{
    if (op->src[0].type != DL_F32 || !dots[op->src[1].type])
        return NULL;
    return op->code == DL_OP_MATMUL ? matmul : moe_matmul;
}
