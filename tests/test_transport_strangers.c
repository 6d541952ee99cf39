/* SPDX-License-Identifier: MIT
 *
 * tests/test_transport_strangers.c: a worker's door in a hostile network: port scans, silent and slow ones, garbage and frames that promise too
 * much, other keys, no key, a recorded handshake, other builds, a second root. Whatever comes, the worker stays free for who
 * belongs to it, opens nothing for others, and says little.
 */
#include "tcp_bench.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire.h"

static int door(const dl_tcp_listener *l)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    a.sin_port = htons((uint16_t)atoi(strrchr(dl_tcp_listener_address(l), ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static void say(int fd, const void *bytes, size_t n)
{
    (void)!send(fd, bytes, n, MSG_NOSIGNAL); /* who has been thrown out already cannot speak */
}

/* It hangs up within `ns`. */
static bool hangs_up(int fd, uint64_t ns)
{
    char buf[4096];
    for (uint64_t t0 = dl_now_ns(); dl_now_ns() - t0 < ns;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 20) > 0 && read(fd, buf, sizeof buf) <= 0)
            return true;
    }
    return false;
}

static int n_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    closedir(d);
    return n;
}

/* A root that belongs to it is served, at once: long before anyone else has had his time. */
static void is_free(dl_tcp_listener *l, const struct dl_tcp_opts *opts)
{
    const char *at = dl_tcp_listener_address(l);
    dl_transport *root, *t;
    struct dl_tcp_opts o = unhurried(opts);
    o.handshake_ms = 20000;
    assert_int_equal(dl_tcp_connect(&at, 1, &o, NULL, &root), DL_OK);
    assert_int_equal(dl_tcp_accept(l, 20 * SEC, &t), DL_OK);
    dl_transport_close(&root);
    dl_transport_close(&t);
}

/* However slow the machine is, nobody is thrown out for that; and who is to go goes for another reason. */
static const struct dl_tcp_opts both[] = {{.handshake_ms = 60000, .dead_ms = 60000},
                                          {.handshake_ms = 60000, .dead_ms = 60000, .key = &test_key}};

static void scans(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        dl_tcp_listener *l;
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &both[k], &l), DL_OK);
        is_free(l, &both[k]);
        said_clear();
        const int fds = n_fds();
        const uint64_t t0 = dl_now_ns();
        for (int i = 0; i < 300; i++) {
            int fd = door(l);
            if (i % 3)
                say(fd, "x", 1);
            close(fd);
        }
        is_free(l, &both[k]);
        for (int i = 0; i < 1000 && n_fds() > fds; i++)
            pause_ns(10 * MS);
        assert_true(n_fds() <= fds);
        assert_true(said.n[DL_LOG_WARN] <= 3 + (dl_now_ns() - t0) / SEC && said.n[DL_LOG_ERROR] == 0);
        dl_tcp_listener_close(&l);
    }
}

enum { CROWD = 150 };
static void crowd(const dl_tcp_listener *l, int fd[CROWD])
{
    for (int i = 0; i < CROWD; i++) {
        fd[i] = door(l);
        if (i % 2)
            say(fd[i], "dlvk", 1);
    }
}

/* More of them than there are places, all at the same time. */
static void silent_ones(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        dl_tcp_listener *l;
        int fd[CROWD];
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &both[k], &l), DL_OK);
        crowd(l, fd);
        is_free(l, &both[k]);
        for (int i = 0; i < CROWD; i++)
            close(fd[i]);
        is_free(l, &both[k]);
        dl_tcp_listener_close(&l);
    }
}

/* They do not stay, and neither does one who says a byte now and then, for longer than anyone has time. */
static void silent_ones_go(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        dl_tcp_listener *l;
        int fd[CROWD];
        const struct dl_tcp_opts strict = {.handshake_ms = 3000, .key = both[k].key};
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &strict, &l), DL_OK);
        crowd(l, fd);
        struct tp_preamble p = {.protocol = TP_PROTOCOL, .status = TP_ASK, .security = k != 0, .purpose = TP_FOR_ROOT};
        uint8_t bytes[TP_PREAMBLE_BYTES];
        tp_preamble_put(bytes, &p);
        int slow = door(l);
        bool gone = false;
        for (size_t i = 0; i + 1 < sizeof bytes && !gone; i++) {
            say(slow, bytes + i, 1);
            gone = hangs_up(slow, SEC / 5); /* within 12.6 s */
        }
        assert_true(gone);
        for (int i = 0; i < CROWD; i++) {
            assert_true(hangs_up(fd[i], 15 * SEC));
            close(fd[i]);
        }
        close(slow);
        is_free(l, &strict);
        dl_tcp_listener_close(&l);
    }
}

static void garbage(void **state)
{
    (void)state;
    uint64_t rng = 11;
    struct tp_preamble p = {.protocol = TP_PROTOCOL, .status = TP_ASK, .purpose = TP_FOR_ROOT};
    for (int k = 0; k < 2; k++) {
        dl_tcp_listener *l;
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &both[k], &l), DL_OK);
        for (int i = 0; i < 120; i++) {
            uint8_t junk[TP_PREAMBLE_BYTES + TP_HEAD_BYTES + 2000];
            for (size_t b = 0; b < sizeof junk; b++)
                junk[b] = (uint8_t)test_rand(&rng);
            p.security = k != 0;
            if (i % 3) /* looks right at first */
                tp_preamble_put(junk, &p);
            if (i % 3 == 1) { /* a frame of which only the head is right, or that promises 4 GiB */
                struct tp_frame f = {.type = (uint8_t)(1 + i / 3 % (TP_TYPE_COUNT - 1)),
                                     .length = i % 2 ? 0xffffffff : (uint32_t)(test_rand(&rng) % 1024)};
                tp_frame_put(junk + TP_PREAMBLE_BYTES, &f);
            }
            int fd = door(l);
            say(fd, junk, i % 5 ? sizeof junk : TP_PREAMBLE_BYTES + test_rand(&rng) % 60);
            if (i % 5) {
                if (!hangs_up(fd, 20 * SEC))
                    fail_msg("case %d is still there: %s", i, said.all);
            }
            close(fd);
        }
        is_free(l, &both[k]);
        dl_tcp_listener_close(&l);
    }
}

static void keys(void **state)
{
    (void)state;
    static const struct dl_key other = {{9, 9, 9}};
    static const struct dl_tcp_opts with_other = {.key = &other, .handshake_ms = 60000},
                                    without = {.handshake_ms = 60000};
    const struct {
        const struct dl_tcp_opts *root, *worker;
        const char *says;
    } cases[] = {
        {&with_other, &both[1], "key"}, {&without, &both[1], "--key FILE"}, {&both[1], &without, "--key FILE"}};
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        dl_tcp_listener *l;
        dl_transport *root;
        int err = DL_OK;
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", cases[i].worker, &l), DL_OK);
        const char *at = dl_tcp_listener_address(l);
        said_clear();
        assert_int_equal(dl_tcp_connect(&at, 1, cases[i].root, &err, &root), DL_EUNSUP);
        assert_int_equal(err, DL_EUNSUP);
        assert_null(root);
        assert_said(cases[i].says); /* the root's line */
        for (uint64_t t0 = dl_now_ns(); !said_has("is refused: ") && dl_now_ns() - t0 < 20 * SEC;)
            pause_ns(5 * MS);
        assert_said("is refused: "); /* the worker's */
        assert_int_equal(dl_tcp_accept(l, 50 * MS, &root), DL_ETIMEDOUT);
        is_free(l, cases[i].worker);
        dl_tcp_listener_close(&l);
    }
}

static void without_a_key(void **state)
{
    (void)state;
    dl_tcp_listener *l;
    dl_transport *t;
    static const struct dl_tcp_opts none = {0}, insecure = {.insecure = true};
    static const char *const public[] = {"0.0.0.0:0", "[::]:0"};
    for (size_t i = 0; i < DL_COUNT_OF(public); i++) {
        said_clear();
        assert_int_equal(dl_tcp_listen(public[i], &none, &l), DL_EINVAL);
        assert_null(l);
        assert_said("dllama-vk keygen");
        assert_said("--insecure");
    }
    assert_int_equal(dl_tcp_listen(public[0], &insecure, &l), DL_OK);
    dl_tcp_listener_close(&l);
    static const char *const far[] = {"192.0.2.1:9990"};
    said_clear();
    assert_int_equal(dl_tcp_connect(far, 1, &none, NULL, &t), DL_EINVAL);
    assert_said("there is no key");
}

/* Someone who listened in, on a cluster with a key, says word for word what a root said. */
static void *connect_thread(void *arg)
{
    const char **at = arg;
    dl_transport *root;
    if (!dl_tcp_connect(at, 1, &both[1], NULL, &root))
        dl_transport_close(&root);
    return NULL;
}

static void a_replay(void **state)
{
    (void)state;
    static uint8_t heard[65536];
    size_t n_heard = 0;
    dl_tcp_listener *l;
    dl_transport *t;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    char address[32];
    const char *at = address;
    pthread_t thread;
    assert_int_equal(dl_tcp_listen("127.0.0.1:0", &both[1], &l), DL_OK);
    int ear = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(ear, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(ear, 1), 0);
    assert_int_equal(getsockname(ear, (struct sockaddr *)&a, &n), 0);
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(a.sin_port));
    assert_int_equal(pthread_create(&thread, NULL, connect_thread, &at), 0);
    int from = accept(ear, NULL, NULL), to = door(l);
    bool formed = false;
    for (bool open = true; open;) {
        uint8_t buf[4096];
        struct pollfd p[2] = {{.fd = from, .events = POLLIN}, {.fd = to, .events = POLLIN}};
        poll(p, 2, 20);
        ssize_t got = p[0].revents ? read(from, buf, sizeof buf) : 1;
        if (p[0].revents && got > 0) {
            assert_true(n_heard + (size_t)got <= sizeof heard);
            memcpy(heard + n_heard, buf, (size_t)got);
            n_heard += (size_t)got;
            say(to, buf, (size_t)got);
        }
        open = got > 0;
        got = p[1].revents ? read(to, buf, sizeof buf) : 1;
        if (p[1].revents && got > 0)
            say(from, buf, (size_t)got);
        open = open && got > 0;
        if (!formed && !dl_tcp_accept(l, 0, &t)) { /* the cluster stands */
            formed = true;
            dl_transport_close(&t);
        }
    }
    pthread_join(thread, NULL);
    if (!formed && !dl_tcp_accept(l, 20 * SEC, &t)) { /* the root was quicker to go than the worker to say so */
        formed = true;
        dl_transport_close(&t);
    }
    close(from);
    close(to);
    close(ear);
    assert_true(formed && n_heard > TP_PREAMBLE_BYTES + 100);
    is_free(l, &both[1]);
    for (int i = 0; i < 5; i++) {
        int fd = door(l);
        say(fd, heard, n_heard);
        assert_true(hangs_up(fd, 20 * SEC));
        close(fd);
        assert_int_equal(dl_tcp_accept(l, 20 * MS, &t), DL_ETIMEDOUT);
    }
    is_free(l, &both[1]);
    dl_tcp_listener_close(&l);
}

static void other_builds(void **state)
{
    (void)state;
    static const struct dl_tcp_opts one = {.build = "1.0", .handshake_ms = 60000},
                                    two = {.build = "2.0", .handshake_ms = 60000};
    dl_tcp_listener *l;
    dl_transport *root;
    assert_int_equal(dl_tcp_listen("127.0.0.1:0", &one, &l), DL_OK);
    const char *at = dl_tcp_listener_address(l);
    said_clear();
    assert_int_equal(dl_tcp_connect(&at, 1, &two, NULL, &root), DL_EUNSUP);
    assert_said("it is build 1.0 (protocol ");
    assert_said("this side build 2.0 (protocol ");
    assert_said("install the same version");
    /* Another protocol is told apart before anything else is read. */
    struct tp_preamble p = {.protocol = TP_PROTOCOL + 1, .status = TP_ASK, .purpose = TP_FOR_ROOT}, answer;
    uint8_t bytes[TP_PREAMBLE_BYTES];
    tp_preamble_put(bytes, &p);
    int fd = door(l);
    say(fd, bytes, sizeof bytes);
    assert_int_equal(recv(fd, bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
    assert_null(tp_preamble_get(bytes, &answer));
    assert_int_equal(answer.status, TP_OTHER_PROTOCOL);
    assert_int_equal(answer.protocol, TP_PROTOCOL);
    assert_true(hangs_up(fd, 20 * SEC));
    close(fd);
    is_free(l, &one);
    dl_tcp_listener_close(&l);
}

static void a_second_root(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        dl_tcp_listener *l;
        dl_transport *root, *t, *second;
        assert_int_equal(dl_tcp_listen("127.0.0.1:0", &both[k], &l), DL_OK);
        const char *at = dl_tcp_listener_address(l);
        assert_int_equal(dl_tcp_connect(&at, 1, &both[k], NULL, &root), DL_OK);
        said_clear();
        uint64_t soonest = UINT64_MAX;
        for (int i = 0; i < 3; i++) { /* also before anyone has accepted the first */
            uint64_t t0 = dl_now_ns();
            assert_int_equal(dl_tcp_connect(&at, 1, &both[k], NULL, &second), DL_EBUSY);
            soonest = DL_MIN(soonest, dl_now_ns() - t0);
            if (!i)
                assert_int_equal(dl_tcp_accept(l, 20 * SEC, &t), DL_OK);
        }
        assert_true(soonest < SEC);
        assert_said("it is busy: it works for another root");
        assert_int_equal(dl_transport_send(root, 1, "still", 5), DL_OK); /* the first notices nothing */
        char buf[8];
        size_t n;
        assert_int_equal(dl_transport_recv(t, 0, buf, sizeof buf, &n, 20 * SEC), DL_OK);
        assert_int_equal(n, 5);
        dl_transport_close(&root);
        dl_transport_close(&t);
        is_free(l, &both[k]);
        dl_tcp_listener_close(&l);
    }
}

int main(void)
{
    said_catch();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scans),    cmocka_unit_test(silent_ones),  cmocka_unit_test(silent_ones_go),
        cmocka_unit_test(garbage),  cmocka_unit_test(keys),         cmocka_unit_test(without_a_key),
        cmocka_unit_test(a_replay), cmocka_unit_test(other_builds), cmocka_unit_test(a_second_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
