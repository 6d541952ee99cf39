/* SPDX-License-Identifier: MIT
 *
 * tests/test_weight_cache.c: the cache of slices by itself (what is kept, what goes first, what the disk refuses, what is damaged), the
 * files of dl/base.h that it is made of, and digests.
 */
#include "tempdir.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#include "weight_cache.h"

#define SIZE 5000u

static char dir[TEMPDIR_LEN];

static int setup(void **state)
{
    (void)state;
    make_dir(dir);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    remove_dir(dir);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    return 0;
}

static void digest_of(const void *bytes, size_t n, struct eng_digest *out)
{
    struct eng_hash *h = eng_hash_create();
    assert_non_null(h);
    eng_hash_add(h, bytes, n);
    eng_hash_end(h, out);
    eng_hash_destroy(&h);
}

static void make(unsigned number, uint8_t out[SIZE], struct eng_digest *d)
{
    uint64_t rng = number;
    for (unsigned i = 0; i < SIZE; i++)
        out[i] = (uint8_t)test_rand(&rng);
    digest_of(out, SIZE, d);
}

static bool keep(struct eng_cache *c, unsigned number)
{
    uint8_t bytes[SIZE];
    struct eng_digest d;
    struct dl_map map;
    make(number, bytes, &d);
    bool ok = eng_cache_begin(c, &d, SIZE) && eng_cache_add(c, bytes, 2000) &&
              eng_cache_add(c, bytes + 2000, SIZE - 2000) && eng_cache_commit(c, &map);
    if (ok) {
        assert_int_equal(map.size, SIZE);
        assert_memory_equal(map.data, bytes, SIZE);
        dl_map_close(&map);
    }
    return ok;
}

static bool has(struct eng_cache *c, unsigned number)
{
    uint8_t bytes[SIZE];
    struct eng_digest d;
    struct dl_map map;
    make(number, bytes, &d);
    if (!eng_cache_get(c, &d, SIZE, NULL, NULL, &map))
        return false;
    assert_memory_equal(map.data, bytes, SIZE);
    dl_map_close(&map);
    return true;
}

static void path_of(unsigned number, char out[2 * TEMPDIR_LEN])
{
    uint8_t bytes[SIZE];
    struct eng_digest d;
    char hex[ENG_DIGEST_HEX + 1];
    make(number, bytes, &d);
    eng_digest_hex(&d, hex);
    snprintf(out, 2 * TEMPDIR_LEN, "%s/%s", dir, hex);
}

struct folder {
    unsigned files;
    uint64_t bytes;
};
static void count_file(void *ud, const char *name, uint64_t bytes, uint64_t age_ns)
{
    struct folder *f = ud;
    (void)name;
    assert_true(age_ns < UINT64_C(60) * 1000000000u || age_ns > UINT64_C(3600) * 1000000000u);
    f->files++;
    f->bytes += bytes;
}
static struct folder folder(void)
{
    struct folder f = {0};
    assert_true(dl_dir_list(dir, count_file, &f));
    return f;
}

static void set_age(const char *path, int seconds)
{
    struct timespec t[2];
    clock_gettime(CLOCK_REALTIME, &t[0]);
    t[0].tv_sec -= seconds;
    t[1] = t[0];
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

/* Of XXH3-128, from its published test vectors' rules: the digest is the same on every machine, so files may move between them. */
static void digests(void **state)
{
    (void)state;
    struct eng_digest d, e;
    char hex[ENG_DIGEST_HEX + 1];
    digest_of("", 0, &d);
    eng_digest_hex(&d, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f"); /* XXH3_128bits of nothing, seed 0 */
    uint8_t bytes[SIZE];
    make(1, bytes, &d);
    struct eng_hash *h = eng_hash_create();
    for (unsigned i = 0; i < SIZE; i += 7)
        eng_hash_add(h, bytes + i, DL_MIN(7u, SIZE - i));
    eng_hash_end(h, &e);
    assert_true(eng_digest_equal(&d, &e));
    eng_hash_begin(h);
    bytes[4000] ^= 1;
    eng_hash_add(h, bytes, SIZE);
    eng_hash_end(h, &e);
    assert_false(eng_digest_equal(&d, &e));
    eng_hash_destroy(&h);
}

static void keeps_and_finds(void **state)
{
    (void)state;
    struct eng_cache *c;
    assert_int_equal(eng_cache_open(dir, 100 * SIZE, &c), 0);
    assert_false(has(c, 1));
    assert_true(keep(c, 1) && keep(c, 2));
    assert_true(has(c, 1) && has(c, 2) && !has(c, 3));
    assert_true(keep(c, 1)); /* once more is no harm */
    assert_int_equal(folder().files, 2);
    eng_cache_close(&c);
    assert_int_equal(eng_cache_open(dir, 100 * SIZE, &c), 0);
    assert_true(has(c, 1) && has(c, 2));

    /* What is not finished is not there. */
    uint8_t bytes[SIZE];
    struct eng_digest d;
    struct dl_map map;
    make(4, bytes, &d);
    assert_true(eng_cache_begin(c, &d, SIZE) && eng_cache_add(c, bytes, 100));
    assert_int_equal(folder().files, 3);
    assert_false(eng_cache_commit(c, &map)); /* too few bytes */
    assert_true(eng_cache_begin(c, &d, SIZE));
    assert_false(eng_cache_add(c, bytes, SIZE + 1));
    eng_cache_drop(c);
    eng_cache_drop(c);
    assert_true(eng_cache_begin(c, &d, SIZE));
    eng_cache_close(&c);
    assert_int_equal(folder().files, 2);
}

static void damaged_files_go(void **state)
{
    (void)state;
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
    for (int how = 0; how < 5; how++) {
        struct eng_cache *c;
        char path[2 * TEMPDIR_LEN];
        assert_int_equal(eng_cache_open(dir, 100 * SIZE, &c), 0);
        assert_true(keep(c, 1));
        path_of(1, path);
        FILE *f = fopen(path, how == 4 ? "wb" : "r+b"); /* 4: empty */
        assert_non_null(f);
        if (how < 2) { /* a bit, at the start or the end */
            fseek(f, how ? (long)SIZE - 1 : 0, SEEK_SET);
            int byte = fgetc(f);
            fseek(f, -1, SEEK_CUR);
            fputc(byte ^ 0x10, f);
        }
        fclose(f);
        if (how == 2)
            assert_int_equal(truncate(path, SIZE - 1), 0);
        if (how == 3)
            assert_int_equal(truncate(path, SIZE + 1), 0);
        assert_false(has(c, 1));
        assert_int_equal(folder().files, 0);
        assert_true(keep(c, 1) && has(c, 1));
        assert_int_equal(unlink(path), 0); /* somebody deletes it meanwhile */
        assert_false(has(c, 1));
        eng_cache_close(&c);
    }
    assert_int_equal(log.n, 0);
}

static void the_oldest_goes_first(void **state)
{
    (void)state;
    struct eng_cache *c;
    char path[2 * TEMPDIR_LEN];
    assert_int_equal(eng_cache_open(dir, 4 * SIZE + 100, &c), 0);
    for (unsigned i = 1; i <= 4; i++) {
        assert_true(keep(c, i));
        path_of(i, path);
        set_age(path, (int)(50 - 10 * i));
    }
    eng_cache_close(&c);
    assert_int_equal(eng_cache_open(dir, 4 * SIZE + 100, &c), 0);
    assert_true(has(c, 1)); /* just used: now 2 is the oldest */
    assert_true(keep(c, 5));
    assert_true(!has(c, 2) && has(c, 1) && has(c, 5));
    assert_true(folder().bytes <= 4 * SIZE + 100);

    /* What is needed now stays, and then there is no room. */
    uint8_t bytes[SIZE];
    struct eng_digest d;
    for (unsigned i = 1; i <= 6; i++) {
        make(i, bytes, &d);
        eng_cache_pin(c, &d);
    }
    assert_false(keep(c, 6));
    assert_true(has(c, 1) && has(c, 3) && has(c, 4) && has(c, 5));
    assert_false(eng_cache_could_hold(c, 4 * SIZE + 101));
    eng_cache_close(&c);

    /* A smaller bound is kept from the next file on; strangers' files are left alone. */
    snprintf(path, sizeof path, "%s/notes.txt", dir);
    FILE *f = fopen(path, "w");
    fputs("mine", f);
    fclose(f);
    set_age(path, 7200);
    assert_int_equal(eng_cache_open(dir, SIZE, &c), 0);
    assert_true(keep(c, 7));
    assert_int_equal(folder().files, 2);
    assert_true(has(c, 7));
    eng_cache_close(&c);
    assert_int_equal(eng_cache_open(dir, 0, &c), 0);
    assert_false(keep(c, 8));
    assert_true(has(c, 7));
    eng_cache_close(&c);
}

static void what_killed_processes_leave(void **state)
{
    (void)state;
    struct eng_cache *c;
    char old[4 * TEMPDIR_LEN], fresh[4 * TEMPDIR_LEN], path[2 * TEMPDIR_LEN];
    path_of(1, path);
    snprintf(old, sizeof old, "%s.aaaaaa", path);
    snprintf(fresh, sizeof fresh, "%s.bbbbbb", path);
    fclose(fopen(old, "w"));
    fclose(fopen(fresh, "w"));
    set_age(old, 7200);
    assert_int_equal(eng_cache_open(dir, SIZE, &c), 0);
    assert_int_equal(folder().files, 1); /* another process may be writing the fresh one */
    assert_true(keep(c, 1));
    eng_cache_close(&c);
}

/* A full disk, as a limit on the size of files; a folder that cannot be; none at all. */
static void the_disk_refuses(void **state)
{
    (void)state;
    struct test_log log = {0};
    dl_log_set(test_log_sink, &log, DL_LOG_WARN);
    struct eng_cache *c;
    struct rlimit whole, small = {1000, 1000};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &whole), 0);
    small.rlim_max = whole.rlim_max;
    assert_int_equal(eng_cache_open(dir, 100 * SIZE, &c), 0);
    assert_true(keep(c, 1));
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    bool kept = keep(c, 2);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &whole), 0);
    assert_false(kept);
    assert_int_equal(folder().files, 1);
    assert_false(keep(c, 3)); /* it does not try again and again */
    assert_true(has(c, 1));
    assert_false(eng_cache_could_hold(c, 1));
    eng_cache_close(&c);

    char under[2 * TEMPDIR_LEN];
    path_of(1, under); /* a file */
    strcat(under, "/cache");
    assert_int_equal(eng_cache_open(under, 100 * SIZE, &c), 0);
    assert_false(keep(c, 2));
    assert_false(has(c, 2));
    eng_cache_close(&c);
    char *far = calloc(1, 8000);
    memset(far, 'x', 7999);
    assert_int_equal(eng_cache_open(far, 100 * SIZE, &c), 0);
    assert_false(keep(c, 2));
    eng_cache_close(&c);
    free(far);

    snprintf(under, sizeof under, "%s/new", dir); /* made when needed */
    assert_int_equal(eng_cache_open(under, 100 * SIZE, &c), 0);
    assert_false(has(c, 2));
    assert_true(keep(c, 2) && has(c, 2));
    eng_cache_close(&c);
    remove_dir(under);
    assert_int_equal(log.n, 0); /* only warnings */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digests),
        cmocka_unit_test_setup_teardown(keeps_and_finds, setup, teardown),
        cmocka_unit_test_setup_teardown(damaged_files_go, setup, teardown),
        cmocka_unit_test_setup_teardown(the_oldest_goes_first, setup, teardown),
        cmocka_unit_test_setup_teardown(what_killed_processes_leave, setup, teardown),
        cmocka_unit_test_setup_teardown(the_disk_refuses, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
