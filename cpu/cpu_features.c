/* SPDX-License-Identifier: MIT
 *
 * cpu/cpu_features.c: see cpu_features.h. Compiled for the plainest CPU of the architecture.
 */
#include "cpu_features.h"

#include <string.h>

#include "dl/device.h"

#if defined(CPU_HAVE_AVX2) && (defined(__x86_64__) || defined(__i386__))
#include <cpuid.h>

/* AVX2, FMA and F16C, and a system that saves the upper halves of the registers (XCR0 bits 1 and 2). */
static unsigned detect_avx2(void)
{
    enum { FMA = 1u << 12, OSXSAVE = 1u << 27, AVX = 1u << 28, F16C = 1u << 29, AVX2 = 1u << 5 };
    const unsigned need = FMA | OSXSAVE | AVX | F16C;
    unsigned a, b, c, d, xcr0_low, xcr0_high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & need) != need)
        return 0;
    __asm__ volatile("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
    (void)xcr0_high;
    if ((xcr0_low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    return b & AVX2 ? CPU_ISA_AVX2 : 0;
}
#else
static unsigned detect_avx2(void)
{
    return 0;
}
#endif

static const struct {
    const char *name;
    unsigned bit;
} isas[] = {{"ref", CPU_ISA_REF}, {"avx2", CPU_ISA_AVX2}};

unsigned cpu_isa_detect(void)
{
    return CPU_ISA_REF | detect_avx2();
}

const char *dl_cpu_isas(void)
{
    return cpu_isa_detect() & CPU_ISA_AVX2 ? "ref avx2" : "ref";
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
    return dl_fail(DL_EINVAL, "cpu: unknown instruction set '%.40s' (DLLAMA_CPU): known are ref and avx2, here: %s",
                   name, dl_cpu_isas());
}

const char *cpu_isa_best(unsigned mask)
{
    const char *name = "?";
    for (size_t i = 0; i < DL_COUNT_OF(isas); i++)
        if (mask & isas[i].bit)
            name = isas[i].name;
    return name;
}
