"""Smaller forms of an exported network: weights stored in 16 bits, large layers computed in 8.

An ONNX model in, another out, with the same input, output and metadata. What either gains and costs is measured by
benchmarks/bench_precision.py.
"""
import inference  # noqa: F401 - before ONNX Runtime, whose reports it turns off

# isort: split
import contextlib
import io
import logging
import math
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from inference.errors import UserError

# 128 x 128. For smaller layers the conversions around one cost more than its products gain, and the first layers, which
# are small, are also those whose range is too wide for 8 bits.
LARGE = 16_384


def half_weights(proto: onnx.ModelProto, kind: int = onnx.TensorProto.FLOAT16) -> onnx.ModelProto:
    """`proto` with its weights stored in 16 bits: `kind` is FLOAT16 or BFLOAT16.

    ONNX Runtime casts them back to float32 once, when it loads the model: half the file, and the arithmetic as before.
    """
    half = onnx.ModelProto()
    half.CopyFrom(proto)
    nodes, casts = list(half.graph.node), []
    stored = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for weight in half.graph.initializer:
        # Vectors are small, and 8-bit layers want their scales as constants.
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            name, values = weight.name, onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(stored), name + "_16"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], name + "_cast", to=onnx.TensorProto.FLOAT))
    del half.graph.node[:]
    half.graph.node.extend(casts + nodes)
    return half


def large_layers(proto: onnx.ModelProto) -> list[str]:
    """The nodes that gain from int8: dense convolutions and Gemm of at least LARGE weights. Depthwise convolutions do
    not (they are bound by memory), nor what sees a single pixel, as in squeeze-and-excitation."""
    weights = {weight.name: weight.dims for weight in proto.graph.initializer}
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}

    def is_large(node):
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        return (node.op_type in ("Conv", "Gemm") and groups == 1 and shapes.get(node.input[0], [])[2:] != [1, 1]
                and math.prod(weights.get(node.input[1], [])) >= LARGE)

    return [node.name for node in proto.graph.node if is_large(node)]


def to_int8(proto: onnx.ModelProto, images: np.ndarray, layers: list[str] | None = None,
            method: CalibrationMethod = CalibrationMethod.MinMax) -> onnx.ModelProto:
    """`proto` with `layers` (None: `large_layers`) in static int8: unsigned activations, whose range is what `method` makes
    of `images` (uint8 RGB `[N, S, S, 3]`), signed weights with a scale for each output channel.

    Raises UserError when there is no such layer.
    """
    layers = large_layers(proto) if layers is None else layers
    if not layers:
        raise UserError(f"int8: the network has no layer of at least {LARGE} weights, so nothing would gain; use --fp16")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        exact, path = Path(folder, "exact.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, exact)  # given the model itself, it would move its weights to a file that is deleted afterwards
        quantize_static(exact, path, _Images(images, proto.graph.input[0].name), quant_format=QuantFormat.QDQ,
                        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        # Weights of 7 bits: x86 without VNNI adds two 8-bit products in 16 bits, which would saturate.
                        reduce_range=True, nodes_to_quantize=layers, calibrate_method=method,
                        # MinMax: the mean of the images' own ranges, since a single image may have three times that.
                        extra_options={"CalibMovingAverage": method == CalibrationMethod.MinMax})
        return onnx.load(path)


class _Images(CalibrationDataReader):
    def __init__(self, images, name):
        self.name, self.images = name, iter(images)

    def get_next(self):  # one at a time: the histograms of Percentile and Entropy want all of one shape
        image = next(self.images, None)
        return None if image is None else {self.name: np.float32(image.transpose(2, 0, 1)[None]) / np.float32(255)}


@contextlib.contextmanager
def _quiet():
    """Without the quantizer's messages about its progress, and about a preparation that would undo HardSwish."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
