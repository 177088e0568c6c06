// Mixtures of experts of every format over odd shapes: each step's rows must have the bits of a row alone on one thread,
// which are compared with a plain evaluation.

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "program.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

struct Case {
    const char* name;
    WeightFormat gate_up, down;
    int64_t experts, top_k, hidden, inner;
    bool normalise, shared;
    double tolerance;
};

// Rows that a step may have: the first half are noise; of the second all rows choose the same experts. What is not
// among the first `scores` columns is x.
struct Rows {
    static constexpr int64_t kCount = 260;
    std::vector<float> table;
    int64_t columns, scores;

    Rows(const Case& c) : columns(c.hidden + c.experts + (c.shared ? c.hidden + 1 : 0)), scores(c.experts + c.shared) {
        table = random_floats(kCount * columns);
        for (int64_t r = kCount / 2; r < kCount; ++r)
            for (int64_t e = 0; e < c.experts; ++e) table[r * columns + e] = e < c.top_k ? 3.0f : 0.0f;
        table[2 * columns] = NAN;  // this row's numbers mean nothing, and touch no other's
        for (int64_t e = 0; e < c.experts; ++e) table[3 * columns + e] = NAN;
    }
    const float* scores_of(int64_t row) const { return &table[row * columns]; }
    const float* x_of(int64_t row) const { return scores_of(row) + scores; }
};

class Mixture {
public:
    Mixture(const Case& c, const Rows& rows, const ExpertWeights& weights, uint32_t threads)
        : hidden_(c.hidden), team_(threads) {
        const auto buffer = [&](int64_t columns) { return Columns{program_.add_buffer(columns), 0, columns}; };
        const Columns all = buffer(rows.columns), out = buffer(c.hidden);
        program_.embedding(all, pack_float(Rows::kCount, rows.columns, rows.table.data()), 1.0f, Embedding::Index::Tokens);
        const Columns scores{all.buffer, 0, rows.scores}, x{all.buffer, rows.scores, c.hidden};
        const Columns shared = c.shared ? Columns{all.buffer, x.begin + c.hidden, c.hidden} : Columns{};
        program_.experts(out, x, scores, shared, weights);
        program_.finalize(out, Rows::kCount);
        program_.poison();
        // Columns that are not rounded, on one row: an expert that it did not choose has none.
        std::vector<float> ignored(static_cast<size_t>(c.hidden));
        const int64_t row = 1, zero = 0;
        program_.learn_outliers(inputs(&row, 1, &zero, &zero), ignored.data());
        program_.poison();
    }

    std::vector<float> step(const std::vector<int64_t>& ids) {
        const auto n = static_cast<int64_t>(ids.size());
        std::vector<float> out(static_cast<size_t>(n * hidden_), NAN);
        std::vector<int64_t> zeros(ids.size(), 0), sampled(ids.size());
        std::iota(sampled.begin(), sampled.end(), 0);
        program_.run(team_, inputs(ids.data(), n, zeros.data(), sampled.data()), out.data());
        return out;
    }

private:
    static StepInputs inputs(const int64_t* ids, int64_t n, const int64_t* zeros, const int64_t* sampled) {
        return {.rows = n, .num_sampled = n, .token_ids = ids, .positions = zeros, .slots = zeros, .sampled = sampled};
    }

    int64_t hidden_;
    Program program_;
    ThreadTeam team_;
};

std::vector<double> times(const PackedWeight& w, const std::vector<double>& x) {
    std::vector<double> y;
    std::vector<float> row(static_cast<size_t>(w.k));
    for (int64_t c = 0; c < w.n; ++c) {
        dequantize_row(w, c, row.data());
        y.push_back(std::inner_product(row.begin(), row.end(), x.begin(), 0.0));
    }
    return y;
}

std::vector<double> plain(const Case& c, const Rows& rows, const ExpertWeights& w, int64_t row) {
    const float *const scores = rows.scores_of(row), *const x = rows.x_of(row);
    std::vector<int64_t> order(static_cast<size_t>(c.experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    double sum = 0;
    for (int64_t i = 0; i < (c.normalise ? c.top_k : c.experts); ++i) sum += std::exp(double{scores[order[i]]});
    std::vector<double> total(static_cast<size_t>(c.hidden), 0.0);
    if (c.shared)
        for (int64_t i = 0; i < c.hidden; ++i)
            total[i] = x[c.hidden + i] / (1 + std::exp(-double{scores[c.experts]}));
    for (int64_t i = 0; i < c.top_k; ++i) {
        const int64_t e = order[i];
        const std::vector<double> input(x, x + c.hidden);
        std::vector<double> inner = times(w.gate[e], input);
        const std::vector<double> up = times(w.up[e], input);
        for (size_t j = 0; j < inner.size(); ++j) inner[j] *= up[j] / (1 + std::exp(-inner[j]));
        const std::vector<double> part = times(w.down[e], inner);
        for (int64_t j = 0; j < c.hidden; ++j) total[j] += std::exp(double{scores[e]}) / sum * part[j];
    }
    return total;
}

ExpertWeights random_experts(const Case& c) {
    ExpertWeights w;
    for (int64_t e = 0; e < c.experts; ++e) {
        w.gate.push_back(random_weight(c.inner, c.hidden, c.gate_up));
        w.up.push_back(random_weight(c.inner, c.hidden, c.gate_up));
        w.down.push_back(random_weight(c.hidden, c.inner, c.down));
    }
    w.activation = {.kind = ActivationKind::SiluMul};
    w.top_k = c.top_k;
    w.normalise = c.normalise;
    return w;
}

bool same_bits(const float* a, const float* b, int64_t n) {
    return std::equal(a, a + n, b, [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

void check_case(const Case& c) {
    const Rows rows(c);
    const ExpertWeights weights = random_experts(c);
    Mixture alone(c, rows, weights, 1);
    std::vector<std::vector<float>> expected;
    for (int64_t row = 0; row < Rows::kCount; ++row) expected.push_back(alone.step({row}));
    for (const int64_t row : {0, 1, 7, 200}) expect_close(c.name, expected[row], plain(c, rows, weights, row), c.tolerance);
    for (const uint32_t threads : {1u, 3u}) {
        Mixture together(c, rows, weights, threads);
        for (const int64_t count : {2, 31, 130, 260}) {
            std::vector<int64_t> ids(static_cast<size_t>(count));
            for (int64_t i = 0; i < count; ++i) ids[i] = (7 * i + count) % Rows::kCount;
            const std::vector<float> found = together.step(ids);
            for (int64_t i = 0; i < count; ++i)
                expect(same_bits(&found[i * c.hidden], expected[ids[i]].data(), c.hidden),
                       "%s: row %ld has other bits among %ld on %u threads", c.name, long(ids[i]), long(count), threads);
        }
    }
}

}  // namespace

void check_experts() {
    const WeightFormat wide{.kind = WeightKind::Float32};
    const WeightFormat narrow{.kind = WeightKind::BFloat16, .round_activations = true};
    const WeightFormat eight{.kind = WeightKind::Int8, .group = 32, .zero = 128};
    const WeightFormat four{.kind = WeightKind::Int4, .scale_kind = ScaleKind::Float, .group = 32, .has_minima = true};
    check_case({"float32 experts", wide, wide, 5, 2, 41, 27, true, false, 1e-5});
    check_case({"bfloat16 experts", narrow, narrow, 4, 4, 64, 34, false, true, 0.03});
    check_case({"8-bit experts", eight, eight, 9, 3, 96, 32, false, true, 0.05});
    check_case({"4-bit experts", four, eight, 16, 1, 64, 96, true, false, 0.05});
    check_case({"8-bit and float32 experts", eight, wide, 1, 1, 64, 70, true, true, 0.05});
}

}  // namespace pellucid::check
