"""The same network in the operators that ONNX Runtime runs fastest on a CPU.

It computes convolutions on channels in blocks of 8 or 16 (its graph transformer "NCHWc") and rearranges the whole map before
and after any operator that is not made for that: for the shipped finder this took a sixth of the time. The operators here
stay in blocks. Outputs differ by rounding alone. An ONNX model in, another out, with the same inputs, outputs and metadata.
"""
from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

BLOCK = 8  # channels, the smallest: a convolution to fewer takes as long


def streamlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with whatever of the following is in it replaced; maps of sizes that are not fixed stay as they are."""
    network = _Network(proto)
    for rewrite in (_global_average, _whole_steps, _affine_of_norms, _broadcast_gates, _deviation_in_weights,
                    _heads_together):
        rewrite(network)
    return network.finished()


class _Network:
    """An ONNX graph to be changed in place: its nodes, and by the name of a value what it is."""

    def __init__(self, proto):
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.nodes = self.proto.graph.node
        self.outputs = {value.name for value in proto.graph.output}
        self.constants = {weight.name: numpy_helper.to_array(weight) for weight in self.proto.graph.initializer}
        graph = onnx.shape_inference.infer_shapes(proto).graph
        self.shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]  # 0: not fixed
                       for value in (*graph.input, *graph.value_info, *graph.output)}

    def of_type(self, operator):
        return [node for node in self.nodes if node.op_type == operator]

    def only_user(self, name, operator):
        """The one node that takes a value, as its first input, if it is of this type; None for all else."""
        users = [node for node in self.nodes if name in node.input]
        fits = len(users) == 1 and users[0].op_type == operator and users[0].input[0] == name
        return users[0] if fits and name not in self.outputs else None

    def constant(self, node):
        """The second input of a node, where that is a constant; else None. Of no node, None."""
        return self.constants.get(node.input[1]) if node is not None and len(node.input) > 1 else None

    def add(self, name, values):
        self.constants[name] = values
        self.proto.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def replace(self, old, *new):
        """The nodes `new` in the place of the nodes `old`, of which the first is the earliest."""
        place = list(self.nodes).index(old[0])
        for node in old:
            self.nodes.remove(node)
        for node in reversed(new):
            self.nodes.insert(place, node)

    def side(self, name):
        """(height, width) of a map `[B,C,h,w]`; zeros where they are not fixed."""
        shape = self.shapes.get(name, [])
        return shape[2:] if len(shape) == 4 else [0, 0]

    def finished(self):
        """Without what nobody uses any more, and without the shapes of values, which ONNX Runtime finds by itself."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        weights = [weight for weight in self.proto.graph.initializer if weight.name in wanted]
        for field, values in ((self.nodes, kept[::-1]), (self.proto.graph.initializer, weights),
                              (self.proto.graph.value_info, [])):
            del field[:]
            field.extend(values)
        return self.proto


def _attribute(node, name, default=None):
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)


def _enlarged(network, source, steps, target):
    """Each pixel of `source` steps[0] x steps[1] times."""
    scales = network.add(f"{target}_steps", np.array([1, 1, *steps], np.float32))
    return helper.make_node("Resize", [source, "", scales], [target], f"{target}_enlarge", mode="nearest",
                            coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _global_average(network):
    """A mean over height and width."""
    for node in network.of_type("ReduceMean"):
        axes = network.constant(node)
        maps = len(network.shapes.get(node.input[0], [])) == 4
        if maps and axes is not None and sorted(axes % 4) == [2, 3] and _attribute(node, "keepdims", 1):
            network.replace([node], helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name))


def _whole_steps(network):
    """A map that is enlarged to a computed size, where that is a whole multiple of its own."""
    for node in network.of_type("Resize"):
        before, after = network.side(node.input[0]), network.side(node.output[0])
        steps = [new // max(1, old) for new, old in zip(after, before)]
        whole = min(before) > 0 and after == [old * step for old, step in zip(before, steps)]
        if _attribute(node, "mode") == b"nearest" and whole:
            network.replace([node], _enlarged(network, node.input[0], steps, node.output[0]))


def _affine_of_norms(network):
    """The factor and the term of each channel after GroupNorm: a convolution of single pixels, which takes the activation
    that follows along."""
    for norm in network.of_type("InstanceNormalization"):
        shaped = network.only_user(norm.output[0], "Reshape")
        factor = shaped and network.only_user(shaped.output[0], "Mul")
        term = factor and network.only_user(factor.output[0], "Add")
        weight, bias = network.constant(factor), network.constant(term)
        if weight is not None and bias is not None and _by_channel(weight, bias.size) and _by_channel(bias, weight.size):
            named = [network.add(f"{term.name}_{name}", values) for name, values in
                     (("factor", weight.reshape(-1, 1, 1, 1)), ("term", bias.reshape(-1)))]
            network.replace([factor, term], helper.make_node("Conv", [shaped.output[0], *named], term.output, term.name,
                                                             group=weight.size, kernel_shape=[1, 1]))


def _broadcast_gates(network):
    """A factor for each channel that depends on the image (squeeze-and-excitation): as a map of equal values."""
    for node in network.of_type("Mul"):
        for position, other in ((0, 1), (1, 0)):
            steps = network.side(node.input[other])
            if network.side(node.input[position]) == [1, 1] and min(steps) > 1:
                larger = _enlarged(network, node.input[position], steps, f"{node.output[0]}_gate")
                network.nodes.insert(list(network.nodes).index(node), larger)
                node.input[position] = larger.output[0]


def _deviation_in_weights(network):
    """Channels that are divided by constants before a convolution: its weights are."""
    for node in network.of_type("Div"):
        conv, divisor = network.only_user(node.output[0], "Conv"), network.constant(node)
        weight = network.constant(conv)
        if divisor is not None and weight is not None and _by_channel(divisor, weight.shape[1]):
            conv.input[1] = network.add(f"{conv.name}_divided", weight / divisor.reshape(1, -1, 1, 1))
            conv.input[0] = node.input[0]


def _heads_together(network):
    """Convolutions of the single pixels of one map to a few channels each: one convolution, whose result is split."""
    heads = defaultdict(list)
    for conv in network.of_type("Conv"):
        parts = [network.constants.get(name) for name in conv.input[1:]]  # weight and bias
        if len(parts) == 2 and all(part is not None and len(part) <= BLOCK for part in parts) and _of_single_pixels(conv):
            heads[conv.input[0]].append(conv)
    for source, convs in heads.items():
        if len(convs) > 1:
            ends = [_scaled(network, conv) for conv in convs]
            weights, biases = ([network.constants[conv.input[i]] * factor for conv, (_, factor) in zip(convs, ends)]
                               for i in (1, 2))
            outputs = [end.output[0] for end, _ in ends]
            name = "_".join(outputs)
            named = [network.add(f"{name}_{kind}", np.concatenate(values))
                     for kind, values in (("weight", weights), ("bias", biases))]
            channels = network.add(f"{name}_channels", np.array([len(bias) for bias in biases]))
            network.replace(convs + [end for conv, (end, _) in zip(convs, ends) if end is not conv],
                            helper.make_node("Conv", [source, *named], [name], name, kernel_shape=[1, 1]),
                            helper.make_node("Split", [name, channels], outputs, f"{name}_split", axis=1))


def _scaled(network, conv):
    """(the node that multiplies the result by a number, that number), or (the convolution itself, 1)."""
    end = network.only_user(conv.output[0], "Mul")
    number = network.constant(end)
    return (end, number.item()) if number is not None and number.size == 1 else (conv, 1.0)


def _of_single_pixels(conv):
    sides = [*_attribute(conv, "kernel_shape", [0]), *_attribute(conv, "strides", [1]), _attribute(conv, "group", 1)]
    return set(sides) == {1} and not any(_attribute(conv, "pads", [0]))


def _by_channel(values, channels):
    """Whether an array holds a number for each channel of a map `[B,C,h,w]`."""
    return values.size == channels and values.shape[-2:] == (1, 1)
