#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles every kernel (engines, mechanisms, examples) for AArch64 with a cross compiler: the neon entry must build.
# Installs g++-aarch64-linux-gnu where it is missing. Ends with "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/../.."

if ! command -v aarch64-linux-gnu-g++ >/dev/null; then
  echo "packages: installing with apt-get: g++-aarch64-linux-gnu"
  run=()
  [[ "$(id -u)" == 0 ]] || run=(sudo)
  "${run[@]}" apt-get update -qq && "${run[@]}" apt-get install -y -qq --no-install-recommends g++-aarch64-linux-gnu >/dev/null || exit 1
fi
# xsimd alone from the system's headers: the rest of /usr/include is another machine's.
headers="$(mktemp -d)"
ln -s /usr/include/xsimd "$headers/xsimd"
flags=(-DATTEND_ISA=neon -DATTEND_ISA_neon=1 -O1 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast
       -Isdk/abi -Isdk/author -Isdk/toolkit -isystem "$headers" -Wall -Wextra)
passed=0 failed=0
for source in sdk/toolkit/src/*.cpp plugins/*/*.cpp sdk/examples/cpp_plugin/sink.cpp sdk/examples/score_hook/hooks.c \
    sdk/examples/geometric/graph_attention.cpp sdk/examples/geometric/hyperbolic_attention.cpp; do
  [[ "$source" == */plugin.cpp ]] && continue
  case "$source" in
    *.c) compiler=(aarch64-linux-gnu-gcc -std=c11) ;;
    *) compiler=(aarch64-linux-gnu-g++ -std=c++20 -fno-exceptions -fno-rtti) ;;
  esac
  if "${compiler[@]}" "${flags[@]}" -c "$source" -o "$headers/object.o"; then passed=$((passed + 1)); else
    echo "does not compile for neon: $source"
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed"
[[ $failed == 0 && $passed -gt 0 ]]
