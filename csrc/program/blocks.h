// How products are cut into blocks of rows and columns, those of linear.cpp as those of experts.cpp.

#pragma once

#include <cstdint>

namespace pellucid {

constexpr int64_t kBlockRows = 96;     // their activations stay in the L2 cache while columns pass by
constexpr int64_t kBlockColumns = 32;  // blocks are multiples of this, which share what they load of the rows
constexpr int64_t kPartColumns = 256;  // at a time, between a product and what is done with it
constexpr int64_t kPartFloats = kBlockRows * kPartColumns;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pellucid
