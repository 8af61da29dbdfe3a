"""Networks rewritten for ONNX Runtime: the same outputs, and which operators are replaced or stay."""
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
    """Float [B, 3, S, S] -> a map and a number for each channel, with three GroupNorms, two with equal constants."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GroupNorm(2, 16)
        nn.init.normal_(self.norm.weight), nn.init.normal_(self.norm.bias)
        self.plain = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(2))

    def forward(self, img):
        x = nn.functional.hardswish(self.norm(self.stem(img)))
        x = x + self.plain[0](x)
        return self.plain[1](x), x.mean((2, 3))


def run(proto, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {port.name: given for port, given in zip(session.get_inputs(), inputs)})


def operators(proto):
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("batch", [1, 3])
def test_group_norms_of_an_exported_network(batch):
    network = Small().eval()
    before = onnx_export._to_onnx(network, Export(network, SIZE, ("map", "mean")))
    untouched, after = before.SerializeToString(), streamlined(before)
    onnx.checker.check_model(after, full_check=True)
    assert before.SerializeToString() == untouched
    image = np.random.default_rng(0).random((batch, 3, SIZE, SIZE), np.float32)
    with torch.no_grad():
        expected = [out.numpy() for out in network(torch.from_numpy(image))]
    for one, other in zip(run(after, image), expected, strict=True):
        assert one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-5)
    then, now = operators(before), operators(after)
    assert now == then - Counter(Mul=3, Add=3) + Counter(Conv=3) and now["Add"] == 1
    weights = [weight.name for weight in after.graph.initializer]
    assert len(set(weights)) == len(weights) and set(weights) <= {name for node in after.graph.node for name in node.input}


MAP, CHANNELS = (1, 2, 4, 6), np.float32([[[2]], [[3]]])


@pytest.mark.parametrize("source, factor, term, more, replaced", [
    (MAP, CHANNELS, CHANNELS, None, True),
    (MAP, CHANNELS, None, None, False),                      # a term that is no constant
    (MAP, CHANNELS[:1], CHANNELS, None, False),              # the same factor for all channels
    (MAP, CHANNELS, CHANNELS[:, :, 0], None, False),         # a term for each row
    ((2, 4, 6), CHANNELS, CHANNELS, None, False),            # no batch
    (MAP, CHANNELS, CHANNELS, "scaled", False),              # what others need, too
    (MAP, CHANNELS, CHANNELS, "shaped", False)])
def test_what_only_looks_alike_stays(source, factor, term, more, replaced):
    if term is not None and term.ndim == 2:
        source = (1, 2, 2, 6)
    nodes = [make_node("Shape", ["x"], ["shape"], start=0), make_node("Reshape", ["normalized", "shape"], ["shaped"]),
             make_node("Mul", ["shaped", "factor"], ["scaled"]), make_node("Add", ["scaled", "term"], ["out"])]
    shapes = {"x": source, "normalized": (1, 2, int(np.prod(source)) // 2)} | ({"term": source} if term is None else {})
    outputs = ["out", *([more] if more else [])]
    constants = {"factor": factor} | ({} if term is None else {"term": term})
    graph = make_graph(nodes, "small", [make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                                        for name, shape in shapes.items()],
                       [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
                       [from_array(values, name) for name, values in constants.items()])
    before = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)
    after = streamlined(before)
    assert operators(after) == (operators(before) if not replaced else Counter(Shape=1, Reshape=1, Conv=1))
    inputs = [np.random.default_rng(i).random(shape, np.float32) for i, shape in enumerate(shapes.values())]
    for one, other in zip(run(after, *inputs), run(before, *inputs), strict=True):
        assert np.allclose(one, other, rtol=1e-6)
