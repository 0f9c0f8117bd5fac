"""Cases of processing steps as `agent/tests/inference/cases.rs` reads them."""

import base64

import numpy as np

NAMES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float32": "FP32", "float64": "FP64",
}


def text(raw):
    return base64.b64encode(raw).decode()


def tensor(name, value):
    """A NumPy array, or a list of bytes or texts for `BYTES`."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        little = array.astype(array.dtype.newbyteorder("<"))
        return {"name": name, "dtype": NAMES[array.dtype.name], "shape": list(value.shape),
                "data": [text(little.tobytes())]}
    raw = [item.encode() if isinstance(item, str) else item for item in value]
    return {"name": name, "dtype": "BYTES", "shape": [len(raw)], "data": [text(r) for r in raw]}


def tensors(values):
    return [tensor(name, value) for name, value in values.items()]


def call(sent, graph_inputs, given=None, outputs=None):
    return {"sent": tensors(sent), "graph_inputs": tensors(graph_inputs),
            "given": tensors(given or {}), "outputs": tensors(outputs or {})}


def case(name, calls, pre=(), post=(), labels=(), tolerance=0.0, mean=None, error=None):
    built = {"name": name, "pre": list(pre), "post": list(post), "labels": list(labels),
             "calls": calls, "tolerance": {"max": tolerance, "mean": mean}}
    if error:
        built["error"] = error
    return built


def before(name, steps, sent, expected, **more):
    """Steps before the graph: `sent` and `expected` are dicts of arrays."""
    return case(name, [call(sent, expected)], pre=steps, **more)


def after(name, steps, given, expected, **more):
    """Steps after the graph."""
    nothing = {"nothing": np.zeros(1, np.float32)}
    return case(name, [call(nothing, nothing, given, expected)], post=steps, **more)
