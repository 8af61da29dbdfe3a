"""Evaluation of reading: the counts against plain recomputation, and what must not spoil them."""
import json
import math
import random
import re
import shutil
import stat
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from backbones.reader import get_reader
from configs import read_config
from eval.__main__ import main
from eval.reading import CONFUSIONS, compare, differences, evaluate_lines, table
from eval.reading_report import write_reading_report
from eval.tesseract import read_with_tesseract, tesseract_path
from inference.cli import exit_status
from inference.errors import UserError
from inference.text import edit_distance, normalize
from ocr.folder import Line, read_lines
from tests.helpers.models import write_model
from tests.helpers.reading import draw, write_reader


class Known:
    """Reads a line by its file's name. An image that cannot be used has an error, as with `LineReader`."""

    def __init__(self, texts, classes=""):
        self.texts, self.classes = texts, ["", *classes]

    def read(self, paths):
        for path in paths:
            usable = cv2.imread(str(path)) is not None
            yield SimpleNamespace(text=self.texts[path.stem] if usable else "", error=None if usable else "not an image")


def write_lines(folder, rows):
    """A folder of lines 0.png, 1.png, ... rows: (text, book)."""
    (folder / "images").mkdir(parents=True)
    for number, _ in enumerate(rows):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.full((12, 40), 255, np.uint8))
    (folder / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(f"{n}.png\t{text}\t{book}\n"
                                                                     for n, (text, book) in enumerate(rows)))
    return folder


def lines_of(texts, **fields):
    return [Line(f"{n}.png", None, text, None, fields) for n, text in enumerate(texts)]


def plain_distance(a, b):
    """The textbook recursion."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, above = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def some_pairs(count, seed=0):
    """(truth, reading) with a few random edits; some readings are unrelated or empty."""
    rng = random.Random(seed)
    letters = "aabc rnmM.,"
    for _ in range(count):
        truth = "".join(rng.choices(letters, k=rng.randrange(0, 30)))
        text = list(truth)
        for _ in range(rng.randrange(0, 6)):
            at = rng.randrange(len(text) + 1)
            text[at:at + rng.randrange(0, 3)] = rng.choices(letters, k=rng.randrange(0, 3))
        yield normalize(truth), normalize("".join(text) if rng.random() > .1 else "")


def test_the_counts_are_those_of_a_plain_recomputation():
    truths, texts = zip(*some_pairs(200))
    found = compare(lines_of(truths), texts, classes=set("abc rn"))
    total = sum(map(len, truths))
    assert found["characters"] == total and found["lines"] == 200
    assert found["edits"] == sum(map(plain_distance, truths, texts)) and found["cer"] == found["edits"] / total
    lower = [(a.lower(), b.lower()) for a, b in zip(truths, texts)]
    assert found["cer_uncased"] == sum(plain_distance(*pair) for pair in lower) / total
    bare = [(a.replace(" ", ""), b.replace(" ", "")) for a, b in zip(truths, texts)]
    assert found["cer_no_spaces"] == sum(plain_distance(*pair) for pair in bare) / sum(len(a) for a, _ in bare)
    assert found["exact"] == sum(map(str.__eq__, truths, texts)) / 200
    assert found["right_count"] == sum(len(a) == len(b) for a, b in bare) / 200
    assert found["coverage"] == sum(c in "abc rn" for text in truths for c in text) / total
    assert len(found["worst"]) == 20 and found["worst"][0]["edits"] == max(map(plain_distance, truths, texts))


def test_both_texts_and_the_denominator_are_normalized():
    """The denominator of EffOCR is that of the text before cleaning."""
    found = compare(lines_of(["\u201cThe \ufb01rst\u201d  --- day\u2019s"]), ['"The first" - day\'s'])
    assert found["cer"] == 0 and found["exact"] == 1 and found["characters"] == len('"The first" - day\'s')


def test_empty_texts_divide_nothing_by_zero():
    nothing = compare(lines_of(["", ""]), ["", ""])
    assert (nothing["cer"], nothing["exact"], nothing["coverage"], nothing["cer_interval"]) == (0, 1, None, [0, 0])
    ghosts = compare(lines_of([""]), ["ab"], classes=set("ab"))
    assert ghosts["cer"] == 2 and ghosts["cer_interval"] is None and ghosts["coverage"] == 0
    assert compare([], [], group="book")["cer"] == 0
    assert compare(lines_of(["abc"]), [""])["cer"] == 1


def test_characters_without_a_class_are_misses():
    found = compare(lines_of(["abé", "ab"]), ["abe", "ab"], classes={"a", "b"})
    assert found["coverage"] == 4 / 5 and found["edits"] == 1
    assert found["confusions"] == [{"truth": "é", "read": "e", "count": 1}]


def test_differences_give_both_texts_and_the_fewest_edits():
    for truth, text in some_pairs(300, seed=1):
        parts = differences(truth, text)
        assert "".join(a for a, _ in parts) == truth and "".join(b for _, b in parts) == text
        kinds = [a == b for a, b in parts]
        assert all(one != other for one, other in zip(kinds, kinds[1:]))      # equal parts and edits take turns
        # Side by side, no edits are both insertions and deletions: a replacement would be shorter.
        assert sum(max(len(a), len(b)) for a, b in parts if a != b) == edit_distance(truth, text)


def test_confusions_join_edits_side_by_side():
    found = compare(lines_of(["modern corn", "born", "aa b"]), ["modem com", "bom", "aab"])
    assert found["confusions"] == [{"truth": "rn", "read": "m", "count": 3}, {"truth": " ", "read": "", "count": 1}]
    many = lines_of([chr(0x4e00 + n) for n in range(CONFUSIONS + 10)])
    assert len(compare(many, ["x"] * len(many))["confusions"]) == CONFUSIONS


def test_a_table_shows_a_confusion_of_a_whole_line_in_short():
    found = compare(lines_of(["a line that is not read at all"]), [""]) | {"unreadable": []}
    assert found["confusions"][0]["truth"] == "a line that is not read at all"
    assert "> read): a\u2423line\u2423that\u2423is\u2423\u2026 > nothing 1" in table(found, {})


def test_the_interval_is_that_of_the_ratio():
    """Against the delta method: the standard deviation of a ratio of sums over n lines."""
    rng = np.random.default_rng(5)
    n, length = 400, 50
    wrong = rng.binomial(length, rng.beta(1, 30, n))
    lines = lines_of(["a" * length] * n)
    low, high = compare(lines, ["b" * k + "a" * (length - k) for k in wrong])["cer_interval"]
    center, deviation = wrong.mean() / length, wrong.std() / length / math.sqrt(n)
    # 1,000 draws give a 2.5 % quantile to about 8 % of its distance from the center
    assert low == pytest.approx(center - 1.96 * deviation, abs=.3 * deviation)
    assert high == pytest.approx(center + 1.96 * deviation, abs=.3 * deviation)


def test_groups_and_their_mean(tmp_path):
    folder = write_lines(tmp_path / "lines", [("abcd", "x"), ("abcd", "y"), ("abcd", "y")])
    reader = Known({"0": "abcd", "1": "abcx", "2": "abcd"}, classes="abcd")
    found = evaluate_lines(reader, read_lines(folder), group="book")
    assert found["groups"]["x"]["cer"] == 0 and found["groups"]["y"]["cer"] == 1 / 8
    assert found["mean_group_cer"] == 1 / 16 and found["cer"] == 1 / 12 and found["coverage"] == 1
    assert [found["groups"][name]["lines"] for name in "xy"] == [1, 2]
    assert evaluate_lines(reader, read_lines(folder, "book=x"), group="book")["lines"] == 1
    assert "12.50" in table(found, {}, "book")


def test_a_broken_image_shifts_no_text(tmp_path):
    """EffOCR reads zero images in the place of those that it cannot open."""
    folder = write_lines(tmp_path / "lines", [("one", "x"), ("two", "x"), ("three", "x")])
    (folder / "images" / "1.png").write_bytes(b"not an image")
    found = evaluate_lines(Known({"0": "one", "2": "three"}), read_lines(folder))
    assert found["unreadable"] == [{"file": "1.png", "reason": "not an image"}]
    assert found["edits"] == 3 and found["worst"] == [{"file": "1.png", "truth": "two", "read": "", "edits": 3}]
    assert "1.png" in table(found, {})


def test_the_report_is_one_file_with_the_worst_lines(tmp_path):
    rows = [("<b>modern</b> & old", "x"), ("fine", "y"), ("gone", "y")]
    folder = write_lines(tmp_path / "lines", rows)
    lines = read_lines(folder)
    found = evaluate_lines(Known({"0": "<b>modem</b> & old", "1": "fine", "2": ""}), lines, group="book")
    other = compare(lines, ["x", "fine", "gone"], group="book")
    (folder / "images" / "2.png").unlink()      # gone by the time of the report
    path = write_reading_report(found, {"tesseract": other}, lines, tmp_path / "report", "<title>", "book")
    page = path.read_text()
    assert "<b>modern" not in page and "mode<del>rn</del>&lt;/b&gt; &amp; old" in page and "mode<ins>m</ins>" in page
    assert page.count("data:image/png") == 1 and "file not found" in page and "&lt;title&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<td>rn</td><td>m</td><td>1</td>" in page
    assert "0.png, 2 edits<" in page and "<th>exact lines of reader, %</th>" in page
    one = compare(lines, ["<b>modern</b> & old", "fin", "gone"]) | {"unreadable": []}
    assert "1.png, 1 edit<" in write_reading_report(one, {}, lines, tmp_path / "one", "one").read_text()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["cer"] == found["cer"] and metrics["tesseract"]["cer"] == other["cer"]


def fake_tesseract(tmp_path, monkeypatch, script):
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_tesseract_gives_one_text_an_image(tmp_path, monkeypatch):
    """By a program in its place, which prints the sizes of the files in the list that it is given."""
    fake_tesseract(tmp_path, monkeypatch, r"""test "$OMP_THREAD_LIMIT" = 1 || exit 3
while read -r file; do wc -c < "$file"; printf '\036'; done < "$1" """)
    files = [tmp_path / f"with a\nnew line {n}.png" for n in range(3)]
    for n, file in enumerate(files):
        file.write_bytes(b"x" * (n + 7))
    assert [text.strip() for text in read_with_tesseract(files)] == ["7", "8", "9"]
    assert read_with_tesseract([]) == []


@pytest.mark.parametrize("script", ["echo one; echo 'Image cannot be read!' >&2; exit 1", "echo only one"])
def test_a_tesseract_that_fails_is_one_line(tmp_path, monkeypatch, script):
    fake_tesseract(tmp_path, monkeypatch, script)
    with pytest.raises(UserError, match="tesseract: failed"):
        read_with_tesseract([tmp_path / "a.png"] * 3)


def test_without_tesseract_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tesseract_path() is None
    with pytest.raises(UserError, match="not installed"):
        read_with_tesseract([tmp_path / "a.png"])


# ---------------------------------------------------------------- the command
TEXTS = {"a": ["hello world", "it's well-known"], "b": ["lazy dogs,"]}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """(model, LINES): a reader that makes no mistakes, and lines one of whose transcriptions has one."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "images").mkdir()
    rows = [(text, book) for book, texts in TEXTS.items() for text in texts]
    for number, (text, _) in enumerate(rows):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), draw(text))
    (folder / "lines.tsv").write_text("file\ttext\tbook\n" + "".join(
        f"{number}.png\t{text.replace('dogs', 'dogß')}\t{book}\n" for number, (text, book) in enumerate(rows)))
    return write_reader(folder / "reader.onnx"), folder


def test_the_command_evaluates_a_reader(command, tmp_path, capsys):
    model, folder = command
    main(["--model", str(model), "--data", str(folder), "--group", "book", "--json", "--report", str(tmp_path / "report")])
    said = capsys.readouterr()
    found = json.loads(said.out)
    total = sum(len(text) for texts in TEXTS.values() for text in texts)
    assert found["cer"] == 1 / total and found["coverage"] == 1 - 1 / total and found["unreadable"] == []
    assert found["groups"]["a"]["cer"] == 0 and found["groups"]["b"]["edits"] == 1
    assert found["confusions"] == [{"truth": "ß", "read": "s", "count": 1}]
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == found and "report.html" in said.err
    main(["--model", str(model), "--data", str(folder), "--where", "book=a"])
    assert "2 lines, 26 characters" in capsys.readouterr().out


def test_the_command_takes_tesseract_beside_it(command, tmp_path, monkeypatch, capsys):
    fake_tesseract(tmp_path, monkeypatch, r"while read -r file; do echo 'hello world'; printf '\036'; done < $1")
    main(["--model", str(command[0]), "--data", str(command[1]), "--tesseract", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["tesseract"]["exact"] == 1 / 3 and found["exact"] == 2 / 3 and found["tesseract"]["coverage"] is None


def test_boxes_that_are_broken_do_not_matter(command, tmp_path, capsys):
    """An evaluation uses none."""
    shutil.copytree(command[1], tmp_path / "lines")
    (tmp_path / "lines" / "coco.json").write_text("{")
    main(["--model", str(command[0]), "--data", str(tmp_path / "lines")])
    assert "3 lines" in capsys.readouterr().out


def test_what_cannot_be_is_told_before_anything_is_read(command, tmp_path, monkeypatch):
    model, folder = command
    monkeypatch.setattr("eval.reading.evaluate_lines", lambda *arguments, **options: pytest.fail("lines are read"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="not installed"):
        main(["--model", str(model), "--data", str(folder), "--tesseract"])
    with pytest.raises(UserError, match="--tesseract: is asked for horizontal lines alone"):
        main(["--model", str(model), "--data", str(folder), "--tesseract", "--vertical"])


def test_mistakes_in_the_command_are_one_line(command, tmp_path, monkeypatch, capsys):
    model, folder = command
    documents = write_model(tmp_path / "documents.onnx")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"task": "reading"}')
    (tmp_path / "run" / "run.json").write_text(json.dumps({"classes": ["", " ", "a"]}))
    cfg = read_config(tmp_path / "run")
    torch.save(get_reader(cfg, ["", " ", "a"]).state_dict(), tmp_path / "run" / "model.pt")
    monkeypatch.setenv("PATH", str(tmp_path))
    for said, arguments in {"--group year: lines.tsv has no such column; it has book": [model, "--group", "year"],
                            "no column 'year'": [model, "--where", "year=1"],
                            "--open-set is for a model of documents": [model, "--open-set"],
                            "--batch-size is for a model of documents": [model, "--batch-size", "2"],
                            "--group is for a reader of lines": [documents, "--group", "book"],
                            "--tesseract is for a reader of lines": [documents, "--tesseract"],
                            "run: --group takes an ONNX file; export the run": [tmp_path / "run", "--group", "book"],
                            "run: the evaluation of a reader takes an ONNX file; export": [tmp_path / "run"],
                            "none.onnx: no such file": [tmp_path / "none.onnx", "--group", "book"],
                            "tesseract is not installed": [model, "--tesseract"],
                            "nowhere.npz: no such file": [model, "--characters", tmp_path / "nowhere.npz"]}.items():
        assert exit_status(lambda: main(["--data", str(folder), "--model", *map(str, arguments)])) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.startswith("error: ") and err.count("\n") == 1, (said, err)
