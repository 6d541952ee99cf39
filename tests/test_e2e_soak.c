/* SPDX-License-Identifier: MIT
 *
 * tests/test_e2e_soak.c: a cluster of four that computes for a while, during which its workers are killed and stopped in turn and come
 * back, while others scan its ports: the text stays right, and memory, descriptors and log do not grow with what has happened; and
 * when it has nothing to do, it does nothing. A minute; DLLAMA_SLOW=1: ten minutes, then the figures of each minute are printed.
 */
#include "e2e_procs.h"

#include <limits.h>
#include <time.h>

/* Long enough for what happens meanwhile, also where sanitizers slow all of it down. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define N_TEXT "800"
#else
#define N_TEXT "4000"
#endif
#define WITNESS 2 /* the worker to which nothing is done: what it holds must not grow */

struct held {
    long rss;
    int fds;
    size_t log;
};

static struct held held_by(const struct proc *p)
{
    return (struct held){proc_rss(p), proc_fds(p), p->n_err};
}

static void no_growth(const char *who, struct held was, const struct proc *p, unsigned cycles, size_t log_each)
{
    struct held is = held_by(p);
    for (int i = 0; i < 100 && is.fds > was.fds; i++) { /* it may be looking who is back */
        dl_sleep_ns(50 * MS);
        is.fds = proc_fds(p);
    }
    printf("%s, over %u cycles: %ld to %ld KiB, %d to %d descriptors, %.0f bytes of log each\n", who, cycles, was.rss,
           is.rss, was.fds, is.fds, (double)(is.log - was.log) / cycles);
    assert_true(is.fds <= was.fds);
    assert_true((is.log - was.log) / cycles < log_each);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(is.rss < was.rss + 2048); /* their memory is kept aside by sanitizers */
#endif
}

/* A root at its text, begun anew when that is through; it takes its time over it, so that most cycles fit into one. */
static void root_start(struct proc *root, const char *model, const char *list)
{
    proc_start(root,
               (const char *const[]){"run", model, "-p", "Once", "-n", N_TEXT, "--ctx", "4096", "--temp", "0", "--wire",
                                     "f32", "--threads", "1", "--device", "cpu", "--workers", list, NULL});
    root->lingers = true;
}

static void same_text(const struct proc *root, const char *one)
{
    size_t n = root->n_out;
    if (n && root->out[n - 1] == '\n')
        n--;
    if (n > strlen(one) || memcmp(root->out, one, n) != 0)
        fail_msg("another text: %s; stderr: %s", root->out, root->err);
}

/* One of the workers goes and comes back; false when the text was through before that. */
static bool cycle(struct workers *c, struct proc *root, unsigned number)
{
    const int i = (int)(number % 2);
    size_t at = root->n_err;
    uint64_t t0 = dl_now_ns();
    if (number / 2 % 2) {
        kill(c->w[i].p.pid, SIGSTOP);
    } else {
        proc_kill(&c->w[i]);
        proc_free(&c->w[i]);
    }
    while (!strstr(root->err + at, "; going on with 3 of 4 nodes\n") && root->p.err >= 0 && dl_now_ns() - t0 < 20 * SEC)
        proc_read(root, 50 * MS);
    if (number / 2 % 2)
        kill(c->w[i].p.pid, SIGCONT);
    else
        worker_start(c, i);
    while (!strstr(root->err + at, " is back: going on with 4 of 4 nodes\n") && root->p.err >= 0 &&
           dl_now_ns() - t0 < 40 * SEC) {
        proc_read(root, 50 * MS);
        proc_read(&c->w[WITNESS], MS);
        if (number / 2 % 2)
            proc_read(&c->w[i], MS);
    }
    if (root->p.err >= 0 && !strstr(root->err + at, " is back: "))
        fail_msg("worker %d is not back: %s; it says: %s", i, root->err + at, c->w[i].err);
    return root->p.err >= 0;
}

static void soak(void **state)
{
    (void)state;
    NEED_BIN();
    NEED_DATA(model, "models/stories260K.gguf");
    const bool slow = getenv("DLLAMA_SLOW");
    const uint64_t end = dl_now_ns() + (slow ? 600 : 60) * SEC;
    struct e2e alone;
    E2E(&alone, "run", model, "-p", "Once", "-n", N_TEXT, "--ctx", "4096", "--temp", "0", "--threads", "2", "--device",
        "cpu", "--quiet");
    E2E_STATUS(&alone, 0);
    struct workers c;
    struct proc root;
    struct held witness = {0}, at_root = {0};
    unsigned cycles = 0, since = 0, of_root = 0, roots = 1;
    workers_start(&c, 3);
    root_start(&root, model, c.list);
    proc_wrote(&root, 30);
    while (dl_now_ns() < end || of_root < 3) {
        if (!cycle(&c, &root, cycles++)) {
            proc_wait(&root);
            same_text(&root, alone.out);
            proc_free(&root);
            root_start(&root, model, c.list);
            proc_wrote(&root, 30);
            of_root = 0;
            roots++;
            continue;
        }
        same_text(&root, alone.out);
        proc_read(&c.w[WITNESS], MS);
        if (++of_root == 1)
            at_root = held_by(&root);
        if (!since) {
            witness = held_by(&c.w[WITNESS]);
            since = cycles;
        }
        if (slow && cycles % 20 == 0)
            printf("%u cycles, %u roots: witness %ld KiB\n", cycles, roots, proc_rss(&c.w[WITNESS]));
    }
    no_growth("the root", at_root, &root, of_root - 1, 600);
    kill(root.p.pid, SIGINT);
    proc_wait(&root);
    same_text(&root, alone.out);
    proc_free(&root);
    worker_is_free(&c, WITNESS);
    (void)proc_says(&c.w[WITNESS], c.w[WITNESS].n_err > 4000 ? c.w[WITNESS].n_err - 4000 : 0, "finished, ");
    no_growth("a worker", witness, &c.w[WITNESS], cycles - since, 4000);
    dl_sleep_ns(SEC / 2);
    long ticks = LONG_MAX;
    for (int i = 0; i < 3 && ticks > 2; i++) {
        long before = proc_cpu(&c.w[WITNESS]);
        dl_sleep_ns(2 * SEC);
        ticks = proc_cpu(&c.w[WITNESS]) - before;
    }
    printf("a worker without work: %ld ticks in 2 s\n", ticks);
    assert_true(ticks <= 2);
    workers_end(&c);
    e2e_free(&alone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(soak)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
