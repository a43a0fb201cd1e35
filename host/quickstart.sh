#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a bare Debian 12 to a checked result: installs packages, builds, and runs one attention layer of a real
# transformer through the rules, compared with what PyTorch computed for the same tensors.
set -euo pipefail
cd "$(dirname "$0")/.."

bash host/install_packages.sh
echo "== build (release) =="
cmake -S . -B build/release -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build build/release --target all_plugins attend_cli attend_probe example_compare_output -- -k 0 | tail -n 1

attend=build/release/bin/attend
output="$(mktemp -d)/attention.safetensors"
echo
echo "== graph and hyperbolic attention, a plugin built against the SDK =="
bash sdk/examples/geometric/install.sh
echo
echo "== what is there =="
"$attend" list
echo
echo "== one layer of a sentence encoder, routed by the rules =="
"$attend" compute auto --input tests/data/minilm_layer.safetensors --output "$output"
echo
echo "== against PyTorch's own output =="
build/release/examples/compare_output "$output" tests/data/minilm_layer_expected.safetensors 1e-5
