"""Synthetic lines and renders: boxes hold the ink, lines depend on seed and number alone, fonts and charsets are checked."""
import itertools
import json
import logging
import os
import shutil

import cv2
import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

import ocr.fonts
import ocr.lines
import ocr.renders
from inference.errors import UserError
from inference.text import normalize
from ocr import ink
from ocr.__main__ import main
from ocr.folder import read_lines
from ocr.fonts import EM, Faces, find_faces
from ocr.lines import LineMaker, Style, write_lines
from ocr.renders import write_renders
from ocr.text import CHARSET, Texts, fold, read_charset, roman

FONTS = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
FEW = [os.path.join(FONTS, name + ".ttf") for name in ("DejaVuSerif", "DejaVuSans", "STIXGeneral", "STIXGeneralItalic")]


@pytest.fixture(scope="module")
def faces():
    return find_faces(FEW, CHARSET)


@pytest.fixture(scope="module")
def texts():
    return Texts()


# ---------------------------------------------------------------- text and charsets
def test_lines_of_text_are_in_the_charset_and_normalizing_keeps_their_length(texts):
    for number in range(800):
        text = texts.line(np.random.default_rng(number)).text
        assert text and text == " ".join(text.split())
        assert set(normalize(text)) <= {*CHARSET, " "} and len(normalize(text)) == len(text)


def test_each_character_comes_once_in_3000(texts):
    text = "".join(texts.line(np.random.default_rng(number)).text for number in range(3000)).replace(" ", "")
    folded = [fold(character) for character in text]
    rarest = min(CHARSET, key=folded.count)
    assert folded.count(rarest) * 3000 > len(folded), rarest


def test_running_text_comes_from_the_users_files(tmp_path):
    (tmp_path / "own.txt").write_text(" ".join(f"alpha{'xyz'[i % 3]} omega," for i in range(200)))
    own = Texts(files=[tmp_path / "own.txt"])
    text = " ".join(own.line(np.random.default_rng(number)).text for number in range(200))
    assert text.count("omega") > 300 and "the" not in text.split()


def test_lines_in_another_script_have_its_characters_alone():
    greek = Texts("αβγδεζηθικλμνξοπρστυφχψω")
    assert all(set(greek.line(np.random.default_rng(number)).text) <= {*greek.charset, " "} for number in range(50))


@pytest.mark.parametrize("content, expected", [
    ("97\ta\n98\tb\n9\t\t\n", "ab"), ("97\n98\n", "978"), ("65\tA\n8220\t“\n34\t\"\n", 'A"'), ("ba n\nana", "ban"),
    ("\ufeffά\t, ;", "ά,;"), ("8364\t\n", "€"), ("97\ta\r\n 98 \tb\r\n", "ab"), ("²\tx", "2x"), ("a\0\x07b", "ab"),
    ("7\t\n97\t", "a"), ("12\n7\t8\nab", "1278ab")])
def test_charset_files(tmp_path, content, expected):
    (tmp_path / "charset.txt").write_text(content, encoding="utf-8")
    assert read_charset(tmp_path / "charset.txt") == expected


def test_characters_that_become_several_are_told(tmp_path, caplog):
    (tmp_path / "charset.txt").write_text("a½…ﬁb", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert read_charset(tmp_path / "charset.txt") == "ab"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("content, told", [
    (b"", "no characters"), (b" \n\t\n", "no characters"), (b"\xff\xfe", "not UTF-8"), (b"97\tb\n", "write 98"),
    (b"9999999\t\n", "not the code point"), (b"55296\t\n", "not the code point"), (None, "cannot be read"),
    (b"codepoint\tcharacter\n97\ta\n98\tb\n", "'codepoint.tcharacter' is not code point, tab"),
    (b"97\ta\n98\tb\nc\n", "'c' is not code point, tab")])
def test_a_charset_file_that_is_none_is_refused(tmp_path, content, told):
    if content is not None:
        (tmp_path / "charset.txt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_charset(tmp_path / "charset.txt")


def test_a_text_that_is_too_short_or_missing_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("Not much.")
    with pytest.raises(UserError, match="too short"):
        Texts(files=[tmp_path / "short.txt"])
    with pytest.raises(UserError, match="cannot be read"):
        Texts(files=[tmp_path / "none.txt"])


def test_roman_numerals():
    assert [roman(n) for n in (1, 4, 9, 14, 40, 90, 119)] == ["I", "IV", "IX", "XIV", "XL", "XC", "CXIX"]


# ---------------------------------------------------------------- fonts
def square(side, left=0):
    pen = TTGlyphPen(None)
    for place, point in enumerate(((left, 0), (left, side), (left + side, side), (left + side, 0))):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    return pen.glyph()


def write_font(path, letters, missing=()):
    """A font whose letters are squares of several sizes; those of `missing` are drawn like .notdef."""
    names = [f"glyph{ord(c)}" for c in letters]
    sides = {name: 100 + 25 * place for place, name in enumerate(names)}
    glyphs = {".notdef": square(600), **{name: square(600 if c in missing else sides[name])
                                         for c, name in zip(letters, names)}}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord(c): name for c, name in zip(letters, names)})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (700, 0) for name in glyphs})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)


def test_a_glyph_that_equals_the_box_for_missing_ones_is_missing(tmp_path):
    write_font(tmp_path / "boxes.ttf", "abcdef", missing="be")
    [face] = find_faces([tmp_path], "abcdefg")
    assert [c for c in "abcdefg" if face.has(c)] == list("acdf")
    assert face.glyph("b") is None and face.glyph("c").mask.shape == (15, 15)  # 150 of 1,000 units, 96 pixels per em


def test_faces_that_are_not_for_text_are_excluded(tmp_path):
    write_font(tmp_path / "few.ttf", "ab")
    (tmp_path / "broken.otf").write_bytes(b"OTTO no font")
    (tmp_path / "folder.ttf").mkdir()
    os.symlink(tmp_path / "none.ttf", tmp_path / "lost.ttf")
    for name in ("DejaVuSansMono.ttf", "STIXSizOneSymReg.ttf", "cmsy10.ttf", "LastResortHE-Regular.ttf", "DejaVuSerif.ttf"):
        if os.path.exists(os.path.join(FONTS, name)):
            os.symlink(os.path.join(FONTS, name), tmp_path / name)
    assert [os.path.basename(face.path) for face in find_faces([tmp_path], CHARSET)] == ["DejaVuSerif.ttf"]


def test_faces_are_known_by_their_tables_and_letters(faces):
    assert [(os.path.basename(face.path), face.serif, face.italic) for face in faces] == [
        ("DejaVuSans.ttf", False, False), ("DejaVuSerif.ttf", True, False), ("STIXGeneral.ttf", True, False),
        ("STIXGeneralItalic.ttf", True, True)]


def test_upright_faces_with_serifs_are_drawn_most_often(faces):
    draw, r = Faces(faces), np.random.default_rng(0)
    drawn = [os.path.basename(draw.draw(r).path) for _ in range(2000)]
    serif, sans, italic = (drawn.count(name) for name in ("DejaVuSerif.ttf", "DejaVuSans.ttf", "STIXGeneralItalic.ttf"))
    assert serif > 3 * italic > 3 * sans / 2 > 0


@pytest.mark.parametrize("command", ["lines", "renders"])
def test_missing_fonts_are_one_line(tmp_path, command):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such folder of fonts"):
        main([command, "--out", str(tmp_path / "out"), "--fonts", str(tmp_path / "none")])
    with pytest.raises(UserError, match="no font among 0 files") as caught:
        main([command, "--out", str(tmp_path / "out"), "--fonts", str(tmp_path / "empty")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- setting
PLAIN = Style(space=40, sentence=40, uneven=0, tracking=0, before=0, inside=0, dash=0, curly=True, two_quotes=0,
              ligatures=True, figures="lining", slant=0, jitter=0, slope=0, bend=0)


def set_line(face, text, **changes):
    """(drawing, boxes) of a text in a plain style, without styles of single words."""
    style = PLAIN._replace(**changes)
    pieces = []
    for word in text.split(" "):
        spelled = ocr.lines._spell(word, face, style, style.ligatures)
        spelled[0] = spelled[0]._replace(begins=bool(pieces))
        pieces += spelled
    return ocr.lines._set(pieces, style, np.random.default_rng(0))


def test_ligatures_are_one_glyph_whose_box_is_divided(faces):
    _, boxes = set_line(faces[1], "office")
    _, apart = set_line(faces[1], "office", ligatures=False)
    assert len(boxes) == len(apart) == 6
    assert np.allclose(boxes[1:3, 2], boxes[2:4, 0])  # the letters of a ligature share its edges
    assert (apart[2:4, 0] != apart[1:3, 2]).all()
    widths = boxes[1:4, 2] - boxes[1:4, 0]
    advances = [faces[1].glyph(letter).advance for letter in "ffi"]
    assert np.allclose(widths / widths.sum(), advances / np.sum(advances))


def test_letters_are_kerned(faces):
    face = faces[1]
    _, boxes = set_line(face, "AV")
    room = (face.glyph("A").advance - face.glyph("A").left - face.glyph("A").mask.shape[1]) + face.glyph("V").left
    assert boxes[1, 0] - boxes[0, 2] < room - 2  # pixels at 96 per em


def test_words_of_spaced_letters_stay_apart(faces):
    _, boxes = set_line(faces[1], "nun nun", tracking=.3 * EM, space=.2 * EM)
    gaps = boxes[1:, 0] - boxes[:-1, 2]
    assert gaps[2] > 1.3 * max(gaps[[0, 1, 3, 4]])


def test_lines_are_set_without_pillows_opentype_layout(monkeypatch, texts):
    for module in (ocr.fonts, ocr.lines):
        monkeypatch.setattr(module, "SHAPING", False)
    for cached in (ocr.fonts._font, ocr.fonts._glyph, ocr.fonts._kerning):
        cached.cache_clear()
    face = find_faces(FEW[:1], CHARSET)[0]
    text = "office 1885 AV"
    drawing, boxes = set_line(face, text, figures="old")
    assert len(boxes) == len(text.replace(" ", "")) and drawing.any()
    for number in range(10):
        assert LineMaker([face], texts)(number).image.min() < 128
    for cached in (ocr.fonts._font, ocr.fonts._glyph, ocr.fonts._kerning):
        cached.cache_clear()


def test_small_capitals_stand_for_their_own_letters(faces):
    """A word that has more letters in capitals, ß as SS, is not set in them: its boxes would belong to others."""
    face = find_faces(FEW[:1], CHARSET + "ß")[0]
    maker, words = LineMaker([face], Texts(CHARSET + "ß")), set()
    for seed in range(200):
        pieces = maker._pieces("Maß und Ziel", face, PLAIN, np.random.default_rng(seed))
        for piece in pieces:
            assert piece.drawn.lower() == piece.letters.lower(), (piece.drawn, piece.letters)
        words.add("".join(piece.drawn for piece in pieces))
    assert {"MaßundZIEL", "MaßUNDZIEL"} & words  # so small capitals were among them


def test_old_style_figures_reach_below_the_line(faces):
    _, lining = set_line(faces[1], "x123")
    _, old = set_line(faces[1], "x123", figures="drawn")
    assert np.allclose(lining[1:, 3], lining[0, 3], atol=2) and old[3, 3] > old[0, 3] + 10
    assert np.allclose(old[1:3, 1], old[0, 1], atol=4)  # 1 and 2 are as high as the x


@pytest.mark.parametrize("changes", [
    {}, {"slant": .04}, {"slope": .004, "bend": 3.0}, {"jitter": 1.5, "figures": "drawn"}, {"two_quotes": 8.0}])
def test_boxes_of_the_setting_are_those_of_the_ink(faces, changes):
    """Letters are set so far apart that each has its own columns, so that its ink tells its box."""
    for face in faces:
        drawing, boxes = set_line(face, "Affable, gj?3570 “Qi”", ligatures=False, tracking=.4 * EM, **changes)
        for x0, y0, x1, y1 in boxes.astype(int):
            part = drawing[:, max(0, x0 - 5):x1 + 5] > 96
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0)) + max(0, x0 - 5)
            assert np.abs(np.subtract((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), (x0, y0, x1, y1))).max() <= 1


# ---------------------------------------------------------------- lines
def no_age(drawing, boxes, em, r):
    return np.uint8(255 - 255 * drawing)


@pytest.mark.parametrize("height", [0, 40])
def test_all_ink_is_in_the_boxes_and_each_box_is_full_of_it(faces, texts, monkeypatch, height):
    monkeypatch.setattr(ocr.lines, "age", no_age)
    monkeypatch.setattr(ocr.lines, "_surround", lambda canvas, boxes, vertical, r: (canvas, boxes))
    maker = LineMaker(faces, texts, height)
    for number in range(60):
        image, text, boxes, words = maker(number)
        dark = image < 128
        outside = dark.copy()
        for box in boxes:
            x0, y0, x1, y1 = np.rint(box).astype(int)
            outside[max(0, y0 - 1):y1 + 1, max(0, x0 - 1):x1 + 1] = False
        assert not outside.any()
        assert boxes.dtype == np.float32 and (boxes >= 0).all() and (boxes[:, 2:] <= image.shape[::-1]).all()
        assert len(boxes) == len(text.replace(" ", "")) and len(words) == len(text.split())
        ends = np.cumsum([len(word) for word in text.split()])
        for word, letters in zip(words, np.split(boxes, ends[:-1])):
            assert np.allclose(word, [*letters[:, :2].min(0), *letters[:, 2:].max(0)])


def test_each_character_keeps_ink_when_the_line_is_printed_and_scanned(faces, texts):
    maker = LineMaker(faces, texts)
    kept = []
    for number in range(120):
        image, text, boxes, _ = maker(number)
        assert image.dtype == np.uint8 and len(image) == 48 and len(boxes) == len(normalize(text).replace(" ", ""))
        light = np.median(image)
        for x0, y0, x1, y1 in np.rint(boxes).astype(int):
            kept.append(x1 <= x0 or y1 <= y0 or image[y0:y1, x0:x1].min() < light - 15)
    assert np.mean(kept) > .99  # some of the faint gray ones are near the paper's own grain


def test_print_with_more_ink_is_darker():
    drawing = cv2.putText(np.zeros((60, 200), np.uint8), "ink", (20, 45), cv2.FONT_HERSHEY_COMPLEX, 1.5, 1, 3)
    blurred = cv2.GaussianBlur(drawing.astype(np.float32), (0, 0), 1)
    for share in (.7, 1, 1.4):
        level = ink.level_for(blurred, share, np.random.default_rng(0))
        assert abs((blurred > level).sum() / drawing.sum() - share) < .1


def test_noise_has_mean_zero_and_about_unit_deviation():
    for scale in (1, 2, 8, 60):
        fields = [ink.noise(np.random.default_rng(seed), (80, 900), scale) for seed in range(20)]
        assert fields[0].shape == (80, 900)
        assert abs(np.mean(fields)) < .2 and .6 < np.mean([field.std() for field in fields]) < 1.3


def test_a_line_is_a_function_of_seed_and_number(faces, texts):
    def lines(maker, numbers):
        return {number: (sample.text, sample.image.tobytes(), sample.boxes.tobytes())
                for number in numbers for sample in [maker(number)]}
    first = lines(LineMaker(faces, texts, seed=1), range(6))
    assert lines(LineMaker(faces, Texts(), seed=1), (5, 3, 4, 0, 2, 1)) == first
    assert lines(LineMaker(faces, texts, seed=2), range(6)).values() != first.values()
    assert len(set(first.values())) == 6


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "lines"
    assert write_lines(folder, 230, seed=5, fonts=FEW, height=32, workers=1) == 230
    return folder


def test_a_written_folder_is_a_folder_of_lines(written):
    lines = read_lines(written)
    assert len(lines) == 230 and all(line.boxes is not None for line in lines)
    coco = json.loads((written / "coco.json").read_text())
    assert [image["text"] for image in coco["images"]] == [line.text for line in lines]
    assert {image["height"] for image in coco["images"]} == {32}
    words = sum(annotation["category_id"] == 1 for annotation in coco["annotations"])
    assert words == sum(len(line.text.split()) for line in lines)
    assert sorted(path.name for path in written.iterdir()) == ["coco.json", "images", "lines.tsv", "synth.json"]


def test_any_number_of_workers_writes_the_same(written, tmp_path):
    write_lines(tmp_path / "lines", 230, seed=5, fonts=FEW, height=32, workers=2)
    assert content(tmp_path / "lines") == content(written)


def test_a_stopped_command_goes_on_where_it_was(written, tmp_path, monkeypatch):
    whole, began = ocr.lines._write_chunk, []

    def stop_after_one(maker, out, start, stop):
        began.append(start)
        if len(began) == 2:
            raise KeyboardInterrupt
        return whole(maker, out, start, stop)

    monkeypatch.setattr(ocr.lines, "_write_chunk", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        write_lines(tmp_path / "lines", 230, seed=5, fonts=FEW, height=32, workers=1)
    with pytest.raises(UserError):
        read_lines(tmp_path / "lines")
    write_lines(tmp_path / "lines", 230, seed=5, fonts=FEW, height=32, workers=1)
    assert began == [0, 100, 100, 200] and content(tmp_path / "lines") == content(written)


def test_a_folder_is_not_overwritten(written, tmp_path, monkeypatch):
    before = content(written)
    monkeypatch.setattr(ocr.lines, "find_faces", lambda *_: pytest.fail("the folder is complete"))
    assert write_lines(written, 230, seed=5, fonts=FEW, height=32, workers=1) == 230
    with pytest.raises(UserError, match="other arguments"):
        write_lines(written, 230, seed=6, fonts=FEW, height=32, workers=1)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="another origin"):
        write_lines(tmp_path, 10, fonts=FEW)
    assert content(written) == before and len(content(tmp_path)) == 1


def test_numbers_out_of_range_are_refused(tmp_path):
    for wrong in ({"count": 0}, {"count": 5, "workers": 0}, {"count": 5, "height": 5}, {"count": 5, "seed": -1}):
        with pytest.raises(UserError, match="--count"):
            write_lines(tmp_path / "lines", fonts=FEW, **wrong)
    with pytest.raises(UserError, match="--height -5"):
        main(["lines", "--sheet", str(tmp_path / "sheet.png"), "--height", "-5"])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="another origin"):
        write_lines(tmp_path / "file", 5, fonts=FEW[:1])
    for write in (write_lines, write_renders):
        with pytest.raises(UserError, match="cannot be written") as caught:
            write(tmp_path / "file" / "below", **({"count": 5} if write is write_lines else {}), fonts=FEW[:1])
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_fonts_are_known_by_their_files_and_not_by_the_place_of_them(tmp_path, monkeypatch):
    shutil.copy(FEW[0], tmp_path / "one.ttf")
    write_lines(tmp_path / "lines", 3, fonts=[tmp_path], workers=1)
    before = content(tmp_path / "lines")
    assert str(tmp_path).encode() not in before["synth.json"]
    monkeypatch.chdir(tmp_path)
    assert write_lines("lines", 3, fonts=["one.ttf"], workers=1) == 3 and content(tmp_path / "lines") == before
    shutil.copy(FEW[1], tmp_path / "two.ttf")
    with pytest.raises(UserError, match="other arguments, fonts"):
        write_lines("lines", 3, fonts=["."], workers=1)


def test_vertical_lines_run_downward(tmp_path, faces):
    write_lines(tmp_path / "lines", 30, fonts=FEW, height=32, vertical=True, workers=1)
    for line in read_lines(tmp_path / "lines"):
        image = cv2.imread(str(line.path), cv2.IMREAD_GRAYSCALE)
        assert image.shape[1] == 32 and line.boxes is not None
        assert (np.diff(line.boxes[:, 1]) > 0).all()  # in the order of the text, as sorted along the line
    assert image.shape[0] > 32 or len(line.text) < 3


def test_a_character_that_no_drawn_face_has_is_dropped(tmp_path):
    write_font(tmp_path / "few.ttf", "abcdef")
    maker = LineMaker(find_faces([tmp_path], "abcdefgh"), Texts("abcdefgh"))
    text = "".join(maker(number).text for number in range(20))
    assert set(text) == {*"abcdef", " "}


# ---------------------------------------------------------------- renders
def test_renders_have_a_folder_per_character_and_an_image_per_font(tmp_path, capsys):
    write_font(tmp_path / "boxes.ttf", "abcdef", missing="be")
    (tmp_path / "charset.txt").write_text("abcdeé")
    images, characters = write_renders(tmp_path / "out", [tmp_path / "boxes.ttf", FEW[0]], tmp_path / "charset.txt", size=48)
    found = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "out").iterdir()}
    both, one = ["DejaVuSerif.png", "boxes.png"], ["DejaVuSerif.png"]
    assert found == {str(ord(c)): one if c in "beé" else both for c in "abcdeé"} and (images, characters) == (9, 6)
    assert all(cv2.imread(str(path), 0).shape == (48, 48) for path in (tmp_path / "out").rglob("*.png"))
    with pytest.raises(UserError, match="not overwritten"):
        write_renders(tmp_path / "out", FEW)
    write_renders(tmp_path / "again", [tmp_path / "boxes.ttf"], tmp_path / "charset.txt")
    assert "in no font: b e é" in capsys.readouterr().err


def test_renders_that_were_stopped_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(ocr.renders, "render", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_renders(tmp_path / "out", FEW[:1])
    assert not list(tmp_path.iterdir())


def test_a_face_may_have_the_last_characters_of_a_long_charset_alone(tmp_path):
    letters = [chr(0x4e00 + at) for at in range(500)]
    write_font(tmp_path / "late.ttf", letters[230:])
    [face] = find_faces([tmp_path], "".join(letters))
    high, low = ocr.renders.line_extent(face, "".join(letters))
    assert high < 0 == low


def test_line_high_renders_tell_the_size_and_the_place_of_a_glyph(tmp_path):
    (tmp_path / "charset.txt").write_text("cC,'")
    for kind in ("tight", "line"):
        write_renders(tmp_path / kind, FEW[:1], tmp_path / "charset.txt", kind)

    def rows(kind, character):
        image = cv2.imread(str(tmp_path / kind / str(ord(character)) / "DejaVuSerif.png"), 0)
        inked = np.flatnonzero((image < 128).any(1))
        return inked[0], inked[-1]

    tops = {(kind, c): rows(kind, c)[0] for kind, c in itertools.product(("tight", "line"), "cC")}
    assert abs(tops["tight", "c"] - tops["tight", "C"]) < 4 and tops["line", "c"] > tops["line", "C"] + 5
    assert rows("line", "'")[1] < rows("line", ",")[0]
