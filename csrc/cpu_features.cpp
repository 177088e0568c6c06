#include "cpu_features.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pellucid {
namespace {

#if defined(__x86_64__)

struct CpuidLeaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

CpuidLeaf cpuid(unsigned leaf, unsigned subleaf) {
    CpuidLeaf r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);  // leaves zeros where the CPU has no such leaf
    return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1; }

// The register state the operating system saves on a context switch. An instruction set whose registers it
// does not save must not be used, whatever the CPU says.
uint64_t saved_state() {
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t{high} << 32) | low;
}

CpuFeatures detect() {
    CpuFeatures f;
    const CpuidLeaf leaf1 = cpuid(1, 0);
    const bool has_xgetbv = bit(leaf1.c, 27);
    if (!has_xgetbv) return f;
    const uint64_t state = saved_state();
    const bool saves_ymm = (state & 0x06) == 0x06;
    const bool saves_zmm = (state & 0xe6) == 0xe6;

    const CpuidLeaf leaf7 = cpuid(7, 0);
    const CpuidLeaf leaf7_1 = leaf7.a >= 1 ? cpuid(7, 1) : CpuidLeaf{};
    const bool fma = bit(leaf1.c, 12), f16c = bit(leaf1.c, 29);
    f.avx2 = saves_ymm && bit(leaf7.b, 5) && fma && f16c;
    f.avx_vnni = f.avx2 && bit(leaf7_1.a, 4);
    const bool f_dq_bw_vl = bit(leaf7.b, 16) && bit(leaf7.b, 17) && bit(leaf7.b, 30) && bit(leaf7.b, 31);
    const bool vnni = bit(leaf7.c, 11);
    f.avx512 = f.avx2 && saves_zmm && f_dq_bw_vl && vnni;
    f.avx512_bf16 = f.avx512 && bit(leaf7_1.a, 5);
    return f;
}

#elif defined(__aarch64__) && defined(__linux__)

CpuFeatures detect() {
    constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP of Linux's asm/hwcap.h
    CpuFeatures f;
    f.neon_dot = getauxval(AT_HWCAP) & kDotProducts;
    return f;
}

#elif defined(__aarch64__) && defined(__APPLE__)

CpuFeatures detect() {
    CpuFeatures f;
    int there = 0;
    size_t size = sizeof there;
    f.neon_dot = sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) == 0 && there;
    return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

bool supported(Isa isa) {
    const CpuFeatures& f = cpu_features();
    switch (isa) {
        case Isa::Portable: return true;
        case Isa::Avx2: return f.avx2;
        case Isa::Avx2Vnni: return f.avx_vnni;
        case Isa::Avx512: return f.avx512;
        case Isa::Avx512Bf16: return f.avx512_bf16;
        case Isa::Neon: return f.neon_dot;
    }
    return false;
}

Isa choose() {
    constexpr Isa best_first[] = {Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2Vnni, Isa::Avx2, Isa::Neon, Isa::Portable};
    const char* wanted = std::getenv("PELLUCID_ISA");
    if (wanted == nullptr || *wanted == '\0') {
        for (Isa isa : best_first)
            if (supported(isa)) return isa;
    }
    for (Isa isa : best_first) {
        if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
        if (supported(isa)) return isa;
        throw std::runtime_error("PELLUCID_ISA=" + std::string(wanted) + ": this CPU does not have it");
    }
    throw std::runtime_error("PELLUCID_ISA=" + std::string(wanted) +
                             ": unknown, expected portable, avx2, avx2vnni, avx512, avx512bf16 or neon");
}

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

Isa active_isa() {
    static const Isa isa = choose();
    return isa;
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::Portable: return "portable";
        case Isa::Avx2: return "avx2";
        case Isa::Avx2Vnni: return "avx2vnni";
        case Isa::Avx512: return "avx512";
        case Isa::Avx512Bf16: return "avx512bf16";
        case Isa::Neon: return "neon";
    }
    return "unknown";
}

}  // namespace pellucid
