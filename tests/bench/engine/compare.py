"""Asks both engines by turns for the time of a call and writes the table.

    compare.py CASES DUNLIN ONNXRUNTIME TABLE JSON
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

ROUNDS = int(os.environ.get("DUNLIN_BENCH_ROUNDS", "15"))
# Time of a turn; a turn is at least one call.
TURN_NS = 150_000_000
CALLS_MAX = 3000

library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


class Unequal(Exception):
    """The engines do not compute the same."""


class Engine:
    """One engine with one model, in a process of its own."""

    def __init__(self, *command):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, **pipes)
        ready = self.process.stdout.readline()
        if ready != "ready\n":
            raise RuntimeError(f"{command}: expected ready, got {ready!r}")
        self.calls = 3
        self.calls = max(1, min(CALLS_MAX, TURN_NS // self.ask()["least_ns"]))

    def ask(self):
        self.process.stdin.write(f"{self.calls}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def difference(folder):
    """Largest difference between the engines' outputs, and the largest output."""
    worst = largest = 0.0
    for at, _ in enumerate(json.loads((folder / "case.json").read_text())["outputs"]):
        ours, theirs = (np.fromfile(folder / f"{e}-{at}.bin", "<f4") for e in ("dunlin", "onnxruntime"))
        worst = max(worst, float(np.abs(ours - theirs).max()))
        largest = max(largest, float(np.abs(theirs).max()))
    return worst, largest


def measured(folder, dunlin, other):
    with Engine(dunlin, folder) as ours, Engine(other, library, folder) as theirs:
        rounds = [(ours.ask(), theirs.ask()) for _ in range(ROUNDS)]
    worst, largest = difference(folder)
    if not worst <= 1e-3 * max(1.0, largest):
        raise Unequal(f"{folder.name}: outputs differ by {worst}, the largest is {largest}")
    medians = [(a["median_ns"], b["median_ns"]) for a, b in rounds]
    return {
        "model": folder.name,
        "model_bytes": (folder / "model.onnx").stat().st_size,
        "dunlin_us": statistics.median(a for a, _ in medians) / 1000,
        "onnxruntime_us": statistics.median(b for _, b in medians) / 1000,
        "ratio": statistics.median(a / b for a, b in medians),
        "ratio_of_quickest": min(a["least_ns"] for a, _ in rounds) / min(b["least_ns"] for _, b in rounds),
        "difference": worst,
    }


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = dict(x.split(":", 1) for x in lines if ":" in x)
    told = {k.strip(): v.strip() for k, v in told.items()}
    flags = told.get("flags", told.get("Features", "")).split()
    wide = [f for f in ("asimd", "sse4_2", "avx", "fma", "avx2", "avx512f", "avx512vl") if f in flags]
    return {
        "processor": told.get("model name", "unknown"),
        "cores": os.cpu_count(),
        "instructions": wide,
        "load": round(os.getloadavg()[0], 1),
        "onnxruntime": onnxruntime.__version__,
        "rounds": ROUNDS,
    }


def table(told, results, mean):
    yield "# Engine: time a call beside ONNX Runtime\n"
    yield (f"Written by `tests/bench/engine/run`: {told['cores']} cores of {told['processor']} "
           f"({', '.join(told['instructions'])}), ONNX Runtime {told['onnxruntime']}, one thread each, "
           f"the machine also did other work (load {told['load']} at the start).\n")
    yield (f"Microseconds a call, the median of {told['rounds']} rounds' medians, engines by turns in "
           "every round, 0.15 s a turn. Dunlin: `Graph::run`, as the worker calls it, its checks and "
           "copies of values included. ONNX Runtime: the C API's `Run` from Rust (the `ort` crate, "
           "library of the PyPI wheel), all its optimisations. *ratio*: Dunlin to ONNX Runtime, the "
           "median of the rounds' own; *of the quickest*: of the quickest calls, which other work on "
           "the machine disturbs least. Models and inputs: `cases.py`; the outputs were compared.\n")
    yield "| model | size, KB | Dunlin | ONNX Runtime | ratio | of the quickest |"
    yield "|---|--:|--:|--:|--:|--:|"
    for r in results:
        yield (f"| {r['model']} | {r['model_bytes'] / 1000:,.0f} | {r['dunlin_us']:,.1f} "
               f"| {r['onnxruntime_us']:,.1f} | **{r['ratio']:.2f}** | {r['ratio_of_quickest']:.2f} |")
    yield f"| geometric mean | | | | **{mean['ratio']:.2f}** | {mean['ratio_of_quickest']:.2f} |"


def main(cases, dunlin, other, markdown, data):
    told, results = machine(), []
    for name in (cases / "names").read_text().split():
        results.append(measured(cases / name, dunlin, other))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    columns = ("ratio", "ratio_of_quickest")
    mean = {c: statistics.geometric_mean(r[c] for r in results) for c in columns}
    markdown.write_text("\n".join(table(told, results, mean)) + "\n")
    written = {"machine": told, "results": results, "geometric_mean": mean}
    data.write_text(json.dumps(written, indent=1) + "\n")


main(*map(Path, sys.argv[1:]))
