#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Relative links of every Markdown file: the file exists, and where a heading is named, that too.

    check_links.py <source folder>
    check_links.py --self-test
"""
import pathlib
import re
import sys
import tempfile
import urllib.parse

LINK = re.compile(r"\[[^\]\n]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^\[[^\]\n]+\]:\s*<?(\S+?)>?\s*$", re.M)
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.M | re.S)


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def anchors_of(path):
    text = FENCE.sub(blank, path.read_text(encoding="utf-8"))
    anchors, seen = set(re.findall(r'<a\s+(?:id|name)="([^"]+)"', text)), {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        anchors.add(slug if count == 0 else f"{slug}-{count}")
    return anchors


def problems_of(root):
    problems = []
    for path in sorted(root.rglob("*.md")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("build", ".")):
            continue
        raw = FENCE.sub(blank, path.read_text(encoding="utf-8"))
        text = re.sub(r"`[^`\n]*`", blank, raw)
        for match in [*LINK.finditer(text), *DEFINITION.finditer(text)]:
            target = urllib.parse.unquote(match.group(1))
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
            file, _, anchor = target.partition("#")
            to = (path.parent / file) if file else path
            if not to.exists():
                problems.append(f"{place}: links to {file}, which does not exist")
            elif anchor and to.suffix == ".md" and anchor not in anchors_of(to):
                problems.append(f"{place}: links to {target}, which has no such heading")
    return problems


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "a.md").write_text("# One two\n[good](b.md) [good](#one-two) [web](https://example.org/x.md)\n```\n[code](none.md)\n```\n"
                                   "[bad](gone.md)\n[bad](b.md#nowhere)\n[ref]: lost.md\n")
        (root / "b.md").write_text("text\n")
        lines = [problem.split(":")[1] for problem in problems_of(root)]
    if sorted(lines) != ["6", "7", "8"]:
        print(f"faults found on lines {lines}; expected 6, 7 and 8")
        return 1
    return 0


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    if sys.argv[1] == "--self-test":
        return self_test()
    problems = problems_of(pathlib.Path(sys.argv[1]))
    print("\n".join(problems) if problems else "every relative link leads somewhere")
    return 1 if problems else 0


sys.exit(main())
