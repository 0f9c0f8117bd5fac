"""A model with golden cases by ONNX Runtime, as `dunlin bundle pack` takes it."""

import json

import numpy as np
import onnxruntime

from client import NAMES

FAMILY = "zoo"


class Reference:
    """ONNX Runtime on one thread: the sums of several are rounded otherwise."""

    def __init__(self, path, optimised=True):
        options = onnxruntime.SessionOptions()
        if not optimised:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def answer(self, call):
        return dict(zip(self.names, self.session.run(None, call)))


def number(value):
    """As golden cases have it: numbers, or the names of those that JSON has not."""
    return float(value) if isinstance(value, np.floating) else int(value)


def golden_cases(calls, answers):
    flat = lambda arrays: {n: [number(v) for v in a.ravel()] for n, a in arrays.items()}
    cases = [
        {"name": f"call {at}", "inputs": flat(call), "outputs": flat(answer)}
        for at, (call, answer) in enumerate(zip(calls, answers))
    ]
    producer = f"ONNX Runtime {onnxruntime.__version__}"
    return {"schema": "dunlin.golden/1", "producer": producer, "cases": cases}


def tensors(kind, arrays):
    lines = []
    for name, array in arrays.items():
        lines += [f"[[{kind}]]", f"name = {json.dumps(name)}"]
        lines += [f'dtype = "{NAMES[array.dtype]}"', f"shape = {list(array.shape)}"]
    return lines


def spec(version, model_path, call, answer, tolerance):
    """bundle.toml."""
    lines = [f'family = "{FAMILY}"', f"version = {version}", 'kind = "model"', 'hardware = ["any"]']
    lines += ["rollback_floor = 1", f"model = {json.dumps(str(model_path))}", 'golden = "golden.json"']
    lines += tensors("inputs", call) + tensors("outputs", answer)
    lines += ["[limits]", f"tolerance_abs = {tolerance!r}", "latency_budget_ms = 60000"]
    lines += ["[resources]", f"ram_bytes = {256 << 20}", f"disk_bytes = {64 << 20}"]
    lines += ['arch = ["any"]', 'agent_min = "0.1.0"']
    return "\n".join(lines) + "\n"


def write_spec(folder, version, model_path, calls, answers, tolerance):
    folder.mkdir()
    (folder / "bundle.toml").write_text(spec(version, model_path, calls[0], answers[0], tolerance))
    (folder / "golden.json").write_text(json.dumps(golden_cases(calls, answers)))


def difference(expected, got):
    """The largest difference; infinite where shapes or names differ."""
    if expected.keys() != got.keys():
        return float("inf")
    largest = 0.0
    for name, want in expected.items():
        have = got[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            return float("inf")
        with np.errstate(invalid="ignore"):
            apart = np.abs(want.astype(np.float64) - have.astype(np.float64))
        same = (want == have) | (np.isnan(want) & np.isnan(have))
        apart = np.where(same, 0, np.nan_to_num(apart, nan=np.inf))
        largest = max(largest, float(apart.max(initial=0)))
    return largest


def choices(expected, got):
    """Of how many rows of scores the largest is the same, and how many there are; maps are no scores."""
    same = rows = 0
    for name, want in expected.items():
        if want.dtype.kind == "f" and 0 < want.ndim < 4 and want.shape[-1] > 1:
            alike = want.argmax(axis=-1) == got[name].argmax(axis=-1)
            same, rows = same + int(alike.sum()), rows + alike.size
    return same, rows
