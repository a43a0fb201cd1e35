#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every test that a page of sdk/docs promises exists.

Below a line "**Tests.**" of sdk/docs/<page>.md each bullet begins with a name in backticks,

    - `mutate one element misses`: another key, so the result is computed.

and some test program has TEST_CASE("<page>: mutate one element misses"). Usage: check_promises.py <source tree>
"""
import pathlib
import re
import sys


def promised(page):
    names, unnamed, inside = [], [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("**Tests.**"):
            inside = True
        elif inside and line.startswith("- "):
            name = re.match(r"- `([^`]+)`", line)
            (names if name else unnamed).append(name.group(1) if name else line[2:60])
        elif inside and line and not line.startswith(" "):
            inside = False
    return names, unnamed


def main():
    tree = pathlib.Path(sys.argv[1])
    cases = {}
    for source in sorted((tree / "tests").rglob("*.cpp")):
        for title in re.findall(r'TEST_CASE\(\s*"([^"]+)"', source.read_text(encoding="utf-8")):
            page, _, name = title.partition(": ")
            cases.setdefault(page, {})[name] = source.name
    complaints, kept, pages = [], 0, 0
    for page in sorted((tree / "sdk/docs").glob("*.md")):
        names, unnamed = promised(page)
        if not names and not unnamed:
            continue
        pages += 1
        have = cases.get(page.stem, {})
        complaints += [f"{page.name}: a test without a name: {text}" for text in unnamed]
        complaints += [f'{page.name}: "{name}" is listed twice' for name in sorted({n for n in names if names.count(n) > 1})]
        complaints += [f'{page.name}: no TEST_CASE("{page.stem}: {name}")' for name in names if name not in have]
        kept += sum(name in have for name in names)
    for complaint in complaints:
        print(complaint)
    print(f"{kept} promises of {pages} pages have a test, {len(complaints)} complaints")
    return 1 if complaints or kept == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
