// SPDX-License-Identifier: MIT
//
// mm_epilogue.glsl: what a mat-vec kernel does with its results besides writing them: the op that follows, in the same kernel.
//   EPI 0  nothing; lanes write results as they have them
//   EPI 1  CONVERT: result in form OUT
//   EPI 2  GLU: the group has rows of two matrices, act(first) * second in form OUT
//   EPI 3  ADD: base + result
//   EPI 4  CONVERT that carries: (base +) result in form OUT, and what that loses to base
// Results of a workgroup meet in shared memory: MM_SPAN rows, whole blocks of 32 where OUT is quantised, by COLS columns. They go to
// y as well: whoever reads the F32 values later finds them.
// To be included first, for out.glsl's numbers to be part of the push constants.

#define Q80_LANES WG
#define OUT_AT (MM_AFTER + (EPI > 1 ? 1 : 0))
#if EPI
#define CARRY (EPI == 4)
#include "out.glsl"
#include "act.glsl"
#define push p // what out.glsl calls them
#endif
