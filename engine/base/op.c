/* SPDX-License-Identifier: MIT
 *
 * engine/base/op.c: the op table of dl/op.h and the hazard rule that devices order ops by.
 */
#include "dl/op.h"

#define X(name, text, n_src) [DL_OP_##name] = {text, n_src},
static const struct {
    const char *name;
    uint32_t n_src;
} ops[] = {DL_OP_MAP(X)};
#undef X
_Static_assert(DL_COUNT_OF(ops) == DL_OP_COUNT, "every opcode has its row");

const char *dl_op_name(enum dl_opcode code)
{
    return (unsigned)code < DL_OP_COUNT ? ops[code].name : "?";
}

uint32_t dl_op_n_src(enum dl_opcode code)
{
    return (unsigned)code < DL_OP_COUNT ? ops[code].n_src : 0;
}

/* Views of one buffer overlap unless their bytes lie apart, or they are different columns of the same rows. */
static bool views_overlap(const struct dl_view *a, const struct dl_view *b)
{
    if (a->buf == DL_NO_BUF || a->buf != b->buf || !a->rows || !b->rows)
        return false;
    uint64_t a_row = 0, b_row = 0;
    if (!dl_row_bytes(a->type, a->cols, &a_row) || !dl_row_bytes(b->type, b->cols, &b_row))
        return true;
    uint64_t a_end = a->offset + (a->rows - 1) * a->row_bytes + a_row;
    uint64_t b_end = b->offset + (b->rows - 1) * b->row_bytes + b_row;
    if (a_end <= b->offset || b_end <= a->offset)
        return false;
    if (a->row_bytes == b->row_bytes && a->row_bytes) {
        uint64_t a_col = a->offset % a->row_bytes, b_col = b->offset % b->row_bytes;
        bool inside = a_col + a_row <= a->row_bytes && b_col + b_row <= b->row_bytes;
        if (inside && (a_col + a_row <= b_col || b_col + b_row <= a_col))
            return false;
    }
    return true;
}

/* MERGE reads all slices of its wire view; the view only spells out the first. */
static bool op_touches(const struct dl_op *op, uint32_t src, const struct dl_view *v)
{
    if (op->code == DL_OP_MERGE && src == 1)
        return op->src[1].buf == v->buf && v->buf != DL_NO_BUF;
    return views_overlap(&op->src[src], v);
}

/* Does `op` touch what `writer` writes? */
static bool op_meets(const struct dl_op *writer, const struct dl_op *op)
{
    const struct dl_view *writes[] = {&writer->dst, &writer->src[1]};
    const uint32_t n = dl_op_carries(writer) ? 2 : 1;
    for (uint32_t w = 0; w < n; w++) {
        if (views_overlap(writes[w], &op->dst))
            return true;
        for (uint32_t i = 0; i < 3; i++)
            if (op_touches(op, i, writes[w]))
                return true;
    }
    return false;
}

bool dl_op_conflict(const struct dl_op *earlier, const struct dl_op *later)
{
    return op_meets(earlier, later) || op_meets(later, earlier);
}
