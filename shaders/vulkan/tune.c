/* SPDX-License-Identifier: MIT
 *
 * tune.c: the choice between candidates. A choice is made once per (kernel, shape, batch class): every candidate is checked on a small
 * case, those that are right are timed on one of the op's size (trial.h), and the fastest is kept, on disk too: by device, driver
 * and shader sources. The last candidate, which needs nothing optional, is timed with the first guess: nothing is chosen that is
 * slower here. All of it together may take BUDGET_S seconds per device and process; what is left then gets what another shape of the same kernel
 * was chosen, or the faster one of first and last, and is chosen at a later start.
 */
#include "tune.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"
#include "glsl.h"
#include "trial.h"

#define BUDGET_S 3.0
#define TIME_NS 25000000u     /* of runs per candidate */
#define LEAST_WORK (1u << 20) /* multiply-adds: smaller ops are not worth timing */
#define SHORT_WORK (1u << 26) /* on a software device: what takes no time to speak of; decoding does */
#define FUSED_GAIN 0.9        /* one kernel stays, unless the ops one by one take less than this part of its time */
#define LOSES 3               /* in turns with the ops one by one, until it is believed that it is slower */
#define PHASE "choosing kernels"
#define VERSION "choices 3" /* of the file, and of what candidates' names mean */

struct choice {
    char key[128], name[64];
    uint64_t ns, plain_ns; /* that it and the last candidate take here; 0: too small to be timed, or it was not right */
    bool told;             /* in the log */
    bool rough;            /* there was no time for all: for this process only */
};

struct candidate {
    char key[128]; /* kernel, type and kind of batch */
    char name[64];
    bool right;
};

/* What is asked: which of these for these ops. With `base`, the first is one kernel made of variant names[0] of kernel `base`, the
 * second is the ops one by one. */
struct ask {
    struct vk_lower *l;
    const char *kernel;
    const struct dl_op *ops;
    uint32_t n_ops;
    const char *const *names;
    uint32_t n;
    const char *base;
};

struct vk_tune {
    struct choice *choices;
    size_t n_choices, cap_choices;
    struct candidate *checked;
    size_t n_checked, cap_checked;
    struct vk_hash id;
    bool keep; /* on disk */
    bool said;
    uint64_t spent_ns, budget_ns;
    const char *kernel, *name;    /* of the trial that is running */
    const char *base, *base_name; /* and what else is decided in it */
    bool met;                     /* the trial was asked for its kernel */
    struct vk_tune_stats stats;
};

/* ------------------------------------------------------------------------------------------------ what is known */

/* A line of the file: "key\tname\tns\tns". */
static bool read_choice(const char *line, size_t n, struct choice *out)
{
    const char *tab[3], *at = line, *end = line + n;
    for (int i = 0; i < 3; i++) {
        tab[i] = at ? memchr(at, '\t', (size_t)(end - at)) : NULL;
        at = tab[i] ? tab[i] + 1 : NULL;
    }
    if (!at || (size_t)(tab[0] - line) >= sizeof out->key || (size_t)(tab[1] - tab[0]) > sizeof out->name)
        return false;
    memcpy(out->key, line, (size_t)(tab[0] - line));
    memcpy(out->name, tab[0] + 1, (size_t)(tab[1] - tab[0]) - 1);
    out->ns = strtoull(tab[1] + 1, NULL, 10); /* ends at the line's end at the latest */
    out->plain_ns = strtoull(tab[2] + 1, NULL, 10);
    return true;
}

static void load(struct vk_tune *t, const struct vk_ctx *c)
{
    const struct vk_caps *caps = &c->caps;
    t->id = VK_HASH_START;
    vk_hash_text(&t->id, VERSION);
    vk_hash_text(&t->id, caps->name);
    vk_hash_add(&t->id, caps->uuid, sizeof caps->uuid);
    vk_hash_add(&t->id, &caps->driver_version, sizeof caps->driver_version);
    vk_hash_add(&t->id, &caps->api_version, sizeof caps->api_version);
    for (size_t i = 0; i < vk_glsl_n_sources; i++)
        vk_hash_add(&t->id, vk_glsl_sources[i].text, vk_glsl_sources[i].n);
    const char *folder = getenv("DLLAMA_SHADER_DIR");
    t->keep = !folder || !*folder; /* else what was measured is not what the next start has */
    size_t n = 0;
    char *text = t->keep ? vk_cache_load("tune", t->id, &n) : NULL;
    for (size_t at = 0; at < n;) {
        const char *line = text + at, *end = memchr(line, '\n', n - at);
        struct choice new = {0};
        if (!end || !read_choice(line, (size_t)(end - line), &new) ||
            dl_grow((void **)&t->choices, &t->cap_choices, t->n_choices + 1, sizeof new))
            break;
        t->choices[t->n_choices++] = new;
        at = (size_t)(end - text) + 1;
    }
    free(text);
}

static void save(const struct vk_tune *t)
{
    struct dl_str text = {0};
    int err = 0;
    for (size_t i = 0; !err && i < t->n_choices; i++)
        if (!t->choices[i].rough)
            err = dl_str_addf(&text, "%s\t%s\t%" PRIu64 "\t%" PRIu64 "\n", t->choices[i].key, t->choices[i].name,
                              t->choices[i].ns, t->choices[i].plain_ns);
    if (t->keep && !err && text.len)
        vk_cache_store("tune", t->id, text.v, text.len);
    dl_str_finish(&text);
}

static struct vk_tune *tune_of(struct vk_ctx *c)
{
    if (!c->tune) {
        c->tune = dl_xcalloc(1, sizeof *c->tune);
        const char *seconds = getenv("DLLAMA_VK_TUNE");
        double budget = seconds ? strtod(seconds, NULL) : BUDGET_S;
        c->tune->budget_ns = budget > 0 && budget < 1e6 ? (uint64_t)(budget * 1e9) : 0;
        load(c->tune, c);
    }
    return c->tune;
}

void vk_tune_close(struct vk_ctx *c)
{
    if (!c->tune)
        return;
    free(c->tune->choices);
    free(c->tune->checked);
    free(c->tune);
    c->tune = NULL;
}

struct vk_tune_stats vk_tune_stats(const struct vk_ctx *c)
{
    return c->tune ? c->tune->stats : (struct vk_tune_stats){0};
}

static int index_of(const char *name, size_t length, const char *const *names, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (strlen(names[i]) == length && !strncmp(names[i], name, length))
            return (int)i;
    return -1;
}

static void tell(const struct vk_ctx *c, struct choice *known)
{
    if (!known->told && known->ns)
        dl_log(DL_LOG_INFO, "%s: %s: %s, %.1f us; the plainest %.1f us", c->label, known->key, known->name,
               (double)known->ns / 1e3, (double)known->plain_ns / 1e3);
    known->told = true;
}

static int known(const struct vk_ctx *c, const char *key, const char *const *names, uint32_t n)
{
    struct vk_tune *t = c->tune;
    for (size_t i = 0; i < t->n_choices; i++)
        if (!strcmp(t->choices[i].key, key)) {
            tell(c, &t->choices[i]);
            return index_of(t->choices[i].name, strlen(t->choices[i].name), names, n);
        }
    return -1;
}

/* What another shape was given, if it was timed: of the same kernel (the key's first word) and size of batch (its last). -1: none. */
static int sibling(const struct vk_tune *t, const char *key, const char *const *names, uint32_t n)
{
    const char *last = strrchr(key, ' ');
    size_t first = strcspn(key, " ");
    for (size_t i = t->n_choices; i-- > 0;) {
        const struct choice *c = &t->choices[i];
        const char *other = strrchr(c->key, ' ');
        if (c->ns && last && other && !strncmp(c->key, key, first + 1) && !strcmp(other, last)) {
            int at = index_of(c->name, strlen(c->name), names, n);
            if (at >= 0)
                return at;
        }
    }
    return -1;
}

static void choose(struct vk_ctx *ctx, const struct choice *what)
{
    struct vk_tune *t = ctx->tune;
    size_t i = 0;
    while (i < t->n_choices && strcmp(t->choices[i].key, what->key))
        i++;
    if (i == t->n_choices && dl_grow((void **)&t->choices, &t->cap_choices, i + 1, sizeof *t->choices))
        return;
    t->n_choices = DL_MAX(t->n_choices, i + 1);
    t->choices[i] = *what;
    tell(ctx, &t->choices[i]);
    if (!what->rough)
        save(t);
}

bool vk_tune_choice(const struct vk_ctx *c, size_t index, struct vk_tune_choice *out)
{
    if (!c->tune || index >= c->tune->n_choices)
        return false;
    const struct choice *from = &c->tune->choices[index];
    *out = (struct vk_tune_choice){from->key, from->name, from->ns, from->plain_ns};
    return true;
}

/* The name that DLLAMA_VK_VARIANT gives for a kernel. */
static const char *forced(const char *kernel, size_t *n)
{
    const char *p = getenv("DLLAMA_VK_VARIANT");
    size_t length = strlen(kernel);
    while (p && *p) {
        p += strspn(p, " ");
        size_t word = strcspn(p, " ");
        if (word > length && !strncmp(p, kernel, length) && p[length] == '=') {
            *n = word - length - 1;
            return p + length + 1;
        }
        p += word;
    }
    return NULL;
}

int vk_tune_forced(const char *kernel, const char *const *names, uint32_t n)
{
    size_t length;
    const char *name = forced(kernel, &length);
    if (!name)
        return -1;
    return *name == '#' ? (int)DL_MIN(strtoul(name + 1, NULL, 10), n - 1) : index_of(name, length, names, n);
}

/* ----------------------------------------------------------------------------------------------- what is found out */

static uint32_t rows(const struct vk_lower *l, const struct dl_op *op)
{
    return op->count == DL_COUNT_OUT ? l->n_out : l->n_tokens;
}

static void key_of(const struct ask *a, char *key, size_t size)
{
    const struct dl_op *op = a->ops;
    uint32_t n = rows(a->l, op);
    const char *type = dl_type_info(op->src[1].type)->name;
    if (op->code == DL_OP_ATTENTION) {
        snprintf(key, size, "%s %s dim=%u heads=%u/%u+%u kv=%u n=%u", a->kernel, type, (unsigned)op->u.attn.head_dim,
                 (unsigned)op->u.attn.n_heads, (unsigned)op->u.attn.group, (unsigned)op->u.attn.first_head,
                 (unsigned)op->u.attn.n_kv_heads, (unsigned)n);
        return;
    }
    char beside[2][16] = {"", ""};
    for (uint32_t i = 1; i < a->n_ops && i < 3; i++)
        snprintf(beside[i - 1], sizeof beside[0], "+%u", (unsigned)a->ops[i].dst.cols);
    snprintf(key, size, "%s %s %u%s%sx%u of %u n=%u", a->kernel, type, (unsigned)op->dst.cols, beside[0], beside[1],
             (unsigned)op->src[1].cols, (unsigned)(op->src[1].rows / DL_MAX(op->dst.cols, 1)), (unsigned)n);
}

static uint64_t work(const struct vk_lower *l, const struct dl_op *op)
{
    uint64_t each = op->code == DL_OP_ATTENTION ? 1024 : op->src[1].cols;
    return each * op->dst.cols * rows(l, op) * op->mult;
}

/* What a trial may take of device memory. */
static uint64_t trial_bytes(struct vk_ctx *c)
{
    uint64_t most = c->caps.software ? 8u << 20 : 64u << 20, left = vk_memory_free(c);
    return left ? DL_MIN(most, left / 8) : most;
}

/* Runs one candidate. What it did not even ask for tells nothing: the smaller op has other candidates. */
static int try(const struct ask *a, uint32_t i, struct vk_trial *trial, uint64_t *ns, bool *right, double *nmse)
{
    struct vk_tune *t = a->l->ctx->tune;
    t->kernel = a->kernel;
    t->name = a->names[i];
    t->base = a->base;
    t->base_name = a->names[0];
    t->met = false;
    a->l->ctx->quiet = true;
    int err = ns ? vk_trial_time(trial, TIME_NS, ns) : vk_trial_check(trial, right, nmse);
    a->l->ctx->quiet = false;
    t->kernel = t->base = NULL;
    if (!err && !t->met && ns)
        *ns = 0;
    if (!err && !t->met && right)
        *right = true;
    return err;
}

/* Is it right? Asked once for each kernel, name, type and kind of batch; what is wrong once is not used any more. */
static int check(const struct ask *a, uint32_t index, bool *right)
{
    struct vk_lower *l = a->l;
    const char *kernel = a->kernel, *name = a->names[index];
    const struct dl_op *op = a->ops;
    struct vk_tune *t = l->ctx->tune;
    uint32_t n = rows(l, op);
    struct candidate new = {.right = false};
    snprintf(new.key, sizeof new.key, "%s %s %s", kernel, dl_type_info(op->src[1].type)->name,
             n == 1    ? "one"
             : n <= 8  ? "few"
             : n <= 64 ? "some"
                       : "many");
    snprintf(new.name, sizeof new.name, "%s", name);
    size_t length = strlen(kernel);
    for (size_t i = 0; i < t->n_checked; i++) {
        const struct candidate *old = &t->checked[i];
        if (strcmp(old->name, name))
            continue;
        bool same = !strcmp(old->key, new.key),
             dropped = !old->right && !strncmp(old->key, kernel, length) && old->key[length] == ' ';
        if (same || dropped) {
            *right = old->right;
            return 0;
        }
    }
    struct vk_trial *trial = NULL;
    double nmse = 0;
    int err = vk_trial_create(l, op, a->n_ops, VK_TRIAL_CHECK, trial_bytes(l->ctx), &trial);
    if (err)
        return err; /* not the candidate's fault */
    err = try(a, index, trial, NULL, right, &nmse);
    vk_trial_destroy(&trial);
    if (vk_lost(l->ctx))
        return vk_lost(l->ctx);
    t->stats.checked++;
    new.right = *right = !err &&*right;
    if (!new.right) {
        t->stats.dropped++;
        if (err)
            dl_log(DL_LOG_WARN, "%s: kernel %s, variant %s: dropped, it does not run here (%s)", l->ctx->label, kernel,
                   name, dl_err_text(err));
        else
            dl_log(DL_LOG_WARN, "%s: kernel %s, variant %s: dropped, its results are wrong here (%s, NMSE %.1e)",
                   l->ctx->label, kernel, name, new.key, nmse);
    }
    if (!dl_grow((void **)&t->checked, &t->cap_checked, t->n_checked + 1, sizeof new))
        t->checked[t->n_checked++] = new;
    return 0;
}

/* A choice being made. */
struct contest {
    const struct ask *ask;
    const char *key;
    struct vk_trial *trial; /* for times; NULL until the first */
    bool timed;             /* large enough for it */
    int best;
    uint64_t took[VK_TUNE_MOST]; /* 0: not timed, or not right */
};

static int time_one(struct contest *k, uint32_t i)
{
    const struct ask *a = k->ask;
    struct vk_ctx *c = a->l->ctx;
    uint64_t ns = 0;
    int err = k->trial ? 0 : vk_trial_create(a->l, a->ops, a->n_ops, VK_TRIAL_TIME, trial_bytes(c), &k->trial);
    if (!err)
        err = try(a, i, k->trial, &ns, NULL, NULL);
    c->tune->stats.timed += !err;
    if (!err && ns > 0)
        k->took[i] = k->took[i] ? DL_MIN(k->took[i], ns) : ns;
    return err;
}

/* One kernel for several ops may be a little slower here: in the run it also saves what is between dispatches. */
static bool gains(const struct contest *k, uint32_t i, uint32_t than)
{
    double part = !k->ask->base ? 1 : i > than ? FUSED_GAIN : 1 / FUSED_GAIN;
    return k->took[i] && (!k->took[than] || (double)k->took[i] < (double)k->took[than] * part);
}

static int enter(struct contest *k, uint32_t i, bool may_time)
{
    struct vk_ctx *c = k->ask->l->ctx;
    struct vk_tune *t = c->tune;
    bool right = false;
    uint64_t start = dl_now_ns();
    vk_progress(c, PHASE, DL_MIN(t->spent_ns, t->budget_ns - 1), t->budget_ns);
    int err = check(k->ask, i, &right);
    if (!err && right && may_time)
        err = time_one(k, i);
    t->spent_ns += dl_now_ns() - start;
    if (!err && k->took[i])
        dl_log(DL_LOG_DEBUG, "%s: %s: %s takes %.1f us", c->label, k->key, k->ask->names[i], (double)k->took[i] / 1e3);
    if (!err && right && (k->best < 0 || gains(k, i, (uint32_t)k->best)))
        k->best = (int)i;
    return err;
}

/* Once more, in turns: a busy machine is not the kernel. */
static int again(struct contest *k, uint32_t one, uint32_t other)
{
    struct vk_tune *t = k->ask->l->ctx->tune;
    uint64_t start = dl_now_ns();
    int err = time_one(k, one);
    if (!err)
        err = time_one(k, other);
    t->spent_ns += dl_now_ns() - start;
    return err;
}

/* All that there is time for. The first guess and the last candidate are compared in any case, unless it is known from another shape
 * how they compare, or would take seconds; then the others. */
static int compete(struct contest *k, int like)
{
    const uint32_t n = k->ask->n, last = n - 1;
    const struct vk_ctx *c = k->ask->l->ctx;
    const struct vk_tune *t = c->tune;
    const bool compared = like < 0 && (!c->caps.software || work(k->ask->l, k->ask->ops) <= SHORT_WORK);
    int err = 0;
    if (like >= 0)
        err = enter(k, (uint32_t)like, k->timed && t->spent_ns <= t->budget_ns);
    for (uint32_t step = 0; !err && step < n; step++) {
        const uint32_t i = step == 0 ? 0 : step == 1 ? last : step - 1;
        const bool late = t->spent_ns > t->budget_ns, must = compared && step < 2;
        if ((int)i == like)
            continue;
        if (k->best >= 0 && (!k->timed || (late && !must)))
            break;
        err = enter(k, i, k->timed && (!late || must));
    }
    if (err || k->best < 0 || !k->took[k->best] || t->spent_ns > t->budget_ns)
        return err;
    /* What won barely may have been lucky; one kernel for several ops rarely is slower. */
    const uint32_t best = (uint32_t)k->best, rival = k->ask->base ? 1 - best : last;
    if (best == rival || !k->took[rival] || (k->ask->base ? best == 0 : k->took[best] < k->took[rival] / 10 * 9))
        return 0;
    for (int turn = 0; !err && turn < (k->ask->base ? LOSES : 1) && k->best == (int)best; turn++) {
        err = again(k, best, rival);
        if (!err && gains(k, rival, best))
            k->best = (int)rival;
    }
    return err;
}

static int measure(const struct ask *a, const char *key)
{
    struct vk_ctx *c = a->l->ctx;
    struct vk_tune *t = c->tune;
    struct contest k = {.ask = a,
                        .key = key,
                        .best = -1,
                        .timed = a->n > 1 && vk_trial_times(a->ops) && work(a->l, a->ops) >= LEAST_WORK};
    int err = compete(&k, k.timed ? sibling(t, key, a->names, a->n) : -1);
    vk_progress(c, PHASE, t->budget_ns, t->budget_ns);
    vk_trial_destroy(&k.trial);
    if (err && vk_lost(c))
        return err;
    if (err && k.best < 0) { /* no memory for trials, say */
        dl_log(DL_LOG_WARN, "%s: %s could not be checked (%s), using %s", c->label, a->kernel, dl_err_text(err),
               a->names[a->n - 1]);
        return (int)a->n - 1;
    }
    if (k.best < 0)
        return dl_fail(DL_EUNSUP, "%s: kernel %s: every variant gives wrong results: use another device", c->label,
                       a->kernel);
    struct choice made = {
        .ns = k.took[k.best], .plain_ns = k.took[a->n - 1], .rough = err || (k.timed && t->spent_ns > t->budget_ns)};
    snprintf(made.key, sizeof made.key, "%s", key);
    snprintf(made.name, sizeof made.name, "%s", a->names[k.best]);
    choose(c, &made);
    return k.best;
}

/* No choice is forced, and no trial asks. */
static int pick(const struct ask *a)
{
    struct vk_tune *t = a->l->ctx->tune;
    if (!t->budget_ns || !vk_trial_knows(a->ops))
        return 0;
    char key[sizeof t->choices->key];
    key_of(a, key, sizeof key);
    int i = known(a->l->ctx, key, a->names, a->n);
    if (i >= 0 || t->kernel) /* a trial of another kernel does not start its own */
        return DL_MAX(i, 0);
    if (!t->said)
        dl_log(DL_LOG_INFO, "%s: checking and timing kernels: the first start with this device and driver takes longer",
               a->l->ctx->label);
    t->said = true;
    return measure(a, key);
}

/* What a running trial wants of this kernel; -1: nothing. */
static int tried(struct vk_tune *t, const char *kernel, const char *const *names, uint32_t n)
{
    if (t->kernel && !strcmp(t->kernel, kernel)) {
        int i = index_of(t->name, strlen(t->name), names, n);
        t->met = t->met || i >= 0;
        return DL_MAX(i, 0);
    }
    return t->base && !strcmp(t->base, kernel) ? index_of(t->base_name, strlen(t->base_name), names, n) : -1;
}

int vk_tune_pick(struct vk_lower *l, const char *kernel, const struct dl_op *op, const char *const *names, uint32_t n)
{
    int i = tried(tune_of(l->ctx), kernel, names, n);
    if (i < 0)
        i = vk_tune_forced(kernel, names, n);
    struct ask a = {.l = l, .kernel = kernel, .ops = op, .n_ops = 1, .names = names, .n = n};
    return i >= 0 ? i : pick(&a);
}

int vk_tune_fuse(struct vk_lower *l, const char *kernel, const struct dl_op *ops, uint32_t n, const char *base,
                 const char *variant)
{
    static const char *const answers[] = {"yes", "no"};
    const char *const names[] = {variant, "no"};
    struct vk_tune *t = tune_of(l->ctx);
    int i = tried(t, kernel, names, 2);
    if (i < 0)
        i = t->kernel ? 1 : vk_tune_forced("fuse", answers, 2); /* nothing is fused in a trial of something else */
    struct ask a = {.l = l, .kernel = kernel, .ops = ops, .n_ops = n, .names = names, .n = 2, .base = base};
    if (i < 0)
        i = pick(&a);
    return i < 0 ? i : i == 0;
}
