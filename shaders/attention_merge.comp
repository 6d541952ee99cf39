#version 450
// SPDX-License-Identifier: MIT
//
// attention_merge.comp: makes one result of the splits of attention_split.comp: sum_s o_s 2^(m_s - m) / sum_s l_s 2^(m_s - m)
// with m = max m_s. Splits that a sequence is too short for are not read.
//   workgroup (x, y) -> query head, token;  thread -> columns
#define MERGE 1
#include "attention.glsl"

layout(local_size_x = WG) in;

void main()
{
    // `query` is bound to the scratch here.
    uint head = gl_WorkGroupID.x, token = gl_WorkGroupID.y;
    if (token >= batch_tokens() || tile_pays(token))
        return;
    uint n = splits_of(batch_pos(token) + 1u).y, part = (token * push.n_heads + head) * push.splits;
    float top = LOWEST, sum = 0.0;
    for (uint s = 0u; s < n; s++)
        top = max(top, query[push.state_at + 2u * (part + s)]);
    for (uint s = 0u; s < n; s++)
        sum += query[push.state_at + 2u * (part + s) + 1u] * exp2(query[push.state_at + 2u * (part + s)] - top);
    for (uint i = gl_LocalInvocationIndex; i < HD; i += WG) {
        float all = 0.0;
        for (uint s = 0u; s < n; s++)
            all += query[(part + s) * HD + i] * exp2(query[push.state_at + 2u * (part + s)] - top);
        result[push.out_skip + token * push.out_stride + head * HD + i] = all / sum;
    }
}
