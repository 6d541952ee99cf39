/* SPDX-License-Identifier: MIT
 *
 * cli/bench_rig.c: times single ops of a plan on a device. What an op reads of weights and KV cache lies there in as many copies as no cache
 * of the machine can hold, and each run takes the next one: a matrix that stays in a cache tells nothing of decoding.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define SPREAD_BYTES CLI_RIG_SPREAD
#define MAX_COPIES 1024u
#define MAX_PROGS 64u
#define MAX_OPS 64u       /* of one program */
#define PROG_NS 2000000.0 /* a program should take at least that long: submitting it costs, too */
#define SAMPLES 5u        /* at least, and as many times ... */
#define SAMPLE_NS UINT64_C(12000000)
#define LONG_NS UINT64_C(400000000) /* after that many times this, fewer will do */
#define MAX_SAMPLES 256u
#define MAX_IN_FLIGHT 32u

/* ------------------------------------------------------------------------------------------------- buffers */

/* Real bytes, so that every page is a page of its own: memory that nobody has written to yet is one page of zeros, which stays in a cache. */
static int fill(dl_device *dev, dl_buf *buf)
{
    const struct dl_buf_desc *d = &buf->desc;
    const size_t row = (size_t)(d->bytes / d->rows), block = 64;
    float *values = dl_calloc(d->cols, sizeof *values);
    uint8_t *bytes = dl_calloc(block, row);
    int err = values && bytes ? DL_OK : DL_ENOMEM;
    uint32_t state = 12345;
    for (size_t r = 0; !err && r < block; r++) {
        for (uint32_t c = 0; c < d->cols; c++) {
            state = state * 1664525u + 1013904223u;
            values[c] = ((float)(state >> 16 & 255u) - 127.5f) / 1024;
        }
        dl_row_from_f32(d->type, values, bytes + r * row, d->cols);
    }
    for (uint32_t r = 0; !err && r < d->rows; r += (uint32_t)block)
        err = dl_buf_write(dev, buf, r * row, bytes, DL_MIN(block, d->rows - r) * row);
    free(values);
    free(bytes);
    return err;
}

static bool is_kept(const struct dl_buf_desc *d)
{
    return d->use == DL_BUF_WEIGHT || d->use == DL_BUF_KV;
}

static int add_buf(struct cli_rig *r, const struct dl_buf_desc *desc, uint32_t at)
{
    int err = dl_buf_create(r->dev, desc, &r->bufs[at]);
    return !err && is_kept(desc) ? fill(r->dev, r->bufs[at]) : err;
}

static bool is_moe(const struct dl_op *op)
{
    return op->code == DL_OP_MOE_MATMUL || op->code == DL_OP_MOE_SUM;
}

/* Where experts are chosen: other ones for each token, and for each `turn`. */
static int fill_route(struct cli_rig *r, const struct dl_op *op, const struct dl_view *v, uint32_t turn)
{
    const uint32_t k = op->u.moe.k, n = op->u.moe.n_experts;
    float *row = dl_calloc((size_t)v->rows * v->cols, sizeof *row);
    if (!row)
        return DL_ENOMEM;
    for (uint32_t t = 0; t < v->rows; t++)
        for (uint32_t s = 0; s < k; s++) {
            row[t * v->cols + s] = (float)((t * 7 + turn + s * (n / k)) % n);
            row[t * v->cols + k + s] = 1.0f / (float)k;
        }
    int err = dl_buf_write(r->dev, r->bufs[v->buf], v->offset, row, (size_t)v->rows * v->cols * sizeof *row);
    free(row);
    return err;
}

static int need(struct cli_rig *r, const struct dl_op *op)
{
    const struct dl_view *views[] = {&op->dst, &op->src[0], &op->src[1], &op->src[2]};
    int err = DL_OK;
    for (size_t i = 0; i < DL_COUNT_OF(views) && !err; i++)
        if (views[i]->buf != DL_NO_BUF && !r->bufs[views[i]->buf])
            err = add_buf(r, &r->mp->plan.bufs[views[i]->buf], views[i]->buf);
    if (!err && is_moe(op))
        err = fill_route(r, op, &op->src[op->code == DL_OP_MOE_MATMUL ? 2 : 1], 0);
    return err;
}

static void drop_copies(struct cli_rig *r)
{
    while (r->n_bufs > r->mp->plan.n_bufs)
        dl_buf_destroy(r->dev, &r->bufs[--r->n_bufs]);
    for (uint32_t i = 0; i < r->n_bufs; i++) /* the originals are as large */
        if (r->bufs[i] && r->bufs[i]->desc.use == DL_BUF_WEIGHT)
            dl_buf_destroy(r->dev, &r->bufs[i]);
}

static bool rotates(const struct cli_rig *r, const struct dl_view *v)
{
    return v->buf != DL_NO_BUF && is_kept(&r->mp->plan.bufs[v->buf]);
}

/* Weights and caches are changed with every copy; those of experts when each expert had its turn. */
static uint32_t turns(const struct dl_op *op)
{
    return op->code == DL_OP_MOE_MATMUL ? DL_MAX(op->u.moe.n_experts / op->u.moe.k, 1) : 1;
}

static int copy_view(struct cli_rig *r, struct dl_view *v)
{
    const struct dl_buf_desc *desc = &r->mp->plan.bufs[v->buf];
    if (r->n_bufs == r->cap_bufs)
        return dl_fail(DL_ELIMIT, "bench: %s would need too many copies", desc->name);
    v->buf = r->n_bufs++;
    return add_buf(r, desc, v->buf);
}

/* copies[i] is the op with the i-th copy of what it reads; the first has the plan's own buffers. */
static int make_copies(struct cli_rig *r, const struct dl_op *op, struct dl_op *copies, uint32_t n)
{
    const uint32_t per = turns(op);
    int err = need(r, op);
    for (uint32_t i = 0; i < n && !err; i++) {
        copies[i] = *op;
        for (uint32_t s = 0; i && s < DL_COUNT_OF(op->src) && !err; s++) {
            struct dl_view *v = &copies[i].src[s];
            if (rotates(r, v) && i % per)
                v->buf = copies[i - 1].src[s].buf;
            else if (rotates(r, v))
                err = copy_view(r, v);
            else if (op->code == DL_OP_MOE_MATMUL && s == 2 && !(err = copy_view(r, v)))
                err = fill_route(r, op, v, i);
        }
    }
    return err;
}

/* --------------------------------------------------------------------------------------------------- timing */

static int run_once(struct cli_rig *r, dl_prog *prog, uint64_t *ns)
{
    struct dl_run_args args = {r->load.n_tokens, r->load.n_out, r->batch};
    uint64_t t0 = dl_now_ns();
    int err = dl_device_submit(r->dev, prog, &args, 0, r->dev->device_at + 1);
    if (!err)
        err = dl_device_wait(r->dev, r->dev->device_at, UINT64_MAX);
    *ns = dl_now_ns() - t0;
    return err;
}

/* One program with ops [first, first + n) of the copies, which start again from the first. */
static int make_prog(struct cli_rig *r, const struct dl_op *copies, uint32_t n_copies, uint32_t first, uint32_t n,
                     dl_prog **out)
{
    struct dl_op ops[MAX_OPS];
    for (uint32_t i = 0; i < n; i++)
        ops[i] = copies[(first + i) % n_copies];
    return dl_prog_create(r->dev, ops, n, r->bufs, r->n_bufs, out);
}

/* The median of the programs, run in turn, per op. */
static int sample(struct cli_rig *r, dl_prog *const *progs, uint32_t n_progs, uint32_t per_prog,
                  struct cli_bench_spread *ns)
{
    double v[MAX_SAMPLES];
    const uint32_t reps = r->reps ? r->reps : SAMPLES;
    uint32_t n = 0;
    uint64_t begin = dl_now_ns(), took;
    int err = run_once(r, progs[0], &took); /* warms up */
    for (uint32_t i = 1; !err && n < MAX_SAMPLES; i++) {
        err = run_once(r, progs[i % n_progs], &took);
        v[n++] = (double)took / per_prog;
        uint64_t spent = dl_now_ns() - begin;
        if (cli_interrupted(NULL))
            err = DL_ECANCELED;
        if ((spent > reps * SAMPLE_NS && n >= DL_MAX(n_progs, reps)) || spent > reps * LONG_NS)
            break;
    }
    if (!err)
        *ns = cli_bench_spread(v, n);
    return err;
}

static int time_copies(struct cli_rig *r, const struct dl_op *copies, uint32_t n_copies, struct cli_bench_spread *ns)
{
    dl_prog *progs[MAX_PROGS] = {NULL};
    uint64_t first, second = 0;
    int err = make_prog(r, copies, n_copies, 0, 1, &progs[0]);
    if (!err)
        err = run_once(r, progs[0], &first);
    if (!err)
        err = run_once(r, progs[0], &second);
    dl_prog_destroy(r->dev, &progs[0]);
    double one = DL_MAX((double)second, 1.0);
    uint32_t per_prog = (uint32_t)DL_MAX(1.0, DL_MIN((double)MAX_OPS, PROG_NS / one));
    uint32_t n_progs = DL_MIN((uint32_t)dl_div_up(n_copies, per_prog), MAX_PROGS);
    for (uint32_t p = 0; p < n_progs && !err; p++)
        err = make_prog(r, copies, n_copies, p * per_prog, per_prog, &progs[p]);
    if (!err)
        err = sample(r, progs, n_progs, per_prog, ns);
    for (uint32_t p = 0; p < n_progs; p++)
        dl_prog_destroy(r->dev, &progs[p]);
    return err;
}

static uint64_t rows_of(const struct cli_rig *r, const struct dl_op *op)
{
    return (uint64_t)(op->count == DL_COUNT_OUT ? r->load.n_out : r->load.n_tokens) * op->mult;
}

static double flop_of(const struct cli_rig *r, const struct dl_op *op)
{
    double rows = (double)rows_of(r, op);
    if (op->code == DL_OP_MATMUL || op->code == DL_OP_MOE_MATMUL)
        return 2 * rows * op->dst.cols * op->src[1].cols;
    if (op->code == DL_OP_ATTENTION) /* a token sees those up to its own position */
        return 4 * rows * (r->load.context - (rows - 1) / 2) * op->u.attn.n_heads * op->u.attn.head_dim;
    return 0;
}

/* Activations that it reads and writes. */
static uint64_t other_bytes(const struct cli_rig *r, const struct dl_op *op)
{
    uint64_t bytes = 0;
    const struct dl_view *views[] = {&op->dst, &op->src[0], &op->src[1], &op->src[2]};
    for (size_t i = 0; i < DL_COUNT_OF(views); i++) {
        const struct dl_view *v = views[i];
        uint64_t row = 0;
        if (v->buf == DL_NO_BUF || (i && rotates(r, v)))
            continue;
        bool cache = r->mp->plan.bufs[v->buf].use == DL_BUF_KV; /* KV_STORE writes as many values as it reads */
        uint32_t cols = cache ? op->src[0].cols : v->cols;
        (void)dl_row_bytes(v->type, cols, &row);
        uint64_t times = op->code == DL_OP_MERGE && i == 2 ? op->u.merge.n_slices : 1;
        bytes += row * times * DL_MIN(rows_of(r, op), cache ? UINT64_MAX : v->rows);
    }
    return bytes;
}

int cli_rig_time(struct cli_rig *r, const struct dl_op *op, bool spread, struct cli_rig_time *out)
{
    *out = (struct cli_rig_time){.copies = 1};
    if (op->code == DL_OP_MATMUL || op->code == DL_OP_MOE_MATMUL || op->code == DL_OP_ATTENTION)
        out->memory_bytes = dl_op_read_bytes(&r->mp->plan, op, &r->load);
    uint64_t kept = 0; /* by one copy */
    for (uint32_t s = 0; s < DL_COUNT_OF(op->src); s++)
        kept += rotates(r, &op->src[s]) ? r->mp->plan.bufs[op->src[s].buf].bytes : 0;
    if (spread && out->memory_bytes)
        out->copies = (uint32_t)DL_MIN(dl_div_up(SPREAD_BYTES, out->memory_bytes), MAX_COPIES);
    uint64_t free_bytes = r->dev->threads ? dl_mem_available() : r->dev->mem_free;
    while (out->copies > 1 && free_bytes && dl_div_up(out->copies, turns(op)) * kept > free_bytes / 2)
        out->copies--;
    out->bytes = out->memory_bytes + other_bytes(r, op);
    out->flop = flop_of(r, op);
    struct dl_op *copies = dl_calloc(out->copies, sizeof *copies);
    int err = copies ? make_copies(r, op, copies, out->copies) : DL_ENOMEM;
    struct cli_bench_spread ns = {0};
    if (!err)
        err = time_copies(r, copies, out->copies, &ns);
    out->ns = ns.median;
    out->least_ns = ns.least;
    free(copies);
    drop_copies(r);
    return err;
}

/* --------------------------------------------------------------------------------------------- whole layers */

/* All RUN steps of the plan, one after the other, as if exchanges took no time. */
static int run_plan(struct cli_rig *r, dl_prog *const *progs, uint64_t *ns)
{
    const struct dl_plan *p = &r->mp->plan;
    const struct dl_run_args args = {r->load.n_tokens, r->load.n_out, r->batch};
    uint64_t t0 = dl_now_ns();
    uint32_t in_flight = 0;
    int err = DL_OK;
    for (uint32_t i = 0; i < p->n_steps && !err; i++) {
        if (p->steps[i].kind != DL_STEP_RUN)
            continue;
        err = dl_device_submit(r->dev, progs[i], &args, 0, r->dev->device_at + 1);
        if (!err && ++in_flight % MAX_IN_FLIGHT == 0)
            err = dl_device_wait(r->dev, r->dev->device_at, UINT64_MAX);
    }
    if (!err)
        err = dl_device_wait(r->dev, r->dev->device_at, UINT64_MAX);
    *ns = dl_now_ns() - t0;
    return err;
}

static int sample_plan(struct cli_rig *r, dl_prog *const *progs, struct cli_bench_spread *ns)
{
    double v[MAX_SAMPLES];
    const uint32_t reps = r->reps ? r->reps : SAMPLES;
    uint32_t n = 0;
    uint64_t begin = dl_now_ns(), took;
    int err = run_plan(r, progs, &took); /* warms up */
    while (!err && n < reps) {
        err = cli_interrupted(NULL) ? DL_ECANCELED : run_plan(r, progs, &took);
        v[n++] = (double)took;
        if (dl_now_ns() - begin > reps * LONG_NS)
            break;
    }
    if (!err)
        *ns = cli_bench_spread(v, n);
    return err;
}

int cli_rig_time_plan(struct cli_rig *r, struct cli_rig_time *out)
{
    const struct dl_plan *p = &r->mp->plan;
    struct cli_bench_spread ns = {0};
    dl_prog **progs = dl_calloc(p->n_steps, sizeof(dl_prog *));
    int err = progs ? DL_OK : DL_ENOMEM;
    *out = (struct cli_rig_time){.memory_bytes = dl_plan_read_bytes(p, &r->load), .copies = 1};
    out->bytes = out->memory_bytes;
    for (uint32_t i = 0; i < p->n_ops && !err; i++) {
        out->flop += flop_of(r, &p->ops[i]);
        err = need(r, &p->ops[i]);
    }
    for (uint32_t i = 0; i < p->n_steps && !err; i++)
        if (p->steps[i].kind == DL_STEP_RUN)
            err =
                dl_prog_create(r->dev, p->ops + p->steps[i].first_op, p->steps[i].n_ops, r->bufs, r->n_bufs, &progs[i]);
    if (!err)
        err = sample_plan(r, progs, &ns);
    out->ns = ns.median;
    out->least_ns = ns.least;
    for (uint32_t i = 0; i < p->n_steps && progs; i++)
        dl_prog_destroy(r->dev, &progs[i]);
    free((void *)progs);
    return err;
}

/* ------------------------------------------------------------------------------------------------------ rig */

/* Positions [context - n_tokens, context) of one sequence. */
static int make_batch(struct cli_rig *r)
{
    const struct dl_plan *p = &r->mp->plan;
    const uint32_t blocks = (uint32_t)dl_div_up(r->load.context, DL_KV_BLOCK);
    const struct dl_batch_shape shape = {p->max_tokens, p->max_out, 1, blocks};
    uint32_t words = (uint32_t)(dl_batch_bytes(&shape) / sizeof(uint32_t));
    struct dl_buf_desc desc = {"batch", DL_BUF_INPUT, DL_F32, 1, words, (uint64_t)words * sizeof(uint32_t)};
    int err = dl_buf_create(r->dev, &desc, &r->batch);
    if (err)
        return err;
    uint8_t *at = dl_buf_map(r->dev, r->batch);
    *(struct dl_batch_head *)(void *)at = (struct dl_batch_head){.n_tokens = r->load.n_tokens,
                                                                 .n_out = r->load.n_out,
                                                                 .max_tokens = shape.max_tokens,
                                                                 .max_out = shape.max_out,
                                                                 .max_tables = 1,
                                                                 .table_cols = blocks};
    struct dl_batch_row *rows = (void *)(at + dl_batch_rows_at());
    uint32_t *out = (void *)(at + dl_batch_out_at(&shape)), *table = (void *)(at + dl_batch_tables_at(&shape));
    for (uint32_t t = 0; t < r->load.n_tokens; t++)
        rows[t] = (struct dl_batch_row){.pos = r->load.context - r->load.n_tokens + t};
    for (uint32_t i = 0; i < r->load.n_out; i++)
        out[i] = r->load.n_tokens - r->load.n_out + i;
    for (uint32_t i = 0; i < blocks; i++)
        table[i] = i;
    return DL_OK;
}

int cli_rig_open(struct cli_rig *r, dl_device *dev, struct dl_model_plan *mp, const struct dl_batch_load *load)
{
    *r = (struct cli_rig){.dev = dev, .mp = mp, .n_bufs = mp->plan.n_bufs, .load = *load};
    r->cap_bufs = mp->plan.n_bufs + 3 * MAX_COPIES;
    r->bufs = dl_calloc(r->cap_bufs, sizeof(dl_buf *));
    return r->bufs ? make_batch(r) : DL_ENOMEM;
}

void cli_rig_close(struct cli_rig *r)
{
    for (uint32_t i = 0; i < r->n_bufs && r->bufs; i++)
        dl_buf_destroy(r->dev, &r->bufs[i]);
    if (r->dev)
        dl_buf_destroy(r->dev, &r->batch);
    free((void *)r->bufs);
    *r = (struct cli_rig){0};
}

/* -------------------------------------------------------------------------------------------------- ceilings */

/* A plan of one matrix product, so that the rig has something to time. */
static int time_product(dl_device *dev, enum dl_type weight, uint32_t rows, uint32_t cols, uint32_t n_tokens,
                        bool spread, struct cli_rig_time *t)
{
    const enum dl_type act = dl_type_quantised(weight) ? DL_Q80 : DL_F32;
    const enum dl_type types[] = {act, weight, DL_F32};
    const uint32_t n_rows[] = {n_tokens, rows, n_tokens}, n_cols[] = {cols, cols, rows};
    static const char *const names[] = {"src", "weights", "dst"};
    struct dl_buf_desc bufs[3];
    struct dl_view views[3];
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t row = 0;
        (void)dl_row_bytes(types[i], n_cols[i], &row);
        bufs[i] = (struct dl_buf_desc){
            names[i], i == 1 ? DL_BUF_WEIGHT : DL_BUF_ACT, types[i], n_rows[i], n_cols[i], row * n_rows[i]};
        views[i] = (struct dl_view){i, n_rows[i], n_cols[i], types[i], 0, row};
    }
    struct dl_op op = {.code = DL_OP_MATMUL, .name = "ceiling", .count = DL_COUNT_TOKENS, .mult = 1, .dst = views[2]};
    op.src[0] = views[0];
    op.src[1] = views[1];
    op.src[2].buf = DL_NO_BUF;
    struct dl_model_plan mp = {.plan = {.bufs = bufs, .ops = &op, .n_bufs = 3, .n_ops = 1, .n_slices = 1}};
    mp.plan.max_tokens = n_tokens;
    mp.plan.max_out = 1;
    const struct dl_batch_load load = {n_tokens, 1, 1, n_tokens};
    struct cli_rig r = {0};
    int err = cli_rig_open(&r, dev, &mp, &load);
    if (!err)
        err = cli_rig_time(&r, &op, spread, t);
    cli_rig_close(&r);
    return err;
}

int cli_bench_ceiling(dl_device *dev, bool arithmetic, struct cli_ceiling *out)
{
    struct cli_rig_time t;
    int err = DL_OK;
    *out = (struct cli_ceiling){0};
    if (dev->threads)
        out->bytes_per_s = dl_cpu_read_bandwidth(dev, 200);
    for (int type = 0; type < DL_WEIGHT_TYPES && !err; type++) {
        if (!dev->threads) { /* nothing reads faster than the best of its mat-vecs */
            err = time_product(dev, (enum dl_type)type, 4096, 4096, 1, true, &t);
            out->bytes_per_s = err ? 0 : DL_MAX(out->bytes_per_s, (double)t.memory_bytes * 1e9 / t.ns);
        }
        if (!err && arithmetic) { /* a matrix that stays in a cache */
            err = time_product(dev, (enum dl_type)type, 512, 1024, 128, false, &t);
            out->flop_per_s[type] = err ? 0 : t.flop * 1e9 / t.ns;
        }
    }
    return err;
}
