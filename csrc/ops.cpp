#include "cpu_features.h"
#include "op_table.h"

namespace pellucid {

const OpTable& ops() {
    switch (active_isa()) {
#if defined(__x86_64__)
        case Isa::Avx512Bf16: return kAvx512Bf16Ops;
        case Isa::Avx512: return kAvx512Ops;
        case Isa::Avx2Vnni:
        case Isa::Avx2: return kAvx2Ops;
#elif defined(__aarch64__)
        case Isa::Neon: return kNeonOps;
#endif
        default: return kPortableOps;
    }
}

}  // namespace pellucid
