/* SPDX-License-Identifier: MIT
 *
 * lower_attention.c: ATTENTION as dispatches. A few tokens: attention_split, over (KV head, split of the context, token), and
 * attention_merge where there is more than one split. Many tokens: attention_tile takes those that share a sequence with their
 * neighbours, attention_split the others; which is which is read from the batch, by both alike. Where no tile takes part, the kernel
 * that makes results final also does the CONVERT that follows.
 */
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tune.h"

#define MAX_HEAD_DIM 512u
#define TILE_HEAD_DIM 256u /* longer ones do not fit the tile kernel's registers */
#define TILE_TOKENS 32u    /* classes below this have too few rows for tiles */
#define MAX_PER_LANE 4u
#define MERGE_THREADS 64u
#define LEAST_BLOCKS 4u /* per split, of 32 positions: less is not worth its merging */

struct split_variant {
    char name[64];
    uint32_t subgroup, lanes, heads, step, threads;
    bool half_bits;
};

struct shape {
    uint32_t kv_type, head_dim, most_heads; /* 0 F32, 1 F16, 2 Q80; query heads of the KV head that has most here */
    bool quantised;
};

static struct shape shape_of(const struct dl_op *op)
{
    uint32_t most = 0, group = op->u.attn.group, first = op->u.attn.first_head;
    for (uint32_t kv = 0; kv < op->u.attn.n_kv_heads; kv++) {
        uint32_t from = DL_MAX(kv * group, first) - first, to = DL_MAX((kv + 1) * group, first) - first;
        to = DL_MIN(to, op->u.attn.n_heads);
        most = DL_MAX(most, to > from ? to - from : 0);
    }
    enum dl_type type = op->src[1].type;
    return (struct shape){.kv_type = type == DL_Q80 ? 2 : type == DL_F16,
                          .head_dim = op->u.attn.head_dim,
                          .most_heads = most,
                          .quantised = type == DL_Q80};
}

bool vk_supports_attention(const struct vk_ctx *c, const struct dl_op *op)
{
    uint32_t hd = op->u.attn.head_dim;
    uint64_t packed;
    return hd % 8 == 0 && hd <= MAX_HEAD_DIM && c->caps.shared_bytes >= 16u << 10 &&
           dl_row_bytes(op->src[1].type, hd, &packed) && op->src[1].row_bytes == packed &&
           op->src[2].row_bytes == packed && op->u.attn.n_kv_heads <= UINT32_MAX / op->u.attn.group - 1;
}

/* ------------------------------------------------------------------------------------------ few tokens: splits */

static uint32_t pow2_down(uint32_t n)
{
    uint32_t p = 1;
    while (2 * p <= n)
        p *= 2;
    return p;
}

/* All heads of the KV head together, unless that takes more than `most` registers of 8 values for queries. */
static struct split_variant split_variant(const struct shape *s, uint32_t subgroup, uint32_t lanes, uint32_t most,
                                          uint32_t step, uint32_t threads, bool half_bits)
{
    struct split_variant v = {.subgroup = subgroup, .step = step, .threads = threads, .half_bits = half_bits};
    v.lanes = DL_MIN(lanes, pow2_down(s->head_dim / 8));
    if (subgroup > 1)
        v.lanes = DL_MIN(v.lanes, subgroup);
    uint32_t per_lane = (s->head_dim / 8 + v.lanes - 1) / v.lanes;
    v.heads = 1;
    while (v.heads < s->most_heads && 2 * v.heads * per_lane <= most)
        v.heads *= 2;
    snprintf(v.name, sizeof v.name, "SG=%u,LANES=%u,HEADS=%u,STEP=%u,WG=%u%s", v.subgroup, v.lanes, v.heads, v.step,
             v.threads, half_bits ? ",BITS" : "");
    return v;
}

#define SPLIT_VARIANTS 6u

/* Different ones, the best guess first. The last needs nothing optional. */
static uint32_t split_variants(const struct vk_caps *caps, const struct shape *s, struct split_variant *out)
{
    uint32_t n = 0, sg = caps->subgroup, wide = DL_MAX(128u, sg), small = DL_MAX(32u, sg);
    bool halves = s->kv_type == 1;
    struct split_variant all[SPLIT_VARIANTS];
    uint32_t n_all = 0;
    if (sg > 1 && caps->subgroup_shuffle && caps->subgroup_require && wide <= caps->max_invocations) {
        if (caps->software) {
            all[n_all++] = split_variant(s, sg, 8, 4, 1, small, false);
        } else {
            all[n_all++] = split_variant(s, sg, 16, 8, 4, wide, false);
            all[n_all++] = split_variant(s, sg, 8, 8, 4, wide, false);
            all[n_all++] = split_variant(s, sg, 16, 4, 4, wide, false);
        }
        if (halves)
            all[n_all++] = split_variant(s, sg, 16, 4, 1, small, true);
    }
    all[n_all++] = split_variant(s, 1, 16, 4, 1, 64, halves);
    for (uint32_t i = 0; i < n_all; i++) {
        /* Long rows over few lanes make shaders that compilers take seconds over. The last stays in any case. */
        bool known = i + 1 < n_all && s->head_dim > 8 * MAX_PER_LANE * all[i].lanes;
        for (uint32_t k = 0; k < n; k++)
            known = known || !strcmp(all[i].name, out[k].name);
        if (!known)
            out[n++] = all[i];
    }
    return n;
}

/* ------------------------------------------------------------------------------------------- many tokens: tiles */

struct tile_variant {
    const char *name;
    uint32_t tall; /* 8 rows each; 0: no tiles */
};

static uint32_t tile_variants(const struct vk_caps *caps, const struct shape *s, struct tile_variant *out)
{
    uint32_t n = 0;
    /* On a processor they gain nothing, and take seconds to compile. Tests ask for them all the same. */
    bool useful = !caps->software || getenv("DLLAMA_VK_VARIANT");
    if (useful && s->head_dim <= TILE_HEAD_DIM / 2 && caps->shared_bytes >= 24u << 10)
        out[n++] = (struct tile_variant){"TALL=8", 8};
    if (useful && s->head_dim <= TILE_HEAD_DIM)
        out[n++] = (struct tile_variant){"TALL=4", 4};
    out[n++] = (struct tile_variant){"none", 0};
    return n;
}

/* --------------------------------------------------------------------------------------------------- dispatches */

struct geometry {
    struct shape shape;
    struct split_variant split;
    struct tile_variant tile;
    uint32_t tile_heads, tile_tokens;
    uint32_t splits, parts; /* parts: splits times the chunks of the cache */
    uint32_t chunk_rows,
        n_chunks;      /* n_chunks > 1: no descriptor holds the cache, each chunk has dispatches of its own */
    uint64_t state_at; /* scratch: results, then their (m, l) */
};

struct call {
    struct vk_lower *l;
    const struct dl_op *op;
    const struct geometry *g;
    const struct dl_op *convert; /* that follows and is taken along, or NULL */
    struct vk_dispatch *d;
    uint32_t chunk;
};

static uint32_t chunk_first(const struct call *c)
{
    return c->chunk * c->g->chunk_rows;
}

static uint32_t rows_of_chunk(const struct call *c)
{
    return DL_MIN(c->g->chunk_rows, c->op->src[1].rows - chunk_first(c));
}

static int bind_cache(const struct call *c, const struct dl_view *v, uint32_t *skip, uint32_t *scale_skip)
{
    struct vk_bound b;
    *skip = *scale_skip = 0;
    for (uint32_t p = 0; c->g->n_chunks > 1 && p < (c->g->shape.quantised ? 2u : 1u); p++) {
        uint32_t rest; /* none: chunks start where a binding may */
        int err = vk_bind_rows(c->l, c->d, c->l->bufs[v->buf], p, chunk_first(c), rows_of_chunk(c), &rest);
        if (err)
            return err;
    }
    if (c->g->n_chunks > 1)
        return 0;
    int err = vk_bind_view(c->l, c->d, v, v->rows, c->g->shape.quantised ? 2 : 1, &b);
    if (err)
        return err;
    *skip = c->g->shape.quantised ? b.at[0] * (DL_BLOCK / 8) : b.at[0] / 8;
    *scale_skip = c->g->shape.quantised ? b.at[1] : 0;
    if (!c->g->shape.quantised && b.at[0] % 8)
        return dl_fail(DL_EUNSUP, "%s: %s: the cache starts in the middle of 16 bytes", c->l->ctx->label, c->op->name);
    return 0;
}

static uint64_t scratch_bytes(const struct geometry *g, const struct vk_lower *l, const struct dl_op *op)
{
    return g->state_at * sizeof(float) + (uint64_t)l->n_tokens * op->u.attn.n_heads * g->parts * 2 * sizeof(float);
}

/* What all three kernels have in common. `tiles`: workgroups per KV head and token. */
static int start(struct call *c, const char *shader, bool from_parts, bool to_parts, uint32_t tiles)
{
    const struct dl_op *op = c->op;
    const struct geometry *g = c->g;
    struct vk_lower *l = c->l;
    struct vk_bound in = {0}, out = {0};
    uint32_t skip[4] = {0};
    struct vk_dispatch *d = c->d = vk_dispatch_new(l, shader);
    if (!d)
        return DL_ENOMEM;
    int err = vk_bind_batch(l, d);
    if (!err)
        err = from_parts ? vk_bind_scratch(l, d, 0, scratch_bytes(g, l, op))
                         : vk_bind_view(l, d, &op->src[0], l->n_tokens, 1, &in);
    if (!err)
        err = to_parts ? vk_bind_scratch(l, d, 0, scratch_bytes(g, l, op))
                       : vk_bind_view(l, d, &op->dst, l->n_tokens, 1, &out);
    if (!err && !from_parts)
        err = bind_cache(c, &op->src[1], &skip[0], &skip[2]);
    if (!err && !from_parts)
        err = bind_cache(c, &op->src[2], &skip[1], &skip[3]);
    if (err)
        return err;
    const uint32_t words[] = {op->u.attn.n_heads, op->u.attn.n_kv_heads, op->u.attn.group, op->u.attn.first_head};
    for (size_t i = 0; i < DL_COUNT_OF(words); i++)
        vk_push(d, words[i]);
    vk_push_f32(d, op->u.attn.scale);
    const uint32_t more[] = {in.at[0], in.stride, out.at[0],    out.stride, g->tile_heads,        g->tile_tokens,
                             tiles,    g->splits, LEAST_BLOCKS, g->parts,   c->chunk * g->splits, (uint32_t)g->state_at,
                             skip[0],  skip[1],   skip[2],      skip[3]};
    for (size_t i = 0; i < DL_COUNT_OF(more); i++)
        vk_push(d, more[i]);
    vk_define(d, "HD", g->shape.head_dim);
    if (g->n_chunks > 1 && !from_parts) {
        vk_define(d, "CHUNKED", 1);
        vk_push(d, chunk_first(c));
        vk_push(d, rows_of_chunk(c));
    }
    if (c->convert && !to_parts) {
        vk_define(d, "OUT", (uint32_t)vk_form_of(l, &c->convert->dst));
        err = vk_bind_out(l, d, &c->convert->dst, l->n_tokens);
    }
    return err;
}

/* Whether the results' values may be made for the next matrix, too. A lane has four neighbouring values, and eight of them a block of
 * the same head. */
static bool converts(const struct vk_lower *l, const struct dl_op *ops, uint32_t n, const struct geometry *g)
{
    if (n < 2 || ops[1].code != DL_OP_CONVERT || dl_op_carries(&ops[1]) || g->tile.tall)
        return false;
    const struct dl_view *from = &ops[1].src[0], *to = &ops[1].dst, *dst = &ops[0].dst;
    bool same = from->buf == dst->buf && from->offset == dst->offset && from->row_bytes == dst->row_bytes &&
                from->cols == dst->cols;
    const bool blocks = to->type != DL_Q80 || g->shape.head_dim % DL_BLOCK == 0;
    return same && blocks && ops[0].count == ops[1].count && ops[1].mult == 1 && to->buf != dst->buf &&
           to->buf != ops[0].src[0].buf && l->ctx->caps.max_binds >= VK_BINDS;
}

/* Leaves the conversion to take along in c->convert, if any. */
static int take_along(struct call *c, uint32_t n)
{
    if (!converts(c->l, c->op, n, c->g))
        return 0;
    char word[64];
    snprintf(word, sizeof word, "fuse_convert_attention_to_%s", vk_form_name(vk_form_of(c->l, &c->op[1].dst)));
    int answer = vk_tune_fuse(c->l, word, c->op, 2, "attention_split", c->g->split.name);
    if (answer > 0)
        c->convert = &c->op[1];
    return DL_MIN(answer, 0);
}

static uint64_t work(const struct vk_lower *l, const struct dl_op *op)
{
    return 2 * (uint64_t)l->n_tokens * op->dst.cols * (l->max_positions ? l->max_positions : 4096);
}

static int lower_tile(struct call *c)
{
    const struct geometry *g = c->g;
    uint32_t tiles = (g->shape.most_heads + g->tile_heads - 1) / g->tile_heads;
    int err = start(c, "attention_tile.comp", false, false, tiles);
    if (err)
        return err;
    vk_define(c->d, "KV", g->shape.kv_type);
    vk_define(c->d, "HALF_BITS", g->split.half_bits);
    vk_define(c->d, "TALL", g->tile.tall);
    c->d->groups[0] = c->op->u.attn.n_kv_heads * tiles;
    c->d->groups[1] = (c->l->n_tokens + g->tile_tokens - 1) / g->tile_tokens;
    c->d->work = work(c->l, c->op);
    return 0;
}

static int lower_chunk(struct call *c)
{
    const struct geometry *g = c->g;
    const struct split_variant *v = &g->split;
    uint32_t tiles = (g->shape.most_heads + v->heads - 1) / v->heads;
    int err = start(c, "attention_split.comp", false, g->parts > 1, tiles);
    if (err)
        return err;
    vk_define(c->d, "KV", g->shape.kv_type);
    vk_define(c->d, "HALF_BITS", v->half_bits);
    vk_define(c->d, "SG", v->subgroup);
    vk_define(c->d, "LANES", v->lanes);
    vk_define(c->d, "HEADS", v->heads);
    vk_define(c->d, "STEP", v->step);
    vk_define(c->d, "WG", v->threads);
    c->d->groups[0] = c->op->u.attn.n_kv_heads * tiles;
    c->d->groups[1] = g->splits;
    c->d->groups[2] = c->l->n_tokens;
    c->d->work = work(c->l, c->op) / g->n_chunks;
    c->d->barrier =
        c->chunk > 0 && c->l->ctx->validation; /* the layers take different results of one buffer for the same */
    return 0;
}

static int lower_split(struct call *c)
{
    int err = 0;
    for (c->chunk = 0; !err && c->chunk < c->g->n_chunks; c->chunk++)
        err = lower_chunk(c);
    if (err || c->g->parts == 1)
        return err;
    c->chunk = 0;
    err = start(c, "attention_merge.comp", true, false, 1);
    if (err)
        return err;
    vk_define(c->d, "WG", MERGE_THREADS);
    c->d->groups[0] = c->op->u.attn.n_heads;
    c->d->groups[1] = c->l->n_tokens;
    c->d->barrier = true;
    return 0;
}

static int choose(struct vk_lower *l, const struct dl_op *op, struct geometry *g)
{
    const struct vk_caps *caps = &l->ctx->caps;
    struct split_variant splits[SPLIT_VARIANTS];
    struct tile_variant tiles[3] = {{"none", 0}};
    const char *names[SPLIT_VARIANTS];
    g->shape = shape_of(op);
    uint32_t n = split_variants(caps, &g->shape, splits);
    for (uint32_t i = 0; i < n; i++)
        names[i] = splits[i].name;
    int at = vk_tune_pick(l, "attention_split", op, names, n);
    if (at < 0)
        return at;
    g->split = splits[at];
    g->tile = tiles[0];
    g->chunk_rows = DL_MIN(vk_cache_rows(l, &op->src[1]), vk_cache_rows(l, &op->src[2]));
    g->n_chunks = (uint32_t)dl_div_up(op->src[1].rows, g->chunk_rows);
    if (l->n_tokens >= TILE_TOKENS && g->n_chunks == 1) { /* tiles see all of a sequence */
        n = tile_variants(caps, &g->shape, tiles);
        for (uint32_t i = 0; i < n; i++)
            names[i] = tiles[i].name;
        at = vk_tune_pick(l, "attention_tile", op, names, n);
        if (at < 0)
            return at;
        g->tile = tiles[at];
    }
    if (g->tile.tall) {
        g->tile_heads = DL_MIN(g->shape.most_heads, 8 * g->tile.tall);
        g->tile_tokens = 8 * g->tile.tall / g->tile_heads;
    }
    /* Enough workgroups to fill the device; a software one is full with a few. */
    uint32_t head_tiles = (g->shape.most_heads + g->split.heads - 1) / g->split.heads;
    uint64_t others = (uint64_t)l->n_tokens * op->u.attn.n_kv_heads * head_tiles, want = caps->software ? 8 : 512;
    uint32_t most = l->max_positions ? l->max_positions / (DL_KV_BLOCK * LEAST_BLOCKS) : 64;
    g->splits = (uint32_t)DL_MIN(want / others, DL_MIN(most, 64));
    g->splits = DL_MAX(g->splits, 1);
    g->parts = g->splits * g->n_chunks;
    g->state_at = (uint64_t)l->n_tokens * op->dst.cols * g->parts;
    return 0;
}

int vk_lower_attention(struct vk_lower *l, const struct dl_op *ops, uint32_t n)
{
    struct geometry g = {0};
    struct call c = {.l = l, .op = ops, .g = &g};
    int err = choose(l, ops, &g);
    if (err)
        return err;
    err = take_along(&c, n);
    if (err)
        return err;
    const uint32_t *limit = l->ctx->caps.max_groups;
    uint64_t wide = (uint64_t)ops->u.attn.n_kv_heads * g.shape.most_heads;
    if (wide > limit[0] || l->n_tokens > limit[1] || l->n_tokens > limit[2] || g.splits > limit[1])
        return dl_fail(DL_ELIMIT, "%s: %s: %u heads of %u tokens are more workgroups than the device starts at once",
                       l->ctx->label, ops->name, (unsigned)ops->u.attn.n_heads, (unsigned)l->n_tokens);
    if (g.tile.tall)
        err = lower_tile(&c);
    if (!err)
        err = lower_split(&c);
    return err ? err : c.convert ? 2 : 1;
}
