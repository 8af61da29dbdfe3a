"""The reading task: what columns should say, its losses and batches against plain ones, the same training on any number of
ranks, stop and resume, mistakes of the user, and a tiny reader from its lines to the text that the exported file reads.

BatchNorm sees each rank's own part of a batch, as everywhere: where ranks are compared it uses its stored statistics.
"""
import itertools
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import inference.read
import onnx_export
from augment.lines import augment_line
from backbones.reader import get_reader, read_reader
from configs import load_config, load_run, read_info
from engine.distributed import Ranks
from engine.parallel import prepare
from inference.cli import exit_status
from inference.errors import UserError
from inference.lines import line_size, load_line, turned
from inference.reader import LineReader
from inference.text import edit_distance
from losses import ArcFace, CosFace
from ocr.folder import read_lines
from tasks import build_task
from tasks.reading import ReadingTask, TorchReader, about, column_softmax, ctc, line_targets
from tests.helpers.folders import joined, same
from tests.helpers.programs import Program
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CPU, rows, stop_and_resume
from train_v2 import train

HIGH = 32  # pixels of the lines that these tests draw
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(text, high=HIGH):
    """A line of `text`: gray uint8 `[high,w]`, and the boxes of the ink of its characters, float32 `[n,4]`."""
    line, boxes, x = np.full((high, 16 + 22 * len(text)), 255, np.uint8), [], 8
    for letter in text:
        if letter == " ":
            x += 14
            continue
        one = np.full_like(line, 255)
        cv2.putText(one, letter, (x, high - 10), FONT, 0.7, 0, 2, cv2.LINE_AA)
        ink = one < 128
        across, down = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
        boxes.append((across[0], down[0], across[-1] + 1, down[-1] + 1))
        line, x = np.minimum(line, one), boxes[-1][2] + 2
    return line[:, :x + 8], np.float32(boxes).reshape(-1, 4)


def write_lines(folder, texts, boxes=True, vertical=False, shown=None):
    """A folder of lines, with coco.json if `boxes`, which is returned. vertical: the same lines from top to bottom. shown:
    what the images show, if that is not `texts`."""
    (folder / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "char"}]}
    for number, text in enumerate(shown or texts):
        image, drawn = draw(text)
        if vertical:
            image = np.rot90(image, -1)
            drawn = np.stack([HIGH - drawn[:, 3], drawn[:, 0], HIGH - drawn[:, 1], drawn[:, 2]], 1)
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), image)
        content["images"].append({"id": number, "file_name": f"{number:03}.png", "width": image.shape[1],
                                  "height": image.shape[0], "text": text, "vertical": vertical})
        content["annotations"] += [{"id": 0, "image_id": number, "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                                   for x0, y0, x1, y1 in drawn.tolist()]
    if boxes:
        (folder / "coco.json").write_text(json.dumps(content))
    (folder / "lines.tsv").write_text("file\ttext\n" + "".join(f"{i:03}.png\t{text}\n" for i, text in enumerate(texts)))
    return folder


def random_texts(count, seed, letters="abcdei", longest=9):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice([*letters], rng.integers(2, longest + 1))) + (" ab" if i % 3 == 0 else "")
            for i in range(count)]


TINY = ["height=16", "width=8", "context_width=8", "blocks=1", "embedding_size=8"]


def settings(output, *more):
    return load_config("read", [f"output={output}", *TINY, "batch_size=6", "max_steps=2", "precision=fp32", "ema=0",
                                "log_every=1", "save_minutes=0", "device=cpu", *map(str, more)])


def build(output, *more, ranks=None):
    return build_task(settings(output, *more), ranks or Ranks(0, 1, CPU))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """data/: 37 lines with boxes; lines/: 11 without."""
    place = tmp_path_factory.mktemp("reading")
    write_lines(place / "data", random_texts(37, seed=0))
    write_lines(place / "lines", random_texts(11, seed=1), boxes=False)
    return place


# ---------------------------------------------------------------- what the columns should say
NUMBER = {name: number for number, name in enumerate(["", " ", *"abfi.-"])}


def plain_targets(text, boxes, columns):
    """A column after the other: (class or -1, the character whose box it has or None)."""
    letters, result = [letter for letter in text if letter != " "], []
    # The gaps: a space of the text between the characters number k and k + 1.
    spaces = [sum(letter != " " for letter in text[:at]) - 1 for at, letter in enumerate(text) if letter == " "]
    between_equal = {math.floor((boxes[k][2] + boxes[k + 1][0]) / 4) for k in range(len(boxes) - 1)
                     if letters[k] == letters[k + 1]}
    for column in range(columns):
        x = 2 * column + 1
        away = [abs(x - (x0 + x1) / 2) for x0, _, x1, _ in boxes]
        wide = [x1 - x0 for x0, _, x1, _ in boxes]
        own = [(away[k], k) for k in range(len(boxes)) if away[k] <= max(1.01, 0.22 * wide[k])]
        if own:
            result.append((NUMBER[letters[min(own)[1]]], min(own)[1]))
        elif any(away[k] <= 0.38 * wide[k] for k in range(len(boxes))) and column not in between_equal:
            result.append((-1, None))
        elif any(abs(x - (boxes[k][2] + boxes[k + 1][0]) / 2) <= max(1.01, 0.25 * (boxes[k + 1][0] - boxes[k][2]))
                 for k in spaces if 0 <= k < len(boxes) - 1):
            result.append((1, None))
        else:
            result.append((0, None))
    return result


def test_targets_are_those_of_a_plain_loop():
    rng, seen = np.random.default_rng(0), set()
    for case in range(300):
        text = " ".join("".join(rng.choice([*"abfi.-"], rng.integers(1, 5))) for _ in range(rng.integers(0, 4)))
        x, boxes = rng.uniform(0, 8), []
        for at, letter in enumerate(text):
            wide = rng.choice([rng.uniform(0.3, 2), rng.uniform(2, 24)])
            if letter == " ":
                x += rng.uniform(0, 20)
                continue
            boxes.append((x, 2.5, x + wide, 30.5))
            x += wide * rng.choice([1, 0.3]) if case % 2 else wide + rng.uniform(0, 6)   # some overlap, as ligatures do
        boxes = np.float32(boxes).reshape(-1, 4)
        columns = int(rng.integers(1, x / 2 + 12))
        found = line_targets(text, boxes, columns, NUMBER)
        expected = plain_targets(text, boxes.astype(float).tolist(), columns)
        assert found.label.tolist() == [label for label, _ in expected]
        for column, (_, k) in enumerate(expected):
            assert (found.box[column] == (boxes[k] if k is not None else 0)).all()
        seen |= {label for label, _ in expected}
    assert seen == {-1, *NUMBER.values()}


def test_each_character_has_a_column_however_narrow_it_is():
    for left in np.arange(0, 8, 0.1):
        boxes = np.float32([[left, 0, left + 0.2, 9], [left + 10, 0, left + 10.2, 9]])
        assert set(line_targets("ab", boxes, 12, NUMBER).label) >= {2, 3}
    assert not line_targets("", np.zeros((0, 4), np.float32), 5, NUMBER).label.any()


def test_boxes_turn_with_a_vertical_line():
    rng = np.random.default_rng(0)
    for _ in range(20):
        high, wide = rng.integers(20, 60, 2)
        (x0, x1), (y0, y1) = sorted(rng.choice(wide, 2, False)), sorted(rng.choice(high, 2, False))
        image = np.zeros((high, wide), np.uint8)
        image[y0:y1, x0:x1] = 1
        line = np.rot90(image)
        (left, top, right, bottom), = turned(np.float32([[x0, y0, x1, y1]]), line.shape[0]).astype(int)
        there = np.zeros_like(line)
        there[top:bottom, left:right] = 1
        assert (there == line).all()


def test_augmentation_keeps_boxes_on_the_ink(tmp_path):
    """A block for each character. A box's center moves as its pixels do, but for the rounding of the line's width (half a
    pixel) and of the resampling; of its edges each may be a pixel off, since the ink is blurred and thicker or thinner."""
    image, blocks = np.full((60, 620), 255, np.uint8), []
    for x in range(20, 600, 45):
        blocks.append((x, 18, x + 22, 42))
        image[18:42, x:x + 22] = 0
    for seed in range(40):
        line, boxes = augment_line(image, np.float32(blocks), 40, np.random.default_rng(seed))
        assert line.shape[0] == 40 and line.dtype == np.uint8 and boxes.dtype == np.float32
        dark = line < (np.median(line) + np.quantile(line, 0.1)) / 2
        count, _, stats, centers = cv2.connectedComponentsWithStats(dark.astype(np.uint8))
        large = [i for i in range(1, count) if stats[i, 4] > 60]
        assert len(large) == len(boxes)
        for i, box in zip(sorted(large, key=lambda i: centers[i, 0]), boxes):
            assert np.abs(centers[i] + 0.5 - (box[:2] + box[2:]) / 2).max() < 1
            assert abs(math.sqrt(stats[i, 4]) - math.sqrt(np.prod(box[2:] - box[:2]))) < 2


def test_augmentation_is_a_function_of_its_generator_and_takes_any_line():
    image, boxes = draw("abc de")
    one, again, other = (augment_line(image, boxes, 40, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])
    assert augment_line(image, None, 40, np.random.default_rng(1))[1] is None
    for seed in range(6):
        for shape in ((40, 500), (40, 1), (400, 1), (9, 5000), (48, 5000)):
            line, moved = augment_line(np.full(shape, 255, np.uint8), np.zeros((0, 4), np.float32), 40,
                                       np.random.default_rng(seed))
            ratio = line.shape[1] / max(1, round(shape[1] * 40 / shape[0]))
            assert line.shape[0] == 40 and line.shape[1] >= 1 and moved.shape == (0, 4) and 0.5 < ratio < 2
            assert line.mean() > 150                                                      # blank paper stays light


# ---------------------------------------------------------------- losses
@pytest.mark.parametrize("margin", [CosFace(20.0, 0.15), ArcFace(20.0, 0.3), CosFace(20.0, 0.15, interclass=0.4)])
def test_column_softmax_is_the_plain_formula(margin):
    margin.strength = 0.7
    rng = np.random.default_rng(0)
    cosines = torch.tensor(rng.uniform(-0.95, 0.95, (3, 8, 5))).requires_grad_()
    label = torch.tensor(rng.integers(-1, 5, (3, 8)))
    losses, weight = column_softmax(cosines, label, margin, 0.25)
    again, expected, weights = cosines.detach().clone().requires_grad_(), [], []
    for line, column in np.ndindex(3, 8):
        right = label[line, column].item()
        if right < 0:
            continue
        cosine = again[line, column]
        if right < 2:
            target = cosine[right]
        elif isinstance(margin, CosFace):
            target = cosine[right] - 0.7 * 0.15
        else:
            target = torch.cos(torch.acos(cosine[right]) + 0.7 * 0.3)
        others = [cosine[c] for c in range(5) if c != right and cosine[c] <= (margin.interclass or 1)]
        logits = 20 * torch.stack([target, *others])
        weights.append(1.0 if right > 1 else 0.25)
        expected.append(weights[-1] * -torch.log(logits[0].exp() / logits.exp().sum()))
    assert torch.allclose(losses, torch.stack(expected), rtol=1e-10, atol=1e-13)
    assert weight.tolist() == weights
    losses.sum().backward()
    torch.stack(expected).sum().backward()
    assert torch.allclose(cosines.grad, again.grad, rtol=1e-9, atol=1e-12)
    nothing = column_softmax(cosines, torch.full_like(label, -1), margin, 0.3)
    assert all(len(part) == 0 for part in nothing)


def test_ctc_is_the_sum_over_all_paths():
    classes, columns = 4, torch.tensor([5, 4, 5, 3, 2, 5])
    ids = [[1, 2], [3, 3], [2], [1, 2, 1], [2, 2], []]                # [2, 2] needs a blank between: three columns
    logits = torch.tensor(np.random.default_rng(0).normal(0, 2, (6, 5, classes))).requires_grad_()
    found, plain = ctc(logits, columns, ids), []
    for line, text in enumerate(ids):
        likely = logits[line, :columns[line]].softmax(1)
        chance = sum(math.prod(likely[t, c] for t, c in enumerate(path))
                     for path in itertools.product(range(classes), repeat=len(likely))
                     if [c for c, _ in itertools.groupby(path) if c] == text)
        plain.append(-torch.log(chance) / max(1, len(text)) if isinstance(chance, torch.Tensor) else logits.new_zeros(()))
    assert torch.allclose(found, torch.stack(plain), rtol=1e-9) and found[4] == 0 and found[0] > 0
    found.sum().backward()
    gradient = logits.grad.clone()
    logits.grad = None
    torch.stack(plain).sum().backward()
    assert torch.allclose(gradient, logits.grad, atol=1e-9) and not gradient[4].any() and gradient.isfinite().all()


# ---------------------------------------------------------------- batches
def test_every_line_is_seen_once_an_epoch(folders, tmp_path):
    """Both kinds, in batches of similar widths, as functions of the step alone."""
    more = f"data={folders / 'data'}", f"lines={folders / 'lines'}", "batch_size=4", "lines_share=.25", "max_steps=111"
    task = build(tmp_path, *more)
    assert task.shares == [3, 1] and [len(group) for group in task.groups] == [37, 11] and task.pool == 11
    steps = [task.rows(step) for step in range(5 * task.pool)]
    for number, (lines, share) in enumerate(zip(task.groups, task.shares)):
        seen = [(line.file, position // 2) for batch in steps for line, _, position in batch if position % 2 == number]
        assert sorted(position for _, position in seen) == list(range(55 * share))
        epochs = [sorted(file for file, position in seen if position // len(lines) == epoch)
                  for epoch in range(-(-55 * share // len(lines)))]
        names = sorted(line.file for line in lines)
        assert len(epochs) > 4 and all(files == names for files in epochs[:55 * share // len(lines)])
        assert set(epochs[-1]) <= set(names) and len(set(epochs[-1])) == len(epochs[-1])            # an epoch that has begun
        first = [[file for file, position in sorted(seen, key=lambda one: one[1]) if position // len(lines) == epoch]
                 for epoch in (0, 1)]
        assert first[0] != first[1]
    other = build(tmp_path, *more)
    for step in (50, 17, 0):
        assert [row[1:] for row in other.rows(step)] == [row[1:] for row in steps[step]]
        assert [row.line.file for row in other.rows(step)] == [row.line.file for row in steps[step]]
    spread = [np.ptp([width for _, width, position in batch if position % 2 == 0]) for batch in steps]
    drawn = np.random.default_rng(0).choice(task.widths[0], (500, 3))
    assert np.mean(spread) < 0.5 * np.ptp(drawn, 1).mean()
    assert build(tmp_path, *more[:2], "max_steps=0", "epochs=3", "batch_size=4").total_steps == math.ceil(3 * 37 / 2)


def test_ranks_and_micro_batches_share_a_global_batch(folders, tmp_path):
    more = f"data={folders / 'data'}", f"lines={folders / 'lines'}", "batch_size=11"
    whole = list(build(tmp_path, *more).batches(0))
    assert [len(batch["id"]) for batch in whole] == [11, 11] and whole[0]["image"].dtype == torch.uint8
    for world, accumulate in ((1, 3), (2, 1), (3, 1), (2, 2)):
        ranks = [list(build(tmp_path, *more, f"accumulate={accumulate}", ranks=Ranks(rank, world, CPU)).batches(0))
                 for rank in range(world)]
        for step, batch in enumerate(whole):
            parts = [ranks[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
            assert all(part["has_box"].any() and not part["has_box"].all() for part in parts)        # lines of both kinds
            assert same(joined(parts), batch)


def test_a_batch_is_what_its_lines_show(folders, tmp_path):
    task = build(tmp_path, f"data={folders / 'data'}", "augment=false", f"height={HIGH}", "batch_size=5")
    batch = next(task.batches(0))
    lines = {line.file: line for line in read_lines(folders / "data")}
    for i, file in enumerate(batch["id"]):
        image, line = load_line(lines[file].path), lines[file]
        shown = batch["image"][i, 0].numpy()
        assert (shown[:, :image.shape[1]] == image).all() and (shown[:, image.shape[1]:] == 255).all()
        columns = batch["columns"][i].item()
        assert columns == -(-image.shape[1] // 2) and batch["text"][i] == line.text and shown.shape[1] % 64 == 0
        expected = line_targets(line.text, line.boxes, shown.shape[1] // 2, task.number)
        assert (batch["label"][i].numpy() == expected.label).all() and (batch["box"][i].numpy() == expected.box).all()


def test_vertical_lines_are_turned(folders, tmp_path):
    write_lines(tmp_path / "down", random_texts(37, seed=0), vertical=True)
    options = "augment=false", f"height={HIGH}", "batch_size=5"
    across = build(tmp_path, f"data={folders / 'data'}", *options)
    down = build(tmp_path, f"data={tmp_path / 'down'}", "vertical=true", *options)
    assert about(down.cfg, [])["vertical"] and across.widths == down.widths
    assert all(same(one, other) for one, other in zip(across.batches(0), down.batches(0), strict=True))


def test_the_size_of_a_line_is_in_its_header(tmp_path):
    from PIL import Image
    image = np.random.default_rng(0).integers(0, 256, (9, 30), np.uint8)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image).save(tmp_path / "line.jpg", exif=exif)
        for vertical in (False, True):
            assert line_size(tmp_path / "line.jpg", vertical) == load_line(tmp_path / "line.jpg", vertical).shape[::-1]


# ---------------------------------------------------------------- training
def step_of(rank, world, folder, output):
    """The terms of a step and the gradients after it, of lines with boxes and without, and of the latter alone."""
    torch.set_default_dtype(torch.float64)
    found = []
    for more in ((f"data={folder / 'data'}", f"lines={folder / 'lines'}"), (f"lines={folder / 'lines'}",)):
        task = build(output, *more, "batch_size=7", ranks=Ranks(rank, world, CPU))
        for module in task.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        task.forward, _ = prepare(task.model, task.example, task.ranks, False, "fp32")
        for batch in task.batches(0):                            # two steps: DDP would miss a gradient in the second one
            task.begin_step(1, 1.0)
            task.model.zero_grad()
            terms = task.losses(batch)
            sum(terms.values()).backward()
            found.append({**{name: term.detach() for name, term in terms.items()},
                          **{f"d {name}": value.grad for name, value in task.model.named_parameters()}})
    return found


def test_one_two_and_three_ranks_take_the_same_step(folders, tmp_path):
    """Seven lines in parts of 7, of 4 and 3, and of 3, 2 and 2."""
    expected, = run_ranks(1, step_of, folders, tmp_path)
    assert all(expected[0][name] > 0 for name in ("cosface", "box", "ctc"))
    assert expected[2]["cosface"] == expected[2]["box"] == 0 and expected[2]["ctc"] > 0              # without boxes
    for world in (2, 3):
        for found in run_ranks(world, step_of, folders, tmp_path):
            for one, other in zip(found, expected, strict=True):
                assert one.keys() == other.keys()
                for name, value in other.items():
                    assert (one[name] - value).norm() <= 1e-9 * value.norm(), name


def test_a_resumed_run_is_the_run_itself(folders, tmp_path):
    more = [f"data={folders / 'data'}", f"lines={folders / 'lines'}", "max_steps=6", "accumulate=2", "save_every=2",
            "ema=.9", "precision=bf16", "lr=1e-2"]
    whole, halves = stop_and_resume(3, lambda output, *keys: settings(output, *more, *keys), tmp_path, ReadingTask,
                                    ("network", "average"))
    published = torch.load(whole / "model.pt", weights_only=True)
    assert torch.equal(published["centers"], load_file(whole / "checkpoints/last/average.safetensors")["centers"])
    with pytest.raises(UserError, match="a checkpoint of another run: its lines is"):
        train(settings(halves, "resume=auto", *more[1:]), Ranks(0, 1, CPU))


def test_the_first_weights_follow_the_seed(folders, tmp_path):
    one, again, other = (build(tmp_path, f"data={folders / 'data'}", f"seed={seed}").model.state_dict()
                         for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["centers"], other["centers"])


def test_new_characters_join_those_of_another_run(folders, tmp_path):
    """Old centers stay and new ones are as long as they are, until they are learned."""
    first = build(tmp_path, f"data={folders / 'data'}")
    assert [*first.number] == ["", " ", *"abcdei"] and not first.notes
    with torch.no_grad():
        first.model.centers *= torch.linspace(0.5, 3, 8)[:, None]
    torch.save(first.published.state_dict(), tmp_path / "model.pt")
    write_lines(tmp_path / "more", ["ab wx", "xw a", "wxa", "bw"], boxes=False)
    cfg = settings(tmp_path / "run", f"lines={tmp_path / 'more'}", f"pretrained={tmp_path / 'model.pt'}", "batch_size=4",
                   "max_steps=8", "warmup=0", "schedule=constant")
    task = build_task(cfg, Ranks(0, 1, CPU))
    assert task.notes == ["new characters: wx"] and [*task.number] == ["", " ", *"abcdeiwx"]
    before, after = first.model.state_dict(), task.model.state_dict()
    assert torch.equal(after["centers"][:8], before["centers"])
    assert all(torch.equal(after[name], before[name]) for name in before if name not in ("centers", "codes"))
    assert torch.allclose(after["centers"][8:].norm(dim=1), before["centers"].norm(dim=1).mean())
    train(cfg, Ranks(0, 1, CPU))
    state, classes = read_reader(tmp_path / "run")
    assert classes == [*task.number] and "new characters: wx" in (tmp_path / "run/training.log").read_text()
    moved = (state["centers"] - after["centers"]).norm(dim=1) / after["centers"].norm(dim=1)
    assert (moved[8:] > 1e-3).all()
    ctc_term = rows(tmp_path / "run", "loss/ctc")
    assert ctc_term[-1] < ctc_term[0]


def test_the_charset_says_what_is_learned(folders, tmp_path):
    (tmp_path / "charset.txt").write_text("abcd\nz")
    task = build(tmp_path, f"data={folders / 'data'}", f"charset={tmp_path / 'charset.txt'}")
    assert [*task.number] == ["", " ", *"abcdz"]
    texts = [line.text for line in read_lines(folders / "data")]
    known = [text for text in texts if set(text) <= set("abcd ")]
    assert [line.text for line in task.groups[0]] == known and 0 < len(known) < 37
    assert task.notes == [f"data: {37 - len(known)} of 37 lines have no text, or characters outside the charset, and are "
                          "skipped"]
    assert task.describe()["classes"] == ["", " ", *"abcdz"]


def test_lines_that_cannot_be_learned_are_told(folders, tmp_path):
    folder = write_lines(tmp_path / "data", ["ab", "abcdeiabcdei", "abc", "ba", "cab", " ", "a", "ca", "caba"],
                         shown=["ab", "abcdeiabcdei", "ab", "ba", "cab", "a", "a", "ca", "caba"])
    (folder / "images/003.png").write_bytes((folder / "images/003.png").read_bytes()[:70])
    task = build(tmp_path, f"data={folder}", "max_width=72", "batch_size=2", "max_steps=6")
    assert [line.file for line in task.groups[0]] == ["000.png", "004.png", "006.png", "007.png", "008.png"]
    start = "data: 1 of 9 lines "
    assert sorted(task.notes) == sorted(f"{start}{why}, and are skipped" for why in (
        "are wider than max_width=72", "have no matching boxes", "have no text, or characters outside the charset",
        f"cannot be used ({folder / 'images/003.png'}: truncated PNG)"))
    with pytest.raises(UserError, match="data: none of its lines can be used: 7 of 9 lines are wider"):
        build(tmp_path, f"data={folder}", "max_width=64", "height=512")
    # Several images that cannot be used are one note, which names the first.
    shutil.copytree(folder, tmp_path / "worse")
    (tmp_path / "worse/images/007.png").write_bytes(b"")
    notes = build(tmp_path, f"data={tmp_path / 'worse'}", "batch_size=2").notes
    told, = (note for note in notes if "cannot be used" in note)
    assert told.startswith("data: 2 of 9 lines cannot be used") and "003.png: truncated PNG; ..." in told
    # One that is damaged later is named, and ends the run.
    (folder / "images/004.png").write_bytes(b"")
    with pytest.raises(UserError, match="004.png: empty file; repair it, or remove its row in lines.tsv"):
        list(task.batches(0))


def test_boxes_of_transcribed_lines_are_learned_too(folders, tmp_path):
    task = build(tmp_path, f"lines={folders / 'data'}")
    task.forward = task.model
    assert task.describe()["transcribed"] == 0
    assert min(term.item() for term in task.losses(next(task.batches(0))).values()) > 0
    task = build(tmp_path, f"lines={folders / 'lines'}", f"data={folders / 'data'}")
    assert (task.describe()["transcribed"], task.describe()["lines"]) == (11, 48)


# ---------------------------------------------------------------- mistakes of the user
def test_mistakes_of_the_user_are_one_line(folders, tmp_path):
    data = f"data={folders / 'data'}"
    torch.save(build(tmp_path, data).published.state_dict(), tmp_path / "reader.pt")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pt")
    state = torch.load(tmp_path / "reader.pt", weights_only=True)
    for name, codes in (("negative", [0, 32, -5]), ("large", [0, 32, 0x110000]), ("twice", [0, 32, 97]), ("order", [32, 0])):
        torch.save({**state, "codes": torch.tensor((codes + [97, 98, 99, 100, 101, 105])[:8], dtype=torch.int32)},
                   tmp_path / f"{name}.pt")
    empty = tmp_path / "empty"
    empty.mkdir()
    for change, says in (
            ([], "no lines given; write data=FOLDER"), ([f"data={tmp_path / 'none'}"], "none.lines.tsv: cannot be read"),
            ([f"lines={empty}"], "empty.lines.tsv: cannot be read"),
            ([data, "height=8"], "height=8: must be from 16 to 512"),
            ([data, "height=20"], "height=20: must be a multiple of 8"),
            ([data, f"charset={tmp_path / 'c.txt'}"], "c.txt: cannot be read"),
            ([data, "pretrained=none.pt"], "none.pt: no such file"),
            ([data, f"pretrained={tmp_path / 'other.pt'}"], "other.pt: not the weights of a reader"),
            ([data, f"pretrained={empty}"], "model.pt: no such file"),
            ([data, f"pretrained={tmp_path / 'reader.pt'}", "width=16"], "weights of another network"),
            ([data, f"pretrained={tmp_path / 'reader.pt'}", "embedding_size=9"], "weights of another network"),
            *(([data, f"pretrained={tmp_path / name}.pt"], "does not name the characters of a reader")
              for name in ("negative", "large", "twice", "order")),
            ([f"data={folders / 'lines'}"], "data: none of its lines can be used: 11 of 11 lines have no matching boxes"),
            ([data, f"lines={folders / 'lines'}", "lines_where=book=a"], "no column 'book'"),
            ([data, f"lines={folders / 'lines'}", "batch_size=1"], "batch_size=1: too small to share"),
            ([data, f"lines={folders / 'lines'}", "lines_share=1"], "lines_share=1"),
            ([data, "margin=combined"], "takes a list"),
            ([data, f"eval_lines={empty}"], "empty.lines.tsv: cannot be read")):
        with pytest.raises(UserError, match=says) as error:
            build(tmp_path / "run", *change)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="batch_size=6: too small to share among 4 processes x accumulate=2"):
        build(tmp_path / "run", data, "accumulate=2", ranks=Ranks(3, 4, CPU))
    for classes in (None, ["a", " "], ["", " ", "ab"], [""], 7):
        with pytest.raises(UserError, match="run.json: does not name the run's characters"):
            ReadingTask.restore(settings(tmp_path), {"classes": classes})
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- from lines to text
TEXTS = ["die Katze", "am Haus", "Wind und", "Regen 17", "zwei alte", "Baum im", "Schnee", "ohne Hut", "zu dem Tor",
         "ist Mai", "die See", "nun geht", "Karl 1871", "es war", "heute", "Garten", "am Tisch", "und dann", "rot",
         "der Hund"]


def command(monkeypatch, main, *words):
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    return exit_status(main)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run over twenty lines, by the programs that a user calls: lines/, run/ with model.onnx."""
    place = tmp_path_factory.mktemp("trained")
    write_lines(place / "lines", TEXTS)
    done = Program("train_v2.py", "configs/read", f"data={place / 'lines'}", "height=16", "width=24", "context_width=24",
                   "blocks=2", "embedding_size=24", "batch_size=10", "max_steps=80", "lr=5e-2", "ema=.9", "precision=fp32",
                   "augment=false", "device=cpu", f"eval_lines={place / 'lines'}", f"output={place / 'run'}").wait()
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, onnx_export.main, "onnx_export.py", place / "run") == 0
    return place


def test_a_reader_learns_its_lines(trained, capsys):
    images = sorted((trained / "lines/images").iterdir())
    assert exit_status(lambda: inference.read.main(
        [*map(str, images), "--model", str(trained / "run/model.onnx"), "--json"])) == 0
    found = json.loads(capsys.readouterr().out)
    wrong = sum(edit_distance(one["text"], text) for one, text in zip(found, TEXTS, strict=True))
    assert wrong / sum(map(len, TEXTS)) < 0.05
    evaluated = json.loads((trained / "run/eval.json").read_text())
    assert evaluated["lines"] == 20 and evaluated["cer"] < 0.05
    near = []                                                    # its boxes, where it counted the characters rightly
    for one, line in zip(found, read_lines(trained / "lines"), strict=True):
        if len(one["characters"]) == len(line.boxes):
            near += [np.abs(np.subtract(character["box"], box)).mean()
                     for character, box in zip(one["characters"], line.boxes)]
    assert len(near) > 60 and np.median(near) < 3                # pixels, of 32


def test_the_exported_file_computes_what_torch_does(trained):
    network, cfg = load_run(trained / "run")
    session = onnxruntime.InferenceSession(trained / "run/model.onnx", providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["docmetric"])
    assert {key: metadata[key] for key in ("task", "height", "image_size", "stride", "scale", "vertical")} == {
        "task": "reading", "height": 16, "image_size": 16, "stride": 2, "scale": 20, "vertical": False}
    assert metadata["classes"] == read_info(trained / "run")["classes"] == network.classes
    rng = np.random.default_rng(0)
    for batch, width in ((1, 64), (3, 320), (2, 8), (5, 1000)):
        lines = rng.random((batch, 1, 16, width), np.float32)
        with torch.no_grad():
            expected = [out.numpy() for out in network(torch.from_numpy(lines))]
        found = session.run(["embeddings", "boxes", "centers"], {"img": lines})
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-3)
        assert found[0].shape == (batch, width // 2, 24) and np.allclose(np.linalg.norm(found[0], axis=2), 1, atol=1e-5)


def test_torch_and_both_files_read_the_same_text(trained, tmp_path, monkeypatch):
    for name in ("config.json", "run.json", "model.pt"):
        (tmp_path / name).write_bytes((trained / "run" / name).read_bytes())
    assert command(monkeypatch, onnx_export.main, "onnx_export.py", tmp_path, "--fp16") == 0
    assert (tmp_path / "model.onnx").stat().st_size < 0.7 * (trained / "run/model.onnx").stat().st_size
    network, cfg = load_run(trained / "run")
    task = build_task(cfg, Ranks(0, 1, CPU))
    task.published.load_state_dict(network.state_dict())
    assert task.published.training
    paths = [line.path for line in read_lines(trained / "lines")]
    readings = [LineReader(model).read(paths) for model in (TorchReader(task), trained / "run/model.onnx",
                                                            tmp_path / "model.onnx")]
    assert task.published.training                               # as it was
    texts = [[one.text for one in reading] for reading in readings]
    assert texts[0] == texts[1] == texts[2]
    for one, other in zip(readings[0], readings[1]):
        assert np.allclose([c.box for c in one.characters], [c.box for c in other.characters], atol=0.1)


def test_the_size_of_the_network():
    """With --fp16 at most 3 MB, for some 100 characters."""
    cfg = load_config("read")
    network = get_reader(cfg, ["", " ", *map(chr, range(33, 133))])
    assert sum(value.numel() for value in network.state_dict().values()) * 2 < 3e6
    assert Path(load_config("read_tune").pretrained).name == "reader.pt"
