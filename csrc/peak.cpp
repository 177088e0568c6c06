#include "peak.h"

#include "cpu_features.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pellucid {
namespace {

constexpr int64_t kWordsAhead = 512;  // that read_all asks memory for
// Enough independent sums to hide the latency of two multiply-adds per cycle, and few enough for 16 registers.
constexpr int64_t kSums = 12;

#if defined(__x86_64__)

// One loop for all instructions, whose sums are variables and not an array: an array would lie in memory. The empty asm
// makes its operand look used and changed, so that nothing is left out.
#define PELLUCID_ADD(sum, product) sum = product(sum); __asm__ volatile("" : "+x"(sum))
#define PELLUCID_MULTIPLY(name, isa, Vector, product)                                                \
    __attribute__((target(isa))) void name(int64_t rounds) {                                         \
        Vector a{}, b{}, c{}, d{}, e{}, f{}, g{}, h{}, i{}, j{}, k{}, l{}, x{};                      \
        for (int64_t round = 0; round < rounds; ++round) {                                           \
            __asm__ volatile("" : "+x"(x));                                                          \
            PELLUCID_ADD(a, product); PELLUCID_ADD(b, product); PELLUCID_ADD(c, product);            \
            PELLUCID_ADD(d, product); PELLUCID_ADD(e, product); PELLUCID_ADD(f, product);            \
            PELLUCID_ADD(g, product); PELLUCID_ADD(h, product); PELLUCID_ADD(i, product);            \
            PELLUCID_ADD(j, product); PELLUCID_ADD(k, product); PELLUCID_ADD(l, product);            \
        }                                                                                            \
    }

#define INT8_AVX512(sum) _mm512_dpbusd_epi32(sum, x, x)
#define BFLOAT16_AVX512(sum) _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x))
#define FLOAT_AVX512(sum) _mm512_fmadd_ps(x, x, sum)
#define INT8_AVXVNNI(sum) _mm256_dpbusd_avx_epi32(sum, x, x)
#define INT8_AVX2(sum) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), x))
#define FLOAT_AVX2(sum) _mm256_fmadd_ps(x, x, sum)

PELLUCID_MULTIPLY(int8_avx512, "avx512f,avx512vnni", __m512i, INT8_AVX512)
PELLUCID_MULTIPLY(bfloat16_avx512, "avx512f,avx512bf16", __m512, BFLOAT16_AVX512)
PELLUCID_MULTIPLY(float_avx512, "avx512f", __m512, FLOAT_AVX512)
PELLUCID_MULTIPLY(int8_avxvnni, "avx2,avxvnni", __m256i, INT8_AVXVNNI)
PELLUCID_MULTIPLY(int8_avx2, "avx2", __m256i, INT8_AVX2)
PELLUCID_MULTIPLY(float_avx2, "avx2,fma", __m256, FLOAT_AVX2)

#undef PELLUCID_MULTIPLY

#endif

struct Best {
    void (*run)(int64_t rounds);
    int64_t operations;  // of one instruction
};

Best best(Arithmetic arithmetic) {
#if defined(__x86_64__)
    const Isa isa = active_isa();
    if (isa == Isa::Avx512 || isa == Isa::Avx512Bf16) {
        if (arithmetic == Arithmetic::Int8) return {int8_avx512, 128};
        if (arithmetic == Arithmetic::Float32) return {float_avx512, 32};
        if (isa == Isa::Avx512Bf16) return {bfloat16_avx512, 64};
        return {float_avx512, 32};
    }
    if (isa == Isa::Avx2Vnni && arithmetic == Arithmetic::Int8) return {int8_avxvnni, 64};
    if (isa == Isa::Avx2Vnni || isa == Isa::Avx2) {
        if (arithmetic == Arithmetic::Int8) return {int8_avx2, 64};
        return {float_avx2, 16};
    }
#endif
    (void)arithmetic;
    return {nullptr, 0};
}

}  // namespace

int64_t multiply_in_registers(Arithmetic arithmetic, int64_t rounds) {
#if defined(__aarch64__)
    if (active_isa() == Isa::Neon)
        return arithmetic == Arithmetic::Int8 ? multiply_int8_neon(rounds) : multiply_float_neon(rounds);
#endif
    const Best b = best(arithmetic);
    if (b.run == nullptr) return 0;
    b.run(rounds);
    return b.operations * kSums * rounds;
}

uint64_t read_all(const uint64_t* data, int64_t count) {
    uint64_t sums[8] = {};
    for (int64_t i = 0; i + 8 <= count; i += 8) {
        __builtin_prefetch(data + i + kWordsAhead);  // past the end it does nothing
        for (int j = 0; j < 8; ++j) sums[j] += data[i + j];
    }
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}

}  // namespace pellucid
