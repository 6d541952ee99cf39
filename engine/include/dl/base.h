/* SPDX-License-Identifier: MIT
 *
 * dl/base.h: what every other file may rely on: error codes, the log, checked sizes, memory, growable arrays,
 * the clock, and the one place where the operating system is asked for something without libuv (os.c).
 *
 * Errors: 0 is success, negative is one of enum dl_err. The line that detects a failure logs it once, with the
 * values that matter and the way out (dl_fail); everyone above just passes the code up.
 */
#ifndef DL_BASE_H
#define DL_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------------------------------------- errors */

#define DL_ERR_MAP(X)                                                                              \
    X(EINVAL, -1, "invalid argument")                                                              \
    X(ENOMEM, -2, "out of memory")                                                                 \
    X(EIO, -3, "i/o error")                                                                        \
    X(EFORMAT, -4, "malformed input")                                                              \
    X(EUNSUP, -5, "not supported here")                                                            \
    X(EDEVICE, -6, "device failed")                                                                \
    X(EPEER, -7, "node lost")                                                                      \
    X(ECANCELED, -8, "canceled")                                                                   \
    X(ETIMEDOUT, -9, "timed out")                                                                  \
    X(EBUSY, -10, "busy")                                                                          \
    X(ELIMIT, -11, "over a limit")

#define X(name, value, text) DL_##name = value,
enum dl_err { DL_OK = 0, DL_ERR_MAP(X) };
#undef X

/* Name ("EFORMAT") and text ("malformed input") of a code; never NULL, also for unknown codes. Any thread. */
const char *dl_err_name(int err);
const char *dl_err_text(int err);

/* ------------------------------------------------------------------------------------- compiler attributes */

#if defined(__GNUC__) || defined(__clang__)
#define DL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define DL_LIKELY(x) __builtin_expect(!!(x), 1)
#define DL_UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define DL_PRINTF(fmt, args)
#define DL_LIKELY(x) (x)
#define DL_UNLIKELY(x) (x)
#endif

#define DL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define DL_MAX(a, b) ((a) > (b) ? (a) : (b))
#define DL_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* ---------------------------------------------------------------------------------------------------- log */

enum dl_log_level { DL_LOG_ERROR, DL_LOG_WARN, DL_LOG_INFO, DL_LOG_DEBUG };

/* Receives one finished line, without a newline. Called on the thread that logs; must not log itself. */
typedef void dl_log_fn(void *ud, enum dl_log_level level, const char *line);

/* Where lines go and the most detailed level that is delivered. The default writes to stderr, up to WARN.
 * fn == NULL restores the default sink. Not thread-safe: set once, before any thread is started. */
void dl_log_set(dl_log_fn *fn, void *ud, enum dl_log_level most);
bool dl_log_wants(enum dl_log_level level);

/* One line, "<what>: <why>", no trailing newline or full stop; control bytes are replaced by '?', so that text
 * out of a file cannot forge lines or drive a terminal. Any thread. */
void dl_log(enum dl_log_level level, const char *fmt, ...) DL_PRINTF(2, 3);
void dl_vlog(enum dl_log_level level, const char *fmt, va_list ap);

/* Logs at ERROR and returns err: `return dl_fail(DL_EFORMAT, "%s: ...", path);` Any thread. */
int dl_fail(int err, const char *fmt, ...) DL_PRINTF(2, 3);

/* --------------------------------------------------------------------------------------------------- sizes */

/* *out = a * b (a + b); false, with *out untouched, when that does not fit. */
bool dl_mul_size(size_t a, size_t b, size_t *out);
bool dl_add_size(size_t a, size_t b, size_t *out);
bool dl_mul_u64(uint64_t a, uint64_t b, uint64_t *out);
bool dl_add_u64(uint64_t a, uint64_t b, uint64_t *out);

/* Rounds up to a multiple of `unit` (> 0). The caller knows that it does not overflow. */
static inline uint64_t dl_round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }
static inline uint64_t dl_div_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit; }

/* ------------------------------------------------------------------------------------------------- memory */

/* Zeroed array of n items of `size` bytes. NULL (logged with the size) on overflow or when memory is out.
 * Free with free(). For sizes that come from input. */
void *dl_calloc(size_t n, size_t size);

/* Zeroed memory that starts on a multiple of `align` (a power of two >= 64; the size is rounded up to it). Fresh
 * pages are only touched when used. NULL (logged) when memory is out. Free with dl_free_aligned(), which accepts NULL. */
void *dl_alloc_aligned(size_t align, size_t size);
/* The same for what is read in full again and again: on a cache line, in huge pages where the system gives them. */
void *dl_alloc_huge(size_t size);
void dl_free_aligned(void *p);

/* Zeroed memory for small, fixed sizes; aborts when memory is out. Free with free(). */
void *dl_xcalloc(size_t n, size_t size);
char *dl_xstrdup(const char *s);

/* Makes room for `want` items in an array of `item` bytes each: (*v, *cap) grow by at least half. Returns
 * DL_ENOMEM (logged) and leaves the array as it was when that fails. */
int dl_grow(void **v, size_t *cap, size_t want, size_t item);

/* XXH3-64 of the bytes, the same on every machine; another seed, another hash. No protection against forgery. */
uint64_t dl_hash(const void *bytes, size_t n, uint64_t seed);

/* For people: bytes as GiB. */
double dl_gib(uint64_t bytes);

/* A growable byte string. Zero-initialised is empty; v is NUL-terminated whenever it is not NULL, and may hold NULs
 * before v[len]. */
struct dl_str {
    char *v;
    size_t len, cap;
};
int dl_str_add(struct dl_str *s, const char *bytes, size_t n);
int dl_str_addz(struct dl_str *s, const char *text);
int dl_str_addf(struct dl_str *s, const char *fmt, ...) DL_PRINTF(2, 3);
void dl_str_finish(struct dl_str *s);

/* A growable array of token ids. Zero-initialised is empty. One that is to hold `most` at most (0: as many as memory does) refuses
 * what would be more with DL_ELIMIT: nothing is logged, and `least` is what is known of how many it would have been, so many or more. */
struct dl_tokens {
    int32_t *v;
    size_t len, cap, most, least;
};
int dl_tokens_add(struct dl_tokens *t, int32_t id);
int dl_tokens_append(struct dl_tokens *t, const int32_t *ids, size_t n);
void dl_tokens_finish(struct dl_tokens *t);

/* ------------------------------------------------------------------------------------ operating system (os.c) */

/* Nanoseconds on a clock that never goes back. Any thread. */
uint64_t dl_now_ns(void);
void dl_sleep_ns(uint64_t ns); /* at least, unless a signal comes; not much more, where the system can */
void dl_yield(void); /* lets whoever waits for this core run first */

/* A whole file, mapped read-only and private. size > 0. */
struct dl_map {
    const uint8_t *data;
    size_t size;
};

/* DL_EIO (logged, with the system's reason) when the file cannot be opened, is no regular file, or is empty. */
int dl_map_open(const char *path, struct dl_map *out);
/* The same without a word: for files that need not be there. */
bool dl_map_try(const char *path, struct dl_map *out);
void dl_map_close(struct dl_map *map); /* accepts a zeroed map; zeroes it */

/* Hints, without effect on the content: [offset, offset + n) will be read soon / is not needed for a while (the pages
 * leave resident memory and come back from the file when read). */
void dl_map_will_need(const struct dl_map *map, size_t offset, size_t n);
void dl_map_drop(const struct dl_map *map, size_t offset, size_t n);

/* Whether anything goes by this path. Any thread. */
bool dl_path_exists(const char *path);
/* The user's home folder, NULL where there is none: a home that is missing is not made. Any thread. */
const char *dl_home(void);

/* The path of `name` in the folder where this program keeps what it can make again: $DLLAMA_CACHE_DIR, else what the platform
 * provides for that ($XDG_CACHE_HOME/dllama-vk, ~/.cache/dllama-vk; ~/Library/Caches/dllama-vk). false where there is none, or the
 * path is longer than n. The folder need not exist yet. Any thread. */
bool dl_cache_path(const char *name, char *out, size_t n);

/* Writes a whole file so that others see the old one or the new one, nothing between. Makes the folders above it (for this user
 * only). false, without a word, when that fails. Any thread. */
bool dl_file_replace(const char *path, const void *bytes, size_t n);

/* The same piece by piece, for what is larger than memory: until `commit` the bytes are in "PATH.XXXXXX", which stays behind only
 * where the process is killed. All false, without a word, when the system refuses (no such folder, no right, no space). */
typedef struct dl_new_file dl_new_file;
bool dl_file_begin(const char *path, dl_new_file **out);
bool dl_file_add(dl_new_file *f, const void *bytes, size_t n);
bool dl_file_commit(dl_new_file **f); /* the file is complete; nulls. false: there is none, or still the old one */
void dl_file_drop(dl_new_file **f);   /* leaves nothing; nulls, accepts &NULL */

/* Regular files right in a folder. age_ns: since it was last written or touched. false where the folder cannot be read. */
typedef void dl_dir_fn(void *ud, const char *name, uint64_t bytes, uint64_t age_ns);
bool dl_dir_list(const char *folder, dl_dir_fn *fn, void *ud);
bool dl_file_touch(const char *path); /* it counts as just used */
bool dl_file_remove(const char *path);

/* Bytes of physical memory, in all and available without swapping; 0 where unknown. */
uint64_t dl_mem_total(void);
uint64_t dl_mem_available(void);

/* Memory that was freed goes back to the system, where the C library keeps it. */
void dl_mem_trim(void);

/* Bytes that this user may still write in the folder, or in the one above it that there is; 0 where unknown. */
uint64_t dl_disk_free(const char *folder);

/* What this machine calls itself; "?" where it does not say. */
void dl_host_name(char *out, size_t cap);

/* A number that all processes on this machine get, and hardly any on another one; 0 where there is none. */
uint64_t dl_machine_id(void);

/* Processors this process may use, >= 1. */
uint32_t dl_cpu_count(void);

#endif
