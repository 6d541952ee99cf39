/* SPDX-License-Identifier: MIT
 *
 * pipeline.c: SPIR-V to pipelines, each made once per device, in threads, on demand or ahead of it; and the driver's own cache,
 * kept on disk by device and driver.
 *
 * The table belongs to the engine thread. An entry's state is passed on under the lock: whoever sets MAKING owns the rest of the
 * entry until it is DONE.
 */
#include "pipeline.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cache.h"

#define MAX_THREADS 8u
#define STACK_BYTES ((size_t)4 << 20) /* glslang recurses; some C libraries give threads little */

enum state { WANTED, MAKING, DONE };

struct entry {
    struct vk_pipe pipe;
    const char *shader;
    char defines[sizeof((struct vk_dispatch *)0)->defines];
    uint64_t hash;
    struct entry *next_wanted;
    enum state state;
    int status;
};

struct vk_pipes {
    struct vk_ctx *ctx;
    VkPipelineCache cache;
    struct vk_hash key;
    size_t saved_bytes; /* of the cache when it was last read or written */
    struct entry **v;   /* in order of arrival */
    size_t n, cap;
    uint32_t *table; /* open addressing: index + 1 into v; a power of two, at least twice n */
    size_t slots;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct entry *wanted, **wanted_end;
    pthread_t threads[MAX_THREADS];
    uint32_t n_threads;
    size_t n_done;
    bool stop;
};

/* ------------------------------------------------------------------------------------------------ one pipeline */

static int make_layouts(struct vk_ctx *c, struct vk_pipe *p)
{
    VkDescriptorSetLayoutBinding bindings[VK_BINDS];
    for (uint32_t i = 0; i < p->n_binds; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                     .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                     .descriptorCount = 1,
                                                     .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo set = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                           .bindingCount = p->n_binds,
                                           .pBindings = bindings};
    VkResult r = c->vk.vkCreateDescriptorSetLayout(c->device, &set, NULL, &p->set_layout);
    if (r != VK_SUCCESS)
        return vk_fail(c, r, "vkCreateDescriptorSetLayout");
    VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 4 * p->n_push};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &p->set_layout,
                                         .pushConstantRangeCount = p->n_push > 0,
                                         .pPushConstantRanges = &push};
    r = c->vk.vkCreatePipelineLayout(c->device, &layout, NULL, &p->layout);
    return r == VK_SUCCESS ? 0 : vk_fail(c, r, "vkCreatePipelineLayout");
}

/* The value of SG= in the defines; 1 where there is none. */
static uint32_t subgroup_of(const char *defines)
{
    for (const char *p = defines; p; p = strchr(p, ';'), p = p ? p + 1 : NULL)
        if (!strncmp(p, "SG=", 3))
            return (uint32_t)strtoul(p + 3, NULL, 10);
    return 1;
}

static int make_pipeline(struct vk_ctx *c, VkPipelineCache cache, struct entry *e, const struct vk_spirv *spirv)
{
    VkShaderModuleCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = spirv->n * 4, .pCode = spirv->words};
    VkShaderModule module;
    VkResult r = c->vk.vkCreateShaderModule(c->device, &info, NULL, &module);
    if (r != VK_SUCCESS)
        return vk_fail(c, r, "vkCreateShaderModule");
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = subgroup_of(e->defines)};
    bool require = c->caps.subgroup_require && size.requiredSubgroupSize > 1;
    VkComputePipelineCreateInfo pipe = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = VK_PIPELINE_CREATE_DISPATCH_BASE_BIT,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = require ? &size : NULL,
                  .flags = require ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main"},
        .layout = e->pipe.layout,
    };
    r = c->vk.vkCreateComputePipelines(c->device, cache, 1, &pipe, NULL, &e->pipe.pipeline);
    c->vk.vkDestroyShaderModule(c->device, module, NULL);
    if (r == VK_SUCCESS)
        return 0;
    dl_log(DL_LOG_ERROR, "%s: the driver does not take shader %s (%s)", c->label, e->shader, e->defines);
    return vk_fail(c, r, "vkCreateComputePipelines");
}

static int make(struct vk_pipes *p, struct entry *e)
{
    struct vk_ctx *c = p->ctx;
    struct vk_spirv spirv = {0};
    int err = vk_glsl_compile(e->shader, e->defines, &spirv);
    if (!err)
        err = make_layouts(c, &e->pipe);
    if (!err)
        err = make_pipeline(c, p->cache, e, &spirv);
    vk_spirv_finish(&spirv);
    return err;
}

static void destroy(struct vk_ctx *c, struct entry *e)
{
    if (e->pipe.pipeline)
        c->vk.vkDestroyPipeline(c->device, e->pipe.pipeline, NULL);
    if (e->pipe.layout)
        c->vk.vkDestroyPipelineLayout(c->device, e->pipe.layout, NULL);
    if (e->pipe.set_layout)
        c->vk.vkDestroyDescriptorSetLayout(c->device, e->pipe.set_layout, NULL);
    free(e);
}

/* -------------------------------------------------------------------------------------------------- threads */

/* Makes e outside the lock, which is held before and after. */
static void make_unlocked(struct vk_pipes *p, struct entry *e)
{
    e->state = MAKING;
    pthread_mutex_unlock(&p->lock);
    int status = make(p, e);
    pthread_mutex_lock(&p->lock);
    e->status = status;
    e->state = DONE;
    p->n_done++;
    pthread_cond_broadcast(&p->changed);
}

/* The next entry that nobody has begun, or NULL. Under the lock. */
static struct entry *next_wanted(struct vk_pipes *p)
{
    while (p->wanted) {
        struct entry *e = p->wanted;
        p->wanted = e->next_wanted;
        if (!p->wanted)
            p->wanted_end = &p->wanted;
        if (e->state == WANTED) /* else vk_pipe_get was faster */
            return e;
    }
    return NULL;
}

static void *worker(void *arg)
{
    struct vk_pipes *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct entry *e = next_wanted(p);
        if (e)
            make_unlocked(p, e);
        else
            pthread_cond_wait(&p->changed, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* Beside the calling thread, which does the work alone where none starts. */
static void start_threads(struct vk_pipes *p, uint32_t wanted)
{
    pthread_attr_t attr;
    wanted = DL_MIN(wanted, DL_MIN(MAX_THREADS, dl_cpu_count() - 1));
    if (p->n_threads >= wanted || pthread_attr_init(&attr))
        return;
    if (!pthread_attr_setstacksize(&attr, STACK_BYTES))
        while (p->n_threads < wanted && !pthread_create(&p->threads[p->n_threads], &attr, worker, p))
            p->n_threads++;
    pthread_attr_destroy(&attr);
}

/* ---------------------------------------------------------------------------------------------------- table */

static uint64_t hash_of(const struct vk_dispatch *d)
{
    struct vk_hash h = VK_HASH_START;
    vk_hash_text(&h, d->shader);
    vk_hash_text(&h, d->defines);
    vk_hash_add(&h, &d->n_binds, sizeof d->n_binds);
    vk_hash_add(&h, &d->n_push, sizeof d->n_push);
    return h.a ^ h.b;
}

static void place(struct vk_pipes *p, size_t index)
{
    size_t slot = p->v[index]->hash & (p->slots - 1);
    while (p->table[slot])
        slot = (slot + 1) & (p->slots - 1);
    p->table[slot] = (uint32_t)index + 1;
}

static int make_room(struct vk_pipes *p)
{
    if (2 * (p->n + 1) > p->slots) {
        size_t slots = p->slots ? 2 * p->slots : 64;
        uint32_t *table = dl_calloc(slots, sizeof *table);
        if (!table)
            return DL_ENOMEM;
        free(p->table);
        p->table = table;
        p->slots = slots;
        for (size_t i = 0; i < p->n; i++)
            place(p, i);
    }
    return dl_grow((void **)&p->v, &p->cap, p->n + 1, sizeof(struct entry *));
}

static struct entry *find(const struct vk_pipes *p, const struct vk_dispatch *d, uint64_t hash)
{
    for (size_t slot = hash; p->slots && p->table[slot & (p->slots - 1)]; slot++) {
        struct entry *e = p->v[p->table[slot & (p->slots - 1)] - 1];
        if (e->hash == hash && e->pipe.n_binds == d->n_binds && e->pipe.n_push == d->n_push &&
            !strcmp(e->shader, d->shader) && !strcmp(e->defines, d->defines))
            return e;
    }
    return NULL;
}

/* The entry of a dispatch; a new one is WANTED and in the queue. NULL (logged) when memory is out. */
static struct entry *entry_of(struct vk_pipes *p, const struct vk_dispatch *d)
{
    uint64_t hash = hash_of(d);
    struct entry *e = find(p, d, hash);
    if (e || make_room(p))
        return e;
    e = dl_calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->pipe = (struct vk_pipe){.n_binds = d->n_binds, .n_push = d->n_push};
    e->shader = d->shader;
    memcpy(e->defines, d->defines, sizeof e->defines);
    e->hash = hash;
    p->v[p->n] = e;
    place(p, p->n++);
    pthread_mutex_lock(&p->lock);
    *p->wanted_end = e;
    p->wanted_end = &e->next_wanted;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return e;
}

int vk_pipes_prepare(struct vk_pipes *p, const struct vk_dispatch *d, size_t n, vk_glsl_progress *progress, void *ud)
{
    size_t before = p->n;
    for (size_t i = 0; i < n; i++)
        if (!entry_of(p, &d[i]))
            return DL_ENOMEM;
    size_t fresh = p->n - before;
    if (fresh > 1)
        start_threads(p, (uint32_t)DL_MIN(fresh - 1, (size_t)MAX_THREADS));
    int err = 0;
    pthread_mutex_lock(&p->lock);
    while (p->n_done < p->n) {
        struct entry *e = next_wanted(p);
        if (e)
            make_unlocked(p, e);
        else
            pthread_cond_wait(&p->changed, &p->lock);
        if (progress && p->n_done > before) {
            size_t done = p->n_done - before;
            pthread_mutex_unlock(&p->lock);
            progress(ud, done, fresh);
            pthread_mutex_lock(&p->lock);
        }
    }
    for (size_t i = before; i < p->n && !err; i++)
        err = p->v[i]->status;
    pthread_mutex_unlock(&p->lock);
    return err;
}

int vk_pipe_get(struct vk_pipes *p, const struct vk_dispatch *d, const struct vk_pipe **out)
{
    struct entry *e = entry_of(p, d);
    *out = NULL;
    if (!e)
        return DL_ENOMEM;
    pthread_mutex_lock(&p->lock);
    if (e->state == WANTED)
        make_unlocked(p, e);
    while (e->state != DONE)
        pthread_cond_wait(&p->changed, &p->lock);
    int status = e->status;
    pthread_mutex_unlock(&p->lock);
    if (!status)
        *out = &e->pipe;
    return status;
}

/* ------------------------------------------------------------------------------------------ cache, open, close */

static struct vk_hash key_of(const struct vk_caps *caps)
{
    struct vk_hash key = VK_HASH_START;
    vk_hash_add(&key, caps->uuid, sizeof caps->uuid);
    vk_hash_add(&key, &caps->driver_version, sizeof caps->driver_version);
    vk_hash_text(&key, caps->driver);
    return key;
}

/* The blob's own head (32 bytes, little-endian, as Vulkan fixes it): drivers check it too, but not all have always done so well. */
static bool is_for(const struct vk_caps *caps, const uint8_t *blob, size_t n)
{
    uint32_t head[4];
    if (n < 32)
        return false;
    memcpy(head, blob, sizeof head);
    return head[0] >= 32 && head[0] <= n && head[1] == VK_PIPELINE_CACHE_HEADER_VERSION_ONE &&
           head[2] == caps->vendor_id && head[3] == caps->device_id;
}

static int open_cache(struct vk_pipes *p)
{
    struct vk_ctx *c = p->ctx;
    size_t n = 0;
    p->key = key_of(&c->caps);
    void *blob = vk_cache_load("pipelines", p->key, &n);
    if (blob && !is_for(&c->caps, blob, n))
        n = 0;
    VkPipelineCacheCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = n, .pInitialData = n ? blob : NULL};
    VkResult r = c->vk.vkCreatePipelineCache(c->device, &info, NULL, &p->cache);
    if (r != VK_SUCCESS && n) { /* a blob that this driver does not like */
        info.initialDataSize = 0;
        info.pInitialData = NULL;
        r = c->vk.vkCreatePipelineCache(c->device, &info, NULL, &p->cache);
    }
    free(blob);
    p->saved_bytes = info.initialDataSize;
    return r == VK_SUCCESS ? 0 : vk_fail(c, r, "vkCreatePipelineCache");
}

void vk_pipes_save(struct vk_pipes *p)
{
    struct vk_ctx *c = p->ctx;
    size_t n = 0;
    if (!p->cache || c->lost || c->vk.vkGetPipelineCacheData(c->device, p->cache, &n, NULL) != VK_SUCCESS ||
        n <= DL_MAX(p->saved_bytes, (size_t)32))
        return; /* nothing new; 32 bytes are a head without pipelines */
    void *blob = malloc(n);
    if (blob && c->vk.vkGetPipelineCacheData(c->device, p->cache, &n, blob) == VK_SUCCESS) {
        vk_cache_store("pipelines", p->key, blob, n);
        p->saved_bytes = n;
    }
    free(blob);
}

int vk_pipes_create(struct vk_ctx *c, struct vk_pipes **out)
{
    struct vk_pipes *p = dl_calloc(1, sizeof *p);
    *out = NULL;
    if (!p)
        return DL_ENOMEM;
    p->ctx = c;
    p->wanted_end = &p->wanted;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    int err = open_cache(p);
    if (err)
        vk_pipes_destroy(&p);
    *out = p;
    return err;
}

void vk_pipes_destroy(struct vk_pipes **pp)
{
    struct vk_pipes *p = *pp;
    if (!p)
        return;
    struct vk_ctx *c = p->ctx;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    vk_pipes_save(p);
    for (size_t i = 0; i < p->n; i++)
        destroy(c, p->v[i]);
    if (p->cache)
        c->vk.vkDestroyPipelineCache(c->device, p->cache, NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p->v);
    free(p->table);
    free(p);
    *pp = NULL;
}
