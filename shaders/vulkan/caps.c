/* SPDX-License-Identifier: MIT
 *
 * shaders/vulkan/caps.c: what a physical device can do, and which of it is switched on when the device is created. Knows extension
 * names and feature structs, so that nobody else has to. Structs of versions and extensions that a device lacks are never
 * chained.
 */
#include "vk.h"

#include <stdlib.h>
#include <string.h>

struct extensions {
    VkExtensionProperties *v;
    uint32_t n;
};

static void extensions_get(VkPhysicalDevice phys, struct extensions *e)
{
    *e = (struct extensions){0};
    if (vkEnumerateDeviceExtensionProperties(phys, NULL, &e->n, NULL) || !e->n)
        return;
    e->v = dl_xcalloc(e->n, sizeof *e->v);
    if (vkEnumerateDeviceExtensionProperties(phys, NULL, &e->n, e->v) < 0)
        e->n = 0;
}

static bool has(const struct extensions *e, const char *name)
{
    for (uint32_t i = 0; i < e->n; i++)
        if (!strcmp(e->v[i].extensionName, name))
            return true;
    return false;
}

/* A feature is in the core of `version`, or an extension. */
static bool knows(const struct vk_caps *c, const struct extensions *e, uint32_t version, const char *name)
{
    return c->api_version >= version || has(e, name);
}

static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, name, n) && (p[n] == ',' || !p[n]))
            return true;
    return false;
}

/* Puts a struct in front of a pNext chain. */
static void chain(void *head, void *item)
{
    ((VkBaseOutStructure *)item)->pNext = ((VkBaseOutStructure *)head)->pNext;
    ((VkBaseOutStructure *)head)->pNext = item;
}

static void get_properties(VkPhysicalDevice phys, const struct extensions *e, struct vk_caps *c)
{
    VkPhysicalDeviceProperties2 p = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    VkPhysicalDeviceSubgroupProperties sub = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    VkPhysicalDeviceMaintenance3Properties m3 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceMaintenance4Properties m4 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES};
    VkPhysicalDeviceSubgroupSizeControlProperties size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES};
    VkPhysicalDeviceShaderIntegerDotProductProperties dot = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    chain(&p, &sub);
    chain(&p, &m3);
    chain(&p, &id);
    if (knows(c, e, VK_API_VERSION_1_2, VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME))
        chain(&p, &driver);
    if (knows(c, e, VK_API_VERSION_1_3, VK_KHR_MAINTENANCE_4_EXTENSION_NAME))
        chain(&p, &m4);
    if (knows(c, e, VK_API_VERSION_1_3, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME))
        chain(&p, &size);
    if (knows(c, e, VK_API_VERSION_1_3, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
        chain(&p, &dot);
    vkGetPhysicalDeviceProperties2(phys, &p);

    const VkPhysicalDeviceLimits *l = &p.properties.limits;
    memcpy(c->driver, driver.driverName, sizeof c->driver);
    memcpy(c->uuid, p.properties.pipelineCacheUUID, sizeof c->uuid);
    c->storage_range = l->maxStorageBufferRange;
    c->max_alloc = m3.maxMemoryAllocationSize;
    if (m4.maxBufferSize)
        c->max_alloc = DL_MIN(c->max_alloc, m4.maxBufferSize);
    c->offset_align = (uint32_t)DL_MAX(l->minStorageBufferOffsetAlignment, 16u);
    c->atom = (uint32_t)DL_MAX(l->nonCoherentAtomSize, 1u);
    c->shared_bytes = l->maxComputeSharedMemorySize;
    c->max_invocations = l->maxComputeWorkGroupInvocations;
    c->push_bytes = l->maxPushConstantsSize;
    c->max_binds = DL_MIN(DL_MIN(l->maxPerStageDescriptorStorageBuffers, l->maxDescriptorSetStorageBuffers),
                          l->maxPerStageResources);
    memcpy(c->max_groups, l->maxComputeWorkGroupCount, sizeof c->max_groups);
    memcpy(c->max_local, l->maxComputeWorkGroupSize, sizeof c->max_local);

    bool stage = sub.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT;
    c->subgroup_arith = stage && sub.supportedOperations & VK_SUBGROUP_FEATURE_ARITHMETIC_BIT;
    c->subgroup_shuffle = stage && sub.supportedOperations & VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    c->subgroup = stage ? sub.subgroupSize : 1;
    c->subgroup_min = size.minSubgroupSize ? size.minSubgroupSize : c->subgroup;
    c->subgroup_max = size.maxSubgroupSize ? size.maxSubgroupSize : c->subgroup;
    c->subgroup_require = size.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT;
    c->int_dot_fast = dot.integerDotProduct4x8BitPackedSignedAccelerated;
}

static void get_features(VkPhysicalDevice phys, const struct extensions *e, struct vk_caps *c)
{
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
    struct vk_switches s = {
        .storage16 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES},
        .storage8 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES},
        .f16_int8 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES},
        .timeline = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES},
        .subgroup = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES},
        .int_dot = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES},
    };
    chain(&f, &s.storage16);
    if (knows(c, e, VK_API_VERSION_1_2, VK_KHR_8BIT_STORAGE_EXTENSION_NAME))
        chain(&f, &s.storage8);
    if (knows(c, e, VK_API_VERSION_1_2, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME))
        chain(&f, &s.f16_int8);
    if (knows(c, e, VK_API_VERSION_1_2, VK_KHR_TIMELINE_SEMAPHORE_EXTENSION_NAME))
        chain(&f, &s.timeline);
    if (knows(c, e, VK_API_VERSION_1_3, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME))
        chain(&f, &s.subgroup);
    if (knows(c, e, VK_API_VERSION_1_3, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME))
        chain(&f, &s.int_dot);
    vkGetPhysicalDeviceFeatures2(phys, &f);
    c->storage16 = s.storage16.storageBuffer16BitAccess;
    c->storage8 = s.storage8.storageBuffer8BitAccess;
    c->f16 = s.f16_int8.shaderFloat16 && c->storage16;
    c->int8 = s.f16_int8.shaderInt8 && c->storage8;
    c->timeline = s.timeline.timelineSemaphore;
    c->int_dot = s.int_dot.shaderIntegerDotProduct;
    c->subgroup_require = c->subgroup_require && s.subgroup.subgroupSizeControl && s.subgroup.computeFullSubgroups;
}

static void choose_subgroup(struct vk_caps *c)
{
    /* Without a size that can be demanded, drivers choose one per shader and may leave lanes out: nothing to index by. */
    if (!c->subgroup_require || !c->subgroup_arith) {
        c->subgroup = 1;
        c->subgroup_arith = c->subgroup_shuffle = c->subgroup_require = false;
        return;
    }
    /* Intel reports the widest; 16 lanes leave twice the registers to each. */
    if (c->vendor_id == 0x8086 && c->subgroup_min <= 16 && c->subgroup_max >= 16)
        c->subgroup = 16;
}

void vk_caps_get(VkPhysicalDevice phys, struct vk_caps *c)
{
    VkPhysicalDeviceProperties p;
    *c = (struct vk_caps){0};
    vkGetPhysicalDeviceProperties(phys, &p);
    /* The instance asked for 1.3: of a newer device we use no more than that. */
    c->api_version = DL_MIN(p.apiVersion, VK_API_VERSION_1_3 | VK_VERSION_PATCH(p.apiVersion));
    c->driver_version = p.driverVersion;
    c->vendor_id = p.vendorID;
    c->device_id = p.deviceID;
    c->type = p.deviceType;
    c->software = p.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    memcpy(c->name, p.deviceName, sizeof c->name);
    if (p.apiVersion < VK_API_VERSION_1_1)
        return; /* has no properties2; the caller refuses it */
    struct extensions e;
    extensions_get(phys, &e);
    get_properties(phys, &e, c);
    get_features(phys, &e, c);
    c->push_descriptor = has(&e, VK_KHR_PUSH_DESCRIPTOR_EXTENSION_NAME);
    c->budget = has(&e, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    c->coopmat = has(&e, "VK_KHR_cooperative_matrix");
    free(e.v);

    VkPhysicalDeviceMemoryProperties m;
    vkGetPhysicalDeviceMemoryProperties(phys, &m);
    const VkMemoryPropertyFlags both = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
                                       VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    for (uint32_t i = 0; i < m.memoryTypeCount; i++)
        if ((m.memoryTypes[i].propertyFlags & both) == both)
            c->uma = c->software || c->type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;

    choose_subgroup(c);
}

void vk_caps_without(struct vk_caps *c, const char *disable)
{
    /* As on the plainest device: for tests, and where a driver promises more than it keeps. */
    const char *portable = getenv("DLLAMA_VK_PORTABLE");
    if (portable && !strcmp(portable, "1"))
        disable = "timeline,f16,int8,int-dot,subgroup";
    const char *no_timeline = getenv("DLLAMA_VK_NO_TIMELINE");
    if (listed(disable, "timeline") || (no_timeline && !strcmp(no_timeline, "1")))
        c->timeline = false;
    if (listed(disable, "f16"))
        c->f16 = c->storage16 = false;
    if (listed(disable, "int8"))
        c->int8 = c->storage8 = false;
    if (listed(disable, "int-dot"))
        c->int_dot = c->int_dot_fast = false;
    if (listed(disable, "subgroup"))
        c->subgroup_require = false;
    choose_subgroup(c);
}

static void want(struct vk_switches *s, const char *extension)
{
    s->extensions[s->n_extensions++] = extension;
}

void vk_caps_switches(VkPhysicalDevice phys, const struct vk_caps *c, struct vk_switches *s)
{
    *s = (struct vk_switches){.features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2}};
    struct extensions e;
    extensions_get(phys, &e);
    /* A device on top of another API is obliged to be told that we know. */
    if (has(&e, "VK_KHR_portability_subset"))
        want(s, "VK_KHR_portability_subset");
    if (c->budget)
        want(s, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    if (c->storage16) {
        s->storage16 = (VkPhysicalDevice16BitStorageFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES, .storageBuffer16BitAccess = VK_TRUE};
        chain(&s->features, &s->storage16);
    }
    if (c->storage8) {
        s->storage8 = (VkPhysicalDevice8BitStorageFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES, .storageBuffer8BitAccess = VK_TRUE};
        chain(&s->features, &s->storage8);
        if (c->api_version < VK_API_VERSION_1_2)
            want(s, VK_KHR_8BIT_STORAGE_EXTENSION_NAME);
    }
    if (c->f16 || c->int8) {
        s->f16_int8 = (VkPhysicalDeviceShaderFloat16Int8Features){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES,
            .shaderFloat16 = c->f16,
            .shaderInt8 = c->int8};
        chain(&s->features, &s->f16_int8);
        if (c->api_version < VK_API_VERSION_1_2)
            want(s, VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME);
    }
    if (c->timeline) {
        s->timeline = (VkPhysicalDeviceTimelineSemaphoreFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES, .timelineSemaphore = VK_TRUE};
        chain(&s->features, &s->timeline);
        if (c->api_version < VK_API_VERSION_1_2)
            want(s, VK_KHR_TIMELINE_SEMAPHORE_EXTENSION_NAME);
    }
    if (c->subgroup_require) {
        s->subgroup = (VkPhysicalDeviceSubgroupSizeControlFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES,
            .subgroupSizeControl = VK_TRUE,
            .computeFullSubgroups = VK_TRUE};
        chain(&s->features, &s->subgroup);
        if (c->api_version < VK_API_VERSION_1_3)
            want(s, VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME);
    }
    if (c->int_dot) {
        s->int_dot = (VkPhysicalDeviceShaderIntegerDotProductFeatures){
            .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES,
            .shaderIntegerDotProduct = VK_TRUE};
        chain(&s->features, &s->int_dot);
        if (c->api_version < VK_API_VERSION_1_3)
            want(s, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME);
    }
    free(e.v);
}
