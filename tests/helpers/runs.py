"""A small run for the tests: its images, its config, what it left behind, and how to stop it in the middle.

The network has no BatchNorm, since that sees each rank's own part of a batch.
"""
import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from configs import load_config
from engine import checkpoint
from engine.distributed import Ranks
from tasks.registration import RegistrationTask
from train_v2 import train

CPU = torch.device("cpu")


def make_images(folder):
    """Seven images in a new `folder`, which is returned."""
    folder.mkdir()
    for i in range(7):
        image = np.random.default_rng(i).integers(0, 256, (4, 5, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(image, (50, 40), interpolation=cv2.INTER_CUBIC))
    return folder


def settings(folder, output, *more):
    """The config of a run of eight steps over the images in `folder`."""
    return load_config("lcnet_strong", [
        f"data={folder}", f"output={output}", "network=test_convnext", "norm=ln", "head=flatten", "image_size=32",
        "embedding_size=16", "expansion=8", "batch_size=13", "max_steps=8", "num_workers=0", "log_every=1",
        "device=cpu", *more])


def rows(output, column):
    """The numbers of a column of results.csv, where there are any."""
    with open(Path(output) / "results.csv", newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def losses_of(output):
    return rows(output, "loss")


def centers(output, name="last"):
    """All class centers `[C,D]` in a checkpoint of a run."""
    files = sorted((Path(output) / "checkpoints" / name).glob("centres-*"), key=lambda f: int(f.stem.split("-")[1]))
    return torch.cat([load_file(file)["weight"] for file in files])


def load_into(task, folder):
    """Load the class centers, and the network, of a checkpoint into `task`; returns the manifest."""
    manifest = checkpoint.read_manifest(folder, task.compatibility_keys())
    states = checkpoint.load(folder, manifest, {"centres": (task.partial_fc.classes, task.partial_fc.row_state())})
    task.model.load_state_dict(states["network"])
    return manifest


def same(one, two):
    """Whether two states have the same tensors, bit by bit."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class Stopped(Exception):
    pass


def stop_at(monkeypatch, step, does, task=RegistrationTask):
    """Let `does(value)` replace the losses of the optimizer step `step`."""
    begin_step, losses, at = task.begin_step, task.losses, {}

    def begun(self, number, factor):
        at["step"] = number
        return begin_step(self, number, factor)

    def replaced(self, batch):
        value = losses(self, batch)
        return does(value) if at["step"] == step else value
    monkeypatch.setattr(task, "begin_step", begun)
    monkeypatch.setattr(task, "losses", replaced)


def train_until(step, cfg, monkeypatch, task=RegistrationTask, ranks=None):
    """The run of `cfg` as far as an exception at the loss of `step`."""
    def stop(value):
        raise Stopped
    with monkeypatch.context() as patch:
        stop_at(patch, step, stop, task)
        with pytest.raises(Stopped):
            train(cfg, ranks or Ranks(0, 1, CPU))


def stop_and_resume(step, config, folder, task=RegistrationTask, states=("network",)) -> tuple[Path, Path]:
    """The folders of a whole run, and of one that was stopped at the loss of `step` and resumed. They must agree in all
    terms of the loss, at each step, and in these states of their last checkpoints. config: (output, *keys) -> a config."""
    whole, halves = Path(folder) / "whole", Path(folder) / "halves"
    train(config(whole), Ranks(0, 1, CPU))
    train_until(step, config(halves), pytest.MonkeyPatch(), task)
    assert len(losses_of(halves)) == step
    train(config(halves, "resume=auto"), Ranks(0, 1, CPU))
    with open(whole / "results.csv") as file:
        columns = [column for column in file.readline().strip().split(",") if column.startswith(("loss", "step"))]
    assert len(losses_of(whole)) > step
    for column in columns:
        assert rows(halves, column) == rows(whole, column), column
    for name in states:
        assert same(*(load_file(run / f"checkpoints/last/{name}.safetensors") for run in (whole, halves))), name
    return whole, halves


def check_same_training(one, others, columns, atol=0.0, but=None) -> None:
    """Runs in float64 that differ by the order of their sums alone: the same numbers in `columns` of results.csv, and the
    same network. but: the end of the names of tensors that are not compared."""
    weights = load_file(one / "checkpoints/last/network.safetensors")
    for other in others:
        for column in columns:
            assert np.allclose(rows(other, column), rows(one, column), rtol=1e-9, atol=atol), (other, column)
        found = load_file(other / "checkpoints/last/network.safetensors")
        for name, value in weights.items():
            assert (found[name] - value).norm() <= 1e-9 * value.norm() or but and name.endswith(but), (other, name)


def average_is_published(output) -> bool:
    """Whether model.pt of a run is the averaged network of its last checkpoint."""
    average = load_file(Path(output) / "checkpoints/last/average.safetensors")
    published = torch.load(Path(output) / "model.pt", weights_only=True)
    return bool(published) and all(torch.equal(value, average["network." + name]) for name, value in published.items())
