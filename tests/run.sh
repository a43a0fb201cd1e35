#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is needed, builds everything, runs every test; ends with "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."

bash host/install_packages.sh tests || exit 1
cmake -S . -B build/release -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null || exit 1
cmake --build build/release | grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking|Checking|Generating)' | tail -n 20
[[ ${PIPESTATUS[0]} == 0 ]] || { echo "the build failed"; exit 1; }

log="$(mktemp)"
ctest --test-dir build/release -j"$(nproc)" --output-on-failure --no-tests=error >"$log" 2>&1
status=$?
grep -E '^(The following tests FAILED|\s+[0-9]+ - )|\*\*\*' "$log" | head -n 60
[[ $status == 0 ]] || grep -B2 -A30 'FAILED:' "$log" | head -n 200
# Which instruction sets really ran, in the words of the test that checks it.
build/release/tests/properties "each instruction set really runs" | grep '^instruction set'
total="$(sed -nE 's/.* tests failed out of ([0-9]+)$/\1/p' "$log" | tail -n 1)"
failed="$(sed -nE 's/.*, ([0-9]+) tests failed out of [0-9]+$/\1/p' "$log" | tail -n 1)"
if [[ -z "$total" ]]; then tail -n 40 "$log"; echo "0 passed, 1 failed"; exit 1; fi
echo "$((total - failed)) passed, $failed failed"
[[ $status == 0 && $failed == 0 ]]
