/* SPDX-License-Identifier: MIT
 *
 * tests/count_alloc.h: counts what a test program allocates, by taking the place of the C library's malloc. Included by at
 * most one file of a program.
 */
#ifndef TESTS_COUNT_ALLOC_H
#define TESTS_COUNT_ALLOC_H

#include <stddef.h>

#include "dl/base.h"

/* Sanitizers bring their own malloc, and other C libraries other names: there, only the bytes are checked. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define NO_COUNT
#endif
#endif
#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NO_COUNT
#endif

/* In use now, and the most since the test set peak_bytes = live_bytes. */
static size_t live_bytes, peak_bytes;

#ifndef NO_COUNT
#include <malloc.h>

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void __libc_free(void *p);

static void *counted(void *p)
{
    live_bytes += p ? malloc_usable_size(p) : 0;
    peak_bytes = DL_MAX(peak_bytes, live_bytes);
    return p;
}

/* These take the place of the C library's for the whole program. */
void *malloc(size_t n)
{
    return counted(__libc_malloc(n));
}
void *calloc(size_t n, size_t size)
{
    return counted(__libc_calloc(n, size));
}
void *realloc(void *old, size_t n)
{
    size_t before = old ? malloc_usable_size(old) : 0;
    void *p = __libc_realloc(old, n);
    if (p || n == 0) {
        live_bytes -= DL_MIN(before, live_bytes);
        return counted(p);
    }
    return p;
}
void free(void *p)
{
    live_bytes -= p ? DL_MIN(malloc_usable_size(p), live_bytes) : 0;
    __libc_free(p);
}
#endif

#endif
