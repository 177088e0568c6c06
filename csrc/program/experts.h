// A mixture of experts (Shazeer et al. 2017): a row is worked on by the few gated MLPs that its scores choose.

#pragma once

#include <vector>

#include "program/instruction.h"

namespace pellucid {

constexpr int64_t kMaxExperts = 1024;

// Expert e is gate[e] and up[e], [inner, hidden] each, and down[e], [hidden, inner].
struct ExpertWeights {
    std::vector<PackedWeight> gate, up, down;
    Activation activation;  // a gated one
    int64_t top_k = 1;      // experts that a row chooses
    bool normalise = false;  // whether a row's shares add up to one over the chosen experts, not over all

    int64_t count() const { return static_cast<int64_t>(gate.size()); }
    int64_t hidden() const { return gate[0].k; }
    int64_t inner() const { return gate[0].n; }
    // Throws std::invalid_argument if these are no experts of one layer.
    void check() const;
};

// out = sum over the chosen experts, in ascending order, of share * expert(x), added to sigmoid(score) * shared where there
// is what a shared expert gave. Scores are those of the experts, then that one. Equal scores: the lower expert is chosen.
//
// Rows are brought together by expert, so that a product sees all that chose it side by side. Which others these are
// changes no bit of a row: its products are chains of operations of their own, and it adds them up in the experts' order.
class Experts final : public Instruction {
public:
    Experts(ExpertWeights weights, int first_workspace);

    // Floats that the four workspaces have for each row of the step.
    static std::vector<int64_t> workspace_columns(const ExpertWeights& weights);

    const char* name() const override { return "experts"; }
    void visit_reads(const Visitor& visit) override;
    void visit_writes(const Visitor& visit) override;
    uint32_t num_stages() const override { return kNumStages; }
    uint32_t num_tasks(const Step& step, uint32_t stage) const override;
    void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const override;
    int64_t scratch_floats() const override;

    // While energies are gathered, those of what each expert's down product reads add up here, experts one after another.
    void learn_outliers();
    void use_outliers();

    Columns out, x, scores;  // x is all of a quantised buffer if gate and up are quantised
    Columns shared;          // optional

private:
    enum Stage : uint32_t { kRoute, kGroup, kGather, kInner, kDown, kNumStages };
    struct Choice {
        int32_t expert;
        float share;
    };
    struct Place {  // of a row, among those of an expert
        int32_t row;
        float share;
    };
    struct Block {  // of an expert's rows, counted over all experts
        int64_t begin, end;
        int64_t rows() const { return end - begin; }
    };

    void route(const Step& step, int64_t row) const;
    void group(const Step& step) const;
    void gather(const Step& step, int64_t place) const;
    void compute_inner(const Step& step, uint32_t task, const Worker& worker) const;
    void inner_part(const Step& step, int64_t expert, Block rows, int64_t begin, int64_t end, const Worker& worker) const;
    void compute_down(const Step& step, uint32_t task, const Worker& worker) const;
    void start_sum(const Step& step, int64_t row, int64_t begin, int64_t count) const;

    bool takes_integers() const { return weights_.gate[0].format.quantised(); }
    bool gives_integers() const { return weights_.down[0].format.quantised(); }
    template <class T>
    T* workspace(const Step& step, const Columns& columns) const {
        return reinterpret_cast<T*>(step.floats(columns).data);
    }
    Choice* choices(const Step& step) const { return workspace<Choice>(step, choices_); }
    Place* places(const Step& step) const { return workspace<Place>(step, places_); }
    QuantRows gathered(const Step& step) const;
    QuantRows inner_integers(const Step& step, int64_t expert) const;
    int64_t row_blocks(int64_t expert) const;
    Block row_block(int64_t expert, int64_t index) const;
    int64_t count(int64_t expert) const { return first_[expert + 1] - first_[expert]; }
    int64_t down_tasks(const Step& step) const;

    ExpertWeights weights_;
    Columns choices_, places_, gathered_, inner_;
    std::vector<Outliers> outliers_;        // of each expert's inner columns
    mutable std::vector<double> energies_;  // empty but while learning
    // Of the run, which a program has one of at a time: where each expert's rows begin among the places, and its tasks of
    // the inner products. The last number is that of all.
    mutable std::vector<int64_t> first_, first_task_;
};

}  // namespace pellucid
