#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs every command of README.md's sh blocks, in order, in the root of the tree, and fails at the first that fails.

run_readme.py ROOT [--skip TEXT]...: lines that contain a skipped text are not run (the scripts that run this test).
"""

import pathlib
import re
import subprocess
import sys


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    skipped = [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == "--skip"]
    blocks = re.findall(r"```sh\n(.*?)```", (root / "README.md").read_text(), re.S)
    if not blocks:
        print("README.md has no sh block")
        return 1
    subprocess.run(["rm", "-rf", "/tmp/my-plugin", "/tmp/attend-sdk"], check=True)
    count = 0
    for line in "".join(blocks).splitlines():
        command = line.split("  #")[0].strip()
        if not command or any(text in command for text in skipped):
            continue
        done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"README.md: `{command}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
            return 1
        count += 1
    print(f"{count} commands of README.md ran")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
