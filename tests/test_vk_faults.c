/* SPDX-License-Identifier: MIT
 *
 * tests/test_vk_faults.c: what happens when Vulkan calls fail. Every call that can fail is replaced on its way out of the loader and made
 * to fail, each at every time it is made in a small run. Whatever fails: an error code comes back, at least one line was
 * logged, everything can be closed, the validation layers find nothing left behind, and the next device works.
 */
#include "common.h"

#ifdef DL_HAVE_VULKAN

#include <stdatomic.h>

#include "vk_rig.h"

/* ------------------------------------------------------------------------------------------------- the hooks */

static struct {
    atomic_uint calls;   /* so far */
    atomic_uint fail_at; /* this one fails; 0: none */
    VkResult submit_result;
    bool again;      /* and all submits and waits behind it: a device that is lost stays so */
    bool queue_only; /* others are not counted */
    atomic_bool fired;
    char what[64];
} inject;

/* VK_SUCCESS: go on. */
static VkResult injected(const char *name, bool queue)
{
    if (inject.queue_only && !queue)
        return VK_SUCCESS;
    unsigned n = atomic_fetch_add(&inject.calls, 1) + 1;
    VkResult r = queue ? inject.submit_result : VK_ERROR_OUT_OF_DEVICE_MEMORY;
    if (n == atomic_load(&inject.fail_at)) {
        snprintf(inject.what, sizeof inject.what, "%s", name);
        atomic_store(&inject.fired, true);
        return r;
    }
    return atomic_load(&inject.fired) && inject.again && queue ? r : VK_SUCCESS;
}

/* A call that was made to fail did nothing; a wait did wait, or the real device would still be at work. */
#define CREATE_HOOKS(X)                                                                                                \
    X(vkAllocateMemory,                                                                                                \
      (VkDevice d, const VkMemoryAllocateInfo *i, const VkAllocationCallbacks *a, VkDeviceMemory *o), (d, i, a, o))    \
    X(vkMapMemory, (VkDevice d, VkDeviceMemory m, VkDeviceSize at, VkDeviceSize n, VkMemoryMapFlags f, void **o),      \
      (d, m, at, n, f, o))                                                                                             \
    X(vkCreateBuffer, (VkDevice d, const VkBufferCreateInfo *i, const VkAllocationCallbacks *a, VkBuffer *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkBindBufferMemory, (VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize at), (d, b, m, at))                  \
    X(vkCreateFence, (VkDevice d, const VkFenceCreateInfo *i, const VkAllocationCallbacks *a, VkFence *o),             \
      (d, i, a, o))                                                                                                    \
    X(vkResetFences, (VkDevice d, uint32_t n, const VkFence *f), (d, n, f))                                            \
    X(vkCreateSemaphore, (VkDevice d, const VkSemaphoreCreateInfo *i, const VkAllocationCallbacks *a, VkSemaphore *o), \
      (d, i, a, o))                                                                                                    \
    X(vkCreateCommandPool,                                                                                             \
      (VkDevice d, const VkCommandPoolCreateInfo *i, const VkAllocationCallbacks *a, VkCommandPool *o), (d, i, a, o))  \
    X(vkAllocateCommandBuffers, (VkDevice d, const VkCommandBufferAllocateInfo *i, VkCommandBuffer *o), (d, i, o))     \
    X(vkBeginCommandBuffer, (VkCommandBuffer c, const VkCommandBufferBeginInfo *i), (c, i))                            \
    X(vkEndCommandBuffer, (VkCommandBuffer c), (c))                                                                    \
    X(vkResetCommandBuffer, (VkCommandBuffer c, VkCommandBufferResetFlags f), (c, f))                                  \
    X(vkCreateDescriptorPool,                                                                                          \
      (VkDevice d, const VkDescriptorPoolCreateInfo *i, const VkAllocationCallbacks *a, VkDescriptorPool *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkAllocateDescriptorSets, (VkDevice d, const VkDescriptorSetAllocateInfo *i, VkDescriptorSet *o), (d, i, o))     \
    X(vkCreateShaderModule,                                                                                            \
      (VkDevice d, const VkShaderModuleCreateInfo *i, const VkAllocationCallbacks *a, VkShaderModule *o),              \
      (d, i, a, o))                                                                                                    \
    X(vkCreateDescriptorSetLayout,                                                                                     \
      (VkDevice d, const VkDescriptorSetLayoutCreateInfo *i, const VkAllocationCallbacks *a,                           \
       VkDescriptorSetLayout *o),                                                                                      \
      (d, i, a, o))                                                                                                    \
    X(vkCreatePipelineLayout,                                                                                          \
      (VkDevice d, const VkPipelineLayoutCreateInfo *i, const VkAllocationCallbacks *a, VkPipelineLayout *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkCreatePipelineCache,                                                                                           \
      (VkDevice d, const VkPipelineCacheCreateInfo *i, const VkAllocationCallbacks *a, VkPipelineCache *o),            \
      (d, i, a, o))                                                                                                    \
    X(vkCreateComputePipelines,                                                                                        \
      (VkDevice d, VkPipelineCache k, uint32_t n, const VkComputePipelineCreateInfo *i,                                \
       const VkAllocationCallbacks *a, VkPipeline *o),                                                                 \
      (d, k, n, i, a, o))
#define QUEUE_HOOKS(X)                                                                                            \
    X(vkWaitForFences, (VkDevice d, uint32_t n, const VkFence *f, VkBool32 all, uint64_t ns), (d, n, f, all, ns)) \
    X(vkGetSemaphoreCounterValue, (VkDevice d, VkSemaphore s, uint64_t * v), (d, s, v))                           \
    X(vkSignalSemaphore, (VkDevice d, const VkSemaphoreSignalInfo *i), (d, i))                                    \
    X(vkWaitSemaphores, (VkDevice d, const VkSemaphoreWaitInfo *i, uint64_t ns), (d, i, ns))

#define X(name, params, args)                                \
    static PFN_##name real_##name;                           \
    static VKAPI_ATTR VkResult VKAPI_CALL hook_##name params \
    {                                                        \
        VkResult r = injected(#name, false);                 \
        return r ? r : real_##name args;                     \
    }
CREATE_HOOKS(X)
#undef X
#define X(name, params, args)                                        \
    static PFN_##name real_##name;                                   \
    static VKAPI_ATTR VkResult VKAPI_CALL hook_##name params         \
    {                                                                \
        VkResult done = real_##name args, r = injected(#name, true); \
        return r ? r : done;                                         \
    }
QUEUE_HOOKS(X)
#undef X

static PFN_vkQueueSubmit real_vkQueueSubmit;
static VKAPI_ATTR VkResult VKAPI_CALL hook_vkQueueSubmit(VkQueue q, uint32_t n, const VkSubmitInfo *i, VkFence f)
{
    VkResult r = injected("vkQueueSubmit", true);
    return r ? r : real_vkQueueSubmit(q, n, i, f);
}

static PFN_vkGetDeviceProcAddr real_device_addr;
static PFN_vkGetInstanceProcAddr real_instance_addr;

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_addr(VkDevice d, const char *name)
{
    PFN_vkVoidFunction real = real_device_addr(d, name);
#define X(fn, params, args)                   \
    if (real && !strcmp(name, #fn)) {         \
        real_##fn = (PFN_##fn)real;           \
        return (PFN_vkVoidFunction)hook_##fn; \
    }
    CREATE_HOOKS(X)
    QUEUE_HOOKS(X)
    X(vkQueueSubmit, , )
#undef X
    return real;
}

static PFN_vkCreateDevice real_create_device;
static VKAPI_ATTR VkResult VKAPI_CALL hook_create_device(VkPhysicalDevice p, const VkDeviceCreateInfo *i,
                                                         const VkAllocationCallbacks *a, VkDevice *o)
{
    VkResult r = injected("vkCreateDevice", false);
    return r ? r : real_create_device(p, i, a, o);
}
static PFN_vkEnumeratePhysicalDevices real_enumerate;
static VKAPI_ATTR VkResult VKAPI_CALL hook_enumerate(VkInstance i, uint32_t *n, VkPhysicalDevice *o)
{
    VkResult r = injected("vkEnumeratePhysicalDevices", false);
    return r ? r : real_enumerate(i, n, o);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_addr(VkInstance i, const char *name)
{
    PFN_vkVoidFunction real = real_instance_addr(i, name);
    if (!strcmp(name, "vkGetDeviceProcAddr")) {
        real_device_addr = (PFN_vkGetDeviceProcAddr)real;
        return (PFN_vkVoidFunction)device_addr;
    }
    if (!strcmp(name, "vkCreateDevice")) {
        real_create_device = (PFN_vkCreateDevice)real;
        return (PFN_vkVoidFunction)hook_create_device;
    }
    if (!strcmp(name, "vkEnumeratePhysicalDevices")) {
        real_enumerate = (PFN_vkEnumeratePhysicalDevices)real;
        return (PFN_vkVoidFunction)hook_enumerate;
    }
    return real;
}

/* The library is loaded by now: volk asks it through this pointer, with every instance anew. */
static void hooks_on(void)
{
    if (vkGetInstanceProcAddr != instance_addr) {
        real_instance_addr = vkGetInstanceProcAddr;
        vkGetInstanceProcAddr = instance_addr;
    }
}

static void arm(unsigned fail_at, VkResult submit_result, bool again)
{
    atomic_store(&inject.calls, 0);
    atomic_store(&inject.fail_at, fail_at);
    atomic_store(&inject.fired, false);
    inject.submit_result = submit_result;
    inject.again = again;
    inject.queue_only = false;
    snprintf(inject.what, sizeof inject.what, "nothing");
}

static void disarm(void)
{
    atomic_store(&inject.fail_at, 0);
    inject.again = false;
}

/* ------------------------------------------------------------------------------------------------- the run */

/* Two ops, one behind the other, that wait for the host, and the result read back. `wrong`: it ran, to another result. */
static int run(struct rig *r, const char *disable, bool staged, bool *wrong)
{
    *wrong = false;
    int err = rig_open(r, disable);
    if (err)
        return err;
    vk_ctx_of(r->dev)->caps.uma = !staged;
    struct dl_op ops[] = {rig_add(0, 1, 0), rig_add(2, 0, 0)};
    dl_prog *prog = NULL;
    float got = 0;
    err = rig_fill(r, 1, 3);
    if (!err)
        err = dl_prog_create(r->dev, ops, 2, r->bufs, RIG_BUFS, &prog);
    if (!err)
        err = dl_device_submit(r->dev, prog, &r->args, 7, 1);
    if (!err)
        err = dl_device_submit(r->dev, prog, &r->args, 8, 2);
    if (!err)
        err = dl_device_host_signal(r->dev, 7);
    if (!err)
        err = dl_device_wait(r->dev, 1, LONG_NS);
    if (!err)
        err = dl_device_host_signal(r->dev, 8);
    if (!err)
        err = dl_device_wait(r->dev, 2, LONG_NS);
    if (!err)
        err = dl_buf_read(r->dev, r->bufs[2], 0, &got, sizeof got);
    *wrong = !err && got != 9;
    if (prog)
        dl_prog_destroy(r->dev, &prog);
    return err;
}

/* These have another way to go. */
static bool may_be_survived(const char *what)
{
    return !strcmp(what, "vkAllocateMemory") || !strcmp(what, "vkMapMemory") || !strcmp(what, "vkCreatePipelineCache");
}

static void fail_everywhere(const char *disable, bool staged, VkResult submit_result)
{
    unsigned at, survived = 0, kinds = 0;
    char last[64] = "";
    for (at = 1;; at++) {
        struct rig r;
        bool wrong;
        logged = (struct test_log){0};
        arm(at, submit_result, submit_result == VK_ERROR_DEVICE_LOST);
        int err = run(&r, disable, staged, &wrong);
        bool fired = atomic_load(&inject.fired), bad = wrong || (err && (!fired || !logged.n || err < DL_ELIMIT)) ||
                                                       (!err && fired && !may_be_survived(inject.what));
        if (bad)
            fprintf(stderr, "FAILED: call %u, %s (%d), disable '%s', staged %d: returned %d, logged %u: %s\n", at,
                    inject.what, (int)submit_result, disable, staged, err, logged.n, logged.last);
        assert_false(bad);
        survived += fired && !err;
        kinds += strcmp(last, inject.what) != 0;
        snprintf(last, sizeof last, "%s", inject.what);
        rig_close(&r);
        disarm();
        if (!fired)
            break;
        assert_true(at < 2000);
    }
    assert_true(at > 30 && kinds > 15); /* the hooks are in place */
    assert_true(survived < 8);
}

static void test_failures(void **state)
{
    (void)state;
    NEED_VULKAN();
    hooks_on();
    fail_everywhere("", false, VK_ERROR_DEVICE_LOST);
    fail_everywhere("timeline", false, VK_ERROR_OUT_OF_HOST_MEMORY);
}

static void test_failures_staged(void **state)
{
    (void)state;
    NEED_VULKAN();
    hooks_on();
    fail_everywhere("timeline", true, VK_ERROR_DEVICE_LOST);
    fail_everywhere("", true, VK_ERROR_OUT_OF_HOST_MEMORY);
}

/* A lost device says so once, answers the same to everything that follows, and keeps nobody waiting. */
static void lost(const char *disable, VkResult result, int code)
{
    struct rig r;
    dl_prog *prog = NULL;
    dl_buf *more = NULL;
    struct dl_op op = rig_add(0, 1, 0);
    struct dl_buf_desc desc = {"more", DL_BUF_ACT, DL_F32, 1, 4, 16};
    float value = 0;
    disarm();
    logged = (struct test_log){0};
    assert_int_equal(rig_open(&r, disable), DL_OK);
    assert_int_equal(dl_prog_create(r.dev, &op, 1, r.bufs, RIG_BUFS, &prog), DL_OK);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 50, 1), DL_OK); /* still waits for the host */
    assert_int_equal(logged.n, 0);
    arm(1, result, true);
    inject.queue_only = true;
    (void)dl_device_host_signal(r.dev, 50);
    (void)dl_device_submit(r.dev, prog, &r.args, 60, 2);
    assert_int_equal(dl_device_wait(r.dev, 2, UINT64_MAX), code);
    assert_int_equal(dl_device_wait(r.dev, 1, 0), code);
    assert_int_equal(dl_device_wait(r.dev, 1, LONG_NS), code);
    assert_int_equal(dl_device_submit(r.dev, prog, &r.args, 60, 3), code);
    assert_int_equal(dl_device_host_signal(r.dev, 70), code);
    assert_int_equal(dl_buf_create(r.dev, &desc, &more), code);
    assert_int_equal(dl_buf_write(r.dev, r.bufs[0], 0, &value, 4), code);
    assert_int_equal(dl_buf_read(r.dev, r.bufs[0], 0, &value, 4), code);
    assert_int_equal(logged.n, 1);
    assert_non_null(strstr(logged.last, vk_ctx_of(r.dev)->label));
    dl_prog_destroy(r.dev, &prog);
    rig_close(&r);
    disarm();

    bool wrong; /* and a device opened after it works */
    assert_int_equal(run(&r, disable, false, &wrong), DL_OK);
    assert_false(wrong);
    rig_close(&r);
}

static void test_lost(void **state)
{
    (void)state;
    NEED_VULKAN();
    hooks_on();
    lost("", VK_ERROR_DEVICE_LOST, DL_EDEVICE);
    lost("timeline", VK_ERROR_DEVICE_LOST, DL_EDEVICE);
    lost("", VK_ERROR_OUT_OF_DEVICE_MEMORY, DL_ENOMEM);
    lost("timeline", VK_ERROR_OUT_OF_DEVICE_MEMORY, DL_ENOMEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_failures_staged),
        cmocka_unit_test(test_lost),
    };
    return cmocka_run_group_tests(tests, vk_test_begin, NULL);
}

#else

int main(void)
{
    fprintf(stderr, "SKIPPED: built without Vulkan\n");
    return 0;
}

#endif
