// SPDX-License-Identifier: MIT
//
// mm_matvec.glsl: which rows and columns an invocation of a mat-vec kernel works on, and where results go. Rows and columns
// that are not there are read as the last that is (no branch in the inner loop), and not written. Workgroup y owns COLS
// columns; MoE: one (token, slot). Which rows of which matrix workgroups x have: mm_parts.glsl.

#if EPI == 2
#define MM_OWN (ROWS / 2)
#define MM_PICK(r, a) ((r) < MM_OWN ? p.a : p.a##1)
#else
#define MM_OWN ROWS
#define MM_PICK(r, a) MM_PART(a)
#endif
#define MM_SPAN (WG / LPR * MM_OWN * PASSES) // rows of a workgroup

#if EPI
shared float mm_stage[MM_SPAN * COLS * (EPI == 2 ? 2 : 1)];
#endif

uint mm_n;     // columns that there are for this workgroup; 0: nothing to do
uint mm_first; // the first of them
uint mm_slot;  // MoE: index of the (token, slot)
int mm_shift;  // MoE: what to add to a row of the expert for its row in the descriptor

#include "mm_parts.glsl"

void mm_begin()
{
    mm_n = mm_tokens();
#if MOE
    mm_slot = gl_WorkGroupID.y;
    uint token = mm_slot / p.moe_k, expert = 0;
    mm_n = token < mm_n ? 1 : 0;
    if (mm_n > 0)
        expert = uint(extra[p.extra_at + token * p.route_row + mm_slot % p.moe_k]);
    mm_shift = int(expert * p.rows) - int(p.w_first);
#else
    mm_first = gl_WorkGroupID.y * COLS;
    mm_n = max(mm_n, mm_first) - mm_first;
#endif
    mm_choose_part();
}

// First row that the lane's group has in a pass.
uint mm_pass_row(uint id, uint pass)
{
    return mm_row0 + (pass * (WG / LPR) + id / LPR) * MM_OWN;
}

uint mm_weight_row(uint row)
{
    row = min(row, mm_rows - 1);
#if MOE
    row = uint(clamp(int(row) + mm_shift, 0, int(p.w_rows) - 1));
#endif
    return row;
}

uint mm_act_row(uint col)
{
#if MOE
    return p.moe_shared != 0 ? mm_slot / p.moe_k : mm_slot;
#else
    return mm_first + min(col, max(mm_n, 1u) - 1);
#endif
}

uint mm_out_row(uint col)
{
#if MOE
    return mm_slot;
#else
    return mm_first + col;
#endif
}

// Result r of the group whose first row is row0.
void mm_write(uint row0, uint r, uint col, float sum)
{
    uint row = row0 + r % MM_OWN;
#if !MOE && BIAS
    sum += mm_bias(row);
#endif
#if EPI
    mm_stage[(r / MM_OWN * COLS + col) * MM_SPAN + row - mm_row0] = sum;
#else
    bool mine = row < mm_rows && col < mm_n;
#if MOE
    int at = int(row) + mm_shift;
    mine = mine && at >= 0 && at < int(p.w_rows);
#endif
    if (mine)
        y[MM_PICK(r, y_at) + mm_out_row(col) * p.y_row + row] = sum;
#endif
}
