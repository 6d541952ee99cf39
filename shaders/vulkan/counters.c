/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/counters.c: see counters.h. A failure is for ever: whatever broke the queue is kept in vk_ctx.lost, said once, and
 * answered to every later call, so that nobody waits for what will not come.
 *
 * Locks: `lock` guards everything that host_signal and the driver thread touch: host, device, the ring's ends, stop. The engine
 * thread alone touches recordings and what was measured. The condition is signalled whenever one of the guarded changes.
 */
#include "counters.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_IN_FLIGHT 64u
#define SLICE_NS 100000000u /* how often a long wait looks whether the device is still there */
#define SPIN_NS 50000u      /* about what waking up costs */

struct submission {
    struct vk_recording *recording;
    uint64_t host_wait, signal, submitted_ns;
};

struct vk_counters {
    struct vk_ctx *ctx;
    VkSemaphore host_semaphore, device_semaphore; /* null: the driver thread stands in for them */
    VkFence fence;                                /* the driver thread's */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t driver;
    bool driver_runs, stop;
    bool busy;              /* the driver thread has taken a submission and is not done with it */
    uint64_t host, host_ns; /* the counter, and when it was last raised */
    uint64_t device;        /* driver thread: the counter */
    uint64_t last_signal, finished_ns;
    struct submission ring[MAX_IN_FLIGHT];
    uint64_t head, taken, tail; /* [head, tail) in flight, [taken, tail) not yet with the driver thread */
};

/* What breaks the queue breaks the device: work is missing, and its signal with it. */
static int broke(struct vk_ctx *c, VkResult r, const char *what)
{
    int err = vk_lost(c);
    if (err)
        return err;
    err = vk_fail(c, r, what);
    int fine = DL_OK;
    atomic_compare_exchange_strong(&c->lost, &fine, err == DL_ENOMEM ? DL_ENOMEM : DL_EDEVICE);
    return vk_lost(c);
}

/* ------------------------------------------------------------------------------------------------- submitting */

/* One submit per command buffer: drivers bound what they run without a break by submits. */
static VkResult send(struct vk_counters *k, const struct submission *s, VkFence fence)
{
    if (k->ctx->lose_after && k->ctx->n_runs++ >= k->ctx->lose_after)
        return VK_ERROR_DEVICE_LOST;
    const struct vk_recording *r = s->recording;
    const VkPipelineStageFlags stage = VK_PIPELINE_STAGE_ALL_COMMANDS_BIT;
    for (size_t i = 0; i < r->n_cmds; i++) {
        bool first = i == 0 && k->host_semaphore && s->host_wait, last = i + 1 == r->n_cmds;
        VkTimelineSemaphoreSubmitInfo values = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                                .waitSemaphoreValueCount = first,
                                                .pWaitSemaphoreValues = &s->host_wait,
                                                .signalSemaphoreValueCount = last,
                                                .pSignalSemaphoreValues = &s->signal};
        VkSubmitInfo info = {
            .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &r->cmds[i]};
        if (k->host_semaphore) {
            info.pNext = &values;
            info.waitSemaphoreCount = first;
            info.pWaitSemaphores = &k->host_semaphore;
            info.pWaitDstStageMask = &stage;
            info.signalSemaphoreCount = last;
            info.pSignalSemaphores = &k->device_semaphore;
        }
        VkResult e = vk_queue_submit(k->ctx, 1, &info, last ? fence : VK_NULL_HANDLE);
        if (e)
            return e;
    }
    return VK_SUCCESS;
}

/* The engine thread: takes finished submissions off the ring; `now` is when they were seen to be. */
static void retire(struct vk_counters *k, uint64_t reached)
{
    uint64_t now = dl_now_ns();
    pthread_mutex_lock(&k->lock);
    uint64_t raised_ns = k->host_ns;
    while (k->head < k->tail && k->ring[k->head % MAX_IN_FLIGHT].signal <= reached) {
        struct submission *s = &k->ring[k->head % MAX_IN_FLIGHT];
        uint64_t start = DL_MAX(s->submitted_ns, k->finished_ns);
        if (s->host_wait)
            start = DL_MAX(start, raised_ns);
        bool alone = k->head + 1 == k->tail || k->ring[(k->head + 1) % MAX_IN_FLIGHT].signal > reached;
        s->recording->in_flight--;
        if (alone && now > start) /* of several that were found done nobody knows which took how long */
            vk_prog_took(k->ctx, s->recording, now - start);
        s->recording->has_run = true;
        k->finished_ns = now;
        k->head++;
    }
    pthread_mutex_unlock(&k->lock);
}

static int counter(struct vk_counters *k, uint64_t *value)
{
    if (!k->device_semaphore) {
        pthread_mutex_lock(&k->lock);
        *value = k->device;
        pthread_mutex_unlock(&k->lock);
        return vk_lost(k->ctx);
    }
    struct vk_ctx *c = k->ctx;
    int err = vk_lost(c);
    if (err)
        return err;
    VkResult r = c->vk.vkGetSemaphoreCounterValue(c->device, k->device_semaphore, value);
    return r ? broke(c, r, "asking for the counter") : DL_OK;
}

int vk_counters_submit(struct vk_counters *k, struct vk_prog *p, const struct dl_run_args *args, uint64_t host_wait,
                       uint64_t signal)
{
    struct vk_ctx *c = k->ctx;
    uint64_t reached;
    int err = counter(k, &reached);
    if (err)
        return err;
    retire(k, reached);
    if (signal <= k->last_signal)
        return dl_fail(DL_EINVAL, "%s: signal %llu after %llu: the counter only grows", c->label,
                       (unsigned long long)signal, (unsigned long long)k->last_signal);
    if (k->tail - k->head >= MAX_IN_FLIGHT)
        return dl_fail(DL_ELIMIT, "%s: more than %u submissions in flight", c->label, MAX_IN_FLIGHT);
    struct submission s = {.host_wait = host_wait, .signal = signal};
    err = vk_prog_record(c, p, args, &s.recording);
    if (err)
        return err;
    s.submitted_ns = dl_now_ns();
    if (k->host_semaphore) {
        VkResult r = send(k, &s, VK_NULL_HANDLE);
        if (r)
            return broke(c, r, "submitting");
    }
    s.recording->in_flight++;
    pthread_mutex_lock(&k->lock);
    k->ring[k->tail++ % MAX_IN_FLIGHT] = s;
    k->last_signal = signal;
    pthread_cond_broadcast(&k->changed);
    pthread_mutex_unlock(&k->lock);
    return DL_OK;
}

/* --------------------------------------------------------------------------------------- the driver thread */

static VkResult run_one(struct vk_counters *k, const struct submission *s)
{
    struct vk_ctx *c = k->ctx;
    VkResult r = c->vk.vkResetFences(c->device, 1, &k->fence);
    if (!r)
        r = send(k, s, k->fence);
    if (r)
        return r;
    do
        r = c->vk.vkWaitForFences(c->device, 1, &k->fence, VK_TRUE, SLICE_NS);
    while (r == VK_TIMEOUT && !vk_lost(c));
    return r;
}

static void *driver_main(void *ud)
{
    struct vk_counters *k = ud;
    pthread_mutex_lock(&k->lock);
    for (;;) {
        while (!k->stop && (k->taken == k->tail || k->host < k->ring[k->taken % MAX_IN_FLIGHT].host_wait))
            pthread_cond_wait(&k->changed, &k->lock);
        if (k->stop)
            break;
        struct submission s = k->ring[k->taken++ % MAX_IN_FLIGHT];
        k->busy = true;
        pthread_mutex_unlock(&k->lock);
        VkResult r = vk_lost(k->ctx) ? VK_ERROR_DEVICE_LOST : run_one(k, &s);
        if (r)
            (void)broke(k->ctx, r, "running a batch");
        pthread_mutex_lock(&k->lock);
        if (!r)
            k->device = s.signal;
        k->busy = false;
        pthread_cond_broadcast(&k->changed);
    }
    pthread_mutex_unlock(&k->lock);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- waiting */

int vk_counters_host(struct vk_counters *k, uint64_t value)
{
    struct vk_ctx *c = k->ctx;
    int err = vk_lost(c);
    pthread_mutex_lock(&k->lock);
    if (value > k->host) {
        /* Also on a device that failed: what it still holds shall run out rather than wait for ever. */
        if (k->host_semaphore) {
            VkSemaphoreSignalInfo info = {
                .sType = VK_STRUCTURE_TYPE_SEMAPHORE_SIGNAL_INFO, .semaphore = k->host_semaphore, .value = value};
            VkResult r = c->vk.vkSignalSemaphore(c->device, &info);
            if (r && !err)
                err = broke(c, r, "raising the host counter");
        }
        k->host = value;
        k->host_ns = dl_now_ns();
        pthread_cond_broadcast(&k->changed);
    }
    pthread_mutex_unlock(&k->lock);
    return err;
}

/* The driver thread's counter. */
static int wait_thread(struct vk_counters *k, uint64_t value, uint64_t deadline)
{
    int err = DL_OK;
    pthread_mutex_lock(&k->lock);
    while (k->device < value && !(err = vk_lost(k->ctx))) {
        uint64_t now = dl_now_ns();
        if (now >= deadline) {
            err = DL_ETIMEDOUT;
            break;
        }
        uint64_t step = DL_MIN(deadline - now, (uint64_t)SLICE_NS);
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        uint64_t until = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec + step;
        t = (struct timespec){(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
        (void)pthread_cond_timedwait(&k->changed, &k->lock, &t);
    }
    pthread_mutex_unlock(&k->lock);
    return err;
}

static int wait_semaphore(struct vk_counters *k, uint64_t value, uint64_t deadline)
{
    struct vk_ctx *c = k->ctx;
    /* A real GPU is often done before a sleeper would be awake; a software one needs the processor that spinning takes. */
    uint64_t now = dl_now_ns(), spin_until = c->caps.software ? 0 : now + SPIN_NS, reached;
    for (;;) {
        int err = counter(k, &reached);
        if (err || reached >= value)
            return err;
        now = dl_now_ns();
        if (now >= deadline)
            return DL_ETIMEDOUT;
        if (now < spin_until)
            continue;
        VkSemaphoreWaitInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                    .semaphoreCount = 1,
                                    .pSemaphores = &k->device_semaphore,
                                    .pValues = &value};
        VkResult r = c->vk.vkWaitSemaphores(c->device, &info, DL_MIN(deadline - now, (uint64_t)SLICE_NS));
        if (r && r != VK_TIMEOUT)
            return broke(c, r, "waiting");
    }
}

/* A time-out is an answer, not a failure: it is not logged. */
int vk_counters_wait(struct vk_counters *k, uint64_t value, uint64_t timeout_ns)
{
    uint64_t now = dl_now_ns(), deadline;
    if (!dl_add_u64(now, timeout_ns, &deadline))
        deadline = UINT64_MAX;
    int err = k->device_semaphore ? wait_semaphore(k, value, deadline) : wait_thread(k, value, deadline);
    if (err)
        return err;
    retire(k, value);
    return vk_memory_invalidate(k->ctx);
}

void vk_counters_drain(struct vk_counters *k)
{
    if (k->head == k->tail)
        return;
    uint64_t most = 0;
    for (uint64_t i = k->head; i < k->tail; i++)
        most = DL_MAX(most, k->ring[i % MAX_IN_FLIGHT].host_wait);
    uint64_t last = k->ring[(k->tail - 1) % MAX_IN_FLIGHT].signal, reached;
    if (!counter(k, &reached) && reached >= last) {
        retire(k, last);
        return;
    }
    (void)vk_counters_host(k, most);
    if (!vk_counters_wait(k, last, UINT64_MAX))
        return;
    /* Lost: what the driver still holds comes back with the device; nothing of it will run. First the driver thread, which may be
     * on its way to submit what it took before the loss was known. */
    pthread_mutex_lock(&k->lock);
    while (k->busy)
        pthread_cond_wait(&k->changed, &k->lock);
    pthread_mutex_unlock(&k->lock);
    pthread_mutex_lock(&k->ctx->queue_lock);
    (void)k->ctx->vk.vkDeviceWaitIdle(k->ctx->device);
    pthread_mutex_unlock(&k->ctx->queue_lock);
    retire(k, UINT64_MAX);
}

/* ---------------------------------------------------------------------------------------------- create, destroy */

static int semaphore_new(struct vk_ctx *c, VkSemaphore *out)
{
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo info = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    VkResult r = c->vk.vkCreateSemaphore(c->device, &info, NULL, out);
    if (r)
        *out = VK_NULL_HANDLE;
    return r ? vk_fail(c, r, "making a semaphore") : DL_OK;
}

static int driver_start(struct vk_counters *k)
{
    struct vk_ctx *c = k->ctx;
    VkFenceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkResult r = c->vk.vkCreateFence(c->device, &info, NULL, &k->fence);
    if (r) {
        k->fence = VK_NULL_HANDLE;
        return vk_fail(c, r, "making a fence");
    }
    int e = pthread_create(&k->driver, NULL, driver_main, k);
    if (e)
        return dl_fail(DL_EDEVICE, "%s: cannot start a thread: %s", c->label, strerror(e));
    k->driver_runs = true;
    return DL_OK;
}

int vk_counters_create(struct vk_ctx *c, struct vk_counters **out)
{
    *out = NULL;
    struct vk_counters *k = dl_calloc(1, sizeof *k);
    if (!k)
        return DL_ENOMEM;
    k->ctx = c;
    if (pthread_mutex_init(&k->lock, NULL)) {
        free(k);
        return dl_fail(DL_ENOMEM, "%s: the system gives no mutex", c->label);
    }
    if (pthread_cond_init(&k->changed, NULL)) {
        pthread_mutex_destroy(&k->lock);
        free(k);
        return dl_fail(DL_ENOMEM, "%s: the system gives no condition variable", c->label);
    }
    int err;
    if (c->caps.timeline) {
        err = semaphore_new(c, &k->host_semaphore);
        if (!err)
            err = semaphore_new(c, &k->device_semaphore);
    } else {
        err = driver_start(k);
    }
    if (err)
        vk_counters_destroy(k);
    else
        *out = k;
    return err;
}

void vk_counters_destroy(struct vk_counters *k)
{
    if (!k)
        return;
    struct vk_ctx *c = k->ctx;
    if (k->driver_runs) {
        pthread_mutex_lock(&k->lock);
        k->stop = true;
        pthread_cond_broadcast(&k->changed);
        pthread_mutex_unlock(&k->lock);
        pthread_join(k->driver, NULL);
    }
    if (k->fence)
        c->vk.vkDestroyFence(c->device, k->fence, NULL);
    if (k->host_semaphore)
        c->vk.vkDestroySemaphore(c->device, k->host_semaphore, NULL);
    if (k->device_semaphore)
        c->vk.vkDestroySemaphore(c->device, k->device_semaphore, NULL);
    pthread_cond_destroy(&k->changed);
    pthread_mutex_destroy(&k->lock);
    free(k);
}
