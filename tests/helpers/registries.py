"""Small registries with a model of this folder, and pictures for them. No torch."""
import cv2
import numpy as np

from inference.registry import Registry
from tests.helpers.models import METADATA, write_model


def png(image) -> bytes:
    """The file of an image as `cv2.imread` gives it."""
    return cv2.imencode(".png", image)[1].tobytes()


def noisy(kind, number, noise=20, side=64) -> bytes:
    """The file of a picture of a kind: 4x4 blocks of its colors, with noise of each number; number 0 has none."""
    colors = np.random.default_rng(kind).integers(0, 256, (4, 4, 3))
    if number:
        colors = colors + np.random.default_rng([kind, number]).normal(0, noise, colors.shape)
    return png(np.clip(colors, 0, 255).astype(np.uint8).repeat(side // 4, 0).repeat(side // 4, 1))


def turned(data: bytes, quarters: int) -> bytes:
    """The file of a picture, turned by so many quarters counterclockwise."""
    return png(np.rot90(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), quarters))


def model_file(path, threshold=.8, mean=.4, **metadata):
    """A tiny model whose table of thresholds has one value for all rates."""
    table = {rate: {"threshold": threshold, "tpr": .9} for rate in ("1e-2", "1e-4", "1e-6")}
    return write_model(path, METADATA | {"thresholds": table, "thresholds_any": table} | metadata, mean=mean)


def make_registry(folder, types=0, threshold=.8, orientation="upright", margin=0.0, references=1) -> Registry:
    """`types` types, the pictures of kind 0, 1, ..., each with so many references; the label of kind 3 is "type 3"."""
    registry = Registry.open(folder / "store", create=True, model=model_file(folder / "tiny.onnx", threshold, margin=margin),
                             find="never", orientation=orientation, threads=1)
    if types:
        registry.add_many([(noisy(kind, number), f"type {kind}") for kind in range(types) for number in range(references)])
    return registry
