"""Weights of the prototype network as this project's network takes them: `pretrained=FILE` of configs/docmetric.

    python benchmarks/prototype.py PROTOTYPE.pt FILE.pt

The prototype: timm's lcnet_050 features as `b.*`, the squeeze head with LBN as `h.*`, fed BGR in [0, 1]. Ours is fed RGB
and takes mean and deviation off inside: the stem's channels are turned round, mean is 0 and deviation 1.
"""
import sys
from pathlib import Path

import torch

if __name__ == "__main__":  # as a script, Python has this folder on its path instead of the repository's
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbones import get_model  # noqa: E402
from configs import load_config  # noqa: E402
from engine.checkpoint import save_weights  # noqa: E402
from inference.cli import run_cli  # noqa: E402
from inference.errors import UserError, first_line  # noqa: E402

HEAD = {"h.0": "head.reduce.0", "h.2": "head.embed.0", "h.3": "head.embed.1", "h.4": "head.embed.2", "h.5": "head.embed.3"}


def main():
    if len(sys.argv) != 3:
        raise UserError("usage: benchmarks/prototype.py PROTOTYPE.pt FILE.pt")
    network = get_model(load_config("configs/docmetric", []), pretrained=False)
    ours = {"mean": torch.zeros_like(network.mean), "std": torch.ones_like(network.std)}
    try:
        for name, value in torch.load(sys.argv[1], map_location="cpu", weights_only=True).items():
            part, number, rest = name.split(".", 2)
            ours[f"features.{number}.{rest}" if part == "b" else f"{HEAD[part + '.' + number]}.{rest}"] = value
        ours["features.conv_stem.weight"] = ours["features.conv_stem.weight"].flip(1).contiguous()
        network.load_state_dict(ours)
    except Exception as error:  # of whatever the file is
        raise UserError(f"{sys.argv[1]}: not the prototype's weights ({first_line(error)})") from None
    save_weights(network.state_dict(), Path(sys.argv[2]))


if __name__ == "__main__":
    run_cli(main)
