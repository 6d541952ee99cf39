/* SPDX-License-Identifier: MIT
 *
 * tests/short_io.h: a system that takes and gives little at a time. Takes the place of the C library's read, write and writev for the whole
 * program, libuv included: on stream sockets, once short_io_begin has been called, each moves as many bytes as a draw says, one byte
 * included, or none for now (EAGAIN). Included by at most one file of a program.
 *
 * Cut are the calls, not a copy of what they do: everything above them runs as it is shipped.
 */
#ifndef TESTS_SHORT_IO_H
#define TESTS_SHORT_IO_H

#include <errno.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common.h"

static struct {
    atomic_bool on;
    atomic_uint_least64_t state; /* of the draws */
    atomic_uint cut_reads, cut_writes, refused;
} short_io;

static inline void short_io_begin(uint64_t seed)
{
    atomic_store(&short_io.cut_reads, 0);
    atomic_store(&short_io.cut_writes, 0);
    atomic_store(&short_io.refused, 0);
    atomic_store(&short_io.state, seed);
    atomic_store(&short_io.on, true);
}

/* ThreadSanitizer has to see the calls itself, or it takes what they order for a race. Elsewhere there may be other names. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_SHORT_IO
#endif
#endif
#if !defined(__linux__) || defined(__SANITIZE_THREAD__)
#define NO_SHORT_IO
#endif

/* Nothing is cut any more; and something was, both ways. */
static inline void short_io_end(void)
{
    atomic_store(&short_io.on, false);
#ifdef NO_SHORT_IO
    fprintf(stderr, "SKIPPED PART: calls are not cut in this build\n");
#else
    assert_true(short_io.cut_reads > 100 && short_io.cut_writes > 100 && short_io.refused > 100);
#endif
}

#ifndef NO_SHORT_IO
/* At most how many of n bytes; n where it is nobody's business. Half of all calls stay whole enough for long transfers to end. */
static size_t short_io_draw(int fd, size_t n)
{
    int type = 0, saved = errno;
    socklen_t len = sizeof type;
    bool stream = atomic_load(&short_io.on) && !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) && type == SOCK_STREAM;
    errno = saved;
    if (!stream || !n)
        return n;
    uint64_t s = atomic_fetch_add(&short_io.state, 1) * 7919, r = test_rand(&s), most = 0;
    switch (r % 8) {
    case 0:
        break;
    case 1:
        most = 1;
        break;
    case 2:
    case 3:
        most = 1 + (r >> 8) % 40; /* ends within a head */
        break;
    default:
        most = 1 + (r >> 8) % 40000;
    }
    if (!most)
        atomic_fetch_add(&short_io.refused, 1);
    return DL_MIN(n, most);
}

static ssize_t short_io_none(void)
{
    errno = EAGAIN;
    return -1;
}

ssize_t read(int fd, void *p, size_t n)
{
    size_t part = short_io_draw(fd, n);
    if (n && !part)
        return short_io_none();
    long got = syscall(SYS_read, fd, p, part);
    if (part < n && got == (long)part) /* more was wanted, and may have been there */
        atomic_fetch_add(&short_io.cut_reads, 1);
    return got;
}

/* A preamble is the first that a socket is to take, and is less than any system's buffer: the transport counts on that. */
static size_t short_io_draw_out(int fd, const void *p, size_t n)
{
    bool preamble = n == 64 && !memcmp(p, "DLvk", 4);
    size_t part = preamble ? n : short_io_draw(fd, n);
    if (part && part < n)
        atomic_fetch_add(&short_io.cut_writes, 1);
    return part;
}

ssize_t write(int fd, const void *p, size_t n)
{
    size_t part = short_io_draw_out(fd, p, n);
    return n && !part ? short_io_none() : syscall(SYS_write, fd, p, part);
}

ssize_t writev(int fd, const struct iovec *v, int count)
{
    size_t n = 0;
    for (int i = 0; i < count; i++)
        n += v[i].iov_len;
    size_t part = n ? short_io_draw_out(fd, v[0].iov_base, n) : 0;
    if (part == n)
        return syscall(SYS_writev, fd, v, count);
    struct iovec some[64];
    int used = 0;
    for (; part && used < count && used < 64; used++) {
        some[used] = v[used];
        some[used].iov_len = DL_MIN(v[used].iov_len, part);
        part -= some[used].iov_len;
    }
    return used ? syscall(SYS_writev, fd, some, used) : short_io_none();
}
#endif

#endif
