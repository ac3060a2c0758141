// The library of a wheel (hatch_build.py): kernel.c, compiled once for each set of instructions. `adopt_step` runs the
// best set that the processor and the system support. All sets compute the same bits.

#include <stdatomic.h>
#include <stdint.h>

#include "export.h"

#ifdef _WIN32
// The entry of a library that does not need the C library.
int __stdcall DllMainCRTStartup(void *module, unsigned long reason, void *reserved) { return 1; }
#endif

typedef void Step(const void *, int64_t, int64_t);

EXPORT Step adopt_step_baseline;

#ifdef __x86_64__
#include <cpuid.h>

EXPORT Step adopt_step_avx2, adopt_step_avx512;  // x86-64-v3 and x86-64-v4 of the psABI

enum {  // bits of cpuid, and of the registers that the system saves
    V3_1_ECX = 1 << 0 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 27 | 1 << 28 | 1 << 29,
    V3_7_EBX = 1 << 3 | 1 << 5 | 1 << 8,
    V3_EXTENDED_ECX = 1 << 0 | 1 << 5,
    V4_7_EBX = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | (int)(1u << 31),
    AVX_STATE = 0x06,
    AVX512_STATE = 0xe6,
};

static int has(uint32_t found, uint32_t wanted) { return (found & wanted) == wanted; }

static int level(void) {  // 4, 3, or 1
    uint32_t a, b, c, d, of_7, saved, upper;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, (uint32_t)V3_1_ECX)) return 1;
    __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &of_7, &c, &d) || !has(of_7, V3_7_EBX) || !has(saved, AVX_STATE)) return 1;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !has(c, V3_EXTENDED_ECX)) return 1;
    return has(of_7, (uint32_t)V4_7_EBX) && has(saved, AVX512_STATE) ? 4 : 3;
}

static Step *best(const char **name) {
    switch (level()) {
        case 4: *name = "AVX-512"; return adopt_step_avx512;
        case 3: *name = "AVX2 and FMA"; return adopt_step_avx2;
        default: *name = "SSE2"; return adopt_step_baseline;
    }
}

#else

static Step *best(const char **name) {
    *name = "NEON";
    return adopt_step_baseline;
}

#endif

// The name of the set that `adopt_step` runs here.
EXPORT const char *adopt_instructions(void) {
    const char *name;
    best(&name);
    return name;
}

EXPORT void adopt_step(const void *buckets, int64_t count, int64_t threads) {
    static _Atomic(Step *) chosen;  // cpuid takes long in virtual machines
    Step *step = atomic_load(&chosen);
    if (step == 0) {
        const char *name;
        step = best(&name);
        atomic_store(&chosen, step);
    }
    step(buckets, count, threads);
}
