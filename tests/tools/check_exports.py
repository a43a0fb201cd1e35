#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A plugin exports attend_plugin_entry and nothing else, and needs none of the libraries that the host is built on.

    check_exports.py [--nm <nm>] <plugin, or a folder of them>...
"""
import argparse
import pathlib
import shutil
import subprocess
import sys

ENTRY = "attend_plugin_entry"
FORBIDDEN = ("libtbb", "libspdlog", "libfmt", "libboost", "libgomp", "libomp", "libattend")


def output(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("plugins", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    files = []
    for path in arguments.plugins:
        files += sorted(path.glob("*.so")) if path.is_dir() else [path]
    if not files:
        print(f"{arguments.plugins[0]}: holds no plugin")
        return 1
    problems = []
    for file in files:
        symbols = [line.split()[0] for line in output(arguments.nm, "-D", "--defined-only", "--format=posix", str(file)).splitlines()]
        if symbols != [ENTRY]:
            problems.append(f"{file.name}: exports {', '.join(sorted(symbols)) or 'nothing'}; accepted: {ENTRY} alone")
        if shutil.which("ldd"):
            for line in output("ldd", str(file)).splitlines():
                library = line.split()[0].rsplit("/", 1)[-1]
                if library.startswith(FORBIDDEN):
                    problems.append(f"{file.name}: needs {library}; accepted: the C and C++ runtime")
                if "not found" in line:
                    problems.append(f"{file.name}: needs {library}, which is not found")
    print("\n".join(problems) if problems else f"{len(files)} plugins export {ENTRY} alone")
    return 1 if problems else 0


sys.exit(main())
