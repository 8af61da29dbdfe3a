"""A reader of lines in the project's format that needs no training, and lines that it reads. No torch."""
import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from inference.model import METADATA_KEY

HEIGHT, STRIDE, CELLS = 40, 2, 8  # a character is a column of 8 cells, black or white, the first and the last one black
WIDE = GAP = 8  # pixels of a character, and between two
SCALE = 40.0
CLASSES = ["", " ", *"abcdefghijklmnopqrstuvwxyz.,'-1"]  # no two patterns differ in one cell alone


def patterns() -> np.ndarray:
    """float32 `[C,8]`, 1 for white and -1 for black, of each of CLASSES: blank is all white, the space has its own sign."""
    rows = [np.ones(CELLS)]
    for code in range(2 ** 6):
        cells = 1 - 2 * np.array([1, *map(int, f"{code:06b}"), 1])
        if cells.prod() == 1 and len(rows) < len(CLASSES):
            rows.append(cells)
    return np.float32(rows)


def centers() -> np.ndarray:
    return patterns() / np.float32(CELLS ** 0.5)


def draw(text: str, height: int = HEIGHT, left: int = 8, light: int = 255) -> np.ndarray:
    """A line that the reader reads: gray uint8 `[height, W]`, height a multiple of HEIGHT. light: the gray of white cells;
    at 140 each character is one piece of ink."""
    line = np.full((HEIGHT, left + len(text) * (WIDE + GAP)), 255, np.uint8)
    for place, number in enumerate(map(CLASSES.index, text)):
        x = left + place * (WIDE + GAP)
        line[:, x:x + WIDE] = np.repeat(np.where(patterns()[number] > 0, light, 0), HEIGHT // CELLS)[:, None]
    return line.repeat(height // HEIGHT, 0).repeat(height // HEIGHT, 1)


def about(**changes) -> dict:
    return {"format": 1, "task": "reading", "image_size": HEIGHT, "height": HEIGHT, "stride": STRIDE, "classes": CLASSES,
            "scale": SCALE, "vertical": False, **changes}


def write_reader(path, metadata=None, class_centers=None, outputs=("embeddings", "boxes", "centers"), gain=1.0):
    """The network: the cells of each column, 1 where they are lighter than half, as a unit vector, and a box around it.
    gain: 0 makes vectors of no length.
    Returns `path`."""
    values = {"four": np.float32(4), "one": np.float32(1), "gain": np.float32(gain), "tiny": np.float32(1e-6),
              "none": np.float32(0), "row": np.int64([1]), "axis": np.int64([2]), "begin": np.int64(0), "step": np.int64(1),
              "ends": np.int64([0, 2]), "along": np.float32([STRIDE, 0, STRIDE, 0]),
              "sides": np.float32([1 - WIDE / 2, 0, 1 + WIDE / 2, HEIGHT]),
              "table": centers() if class_centers is None else class_centers}
    node, cell = helper.make_node, [HEIGHT // CELLS, STRIDE]
    nodes = [node("AveragePool", ["img"], ["pooled"], kernel_shape=cell, strides=cell),
             node("Squeeze", ["pooled", "row"], ["cells"]), node("Transpose", ["cells"], ["columns"], perm=[0, 2, 1]),
             node("Mul", ["columns", "four"], ["much"]), node("Sub", ["much", "one"], ["signed"]),
             node("Min", ["signed", "one"], ["clipped"]), node("Mul", ["clipped", "gain"], ["scaled"]),
             node("ReduceL2", ["scaled", "axis"], ["length"]), node("Add", ["length", "tiny"], ["divisor"]),
             node("Div", ["scaled", "divisor"], ["embeddings"]),
             node("Shape", ["columns"], ["shape"]), node("Gather", ["shape", "step"], ["count"]),
             node("Range", ["begin", "count", "step"], ["places"]), node("Cast", ["places"], ["real"], to=TensorProto.FLOAT),
             node("Unsqueeze", ["real", "ends"], ["column"]), node("Mul", ["column", "along"], ["moved"]),
             node("Add", ["moved", "sides"], ["box"]), node("Mul", ["length", "none"], ["zeros"]),
             node("Add", ["zeros", "box"], ["boxes"]), node("Identity", ["table"], ["centers"])]
    shapes = {"embeddings": ["batch", "columns", CELLS], "boxes": ["batch", "columns", 4], "centers": [None, CELLS]}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(
        nodes, "reader", [helper.make_tensor_value_info("img", TensorProto.FLOAT, ["batch", 1, HEIGHT, "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata is None:
        metadata = about()
    model.metadata_props.add(key=METADATA_KEY, value=metadata if isinstance(metadata, str) else json.dumps(metadata))
    path.write_bytes(model.SerializeToString())
    return path
