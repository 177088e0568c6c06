// What this CPU could do at best, to hold kernels against: products whose operands never leave the registers.

#pragma once

#include <cstdint>

namespace pellucid {

enum class Arithmetic : uint8_t { Int8, BFloat16, Float32 };

// Multiplies and adds for `rounds` rounds with the widest instructions that the active instruction set's kernels use for
// this arithmetic. Returns how many operations that was, a product and its sum counting as two; 0 if there are none.
int64_t multiply_in_registers(Arithmetic arithmetic, int64_t rounds);

#if defined(__aarch64__)
int64_t multiply_int8_neon(int64_t rounds);
int64_t multiply_float_neon(int64_t rounds);
#endif

// Reads all of data[0 .. count) and returns something that depends on it.
uint64_t read_all(const uint64_t* data, int64_t count);

}  // namespace pellucid
