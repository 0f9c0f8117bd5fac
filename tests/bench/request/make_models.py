"""Stages the models that requests are timed with: `make_models.py FOLDER [swaps]`."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(1)


def dense(sizes: list) -> onnx.ModelProto:
    """A perceptron with seeded random weights; one size alone: a single addition."""
    nodes, weights, at = [], [], "x"
    if len(sizes) == 1:
        weights.append(numpy_helper.from_array(np.ones((1, sizes[0]), np.float32), "one"))
        nodes.append(helper.make_node("Add", ["x", "one"], ["y"]))
    for layer, (width, height) in enumerate(zip(sizes, sizes[1:])):
        last = layer == len(sizes) - 2
        matrix = RANDOM.standard_normal((width, height), dtype=np.float32) / width**0.5
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [at, f"w{layer}"], ["y" if last else f"m{layer}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer}"]))
        at = f"h{layer}"
    tensor = lambda name, size: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
    graph = helper.make_graph(nodes, "dense", [tensor("x", sizes[0])], [tensor("y", sizes[-1])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def stage(folder: Path, model: bytes, given: dict, got: dict, values: np.ndarray, family="", version=1):
    folder.mkdir(parents=True)
    blob = lambda data: {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}
    manifest = {
        "schema": "dunlin.manifest/1",
        "kind": "model",
        "family": family or folder.name,
        "version": version,
        "inputs": [given],
        "outputs": [got],
        "limits": {"tolerance_abs": 0.0, "latency_budget_ms": 1000},
        "resources": {"ram_bytes": 0, "disk_bytes": 0, "arch": ["any"], "agent_min": "0.1.0"},
        "steps": {},
        "labels": [],
        "lineage": {},
        "files": {"model": blob(model), "golden": blob(b"{}")},
    }
    (folder / "model.onnx").write_bytes(model)
    (folder / "golden.json").write_bytes(b"{}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "input.bin").write_bytes(values.tobytes())


def swaps(folder: Path):
    """Two versions of one family, three megabytes of weights each."""
    tensor = lambda name, size: {"name": name, "dtype": "FP32", "shape": [1, size]}
    for version in (1, 2):
        values = RANDOM.standard_normal(256, dtype=np.float32)
        model = dense([256, 1024, 512, 10]).SerializeToString()
        stage(folder / str(version), model, tensor("x", 256), tensor("y", 10), values, "swap", version)


def main():
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["swaps"]:
        return swaps(folder)
    tensor = lambda name, dtype, size: {"name": name, "dtype": dtype, "shape": [1, size]}
    for name, sizes in [("add-1k", [256]), ("dense-1k", [256, 128, 10]), ("dense-16k", [4096, 64, 4096])]:
        values = RANDOM.standard_normal(sizes[0], dtype=np.float32)
        given, got = tensor("x", "FP32", sizes[0]), tensor("y", "FP32", sizes[-1])
        stage(folder / name, dense(sizes).SerializeToString(), given, got, values)
    (path,) = [p for p in importlib.metadata.files("magika") if p.match("standard_v3_3/model.onnx")]
    values = RANDOM.integers(0, 256, 2048, dtype=np.int32)
    given, got = tensor("bytes", "INT32", 2048), tensor("target_label", "FP32", 214)
    stage(folder / "magika", path.locate().read_bytes(), given, got, values)


main()
