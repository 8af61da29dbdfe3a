"""The detector: its targets, its boxes under augmentation, training on any number of ranks, and what it exports."""
import json
import math

import cv2
import numpy as np
import onnxruntime
import pytest
import timm
import torch

import onnx_export
from augment.geometry import move_boxes
from backbones.localizer import get_localizer
from configs import load_config, load_run
from engine.distributed import Ranks
from eval.__main__ import load_embed
from eval.coco import Boxes, read_coco
from eval.detection import detection_report
from inference.boxes import Detections, decode, overlaps, to_image, to_square
from inference.errors import UserError
from inference.image import fit_square
from tasks import build_task
from tasks.localizer import LocalizerTask, box_loss, levels
from tasks.objects import Objects, heatmaps
from tests.helpers.folders import write_drawn
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, check_same_training, rows, stop_and_resume
from train_v2 import train

NAMES = ["disk", "frame"]


def draw(rng, width, height):
    """An image with its objects: disks and square frames of any size and color on noise, among crosses and lines that are
    none. uint8 BGR `[height,width,3]`, [(class, x0, y0, x1, y1)] in pixels, from edge to edge."""
    image = cv2.resize(rng.integers(90, 166, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    taken, objects = [], []
    for _ in range(rng.integers(3, 9)):
        side = int(np.exp(rng.uniform(np.log(10), np.log(0.8 * min(width, height)))))
        x, y = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        if any(x < right and left < x + side and y < low and top < y + side for left, top, right, low in taken):
            continue
        taken.append((x, y, x + side, y + side))
        color = [int(value) for value in rng.choice([rng.integers(0, 60, 3), rng.integers(196, 256, 3)])]
        kind, thick = rng.integers(0, 4), max(2, side // 7)
        center, last = (int(x + side // 2), int(y + side // 2)), (int(x + side - 1), int(y + side - 1))
        if kind == 0:
            cv2.circle(image, center, side // 2 - 1, color, -1)
        elif kind == 1:
            image[y:y + side, x:x + side] = np.where(inner_hole(side, thick), image[y:y + side, x:x + side], color)
        elif kind == 2:
            cv2.drawMarker(image, center, color, cv2.MARKER_TILTED_CROSS, side - 2, thick)
        else:
            cv2.line(image, (int(x), int(y)), last, color, thick // 2 + 1)
        if kind < 2:
            objects.append((int(kind), int(x), int(y), int(x + side), int(y + side)))
    return image, objects


def inner_hole(side, thick):
    """bool `[side,side,1]`: the inside of a square frame."""
    hole = np.zeros((side, side, 1), bool)
    hole[thick:-thick, thick:-thick] = True
    return hole


def write_coco(file, images, names=NAMES):
    """images: {file_name: ((width, height), [(class, x0, y0, x1, y1)])}."""
    content = {"images": [], "annotations": [], "categories": [{"id": 7 + c, "name": name} for c, name in enumerate(names)]}
    for number, (name, ((width, height), objects)) in enumerate(images.items()):
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        content["annotations"] += [{"id": 0, "image_id": number, "category_id": 7 + c, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                                   for c, x0, y0, x1, y1 in objects]
    file.write_text(json.dumps(content))
    return file


def make_images(folder, count, seed):
    """`count` images in a new `folder`, and FOLDER.json beside it with their boxes, which is returned."""
    return write_drawn(folder, count, seed, draw, write_coco)


def settings(folder, output, *more):
    """The config of a run over the images in `folder`, whose boxes FOLDER.json has."""
    return load_config("localizer_small", [
        f"data={folder}", f"boxes={folder.with_suffix('.json')}", f"output={output}", "network=test_convnext", "width=32",
        "image_size=64", "strides=[4,16]", "cache=false", "num_workers=0", "device=cpu", "log_every=1", "ema=0", *more])


def build(*arguments):
    return build_task(settings(*arguments), Ranks(0, 1, CPU))


@pytest.fixture
def folder(tmp_path):
    """Seven images, four of which show nothing."""
    file = make_images(tmp_path / "data", 7, seed=0)
    content = json.loads(file.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in (1, 4, 5)]
    file.write_text(json.dumps(content))
    return tmp_path / "data"


# ---------------------------------------------------------------- boxes and pixels
def test_a_box_is_where_its_pixels_are(tmp_path):
    """Every preset, view and fit. The same image with and without a filled box: where they differ once they are augmented
    is the box. Its outermost pixels are told to half a pixel, blurred by two resamplings, and a turned corner's tip covers
    less than half of the last one: 1.5 pixels in all."""
    compared = 0
    for name, (width, height) in {"wide": (120, 70), "high": (50, 110), "square": (80, 80)}.items():
        for fit, expansion, preset in (("pad", 8, "strong"), ("pad", 8, "reference"), ("squash", 24, "strong"),
                                       ("squash", 24, "none"), ("pad", 1, "none")):
            folder = tmp_path / f"{name}-{fit}-{preset}-{expansion}"
            folder.mkdir()
            x, y, right, low = width // 5, height // 4, width * 3 // 5, height * 9 // 20
            ground = np.full((height, width, 3), 30, np.uint8)
            cv2.imwrite(str(folder / "without.png"), ground)
            ground[y:low, x:right] = 220
            cv2.imwrite(str(folder / "with.png"), ground)
            listed = {"with.png": [(0, x, y, right, low)], "without.png": []}
            write_coco(folder.with_suffix(".json"), {file: ((width, height), boxes) for file, boxes in listed.items()})
            task = build(folder, tmp_path, f"fit={fit}", f"expansion={expansion}", f"augment={preset}", "max_steps=1")
            task.augment.stages = []                                     # geometry alone
            view = torch.arange(expansion).repeat(3)
            position = torch.arange(len(view))
            pixels = task.images.pixels(torch.tensor([0, 1]))            # with, without
            assert task.images.ids == ["with.png", "without.png"]
            seen = [task.augment(pixels[i].expand(len(view), -1, -1, -1), position, view, 64) for i in (0, 1)]
            differ = ((seen[0] - seen[1]).abs().mean(1) > 0.5 * 190 / 255).numpy()                   # [n,64,64]
            boxes, classes = (value.expand(len(view), *value.shape) for value in task.boxes["with.png"])
            objects = task.objects({"boxes": boxes, "box_class": classes, "position": position, "view": view})
            visible = move_boxes(boxes, *task.augment.geometry(position, view))[1][:, 0]
            assert not differ[visible == 0].any() and objects.image.tolist() == (visible >= 0.4).nonzero().flatten().tolist()
            for image, box in zip(objects.image.tolist(), objects.box.tolist()):
                if visible[image] == 1:  # what is cut off may continue beyond the image, whose border is continued
                    (rows, columns), compared = differ[image].nonzero(), compared + 1
                    hull = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                    assert np.abs(np.subtract(hull, box)).max() <= 1.5, (name, fit, preset, hull, box)
    assert compared > 150


def test_what_augmentation_cuts_off_is_no_object(folder, tmp_path, monkeypatch):
    task, shift = build(folder, tmp_path), torch.eye(3).double()[None]
    monkeypatch.setattr(task.augment, "geometry", lambda *_: (shift,))
    batch = {"boxes": torch.tensor([[[-0.5, -0.5, 0.5, 0.5], [-1.0, -0.9, 1.0, 0.2], [-1, -1, -0.5, -0.5], [0, 0, 0, 0]]]),
             "box_class": torch.tensor([[1, 0, 1, -1]]), "position": None, "view": None}
    shift[0, 0, 2] = 0.7                                   # to the left, by .7 of half the image: .8, .65 and 0 are left
    found = task.objects(batch)
    assert found.image.tolist() == [0, 0] and found.kind.tolist() == [1, 0]
    assert torch.allclose(found.box, torch.tensor([[0, 16, 25.6, 48], [0, 3.2, 41.6, 38.4]]))
    shift[0, 0, 2] = 1.19                                  # .31 and .405 are left
    assert task.objects(batch).kind.tolist() == [0]


def test_boxes_are_joined_by_id(folder, tmp_path):
    """The COCO file in another order than the folder, and batches in an order of their own."""
    file = folder.with_suffix(".json")
    content = json.loads(file.read_text())
    for part in content.values():
        part.reverse()
    file.write_text(json.dumps(content))
    truth = {entry["file_name"]: sorted([7 + c["category_id"] - 14, *c["bbox"]] for c in content["annotations"]
                                        if c["image_id"] == entry["id"]) for entry in content["images"]}
    seen = {}
    for batch in build(folder, tmp_path, "batch_size=3", "epochs=1").batches(0):
        for name, boxes, classes in zip(batch["id"], batch["boxes"], batch["box_class"]):
            boxes = (boxes[classes >= 0] * 64).numpy() + np.tile([64, 48], 2)  # padded to a square: 128 x 96 in 128 x 128
            boxes[:, 2:] -= boxes[:, :2]
            seen[name] = [[c, *box] for c, box in zip(classes[classes >= 0].tolist(), boxes.tolist())]
    assert seen.keys() == truth.keys() and sum(map(bool, seen.values())) == 3
    for name, boxes in seen.items():
        assert np.allclose(sorted(boxes), truth[name], atol=1e-9)


def test_a_box_goes_into_the_square_and_back():
    for width, height, fit in ((120, 70, "pad"), (51, 110, "pad"), (90, 40, "squash")):
        image = np.zeros((height, width, 3), np.uint8)
        image[height // 4:height // 2, width // 3:2 * width // 3] = 255
        box = np.array([[width // 3, height // 4, 2 * width // 3, height // 2]], float)
        rows, columns = (fit_square(image, 400, fit)[:, :, 0] > 127).nonzero()
        square = to_square(box, width, height, 400, fit)
        assert np.abs(square - [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).max() <= 1
        assert np.allclose(to_image(square, width, height, 400, fit), box)
        assert np.allclose(to_image(square + 1000, width, height, 400, fit), [width, height] * 2)  # clipped


# ---------------------------------------------------------------- targets
def some_objects(count=40, size=64, images=3, classes=2):
    rng = np.random.default_rng(3)
    center, side = rng.uniform(4, size - 4, (count, 2)), np.exp(rng.uniform(np.log(4), np.log(56), (count, 2)))
    box = np.concatenate([center - side / 2, center + side / 2], 1).clip(0, size)
    return Objects(*map(torch.tensor, (rng.integers(0, images, count), rng.integers(0, classes, count), box)))


def test_heatmaps_are_those_of_a_plain_loop():
    objects, stride = some_objects(), 4
    for like in (torch.zeros(3, 2, 16, 16), torch.zeros(3, 2, 16, 16).double().to(memory_format=torch.channels_last)):
        expected = np.zeros(like.shape)
        for image, kind, (x0, y0, x1, y1) in zip(*(value.tolist() for value in objects)):
            column, row = int((x0 + x1) / 2 / stride), int((y0 + y1) / 2 / stride)
            for j in range(16):
                for i in range(16):
                    away = ((i - column) * stride * 6 / (x1 - x0)) ** 2 + ((j - row) * stride * 6 / (y1 - y0)) ** 2
                    expected[image, kind, j, i] = max(expected[image, kind, j, i], math.exp(-away / 2))
        found = heatmaps(objects, stride, like)
        assert found.dtype == like.dtype and np.allclose(found.numpy(), expected, rtol=0, atol=1e-6)
        cells_with_center = {(*key, int((y0 + y1) / 2 / stride), int((x0 + x1) / 2 / stride)) for *key, (x0, y0, x1, y1)
                             in zip(*(value.tolist() for value in objects))}
        assert {tuple(at) for at in (found == 1).nonzero().tolist()} == cells_with_center


def test_box_loss_is_that_of_a_plain_loop():
    objects, stride = some_objects(), 4
    sides = torch.rand(3, 2, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20 + 1
    expected = []
    for image, kind, (x0, y0, x1, y1) in zip(*(value.tolist() for value in objects)):
        column, row, losses = int((x0 + x1) / 2 / stride), int((y0 + y1) / 2 / stride), []
        for j in range(max(0, row - 1), min(16, row + 2)):
            for i in range(max(0, column - 1), min(16, column + 2)):
                x, y = (i + 0.5) * stride, (j + 0.5) * stride
                if x0 < x < x1 and y0 < y < y1 or (i, j) == (column, row):
                    left, top, right, low = sides[image, kind, :, j, i].tolist()
                    a, b = (x - left, y - top, x + right, y + low), (x0, y0, x1, y1)
                    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
                    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
                    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
                    losses.append(1 - both / union + (hull - union) / hull)
        expected.append(np.mean(losses))
    assert np.allclose(box_loss(objects, stride, sides), expected, rtol=1e-6)     # torchvision adds 1e-7 to areas
    exact = torch.tensor([[8.0, 8, 40, 24]]).double()
    perfect = torch.zeros(1, 1, 4, 16, 16).double()
    for j in range(16):
        for i in range(16):
            x, y = (i + 0.5) * stride, (j + 0.5) * stride
            perfect[0, 0, :, j, i] = torch.tensor([x - 8, y - 8, 40 - x, 24 - y])
    assert box_loss(Objects(torch.tensor([0]), torch.tensor([0]), exact), stride, perfect).item() < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_targets_are_the_same_on_a_gpu():
    objects, like = some_objects(), torch.zeros(3, 2, 16, 16)
    assert torch.allclose(heatmaps(objects, 4, like.cuda()).cpu(), heatmaps(objects, 4, like), atol=1e-6)
    sides = torch.rand(3, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 20 + 1
    assert torch.allclose(box_loss(objects, 4, sides.cuda()).cpu(), box_loss(objects, 4, sides), rtol=1e-4)


def test_every_object_belongs_to_one_level_by_its_size():
    sides = torch.tensor([[4.0, 4], [31, 31], [32, 32], [33, 33], [200, 5], [16, 70], [100, 100], [129, 129], [500, 500]])
    box = torch.cat([torch.zeros_like(sides), sides], 1).double()
    assert levels(box, [4, 8, 16]).tolist() == [0, 0, 0, 1, 0, 1, 2, 2, 2]
    assert levels(box, [4, 16]).tolist() == [0, 0, 0, 1, 0, 1, 1, 1, 1]
    assert levels(box, [16]).tolist() == [0] * len(box)


def test_the_right_outputs_have_no_loss(folder, tmp_path):
    """Outputs written down from the boxes alone, one object of a class in an image; then each of them made worse."""
    listed = {f"{i:03}.png": ((128, 96), [(0, 8 * i, 4 * i, 8 * i + 24, 4 * i + 20), (1, 20, 10, 100, 90 - i)])
              for i in range(7)}
    write_coco(folder.with_suffix(".json"), listed)
    task = build(folder, tmp_path, "augment=none", "batch_size=7", "max_steps=1")
    batch, = task.batches(0)
    right = {}
    for stride in (4, 16):                                               # 64 / 128 of the image's pixels, 8 above it
        heat, sides = np.full((7, 2, 64 // stride, 64 // stride), -30.0), np.ones((7, 2, 4, 64 // stride, 64 // stride))
        for i, name in enumerate(batch["id"]):
            for c, x0, y0, x1, y1 in listed[name][1]:
                x0, y0, x1, y1 = x0 / 2, y0 / 2 + 8, x1 / 2, y1 / 2 + 8
                if (math.sqrt((x1 - x0) * (y1 - y0)) <= 32) == (stride == 4):
                    heat[i, c, int((y0 + y1) / 2 / stride), int((x0 + x1) / 2 / stride)] = 30
                    for row, column in np.ndindex(heat.shape[2:]):
                        x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        sides[i, c, :, row, column] = x - x0, y - y0, x1 - x, y1 - y
        right[stride] = torch.tensor(heat), torch.tensor(sides)
    task.forward = lambda image: right[4] + right[16]
    assert all(term < 1e-6 for term in task.losses(batch).values())
    assert all((heat > 0).sum() == 7 for heat, _ in right.values())      # each level has its objects
    task.forward = lambda image: right[4] + (torch.full_like(right[16][0], -30), right[16][1])
    assert task.losses(batch)["heat"].item() == pytest.approx(30 / 2)    # half of the objects missed
    task.forward = lambda image: (right[4][0], right[4][1] * 2) + right[16]
    assert 0.1 < task.losses(batch)["box"].item() < 0.5


# ---------------------------------------------------------------- decoding and scores
def test_decoding_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    outputs = [part.astype(np.float32) for n in (16, 4)
               for part in (rng.normal(-1, 2, (2, n, n)), rng.uniform(2, 20, (2, 4, n, n)))]
    outputs[0][1, 3, 5] = outputs[0][1, 3, 6] = 7.0                      # two equal neighbors: peaks, of which NMS keeps one
    outputs[1][1, :, 3, 5], outputs[1][1, :, 3, 6] = (9, 9, 9, 9), (12, 8, 6, 8)
    found = []
    for stride, heat, sides in ((4, *outputs[:2]), (16, *outputs[2:])):
        for c, row, column in np.ndindex(heat.shape):
            score = 1 / (1 + math.exp(-heat[c, row, column]))
            around = heat[c, max(0, row - 1):row + 2, max(0, column - 1):column + 2]
            if score >= 0.4 and heat[c, row, column] == around.max():
                x, y, (left, top, right, low) = (column + 0.5) * stride, (row + 0.5) * stride, sides[c, :, row, column]
                found.append((score, c, (x - left, y - top, x + right, y + low)))
    found.sort(key=lambda item: -item[0])
    kept = []
    for score, c, box in found:
        if all(other != c or overlaps(np.array([box]), np.array([against]))[0, 0] <= 0.3 for _, other, against in kept):
            kept.append((score, c, box))
    decoded = decode(outputs, [4, 16], 0.4, 0.3)
    assert 10 < len(kept) < len(found) and len(decoded.boxes) == len(kept)
    assert np.allclose(decoded.scores, [score for score, *_ in kept], atol=1e-6)
    assert decoded.classes.tolist() == [c for _, c, _ in kept] and np.allclose(decoded.boxes, [box for *_, box in kept])
    assert [len(part) for part in decode(outputs, [4, 16], 0.4, 0.3, most=5)] == [5, 5, 5]
    nothing = decode([np.full_like(part, -99) for part in outputs], [4, 16])
    assert [part.shape for part in nothing] == [(0, 4), (0,), (0,)]


def test_overlaps_are_those_of_pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (12, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 15, (12, 2))], 1)
    masks = np.zeros((12, 40, 40), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    found = overlaps(boxes[:5].astype(float), boxes[5:].astype(float))
    for i, j in np.ndindex(5, 7):
        both, either = (masks[i] & masks[5 + j]).sum(), (masks[i] | masks[5 + j]).sum()
        assert found[i, j] == pytest.approx(both / either if either else 0)


def test_the_report_counts_each_object_once():
    box = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], float)
    truth = [Boxes(100, 100, box, np.array([0, 1, 0])), Boxes(100, 100, np.zeros((0, 4)), np.zeros(0, np.int64))]
    found = [Detections(box[[0, 0, 1, 2]] + [[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 6, 0, 6]],
                        np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 0])),          # right, again, right, IoU .25
             Detections(box[:1], np.array([0.75]), np.array([0]))]                        # where there is nothing
    report = detection_report(found, truth, NAMES)
    assert report["threshold"] == 0.7 and (report["found"], report["objects"]) == (4, 3)
    assert report["precision"] == 2 / 4 and report["recall"] == 2 / 3 and report["f1"] == 4 / 7
    assert report["classes"]["frame"]["f1"] == 1 and report["classes"]["disk"] == {
        "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "objects": 2, "found": 3}
    other = [found[0]._replace(classes=1 - found[0].classes), found[1]]
    assert detection_report(other, truth, NAMES)["f1"] == 0 and detection_report(other, truth, NAMES)["threshold"] is None
    nothing = [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))] * 2
    assert detection_report(nothing, truth, NAMES)["recall"] == 0


# ---------------------------------------------------------------- training
def in_double(rank, world, folder, output):
    torch.set_default_dtype(torch.float64)
    train(settings(folder, f"{output}/{world}", "max_steps=4", "batch_size=7", "lr=0.02"), Ranks(rank, world, CPU))


def test_one_two_and_three_ranks_run_the_same_training(folder, tmp_path):
    """Seven images in parts of 7, of 4 and 3, and of 3, 2 and 2, some of which show no object at all."""
    for world in (1, 2, 3):
        run_ranks(world, in_double, folder, tmp_path)
    shown = [(batch["box_class"] >= 0).any(1) for batch in build(folder, tmp_path, "max_steps=4", "batch_size=7").batches(0)]
    assert any(not part.any() for batch in shown for part in batch.split([3, 2, 2])) and all(batch.any() for batch in shown)
    terms = ("loss", "loss/heat", "loss/box")
    first = {name: rows(tmp_path / "1", name) for name in terms}
    assert all(len(values) == 4 and np.isfinite(values).all() for values in first.values())
    assert first["loss"][-1] < first["loss"][0]
    check_same_training(tmp_path / "1", [tmp_path / "2", tmp_path / "3"], terms)


def test_a_resumed_run_is_the_run_itself(folder, tmp_path):
    more = ["max_steps=6", "batch_size=7", "accumulate=2", "save_every=2", "ema=0.9"]
    _, halves = stop_and_resume(3, lambda output, *keys: settings(folder, output, *more, *keys), tmp_path, LocalizerTask)
    assert min(rows(halves, "loss/heat")) > 0 and min(rows(halves, "loss/box")) > 0
    with pytest.raises(UserError, match="strides is .4, 16., here it is .16."):
        train(settings(folder, halves, "resume=auto", *more, "strides=[16]"), Ranks(0, 1, CPU))


def test_bfloat16_is_near_float32_and_images_without_objects_are_learned_from(folder, tmp_path):
    short = "max_steps=3", "batch_size=4"
    for precision in ("fp32", "bf16"):
        train(settings(folder, tmp_path / precision, *short, f"precision={precision}"), Ranks(0, 1, CPU))
    fine, coarse = rows(tmp_path / "fp32", "loss"), rows(tmp_path / "bf16", "loss")
    assert np.allclose(fine, coarse, rtol=0.1) and fine != coarse
    write_coco(folder.with_suffix(".json"), {f"{i:03}.png": ((128, 96), []) for i in range(7)})
    train(settings(folder, tmp_path / "empty", *short), Ranks(0, 1, CPU))
    assert rows(tmp_path / "empty", "loss/box") == [0] * 3 and min(rows(tmp_path / "empty", "loss/heat")) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on 300 images that was evaluated on 60 others, and what the evaluation found."""
    place = tmp_path_factory.mktemp("localizer")
    make_images(place / "train", 300, seed=10)
    make_images(place / "test", 60, seed=11)
    report = train(settings(place / "train", place / "run", "network=test_efficientnet", "image_size=96", "batch_size=16",
                            "max_steps=100", "lr=4e-2", "ema=0.99", "log_every=20", f"eval_data={place / 'test'}",
                            f"eval_boxes={place / 'test.json'}"), Ranks(0, 1, CPU))
    return place, report


def test_it_learns(trained):
    """Held-out F1 against that of the same network untrained, and of a guess that is the same for each image: the box of
    the training images' mean size, in their objects' mean place."""
    place, report = trained
    cfg = settings(place / "train", place / "other", "network=test_efficientnet", "image_size=96",
                   f"eval_data={place / 'test'}", f"eval_boxes={place / 'test.json'}")
    task = build_task(cfg, Ranks(0, 1, CPU))
    untrained = task.evaluate().score
    names, listed = read_coco(cfg.boxes)
    truth = list(task.held_out.values())
    box = np.stack([np.concatenate([b.boxes[b.classes == c] for b in listed.values()]).mean(0) for c in (0, 1)])
    guess = detection_report([Detections(box, np.ones(2), np.arange(2))] * len(truth), truth, names)["f1"]
    print(f"F1: trained {report['f1']:.3f}, untrained {untrained:.3f}, constant guess {guess:.3f}")
    assert report["f1"] > 0.5 and max(untrained, guess) < 0.2
    assert min(entry["f1"] for entry in report["classes"].values()) > 0.4 and report["images"] == 60
    assert json.loads((place / "run/eval.json").read_text()) == report
    info = json.loads((place / "run/run.json").read_text())
    assert info["classes"] == NAMES and info["objects"] > 300 and info["images"] == 300
    line = (place / "run/training.log").read_text()
    assert "heat " in line and "box " in line and "eval 100/100 f1 " in line


def test_the_exported_file_finds_the_same_boxes(trained, monkeypatch, capsys):
    place, report = trained
    monkeypatch.setattr("sys.argv", ["onnx_export.py", str(place / "run")])
    onnx_export.main()
    assert capsys.readouterr().out.startswith(f"{place / 'run/model.onnx'}: ")
    session = onnxruntime.InferenceSession(place / "run/model.onnx", providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["docmetric"])
    assert {key: metadata[key] for key in ("task", "classes", "strides", "fit", "image_size", "threshold", "overlap")} == {
        "task": "localizer", "classes": NAMES, "strides": [4, 16], "fit": "pad", "image_size": 96,
        "threshold": report["threshold"], "overlap": 0.5}
    assert str(place) not in json.dumps(metadata)                        # where folders lie is no business of others
    assert [port.name for port in session.get_outputs()] == ["heat_4", "sides_4", "heat_16", "sides_16"]
    with pytest.raises(UserError, match="does not embed images"):        # of `python -m eval`
        load_embed(place / "run")
    network, _ = load_run(place / "run")
    listed = read_coco(place / "test.json")[1]
    for batch in (1, 3, 60):
        names = list(listed)[:batch]
        images = np.stack([fit_square(cv2.imread(str(place / "test" / name)), 96, "pad")[:, :, ::-1] for name in names])
        images = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        with torch.no_grad():
            expected = [out.numpy() for out in network(torch.from_numpy(images))]
        outputs = session.run(None, {"img": images})
        for one, other in zip(outputs, expected, strict=True):
            assert one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-3)
        found = [decode([out[i] for out in outputs], metadata["strides"], 0.05) for i in range(batch)]
        for i in range(batch):
            wanted = decode([out[i] for out in expected], metadata["strides"], metadata["threshold"])
            got = decode([out[i] for out in outputs], metadata["strides"], metadata["threshold"])
            assert len(got.boxes) == len(wanted.boxes) and np.allclose(got.boxes, wanted.boxes, rtol=1e-3, atol=1e-2)
            assert got.classes.tolist() == wanted.classes.tolist()
    found = [one._replace(boxes=to_image(one.boxes, 128, 96, 96, "pad")) for one in found]
    assert detection_report(found, list(listed.values()), NAMES)["f1"] == pytest.approx(report["f1"], abs=0.01)


# ---------------------------------------------------------------- what users may give
def broken(content, kind, change):
    """A copy of a COCO file's content, with `change` made to the first entry of the list `kind`."""
    content = json.loads(json.dumps(content))
    change(content[kind][0])
    return content


WRONG = {
    "bbox outside": (("annotations", lambda entry: entry.update(bbox=[100, 10, 40, 10])), "lies outside its image 001.png"),
    "bbox empty": (("annotations", lambda entry: entry.update(bbox=[1, 1, 0, 5])), "has no area"),
    "bbox nan": (("annotations", lambda entry: entry.update(bbox=[1, 1, math.nan, 5])), "has no area"),
    "bbox short": (("annotations", lambda entry: entry.update(bbox=[1, 1, 5])), "not four numbers"),
    "bbox text": (("annotations", lambda entry: entry.update(bbox="1 1 5 5")), "annotations.0. has no bbox"),
    "image": (("annotations", lambda entry: entry.update(image_id=99)), "image_id 99 is not in the file"),
    "category": (("annotations", lambda entry: entry.update(category_id=1)), "category_id 1 is not in the file"),
    "no size": (("images", lambda entry: entry.pop("width")), "images.0. has no width"),
    "no pixels": (("images", lambda entry: entry.update(width=0)), "cannot be 0 x 96 pixels"),
    "other size": (("images", lambda entry: entry.update(width=96, height=128)), "says that .*000.png has 96 x 128 pixels"),
    "same id": (("images", lambda entry: entry.update(id=1)), "one id twice"),
    "same file": (("images", lambda entry: entry.update(file_name="001.png")), "001.png twice"),
    "same name": (("categories", lambda entry: entry.update(name="frame")), "one name twice"),
    "not listed": (("images", lambda entry: entry.update(file_name="other.png")), "does not list 000.png, nor 0 other"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_coco_file_is_named(folder, tmp_path, what):
    (kind, change), says = WRONG[what]
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(broken(json.loads(file.read_text()), kind, change)))
    with pytest.raises(UserError, match=says) as error:
        build(folder, tmp_path / "run", "max_steps=1")
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_wrong_settings_are_named(folder, tmp_path):
    for text, says in (("{", "cannot be read as JSON"), ("[1]", "has no list images"), ("[" * 10_000, "cannot be read"),
                       ('{"images": [], "annotations": [], "categories": []}', "there are none"),
                       ('{"images": {}}', "has no list images")):
        (tmp_path / "coco.json").write_text(text)
        with pytest.raises(UserError, match=says) as error:
            build(folder, tmp_path / "run", f"boxes={tmp_path / 'coco.json'}")
        assert "coco.json" in str(error.value) and "\n" not in str(error.value)
    other = write_coco(tmp_path / "other.json", {f"elsewhere/{i}.png": ((128, 96), []) for i in range(3)})
    foreign = write_coco(tmp_path / "foreign.json", {"000.png": ((128, 96), [])}, ["disk", "hexagon"])
    for change, says in (
            (["boxes="], "write boxes=FILE"), ([f"boxes={tmp_path / 'none.json'}"], "none.json: cannot be read"),
            ([f"boxes={other}"], "none of its images is in data: it lists elsewhere/0.png, data has 000.png"),
            ([f"eval_data={folder}", f"eval_boxes={foreign}"], "'hexagon' is none of the network's classes"),
            ([f"eval_data={folder}", f"eval_boxes={other}"], "none of its images is in eval_data"),
            ([f"eval_data={folder}"], "give both or neither"), (["strides=[16,4]"], "whole numbers that grow"),
            (["strides=[]"], "whole numbers that grow"), (["strides=[4,7]"], "choose some of .4, 8, 16, 32."),
            (["image_size=72"], "that image_size=72 is a multiple of"), (["expansion=24"], "halves of a padded image"),
            (["network=test_resnet", "batch_size=1"], "this network needs 2")):
        with pytest.raises(UserError, match=says) as error:
            build(folder, tmp_path / "run", *change)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not name the run's classes"):
        LocalizerTask.restore(settings(folder, tmp_path), {"classes": 3})
    for threshold in ("high", 7.0, math.nan):
        with pytest.raises(UserError, match="eval.json: not what"):
            LocalizerTask.export(settings(folder, tmp_path), {}, torch.nn.Identity(), {"threshold": threshold})


def test_weights_of_another_run_or_of_timm(folder, tmp_path):
    first = build(folder, tmp_path, "seed=1")
    torch.save(first.published.state_dict(), tmp_path / "model.pt")
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "timm.pt")
    again = build(folder, tmp_path, f"pretrained={tmp_path / 'model.pt'}").published.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.published.state_dict().items())
    features = build(folder, tmp_path, f"pretrained={tmp_path / 'timm.pt'}").published.features.state_dict()
    theirs = torch.load(tmp_path / "timm.pt", weights_only=True)
    assert torch.equal(features["stem_0.weight"], theirs["stem.0.weight"])
    with pytest.raises(UserError, match="weights of another network"):
        build(folder, tmp_path, f"pretrained={tmp_path / 'model.pt'}", "width=64")


def test_the_size_of_the_network():
    network = get_localizer(load_config("localizer_small"), classes=2, pretrained=False)
    assert 0.3e6 < sum(parameter.numel() for parameter in network.parameters()) < 1e6
