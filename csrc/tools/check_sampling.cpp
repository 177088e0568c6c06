// Sampling over odd vocabularies, rows and teams.

#include <algorithm>
#include <cmath>
#include <memory>

#include "sampling.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

void expect(bool condition, const char* what, const Logits& logits) {
    check::expect(condition, "sampling %ld x %ld: %s", long(logits.rows), long(logits.vocab), what);
}

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

template <class T>
std::vector<T> choices(int64_t count, std::initializer_list<T> of) {
    std::vector<T> v(static_cast<size_t>(count));
    for (T& x : v) x = of.begin()[random_int(0, static_cast<int>(of.size()) - 1)];
    return v;
}

void check_tokens(ThreadTeam& team, const Logits& logits) {
    const int64_t n = logits.rows;
    const auto temperature = choices<float>(n, {0.0f, 1e-5f, 1.0f}), top_p = choices<float>(n, {1.0f, 0.9f, 1e-9f}),
               min_p = choices<float>(n, {0.0f, 0.1f, 1.0f});
    const auto top_k = choices<int64_t>(n, {0, 1, 3, logits.vocab / 2, logits.vocab, 1 << 30});
    std::vector<int64_t> rows(n), numbers(n), tokens(n);
    for (int64_t i = 0; i < n; ++i) rows[i] = n - 1 - i, numbers[i] = i;
    const std::unique_ptr<bool[]> failed(new bool[n]);
    sample(team, logits,
           {rows.data(), temperature.data(), top_k.data(), top_p.data(), min_p.data(), numbers.data(), numbers.data()},
           tokens.data(), failed.get());
    for (int64_t i = 0; i < n; ++i) {
        const float* x = logits.row(i);
        const int64_t best = std::max_element(x, x + logits.vocab) - x;
        expect(!failed[i] && tokens[i] >= 0 && tokens[i] < logits.vocab && x[tokens[i]] > -INFINITY, "token", logits);
        if (temperature[rows[i]] == 0.0f) expect(tokens[i] == best, "the largest", logits);
        if (min_p[rows[i]] == 1.0f) expect(x[tokens[i]] == x[best], "min_p", logits);
    }
}

void check_logprobs(ThreadTeam& team, const Logits& logits, int64_t num_top) {
    const int64_t n = logits.rows;
    std::vector<int64_t> tokens(n), rank(n), ids(n * num_top);
    std::vector<float> chosen(n), top(n * num_top);
    for (int64_t& token : tokens) token = random_int(0, static_cast<int>(logits.vocab) - 1);
    logprobs(team, logits, tokens.data(), {chosen.data(), rank.data(), ids.data(), top.data(), num_top});
    for (int64_t i = 0; i < n; ++i) {
        const float* x = logits.row(i);
        double sum = 0.0;
        for (int64_t v = 0; v < logits.vocab; ++v) sum += std::exp(double{x[v]});
        const double expected = x[tokens[i]] - std::log(sum);
        expect(chosen[i] == expected || std::fabs(chosen[i] - expected) < 1e-4, "log probability", logits);
        for (int64_t k = 1; k < num_top; ++k) {
            const int64_t a = ids[i * num_top + k - 1], b = ids[i * num_top + k];
            expect(x[a] > x[b] || (x[a] == x[b] && a < b), "order", logits);
        }
    }
}

void check_penalties(ThreadTeam& team, const Logits& logits) {
    std::vector<int64_t> ids(static_cast<size_t>(logits.vocab));
    for (int64_t i = 0; i < logits.vocab; ++i) ids[i] = i;
    const std::vector<float> generated(ids.size(), 2.0f);
    std::vector<RowPenalties> penalties;
    std::vector<float> expected(logits.data, logits.data + logits.rows * logits.vocab);
    for (int64_t row = 0; row < logits.rows; ++row)
        penalties.push_back({row, ids.data(), generated.data(), logits.vocab, 2.0f, 0.5f, 0.25f});
    for (float& x : expected) x = (x > 0 ? x / 2.0f : x * 2.0f) - 1.25f;
    penalise(team, logits, penalties);
    for (size_t i = 0; i < expected.size(); ++i)
        expect(std::fabs(logits.data[i] - expected[i]) < 1e-5f || std::isinf(expected[i]), "penalty", logits);
}

}  // namespace

void check_sampling() {
    for (uint32_t threads : {1, 2, 5}) {
        ThreadTeam team(threads);
        for (int64_t vocab : {1, 3, 16, 127, 128, 129, 1000, 9000})
            for (int64_t rows : {0, 1, 2, 7}) {
                std::vector<float> x(static_cast<size_t>(rows * vocab));
                for (float& v : x) v = random_int(0, 9) == 0 ? -INFINITY : static_cast<float>(random_int(-40, 40)) / 4;
                for (int64_t row = 0; row < rows; ++row) x[row * vocab] = 1.0f;
                const Logits logits{x.data(), rows, vocab};
                check_tokens(team, logits);
                for (int64_t num_top : {int64_t{0}, int64_t{1}, vocab / 2, vocab})
                    check_logprobs(team, logits, num_top);
                check_penalties(team, logits);
            }
    }
}

}  // namespace pellucid::check
