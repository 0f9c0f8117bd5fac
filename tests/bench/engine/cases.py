"""Writes a folder for each model of the benchmark: the model, its inputs, what they are.

    cases.py ZOO FOLDER

ZOO is where the zoo's models are kept (tests/peers/zoo). Prints the names, one a line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "peers/zoo"))
import models  # noqa: E402
import pictures  # noqa: E402

SEED = 4
DTYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def dense(name, sizes, last):
    """Dense layers with ReLU between them, weights uniform with the variance of He et al."""
    random = np.random.Generator(np.random.PCG64(SEED))
    nodes, weights, x = [], [], "x"
    for at, (given, made) in enumerate(zip(sizes, sizes[1:])):
        bound = np.sqrt(6 / given)
        for kind, shape in [("weight", (given, made)), ("bias", (made,))]:
            values = random.uniform(-bound, bound, shape).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{kind}_{at}"))
        nodes.append(helper.make_node("Gemm", [x, f"weight_{at}", f"bias_{at}"], [f"dense_{at}"]))
        x = f"dense_{at}"
        if at + 2 < len(sizes):
            nodes.append(helper.make_node("Relu", [x], [f"relu_{at}"]))
            x = f"relu_{at}"
    nodes.append(helper.make_node(last, [x], ["y"]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, sizes[0]])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, sizes[-1]])
    graph = helper.make_graph(nodes, name, [given], [made], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def cases(zoo):
    """(name, model, inputs)"""
    random = np.random.Generator(np.random.PCG64(SEED))

    def noise(*shape):
        return random.standard_normal(shape).astype(np.float32)

    def kept(name):
        return models.provide(zoo, name).read_bytes()

    yield "anomaly-mlp", dense("anomaly-mlp", [32, 64, 32, 1], "Sigmoid"), {"x": noise(1, 32)}
    # Of MLPerf Tiny's anomaly detection, batch normalisation folded.
    sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    yield "auto-encoder", dense("auto-encoder", sizes, "Identity"), {"x": noise(1, 640)}
    voice = (np.sin(np.arange(576) * 0.07) * 0.3).astype(np.float32)[None] + 0.02 * noise(1, 576)
    silero = {"input": voice, "sr": np.array(16000, np.int64), "state": noise(2, 1, 128) * 0}
    yield "silero-vad", kept("silero-ifless"), silero
    text = np.frombuffer(Path(__file__).read_bytes(), np.uint8)[:2048].astype(np.int32)
    text = np.concatenate([text, np.full(2048 - len(text), 256, np.int32)])
    yield "magika", kept("magika"), {"bytes": text[None]}
    yield "resnet-18", kept("resnet-18"), {"image": noise(1, 3, 224, 224)}
    yield "mobilenet-v2", kept("mobilenet-v2"), {"image": noise(1, 3, 224, 224)}
    [line] = pictures.lines(48, 320, 1, SEED)
    yield "ocr-recogniser", kept("ocr-recogniser"), {"x": line[None]}
    page = pictures.as_tensor(pictures.page(random, 320, 480))
    yield "ocr-detector", kept("ocr-detector"), {"x": page[None]}
    [line] = pictures.lines(48, 192, 1, SEED)
    yield "ocr-classifier", kept("ocr-classifier"), {"x": line[None]}


def spec(name, array):
    return {"name": name, "dtype": DTYPES[str(array.dtype)], "shape": list(array.shape)}


def main(zoo, out):
    zoo.mkdir(parents=True, exist_ok=True)
    for name, model, inputs in cases(zoo):
        folder = out / name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        # In the order of the file.
        names = [i.name for i in onnx.load_from_string(model).graph.input if i.name in inputs]
        for at, given in enumerate(names):
            (folder / f"input-{at}.bin").write_bytes(np.ascontiguousarray(inputs[given]).tobytes())
        session = onnxruntime.InferenceSession(model)
        outputs = [o.name for o in session.get_outputs()]
        answers = session.run(outputs, inputs)
        case = {"inputs": [spec(n, inputs[n]) for n in names],
                "outputs": [spec(n, a) for n, a in zip(outputs, answers)]}
        (folder / "case.json").write_text(json.dumps(case))
        print(name)


main(Path(sys.argv[1]), Path(sys.argv[2]))
