#include "program/outliers.h"

#include <algorithm>
#include <numeric>

#include "program.h"
#include "program/experts.h"

namespace pellucid {

Outliers largest_columns(const double* energies, int64_t count) {
    std::vector<int32_t> columns(static_cast<size_t>(count));
    std::iota(columns.begin(), columns.end(), 0);
    std::stable_sort(columns.begin(), columns.end(), [&](int32_t a, int32_t b) { return energies[a] > energies[b]; });
    columns.resize(static_cast<size_t>(std::min(Outliers::kMax, count / kActivationGroup)));
    while (!columns.empty() && energies[columns.back()] == 0.0) columns.pop_back();
    std::sort(columns.begin(), columns.end());
    Outliers outliers{.count = static_cast<int64_t>(columns.size())};
    std::copy(columns.begin(), columns.end(), outliers.columns);
    return outliers;
}

void Program::learn_outliers(const StepInputs& inputs, float* out) {
    Energies energies;
    for (Buffer& buffer : buffers_) {
        buffer.outliers = {};
        energies.of_buffer.emplace_back(buffer.kind == BufferKind::Quantised ? buffer.columns : 0);
    }
    const auto for_experts = [&](auto&& work) {
        for (const auto& instruction : list_)
            if (auto* experts = dynamic_cast<Experts*>(instruction.get())) work(*experts);
    };
    for_experts([](Experts& experts) { experts.learn_outliers(); });
    ThreadTeam alone(1);  // so that sums have one order
    execute(alone, inputs, {.out = out, .energies = &energies});
    for_experts([](Experts& experts) { experts.use_outliers(); });
    for (size_t i = 0; i < buffers_.size(); ++i) {
        const std::vector<double>& energy = energies.of_buffer[i];
        buffers_[i].outliers = largest_columns(energy.data(), static_cast<int64_t>(energy.size()));
    }
    // Copies of rows have the outliers of what they are copies of.
    for (const auto& instruction : list_)
        if (const auto* gather = dynamic_cast<const Gather*>(instruction.get()))
            buffers_[gather->out.buffer].outliers = buffers_[gather->x.buffer].outliers;
}

}  // namespace pellucid
