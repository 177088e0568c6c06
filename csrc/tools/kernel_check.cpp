// Every kernel over odd shapes, on every instruction set of this CPU, to be built with sanitizers. The Python tests judge
// numbers more closely; this judges memory.
//   kernel_check          exits with 1 and one line per failure if anything is off
// PELLUCID_ISA limits it to one instruction set.

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cpu_features.h"
#include "tools/check.h"

namespace pellucid::check {

void expect(bool good, const char* format, ...) {
    if (good) return;
    ++failures;
    va_list values;
    va_start(values, format);
    std::vprintf(format, values);
    va_end(values);
    std::printf("\n");
}

void expect_close(const char* what, const std::vector<float>& found, const std::vector<double>& expected,
                  double tolerance) {
    double largest = 0;
    for (const double x : expected) largest = std::fmax(largest, std::fabs(x));
    expect(found.size() == expected.size(), "%s: %zu numbers, expected %zu", what, found.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
        if (std::fabs(found[i] - expected[i]) <= tolerance * largest) continue;
        return expect(false, "%s: number %zu of %zu is %g, expected %g", what, i, found.size(), found[i], expected[i]);
    }
}

}  // namespace pellucid::check

using namespace pellucid;

namespace {

int check_all() {
    std::printf("instruction set: %s\n", isa_name(active_isa()));
    check::check_products();
    check::check_row_ops();
    check::check_attention();
    check::check_program();
    check::check_experts();
    check::check_sampling();
    std::printf(check::failures ? "%d failures\n" : "all good\n", check::failures);
    std::fflush(stdout);
    return check::failures ? 1 : 0;
}

// The choice of an instruction set is for the life of a process: each has a child of its own.
int check_in_child(Isa isa) {
    const pid_t child = fork();
    if (child == 0) {
        setenv("PELLUCID_ISA", isa_name(isa), 1);
        std::exit(check_all());
    }
    int status = 1;
    waitpid(child, &status, 0);
    return status == 0 ? 0 : 1;
}

}  // namespace

int main() {
    if (std::getenv("PELLUCID_ISA")) return check_all();
    const CpuFeatures& cpu = cpu_features();
    int failed = check_in_child(Isa::Portable);
    if (cpu.avx2) failed |= check_in_child(Isa::Avx2);
    if (cpu.avx_vnni) failed |= check_in_child(Isa::Avx2Vnni);
    if (cpu.avx512) failed |= check_in_child(Isa::Avx512);
    if (cpu.avx512_bf16) failed |= check_in_child(Isa::Avx512Bf16);
    if (cpu.neon_dot) failed |= check_in_child(Isa::Neon);
    return failed;
}
