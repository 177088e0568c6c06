#include "program.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sstream>
#include <stdexcept>

namespace pellucid {

namespace {

constexpr int64_t kLineBytes = 64;

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

void check_all(const char* name, const int64_t* values, int64_t count, int64_t limit) {
    for (int64_t i = 0; i < count; ++i)
        require(values[i] >= 0 && values[i] < limit, std::string(name) + "[" + std::to_string(i) + "] is " +
                                                         std::to_string(values[i]) + ", expected 0 to " +
                                                         std::to_string(limit - 1));
}

int64_t now() {
    using std::chrono::nanoseconds;
    return std::chrono::duration_cast<nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t whole_lines(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

}  // namespace

struct Program::Execution final : Job {
    Execution(Program& program, Step step) : program(program), step(step) {}

    uint32_t num_stages() const override { return static_cast<uint32_t>(program.stages_.size()); }
    uint32_t num_tasks(uint32_t stage) override {
        if (program.timed_) program.opened_[stage] = now();
        const Stage& s = program.stages_[stage];
        return s.instruction->num_tasks(step, s.index);
    }
    void run(uint32_t stage, uint32_t task, uint32_t thread) noexcept override {
        const Stage& s = program.stages_[stage];
        std::byte* scratch = program.scratch_.get() + thread * whole_lines(program.scratch_floats_ * 4);
        s.instruction->run(step, s.index, task, {thread, reinterpret_cast<float*>(scratch)});
    }

    Upcoming upcoming(uint32_t stage) override {
        const Linear* next = program.stages_[stage].next_product;
        return next ? next->upcoming(step) : Upcoming{};
    }

    Program& program;
    const Step step;
};

void Program::Free::operator()(std::byte* p) const { std::free(p); }

Program::Memory Program::allocate(int64_t bytes) {
    const auto size = static_cast<size_t>(std::max(whole_lines(bytes), kLineBytes));
    Memory memory(static_cast<std::byte*>(std::aligned_alloc(kLineBytes, size)));
    if (!memory) throw std::bad_alloc();
    return memory;
}

void Program::run(ThreadTeam& team, const StepInputs& inputs, float* out) { execute(team, inputs, {.out = out}); }

void Program::find_likeliest(ThreadTeam& team, const StepInputs& inputs, int64_t* token_ids, bool* failed) {
    require(can_find_likeliest_, "the program does not end with a product");
    LikeliestOfThreads likeliest(inputs.num_sampled, team.size());
    execute(team, inputs, {.likeliest = &likeliest});
    likeliest.tell(inputs.num_sampled, token_ids, failed);
}

void Program::execute(ThreadTeam& team, const StepInputs& inputs, const Wanted& wanted) {
    require(finalized(), "the program is not finalized");
    check(inputs);
    if (inputs.rows == 0) return;
    const std::lock_guard only_one(one_run_);
    for (AttentionPlan& plan : plans_) plan.cut(inputs, team.size());
    make_room(team.size());
    meanwhile_.assign(team.size(), {});
    Step step;
    step.inputs = inputs;
    step.num_threads = team.size();
    step.buffers = &buffers_;
    step.arena = arena_.get();
    step.output = wanted.out;
    step.likeliest = wanted.likeliest;
    step.plans = &plans_;
    step.partials = reinterpret_cast<float*>(partials_.get());
    step.meanwhile = meanwhile_.data();
    step.energies = wanted.energies;
    for (const bool sampled : {false, true})
        if (has_lora_) adapted_[sampled].list(inputs, sampled);
    step.adapted = adapted_;
    opened_.resize(stages_.size() + 1);
    Execution execution(*this, step);
    team.run(execution);
    if (timed_) opened_.back() = now();
}

void Program::make_room(uint32_t num_threads) {
    if (num_threads > scratch_threads_) {
        scratch_ = allocate(num_threads * whole_lines(scratch_floats_ * 4));
        scratch_threads_ = num_threads;
    }
    int64_t partials = 0;
    for (const AttentionPlan& plan : plans_) partials = std::max(partials, plan.partial_floats);
    if (partials > partials_size_) {
        partials_ = allocate(partials * 4);
        partials_size_ = partials;
    }
}

// ---- what a run may ask for ----

void Program::check(const StepInputs& inputs) const {
    require(inputs.rows <= max_rows_, "the step has " + std::to_string(inputs.rows) +
                                          " rows, the program was made for " + std::to_string(max_rows_));
    check_all("token_ids", inputs.token_ids, inputs.rows, vocab_size_);
    check_all("positions", inputs.positions, inputs.rows, num_positions_);
    check_all("sampled", inputs.sampled, inputs.num_sampled, inputs.rows);
    require(inputs.num_sampled <= max_rows_, "more rows are sampled than the program was made for");
    require(has_lora_ || !inputs.adapters, "the program was recorded without adapters");
    if (block_size_ == 0) return;
    check_all("slot_mapping", inputs.slots, inputs.rows, num_blocks_ * block_size_);
    if (!plans_.empty()) check_sequences(inputs);
}

void Program::check_sequences(const StepInputs& inputs) const {
    const int32_t* start = inputs.query_start;
    require(start[0] == 0 && start[inputs.num_sequences] == inputs.rows, "query_start does not run from 0 to the rows");
    for (int64_t s = 0; s < inputs.num_sequences; ++s) {
        const std::string name = "sequence " + std::to_string(s);
        const int64_t queries = int64_t{start[s + 1]} - start[s], length = inputs.seq_lens[s];
        require(queries >= 0, "query_start falls at " + name);
        require(length >= queries, name + " is shorter than its queries");
        require(length <= inputs.table_width * block_size_, name + " is longer than its block table");
        const int32_t* blocks = inputs.block_tables + s * inputs.table_width;
        for (int64_t b = 0; b * block_size_ < length; ++b)
            require(blocks[b] >= 0 && blocks[b] < num_blocks_, "block " + std::to_string(b) + " of " + name + " is " +
                                                                   std::to_string(blocks[b]) + ", the pool has " +
                                                                   std::to_string(num_blocks_));
    }
}

// ---- to be looked at ----

void Program::poison() {
    require(finalized(), "the program is not finalized");
    const std::lock_guard only_one(one_run_);
    std::memset(arena_.get(), 0xff, static_cast<size_t>(arena_bytes_));
    if (scratch_)
        std::memset(scratch_.get(), 0xff, scratch_threads_ * static_cast<size_t>(whole_lines(scratch_floats_ * 4)));
    if (partials_) std::memset(partials_.get(), 0xff, static_cast<size_t>(partials_size_) * 4);
}

std::vector<int64_t> Program::times() const {
    std::vector<int64_t> times;
    const Instruction* last = nullptr;
    for (size_t i = 0; i + 1 < opened_.size(); ++i) {
        if (stages_[i].instruction != last) times.push_back(0);
        last = stages_[i].instruction;
        times.back() += opened_[i + 1] - opened_[i];
    }
    return times;
}

std::vector<std::string> Program::describe() const {
    std::vector<std::string> lines;
    for (const auto& instruction : list_) {
        std::ostringstream line;
        const auto print = [&](const Columns& c) {
            const Buffer& buffer = buffers_[c.buffer];
            line << ' ' << (buffer.unread ? "(" : "") << (buffer.kind == BufferKind::Quantised ? 'i' : 'f') << c.buffer;
            if (c.count != buffer.columns) line << '[' << c.begin << ':' << c.begin + c.count << ']';
            line << (buffer.unread ? ")" : "");
        };
        line << instruction->name();
        instruction->visit_reads(print);
        line << " ->";
        instruction->visit_writes(print);
        if (instruction->sampled) line << "  sampled rows";
        lines.push_back(line.str());
    }
    return lines;
}

}  // namespace pellucid
