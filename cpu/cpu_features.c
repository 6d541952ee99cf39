/* SPDX-License-Identifier: MIT
 *
 * cpu/cpu_features.c: see cpu_features.h. Compiled for the plainest CPU of the architecture.
 */
#include "cpu_features.h"

#include <string.h>

#include "dl/device.h"

#if defined(CPU_HAVE_AVX2) && (defined(__x86_64__) || defined(__i386__))
#include <cpuid.h>

/* What the compiler had the flags for. */
enum {
    BUILT = CPU_ISA_AVX2
#ifdef CPU_HAVE_AVXVNNI
            | CPU_ISA_AVXVNNI
#endif
#ifdef CPU_HAVE_AVX512
            | CPU_ISA_AVX512
#endif
};

static bool all(unsigned have, unsigned need)
{
    return (have & need) == need;
}

/* Each set with what it takes of CPU and system: XCR0 says which registers the system saves. */
static unsigned detect(void)
{
    enum { FMA = 1u << 12, OSXSAVE = 1u << 27, AVX = 1u << 28, F16C = 1u << 29 }; /* leaf 1, ecx */
    enum { AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30 };          /* leaf 7, ebx */
    enum { VNNI = 1u << 11, VEX_VNNI = 1u << 4 };                                 /* leaf 7, ecx; 7.1, eax */
    const unsigned vl = 1u << 31, ymm = 0x06, zmm = 0xe6;
    unsigned a, b, c, d, xcr0, xcr0_high, most, found = CPU_ISA_AVX2;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, FMA | OSXSAVE | AVX | F16C))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
    (void)xcr0_high;
    if (!all(xcr0, ymm) || !__get_cpuid_count(7, 0, &most, &b, &c, &d) || !(b & AVX2))
        return 0;
    if (all(xcr0, zmm) && all(b, F | DQ | BW | vl) && c & VNNI)
        found |= CPU_ISA_AVX512;
    if (most >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & VEX_VNNI)
        found |= CPU_ISA_AVXVNNI;
    return found & BUILT;
}
#elif defined(CPU_HAVE_NEON)
#ifdef __linux__
#include <sys/auxv.h>
#endif

/* NEON is part of every 64-bit ARM. */
static unsigned detect(void)
{
#if defined(__ARM_FEATURE_DOTPROD) /* taken for granted by the compiler: so it is on every Mac */
    return CPU_ISA_NEON | CPU_ISA_DOTPROD;
#elif defined(__linux__)
    enum { ASIMDDP = 1u << 20 };
    return CPU_ISA_NEON | (getauxval(AT_HWCAP) & ASIMDDP ? CPU_ISA_DOTPROD : 0u);
#else
    return CPU_ISA_NEON;
#endif
}
#else
static unsigned detect(void)
{
    return 0;
}
#endif

static const struct {
    const char *name;
    unsigned bit;
} isas[] = {{"ref", CPU_ISA_REF},       {"avx2", CPU_ISA_AVX2}, {"avxvnni", CPU_ISA_AVXVNNI},
            {"avx512", CPU_ISA_AVX512}, {"neon", CPU_ISA_NEON}, {"dotprod", CPU_ISA_DOTPROD}};
#define KNOWN "ref, avx2, avxvnni, avx512, neon, dotprod"

unsigned cpu_isa_detect(void)
{
    return CPU_ISA_REF | detect();
}

const char *dl_cpu_isas(void)
{
    static const char *const names[] = {"ref avx2", "ref avx2 avxvnni", "ref avx2 avx512", "ref avx2 avxvnni avx512"};
    unsigned have = cpu_isa_detect();
    if (have & CPU_ISA_NEON)
        return have & CPU_ISA_DOTPROD ? "ref neon dotprod" : "ref neon";
    return have & CPU_ISA_AVX2 ? names[have / CPU_ISA_AVXVNNI] : "ref";
}

int cpu_isa_choose(const char *name, unsigned *mask)
{
    unsigned have = cpu_isa_detect();
    *mask = have;
    if (!name || !*name)
        return DL_OK;
    for (size_t i = 0; i < DL_COUNT_OF(isas); i++) {
        if (strcmp(name, isas[i].name))
            continue;
        if (!(have & isas[i].bit))
            return dl_fail(DL_EUNSUP, "cpu: this CPU, system or build has no %s; it has: %s", name, dl_cpu_isas());
        *mask = have & (2 * isas[i].bit - 1);
        return DL_OK;
    }
    return dl_fail(DL_EINVAL, "cpu: unknown instruction set '%.40s' (DLLAMA_CPU): known are " KNOWN ", here: %s", name,
                   dl_cpu_isas());
}

const char *cpu_isa_best(unsigned mask)
{
    const char *name = "?";
    for (size_t i = 0; i < DL_COUNT_OF(isas); i++)
        if (mask & isas[i].bit)
            name = isas[i].name;
    return name;
}
