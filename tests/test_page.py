"""The lines of a page: on pages that are drawn here, so that it is known where their lines are."""
import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.page import find_lines, read_page
from inference.read import read_images
from inference.reader import LineReader
from tests.helpers.reading import GAP, WIDE, draw, write_reader

WORDS = "the quick brown fox jumps over a lazy dog while many zebras graze by quiet river banks".split()
FONT, LEADING = cv2.FONT_HERSHEY_COMPLEX, 46


def write_line(page, text, x, y, size=0.9):
    """Write `text` on its base line. Returns the box of its ink."""
    before = page.copy()
    cv2.putText(page, text, (x, y), FONT, size, 20, 2, cv2.LINE_AA)
    rows, columns = np.nonzero(page != before)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def some_words(rng, count):
    return " ".join(rng.choice(WORDS, count))


def turned(page, degrees):
    """(the page turned counterclockwise, the matrix of its points)."""
    matrix = cv2.getRotationMatrix2D((page.shape[1] / 2, page.shape[0] / 2), degrees, 1)
    return cv2.warpAffine(page, matrix, page.shape[::-1], flags=cv2.INTER_AREA, borderValue=235), matrix


def corners(box):
    x0, y0, x1, y1 = box
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def assert_found(lines, boxes, matrix=np.eye(2, 3), slack=5):
    """The lines are those whose ink has these boxes, in this order; a line's image may be higher than its ink."""
    assert len(lines) == len(boxes)
    for line, box in zip(lines, boxes):
        height, width = line.image.shape
        place = corners((0, 0, width, height)) @ line.to_page[:, :2].T + line.to_page[:, 2]
        true = corners(box) @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(place[:, 0] - true[:, 0]).max() <= slack + abs(matrix[0, 1]) * 12
        assert (place[:2, 1] <= true[:2, 1] + slack).all() and (place[2:, 1] >= true[2:, 1] - slack).all()  # all of it
        assert height <= box[3] - box[1] + 20                                                           # and no other line


@pytest.mark.parametrize("degrees", [0, 2, -2, 4])
def test_one_column(degrees):
    rng = np.random.default_rng(0)
    page = np.full((1100, 1000), 235, np.uint8)
    boxes = [write_line(page, some_words(rng, 3 if row == 5 else 7), 90, 200 + LEADING * row) for row in range(16)]
    page, matrix = turned(page, degrees)
    assert_found(find_lines(page), boxes, matrix)


def two_columns(rng, rows=12):
    """A page of two columns whose rows are at other heights, below a heading over both; and the boxes."""
    page = np.full((1000, 1500), 235, np.uint8)
    boxes = [write_line(page, "a heading over both columns", 420, 110, 1.5)]
    for x, y in ((80, 230), (800, 247)):
        boxes += [write_line(page, some_words(rng, 5), x, y + LEADING * row) for row in range(rows)]
    return page, boxes


@pytest.mark.parametrize("degrees", [0, 2])
def test_two_columns_are_read_one_after_the_other(degrees):
    page, boxes = two_columns(np.random.default_rng(1))
    page, matrix = turned(page, degrees)
    assert_found(find_lines(page), boxes, matrix)


def test_a_picture_is_no_text():
    rng = np.random.default_rng(2)
    page, boxes = two_columns(rng, rows=8)
    picture = cv2.resize(rng.integers(120, 180, (30, 60), np.uint8), (600, 300), interpolation=cv2.INTER_CUBIC)
    page[640:940, 80:680] = picture
    assert_found(find_lines(page), boxes)
    page[640:940, 80:680] = 20  # and no black block
    assert_found(find_lines(page), boxes)


def test_rules_frames_and_dirt():
    rng = np.random.default_rng(3)
    page = np.full((900, 1000), 235, np.uint8)
    boxes = [write_line(page, some_words(rng, 6), 90, 200 + LEADING * row) for row in range(10)]
    cv2.rectangle(page, (30, 40), (970, 860), 30, 3)
    page[120:124, 90:900] = 30
    page[rng.integers(0, 900, 200), rng.integers(0, 1000, 200)] = 30
    assert_found(find_lines(page), boxes)


def test_a_raised_mark_belongs_to_its_line():
    rng = np.random.default_rng(7)
    page, boxes = np.full((600, 1000), 235, np.uint8), []
    for row in range(6):
        x0, y0, x1, y1 = write_line(page, some_words(rng, 5) + "  on.", 90, 120 + 60 * row)
        if row == 2:
            y0 = min(y0, write_line(page, "1", x1 - 78, 120 + 60 * row - 12, 0.6)[1])  # above the space
        boxes.append((x0, y0, x1, y1))
    assert_found(find_lines(page), boxes)


def test_light_text_on_a_dark_page():
    page, boxes = two_columns(np.random.default_rng(4))
    lines = find_lines(255 - page)
    assert_found(lines, boxes)
    assert all(np.median(line.image) > 200 for line in lines)  # as a reader takes them


def test_uneven_light():
    page, boxes = two_columns(np.random.default_rng(5))
    shade = np.linspace(0.45, 1, page.shape[1])
    assert_found(find_lines((page * shade).astype(np.uint8)), boxes)


def test_the_ink_of_other_lines_is_painted_over():
    """The tails of one line reach between the tall letters of the next one."""
    texts = ["gyp    gyp    gyp", "    Hul    Hul    Hul"] * 3
    page, alone = np.full((2, 400, 900), 235, np.uint8)
    for row, text in enumerate(texts):
        write_line(page, text, 90, 80 + 30 * row, 1.1)
    write_line(alone, texts[3], 90, 80 + 30 * 3, 1.1)
    lines = find_lines(page)
    assert len(lines) == 6
    x0, y0, x1, y1 = map(int, lines[3].box)
    alone = alone[y0:y1, x0:x1].astype(int)
    wrong, before = (np.abs(image - alone).mean() for image in (lines[3].image, page[y0:y1, x0:x1]))
    assert before > 0.5 and wrong < before / 4


@pytest.mark.parametrize("shape", [(8, 8), (300, 400), (40, 3000), (3000, 40)])
def test_a_page_without_text(shape):
    assert find_lines(np.full(shape, 235, np.uint8)) == find_lines(np.zeros(shape, np.uint8)) == []


def test_any_pixels_are_a_page():
    rng = np.random.default_rng(6)
    for shape in ((8, 8), (60, 500), (700, 500)):
        for line in find_lines(rng.integers(0, 256, shape, np.uint8)):
            assert min(line.image.shape) >= 1 and line.image.dtype == np.uint8


def test_boxes_end_where_the_page_ends():
    """Of a skewed line that begins at the border, the box around it would begin beyond."""
    rng, page = np.random.default_rng(8), np.full((700, 1000), 235, np.uint8)
    for row in range(10):
        write_line(page, some_words(rng, 9), 2, 60 + LEADING * row)
    lines = find_lines(turned(page, 4)[0])
    assert len(lines) >= 8
    for line in lines:
        height, width = line.image.shape
        for x0, y0, x1, y1 in (line.box, line.on_page((0, 0, 20, height)), line.on_page((width - 20, 0, width, height))):
            assert 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 700


# ---------------------------------------------------------------- with a reader
TEXTS = ["first line of it", "and a second, too", "third one."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("model") / "reader.onnx")


def drawn_page():
    page = np.full((400, 700), 255, np.uint8)
    for row, text in enumerate(TEXTS):
        line = draw(text, light=140)
        page[60 + 80 * row:100 + 80 * row, 40:40 + line.shape[1]] = line
    return page


@pytest.mark.parametrize("vertical", [False, True])
def test_a_page_is_read_and_its_characters_are_where_they_are(model, vertical):
    page = drawn_page()
    if vertical:  # lines from top to bottom, the first one on the right
        page = np.ascontiguousarray(np.rot90(page, -1))
    read = read_page(LineReader(model, vertical=vertical), page)
    assert [reading.text for _, reading in read] == TEXTS
    for row, (text, (line, reading)) in enumerate(zip(TEXTS, read)):
        places = [place for place, one in enumerate(text) if one != " "]
        for place, one in zip(places, reading.characters, strict=True):
            x, y = 40 + 8 + place * (WIDE + GAP) + WIDE / 2, 80 + 80 * row
            if vertical:
                x, y = page.shape[1] - y, x
            x0, y0, x1, y1 = one.box
            assert abs((x0 + x1) / 2 - x) <= 4 and abs((y0 + y1) / 2 - y) <= 4
            assert line.box[0] - 4 <= x0 and x1 <= line.box[2] + 4


def test_pages_on_the_command_line(model, tmp_path):
    good, blank, bad = (str(tmp_path / name) for name in ("good.png", "blank.png", "bad.png"))
    cv2.imwrite(good, drawn_page())
    cv2.imwrite(blank, np.full((300, 300), 255, np.uint8))
    open(bad, "wb").close()
    first, second, third = read_images(LineReader(model), [good, bad, blank], pages=True)
    assert first["text"] == "\n".join(TEXTS) and [line["text"] for line in first["lines"]] == TEXTS
    assert sum(len(line["characters"]) for line in first["lines"]) == len(first["characters"])
    assert 0.5 < first["confidence"] <= 1 and first["size"] == (700, 400)
    assert second["error"] == "empty file" and second["lines"] == [] and second["text"] == ""
    assert third["error"] is None and third["lines"] == [] and third["text"] == "" and third["confidence"] == 0


def test_a_model_that_breaks_is_told(model, tmp_path):
    reader = LineReader(model)

    def run(batch):
        raise UserError("reader.onnx: the model does not run")

    reader.model.run = run
    with pytest.raises(UserError, match="does not run"):
        read_page(reader, drawn_page())
