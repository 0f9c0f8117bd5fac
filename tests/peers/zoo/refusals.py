"""What `dunlin bundle pack` must refuse, and the words in which it must."""

import numpy as np
from onnx import TensorProto, helper

import inputs
import models
from bundle import Reference, write_spec


def other_models_golden_cases(zoo):
    """An int8 model with the golden cases of the model it was made from."""
    path = models.provide(zoo.cache, "ocr-classifier-qdq")
    reference = Reference(models.provide(zoo.cache, "ocr-classifier"))
    calls = inputs.calls("ocr-classifier", inputs.GOLDEN, zoo.speech, reference.answer)
    return path, calls, [reference.answer(call) for call in calls]


def a_loop(zoo):
    """Doubles its input as often as another says."""
    value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("at", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, [2])],
        [value("on", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, [2])],
    )
    loop = helper.make_node("Loop", ["times", "", "x"], ["y"], name="doubling", body=body)
    graph = helper.make_graph(
        [loop],
        "loop",
        [value("x", TensorProto.FLOAT, [2]), value("times", TensorProto.INT64, [])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = zoo.fleet.folder / "loop.onnx"
    path.write_bytes(model.SerializeToString())
    call = {"x": np.array([1, 2], np.float32), "times": np.array(3, np.int64)}
    return path, [call], [Reference(path).answer(call)]


REFUSED = {
    "golden cases of another model": (
        other_models_golden_cases,
        ["(golden)", 'case "call ', "expected ", ", got ", "is beyond the tolerance"],
    ),
    "an operator that the engine has not": (
        a_loop,
        ["(load)", 'Loop (node "doubling")', "tried: ", "found none of these: "],
    ),
}


def check(zoo):
    """What is wrong with each refusal; nothing if all is well."""
    found = {}
    for at, (name, (make, words)) in enumerate(REFUSED.items()):
        folder = zoo.fleet.folder / f"refused-{at}"
        write_spec(folder, 1, *make(zoo), 1e-2)
        status, _, errors = zoo.fleet.run("bundle", "pack", folder, "--out", f"not-packed-{at}")
        missing = [word for word in words if word not in errors]
        if status != 1 or missing:
            found[name] = f"exit status {status}, expected 1; not said: {missing}; said: {errors}"
        else:
            found[name] = ""
    return found
