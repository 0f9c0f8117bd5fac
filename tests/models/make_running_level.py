#!/usr/bin/env python3
"""Writes `running-level`: a graph that needs its last answer to give the next one, as recurrent models do,
small enough to be read. Level = half the level before + the mean power of the window; the window is what is
sent now and two samples from before.

Golden outputs come from NumPy and ONNX Runtime.
"""

import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).resolve().parent / "running-level"
HOP, WINDOW = 4, 6


def model():
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["window", "window"], ["power"]),
        helper.make_node("ReduceMean", ["power"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["state", "half"], ["kept"]),
        helper.make_node("Add", ["kept", "mean"], ["level"]),
        helper.make_node("Identity", ["level"], ["stateN"]),
    ]
    graph = helper.make_graph(
        nodes, "running-level",
        [value("window", TensorProto.FLOAT, [1, WINDOW]), value("state", TensorProto.FLOAT, [1, 1])],
        [value("level", TensorProto.FLOAT, [1, 1]), value("stateN", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([[0.5]], np.float32), "half")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8,
                             producer_name="make_running_level.py")
    onnx.checker.check_model(made)
    return made.SerializeToString()


def main():
    raw = model()
    (OUT / "model.onnx").write_bytes(raw)
    session = onnxruntime.InferenceSession(raw)
    rng = np.random.default_rng(1)
    cases = []
    for stream, calls in (("a", 4), ("b", 3), (None, 1)):
        before, state = np.zeros(WINDOW - HOP, np.float32), np.zeros((1, 1), np.float32)
        for call in range(calls):
            samples = rng.integers(-32768, 32768, HOP, dtype=np.int16)
            window = np.concatenate([before, samples.astype(np.float32) / np.float32(32768)])
            before = window[HOP:]
            level, state = session.run(["level", "stateN"], {"window": window[None], "state": state})
            case = {"name": f"stream {stream}, call {call}", "inputs": {"samples": samples.tolist()},
                    "outputs": {"level": level.ravel().astype(float).tolist()}}
            cases.append(case | ({"stream": stream} if stream else {}))
    # Streams do not mix, in whatever order their calls come.
    cases = cases[0:1] + cases[4:6] + cases[1:4] + cases[6:]
    document = {"schema": "dunlin.golden/1", "producer": f"onnxruntime {onnxruntime.__version__}",
                "cases": cases}
    (OUT / "golden.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{len(raw)} bytes of model, {len(cases)} cases")


if __name__ == "__main__":
    main()
