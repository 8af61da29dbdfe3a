"""From a photo to the document in it: known cameras and known corners, and everything that corners can have wrong."""
import tracemalloc

import cv2
import numpy as np
import pytest

from inference.errors import UserError
from inference.finder import Finder, rectify
from inference.image import ImageError, load_reduced, resize
from inference.model import load_model
from inference.rectify import FOCAL, aspect_of, problem_of
from inference.views import COVERED, Views, read_corners
from tests.helpers.models import METADATA, SIZE, blocks, save, write_model
from tests.helpers.photos import FINDER, finder_of, photo, write_finder

TILTED = [(150, 60), (520, 110), (470, 400), (90, 330)]
FRAME = [(0, 0), (640, 0), (640, 480), (0, 480)]
MIDDLE = [(8, 8), (24, 8), (24, 24), (8, 24)]  # of the input of a finder


def smooth(seed, width, height):
    """uint8 BGR `[height, width, 3]`: colors that change slowly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def seen_by_a_camera(rng, width, height, focal):
    """(aspect, quad): a rectangle anywhere before a camera with a focal length in longer sides of its image."""
    while True:
        aspect = np.exp(rng.uniform(-0.8, 0.8))
        corners = np.array([(-aspect, -1, 0), (aspect, -1, 0), (aspect, 1, 0), (-aspect, 1, 0)]) / np.sqrt(aspect) / 2
        placed = corners @ cv2.Rodrigues(rng.uniform(-0.7, 0.7, 3))[0].T
        placed += [*rng.uniform(-0.2, 0.2, 2), rng.uniform(1.2, 3) * max(1, focal)]
        quad = placed[:, :2] / placed[:, 2:] * focal * max(width, height) + [width / 2, height / 2]
        if placed[:, 2].min() > 0.2 and problem_of(quad, width, height) is None:
            return aspect, quad


def ratio_of_sides(quad):
    """The mean lengths of opposite sides: across / down."""
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, 0) - quad, axis=1)
    return (top + bottom) / (left + right)


# ---------------------------------------------------------------- rectifying
@pytest.mark.parametrize("quad", [TILTED, [(520, 110), (470, 400), (90, 330), (150, 60)],
                                  [(-40, 60), (400, -30), (500, 520), (-60, 450)]])
def test_rectifying_is_the_way_back(quad):
    """Also where the first corner is another, and where corners lie outside of the image."""
    document = smooth(0, 400, 300)
    found = rectify(photo(document, quad), quad, (100, 75))
    difference = np.abs(found.astype(int) - resize(document, 100, 75)).max(2)
    middle = np.mgrid[:75, :100][::-1].transpose(1, 2, 0).reshape(1, -1, 2).astype(np.float32) + np.float32(0.5)
    matrix = cv2.getPerspectiveTransform(np.float32([(0, 0), (100, 0), (100, 75), (0, 75)]), np.float32(quad))
    at = cv2.perspectiveTransform(middle, matrix).reshape(75, 100, 2)
    shown = ((at > 3) & (at < [637, 477])).all(2)  # what the image shows
    shown[[0, -1]] = shown[:, [0, -1]] = False  # at the edges the background is mixed in
    # Levels: the colors change by up to 256 in a quarter of the document, so a tenth of a pixel of the result is one level.
    assert shown.mean() > 0.7 and difference[shown].mean() < 1 and difference[shown].max() < 8


def test_the_whole_image_at_its_size_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert np.array_equal(rectify(image, FRAME, (640, 480)), image)
    assert np.array_equal(rectify(image, [FRAME[1], FRAME[2], FRAME[3], FRAME[0]], (480, 640)), np.rot90(image))


@pytest.mark.parametrize("width, height", [(40, 30), (160, 120), (20, 60), (640, 480)])
def test_noise_is_averaged_as_resizing_does(width, height):
    """Along both axes, whatever the two are reduced by; 2 levels: of each of three steps the rounding."""
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    exact = resize(image[70:550, 60:700], width, height)
    found = rectify(image, np.array(FRAME) + [60, 70], (width, height))
    assert np.abs(found.astype(int) - exact).max() <= 2


@pytest.mark.parametrize("reduced", [9.9, 4.5, 2.9, 2.6, 2.4, 2.1, 1.4])
def test_of_a_turned_document_noise_is_averaged_too(reduced):
    """The mean of n samples of noise has 1 / sqrt(n) of its deviation: n is 9.9 x 9.9; the warp may lose half of that."""
    image = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    size = round(350 * np.sqrt(2) / reduced)  # sides of 495 pixels
    found = rectify(image, [(400, 50), (750, 400), (400, 750), (50, 400)], (size, size))
    assert found.std() < image.std() / np.sqrt(reduced ** 2 / 2)


def test_text_comes_out_as_with_many_more_samples():
    """A page at 2.4 pixels for one of the result, against a warp with 16 x 16 samples for each (ours has 3 x 3)."""
    page = np.full((400, 400, 3), 255, np.uint8)
    for row in range(12):
        cv2.putText(page, "The quick brown fox jumps", (8, 32 * row + 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (40, 40, 40), 2)
    quad, size = np.array([(40, 30), (340, 45), (330, 345), (30, 330)], float), 125
    image = photo(page, quad)
    frame = np.float32([(0, 0), (16 * size, 0), (16 * size, 16 * size), (0, 16 * size)])
    matrix = cv2.getPerspectiveTransform(np.float32(quad) - np.float32(0.5), frame - np.float32(0.5))
    exact = resize(cv2.warpPerspective(image, matrix, (16 * size, 16 * size)), size)
    apart = np.abs(rectify(image, quad, (size, size)).astype(int) - exact)
    assert apart.mean() < 0.02 * exact.std()  # with 2 x 2 samples 3 %, with one 13 %


@pytest.mark.parametrize("size", [(1000, 1000), (600, 30)])
def test_a_small_document_is_enlarged(size):
    document = smooth(1, 100, 100)
    found = rectify(document, [(0, 0), (100, 0), (100, 100), (0, 100)], size)
    assert found.shape == (size[1], size[0], 3)
    assert np.abs(found.astype(int) - resize(document, *size)).mean() < 1


def test_memory_does_not_grow_with_the_corners():
    """A quad almost as far outside as is allowed, of a large image: the image, reduced, and 64 times the result."""
    image = np.zeros((3000, 4000, 3), np.uint8)
    quad = [(-1900, -1400), (5900, -1500), (5950, 4450), (-1950, 4400)]
    tracemalloc.start()
    found = rectify(image, quad, (64, 64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.shape == (64, 64, 3) and peak < 64 * 64 * 64 * 3


@pytest.mark.parametrize("change", [
    lambda image: image[:, :, 1], lambda image: image[:, :, 1:2].astype(np.uint16) * 257,
    lambda image: np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])])
def test_any_array_of_pixels(tmp_path, change):
    """Gray, 16 bits, transparency: rectified and found as the same image in color is."""
    gray = cv2.cvtColor(cv2.cvtColor(photo(blocks(1, 256), TILTED), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    finder = finder_of(tmp_path / "finder.onnx", TILTED)
    assert np.array_equal(rectify(change(gray), TILTED, (50, 40)), rectify(gray, TILTED, (50, 40)))
    assert np.array_equal(finder.find(change(gray)).quad, finder.find(gray).quad)
    for use in (finder.find, lambda image: rectify(image, TILTED, 40)):
        with pytest.raises(ImageError, match="no image"):
            use(None)


# ---------------------------------------------------------------- the aspect
def test_the_aspect_is_exact_for_any_camera():
    rng = np.random.default_rng(0)
    for _ in range(200):
        aspect, quad = seen_by_a_camera(rng, 1600, 1200, rng.uniform(FOCAL[0] + 0.01, FOCAL[1] - 0.01))
        assert aspect_of(quad, 1600, 1200) == pytest.approx(aspect, rel=1e-6)


def test_the_aspect_of_a_parallelogram_is_that_of_its_sides():
    for quad in ([(100, 100), (500, 100), (500, 300), (100, 300)], [(100, 200), (300, 100), (350, 200), (150, 300)]):
        quad = np.array(quad, float)
        assert aspect_of(quad, 640, 480) == pytest.approx(ratio_of_sides(quad))


@pytest.mark.parametrize("focal, better", [((0.7, 1.5), 3), ((3, 8), 1)])
def test_the_aspect_from_corners_that_are_not_exact(focal, better):
    """Off by .3 % of the diagonal: better than the ratio of the sides, also for a camera that is not believed."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(500):
        aspect, quad = seen_by_a_camera(rng, 1600, 1200, rng.uniform(*focal))
        quad = quad + rng.normal(0, 0.003 * np.linalg.norm(quad[2] - quad[0]), (4, 2))
        errors.append([abs(np.log(found / aspect)) for found in (aspect_of(quad, 1600, 1200), ratio_of_sides(quad))])
    ours, of_sides = np.mean(errors, 0)
    assert ours < of_sides / better


def test_the_longer_side_is_given_or_both():
    for quad, (width, height) in (((100, 100), (300, 100), (300, 200), (100, 200)), (40, 20)), \
            (((100, 100), (200, 100), (200, 300), (100, 300)), (20, 40)):
        assert rectify(np.zeros((480, 640, 3), np.uint8), quad, 40).shape == (height, width, 3)


# ---------------------------------------------------------------- corners that cannot be used
@pytest.mark.parametrize("quad, reason", [
    (TILTED[::-1], "counterclockwise"),
    ([TILTED[0], TILTED[2], TILTED[1], TILTED[3]], "no convex"),
    ([(100, 100), (500, 100), (200, 200), (100, 400)], "no convex"),                  # bent inward
    ([(100, 100), (300, 100), (500, 100), (300, 400)], "no convex"),                  # a triangle
    ([(100, 100), (500, 100), (500, 100), (100, 400)], "no convex"),                  # a corner twice
    ([(100, 100), (500, 101), (500, 104), (100, 103)], "shorter than 8"),
    ([(100, 100), (104, 100), (104, 104), (100, 104)], "shorter than 8"),
    ([(-700, 100), (500, 100), (500, 400), (-700, 400)], "too far outside of the image, which has 640x480"),
    ([(1e12, 0), (2e12, 0), (2e12, 1e12), (1e12, 1e12)], "too far outside"),
    ([(700, 100), (1100, 100), (1100, 400), (700, 400)], "less than a quarter"),
    ([(600, 100), (1000, 100), (1000, 400), (600, 400)], "less than a quarter"),
    (TILTED[:3], "expected four"), ([*TILTED, (0, 0)], "expected four"), (np.ravel(TILTED), "expected four"),
    ([*TILTED[:3], (0, float("nan"))], "expected four"), ([*TILTED[:3], (0, float("inf"))], "expected four"),
    ([*TILTED[:3], (0,)], "expected four"), ("corners", "expected four"), ([], "expected four"),
    ([*TILTED[:3], ("left", "top")], "expected four"), ([*TILTED[:3], (None, 3)], "expected four"),
    ([*TILTED[:3], (0, 10 ** 400)], "expected four"),
])
def test_corners_that_cannot_be_used(quad, reason):
    with pytest.raises(ImageError, match="^corners: ") as caught:
        rectify(np.zeros((480, 640, 3), np.uint8), quad, 64)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- the network
@pytest.mark.parametrize("width, height", [(640, 480), (480, 640), (32, 32)])
def test_what_is_found_is_in_pixels_of_the_image(tmp_path, width, height):
    expected = np.array([(0.2, 0.1), (0.9, 0.2), (0.8, 0.9), (0.1, 0.8)]) * [width, height]
    finder = finder_of(tmp_path / "finder.onnx", expected, width, height, 0.8)
    found = finder.find(np.full((height, width, 3), 200, np.uint8))
    assert np.abs(found.quad - expected).max() < 1e-3 and found.score == pytest.approx(0.8, abs=1e-6)
    assert finder.find(np.zeros((height, width, 3), np.uint8)) is None
    assert finder.session.get_inputs()[0].shape[0] == 1  # it is known when the session is made


@pytest.mark.parametrize("quad, score", [
    (MIDDLE, 0.3),                                                    # not sure
    ([(8, 8), (24, 24), (24, 8), (8, 24)], 0.9),                      # folded
    ([(8, 8), (8.2, 8), (8.2, 24), (8, 24)], 0.9),                    # 4 pixels of the image wide
    ([(60, 8), (70, 8), (70, 24), (60, 24)], 0.9),                    # not in the image
    ([(float("nan"), 8), (24, 8), (24, 24), (8, 24)], 0.9),
    ([(-1e30, -1e30), (1e30, -1e30), (1e30, 1e30), (-1e30, 1e30)], 0.9),
])
def test_what_cannot_be_used_is_not_found(tmp_path, quad, score):
    """In an image of 640 x 480, and in the smallest one there is."""
    finder = Finder(write_finder(tmp_path / "finder.onnx", quad, score))
    assert finder.find(np.full((480, 640, 3), 200, np.uint8)) is None
    assert finder.find(np.full((8, 8, 3), 200, np.uint8)) is None


@pytest.mark.parametrize("options, reason", [
    ({"metadata": None}, "not a model of this project"),
    ({"metadata": FINDER | {"format": 99}}, "format is 99"),
    ({"metadata": FINDER | {"task": "localizer"}}, "task=localizer, which finds no documents; give one of task=finder"),
    ({"metadata": FINDER | {"fit": "crop"}}, "not a model of this project"),
    ({"outputs": ("heat", "corners", "corner_heat", "more")}, "not a model of this project"),
    ({"depth": 6}, "the finder does not run"),
])
def test_a_finder_that_is_not_ours(tmp_path, options, reason):
    path = write_finder(tmp_path / "other.onnx", MIDDLE, **options)
    with pytest.raises(UserError) as caught:
        Finder(path)
    assert reason in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_finder_is_no_model_and_a_model_no_finder(tmp_path):
    with pytest.raises(UserError, match="task=finder, which has no embeddings to compare; give one of task=registration"):
        load_model(write_finder(tmp_path / "finder.onnx", MIDDLE))
    with pytest.raises(UserError, match="task=registration, which finds no documents"):
        Finder(write_model(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="no such model"):
        Finder(tmp_path / "missing.onnx")


def test_nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.finder.DEFAULT_FINDER", tmp_path / "nowhere.onnx")
    with pytest.raises(UserError, match="nowhere.onnx: the shipped finder is missing; give another one with --finder"):
        Finder()


# ---------------------------------------------------------------- what of an image is compared
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_model(tmp_path_factory.mktemp("model") / "model.onnx"))


def test_the_views_of_each_choice(model, tmp_path):
    finder, image = finder_of(tmp_path / "finder.onnx", TILTED), photo(blocks(1, 256), TILTED)
    whole, document = model.prepare(image), rectify(image, TILTED, (SIZE, SIZE))[:, :, ::-1]
    dark = image // 100  # nothing is found there
    for find, expected in {False: [whole], True: [document], "auto": [whole, document]}.items():
        squares, seen = Views(model, find, finder)(image)
        for one, other in zip(squares, expected, strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1
        assert len(seen.views) == len(expected) and (seen.quad is None) == (find is False)
        squares, seen = Views(model, find, finder)(dark)
        assert np.array_equal(squares, [model.prepare(dark)]) and seen == (None, None, ("image",))
    assert Views(model, "auto", finder)(image)[1].views == ("image", "document")
    for wrong in ("sometimes", 1, None):
        with pytest.raises(UserError, match=f"find {wrong}: unknown"):
            Views(model, wrong, finder)


@pytest.mark.parametrize("share, views", [(COVERED + 0.02, ("image",)), (COVERED - 0.02, ("image", "document")),
                                          (1.2, ("image",))])
def test_a_document_that_is_nearly_all_of_the_image(model, tmp_path, share, views):
    """share: of the image's area. Larger than the image: its corners are outside of it."""
    quad = (np.array(FRAME) - [320, 240]) * np.sqrt(share) + [320, 240]
    image, finder = np.full((480, 640, 3), 200, np.uint8), finder_of(tmp_path / "finder.onnx", quad)
    assert Views(model, "auto", finder)(image)[1].views == views
    assert Views(model, True, finder)(image)[1].views == ("document",)


def test_a_large_jpeg_is_decoded_smaller_and_its_corners_are_its_own(model, tmp_path):
    quad = np.array(TILTED) * 3
    large = photo(blocks(1, 256), quad, 1920, 1440)
    path = save(tmp_path / "large.jpg", large)
    views = Views(model, True, finder_of(tmp_path / "finder.onnx", TILTED))
    pixels, here, seen = views.look(path)
    assert pixels.shape[0] < 1440 and np.abs(here * 1440 / pixels.shape[0] - seen.quad).max() < 1e-6
    assert np.abs(seen.quad - quad).max() < 0.01
    (of_file,), (of_array,) = views(path)[0], views(large)[0]
    assert np.abs(of_file.astype(int) - of_array).mean() < 3  # levels; JPEG's own error
    by_hand, seen = Views(model, False, corners={str(path.resolve()): quad})(path)
    assert np.abs(by_hand[0].astype(int) - of_file).max() <= 1 and seen.views == ("document",) and seen.score is None


def test_a_small_document_in_a_large_jpeg_is_read_from_the_whole(model, tmp_path):
    """With the corners given it has as many pixels as the file has, though the photo is decoded smaller for others."""
    quad = np.array([(900, 700), (930, 700), (930, 720), (900, 720)])
    large = photo(blocks(1, 256), quad, 1920, 1440)
    path = save(tmp_path / "large.jpg", large)
    assert load_reduced(path, 2 * SIZE)[1] == 8
    for of_file, of_array in zip(Views(model)(path, quad)[0], Views(model)(large, quad)[0], strict=True):
        assert np.abs(of_file.astype(int) - of_array).mean() < 16  # levels; JPEG's own error, at edges of 7 pixels


def test_corners_are_those_of_the_upright_image(model, tmp_path):
    """A file that EXIF says to turn by 90 degrees clockwise: the corners are in the image that a viewer shows."""
    upright = photo(blocks(1, 256), TILTED)
    stored = cv2.imencode(".jpg", np.rot90(upright), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    path = tmp_path / "turned.jpg"
    path.write_bytes(stored[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + stored[2:])
    (of_file,), (of_array,) = Views(model)(path, TILTED)[0], Views(model)(upright, TILTED)[0]
    assert np.abs(of_file.astype(int) - of_array).mean() < 3


def test_padded_models_get_the_document_with_its_aspect(tmp_path):
    """A document of 2:1, seen straight: in the middle of the square, and its border's color around it."""
    padded = load_model(write_model(tmp_path / "pad.onnx", METADATA | {"fit": "pad"}))
    document = np.full((100, 200, 3), 250, np.uint8)
    document[20:80, 20:180] = (0, 0, 255)
    quad = [(100, 100), (500, 100), (500, 300), (100, 300)]
    (square,), _ = Views(padded)(photo(document, quad), quad)
    assert square.shape == (SIZE, SIZE, 3) and (square[:4] > 240).all() and (square[-4:] > 240).all()
    assert (np.abs(square[6:10, 3:13].astype(int) - [255, 0, 0]) < 30).all()


# ---------------------------------------------------------------- a file of corners
HEAD = "file,x0,y0,x1,y1,x2,y2,x3,y3"


def test_corners_of_a_file(tmp_path):
    """Other columns, any order, a quad that cannot be used (its image will say so)."""
    file, here = tmp_path / "corners.csv", tmp_path.resolve()
    save(tmp_path / "b.jpg", blocks(1))
    file.write_text(f"type,{HEAD}\n7,deep/a.jpg,1,2,3,4.5,5,6,7,-8\n,b.jpg{',0' * 8}\n")
    found = read_corners(file)
    assert found.keys() == {str(here / "deep" / "a.jpg"), str(here / "b.jpg")}
    assert found[str(here / "deep" / "a.jpg")].tolist() == [[1, 2], [3, 4.5], [5, 6], [7, -8]]


@pytest.mark.parametrize("content, reason", [
    ("", "has no column file"), ("file,x0\n", "has no column y0"), (f"{HEAD}\na.jpg,1,2,3\n", "line 2: expected"),
    (f"{HEAD}\na.jpg,1,2,3,4,5,6,7,left\n", "line 2: expected"), (f"{HEAD}\na\0b.jpg,1,2,3,4,5,6,7,8\n", "line 2: expected"),
    (None, "no file of corners"),
    (HEAD, "no image that it names"), (f"{HEAD}\nb.jpg{',0' * 8}\n", "no image that it names"),
    (f'{HEAD}\n"{"x" * 200_000}",1\n', "expected")])
def test_a_file_of_corners_with_a_mistake(tmp_path, content, reason):
    file = tmp_path / "corners.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        read_corners(file)
    assert str(file) in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_any_corners_give_an_image_or_a_reason():
    """Random corners in and around images of all sizes, among them numbers that are not finite: no other error."""
    rng, made = np.random.default_rng(0), 0
    for number in range(1500):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(400), 2)))
        corners = [np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) + rng.normal(0, rng.choice([0.01, 0.1, 0.3]), (4, 2)),
                   rng.uniform(-1, 2, (4, 2)),
                   rng.choice([0, -1, 1, 2, 0.5, 1e300, 1e-300, np.nan, np.inf], (4, 2))][number % 3] * [width, height]
        size = tuple(int(side) for side in rng.choice([1, 8, 16, 100], 2)) if number % 2 else int(rng.choice([1, 8, 100]))
        try:
            found = rectify(np.zeros((height, width, 3), np.uint8), corners, size)
        except ImageError:
            continue
        assert found.dtype == np.uint8 and found.shape[2] == 3 and 1 / 20 <= aspect_of(corners, width, height) <= 20
        made += 1
    assert 200 < made < 1300
