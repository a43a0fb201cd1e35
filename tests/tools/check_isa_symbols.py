#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The build's check for symbols shared between instruction sets, tried on planted faults.

Compiles one small kernel for an entry, runs CheckIsaSymbols.cmake on the object, and expects the fault to be named and
the good kernel to pass.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

GOOD = """
#include <cstdint>
namespace attend::avx2 {
struct Row { float* data; int64_t length; };
float sum(const Row& row);
__attribute__((noinline)) inline float twice(float x) { return 2.0f * x; }
float sum(const Row& row) {
    float total = 0.0f;
    for (int64_t at = 0; at < row.length; ++at) total += twice(row.data[at]);
    return total;
}
}
"""
# Fault: source, suffix, what the check must say (None: it must pass).
CASES = {
    "good": (GOOD, ".cpp", None),
    "c_kernel": ("float attend_hook_avx2(float x);\nfloat attend_hook_avx2(float x) { return x + 1.0f; }\n", ".c", None),
    "global_function": (GOOD + "float helper(float x);\nfloat helper(float x) { return x * 3.0f; }\n", ".cpp", "_Z6helperf"),
    # std::sort calls itself and so is not inlined: an inlined helper leaves no symbol and does no harm.
    "inline_std": ("#include <algorithm>\nnamespace attend::avx2 {\nvoid order(float* begin, float* end);\n"
                   "void order(float* begin, float* end) { std::sort(begin, end); }\n}\n", ".cpp", "_ZSt16__introsort_loop"),
    "run_time_initialiser": ("#include <cmath>\nnamespace attend::avx2 {\nextern volatile double seed;\nvolatile double seed = 2.0;\n"
                             "extern const double root;\nconst double root = std::sqrt(seed);\n}\n", ".cpp", ".init_array"),
    "thread_local": ("namespace attend::avx2 {\nextern thread_local int counter;\nthread_local int counter = 0;\n}\n", ".cpp", ".tbss"),
    "c_function": ("float attend_hook(float x);\nfloat attend_hook(float x) { return x + 1.0f; }\n", ".c", "attend_hook"),
    "template_over_plain_types": ("template <class T> __attribute__((noinline)) T largest(T a, T b) { return a < b ? b : a; }\n"
                                  "namespace attend::avx2 {\nfloat pick(float a, float b);\nfloat pick(float a, float b) { return largest(a, b); }\n}\n",
                                  ".cpp", "_Z7largestIfET_S0_S0_"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cmake", "script", "cxx", "cc", "nm", "readelf"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("fault", choices=CASES)
    arguments = parser.parse_args()
    source, suffix, expected = CASES[arguments.fault]
    with tempfile.TemporaryDirectory() as folder:
        file, made, stamp = (pathlib.Path(folder) / name for name in ("kernel" + suffix, "kernel.o", "stamp"))
        file.write_text(source)
        compiler = [arguments.cc, "-std=c11"] if suffix == ".c" else [arguments.cxx, "-std=c++20", "-fno-exceptions", "-fno-rtti"]
        subprocess.run([*compiler, "-O1", "-march=x86-64-v3", "-fPIC", "-fvisibility=hidden", "-c", str(file), "-o", str(made)], check=True)
        run = subprocess.run([arguments.cmake, f"-DOBJECTS={made}", "-DENTRY=avx2", f"-DNM={arguments.nm}", f"-DREADELF={arguments.readelf}",
                              f"-DSTAMP={stamp}", "-P", arguments.script], capture_output=True, text=True)
        stamped = stamp.exists()
    # CMake breaks long lines of its messages.
    said = "".join((run.stdout + run.stderr).split())
    if expected is None:
        if run.returncode == 0 and stamped:
            return 0
        print(f"{arguments.fault}: refused, but nothing is wrong with it\n{run.stdout}{run.stderr}")
        return 1
    if run.returncode != 0 and not stamped and expected in said:
        return 0
    print(f"{arguments.fault}: the check ended with {run.returncode} and did not name {expected}\n{run.stdout}{run.stderr}")
    return 1


sys.exit(main())
