/* SPDX-License-Identifier: MIT
 *
 * engine/base/os.c: the operating system, where libuv does not reach or is not linked: file mappings, files replaced at
 * once, the steady clock, page-aligned memory, sizes of the machine. The one file to port.
 */
#ifdef __linux__
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "dl/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include <sched.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

uint64_t dl_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void dl_yield(void)
{
    (void)sched_yield();
}

void dl_sleep_ns(uint64_t ns)
{
#ifdef __linux__
    (void)prctl(PR_SET_TIMERSLACK, 1000UL); /* of this thread; by default it may oversleep by 50 us */
#endif
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    (void)nanosleep(&t, NULL);
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

void *dl_alloc_huge(size_t size)
{
    const size_t huge = (size_t)2 << 20;
    void *p = dl_alloc_aligned(size >= huge ? huge : 64, size);
#ifdef MADV_HUGEPAGE
    if (p && size >= huge)
        (void)madvise(p, size, MADV_HUGEPAGE);
#endif
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

/* The reason why not, in `why`, for who wants to know. */
static int map_file(const char *path, struct dl_map *out, char *why, size_t cap)
{
    *out = (struct dl_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe is refused below, not waited for */
    if (fd < 0) {
        snprintf(why, cap, "cannot open: %s", strerror(errno));
        return DL_EIO;
    }
    struct stat st;
    int err = DL_OK;
    if (fstat(fd, &st)) {
        err = DL_EIO;
        snprintf(why, cap, "cannot read: %s", strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        err = DL_EIO;
        snprintf(why, cap, "not a regular file");
    } else if (st.st_size <= 0) {
        err = DL_EFORMAT;
        snprintf(why, cap, "the file is empty");
    } else if ((uint64_t)st.st_size > SIZE_MAX) {
        err = DL_EUNSUP;
        snprintf(why, cap, "too large for this machine's address space");
    } else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            err = DL_EIO;
            snprintf(why, cap, "cannot map: %s", strerror(errno));
        } else {
            *out = (struct dl_map){.data = p, .size = (size_t)st.st_size};
        }
    }
    close(fd);
    return err;
}

int dl_map_open(const char *path, struct dl_map *out)
{
    char why[256];
    int err = map_file(path, out, why, sizeof why);
    return err ? dl_fail(err, "%s: %s", path, why) : DL_OK;
}

bool dl_map_try(const char *path, struct dl_map *out)
{
    char why[256];
    return !map_file(path, out, why, sizeof why);
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

bool dl_path_exists(const char *path)
{
    return !access(path, F_OK);
}

const char *dl_home(void)
{
    const char *home = getenv("HOME");
    return home && *home == '/' && dl_path_exists(home) ? home : NULL;
}

bool dl_cache_path(const char *name, char *out, size_t n)
{
#ifdef __APPLE__
    static const char under_home[] = "Library/Caches/dllama-vk";
#else
    static const char under_home[] = ".cache/dllama-vk";
#endif
    const char *own = getenv("DLLAMA_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = dl_home();
    int len = -1;
    if (own && *own)
        len = snprintf(out, n, "%s/%s", own, name);
    else if (xdg && *xdg == '/')
        len = snprintf(out, n, "%s/dllama-vk/%s", xdg, name);
    else if (home)
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

struct dl_new_file {
    int fd;
    char *path;
    char temp[4096];
};

bool dl_file_begin(const char *path, dl_new_file **out)
{
    *out = NULL;
    dl_new_file *f = calloc(1, sizeof *f);
    int len = f ? snprintf(f->temp, sizeof f->temp, "%s.XXXXXX", path) : -1;
    if (!f || !*path || len < 0 || (size_t)len >= sizeof f->temp) {
        free(f);
        return false;
    }
    f->fd = mkstemp(f->temp);
    if (f->fd < 0) {
        make_folders_above(f->temp);
        snprintf(f->temp, sizeof f->temp, "%s.XXXXXX", path);
        f->fd = mkstemp(f->temp);
    }
    if (f->fd < 0) {
        free(f);
        return false;
    }
    f->path = dl_xstrdup(path);
    *out = f;
    return true;
}

bool dl_file_add(dl_new_file *f, const void *bytes, size_t n)
{
    return write_all(f->fd, bytes, n);
}

static bool file_end(dl_new_file **file, bool keep)
{
    dl_new_file *f = *file;
    *file = NULL;
    bool ok = !close(f->fd) && keep; /* a full disk may show only here */
    ok = ok && !rename(f->temp, f->path);
    if (!ok)
        (void)unlink(f->temp);
    free(f->path);
    free(f);
    return ok;
}

bool dl_file_commit(dl_new_file **f)
{
    return file_end(f, true);
}

void dl_file_drop(dl_new_file **f)
{
    if (*f)
        (void)file_end(f, false);
}

bool dl_file_replace(const char *path, const void *bytes, size_t n)
{
    dl_new_file *f;
    if (!dl_file_begin(path, &f))
        return false;
    if (dl_file_add(f, bytes, n))
        return dl_file_commit(&f);
    dl_file_drop(&f);
    return false;
}

bool dl_dir_list(const char *folder, dl_dir_fn *fn, void *ud)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return false;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (struct dirent *e; (e = readdir(dir));) {
        struct stat st;
        if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        int64_t past = (int64_t)now.tv_sec - (int64_t)st.st_mtim.tv_sec;
        past = past > INT32_MAX ? INT32_MAX : past < 0 ? 0 : past; /* clocks are set, and file times with them */
        int64_t age = past * 1000000000 + now.tv_nsec - st.st_mtim.tv_nsec;
        fn(ud, e->d_name, (uint64_t)st.st_size, age > 0 ? (uint64_t)age : 0);
    }
    closedir(dir);
    return true;
}

bool dl_file_touch(const char *path)
{
    return !utimensat(AT_FDCWD, path, NULL, 0);
}

bool dl_file_remove(const char *path)
{
    return !unlink(path);
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

void dl_mem_trim(void)
{
#ifdef __GLIBC__
    (void)malloc_trim(0);
#endif
}

uint64_t dl_disk_free(const char *folder)
{
    char path[3072];
    struct statvfs st;
    size_t n = strlen(folder);
    if (n >= sizeof path)
        return 0;
    memcpy(path, folder, n + 1);
    while (statvfs(path, &st)) {
        char *slash = errno == ENOENT ? strrchr(path, '/') : NULL;
        if (!slash || slash == path)
            return 0;
        *slash = 0;
    }
    uint64_t bytes;
    return dl_mul_u64(st.f_bavail, st.f_frsize, &bytes) ? bytes : 0;
}

void dl_host_name(char *out, size_t cap)
{
    if (gethostname(out, cap))
        snprintf(out, cap, "?");
    out[cap - 1] = 0;
}

/* The number of this boot: the same in all containers of a machine, which also share its memory. Elsewhere the host's name. */
uint64_t dl_machine_id(void)
{
    char text[256] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    size_t n = f ? fread(text, 1, sizeof text, f) : 0;
    if (f)
        fclose(f);
    if (!n) {
        dl_host_name(text, sizeof text);
        n = strcmp(text, "?") ? strlen(text) : 0;
    }
    return n ? dl_hash(text, n, 0) : 0;
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
