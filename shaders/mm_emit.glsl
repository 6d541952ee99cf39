// SPDX-License-Identifier: MIT
//
// mm_emit.glsl: the end of mm_epilogue.glsl's kernels.

#if EPI
#if EPI == 2
layout(std430, binding = MM_AFTER) buffer mm_y1
{
    float y1[];
};
#elif EPI == 3
layout(std430, binding = MM_AFTER) readonly buffer mm_base
{
    float base[];
};
#elif EPI == 4
layout(std430, binding = MM_AFTER) buffer mm_base
{
    float base[];
};
#endif

// All lanes of the workgroup come here, after mm_finish.
void mm_emit()
{
    const uint PER_COL = MM_SPAN / 4, ALL = PER_COL * COLS;
    barrier();
    for (uint first = 0; first < ALL; first += WG) {
        uint quad = first + gl_LocalInvocationID.x, col = quad / PER_COL, i = quad % PER_COL * 4, row = mm_row0 + i;
        uint n = 0, to = mm_out_row(col);
        if (quad < ALL && col < mm_n && row < p.rows)
            n = min(4, p.rows - row);
        vec4 v = vec4(0);
        for (uint k = 0; k < n; k++) {
            float sum = mm_stage[col * MM_SPAN + i + k];
            y[p.y_at + to * p.y_row + row + k] = sum;
#if EPI == 2
            float up = mm_stage[(COLS + col) * MM_SPAN + i + k];
            y1[p.y_at1 + to * p.y_row + row + k] = up;
            sum = act(sum) * up;
#elif EPI == 3
            sum = base[p.base_at + to * p.base_row + row + k] + sum;
#elif EPI == 4
            if (p.carry_on != 0)
                sum += base[p.base_at + to * p.base_row + row + k];
#endif
            v[k] = sum;
        }
        OUT_PUT(to, row, v, n);
#if EPI == 4
        v -= out_stored;
        for (uint k = 0; k < n; k++)
            base[p.base_at + to * p.base_row + row + k] = v[k];
#endif
    }
}
#endif
