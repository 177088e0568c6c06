// Sampling, described in sampling.h.

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pellucid {
namespace {

int64_t size(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

// Bound with .noconvert(), so that it is the caller's own memory.
template <class T, int kDimensions>
using Dense = nb::ndarray<T, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;

Logits checked(const Dense<float, 2>& logits) {
    require(size(logits, 1) >= 1 && size(logits, 1) <= kMaxVocab, "logits have no columns, or more than 2^24");
    return {logits.data(), size(logits, 0), size(logits, 1)};
}

void check_ids(const char* name, const int64_t* ids, int64_t count, int64_t limit) {
    bool within = true;
    for (int64_t i = 0; i < count; ++i) within &= static_cast<uint64_t>(ids[i]) < static_cast<uint64_t>(limit);
    require(within, std::string(name) + " are not all from 0 to " + std::to_string(limit - 1));
}

void sample_rows(ThreadTeam& team, Dense<float, 2> logits, Input<int64_t, 1> rows, Input<float, 1> temperature,
                 Input<int64_t, 1> top_k, Input<float, 1> top_p, Input<float, 1> min_p, Input<int64_t, 1> seed,
                 Input<int64_t, 1> position, Dense<int64_t, 1> token_ids, Dense<bool, 1> failed) {
    const Logits in = checked(logits);
    const int64_t count = size(temperature, 0);
    require(size(rows, 0) == in.rows, "rows and logits differ in length");
    check_ids("rows", rows.data(), in.rows, count);
    const bool equal = size(top_k, 0) == count && size(top_p, 0) == count && size(min_p, 0) == count &&
                       size(seed, 0) == count && size(position, 0) == count;
    require(equal, "the columns differ in length");
    require(size(token_ids, 0) == in.rows && size(failed, 0) == in.rows, "outputs and logits differ in length");
    const SamplingColumns columns{rows.data(),  temperature.data(), top_k.data(),   top_p.data(),
                                  min_p.data(), seed.data(),        position.data()};
    const nb::gil_scoped_release release;
    sample(team, in, columns, token_ids.data(), failed.data());
}

void logprobs_of(ThreadTeam& team, Dense<float, 2> logits, Input<int64_t, 1> token_ids, Dense<float, 1> chosen,
                 Dense<int64_t, 1> rank, Dense<int64_t, 2> top_ids, Dense<float, 2> top) {
    const Logits in = checked(logits);
    const int64_t num_top = size(top_ids, 1);
    require(size(token_ids, 0) == in.rows, "token_ids and logits differ in length");
    check_ids("token_ids", token_ids.data(), in.rows, in.vocab);
    require(num_top <= in.vocab, "top_ids has more columns than the logits");
    const bool equal = size(chosen, 0) == in.rows && size(rank, 0) == in.rows && size(top_ids, 0) == in.rows &&
                       size(top, 0) == in.rows && size(top, 1) == num_top;
    require(equal, "outputs and logits differ in length");
    const LogprobsOut out{chosen.data(), rank.data(), top_ids.data(), top.data(), num_top};
    const nb::gil_scoped_release release;
    logprobs(team, in, token_ids.data(), out);
}

void penalise_rows(ThreadTeam& team, Dense<float, 2> logits, const std::vector<int64_t>& rows,
                   const std::vector<Input<int64_t, 1>>& token_ids, const std::vector<Input<float, 1>>& generated,
                   const std::vector<std::tuple<float, float, float>>& weights) {
    const Logits in = checked(logits);
    const size_t count = rows.size();
    require(token_ids.size() == count && generated.size() == count && weights.size() == count,
            "the penalties differ in length");
    std::vector<bool> seen(in.rows);
    std::vector<RowPenalties> penalties;
    for (size_t i = 0; i < count; ++i) {
        require(rows[i] >= 0 && rows[i] < in.rows && !seen[rows[i]], "rows are not distinct rows of the logits");
        seen[rows[i]] = true;
        const int64_t entries = size(token_ids[i], 0);
        require(size(generated[i], 0) == entries, "token_ids and generated differ in length");
        check_ids("token_ids", token_ids[i].data(), entries, in.vocab);
        const auto [repetition, frequency, presence] = weights[i];
        penalties.push_back(
            {rows[i], token_ids[i].data(), generated[i].data(), entries, repetition, frequency, presence});
    }
    const nb::gil_scoped_release release;
    penalise(team, in, penalties);
}

}  // namespace

void bind_sampling(nb::module_& m) {
    m.def("sample", &sample_rows, "team"_a, "logits"_a.noconvert(), "rows"_a, "temperature"_a, "top_k"_a, "top_p"_a,
          "min_p"_a, "seed"_a, "position"_a, "token_ids"_a.noconvert(), "failed"_a.noconvert(),
          "A token for each row of logits [n, vocab], row i of which chooses as row rows[i] of the columns says.");
    m.def("logprobs", &logprobs_of, "team"_a, "logits"_a.noconvert(), "token_ids"_a, "chosen"_a.noconvert(),
          "rank"_a.noconvert(), "top_ids"_a.noconvert(), "top"_a.noconvert(),
          "log_softmax of each row of logits [n, vocab] at its token and at the likeliest ones [n, k].");
    m.def("penalise", &penalise_rows, "team"_a, "logits"_a.noconvert(), "rows"_a, "token_ids"_a, "generated"_a,
          "weights"_a, "Penalise, in place, the tokens of each of the rows by (repetition, frequency, presence).");
}

}  // namespace pellucid
