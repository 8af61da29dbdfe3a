"""Augmentation depends on position alone, stays in range, and never turns one class into another."""
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import augment
from augment import PRESETS, Augment, Draw, warp

ROOT = Path(__file__).resolve().parent.parent
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 3, 40, 40), np.uint8))
ACTIVE = [name for name in PRESETS if name != "none"]


def draws(count):
    return Draw(0, torch.arange(count), torch.device("cpu"), torch.zeros(64, 64))


@pytest.mark.parametrize("preset", ACTIVE)
def test_a_sample_does_not_depend_on_its_batch_or_rank(preset):
    aug, position = Augment(preset, 5), torch.arange(100, 124)
    whole = aug(IMAGES, position)
    assert whole.shape == IMAGES.shape and whole.dtype == torch.float32
    assert 0 <= whole.min() and whole.max() <= 1 and whole.isfinite().all()
    apart = torch.cat([aug(IMAGES[i:i + 5], position[i:i + 5]) for i in range(0, 24, 5)])
    assert torch.allclose(whole, apart, atol=1e-5)
    again = Augment(preset, 5)(IMAGES.flip(0), position.flip(0)).flip(0)
    assert torch.allclose(whole, again, atol=1e-5)
    assert not torch.allclose(whole, aug(IMAGES, position + 24), atol=0.1)
    assert not torch.allclose(whole, Augment(preset, 6)(IMAGES, position), atol=0.1)


def test_none_only_scales():
    assert torch.equal(Augment("none", 0)(IMAGES, torch.arange(24)), IMAGES / 255)


def test_the_input_is_left_alone():
    before = IMAGES.clone()
    for preset in PRESETS:
        Augment(preset, 0)(IMAGES, torch.arange(24))
    assert torch.equal(IMAGES, before)


def view_matrices():
    """Output to input coordinates, -1 to 1, of the 24 views."""
    matrices = []
    for view in range(24):
        turn = view % 4 * math.pi / 2
        rotate = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        flip = torch.diag(torch.tensor([1.0, -1.0 if view // 4 % 2 else 1.0, 1.0]))
        half = torch.tensor([[1.0, 0, 0], [0, 0.5 if view // 8 else 1, (0, -0.5, 0.5)[view // 8]], [0, 0, 1]])
        matrices.append(rotate @ flip @ half)
    return torch.stack(matrices)


@pytest.mark.parametrize("preset", ACTIVE)
def test_geometry_never_leads_to_another_class(preset):
    """Every drawn homography moves the corners and edges of the picture less from its own view than from any other."""
    matrix = PRESETS[preset][0](draws(20_000)).float()
    line = torch.linspace(-1, 1, 5)
    points = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones(5, 5)], -1).view(-1, 3)
    def apply(m):
        out = points @ m.transpose(-1, -2)
        return out[..., :2] / out[..., 2:]
    mine, views = apply(matrix), apply(view_matrices())
    distance = (mine[:, None] - views).square().sum(-1).mean(-1).sqrt()   # [draws,24]
    assert (distance.argmin(1) == 0).all()
    assert (distance[:, 1:].min(1).values > 1.3 * distance[:, 0]).all()
    corner = points[:, :2].abs().sum(1) == 2
    x, y = mine[:, corner].unbind(-1)                                      # [draws,4]: (-,-), (+,-), (-,+), (+,+)
    turning = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    assert (turning > 0).all()                                             # no mirror image
    angle = torch.atan2(y[:, 1] - y[:, 0], x[:, 1] - x[:, 0]).abs()
    assert angle.max() < math.radians(30)
    assert (matrix @ torch.tensor([1.0, 1.0, 1.0]))[:, 2].min() > 0        # nothing passes through infinity


def test_warp_is_opencvs():
    image = torch.rand(1, 3, 48, 48)
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    matrix = PRESETS["strong"][0](draws(1))
    to_unit = torch.tensor([[2 / 48, 0, 1 / 48 - 1], [0, 2 / 48, 1 / 48 - 1], [0, 0, 1]])  # pixel centres to -1 .. 1
    pixels = (torch.linalg.inv(to_unit.double()) @ matrix[0].double() @ to_unit.double()).numpy()
    expected = cv2.warpPerspective(image[0].permute(1, 2, 0).numpy(), pixels, (48, 48), borderMode=cv2.BORDER_REPLICATE,
                                   flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    difference = np.abs(warp(image, matrix)[0].permute(1, 2, 0).numpy() - expected)
    assert np.median(difference) < 2e-3 and difference.max() < 0.05  # OpenCV rounds coordinates to 1/32 pixel


def test_warp_fills_what_lies_outside():
    image, shrink = torch.full((1, 3, 16, 16), 0.5), torch.diag(torch.tensor([2.0, 2.0, 1.0])).view(1, 3, 3)
    filled = warp(image, shrink, torch.tensor([1.0, 0.0, 0.25]).view(1, 3, 1, 1))
    assert torch.allclose(filled[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.25]))
    assert torch.allclose(filled[0, :, 8, 8], torch.tensor(0.5))
    assert torch.allclose(warp(image, shrink), torch.tensor(0.5))


OPERATIONS = {op.__qualname__ + str(i): op for i, op in enumerate(
    [op for _, stages in PRESETS.values() for _, ops in stages for op in ops])}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_its_sample_by_its_own_numbers(name):
    op = OPERATIONS[name]
    x = torch.nn.functional.avg_pool2d(torch.rand(6, 3, 40, 40), 3, 1, 1)
    noise = Augment("strong", 0).noise
    draw = Draw(0, torch.arange(6), torch.device("cpu"), noise)
    out = op(x, draw)
    assert out.shape == x.shape and out.isfinite().all()
    assert (out - x).abs().amax((1, 2, 3)).min() > 1e-3
    chosen = torch.tensor([4, 1])
    assert torch.allclose(op(x[chosen], draw.at(chosen)), out[chosen], atol=1e-5)


@pytest.mark.parametrize("blur", [augment.gaussian_blur, augment.motion_blur, augment.defocus, augment.median_blur,
                                  augment.zoom_blur, augment.downscale(2), augment.downscale(3), augment.jpeg])
def test_blurs_and_losses_leave_a_flat_picture_flat(blur):
    flat = torch.full((8, 3, 24, 24), 0.5)
    assert torch.allclose(blur(flat, draws(8)), flat, atol=1e-5)


def test_jpeg_resembles_jpeg():
    """As far from the original as OpenCV's JPEG of the same quality, within a factor of two."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    image = np.repeat(image[:, :, None], 3, 2)
    x = torch.from_numpy(image).permute(2, 0, 1).float().expand(50, -1, -1, -1) / 255
    draw = draws(50)
    ours = (augment.jpeg(x, draw) - x).square().mean((1, 2, 3)).sqrt()
    for quality, error in zip(draw.host("jpeg", 5, 50).tolist(), ours.tolist()):
        theirs = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])[1], cv2.IMREAD_COLOR)
        expected = np.sqrt(np.square((theirs.astype(float) - image) / 255).mean())
        assert expected / 2 < error < expected * 2


def test_noise_fields_are_normal_and_differ_by_position():
    draw = Draw(0, torch.arange(64), torch.device("cpu"), Augment("strong", 0).noise)
    field = draw.noise_field("x", 3, 32, 32)
    assert abs(field.mean()) < 0.02 and abs(field.std() - 1) < 0.02
    correlation = torch.corrcoef(field.flatten(0, 1).flatten(1)) - torch.eye(192)
    assert correlation.abs().median() < 0.05 and (correlation.abs() > 0.5).float().mean() < 0.001


@pytest.mark.parametrize("size", [512, 600])
def test_pictures_larger_than_the_noise(size):
    draw = Draw(0, torch.arange(2), torch.device("cpu"), Augment("strong", 0).noise)
    field = draw.noise_field("x", 1, size, size)
    assert field.shape == (2, 1, size, size) and abs(torch.corrcoef(field.flatten(1))[0, 1]) < 0.05


def test_the_contact_sheet_command(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (30, 30, 3), np.uint8))
    done = subprocess.run([sys.executable, ROOT / "augment.py", "lcnet_strong", tmp_path / "sheet.png",
                           f"data={tmp_path}", "image_size=32"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (8 * 32, 4 * 64, 3)
