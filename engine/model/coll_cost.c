/* SPDX-License-Identifier: MIT
 *
 * engine/model/coll_cost.c: see coll_cost.h. With a partial of S bytes, the rate B and the latency L of an exchange between n nodes:
 *
 *   one-shot  L + (n-1) S / B            every node sends S to n-1 others
 *   rs        2 L + 2 (n-1) (S/n) / B    twice, every node sends a piece of S/n to n-1 others
 */
#include "coll_cost.h"

/* What a node's processor does for each message that it sends and gets, one after the other: the system calls, and waking up whom they are
 * for. 5 to 10 us where it was measured. */
#define MESSAGE_NS 7000.0

const char *eng_coll_name(enum eng_coll kind)
{
    static const char *const names[ENG_COLL_COUNT] = {"oneshot", "rs"};
    return (unsigned)kind < ENG_COLL_COUNT ? names[kind] : "?";
}

uint64_t eng_coll_bytes(enum eng_coll kind, uint32_t n, uint64_t bytes)
{
    if (n < 2)
        return 0;
    return kind == ENG_COLL_RS ? 2 * (n - 1) * dl_div_up(bytes, n) : (n - 1) * bytes;
}

double eng_coll_ns(enum eng_coll kind, uint32_t n, uint64_t bytes, double latency_ns, double bytes_per_s)
{
    if (n < 2)
        return 0;
    double wire = bytes_per_s > 0 ? (double)eng_coll_bytes(kind, n, bytes) / bytes_per_s * 1e9 : 0;
    return (kind == ENG_COLL_RS ? 2 : 1) * latency_ns + wire;
}

enum eng_coll eng_coll_pick(uint32_t n, uint64_t bytes, double latency_ns, double bytes_per_s)
{
    return eng_coll_ns(ENG_COLL_RS, n, bytes, latency_ns, bytes_per_s) <
                   eng_coll_ns(ENG_COLL_ONE_SHOT, n, bytes, latency_ns, bytes_per_s)
               ? ENG_COLL_RS
               : ENG_COLL_ONE_SHOT;
}

double eng_coll_halves_ns(uint32_t n, uint64_t bytes, double bytes_per_s, double compute_ns)
{
    if (n < 2)
        return 0;
    double wire = bytes_per_s > 0 ? (double)eng_coll_bytes(ENG_COLL_ONE_SHOT, n, bytes) / 2 / bytes_per_s * 1e9 : 0;
    return DL_MIN(wire, compute_ns) - (n - 1) * MESSAGE_NS;
}

double eng_coll_latency_ns(double one_way_ns, uint32_t n)
{
    return n < 2 ? 0 : one_way_ns + (n - 1) * MESSAGE_NS;
}
