#include "program/operands.h"

namespace pellucid {

namespace {

constexpr int64_t kLineBytes = 64;

int64_t whole_lines(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

int64_t q_bytes(int64_t columns, int64_t rows) { return whole_lines(columns * rows); }
int64_t scale_bytes(int64_t columns, int64_t rows) { return whole_lines(columns / kActivationGroup * 4 * rows); }
int64_t sum_bytes(int64_t columns, int64_t rows) { return whole_lines(columns / 16 * 4 * rows); }

}  // namespace

int64_t Buffer::bytes(int64_t rows) const {
    switch (kind) {
        case BufferKind::Float: return whole_lines(columns * 4 * rows);
        case BufferKind::Quantised:
            return q_bytes(columns, rows) + scale_bytes(columns, rows) + sum_bytes(columns, rows);
        default: return 0;
    }
}

QuantRows quant_rows(std::byte* place, int64_t columns, int64_t max_rows) {
    std::byte* scale = place + q_bytes(columns, max_rows);
    std::byte* sum = scale + scale_bytes(columns, max_rows);
    return {reinterpret_cast<int8_t*>(place), reinterpret_cast<float*>(scale), reinterpret_cast<int32_t*>(sum)};
}

QuantRows skip_rows(QuantRows rows, int64_t columns, int64_t count) { return skip_columns(rows, columns * count); }

QuantRows skip_columns(QuantRows row, int64_t begin) {
    return {row.q + begin, row.scale + begin / kActivationGroup, row.sum16 + begin / 16};
}

}  // namespace pellucid
