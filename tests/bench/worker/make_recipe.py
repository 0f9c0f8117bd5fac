"""Makes what `dunlin bundle pack` wants of a staged model: `make_recipe.py STAGED FOLDER`.

The golden case holds what NumPy computes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

RECIPE = """family = "swap"
version = 1
kind = "model"
hardware = ["any"]
rollback_floor = 1
model = "model.onnx"
golden = "golden.json"
labels = []

[[inputs]]
name = "x"
dtype = "FP32"
shape = [1, 256]

[[outputs]]
name = "y"
dtype = "FP32"
shape = [1, 10]

[limits]
tolerance_abs = 0.001
latency_budget_ms = 1000

[resources]
ram_bytes = 67108864
disk_bytes = 16777216
arch = ["any"]
agent_min = "0.1.0"

[lineage]
code = "tests/bench/worker/make_recipe.py"
licence = "Apache-2.0"
"""


def main():
    staged, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True)
    model = (staged / "model.onnx").read_bytes()
    weights = {w.name: numpy_helper.to_array(w) for w in onnx.load_from_string(model).graph.initializer}
    sent = np.frombuffer((staged / "input.bin").read_bytes(), np.float32).reshape(1, -1)
    at = sent
    for layer in range(len(weights)):
        at = at @ weights[f"w{layer}"]
        if layer < len(weights) - 1:
            at = np.maximum(at, 0)
    case = {"name": "the input that requests send", "inputs": {"x": sent.ravel().tolist()}, "outputs": {"y": at.ravel().tolist()}}
    golden = {"schema": "dunlin.golden/1", "producer": f"numpy {np.__version__}"}
    golden = {**golden, "cases": [case]}
    (folder / "golden.json").write_text(json.dumps(golden))
    (folder / "model.onnx").write_bytes(model)
    (folder / "bundle.toml").write_text(RECIPE)


main()
