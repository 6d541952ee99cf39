// SPDX-License-Identifier: MIT
//
// mm_parts.glsl: which matrix a workgroup has rows of. Workgroups x share out the rows of the first, MM_SPAN each, then those of the
// second, and so on; of two matrices for GLU a workgroup has the same rows of both.

uint mm_part; // the matrix that this workgroup has rows of,
uint mm_rows; // how many that has,
uint mm_row0; // and the workgroup's first

// Push constant `a` of that matrix.
#if PARTS == 3
#define MM_PART(a) (mm_part == 0 ? p.a : mm_part == 1 ? p.a##1 : p.a##2)
#elif PARTS == 2 && EPI != 2
#define MM_PART(a) (mm_part == 0 ? p.a : p.a##1)
#else
#define MM_PART(a) p.a
#endif

void mm_choose_part()
{
    uint group = gl_WorkGroupID.x;
    mm_part = 0;
    mm_rows = p.rows;
#if PARTS > 1 && EPI == 0
    uint groups = (p.rows + MM_SPAN - 1) / MM_SPAN;
    if (group >= groups) {
        group -= groups;
        mm_part = 1;
        mm_rows = p.rows1;
#if PARTS > 2
        groups = (p.rows1 + MM_SPAN - 1) / MM_SPAN;
        if (group >= groups) {
            group -= groups;
            mm_part = 2;
            mm_rows = p.rows2;
        }
#endif
    }
#endif
    mm_row0 = group * MM_SPAN;
}

#if BIAS && !MOE
float mm_bias(uint row)
{
    row = min(row, mm_rows - 1);
#if PARTS > 2
    if (mm_part == 2)
        return extra2[p.extra_at2 + row];
#endif
#if PARTS > 1
    if (mm_part == 1)
        return extra1[p.extra_at1 + row];
#endif
    return extra[p.extra_at + row];
}
#endif
