"""Classifying: one image beyond its decoding, and a folder of 10,000 against decoding alone; lcnet_050, 128 px, 100 types.

    python benchmarks/bench_inference.py [--data DIR] [--quick] [--json]

The network has random weights (speed alone is measured). Without --data, synthetic captures, enlarged to 1600 x 1200; with
it the images below DIR, as they are. One image: ours is `DocClassifier` on a file, the peer the same with the network in
eager torch, the limit ONNX Runtime alone. The folder: images/s; the peer is one call after another, the limit decoding and
resizing alone, on all cores.
"""
import contextlib
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from side_by_side import Report, UserError, medians, peak_memory, run_cli

import onnx_export
from backbones import get_model
from configs import load_config
from inference.classify import DocClassifier
from inference.image import list_images, load_image, map_ahead
from inference.model import load_model
from synth.capture import capture
from synth.templates import render
from tasks.registration import RegistrationTask

TYPES = 100
SETTINGS = ["head=squeeze", "norm=lbn", "embedding_size=256", "image_size=128", "pretrained=false"]


@contextlib.contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(folder: Path, network: str = "lcnet_050") -> tuple[Path, torch.nn.Module]:
    """(model.onnx, the same network in torch, from float [B, 3, S, S] to features of length 1)."""
    settings = [*SETTINGS, f"network={network}", f"data={folder}", f"output={folder}"]
    cfg = load_config("configs/lcnet_cos_squeeze_lbn", settings)
    torch.manual_seed(0)
    network = get_model(cfg).eval()
    item = RegistrationTask.export(cfg, {}, network)
    onnx_export.export(item, folder / "model.onnx", onnx_export.describe(item, cfg))
    return folder / "model.onnx", torch.nn.Sequential(network, _Normalize())


class _Normalize(torch.nn.Module):
    def forward(self, features):
        return torch.nn.functional.normalize(features, dim=1)


def make_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{index:03}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        photo = capture(render(0, index, 1), 0, index)
        cv2.imwrite(str(file), cv2.resize(photo, (1600, 1200), interpolation=cv2.INTER_CUBIC))
    return files


def make_register(folder: Path) -> None:
    folder.mkdir()
    for index in range(TYPES):
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index:03}.png"), cv2.resize(image, (160, 160)))


def one_image(report, model, register, network, file, name):
    """file: a JPEG. Decoding (at the size that will do) is timed by itself and taken off."""
    classifier = DocClassifier(model=model, register_root=register, threshold=0.5, threads=1)
    size, bank = classifier.model.image_size, np.concatenate(list(classifier.bank.values()))
    prepared = classifier.model.prepare(file)
    pixels = np.ascontiguousarray(prepared.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    session = classifier.model.session

    @torch.inference_mode()
    def eager():
        image = torch.from_numpy(classifier.model.prepare(file).copy()).permute(2, 0, 1)[None].float() / 255
        return (network(image).numpy() @ bank.T).argmax()

    with one_thread():
        times = medians({"ours": lambda: classifier(file), "peer": eager,
                         "limit": lambda: session.run(["feats"], {"img": pixels}),
                         "decode": lambda: load_image(file, size), "whole": lambda: load_image(file)},
                        20 if report.quick else 300, warm_up=10)
    report.add(f"one image {name}, 1 thread, beyond decoding; eager torch; session.run",
               (times["ours"] - times["decode"]) * 1e3, (times["peer"] - times["decode"]) * 1e3, times["limit"] * 1e3)
    report.say(f"  decoding at the size that will do {times['decode'] * 1e3:.2f} ms, whole {times['whole'] * 1e3:.2f} ms")


def batches(report, model):
    """The network alone, one thread, by images per run: why a part is as large as it is."""
    loaded = load_model(model, threads=1)
    sizes = (1, 16) if report.quick else (1, 4, 8, 16, 32, 64)
    images = {size: np.zeros((size, 3, loaded.image_size, loaded.image_size), np.float32) for size in sizes}
    times = medians({str(size): (lambda pixels=images[size]: loaded.session.run(["feats"], {"img": pixels}))
                     for size in sizes}, 5 if report.quick else 40)
    for size in sizes:
        report.add(f"  network alone, {size} a run; 1 a run: an image", times[str(size)] / size * 1e3, times["1"] * 1e3)


def folder_of(report, model, register, images, folder, count, name):
    """`count` links to `images`."""
    folder.mkdir()
    for index in range(count):
        os.symlink(images[index % len(images)].resolve(), folder / f"{index:05}{images[index % len(images)].suffix}")
    files = [str(folder / file) for file in list_images(folder)]
    classifier = DocClassifier(model=model, register_root=register, threshold=0.5)
    prepare = classifier.model.prepare
    # In five parts that take turns, so that a noisy machine is noisy for all alike; the peer takes a tenth of each.
    parts = [files[first::5] for first in range(5)]
    turns = {key: iter(parts * 2) for key in ("ours", "peer", "limit", "decode")}  # one of them to warm up with

    def all_of(iterator):
        for _ in iterator:
            pass

    times = medians({
        "ours": lambda: all_of(classifier.stream(next(turns["ours"]))),
        "limit": lambda: all_of(map_ahead(prepare, next(turns["limit"]))),
        "decode": lambda: all_of(map_ahead(load_image, next(turns["decode"]))),
        "peer": lambda: [classifier(file) for file in next(turns["peer"])[::10]]}, 5)
    size = len(parts[0])
    rates = {key: (len(parts[0][::10]) if key == "peer" else size) / times[key] for key in times}
    report.add(f"a folder of {count:,} {name}; one by one; decoding and resizing alone", rates["ours"], rates["peer"],
               rates["limit"], unit="images/s", higher_is_better=True)
    report.say(f"  {rates['ours'] / rates['limit']:.1%} of decoding and resizing, {rates['ours'] / rates['decode']:.1%} of "
               f"decoding them whole ({rates['decode']:.0f} images/s)")
    report.add(f"  the same: memory for {size:,} of them; one by one",
               peak_memory(lambda: all_of(classifier.stream(parts[0]))) / 2 ** 20,
               peak_memory(lambda: [classifier(file) for file in parts[0][::10]]) / 2 ** 20, unit="MiB")


def main():
    report = Report(__doc__, ("--data", {"metavar": "DIR", "help": "folder of images to classify"}))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model, network = make_model(folder, *["test_efficientnet"] * report.quick)
        make_register(folder / "register")
        if report.args.data:
            images = [Path(report.args.data, file) for file in list_images(report.args.data)]
            name = "images"
        else:
            images, name = make_images(folder / "synthetic", 2 if report.quick else 40), "photos of 1600 x 1200"
        if not images:
            raise UserError(f"--data {report.args.data}: no image in it")
        small = folder / "small.jpg"
        cv2.imwrite(str(small), cv2.resize(load_image(images[0]), (420, 300), interpolation=cv2.INTER_AREA))
        one_image(report, model, folder / "register", network, small, "420 x 300")
        one_image(report, model, folder / "register", network, images[0], "as it is")
        batches(report, model)
        folder_of(report, model, folder / "register", images, folder / "many", 50 if report.quick else 10_000, name)
    report.end()


if __name__ == "__main__":
    run_cli(main)
