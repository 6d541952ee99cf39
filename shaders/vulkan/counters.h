/* SPDX-License-Identifier: MIT
 *
 * counters.h: the host and the device counter of dl/device.h, and what was submitted between them. Where the driver has timeline
 * semaphores these are the counters, and submissions wait for the host on the GPU's side; elsewhere a driver thread submits
 * each when its time has come, and fences tell when it is done.
 */
#ifndef VK_COUNTERS_H
#define VK_COUNTERS_H

#include "vk.h"

struct vk_counters;

int vk_counters_create(struct vk_ctx *c, struct vk_counters **out);
void vk_counters_destroy(struct vk_counters *k); /* drained; accepts NULL */

/* As dl_device_submit, dl_device_host_signal (any thread), dl_device_wait. */
int vk_counters_submit(struct vk_counters *k, struct vk_prog *p, const struct dl_run_args *args, uint64_t host_wait,
                       uint64_t signal);
int vk_counters_host(struct vk_counters *k, uint64_t value);
int vk_counters_wait(struct vk_counters *k, uint64_t value, uint64_t timeout_ns);

/* Raises the host counter to whatever submissions wait for, and waits until they are done or the device is lost. */
void vk_counters_drain(struct vk_counters *k);

#endif
