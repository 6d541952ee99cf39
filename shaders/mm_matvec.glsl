// SPDX-License-Identifier: MIT
//
// mm_matvec.glsl: which rows and columns an invocation of a mat-vec kernel works on, and where results go. Rows and columns
// that are not there are read as the last that is (no branch in the inner loop), and not written. Workgroup y owns COLS
// columns; MoE: one (token, slot).

uint mm_n;     // columns that there are for this workgroup; 0: nothing to do
uint mm_first; // the first of them
uint mm_slot;  // MoE: index of the (token, slot)
int mm_shift;  // MoE: what to add to a row of the expert for its row in the descriptor

uint mm_begin(uint id)
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
    return (gl_WorkGroupID.x * (WG / LPR) + id / LPR) * ROWS;
}

uint mm_weight_row(uint row)
{
    row = min(row, p.rows - 1);
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

void mm_write(uint row, uint col, float sum)
{
    bool mine = row < p.rows && col < mm_n;
#if MOE
    int at = int(row) + mm_shift;
    mine = mine && at >= 0 && at < int(p.w_rows);
    col = mm_slot;
#else
    col += mm_first;
#if BIAS
    sum += extra[p.extra_at + min(row, p.rows - 1)];
#endif
#endif
    if (mine)
        y[p.y_at + col * p.y_row + row] = sum;
}
