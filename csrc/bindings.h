// The Python module, one function per file of bindings. Every size, stride and offset that comes from Python is checked
// there and nowhere below: the kernels trust their arguments.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

namespace pellucid {

void bind_gemm(nanobind::module_& m);
void bind_peak(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

// Inputs are dense (nanobind copies one that is not). Outputs are never copied: they are bound with .noconvert().
template <class T, int kDimensions>
using Input = nanobind::ndarray<const T, nanobind::ndim<kDimensions>, nanobind::c_contig, nanobind::device::cpu>;
template <class T, int kDimensions>
using Output = nanobind::ndarray<T, nanobind::ndim<kDimensions>, nanobind::device::cpu>;

// Raises ValueError in Python.
inline void require(bool condition, const std::string& message) {
    if (!condition) throw nanobind::value_error(message.c_str());
}

}  // namespace pellucid
