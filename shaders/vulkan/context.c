/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/context.c: from "is there a Vulkan library?" to an open device with one queue. The library is loaded at run time:
 * a machine without one runs on its CPU. Each context has an instance of its own, so that devices share nothing.
 */
#include "vk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEVICES 32u

/* ------------------------------------------------------------------------------------------------- failures */

static const char *result_name(VkResult r)
{
    switch (r) {
    case VK_NOT_READY:
        return "VK_NOT_READY";
    case VK_TIMEOUT:
        return "VK_TIMEOUT";
    case VK_INCOMPLETE:
        return "VK_INCOMPLETE";
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return "VK_ERROR_OUT_OF_HOST_MEMORY";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
    case VK_ERROR_INITIALIZATION_FAILED:
        return "VK_ERROR_INITIALIZATION_FAILED";
    case VK_ERROR_DEVICE_LOST:
        return "VK_ERROR_DEVICE_LOST";
    case VK_ERROR_MEMORY_MAP_FAILED:
        return "VK_ERROR_MEMORY_MAP_FAILED";
    case VK_ERROR_LAYER_NOT_PRESENT:
        return "VK_ERROR_LAYER_NOT_PRESENT";
    case VK_ERROR_EXTENSION_NOT_PRESENT:
        return "VK_ERROR_EXTENSION_NOT_PRESENT";
    case VK_ERROR_FEATURE_NOT_PRESENT:
        return "VK_ERROR_FEATURE_NOT_PRESENT";
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return "VK_ERROR_INCOMPATIBLE_DRIVER";
    case VK_ERROR_TOO_MANY_OBJECTS:
        return "VK_ERROR_TOO_MANY_OBJECTS";
    case VK_ERROR_FRAGMENTED_POOL:
        return "VK_ERROR_FRAGMENTED_POOL";
    case VK_ERROR_OUT_OF_POOL_MEMORY:
        return "VK_ERROR_OUT_OF_POOL_MEMORY";
    default:
        return NULL;
    }
}

int vk_fail(struct vk_ctx *c, VkResult r, const char *what)
{
    char number[32];
    const char *name = result_name(r);
    if (!name) {
        snprintf(number, sizeof number, "VkResult %d", (int)r);
        name = number;
    }
    switch (r) {
    case VK_ERROR_DEVICE_LOST: {
        int fine = DL_OK;
        if (atomic_compare_exchange_strong(&c->lost, &fine, DL_EDEVICE))
            dl_fail(DL_EDEVICE, "%s: %s: the device was lost (%s); its driver reset it or it was removed", c->label,
                    what, name);
        return vk_lost(c);
    }
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_OUT_OF_POOL_MEMORY:
    case VK_ERROR_FRAGMENTED_POOL:
    case VK_ERROR_TOO_MANY_OBJECTS:
        return dl_fail(DL_ENOMEM, "%s: %s: out of memory (%s)", c->label, what, name);
    case VK_ERROR_LAYER_NOT_PRESENT:
    case VK_ERROR_EXTENSION_NOT_PRESENT:
    case VK_ERROR_FEATURE_NOT_PRESENT:
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return dl_fail(DL_EUNSUP, "%s: %s: the driver cannot do it (%s)", c->label, what, name);
    default:
        return dl_fail(DL_EDEVICE, "%s: %s: failed (%s)", c->label, what, name);
    }
}

int vk_lost(struct vk_ctx *c)
{
    return atomic_load(&c->lost);
}

VkResult vk_queue_submit(struct vk_ctx *c, uint32_t n, const VkSubmitInfo *infos, VkFence fence)
{
    pthread_mutex_lock(&c->queue_lock);
    VkResult r = c->vk.vkQueueSubmit(c->queue, n, infos, fence);
    pthread_mutex_unlock(&c->queue_lock);
    return r;
}

/* ----------------------------------------------------------------------------------------------- the instance */

/* Layers of 1.3.239 (Debian 12) take a host signal of a timeline semaphore for pending until a queue notices it: they complain of the
 * next one, though the rule is about signals that queues have pending, and only the host ever signals that semaphore; and when
 * their own notes are late they say so, and that it is "most likely a validation bug". */
static const char *const layer_bugs[] = {"VUID-VkSemaphoreSignalInfo-value-03259",
                                         "UNASSIGNED-VkSemaphore-state-timeout"};

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT type,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data, void *ud)
{
    (void)type;
    struct vk_ctx *c = ud;
    for (size_t i = 0; data->pMessageIdName && i < DL_COUNT_OF(layer_bugs); i++)
        if (!strcmp(data->pMessageIdName, layer_bugs[i]))
            return VK_FALSE;
    atomic_fetch_add(&c->messages, 1);
    dl_log(severity & VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT ? DL_LOG_ERROR : DL_LOG_WARN, "validation: %s",
           data->pMessage);
    return VK_FALSE;
}

static bool extension_in(const char *layer, const char *name)
{
    uint32_t n = 0;
    bool found = false;
    if (vkEnumerateInstanceExtensionProperties(layer, &n, NULL) || !n)
        return false;
    VkExtensionProperties *v = dl_xcalloc(n, sizeof *v);
    if (vkEnumerateInstanceExtensionProperties(layer, &n, v) >= 0)
        for (uint32_t i = 0; i < n; i++)
            found = found || !strcmp(v[i].extensionName, name);
    free(v);
    return found;
}

static bool layer_there(const char *name)
{
    uint32_t n = 0;
    bool found = false;
    if (vkEnumerateInstanceLayerProperties(&n, NULL) || !n)
        return false;
    VkLayerProperties *v = dl_xcalloc(n, sizeof *v);
    if (vkEnumerateInstanceLayerProperties(&n, v) >= 0)
        for (uint32_t i = 0; i < n; i++)
            found = found || !strcmp(v[i].layerName, name);
    free(v);
    return found;
}

/* Debug builds check themselves where the layers are installed; DLLAMA_VK_VALIDATION=1 (=0) asks for it (forbids it). */
static bool want_validation(void)
{
    const char *env = getenv("DLLAMA_VK_VALIDATION");
#ifdef NDEBUG
    return env && !strcmp(env, "1");
#else
    return !env || strcmp(env, "0");
#endif
}

/* Why there is no Vulkan here: an error to who asked for it, a remark to who only looks. */
static int no_vulkan(const struct vk_ctx *c, const char *why)
{
    dl_log(c->absent_level, "vulkan: %s or use --device cpu", why);
    return DL_EUNSUP;
}

static int load_library(const struct vk_ctx *c)
{
    if (!volkGetInstanceVersion() && volkInitialize())
        return no_vulkan(c, "no loader (libvulkan.so.1): install a GPU driver");
    if (volkGetInstanceVersion() < VK_API_VERSION_1_1)
        return no_vulkan(c,
                         "the installed Vulkan library only knows version 1.0, 1.1 is needed: update the GPU driver");
    return DL_OK;
}

static int instance_open(struct vk_ctx *c)
{
    static const char layer[] = "VK_LAYER_KHRONOS_validation";
    int err = load_library(c);
    if (err)
        return err;
    const char *extensions[4], *const layers[] = {layer};
    uint32_t n_extensions = 0;
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "dllama-vk",
                             .pEngineName = "dllama-vk",
                             .apiVersion = VK_API_VERSION_1_3};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
#ifdef VK_KHR_portability_enumeration /* headers of Ubuntu 22.04 lack it */
    if (extension_in(NULL, VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {
        extensions[n_extensions++] = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
        info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
    }
#endif
    VkDebugUtilsMessengerCreateInfoEXT messenger = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
                                                    .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                                                                       VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
                                                    .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
                                                    .pfnUserCallback = on_message,
                                                    .pUserData = c};
    static const VkValidationFeatureEnableEXT enable[] = {VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT};
    VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                        .pNext = &messenger,
                                        .enabledValidationFeatureCount = DL_COUNT_OF(enable),
                                        .pEnabledValidationFeatures = enable};
    c->validation = want_validation() && layer_there(layer);
    if (c->validation) {
        bool sync = extension_in(layer, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME);
        extensions[n_extensions++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
        if (sync)
            extensions[n_extensions++] = VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME;
        info.pNext = sync ? (const void *)&features : (const void *)&messenger;
        info.enabledLayerCount = 1;
        info.ppEnabledLayerNames = layers;
    }
    info.enabledExtensionCount = n_extensions;
    info.ppEnabledExtensionNames = extensions;
    VkResult r = vkCreateInstance(&info, NULL, &c->instance);
    if (r) {
        c->instance = VK_NULL_HANDLE;
        return r == VK_ERROR_INCOMPATIBLE_DRIVER ? no_vulkan(c, "no driver: install the GPU's driver")
                                                 : vk_fail(c, r, "creating an instance");
    }
    volkLoadInstanceOnly(c->instance);
    if (c->validation) {
        r = vkCreateDebugUtilsMessengerEXT(c->instance, &messenger, NULL, &c->messenger);
        if (r)
            return vk_fail(c, r, "listening to the validation layers");
    }
    return DL_OK;
}

static void instance_close(struct vk_ctx *c)
{
    if (c->messenger)
        vkDestroyDebugUtilsMessengerEXT(c->instance, c->messenger, NULL);
    if (c->instance)
        vkDestroyInstance(c->instance, NULL);
    c->messenger = VK_NULL_HANDLE;
    c->instance = VK_NULL_HANDLE;
}

static int devices_of(struct vk_ctx *c, VkPhysicalDevice devices[MAX_DEVICES], uint32_t *n)
{
    *n = MAX_DEVICES;
    VkResult r = vkEnumeratePhysicalDevices(c->instance, n, devices);
    if (r && r != VK_INCOMPLETE) {
        *n = 0;
        return vk_fail(c, r, "listing devices");
    }
    return DL_OK;
}

/* ------------------------------------------------------------------------------------------------ the device */

/* A family that computes and does not draw, where there is one: its work does not queue behind the desktop's, and a desktop
 * does not freeze behind ours. -1: none computes. */
static int compute_family(VkPhysicalDevice phys)
{
    VkQueueFamilyProperties f[32];
    uint32_t n = DL_COUNT_OF(f);
    int any = -1;
    vkGetPhysicalDeviceQueueFamilyProperties(phys, &n, f);
    for (uint32_t i = 0; i < n; i++) {
        if (!f[i].queueCount || !(f[i].queueFlags & VK_QUEUE_COMPUTE_BIT))
            continue;
        if (!(f[i].queueFlags & VK_QUEUE_GRAPHICS_BIT))
            return (int)i;
        if (any < 0)
            any = (int)i;
    }
    return any;
}

/* Why we cannot run on a device; empty: we can. */
static void unusable(VkPhysicalDevice phys, const struct vk_caps *caps, char *why, size_t size)
{
    why[0] = '\0';
    if (caps->api_version < VK_API_VERSION_1_1)
        snprintf(why, size, "Vulkan %u.%u, 1.1 is needed: update the driver", VK_API_VERSION_MAJOR(caps->api_version),
                 VK_API_VERSION_MINOR(caps->api_version));
    else if (compute_family(phys) < 0)
        snprintf(why, size, "has no compute queue");
}

/* What no kernel of ours makes use of is not switched on. */
static const char without_use[] = "f16,int8";

static void caps_used(VkPhysicalDevice phys, const char *disable, struct vk_caps *caps)
{
    vk_caps_get(phys, caps);
    vk_caps_without(caps, without_use);
    vk_caps_without(caps, disable);
}

static bool software_allowed(void)
{
    const char *env = getenv("DLLAMA_ALLOW_SOFTWARE_GPU");
    return env && !strcmp(env, "1");
}

static uint64_t local_bytes(VkPhysicalDevice phys)
{
    VkPhysicalDeviceMemoryProperties m;
    uint64_t most = 0;
    vkGetPhysicalDeviceMemoryProperties(phys, &m);
    for (uint32_t i = 0; i < m.memoryHeapCount; i++)
        if (m.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT)
            most = DL_MAX(most, m.memoryHeaps[i].size);
    return most;
}

/* Discrete before integrated before virtual before software; among equals the one with more memory. */
static uint32_t rank(const struct vk_caps *caps)
{
    switch (caps->type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 5;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 4;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 3;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return 1;
    default:
        return 2;
    }
}

static int choose(struct vk_ctx *c, const struct dl_vulkan_opts *opts, const char *disable)
{
    VkPhysicalDevice all[MAX_DEVICES];
    uint32_t n, best = UINT32_MAX, n_software = 0;
    char why[128];
    int err = devices_of(c, all, &n);
    if (err)
        return err;
    if (opts->index >= 0) {
        if ((uint32_t)opts->index >= n)
            return dl_fail(DL_EUNSUP, "vulkan:%d: there is no such device, Vulkan knows %u; see dllama-vk devices",
                           opts->index, n);
        best = (uint32_t)opts->index;
        caps_used(all[best], disable, &c->caps);
        unusable(all[best], &c->caps, why, sizeof why);
        if (*why)
            return dl_fail(DL_EUNSUP, "vulkan:%u %s: %s", best, c->caps.name, why);
    }
    uint64_t best_bytes = 0;
    for (uint32_t i = 0; opts->index < 0 && i < n; i++) {
        struct vk_caps caps;
        caps_used(all[i], disable, &caps);
        unusable(all[i], &caps, why, sizeof why);
        n_software += caps.software;
        if (*why || (caps.software && !software_allowed()))
            continue;
        uint64_t bytes = local_bytes(all[i]);
        if (best == UINT32_MAX || rank(&caps) > rank(&c->caps) ||
            (rank(&caps) == rank(&c->caps) && bytes > best_bytes)) {
            best = i;
            best_bytes = bytes;
            c->caps = caps;
        }
    }
    if (best == UINT32_MAX)
        return n_software ? dl_fail(DL_EUNSUP, "vulkan: only software devices here, slower than --device cpu; name one "
                                               "(vulkan:0) or set DLLAMA_ALLOW_SOFTWARE_GPU=1 to use it anyway")
                          : dl_fail(DL_EUNSUP,
                                    "vulkan: no usable GPU among %u devices; install its driver or use "
                                    "--device cpu",
                                    n);
    c->index = best;
    c->phys = all[best];
    snprintf(c->label, sizeof c->label, "vulkan:%u %s", c->index, c->caps.name);
    return DL_OK;
}

/* Where a device only has the extensions, their functions carry another name. */
static void alias(struct VolkDeviceTable *t)
{
    if (!t->vkWaitSemaphores)
        t->vkWaitSemaphores = t->vkWaitSemaphoresKHR;
    if (!t->vkSignalSemaphore)
        t->vkSignalSemaphore = t->vkSignalSemaphoreKHR;
    if (!t->vkGetSemaphoreCounterValue)
        t->vkGetSemaphoreCounterValue = t->vkGetSemaphoreCounterValueKHR;
}

static int device_open(struct vk_ctx *c)
{
    struct vk_switches s;
    vk_caps_switches(c->phys, &c->caps, &s);
    c->family = (uint32_t)compute_family(c->phys);
    const float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = c->family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &s.features,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = s.n_extensions,
                               .ppEnabledExtensionNames = s.extensions};
    VkResult r = vkCreateDevice(c->phys, &info, NULL, &c->device);
    if (r) {
        c->device = VK_NULL_HANDLE;
        return vk_fail(c, r, "opening the device");
    }
    volkLoadDeviceTable(&c->vk, c->device);
    alias(&c->vk);
    c->vk.vkGetDeviceQueue(c->device, c->family, 0, &c->queue);
    vkGetPhysicalDeviceMemoryProperties(c->phys, &c->mem);
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = c->family};
    r = c->vk.vkCreateCommandPool(c->device, &pool, NULL, &c->commands);
    if (r) {
        c->commands = VK_NULL_HANDLE;
        return vk_fail(c, r, "creating a command pool");
    }
    return DL_OK;
}

int vk_ctx_open(struct vk_ctx *c, const struct dl_vulkan_opts *opts)
{
    const char *disable = opts->disable ? opts->disable : getenv("DLLAMA_VK_DISABLE");
    snprintf(c->label, sizeof c->label, "vulkan");
    const char *lose = getenv("DLLAMA_VK_LOSE_AFTER");
    c->lose_after = lose ? strtoull(lose, NULL, 10) : 0;
    if (pthread_mutex_init(&c->queue_lock, NULL))
        return dl_fail(DL_ENOMEM, "vulkan: the system gives no mutex");
    int err = instance_open(c);
    if (!err)
        err = choose(c, opts, disable);
    if (!err)
        err = device_open(c);
    if (err)
        vk_ctx_close(c);
    return err;
}

void vk_ctx_close(struct vk_ctx *c)
{
    if (c->device) {
        if (c->commands)
            c->vk.vkDestroyCommandPool(c->device, c->commands, NULL);
        c->vk.vkDestroyDevice(c->device, NULL);
    }
    c->device = VK_NULL_HANDLE;
    instance_close(c);
    pthread_mutex_destroy(&c->queue_lock);
}

/* --------------------------------------------------------------------------------------------------- listing */

static void word(char *list, size_t size, bool want, const char *name)
{
    size_t n = strlen(list);
    if (want)
        snprintf(list + n, size - n, "%s%s", n ? " " : "", name);
}

static void features_of(const struct vk_caps *c, char *out, size_t size)
{
    out[0] = '\0';
    word(out, size, c->f16, "f16");
    word(out, size, c->int8, "int8");
    word(out, size, c->int_dot, c->int_dot_fast ? "int-dot" : "int-dot-slow");
    word(out, size, c->storage16, "storage16");
    word(out, size, c->storage8, "storage8");
    word(out, size, c->subgroup > 1, "subgroup");
    word(out, size, c->timeline, "timeline");
}

static void heaps_of(VkPhysicalDevice phys, const struct vk_caps *caps, struct dl_vulkan_info *out)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 m = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                           .pNext = caps->budget ? &budget : NULL};
    vkGetPhysicalDeviceMemoryProperties2(phys, &m);
    out->n_heaps = DL_MIN(m.memoryProperties.memoryHeapCount, (uint32_t)DL_COUNT_OF(out->heaps));
    for (uint32_t i = 0; i < out->n_heaps; i++) {
        const VkMemoryHeap *h = &m.memoryProperties.memoryHeaps[i];
        out->heaps[i].bytes = h->size;
        out->heaps[i].budget = DL_MIN(budget.heapBudget[i], h->size);
        out->heaps[i].device_local = h->flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT;
    }
}

static void describe(VkPhysicalDevice phys, uint32_t index, struct dl_vulkan_info *out)
{
    static const char *const types[] = {[VK_PHYSICAL_DEVICE_TYPE_OTHER] = "other",
                                        [VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU] = "integrated",
                                        [VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU] = "discrete",
                                        [VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU] = "virtual",
                                        [VK_PHYSICAL_DEVICE_TYPE_CPU] = "software"};
    struct vk_caps all, used;
    vk_caps_get(phys, &all);
    caps_used(phys, getenv("DLLAMA_VK_DISABLE"), &used);
    *out = (struct dl_vulkan_info){.index = index,
                                   .subgroup = used.subgroup,
                                   .subgroup_min = all.subgroup_min,
                                   .subgroup_max = all.subgroup_max,
                                   .storage_range = all.storage_range,
                                   .max_alloc = all.max_alloc,
                                   .software = all.software};
    snprintf(out->name, sizeof out->name, "%s", all.name);
    snprintf(out->type, sizeof out->type, "%s", (unsigned)all.type < DL_COUNT_OF(types) ? types[all.type] : "other");
    snprintf(out->driver, sizeof out->driver, "%.64s %#x, Vulkan %u.%u", *all.driver ? all.driver : "driver",
             all.driver_version, VK_API_VERSION_MAJOR(all.api_version), VK_API_VERSION_MINOR(all.api_version));
    features_of(&all, out->has, sizeof out->has);
    word(out->has, sizeof out->has, all.coopmat, "coopmat");
    word(out->has, sizeof out->has, all.push_descriptor, "push-descriptor");
    word(out->has, sizeof out->has, all.budget, "budget");
    features_of(&used, out->uses, sizeof out->uses);
    word(out->uses, sizeof out->uses, used.budget, "budget");
    unusable(phys, &all, out->unusable, sizeof out->unusable);
    if (!*out->unusable)
        heaps_of(phys, &all, out);
    out->eligible = !*out->unusable && (!all.software || software_allowed());
}

int dl_vulkan_list(struct dl_vulkan_info *out, uint32_t cap, uint32_t *n, enum dl_log_level absent_level)
{
    struct vk_ctx c = {.label = "vulkan", .absent_level = absent_level};
    VkPhysicalDevice all[MAX_DEVICES];
    *n = 0;
    int err = instance_open(&c);
    if (!err)
        err = devices_of(&c, all, n);
    for (uint32_t i = 0; !err && i < *n && i < cap; i++)
        describe(all[i], i, &out[i]);
    instance_close(&c);
    return err;
}
