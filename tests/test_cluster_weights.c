/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_weights.c: how a worker comes by its weights: sent once, then from its cache, from a local file, again where the
 * cache is damaged or too small or the disk refuses; and always the same logits.
 */
#include "cluster_rig.h"
#include "tempdir.h"

#include <signal.h>
#include <sys/resource.h>

#define N_GEN 3
#define VOCAB_MOST 1024
#define PLENTY (UINT64_C(1) << 30)

static float want[(N_GEN + 1) * VOCAB_MOST], got[(N_GEN + 1) * VOCAB_MOST];
static int32_t want_ids[N_GEN], ids[N_GEN];

/* One start: bytes of weights that were sent. The first gives the logits that all others must give, to the bit. */
static uint64_t start(struct rig *r, bool first)
{
    assert_int_equal(rig_start(r, rig_opts(), NULL), 0);
    uint64_t sent = r->sent_weights;
    struct dl_engine_stats stats;
    dl_engine_stats(r->engine, &stats);
    assert_true(stats.sent_bytes >= sent && stats.sent_bytes < sent + sent / 50 + 40000); /* and next to nothing else */
    assert_int_equal(rig_continue(r, NULL, N_GEN, first ? want_ids : ids, first ? want : got), 0);
    rig_stop(r);
    for (int i = 1; i < r->n; i++)
        assert_int_equal(r->workers[i].err, DL_OK);
    if (!first)
        assert_memory_equal(got, want, (N_GEN + 1) * rig_vocab(r) * sizeof(float));
    return sent;
}

static void caches(struct rig *r, const char *dir, uint64_t bytes)
{
    for (int i = 1; i < r->n; i++) {
        r->workers[i].opts.cache = dir;
        r->workers[i].opts.cache_bytes = bytes;
    }
}

struct largest {
    const char *dir;
    char path[2 * TEMPDIR_LEN];
    uint64_t bytes, total;
};
static void note(void *ud, const char *name, uint64_t bytes, uint64_t age_ns)
{
    struct largest *l = ud;
    (void)age_ns;
    l->total += bytes;
    if (bytes > l->bytes) {
        l->bytes = bytes;
        snprintf(l->path, sizeof l->path, "%s/%s", l->dir, name);
    }
}
static struct largest look(const char *dir)
{
    struct largest l = {.dir = dir};
    assert_true(dl_dir_list(dir, note, &l));
    return l;
}

static const char *model(int i)
{
    return i ? test_data("refs/qwen3moe.gguf") : NULL;
}

static void second_start_sends_nothing(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        if (m && !model(m))
            break; /* said so */
        char dir[TEMPDIR_LEN];
        struct rig r;
        make_dir(dir);
        rig_open(&r, model(m), 3);
        uint64_t all = start(&r, true);
        assert_true(all > dl_model_weight_bytes(r.model) / 2); /* two of three nodes, without the embedding */
        caches(&r, dir, PLENTY);
        assert_int_equal(start(&r, false), all);
        assert_int_equal(start(&r, false), 0);
        assert_int_equal(start(&r, false), 0);

        /* A flipped byte, a file that is too short, one that is gone: exactly that is sent again. */
        struct largest l = look(dir);
        assert_true(l.total <= all); /* what both nodes have is there once */
        rig_log_begin();
        for (int how = 0; how < 3; how++) {
            l = look(dir);
            FILE *f = fopen(l.path, "r+b");
            assert_non_null(f);
            fseek(f, (long)l.bytes / 2, SEEK_SET);
            int byte = fgetc(f);
            fseek(f, -1, SEEK_CUR);
            fputc(byte ^ 1, f);
            fclose(f);
            if (how == 1)
                assert_int_equal(truncate(l.path, (off_t)l.bytes - 1), 0);
            if (how == 2)
                assert_int_equal(unlink(l.path), 0);
            assert_int_equal(start(&r, false), l.bytes);
            assert_int_equal(start(&r, false), 0);
        }
        assert_int_equal(rig_logged.errors, 0);
        assert_true(rig_log_has("is damaged and will be fetched again"));
        rig_log_end();
        rig_close(&r);
        remove_dir(dir);
    }
}

static void a_cache_that_is_too_small(void **state)
{
    (void)state;
    char dir[TEMPDIR_LEN];
    struct rig r;
    make_dir(dir);
    rig_open(&r, NULL, 2);
    uint64_t all = start(&r, true), most = all / 3;
    caches(&r, dir, most);
    assert_int_equal(start(&r, false), all);
    uint64_t second = start(&r, false);
    assert_true(second < all && second > all / 3); /* some of it is there, and what is needed does not push it out */
    assert_true(look(dir).total <= most);
    assert_int_equal(start(&r, false), second);
    rig_close(&r);
    remove_dir(dir);
}

static void a_disk_that_refuses(void **state)
{
    (void)state;
    char dir[TEMPDIR_LEN], under[2 * TEMPDIR_LEN];
    struct rig r;
    make_dir(dir);
    rig_open(&r, NULL, 3);
    uint64_t all = start(&r, true);
    rig_log_begin();
    snprintf(under, sizeof under, "%s/file", dir);
    fclose(fopen(under, "w"));
    snprintf(under, sizeof under, "%s/file/cache", dir);
    caches(&r, under, PLENTY);
    assert_int_equal(start(&r, false), all);
    assert_int_equal(start(&r, false), all);
    assert_true(rig_log_has("cannot be written"));

    /* Full in the middle of a file: that one is asked for again, and everything is there. */
    struct rlimit whole, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &whole), 0);
    small = (struct rlimit){look(dir).bytes + 3000, whole.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    rig_log_begin();
    caches(&r, dir, PLENTY);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(rig_start(&r, rig_opts(), NULL), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &whole), 0);
    assert_true(r.sent_weights >= all);
    assert_int_equal(rig_continue(&r, NULL, N_GEN, ids, got), 0);
    assert_memory_equal(got, want, (N_GEN + 1) * rig_vocab(&r) * sizeof(float));
    rig_stop(&r);
    assert_int_equal(rig_logged.errors, 0);
    assert_true(rig_log_has("is full or cannot be written"));
    rig_log_end();
    rig_close(&r);
    remove_dir(dir);
}

/* --model: nothing is sent, with or without a cache; another model is noticed. */
static void a_local_copy(void **state)
{
    (void)state;
    NEED_DATA(path, "refs/qwen3moe.gguf");
    NEED_DATA(other_path, "refs/qwen3.gguf");
    struct rig r;
    dl_model *copy, *other;
    rig_open(&r, path, 3);
    uint64_t all = start(&r, true);
    assert_int_equal(dl_model_open(path, &copy), 0);
    assert_int_equal(dl_model_open(other_path, &other), 0);
    r.workers[1].opts.model = r.workers[2].opts.model = copy;
    assert_int_equal(start(&r, false), 0);
    rig_log_begin();
    r.workers[2].opts.model = other;
    uint64_t part = start(&r, false);
    assert_true(part > 0 && part < all);
    assert_true(rig_log_has("is not the root's model"));
    rig_log_end();
    dl_model_close(&copy);
    dl_model_close(&other);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(second_start_sends_nothing),
        cmocka_unit_test(a_cache_that_is_too_small),
        cmocka_unit_test(a_disk_that_refuses),
        cmocka_unit_test(a_local_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
