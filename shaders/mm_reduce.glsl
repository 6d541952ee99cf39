// SPDX-License-Identifier: MIT
//
// mm_reduce.glsl: how the LPR lanes that share rows add up their partial sums, and who writes the results.
//   LPR == 1       nothing to add
//   SG > 1         exclusive-or shuffles inside a subgroup of SG lanes; SG % LPR == 0
//   SG == 1        shared memory, one barrier: every result is summed by one lane, in lane order
// Workgroup = WG lanes = WG / LPR groups; a group owns ROWS rows and COLS columns,
// anew in each of PASSES passes.

#if SG > 1
uint mm_lane_id()
{
    return gl_SubgroupID * SG + gl_SubgroupInvocationID;
}
#else
uint mm_lane_id()
{
    return gl_LocalInvocationID.x;
}
#endif

#if SG == 1 && LPR > 1
shared float mm_partial[ROWS * COLS * WG];
#endif

void mm_write(uint row0, uint r, uint col, float sum);

// row0: the group's first row. Every lane of the workgroup must come here.
void mm_finish(uint id, uint row0, float acc[ROWS * COLS])
{
#if LPR == 1
    for (uint i = 0; i < ROWS * COLS; i++)
        mm_write(row0, i / COLS, i % COLS, acc[i]);
#elif SG > 1
    for (uint i = 0; i < ROWS * COLS; i++) {
        for (uint step = LPR / 2; step > 0; step /= 2)
            acc[i] += subgroupShuffleXor(acc[i], step);
        if (id % LPR == i % LPR)
            mm_write(row0, i / COLS, i % COLS, acc[i]);
    }
#else
#if PASSES > 1
    barrier(); // the last pass' sums are read
#endif
    for (uint i = 0; i < ROWS * COLS; i++)
        mm_partial[i * WG + id] = acc[i];
    barrier();
    uint lane = id % LPR, first = id - lane;
    for (uint i = lane; i < ROWS * COLS; i += LPR) {
        float sum = 0;
        for (uint j = 0; j < LPR; j++)
            sum += mm_partial[i * WG + first + j];
        mm_write(row0, i / COLS, i % COLS, sum);
    }
#endif
}
