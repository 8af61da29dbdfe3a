"""Parameters, MB and GFLOPs of the embedding network of every config, or of those named.

    python -m backbones
    python -m backbones lcnet_cos configs/demo

MB is parameters x 4 / 1e6. GFLOPs count a multiplication and an addition as two, for one image.
"""
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs import load_config, names
from inference.cli import Parser, run_cli

from . import get_model


def measure(cfg) -> tuple[int, float]:
    """(parameters, GFLOPs for one image) of a config's network."""
    model = get_model(cfg, pretrained=False).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, cfg.image_size, cfg.image_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 1e9


def main(arguments=None):
    parser = Parser(prog="python -m backbones", description=__doc__)
    parser.add_argument("config", nargs="*", metavar="CONFIG", help="name or path of a config; none: all that have one")
    args = parser.parse_args(arguments)
    print(f"{'config':28} {'network':16} {'head':8} {'norm':4} {'e':>4} {'px':>4} "
          f"{'parameters':>11} {'MB':>6} {'GFLOPs':>7}")
    for name in args.config or names():
        cfg = load_config(name)
        if "embedding_size" not in cfg:  # of a task with another kind of network
            continue
        parameters, gflops = measure(cfg)
        print(f"{name:28} {cfg.network:16} {cfg.head:8} {cfg.norm:4} {cfg.embedding_size:4} {cfg.image_size:4} "
              f"{parameters:11,} {parameters * 4 / 1e6:6.2f} {gflops:7.3f}", flush=True)


if __name__ == "__main__":
    run_cli(main)
