// Sampling's passes over a row of logits (sampling_ops.h). Included after a simd header.

#pragma once

#include <cstring>

#include "../sampling_ops.h"
#include "vector_math.h"

namespace pellucid {
namespace {

constexpr float kInfinity = __builtin_inff();

// Sums in 16 columns that are added pairwise at the end, lane i to lane i + 8, + 4, + 2, + 1: the same additions in the
// same order for every vector width.
class ColumnSum {
public:
    ColumnSum() {
        for (Float& part : parts_) part = spread(0.0f);
    }
    void add_at(int64_t i, Float v) { parts_[i / kLanes % kParts] = add(parts_[i / kLanes % kParts], v); }
    float total() {
        for (int half = kParts / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i) parts_[i] = add(parts_[i], parts_[i + half]);
        return sum_of_lanes(parts_[0]);
    }

private:
    static constexpr int kParts = 16 / kLanes;
    Float parts_[kParts];
};

// Calls f(group, its 128 logits).
template <class F>
inline void for_groups(const float* x, int64_t n, int64_t begin, int64_t end, F f) {
    for (int64_t g = begin; g < end; ++g) {
        const int64_t left = n - g * kGroup;
        if (left >= kGroup) {
            f(g, x + g * kGroup);
        } else {
            float padded[kGroup];
            for (int64_t i = 0; i < kGroup; ++i) padded[i] = i < left ? x[g * kGroup + i] : -kInfinity;
            f(g, padded);
        }
    }
}

void group_peaks(const float* x, int64_t n, int64_t begin, int64_t end, float* peaks) {
    const Float zero = spread(0.0f), lowest = spread(-__FLT_MAX__);
    for_groups(x, n, begin, end, [&](int64_t g, const float* group) {
        Float largest = spread(-kInfinity), check = zero;
        for (int64_t i = 0; i < kGroup; i += kLanes) {
            const Float v = load(group + i);
            largest = max(v, largest);
            // 0 * v is NaN for NaN and +inf. -inf is no fault; `max` returns its second argument if that is NaN.
            check = fma(max(lowest, v), zero, check);
        }
        peaks[g] = sum_of_lanes(check) == 0.0f ? max_of_lanes(largest) : __builtin_nanf("");
    });
}

void weigh(const float* x, int64_t n, int64_t begin, int64_t end, float best, float temperature, float floor,
           const float* peaks, float* weights, float* masses) {
    const Float zero = spread(0.0f), top = spread(best), divisor = spread(temperature), least = spread(floor);
    for_groups(x, n, begin, end, [&](int64_t g, const float* group) {
        if (peaks[g] < floor) {
            masses[g] = 0.0f;
            return;
        }
        ColumnSum sum;
        for (int64_t i = 0; i < kGroup; i += kLanes) {
            const Float v = load(group + i);
            const Float weight = if_less(v, least, zero, exp(div(sub(v, top), divisor)));
            store(weights + g * kGroup + i, weight);
            sum.add_at(i, weight);
        }
        masses[g] = sum.total();
    });
}

void masses_above(const float* weights, const float* masses, int64_t groups, float bound, float* above) {
    const Float zero = spread(0.0f), least = spread(bound);
    for (int64_t g = 0; g < groups; ++g) {
        if (masses[g] == 0.0f) {
            above[g] = 0.0f;
            continue;
        }
        ColumnSum sum;
        for (int64_t i = 0; i < kGroup; i += kLanes) {
            const Float weight = load(weights + g * kGroup + i);
            sum.add_at(i, if_less(least, weight, weight, zero));
        }
        above[g] = sum.total();
    }
}

int64_t count_at_least(const float* x, int64_t n, float bound) {
    constexpr int kChains = 4;  // an addition takes cycles
    const Float zero = spread(0.0f), one = spread(1.0f), least = spread(bound);
    Float counts[kChains] = {zero, zero, zero, zero};  // exact up to 2^24
    int64_t i = 0;
    for (; i + kChains * kLanes <= n; i += kChains * kLanes)
        for (int c = 0; c < kChains; ++c)
            counts[c] = add(counts[c], if_less(load(x + i + c * kLanes), least, zero, one));
    for_vectors(n - i, [&](int64_t j, int count) {
        const Float found = if_less(load_up_to(x + i + j, count), least, zero, one);
        counts[0] = add(counts[0], keep_lanes(found, 0, count, zero));
    });
    return static_cast<int64_t>(sum_of_lanes(add(add(counts[0], counts[1]), add(counts[2], counts[3]))));
}

}  // namespace
}  // namespace pellucid

#define PELLUCID_SAMPLING_OPS {group_peaks, weigh, masses_above, count_at_least}
