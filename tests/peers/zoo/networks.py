"""Networks written down from their published layer lists, with seeded random weights.

As exporters give them: batch normalisation folded into the convolutions. Weights are uniform with
the variance of He et al. (arXiv:1502.01852), so that values neither vanish nor grow over the layers.
"""

import zlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION, SEED = 17, 8, 20


class Network:
    """Layers one after the other, each named after its place."""

    def __init__(self, name, channels=3, size=224):
        self.name, self.nodes, self.weights = name, [], []
        self.random = np.random.Generator(np.random.PCG64(SEED))
        self.input = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, size, size])

    def weight(self, name, shape, fan_in):
        bound = np.sqrt(6.0 / fan_in)
        values = self.random.random(shape, dtype=np.float32) * (2 * bound) - bound
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator, inputs, **attributes):
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x, channels_in, channels_out, kernel, stride=1, group=1, gain=1.0):
        at, fan_in = len(self.nodes), channels_in // group * kernel * kernel / gain**2
        shape = (channels_out, channels_in // group, kernel, kernel)
        weights = self.weight(f"conv_{at}.weight", shape, fan_in)
        bias = self.weight(f"conv_{at}.bias", (channels_out,), 6 * 100)
        pads = [(kernel - 1) // 2] * 4
        return self.node(
            "Conv",
            [x, weights, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=pads,
            group=group,
        )

    def relu6(self, x):
        for name, value in (("zero", 0.0), ("six", 6.0)):
            if not any(w.name == name for w in self.weights):
                self.weights.append(numpy_helper.from_array(np.float32(value), name))
        return self.node("Clip", [x, "zero", "six"])

    def classifier(self, x, channels, classes=1000):
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)
        weights = self.weight("classifier.weight", (classes, channels), channels)
        bias = self.weight("classifier.bias", (classes,), 6 * 100)
        return self.node("Gemm", [x, weights, bias], transB=1)

    def to_bytes(self, output, classes=1000):
        self.nodes[-1].output[0] = "logits"
        result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
        graph = helper.make_graph(self.nodes, self.name, [self.input], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def mobilenet_v2(_given, _other):
    """Sandler et al., table 2: expansion, channels, repeats, first stride of each row."""
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    net = Network("mobilenet_v2")
    x, channels = net.relu6(net.conv("image", 3, 32, 3, stride=2)), 32
    for expansion, out, repeats, first_stride in rows:
        for repeat in range(repeats):
            stride, wide, before = first_stride if repeat == 0 else 1, channels * expansion, x
            if expansion != 1:
                x = net.relu6(net.conv(x, channels, wide, 1))
            x = net.relu6(net.conv(x, wide, wide, 3, stride=stride, group=wide))
            x = net.conv(x, wide, out, 1)
            if stride == 1 and channels == out:
                x = net.node("Add", [before, x])
            channels = out
    x = net.relu6(net.conv(x, channels, 1280, 1))
    return net.to_bytes(net.classifier(x, 1280))


def resnet_18(_given, _other):
    """He et al., table 1, 18 layers: channels of each of the four stages of two blocks."""
    net = Network("resnet_18")
    x = net.node("Relu", [net.conv("image", 3, 64, 7, stride=2)])
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride, before = (2 if block == 0 and out != 64 else 1), x
            x = net.node("Relu", [net.conv(x, channels, out, 3, stride=stride)])
            # A quarter of the variance: eight sums would otherwise grow.
            x = net.conv(x, out, out, 3, gain=0.5)
            if stride != 1 or channels != out:
                before = net.conv(before, channels, out, 1, stride=stride)
            x = net.node("Relu", [net.node("Add", [x, before])])
            channels = out
    return net.to_bytes(net.classifier(x, 512))


def weighted(given, _other):
    """A graph whose weights are constants in `ConstantOfShape`, with random ones in their place."""
    model = onnx.load_from_string(given)
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    random = np.random.Generator(np.random.PCG64(zlib.crc32(graph.name.encode()) + SEED))
    takers = {name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)}
    operators = {node.op_type for node in graph.node}
    # Sums of branches, and normalising by numbers that are not the data's, let values grow.
    gain = 2.5 if "Sum" in operators else 4.5 if "BatchNormalization" in operators else 6.0
    fillers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in fillers:
        shape = tuple(int(d) for d in shapes[node.input[0]])
        values = random_weights(random, shape, takers[node.output[0]], gain)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        graph.node.remove(node)
    used = {node.input[0] for node in fillers}
    keep(graph.initializer, lambda tensor: tensor.name not in used)
    # From version 4 on weights need not be inputs as well, which keeps runtimes from folding them.
    keep(graph.input, lambda value: value.name not in shapes)
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model.SerializeToString()


def keep(repeated, wanted):
    kept = [item for item in repeated if wanted(item)]
    del repeated[:]
    repeated.extend(kept)


def random_weights(random, shape, taker, gain):
    """Weights that keep values in range, by what they are for."""
    operator, place = taker
    flat = random.random(shape, dtype=np.float32)
    if operator == "BatchNormalization" and place in (1, 4):
        # Scale and variance: about one.
        return flat * np.float32(0.5) + np.float32(0.75)
    if len(shape) > 1:
        # What a softmax makes probabilities of is kept small: it would give zeros and a one.
        gain = 0.01 if operator == "Gemm" else gain
        bound = np.float32(np.sqrt(gain / np.prod(shape[1:])))
        return flat * (2 * bound) - bound
    if operator == "Unsqueeze":
        # Scales and offsets of the layers that DenseNet has after each normalisation.
        return flat * np.float32(0.5) + np.float32(1.0)
    return flat * np.float32(0.2) - np.float32(0.1)
