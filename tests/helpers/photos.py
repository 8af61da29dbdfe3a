"""Photos with a document at known corners, and a tiny finder that says given corners. No torch."""
import json

import cv2
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from inference.finder import Finder
from inference.model import METADATA_KEY

FINDER_SIZE = 32
FINDER = {"format": 1, "task": "finder", "image_size": FINDER_SIZE, "fit": "pad"}
BACKGROUND = (90, 110, 70)
SAMPLES = 4  # along each axis, for a pixel of the photo


def photo(document, quad, width=640, height=480):
    """uint8 BGR `[height, width, 3]`: `document` with its corners, clockwise from its top left, at `quad` `[4,2]` (pixels
    from edge to edge), on one color. Each pixel is the mean of 4x4 samples."""
    rows, columns = document.shape[:2]
    frame = np.float32([(0, 0), (columns, 0), (columns, rows), (0, rows)])
    matrix = cv2.getPerspectiveTransform(np.float32(quad) * SAMPLES - 0.5, frame - np.float32(0.5))
    large = cv2.warpPerspective(document, matrix, (width * SAMPLES, height * SAMPLES), borderValue=BACKGROUND,
                                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def write_finder(path, quad, score=0.9, metadata=FINDER, outputs=("heat", "corners", "corner_heat", "corner_shift"),
                 depth=8):
    """A finder that sees a document at `quad` `[4,2]`, in pixels of its input, in every image but a black one. It has one
    cell. Returns `path`."""
    size = metadata["image_size"] if metadata else FINDER_SIZE
    corners = np.zeros((1, depth, 1, 1), np.float32)
    corners[0, :8, 0, 0] = (np.asarray(quad, np.float64) - size / 2).ravel()[:depth]
    constants = {"logit": np.log(score / (1 - score)) * np.ones((1, 1, 1, 1)), "corner_values": corners,
                 "corner_logit": np.full((1, 1, 1, 1), -20), "no_shift": np.zeros((1, 2, 1, 1)), "dark": 0.02, "steep": 1e4,
                 "zero": 0}
    nodes = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in (
        ("ReduceMean", ["img", "axes"], "mean"), ("Sub", ["mean", "dark"], "light"), ("Min", ["light", "zero"], "too_dark"),
        ("Mul", ["too_dark", "steep"], "less"), ("Mul", ["mean", "zero"], "nothing"))]
    nodes += [helper.make_node("Add", [one, other], [name]) for one, other, name in zip(
        ("less", *["nothing"] * 3), ("logit", "corner_values", "corner_logit", "no_shift"), outputs)]
    values = [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "finder", [helper.make_tensor_value_info("img", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [*values, numpy_helper.from_array(np.int64([1, 2, 3]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is not None:
        model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
    path.write_bytes(model.SerializeToString())
    return path


def finder_of(path, quad, width=640, height=480, score=0.9):
    """A `Finder` that finds `quad`, in pixels of an image of this size."""
    long = max(width, height)
    return Finder(write_finder(path, (np.array(quad) + (long - np.array([width, height])) / 2) * FINDER_SIZE / long, score))
