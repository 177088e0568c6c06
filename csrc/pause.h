// What a thread does while it waits for another without giving its core away.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pellucid {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // yield, which is meant for this, takes no time on most cores
#endif
}

}  // namespace pellucid
