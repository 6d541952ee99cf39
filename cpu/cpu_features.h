/* SPDX-License-Identifier: MIT
 *
 * cpu/cpu_features.h: which instruction sets there are kernels for, which of them this CPU and system can run, and which are
 * allowed.
 */
#ifndef CPU_FEATURES_H
#define CPU_FEATURES_H

/* In ascending order: a higher one includes ref and avx2. avxvnni is AVX-VNNI; avx512 is AVX-512 F, BW, DQ, VL and VNNI. A CPU may
 * have either without the other. On ARM neon stands for avx2; dotprod includes it. */
enum {
    CPU_ISA_REF = 1,
    CPU_ISA_AVX2 = 2,
    CPU_ISA_AVXVNNI = 4,
    CPU_ISA_AVX512 = 8,
    CPU_ISA_NEON = 16,
    CPU_ISA_DOTPROD = 32
};

unsigned cpu_isa_detect(void); /* bits; asks the CPU each time */

/* *mask = what may be used when `name` is the most that is allowed; NULL or "" allows all there is.
 * DL_EINVAL for an unknown name, DL_EUNSUP for one that cannot run here (both logged). */
int cpu_isa_choose(const char *name, unsigned *mask);
const char *cpu_isa_best(unsigned mask); /* name of the highest one */

#endif
