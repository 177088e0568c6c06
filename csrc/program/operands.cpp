#include "program/operands.h"

namespace pellucid {

namespace {

constexpr int64_t kLineBytes = 64;

int64_t whole_lines(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

}  // namespace

int64_t Buffer::bytes(int64_t rows) const {
    switch (kind) {
        case BufferKind::Float: return whole_lines(columns * 4 * rows);
        case BufferKind::Quantised:
            return whole_lines(QuantRows::row_bytes(columns) * rows);
        default: return 0;
    }
}

}  // namespace pellucid
