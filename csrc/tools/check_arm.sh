#!/usr/bin/env bash
# Builds kernel_check for 64-bit ARM with a cross compiler and runs it under an emulator, on a processor without and on one
# with dot products. Numbers are checked so, speed is not. Debian: apt-get install g++-aarch64-linux-gnu qemu-user
#   csrc/tools/check_arm.sh [build folder]      CXX=clang++ takes Clang
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/arm}
cxx=${CXX:-aarch64-linux-gnu-g++}
for tool in "$cxx" qemu-aarch64 cmake ninja; do
  command -v "$tool" >/dev/null || { echo "check_arm.sh: there is no $tool" >&2; exit 1; }
done

cmake -S csrc -B "$build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu -DCMAKE_EXE_LINKER_FLAGS=-static \
  -DPELLUCID_TOOLS=ON -DPELLUCID_MODULE=OFF
cmake --build "$build"

PELLUCID_ISA=portable qemu-aarch64 -cpu cortex-a72 "$build/kernel_check" & portable=$!
PELLUCID_ISA=neon qemu-aarch64 -cpu cortex-a76 "$build/kernel_check" & neon=$!
failed=0
wait $portable || failed=1
wait $neon || failed=1
exit $failed
