"""Synthetic documents and captures are pure functions of their numbers, and types differ in their fixed art."""
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import synth
from inference.errors import UserError
from synth import fonts, words
from synth.__main__ import main
from synth.draw import rng, text_mask, text_width
from synth.families import FAMILIES
from synth.languages import LABEL_KEYS
from synth.page import ASPECTS, GROUP
from synth.templates import chance_of, look_alikes, shape_of

ROOT = Path(__file__).parent.parent
CAPTURE = sys.modules["synth.capture"]  # synth.capture is the function
ONE_OF_EACH = range(18, 18 + len(FAMILIES))


def _digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def _field_mask(kind):
    mask = np.zeros(kind.art.shape[:2], bool)
    for f in kind.fields:
        mask[f.y:f.y + f.h, f.x:f.x + f.w] = True
    return mask


@pytest.mark.parametrize("type_id", ONE_OF_EACH)
def test_copies_share_their_art_and_differ_in_their_fields(type_id):
    kind, copies = synth.template(1, type_id), [synth.render(1, type_id, n) for n in range(4)]
    assert 320 <= max(kind.art.shape) <= 400
    shapes = [shape_of(kind, 1, type_id, n) for n in range(4)]  # only till receipts have copies of different length
    for shape, image in zip(shapes, copies):
        outside = ~_field_mask(shape)
        assert image.dtype == np.uint8 and image.shape == shape.art.shape
        assert (image[outside] == shape.art[outside]).all()
    top = min(image.shape[0] for image in copies)
    differ = np.any([(copies[0][:top] != image[:top]).any(2) for image in copies[1:]], 0)
    assert differ.sum() > .02 * _field_mask(shapes[0])[:top].sum()


def test_a_receipt_is_as_long_as_its_items_need():
    type_id = list(FAMILIES).index("receipt")
    kind = synth.template(0, type_id)
    first, last = kind.cut
    heights = {synth.render(0, type_id, n).shape[0] for n in range(12)}
    assert len(heights) > 4 and kind.art.shape[0] - (last - first) < min(heights) < max(heights) <= kind.art.shape[0]
    for n in range(12):
        shape = shape_of(kind, 0, type_id, n)
        below = kind.art.shape[0] - last
        assert (shape.art[:first] == kind.art[:first]).all() and (shape.art[-below:] == kind.art[last:]).all()
        assert [f.kind for f in shape.fields] == [f.kind for f in kind.fields]
        assert all(f.y + f.h <= shape.art.shape[0] for f in shape.fields)


def _groups(alike, n=3):
    """(Chance, type ids) of some groups of look-alikes of every family that differ in the aspects `alike` alone."""
    for family in range(len(FAMILIES)):
        groups = ([family + len(FAMILIES) * (GROUP * g + i) for i in range(GROUP)] for g in range(200))
        found = (ids for ids in groups if chance_of(0, ids[0]).look_alike and chance_of(0, ids[0]).differs == alike)
        yield from ((synth.type_name(ids[0]), ids) for ids in itertools.islice(found, n))


def _thumbnail(type_id):
    art = cv2.resize(synth.template(0, type_id).art, (64, 64), interpolation=cv2.INTER_AREA)
    return art.astype(float)


@pytest.mark.parametrize("alike", sorted({tuple(a.split()) for family in FAMILIES.values() for a in family.alike}))
def test_look_alikes_differ_in_what_they_say_and_are_no_doubles(alike):
    """Every aspect that a group shares has the same random numbers in all its types, and those it does not have others;
    and two types of a group can be told apart even in a thumbnail."""
    count = 0
    for name, ids in _groups(alike):
        chances = [chance_of(0, i) for i in ids]
        for aspect in ASPECTS:
            drawn = {getattr(chance, aspect).integers(2 ** 62) for chance in chances}
            assert len(drawn) == (GROUP if aspect in alike else 1), (name, aspect)
            chosen = [chance.choose(aspect, range(GROUP)) for chance in chances]
            assert len(set(chosen)) == (GROUP if aspect in alike else 1), (name, aspect)
        small = [_thumbnail(i) for i in ids]
        apart = [np.abs(a - b).max() for i, a in enumerate(small) for b in small[:i]]
        assert min(apart) > 25, (name, apart)  # of 255, at the place where they differ most
        count += 1
    assert count >= 3


@pytest.mark.parametrize("alike", [("color",), ("name",), ("art",), ("layout",)])
def test_look_alikes_have_the_same_fields_unless_they_differ_in_layout(alike):
    for name, ids in _groups(alike, 2):
        boxes = [tuple((f.kind, f.x, f.y, f.w, f.h) for f in synth.template(0, i).fields) for i in ids]
        assert (len(set(boxes)) > 1) == (alike == ("layout",)), (name, ids)


def test_the_look_alikes_of_a_folder_are_named_beside_it(tmp_path):
    count = 2 * GROUP * len(FAMILIES) - 5  # the last group lacks a type in some families
    wanted = [i for i in range(count) if chance_of(3, i).look_alike]
    with pytest.MonkeyPatch.context() as patch:  # without drawing
        patch.setattr("synth.folders._write_type", lambda job: job[0].mkdir() or 2)
        synth.write_train(tmp_path / "train", count, 2, seed=3, workers=1)
    rows = [line.split("\t") for line in (tmp_path / "train" / "look_alikes.tsv").read_text().splitlines()]
    assert {row[0] for row in rows} == {synth.type_name(i) for i in wanted}
    for name, *others in rows:
        assert 2 <= len(others) <= GROUP - 1 and all((tmp_path / "train" / other).is_dir() for other in others)
        number = int(name.rsplit("_", 1)[1])
        for other in (int(other.rsplit("_", 1)[1]) for other in others):
            a, b = chance_of(3, number), chance_of(3, other)
            assert a.differs == b.differs and number != other
            shared = next(aspect for aspect in ASPECTS if aspect not in a.differs)
            assert getattr(a, shared).random() == getattr(b, shared).random()


def test_sets_to_evaluate_on_have_look_alikes_where_asked(tmp_path):
    with pytest.MonkeyPatch.context() as patch:  # without drawing
        patch.setattr("synth.folders._write_type", lambda job: job[0].mkdir() or 2)
        for alike in (False, True):
            synth.write_eval(tmp_path / str(alike), 200, 1, seed=0, first_type=1_000_005, workers=1, alike=alike)
    plain, full = ({int(path.name.rsplit("_", 1)[1]) for path in (tmp_path / name).iterdir() if path.is_dir()}
                   for name in ("False", "True"))
    assert full == set(range(1_000_005, 1_000_205)) and len(plain) == 200
    pairs = [(i, other) for i in range(1_000_005, max(plain) + 1) for other in look_alikes(0, i)]
    assert len(pairs) > 50 and not any(one in plain and other in plain for one, other in pairs)
    for skipped in set(range(1_000_005, max(plain))) - plain:      # for an earlier type of its group
        assert any(other in plain and other < skipped for other in look_alikes(0, skipped))
    assert (tmp_path / "True" / "look_alikes.tsv").read_text() and not (tmp_path / "False" / "look_alikes.tsv").read_text()


def test_the_families_alternate_and_a_share_of_types_are_look_alikes():
    n = len(FAMILIES)
    for start in (0, 7, synth.NEVER_TRAINED):
        assert {synth.type_name(i).rsplit("_", 1)[0] for i in range(start, start + n)} == set(FAMILIES)
    chances = [chance_of(0, i) for i in range(2000, 2000 + 40 * n)]
    share = np.mean([chance.look_alike for chance in chances])
    wanted = np.mean([family.share for family in FAMILIES.values()])
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / (len(chances) / GROUP)) ** .5  # 4 standard deviations
    assert all(chance.differs == ASPECTS for chance in chances if not chance.look_alike)


def test_fields_lie_on_the_page_and_apart_from_each_other():
    for type_id in range(160):
        kind = synth.template(2, type_id)
        for i, f in enumerate(kind.fields):
            assert f.x >= 0 and f.y >= 0 and f.w > 0 and f.h > 0
            assert f.x + f.w <= kind.art.shape[1] and f.y + f.h <= kind.art.shape[0], (type_id, f)
            for g in kind.fields[:i]:
                wide = min(f.x + f.w, g.x + g.w) - max(f.x, g.x)
                high = min(f.y + f.h, g.y + g.h) - max(f.y, g.y)
                assert min(wide, high) <= 3, (type_id, f, g)


def test_types_of_one_family_have_different_art():
    for family in range(len(FAMILIES)):
        ids = [family + len(FAMILIES) * i for i in range(60)]
        arts = [synth.template(0, i).art for i in [i for i in ids if not chance_of(0, i).look_alike][:6]]
        for i, a in enumerate(arts):
            for b in arts[:i]:
                b = cv2.resize(b, a.shape[1::-1], interpolation=cv2.INTER_AREA)
                assert (np.abs(a.astype(int) - b).max(2) > 30).mean() > .03


def test_images_depend_on_nothing_but_their_numbers():
    def digests(order):
        found = {}
        for type_id, copy_id in order:
            clean = synth.render(3, type_id, copy_id)
            found[type_id, copy_id] = _digest(clean), _digest(synth.capture(clean, 3, type_id, copy_id))
        return found

    order = [(t, c) for t in ONE_OF_EACH for c in range(2)]
    first = digests(order)
    synth.template.cache_clear()
    assert digests(order[::-1]) == first
    assert len({d for pair in first.values() for d in pair}) == 2 * len(order)

    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hashlib, synth; " \
           "print(hashlib.sha256(synth.capture(synth.render(3, 18, 1), 3, 18, 1).tobytes()).hexdigest())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                               env={**os.environ, "PYTHONHASHSEED": "7"}).stdout.strip()
    assert elsewhere == first[18, 1][1]


def test_another_seed_type_copy_or_capture_is_another_image():
    image = synth.render(0, 5, 0)
    others = [synth.render(*key) for key in ((1, 5, 0), (0, 5 + len(FAMILIES), 0), (0, 5, 1))]
    photos = [synth.capture(image, *key) for key in ((0, 5, 0), (0, 5, 1), (1, 5, 0), (0, 51, 0), (0, 5, "x"))]
    assert len({_digest(x) for x in [image, *others, *photos]}) == 9


@pytest.mark.parametrize("type_id", ONE_OF_EACH)
def test_a_capture_keeps_size_and_orientation(type_id):
    image = synth.render(0, type_id, 0)
    before = image.copy()
    small = lambda x: cv2.resize(cv2.cvtColor(x, cv2.COLOR_BGR2GRAY), (48, 48), interpolation=cv2.INTER_AREA)
    likeness = lambda x, y: np.corrcoef(small(x).ravel(), small(y).ravel())[0, 1]
    turned = {"upright": image, "mirrored": image[:, ::-1], "flipped": image[::-1], "upside down": image[::-1, ::-1]}
    total = dict.fromkeys(turned, 0.)
    for n in range(12):
        photo = synth.capture(image, 0, type_id, n, severity=.7)
        assert photo.shape == image.shape and photo.dtype == np.uint8
        for name, other in turned.items():
            total[name] += likeness(photo, other)
    assert max(total, key=total.get) == "upright"
    assert (image == before).all()


def test_severity_goes_from_the_image_itself_to_a_poor_photo():
    image = synth.render(0, 20, 0)
    change = [np.mean([np.abs(synth.capture(image, 0, n, severity=s).astype(int) - image).mean() for n in range(8)])
              for s in (0, .5, 1, 2)]
    assert change == sorted(change) and change[0] < change[2] / 5


def test_odd_sizes_can_be_captured():
    for shape in ((17, 31, 3), (40, 700, 3), (900, 33, 3)):
        assert synth.capture(np.full(shape, 128, np.uint8), 0, 1).shape == shape


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.jpg") if p.is_file()}


def test_folders_are_complete_for_any_number_of_processes(tmp_path):
    assert synth.write_train(tmp_path / "a", 67, 2, seed=0, captures=1, workers=1) == 201
    assert synth.write_train(tmp_path / "b", 67, 2, seed=0, captures=1, workers=2) == 201
    one, two = _files(tmp_path / "a"), _files(tmp_path / "b")
    assert one == two and len(one) == 201
    assert {"id_card_00000/copy_0.jpg", "id_card_00000/copy_1.jpg", "passport_00001/capture_2.jpg"} <= set(one)
    assert not list(tmp_path.glob("*.part"))
    written = cv2.imdecode(np.frombuffer(one["id_card_00000/copy_1.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(written.astype(int) - synth.render(0, 0, 1)).mean() < 4


def test_eval_types_follow_the_training_types(tmp_path):
    first = 2 * len(FAMILIES)
    assert synth.write_eval(tmp_path / "eval", 3, 2, seed=0, first_type=first) == 9
    files = _files(tmp_path / "eval")
    assert {name.split("/")[0] for name in files} == {f"id_card_{first:05}", f"passport_{first + 1:05}",
                                                      f"bank_card_{first + 2:05}"}
    assert {name.split("/")[1] for name in files} == {"reference.jpg", "capture_1.jpg", "capture_2.jpg"}


def test_a_complete_folder_is_reused_another_one_replaced_a_foreign_one_refused(tmp_path):
    folder = tmp_path / "train"
    synth.write_train(folder, 2, 1, seed=0)
    (folder / "mark").touch()
    assert synth.write_train(folder, 2, 1, seed=0) == 2 and (folder / "mark").exists()
    before = _files(folder)
    synth.write_train(folder, 2, 1, seed=1)
    assert not (folder / "mark").exists() and _files(folder) != before and _files(folder).keys() == before.keys()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="did not write"):
        synth.write_train(tmp_path / "mine", 2, 1, seed=0)
    assert (tmp_path / "mine" / "holiday.jpg").read_bytes() == b"precious"


def test_an_interrupted_run_leaves_no_folder_and_the_next_one_finishes(tmp_path, monkeypatch):
    def fail(job):
        job[0].mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("synth.folders._write_type", fail)
        with pytest.raises(KeyboardInterrupt):
            synth.write_train(tmp_path / "train", 2, 1, seed=0)
    assert not (tmp_path / "train").exists()
    assert synth.write_train(tmp_path / "train", 2, 1, seed=0) == 2
    assert len(_files(tmp_path / "train")) == 2


def test_numbers_out_of_range_are_refused(tmp_path):
    for call in (lambda: synth.write_train(tmp_path / "x", 0, 1, seed=0),
                 lambda: synth.write_train(tmp_path / "x", 1, 0, seed=0),
                 lambda: synth.write_train(tmp_path / "x", 1, 1, seed=0, captures=-1),
                 lambda: synth.write_eval(tmp_path / "x", 1, 1, seed=0, first_type=-1)):
        with pytest.raises(UserError, match="at least"):
            call()
    assert not list(tmp_path.iterdir())


def test_command_writes_train_and_eval_without_a_common_type(tmp_path):
    main([str(tmp_path / "out"), "--train-types", "3", "--copies", "2", "--eval-types", "2", "--captures", "1"])
    train, test = ({p.name for p in (tmp_path / "out" / part).iterdir() if p.is_dir()} for part in ("train", "eval"))
    assert len(train) == 3 and len(test) == 2 and not train & test


def test_bad_arguments_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for arguments in ((), ("x", "--copies", "many"), (f"{tmp_path}/x", "--copies", "0"), (f"{tmp_path}/file",),
                      ("--sheet", f"{tmp_path}/sheet.gif"), ("x", "--frobnicate")):
        with pytest.raises(UserError) as refusal:
            main(list(arguments))
        assert len(str(refusal.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

    done = subprocess.run([sys.executable, "-m", "synth"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and "--sheet" in done.stderr


def test_contact_sheet(tmp_path):
    synth.contact_sheet(tmp_path / "deep" / "sheet.png", seed=0, types=2, cell=120)
    sheet = cv2.imread(str(tmp_path / "deep" / "sheet.png"))
    assert sheet.shape[1] == 600 and len(np.unique(sheet)) > 100


def test_command_writes_an_evaluation_set_of_types_that_no_training_set_has(tmp_path, capsys):
    main(["--out", str(tmp_path / "set"), "--types", "3", "--copies", "4"])
    assert {name.split("/")[1] for name in _files(tmp_path / "set")} == {
        "reference.jpg", "capture_1.jpg", "capture_2.jpg", "capture_3.jpg"}
    names = {p.name for p in (tmp_path / "set").iterdir() if p.is_dir()}
    assert names == {synth.type_name(synth.NEVER_TRAINED + n) for n in range(3)}
    said = capsys.readouterr()
    assert "12 images of 3 types" in said.out and "images/s per core" in said.err
    main(["--out", str(tmp_path / "set"), "--types", "3", "--copies", "4"])
    assert "images/s" not in capsys.readouterr().err  # it was reused
    for refused in (["--out", "x", "--copies", "1"], ["x", "--train-types", "9", "--first-type", "5"]):
        with pytest.raises(UserError):
            main(refused)


def test_training_sets_may_have_captures_too(tmp_path):
    main([str(tmp_path), "--train-types", "2", "--copies", "1", "--train-captures", "2", "--eval-types", "1"])
    assert len(_files(tmp_path / "train")) == 6 and "id_card_00000/capture_2.jpg" in _files(tmp_path / "train")


def test_a_fold_is_a_change_of_light_from_one_edge_to_another():
    """On a gray sheet: all pixels of some line across the sheet change, and pixels far from it change little."""
    sheet = np.full((240, 320, 3), 128, np.uint8)
    for n in range(20):
        change = np.abs(CAPTURE._fold(rng(n), sheet, 1.0)[..., 1] - 128.)
        assert (sheet == 128).all() and 1 < change.max() < 110
        assert max((change.max(1) > 1).mean(), (change.max(0) > 1).mean()) > .98
        assert np.median(change) < 40


def test_a_bend_is_a_wave_in_one_direction():
    """Of two crossing lines one becomes a wave, at most .02 of the sheet high to each side, and the other stays straight."""
    sheet = np.full((240, 240, 3), 255, np.uint8)
    sheet[118:122] = sheet[:, 118:122] = 0
    largest = 0
    for n in range(20):
        black = CAPTURE._bend(rng(n), sheet, 1.0)[..., 1] < 128
        beside = np.r_[:100, 140:240]
        height = [np.ptp((at[:, beside] * np.arange(240)[:, None]).sum(0) / at[:, beside].sum(0)) for at in (black, black.T)]
        assert min(height) == 0 and max(height) <= 2 * .02 * 240 + 1
        largest = max(largest, *height)
    assert largest > 4


def test_moire_is_periodic_and_keeps_the_mean():
    for n in range(20):
        light = np.full((240, 320, 3), 128, np.float32)
        CAPTURE._moire(rng(n), light, 1.0)
        change = light - 128
        assert abs(change.mean()) < 1 < np.abs(change).max() < 12
        spectrum = np.sort((np.abs(np.fft.rfft2(change[..., 0])) ** 2).ravel())[::-1]
        assert spectrum[:400].sum() > .8 * spectrum.sum()  # of 38,640 frequencies: waves that are slightly bent


def test_captures_of_own_images(tmp_path):
    source = tmp_path / "mine"
    (source / "deep").mkdir(parents=True)
    for name, side in (("a.png", 90), ("a.jpg", 80), ("deep/large.jpg", 900)):
        cv2.imwrite(str(source / name), np.full((side, side // 2, 3), (30, 120, 200), np.uint8))
    (source / "broken.jpg").write_bytes(b"no image")
    main(["--captures-of", str(source), "--out", str(tmp_path / "made"), "--copies", "3"])
    files = _files(tmp_path / "made")
    assert set(files) == {f"{folder}/{file}.jpg" for folder in ("a.png", "a.jpg", "deep/large")
                          for file in ("reference", "capture_1", "capture_2")}
    sizes = {name: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape for name, data in files.items()}
    assert sizes["a.jpg/capture_1.jpg"] == (80, 40, 3) and sizes["deep/large/reference.jpg"] == (400, 200, 3)
    assert files["a.png/capture_1.jpg"] != files["a.png/capture_2.jpg"]

    def again():
        synth.write_captures(source, tmp_path / "made", 2, 0, workers=2)
        return _files(tmp_path / "made")
    (tmp_path / "made" / "mark").touch()
    assert again() == files and (tmp_path / "made" / "mark").exists()  # as it was
    cv2.imwrite(str(source / "b.png"), np.zeros((50, 50, 3), np.uint8))
    assert set(again()) > set(files) and not (tmp_path / "made" / "mark").exists()

    def changed(severity):  # mean change of the captures of the first image
        synth.write_captures(source, tmp_path / f"{severity}", 4, 0, severity)
        images = [cv2.imread(str(tmp_path / f"{severity}" / "a.jpg" / f"{file}.jpg")).astype(int)
                    for file in ("reference", *(f"capture_{n}" for n in range(1, 5)))]
        return np.mean([np.abs(image - images[0]).mean() for image in images[1:]])
    assert changed(0.) < changed(1.) / 5

    (source / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    cv2.imwrite(str(source / "tiny.png"), np.zeros((20, 20, 3), np.uint8))
    for name in ("a.jpg.png", "c.png", "c.jpg", "c.jpg.png"):  # a.jpg and c.jpg could be the folders of two images each
        cv2.imwrite(str(source / name), np.full((60, 60, 3), 99, np.uint8))
    folders = "b", "a.jpg.png", "c.png", "c.jpg", "c.jpg.png"
    assert again().keys() - files.keys() == {f"{folder}/{file}.jpg" for folder in folders
                                             for file in ("reference", "capture_1", "capture_2")}
    kept = again()
    (tmp_path / "useless").mkdir()
    (tmp_path / "useless" / "broken.jpg").write_bytes(b"no image")
    photos = ["--photos-of", str(source)]
    for refused in (["--photos-of", str(tmp_path / "useless"), "--out", str(tmp_path / "made")],
                    [*photos, "--out", str(source)], [*photos, "--out", str(source / "in")],
                    [*photos, "--out", str(tmp_path)], [*photos, "--out", "x", "--severity", "nan"]):
        with pytest.raises(UserError):
            main(refused)
    assert _files(tmp_path / "made") == kept and (source / "a.jpg").exists()  # nothing is lost
    for refused in (photos, [*photos, "--out", "x", "--severity", "-1"],
                    ["--photos-of", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]):
        with pytest.raises(UserError):
            main(refused)


@pytest.fixture
def other_fonts():
    """Calls `use(dict)` to say which scripts have fonts, as on another machine."""
    with pytest.MonkeyPatch.context() as patch:
        def use(found):
            patch.setattr("synth.words.available", lambda: found)
            synth.template.cache_clear()
        yield use
    synth.template.cache_clear()


def test_without_fonts_for_a_script_its_types_take_another_language(other_fonts):
    """A machine without such fonts draws every type, those of other languages exactly as elsewhere."""
    ids = range(3 * len(FAMILIES))
    scripts = [words.LANGUAGES[chance_of(0, i).language()].script for i in ids]
    drawn = [_digest(synth.render(0, i, 1)) for i in ids]
    other_fonts({})
    assert {words.LANGUAGES[chance_of(0, i).language()].script for i in ids} == {None}
    for i, script, before in zip(ids, scripts, drawn):
        assert (_digest(synth.render(0, i, 1)) == before) == (script is None), (i, script)


def test_every_language_has_all_words_and_every_script_its_letters():
    for number, language in enumerate(words.LANGUAGES):
        assert {len(language.labels.split("|"))} == {len(LABEL_KEYS)} and len(language.phrases.split("|")) == 4
        for other in words.LANGUAGES[:number]:
            assert language.titles.keys() == other.titles.keys()
            assert language.organizations.keys() == other.organizations.keys()
        assert fonts.script_of(words.label("name", number)) == language.script
        if language.script is None or language.script in fonts.available():
            masks = [text_mask(letter, fonts.SANS[1], 24).tobytes() for letter in language.syllables.replace(" ", "")]
            assert len(set(masks)) > .6 * len(set(language.syllables))  # a missing letter would be the same box each time


def test_letters_that_are_joined_are_shaped():
    """Arabic letters have other forms within a word; drawn from left to right one by one, they would be wider."""
    if "arabic" not in fonts.available():
        pytest.skip("no font, or Pillow without raqm")
    word = "سلمى"
    assert text_width(word, fonts.SANS[0], 40) < .9 * sum(text_width(letter, fonts.SANS[0], 40) for letter in word)


def test_the_manifest_names_the_fonts(tmp_path, monkeypatch):
    synth.write_train(tmp_path / "train", 1, 1, seed=0)
    manifest = json.loads((tmp_path / "train" / "synth.json").read_text())
    assert manifest["fonts"].keys() == fonts.available().keys()
    (tmp_path / "train" / "mark").touch()
    monkeypatch.setattr("synth.folders.available", lambda: {"cjk": "/fonts/other.ttf"})
    synth.write_train(tmp_path / "train", 1, 1, seed=0)
    assert not (tmp_path / "train" / "mark").exists()  # written anew, as other fonts draw other images
    assert json.loads((tmp_path / "train" / "synth.json").read_text())["fonts"] == {"cjk": "other.ttf"}


def test_every_family_is_drawn_with_an_opencv_before_5(monkeypatch):
    """It has no fonts of its own; headings are then in DejaVu Sans."""
    monkeypatch.delattr(cv2, "FontFace")
    fonts.find.cache_clear(), fonts.available.cache_clear(), synth.template.cache_clear()
    try:
        assert fonts.available().get("cjk") != "opencv:uni"
        assert (text_mask("Rubik", fonts.RUBIK[1], 20) == text_mask("Rubik", fonts.SANS[1], 20)).all()
        for type_id in ONE_OF_EACH:
            assert synth.render(0, type_id, 0).any()
    finally:
        fonts.find.cache_clear(), fonts.available.cache_clear(), synth.template.cache_clear()
