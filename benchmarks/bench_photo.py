"""One photo of 1600 x 1200 from its file to the answer, on one core: decoding, finding the document, rectifying, embedding,
searching among 100 types.

    python benchmarks/bench_photo.py [--model M.onnx] [--finder F.onnx] [--quick] [--json]

Photos: synthetic scenes, enlarged, with a camera's noise. Ours is `DocClassifier` with a finder, the peer the same without,
the limit 12 ms. Then the parts, of which the first two are in the peer too (its decoding is at a lower size); the limit of a
network is its run by ONNX Runtime alone. --quick takes a finder with random weights, which may find nothing.
"""
import itertools
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from bench_inference import TYPES, make_register
from side_by_side import Report, medians, run_cli

import onnx_export
from backbones.localizer import get_finder
from configs import load_config
from inference.classify import DEFAULT_MODEL, DocClassifier
from inference.finder import DEFAULT_FINDER, Finder
from inference.image import load_image, load_reduced
from inference.rectify import rectify
from synth.scenes import Sources, scene
from tasks.finder import FinderTask

SIDES = 1600, 1200
TARGET, LARGEST = 12.0, 3.0     # ms for all of it; MB of the finder's file


def make_photos(folder: Path, count: int) -> list[tuple[Path, np.ndarray]]:
    """(JPEG file, quad of a document in it) of the first scenes that have this format and a document."""
    photos, numbers = [], itertools.count()
    while len(photos) < count:
        number = next(numbers)
        image, quads = scene(0, number, Sources())
        if image.shape[1] * SIDES[1] == image.shape[0] * SIDES[0] and len(quads):
            noise = np.random.default_rng(number).normal(0, 3, (SIDES[1], SIDES[0], 3))
            large = cv2.resize(image, SIDES, interpolation=cv2.INTER_CUBIC)
            file = folder / f"{number:03}.jpg"
            cv2.imwrite(str(file), np.clip(large + noise, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
            photos.append((file, quads[-1] * SIDES[0] / image.shape[1]))
    return photos


def untrained(folder: Path) -> Path:
    """finder.onnx with random weights."""
    cfg = load_config("configs/finder", [f"data={folder}", f"output={folder}", "boxes=none", "pretrained=false"])
    item = FinderTask.export(cfg, {}, get_finder(cfg, False).eval())
    onnx_export.export(item, folder / "finder.onnx", onnx_export.describe(item, cfg))
    return folder / "finder.onnx"


class Photo(NamedTuple):
    """What each part takes."""
    file: Path
    pixels: np.ndarray      # decoded for the finder
    quad: np.ndarray        # in these pixels
    square: np.ndarray      # as the model takes it
    feature: np.ndarray


def measure(report, model, path, register, photos):
    """photos: as from `make_photos`."""
    finder = Finder(path)
    plain, auto, always = (DocClassifier(model=model, register_root=register, threshold=0.5, find=find, finder=finder,
                                         threads=1) for find in (False, "auto", True))
    network, size, for_size = plain.model, plain.model.image_size, auto.views.for_size
    parts = []
    for file, quad in photos:
        pixels, divisor = load_reduced(file, for_size)
        square = network.prepare(pixels)[None]
        parts.append(Photo(file, pixels, quad / divisor, square, network.embed(square)))

    def each(function):
        """`function` of another photo at every call."""
        turn = itertools.cycle(parts)
        return lambda: function(next(turn))

    def alone(session, side):
        pixels = {"img": np.zeros((1, 3, side, side), np.float32)}
        return lambda: session.run(None, pixels)

    times = {name: seconds * 1e3 for name, seconds in medians({
        "auto": each(lambda photo: auto(photo.file)),
        "always": each(lambda photo: always(photo.file)),
        "plain": each(lambda photo: plain(photo.file)),
        "decode": each(lambda photo: load_reduced(photo.file, for_size)),
        "decode for the model": each(lambda photo: load_image(photo.file, size)),
        "find": each(lambda photo: finder.find(photo.pixels)),
        "finder": alone(finder.session, finder.image_size),
        "rectify": each(lambda photo: rectify(photo.pixels, photo.quad, (size, size))),
        "embed": each(lambda photo: network.embed(photo.square)),
        "model": alone(network.session, size),
        "search": each(lambda photo: plain.registry.search(photo.feature, 2))},
        len(photos) * (1 if report.quick else 10), warm_up=2).items()}
    report.add("all, find=auto; without a finder; the target", times["auto"], times["plain"], TARGET)
    report.add("all, find=always; without a finder; the target", times["always"], times["plain"], TARGET)
    report.add("  decode, as large as the finder takes; for the model alone", times["decode"], times["decode for the model"])
    report.add("  find; the network alone", times["find"], limit=times["finder"])
    report.add("  rectify", times["rectify"])
    report.add("  embed; the network alone", times["embed"], limit=times["model"])
    report.add(f"  search among {TYPES} types", times["search"])
    report.add("size of the finder; the target", os.path.getsize(finder.path) / 1e6, limit=LARGEST, unit="MB")
    seen = [finder.find(photo.pixels) is not None for photo in parts]
    report.say(f"  a document was found in {sum(seen)} of {len(seen)} photos")


def main():
    report = Report(__doc__, ("--model", {"metavar": "M.onnx", "help": "model (default: the shipped one)"}),
                    ("--finder", {"metavar": "F.onnx", "help": "finder (default: the shipped one)"}))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_register(folder / "register")
        finder = report.args.finder or (untrained(folder) if report.quick else DEFAULT_FINDER)
        photos = make_photos(folder, 2 if report.quick else 20)
        measure(report, report.args.model or DEFAULT_MODEL, finder, folder / "register", photos)
    report.end()


if __name__ == "__main__":
    run_cli(main)
