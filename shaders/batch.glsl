// SPDX-License-Identifier: MIT
//
// batch.glsl: the batch buffer (dl/op.h, struct dl_batch_head) as binding 0. COUNT says what a row of the op is: 0 a token, 1 a token
// whose logits are wanted. A recorded kernel serves any batch up to its size: rows that this batch lacks are not to be written.
layout(std430, set = 0, binding = 0) readonly buffer BatchBuffer { uint batch[]; };

#define BATCH_HEAD 8u

uint batch_count() { return batch[COUNT]; }
uint batch_pos(uint token) { return batch[BATCH_HEAD + 2u * token]; }
uint batch_table(uint token) { return batch[BATCH_HEAD + 2u * token + 1u]; }
uint batch_out_row(uint i) { return batch[BATCH_HEAD + 2u * batch[2] + i]; }

// KV block of a position of the sequence with this table.
uint batch_kv_block(uint table, uint pos)
{
    return batch[BATCH_HEAD + 2u * batch[2] + batch[3] + table * batch[5] + (pos >> 5)];
}

// Number of this workgroup; there may be more than the op has work for.
uint group_number() { return gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x; }
