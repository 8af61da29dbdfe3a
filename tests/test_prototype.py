"""benchmarks/prototype.py: the prototype's weights become this project's, and the network gives the same features."""
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from backbones import get_model
from backbones.network import read_weights
from configs import load_config

ROOT = Path(__file__).resolve().parent.parent


class Prototype(nn.Module):
    """Its form: features `b`, head `h`, fed BGR in [0, 1]."""

    def __init__(self):
        super().__init__()
        import timm
        self.b = timm.create_model("lcnet_050", features_only=True, out_indices=(-1,))

        class LBN(nn.Sequential):
            def __init__(self):
                super().__init__(nn.LayerNorm(256), nn.BatchNorm1d(256))
        self.h = nn.Sequential(nn.Conv2d(256, 64, 1, bias=False), nn.Flatten(), nn.Linear(1024, 256, bias=False), LBN(),
                               nn.Linear(256, 256, bias=False), LBN())

    def forward(self, image):
        return self.h(self.b(image)[0])


def convert(source, target):
    command = [sys.executable, ROOT / "benchmarks" / "prototype.py", source, target]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_features_are_the_same(tmp_path):
    torch.manual_seed(0)
    prototype = Prototype().eval()
    for module in prototype.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, .1)
            module.running_var.uniform_(.5, 2)
    torch.save(prototype.state_dict(), tmp_path / "theirs.pt")
    done = convert(tmp_path / "theirs.pt", tmp_path / "ours.pt")
    assert done.returncode == 0, done.stderr
    ours = get_model(load_config("configs/docmetric", []), pretrained=False).eval()
    ours.load_state_dict(read_weights(tmp_path / "ours.pt"))
    image = torch.rand(3, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), prototype(image.flip(1)), rtol=1e-4, atol=1e-4)


def test_other_weights_are_refused_in_one_line(tmp_path):
    torch.save({"some.other.weight": torch.zeros(3)}, tmp_path / "other.pt")
    for name in ("other.pt", "none.pt"):
        done = convert(tmp_path / name, tmp_path / "ours.pt")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "not the prototype's weights" in done.stderr
    assert not (tmp_path / "ours.pt").exists()
