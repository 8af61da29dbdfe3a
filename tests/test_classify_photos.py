"""Photos as the camera took them: documents found or given by hand, any way up, in Python and on the command line."""
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.classify import DocClassifier, main
from inference.cli import exit_status
from inference.errors import UserError
from inference.image import ImageError
from inference.model import PART
from inference.show import draw
from tests.helpers.models import METADATA, blocks, save, write_model
from tests.helpers.photos import BACKGROUND, finder_of, photo

QUAD = [(150, 60), (520, 110), (470, 400), (90, 330)]
LABELS = {1: "passport", 2: "card", 3: "licence"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    """Finds QUAD in every image but a black one."""
    return finder_of(tmp_path_factory.mktemp("finder") / "finder.onnx", QUAD)


@pytest.fixture
def register(tmp_path):
    for seed, label in LABELS.items():
        save(tmp_path / "register" / f"{label}.png", blocks(seed))
    return tmp_path / "register"


def turned(image, degrees):
    """Turned clockwise."""
    return np.rot90(image, -degrees // 90)


# ---------------------------------------------------------------- finding
def test_a_document_in_a_photo(model, finder, register):
    photos = [photo(blocks(seed, 256), QUAD) for seed in LABELS]
    for find in (True, "auto"):
        classifier = DocClassifier(model=model, register_root=register, threshold=0.98, find=find, finder=finder,
                                   find_references=False)
        for label, image, result in zip(LABELS.values(), photos, classifier.classify(photos, top_k=2)):
            assert result["label"] == label and result["view"] == "document" and result["error"] is None
            assert np.abs(np.array(result["quad"]) - QUAD).max() < 0.01 and result["found"] == pytest.approx(0.9, abs=1e-6)
            assert classifier(image) == (label, result["score"])
    plain = DocClassifier(model=model, register_root=register, threshold=0.98)
    assert all(plain(image)[0] is None for image in photos)
    assert set(plain.classify(photos)[0]) == {"image", "label", "score", "top_k", "error"}


def test_where_none_is_found_it_is_the_image(model, finder, register, tmp_path):
    """Also beside an image that cannot be read: all results have the same keys."""
    dark = blocks(1) // 60  # of a brightness at which the finder of these tests sees nothing
    images = [dark, tmp_path / "missing.png"]
    plain, missing = DocClassifier(model=model, register_root=register, threshold=0.1).classify(images, top_k=3)
    more = dict(quad=None, found=None)
    for find in (True, "auto"):
        classifier = DocClassifier(model=model, register_root=register, threshold=0.1, find=find, finder=finder,
                                   find_references=False, orientation="upright")
        assert classifier.classify(images, top_k=3) == [plain | more | {"view": "image"}, missing | more | {"view": None}]


def test_auto_takes_for_each_type_the_better_of_both(model, finder, register):
    """Images of a type in the middle of which the finder takes something for a document, and photos of a type."""
    options = dict(model=model, register_root=register, threshold=0, finder=finder, find_references=False, margin=0)
    of_image, of_document, of_both = (DocClassifier(find=find, **options) for find in (False, True, "auto"))
    winners = set()
    for seed in range(20):
        whole, inside = (seed % 3 + 1, seed) if seed % 2 else (seed + 3, seed % 3 + 1)
        image = cv2.resize(blocks(whole), (640, 480), interpolation=cv2.INTER_NEAREST)
        image = cv2.addWeighted(photo(blocks(inside, 256), QUAD), 0.5, image, 0.5, 0)
        each = [{entry["label"]: entry["score"] for entry in classifier.classify([image], top_k=9)[0]["top_k"]}
                for classifier in (of_image, of_document)]
        expected = {label: max(scores[label] for scores in each) for label in LABELS.values()}
        best = max(expected, key=expected.get)
        result, = of_both.classify([image], top_k=9)
        assert {entry["label"]: entry["score"] for entry in result["top_k"]} == pytest.approx(expected, abs=1e-6)
        assert [entry["label"] for entry in result["top_k"]] == sorted(expected, key=expected.get, reverse=True)
        assert result["label"] == best and result["quad"] is not None
        assert result["view"] == ("image" if each[0][best] >= each[1][best] else "document")
        winners.add(result["view"])
        assert len(of_both.classify([image], top_k=1)[0]["top_k"]) == 1
    assert winners == {"image", "document"}


def test_auto_does_not_harm_images_that_are_cropped_already(model, register, tmp_path):
    """The finder says the frame, a little off: the same answers as without it, to the last digit."""
    nearly = (np.array([(0, 0), (640, 0), (640, 480), (0, 480)]) - [320, 240]) * 0.97 + [325, 238]
    images = [cv2.resize(blocks(seed), (640, 480), interpolation=cv2.INTER_NEAREST) for seed in range(1, 8)]
    plain = DocClassifier(model=model, register_root=register, threshold=0.9).classify(images, top_k=3)
    found = DocClassifier(model=model, register_root=register, threshold=0.9, find="auto", find_references=False,
                          finder=finder_of(tmp_path / "frame.onnx", nearly)).classify(images, top_k=3)
    for one, other in zip(plain, found):
        assert one == {key: other[key] for key in one} and other["view"] == "image" and other["quad"] is not None


def test_the_runner_up_gap_sees_both_views(model, finder, register):
    """The image shows one type, what is found in it another: neither leads by much, so there is no label."""
    image = cv2.resize(blocks(1), (640, 480), interpolation=cv2.INTER_NEAREST)
    document = photo(blocks(2, 256), QUAD)
    inside = photo(np.full((9, 9, 3), 255, np.uint8), QUAD).min(2) > 250
    image[inside] = cv2.addWeighted(image, 0.7, document, 0.3, 0)[inside]
    options = dict(model=model, register_root=register, threshold=0.5, finder=finder, find="auto", find_references=False)
    first, second = (entry["score"] for entry in DocClassifier(**options).classify([image], top_k=2)[0]["top_k"])
    assert DocClassifier(margin=first - second - 1e-3, **options)(image)[0]
    assert DocClassifier(margin=first - second + 1e-3, **options)(image)[0] is None


@pytest.mark.parametrize("threads", [1, 3])
def test_many_photos_in_order(model, finder, register, tmp_path, threads):
    """More than one part for a thread, files and bad ones: each is what it is alone. Memory: so many are prepared early."""
    count, names = 3 * threads * PART["cpu"], []
    for seed in range(8):
        names.append(save(tmp_path / "photos" / f"{seed}.png", photo(blocks(seed, 256), QUAD)))
    (tmp_path / "photos" / "bad.png").touch()
    paths = [tmp_path / "photos" / "bad.png" if place % 11 == 5 else names[place % 8] for place in range(count)]
    classifier = DocClassifier(model=model, register_root=register, threshold=0.9, find="auto", finder=finder,
                               orientation="any", threads=threads)
    alone = {path: classifier.classify([path], top_k=2)[0] for path in set(paths)}
    read, look = [], classifier.views.look
    classifier.views.look = lambda image, quad=None: read.append(0) or look(image, quad)
    results = classifier.stream(paths, top_k=2)
    first = next(results)
    assert len(read) <= (2 * threads + 1) * PART["cpu"]
    for path, result in zip(paths, [first, *results], strict=True):
        one = alone[path]
        assert result | {"score": 0, "top_k": 0} == one | {"score": 0, "top_k": 0}
        assert [entry["label"] for entry in result["top_k"]] == [entry["label"] for entry in one["top_k"]]
        assert one["error"] or result["score"] == pytest.approx(one["score"], abs=1e-6)


def test_references_that_are_photos(model, finder, register, tmp_path):
    """The document in a reference is registered: alone where it is always found, beside the image by default."""
    for seed, label in LABELS.items():
        save(tmp_path / "photos" / label / "a.png", photo(blocks(seed, 256), QUAD))
    options = dict(model=model, register_root=tmp_path / "photos", threshold=0.98, finder=finder)
    clean = [blocks(seed) for seed in LABELS]
    for find, find_references, rows in ((False, True, 1), (True, True, 1), (True, None, 2), (False, "auto", 2),
                                        (False, None, 1), (True, False, 1)):
        classifier = DocClassifier(find=find, find_references=find_references, **options)
        assert {len(bank) for bank in classifier.bank.values()} == {rows}
        assert not any("the same image" in warning for warning in classifier.warnings)
        if not find:
            named = [label for label, _ in map(classifier, clean)]
            assert named == (list(LABELS.values()) if find_references else [None] * 3)
        assert {len(bank) for bank in classifier.get_register(register).values()} == {rows}


def test_a_finder_for_references_alone(model, finder, register):
    """Given as a path; and one that nothing asks for is not read."""
    options = dict(model=model, register_root=register, threshold=0.98)
    found, plain = (DocClassifier(finder=path, find_references=find, **options)
                    for path, find in ((finder.path, "auto"), ("nowhere.onnx", None)))
    assert {len(bank) for bank in found.bank.values()} == {2} and {len(bank) for bank in plain.bank.values()} == {1}
    assert found(blocks(1))[0] == plain(blocks(1))[0] == "passport"


def test_two_views_that_are_the_same_are_one_image(model, finder, tmp_path):
    """Of a reference of one color the document looks like the whole."""
    save(tmp_path / "plain.png", np.full((480, 640, 3), (200, 30, 90), np.uint8))
    classifier = DocClassifier(model=model, register_root=tmp_path, threshold=0.9, find="auto", finder=finder)
    assert classifier.warnings == [] and len(classifier.bank["plain"]) == 2


@pytest.mark.parametrize("options, reason", [
    ({"find": "sometimes"}, "find sometimes: unknown"), ({"find": 2}, "find 2: unknown"),
    ({"find_references": "sometimes"}, "find sometimes: unknown"),
    ({"orientation": "sideways"}, "orientation sideways: unknown; use upright or any"),
    ({"find": True, "finder": "nowhere.onnx"}, "nowhere.onnx: no such model"),
])
def test_wrong_choices(model, register, options, reason):
    with pytest.raises(UserError, match=reason):
        DocClassifier(model=model, register_root=register, threshold=0.9, **options)


# ---------------------------------------------------------------- corners by hand
def test_corners_by_hand(model, register):
    classifier = DocClassifier(model=model, register_root=register, threshold=0.98)
    for seed, label in LABELS.items():
        image = photo(blocks(seed, 256), QUAD)
        assert classifier(image, quad=QUAD)[0] == classifier(image, np.array(QUAD))[0] == label
        assert classifier(image, [*QUAD[1:], QUAD[0]])[0] is None  # its top left is elsewhere
    with pytest.raises(ImageError, match="^image: corners: they go counterclockwise"):
        classifier(image, QUAD[::-1])


def test_corners_of_images_and_of_references(model, register, tmp_path):
    image = photo(blocks(1, 256), QUAD)
    paths = [save(tmp_path / name, image) for name in ("a.png", "b.png", "refs/passport.png")]
    save(tmp_path / "refs" / "card.png", blocks(2))
    corners = {str(path.resolve()): QUAD for path in (paths[0], paths[2])}
    classifier = DocClassifier(model=model, register_root=tmp_path / "refs", threshold=0.98, corners=corners)
    assert classifier(blocks(1))[0] == "passport"
    first, second = classifier.classify(paths[:2])
    assert first["label"] == "passport" and first["quad"] == [list(corner) for corner in QUAD]
    assert first["view"] == "document" and first["found"] is None
    assert second["label"] is None and second["quad"] is None and second["view"] == "image"


# ---------------------------------------------------------------- any way up
def test_any_way_up(model, finder, register):
    """Whole images and documents in photos, by how many degrees clockwise they are turned."""
    upright, any_way, found = (DocClassifier(model=model, register_root=register, threshold=0.98, **options) for options in (
        {}, {"orientation": "any"}, {"orientation": "any", "find": True, "finder": finder, "find_references": False}))
    for seed, label in LABELS.items():
        for degrees in (0, 90, 180, 270):
            image = turned(blocks(seed), degrees)
            result, = any_way.classify([image], top_k=3)
            assert (result["label"], result["orientation"]) == (label, degrees)
            assert sorted(entry["label"] for entry in result["top_k"]) == sorted(LABELS.values())
            assert any_way(image) == (label, result["score"]) and result["score"] > 0.999
            assert (upright(image)[0] == label) == (degrees == 0)
            result, = found.classify([photo(turned(blocks(seed, 256), degrees), QUAD)])
            assert (result["label"], result["orientation"]) == (label, degrees)
    assert "orientation" not in upright.classify([image])[0]
    for label, bank in upright.bank.items():
        assert np.array_equal(any_way.bank[label], bank) and any_way.get_register(register)[label].shape == bank.shape


def test_a_score_is_the_best_of_the_four_turns(model, register):
    """By brute force: the image turned back four times, by the classifier that knows upright documents alone."""
    upright, any_way = (DocClassifier(model=model, register_root=register, threshold=0, orientation=orientation)
                        for orientation in ("upright", "any"))
    for seed in range(10, 30):
        image = blocks(seed)
        each = [{entry["label"]: entry["score"] for entry in upright.classify([turned(image, -turn)], top_k=3)[0]["top_k"]}
                for turn in (0, 90, 180, 270)]
        result, = any_way.classify([image], top_k=3)
        expected = {label: max(scores[label] for scores in each) for label in LABELS.values()}
        assert {entry["label"]: entry["score"] for entry in result["top_k"]} == pytest.approx(expected, abs=1e-5)
        assert result["orientation"] == 90 * int(np.argmax([scores[result["top_k"][0]["label"]] for scores in each]))


def test_a_type_does_not_look_like_itself_turned(model, tmp_path):
    """One type that is the same any way up, and two of which one is the other, turned: one pair, named once."""
    save(tmp_path / "plain.png", np.full((64, 64, 3), (200, 30, 90), np.uint8))
    save(tmp_path / "one.png", blocks(1))
    save(tmp_path / "other.png", turned(blocks(1), 90))
    assert DocClassifier(model=model, register_root=tmp_path, threshold=0.95).warnings == []
    classifier = DocClassifier(model=model, register_root=tmp_path, threshold=0.95, orientation="any")
    warning, = classifier.warnings
    assert warning.startswith("one and other look alike: their references score 1.0000")
    assert classifier(np.full((64, 64, 3), (200, 30, 90), np.uint8))[0] == "plain"


TABLE = {"1e-3": {"threshold": 0.7}, "1e-4": {"threshold": 0.8}, "1e-5": {"threshold": 0.9}}


@pytest.mark.parametrize("tables, fpr, expected, warned", [
    ({"thresholds": TABLE, "thresholds_any": {"1e-4": {"threshold": 0.83}}}, None, 0.83, None),
    ({"thresholds": TABLE, "thresholds_any": {"1e-3": {"threshold": 0.74}, "1e-4": {"threshold": 0.83}}}, 1e-3, 0.74, None),
    # Not calibrated: the best of four passes at most four times as often, so the rate is a quarter.
    ({"thresholds": TABLE}, None, 0.8, "using 0.8000, the model's threshold for a false positive rate of 0.001 / 4"),
    ({"thresholds": TABLE}, 1e-3, 0.8, "using 0.8000, the model's threshold for a false positive rate of 0.001 / 4"),
    ({"thresholds": {"1e-3": {"threshold": 0.8}}}, None, 0.8, "no threshold for a false positive rate of 0.001 / 4, since"),
    ({"thresholds": None}, None, 0.75, "no threshold for a false positive rate of 0.001 / 4, since"),
    ({"thresholds": TABLE, "thresholds_any": {"1e-2": {"threshold": 0.78}}}, None, 0.78, "its table is 0.01"),
])
def test_thresholds_for_documents_any_way_up(tmp_path, register, tables, fpr, expected, warned):
    path = write_model(tmp_path / "model.onnx", METADATA | tables)
    classifier = DocClassifier(model=path, register_root=register, fpr=fpr, orientation="any")
    assert classifier.threshold == expected and len(classifier.warnings) == bool(warned)
    assert not warned or warned in classifier.warnings[0]
    if fpr is None and tables["thresholds"] is TABLE:
        assert DocClassifier(model=path, register_root=register).threshold == 0.7


def test_a_rate_too_low_for_any_way_up(tmp_path, register):
    path = write_model(tmp_path / "model.onnx", METADATA | {"thresholds": TABLE})
    with pytest.raises(UserError, match="fpr 1e-05: the model has no threshold for such a low rate / 4, since"):
        DocClassifier(model=path, register_root=register, fpr=1e-5, orientation="any")
    with pytest.raises(UserError, match="not a model of this project"):
        write_model(path, METADATA | {"thresholds_any": {"1e-3": {"threshold": "high"}}})
        DocClassifier(model=path, register_root=register)


# ---------------------------------------------------------------- the command line
def run(capsys, *arguments):
    status = exit_status(lambda: main([*map(str, arguments)]))
    return status, *capsys.readouterr()


def test_the_options(model, finder, register, tmp_path, capsys):
    image = save(tmp_path / "photo.png", photo(turned(blocks(3, 256), 90), QUAD))
    command = ["--model", model, "--register", register, image, "--threshold", 0.98]
    status, out, _ = run(capsys, *command, "--find-references", "never", "--finder", finder.path, "--orientation", "any",
                         "--json", "--find", "always")
    result, = json.loads(out)
    assert status == 0
    assert set(result) == {"image", "label", "score", "top_k", "error", "quad", "found", "view", "orientation"}
    assert result["label"] == "licence" and result["orientation"] == 90 and result["view"] == "document"
    status, out, _ = run(capsys, *command, "--finder", finder.path, "--orientation", "any", "--find")
    assert status == 0 and out.startswith(f"{image}: licence ") and out.endswith(" turned by 90\n")
    assert run(capsys, *command)[1].startswith(f"{image}: not registered ")


def test_corners_on_the_command_line(model, register, tmp_path, capsys):
    image = save(tmp_path / "photo.png", photo(blocks(3, 256), QUAD))
    folded, plain = (save(tmp_path / name, photo(blocks(3, 256), QUAD)) for name in ("folded.png", "plain.png"))
    lines = [f"{path.name},{','.join(str(value) for value in np.ravel(quad))}" for path, quad in (
        (image, QUAD), (folded, [QUAD[0], QUAD[2], QUAD[1], QUAD[3]]))]
    file = tmp_path / "corners.csv"
    file.write_text("\n".join(["file,x0,y0,x1,y1,x2,y2,x3,y3", *lines]))
    command = ["--model", model, "--register", register, image, folded, plain, "--threshold", 0.98, "--corners", file]
    status, out, _ = run(capsys, *command)
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith(f"{image}: licence ") and lines[2].startswith(f"{plain}: not registered ")
    assert lines[1].startswith(f"{folded}: cannot be used: corners: no convex quadrilateral")
    status, out, err = run(capsys, *command[:-1], tmp_path / "nowhere.csv")
    assert status == 2 and out == "" and "nowhere.csv: no file of corners" in err and err.count("\n") == 1


def test_drawings_of_the_results(model, finder, register, tmp_path, capsys):
    """Two images of one name, one that cannot be read, and one in which nothing is found; the document stands upright."""
    images = [save(tmp_path / "in" / "a" / "x.png", photo(turned(blocks(1, 256), 90), QUAD)),
              save(tmp_path / "in" / "b" / "x.png", photo(blocks(9, 256), QUAD)),
              save(tmp_path / "in" / "odd\n name.png", np.zeros((60, 80, 3), np.uint8)), tmp_path / "in" / "bad.png"]
    images[3].touch()
    before = {path: path.read_bytes() for path in images}
    command = ["--model", model, "--register", register, *images, "--threshold", 0.98, "--find", "always", "--finder",
               finder.path, "--find-references", "never", "--orientation", "any", "--show"]
    for _ in range(2):  # drawings of an earlier run are replaced
        status, out, _ = run(capsys, *command, tmp_path / "out" / "deep")
        assert status == 0 and out.count("\n") == 4
        names = sorted(path.name for path in (tmp_path / "out" / "deep").iterdir())
        assert names == ["00000_x.jpg", "00001_x.jpg", "00002_odd__name.jpg"]
    assert {path: path.read_bytes() for path in images} == before
    first, second, third = (cv2.imread(str(tmp_path / "out" / "deep" / name)) for name in names)
    # An image of 400 x 300 with its document beside it; what is left of it shows the background, the document does not.
    assert first.shape[1] > 700 and third.shape[1] <= 416
    assert np.abs(first[20, 20].astype(int) - BACKGROUND).max() < 12
    document = first[8:8 + 400, 416:]  # its side is at most 400, and its aspect is estimated
    width = np.flatnonzero((document[20] < 250).any(1)).max() + 1
    height = np.flatnonzero((document[:, 20] < 250).any(1)).max() + 1
    for row, column in np.ndindex(4, 4):
        patch = document[int((row + 0.5) * height / 4), int((column + 0.5) * width / 4)]
        assert np.abs(patch.astype(int) - blocks(1, 256)[64 * row + 32, 64 * column + 32]).max() < 40
    green, red = ((sheet.astype(int) @ [0, 1, -1] > 60).sum() > (sheet.astype(int) @ [0, -1, 1] > 60).sum()
                  for sheet in (first[-28:], second[-28:]))
    assert green and not red


def test_a_drawing_of_a_label_in_any_bytes(model, register, tmp_path, capsys):
    """Some are not UTF-8, and OpenCV ends the process for those."""
    label = os.fsdecode(b"caf\xe9")
    save(tmp_path / "x.png", blocks(1))
    (register / label).mkdir()
    (tmp_path / "x.png").rename(register / label / "x.png")
    (register / "passport.png").unlink()
    image = save(tmp_path / "in" / "x.png", blocks(1))
    status, out, _ = run(capsys, "--model", model, "--register", register, image, "--threshold", 0.9, "--show",
                         tmp_path / "out")
    assert status == 0 and "caf\\udce9" in out and cv2.imread(str(tmp_path / "out" / "00000_x.jpg")) is not None


def test_a_drawing_of_a_thin_photo(tmp_path):
    """Its sides shrink by different factors, since a pixel is the least: the corners are drawn where they are."""
    path = save(tmp_path / "thin.png", np.full((2600, 10, 3), 200, np.uint8))
    quad = [[0, 0], [10, 0], [10, 1300], [0, 1300]]
    sheet = draw(dict(image=path, label=None, score=0.5, quad=quad, view="document")).astype(int)
    # Half of 400 rows, below the space around; the line is 2 pixels wide.
    assert (sheet[:408, 8:10] @ [0, -1, 1] > 60).any(1).nonzero()[0].max() == pytest.approx(8 + 200, abs=2)


@pytest.mark.parametrize("place, reason", [("in", "lies in it; name another folder"), ("register", "among the reference"),
                                           ("register/below", "among the reference"), ("file", "cannot be made")])
def test_drawings_do_not_replace_images(model, register, tmp_path, capsys, place, reason):
    image = save(tmp_path / "in" / "00000_x.jpg", blocks(1))
    (tmp_path / "file").touch()
    status, out, err = run(capsys, "--model", model, "--register", register, image, "--show", tmp_path / place)
    assert status == 2 and out == "" and reason in err and err.count("\n") == 1
    assert sorted(path.name for path in register.iterdir()) == sorted(f"{label}.png" for label in LABELS.values())
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["00000_x.jpg"]


def test_a_full_place_for_drawings_is_one_line(model, register, tmp_path, capsys, monkeypatch):
    image = save(tmp_path / "in" / "x.jpg", blocks(1))

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = run(capsys, "--model", model, "--register", register, image, "--threshold", 0.9, "--show",
                         tmp_path / "out")
    assert status == 2 and "No space left on device" in err and err.count("\n") == 1
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("options, reason", [
    (["--find", "sometimes"], "invalid choice"), (["--find-references", "sometimes"], "invalid choice"),
    (["--find", "auto", "--finder", "nowhere.onnx"], "nowhere.onnx: no such model"),
    (["--finder", "nowhere.onnx"], "--finder: of use with --find or"),
    (["--orientation", "sideways"], "use upright or any")])
def test_wrong_options(model, register, capsys, options, reason):
    command = ["--model", model, "--register", register, register / "card.png", "--threshold", 0.9]
    status, out, err = run(capsys, *command, *options)
    assert status == 2 and out == "" and reason in err and err.count("\n") == 1
