// What is done to a recorded list before it can run.

#include <algorithm>
#include <map>
#include <stdexcept>

#include "program.h"
#include "program/experts.h"

namespace pellucid {

namespace {

// When a buffer's memory is needed: from the first instruction that touches it to the last.
struct Lifetime {
    int first = -1;
    int last = -1;

    void touch(int index) {
        if (first < 0) first = index;
        last = index;
    }
    bool meets(const Lifetime& other) const { return first <= other.last && other.first <= last; }
};

}  // namespace

void Program::finalize(const Columns& output, int64_t max_rows) {
    if (finalized()) throw std::invalid_argument("the program is finalized already");
    if (max_rows < 1 || max_rows > INT32_MAX) throw std::invalid_argument("max_rows is not between 1 and 2^31 - 1");
    check_read(output, "output");
    if (output.begin != 0 || output.count != buffers_[output.buffer].columns)
        throw std::invalid_argument("output is not all of its buffer");
    drop_unread(output.buffer);
    gather_sampled_rows(output.buffer);
    lay_out(max_rows);
    find_ends();
    for (const auto& instruction : list_) {
        scratch_floats_ = std::max(scratch_floats_, instruction->scratch_floats());
        for (uint32_t i = 0; i < instruction->num_stages(); ++i) stages_.push_back({instruction.get(), i});
    }
    const Attention* attention = nullptr;
    for (auto instruction = list_.rbegin(); instruction != list_.rend(); ++instruction) {
        if (auto* product = dynamic_cast<Linear*>(instruction->get())) product->next_attention = attention;
        if (const auto* found = dynamic_cast<const Attention*>(instruction->get())) attention = found;
    }
    const Linear* next = nullptr;
    for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
        stage->next_product = next;
        if (dynamic_cast<const Experts*>(stage->instruction)) next = nullptr;  // they are read before it
        if (const auto* product = dynamic_cast<const Linear*>(stage->instruction)) next = product;
    }
    max_rows_ = max_rows;
    arena_ = allocate(arena_bytes_);
}

// Backwards: an instruction stays if it writes to the KV pool or if somebody after it reads what it writes.
void Program::drop_unread(int output) {
    std::vector<bool> read(buffers_.size(), false);
    read[output] = true;
    List kept;
    for (auto it = list_.rbegin(); it != list_.rend(); ++it) {
        bool useful = (*it)->writes_kv();
        (*it)->visit_writes([&](Columns& columns) { useful |= read[columns.buffer]; });
        if (!useful) continue;
        (*it)->visit_reads([&](Columns& columns) { read[columns.buffer] = true; });
        kept.push_back(std::move(*it));
    }
    std::reverse(kept.begin(), kept.end());
    list_ = std::move(kept);
    for (size_t i = 0; i < buffers_.size(); ++i) buffers_[i].unread = !read[i];
}

// After the last attention every row goes its own way, and only those that are sampled need to go it.
void Program::gather_sampled_rows(int output) {
    size_t boundary = 0;
    for (size_t i = 0; i < list_.size(); ++i)
        if (list_[i]->needs_all_rows()) boundary = i + 1;

    std::vector<bool> is_before(buffers_.size(), false);
    for (size_t i = 0; i < boundary; ++i)
        list_[i]->visit_writes([&](Columns& columns) { is_before[columns.buffer] = true; });

    List gathers;
    std::map<int, int> gathered;  // buffer -> the buffer of its sampled rows
    const auto gather = [&](int buffer) {
        const auto [place, is_new] = gathered.try_emplace(buffer, static_cast<int>(buffers_.size()));
        if (is_new) {
            const Buffer source = buffers_[buffer];
            buffers_.push_back({.kind = source.kind, .columns = source.columns});
            auto op = std::make_unique<Gather>();
            op->x = {buffer, 0, source.columns};
            op->out = {place->second, 0, source.columns};
            op->sampled = true;
            gathers.push_back(std::move(op));
        }
        return place->second;
    };
    for (size_t i = boundary; i < list_.size(); ++i) {
        list_[i]->sampled = true;
        list_[i]->visit_reads([&](Columns& columns) {
            if (columns.buffer < static_cast<int>(is_before.size()) && is_before[columns.buffer])
                columns.buffer = gather(columns.buffer);
        });
    }
    output_ = {is_before[output] ? gather(output) : output, 0, buffers_[output].columns};
    buffers_[output_.buffer].kind = BufferKind::Output;
    list_.insert(list_.begin() + static_cast<std::ptrdiff_t>(boundary), std::make_move_iterator(gathers.begin()),
                 std::make_move_iterator(gathers.end()));
}

// The products that make the output, if nothing else does.
void Program::find_ends() {
    std::vector<Linear*> products;
    bool others = false;
    for (const auto& instruction : list_) {
        bool ends = false;
        instruction->visit_writes([&](Columns& columns) { ends |= columns.buffer == output_.buffer; });
        if (!ends) continue;
        auto* const product = dynamic_cast<Linear*>(instruction.get());
        if (product) products.push_back(product);
        others |= product == nullptr;
    }
    can_find_likeliest_ = !others;
    for (Linear* product : products) product->ends = !others;
}

// First fit, in the order in which buffers are first written.
void Program::lay_out(int64_t max_rows) {
    std::vector<Lifetime> lives(buffers_.size());
    for (size_t i = 0; i < list_.size(); ++i) {
        const auto touch = [&](Columns& columns) { lives[columns.buffer].touch(static_cast<int>(i)); };
        list_[i]->visit_reads(touch);
        list_[i]->visit_writes(touch);
    }
    std::vector<int> order;
    for (size_t i = 0; i < buffers_.size(); ++i)
        if (lives[i].first >= 0 && !buffers_[i].unread) order.push_back(static_cast<int>(i));
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return lives[a].first < lives[b].first; });

    std::vector<int> placed;  // by place
    for (const int index : order) {
        const int64_t bytes = buffers_[index].bytes(max_rows);
        int64_t place = 0;
        for (const int other : placed) {
            if (!lives[other].meets(lives[index])) continue;
            if (place + bytes <= buffers_[other].place) break;
            place = std::max(place, buffers_[other].place + buffers_[other].bytes(max_rows));
        }
        buffers_[index].place = place;
        arena_bytes_ = std::max(arena_bytes_, place + bytes);
        const auto by_place = [&](int a, int b) { return buffers_[a].place < buffers_[b].place; };
        placed.insert(std::upper_bound(placed.begin(), placed.end(), index, by_place), index);
    }
}

}  // namespace pellucid
