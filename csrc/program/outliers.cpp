// Which columns of the inputs of quantised products are outliers.

#include <algorithm>
#include <numeric>

#include "program.h"

namespace pellucid {

namespace {

// At most one in 32: products pay for each of them.
Outliers largest(const std::vector<double>& energy) {
    std::vector<int32_t> columns(energy.size());
    std::iota(columns.begin(), columns.end(), 0);
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) { return energy[a] > energy[b]; });
    columns.resize(std::min<size_t>(Outliers::kMax, energy.size() / kActivationGroup));
    std::sort(columns.begin(), columns.end());
    Outliers outliers{.count = static_cast<int64_t>(columns.size())};
    std::copy(columns.begin(), columns.end(), outliers.columns);
    return outliers;
}

}  // namespace

void Program::learn_outliers(const StepInputs& inputs, float* out) {
    Energies energies;
    for (Buffer& buffer : buffers_) {
        buffer.outliers = {};
        energies.of_buffer.emplace_back(buffer.kind == BufferKind::Quantised ? buffer.columns : 0);
    }
    ThreadTeam alone(1);  // so that sums have one order
    execute(alone, inputs, {.out = out, .energies = &energies});
    for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i].outliers = largest(energies.of_buffer[i]);
    // Copies of rows have the outliers of what they are copies of.
    for (const auto& instruction : list_)
        if (const auto* gather = dynamic_cast<const Gather*>(instruction.get()))
            buffers_[gather->out.buffer].outliers = buffers_[gather->x.buffer].outliers;
}

}  // namespace pellucid
