#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs Debian 12's packages that building attend needs, and says which. Nothing happens where all are there.
# install_packages.sh [tests] [bench]: with "tests", also what the test suite uses; with "bench", also what bench/micro uses.
set -euo pipefail

packages=(ca-certificates git g++ gcc make cmake ninja-build ccache libboost1.81-dev libboost-filesystem1.81-dev libboost-json1.81-dev
          libxsimd-dev libtbb-dev libspdlog-dev libfmt-dev libcli11-dev libpng-dev libxxhash-dev catch2)
for group in "$@"; do
  case "$group" in
    tests) packages+=(clang binutils python3 python3-venv) ;;
    bench) packages+=(libbenchmark-dev) ;;
    *) echo "packages: unknown group \"$group\"; accepted: tests, bench" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then
  echo "packages: all ${#packages[@]} are installed"
  exit 0
fi
run=()
if [[ "$(id -u)" != 0 ]]; then run=(sudo); fi
echo "packages: installing with apt-get: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${run[@]}" apt-get update -qq
"${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
