"""Ensembles made up at random, so that every attribute of the operators is met, whatever converters
write today."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
TRANSFORMS = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"]
AGGREGATES = ["SUM", "AVERAGE", "MIN", "MAX"]
FEATURES = 4
# Few, so that rows meet them exactly.
THRESHOLDS = np.array([-1.5, -0.1, 0.0, 0.1, 0.3, 1.0, 2.5], dtype=np.float32)
ELEMENT = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE,
           "int64": TensorProto.INT64, "int32": TensorProto.INT32}


def grow(random, tree, depth_max, modes, missing):
    """The nodes of a tree, the root first, and the numbers of its leaves."""
    nodes, leaves = [], []

    def node(depth):
        number = len(nodes)
        nodes.append(None)
        if depth == depth_max or (depth > 0 and random.random() < 0.25):
            leaves.append(number)
            value = float(np.float32(random.normal()))
            nodes[number] = (tree, number, "LEAF", 0, value, 0, 0, 0)
            return number
        feature, value = int(random.integers(FEATURES)), float(random.choice(THRESHOLDS))
        # ONNX Runtime lays the false child out first and wants it for itself.
        false = node(depth + 1)
        true = node(depth + 1)
        track = int(missing and random.random() < 0.5)
        nodes[number] = (tree, number, str(random.choice(modes)), feature, value, true, false, track)
        return number

    node(0)
    return nodes, leaves


def ensemble(random, kind, dtype="float32", *, targets=1, classes=None, used=None, trees=5,
             uniform=True, missing=False, transform="NONE", aggregate="SUM", base=0, signed=True,
             as_tensor=False, probability=False, bare=False):
    """A model of one operator. `used` are the targets or classes that leaves have weights for; some
    leaves have none at all if `bare`."""
    modes = [MODES[int(random.integers(2 if missing else len(MODES)))]] if uniform else MODES
    nodes, weights = [], []
    used = list(range(targets if classes is None else len(classes))) if used is None else used
    for tree in range(trees):
        grown, leaves = grow(random, tree, int(random.integers(0, 6)), modes, missing)
        nodes += grown
        for leaf in leaves:
            if bare and weights and random.random() < 0.4:
                continue
            for target in used if random.random() < 0.5 else [used[tree % len(used)]]:
                low, high = (-1.0, 1.0) if signed else (0.0, 2.0 / trees)
                if probability:
                    low, high = 0.05 / trees, 0.95 / trees
                weights.append((tree, leaf, target, float(random.uniform(low, high))))
    columns = list(zip(*nodes))
    of = list(zip(*weights))
    prefix = "target" if kind == "TreeEnsembleRegressor" else "class"
    attributes = {
        "nodes_treeids": columns[0], "nodes_nodeids": columns[1], "nodes_modes": columns[2],
        "nodes_featureids": columns[3], "nodes_truenodeids": columns[5],
        "nodes_falsenodeids": columns[6], f"{prefix}_treeids": of[0], f"{prefix}_nodeids": of[1],
        f"{prefix}_ids": of[2], "post_transform": transform,
    }
    if missing:
        attributes["nodes_missing_value_tracks_true"] = columns[7]
    low, high = (0.01, 0.04) if probability else (-1.0, 1.0)
    floats = {"nodes_values": columns[4], f"{prefix}_weights": of[3]}
    if base:
        floats["base_values"] = [float(x) for x in random.uniform(low, high, base)]
    for name, values in floats.items():
        if as_tensor:
            tensor = numpy_helper.from_array(np.array(values, dtype=np.float64), name)
            attributes[f"{name}_as_tensor"] = tensor
        else:
            attributes[name] = [float(np.float32(v)) for v in values]
    outputs = []
    if kind == "TreeEnsembleRegressor":
        attributes |= {"n_targets": targets, "aggregate_function": aggregate}
    else:
        text = isinstance(classes[0], str)
        attributes["classlabels_strings" if text else "classlabels_int64s"] = classes
        label = TensorProto.STRING if text else TensorProto.INT64
        outputs.append(helper.make_tensor_value_info("label", label, [None]))
    outputs.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, None]))
    return model(kind, attributes, dtype, outputs, version=3)


def model(kind, attributes, dtype, outputs, version=3, width=FEATURES):
    names = [output.name for output in outputs]
    node = helper.make_node(kind, ["x"], names, domain="ai.onnx.ml", **attributes)
    x = helper.make_tensor_value_info("x", ELEMENT[dtype], [None, width])
    graph = helper.make_graph([node], kind, [x], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def rows(random, dtype, count, special=True):
    """Rows with values at thresholds, beside them, and, among floats, NaN and the infinities."""
    if dtype.startswith("int"):
        return random.integers(-3, 4, (count, FEATURES)).astype(dtype)
    table = random.normal(0, 1.5, (count, FEATURES)).astype(dtype)
    at = random.random(table.shape)
    exact = random.choice(THRESHOLDS, table.shape).astype(dtype)
    table = np.where(at < 0.4, exact, table)
    table = np.where(at < 0.1, np.nextafter(exact, np.inf, dtype=dtype), table)
    if special:
        odd = random.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 3e38], dtype), table.shape)
        table = np.where(at > 0.9, odd, table)
    return np.ascontiguousarray(table.astype(dtype))


def variants():
    """Every combination that means something: a name and the arguments of `ensemble`."""
    for dtype in ["float32", "float64"]:
        for aggregate in AGGREGATES:
            for targets in [1, 2, 3]:
                for base in [0, targets]:
                    for transform in TRANSFORMS:
                        name = f"regressor {dtype} {aggregate} {targets} base {base} {transform}"
                        kind = {"targets": targets, "aggregate": aggregate, "base": base}
                        yield name, ("TreeEnsembleRegressor", dtype), kind | {"transform": transform}
        for targets, used in [(2, [1]), (3, [0, 2]), (1, None)]:
            for aggregate in AGGREGATES:
                for base in [0, targets]:
                    name = f"regressor {dtype} {aggregate} {targets} base {base} bare"
                    kind = {"targets": targets, "aggregate": aggregate, "base": base}
                    yield name, ("TreeEnsembleRegressor", dtype), kind | {
                        "used": used, "bare": True, "transform": "NONE"}
    for dtype in ["float32", "float64"]:
        for base in [0, 3]:
            yield f"classifier {dtype} three [0, 2] base {base} bare", (
                "TreeEnsembleClassifier", dtype), {
                    "classes": [5, 2, 9], "used": [0, 2], "bare": True, "base": base,
                    "transform": "NONE", "trees": 12}
    labels = {"two": [3, 7], "three": [5, 2, 9], "one": [4], "texts": ["no", "yes", "maybe"]}
    for dtype in ["float32", "float64", "int64", "int32"]:
        for name, classes in labels.items():
            uses = [None] if len(classes) != 2 else [None, [0], [1]]
            bases = [0, 1, 2] if len(classes) == 2 else [0, len(classes)]
            for used in uses:
                for base in bases:
                    for transform in TRANSFORMS:
                        for signed in [True, False]:
                            arguments = {"classes": classes, "used": used, "base": base,
                                         "transform": transform, "signed": signed}
                            full = f"classifier {dtype} {name} {used} base {base} {transform} {signed}"
                            yield full, ("TreeEnsembleClassifier", dtype), arguments


def undefined(arguments):
    """Whether ONNX Runtime leaves a score as it found the memory: the second one where a row has one
    score for two classes and no rule makes another of it."""
    classes = arguments.get("classes")
    if classes is None or len(classes) != 2:
        return False
    used, base = arguments["used"], arguments["base"]
    one_score = used != [1] and base < 2
    return one_score and (arguments["transform"] == "PROBIT" or (used is None and base == 1))
