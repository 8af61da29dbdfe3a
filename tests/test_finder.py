"""The finder: quads and their order, corners under augmentation, its losses, training on any number of ranks, its export."""
import json
import math

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import onnx_export
from augment.geometry import VIEWS
from backbones.localizer import get_finder
from configs import load_config, load_run
from engine.distributed import Ranks
from eval.coco import Boxes, read_coco
from eval.corners import corners_report
from inference.errors import UserError
from inference.image import fit_square
from inference.quads import NEAR, SEEN, decode, is_quad, ordered, overlap, to_image, to_square
from losses.quad import quad_distance
from tasks import build_task
from tasks.finder import FinderTask
from tests.helpers.folders import write_drawn
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, rows, train_until
from train_v2 import train

QUAD = np.array([[10, 12], [110, 20], [100, 90], [5, 80]], float)


def turned(angle, wide=50, high=20, center=(0, 0)):
    """A rectangle turned clockwise by `angle` degrees, as quads are ordered, for less than 45 of them."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    flat = np.array([[-wide, -high], [wide, -high], [wide, high], [-wide, high]], float)
    return flat @ np.array([[cos, sin], [-sin, cos]]) + center


def draw(rng, width, height):
    """A framed sheet of any color, turned and distorted, on noise; or none. uint8 BGR `[height,width,3]`, quads."""
    image = cv2.resize(rng.integers(90, 166, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    if rng.uniform() < 0.25:
        return image, []
    side = rng.uniform(0.2, 0.36) * min(width, height)
    quad = ordered(turned(rng.uniform(0, 360), side * rng.uniform(0.7, 1.3), side,
                          rng.uniform(0.45, 0.55, 2) * (width, height)) + rng.normal(0, 0.06 * side, (4, 2)))
    paper, frame = ([int(value) for value in rng.integers(*limits, 3)] for limits in ((196, 256), (0, 60)))
    for color, part in ((frame, 1), (paper, 0.85)):
        points = quad.mean(0) + part * (quad - quad.mean(0))
        cv2.fillPoly(image, [np.rint(points * 16 - 8).astype(np.int32)], color, cv2.LINE_AA, 4)
    return image, [quad]


def write_coco(file, images):
    """images: {file_name: ((width, height), quads)}."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "document"}]}
    for number, (name, ((width, height), quads)) in enumerate(images.items()):
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for quad in quads:
            low, high = (np.clip(edge, 0, (width, height)) for edge in (np.min(quad, 0), np.max(quad, 0)))
            content["annotations"].append({"image_id": number, "category_id": 1, "bbox": [*low, *(high - low)],
                                           "segmentation": [np.ravel(quad).tolist()]})
    file.write_text(json.dumps(content))
    return file


def make_images(folder, count, seed):
    """`count` images in a new `folder`, which is returned, and FOLDER.json beside it."""
    write_drawn(folder, count, seed, draw, write_coco)
    return folder


def settings(folder, output, *more):
    return load_config("finder", [
        f"data={folder}", f"boxes={folder.with_suffix('.json')}", f"output={output}", "network=test_convnext", "width=32",
        "image_size=64", "strides=[4,16]", "cache=false", "num_workers=0", "device=cpu", "log_every=1", "ema=0", *more])


def build(*arguments):
    return build_task(settings(*arguments), Ranks(0, 1, CPU))


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "data", 7, seed=3)


# ---------------------------------------------------------------- quads
def test_the_first_corner_becomes_the_top_left_one_under_the_least_turn():
    for angle in range(-44, 45, 4):
        right = turned(angle)
        for start in range(4):
            assert np.allclose(ordered(np.roll(right, start, 0)), right)
            assert np.allclose(ordered(np.roll(right[::-1], start, 0)), right)       # whichever way around
    assert np.allclose(ordered(turned(60)), turned(60 - 90, 20, 50))


def test_what_is_a_quad():
    assert is_quad(QUAD) and all(is_quad(np.roll(QUAD, k, 0)) for k in range(4))
    for wrong in (QUAD[::-1], QUAD[[0, 2, 1, 3]], QUAD[[0, 1, 1, 3]], np.array([[0, 0], [9, 0], [4, 0.01], [0, 9]]),
                  np.array([[0, 0], [10, 0], [3, 3], [0, 10]]), np.zeros((4, 2)), np.full((4, 2), np.nan)):
        assert not is_quad(np.asarray(wrong, float))


def test_overlaps_are_those_of_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        quads = [turned(rng.uniform(0, 360), *rng.uniform(20, 60, 2), rng.uniform(80, 120, 2)) for _ in range(2)]
        y, x = np.mgrid[:400, :400] / 2 + 0.25
        masks = []
        for quad in quads:
            sides = np.roll(quad, -1, 0) - quad
            masks.append(np.all([(x - px) * dy - (y - py) * dx <= 0 for (px, py), (dx, dy) in zip(quad, sides)], axis=0))
        both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
        assert overlap(*quads) == pytest.approx(both / either, abs=0.01)


def test_a_quad_goes_into_the_square_and_back():
    for width, height, fit in ((120, 70, "pad"), (51, 110, "pad"), (90, 40, "squash")):
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 4:height // 2, width // 3:2 * width // 3] = 255
        box = np.array([[[width // 3, height // 4], [2 * width // 3, height // 4], [2 * width // 3, height // 2],
                         [width // 3, height // 2]]], float)
        rows_, columns = (fit_square(image, 400, fit)[:, :, 0] > 127).nonzero()
        square = to_square(box, width, height, 400, fit)
        assert np.abs(square[0, [0, 2]] - [[columns.min(), rows_.min()], [columns.max() + 1, rows_.max() + 1]]).max() <= 1
        assert np.allclose(to_image(square, width, height, 400, fit), box)
        assert np.allclose(to_image(to_square(box * 9, width, height, 400, fit), width, height, 400, fit), box * 9)


def outputs_of(quads, size=64, coarse=16, fine=4, seen=True):
    """What a perfect network says of an image with these quads."""
    heat = np.full((1, size // coarse, size // coarse), -9.0)
    corners = np.zeros((8, size // coarse, size // coarse))
    corner_heat, shift = np.full((1, size // fine, size // fine), -9.0), np.zeros((2, size // fine, size // fine))
    for quad in quads:
        x, y = (quad.mean(0) / coarse).astype(int).clip(0, size // coarse - 1)
        heat[0, y, x] = 4
        corners[:, y, x] = (quad - (np.array([x, y]) + 0.5) * coarse).ravel()
        for point in quad:
            x, y = (point / fine).astype(int)
            if seen and 0 <= min(x, y) and max(x, y) < size // fine:
                corner_heat[0, y, x], shift[:, y, x] = 4, point - (np.array([x, y]) + 0.5) * fine
    return heat, corners, corner_heat, shift


def test_decoding():
    small, large = turned(10, 8, 6, (14, 14)), turned(-30, 14, 10, (42, 42))
    for seen in (True, False):
        quads, scores = decode(outputs_of([small, large], seen=seen), 64)
        assert np.allclose(quads, [large, small]) and np.allclose(scores, 1 / (1 + math.exp(-4)))
    heat, corners, corner_heat, shift = outputs_of([large])
    guessed = corners + np.random.default_rng(0).uniform(-1.5, 1.5, (8, 1, 1))               # off, but near what is seen
    assert np.allclose(decode((heat, guessed, corner_heat, shift), 64)[0], [large])
    assert not np.allclose(decode((heat, guessed, corner_heat * 0 - 9, shift), 64)[0], [large])
    assert np.allclose(decode((heat, np.roll(corners, 2, 0), corner_heat, shift), 64)[0], [large])  # another corner first
    outside = turned(0, 30, 20, (50, 30))                                                    # two corners beyond the image
    assert np.allclose(decode(outputs_of([outside]), 64)[0], [outside])
    assert decode((heat, corners, corner_heat, shift), 64, threshold=0.99)[0].shape == (0, 4, 2)
    folded = corners.reshape(4, 2, 4, 4)[[0, 2, 1, 3]].reshape(8, 4, 4)
    for wrong in (folded, corners * 1e6, corners * np.nan, corners * 0):
        quads, scores = decode((heat, wrong, corner_heat * 0 - 9, shift), 64)
        assert quads.shape == (0, 4, 2) and scores.shape == (0,)
    twice = heat.copy()
    twice[0, 0, 0] = 3                                                                       # says the same document
    corners[:, 0, 0] = (large - 8).ravel()
    assert np.allclose(decode((twice, corners, corner_heat, shift), 64)[0], [large])


def test_a_corner_is_the_best_of_all_cells_in_reach():
    """Against a search in every cell, one after the other, in maps of noise."""
    rng, moved, quad = np.random.default_rng(0), 0, turned(10, 20, 14, (30, 34))
    heat, corners, _, _ = outputs_of([quad])
    reach = NEAR * min(math.dist(quad[0], quad[2]), math.dist(quad[1], quad[3]))
    for _ in range(100):
        noise, shift = rng.normal(-4, 2, (1, 16, 16)), rng.normal(0, 3, (2, 16, 16))
        expected = quad.copy()
        for number, corner in enumerate(quad):
            best = 0
            low, high = ((corner + sign * reach) // 4 for sign in (-1, 1))                   # the cells that it touches
            for row, column in np.ndindex(16, 16):
                seen = (np.array([column, row]) + 0.5) * 4 + shift[:, row, column]
                score, away = 1 / (1 + math.exp(-noise[0, row, column])), math.dist(seen, corner) / reach
                if (low <= [column, row]).all() and (high >= [column, row]).all() and score * math.exp(-away ** 2) > best:
                    best = score * math.exp(-away ** 2)
                    expected[number] = seen if score >= SEEN and away <= 1 else corner
        (found,), _ = decode((heat, corners, noise, shift), 64)
        assert np.allclose(found, ordered(expected if is_quad(expected) else quad))
        moved += not np.allclose(found, quad)
    assert 50 < moved


# ---------------------------------------------------------------- losses
def test_distance_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 60, (5, 4, 2))
    of = np.array([0, 0, 1, 3, 3, 3, 4])                                                     # none of object 2
    points = target[of] + rng.normal(0, 4, (7, 4, 2))
    points = np.stack([np.roll(quad, k, 0) for k, quad in enumerate(points)])                # whichever corner is first
    expected = []
    for n, right in enumerate(target):
        each = [min(np.mean([math.dist(quad[i], right[(i + k) % 4]) for i in range(4)]) for k in range(4))
                for quad in points[of == n]]
        diagonal = (math.dist(right[0], right[2]) + math.dist(right[1], right[3])) / 2
        expected.append(np.mean(each) / diagonal if each else 0)
    found = quad_distance(*map(torch.from_numpy, (points, of, target)))
    assert np.allclose(found.numpy(), expected, rtol=1e-9)
    single = quad_distance(*map(torch.from_numpy, (points[:, :1], of, target[:, :1])), relative=False)
    assert np.allclose(single[1].item(), np.linalg.norm(points[2, 0] - target[1, 0]))
    exact = torch.from_numpy(target[of]).requires_grad_()
    quad_distance(exact, torch.from_numpy(of), torch.from_numpy(target)).sum().backward()
    assert exact.grad.isfinite().all()


def test_corners_are_where_their_pixels_are(tmp_path):
    """Every preset and view: the same image with and without a filled quad. Where they differ once they are augmented is the
    quad, to the pixels at its edges, whose area is 2 of 20 pixels' width at most."""
    folder = tmp_path / "data"
    folder.mkdir()
    quad = turned(17, 40, 25, (75, 50)) + [[0, 0], [3, 2], [-4, 6], [2, -3]]
    ground = np.full((110, 160, 3), 30, np.uint8)
    cv2.imwrite(str(folder / "without.png"), ground)
    cv2.fillPoly(ground, [np.rint(quad * 16 - 8).astype(np.int32)], (220, 220, 220), cv2.LINE_AA, 4)
    cv2.imwrite(str(folder / "with.png"), ground)
    write_coco(folder.with_suffix(".json"), {"with.png": ((160, 110), [quad]), "without.png": ((160, 110), [])})
    for preset in ("none", "reference", "strong"):
        task = build(folder, tmp_path, f"augment={preset}", "max_steps=1", "image_size=128")
        task.augment.stages = []                                                             # geometry alone
        view, position = torch.arange(8).repeat(3), torch.arange(24)
        pixels = task.images.pixels(torch.tensor([0, 1]))
        seen = [task.augment(pixels[i].expand(24, -1, -1, -1), position, view, 128) for i in (0, 1)]
        differ = ((seen[0] - seen[1]).abs().mean(1) > 0.5 * 190 / 255).numpy()               # [24,128,128]
        number, quads = task.documents({"quads": [task.quads["with.png"]] * 24, "position": position, "view": view})
        assert number.tolist() == list(range(24)) and all(is_quad(one) for one in quads.numpy())
        for mask, one in zip(differ, quads.numpy()):
            drawn = np.zeros((128, 128), np.uint8)
            cv2.fillPoly(drawn, [np.rint(one * 16 - 8).astype(np.int32)], 1, shift=4)
            assert (mask & (drawn > 0)).sum() / (mask | (drawn > 0)).sum() > 0.9


def test_the_right_outputs_have_no_loss(folder, tmp_path):
    task = build(folder, tmp_path, "augment=none", "expansion=1", "batch_size=7", "max_steps=1")
    batch, = task.batches(0)
    listed = read_coco(folder.with_suffix(".json"))[1]
    truth = [to_square(listed[name].quads, 128, 96, 64, "pad") for name in batch["id"]]
    right = tuple(map(torch.tensor, map(np.array, zip(*(outputs_of(quads) for quads in truth)))))
    right = tuple(30 / 4 * part.clamp_min(-4) if i in (0, 2) else part for i, part in enumerate(right))
    for i, stride, count in ((1, 16, 8), (3, 4, 2)):                   # the cells beside the right one say the same
        for image, quads in enumerate(truth):
            for quad in quads:
                for point in (quad if count == 2 else quad.mean(0, keepdims=True)):
                    column, row = (point / stride).astype(int)
                    for y, x in np.ndindex(right[i].shape[2:]):
                        if max(abs(y - row), abs(x - column)) <= 1:
                            value = (point if count == 2 else quad) - (np.array([x, y]) + 0.5) * stride
                            right[i][image, :, y, x] = torch.from_numpy(value.ravel())
    task.forward = lambda image: right
    losses = task.losses(batch)
    assert losses.keys() == {"heat", "corner", "quad", "shift"} and all(term < 1e-4 for term in losses.values())
    task.forward = lambda image: (-right[0].abs(), right[1], right[2], right[3])
    assert task.losses(batch)["heat"].item() == pytest.approx(30)      # all documents missed
    task.forward = lambda image: (right[0], right[1] * 1.1, right[2], right[3] + 2)
    worse = task.losses(batch)
    assert 0.3 < worse["quad"].item() < 0.7                            # 10 times a tenth of half the diagonal, about
    assert worse["shift"].item() == pytest.approx(math.sqrt(8) / 4, rel=1e-5)


def test_what_augmentation_cuts_off_is_no_document(folder, tmp_path, monkeypatch):
    task = build(folder, tmp_path)
    quads = torch.tensor([[[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]]).double()
    for shift, count in ((0.9, 1), (1.1, 0)):                          # .6, .4 of it are left
        matrix = VIEWS[:1].clone()
        matrix[0, 0, 2] = shift
        monkeypatch.setattr(task.augment, "geometry", lambda *_, m=matrix: type("G", (), {"matrix": m}))
        number, found = task.documents({"quads": [quads], "position": None, "view": torch.tensor([0])})
        assert len(number) == len(found) == count


# ---------------------------------------------------------------- evaluation
def test_the_report():
    truth = [Boxes(100, 100, np.zeros((1, 4)), np.zeros(1, np.int64), turned(0, 40, 20, (50, 50))[None])] * 4
    truth += [Boxes(100, 100, np.zeros((0, 4)), np.zeros(0, np.int64))] * 2
    right = turned(0, 40, 20, (50, 50))
    nothing = np.zeros((0, 4, 2)), np.zeros(0)
    found = [(np.roll(right, 1, 0)[None], np.array([0.9])), (right[None] + [8, 0], np.array([0.8])),     # IoU 72 / 88
             (turned(0, 41, 20.5, (50, 50))[None], np.array([0.4])), nothing,                            # IoU .95
             (right[None], np.array([0.6])), nothing]
    report = corners_report(found, truth)
    assert report["iou_90"] == report["iou_85"] == 0.5 and report["documents"] == 4 and report["images"] == 6
    assert report["iou"] == pytest.approx((1 + 72 / 88 + 1 / 1.025 ** 2) / 4)
    assert report["within_2"] == 0.5 and report["within_5"] == 0.5
    assert report["error"] == pytest.approx((0.0125 + 8 / math.hypot(80, 40)) / 2)
    assert report["auroc"] == pytest.approx((2 + 2 + 1 + 0.5) / 8)
    assert report["threshold"] == pytest.approx(0.5)                   # 2 of 4 are missed, 1 of 2 is taken
    assert corners_report(found[:4], truth[:4])["auroc"] is None


# ---------------------------------------------------------------- training
def in_double(rank, world, folder, output):
    torch.set_default_dtype(torch.float64)
    train(settings(folder, f"{output}/{world}", "max_steps=4", "batch_size=7"), Ranks(rank, world, CPU))


def test_one_two_and_three_ranks_run_the_same_training(folder, tmp_path):
    """Seven images in parts of 7, of 4 and 3, and of 3, 2 and 2, some of which show no document."""
    for world in (1, 2, 3):
        run_ranks(world, in_double, folder, tmp_path)
    first = {name: rows(tmp_path / "1", name) for name in ("loss", "loss/heat", "loss/corner", "loss/quad", "loss/shift")}
    assert all(len(values) == 4 and np.isfinite(values).all() and min(values) > 0 for values in first.values())
    weights = network(tmp_path / "1")
    for world in (2, 3):
        for name, values in first.items():
            assert np.allclose(rows(tmp_path / str(world), name), values, rtol=1e-9, atol=0)
        other = network(tmp_path / str(world))
        assert all((other[key] - weights[key]).norm() <= 1e-9 * weights[key].norm() for key in weights)


def network(output):
    return load_file(output / "checkpoints/last/network.safetensors")


def test_a_resumed_run_is_the_run_itself(folder, tmp_path, monkeypatch):
    more = ["max_steps=6", "batch_size=7", "accumulate=2", "save_every=2", "ema=0.9"]
    train(settings(folder, tmp_path / "whole", *more), Ranks(0, 1, CPU))
    train_until(3, settings(folder, tmp_path / "halves", *more), monkeypatch, FinderTask)
    train(settings(folder, tmp_path / "halves", "resume=auto", *more), Ranks(0, 1, CPU))
    assert rows(tmp_path / "halves", "loss") == rows(tmp_path / "whole", "loss")
    whole, halves = network(tmp_path / "whole"), network(tmp_path / "halves")
    assert whole.keys() == halves.keys() and all(torch.equal(whole[key], halves[key]) for key in whole)


def test_images_without_documents_are_learned_from(folder, tmp_path):
    write_coco(folder.with_suffix(".json"), {f"{i:03}.png": ((128, 96), []) for i in range(7)})
    train(settings(folder, tmp_path / "empty", "max_steps=3", "batch_size=4"), Ranks(0, 1, CPU))
    assert rows(tmp_path / "empty", "loss/quad") == [0] * 3 and min(rows(tmp_path / "empty", "loss/heat")) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on 300 images that was evaluated on 60 others, and what the evaluation found."""
    place = tmp_path_factory.mktemp("finder")
    make_images(place / "train", 300, seed=10)
    make_images(place / "test", 60, seed=11)
    report = train(settings(place / "train", place / "run", "network=test_efficientnet", "image_size=96", "batch_size=16",
                            "max_steps=150", "lr=4e-2", "ema=0.98", "log_every=20", "augment=none",
                            f"eval_data={place / 'test'}", f"eval_boxes={place / 'test.json'}"), Ranks(0, 1, CPU))
    return place, report


def test_it_learns(trained):
    """Against the same network untrained, and against a guess that is the same for each image: the mean quad."""
    place, report = trained
    cfg = settings(place / "train", place / "other", "network=test_efficientnet", "image_size=96",
                   f"eval_data={place / 'test'}", f"eval_boxes={place / 'test.json'}")
    task = build_task(cfg, Ranks(0, 1, CPU))
    untrained = task.evaluate().document
    mean = np.concatenate([truth.quads for truth in read_coco(cfg.boxes)[1].values()]).mean(0)
    guess = corners_report([(mean[None], np.ones(1))] * 60, list(task.held_out.values()))
    print({key: [round(one[key], 3) for one in (report, untrained, guess)] for key in ("iou", "iou_85", "iou_90", "error")})
    assert report["iou"] > 0.8 and max(untrained["iou"], guess["iou"]) < 0.7 and report["auroc"] > 0.95
    assert report["iou_85"] > 0.5 and max(untrained["iou_85"], guess["iou_85"]) < 0.1
    assert json.loads((place / "run/eval.json").read_text()) == report


def test_the_exported_file_finds_the_same_quads(trained, monkeypatch, capsys):
    place, report = trained
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(place / "run")])
    onnx_export.main()
    assert capsys.readouterr().out.startswith(f"{place / 'run/model.onnx'}: ")
    session = onnxruntime.InferenceSession(place / "run/model.onnx", providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["docmetric"])
    assert [metadata[key] for key in ("task", "fit", "image_size")] == ["finder", "pad", 96]
    assert [port.name for port in session.get_outputs()] == ["heat", "corners", "corner_heat", "corner_shift"]
    network, _ = load_run(place / "run")
    listed = read_coco(place / "test.json")[1]
    images = np.stack([fit_square(cv2.imread(str(place / "test" / name)), 96, "pad")[:, :, ::-1] for name in listed])
    images = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    with torch.no_grad():
        expected = [out.numpy() for out in network(torch.from_numpy(images))]
    outputs = session.run(None, {"img": images})
    threshold = report["threshold"]
    assert 0.02 < threshold < 0.98
    expected[0] -= np.float32(math.log(threshold / (1 - threshold)))
    for one, other in zip(outputs, expected, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-3)
    for i in range(len(images)):                                       # 0.5 is the threshold that the evaluation found
        got, wanted = (decode([out[i] for out in outs], 96) for outs in (outputs, expected))
        assert len(got[0]) == len(wanted[0]) and np.allclose(got[0], wanted[0], rtol=1e-3, atol=1e-2)
    best = np.array([max(decode([out[i] for out in outputs], 96, 0.0)[1], default=0) for i in range(len(images))])
    there = np.array([len(truth.quads) > 0 for truth in listed.values()])
    assert (best[there] < 0.5).mean() < 0.15 and (best[~there] >= 0.5).mean() < 0.15


# ---------------------------------------------------------------- what users may give
def test_wrong_files_and_settings_are_named(folder, tmp_path):
    file = folder.with_suffix(".json")
    content = json.loads(file.read_text())
    for segmentation in (None, [], [[1, 1, 5, 1, 5, 5]], [[1, 1, 5, 1, 5, 5, 1, 5], [1, 1, 5, 1, 5, 5, 1, 5]],
                         [[1, 1, 5, 5, 5, 1, 1, math.nan]], {"counts": "abc", "size": [9, 9]}, [[0, 0, 9, 0, 2, 2, 0, 9]]):
        content["annotations"][0]["segmentation"] = segmentation
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match="four corners") as error:
            build(folder, tmp_path / "run")
        assert str(file) in str(error.value) and "\n" not in str(error.value)
    make_images(tmp_path / "other", 7, seed=3)
    for change, says in ((["boxes="], "write boxes=FILE"), (["strides=[8]"], "two whole numbers that grow"),
                         (["strides=[16,4]"], "two whole numbers that grow"), (["strides=[4,7]"], "choose some of"),
                         (["image_size=72"], "that image_size=72 is a multiple of"),
                         ([f"eval_data={folder}"], "give both or neither")):
        with pytest.raises(UserError, match=says) as error:
            build(tmp_path / "other", tmp_path / "run", *change)
        assert "\n" not in str(error.value)
    for threshold in ("high", 7.0, math.nan):
        with pytest.raises(UserError, match="eval.json: not what"):
            FinderTask.export(settings(tmp_path / "other", tmp_path), {}, torch.nn.Identity(), {"threshold": threshold})


def test_the_size_of_the_network():
    """At most 3 MB of float32."""
    assert sum(part.numel() for part in get_finder(load_config("finder"), pretrained=False).parameters()) * 4 < 3e6
