/* SPDX-License-Identifier: MIT
 *
 * engine/base/os.c: the operating system, where libuv does not reach or is not linked: file mappings, files replaced at
 * once, the steady clock, page-aligned memory, sizes of the machine. The one file to port.
 */
#ifdef __linux__
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "dl/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

uint64_t dl_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Large blocks are mappings of their own: fresh pages are zero and cost nothing until they are touched, so a KV cache for a long
 * context is only as large as what it holds. One page in front remembers the mapping for dl_free_aligned. */
#define BIG ((size_t)1 << 20)

struct block {
    void *base;
    size_t mapped; /* 0: from malloc */
};

void *dl_alloc_aligned(size_t align, size_t size)
{
    size_t bytes, slack = align + sizeof(struct block);
    char *base = NULL;
    struct block head = {0};
    if (dl_add_size(size, slack, &bytes)) {
        if (bytes >= BIG) {
            base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (base == MAP_FAILED)
                base = NULL;
            head.mapped = bytes;
        } else {
            base = calloc(1, bytes);
        }
    }
    if (!base) {
        dl_log(DL_LOG_ERROR, "memory: cannot allocate %zu bytes", size);
        return NULL;
    }
    head.base = base;
    char *p = (char *)(((uintptr_t)base + slack - 1) / align * align);
    memcpy(p - sizeof head, &head, sizeof head);
    return p;
}

void dl_free_aligned(void *p)
{
    if (!p)
        return;
    struct block head;
    memcpy(&head, (char *)p - sizeof head, sizeof head);
    if (head.mapped)
        munmap(head.base, head.mapped);
    else
        free(head.base);
}

int dl_map_open(const char *path, struct dl_map *out)
{
    *out = (struct dl_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return dl_fail(DL_EIO, "%s: cannot open: %s", path, strerror(errno));
    struct stat st;
    int err = DL_OK;
    if (fstat(fd, &st))
        err = dl_fail(DL_EIO, "%s: cannot read: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        err = dl_fail(DL_EIO, "%s: not a regular file", path);
    else if (st.st_size <= 0)
        err = dl_fail(DL_EFORMAT, "%s: the file is empty", path);
    else if ((uint64_t)st.st_size > SIZE_MAX)
        err = dl_fail(DL_EUNSUP, "%s: too large for this machine's address space", path);
    if (!err) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            err = dl_fail(DL_EIO, "%s: cannot map: %s", path, strerror(errno));
        else
            *out = (struct dl_map){.data = p, .size = (size_t)st.st_size};
    }
    close(fd);
    return err;
}

void dl_map_close(struct dl_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    *map = (struct dl_map){0};
}

static void advise(const struct dl_map *map, size_t offset, size_t n, int advice, bool inward)
{
    if (!map->data || offset >= map->size)
        return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), end = n > map->size - offset ? map->size : offset + n;
    size_t first = inward ? (offset + page - 1) / page * page : offset / page * page;
    if (inward)
        end = end / page * page;
    if (first < end)
        (void)madvise((void *)(uintptr_t)(map->data + first), end - first, advice);
}

void dl_map_will_need(const struct dl_map *map, size_t offset, size_t n)
{
    advise(map, offset, n, MADV_WILLNEED, false);
}

void dl_map_drop(const struct dl_map *map, size_t offset, size_t n)
{
    advise(map, offset, n, MADV_DONTNEED, true);
}

bool dl_cache_path(const char *name, char *out, size_t n)
{
#ifdef __APPLE__
    static const char under_home[] = "Library/Caches/dllama-vk";
#else
    static const char under_home[] = ".cache/dllama-vk";
#endif
    const char *own = getenv("DLLAMA_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int len = -1;
    if (own && *own)
        len = snprintf(out, n, "%s/%s", own, name);
    else if (xdg && *xdg == '/')
        len = snprintf(out, n, "%s/dllama-vk/%s", xdg, name);
    else if (home && *home)
        len = snprintf(out, n, "%s/%s/%s", home, under_home, name);
    return len > 0 && (size_t)len < n;
}

static void make_folders_above(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        (void)mkdir(path, 0700);
        *slash = '/';
    }
}

static bool write_all(int fd, const char *bytes, size_t n)
{
    while (n) {
        ssize_t done = write(fd, bytes, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        bytes += done;
        n -= (size_t)done;
    }
    return true;
}

bool dl_file_replace(const char *path, const void *bytes, size_t n)
{
    char temp[4096];
    int len = snprintf(temp, sizeof temp, "%s.XXXXXX", path);
    if (!*path || len < 0 || (size_t)len >= sizeof temp)
        return false;
    int fd = mkstemp(temp);
    if (fd < 0) {
        make_folders_above(temp);
        snprintf(temp, sizeof temp, "%s.XXXXXX", path);
        fd = mkstemp(temp);
    }
    if (fd < 0)
        return false;
    bool ok = write_all(fd, bytes, n);
    ok = !close(fd) && ok; /* a full disk may show only here */
    ok = ok && !rename(temp, path);
    if (!ok)
        (void)unlink(temp);
    return ok;
}

uint64_t dl_mem_total(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

uint64_t dl_mem_available(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    unsigned long long kib = 0;
    char line[128];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib ? (uint64_t)kib << 10 : dl_mem_total();
}

uint32_t dl_cpu_count(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) {
        int n = CPU_COUNT(&set);
        if (n > 0)
            return (uint32_t)n;
    }
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}
