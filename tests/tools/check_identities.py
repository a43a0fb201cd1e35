#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every identity that the mechanism pages promise has a test, and every identity test a line in the pages.

In sdk/docs/mechanisms/*.md a mechanism is a section "## <name>". Each bullet below its "**Test identities.**" begins with
the identity's name in backticks:

    - `causality`: changing keys and values after a query leaves its row bitwise equal.

and tests/identities has TEST_CASE("<mechanism>: causality", ...). What a section refuses ("**Reject.**") is tested by cases
"<mechanism>: rejects ..."; at least one must exist. Usage: check_identities.py <source tree>
"""
import pathlib
import re
import sys

# Pages whose bullets must all have names; in the others a bullet without a name is not held against them.
ENFORCED = {"multi-head.md", "self-attention.md", "cross-attention.md", "sparse.md", "linear.md", "moe.md",
            "flash.md", "extra.md"}


def read_pages(folder):
    """mechanism -> (page, names of identities, bullets without a name, whether there is a Reject paragraph)"""
    found = {}
    for page in sorted(folder.glob("*.md")):
        if page.name in ("README.md", "reference.md"):
            continue
        section, inside = None, False
        for line in page.read_text(encoding="utf-8").splitlines():
            heading = re.match(r"## (\S+)\s*$", line)
            if heading:
                section, inside = heading.group(1), False
                found[section] = {"page": page.name, "names": [], "unnamed": [], "reject": False}
            elif section is None:
                continue
            elif line.startswith("**"):
                inside = line.startswith("**Test identities.**")
                found[section]["reject"] |= line.startswith("**Reject.**")
            elif inside and line.startswith("- "):
                name = re.match(r"- `([^`]+)`", line)
                if name:
                    found[section]["names"].append(name.group(1))
                else:
                    found[section]["unnamed"].append(line[2:60])
    return found


def read_tests(folder):
    """mechanism -> names of its test cases"""
    found = {}
    for source in sorted(folder.rglob("*.cpp")):
        for title in re.findall(r'TEST_CASE\(\s*"([^"]+)"', source.read_text(encoding="utf-8")):
            mechanism, colon, name = title.partition(": ")
            if not colon:
                print(f'{source.name}: test case "{title}" names no mechanism; accepted: "<mechanism>: <identity>"')
                found.setdefault("", []).append(title)
                continue
            found.setdefault(mechanism, []).append(name)
    return found


def main():
    source = pathlib.Path(sys.argv[1])
    pages, tests = read_pages(source / "sdk/docs/mechanisms"), read_tests(source / "tests/identities")
    wrong = len(tests.pop("", []))

    def complain(text):
        nonlocal wrong
        wrong += 1
        print(text)

    for mechanism, page in pages.items():
        names = tests.get(mechanism, [])
        enforced = page["page"] in ENFORCED
        for name in page["names"]:
            if name not in names:
                complain(f'{page["page"]}: identity `{name}` of {mechanism} has no TEST_CASE("{mechanism}: {name}")')
        for name in {name for name in page["names"] if page["names"].count(name) > 1}:
            complain(f'{page["page"]}: identity `{name}` of {mechanism} stands there twice')
        if not enforced:
            continue
        for text in page["unnamed"]:
            complain(f'{page["page"]}: identity of {mechanism} has no name in backticks: "{text}..."')
        if not page["names"] and not page["unnamed"]:
            complain(f'{page["page"]}: {mechanism} lists no identities')
        if page["reject"] and not any(name.startswith("rejects ") for name in names):
            complain(f'{page["page"]}: what {mechanism} rejects has no TEST_CASE("{mechanism}: rejects ...")')
    for mechanism, names in tests.items():
        if mechanism not in pages:
            complain(f"tests/identities: {mechanism} is not a mechanism of the pages")
            continue
        for name in names:
            if not name.startswith("rejects ") and name not in pages[mechanism]["names"]:
                complain(f'tests/identities: "{mechanism}: {name}" is no identity of {pages[mechanism]["page"]}')
    held = sum(len(page["names"]) for page in pages.values())
    print(f"{held} identities of {len(pages)} mechanisms, {wrong} complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
