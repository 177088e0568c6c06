// A recorded model of two layers on a team of threads: every step in company must give the bits of a sequence alone,
// token by token on one thread.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>

#include "program.h"
#include "tools/check.h"

namespace pellucid::check {

namespace {

constexpr int64_t kVocab = 650, kHidden = 96, kHeads = 6, kGroups = 2, kHeadDim = 16, kInner = 64, kLayers = 2;
constexpr int64_t kBlockSize = 5, kBlocks = 80, kPositions = 330, kQ = kHeads * kHeadDim, kKV = kGroups * kHeadDim;

struct Pool {
    std::vector<std::byte> k, v;
    std::vector<float> k_scale, v_scale;
    KVPool view;

    explicit Pool(KVType type) {
        const int64_t heads = kBlocks * kBlockSize * kGroups, bytes = heads * kHeadDim * kv_bytes(type);
        k.resize(static_cast<size_t>(bytes), std::byte{0xff});
        v = k;
        if (type == KVType::Int8) k_scale.resize(static_cast<size_t>(heads), NAN);
        v_scale = k_scale;
        view = {.k = k.data(), .v = v.data(), .k_scale = k_scale.data(), .v_scale = v_scale.data(), .type = type,
                .num_blocks = kBlocks, .block_size = kBlockSize, .num_kv_heads = kGroups, .head_dim = kHeadDim,
                .owner = nullptr};
    }
};

FloatTensor ones(int64_t n) {
    auto data = std::make_shared<std::vector<float>>(n, 1.0f);
    return {.data = data->data(), .rows = 1, .columns = n, .owner = data};
}

FloatTensor table(int64_t rows, int64_t columns) {
    auto data = std::make_shared<std::vector<float>>(random_floats(rows * columns));
    return {.data = data->data(), .rows = rows, .columns = columns, .owner = data};
}

struct Weights {
    WeightFormat eight{.kind = WeightKind::Int8, .group = 32, .zero = 128}, wide{.kind = WeightKind::Float32};
    PackedWeight embedding = random_weight(kVocab, kHidden, wide);
    PackedWeight qkv = random_weight(kQ + 2 * kKV, kHidden, eight), out = random_weight(kHidden, kQ, eight);
    PackedWeight gate_up = random_weight(2 * kInner, kHidden, eight), down = random_weight(kHidden, kInner, eight);
    FloatTensor cosine = table(kPositions, kHeadDim / 2), sine = table(kPositions, kHeadDim / 2);
    // Two adapters: all projections at rank 3, and at 20 those of even numbers.
    std::shared_ptr<LoraTable> qkv_lora = lora(kHidden, {kQ, kKV, kKV}), out_lora = lora(kQ, {kHidden});
    std::shared_ptr<LoraTable> gate_up_lora = lora(kHidden, {kInner, kInner}), down_lora = lora(kInner, {kHidden});

    std::shared_ptr<LoraTable> lora(int64_t k, const std::vector<int64_t>& sizes) const {
        auto table = std::make_shared<LoraTable>(k, sizes, 20);
        for (const int32_t adapter : {0, 1}) {
            const int64_t rank = adapter == 0 ? 3 : 20;
            std::vector<PackedWeight> b(sizes.size());
            int64_t ranks = 0;
            for (size_t i = 0; i < b.size(); i += static_cast<size_t>(1 + adapter), ranks += rank)
                b[i] = random_weight(sizes[i], rank, wide);
            table->set(adapter, random_weight(ranks, k, wide), b);
        }
        return table;
    }
};

int32_t adapter_of(int64_t sequence) { return static_cast<int32_t>(sequence % 3) - 1; }

void record(Program& program, const Weights& w, std::vector<Pool>& pools, int64_t max_rows, bool adapts) {
    const auto buffer = [&](int64_t columns) { return Columns{program.add_buffer(columns), 0, columns}; };
    Columns update = buffer(kHidden), residual{};
    program.embedding(update, w.embedding, 1.0f, Embedding::Index::Tokens);
    const auto norm = [&] {
        const Columns x = buffer(kHidden), total = buffer(kHidden);
        program.norm(x, total, update, residual, ones(kHidden), {}, 1e-5f);
        residual = total;
        return x;
    };
    const auto product = [&](const Columns& x, const PackedWeight& weight, std::shared_ptr<LoraTable> lora = nullptr) {
        const Columns y = buffer(weight.n);
        program.linear(y, x, weight, {});
        if (adapts && lora) program.lora(y, x, std::move(lora));
        return y;
    };
    for (Pool& pool : pools) {
        const Columns qkv = product(norm(), w.qkv, w.qkv_lora), turned = buffer(kQ), mixed = buffer(kQ), inner = buffer(kInner);
        const Columns q{qkv.buffer, 0, kQ}, k{qkv.buffer, kQ, kKV}, v{qkv.buffer, kQ + kKV, kKV};
        program.rope_and_write_kv(turned, q, k, v, w.cosine, w.sine, pool.view);
        program.paged_attention(mixed, turned, pool.view, 0.25f, std::nullopt, std::nullopt);
        update = product(mixed, w.out, w.out_lora);
        program.activate(inner, product(norm(), w.gate_up, w.gate_up_lora), {.kind = ActivationKind::SiluMul});
        update = product(inner, w.down, w.down_lora);
    }
    program.finalize(product(norm(), w.embedding), max_rows);
}

// `count` tokens of a sequence from `start` on.
struct Chunk {
    int64_t sequence, start, count;
};

int64_t token(int64_t sequence, int64_t position) { return (7 * sequence + 3 * position * position) % kVocab; }

class Model {
public:
    Model(const Weights& weights, KVType type, uint32_t threads, bool adapts)
        : pools_(kLayers, Pool(type)), adapts_(adapts), team_(threads) {
        for (Pool& pool : pools_) pool = Pool(type);
        record(program_, weights, pools_, 400, adapts);
        program_.poison();
    }

    // Logits of every row.
    std::vector<float> step(const std::vector<Chunk>& chunks) {
        std::vector<int64_t> tokens, positions, slots, sampled;
        std::vector<int32_t> tables, starts{0}, lengths, adapters;
        constexpr int64_t kWidth = kPositions / kBlockSize;
        for (const Chunk& c : chunks) {
            // Sequence s has the blocks s, s + 5, s + 10 ...: never side by side.
            for (int64_t b = 0; b < kWidth; ++b) tables.push_back(static_cast<int32_t>((c.sequence + 5 * b) % kBlocks));
            for (int64_t p = c.start; p < c.start + c.count; ++p) {
                tokens.push_back(token(c.sequence, p));
                positions.push_back(p);
                adapters.push_back(adapter_of(c.sequence));
                slots.push_back((c.sequence + 5 * (p / kBlockSize)) % kBlocks * kBlockSize + p % kBlockSize);
            }
            starts.push_back(static_cast<int32_t>(tokens.size()));
            lengths.push_back(static_cast<int32_t>(c.start + c.count));
        }
        sampled.resize(tokens.size());
        std::iota(sampled.begin(), sampled.end(), 0);
        std::vector<float> out(tokens.size() * kVocab);
        const auto rows = static_cast<int64_t>(tokens.size());
        const StepInputs inputs{.rows = rows, .num_sequences = static_cast<int64_t>(chunks.size()), .table_width = kWidth,
                      .num_sampled = rows, .token_ids = tokens.data(), .positions = positions.data(),
                      .slots = slots.data(), .block_tables = tables.data(), .query_start = starts.data(),
                      .seq_lens = lengths.data(), .sampled = sampled.data(),
                      .adapters = adapts_ ? adapters.data() : nullptr};
        program_.run(team_, inputs, out.data());
        check_likeliest(inputs, out);
        return out;
    }

private:
    // The same step once more, without its logits.
    void check_likeliest(const StepInputs& inputs, const std::vector<float>& logits) {
        std::vector<int64_t> ids(inputs.rows);
        const auto failed = std::make_unique<bool[]>(inputs.rows);
        program_.find_likeliest(team_, inputs, ids.data(), failed.get());
        for (int64_t row = 0; row < inputs.rows; ++row) {
            const float* const x = logits.data() + row * kVocab;
            const int64_t expected = std::max_element(x, x + kVocab) - x;
            expect(ids[row] == expected && !failed[row], "likeliest of row %ld is %ld, expected %ld", long(row),
                   long(ids[row]), long(expected));
        }
    }

    std::vector<Pool> pools_;
    bool adapts_;
    Program program_;
    ThreadTeam team_;
};

// With `adapts` some sequences have an adapter in company; alone, those without one run a program that knows of none.
void check_type(const char* name, KVType type, const Weights& weights, bool adapts = false) {
    // Sequences 0 to 4 share no block while each is shorter than 16 blocks of 5.
    const std::vector<std::vector<Chunk>> steps = {{{0, 0, 70}, {1, 0, 1}},
                                                   {{1, 1, 33}, {0, 70, 1}, {2, 0, 7}},
                                                   {{2, 7, 1}, {0, 71, 1}, {1, 34, 1}, {3, 0, 60}},
                                                   {}};
    Model together(weights, type, 3, adapts);
    std::vector<std::vector<float>> rows(5);
    for (const auto& chunks : steps) {
        const std::vector<float> out = together.step(chunks);
        auto from = out.begin();
        for (const Chunk& c : chunks) {
            rows[c.sequence].insert(rows[c.sequence].end(), from, from + c.count * kVocab);
            from += c.count * kVocab;
        }
    }
    for (int64_t s = 0; s < 4; ++s) {
        Model alone(weights, type, 1, adapts && adapter_of(s) >= 0);
        const int64_t length = static_cast<int64_t>(rows[s].size()) / kVocab;
        std::vector<float> found;
        for (int64_t p = 0; p < length; ++p) {
            const std::vector<float> out = alone.step({{s, p, 1}});
            found.insert(found.end(), out.begin(), out.end());
        }
        expect(found == rows[s], "%s: sequence %ld of %ld tokens has other logits in company", name, long(s),
               long(length));
        for (const float x : found) {
            if (std::isfinite(x)) continue;
            expect(false, "%s: a logit of sequence %ld is %g", name, long(s), x);
            break;
        }
    }
}

// What threads fetch ahead of attention is every block of every sequence that decodes, once, and nothing else.
void check_listed_blocks() {
    constexpr int32_t kSequences = 14, kWidth = 200, kSize = 8;  // partitions are whole blocks
    std::vector<int32_t> tables, starts{0}, lengths, expected;
    for (int32_t s = 0; s < kSequences; ++s) {
        const int32_t length = 1 + 37 * s * s % 900, queries = s == 3 ? std::min(length, 300) : 1;
        for (int32_t b = 0; b < kWidth; ++b) tables.push_back(s * kWidth + b);
        if (queries == 1)
            for (int32_t b = 0; b * kSize < length; ++b) expected.push_back(s * kWidth + b);
        starts.push_back(starts.back() + queries);
        lengths.push_back(length);
    }
    const StepInputs inputs{.rows = starts.back(), .num_sequences = kSequences, .table_width = kWidth,
                            .block_tables = tables.data(), .query_start = starts.data(), .seq_lens = lengths.data()};
    for (const uint32_t threads : {1u, 2u, 3u, 16u}) {
        AttentionPlan plan;
        plan.shape = {.heads_per_group = 3, .num_groups = kGroups, .head_dim = kHeadDim, .block_size = kSize};
        plan.cut(inputs, threads);
        std::vector<int32_t> found = plan.blocks;
        std::sort(found.begin(), found.end());
        expect(found == expected, "%u threads fetch %zu blocks, expected %zu", threads, found.size(), expected.size());
        expect(plan.first_block.size() == threads + 1 && plan.first_block.back() == int64_t(found.size()),
               "the blocks of %u threads are not all of them", threads);
    }
}

// Rows looked at in pieces, in any order and by several threads, with ties and with what is not a number.
void check_likeliest() {
    constexpr int64_t kRows = 200, kWidth = 700;
    constexpr uint32_t kThreads = 3;
    std::vector<float> x(kRows * kWidth);
    for (float& v : x) v = static_cast<float>(std::rand() % 40);
    for (int64_t i = 0; i < kWidth; ++i) x[i] = -INFINITY;
    x[5 * kWidth + 600] = NAN;
    x[6 * kWidth + 3] = INFINITY;
    x[7 * kWidth + 10] = -INFINITY;
    LikeliestOfThreads looked(kRows, kThreads);
    for (int64_t row = 0; row < kRows; ++row) {
        std::vector<int64_t> cuts{0, kWidth};
        for (int i = 0; i < 4; ++i) cuts.push_back(std::rand() % kWidth);
        std::sort(cuts.begin(), cuts.end());
        for (size_t i = cuts.size() - 1; i > 0; --i)
            looked.at(row, std::rand() % kThreads).look(&x[row * kWidth + cuts[i - 1]], cuts[i - 1], cuts[i] - cuts[i - 1]);
    }
    int64_t ids[kRows];
    bool failed[kRows];
    looked.tell(kRows, ids, failed);
    for (int64_t row = 0; row < kRows; ++row) {
        const bool fails = row == 0 || row == 5 || row == 6;
        const float* const first = &x[row * kWidth];
        const int64_t expected = fails ? 0 : std::max_element(first, first + kWidth) - first;
        expect(failed[row] == fails && ids[row] == expected, "likeliest of row %ld is %ld, expected %ld", long(row),
               long(ids[row]), long(expected));
    }
}

}  // namespace

void check_program() {
    const Weights weights;
    check_likeliest();
    check_listed_blocks();
    check_type("float32 model", KVType::Float32, weights);
    check_type("bfloat16 model", KVType::BFloat16, weights);
    check_type("float16 model", KVType::Float16, weights);
    check_type("int8 model", KVType::Int8, weights);
    check_type("float32 model with adapters", KVType::Float32, weights, true);
    check_type("int8 model with adapters", KVType::Int8, weights, true);
}

}  // namespace pellucid::check
