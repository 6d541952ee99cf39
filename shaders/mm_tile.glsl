// SPDX-License-Identifier: MIT
//
// mm_tile.glsl: which rows and columns a workgroup of a tile kernel works on, and where results go. Workgroup (x, y) makes results of BM
// rows (EPI 2: BM / 2 of each matrix, those of the first in front) and of columns y * BN .. of the batch. Rows and columns that are
// not there are read as the last that is, and not written.

#if EPI == 2
#define MM_SPAN (BM / 2)
#else
#define MM_SPAN BM
#endif

#if EPI
shared float mm_stage[BM * BN];
#endif

uint mm_n;    // columns that there are for this workgroup; 0: nothing to do
uint mm_col0; // the first of them

#include "mm_parts.glsl"

// v = element `at` of array W (w or ws) of the matrix that row r of the tile belongs to.
#if EPI == 2
#define MM_FROM(v, W, r, at)           \
    if ((r) < MM_SPAN)                 \
        v = W[p.W##_at + at];          \
    else                               \
        v = W##1[p.W##_at1 + at]
#elif PARTS == 3
#define MM_FROM(v, W, r, at)           \
    if (mm_part == 0)                  \
        v = W[p.W##_at + at];          \
    else if (mm_part == 1)             \
        v = W##1[p.W##_at1 + at];      \
    else                               \
        v = W##2[p.W##_at2 + at]
#elif PARTS == 2
#define MM_FROM(v, W, r, at)           \
    if (mm_part == 0)                  \
        v = W[p.W##_at + at];          \
    else                               \
        v = W##1[p.W##_at1 + at]
#else
#define MM_FROM(v, W, r, at) v = W[p.W##_at + at]
#endif

void mm_begin()
{
    mm_col0 = gl_WorkGroupID.y * BN;
    mm_n = max(mm_tokens(), mm_col0) - mm_col0;
    mm_choose_part();
}

// Row r of the tile in its matrix, and column col in the activations.
uint mm_tile_row(uint r)
{
    return min(mm_row0 + r % MM_SPAN, mm_rows - 1);
}

uint mm_act_row(uint col)
{
    return mm_col0 + min(col, max(mm_n, 1u) - 1);
}

uint mm_out_row(uint col)
{
    return mm_col0 + col;
}

// Result of row r and column col of the tile.
void mm_put(uint r, uint col, float sum)
{
    uint row = mm_row0 + r % MM_SPAN;
#if BIAS
    sum += mm_bias(row);
#endif
#if EPI
    mm_stage[(r / MM_SPAN * BN + col) * MM_SPAN + r % MM_SPAN] = sum;
#else
    if (row < mm_rows && col < mm_n)
        y[MM_PART(y_at) + mm_out_row(col) * p.y_row + row] = sum;
#endif
}
