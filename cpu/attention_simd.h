/* SPDX-License-Identifier: MIT
 *
 * cpu/attention_simd.h: ATTENTION for any vector width. A file of an instruction set defines V_LANES, V_INLINE, v_f32 and the
 * v_* functions (see avx2_attention.c for what they do), and includes this.
 *
 * A sequence is cut into parts of CPU_PART positions, each of which is computed by itself,
 *   m = max s, l = sum_j e^(s_j - m), sum = sum_j e^(s_j - m) V_j, and parts are merged in order:
 *   m' = max(m, m_part), out = out e^(m - m') + sum e^(m_part - m'), l likewise; at the end out / l.
 * So the bits of a query depend on its position and its cache rows alone: not on who walks over the cache with it, nor on
 * whether one thread walks over all parts or several share them.
 *
 * A walk takes up to QUERIES queries - heads of a KV head, of tokens of one sequence - over its cache together, AT_ONCE of them
 * through each load. Where there are many, a block of 32 rows is turned into floats once for all of them. What cache rows past the
 * position of a query hold is never used for it.
 */
#ifndef CPU_ATTENTION_SIMD_H
#define CPU_ATTENTION_SIMD_H

#include "kernels.h"

#ifdef V_LANES
#include <float.h>
#include <math.h>

enum {
    BLOCK = DL_KV_BLOCK,
    BLOCKS = CPU_PART / BLOCK,
    QUERIES = 32,
    AT_ONCE = 4,
    MANY = 12,              /* queries that pay for turning rows into floats */
    SCORES = CPU_PART + 16, /* between rows of scores: no multiple of what makes them share cache sets */
    SUMS = QUERIES * 256,   /* values in all sums together: fewer queries where heads are larger */
    FLOATS = BLOCK * 256,   /* a block, turned; larger ones are not */
    STRIDE = 4,             /* rows of V at a time */
    AHEAD = 2               /* blocks */
};

struct query {
    float *out, m, l; /* of all parts so far */
    uint32_t n_pos;
};

/* The next rows to be read: somewhere where no processor would guess, so they are fetched while others are used. */
struct ahead {
    const uint8_t *at;
    uint32_t lines, step; /* how many of 64 bytes, and how many at a time */
};

struct rows {
    const uint8_t *at;
    uint64_t bytes; /* between two */
    uint32_t dim, count;
};

struct walk {
    const struct cpu_task *task;
    uint32_t token, kv, dim, n, n_pos; /* a token whose table all have; queries; the most positions of one */
    struct query query[QUERIES];
    float q[SUMS];                                    /* (n, dim), times the scale */
    float m[QUERIES], l[QUERIES], s[QUERIES][SCORES]; /* of this part */
    float sum[SUMS];                                  /* (n, dim) of this part */
    float floats[FLOATS];
};

/* Into L2: straight into L1, from memory, takes as long as not to fetch at all. */
V_INLINE void fetch(struct ahead *a)
{
    for (uint32_t n = DL_MIN(a->step, a->lines); n; n--, a->lines--, a->at += 64)
        v_fetch(a->at);
}

/* Sums of H queries and R rows, H * R = 8, as many as the registers hold: query 0's rows first. Not an array: compilers keep
 * those in memory. */
struct eight {
    v_f32 a, b, c, d, e, f, g, h;
};

/* Adds what V_LANES values from c on, or only n, make of the products. */
V_INLINE void dot_values(const enum dl_type type, const uint8_t *row, uint64_t bytes, const float *q, uint64_t dim,
                         uint64_t c, uint32_t n, const v_f32 scale[8], struct eight *s, const uint32_t H)
{
    v_f32 k[8], x[4];
    for (uint32_t r = 0; r < 8 / H; r++)
        if (type == DL_Q80)
            k[r] = v_mul(v_codes(row + r * bytes, c), scale[r]);
        else
            k[r] = n == V_LANES ? v_cache(type, row + r * bytes, c) : v_cache_part(type, row + r * bytes, c, n);
    for (uint32_t h = 0; h < H; h++) {
        x[h] = n == V_LANES ? v_load(q + h * dim + c) : v_load_part(q + h * dim + c, n);
        V_KEEP(x[h]);
    }
    s->a = v_fma(x[0], k[0], s->a);
    s->b = v_fma(x[0], k[1], s->b);
    s->c = v_fma(x[H == 4], k[H == 4 ? 0 : 2], s->c);
    s->d = v_fma(x[H == 4], k[H == 4 ? 1 : 3], s->d);
    s->e = v_fma(x[H / 2], k[H == 1 ? 4 : 0], s->e);
    s->f = v_fma(x[H / 2], k[H == 1 ? 5 : 1], s->f);
    s->g = v_fma(x[H - 1], k[H == 1 ? 6 : H == 2 ? 2 : 0], s->g);
    s->h = v_fma(x[H - 1], k[H == 1 ? 7 : H == 2 ? 3 : 1], s->h);
}

/* s[h][j] = q_h . K_j for j < count, rounded up to a multiple of 8 / H rows: those that there are not come out as anything. */
V_INLINE void dots(const enum dl_type type, const struct rows *k, const float *q, float *s, struct ahead *a,
                   const uint32_t H)
{
    const uint64_t dim = k->dim, bytes = k->bytes;
    const uint8_t *row = k->at;
    for (uint32_t j = 0; j < k->count; j += 8 / H, row += 8 / H * bytes, s += 8 / H) {
        v_f32 scale[8];
        struct eight sum = {v_zero(), v_zero(), v_zero(), v_zero(), v_zero(), v_zero(), v_zero(), v_zero()};
        fetch(a);
        uint64_t c = 0;
        for (; dim - c >= DL_BLOCK; c += DL_BLOCK) {
            for (uint32_t r = 0; type == DL_Q80 && r < 8 / H; r++)
                scale[r] = v_scale(row + r * bytes, c);
            for (uint32_t i = 0; i < DL_BLOCK; i += V_LANES)
                dot_values(type, row, bytes, q, dim, c + i, V_LANES, scale, &sum, H);
        }
        for (; type != DL_Q80 && dim - c >= V_LANES; c += V_LANES)
            dot_values(type, row, bytes, q, dim, c, V_LANES, scale, &sum, H);
        if (type != DL_Q80 && c < dim)
            dot_values(type, row, bytes, q, dim, c, (uint32_t)(dim - c), scale, &sum, H);
        v_put8(sum.a, sum.b, sum.c, sum.d, sum.e, sum.f, sum.g, sum.h, s, SCORES, H);
    }
}

/* The scores of a part become its weights e^(s - m); m and l. Two of everything, as one waits for the next. */
static void weigh(struct walk *w, uint32_t i, uint32_t count)
{
    float *s = w->s[i];
    for (uint32_t j = count; j % (2 * V_LANES); j++)
        s[j] = -INFINITY;
    v_f32 top = v_set1(-FLT_MAX / 2), top2 = top; /* an infinite one would make e^(s - m) NaN */
    for (uint32_t j = 0; j < count; j += 2 * V_LANES) {
        top = v_max(top, v_load(s + j));
        top2 = v_max(top2, v_load(s + j + V_LANES));
    }
    w->m[i] = v_top(v_max(top, top2));
    const v_f32 m = v_set1(w->m[i]);
    v_f32 sum = v_zero(), sum2 = sum;
    for (uint32_t j = 0; j < count; j += 2 * V_LANES) {
        v_f32 p = v_exp(v_sub(v_load(s + j), m)), p2 = v_exp(v_sub(v_load(s + j + V_LANES), m));
        v_store(s + j, p);
        v_store(s + j + V_LANES, p2);
        sum = v_add(sum, p);
        sum2 = v_add(sum2, p2);
    }
    w->l[i] = v_sum(v_add(sum, sum2));
}

/* acc[h][i] += p_h V[c + V_LANES i ..] */
V_INLINE void add_row(const enum dl_type type, const uint8_t *row, const float *p, uint64_t c, uint32_t n,
                      v_f32 acc[AT_ONCE][4], const uint32_t vecs, const uint32_t H)
{
    v_f32 x[4], scale = type == DL_Q80 ? v_scale(row, c) : v_zero(); /* vecs are in one block */
    for (uint32_t i = 0; i < vecs; i++)
        if (type == DL_Q80)
            x[i] = v_mul(v_codes(row, c + V_LANES * i), scale);
        else
            x[i] = n == V_LANES ? v_cache(type, row, c + V_LANES * i) : v_cache_part(type, row, c, n);
    for (uint32_t h = 0; h < H; h++) {
        v_f32 weight = v_set1(p[h * SCORES]);
        for (uint32_t i = 0; i < vecs; i++)
            acc[h][i] = v_fma(weight, x[i], acc[h][i]);
    }
}

/* sum_h[c ..] += sum_j p_h[j] V_j[c ..] for `vecs` vectors, the only one of n < V_LANES columns. */
V_INLINE void add_columns(const enum dl_type type, const struct rows *v, float *sum, const float *p, uint32_t c,
                          uint32_t n, struct ahead *a, const uint32_t vecs, const uint32_t H)
{
    v_f32 acc[AT_ONCE][4];
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < vecs; i++) {
            const float *at = sum + h * v->dim + c + V_LANES * i;
            acc[h][i] = n == V_LANES ? v_load(at) : v_load_part(at, n);
        }
    const uint8_t *row = v->at;
    uint32_t j = 0;
    for (; v->count - j >= STRIDE; j += STRIDE, p += STRIDE) {
        fetch(a);
        for (uint32_t k = 0; k < STRIDE; k++, row += v->bytes)
            add_row(type, row, p + k, c, n, acc, vecs, H);
    }
    for (; j < v->count; j++, p++, row += v->bytes)
        add_row(type, row, p, c, n, acc, vecs, H);
    for (uint32_t h = 0; h < H; h++)
        for (uint32_t i = 0; i < vecs; i++) {
            float *at = sum + h * v->dim + c + V_LANES * i;
            if (n == V_LANES)
                v_store(at, acc[h][i]);
            else
                v_store_part(at, acc[h][i], n);
        }
}

V_INLINE void add_values(const enum dl_type type, const struct rows *v, float *sum, const float *p, struct ahead *a,
                         const uint32_t H)
{
    const uint32_t vecs = H == 4 ? 2 : 4;
    uint32_t c = 0;
    for (; v->dim - c >= V_LANES * vecs; c += V_LANES * vecs)
        add_columns(type, v, sum, p, c, V_LANES, a, vecs, H);
    for (; v->dim - c >= V_LANES; c += V_LANES)
        add_columns(type, v, sum, p, c, V_LANES, a, 1, H);
    if (type != DL_Q80 && c < v->dim)
        add_columns(type, v, sum, p, c, v->dim - c, a, 1, H);
}

/* ------------------------------------------------------------------------------------------------ one block */

/* Queries [i, end) of the walk, all of which see `rows->count` positions of the block that begins at `at` of the part. */
V_INLINE void use_rows(const enum dl_type type, struct walk *w, const struct rows *rows, uint32_t at, uint32_t i,
                       uint32_t end, struct ahead *a, const bool values)
{
    const uint32_t dim = w->dim;
    for (uint32_t n; i < end; i += n) {
        n = end - i >= 4 ? 4 : end - i >= 2 ? 2 : 1;
        float *sum = w->sum + i * dim, *s = w->s[i] + at;
        if (values && n == 4)
            add_values(type, rows, sum, s, a, 4);
        else if (values && n == 2)
            add_values(type, rows, sum, s, a, 2);
        else if (values)
            add_values(type, rows, sum, s, a, 1);
        else if (n == 4)
            dots(type, rows, w->q + i * dim, s, a, 4);
        else if (n == 2)
            dots(type, rows, w->q + i * dim, s, a, 2);
        else
            dots(type, rows, w->q + i * dim, s, a, 1);
    }
}

/* The rows of K (which = 1) or V (2) from position pos on. */
V_INLINE const uint8_t *block_at(const struct walk *w, uint32_t which, uint32_t pos)
{
    const struct dl_op *op = w->task->op;
    return w->task->src[which] +
           cpu_kv_row(w->task, w->token, op->u.attn.n_kv_heads, w->kv, pos) * op->src[which].row_bytes;
}

/* A part's blocks of K come first, then those of V: what is AHEAD blocks on from block b of one of these? */
V_INLINE struct ahead look_ahead(const struct walk *w, uint32_t which, uint32_t first, uint32_t last, uint32_t b)
{
    uint32_t n = (DL_MIN(last - first, CPU_PART) + BLOCK - 1) / BLOCK, pos = first;
    b += AHEAD;
    if (which == 2 && b >= n) {
        b -= n;
        which = 1;
        pos += CPU_PART;
    } else if (which == 1 && b >= n) {
        b = DL_MIN(b - n, n - 1);
        which = 2;
    }
    pos += b * BLOCK;
    if (pos >= last)
        return (struct ahead){0};
    const uint64_t bytes = w->task->op->src[which].row_bytes * DL_MIN(BLOCK, last - pos);
    return (struct ahead){.at = block_at(w, which, pos), .lines = (uint32_t)dl_div_up(bytes, 64)};
}

/* A row of the cache as floats. */
V_INLINE void to_floats(const enum dl_type type, const uint8_t *row, float *out, uint32_t dim)
{
    uint32_t c = 0;
    for (; dim - c >= V_LANES; c += V_LANES)
        v_store(out + c, type == DL_Q80 ? v_mul(v_codes(row, c), v_scale(row, c)) : v_cache(type, row, c));
    if (type != DL_Q80 && c < dim)
        v_store_part(out + c, v_cache_part(type, row, c, dim - c), dim - c);
}

/* One block of K or V for all queries. */
V_INLINE void block(const enum dl_type type, struct walk *w, uint32_t first, uint32_t b, const bool values)
{
    const uint32_t which = values ? 2 : 1, pos = first + b * BLOCK, dim = w->dim;
    struct rows rows = {block_at(w, which, pos), w->task->op->src[which].row_bytes, dim, DL_MIN(w->n_pos - pos, BLOCK)};
    struct ahead a = look_ahead(w, which, first, w->n_pos, b);
    const bool turn = type != DL_F32 && w->n >= MANY && dim <= FLOATS / BLOCK;
    const uint32_t steps = turn ? 1 : values ? (dim + V_LANES * 2 - 1) / (V_LANES * 2) * (BLOCK / STRIDE) : BLOCK / 2;
    a.step = (a.lines + steps - 1) / steps;
    if (turn) {
        fetch(&a);
        for (uint32_t j = 0; j < rows.count; j++)
            to_floats(type, rows.at + j * rows.bytes, w->floats + j * dim, dim);
        rows.at = (const uint8_t *)w->floats;
        rows.bytes = dim * sizeof(float);
    }
    for (uint32_t i = 0, end; i < w->n; i = end) { /* those that see as much of it */
        const uint32_t n_pos = w->query[i].n_pos;
        rows.count = n_pos > pos ? DL_MIN(n_pos - pos, BLOCK) : 0;
        for (end = i + 1; end < w->n; end++) {
            const uint32_t other = w->query[end].n_pos;
            if ((other > pos ? DL_MIN(other - pos, BLOCK) : 0) != rows.count)
                break;
        }
        if (rows.count && turn)
            use_rows(DL_F32, w, &rows, b * BLOCK, i, end, &a, values);
        else if (rows.count)
            use_rows(type, w, &rows, b * BLOCK, i, end, &a, values);
    }
}

/* ------------------------------------------------------------------------------------------------- one part */

/* Positions [first, first + CPU_PART), as far as each query sees them. */
V_INLINE void part(const enum dl_type type, struct walk *w, uint32_t first)
{
    const uint32_t n = (DL_MIN(w->n_pos - first, CPU_PART) + BLOCK - 1) / BLOCK;
    for (uint32_t b = 0; b < n; b++)
        block(type, w, first, b, false);
    for (uint32_t i = 0; i < w->n; i++)
        if (w->query[i].n_pos > first)
            weigh(w, i, DL_MIN(w->query[i].n_pos - first, CPU_PART));
    memset(w->sum, 0, (size_t)w->n * w->dim * sizeof *w->sum);
    for (uint32_t b = 0; b < n; b++)
        block(type, w, first, b, true);
}

/* out = x * a */
static void multiply(float *out, const float *x, float a, uint32_t dim)
{
    uint32_t c = 0;
    for (; dim - c >= V_LANES; c += V_LANES)
        v_store(out + c, v_mul(v_load(x + c), v_set1(a)));
    if (c < dim)
        v_store_part(out + c, v_mul(v_load_part(x + c, dim - c), v_set1(a)), dim - c);
}

/* out = out * a + x * b */
static void mix(float *out, float a, const float *x, float b, uint32_t dim)
{
    const v_f32 va = v_set1(a), vb = v_set1(b);
    uint32_t c = 0;
    for (; dim - c >= V_LANES; c += V_LANES)
        v_store(out + c, v_fma(v_load(out + c), va, v_mul(v_load(x + c), vb)));
    if (c < dim) {
        uint32_t n = dim - c;
        v_store_part(out + c, v_fma(v_load_part(out + c, n), va, v_mul(v_load_part(x + c, n), vb)), n);
    }
}

/* Another part of a query, the first one as it is. */
static void merge(struct query *q, bool first, float m, float l, const float *sum, uint32_t dim)
{
    if (first) {
        q->m = m;
        q->l = l;
        memcpy(q->out, sum, dim * sizeof *sum);
        return;
    }
    const float top = DL_MAX(q->m, m);
    const float a = v_first(v_exp(v_set1(q->m - top))), b = v_first(v_exp(v_set1(m - top)));
    mix(q->out, a, sum, b, dim);
    q->m = top;
    q->l = q->l * a + l * b;
}

static void finish(const struct query *q, uint32_t dim)
{
    multiply(q->out, q->out, q->l != 0 ? 1.0f / q->l : 0.0f, dim);
}

/* -------------------------------------------------------------------------------------------------- a walk */

/* Query heads [h0, h0 + n) of tokens [t, end), which share a table. */
static void start(struct walk *w, const struct cpu_task *task, uint32_t kv, uint32_t t, uint32_t end, uint32_t h0,
                  uint32_t n)
{
    const struct dl_op *op = task->op;
    w->task = task;
    w->token = t;
    w->kv = kv;
    w->dim = op->u.attn.head_dim;
    w->n = w->n_pos = 0;
    for (; t < end; t++) {
        const float *q = (const float *)(const void *)cpu_row(task->src[0], &op->src[0], t) + (uint64_t)h0 * w->dim;
        float *out = (float *)(void *)cpu_row_out(task->dst, &op->dst, t) + (uint64_t)h0 * w->dim;
        for (uint32_t h = 0; h < n; h++, q += w->dim, out += w->dim) {
            multiply(w->q + w->n * w->dim, q, op->u.attn.scale, w->dim);
            w->query[w->n++] = (struct query){.out = out, .n_pos = task->rows[t].pos + 1};
        }
        w->n_pos = DL_MAX(w->n_pos, task->rows[t].pos + 1);
    }
}

V_INLINE void walk_all(const enum dl_type type, struct walk *w)
{
    for (uint32_t first = 0; first < w->n_pos; first += CPU_PART) {
        part(type, w, first);
        for (uint32_t i = 0; i < w->n; i++)
            if (w->query[i].n_pos > first)
                merge(&w->query[i], !first, w->m[i], w->l[i], w->sum + i * w->dim, w->dim);
    }
    for (uint32_t i = 0; i < w->n; i++)
        finish(&w->query[i], w->dim);
}

/* Units that are whole tokens: neighbours of one sequence go together. */
V_INLINE void whole_units(const enum dl_type type, const struct cpu_task *task, uint32_t unit, uint32_t unit1)
{
    struct walk w;
    const uint32_t most = DL_MIN(QUERIES, SUMS / task->op->u.attn.head_dim);
    while (unit < unit1) {
        const uint32_t kv = unit / task->n, t0 = unit % task->n, t1 = DL_MIN(task->n, t0 + (unit1 - unit));
        const struct cpu_heads heads = cpu_heads(task->op, kv);
        for (uint32_t h = heads.first, n; h < heads.end; h += n) {
            n = DL_MIN(heads.end - h, most);
            for (uint32_t t = t0, end; t < t1; t = end) {
                for (end = t + 1; end < t1 && (end - t + 1) * n <= most; end++)
                    if (task->rows[end].table != task->rows[t].table)
                        break;
                start(&w, task, kv, t, end, h, n);
                walk_all(type, &w);
            }
        }
        unit += t1 - t0;
    }
}

/* Where a part of a head of a token is kept meanwhile: sum, m, l. */
V_INLINE float *kept(const struct cpu_task *task, uint32_t t, uint32_t h, uint32_t p)
{
    const struct dl_op *op = task->op;
    return task->scratch + (((uint64_t)t * op->u.attn.n_heads + h) * task->parts + p) * cpu_part_floats(op);
}

/* Units that are parts. */
V_INLINE void part_units(const enum dl_type type, const struct cpu_task *task, uint32_t unit, uint32_t unit1)
{
    struct walk w;
    const uint32_t dim = task->op->u.attn.head_dim, most = DL_MIN(QUERIES, SUMS / dim);
    for (; unit < unit1; unit++) {
        const uint32_t p = unit % task->parts, t = unit / task->parts % task->n, kv = unit / task->parts / task->n;
        const struct cpu_heads heads = cpu_heads(task->op, kv);
        if (task->rows[t].pos < p * CPU_PART)
            continue;
        for (uint32_t h = heads.first, n; h < heads.end; h += n) {
            n = DL_MIN(heads.end - h, most);
            start(&w, task, kv, t, t + 1, h, n);
            part(type, &w, p * CPU_PART);
            for (uint32_t i = 0; i < n; i++) {
                float *to = kept(task, t, h + i, p);
                memcpy(to, w.sum + i * dim, dim * sizeof *to);
                to[dim] = w.m[i];
                to[dim + 1] = w.l[i];
            }
        }
    }
}

V_INLINE void attention(const enum dl_type type, const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    if (task->parts)
        part_units(type, task, unit0, unit1);
    else
        whole_units(type, task, unit0, unit1);
}

/* What part_units kept becomes the result. */
static void merge_parts(const struct cpu_task *task, uint32_t unit0, uint32_t unit1)
{
    const struct dl_op *op = task->op;
    const uint32_t dim = op->u.attn.head_dim;
    for (uint32_t unit = unit0; unit < unit1; unit++) {
        const uint32_t t = unit / op->u.attn.n_heads, h = unit % op->u.attn.n_heads;
        struct query q = {.out = (float *)(void *)cpu_row_out(task->dst, &op->dst, t) + (uint64_t)h * dim};
        for (uint32_t p = 0; p * CPU_PART <= task->rows[t].pos; p++) {
            const float *from = kept(task, t, h, p);
            merge(&q, !p, from[dim], from[dim + 1], from, dim);
        }
        finish(&q, dim);
    }
}

#endif
#endif
