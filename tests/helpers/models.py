"""Tiny ONNX models in the project's format, and images for them. No torch."""
import json

import cv2
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from inference.model import METADATA_KEY

SIZE, WIDTH = 16, 48
METADATA = {"format": 1, "image_size": SIZE, "embedding_size": WIDTH, "channel_order": "RGB", "thresholds": None}


def write_model(path, metadata=METADATA, input_name="img", domain="", batch="batch", last="LpNormalization", side=SIZE,
                more_inputs=(), mean=0.4, then=()):
    """A model without weights: a 4x4 thumbnail in color ("flat"), minus `mean`, L2-normalized ("unit").

    mean: a number, or a tensor of that name. then: nodes that compute "feats" from "unit" and "flat". Returns `path`.
    """
    mean = mean if isinstance(mean, TensorProto) else numpy_helper.from_array(np.float32(mean), "mean")
    cell = [side // 4] * 2
    nodes = [helper.make_node("AveragePool", [input_name], ["pooled"], kernel_shape=cell, strides=cell),
             helper.make_node("Flatten", ["pooled"], ["flat"]),
             helper.make_node("Sub", ["flat", "mean"], ["centered"]),
             helper.make_node(last, ["centered"], ["unit" if then else "feats"], domain=domain,
                              **({"axis": 1, "p": 2} if last == "LpNormalization" else {})), *then]
    graph = helper.make_graph(
        nodes, "thumbnail", [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, side, side])
                             for name in (input_name, *more_inputs)],
        [helper.make_tensor_value_info("feats", TensorProto.FLOAT, [batch, WIDTH])], [mean])
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if metadata is not None:
        model.metadata_props.add(key=METADATA_KEY, value=metadata if isinstance(metadata, str) else json.dumps(metadata))
    path.write_bytes(model.SerializeToString())
    return path


def blocks(seed, size=64):
    """uint8 BGR `[size, size, 3]`: 4x4 blocks of random color."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.resize(colors, (size, size), interpolation=cv2.INTER_NEAREST)


def view_of(kind, number, side=48):
    """uint8 BGR `[side, side, 3]`: 4x4 blocks whose colors belong to `kind`, with strong noise of each `number`."""
    colors = np.random.default_rng(kind).integers(0, 256, (4, 4, 3))
    changed = np.clip(colors + np.random.default_rng([kind, number]).normal(0, 110, colors.shape), 0, 255)
    return changed.astype(np.uint8).repeat(side // 4, 0).repeat(side // 4, 1)


def save(path, image):
    """Write an image, and the folders above it. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path
