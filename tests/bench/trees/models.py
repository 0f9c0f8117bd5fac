"""Trains the forests of the benchmark and writes a folder for each and for each number of rows."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from sklearn import datasets, ensemble
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType

warnings.filterwarnings("ignore")
ROWS = [1, 10, 100, 1000]


def models():
    digits, numbers = datasets.load_digits(return_X_y=True)
    cancer, malign = datasets.load_breast_cancer(return_X_y=True)
    diabetes, progress = datasets.load_diabetes(return_X_y=True)
    forest = ensemble.RandomForestClassifier(100, random_state=0)
    yield "forest-digits", forest.fit(digits, numbers), digits
    forest = ensemble.RandomForestClassifier(100, random_state=0)
    yield "forest-cancer", forest.fit(cancer, malign), cancer
    forest = ensemble.RandomForestRegressor(100, random_state=0)
    yield "forest-diabetes", forest.fit(diabetes, progress), diabetes
    boosting = ensemble.GradientBoostingClassifier(random_state=0)
    yield "boosting-digits", boosting.fit(digits, numbers), digits
    boosting = ensemble.GradientBoostingRegressor(random_state=0)
    yield "boosting-diabetes", boosting.fit(diabetes, progress), diabetes


def bare(proto):
    """The ensemble alone: neither Cast nor ZipMap."""
    graph = proto.graph
    nodes = [n for n in graph.node if n.op_type.startswith("TreeEnsemble")]
    del graph.node[:]
    graph.node.extend(nodes)
    names = list(nodes[0].output)
    kinds = [onnx.TensorProto.INT64, onnx.TensorProto.FLOAT][2 - len(names):]
    del graph.output[:]
    for name, kind in zip(names, kinds):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return proto


def main():
    out, random = Path(sys.argv[1]), np.random.default_rng(0)
    described = []
    for name, model, table in models():
        types = [("x", FloatTensorType([None, table.shape[1]]))]
        proto = bare(to_onnx(model, initial_types=types, target_opset={"": 18, "ai.onnx.ml": 3}))
        modes = [a for a in proto.graph.node[0].attribute if a.name == "nodes_modes"]
        nodes = len(modes[0].strings)
        roots = [a for a in proto.graph.node[0].attribute if a.name == "nodes_treeids"]
        described.append({"name": name, "trees": len(set(roots[0].ints)), "nodes": nodes,
                          "features": table.shape[1]})
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        for rows in ROWS:
            folder = out / f"{name}-{rows}"
            folder.mkdir(parents=True)
            onnx.save(proto, folder / "model.onnx")
            # Real rows, in another order for every call, as many calls as make no cache too happy.
            calls = max(4, 2000 // rows)
            given = table[random.integers(len(table), size=calls * rows)].astype("<f4")
            (folder / "rows.bin").write_bytes(given.tobytes())
            (folder / "shape.json").write_text(json.dumps([rows, table.shape[1]]))
            answers = session.run(None, {"x": given[:rows]})
            outputs = [{"name": o.name, "dtype": "INT64" if a.dtype.kind == "i" else "FP32",
                        "shape": list(a.shape)} for o, a in zip(session.get_outputs(), answers)]
            (folder / "outputs.json").write_text(json.dumps(outputs))
    (out / "models.json").write_text(json.dumps(described))


main()
