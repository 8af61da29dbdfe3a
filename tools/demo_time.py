"""How long the training demo of ./run.sh will take on this machine, printed before it begins.

    python -m tools.demo_time                            # for the 800 types x 3 copies that ./run.sh makes
    python -m tools.demo_time --types 100 --copies 2

Nothing comes from a table of machines. Some training steps of configs/demo (augmentation, network, class centers, on random
pixels) and some synthetic documents are timed here and now, in about 5 s and beside whatever else the machine does, and
multiplied by how many of them the demo takes. So is the start of this program: the demo starts two like it.
"""
import statistics
import time

import torch

import synth
from backbones import get_model
from configs import load_config
from dataset import resized_side
from inference.cli import Parser, run_cli
from inference.image import available_cores
from tools.doctor import estimate

PROGRAMS = 2   # with torch that the demo starts: training, export
OTHERS = 15    # seconds for what is short everywhere: the other programs, two evaluations, a report
LOOP = 1.3     # times a step alone is what one takes in the loop, beside loading and logging: 1.27 and 1.36 on two cores
DRAWN = 12     # documents that are drawn


def main(arguments=None) -> None:
    start_up = time.process_time()  # importing torch and the rest, mostly
    parser = Parser(prog="python -m tools.demo_time", description=__doc__)
    parser.add_argument("--types", type=int, default=800, metavar="N", help="document types to train on (default 800)")
    parser.add_argument("--copies", type=int, default=3, metavar="K", help="images of each (default 3)")
    parser.add_argument("--others", type=int, default=300, metavar="N", help="images to evaluate on (default 300)")
    args = parser.parse_args(arguments)

    cfg = load_config("configs/demo")
    images = args.types * args.copies
    steps = -(-cfg.epochs * images // cfg.batch_size)
    step = LOOP * seconds_per_step(cfg, args.types)
    documents = (images + args.others) * seconds_per_document() / available_cores()
    total = PROGRAMS * start_up + documents + steps * step + OTHERS
    print(f"the demo will take about {duration(total)} on this machine: {steps:,} training steps of {1e3 * step:.0f} ms, by "
          "a measurement just now; other work on the machine makes them slower")


def seconds_per_step(cfg, classes: int) -> float:
    """Median time of a training step of `cfg` in one process, on the device that it would take."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = resized_side(cfg.image_size, [])  # of the images that a data set without halves keeps
    measured = estimate.measure(cfg, classes, 1, side, get_model(cfg), device, statistics.median)
    return cfg.batch_size / measured["images_per_second"]


def seconds_per_document() -> float:
    """Mean time of drawing a synthetic document on one core; its kinds follow each other."""
    began = time.perf_counter()
    for number in range(DRAWN):
        synth.render(0, number, 0)
    return (time.perf_counter() - began) / DRAWN


def duration(seconds: float) -> str:
    """"40 seconds", "4 minutes"."""
    return f"{10 * max(1, round(seconds / 10))} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"


if __name__ == "__main__":
    run_cli(main)
