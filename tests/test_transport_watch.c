/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport_watch.c: clusters of whoever can be had: some workers are not there, some silent, some busy, and the others form a
 * cluster without them, soon; and a watcher that says who of the missing is back, without anybody noticing.
 */
#include "tcp_bench.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

/* A socket that listens and never says a word: what a stopped process looks like. */
static int mute(char *address, size_t cap)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    snprintf(address, cap, "127.0.0.1:%u", ntohs(a.sin_port));
    return fd;
}

/* An address where nobody is. */
static void nobody(char *address, size_t cap)
{
    close(mute(address, cap));
}

static void accept_one(dl_tcp_listener *l, dl_transport **t)
{
    assert_int_equal(dl_tcp_accept(l, 20 * SEC, t), DL_OK);
}

static void some_of_them(void **state)
{
    (void)state;
    for (int key = 0; key < 2; key++) {
        /* Only who does not wait for the silent until then is soon. */
        const struct dl_tcp_opts opts = {.key = key ? &test_key : NULL, .handshake_ms = 30000, .dead_ms = 60000};
        dl_tcp_listener *a, *b, *taken;
        dl_transport *root, *ta, *tb, *other, *theirs;
        char nowhere[32], silent[32];
        uint32_t who[5] = {9, 9, 9, 9, 9};
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &opts, &a), DL_OK);
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &opts, &b), DL_OK);
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &opts, &taken), DL_OK);
        nobody(nowhere, sizeof nowhere);
        int fd = mute(silent, sizeof silent);
        const char *busy = dl_tcp_listener_address(taken);
        assert_int_equal(dl_tcp_connect(&busy, 1, &opts, NULL, &other), DL_OK);
        accept_one(taken, &theirs);
        const char *all[] = {nowhere, dl_tcp_listener_address(a), silent, busy, dl_tcp_listener_address(b)};

        said_clear();
        bool wanted[] = {true, true, true, false, true};
        uint64_t t0 = dl_now_ns();
        assert_int_equal(dl_tcp_connect_some(all, 5, wanted, &opts, who, &root), DL_OK);
        assert_true(dl_now_ns() - t0 < 10 * SEC);
        assert_int_equal(dl_transport_n_nodes(root), 3);
        assert_int_equal(who[0], 1);
        assert_int_equal(who[1], 4);
        accept_one(a, &ta);
        accept_one(b, &tb);
        struct dl_node_info info;
        dl_transport_node_info(tb, 1, &info);
        assert_string_equal(info.name, all[1]);
        assert_int_equal(said.n[DL_LOG_ERROR], 0);
        assert_said("worker ");
        dl_transport_close(&root);
        dl_transport_close(&ta);
        dl_transport_close(&tb);

        /* One that works for somebody else is left out, too, but not without giving it some time. */
        wanted[3] = true;
        wanted[4] = false;
        t0 = dl_now_ns();
        assert_int_equal(dl_tcp_connect_some(all, 5, wanted, &opts, who, &root), DL_OK);
        assert_true(dl_now_ns() - t0 > 2 * SEC);
        assert_int_equal(dl_transport_n_nodes(root), 2);
        assert_int_equal(who[0], 1);
        accept_one(a, &ta);
        dl_transport_close(&root);
        dl_transport_close(&ta);

        /* Nobody at all: a cluster of the root. */
        wanted[1] = wanted[3] = false;
        assert_int_equal(dl_tcp_connect_some(all, 5, wanted, &opts, who, &root), DL_OK);
        assert_int_equal(dl_transport_n_nodes(root), 1);
        dl_transport_close(&root);
        close(fd);
        dl_transport_close(&other);
        dl_transport_close(&theirs);
        dl_tcp_listener_close(&a);
        dl_tcp_listener_close(&b);
        dl_tcp_listener_close(&taken);
    }
}

/* Who has just left a cluster is free for the next one at once, again and again. */
static void again_and_again(void **state)
{
    (void)state;
    const struct dl_tcp_opts opts = {.key = &test_key, .dead_ms = 60000};
    struct cluster c;
    uint32_t who[2];
    static const bool wanted[] = {true, true};
    cluster_listen(&c, 3, "127.0.0.1:0", &opts);
    const char *all[] = {dl_tcp_listener_address(c.l[1]), dl_tcp_listener_address(c.l[2])};
    for (int i = 0; i < 20; i++) {
        assert_int_equal(dl_tcp_connect_some(all, 2, wanted, &opts, who, &c.t[0]), DL_OK);
        assert_int_equal(dl_transport_n_nodes(c.t[0]), 3);
        accept_one(c.l[1], &c.t[1]);
        accept_one(c.l[2], &c.t[2]);
        dl_transport_close(&c.t[0]); /* the workers may still be at it when the root comes again */
        if (i % 2)
            pause_ns(MS);
        dl_transport_close(&c.t[2]);
        dl_transport_close(&c.t[1]);
    }
    cluster_close(&c);
}

static void refuses(dl_tcp_watch *w, int i, const char *says)
{
    char why[256];
    const bool does = dl_tcp_watch_refuses(w, i, why, sizeof why);
    if (does != (*says != 0) || !strstr(why, says))
        fail_msg("%d refuses: '%s', not '%s'", i, why, says);
}

static bool says_why(dl_tcp_watch *w, int i)
{
    char why[256];
    return dl_tcp_watch_refuses(w, i, why, sizeof why);
}

static bool becomes(dl_tcp_watch *w, int i, bool is_free)
{
    for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < 10 * SEC; pause_ns(20 * MS))
        if (dl_tcp_watch_free(w, i) == is_free)
            return true;
    return false;
}

static void a_watch(void **state)
{
    (void)state;
    static const struct dl_key other_key = {{7}};
    for (int key = 0; key < 2; key++) {
        const struct dl_tcp_opts opts = {.key = key ? &test_key : NULL, .build = "1", .dead_ms = 60000};
        const struct dl_tcp_opts another = {.key = key ? &other_key : NULL, .build = key ? "1" : "2"};
        dl_tcp_listener *l, *foreign;
        dl_transport *root, *t;
        dl_tcp_watch *w;
        char silent[32], name[64];
        int fd = mute(silent, sizeof silent);
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &opts, &l), DL_OK);
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &another, &foreign), DL_OK);
        snprintf(name, sizeof name, "%s", dl_tcp_listener_address(l));
        const char *all[] = {name, silent, dl_tcp_listener_address(foreign)};
        assert_int_equal(dl_tcp_watch_open(all, 3, &opts, &w), DL_OK);
        assert_false(dl_tcp_watch_free(w, 3));
        said_clear();
        assert_true(becomes(w, 0, true));
        assert_int_equal(said.n[DL_LOG_WARN] + said.n[DL_LOG_ERROR] + said.n[DL_LOG_INFO], 0);
        for (int i = 0; i < 30; i++) { /* it is looked at, and a root that comes meanwhile is not told "busy" */
            (void)dl_tcp_watch_free(w, 0);
            assert_int_equal(dl_tcp_connect(all, 1, &opts, NULL, &root), DL_OK);
            accept_one(l, &t);
            dl_transport_close(&root);
            dl_transport_close(&t);
            pause_ns(50 * MS);
        }
        assert_int_equal(dl_tcp_connect(all, 1, &opts, NULL, &root), DL_OK);
        accept_one(l, &t);
        assert_true(becomes(w, 0, false)); /* busy */
        refuses(w, 0, "");
        dl_transport_close(&root);
        dl_transport_close(&t);
        assert_true(becomes(w, 0, true));
        dl_tcp_listener_close(&l);
        assert_true(becomes(w, 0, false)); /* gone */
        refuses(w, 0, "");
        assert_int_equal(dl_tcp_listen(name, &opts, &l), DL_OK);
        assert_true(becomes(w, 0, true)); /* and back */
        /* Started again between two looks, in all likelihood: it is seen to go all the same, for a second. Who looks away so long misses it. */
        bool seen = false;
        for (int tries = 0; tries < 3 && !seen; tries++) {
            dl_tcp_listener_close(&l);
            assert_int_equal(dl_tcp_listen(name, &opts, &l), DL_OK);
            seen = becomes(w, 0, false);
        }
        assert_true(seen);
        refuses(w, 0, "");
        assert_true(becomes(w, 0, true));
        assert_false(dl_tcp_watch_free(w, 1));
        for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < 3 * SEC / 2; pause_ns(50 * MS)) {
            assert_false(dl_tcp_watch_free(w, 1));
            assert_false(dl_tcp_watch_free(w, 2));
        }
        for (uint64_t t0 = dl_now_ns(); !says_why(w, 2) && dl_now_ns() - t0 < 20 * SEC; pause_ns(20 * MS))
            assert_false(dl_tcp_watch_free(w, 2));
        refuses(w, 0, "");
        refuses(w, 1, ""); /* nobody knows what it would say */
        refuses(w, 2, key ? "it refused this side's key: both need the same key file" : ": install the same version");
        refuses(w, 3, "");
        dl_tcp_watch_close(&w);
        assert_null(w);
        close(fd);
        dl_tcp_listener_close(&l);
        dl_tcp_listener_close(&foreign);
    }
}

int main(void)
{
    said_catch();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(some_of_them),
        cmocka_unit_test(again_and_again),
        cmocka_unit_test(a_watch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
