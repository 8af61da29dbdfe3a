"""Registering new characters: centers and offsets, lines that contain a character, and the command."""
import re
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

import ocr.register
from inference.characters import Characters, load_characters, save_characters
from inference.cli import exit_status
from inference.errors import UserError
from inference.reader import LineReader
from ocr.insert import Mixed, paste, pasted, rendered
from ocr.lines import Sample
from ocr.register import (
    Columns,
    find_offset,
    fit_center,
    leads,
    look,
    main,
    natural_weights,
    read_crops,
    register,
    together,
)
from ocr.text import TextLine
from tests.helpers import reading
from tests.helpers.reading import CELLS, GAP, HEIGHT, WIDE, draw, write_reader

FONTS = str(Path(matplotlib.get_data_path(), "fonts", "ttf"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# What the reader of tests/helpers does not know: signs of eight cells with an odd number of black ones.
NEW = {"é": [-1, 1, 1, 1, 1, 1, -1, -1], "ß": [-1, -1, -1, 1, -1, 1, 1, -1]}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return LineReader(write_reader(tmp_path_factory.mktemp("model") / "reader.onnx"), threads=1)


def line_of(text, noise=0.0, rng=None):
    """A line that the reader sees, with the box of each character; each pixel is a little darker or lighter by `noise`."""
    image = draw("".join("a" if letter in NEW else letter for letter in text))
    starts = 8 + np.flatnonzero([letter != " " for letter in text]) * (WIDE + GAP)
    for place, letter in enumerate(text):
        if letter in NEW:
            column = np.repeat(np.where(np.array(NEW[letter]) > 0, 255, 0), HEIGHT // CELLS)
            x = 8 + place * (WIDE + GAP)
            image[:, x:x + WIDE] = column[:, None]
    if noise:
        image = np.clip(127 + (image - 127.) * rng.uniform(1 - noise, 1, (HEIGHT, 1)), 0, 255).astype(np.uint8)
    boxes = np.stack([starts, 0 * starts, starts + WIDE, 0 * starts + HEIGHT], 1).astype(np.float32)
    return Sample(image, text, boxes, boxes[:0])


def some_lines(letters, count, seed):
    rng = np.random.default_rng(seed)
    return [line_of("".join(rng.choice([*letters], 12)), .4, rng) for _ in range(count)]


# ---------------------------------------------------------------- columns
def test_columns_belong_to_the_nearest_character(reader):
    seen = look(reader, [line_of("ab c"), line_of("é")])
    assert "".join(dict.fromkeys(seen.letters)) == "abcé" and seen.place.max() == 3
    for letter, middle in (("a", 8), ("b", 24), ("c", 56)):
        own = np.flatnonzero((seen.letters == letter) & seen.core)
        # 2 pixels a column; .22 of 8 pixels around the middle, which lies between two columns
        assert np.array_equal(2 * own + 1, [middle + WIDE / 2 - 1, middle + WIDE / 2 + 1])
    assert not seen.plain.any() and look(reader, [line_of("a")], plain=True).plain.all()


def test_columns_of_a_vertical_line_are_those_of_the_turned_one(reader):
    turned = LineReader(reader.model, vertical=True)
    flat = line_of("ab é")
    boxes = np.stack([HEIGHT - flat.boxes[:, 3], flat.boxes[:, 0], HEIGHT - flat.boxes[:, 1], flat.boxes[:, 2]], 1)
    one, other = look(reader, [flat]), look(turned, [Sample(np.rot90(flat.image, -1), flat.text, boxes, boxes[:0])])
    assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_a_lead_is_the_best_of_a_characters_columns():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 6))
    place, chosen = rng.integers(0, 9, 40), rng.random(40) < .6
    columns = Columns(embeddings, np.array([*"abc"])[place % 3], chosen, place, chosen)
    center, rivals = rng.normal(size=6), rng.normal(size=(4, 6))
    found, rows = leads(columns, center, rivals, chosen)
    for lead, row in zip(found, rows):
        every = [embeddings[i] @ center - max(embeddings[i] @ rival for rival in rivals)
                 for i in range(40) if chosen[i] and place[i] == place[row]]
        assert lead == pytest.approx(max(every))
    assert sorted(place[rows]) == sorted(set(place[chosen]))


def test_places_stay_apart_when_columns_are_joined(reader):
    one, other = look(reader, [line_of("ab")]), look(reader, [line_of("cd é")])
    both = together(one, other)
    assert len(both.letters) == len(one.letters) + len(other.letters)
    assert {(letter, place) for letter, place in zip(both.letters, both.place)} == {("a", 0), ("b", 1), ("c", 2), ("d", 3),
                                                                                    ("é", 4)}


# ---------------------------------------------------------------- centers and offsets
def test_the_center_tells_better_than_the_mean():
    """The character differs from a known one in two directions; in the second, where it differs more, both vary much."""
    rng = np.random.default_rng(0)

    def cloud(n, new):
        x = .03 * rng.normal(size=(n, 8))
        x[:, 0] = 1
        x[:, 1] += .3 * new
        x[:, 2] += .4 * new + .3 * rng.normal(size=n)
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    others, rivals, test = cloud(3000, 0), np.eye(8)[:1], cloud(500, 1)
    own = cloud(60, 1)
    center = fit_center(own, others, rivals, 20.)
    assert center.dtype == np.float32 and np.linalg.norm(center) == pytest.approx(1, abs=1e-6)

    def recall(center):     # at one in 1,000 of the others
        of_test, of_others = (x @ center - (x @ rivals.T).max(1) for x in (test, others))
        return (of_test > np.quantile(of_others, .999)).mean()
    assert recall(center) > .9 > .5 > recall(own.mean(0) / np.linalg.norm(own.mean(0)))


def test_the_offset_is_the_least_that_the_rate_allows():
    rng = np.random.default_rng(0)
    others, weights = rng.normal(size=1000), rng.uniform(.1, 2, 1000)
    for rate in (1e-4, .01, .2):
        offset = find_offset(np.full(10, -9.), others, weights, rate)      # the character's own leads are no better
        assert weights[others > offset].sum() <= rate * weights.sum()
        below = others[others < offset].max()
        assert weights[others > below].sum() > rate * weights.sum()


def test_the_offset_leaves_room_where_there_is_some():
    others, own = np.linspace(-1, .1, 100), np.linspace(.5, .9, 500)
    offset = find_offset(own, others, np.ones(100), .001)
    assert others.max() < offset < own.min()


def test_weights_are_the_frequencies_of_running_text():
    letters = np.array([*"aaabbbbbc"])
    plain = np.array([True, True, False, True, False, False, False, False, False])
    columns = Columns(np.zeros((9, 2)), letters, plain, np.arange(9), plain)
    weights = natural_weights(columns, np.arange(9))
    assert weights[:3].sum() == pytest.approx(2) and weights[3:8].sum() == pytest.approx(1) and weights[8] == 1


def test_new_characters_are_read_and_take_over_no_other(reader, tmp_path):
    """Before, both are read as something else; after, they are read, and so is everything else."""
    samples = {character: some_lines(LETTERS + 6 * character, 12, 1) for character in NEW}
    fresh = {character: some_lines(LETTERS + 6 * character, 4, 2) for character in NEW}
    asked = []

    def mixed(alike):
        asked.append(alike)
        return some_lines(alike, 10, 4)
    found = register(reader, samples, fresh, some_lines(LETTERS, 40, 3), mixed, rate=1e-3)
    signs = dict(zip(reading.CLASSES, reading.patterns()))
    for one, alike in zip(found, asked):
        assert one.alike == alike and len(alike) == 6 and one.read == one.fresh == sum(
            line.text.count(one.text) for line in fresh[one.text])
        distance = {letter: (signs[letter] != NEW[one.text]).sum() for letter in reading.CLASSES[2:]}
        assert max(distance[letter] for letter in alike) <= min(distance[letter] for letter in set(distance) - set(alike))
    save_characters(tmp_path / "c.npz", Characters([one.text for one in found], np.stack([one.center for one in found]),
                                                   np.float32([one.offset for one in found])), reader.model.centers)
    lines = some_lines(LETTERS + "ééßß", 30, 5)
    before, after = ([one.text for one in LineReader(reader.model, characters=file).read([line.image for line in lines])]
                     for file in (None, tmp_path / "c.npz"))
    texts = [line.text for line in lines]
    assert after == texts and not set("".join(before)) & set(NEW)
    assert all(a == b for one, other in zip(before, texts) if len(one) == len(other)
               for a, b in zip(one, other) if b not in NEW)


# ---------------------------------------------------------------- lines that contain a character
class OneText:
    charset = LETTERS + "ABC19 "

    def line(self, r):
        return TextLine("Some words, 12 of THEM", False)


@pytest.mark.parametrize("character, form", [("é", "[A-Za-z]*é[a-z,]*"), ("É", "É[a-z,]*"), ("7", "[19]*7[19]*"),
                                             ("§", "§.*|.*§")])
def test_mixed_text_has_the_character_where_print_has_it(character, form):
    mixed, seen = Mixed(OneText(), character), 0
    assert mixed.charset.endswith(character)
    for seed in range(60):
        text, heading = mixed.line(np.random.default_rng(seed))
        words = text.split(" ")
        assert len(words) == 5 and not heading
        for word in words:
            if character in word:
                seen += 1
                capitals = word.strip(character).isupper() or word.strip(character).isdigit()
                assert re.fullmatch(form, word) or capitals and (word[0] == character or word[-1] == character), word
    assert 30 < seen < 150      # 90 of 300 words are expected


class Maker:
    """Makes the lines that it is given."""
    seed, vertical = 0, False

    def __init__(self, texts):
        self.texts = texts

    def __call__(self, number):
        return line_of(self.texts[number % len(self.texts)])


def test_rendered_lines_have_so_many_of_it():
    maker = Maker(["ab", "aé bé", "é"])
    assert [line.text for line in rendered("é", maker, 4)] == ["aé bé", "é", "aé bé"]
    assert rendered("é", maker, 1, first=2)[0].text == "é"
    with pytest.raises(UserError, match="ß: does not come in 20 lines"):
        rendered("ß", maker, 2)


def picture(height=60):
    """A crop as high as a line: a dark bar 10 pixels wide in the middle of a light gray square."""
    image = np.full((height, height), 200, np.uint8)
    image[height // 4:-height // 4, height // 2 - 5:height // 2 + 5] = 20
    return image


@pytest.mark.parametrize("vertical", [False, True])
def test_a_pasted_picture_is_between_the_others(vertical):
    line = line_of("abc de")
    if vertical:
        line = Sample(np.ascontiguousarray(line.image.T), line.text, line.boxes[:, [1, 0, 3, 2]], line.words)
    where = set()
    for seed in range(40):
        found = paste(line, "é", picture(), np.random.default_rng(seed), vertical)
        image, boxes = (found.image.T, found.boxes[:, [1, 0, 3, 2]]) if vertical else (found.image, found.boxes)
        assert found.image.dtype == np.uint8 and image.shape[0] == HEIGHT and len(boxes) == 6 == len(found.text)
        at = found.text.index("é")
        where.add(at)
        assert found.text.replace("é", "") == "abcde" and (np.diff(boxes[:, 0]) > 0).all()
        x0, y0, x1, y1 = boxes[at].astype(int)
        assert (image[y0 + 1:y1 - 1, x0 + 1:x1 - 1] < 128).all()         # the ink
        beside = image[:, [x0 - 1, x1]]
        assert (beside > 200).all()                                      # ground around it, as light as the line's
        plain = line_of("abc de")
        for (a0, _, a1, _), (b0, _, b1, _) in zip(np.delete(boxes, at, 0).astype(int), plain.boxes.astype(int)):
            assert np.array_equal(image[:, a0:a1], plain.image[:, b0:b1])
    assert where == set(range(6))


def test_pasted_lines_take_the_pictures_in_turn():
    dark, pale = picture(), np.maximum(picture(), 120)
    lines = pasted("é", [dark, pale], Maker(["ab"]), 4)
    assert [line.image[:, int(line.boxes[line.text.index("é"), 0]) + 2].min() < 100 for line in lines] == [True, False] * 2


def test_crops_are_folders_of_code_points(tmp_path):
    for name in ("233/a.png", "233/b.png", "167/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), picture())
    (tmp_path / "crops.tsv").write_text("file\ttext\n")
    crops = read_crops(tmp_path)
    assert {character: len(pictures) for character, pictures in crops.items()} == {"é": 2, "§": 1}
    assert crops["é"][0].ndim == 2


# ---------------------------------------------------------------- the command
@pytest.fixture
def quick(monkeypatch):
    """Few lines for the offsets: the command is tested here, not what it finds."""
    monkeypatch.setattr(ocr.register, "PLAIN", 6)
    monkeypatch.setattr(ocr.register, "MIXED", 3)
    monkeypatch.setattr(ocr.register, "FRESH", 2)


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """A folder with one font of matplotlib's."""
    folder = tmp_path_factory.mktemp("font")
    (folder / "serif.ttf").write_bytes(Path(FONTS, "DejaVuSerif.ttf").read_bytes())
    return str(folder)


def test_the_command_registers_from_fonts(reader, quick, font, tmp_path, capsys):
    arguments = ["--model", str(reader.model.path), "--fonts", font, "--renders", "6"]
    main(["e\u0301\u00df", *arguments, "--out", str(tmp_path / "c.npz")])
    found = load_characters(tmp_path / "c.npz", reader.model.centers)
    assert found.text == ["é", "ß"] and np.isfinite(found.offset).all()
    assert [line[:2] for line in capsys.readouterr().out.splitlines()[:2]] == ["é:", "ß:"]
    assert LineReader(reader.model, characters=tmp_path / "c.npz").registered == ["é", "ß"]
    main(["ée", *arguments, "--out", str(tmp_path / "again.npz"), "--replace"])
    assert load_characters(tmp_path / "again.npz", reader.model.centers).text == ["é", "e"]


def test_the_command_registers_from_pictures(reader, quick, font, tmp_path):
    (tmp_path / "crops" / "57344").mkdir(parents=True)       # a character that no font has
    cv2.imwrite(str(tmp_path / "crops" / "57344" / "1.png"), picture())
    main(["--model", str(reader.model.path), "--fonts", font, "--renders", "4", "--crops", str(tmp_path / "crops"), "--out",
          str(tmp_path / "c.npz")])
    assert load_characters(tmp_path / "c.npz", reader.model.centers).text == ["\ue000"]


def test_mistakes_are_one_line(reader, font, tmp_path, capsys):
    (tmp_path / "there.npz").write_bytes(b"")
    for name, content in (("blank/233/a.png", np.full((40, 40), 255, np.uint8)), ("loose/a.png", picture()),
                          ("other/e/a.png", picture()), ("fine/233/a.png", picture())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), content)
    (tmp_path / "empty").mkdir()
    for said, arguments in {"e: the model reads it already": ["e"], ", as '; --replace": ["\u2019"],
                            "no characters": [], "not one character": ["½"], "\ue000: none of": ["\ue000"],
                            "there.npz: exists": ["é", "--out", tmp_path / "there.npz"],
                            "nowhere/c.npz: its folder does not": ["é", "--out", tmp_path / "nowhere" / "c.npz"],
                            "--seed -1": ["é", "--seed", "-1"], "--renders 0": ["é", "--renders", "0"],
                            "shows nothing": ["--crops", tmp_path / "blank"],
                            "lies in no folder": ["--crops", tmp_path / "loose"],
                            "is not a class": ["--crops", tmp_path / "other"],
                            "no images; it has": ["--crops", tmp_path / "empty"],
                            "§: no images of it": ["§", "--crops", tmp_path / "fine"],
                            "no such model": ["é", "--model", tmp_path / "none.onnx"]}.items():
        arguments = ["--model", reader.model.path, "--fonts", font, "--out", tmp_path / "out.npz", *arguments]
        assert exit_status(lambda: main([str(one) for one in arguments])) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1, (said, error)
    assert not (tmp_path / "out.npz").exists()
