#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what pages take from the program: the table of mechanisms in README.md, the pictures of key patterns, and the
tables of choosing.md from the reports that are stored in bench/reports.

  write_pages.py SOURCE_DIR path/to/attend           writes
  write_pages.py SOURCE_DIR path/to/attend --check   compares only, and says what differs
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Picture, mechanism, flags: lengths at which a pattern can be seen.
PICTURES = [
    ("bigbird", "bigbird-attention", ["--set", "block_size=4", "--set", "num_random_blocks=2"]),
    ("longformer", "longformer-attention", ["--set", "window_size=4", "--set", "global_tokens=[0,20]"]),
    ("longformer-dilated", "longformer-attention", ["--set", "window_size=4", "--set", "dilation=3"]),
    ("local", "local-attention", ["--set", "window_size=6", "--set", "global_tokens=2"]),
    ("local-block", "local-attention", ["--set", "window_size=8", "--set", "mode=block"]),
    ("strided", "strided-attention", ["--set", "stride=8", "--set", "local_window=2"]),
    ("sparse-transformer", "sparse-transformer-attention", []),
    ("sparse-transformer-fixed", "sparse-transformer-attention", ["--set", "pattern=fixed", "--set", "summary=2"]),
    ("star", "star-attention", ["--set", "num_hubs=2", "--set", "ring_radius=2"]),
    ("star-anchor", "star-attention", ["--set", "mode=anchor", "--set", "block_size=12", "--set", "anchor_size=4", "--set", "context_length=48", "--causal"]),
    ("blockwise", "blockwise-attention", ["--set", "pattern=permutation", "--set", "num_blocks=4", "--heads", "4", "--head", "1"]),
    ("random", "random-attention", ["--set", "num_keys=8"]),
]
BEGIN, END = "<!-- from bench/reports: {} -->", "<!-- end -->"
REGISTRY = "<!-- from the registry -->"


def draw(attend, mechanism, flags, path):
    subprocess.run([attend, "heatmap", "--pattern", mechanism, "--sequence-length", "64", *flags, "--output", path], check=True, capture_output=True)
    return pathlib.Path(path).read_text()


def time_text(ms):
    return f"{ms * 1e3:.3g} us" if ms < 1 else f"{ms:.3g} ms" if ms < 1e3 else f"{ms / 1e3:.3g} s"


def scaling_table(report):
    rows = report["rows"]
    lengths = sorted({row["kv_len"] for row in rows})
    names = list(dict.fromkeys(row["mechanism"] for row in rows))
    names.sort(key=lambda name: (name != "flash-attention-v2", name))
    cpu, environment = report["environment"]["cpu"], report["environment"]
    text = (f"Time of one call on {environment['threads']} threads of an {cpu['model']} ({environment['backend']}), float32, {rows[0]['heads']} heads of width {rows[0]['dim']}, "
            f"defaults of every option; growth is the factor from half the last measured length.\n\n")
    text += "| mechanism | " + " | ".join(str(length) for length in lengths) + " | growth | extra memory |\n|---|" + "---|" * (len(lengths) + 2) + "\n"
    for name in names:
        own = {row["kv_len"]: row for row in rows if row["mechanism"] == name}
        measured = [row for row in own.values() if row["median_ms"]]
        growth = [row["growth"] for row in sorted(measured, key=lambda row: row["kv_len"]) if row["growth"]]
        largest = max(measured, key=lambda row: row["kv_len"])
        text += f"| {name} | " + " | ".join(time_text(own[length]["median_ms"]) if length in own and own[length]["median_ms"] else "-" for length in lengths)
        text += f" | {growth[-1]:.2f} | {largest['workspace_bytes'] / 1e6:.1f} MB |\n" if growth else " | - | - |\n"
    return text


def replaced(text, begin, content):
    """What stands between the line `begin` and the next end becomes `content`."""
    at = text.index(begin) + len(begin)
    return text[:at] + "\n" + content + text[text.index(END, at):]


def registry_table(attend):
    """Every mechanism that is loaded, by category."""
    listed = json.loads(subprocess.run([attend, "list", "--json"], check=True, capture_output=True).stdout)["mechanisms"]
    categories = list(dict.fromkeys(entry["category"] for entry in listed))
    counts = ", ".join(f"{category} {sum(entry['category'] == category for entry in listed)}" for category in categories)
    text = f"{len(listed)} mechanisms: {counts}.\n\n| mechanism | what it does | time |\n|---|---|---|\n"
    for category in categories:
        text += f"| [**{category}**](sdk/docs/mechanisms/{category}.md) | | |\n"
        for entry in listed:
            if entry["category"] != category:
                continue
            about = json.loads(subprocess.run([attend, "describe", entry["name"], "--json"], check=True, capture_output=True).stdout)
            text += f"| {entry['name']} | {about['summary']} | {about['complexity']} |\n"
    return text


def grid_table(report, line, column, cell, heading):
    """One line for each line(row), one column for each column(row)."""
    rows = [row for row in report["rows"] if row["median_ms"]]
    lines, columns = list(dict.fromkeys(map(line, rows))), sorted(dict.fromkeys(map(column, rows)))
    cells = {(line(row), column(row)): cell(row) for row in rows}
    text = f"{report['environment']['cpu']['model']}, {report['environment']['backend']}.\n\n"
    text += "| " + heading + " | " + " | ".join(str(name) for name in columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n"
    return text + "".join("| " + name + " | " + " | ".join(cells.get((name, at), "-") for at in columns) + " |\n" for name in lines)


def precision_table(report):
    return grid_table(report, lambda row: f"{row['mechanism']}, {row['precision']}, threads {row['threads']}", lambda row: row["kv_len"],
                      lambda row: f"{time_text(row['median_ms'])}, {row['share_of_peak']:.0%}", "share of the precision's peak at keys")


def decode_table(report):
    pages = lambda row: row["shape"].partition(" pages of ")[2]
    return grid_table(report, lambda row: row["precision"] + (f", pages of {pages(row)}" if pages(row) else "") + f", threads {row['threads']}",
                      lambda row: row["kv_len"], lambda row: f"{row['gbps']:.3g} GB/s, {row['share_of_peak']:.0%}", "rate and share of the memory's at keys")


def experts_table(report):
    return grid_table(report, lambda row: f"{row['mechanism']}, {row['kv_len']} tokens, threads {row['threads']}",
                      lambda row: int(row["name"].rpartition("E=")[2]),
                      lambda row: time_text(row["median_ms"]) + (f", x {row['growth']:.2f}" if row["growth"] else ""), "time at experts")


def compare_table(report):
    text = "| mechanism | relative L2 error | cosine | largest error |\n|---|---|---|---|\n"
    for row in report["rows"][1:]:
        text += f"| {row['mechanism']} | {row['relative_l2']:.3g} | {row['cosine']:.4f} | {row['max_abs']:.3g} |\n"
    return text


# Page, and which report becomes which table in it.
TABLES = [
    ("sdk/docs/mechanisms/choosing.md", {"scaling.json": scaling_table, "compare.json": compare_table, "precision.json": precision_table,
                                         "decode.json": decode_table, "experts.json": experts_table}),
]


def main():
    source, attend = pathlib.Path(sys.argv[1]), os.path.abspath(sys.argv[2])
    check = "--check" in sys.argv[3:]
    wrong = []

    def put(path, text):
        if path.exists() and path.read_text() == text:
            return
        wrong.append(str(path.relative_to(source)))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    with tempfile.TemporaryDirectory() as folder:
        for name, mechanism, flags in PICTURES:
            put(source / "sdk/docs/mechanisms/pictures" / f"{name}.svg", draw(attend, mechanism, flags, f"{folder}/{name}.svg"))
    for page, tables in TABLES:
        text = (source / page).read_text()
        for name, table in tables.items():
            text = replaced(text, BEGIN.format(name), table(json.loads((source / "bench/reports" / name).read_text())))
        put(source / page, text)
    readme = source / "README.md"
    put(readme, replaced(readme.read_text(), REGISTRY, registry_table(attend)))
    for path in wrong:
        print(f"{path}: {'differs from what the program gives; tests/tools/write_pages.py writes it' if check else 'written'}")
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
