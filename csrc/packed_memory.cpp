#include "packed_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace pellucid {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kRegion = size_t{32} << 20;
constexpr size_t kAlignment = 64;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A mapping that starts on a huge page. Untouched pages cost nothing.
std::shared_ptr<std::byte> map_region(size_t bytes) {
    const size_t mapped = bytes + kHugePage;
    void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(base, mapped, MADV_HUGEPAGE);  // a wish: its failure changes speed only
#endif
    const std::shared_ptr<void> owner(base, [mapped](void* p) { munmap(p, mapped); });
    const auto address = reinterpret_cast<uintptr_t>(base);
    return {owner, reinterpret_cast<std::byte*>(round_up(address, kHugePage))};
}

struct Region {
    std::weak_ptr<std::byte> start;  // the weights own it
    size_t size = 0, used = 0;
};

}  // namespace

std::shared_ptr<std::byte> allocate_packed(size_t bytes) {
    static std::mutex mutex;
    static Region region;
    const size_t size = round_up(bytes, kAlignment);
    const std::lock_guard lock(mutex);
    std::shared_ptr<std::byte> start = region.start.lock();
    if (start == nullptr || region.size - region.used < size) {
        region.size = std::max(kRegion, round_up(size, kHugePage));
        region.used = 0;
        start = map_region(region.size);
        region.start = start;
    }
    std::shared_ptr<std::byte> result(start, start.get() + region.used);
    region.used += size;
    return result;
}

}  // namespace pellucid
