/* SPDX-License-Identifier: MIT
 *
 * cpu/avx2_matmul_q.c: MATMUL and MOE_MATMUL of packed Q40 and Q80 weights: which rows of which tiles meet which tokens, of AVX2
 * and of the sets above it. Every (row, token) has its own sum in a fixed order, so a token's result does not depend on the
 * batch around it.
 */
#include "avx2.h"

/* Enough for what is found out once for all of them about the tokens to cost nothing. */
enum { STRIP = 64 };

struct strip {
    struct cpu_avx2_rows rows[STRIP + 1];
    uint32_t n;
};

/* Adds `count` <= CPU_TILE output columns from `col` on, whose weight rows begin with row `first` of the buffer: views and
 * experts that do not begin with a tile have them in two. */
static void add_rows(const struct cpu_task *task, struct strip *s, uint32_t first, uint32_t col, uint32_t count)
{
    uint64_t tile_bytes = task->op->src[1].row_bytes * CPU_TILE;
    const float *bias = task->op->code == DL_OP_MATMUL ? (const float *)(const void *)task->src[2] : NULL;
    while (count) {
        uint32_t lane = first % CPU_TILE, n = DL_MIN(count, CPU_TILE - lane);
        s->rows[s->n++] = (struct cpu_avx2_rows){
            .tile = task->src[1] + first / CPU_TILE * tile_bytes, .bias = bias, .lane = lane, .n = n, .col = col};
        first += n;
        col += n;
        count -= n;
    }
}

static void add_token(const struct cpu_task *task, struct cpu_avx2_tokens *tok, uint32_t x_row, uint32_t row)
{
    const struct dl_op *op = task->op;
    tok->x[tok->n] = cpu_row(task->src[0], &op->src[0], x_row);
    tok->y[tok->n++] = (float *)(void *)cpu_row_out(task->dst, &op->dst, row);
}

static void matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1, cpu_avx2_dots *dots)
{
    const struct dl_op *op = task->op;
    struct strip s;
    struct cpu_avx2_tokens tok = {.blocks = op->src[1].cols / DL_BLOCK};
    while (unit0 < unit1) {
        struct cpu_rect r = cpu_rect_next(&unit0, unit1, task->n);
        for (uint32_t i = r.tile0; i < r.tile1;) {
            for (s.n = 0; i < r.tile1 && s.n < STRIP; i++) {
                uint32_t first = i * CPU_TILE;
                add_rows(task, &s, task->row0 + first, first, DL_MIN(op->dst.cols - first, CPU_TILE));
            }
            for (uint32_t t = r.t0; t < r.t1;) {
                for (tok.n = 0; t < r.t1 && tok.n < CPU_AVX2_TOKENS; t++)
                    add_token(task, &tok, t, t);
                dots(s.rows, s.n, &tok);
            }
        }
    }
}

static void moe_matmul(const struct cpu_task *task, uint32_t unit0, uint32_t unit1, cpu_avx2_dots *dots)
{
    const struct dl_op *op = task->op;
    uint32_t tiles = cpu_tiles(op->dst.cols), k = op->u.moe.k;
    bool by_expert = cpu_by_expert(op, task->n), shared = op->u.moe.shared_src;
    struct strip s;
    struct cpu_avx2_tokens tok = {.blocks = op->src[1].cols / DL_BLOCK};
    while (unit0 < unit1) {
        uint32_t which = unit0 / tiles, end = DL_MIN(unit1, (which + 1) * tiles);
        uint32_t e = by_expert ? which : avx2_expert(task, which);
        for (s.n = 0; unit0 < end && s.n < STRIP; unit0++) {
            uint32_t first = unit0 % tiles * CPU_TILE;
            add_rows(task, &s, task->row0 + e * op->dst.cols + first, first, DL_MIN(op->dst.cols - first, CPU_TILE));
        }
        tok.n = 0;
        for (uint32_t row = by_expert ? 0 : which; row < (by_expert ? task->n : which + 1); row++) {
            if (avx2_expert(task, row) != e)
                continue;
            add_token(task, &tok, shared ? row / k : row, row);
            if (tok.n == CPU_AVX2_TOKENS) {
                dots(s.rows, s.n, &tok);
                tok.n = 0;
            }
        }
        if (tok.n)
            dots(s.rows, s.n, &tok);
    }
}

void cpu_avx2_matmul_q(const struct cpu_task *task, uint32_t unit0, uint32_t unit1, cpu_avx2_dots *dots)
{
    if (task->op->code == DL_OP_MATMUL)
        matmul(task, unit0, unit1, dots);
    else
        moe_matmul(task, unit0, unit1, dots);
}

#define DOT_Q40 cpu_avx2_dot_q40
#define DOT_Q80 cpu_avx2_dot_q80
#include "avx2_pick_q.h"

cpu_kernel *cpu_avx2_pick_matmul_q(const struct dl_op *op)
{
    return pick_matmul_q(op);
}
