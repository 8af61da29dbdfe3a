"""The report of a fusion: its figures, counted here another way, and a page that any text from files cannot break."""
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from adverts.fusion import apply, fit, read_models
from adverts.report import CONFIDENCES, MANY, measure, write_report
from adverts.split import Split
from inference.errors import UserError
from inference.image import ImageError, load_image
from tests.helpers.folders import smooth
from tests.helpers.opinions import CLASSES, make_split, opinions, write

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Collects the tags and texts of a page; each element must be closed in its place."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def prepare(folder, split, text_without=()):
    """(fusion, models, split, log probabilities) of an image model and a better text model."""
    text = {name: z for name, z in opinions(split, 1.2, 1).items() if name not in text_without}
    models = read_models([write(folder / "look.safetensors", split, opinions(split, 0.8, 0)),
                          write(folder / "tfidf.safetensors", split, text, "text")], split)
    fusion = fit(models, split)
    return fusion, models, split, apply(fusion, models, split)


@pytest.fixture
def given(tmp_path):
    return prepare(tmp_path, make_split(), ("train/000.jpg", "train/101.jpg", "test/03.jpg"))


def test_figures_are_those_of_the_predictions(given):
    fusion, models, split, log_p = given
    result = measure(*given)
    train = [(row, p) for row, p in zip(split.rows, np.exp(log_p)) if row.role == "train"]
    guesses = [split.classes[p.argmax()] for _, p in train]
    right = [guess == row.label for (row, _), guess in zip(train, guesses)]
    for one in result["confidence"]:
        sure = [hit for hit, (_, p) in zip(right, train) if p.max() >= one["least"]]
        assert one["train"] == len(sure) and one["precision"] == (pytest.approx(np.mean(sure)) if sure else None)
        for role in ("unlabeled", "test"):
            assert one[role] == sum(p.max() >= one["least"] for row, p in zip(split.rows, np.exp(log_p)) if row.role == role)
    assert [one["least"] for one in result["confidence"]] == list(CONFIDENCES) and result["confidence"][0]["train"] == 45
    for a, name in enumerate(CLASSES):
        of = [guess for (row, _), guess in zip(train, guesses) if row.label == name]
        assert result["confusion"][a] == [of.count(other) for other in CLASSES]
        one = result["classes"][a]
        assert (one["name"], one["train"], one["recall"]) == (name, len(of), pytest.approx(of.count(name) / len(of)))
        assert one["precision"] == pytest.approx(of.count(name) / guesses.count(name))
        assert one["predicted"] == (log_p.argmax(1) == a).sum()
    assert result["text"]["without text"]["train"] == 2 and result["text"]["without text"]["test"] == 1
    assert result["text"]["with text"]["train"] == 43
    without = [hit for (row, _), hit in zip(train, right) if row.file in ("train/000.jpg", "train/101.jpg")]
    assert result["text"]["without text"]["accuracy"] == np.mean(without)


def test_the_worst_images_come_first(given):
    fusion, models, split, log_p = given
    worst = measure(*given)["worst"]
    p = dict(zip([row.file for row in split.rows], np.exp(log_p)))
    wrong = {row.file: p[row.file].max() for row in split.rows
             if row.role == "train" and split.classes[p[row.file].argmax()] != row.label}
    assert [one["file"] for one in worst] == sorted(wrong, key=lambda file: (-wrong[file], file))[:24]
    for one in worst:
        assert one["p"] == pytest.approx(p[one["file"]].max()) and one["guess"] != one["label"]
        assert one["p_label"] == pytest.approx(p[one["file"]][CLASSES.index(one["label"])])
        assert one["models"].keys() <= {"look", "tfidf"} and all(0.25 <= p <= 1 for _, p in one["models"].values())


def test_images_alone_have_no_part_about_text(tmp_path):
    split = make_split()
    models = read_models([write(tmp_path / "look.safetensors", split, opinions(split, 1.5, 0))], split)
    fusion = fit(models, split)
    log_p = apply(fusion, models, split)
    assert measure(fusion, models, split, log_p)["text"] is None
    page = write_report(fusion, models, split, log_p, tmp_path / "report").read_text()
    assert "without text" not in page and Balanced(page).tags


def test_the_page_shows_images_texts_and_figures(given, tmp_path):
    fusion, models, split, log_p = given
    for row in split.rows:
        path = tmp_path / "data" / row.file
        path.parent.mkdir(exist_ok=True, parents=True)
        assert cv2.imwrite(str(path), smooth(40, 30))
    worst = measure(*given)["worst"]
    (tmp_path / "data" / worst[0]["file"]).write_bytes(b"broken")
    texts = {row.file: ["Summer", f"sale of {row.file}"] for row in split.rows} | {worst[1]["file"]: []}
    path = write_report(*given, tmp_path / "report", tmp_path / "data", texts)
    page = Balanced(path.read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + len(worst) - 1  # the confusion, and all worst but the broken one
    assert all(image["src"].startswith("data:image/") for image in images)
    said = " ".join(page.texts)
    assert f"sale of {worst[2]['file']}" in said and "(no text)" in said
    with pytest.raises(ImageError) as reason:
        load_image(tmp_path / "data" / worst[0]["file"])
    assert f"({reason.value})" in said
    score = fusion["scores"]["product"]
    assert f"{100 * score['accuracy']:.1f} (" in said and f"{100 * score['test']['accuracy']:.1f} (" in said
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(measure(*given)))
    assert not re.search(r"https?://|<script", path.read_text())  # a single file, which loads nothing


def test_text_from_files_is_escaped(tmp_path):
    """Class names, file names and texts may be anything that can be written."""
    evil = ["<b>ash", "birch & 'co'", "$x^2$ \"", "広告<script>alert(1)</script>"]
    rows = [row._replace(label=evil[CLASSES.index(row.label)] if row.label else "",
                         file=row.file.replace("train/0", "train/<i>0")) for row in make_split().rows]
    fusion, models, split, log_p = prepare(tmp_path, Split(rows))
    texts = {row.file: ["</pre><script>", "<del>"] for row in split.rows}
    page = write_report(fusion, models, split, log_p, tmp_path / "report", texts=texts).read_text(encoding="utf-8")
    tags = {tag for tag, _ in Balanced(page).tags}
    assert not tags & {"b", "i", "script"} and "&lt;script&gt;" in page


def test_many_classes_have_a_matrix_without_names(tmp_path):
    names = [f"class {n:03}" for n in range(MANY + 5)]
    fusion, models, split, log_p = prepare(tmp_path, make_split(per_fold=2 * len(names), classes=names))
    page = write_report(fusion, models, split, log_p, tmp_path / "report").read_text()
    matrix = re.search(r'alt="confusion matrix" src="data:image/png;base64,([^"]+)"', page)
    assert len(matrix[1]) > 1000


def test_a_folder_that_cannot_be_written_is_one_line(given, tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(UserError, match="report cannot be written there"):
        write_report(*given, tmp_path / "report")
