#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_example.sh PREFIX SOURCE WORK ATTEND MECHANISM
# Builds one example against the installed SDK alone, drops it into a folder, and uses it: listed, run by name, and
# chosen by a rule, by a host that was not rebuilt.
set -euo pipefail
prefix="$1" source="$2" work="$3" attend="$4" mechanism="$5"
rm -rf "$work"
mkdir -p "$work/plugins"
cp -r "$source" "$work/source"
cmake -S "$work/source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" >"$work/configure.log" || { cat "$work/configure.log"; exit 1; }
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
cp "$work"/build/libattend_*.so "$work/plugins/"
file="$(ls "$work"/plugins/*.so)"
test "$(nm -D --defined-only "$file" | awk '{print $3}')" = attend_plugin_entry
if ldd "$file" | grep -E 'tbb|spdlog|boost'; then echo "$file needs a library of the host"; exit 1; fi
export ATTEND_PLUGIN_PATH="$work/plugins"
# holds TEXT COMMAND...: what the command prints holds the text. Read to its end: a program whose reader leaves early fails.
holds() {
  local text="$1" output
  shift
  output="$("$@")"
  grep -q "$text" <<<"$output"
}
holds "\"$mechanism\"" "$attend" list --json
"$attend" compute "$mechanism" --sequence-length 64 --heads 2 --dim 16 --set causal=true 2>/dev/null || "$attend" compute "$mechanism" --sequence-length 64 --heads 2 --dim 16
printf '{ "version": 1, "rules": [ { "condition": "taskType == %s", "mechanism": "%s" } ] }' "'custom'" "$mechanism" >"$work/config.json"
holds "\"selected\": *\"$mechanism\"" "$attend" --config "$work/config.json" recommend --sequence-length 64 --var taskType=custom --json
printf '{ "version": 1, "rules": [ { "condition": "seqLen == 64", "mechanism": "%s" } ] }' "$mechanism" >"$work/config.json"
holds "\"mechanism\": *\"$mechanism\"" "$attend" --config "$work/config.json" compute auto --sequence-length 64 --json
echo "$mechanism: built, listed, run, routed"
