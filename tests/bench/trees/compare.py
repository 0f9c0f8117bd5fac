"""Runs the engines by turns over every folder and prints the table."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import onnxruntime

ROWS = [1, 10, 100, 1000]
CALLS = {1: 4000, 10: 2000, 100: 400, 1000: 60}
# tract takes tens of milliseconds a row by its own operator: one row is enough.
TRACT_CALLS = {1: 20}
ROUNDS = 5

library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


def median_ns(command, folder):
    done = subprocess.run([*command, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["median_ns"]


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(": ")[1] for x in lines if x.startswith("model name")), "unknown")


def us(ns):
    return f"{ns / 1000:,.1f}"


def main():
    work, ours, theirs = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    print("# Trees: time a call\n")
    print(f"Written by `tests/bench/trees/run`: {os.cpu_count()} cores of {processor()}, "
          f"ONNX Runtime {onnxruntime.__version__}, one thread each, release build, the machine "
          "also did other work.\n")
    print(f"Microseconds a call, the median of {ROUNDS} rounds' medians, engines by turns in every "
          "round. Dunlin: `Graph::run`, as the worker calls it, its checks and copies of values "
          "included. ONNX Runtime: the C API's `Run` from Rust (the `ort` crate, library of the "
          "PyPI wheel), the making of the input's view included. tract: its own operator, "
          "conversions left out; it has none for regression. Models: `models.py`; rows are of the "
          "training data, another one every call. *ratio*: Dunlin to ONNX Runtime, the median of "
          "the rounds' own.\n")
    print("| model | trees | nodes | rows a call | Dunlin | ONNX Runtime | ratio | tract's own |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for model in json.loads((work / "models.json").read_text()):
        for rows in ROWS:
            folder, calls = work / f"{model['name']}-{rows}", str(CALLS[rows])
            rounds = [(median_ns([ours, "dunlin", calls], folder),
                       median_ns([theirs, library, calls], folder)) for _ in range(ROUNDS)]
            own, other = (statistics.median(x) for x in zip(*rounds))
            ratio = statistics.median(a / b for a, b in rounds)
            tract = "–"
            classifier = len(json.loads((folder / "outputs.json").read_text())) == 2
            if classifier and rows in TRACT_CALLS:
                tract = us(median_ns([ours, "tract", str(TRACT_CALLS[rows])], folder))
            print(f"| {model['name']} | {model['trees']} | {model['nodes']:,} | {rows:,} | {us(own)} "
                  f"| {us(other)} | **{ratio:.2f}** | {tract} |", flush=True)


main()
