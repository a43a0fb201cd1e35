#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same attention calls through attend, PyTorch and ONNX Runtime, in turns in one run.

    pip install torch onnxruntime onnx numpy        what is absent is named and skipped; numpy is needed
    cmake --build build/release --target bench_peer_worker all_plugins
    cmake --build build/release --target bench
    bench/peers/peers.py --worker build/release/bench/bench_peer_worker [--quick] [--threads 1,2] [--json report.json]

Every contender gets the same tensors (standard normal, from a seed; bf16 ones rounded once). It is warmed up, then all
take turns, a slice of time each, until every one has at least ten runs; the figures are medians. Every output, the
peers' too, is held against float64 on sampled rows, and a wrong one has no time. Threads are pinned: the caller to one
processor, the workers to the others. float32 is compared with float32, bf16 with bf16; ONNX Runtime's CPU provider has
no bf16 attention. Of ONNX Runtime's operators (MultiHeadAttention, GroupQueryAttention, Attention of opset 23) the
fastest that takes the shape counts. `ratio` is the fastest peer's time over ours: above 1 we are faster. GFLOP/s count
4 B H Nq Nk D operations, half of that when causal.
"""
import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

try:
    import torch
except ImportError:
    torch = None
try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None


class Shape:
    def __init__(self, kind, dtype, heads, kv_heads, q_len, kv_len, dim, causal=False):
        self.kind, self.dtype, self.heads, self.kv_heads = kind, dtype, heads, kv_heads
        self.q_len, self.kv_len, self.dim, self.causal = q_len, kv_len, dim, causal

    def name(self):
        length = f"N={self.q_len}" if self.q_len == self.kv_len else f"kv={self.kv_len}"
        return f"{self.kind} {self.dtype} {'causal' if self.causal else 'full'} {length} D={self.dim}"

    def flops(self):
        return 4.0 * self.heads * self.q_len * self.kv_len * self.dim * (0.5 if self.causal else 1.0)


def shapes(quick):
    lengths = [128, 512, 2048] if quick else [128, 512, 1024, 2048, 4096, 8192]
    for dtype in ("fp32", "bf16"):
        for dim in (64,) if quick else (64, 128):
            for causal in (False, True):
                for n in lengths:
                    yield Shape("prefill", dtype, 8, 8, n, n, dim, causal)
        for kv in (1024, 8192) if quick else (1024, 4096, 8192, 16384, 32768):
            yield Shape("decode", dtype, 32, 8, 1, kv, 128)


def to_bf16(x):
    """Rounded to nearest even, as 16 bits."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_safetensors(path, tensors, dtype):
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:8 + size])["output"]
    begin, end = (8 + size + at for at in entry["data_offsets"])
    kind = {"F32": np.float32, "BF16": np.uint16}[entry["dtype"]]
    values = np.frombuffer(data[begin:end], dtype=kind).reshape(entry["shape"])
    return values if kind == np.float32 else from_bf16(values)


class Problem:
    """Tensors of a shape, and float64 results of some of its rows."""

    def __init__(self, shape, seed):
        random = np.random.default_rng(seed)
        extents = {"query": (1, shape.heads, shape.q_len, shape.dim), "key": (1, shape.kv_heads, shape.kv_len, shape.dim),
                   "value": (1, shape.kv_heads, shape.kv_len, shape.dim)}
        self.shape = shape
        self.tensors = {name: random.standard_normal(extent, dtype=np.float32) for name, extent in extents.items()}
        self.raw = self.tensors
        if shape.dtype == "bf16":
            self.raw = {name: to_bf16(tensor) for name, tensor in self.tensors.items()}
            self.tensors = {name: from_bf16(tensor) for name, tensor in self.raw.items()}
        self.rows = np.unique(random.integers(0, shape.q_len, 12).tolist() + [0, shape.q_len - 1])
        group = shape.heads // shape.kv_heads
        expected = []
        for head in range(shape.heads):
            q = self.tensors["query"][0, head, self.rows].astype(np.float64)
            k, v = (self.tensors[name][0, head // group].astype(np.float64) for name in ("key", "value"))
            scores = q @ k.T / math.sqrt(shape.dim)
            if shape.causal:
                scores[np.arange(shape.kv_len)[None, :] > (self.rows + shape.kv_len - shape.q_len)[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            expected.append(weights @ v / weights.sum(axis=1, keepdims=True))
        self.expected = np.stack(expected)

    def error(self, output):
        """Of [1,H,N,D], relative to the largest expected magnitude."""
        got = np.asarray(output, dtype=np.float64).reshape(self.shape.heads, self.shape.q_len, self.shape.dim)[:, self.rows]
        return float(np.max(np.abs(got - self.expected)) / np.max(np.abs(self.expected)))

    def tolerance(self):
        return 2e-2 if self.shape.dtype == "bf16" else 1e-4


def pin(threads):
    """The calling thread to the last processor, all others of this process to the ones before it."""
    cpus = sorted(CPUS, reverse=True)
    if len(cpus) < threads:
        return
    own, others, position = os.getpid(), cpus[1:] or cpus, 0
    for task in map(int, os.listdir("/proc/self/task")):
        target = cpus[0] if task == own else others[position % len(others)]
        position += task != own
        try:
            os.sched_setaffinity(task, {target})
        except OSError:
            pass


def unpin():
    """New threads inherit the mask of the one that makes them."""
    for task in map(int, os.listdir("/proc/self/task")):
        try:
            os.sched_setaffinity(task, CPUS)
        except OSError:
            pass


def forms(shape):
    """How a peer may be given the shape: as it is, and for one query of several heads per key head with those heads as
    rows of one, which spares it the reading of a key for each. The result is the same numbers in the same order."""
    yield shape
    if shape.q_len == 1 and shape.heads != shape.kv_heads:
        yield Shape(shape.kind, shape.dtype, shape.kv_heads, shape.kv_heads, shape.heads // shape.kv_heads, shape.kv_len, shape.dim)


def timed(function, seconds, least):
    samples, begin = [], time.perf_counter()
    while len(samples) < least or (time.perf_counter() - begin < seconds and len(samples) < 2000):
        start = time.perf_counter()
        function()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


class Ours:
    name = "attend"

    def __init__(self, worker, folder):
        self.process = subprocess.Popen([worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder, self.count = folder, 0

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def prepare(self, problem, threads):
        self.count += 1
        path = str(self.folder / f"{self.count}.safetensors")
        write_safetensors(path, problem.raw, "BF16" if problem.shape.dtype == "bf16" else "F32")
        self.request = dict(input=path, causal=problem.shape.causal, threads=threads)
        self.ask(**self.request, seconds=0.0, least=1, output=str(self.folder / "out.safetensors"))
        os.unlink(path)
        return read_safetensors(self.folder / "out.safetensors")

    def samples(self, seconds, least):
        answer = self.ask(**self.request, seconds=seconds, least=least)
        self.note = answer["backend"] + (" (computed in float32)" if answer["computed_in"] == "F32" else "")
        return answer["samples_ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Torch:
    name = "torch"

    def prepare(self, problem, threads):
        torch.set_num_threads(threads)
        shape = problem.shape

        def tensor(name):
            if shape.dtype == "bf16":
                return torch.from_numpy(problem.raw[name].view(np.int16)).view(torch.bfloat16)
            return torch.from_numpy(problem.raw[name])

        q, k, v = tensor("query"), tensor("key"), tensor("value")
        best = None
        for form in forms(shape):
            rows = q.reshape(1, form.heads, form.q_len, form.dim)
            grouped = {"enable_gqa": True} if form.heads != form.kv_heads else {}

            def call(rows=rows, grouped=grouped):
                with torch.inference_mode():
                    return torch.nn.functional.scaled_dot_product_attention(rows, k, v, is_causal=shape.causal, **grouped)

            output = call()
            duration = statistics.median(timed(call, 0.05, 3))
            if best is None or duration < best[0]:
                best = (duration, call, output)
        _, self.call, output = best
        return output.float().numpy()

    def samples(self, seconds, least):
        return timed(self.call, seconds, least)


class OnnxRuntime:
    name = "onnxruntime"

    def models(self, shape):
        """(operator, model, inputs [B,N,H*D], whether the output is [B,N,H*D])."""
        from onnx import TensorProto, helper

        def model(node, inputs, outputs, opset):
            graph = helper.make_graph([node], "attention", inputs, outputs)
            return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])

        def value(name, extents):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, extents)

        wide, narrow = shape.heads * shape.dim, shape.kv_heads * shape.dim
        packed = [value("q", [1, shape.q_len, wide]), value("k", [1, shape.kv_len, narrow]), value("v", [1, shape.kv_len, narrow])]
        out = [value("y", [1, shape.q_len, wide])]
        yield "Attention-23", model(
            helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=shape.heads, kv_num_heads=shape.kv_heads, is_causal=int(shape.causal)),
            packed, out, 23)
        if shape.heads == shape.kv_heads:
            yield "MultiHeadAttention", model(
                helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=shape.heads, unidirectional=int(shape.causal)),
                packed, out, 22)
        if shape.causal:
            i32 = TensorProto.INT32
            constants = [helper.make_node("Constant", [], ["lengths"], value=helper.make_tensor("l", i32, [1], [shape.kv_len - 1])),
                         helper.make_node("Constant", [], ["total"], value=helper.make_tensor("t", i32, [1], [shape.kv_len])),
                         helper.make_node("Constant", [], ["none"], value=helper.make_tensor("n", TensorProto.FLOAT, [1, shape.kv_heads, 0, shape.dim], []))]
            node = helper.make_node("GroupQueryAttention", ["q", "k", "v", "none", "none", "lengths", "total"], ["y", "pk", "pv"], domain="com.microsoft",
                                    num_heads=shape.heads, kv_num_heads=shape.kv_heads)
            cache = [1, shape.kv_heads, shape.kv_len, shape.dim]
            graph = helper.make_graph(constants + [node], "attention", packed, out + [value("pk", cache), value("pv", cache)])
            yield "GroupQueryAttention", helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)])

    def prepare(self, problem, threads):
        shape = problem.shape
        if shape.dtype != "fp32":
            raise NotImplementedError("no bf16 attention on CPU")
        best, failures = None, []
        for form, operator, model in ((form, *one) for form in forms(shape) for one in self.models(form)):
            query = problem.tensors["query"].reshape(1, form.heads, form.q_len, form.dim)
            packed = {to: np.ascontiguousarray(tensor.transpose(0, 2, 1, 3)).reshape(1, tensor.shape[2], -1)
                      for to, tensor in (("q", query), ("k", problem.tensors["key"]), ("v", problem.tensors["value"]))}
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 4
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
                binding = session.io_binding()
                for name, array in packed.items():
                    binding.bind_cpu_input(name, array)
                for output in session.get_outputs():
                    binding.bind_output(output.name)
                call = lambda session=session, binding=binding: session.run_with_iobinding(binding)
                call()
                output = binding.copy_outputs_to_cpu()[0].reshape(1, form.q_len, form.heads, form.dim).transpose(0, 2, 1, 3)
                if problem.error(output) > problem.tolerance():
                    failures.append(f"{operator} is wrong by {problem.error(output):.1e}")
                    continue
                duration = statistics.median(timed(call, 0.1, 3))
            except Exception as error:  # an operator that this version lacks, or refuses the shape
                failures.append(f"{operator}: {str(error).splitlines()[0][:100]}")
                continue
            if best is None or duration < best[0]:
                best = (duration, operator, call, output)
        if best is None:
            raise NotImplementedError("; ".join(failures))
        _, self.note, self.call, output = best
        return output

    def samples(self, seconds, least):
        return timed(self.call, seconds, least)


def measure(shape, threads, contenders, seconds, rounds):
    problem = Problem(shape, 7)
    row = {"name": shape.name(), "kind": shape.kind, "dtype": shape.dtype, "causal": shape.causal, "q_len": shape.q_len,
           "kv_len": shape.kv_len, "dim": shape.dim, "heads": shape.heads, "kv_heads": shape.kv_heads, "threads": threads, "results": {}}
    ready = []
    unpin()
    for contender in contenders:
        entry = row["results"][contender.name] = {}
        try:
            entry["error"] = problem.error(contender.prepare(problem, threads))
        except NotImplementedError as reason:
            entry["skipped"] = str(reason)
            continue
        if not entry["error"] <= problem.tolerance():
            entry["wrong"] = True
            continue
        ready.append((contender, entry, []))
    pin(threads)
    least = max(2, -(-10 // rounds))
    for _ in range(rounds):
        for contender, entry, samples in ready:
            time.sleep(0.02)  # threads of the one before go to sleep
            samples += contender.samples(seconds, least)
    for contender, entry, samples in ready:
        low, middle, high = np.percentile(samples, [25, 50, 75])
        entry.update(median_ms=float(middle), lower_quartile_ms=float(low), upper_quartile_ms=float(high), runs=len(samples),
                     gflops=shape.flops() / (middle * 1e6), note=getattr(contender, "note", ""))
    times = {name: entry["median_ms"] for name, entry in row["results"].items() if "median_ms" in entry}
    peers = [value for name, value in times.items() if name != "attend"]
    row["ratio"] = min(peers) / times["attend"] if peers and "attend" in times else None
    return row


def print_row(row, names):
    cells = []
    for name in names:
        entry = row["results"].get(name, {})
        if "median_ms" in entry:
            cells.append(f"{entry['median_ms']:10.3f} ms {entry['gflops']:7.1f} {entry['error']:8.1e}")
        else:
            cells.append(f"{'wrong ' + format(entry.get('error', 0), '.1e') if entry.get('wrong') else 'skipped':>30}")
    ratio = f"{row['ratio']:6.2f}" if row["ratio"] else "     -"
    print(f"{row['name']:44} T{row['threads']} " + " | ".join(cells) + f" | {ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="build/release/bench/bench_peer_worker")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter slices")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="", help="only shapes whose name holds this text")
    parser.add_argument("--json", help="write the report to this file")
    arguments = parser.parse_args()
    if not os.access(arguments.worker, os.X_OK):
        parser.error(f"--worker: {arguments.worker} cannot be run; build the target bench_peer_worker")
    for name, module, package in (("PyTorch", torch, "torch"), ("ONNX Runtime", onnxruntime, "onnxruntime onnx")):
        if module is None:
            print(f"{name} is absent and skipped: pip install {package}")
    rows, names = [], []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(arguments.worker, pathlib.Path(folder))
        contenders = [ours] + ([Torch()] if torch else []) + ([OnnxRuntime()] if onnxruntime else [])
        names = [contender.name for contender in contenders]
        print(f"{'shape':44}    " + " | ".join(f"{name + ': median, GFLOP/s, error':>30}" for name in names) + " |  ratio")
        for threads in map(int, arguments.threads.split(",")):
            if threads > len(CPUS):
                print(f"T{threads} is skipped: this process may use {len(CPUS)} processors")
                continue
            for shape in shapes(arguments.quick):
                if arguments.only not in shape.name():
                    continue
                rows.append(measure(shape, threads, contenders, 0.05 if arguments.quick else 0.2, 3 if arguments.quick else 5))
                print_row(rows[-1], names)
        ours.close()
    wrong = [f"{row['name']} T{row['threads']}: {name}" for row in rows for name, entry in row["results"].items() if entry.get("wrong")]
    ratios = [row["ratio"] for row in rows if row["ratio"]]
    mean = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None
    print(f"\ngeometric mean of {len(ratios)} ratios: {mean:.2f}" if mean else "\nno ratios")
    print("slower than a peer: " + (", ".join(f"{row['name']} T{row['threads']}" for row in rows if row["ratio"] and row["ratio"] < 1) or "nowhere"))
    for line in wrong:
        print("wrong: " + line)
    if arguments.json:
        versions = {"torch": torch.__version__ if torch else None, "onnxruntime": onnxruntime.__version__ if onnxruntime else None,
                    "numpy": np.__version__, "python": platform.python_version()}
        report = {"command": sys.argv, "versions": versions, "machine": platform.platform(), "rows": rows, "geometric_mean": mean}
        beside = arguments.json + ".part"
        pathlib.Path(beside).write_text(json.dumps(report, indent=2) + "\n")
        os.replace(beside, arguments.json)
    return 1 if any("attend" in line for line in wrong) else 0


CPUS = os.sched_getaffinity(0)
if __name__ == "__main__":
    sys.exit(main())
