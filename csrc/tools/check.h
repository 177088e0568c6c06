// What the parts of kernel_check share. All numbers lie in memory of exactly their size, so that the address sanitizer
// sees any access past them.

#pragma once

#include <cstdarg>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels.h"

namespace pellucid::check {

inline int failures = 0;
inline std::mt19937 generator(0);

inline float random_float() { return std::normal_distribution<float>()(generator); }

inline std::vector<float> random_floats(int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) x = random_float();
    v.shrink_to_fit();
    return v;
}

template <class T>
std::vector<T> random_ints(int64_t count, int low, int high) {
    std::vector<T> v(static_cast<size_t>(count));
    for (T& x : v) x = static_cast<T>(std::uniform_int_distribution<int>(low, high)(generator));
    return v;
}

// Counts a failure and says what it is, unless `good`.
[[gnu::format(printf, 2, 3)]] void expect(bool good, const char* format, ...);
// All of `found` within `tolerance` of `expected`, relative to the largest.
void expect_close(const char* what, const std::vector<float>& found, const std::vector<double>& expected,
                  double tolerance);

PackedWeight random_weight(int64_t n, int64_t k, const WeightFormat& format);

void check_products();
void check_row_ops();
void check_attention();
void check_program();
void check_experts();
void check_sampling();

}  // namespace pellucid::check
