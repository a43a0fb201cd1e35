#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# install.sh [FOLDER] [BUILD]
# Builds this plugin against the SDK of a build tree (build/release) and drops it into a plugin folder: the one named, or
# the user's own, which attend always searches.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="${1:-${XDG_DATA_HOME:-$HOME/.local/share}/attend/plugins/abi-1}"
build="${2:-$here/../../../build/release}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# logged COMMAND...: shows what it printed if it fails.
logged() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }
[[ -f "$build/CMakeCache.txt" ]] || { echo "$build is no build tree; build first: bash host/quickstart.sh"; exit 1; }
logged cmake --install "$build" --component sdk --prefix "$work/sdk"
logged cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$work/sdk"
logged cmake --build "$work/build"
mkdir -p "$folder"
cp "$work/build/libattend_geometric.so" "$folder/"
echo "graph-attention and hyperbolic-attention: $folder/libattend_geometric.so"
