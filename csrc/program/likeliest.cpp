#include "program/likeliest.h"

#include <algorithm>
#include <cmath>

#include "op_table.h"

namespace pellucid {

void Likeliest::look(const float* x, int64_t first, int64_t count) {
    for (int64_t begin = 0; begin < count; begin += kGroup) {
        const int64_t n = std::min(kGroup, count - begin);
        float peak = 0.0f;
        ops().sampling.group_peaks(x + begin, n, 0, 1, &peak);
        broken |= std::isnan(peak);
        if (!(peak >= logit) || peak == -INFINITY) continue;
        const int64_t place = std::find(x + begin, x + begin + n, peak) - x;
        add({peak, first + place, false});
    }
}

void Likeliest::add(const Likeliest& other) {
    broken |= other.broken;
    if (other.logit > logit || (other.logit == logit && other.id < id)) {
        logit = other.logit;
        id = other.id;
    }
}

void LikeliestOfThreads::tell(int64_t rows, int64_t* token_ids, bool* failed) const {
    for (int64_t row = 0; row < rows; ++row) {
        Likeliest best;
        for (size_t at = static_cast<size_t>(row); at < all_.size(); at += static_cast<size_t>(stride_)) best.add(all_[at]);
        failed[row] = !best.found();
        token_ids[row] = best.found() ? best.id : 0;
    }
}

}  // namespace pellucid
