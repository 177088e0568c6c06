// From rows of float32 logits to tokens and log probabilities, on a thread team: what src/pellucid/sample describes
// and does in torch, without a sort. All arrays are dense and trusted; rows are shared among the threads, and the
// vocabulary too where there are fewer rows than threads. A row's results depend on that row alone, and not on the
// instruction set as long as it has fused multiply-add.

#pragma once

#include <cstdint>
#include <vector>

#include "thread_team.h"

namespace pellucid {

constexpr int64_t kMaxVocab = int64_t{1} << 24;  // counts are floats

struct Logits {
    float* data;  // [rows, vocab]
    int64_t rows;
    int64_t vocab;

    float* row(int64_t index) const { return data + index * vocab; }
};

// How the rows of a batch choose; row i of the logits is row rows[i] of it.
struct SamplingColumns {
    const int64_t* rows;
    const float* temperature;  // 0: greedy, the first of the largest
    const int64_t* top_k;      // below 1: off
    const float* top_p;
    const float* min_p;
    const int64_t* seed;
    const int64_t* position;  // where in its sequence the chosen token will stand
};

// A row without a finite largest logit fails; its token is 0.
void sample(ThreadTeam& team, const Logits& logits, const SamplingColumns& columns, int64_t* token_ids, bool* failed);

struct LogprobsOut {
    float* chosen;     // [rows] of the token chosen
    int64_t* rank;     // [rows] 1 + tokens strictly likelier
    int64_t* top_ids;  // [rows, num_top] best first, the lower id first among equals
    float* top;        // [rows, num_top]
    int64_t num_top;   // at most vocab
};

// log_softmax. All numbers of a row without a finite largest logit are NaN, and its ids mean nothing.
void logprobs(ThreadTeam& team, const Logits& logits, const int64_t* token_ids, const LogprobsOut& out);

// One row's penalties, as `apply_penalties` of sample/penalties.py describes them.
struct RowPenalties {
    int64_t row;
    const int64_t* token_ids;  // [count] distinct
    const float* generated;    // [count] how often each
    int64_t count;
    float repetition, frequency, presence;
};

// In place; no row may occur twice.
void penalise(ThreadTeam& team, const Logits& logits, const std::vector<RowPenalties>& penalties);

}  // namespace pellucid
