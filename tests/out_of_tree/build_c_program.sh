#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_c_program.sh PREFIX SOURCE ABI WORK
# The C API as a third party has it: the installed headers in C11 and C++, beside the plugin ABI's too; a program built with
# the compiler alone, with pkg-config and with find_package; the whole prefix moved elsewhere; what the library shows.
set -euo pipefail
prefix="$1" source="$2" abi="$3" work="$4"
rm -rf "$work"
mkdir -p "$work"
cp -r "$prefix" "$work/moved"
prefix="$work/moved"
library="$(find "$prefix" -name libattend.so -print -quit)"
folder="$(dirname "$library")"
strict=(-Wall -Wextra -Wpedantic -Werror)

printf '#include "attend/attend.h"\n#include "attend/abi.h"\n#include "attend/dlpack.h"\n#include "attend/attend.h"\nint main(void) { return 0; }\n' >"$work/headers.c"
cc -std=c11 "${strict[@]}" -fsyntax-only -I"$prefix/include" -I"$abi" "$work/headers.c"
for standard in 11 14 17 20; do c++ -std=c++$standard -x c++ "${strict[@]}" -fsyntax-only -I"$prefix/include" -I"$abi" "$work/headers.c"; done

shown="$(nm -D --defined-only "$library" | awk '{print $3}' | sort)"
declared="$(grep -oE 'ATTEND_API [a-z_0-9 ]+[ *]attend_[a-z_]+\(' "$prefix/include/attend/attend.h" | grep -oE 'attend_[a-z_]+\(' | tr -d '(' | sort)"
[[ "$shown" == "$declared" ]] || { echo "the library shows:"; diff <(echo "$declared") <(echo "$shown"); exit 1; }
readelf -d "$library" | grep -q 'SONAME.*libattend\.so\.[0-9]*\]'

# ran PROGRAM: runs it and looks for what it prints.
ran() {
  local output
  output="$("$1")"
  grep -q 'tokens found no room' <<<"$output"
  grep -q '"mechanism": "switch-attention"' <<<"$output"
}
cc -std=c11 "${strict[@]}" -I"$prefix/include" "$source" -o "$work/plain" -L"$folder" -lattend "-Wl,-rpath,$folder"
ran "$work/plain"
if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH="$folder/pkgconfig"
  # shellcheck disable=SC2046
  cc -std=c11 "${strict[@]}" $(pkg-config --cflags attend) "$source" -o "$work/by_pkg_config" $(pkg-config --libs attend) "-Wl,-rpath,$folder"
  ran "$work/by_pkg_config"
fi
mkdir "$work/project"
cp "$source" "$work/project/program.c"
printf 'cmake_minimum_required(VERSION 3.25)\nproject(program LANGUAGES C)\nfind_package(Attend REQUIRED)\nadd_executable(program program.c)\ntarget_link_libraries(program PRIVATE Attend::attend)\n' >"$work/project/CMakeLists.txt"
cmake -S "$work/project" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" >"$work/configure.log" || { cat "$work/configure.log"; exit 1; }
cmake --build "$work/build" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
ran "$work/build/program"
echo "C programs built against the installed host ran"
