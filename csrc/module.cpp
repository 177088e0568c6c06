#include "bindings.h"

NB_MODULE(_native, m) {
    m.doc() = "CPU kernels of pellucid.";
    pellucid::bind_gemm(m);
    pellucid::bind_peak(m);
    pellucid::bind_program(m);
    pellucid::bind_sampling(m);
}
