/* SPDX-License-Identifier: MIT
 *
 * cpu/program.c: see program.h. A stage is a run of ops none of which conflicts with another: their units form one parallel
 * region with one barrier behind it, so that wq, wk and wv share the threads instead of queueing for them. Which
 * thread runs a unit never shows in its result (kernels.h), so the cut into chunks is free to follow the load.
 */
#include "program.h"

#include <stdlib.h>
#include <string.h>

#include "cpu_features.h"

#define MAX_STAGE_OPS 1024u  /* keeps chunks below CPU_POOL_MAX_CHUNKS */
#define ALONE_NS 4000u       /* about what it costs to hand work over and to wait for the others */
#define CHUNK_NS 2000u       /* the smallest chunk worth a claim */
#define CHUNKS_PER_THREAD 8u /* enough to even out what the estimate or another process gets wrong */
#define UNITS_PER_THREAD 4u  /* of ATTENTION: enough to be shared evenly */
#define ROUNDS 4u /* of chunks that halve: as even at the end as 2^(ROUNDS - 1) equal ones, with half the seams */

struct prepared {
    struct cpu_task task;            /* .op points into cpu_program.ops */
    cpu_kernel *kernel, *merge;      /* merge: of ATTENTION in parts, or NULL */
    uint32_t slowness;               /* of the kernel, for the estimate */
    uint32_t units, chunks, chunk_0; /* of the running batch; the op's chunks are [chunk_0, chunk_0 + chunks) */
    uint64_t cost_ns;
};

struct stage {
    uint32_t first, n;
};

struct cpu_program {
    uint32_t n_ops, n_stages;
    uint32_t max_tokens, max_out;
    struct dl_op *ops;
    struct prepared *prepared;
    struct stage *stages;
};

/* The best first. */
static const struct {
    unsigned isa;
    cpu_kernel *(*fn)(const struct dl_op *op);
} picks[] = {
#ifdef CPU_HAVE_AVX512
    {CPU_ISA_AVX512, cpu_avx512_pick},
#endif
#ifdef CPU_HAVE_AVXVNNI
    {CPU_ISA_AVXVNNI, cpu_avxvnni_pick},
#endif
#ifdef CPU_HAVE_AVX2
    {CPU_ISA_AVX2, cpu_avx2_pick},
#endif
#ifdef CPU_HAVE_NEON
    {CPU_ISA_DOTPROD, cpu_dotprod_pick}, {CPU_ISA_NEON, cpu_avx2_pick}, /* neon.h */
#endif
    {CPU_ISA_REF, cpu_ref_pick},
};

cpu_kernel *cpu_pick(const struct dl_op *op, unsigned isa)
{
    /* ref knows every op: what it has no kernel for is no op, and the other sets need not check types as strictly. */
    cpu_kernel *kernel = NULL;
    for (size_t i = 0; cpu_ref_pick(op) && !kernel && i < DL_COUNT_OF(picks); i++)
        if (isa & picks[i].isa)
            kernel = picks[i].fn(op);
    return kernel;
}

/* What merges the parts that `kernel` leaves behind. */
static cpu_kernel *pick_merge(const struct dl_op *op, unsigned isa, cpu_kernel *kernel)
{
#if defined(CPU_HAVE_AVX2) || defined(CPU_HAVE_NEON)
    if (op->code == DL_OP_ATTENTION && isa & (CPU_ISA_AVX2 | CPU_ISA_NEON) && kernel == cpu_avx2_pick(op))
        return cpu_avx2_pick_merge_parts(op);
#else
    (void)op, (void)isa, (void)kernel;
#endif
    return NULL;
}

static uint8_t *address(const struct dl_view *v, const struct cpu_base *base)
{
    return v->buf == DL_NO_BUF || !base[v->buf].data ? NULL : base[v->buf].data + v->offset;
}

/* Only MATMUL and MOE_MATMUL read quantised weights. */
static int find_rows(struct cpu_task *task, const struct cpu_base *base)
{
    const struct dl_op *op = task->op;
    const struct dl_view *w = &op->src[1];
    uint64_t row;
    if (w->buf == DL_NO_BUF || !base[w->buf].packed)
        return DL_OK;
    if (!dl_row_bytes(w->type, w->cols, &row) || row != w->row_bytes || w->offset % row)
        return dl_fail(DL_EUNSUP, "cpu: %s: weights are used in whole rows", dl_op_name(op->code));
    task->src[1] = base[w->buf].data;
    task->row0 = (uint32_t)(w->offset / row);
    return DL_OK;
}

static bool joins(const struct cpu_program *p, const struct stage *s, const struct dl_op *op)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (dl_op_conflict(&p->ops[s->first + i], op))
            return false;
    return s->n && s->n < MAX_STAGE_OPS;
}

int cpu_program_create(const struct dl_op *ops, uint32_t n_ops, const struct cpu_base *base, unsigned isa,
                       struct cpu_program **out)
{
    *out = NULL;
    struct cpu_program *p = dl_calloc(1, sizeof *p);
    if (!p)
        return DL_ENOMEM;
    p->ops = dl_calloc(n_ops, sizeof *p->ops);
    p->prepared = dl_calloc(n_ops, sizeof *p->prepared);
    p->stages = dl_calloc((size_t)n_ops + 1, sizeof *p->stages);
    if (!p->ops || !p->prepared || !p->stages) {
        cpu_program_destroy(p);
        return DL_ENOMEM;
    }
    p->n_ops = n_ops;
    p->max_tokens = p->max_out = UINT32_MAX;
    struct stage *s = p->stages;
    for (uint32_t i = 0; i < n_ops; i++) {
        struct dl_op *op = &p->ops[i];
        *op = ops[i];
        op->name = NULL; /* the plan's, which need not live as long */
        struct prepared *q = &p->prepared[i];
        q->kernel = cpu_pick(op, isa);
        q->merge = pick_merge(op, isa, q->kernel);
        q->slowness = q->kernel == cpu_ref_pick(op) ? 16 : 1;
        q->task.op = op;
        q->task.dst = address(&op->dst, base);
        for (uint32_t j = 0; j < 3; j++)
            q->task.src[j] = address(&op->src[j], base);
        int err = find_rows(&q->task, base);
        if (err) {
            cpu_program_destroy(p);
            return err;
        }
        /* The rows of a KV view are the cache's, not the batch's. */
        uint32_t rows = (op->code == DL_OP_KV_STORE ? op->src[0].rows : op->dst.rows) / DL_MAX(op->mult, 1u);
        uint32_t *most = op->count == DL_COUNT_OUT ? &p->max_out : &p->max_tokens;
        *most = DL_MIN(*most, rows);
        if (!joins(p, s, op)) {
            s += s->n != 0;
            s->first = i;
        }
        s->n++;
    }
    p->n_stages = n_ops ? (uint32_t)(s - p->stages) + 1 : 0;
    *out = p;
    return DL_OK;
}

void cpu_program_destroy(struct cpu_program *p)
{
    if (!p)
        return;
    free(p->ops);
    free(p->prepared);
    free(p->stages);
    free(p);
}

int cpu_program_fits(const struct cpu_program *p, const struct dl_run_args *args)
{
    if (args->n_tokens > p->max_tokens || args->n_out > p->max_out)
        return dl_fail(DL_EINVAL, "cpu: a batch of %u tokens and %u outputs, the program takes %u and %u",
                       args->n_tokens, args->n_out, p->max_tokens, p->max_out);
    return DL_OK;
}

/* Roughly how long one fast thread needs; only to choose between one thread and all, and the size of chunks. */
static uint64_t estimate_ns(const struct prepared *q)
{
    const struct dl_op *op = q->task.op;
    uint64_t n = q->task.n, cols = op->dst.cols;
    switch (op->code) {
    case DL_OP_MATMUL: /* the weights come from memory once, then n times from the cache */
        return (n + 3) * cols * op->src[0].cols / 100;
    case DL_OP_MOE_MATMUL:
        return (n + 3 * DL_MIN(n, op->u.moe.n_experts)) * cols * op->src[0].cols / 100;
    case DL_OP_ATTENTION: {
        uint64_t positions = 0;
        for (uint32_t t = 0; t < q->task.n; t++)
            positions += (uint64_t)q->task.rows[t].pos + 1;
        return positions * cols / 16;
    }
    case DL_OP_MOE_ROUTE:
        return n * op->u.moe.n_experts * (op->u.moe.k + 4);
    case DL_OP_KV_STORE:
        return n * op->src[0].cols;
    case DL_OP_MERGE:
        return n * cols * (op->u.merge.n_slices + 1) / 4;
    case DL_OP_MOE_SUM:
        return n * cols * op->src[1].cols / 8;
    default:
        return n * cols / 2;
    }
}

struct region {
    struct prepared *first;
    uint32_t n, n_threads;
    /* of which each takes half of what is left of all ops together, a chunk per thread; 0: each op has chunks of its own */
    uint32_t rounds;
    uint64_t units; /* of all ops */
};

/* The unit that chunk i begins with, counted over all ops. */
static uint64_t chunk_begin(const struct region *r, uint32_t i)
{
    uint32_t round = i / r->n_threads, k = i % r->n_threads;
    if (round >= r->rounds)
        return r->units;
    /* Before the round everything but 1 / 2^round is done; the last one takes all that is left. */
    uint64_t left = r->units >> round, take = round + 1 < r->rounds ? left - (r->units >> (round + 1)) : left;
    return r->units - left + take * k / r->n_threads;
}

static void run_units(const struct prepared *q, uint64_t unit, uint64_t end)
{
    if (unit < end)
        q->kernel(&q->task, (uint32_t)unit, (uint32_t)end);
}

/* Its chunks are a multiple of the threads, and one that is as fast as the others gets neighbours: see run_chunk. */
static bool stays_apart(const struct prepared *q)
{
    return q->task.op->code == DL_OP_ATTENTION;
}

static void run_chunk(void *ud, uint32_t chunk)
{
    const struct region *r = ud;
    const struct prepared *q = r->first;
    if (r->rounds) {
        uint64_t begin = chunk_begin(r, chunk), end = chunk_begin(r, chunk + 1);
        for (uint64_t at = 0; at < end; at += q->units, q++)
            run_units(q, DL_MAX(begin, at) - at, DL_MIN(end - at, q->units));
        return;
    }
    while (chunk - q->chunk_0 >= q->chunks)
        q++;
    uint64_t i = chunk - q->chunk_0;
    /* KV heads lie side by side in the cache. What a core fetches past the end of one is what the core next to it is about to read, and where
     * they share no cache, getting it from there takes longer than from memory. */
    if (stays_apart(q))
        i = i % r->n_threads * (q->chunks / r->n_threads) + i / r->n_threads;
    run_units(q, q->units * i / q->chunks, q->units * (i + 1) / q->chunks);
}

/* Weights that stream from memory are cut as little as evenness allows, all of a stage as if they were one; units of unequal
 * cost, and small ones, are cut alike. Returns the number of chunks. */
static uint32_t cut(struct region *r, uint64_t cost_ns)
{
    uint64_t per_chunk = DL_MAX(cost_ns / ((uint64_t)r->n_threads * CHUNKS_PER_THREAD), CHUNK_NS);
    uint32_t n_chunks = 0;
    bool stream = true;
    r->units = 0;
    for (uint32_t i = 0; i < r->n; i++) {
        struct prepared *q = &r->first[i];
        q->chunks = (uint32_t)DL_MIN(q->cost_ns / per_chunk + 1, q->units);
        if (stays_apart(q))
            q->chunks = (uint32_t)dl_round_up(q->chunks, r->n_threads);
        q->chunk_0 = n_chunks;
        n_chunks += q->chunks;
        r->units += q->units;
        stream = stream && q->task.op->code == DL_OP_MATMUL;
    }
    r->rounds = stream && n_chunks > r->n_threads * ROUNDS ? ROUNDS : 0;
    return r->rounds ? r->n_threads * ROUNDS : n_chunks;
}

static void run_stage(struct region r, uint64_t cost_ns, struct cpu_pool *pool)
{
    if (r.n_threads == 1 || cost_ns < ALONE_NS) {
        for (uint32_t i = 0; i < r.n; i++)
            run_units(&r.first[i], 0, r.first[i].units);
        return;
    }
    uint32_t n_chunks = cut(&r, cost_ns);
    cpu_pool_run(pool, run_chunk, &r, n_chunks);
}

/* Where there are too few tokens and KV heads for all threads, contexts are cut into parts, as far as what these leave behind
 * has a place. */
static void find_parts(struct prepared *q, uint32_t n_threads)
{
    const struct dl_op *op = q->task.op;
    q->task.parts = 0;
    if (!q->merge || q->units >= UNITS_PER_THREAD * n_threads || n_threads == 1)
        return;
    uint32_t last = 0;
    for (uint32_t t = 0; t < q->task.n; t++)
        last = DL_MAX(last, q->task.rows[t].pos);
    uint32_t parts = last / CPU_PART + 1;
    if (parts == 1 || cpu_part_floats(op) * op->u.attn.n_heads * q->task.n * parts > CPU_SCRATCH_FLOATS)
        return;
    q->task.parts = parts;
    q->units *= parts;
}

static void merge_parts(const struct prepared *q, uint32_t n_threads, struct cpu_pool *pool)
{
    struct prepared m = *q;
    m.kernel = q->merge;
    m.units = q->task.n * q->task.op->u.attn.n_heads;
    m.cost_ns = (uint64_t)m.units * q->task.parts * q->task.op->u.attn.head_dim / 8;
    run_stage((struct region){.first = &m, .n = 1, .n_threads = n_threads}, m.cost_ns, pool);
}

void cpu_program_run(struct cpu_program *p, struct cpu_pool *pool, uint32_t n_threads, uint32_t n_tokens,
                     uint32_t n_out, const uint8_t *batch, float *scratch)
{
    const struct dl_batch_head *head = (const struct dl_batch_head *)(const void *)batch;
    struct dl_batch_shape shape = {head->max_tokens, head->max_out, head->max_tables, head->table_cols};
    const void *rows = batch + dl_batch_rows_at(), *out_rows = batch + dl_batch_out_at(&shape),
               *tables = batch + dl_batch_tables_at(&shape);
    for (uint32_t s = 0; s < p->n_stages; s++) {
        struct region r = {.first = &p->prepared[p->stages[s].first], .n = p->stages[s].n, .n_threads = n_threads};
        uint64_t cost_ns = 0;
        for (uint32_t i = 0; i < r.n; i++) {
            struct prepared *q = &r.first[i];
            q->task.n = (q->task.op->count == DL_COUNT_OUT ? n_out : n_tokens) * q->task.op->mult;
            q->task.head = head;
            q->task.rows = rows;
            q->task.out_rows = out_rows;
            q->task.tables = tables;
            q->units = (uint32_t)cpu_units(q->task.op, q->task.n);
            q->task.scratch = scratch;
            if (r.n == 1) /* there is one scratch */
                find_parts(q, n_threads);
            q->cost_ns = estimate_ns(q) * q->slowness;
            cost_ns += q->cost_ns;
        }
        run_stage(r, cost_ns, pool);
        if (r.n == 1 && r.first->task.parts)
            merge_parts(r.first, n_threads, pool);
    }
}
