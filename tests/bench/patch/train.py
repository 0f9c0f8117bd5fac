#!/usr/bin/env python3
"""Trains real networks on real data and writes pairs of ONNX files, old and new.

usage: train.py OUT

OUT/<network>/<pair>/{old,new}.onnx and OUT/pairs.json. Seeds are fixed. The data are the images
inside scikit-learn: `load_digits` (1797 handwritten digits, 8 x 8) and the two photographs of
`load_sample_images` (640 x 427), of which a network learns to predict pixels.

Every network is trained on one part of the data until it is good at it; that is the old file. The
new file is what further training on the other part makes of it.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import optax
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits, load_sample_images

SEED = 20261125


# --- data ---------------------------------------------------------------------------------------


def digits():
    """Images as (n, 1, 8, 8) in 0..1 and labels; the first 1000 are known to the old model."""
    data = load_digits()
    x = (data.images / 16.0).astype(np.float32)[:, None, :, :]
    y = data.target.astype(np.int32)
    order = np.random.default_rng(SEED).permutation(len(x))
    return x[order], y[order]


def patches(photo, count, rng):
    """Patches of 16 x 16 x 3 pixels, and as label which of 64 tiles of the photograph they are of."""
    height, width, _ = photo.shape
    top = rng.integers(0, height - 16, count)
    left = rng.integers(0, width - 16, count)
    x = np.stack([photo[t : t + 16, l : l + 16] for t, l in zip(top, left)])
    y = (top * 8 // height) * 8 + left * 8 // width
    return (x.reshape(count, -1) / 255.0).astype(np.float32), y.astype(np.int32)


# --- networks: dictionaries of arrays in the order of the file ------------------------------------


def he(rng, *shape):
    fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def conv_init(rng):
    """Small convolutional network for digits, 123 thousand parameters."""
    return {
        "conv1.weight": he(rng, 32, 1, 3, 3),
        "conv1.bias": np.zeros(32, np.float32),
        "conv2.weight": he(rng, 64, 32, 3, 3),
        "conv2.bias": np.zeros(64, np.float32),
        "fc.weight": he(rng, 64 * 4 * 4, 96),
        "fc.bias": np.zeros(96, np.float32),
        "head.weight": he(rng, 96, 10),
        "head.bias": np.zeros(10, np.float32),
    }


def conv_apply(p, x):
    def conv(x, w, b):
        dn = ("NCHW", "OIHW", "NCHW")
        y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dn)
        return jax.nn.relu(y + b[None, :, None, None])

    x = conv(x, p["conv1.weight"], p["conv1.bias"])
    x = conv(x, p["conv2.weight"], p["conv2.bias"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ p["fc.weight"] + p["fc.bias"])
    return x @ p["head.weight"] + p["head.bias"]


def conv_graph():
    n = helper.make_node
    return [
        n("Conv", ["x", "conv1.weight", "conv1.bias"], ["c1"], pads=[1, 1, 1, 1]),
        n("Relu", ["c1"], ["r1"]),
        n("Conv", ["r1", "conv2.weight", "conv2.bias"], ["c2"], pads=[1, 1, 1, 1]),
        n("Relu", ["c2"], ["r2"]),
        n("MaxPool", ["r2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        n("Flatten", ["m"], ["f"]),
        n("Gemm", ["f", "fc.weight", "fc.bias"], ["g1"]),
        n("Relu", ["g1"], ["r3"]),
        n("Gemm", ["r3", "head.weight", "head.bias"], ["y"]),
    ]


MLP = [768, 1024, 1024, 512, 64]


def mlp_init(rng):
    """Multilayer perceptron for photograph patches, 2.4 million parameters."""
    p = {}
    for i, (a, b) in enumerate(zip(MLP, MLP[1:])):
        name = "head" if i == len(MLP) - 2 else f"layer{i}"
        p[f"{name}.weight"] = he(rng, a, b)
        p[f"{name}.bias"] = np.zeros(b, np.float32)
    return p


def mlp_apply(p, x):
    for i in range(len(MLP) - 2):
        x = jax.nn.relu(x @ p[f"layer{i}.weight"] + p[f"layer{i}.bias"])
    return x @ p["head.weight"] + p["head.bias"]


def mlp_graph():
    nodes, last = [], "x"
    for i in range(len(MLP) - 2):
        nodes.append(helper.make_node("Gemm", [last, f"layer{i}.weight", f"layer{i}.bias"], [f"g{i}"]))
        nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"]))
        last = f"r{i}"
    return nodes + [helper.make_node("Gemm", [last, "head.weight", "head.bias"], ["y"])]


# --- training -------------------------------------------------------------------------------------


def train(apply, params, x, y, optimizer, epochs, batch, seed, only=None):
    """Trains; `only` names the tensors that may change."""
    opt_state = optimizer.init(params)
    mask = {k: 1.0 if only is None or k in only else 0.0 for k in params}

    @jax.jit
    def step(params, opt_state, xb, yb):
        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(apply(p, xb), yb).mean()

        value, grads = jax.value_and_grad(loss)(params)
        grads = jax.tree.map(lambda g, m: g * m, grads, mask)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        updates = jax.tree.map(lambda u, m: u * m, updates, mask)
        return optax.apply_updates(params, updates), opt_state, value

    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for at in range(0, len(x) - batch + 1, batch):
            pick = order[at : at + batch]
            params, opt_state, _ = step(params, opt_state, x[pick], y[pick])
    # JAX sorts the names; the file keeps their order.
    return {k: np.asarray(params[k]) for k in mask}


def accuracy(apply, params, x, y):
    answers = np.concatenate([np.asarray(apply(params, x[i : i + 512])).argmax(1) for i in range(0, len(x), 512)])
    return float((answers == y).mean())


# --- files ----------------------------------------------------------------------------------------


def model(nodes, tensors, shape, classes, metadata, dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", dtype, ["batch", *shape])],
        [helper.make_tensor_value_info("y", dtype, ["batch", classes])],
        initializer=tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="bench")
    made.ir_version = 8
    helper.set_model_props(made, metadata)
    return made


def float_tensors(params):
    return [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in params.items()]


def half_model(nodes, params, shape, classes, metadata):
    tensors = [numpy_helper.from_array(v.astype(np.float16), k) for k, v in params.items()]
    return model(nodes, tensors, shape, classes, metadata, TensorProto.FLOAT16)


def bfloat_model(nodes, params, shape, classes, metadata):
    tensors = []
    for name, value in params.items():
        raw = value.astype(ml_dtypes.bfloat16).tobytes()
        tensors.append(helper.make_tensor(name, TensorProto.BFLOAT16, value.shape, raw, raw=True))
    return model(nodes, tensors, shape, classes, metadata, TensorProto.BFLOAT16)


def quantised(file, out):
    """Weights to int8, scales per tensor, as ONNX Runtime does it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(file), str(out), weight_type=QuantType.QInt8)


# --- pairs ----------------------------------------------------------------------------------------


class Pairs:
    def __init__(self, out):
        self.out, self.all = out, []

    def add(self, network, kind, old, new, note=""):
        folder = self.out / network / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (("old", old), ("new", new)):
            file = folder / f"{name}.onnx"
            if isinstance(value, Path):
                file.write_bytes(value.read_bytes())
            else:
                onnx.save(value, str(file))
        self.all.append({"network": network, "pair": kind, "folder": f"{network}/{kind}", "note": note})
        print(f"{network}/{kind}: {note}", flush=True)


def network_pairs(pairs, name, init, apply, nodes, shape, classes, first, second, test, epochs, batch, rates):
    rng = np.random.default_rng(SEED)
    metadata = {"labels": ",".join(f"class {i}" for i in range(classes)), "trained_on": "first part"}

    def file(params, **changed):
        return model(nodes, float_tensors(params), shape, classes, {**metadata, **changed})

    old = train(apply, init(rng), *first, optax.adam(1e-3), epochs, batch, SEED)
    before = accuracy(apply, old, *test)
    count = sum(v.size for v in old.values())
    print(f"{name}: {count} parameters, accuracy {before:.3f} on data it has not seen", flush=True)

    renamed = ",".join(f"kind {i}" for i in range(classes))
    pairs.add(name, "labels only", file(old), file(old, labels=renamed), "metadata changed")

    head = [k for k in old if k.startswith("head.")]
    new = train(apply, old, *second, optax.adam(1e-3), 5, batch, SEED + 1, head)
    pairs.add(name, "head retrained", file(old), file(new), f"accuracy {accuracy(apply, new, *test):.3f}")

    tuned = {}
    sgd, adam = rates
    optimizers = {"SGD": lambda: optax.sgd(sgd, momentum=0.9), "Adam": lambda: optax.adam(adam)}
    for optimizer, make in optimizers.items():
        for n in (1, 5):
            new = train(apply, old, *second, make(), n, batch, SEED + 2)
            word = "epoch" if n == 1 else "epochs"
            tuned[optimizer, n] = new
            note = f"accuracy {before:.3f} to {accuracy(apply, new, *test):.3f}"
            pairs.add(name, f"{optimizer}, {n} {word}", file(old), file(new), note)

    new = tuned["Adam", 1]
    for word, make in (("f16", half_model), ("bf16", bfloat_model)):
        both = [make(nodes, p, shape, classes, metadata) for p in (old, new)]
        pairs.add(name, f"{word}, Adam, 1 epoch", *both, "weights rounded")

    scratch = pairs.out / "scratch"
    scratch.mkdir(exist_ok=True)
    for optimizer in ("SGD", "Adam"):
        files = []
        for which, params in (("old", old), ("new", tuned[optimizer, 1])):
            onnx.save(file(params), str(scratch / f"{which}.onnx"))
            quantised(scratch / f"{which}.onnx", scratch / f"{which}.int8.onnx")
            files.append(scratch / f"{which}.int8.onnx")
        pairs.add(name, f"int8, {optimizer}, 1 epoch", *files, "weights quantised")
    return old


def another_class(pairs, old, x, y):
    """One more class: the head grows by a column, the rest is trained on."""
    new = dict(old)
    rng = np.random.default_rng(SEED + 3)
    new["head.weight"] = np.concatenate([old["head.weight"], he(rng, 96, 1)], axis=1)
    new["head.bias"] = np.concatenate([old["head.bias"], np.zeros(1, np.float32)])
    new = train(conv_apply, new, x, y, optax.adam(1e-4), 1, 32, SEED + 3)
    files = [model(conv_graph(), float_tensors(p), [1, 8, 8], n, {}) for p, n in ((old, 10), (new, 11))]
    pairs.add("digits", "a class more", *files, "head wider, all trained")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    pairs = Pairs(out)

    x, y = digits()
    parts = [(x[:1000], y[:1000]), (x[1000:1500], y[1000:1500]), (x[1500:], y[1500:])]
    old = network_pairs(
        pairs, "digits", conv_init, conv_apply, conv_graph(), [1, 8, 8], 10, *parts, 30, 32, (1e-3, 1e-4)
    )
    another_class(pairs, old, *parts[1])

    rng = np.random.default_rng(SEED)
    photo = load_sample_images().images[0]
    parts = [patches(photo, n, rng) for n in (12000, 6000, 2000)]
    network_pairs(
        pairs, "photo", mlp_init, mlp_apply, mlp_graph(), [768], 64, *parts, 12, 64, (1e-3, 1e-4)
    )

    (out / "pairs.json").write_text(json.dumps(pairs.all, indent=1) + "\n")


main()
