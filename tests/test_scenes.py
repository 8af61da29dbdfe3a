"""Scenes: their corners are where their pixels are, they depend on nothing but their numbers, and folders of them."""
import json

import cv2
import numpy as np
import pytest

from eval.coco import read_coco
from inference.errors import UserError
from inference.quads import is_quad, ordered
from synth import scenes
from synth.__main__ import main
from synth.scenes import Sources, files_below, scene, write_scenes


@pytest.fixture
def sources(tmp_path):
    """Three documents and two photos, one of them damaged."""
    rng = np.random.default_rng(0)
    for name, sides in {"documents/a.png": (90, 60), "documents/more/b.jpg": (120, 200), "documents/c.png": (80, 80),
                        "photos/d.jpg": (200, 150)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), sides))
    (tmp_path / "photos/e.jpg").write_bytes(b"\xff\xd8 no photo")
    return Sources(files_below([tmp_path / "documents"]), files_below([tmp_path / "photos"]))


def test_corners_are_where_the_pixels_are():
    """A white sheet on black, flat or curled. The pixels that are half white or more reach to the quad's corners, within
    the diagonal of a pixel, a sharp corner's tip, and what the bend changes over the distance that it moves a corner."""
    sheet = np.full((90, 140, 3), 255, np.uint8)
    for number in range(80):
        r, image = scenes.rng("test", number), np.zeros((240, 320, 3), np.uint8)
        quad = scenes._place(r, sheet, 320, 240, 0.5)
        bend = scenes._bend(r, quad, 320, 240) if number % 2 else None
        quad = scenes._paste(image, sheet, quad, 0.0, bend)
        white = cv2.convexHull(np.argwhere(image[..., 1] > 127)[:, ::-1].astype(np.float32))[:, 0] + 0.5
        inside = ((quad >= 2) & (quad <= (318, 238))).all(1)
        assert inside.sum() >= 1
        assert np.linalg.norm(white[:, None] - quad[inside], axis=2).min(0).max() < (3.5 if number % 2 else 2)
        if not number % 2 and inside.all():
            whole = np.zeros((240, 320), np.uint8)
            cv2.fillPoly(whole, [np.rint(quad * 16 - 8).astype(np.int32)], 1, shift=4)
            assert np.abs(int(whole.sum()) - int((image[..., 1] > 127).sum())) < 0.05 * whole.sum()


def test_a_scene_depends_on_nothing_but_its_numbers(sources):
    def same(one, other):
        return one[0].tobytes() == other[0].tobytes() and np.array_equal(one[1], other[1])
    first = {number: scene(0, number, sources) for number in range(8)}
    assert all(same(scene(0, number, sources), first[number]) for number in reversed(range(8)))
    assert not any(same(scene(1, number, sources), first[number]) for number in first)
    assert len({image.tobytes() for image, _ in first.values()}) == len(first)


def test_what_scenes_show(sources):
    """Quads as `inference.quads` has them; scenes without a document, with several, and some that are cut off."""
    counts, cut = [], 0
    for number in range(150):
        image, quads = scene(0, number, sources)
        height, width = image.shape[:2]
        assert image.dtype == np.uint8 and image.shape[2] == 3 and quads.shape == (len(quads), 4, 2)
        assert max(image.shape) <= 1.4 * scenes.SIDE
        for quad in quads:
            assert is_quad(quad) and np.allclose(ordered(quad), quad)
            seen = scenes._seen(quad, width, height)
            assert seen >= scenes.LISTED
            cut += seen < 0.95
        counts.append(len(quads))
    assert 0.08 < np.mean(np.array(counts) == 0) < 0.3 and max(counts) > 1 and cut > 10


def test_a_folder_of_scenes_is_a_coco_data_set(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "AT_ONCE", 5)
    assert write_scenes(tmp_path / "out", 12, 3, sources, workers=1) == 12
    names, listed = read_coco(tmp_path / "out/corners.json")
    assert names == ["document"] and len(listed) == 12
    for name, truth in listed.items():
        image = cv2.imread(str(tmp_path / "out" / name))
        assert image.shape[:2] == (truth.height, truth.width)
        quads = scene(3, int(name[-10:-4]), sources)[1]
        assert np.allclose(truth.quads, quads, atol=0.006) and len(truth.boxes) == len(quads)
        for box, quad in zip(truth.boxes, quads):
            limits = np.clip([quad.min(0), quad.max(0)], 0, (truth.width, truth.height)).ravel()
            assert np.allclose(box, limits, atol=0.006)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000", "000005", "000010", "corners.json",
                                                                          "synth.json"]
    before = (tmp_path / "out/corners.json").stat().st_mtime_ns
    assert write_scenes(tmp_path / "out", 12, 3, sources, workers=1) == 12                  # reused
    assert (tmp_path / "out/corners.json").stat().st_mtime_ns == before


def test_the_command_and_its_mistakes(sources, tmp_path, capsys):
    folders = ["--documents", str(tmp_path / "documents"), "--backgrounds", str(tmp_path / "photos")]
    main(["--scenes", str(tmp_path / "out"), "--number", "3", "--seed", "3", *folders, "--first-type", "0"])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 3 scenes\n"
    assert len(json.loads((tmp_path / "out/corners.json").read_text())["images"]) == 3
    for wrong, says in ((["--scenes", str(tmp_path / "out2"), "--number", "0"], "at least 1"),
                        (["--scenes", str(tmp_path / "out2"), "--documents", str(tmp_path / "none")], "no such folder")):
        with pytest.raises(UserError, match=says):
            main(wrong)
    with pytest.raises(UserError, match="need --scenes DIR"):
        main(["--sheet", str(tmp_path / "sheet.png"), "--documents", str(tmp_path)])
    for path in (tmp_path / "documents").rglob("*.*"):
        path.write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="none of the images given for scenes can be read"):
        for number in range(20):
            scene(0, number, sources)
