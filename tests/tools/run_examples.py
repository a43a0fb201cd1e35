#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every listed mechanism has a guide (formula, cost, when to choose it, example), and its example runs.

Usage: run_examples.py path/to/attend
"""
import json
import os
import shlex
import subprocess
import sys


def main() -> int:
    program = os.path.abspath(sys.argv[1])

    def attend(*arguments: str) -> str:
        return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout

    faults = 0
    mechanisms = json.loads(attend("list", "--json"))
    rows = mechanisms["mechanisms"] if isinstance(mechanisms, dict) else mechanisms
    for row in rows:
        name = row["name"]
        guide = json.loads(attend("describe", name, "--json"))["guide"]
        missing = [key for key in ("formula", "cost", "use", "example") if not guide.get(key)]
        words = shlex.split(guide.get("example", ""))
        if missing or words[:1] != ["attend"] or name not in words:
            print(f"{name}: guide lacks {', '.join(missing) or 'an example that names it'}")
            faults += 1
            continue
        done = subprocess.run([program, *words[1:], "--quiet"], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{name}: `{guide['example']}` ends with status {done.returncode}: {done.stderr.strip()}")
            faults += 1
    print(f"{len(rows) - faults} passed, {faults} failed")
    return 1 if faults or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
