// Which instruction sets this CPU and its operating system offer, and which one the kernels use.

#pragma once

#include <cstdint>

namespace pellucid {

struct CpuFeatures {
    bool avx2 = false;         // with FMA and F16C, which every AVX2 CPU but a few emulators has
    bool avx_vnni = false;     // int8 dot products on 256 bits
    bool avx512 = false;       // F, BW, VL, DQ and VNNI together
    bool avx512_bf16 = false;  // bf16 dot products
    bool neon_dot = false;     // AArch64's vectors with Armv8.2's dot products of int8
};

enum class Isa : uint8_t { Portable, Avx2, Avx2Vnni, Avx512, Avx512Bf16, Neon };

const CpuFeatures& cpu_features();

// The best one there is, or the one named by the environment variable PELLUCID_ISA (portable, avx2, avx2vnni, avx512,
// avx512bf16, neon).
// Decided at the first call. Throws std::runtime_error if the variable names one that is unknown or not there.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace pellucid
