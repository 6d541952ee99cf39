/* SPDX-License-Identifier: MIT
 *
 * tests/tun_link.h: a link of a given rate and delay between two network namespaces, as real hardware has it: each has a tun device, and a
 * process of its own carries packets from one to the other. A packet leaves when those before it have left, which takes its bytes, with
 * headers and what Ethernet puts around them, at that rate; and arrives that long and the delay later, never earlier. Linux, root.
 *
 * The kernel has this as `netem`, where it was built with it. Packets go through here as the kernel hands them over, which is many
 * segments at once (as with hardware that cuts them up itself), so that 1 Gbit/s takes little of a core. The process runs before all
 * others where it may, sleeps until shortly before a packet is due, and spins for the rest: what it adds to the delay is
 * the time to wake it when a packet comes.
 */
#ifndef TESTS_TUN_LINK_H
#define TESTS_TUN_LINK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* setns, unshare: so this header comes before all others */
#endif

#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct tun_link {
    int ns[2]; /* -1: none. End i has the address 10.97.0.<i + 1> there */
    pid_t carrier;
    char why_not[200];
};

enum {
    TUN_PACKET = 68 * 1024,
    TUN_QUEUE = 64, /* packets on their way; those that come meanwhile wait in the device */
    TUN_AROUND = 38 /* preamble, Ethernet's head and checksum, gap between frames */
};
#define TUN_SPIN_NS ((uint64_t)15000)

/* One direction. */
struct tun_way {
    int from, to;
    uint64_t free_ns; /* when the line has carried what was given to it */
    unsigned head, n;
    struct tun_packet {
        uint64_t due_ns;
        size_t n;
        uint8_t bytes[TUN_PACKET];
    } * q;
};

/* ------------------------------------------------------------------------------------------------- the carrier */

/* Bits on the line: the segments into which the packet would be cut have a head each. */
static inline uint64_t tun_bits(const uint8_t *bytes, size_t n)
{
    struct virtio_net_hdr head;
    memcpy(&head, bytes, sizeof head);
    n -= sizeof head;
    size_t segments = 1, heads = 0;
    if (head.gso_type != VIRTIO_NET_HDR_GSO_NONE && head.gso_size && n > head.hdr_len) {
        segments = (n - head.hdr_len + head.gso_size - 1) / head.gso_size;
        heads = (segments - 1) * head.hdr_len;
    }
    return 8 * (uint64_t)(n + heads + segments * TUN_AROUND);
}

static inline void tun_carry(struct tun_way *w, double bits_per_ns, uint64_t delay_ns)
{
    for (; w->n && w->q[w->head].due_ns <= dl_now_ns(); w->n--, w->head = (w->head + 1) % TUN_QUEUE)
        if (write(w->to, w->q[w->head].bytes, w->q[w->head].n) < 0 && errno != EINVAL)
            _exit(1);
    while (w->n < TUN_QUEUE) {
        struct tun_packet *p = &w->q[(w->head + w->n) % TUN_QUEUE];
        const ssize_t n = read(w->from, p->bytes, sizeof p->bytes);
        if (n < (ssize_t)sizeof(struct virtio_net_hdr))
            break;
        p->n = (size_t)n;
        w->free_ns = DL_MAX(w->free_ns, dl_now_ns()) + (uint64_t)((double)tun_bits(p->bytes, p->n) / bits_per_ns);
        p->due_ns = w->free_ns + delay_ns;
        w->n++;
    }
}

static inline void tun_carrier(const int fd[2], double bits_per_s, uint64_t delay_ns)
{
    struct tun_way w[2] = {{.from = fd[0], .to = fd[1]}, {.from = fd[1], .to = fd[0]}};
    const struct sched_param first = {.sched_priority = 1};
    for (int i = 0; i < 2; i++)
        if (!(w[i].q = calloc(TUN_QUEUE, sizeof *w[i].q)))
            _exit(1);
    (void)sched_setscheduler(0, SCHED_FIFO, &first);
    (void)prctl(PR_SET_TIMERSLACK, 1UL);
    for (;;) {
        uint64_t due = UINT64_MAX;
        struct pollfd fds[2];
        for (int i = 0; i < 2; i++) {
            tun_carry(&w[i], bits_per_s * 1e-9, delay_ns);
            if (w[i].n)
                due = DL_MIN(due, w[i].q[w[i].head].due_ns);
            fds[i] = (struct pollfd){.fd = w[i].n < TUN_QUEUE ? w[i].from : -1, .events = POLLIN};
        }
        const uint64_t now = dl_now_ns(), rest = due > now ? due - now : 0;
        if (due != UINT64_MAX && rest <= TUN_SPIN_NS)
            continue;
        const uint64_t sleep = rest - TUN_SPIN_NS;
        const struct timespec t = {.tv_sec = (time_t)(sleep / 1000000000u), .tv_nsec = (long)(sleep % 1000000000u)};
        (void)ppoll(fds, 2, due == UINT64_MAX ? NULL : &t, NULL);
    }
}

/* ------------------------------------------------------------------------------------------------- opening */

static inline bool tun_cannot(struct tun_link *l, const char *what)
{
    snprintf(l->why_not, sizeof l->why_not, "%s: %s", what, strerror(errno));
    return false;
}

static inline bool tun_up(int sock, const char *name)
{
    struct ifreq r = {.ifr_flags = 0};
    snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    if (ioctl(sock, SIOCGIFFLAGS, &r))
        return false;
    r.ifr_flags |= IFF_UP;
    return !ioctl(sock, SIOCSIFFLAGS, &r);
}

static inline bool tun_address(int sock, const char *name, unsigned long request, const char *text)
{
    struct ifreq r = {.ifr_flags = 0};
    struct sockaddr_in a = {.sin_family = AF_INET};
    snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    memcpy(&r.ifr_addr, &a, sizeof a);
    return inet_pton(AF_INET, text, &a.sin_addr) == 1 && (memcpy(&r.ifr_addr, &a, sizeof a), !ioctl(sock, request, &r));
}

/* A new namespace, in which this process is then, with its end of the link. */
static inline bool tun_end(struct tun_link *l, int i, int *fd)
{
    char address[32];
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(r.ifr_name, sizeof r.ifr_name, "link");
    if (unshare(CLONE_NEWNET) || (l->ns[i] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
        return tun_cannot(l, "no network namespace");
    *fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0 || ioctl(*fd, TUNSETIFF, &r) || ioctl(*fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
        return tun_cannot(l, "no tun device");
    const int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(address, sizeof address, "10.97.0.%d", i + 1);
    const bool up = sock >= 0 && tun_up(sock, "lo") && tun_address(sock, "link", SIOCSIFADDR, address) &&
                    tun_address(sock, "link", SIOCSIFNETMASK, "255.255.255.0") && tun_up(sock, "link");
    if (sock >= 0)
        close(sock);
    return up || tun_cannot(l, "no address for a tun device");
}

/* False: not here, l->why_not says why. The calling process stays in its namespace. */
static inline bool tun_link_open(struct tun_link *l, double bits_per_s, uint64_t delay_ns)
{
    *l = (struct tun_link){.ns = {-1, -1}};
    int fd[2] = {-1, -1};
    const int before = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (geteuid() || before < 0) {
        snprintf(l->why_not, sizeof l->why_not, "network namespaces take root");
        return false;
    }
    bool ok = tun_end(l, 0, &fd[0]) && tun_end(l, 1, &fd[1]);
    assert_int_equal(setns(before, CLONE_NEWNET), 0);
    close(before);
    fflush(NULL);
    l->carrier = ok ? fork() : -1;
    if (!l->carrier) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        tun_carrier(fd, bits_per_s, delay_ns);
        _exit(1);
    }
    for (int i = 0; i < 2; i++)
        if (fd[i] >= 0)
            close(fd[i]);
    return ok && (l->carrier > 0 || tun_cannot(l, "no process"));
}

static inline void tun_link_close(struct tun_link *l)
{
    for (int i = 0; i < 2; i++)
        if (l->ns[i] >= 0)
            close(l->ns[i]);
    if (l->carrier > 0) {
        kill(l->carrier, SIGKILL);
        while (waitpid(l->carrier, NULL, 0) < 0 && errno == EINTR)
            ;
    }
}

#endif
