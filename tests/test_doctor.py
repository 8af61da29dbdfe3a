"""`python -m dataset doctor`: what was planted is found and named, and nothing else is."""
import functools
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from augment.image_cache import HEADER, ImageCache
from configs import load_config
from dataset import ImageFolders, list_roots, view_of
from partial_fc import PartialFC, memory_needed
from synth import render
from tools import doctor
from tools.doctor import duplicates
from tools.doctor.checks import Look, is_blank, look_at, look_at_all, others_below
from tools.doctor.compare import difference
from tools.doctor.duplicates import ALIKE, find_groups, near_links, search, trees
from tools.doctor.estimate import cost, measure

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--set", "network=test_efficientnet", "image_size=64", "embedding_size=32", "batch_size=64", "cache=false"]
SIDE = 80  # of the resized images for that size


@functools.cache
def form(kind, copy=0):
    """A synthetic document of its own kind; copies of a kind share their art. Of the changed copies of documents of 12
    seeds, 672, the doctor misses 2, and none of this seed."""
    return render(12, kind, copy)


def encode(image, extension=".jpg", quality=92):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if extension == ".jpg" else []
    return cv2.imencode(extension, np.ascontiguousarray(image), options)[1].tobytes()


def save(path, image, extension=".jpg", quality=92):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else encode(image, extension, quality))
    return path


def cropped(image, share):
    height, width = image.shape[:2]
    return image[round(share * height):height - round(share * height), round(share * width):width - round(share * width)]


CHANGES = {
    "recompressed": lambda image: encode(image, quality=40),
    "half the size": lambda image: encode(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)),
    "twice the size": lambda image: encode(cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)),
    "brighter": lambda image: encode(np.clip(image * 1.15, 0, 255).astype(np.uint8)),
    "less contrast": lambda image: encode((image * 0.8 + 30).astype(np.uint8)),
    "cropped": lambda image: encode(cropped(image, 0.02)),
    "one edge cut": lambda image: encode(image[:, round(0.03 * image.shape[1]):]),
}


def run(capsys, *arguments):
    """The JSON document of a run in this process, without measuring time."""
    doctor.main([*map(str, arguments), "--json", "--no-time", *SMALL])
    return json.loads(capsys.readouterr().out)


def run_text(capsys, *arguments):
    doctor.main([*map(str, arguments), "--no-time", *SMALL])
    return capsys.readouterr().out


def found(paths):
    """`find_groups` of files, as sets of names."""
    paths = [str(path) for path in paths]
    groups = find_groups(paths, list(look_at_all(paths, SIDE, 64)), False)
    return [{os.path.basename(paths[member.file]) for member in group} for group in groups]


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "dataset", *map(str, arguments)], cwd=ROOT, capture_output=True)


# ---------------------------------------------------------------- nothing wrong
def test_copies_of_forms_are_no_duplicates_and_nothing_else_is_said_of_them(tmp_path, capsys):
    for kind, copy in itertools.product(range(24), range(4)):
        save(tmp_path / "data" / f"type{kind}" / f"{copy}.jpg", form(kind, copy))
    document = run(capsys, tmp_path / "data")
    assert document["duplicates"]["groups"] == document["left_out"] == document["refused"] == []
    assert not any(document["odd"].values())
    assert document["roots"][0]["other_files"] == {} and document["roots"][0]["hidden"] == []
    text = run_text(capsys, tmp_path / "data")
    assert "Every image can be used" in text and "No duplicates" in text
    assert not re.search("SKIPPED|DUPLICATES|LEAKAGE|blank|ignored", text)


# ---------------------------------------------------------------- files that cannot be used
def huge_png():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def test_files_are_skipped_as_training_skips_them(tmp_path, capsys):
    whole = encode(form(0))
    planted = {"words.jpg": b"no picture", "cut.jpg": whole[:len(whole) // 2], "empty.png": b"", "huge.png": huge_png(),
               "tiny.png": encode(form(1)[:7, :50], ".png"), "strip.png": encode(cv2.resize(form(1), (500, 9)), ".png")}
    for name, content in planted.items():
        save(tmp_path / name, content)
    save(tmp_path / "whole.jpg", whole)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image")
    save(tmp_path / ".hidden" / "a.jpg", form(2))
    save(tmp_path / ".b.jpg", form(2))

    images = ImageFolders(list_roots([str(tmp_path)], 1), 64, progress=False)
    document = run(capsys, tmp_path)
    assert {entry["path"]: entry["reason"] for entry in document["left_out"]} == images.skipped
    assert {os.path.basename(path) for path in images.skipped} == set(planted)
    assert document["roots"][0]["other_files"] == {".txt": 1, "": 1}
    assert document["roots"][0]["hidden"] == [f"{tmp_path}/.b.jpg", f"{tmp_path}/.hidden/a.jpg"]
    text = run_text(capsys, tmp_path)
    assert "SKIPPED: 6 files" in text and "truncated JPEG: 1" in text and "2 hidden images" in text
    assert "2 files without an image's extension (1 without extension, 1 .txt)" in text


def test_a_loop_of_links_is_walked_once(tmp_path):
    save(tmp_path / "a" / ".b.jpg", b"")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert others_below(tmp_path) == (Counter(), ["a/.b.jpg"])


def test_what_training_would_not_begin_with(tmp_path, capsys):
    save(tmp_path / "bad" / "a.jpg", b"no picture")
    save(tmp_path / "good" / "a.jpg", form(0))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "b.jpg").symlink_to(tmp_path / "good" / "a.jpg")
    document = run(capsys, tmp_path / "bad", tmp_path / "good", tmp_path / "link")
    assert len(document["refused"]) == 2
    assert "bad: none of its images can be used" in document["refused"][0]
    assert "one file under several roots" in document["refused"][1]
    assert "Training would not begin" in run_text(capsys, tmp_path / "bad")


# ---------------------------------------------------------------- files that are odd
def empty_page(noise=0.0, shade=0, gray=245, side=300, seed=0):
    page = gray - shade * np.linspace(0, 1, side)[:, None] + np.random.default_rng(seed).normal(0, noise, (side, 220))
    return np.clip(page, 0, 255).astype(np.uint8)[:, :, None].repeat(3, 2)


@pytest.mark.parametrize("page", [dict(), dict(noise=4), dict(noise=20), dict(noise=8, shade=60), dict(gray=4, noise=2),
                                  dict(noise=10, side=900), dict(noise=6, side=90)], ids=str)
@pytest.mark.parametrize("quality", [40, 95])
def test_an_empty_page_is_blank_and_a_line_of_text_makes_it_one_that_is_not(page, quality):
    image = empty_page(**page)
    assert is_blank(cv2.imdecode(np.frombuffer(encode(image, quality=quality), np.uint8), cv2.IMREAD_COLOR))
    if len(image) >= 300:
        ink = 20 if image.mean() > 100 else 230
        cv2.putText(image, "Page 2", (30, 80), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (ink,) * 3, 1, cv2.LINE_AA)
        assert not is_blank(cv2.imdecode(np.frombuffer(encode(image, quality=quality), np.uint8), cv2.IMREAD_COLOR))


def test_documents_are_not_blank():
    assert not any(is_blank(form(kind)) for kind in range(48))


def test_odd_files_are_named_each_by_what_is_odd(tmp_path, capsys):
    save(tmp_path / "fine.jpg", form(0))
    save(tmp_path / "empty.jpg", empty_page(6))
    save(tmp_path / "small.png", cv2.resize(form(1), (60, 30)), ".png")
    save(tmp_path / "long.png", cv2.resize(form(2), (660, 60)), ".png")
    save(tmp_path / "png.jpg", form(3), ".png")
    save(tmp_path / "line\nbreak.jpg", form(4))
    document = run(capsys, tmp_path)
    assert {what: [os.path.basename(file["path"]) for file in files] for what, files in document["odd"].items()} == {
        "blank": ["empty.jpg"], "small": ["small.png"], "long": ["long.png"], "extension": ["png.jpg"],
        "name": ["line\nbreak.jpg"]}
    assert [files[0]["more"] for files in document["odd"].values()] == [
        "", "60x30 pixels", "11.0 times as long as wide", "a PNG file", ""]
    assert document["left_out"] == [] and document["duplicates"]["groups"] == []


NAMES = ["two\nlines.jpg", "<script>alert(1)<.jpg", "\x1b[31mred.jpg", "caf\udce9.jpg"]


def test_names_are_harmless_in_text_json_and_page(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    image = encode(form(0))
    for name in NAMES:
        (data / name).write_bytes(image)
    document = run(capsys, data, "--report", tmp_path / "report")
    assert {os.path.basename(file["path"]) for file in document["duplicates"]["groups"][0]["files"]} == set(NAMES)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["duplicates"] == document["duplicates"]
    assert len(document["odd"]["name"]) == 3

    text = run_text(capsys, data)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for readable in (text, unescape(page)):
        assert "two\\nlines.jpg" in readable and "\\x1b[31mred.jpg" in readable and "caf\\udce9.jpg" in readable
    assert all(line.isprintable() for line in text.splitlines())
    assert "<script>" not in page and "&lt;script&gt;" in page


# ---------------------------------------------------------------- duplicates
def test_every_change_is_found_in_every_orientation(tmp_path):
    """A document for each: with what was made of it in a group, and with nothing else."""
    paths = []
    for number, (change, view) in enumerate(itertools.product(CHANGES, range(8))):
        paths.append(save(tmp_path / f"{number}.png", form(number), ".png"))
        changed = cv2.imdecode(np.frombuffer(CHANGES[change](form(number)), np.uint8), cv2.IMREAD_COLOR)
        paths.append(save(tmp_path / f"{number}_{change}_{view}.jpg", view_of(changed, view)))
    paths = [str(path) for path in paths]
    groups = find_groups(paths, list(look_at_all(paths, SIDE, 64)), False)
    assert [[member.file for member in group] for group in groups] == [[n, n + 1] for n in range(0, len(paths), 2)]
    for number, (_, other) in enumerate(groups):
        assert other.kind == "picture" and other.view == number % 8, paths[other.file]


@pytest.mark.parametrize("kind", range(8))
def test_what_differs_in_one_field_is_no_duplicate(kind, tmp_path):
    """The same document with another name, number or portrait in one place alone."""
    one, other = form(kind), form(kind, 1)
    both = min(len(one), len(other))  # rows: till receipts differ in length
    rows, columns = np.nonzero(np.abs(one[:both].astype(int) - other[:both]).max(2) > 60)
    top, left = rows.min(), columns.min()
    height, width = (max(8, side // 2) for side in (rows.max() - top, columns.max() - left))
    mixed = one.copy()
    mixed[top:top + height, left:left + width] = other[top:top + height, left:left + width]
    assert found([save(tmp_path / "a.jpg", one), save(tmp_path / "b.jpg", mixed), save(tmp_path / "c.jpg", one, quality=60)]
                 ) == [{"a.jpg", "c.jpg"}]


@pytest.mark.parametrize("scale", [1, 2])  # at twice the size it is decoded at half of it
def test_a_page_to_another_name_is_no_duplicate(scale, tmp_path):
    """One word in forty lines, which the small images do not show."""
    page, paths = np.full((1400, 1000, 3), 250, np.uint8), []
    words = np.random.default_rng(0).integers(97, 123, (40, 60)).astype(np.uint8)
    words[np.random.default_rng(1).random(words.shape) < 0.17] = 32
    font, ink = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40)
    for line, word in enumerate(words):
        cv2.putText(page, word.tobytes().decode(), (80, 120 + 30 * line), font, 0.6, ink, 1, cv2.LINE_AA)
    for name in ("Anna Berg", "Otto Lind", "Maria Roth"):
        letter = cv2.resize(page, None, fx=scale, fy=scale)
        letter[200 * scale:240 * scale] = 250
        cv2.putText(letter, name, (80 * scale, 225 * scale), font, 0.6 * scale, ink, scale, cv2.LINE_AA)
        for quality in (90, 60):
            paths.append(save(tmp_path / f"{name} {quality}.jpg", letter, quality=quality))
    assert found(paths) == [{f"{name} 90.jpg", f"{name} 60.jpg"} for name in ("Anna Berg", "Otto Lind", "Maria Roth")]


def test_another_color_is_another_document(tmp_path):
    red = np.clip(cv2.cvtColor(form(2), cv2.COLOR_BGR2GRAY)[:, :, None] * np.array([0.5, 0.8, 1.6]), 0, 255).astype(np.uint8)
    blue = red[:, :, ::-1]
    assert found([save(tmp_path / "red.jpg", red), save(tmp_path / "blue.jpg", blue),
                  save(tmp_path / "red again.jpg", red, quality=50)]) == [{"red.jpg", "red again.jpg"}]


def test_same_bytes_same_pixels_and_saved_again_are_different_kinds(tmp_path, capsys):
    image = save(tmp_path / "a.jpg", form(0)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(image)
    save(tmp_path / "c.png", cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR), ".png")
    save(tmp_path / "d.jpg", view_of(form(0), 1), quality=70)
    save(tmp_path / "other.jpg", form(1))
    group, = run(capsys, tmp_path)["duplicates"]["groups"]
    assert [(os.path.basename(file["path"]), file["shares"], file["turned"]) for file in group["files"]] == [
        ("a.jpg", "", ""), ("b.jpg", "bytes", ""), ("c.png", "pixels", ""), ("d.jpg", "picture", "turned by 90 degrees")]
    assert group["contradiction"] and not group["leak"] and not group["labels_differ"]
    text = run_text(capsys, tmp_path)
    assert "3 repeat an image: 1 the same bytes, 1 the same pixels in other bytes, 1 the same image saved again" in text


def test_leakage_comes_first_and_is_counted(tmp_path, capsys):
    save(tmp_path / "train" / "a.jpg", form(0))
    save(tmp_path / "train" / "b.jpg", form(1))
    save(tmp_path / "train" / "b again.jpg", form(1), quality=50)
    save(tmp_path / "test" / "kind" / "reference.jpg", CHANGES["cropped"](view_of(form(0), 3)))
    save(tmp_path / "test" / "kind" / "photo.jpg", form(9))
    duplicates = run(capsys, tmp_path / "train", "--eval", tmp_path / "test")["duplicates"]
    assert (duplicates["leaks"], duplicates["leaked_train_files"], duplicates["leaked_eval_files"]) == (1, 1, 1)
    assert [file["role"] for file in duplicates["groups"][0]["files"]] == ["train", "eval"]
    assert duplicates["groups"][0]["leak"] and not duplicates["groups"][1]["leak"]
    text = run_text(capsys, tmp_path / "train", "--eval", tmp_path / "test")
    assert text.split("\n\n")[1].startswith("LEAKAGE: 1 file to evaluate on, of 1 image")
    assert "DUPLICATES: 1 image" in text


def test_no_leakage_is_said(tmp_path, capsys):
    save(tmp_path / "train" / "a.jpg", form(0))
    save(tmp_path / "test" / "kind" / "reference.jpg", form(0, 1))
    assert "No leakage" in run_text(capsys, tmp_path / "train", "--eval", tmp_path / "test")


@pytest.mark.parametrize("expansion, label, view, contradiction, differ", [
    (1, "passport", 0, False, False), (1, "passport", 1, False, False), (8, "passport", 0, False, False),
    (8, "passport", 1, True, False), (1, "bill", 0, True, True), (8, "bill", 0, True, True)])
def test_labels_decide_what_contradicts(expansion, label, view, contradiction, differ, tmp_path, capsys):
    save(tmp_path / "passport" / "a.jpg", form(0))
    save(tmp_path / label / "b.jpg", view_of(form(0), view), quality=60)
    save(tmp_path / "bill" / "c.jpg", form(1))
    group, = run(capsys, f"{tmp_path}:{expansion}:labelled")["duplicates"]["groups"]
    assert (group["contradiction"], group["labels_differ"]) == (contradiction, differ)


@pytest.mark.parametrize("expansions, view, contradiction", [
    ((1, 1), 0, False), ((1, 1), 1, False), ((8, 8), 0, False), ((1, 8), 0, False), ((1, 8), 1, True), ((8, 1), 1, True)])
def test_a_label_under_two_roots_is_one_class(expansions, view, contradiction, tmp_path, capsys):
    """A copy under each root. Where one of them shows its turned views too, these are further classes of the label."""
    save(tmp_path / "r1" / "a" / "0.png", form(0), ".png")
    save(tmp_path / "r1" / "b" / "0.png", form(1), ".png")
    save(tmp_path / "r2" / "a" / "0.png", view_of(form(0), view), ".png")
    save(tmp_path / "r2" / "c" / "0.png", form(2), ".png")
    data = [f"{tmp_path}/r{number}:{expansion}:labelled" for number, expansion in zip((1, 2), expansions)]
    document = run(capsys, *data)
    group, = document["duplicates"]["groups"]
    assert group["contradiction"] == contradiction and not group["labels_differ"]
    assert document["shared_labels"] == ["a"]
    images = ImageFolders(list_roots(data, 24), 64, progress=False)
    assert (document["classes"], document["samples"]) == (images.num_classes, len(images))
    assert images.num_classes == max(expansions) + sum(expansions)
    for key, counts in document["if_expansion"].items():
        images = ImageFolders(list_roots([f"{tmp_path}/r{number}:{key}:labelled" for number in (1, 2)], 24), 64,
                              progress=False)
        assert counts == {"classes": images.num_classes, "samples": len(images)}
    assert document["cost"]["centres_per_process"]["1"] == memory_needed(document["classes"], 32, "adamw")
    text = run_text(capsys, *data)
    assert "1 label under several roots, each one class: a" in text
    assert re.search(r"in all +4 +%d +%d +3 +24 +72\n" % (document["classes"], document["samples"]), text)


# ---------------------------------------------------------------- the parts of the search
def rough_squares(count, seed):
    """Smooth random images, every third a noisy view of an earlier one."""
    rng, squares = np.random.default_rng(seed), []
    for number in range(count):
        square = cv2.resize(rng.uniform(0, 255, (6, 6)).astype(np.float32), (32, 32), interpolation=cv2.INTER_CUBIC)
        if number % 3 == 2:
            square = view_of(squares[rng.integers(number)], int(rng.integers(8))) + rng.normal(0, 12, (32, 32))
        squares.append(np.clip(square, 0, 255).astype(np.uint8))
    return squares


@pytest.mark.parametrize("count, seed", [(1, 0), (2, 0), (63, 1), (64, 2), (65, 3), (200, 4)])
def test_the_search_finds_what_comparing_all_with_all_finds(count, seed):
    squares = rough_squares(count, seed)
    thumbs = [duplicates._thumb(square) for square in squares]
    expected = {}
    for a, b in itertools.combinations(range(count), 2):
        scores = [float((view_of(thumbs[a], view) * thumbs[b]).sum()) for view in range(8)]
        if max(scores) >= ALIKE:
            expected[a, b] = scores
    assert count < 64 or len(expected) > 20
    searched, got = 0, []
    for pairs, candidates in search(squares):
        searched += pairs
        got += candidates
    assert searched == count * (count + 1) // 2
    assert sorted((min(a, b), max(a, b)) for a, b, _ in got) == sorted(expected)
    for a, b, view in got:
        scores = [float((view_of(thumbs[a], view) * thumbs[b]).sum()) for view in range(8)]
        assert scores[view] == pytest.approx(max(scores), abs=1e-5)


def test_a_tree_knows_how_its_members_are_turned():
    rng = np.random.default_rng(0)
    images = [rng.permutation(9).reshape(3, 3)]
    links = []
    for number in range(1, 40):  # a random tree, its links in either direction
        parent, view = int(rng.integers(number)), int(rng.integers(8))
        images.append(view_of(images[parent], view))
        back = next(v for v in range(8) if np.array_equal(view_of(images[number], v), images[parent]))
        links.append((parent, number, view, 0.5) if number % 2 else (number, parent, back, 0.5))
    tree, alone = trees(41, links)
    assert sorted(image for image, *_ in tree) == list(range(40)) and alone == [(40, 0, 0.0)]
    for image, view, _ in tree:
        assert np.array_equal(view_of(images[0], view), images[image])


def test_a_thousand_identical_files_are_one_group_and_no_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duplicates, "difference", lambda *_: pytest.fail("identical files were compared"))
    image = encode(cv2.resize(form(0), (150, 100)))
    for number in range(1000):
        (tmp_path / f"{number:04}.jpg").write_bytes(image)
    found = run(capsys, tmp_path)["duplicates"]
    assert len(found["groups"]) == 1 and found["repeats"] == {"bytes": 999}


def test_a_thousand_blank_files_are_no_group_and_no_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duplicates, "difference", lambda *_: pytest.fail("blank files were compared"))
    for number in range(1000):
        save(tmp_path / f"{number:04}.jpg", empty_page(6, side=100, seed=number)[:, :100])
    document = run(capsys, tmp_path)
    assert document["duplicates"]["groups"] == [] and len(document["odd"]["blank"]) == 1000


def test_many_copies_of_an_image_take_few_comparisons(monkeypatch):
    """Each saved again: as many comparisons as copies, not as pairs; of each at most one more is of a wrong view."""
    compared = []
    monkeypatch.setattr(duplicates, "difference", lambda *pair: compared.append(difference(*pair)) or compared[-1])
    image, rng = cv2.resize(form(0), (128, 128)), np.random.default_rng(0)
    copies = []
    for _ in range(300):
        noisy = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        gray = cv2.resize(cv2.cvtColor(noisy, cv2.COLOR_BGR2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        copies.append(Look(rough=gray, fine=encode(noisy)))
    links = near_links([""] * 300, copies, False)
    assert len(links) == sum(apart <= 1 for apart in compared) == 299 and len(compared) < 2 * 300
    tree, = trees(300, links)
    assert len(tree) == 300


# ---------------------------------------------------------------- numbers
def test_classes_and_samples_are_those_of_training(tmp_path, capsys):
    for kind, copy in itertools.product(range(3), range(2)):
        save(tmp_path / "labelled" / f"type{kind}" / f"{copy}.jpg", form(kind, copy))
    save(tmp_path / "labelled" / "alone" / "0.jpg", form(5))
    save(tmp_path / "labelled" / "alone" / "broken.jpg", b"")
    for kind in range(6, 9):
        save(tmp_path / "plain" / f"{kind}.jpg", form(kind))
    data = [f"{tmp_path}/labelled:8:labelled", f"{tmp_path}/plain"]
    document = run(capsys, *data)
    images = ImageFolders(list_roots(data, 24), 64, progress=False)
    assert (document["classes"], document["samples"]) == (images.num_classes, len(images)) == (104, 128)
    labelled, plain = document["roots"]
    assert labelled["if_expansion"] == {key: {"classes": 4 * int(key), "samples": 7 * int(key)} for key in ("1", "8", "24")}
    assert labelled["labels"] == {"number": 4, "fewest": 1, "most": 2, "largest": "type0", "median": 2,
                                  "of_one_image": ["alone"]}
    assert "labels" not in plain
    text = run_text(capsys, *data)
    assert "104 classes, 128 samples in an epoch" in text and "1 label of one image: alone" in text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_cost_is_what_the_parts_take(optimizer, tmp_path):
    from backbones import get_model
    from losses import get_margin
    for kind in range(5):
        save(tmp_path / "data" / f"{kind}.jpg", form(kind))
    cfg = load_config("lcnet_cos", ["network=test_efficientnet", "image_size=64", "embedding_size=32", "batch_size=16",
                                    f"centres_optimizer={optimizer}", f"cache={tmp_path / 'cache'}", "epochs=3"])
    listed = list_roots([f"{tmp_path}/data"], 8)
    images = ImageFolders(listed, cfg.image_size, cfg.cache, progress=False)
    network = get_model(cfg, False)
    estimate = cost(cfg, images.roots, 5, 40, 40, network)
    pixels, = (tmp_path / "cache").glob("*/pixels")
    assert estimate["cache"]["bytes"] == pixels.stat().st_size - HEADER and estimate["cache"]["free"] > 0
    assert pixels.parent == ImageCache(tmp_path / "cache", estimate["cache"]["side"], None).folder
    assert estimate["centres_per_process"] == {str(world): memory_needed(40, 32, optimizer=optimizer, world=world)
                                               for world in (1, 2, 4, 8)}
    head = PartialFC(get_margin(cfg), 32, 40, optimizer=optimizer)
    rows = sum(tensor.numel() * tensor.element_size() for tensor in head.row_state().values())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
    assert estimate["checkpoint"] == rows + 3 * weights
    assert estimate["steps"] == -(-3 * 40 // 16)
    measured = measure(cfg, 40, 8, estimate["cache"]["side"], network, next(network.parameters()).device)
    assert measured["images_per_second"] == pytest.approx(1e3 / (measured["network_ms"] + measured["head_ms"]))


def test_the_softmax_takes_time_in_proportion_beyond_what_is_measured(monkeypatch):
    from tools.doctor import estimate
    monkeypatch.setattr(estimate, "_network_seconds", lambda *_: 0.001)
    monkeypatch.setattr(estimate, "_head_seconds", lambda cfg, classes, device, of: 1e-7 * classes)
    cfg = load_config("lcnet_cos", ["pretrained=false"])
    for classes in (1000, estimate.MOST_CLASSES, 10_000_000):
        measured = measure(cfg, classes, 1, 64, None, torch.device("cpu"))
        assert measured["head_ms"] == pytest.approx(1e-4 * classes)


# ---------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with one of each, and one to evaluate on."""
    folder = tmp_path_factory.mktemp("planted")
    for kind in range(6):
        save(folder / "scans" / f"{kind}.jpg", form(kind))
    save(folder / "scans" / "again.jpg", form(2), quality=50)
    save(folder / "scans" / "empty.jpg", empty_page(5))
    save(folder / "scans" / "small.jpg", cv2.resize(form(7), (50, 31)))
    save(folder / "scans" / "broken.jpg", encode(form(6))[:2000])
    save(folder / "types" / "bill" / "reference.jpg", view_of(form(4), 6))
    save(folder / "types" / "card" / "reference.jpg", form(10))
    return folder


def test_the_command_of_the_readme(planted, tmp_path):
    done = command("doctor", planted / "scans", "--eval", planted / "types", "--report", tmp_path / "report", *SMALL)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode()
    for said in ("LEAKAGE: 1 file", "SKIPPED: 1 file", "DUPLICATES: 1 image", "1 file blank", "1 file smaller",
                 "216 classes", "images/s", "on this machine with one process"):
        assert said in text, said
    assert done.stderr.decode().splitlines() == [f"report: {tmp_path}/report/report.html"]  # no bars where no terminal is
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 + 1 + 1 and page.index("LEAKAGE") < page.index("DUPLICATES")
    assert not re.search(r"(src|href)=.?(http|/|\.)", page)
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["cost"]["time"]["images_per_second"] > 0


def test_json_is_one_document_and_the_configs_own_data_are_taken(planted):
    done = command("doctor", "--config", "configs/demo", *SMALL, f"data={planted / 'scans'}:1",
                   f"eval_data={planted / 'types'}", "--json", "--no-time")
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
    document = json.loads(done.stdout)
    assert [(root["role"], root["expansion"]) for root in document["roots"]] == [("train", 1), ("eval", 1)]
    assert document["classes"] == 9 and document["duplicates"]["leaks"] == 1 and "time" not in document["cost"]


@pytest.mark.parametrize("config, task", [("classification_small", "classification"), ("localizer_small", "localizer")])
def test_what_has_no_class_centers_has_no_estimate(config, task, planted, capsys):
    arguments = ["--config", f"configs/{config}", "--set", f"data={planted / 'types'}:1:labelled", "cache=false"]
    doctor.main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["task"] == task and document["classes"] == 2 and "cost" not in document
    doctor.main(arguments)
    assert f"estimated for task=registration alone; this config has task={task}\n" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, says", [
    ((), "doctor"), (("examine",), "doctor"), (("doctor",), "no folder given"), (("doctor", "gone"), "gone: no such folder"),
    (("doctor", "{data}", "--eval", "missing"), "missing: no such folder"), (("doctor", "{empty}"), "no images below"),
    (("doctor", "{data}:5"), "expansion 5 is not known"), (("doctor", "{data}", "--set", "sise=3"), "sise: no such key"),
    (("doctor", "{data}", "--config", "none"), "config none: no such file"), (("doctor", "{data}", "--quick"), "--quick"),
    (("doctor", "{data}", "--report", "{data}/0.jpg"), "the report cannot be written there"),
    (("doctor", "{data}", "--set", "network=none"), "network=none")])
def test_a_mistake_is_one_line_and_status_2(arguments, says, planted, tmp_path, monkeypatch, capsys):
    import dataset
    from inference.cli import exit_status
    arguments = [part.format(data=planted / "scans", empty=tmp_path) for part in arguments]
    monkeypatch.setattr(sys, "argv", ["dataset", *arguments])
    assert exit_status(dataset.main) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1 and says in said.err


def test_a_file_that_is_deleted_meanwhile_is_skipped(tmp_path, monkeypatch):
    from tools.doctor import checks
    path = save(tmp_path / "a.jpg", form(0))

    def load(*arguments):
        path.unlink()
        return form(0)
    monkeypatch.setattr(checks, "load_image", load)
    assert look_at(str(path), SIDE, 64) == Look("cannot be read: No such file or directory")
