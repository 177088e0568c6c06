// Low-rank updates of a product's result (Hu et al. 2021, LoRA): y + (x A^T) B^T for each row, with the A and B of the
// adapter that the row has.
//
// Two instructions: the first brings a row down to the adapter's rank, the second back up to the columns of y, and adds.
// Both are cut into groups of rows that have the same adapter, times blocks of columns. Their products are the kernels'
// of float weights, in which a row's result depends on that row alone. A row without an adapter, or with one that has
// nothing for this product, is not touched.

#pragma once

#include <map>

#include "program/instruction.h"

namespace pellucid {

// What one adapter adds to a product whose columns are several projections', side by side.
struct LoraUpdate {
    struct Part {
        int64_t column = 0;      // of y, the first of this projection
        int64_t first_rank = 0;  // its ranks among those of all parts
        PackedWeight b;          // [columns of the projection, its rank]
    };
    PackedWeight a;  // [ranks of all parts, k]
    std::vector<Part> parts;
};

// The updates of one product, by number of the adapter. Changes between runs only.
class LoraTable {
public:
    // `sizes` are the columns of each projection. No part of an update may have a rank above `max_rank`.
    LoraTable(int64_t k, std::vector<int64_t> sizes, int64_t max_rank);

    // `b` has an entry for each projection, without data where the adapter leaves it alone; the ranks of the others
    // together are a's rows. Throws std::invalid_argument.
    void set(int32_t adapter, PackedWeight a, const std::vector<PackedWeight>& b);
    void remove(int32_t adapter) { updates_.erase(adapter); }

    const LoraUpdate* find(int32_t adapter) const {
        const auto found = updates_.find(adapter);
        return found == updates_.end() ? nullptr : &found->second;
    }
    int64_t k() const { return k_; }
    int64_t columns() const { return columns_; }
    int64_t most_ranks() const { return max_rank_ * static_cast<int64_t>(sizes_.size()); }

private:
    int64_t k_, max_rank_, columns_ = 0;
    std::vector<int64_t> sizes_;
    std::map<int32_t, LoraUpdate> updates_;
};

class LoraInstruction : public Instruction {
public:
    uint32_t num_tasks(const Step& step, uint32_t stage) const final;
    void run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const final;

    std::shared_ptr<const LoraTable> table;
    Columns out;

protected:
    // The block's columns begin at `column`.
    virtual void run_block(const Step& step, const LoraUpdate& update, const AdapterGroup& group, int64_t column,
                           float* scratch) const = 0;
    virtual int64_t block_columns() const = 0;
    const AdaptedRows& adapted(const Step& step) const { return step.adapted[sampled]; }

private:
    int64_t num_blocks(const Step& step) const;
};

// low = x A^T. Its rows stand as AdaptedRows lists them.
class LoraDown final : public LoraInstruction {
public:
    const char* name() const override { return "lora_down"; }
    void visit_reads(const Visitor& visit) override { visit(x); }
    void visit_writes(const Visitor& visit) override { visit(out); }
    int64_t scratch_floats() const override { return AdaptedRows::kMaxGroup * table->k(); }

    Columns x;

private:
    void run_block(const Step& step, const LoraUpdate& update, const AdapterGroup& group, int64_t column,
                   float* scratch) const override;
    int64_t block_columns() const override;
    FloatView gather(const Step& step, const AdapterGroup& group, float* scratch) const;
};

// y += low B^T
class LoraUp final : public LoraInstruction {
public:
    const char* name() const override { return "lora_up"; }
    void visit_reads(const Visitor& visit) override;
    void visit_writes(const Visitor& visit) override { visit(out); }
    int64_t scratch_floats() const override;

    Columns low;

private:
    void run_block(const Step& step, const LoraUpdate& update, const AdapterGroup& group, int64_t column,
                   float* scratch) const override;
    int64_t block_columns() const override;
    void add_part(const Step& step, const LoraUpdate::Part& part, const AdapterGroup& group, int64_t begin,
                  int64_t end, float* scratch) const;
};

}  // namespace pellucid
