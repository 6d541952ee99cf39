#version 450
// SPDX-License-Identifier: MIT
//
// attention_merge.comp: makes one result of the splits of attention_split.comp: sum_s o_s 2^(m_s - m) / sum_s l_s 2^(m_s - m)
// with m = max m_s. Splits that a sequence is too short for are not read.
//   workgroup (x, y) -> query head, token;  thread -> four columns
#define MERGE 1
#include "attention.glsl"

layout(local_size_x = WG) in;

void main()
{
    // `query` is bound to the scratch here.
    uint head = gl_WorkGroupID.x, token = gl_WorkGroupID.y;
    if (token >= batch_tokens() || tile_pays(token))
        return;
    uint n = splits_of(batch_pos(token) + 1u).y, part = (token * push.n_heads + head) * push.parts;
    float top = LOWEST, sum = 0.0;
    for (uint c = 0u; c < push.parts; c += push.splits)
        for (uint s = c; s < c + n; s++)
            top = max(top, query[push.state_at + 2u * (part + s)]);
    for (uint c = 0u; c < push.parts; c += push.splits)
        for (uint s = c; s < c + n; s++)
            sum += query[push.state_at + 2u * (part + s) + 1u] * exp2(query[push.state_at + 2u * (part + s)] - top);
    for (uint first = 0u; first < HD / 4u; first += WG) {
        uint i = 4u * (first + gl_LocalInvocationIndex), count = i < HD ? 4u : 0u;
        vec4 all = vec4(0.0);
        for (uint c = 0u; c < push.parts && count > 0u; c += push.splits)
            for (uint s = c; s < c + n; s++) {
                uint at = (part + s) * HD + i;
                all += vec4(query[at], query[at + 1u], query[at + 2u], query[at + 3u]) *
                       exp2(query[push.state_at + 2u * (part + s)] - top);
            }
        all /= sum;
        for (uint k = 0u; k < count; k++)
            result[push.result_skip + token * push.result_stride + head * HD + i + k] = all[k];
#ifdef OUT
        OUT_PUT(token, head * HD + i, all, count);
#endif
    }
}
