/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_matmul.c: MATMUL and MOE_MATMUL: cuts the weight into tiles of eight rows and hands each to the dot kernel of
 * its type, together with all tokens that need it. Lane r of a kernel's accumulator is weight row r; every (row, token)
 * has its own sum in a fixed order, so a token's result does not depend on the batch around it.
 */
#include "avx2.h"

static cpu_avx2_dot *const dots[DL_TYPE_COUNT] = {
    [DL_F32] = cpu_avx2_dot_f32, [DL_F16] = cpu_avx2_dot_f16, [DL_BF16] = cpu_avx2_dot_bf16,
    [DL_Q40] = cpu_avx2_dot_q40, [DL_Q80] = cpu_avx2_dot_q80,
};
static cpu_avx2_panel *const panels[DL_TYPE_COUNT] = {[DL_Q40] = cpu_avx2_panel_q40, [DL_Q80] = cpu_avx2_panel_q80};

/* Weight rows [first, first + 8) of the view, as far as they are below `end`. */
static void set_rows(struct cpu_avx2_tile *tile, const uint8_t *w, const struct dl_view *v, uint32_t first,
                     uint32_t end)
{
    tile->rows = DL_MIN(end - first, CPU_TILE);
    for (uint32_t r = 0; r < CPU_TILE; r++)
        tile->w[r] = cpu_row(w, v, first + DL_MIN(r, tile->rows - 1));
    tile->next = end - first > CPU_TILE ? cpu_row(w, v, first + CPU_TILE) : NULL;
}

static void matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    cpu_avx2_dot *dot = dots[op->src[1].type];
    cpu_avx2_panel *panel = task->n > 1 ? panels[op->src[1].type] : NULL;
    const float *bias = (const float *)(const void *)task->src[2];
    struct cpu_avx2_tile strip[AVX2_STRIP];
    uint32_t n_tiles = 0;
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t first = u * CPU_TILE;
        struct cpu_avx2_tile *tile = &strip[n_tiles];
        *tile = (struct cpu_avx2_tile){
            .x = task->src[0],
            .x_row = op->src[0].row_bytes,
            .y = (float *)(void *)task->dst + first,
            .y_row = op->dst.row_bytes / sizeof(float),
            .bias = bias ? bias + first : NULL,
            .n = task->n,
            .cols = op->src[1].cols,
        };
        set_rows(tile, task->src[1], &op->src[1], first, op->dst.cols);
        if (!panel) {
            dot(tile);
        } else if (++n_tiles == AVX2_STRIP || u + 1 == unit1) {
            panel(strip, n_tiles);
            n_tiles = 0;
        }
    }
}

static void moe_matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    cpu_avx2_dot *dot = dots[op->src[1].type];
    uint32_t tiles = cpu_tiles(op->dst.cols), k = op->u.moe.k;
    struct cpu_avx2_tile tile = {.n = 1, .cols = op->src[1].cols};
    for (uint32_t u = unit0; u < unit1; u++) {
        uint32_t row = u / tiles, t = row / k, first = u % tiles * CPU_TILE;
        uint32_t e = (uint32_t)avx2_f32(cpu_row(task->src[2], &op->src[2], t) + row % k * sizeof(float));
        const uint8_t *w = cpu_row(task->src[1], &op->src[1], e * op->dst.cols);
        set_rows(&tile, w, &op->src[1], first, op->dst.cols);
        tile.x = cpu_row(task->src[0], &op->src[0], op->u.moe.shared_src ? t : row);
        tile.y = (float *)(void *)cpu_row_out(task->dst, &op->dst, row) + first;
        dot(&tile);
    }
}

cpu_kernel *cpu_avx2_pick_matmul(const struct dl_op *op)
{
    bool int8 = op->src[1].type == DL_Q40 || op->src[1].type == DL_Q80;
    if (op->src[0].type != (int8 ? DL_Q80 : DL_F32))
        return NULL;
    return op->code == DL_OP_MATMUL ? matmul : moe_matmul;
}
