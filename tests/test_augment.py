"""Augmentation depends on position alone, stays in range, never turns one class into another, and says where pixels went."""
import math
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch

from augment import PRESETS, Augment
from augment import operations as op
from augment.draw import Draw
from augment.geometry import move_boxes, move_points, warp

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
    """Every drawn homography moves the corners and edges of the image less from its own view than from any other."""
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


INPUT, OUTPUT = 192, 96  # pixels: of the images, and of what the network sees


def geometry_only(preset):
    """The augmentation without what it does to colors; where pixels go is the same."""
    module = Augment(preset, 7)
    module.stages = []
    return module


def appears(preset, drawn, position, view):
    """bool `[n,3,OUTPUT,OUTPUT]`: the pixels by which the output for `drawn` differs from that for an empty image, which
    may have borders and fill too."""
    module, empty = geometry_only(preset), torch.zeros_like(drawn)
    return (module(drawn, position, view, OUTPUT) - module(empty, position, view, OUTPUT)).abs()


@pytest.mark.parametrize("preset", PRESETS)
def test_points_follow_the_pixels(preset):
    """Dots are found again, as centers of mass of what they leave in the output, where `move_points` says that they are.

    Every view, with several draws of each. A dot is a disc of 3 input pixels, 1.5 of the output: its center of mass is off
    its image's by what perspective and the grid of the output do to so small a disc, far below half a pixel.
    """
    n, radius = 240, 3
    position, view = torch.arange(n), torch.arange(n) % 24
    rng = np.random.default_rng(0)
    center = rng.integers(12, INPUT - 12, (n, 3, 2))                                    # pixels x, y: a dot in each channel
    drawn = np.zeros((n, 3, INPUT, INPUT), np.uint8)
    for channel, (x, y) in zip(drawn.reshape(-1, INPUT, INPUT), center.reshape(-1, 2).tolist()):
        cv2.circle(channel, (x, y), radius, 255, -1)
    found = appears(preset, torch.from_numpy(drawn), position, view).double()
    mass = found.sum((2, 3))                                                            # [n,3]
    pixel = torch.arange(OUTPUT) + 0.5
    middle = torch.stack([(found.sum(2) * pixel).sum(2), (found.sum(3) * pixel).sum(2)], 2) / mass[..., None]

    matrix, shown = geometry_only(preset).geometry(position, view)
    points = torch.from_numpy((center + 0.5) * 2 / INPUT - 1)
    expected = move_points(points, matrix)
    edge = 2 * 2 * radius / INPUT                                                       # a dot's width, well clear of it
    inside = ((points > shown[:, None, 0] + edge) & (points < shown[:, None, 1] - edge)).all(2) & (
        expected.abs() < 1 - 2 * edge).all(2)
    outside = ((points < shown[:, None, 0] - edge) | (points > shown[:, None, 1] + edge)).any(2) | (
        expected.abs() > 1 + 2 * edge).any(2)
    assert inside.sum() > n and (inside & (view >= 8)[:, None]).sum() > n / 3 and outside.sum() > n / 4
    assert ((middle - (expected + 1) * OUTPUT / 2).abs().amax(2)[inside] < 0.5).all()
    assert (mass[inside] > 3).all() and (mass[outside] == 0).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_boxes_follow_the_pixels(preset):
    """The bounds of what a bright rectangle leaves in the output are the moved box's, to the two pixels of the output that
    resampling may light or lose at each edge and tip; where the output cuts the hull, they lie within it."""
    n = 240
    position, view = torch.arange(n), torch.arange(n) % 24
    rng = np.random.default_rng(1)
    low = rng.integers(0, INPUT - 60, (n, 3, 2))
    high = low + rng.integers(30, 60, (n, 3, 2))
    drawn = np.zeros((n, 3, INPUT, INPUT), np.uint8)
    for channel, (x0, y0), (x1, y1) in zip(drawn.reshape(-1, INPUT, INPUT), low.reshape(-1, 2), high.reshape(-1, 2)):
        channel[y0:y1, x0:x1] = 255
    found = appears(preset, torch.from_numpy(drawn), position, view) > 0
    boxes = torch.from_numpy(np.concatenate([low, high], 2) * 2 / INPUT - 1)
    geometry = geometry_only(preset).geometry(position, view)
    moved, share = move_boxes(boxes, *geometry)
    assert ((moved >= -1) & (moved <= 1)).all() and ((share >= 0) & (share <= 1)).all()
    pixels = (moved + 1) * OUTPUT / 2
    size = pixels[..., 2:] - pixels[..., :2]
    seen = (share > 0) & (size > 2).all(2)
    # Beyond the edge of what is shown the output may continue the border, and so a box that touches it.
    touches = ((boxes[..., :2] <= geometry.shown[:, None, 0]) | (boxes[..., 2:] >= geometry.shown[:, None, 1])).any(2)
    whole = (moved.abs() < 1).all(2) & ~touches
    for i, channel in (seen & ~touches).nonzero().tolist():
        rows, columns = found[i, channel].any(1).nonzero(), found[i, channel].any(0).nonzero()
        if len(rows):
            bounds = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            beyond = (bounds - pixels[i, channel]) * torch.tensor([-1, -1, 1, 1])
            assert beyond.max() < 2 and (beyond.min() > -2 or not whole[i, channel]), (i, channel)
        assert len(rows) or not whole[i, channel]
    assert whole.sum() > n / 2 and (preset == "none" or (seen & ~touches & ~whole).sum() > 30)
    assert ((share[whole] - 1).abs() < 1e-12).all()
    assert not found[share == 0].any() and (share == 0).sum() > n / 4
    assert torch.equal(share == 0, (size == 0).all(2))


def test_the_share_of_a_box_that_is_visible():
    """Without turns the share is one of areas, exactly: half of it beyond the output, half of that beyond what is shown."""
    boxes = torch.tensor([[[-1.0, -0.5, 0.0, 0.5], [0.5, 0.5, 0.75, 1.0], [-1.0, -1.0, 0.0, -0.5]]])
    half = torch.tensor([[[-1.0, -1.0], [1.0, 0.0]]])
    right = torch.tensor([[[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]]])      # the output begins at x = -.5 of the input
    moved, share = move_boxes(boxes, right, half)
    assert share.tolist() == [[0.25, 0.0, 0.5]]
    assert moved[0, [0, 2]].tolist() == [[-1.0, -0.5, -0.5, 0.0], [-1.0, -1.0, -0.5, -0.5]]
    assert move_boxes(boxes, torch.eye(3)[None])[1].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("preset", PRESETS)
def test_geometry_is_a_function_of_position_and_view(preset):
    module, position, view = Augment(preset, 5), torch.arange(50), torch.arange(50) % 24
    whole = module.geometry(position, view)
    apart = module.geometry(position[30:], view[30:])
    assert all(torch.equal(part, both[30:]) for part, both in zip(apart, whole))
    points = torch.rand(50, 9, 2, dtype=torch.float64) * 2 - 1
    back = move_points(move_points(points, whole.matrix), torch.linalg.inv(whole.matrix))
    assert (back - points).abs().max() < 1e-12


def test_warp_is_opencvs():
    image = torch.rand(1, 3, 48, 48)
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    matrix = PRESETS["strong"][0](draws(1))
    to_unit = torch.tensor([[2 / 48, 0, 1 / 48 - 1], [0, 2 / 48, 1 / 48 - 1], [0, 0, 1]])  # pixel centers to -1 .. 1
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


OPERATIONS = {operation.__qualname__ + str(i): operation for i, operation in enumerate(
    [operation for _, stages in PRESETS.values() for _, operations in stages for operation in operations])}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_its_sample_by_its_own_numbers(name):
    operation = OPERATIONS[name]
    x = torch.nn.functional.avg_pool2d(torch.rand(6, 3, 40, 40), 3, 1, 1)
    noise = Augment("strong", 0).noise
    draw = Draw(0, torch.arange(6), torch.device("cpu"), noise)
    out = operation(x, draw)
    assert out.shape == x.shape and out.isfinite().all()
    assert (out - x).abs().amax((1, 2, 3)).min() > 1e-3
    chosen = torch.tensor([4, 1])
    assert torch.allclose(operation(x[chosen], draw.at(chosen)), out[chosen], atol=1e-5)


@pytest.mark.parametrize("blur", [op.gaussian_blur, op.motion_blur, op.defocus, op.median_blur, op.zoom_blur,
                                  op.downscale(2), op.downscale(3), op.jpeg])
def test_blurs_and_losses_leave_a_flat_image_flat(blur):
    flat = torch.full((8, 3, 24, 24), 0.5)
    assert torch.allclose(blur(flat, draws(8)), flat, atol=1e-5)


def test_jpeg_resembles_jpeg():
    """As far from the original as OpenCV's JPEG of the same quality, within a factor of two."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    image = np.repeat(image[:, :, None], 3, 2)
    x = torch.from_numpy(image).permute(2, 0, 1).float().expand(50, -1, -1, -1) / 255
    draw = draws(50)
    ours = (op.jpeg(x, draw) - x).square().mean((1, 2, 3)).sqrt()
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
def test_images_larger_than_the_noise(size):
    draw = Draw(0, torch.arange(2), torch.device("cpu"), Augment("strong", 0).noise)
    field = draw.noise_field("x", 1, size, size)
    assert field.shape == (2, 1, size, size) and abs(torch.corrcoef(field.flatten(1))[0, 1]) < 0.05


def test_the_contact_sheet_command(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        cv2.imwrite(str(data / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (30, 30, 3), np.uint8))
    sheet = str(tmp_path / "sheet.png")

    def status_of(*words):
        monkeypatch.setattr(sys, "argv", ["contact_sheet", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("tools.contact_sheet", run_name="__main__")
        return end.value.code

    assert status_of("lcnet_strong", sheet, f"data={data}", "image_size=32") == 0
    assert cv2.imread(sheet).shape == (8 * 32, 4 * 64, 3) and f"{sheet}: 32 of 72 samples" in capsys.readouterr().out
    assert status_of("lcnet_strong", sheet, f"data={data}", "image_size=32", "expansion=1") == 0
    assert cv2.imread(sheet).shape == (1 * 32, 4 * 64, 3) and f"{sheet}: 3 of 3 samples" in capsys.readouterr().out
    assert status_of("lcnet_strong", sheet, f"data={data}", "image_size=32", "expansion=1", "augment=none",
                     "sampler=per_class", "samples_per_class=4") == 0  # each image four times: a row of its own
    assert f"{sheet}: 3 of 3 samples" in capsys.readouterr().out
    rows = cv2.imread(sheet).reshape(3, 32, 4, 64, 3).swapaxes(1, 2)
    assert (rows == rows[:, :1]).all() and not (rows[0, 0] == rows[1, 0]).all()
    assert status_of("--help") == 0 and "key=value" in capsys.readouterr().out
    for words, says in ((["lcnet_strong", "sheet.txt"], "must end in .png"), (["lcnet_strong"], "FILE.png"),
                        (["lcnet_strong", str(tmp_path / "none" / "x.png"), f"data={data}"], "cannot be written")):
        assert status_of(*words) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
