// Attention of a step's tokens over the paged pool: how it is cut up, and what a task does.

#include <algorithm>

#include "program/blocks.h"
#include "program/instruction.h"

namespace pellucid {

namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kPiecesPerThread = 2;      // before a task does all heads of one
constexpr int64_t kWholeTasksPerThread = 8;  // before a task does several

int64_t whole_lines(int64_t floats) { return divide_up(floats, 16) * 16; }

}  // namespace

int64_t softmax_floats(int64_t rows, int64_t head_dim) { return 2 * whole_lines(rows) + whole_lines(rows * head_dim); }

PartialSoftmax softmax_at(float* place, int64_t rows) {
    const int64_t line = whole_lines(rows);
    return {place, place + line, place + 2 * line};
}

// ---- the plan ----

void AttentionPlan::add_tiles(const StepInputs& inputs, int32_t sequence) {
    const int64_t begin = inputs.query_start[sequence], end = inputs.query_start[sequence + 1];
    const int64_t tokens_per_tile = std::max<int64_t>(1, kMaxTileRows / shape.heads_per_group);
    const int64_t position_of_row_0 = inputs.seq_lens[sequence] - end;
    for (int64_t row = begin; row < end; row += tokens_per_tile) {
        const int64_t tokens = std::min(tokens_per_tile, end - row), position = position_of_row_0 + row;
        const int64_t first_key = shape.window > position ? 0 : position - shape.window + 1;
        tiles.push_back({.sequence = sequence,
                         .first_row = row,
                         .num_tokens = tokens,
                         .first_position = position,
                         .first_partition = first_key / kPartition,
                         .last_partition = (position + tokens - 1) / kPartition});
    }
}

// Tiles with more than their share of all partitions are cut, so that every thread gets something to do.
void AttentionPlan::cut(const StepInputs& inputs, uint32_t num_threads) {
    tiles.clear();
    pieces.clear();
    cut_tiles.clear();
    partial_floats = 0;
    for (int32_t s = 0; s < inputs.num_sequences; ++s) add_tiles(inputs, s);

    int64_t partitions = 0;
    for (const QueryTile& tile : tiles) partitions += tile.num_partitions();
    const int64_t share =
        num_threads == 1 ? partitions : divide_up(partitions * shape.num_groups, kTasksPerThread * num_threads);
    for (size_t i = 0; i < tiles.size(); ++i) {
        QueryTile& tile = tiles[i];
        const auto index = static_cast<int32_t>(i);
        for (int64_t p = tile.first_partition; p <= tile.last_partition; p += share)
            pieces.push_back({index, p, std::min(p + share - 1, tile.last_partition)});
        if (tile.num_partitions() > share) {
            tile.partials = partial_floats;
            const int64_t rows = tile.num_tokens * shape.heads_per_group;
            partial_floats += shape.num_groups * tile.num_partitions() * softmax_floats(rows, shape.head_dim);
            cut_tiles.push_back(index);
        }
    }
    // Heads lie side by side in a slot, so one thread that reads them all reads whole pages: a fifth faster with two
    // threads. But first of all every thread has to have something to read.
    groups_per_task = static_cast<int64_t>(pieces.size()) >= kPiecesPerThread * num_threads ? shape.num_groups : 1;
    // A task knows what it does next, and has it fetched meanwhile; so where there are many pieces it takes several.
    pieces_per_task = std::max<int64_t>(1, pieces.size() / (kWholeTasksPerThread * num_threads));
    deal(num_threads);
    list_blocks(inputs, num_threads);
}

// Every thread gets its share of the long pieces, and begins with them: short ones even out the end.
void AttentionPlan::deal(uint32_t num_threads) {
    const auto work = [&](const AttentionPiece& p) {
        return (p.last_partition - p.first_partition + 1) * (1 + tiles[p.tile].num_tokens);
    };
    std::stable_sort(pieces.begin(), pieces.end(), [&](const auto& a, const auto& b) { return work(a) > work(b); });
    std::vector<AttentionPiece> dealt;
    dealt.reserve(pieces.size());
    for (uint32_t thread = 0; thread < num_threads; ++thread)
        for (size_t i = thread; i < pieces.size(); i += num_threads) dealt.push_back(pieces[i]);
    pieces.swap(dealt);
}

int64_t AttentionPlan::num_tasks() const {
    return divide_up(pieces.size(), pieces_per_task) * (shape.num_groups / groups_per_task);
}

// A sequence of several tiles uses what it reads so often that nobody waits for it.
void AttentionPlan::list_blocks(const StepInputs& inputs, uint32_t num_threads) {
    blocks.clear();
    first_block.assign(1, 0);
    const int64_t tasks_per_piece = shape.num_groups / groups_per_task, num_pieces = pieces.size();
    int64_t index = 0;
    for (uint32_t thread = 1; thread <= num_threads; ++thread) {
        const int64_t tasks = ThreadTeam::first_of_share(static_cast<uint32_t>(num_tasks()), thread, num_threads);
        const int64_t end = std::min(num_pieces, tasks / tasks_per_piece * pieces_per_task);
        for (; inputs.rows >= kManyRows && index < end; ++index) {
            const AttentionPiece& piece = pieces[index];
            const QueryTile& tile = tiles[piece.tile];
            const int64_t s = tile.sequence, size = shape.block_size;
            if (inputs.query_start[s + 1] - inputs.query_start[s] != tile.num_tokens) continue;
            const int64_t last = std::min<int64_t>((piece.last_partition + 1) * kPartition, inputs.seq_lens[s]) - 1;
            const int32_t* const table = inputs.block_tables + s * inputs.table_width;
            blocks.insert(blocks.end(), table + piece.first_partition * kPartition / size, table + last / size + 1);
        }
        first_block.push_back(static_cast<int64_t>(blocks.size()));
    }
}

// ---- the instruction ----

void Attention::visit_writes(const Visitor& visit) {
    visit(out);
    if (quantised_) visit(quantised_);
}

// A task has the heads of one group; they can be quantised alone if no group of 32 columns straddles their border.
bool Attention::quantise(const Columns& columns, int buffer) {
    if (columns != out || heads_per_group() * pool.head_dim % kActivationGroup != 0) return false;
    quantised_ = {buffer, 0, out.count};
    return true;
}

uint32_t Attention::num_tasks(const Step& step, uint32_t stage) const {
    const AttentionPlan& all = (*step.plans)[plan];
    const int64_t merges = static_cast<int64_t>(all.cut_tiles.size()) * pool.num_kv_heads;
    return static_cast<uint32_t>(stage == 0 ? all.num_tasks() : merges);
}

int64_t Attention::scratch_floats() const {
    const int64_t rows = std::max(kMaxTileRows, heads_per_group());
    return 2 * softmax_floats(rows, pool.head_dim) + attention_scratch_floats(rows, pool.head_dim);
}

void Attention::run(const Step& step, uint32_t stage, uint32_t task, const Worker& worker) const {
    const AttentionPlan& all = (*step.plans)[plan];
    const int64_t groups = stage == 0 ? all.groups_per_task : 1, tasks_per_tile = pool.num_kv_heads / groups;
    const int64_t index = task / tasks_per_tile, first = task % tasks_per_tile * groups;
    if (stage == 1) return merge(step, all.tiles[all.cut_tiles[index]], first, worker.scratch);
    const int64_t begin = index * all.pieces_per_task, pieces = all.pieces.size();
    const int64_t parts = (std::min(begin + all.pieces_per_task, pieces) - begin) * groups;
    const auto part = [&](int64_t i) { return Part{&all.pieces[begin + i / groups], first + i % groups}; };
    for (int64_t i = 0; i < parts; ++i)
        attend(step, part(i), i + 1 < parts ? part(i + 1) : Part{}, i > 0, worker.scratch);
}

Meanwhile* Attention::meanwhile(const Step& step, uint32_t thread) const {
    const AttentionPlan& all = (*step.plans)[plan];
    if (all.blocks.empty()) return nullptr;
    Meanwhile& m = step.meanwhile[thread];
    if (m.pools[0] == pool.k) return &m;
    const int64_t first = all.first_block[thread];
    m = {.pools = {static_cast<const std::byte*>(pool.k), static_cast<const std::byte*>(pool.v)},
         .block_bytes = pool.block_size * pool.slot_columns() * kv_bytes(pool.type),
         .blocks = all.blocks.data() + first,
         .num_blocks = all.first_block[thread + 1] - first};
    return &m;
}

AttentionTile Attention::queries(const Step& step, const QueryTile& tile, int64_t group) const {
    const FloatView all = step.floats(q);
    const int64_t head_dim = pool.head_dim, head_bytes = group * pool.block_size * head_dim * kv_bytes(pool.type);
    return {.q = all.row(tile.first_row) + group * heads_per_group() * head_dim,
            .q_stride = all.stride,
            .num_tokens = tile.num_tokens,
            .heads = heads_per_group(),
            .head_dim = head_dim,
            .first_position = tile.first_position,
            .k = static_cast<const std::byte*>(pool.k) + head_bytes,
            .v = static_cast<const std::byte*>(pool.v) + head_bytes,
            .kv_type = pool.type,
            .slot_columns = pool.slot_columns(),
            .k_scale = pool.k_scale ? pool.k_scale + group * pool.block_size : nullptr,
            .v_scale = pool.v_scale ? pool.v_scale + group * pool.block_size : nullptr,
            .block_table = step.inputs.block_tables + tile.sequence * step.inputs.table_width,
            .block_size = pool.block_size,
            .scale = scale,
            .window = (*step.plans)[plan].shape.window,
            .softcap = softcap};
}

PartialSoftmax Attention::partial(const Step& step, const QueryTile& tile, int64_t group, int64_t partition) const {
    const int64_t rows = tile.num_tokens * heads_per_group();
    const int64_t index = group * tile.num_partitions() + partition - tile.first_partition;
    return softmax_at(step.partials + tile.partials + index * softmax_floats(rows, pool.head_dim), rows);
}

// `fetched`: the part before this one had this one as `then`.
void Attention::attend(const Step& step, const Part& part, const Part& then, bool fetched, float* scratch) const {
    const AttentionPiece& piece = *part.piece;
    const std::vector<QueryTile>& tiles = (*step.plans)[plan].tiles;
    const QueryTile& tile = tiles[piece.tile];
    const AttentionTile call = queries(step, tile, part.group);
    AttentionTile call_then{};
    NextPartition after_last;
    if (then.piece) {
        call_then = queries(step, tiles[then.piece->tile], then.group);
        after_last = {&call_then, then.piece->first_partition};
    }
    const int64_t rows = call.rows(), size = softmax_floats(rows, pool.head_dim);
    const PartialSoftmax total = softmax_at(scratch, rows), more = softmax_at(scratch + size, rows);
    float* const room = scratch + 2 * size;

    const bool is_whole = piece.first_partition == tile.first_partition && piece.last_partition == tile.last_partition;
    for (int64_t p = piece.first_partition; p <= piece.last_partition; ++p) {
        NextPartition next = p < piece.last_partition ? NextPartition{&call, p + 1} : after_last;
        next.present_was_next = fetched || p > piece.first_partition;
        if (!is_whole) {
            ops().attend_partition(call, p, next, partial(step, tile, part.group, p), room);
        } else if (p == piece.first_partition) {
            ops().attend_partition(call, p, next, total, room);
        } else {
            ops().attend_partition(call, p, next, more, room);
            ops().merge(total, more, rows, pool.head_dim);
        }
    }
    if (is_whole) store(step, tile, part.group, total, room);
}

// The same merges in the same order as if the tile had not been cut.
void Attention::merge(const Step& step, const QueryTile& tile, int64_t group, float* scratch) const {
    const PartialSoftmax total = partial(step, tile, group, tile.first_partition);
    for (int64_t p = tile.first_partition + 1; p <= tile.last_partition; ++p)
        ops().merge(total, partial(step, tile, group, p), tile.num_tokens * heads_per_group(), pool.head_dim);
    store(step, tile, group, total, scratch);
}

void Attention::store(const Step& step, const QueryTile& tile, int64_t group, PartialSoftmax total,
                      float* scratch) const {
    const int64_t width = heads_per_group() * pool.head_dim;
    FloatView to{scratch, width};
    if (!step.is_unread(out.buffer)) {
        const FloatView all = step.floats(out);
        to = {all.row(tile.first_row) + group * width, all.stride};
    }
    ops().finish(total, queries(step, tile, group), to.data, to.stride);
    if (!quantised_) return;
    for (int64_t token = 0; token < tile.num_tokens; ++token)
        step.quantise(quantised_.buffer, tile.first_row + token, to.row(token), group * width, width);
}

}  // namespace pellucid
