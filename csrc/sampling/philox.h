// Philox-4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), as sample/philox.py has it.

#pragma once

#include <cstdint>

namespace pellucid {

// A number in [0, 1), a multiple of 2^-52: a function of its arguments and of nothing else.
inline double uniform(int64_t seed, int64_t position, uint32_t draw) {
    const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
    const auto high = [](uint64_t v) { return static_cast<uint32_t>(v >> 32); };
    const auto s = static_cast<uint64_t>(seed), p = static_cast<uint64_t>(position);
    uint32_t counter[4] = {low(p), high(p), draw, 0}, key[2] = {low(s), high(s)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t even = uint64_t{0xD2511F53} * counter[0], odd = uint64_t{0xCD9E8D57} * counter[2];
        counter[0] = high(odd) ^ counter[1] ^ key[0];
        counter[1] = low(odd);
        counter[2] = high(even) ^ counter[3] ^ key[1];
        counter[3] = low(even);
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    const uint64_t bits = uint64_t{counter[0]} << 20 | counter[1] >> 12;
    return static_cast<double>(bits) * 0x1p-52;
}

}  // namespace pellucid
