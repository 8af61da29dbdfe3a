"""Networks rewritten for ONNX Runtime: the same outputs, and which operators are replaced or left as they are."""
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from torch import nn

import onnx_export
from backbones.streamline import streamlined
from tasks.base import Export

SIZE = 24


class Small(nn.Module):
    """Float [B, 3, S, S] -> three maps: all that is rewritten is in it once or twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.std = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
        self.stem, self.deep = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.gate, self.norm = nn.Conv2d(16, 16, 1), nn.GroupNorm(2, 16)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        self.score, self.shift, self.wide = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 16, 1)

    def forward(self, img):
        x = self.stem((img - 0.5) / self.std)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = x + nn.functional.interpolate(self.deep(x), size=x.shape[2:])
        x = nn.functional.hardswish(self.norm(x))
        return self.score(x), 4 * self.shift(x), self.wide(x)


def run(proto, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {port.name: given for port, given in zip(session.get_inputs(), inputs)})


def operators(proto):
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_of_all_that_is_rewritten(batch):
    network = Small().eval()
    before = onnx_export._to_onnx(network, Export(network, SIZE, ("score", "shift", "wide")))
    untouched, after = before.SerializeToString(), streamlined(before)
    onnx.checker.check_model(after, full_check=True)
    assert before.SerializeToString() == untouched
    image = np.random.default_rng(0).random((batch, 3, SIZE, SIZE), np.float32)
    with torch.no_grad():
        expected = [out.numpy() for out in network(torch.from_numpy(image))]
    for one, other in zip(run(after, image), expected, strict=True):
        assert one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-5)
    then, now = operators(before), operators(after)
    assert {"ReduceMean", "Div"} <= then.keys() and not {"ReduceMean", "Div", "Concat"} & now.keys()
    assert now["GlobalAveragePool"] == 1 and now["Mul"] == 1                     # the gate's; the others are in weights
    assert now["Resize"] == 2 and now["Split"] == 1                              # one map, one gate; the two small heads
    assert now["Conv"] == then["Conv"]                                           # one for two heads, one after GroupNorm
    names = {name for node in after.graph.node for name in node.input}
    assert {weight.name for weight in after.graph.initializer} <= names


def model_of(nodes, shapes, outputs, **constants):
    """A network of these nodes on float32 inputs x, y, ... of these shapes."""
    inputs, outputs = ([make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in values]
                       for values in (zip("xyz", shapes), ((name, None) for name in outputs)))
    graph = make_graph(nodes, "small", inputs, outputs,
                       [from_array(np.asarray(values), name) for name, values in constants.items()])
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)


MAP, KERNELS = (1, 2, 4, 6), np.random.default_rng(0).normal(size=(4, 2, 1, 1)).astype(np.float32)
TERM, CHANNELS = np.ones(4, np.float32), np.float32([[[2]], [[3]]])
RESIZE = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
HEAD = dict(kernel_shape=[1, 1])


@pytest.mark.parametrize("nodes, shapes, constants", [
    ([make_node("ReduceMean", ["x", "axes"], ["out"], keepdims=1)], [MAP], {"axes": np.array([1, 2])}),
    ([make_node("ReduceMean", ["x", "axes"], ["out"], keepdims=0)], [MAP], {"axes": np.array([2, 3])}),
    ([make_node("Resize", ["x", "", "", "sizes"], ["out"], **RESIZE)], [MAP], {"sizes": np.array([1, 2, 8, 9])}),
    ([make_node("Resize", ["x", "", "", "sizes"], ["out"], mode="linear")], [MAP], {"sizes": np.array([1, 2, 8, 12])}),
    ([make_node("Mul", ["x", "y"], ["out"])], [MAP, (1, 1, 4, 1)], {}),
    ([make_node("Div", ["x", "y"], ["d"]), make_node("Conv", ["d", "w"], ["out"])], [MAP, (1, 2, 1, 1)], {"w": KERNELS}),
    ([make_node("Div", ["x", "s"], ["d"]), make_node("Conv", ["d", "w"], ["out"])], [(1, 2, 4, 2)],
     {"w": KERNELS, "s": CHANNELS.reshape(2)}),
    ([make_node("Div", ["x", "s"], ["d"]), make_node("Conv", ["d", "w"], ["c"]), make_node("ReduceMean", ["d"], ["m"]),
      make_node("Add", ["c", "m"], ["out"])], [MAP], {"w": KERNELS, "s": CHANNELS}),
    ([make_node("InstanceNormalization", ["x", "one", "one"], ["n"]), make_node("Reshape", ["n", "shape"], ["r"]),
      make_node("Mul", ["r", "s"], ["m"]), make_node("Add", ["m", "y"], ["out"])], [MAP, MAP],
     {"one": TERM[:2], "shape": np.array(MAP), "s": CHANNELS}),
    ([make_node("Conv", ["x", "w"], ["c"], **HEAD), make_node("Conv", ["x", "v", "b"], ["k"], **HEAD),
      make_node("Concat", ["c", "k"], ["out"], axis=1)], [MAP], {"w": KERNELS, "v": 2 * KERNELS, "b": TERM}),
    ([make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2], **HEAD), make_node("Conv", ["x", "v", "b"], ["k"], **HEAD),
      make_node("ReduceMean", ["k"], ["m"]), make_node("Add", ["c", "m"], ["out"])], [MAP],
     {"w": KERNELS, "v": 2 * KERNELS, "b": TERM})])
def test_what_only_looks_alike_stays(nodes, shapes, constants):
    """Other axes, sizes that are no multiples, values that are no constants, results that others need too, no bias."""
    before = model_of(nodes, shapes, ["out"], **constants)
    after = streamlined(before)
    assert operators(after) == operators(before)
    inputs = [np.random.default_rng(i).random(shape, np.float32) + 1 for i, shape in enumerate(shapes)]
    assert np.array_equal(run(after, *inputs), run(before, *inputs))
