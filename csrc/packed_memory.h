// Memory for packed weights.

#pragma once

#include <cstddef>
#include <memory>

namespace pellucid {

// Zeroed, 64-byte aligned, and cut from large regions for which huge pages are asked for: weights are streamed from
// end to end in every step, and with 4 kB pages much of that time goes into address translation. Weights allocated one
// after the other lie one after the other. A region is returned when all that was cut from it is gone.
// Throws std::bad_alloc.
std::shared_ptr<std::byte> allocate_packed(size_t bytes);

}  // namespace pellucid
