import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from backbones import get_model
from backbones.__main__ import measure
from configs import load_config, load_run, save_config
from inference.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_MB = {"lcnet_arc": 5.54, "lcnet_softmax": 5.54, "lcnet_cos": 5.54, "lcnet_cos_scratch": 5.54,
                "lcnet_cos_squeeze": 2.46, "lcnet_cos_bn": 5.54, "lcnet_cos_f128_r96": 2.33, "efficientnet_b0_cos": 19.89,
                "lcnet_cos_gap": 1.61}


@pytest.mark.parametrize("name", PUBLISHED_MB)
def test_sizes_are_the_published_ones(name):
    parameters, gflops = measure(load_config(name))
    assert round(parameters * 4 / 1e6, 2) == PUBLISHED_MB[name]
    if name == "lcnet_cos":
        assert round(gflops, 3) == 0.030  # the reference states .053


def test_the_table_command():
    done = subprocess.run([sys.executable, "-m", "backbones", "lcnet_cos"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1,386,032   5.54   0.030" in done.stdout


@pytest.mark.parametrize("head", ["flatten", "gap", "squeeze"])
@pytest.mark.parametrize("norm", ["ln", "bn", "lbn"])
def test_any_size_and_width(head, norm):
    cfg = load_config("lcnet_cos", [f"head={head}", f"norm={norm}", "embedding_size=40", "image_size=72"])
    assert get_model(cfg, pretrained=False)(torch.rand(3, 3, 72, 72)).shape == (3, 40)


@pytest.mark.parametrize("head", ["flatten", "gap", "squeeze"])
def test_the_layout_is_the_image_averaged_over_cells(head):
    plain, with_layout = (get_model(load_config("lcnet_cos", [f"head={head}", f"layout={cells}"]), pretrained=False).eval()
                          for cells in (0, 8))
    before, after = plain.head.embed[0].weight.shape[1], with_layout.head.embed[0].weight.shape[1]
    assert after == before + 3 * 8 * 8
    image = torch.rand(2, 3, 128, 128)
    features = with_layout.features(image)[-1]
    cells = image.unflatten(3, (8, 16)).unflatten(2, (8, 16)).mean((3, 5)).flatten(1)                       # [2,192]
    expected = with_layout.head.embed(torch.cat([with_layout.head.reduce(features), cells], 1))
    assert torch.allclose(with_layout.head(features, image), expected, atol=1e-5)
    with pytest.raises(UserError, match="layout=24: image_size=128"):
        load_config("lcnet_cos", ["layout=24"])


def test_preprocessing_is_part_of_the_network():
    """The reference feeds BGR/255 to weights that expect RGB with ImageNet's statistics."""
    model = get_model(load_config("lcnet_cos"), pretrained=False).eval()
    image = torch.rand(2, 3, 128, 128)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(model(image), model.head(model.features(by_hand)[-1], by_hand), atol=1e-5)
    assert {"mean", "std"} <= set(model.state_dict())


def test_pretrained_from_a_checkpoint_of_timm_and_from_our_own(tmp_path):
    cfg = load_config("lcnet_cos_squeeze")
    torch.manual_seed(1)
    theirs = timm.create_model("lcnet_050")
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = get_model(cfg, pretrained=str(tmp_path / "timm.pth"))
    assert torch.equal(model.features.state_dict()["conv_stem.weight"], theirs.state_dict()["conv_stem.weight"])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = get_model(cfg, pretrained=str(tmp_path / "model.pt"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    torch.save(timm.create_model("lcnet_075").state_dict(), tmp_path / "other.pth")
    torch.save({"foo.weight": torch.zeros(1)}, tmp_path / "foo.pth")
    for name in ("other.pth", "foo.pth"):
        with pytest.raises(UserError, match="not weights of lcnet_050"):
            get_model(cfg, pretrained=str(tmp_path / name))
    with pytest.raises(UserError, match="another network or head"):
        get_model(load_config("lcnet_cos"), pretrained=str(tmp_path / "model.pt"))


def test_unreachable_and_unusable_weights_are_one_line(tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached; use pretrained=false"):
        get_model(load_config("lcnet_cos"), pretrained=True)
    (tmp_path / "text.pt").write_text("not weights")
    with pytest.raises(UserError, match="cannot be read as weights"):
        get_model(load_config("lcnet_cos"), pretrained=str(tmp_path / "text.pt"))
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as weights"):
        get_model(load_config("lcnet_cos"), pretrained=str(tmp_path / "empty.pt"))
    for network in ("vit_tiny_patch16_224", "lcnet_050.foo", "hf-hub:x/y"):
        with pytest.raises(UserError, match=network.split(":")[0]) as error:
            get_model(load_config("lcnet_cos", [f"network={network}"]), pretrained=False)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        get_model(load_config("lcnet_cos"), pretrained=str(tmp_path / "none.pt"))
    with pytest.raises(UserError, match="timm cannot make it"):
        get_model(load_config("lcnet_cos", ["network=lcnet_049"]), pretrained=False)


def test_a_run_is_loaded_with_its_config(tmp_path):
    cfg = load_config("lcnet_cos_gap", ["image_size=64"])
    model = get_model(cfg, pretrained=False)
    with pytest.raises(UserError, match="no config.json"):
        load_run(tmp_path)
    save_config(cfg, tmp_path)
    with pytest.raises(UserError, match="no model.pt"):
        load_run(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded, read = load_run(tmp_path)
    assert read == cfg and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
