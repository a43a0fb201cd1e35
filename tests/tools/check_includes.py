#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may include what. Prints every include that its part of the tree may not have, and fails if there is one.

    check_includes.py <source folder>
    check_includes.py --self-test     plants one fault per rule and expects each to be found
"""
import pathlib
import re
import sys
import tempfile

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)
SOURCES = {".h", ".hpp", ".c", ".cpp", ".inc"}
ABI = r"attend/(abi|plugin)\.h"
STANDARD = r"[a-z0-9_]+(\.h)?"  # <vector>, <stdint.h>; with a slash only for the system
SYSTEM = r"(sys/[a-z]+\.h|[a-z0-9_]+(\.h)?)"

# Part of the tree, what its files may include beside files of their own folder, and what that is in words.
PARTS = [
    ("sdk/abi/", rf"(stdint\.h|stddef\.h|attend/abi\.h)", "<stdint.h>, <stddef.h> and abi.h"),
    ("sdk/author/", rf"({STANDARD}|{ABI}|attend/author/.*|attend/toolkit\.h|attend/toolkit/.*)", "the ABI, the author layer, the toolkit"),
    ("sdk/toolkit/", rf"({STANDARD}|{ABI}|attend/toolkit(\.h|/.*)|xsimd/.*)", "the ABI and the toolkit"),
    ("sdk/examples/", rf"({STANDARD}|{ABI}|attend/(author|toolkit)/.*|attend/toolkit\.h)", "the SDK"),
    ("plugins/", rf"({STANDARD}|{ABI}|attend/(author|toolkit)/.*|attend/toolkit\.h)", "the author layer and the toolkit"),
    ("registry/", rf"({STANDARD}|attend/abi\.h|attend/registry/.*|attend/config/.*|attend/error\.hpp)", "the ABI, config and the standard library"),
    ("config/", rf"({STANDARD}|attend/abi\.h|attend/config/.*|attend/error\.hpp|rule_language/[a-z]+\.hpp|boost/.*)", "the ABI and the standard library"),
    ("host/", rf"({SYSTEM}|attend/(?!toolkit|author|plugin\.h).*|(?!attend/)[a-z_/0-9]+\.hpp|boost/.*|tbb/.*|oneapi/.*|spdlog/.*|CLI/.*)",
     "registry, config, abi.h and the host's own headers; never the toolkit or the author layer"),
]

# A library, the only files that may include it.
LIBRARIES = [
    (r"xsimd/.*", r"sdk/toolkit/attend/toolkit/simd/isa\.hpp"),
    (r"boost/json.*", r"config/src/(parse|write)\.cpp"),
    (r"boost/dll.*", r"host/src/loading/plugin_loader\.cpp"),
    (r"boost/(?!json|dll).*", r"host/src/loading/plugin_loader\.cpp"),
    (r"(oneapi/)?tbb(/.*|\.h)", r"host/src/plugin_services/parallel\.cpp"),
    (r"spdlog/.*", r"host/src/plugin_services/log\.cpp"),
    (r"CLI/.*", r"host/cli/.*"),
    (r"catch2/.*", r"tests/support/.*"),
]


def problems_of(root):
    problems = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix not in SOURCES or name.startswith(("build", ".")) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for match in INCLUDE.finditer(text):
            quote, included = match.groups()
            place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
            for library, only in LIBRARIES:
                if re.fullmatch(library, included) and not re.fullmatch(only, name):
                    problems.append(f"{place}: includes {included}; accepted: only in {only.replace(chr(92), '')}")
            beside = quote == '"' and (path.parent / included).is_file()
            for part, allowed, words in PARTS:
                if name.startswith(part) and not beside and not re.fullmatch(allowed, included):
                    problems.append(f"{place}: includes {included}; accepted: {words}")
            if beside and "../" in included and not name.startswith("tests/"):
                problems.append(f"{place}: includes {included}; accepted: no way up the tree")
    return problems


FAULTS = {
    "sdk/abi/attend/abi.h": "<string.h>",
    "sdk/author/attend/author/a.hpp": '"attend/registry/mechanism_registry.hpp"',
    "sdk/toolkit/attend/toolkit/a.hpp": "<xsimd/xsimd.hpp>",
    "sdk/toolkit/attend/toolkit/b.hpp": '"attend/author/plugin.hpp"',
    "plugins/sparse/a.cpp": '"attend/config/config.hpp"',
    "plugins/sparse/b.cpp": "<tbb/parallel_for.h>",
    "registry/src/a.cpp": '"loading/probe.hpp"',
    "config/src/config.cpp": "<boost/json.hpp>",
    "host/src/service/a.cpp": "<tbb/task_arena.h>",
    "host/src/service/b.cpp": "<spdlog/spdlog.h>",
    "host/src/service/c.cpp": "<boost/dll/shared_library.hpp>",
    "host/src/service/d.cpp": '"attend/toolkit/simd/isa.hpp"',
    "host/src/service/e.cpp": '"attend/author/mechanism.hpp"',
    "host/src/service/f.cpp": "<CLI/CLI.hpp>",
    "tests/unit/a.cpp": "<catch2/catch.hpp>",
}


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, included in FAULTS.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"#include <stdint.h>\n#include {included}\n")
        good = root / "host/src/plugin_services/parallel.cpp"
        good.parent.mkdir(parents=True)
        good.write_text("#include <tbb/task_arena.h>\n#include <vector>\n")
        found = problems_of(root)
    missed = [name for name in FAULTS if not any(problem.startswith(f"{name}:2:") for problem in found)]
    false = [problem for problem in found if problem.split(":")[0] not in FAULTS or ":1:" in problem]
    for line in [f"{name}: the fault was not found" for name in missed] + [f"no fault: {problem}" for problem in false]:
        print(line)
    return 1 if missed or false else 0


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    if sys.argv[1] == "--self-test":
        return self_test()
    problems = problems_of(pathlib.Path(sys.argv[1]))
    print("\n".join(problems) if problems else "every include is one that its part of the tree may have")
    return 1 if problems else 0


sys.exit(main())
