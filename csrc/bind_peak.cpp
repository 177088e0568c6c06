#include <nanobind/stl/string.h>

#include "bindings.h"
#include "peak.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pellucid {
namespace {

int64_t multiply(const std::string& name, int64_t rounds) {
    require(name == "int8" || name == "bfloat16" || name == "float32",
            "arithmetic is '" + name + "', expected int8, bfloat16 or float32");
    require(rounds >= 0 && rounds <= int64_t{1} << 40, "rounds is not between 0 and 2^40");
    const Arithmetic arithmetic = name == "int8"       ? Arithmetic::Int8
                                  : name == "bfloat16" ? Arithmetic::BFloat16
                                                       : Arithmetic::Float32;
    const nb::gil_scoped_release release;
    return multiply_in_registers(arithmetic, rounds);
}

uint64_t read(Input<uint64_t, 1> data) {
    const nb::gil_scoped_release release;
    return read_all(data.data(), static_cast<int64_t>(data.shape(0)));
}

}  // namespace

void bind_peak(nb::module_& m) {
    m.def("multiply_in_registers", multiply, "arithmetic"_a, "rounds"_a,
          "Do nothing but multiply and add; returns the number of operations, 0 if this CPU has no vectors for it.");
    m.def("read_all", read, "data"_a, "Read an array of uint64 once.");
}

}  // namespace pellucid
