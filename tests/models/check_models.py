#!/usr/bin/env python3
"""Checks the committed models without training: each loads in ONNX Runtime and meets its golden
cases after its signed steps, and each reference profile adds up. Exit status 1 names every fault.
"""

import hashlib
import json
import math
import pathlib
import sys
import tomllib

import numpy as np
import onnxruntime

DIGITS = pathlib.Path(__file__).resolve().parent / "digits"
FIELD_ROW_BYTES = 65


def stepped(bundle, inputs):
    """The declared steps, in order, in 32-bit floats as the device computes them."""
    tensors = {}
    for declared in bundle["inputs"]:
        tensors[declared["name"]] = np.array(
            inputs[declared["name"]], dtype=np.float32).reshape(declared["shape"])
    for step in bundle.get("steps", {}).get("pre", []):
        scale = step["scale"]
        tensors[scale["tensor"]] = (tensors[scale["tensor"]] * np.float32(scale["mul"])
                                    + np.float32(scale["add"]))
    return tensors


def golden_faults(folder, bundle):
    golden = json.loads((folder / bundle["golden"]).read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        (folder / bundle["model"]).read_bytes(), providers=["CPUExecutionProvider"])
    names = [output["name"] for output in bundle["outputs"]]
    worst, winners = 0.0, set()
    for case in golden["cases"]:
        answers = session.run(names, stepped(bundle, case["inputs"]))
        for name, answer in zip(names, answers):
            expected = np.array(case["outputs"][name])
            winners.add(int(expected.argmax()))
            gap = float(np.abs(answer.ravel() - expected).max())
            worst = max(worst, gap)
            if not gap <= bundle["limits"]["tolerance_abs"]:
                yield f"golden case {case['name']!r}: {name} is off by {gap:.2e}, allowed " \
                      f"{bundle['limits']['tolerance_abs']}"
    if len(winners) != len(bundle["labels"]):
        yield f"golden cases cover {len(winners)} of {len(bundle['labels'])} classes"
    print(f"{folder.name}: {len(golden['cases'])} golden cases, largest gap {worst:.1e}")


def histogram_faults(name, rows, edges, counts):
    if len(counts) != len(edges) - 1:
        yield f"profile {name}: {len(edges)} edges need {len(edges) - 1} counts, got {len(counts)}"
    if not all(math.isfinite(edge) for edge in edges) or any(
            a >= b for a, b in zip(edges, edges[1:])):
        yield f"profile {name}: edges must be finite and strictly increasing"
    if sum(counts) != rows:
        yield f"profile {name}: counts sum to {sum(counts)}, rows are {rows}"


def profile_faults(folder, bundle):
    profile = json.loads((folder / bundle["profile"]).read_text(encoding="utf-8"))
    rows = profile["rows"]
    for feature in profile["features"]:
        yield from histogram_faults(feature["name"], rows, feature["edges"], feature["counts"])
    for name in ("confidence", "entropy"):
        yield from histogram_faults(name, rows, profile[name]["edges"], profile[name]["counts"])
    outputs = profile["outputs"]
    if outputs["classes"] != bundle["labels"] or len(outputs["counts"]) != len(bundle["labels"]):
        yield "profile outputs: classes are not the bundle's labels"
    if sum(outputs["counts"]) != rows:
        yield f"profile outputs: counts sum to {sum(outputs['counts'])}, rows are {rows}"
    expected = sum(math.prod(declared["shape"]) for declared in bundle["inputs"])
    if len(profile["features"]) != expected:
        yield f"profile: {len(profile['features'])} features, inputs have {expected}"


def field_faults():
    data = (DIGITS / "field.bin").read_bytes()
    if not data or len(data) % FIELD_ROW_BYTES:
        yield f"field.bin: {len(data)} bytes are no whole number of {FIELD_ROW_BYTES}-byte rows"
        return
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, FIELD_ROW_BYTES)
    if rows[:, :64].max() > 16 or rows[:, 64].max() > 9:
        yield "field.bin: pixels must be 0..16 and labels 0..9"
    digest = hashlib.sha256(data).hexdigest()[:12]
    print(f"field.bin: {len(rows)} rows, sha256 {digest}…")


def main():
    faults = [f"digits: {fault}" for fault in field_faults()]
    folders = sorted(path for path in DIGITS.iterdir() if (path / "bundle.toml").is_file())
    if not folders:
        faults.append(f"{DIGITS}: no version found")
    for folder in folders:
        bundle = tomllib.loads((folder / "bundle.toml").read_text(encoding="utf-8"))
        for check in (golden_faults, profile_faults):
            faults += [f"digits/{folder.name}: {fault}" for fault in check(folder, bundle)]
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
