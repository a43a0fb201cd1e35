# SPDX-License-Identifier: Apache-2.0
"""What the comparisons of this folder share: packages that must be there, the program as a function of tensors, and the
count of comparisons. Imported by compare_*.py, which are the scripts to run."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ATTEND = sys.argv[1] if len(sys.argv) > 1 else "build/release/bin/attend"
WORK = pathlib.Path(tempfile.mkdtemp(prefix=f"{pathlib.Path(sys.argv[0]).stem}."))
VERSIONS = {"torch": "torch==2.13.0", "torch_geometric": "torch-geometric==2.8.1", "transformers": "transformers==5.23.0"}
counts = {True: 0, False: 0}

# Nothing is downloaded.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")


def need(*packages):
    """Ends the script, with nothing passed and nothing failed, where a package is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            print(f"skipped: {package} is not installed; pip install {' '.join(VERSIONS.get(name, name) for name in packages)}")
            print("0 passed, 0 failed")
            sys.exit(0)


def attend(mechanism, tensors, *flags, options=None):
    """Output tensors of one `attend compute` as a dict."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, WORK / "in.safetensors")
    command = [ATTEND, "compute", mechanism, "--quiet", "--input", str(WORK / "in.safetensors"), "--output", str(WORK / "out.safetensors")]
    for name, value in (options or {}).items():
        command += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    done = subprocess.run(command + [str(flag) for flag in flags], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return load_file(WORK / "out.safetensors")


@functools.cache
def listed():
    """Names of the mechanisms that the program has."""
    done = subprocess.run([ATTEND, "list", "--json"], capture_output=True, text=True, check=True)
    return {row["name"] for row in json.loads(done.stdout)["mechanisms"]}


def report(name, difference, limit=1e-5):
    good = bool(difference <= limit)
    counts[good] += 1
    print(f"{'' if good else 'FAILED '}{name}: maximum difference {difference:.1e}, at most {limit:.0e}")


def attempt(function, *arguments):
    """One comparison: its failure must not hide the others."""
    try:
        function(*arguments)
    except Exception as problem:  # noqa: BLE001
        counts[False] += 1
        print(f"FAILED {function.__name__}{arguments}: {type(problem).__name__}: {problem}")


def finish():
    """The exit status."""
    print(f"{counts[True]} passed, {counts[False]} failed")
    return 1 if counts[False] or not counts[True] else 0
