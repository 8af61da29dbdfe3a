"""A training step of the network, and a whole training run: ours and the reference's recipe.

    python benchmarks/bench_train_step.py [--quick] [--json] [--data DIR...]

Network alone: forward, backward, clipping and AdamW of lcnet_050. Ours is channels_last with the fused optimizer, as it
is and compiled; the peer NCHW, eager, with torch's default AdamW.
Whole run: from image files to updated weights, every image 24 classes. Ours is train_v2.py with the same network and
kinds of augmentation (configs/lcnet_cos), its class centers on SGD, all of them or a sample of 0.3. The peer is the
reference's recipe: a DataLoader whose workers decode, turn, crop and augment one image at a time with PIL and torchvision,
NCHW, AdamW on everything, 0.3 of the class centers sampled. The limit is the network's step alone. On a CPU everything runs
under glibc's default allocator, as the reference does, and under the one that run.sh sets, as ours does. DIR: folders of
images (default: synthetic ones).
"""
import contextlib
import csv
import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torchvision.transforms.v2 as transforms
from bench_head import Reference
from PIL import Image
from side_by_side import ONE_ALLOCATOR, Report, medians, peak_memory, run_cli, synchronize, under_each_allocator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from backbones import get_model
from configs import load_config
from engine.distributed import Ranks
from engine.optimizer import decay_groups, make_optimizer
from inference.image import list_images
from synth import write_train
from train_v2 import train

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
OURS = "configs/lcnet_cos"


class NetworkStep:
    """Forward, backward, clipping and update of the network on one fixed batch; calling it makes a step."""

    def __init__(self, batch: int, ours: bool, compiled: bool = False):
        cfg = load_config(OURS, ["pretrained=false"])
        layout = torch.channels_last if ours else torch.contiguous_format
        self.network = get_model(cfg, False).to(DEVICE, memory_format=layout)
        if compiled:
            self.network.compile()
        self.optimizer = (make_optimizer(decay_groups(self.network.named_parameters(), 1e-3, "fixed", 1e-3), batch) if ours
                          else torch.optim.AdamW(self.network.parameters(), weight_decay=1e-3))
        self.image = torch.rand(batch, 3, cfg.image_size, cfg.image_size, device=DEVICE)
        self.gradient = torch.randn(batch, cfg.embedding_size, device=DEVICE)

    def __call__(self):
        self.network(self.image).backward(self.gradient)
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def network_alone(report, batch, rounds):
    """Images per second and memory of our step, plain and compiled, against the peer's; returns the better speed."""
    steps = {"ours": NetworkStep(batch, True), "compiled": NetworkStep(batch, True, compiled=True),
             "peer": NetworkStep(batch, False)}
    speed = {name: batch / took for name, took in medians(steps, rounds, warm_up=3).items()}
    memory = {name: peak_memory(step) / 2 ** 20 for name, step in steps.items()}
    for name in "ours", "compiled":
        what = f"lcnet_050, 128 px, batch {batch}: train step of the network, {name}"
        report.add(what, speed[name], speed["peer"], None, "images/s", True)
        report.add(f"{what}: peak memory", memory[name], memory["peer"], None, "MiB")
    return max(speed["ours"], speed["compiled"])


class OneByOne(Dataset):
    """The peer's data: item k is image k // 24 in view k % 24, decoded and augmented on its own."""

    def __init__(self, paths, size=128):
        self.paths, self.size = paths, size
        pick = transforms.RandomChoice

        def maybe(several):
            return transforms.RandomApply([pick(several)])

        self.augment = transforms.Compose([
            pick([transforms.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)), transforms.RandomResizedCrop(size, (0.8, 1.0))]),
            maybe([transforms.GaussianBlur(5), transforms.GaussianBlur(3), transforms.JPEG((5, 50))]),
            transforms.ToDtype(torch.float32, scale=True),
            maybe([transforms.GaussianNoise(sigma=0.02), transforms.GaussianNoise(sigma=0.05)]),
            maybe([transforms.ColorJitter(0.3, 0.1, 0.1), transforms.Grayscale(3), transforms.RandomChannelPermutation(),
                   transforms.RandomInvert(1.0)])])

    def __len__(self):
        return 24 * len(self.paths)

    def __getitem__(self, k):
        index, view = divmod(k, 24)
        image = Image.open(self.paths[index]).convert("RGB").rotate(90 * (view % 4), expand=True)
        if view // 4 % 2:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        width, height = image.size
        image = image.crop([(0, 0, width, height), (0, 0, width, height // 2), (0, height // 2, width, height)][view // 8])
        image = transforms.functional.pil_to_tensor(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return self.augment(image), k


def peer_run(paths, batch, steps, workers):
    """Images per second of the reference's recipe, once what its workers had ready at the start is used up."""
    network = get_model(load_config(OURS, ["pretrained=false"]), False).to(DEVICE)
    head = Reference(24 * len(paths), 0.3)
    optimizer = torch.optim.AdamW([*network.parameters(), head.weight], lr=1e-3, weight_decay=1e-3)
    head.optimizer = optimizer  # one for all, as there
    loader = DataLoader(OneByOne(paths), batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=CUDA)
    ahead = 2 * workers + 1
    for step, (image, label) in enumerate(loader):
        if step == ahead:
            synchronize()
            began = time.perf_counter()
        if step == ahead + steps:
            synchronize()
            return batch * steps / (time.perf_counter() - began)
        head.step(network(image.to(DEVICE)), label.to(DEVICE))
    raise ValueError("too few images for so many steps")


def our_run(data, folder, batch, steps, workers, *more):
    """Images per second of train_v2.py, cache built beforehand, after its first steps, as its own log has it."""
    output = Path(tempfile.mkdtemp(dir=folder))
    cfg = load_config(OURS, [f"data={','.join(data)}", f"output={output}", f"cache={folder}/cache", f"num_workers={workers}",
                             f"batch_size={batch}", f"max_steps={2 * steps}", f"log_every={steps}", "save_every=0",
                             "pretrained=false", "centres_optimizer=sgd", *more])
    with contextlib.redirect_stderr(io.StringIO()):
        train(cfg, Ranks(0, 1, DEVICE))
    rows = [row for row in csv.DictReader(open(output / "results.csv", newline="")) if row["images_per_second"]]
    shutil.rmtree(output)
    return float(rows[-1]["images_per_second"])


def whole_run(report, alone, batch, steps, rounds):
    with tempfile.TemporaryDirectory() as folder:
        data = report.args.data
        if not data:
            data = [f"{folder}/synthetic"]
            write_train(data[0], 30 if report.quick else 2000, 3, seed=0)
        paths = [Path(root, name) for root in data for name in list_images(root)]
        workers = 16 if CUDA else 2
        variants = {", all class centers": ("sample_rate=1.0",), ", sample_rate=0.3": ("sample_rate=0.3",)}
        for more in variants.values():  # builds the cache and whatever is compiled
            our_run(data, folder, batch, 1, workers, *more)
        speeds = {name: [] for name in [*variants, "peer"]}
        for _ in range(rounds):
            for name, more in variants.items():
                speeds[name].append(our_run(data, folder, batch, steps, workers, *more))
            speeds["peer"].append(peer_run(paths, batch, steps, workers))
        speed = {name: statistics.median(measured) for name, measured in speeds.items()}
        for name in variants:
            report.add(f"whole run{name}, {24 * len(paths):,} classes, batch {batch}", speed[name], speed["peer"], alone,
                       "images/s", True)


def main():
    report = Report(__doc__, ONE_ALLOCATOR, ("--data", {"nargs": "+", "metavar": "DIR", "help": "folders of images"}))
    batch, rounds, steps = (32, 3, 2) if report.quick else (1024, 20, 50) if CUDA else (256, 7, 8)

    def run():
        whole_run(report, network_alone(report, batch, rounds), batch, steps, 1 if report.quick else 3)
    under_each_allocator(report, run)
    report.end()


if __name__ == "__main__":
    run_cli(main)
