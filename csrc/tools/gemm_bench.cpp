// Speed of the products alone: gemm_bench [threads] [model | quantised | float | all].
// All products of a model of SmolLM2-135M's shape as tokens per second, then GB/s of weights and GOP/s per shape.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpu_features.h"
#include "pause.h"
#include "strip_layout.h"

using namespace pellucid;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Threads that all run one function and wait for each other at every barrier, spinning.
class Team {
public:
    explicit Team(int size) : size_(size) {}

    void barrier() {
        const int generation = generation_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            generation_.fetch_add(1, std::memory_order_release);
            return;
        }
        while (generation_.load(std::memory_order_acquire) == generation) pellucid::pause();
    }

    void run(const std::function<void(int)>& work) {
        std::vector<std::thread> threads;
        for (int i = 1; i < size_; ++i) threads.emplace_back(work, i);
        work(0);
        for (auto& t : threads) t.join();
    }

    int size() const { return size_; }

private:
    int size_;
    std::atomic<int> arrived_{0}, generation_{0};
};

PackedWeight random_weight(int64_t n, int64_t k, WeightFormat format) {
    if (format.scale_kind == ScaleKind::Super && k % kSuperGroup != 0) format.scale_kind = ScaleKind::Float;
    std::vector<uint8_t> q(static_cast<size_t>(n * k));
    for (auto& v : q) v = static_cast<uint8_t>(std::rand() & (format.kind == WeightKind::Int4 ? 15 : 255));
    const std::vector<float> scales(static_cast<size_t>(n * k / format.group), 0.0078125f);
    const std::vector<int8_t> subs(scales.size(), 3);
    return pack_quantised(n, k, format,
                          {.q = q.data(),
                           .scales = scales.data(),
                           .minima = scales.data(),
                           .sub_scales = subs.data(),
                           .sub_minima = subs.data(),
                           .super_scales = scales.data(),
                           .super_minima = scales.data()});
}

PackedWeight random_bfloat16(int64_t n, int64_t k, bool round_activations) {
    const std::vector<uint16_t> w(static_cast<size_t>(n * k), 0x3c00);
    return pack_bfloat16(n, k, w.data(), round_activations);
}

struct Activations {
    std::vector<float> x;
    std::vector<std::byte> memory;
    Outliers outliers;
    std::vector<float> y;

    Activations(int64_t rows, int64_t max_k, int64_t max_n)
        : x(static_cast<size_t>(rows * max_k), 0.5f),
          memory(static_cast<size_t>(rows * QuantRows::row_bytes(max_k))),
          y(static_cast<size_t>(rows * max_n)) {
        for (auto& v : x) v = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) - 0.5f;
        for (int32_t i = 0; i < Outliers::kMax; ++i) outliers.columns[outliers.count++] = 50 * i;
        const QuantRows all = quantised(max_k);
        for (int64_t row = 0; row < rows; ++row) quantize(x.data() + row * max_k, 0, max_k, all, row);
    }
    QuantRows quantised(int64_t k) { return {memory.data(), k, &outliers}; }
};

// This thread's share of the columns of one product.
void product(const PackedWeight& w, Activations& a, int64_t rows, int thread, int threads) {
    const int64_t pairs = (strip_count(w.n) + 1) / 2;
    const int64_t begin = pairs * thread / threads * 32, end = std::min(w.n, pairs * (thread + 1) / threads * 32);
    if (w.format.quantised()) return gemm(w, a.quantised(w.k), rows, a.y.data(), w.n, nullptr, begin, end);
    gemm_float(w, a.x.data(), w.k, rows, a.y.data(), w.n, nullptr, begin, end);
}

// Time of one pass over `weights`, split over the team with a barrier after each product: the sum of each product's
// best time over several passes, because whole passes without a disturbance are rare on a busy machine.
double time_pass(Team& team, const std::vector<PackedWeight>& weights, Activations& a, int64_t rows, double budget) {
    std::vector<double> best(weights.size(), 1e9);
    std::atomic<bool> stop{false};
    team.run([&](int thread) {
        const auto start = Clock::now();
        for (int pass = 0; pass < 3 || !stop.load(); ++pass) {
            for (size_t i = 0; i < weights.size(); ++i) {
                team.barrier();
                const auto product_start = Clock::now();
                product(weights[i], a, rows, thread, team.size());
                team.barrier();
                if (thread == 0) best[i] = std::min(best[i], seconds_since(product_start));
            }
            if (thread == 0) stop = seconds_since(start) > budget;
            team.barrier();
        }
    });
    return std::accumulate(best.begin(), best.end(), 0.0);
}

struct Shape {
    int64_t k, n;
};
const std::vector<Shape> kSmolLm2Shapes = {{576, 960}, {576, 576}, {576, 3072}, {1536, 576}, {576, 49152}};
const std::vector<Shape> kQwenShapes = {{896, 1152}, {896, 9728}, {4864, 896}, {1536, 17920}, {8960, 1536}};

void bench_shapes(Team& team, const char* name, const std::vector<Shape>& shapes,
                  const std::function<PackedWeight(int64_t, int64_t)>& make) {
    std::printf("%s\n%14s", name, "k x n");
    constexpr int64_t row_counts[] = {1, 2, 4, 8, 16, 32, 128};
    for (int64_t rows : row_counts) std::printf("  M=%-4ld GB/s GOP/s", long(rows));
    std::printf("\n");
    for (const Shape& shape : shapes) {
        // Copies enough to come from memory, not from a cache, as they do in a model.
        std::vector<PackedWeight> copies{make(shape.n, shape.k)};
        while (copies.size() * copies[0].bytes() < (size_t{96} << 20)) copies.push_back(make(shape.n, shape.k));
        std::printf("%7ld x %-6ld", long(shape.k), long(shape.n));
        for (int64_t rows : row_counts) {
            Activations a(rows, shape.k, shape.n);
            const double t = time_pass(team, copies, a, rows, 0.25) / static_cast<double>(copies.size());
            const double bytes = static_cast<double>(copies[0].bytes());
            const double operations = 2.0 * static_cast<double>(rows * shape.n * shape.k);
            std::printf("%12.1f %6.0f", bytes / t * 1e-9, operations / t * 1e-9);
            std::fflush(stdout);
        }
        std::printf("\n");
    }
}

void bench_model(Team& team) {
    constexpr WeightFormat w4{.kind = WeightKind::Int4, .has_minima = true};
    constexpr WeightFormat w8{.kind = WeightKind::Int8, .zero = 128};
    std::vector<PackedWeight> weights;
    for (int layer = 0; layer < 30; ++layer) {
        weights.push_back(random_weight(960, 576, w4));
        weights.push_back(random_weight(576, 576, w4));
        weights.push_back(random_weight(3072, 576, w4));
        weights.push_back(random_weight(576, 1536, w4));
    }
    const std::vector<PackedWeight> layers = weights;
    weights.push_back(random_weight(49152, 576, w8));
    for (int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
        Activations a(rows, 1536, 49152);
        std::printf("model, batch %3ld: %6.0f tok/s\n", long(rows),
                    static_cast<double>(rows) / time_pass(team, weights, a, rows, 1.0));
        std::fflush(stdout);
    }
    Activations a(512, 1536, 3072);
    std::printf("model, prefill of 512, no lm_head: %6.0f tok/s\n", 512.0 / time_pass(team, layers, a, 512, 2.0));
}

}  // namespace

int main(int argc, char** argv) {
    Team team(argc > 1 ? std::max(1, std::atoi(argv[1])) : 1);
    const std::string what = argc > 2 ? argv[2] : "all";
    std::printf("%s, %d threads\n", isa_name(active_isa()), team.size());
    if (what == "model" || what == "all") bench_model(team);
    if (what == "model") return 0;
    auto bench = [&](const char* name, const std::vector<Shape>& shapes, const WeightFormat& f) {
        bench_shapes(team, name, shapes, [&](int64_t n, int64_t k) { return random_weight(n, k, f); });
    };
    constexpr WeightFormat q4_1{.kind = WeightKind::Int4, .has_minima = true};
    constexpr WeightFormat q8_0{.kind = WeightKind::Int8, .zero = 128};
    constexpr WeightFormat q4_k{.kind = WeightKind::Int4, .scale_kind = ScaleKind::Super, .has_minima = true};
    constexpr WeightFormat q6_k{.kind = WeightKind::Int8, .scale_kind = ScaleKind::Super, .group = 16, .zero = 32};
    if (what == "quantised" || what == "all") {
        bench("Q4_1", kSmolLm2Shapes, q4_1);
        bench("Q8_0", kSmolLm2Shapes, q8_0);
        bench("Q4_K", kQwenShapes, q4_k);
        bench("Q6_K", kQwenShapes, q6_k);
    }
    if (what == "float" || what == "all") {
        bench_shapes(team, "BF16, fp32 arithmetic", kSmolLm2Shapes,
                     [](int64_t n, int64_t k) { return random_bfloat16(n, k, false); });
        bench_shapes(team, "BF16, bf16 arithmetic", kSmolLm2Shapes,
                     [](int64_t n, int64_t k) { return random_bfloat16(n, k, true); });
    }
    return 0;
}
