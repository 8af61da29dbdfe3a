"""COCO files of lines: combined, split, selected and checked. Random files stand for all; ids are random in each."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference.cli import exit_status
from inference.errors import UserError
from ocr.coco import joined, load, main, split, subset, validate

SEEDS = range(20)


def random_coco(seed, prefix="", images=None):
    """A sound file of 1 to 30 lines (or `images`): ids far apart, entries in any order, keys that nobody knows."""
    r = np.random.default_rng(seed)
    ids = lambda count: [int(number) for number in r.permutation(1000)[:count]]
    images = images or int(r.integers(1, 31))
    names = ["char", "word", "figure", "rule"][:r.integers(2, 5)]
    categories = [{"id": number, "name": names[at], "supercategory": names[at][0]}
                  for number, at in zip(ids(len(names)), r.permutation(len(names)))]
    category = {entry["name"]: entry["id"] for entry in categories}
    listed, annotations = [], []
    for at, number in enumerate(ids(images)):
        words = ["".join(r.choice(list("abc"), r.integers(1, 6))) for _ in range(r.integers(1, 4))]
        entry = {"id": number, "file_name": f"{prefix}{seed}_{at}.png", "width": 500, "height": 40, "text": " ".join(words),
                 "book": str(r.choice(list("xyz")))}
        listed.append(entry)
        kinds = ["char"] * len("".join(words)) + ["word"] * len(words)
        for kind in kinds:
            bbox = [float(r.integers(0, 480)), float(r.integers(0, 20)), float(r.integers(1, 20)), float(r.integers(1, 20))]
            annotations.append({"image_id": number, "category_id": category[kind], "bbox": bbox, "score": r.uniform()})
    for entry, number in zip(annotations, ids(len(annotations))):
        entry["id"] = number
    return {"info": {"by": "us"}, "images": listed, "categories": categories,
            "annotations": [annotations[i] for i in r.permutation(len(annotations))]}


def meaning(content):
    """What a file says of each image, whatever its ids."""
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    said = {entry["id"]: ({key: entry[key] for key in entry if key != "id"}, []) for entry in content["images"]}
    for entry in content["annotations"]:
        rest = {key: value for key, value in entry.items() if key not in ("id", "image_id", "category_id")}
        said[entry["image_id"]][1].append((names[entry["category_id"]], json.dumps(rest, sort_keys=True)))
    return {image["file_name"]: (image, sorted(shown)) for image, shown in said.values()}


def check_ids(content):
    for kind in ("images", "categories", "annotations"):
        assert [entry["id"] for entry in content[kind]] == list(range(len(content[kind])))
    names = [entry["name"] for entry in content["categories"]]
    assert len(set(names)) == len(names)


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def run(*words):
    """The exit status of a command."""
    return exit_status(lambda: main([str(word) for word in words]))


# ---------------------------------------------------------------- properties
@pytest.mark.parametrize("seed", SEEDS)
def test_combining_says_what_the_files_said(seed):
    parts = [random_coco(3 * seed + i) for i in range(3)]
    whole = joined(parts)
    check_ids(whole)
    assert meaning(whole) == {name: said for part in parts for name, said in meaning(part).items()}
    assert whole["info"] == {"by": "us"}
    assert {entry["name"]: entry["supercategory"] for entry in whole["categories"]} \
        == {entry["name"]: entry["supercategory"] for part in parts for entry in part["categories"]}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by", ["", "book"])
def test_a_split_has_every_line_once_and_divides_no_group(seed, by):
    content = random_coco(seed, images=60)
    parts = split(content, {"train": .7, "val": .2, "test": .1}, by, seed=seed)
    said = {}
    for part in parts.values():
        check_ids(part)
        assert [entry["name"] for entry in part["categories"]] == [entry["name"] for entry in
                                                                   next(iter(parts.values()))["categories"]]
        assert not said.keys() & meaning(part).keys()
        said |= meaning(part)
    assert said == meaning(content)
    if by:
        books = [{entry["book"] for entry in part["images"]} for part in parts.values()]
        assert sum(map(len, books)) == len(set.union(*books)) == 3
    else:  # groups of one image: the shares are met to the image
        assert [len(part["images"]) for part in parts.values()] == [42, 12, 6]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subset_is_part_of_a_larger_one(seed):
    content = random_coco(seed, images=40)
    small, large, again = (subset(content, count, seed) for count in (7, 25, 25))
    check_ids(small)
    assert len(small["images"]) == 7 and len(large["images"]) == 25 and large == again
    assert meaning(small).items() <= meaning(large).items() <= meaning(content).items()
    assert meaning(small) != meaning(subset(content, 7, seed + 1))
    assert list(meaning(subset(content, 40))) == list(meaning(content))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_file_has_nothing_wrong(tmp_path, seed):
    file = write(tmp_path / "a.json", random_coco(seed))
    assert validate(file) == [] and meaning(load(file)) == meaning(random_coco(seed))
    assert validate(write(tmp_path / "b.json", joined([load(file), random_coco(seed + 100)]))) == []


# ---------------------------------------------------------------- the traps of EffOCR's scripts
def test_categories_are_joined_by_name_and_not_by_id(tmp_path):
    one, other = ({"images": [{"id": 5, "file_name": f"{names[0]}.png"}],
                   "categories": [{"id": at, "name": name} for at, name in enumerate(names)],
                   "annotations": [{"id": 9, "image_id": 5, "category_id": 0, "bbox": [0, 0, 1, 1]}]}
                  for names in (["char", "word"], ["word", "char"]))
    files = write(tmp_path / "a.json", one), write(tmp_path / "b.json", other)
    assert run("combine", *files, "--out", tmp_path / "c.json") == 0
    whole = load(tmp_path / "c.json")
    assert [entry["name"] for entry in whole["categories"]] == ["char", "word"]
    assert [(entry["image_id"], entry["category_id"]) for entry in whole["annotations"]] == [(0, 0), (1, 1)]


@pytest.mark.parametrize("command", ["combine", "split", "subset"])
def test_no_file_is_overwritten(tmp_path, capsys, command):
    """Neither the input, nor another file, nor is one of several parts written when another is there."""
    first = write(tmp_path / "train.json", random_coco(1, images=9))
    second = write(tmp_path / "lines.json", random_coco(2, images=9))
    before = Path(first).read_bytes(), Path(second).read_bytes()
    options = {"combine": [second, "--out", first], "subset": ["--count", 3, "--out", first],
               "split": ["--out", tmp_path, "--parts", "val=.5,train=.5"]}[command]
    assert run(command, first, *options) == 2
    assert f"error: {first}: exists already and is not overwritten" in capsys.readouterr().err
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.json", "train.json"]


def test_a_split_and_a_subset_follow_the_seed(tmp_path):
    file = write(tmp_path / "f.json", random_coco(4, images=30))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run("split", file, "--out", tmp_path / name, "--parts", "train=.5,test=.5", "--seed", seed) == 0
        assert run("subset", file, "--count", 10, "--out", tmp_path / name / "subset.json", "--seed", seed) == 0
    for part in ("train.json", "test.json", "subset.json"):
        first, again, other = ((tmp_path / name / part).read_bytes() for name in "abc")
        assert first == again != other


def test_groups_are_told_apart_by_the_whole_stem():
    """`PAIRED_1_` is no part of `1_2`, `11_1` or `PAIRED_11_3`."""
    stems = {"1": 3, "11": 4, "PAIRED_1": 5, "PAIRED_11": 6}
    files = [f"images/{stem}_{i}.png" for stem, count in stems.items() for i in range(count)]
    content = {"images": [{"id": i, "file_name": file} for i, file in enumerate(files)], "categories": [], "annotations": []}
    parts = split(content, {"a": .25, "b": .25, "c": .25, "d": .25}, stem="_")
    names = [{entry["file_name"] for entry in part["images"]} for part in parts.values()]
    assert sorted(map(len, names)) == [3, 4, 5, 6]
    assert all({f"images/{stem}_{i}.png" for i in range(count)} in names for stem, count in stems.items())


def test_images_of_one_name_are_refused_until_each_file_has_its_folder(tmp_path, capsys):
    files = [write(tmp_path / f"{name}.json", random_coco(1)) for name in "ab"]
    assert run("combine", *files, "--out", tmp_path / "c.json") == 2
    assert "comes twice" in capsys.readouterr().err and not (tmp_path / "c.json").exists()
    assert run("combine", *files, "--out", tmp_path / "c.json", "--prefix", "a/", "b/") == 0
    assert meaning(load(tmp_path / "c.json")).keys() == {folder + name for folder in ("a/", "b/")
                                                         for name in meaning(random_coco(1))}
    assert run("combine", *files, "--out", tmp_path / "d.json", "--prefix", "a/") == 2


# ---------------------------------------------------------------- validate
def damage(content):
    """Every fault once, each in entries of its own, and a word that its message must have."""
    images, categories, annotations = content["images"], content["categories"], content["annotations"]
    by_image = {}
    for entry in annotations:
        by_image.setdefault(entry["image_id"], []).append(entry)
    boxes = iter([by_image[entry["id"]][0] for entry in images])
    next(boxes)["bbox"] = [490, 0, 12, 5]
    next(boxes)["bbox"] = [-3, 0, 12, 5]
    next(boxes)["bbox"] = [0, 0, -4, 5]
    next(boxes)["bbox"] = [0, 0, float("nan"), 5]
    next(boxes)["bbox"] = "0, 0, 4, 5"
    next(boxes)["category_id"] = 4000
    next(boxes)["image_id"] = 5000
    images[8]["text"] += "x"
    images[9]["width"] = 0
    images[10]["text"] = 3
    images[11]["file_name"] = images[12]["file_name"]
    images.append({"id": 6000})
    images.append({"id": images[13]["id"], "file_name": "again.png", "width": 9, "height": 9})
    categories.append({"id": 7000, "name": "char"})
    annotations.append({**by_image[images[14]["id"]][0]})
    return ["[490, 0, 12, 5] lies outside", "[-3, 0, 12, 5] lies outside", "[0, 0, -4, 5] is not", "nan, 5] is not",
            "0, 0, 4, 5 is not", "category_id 4000", "image_id 5000", "boxes and", "width and height", "not a string",
            "has the file_name", "images[30] has not id (int) and file_name (str)",
            f"images[31] has the id {images[13]['id']} of images[13]", "has the name 'char'", "of annotations["]


def test_all_that_is_wrong_is_listed_in_one_run(tmp_path, capsys):
    content = random_coco(5, images=30)
    wanted = damage(content)
    assert run("validate", write(tmp_path / "f.json", content)) == 1
    *lines, total = capsys.readouterr().out.splitlines()
    for words in wanted:
        assert any(words in line for line in lines), words
    assert total == f"{tmp_path}/f.json: {len(lines)} problems"
    assert all(line.startswith(f"{tmp_path}/f.json: ") for line in lines)


def test_each_image_of_a_wrong_number_of_boxes_is_listed(tmp_path):
    content = random_coco(6, images=10)
    char = next(entry["id"] for entry in content["categories"] if entry["name"] == "char")
    for image in content["images"][:4]:
        content["annotations"].remove(next(entry for entry in content["annotations"] if entry["image_id"] == image["id"]
                                           and entry["category_id"] == char))
    found = validate(write(tmp_path / "f.json", content))
    counts = [len(image["text"].replace(" ", "")) for image in content["images"][:4]]
    assert found == [f"{image['file_name']}: {count - 1} boxes and {count} characters"
                     for image, count in zip(content["images"], counts)]


def test_missing_damaged_and_resized_images_are_listed(tmp_path, capsys):
    content = random_coco(7, images=4)
    names = [image["file_name"] for image in content["images"]]
    for name, width in zip(names, (500, 499, 500)):
        cv2.imwrite(str(tmp_path / name), np.zeros((40, width), np.uint8))
    (tmp_path / names[2]).write_bytes((tmp_path / names[2]).read_bytes()[:-20])
    file = write(tmp_path / "f.json", content)
    assert run("validate", file) == 0 and "nothing is wrong" in capsys.readouterr().out
    assert run("validate", file, "--images", tmp_path) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert all(words in line for words, line in zip(("499 x 40 pixels", "truncated PNG", "No such file"), said))


@pytest.mark.parametrize("content", ['{"images": [', "[]", '{"images": 3}', "[" * 100_000, "", "\xff"])
@pytest.mark.parametrize("command", [["subset", "--count", "1"], ["split", "--parts", "a=1"], ["combine"]])
def test_a_broken_file_is_one_line(tmp_path, capsys, content, command):
    file = tmp_path / "f.json"
    file.write_text(content, encoding="latin-1")
    assert run(*command, file, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}: ") and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_ids_that_cannot_be_joined_are_one_line(tmp_path):
    for damaged, words in ((dict(image_id=5000), "image_id 5000"), (dict(category_id=6000), "category_id 6000"),
                           (dict(id="a"), "has not id")):
        content = random_coco(8)
        content["annotations"][0] |= damaged
        with pytest.raises(UserError, match=words):
            load(write(tmp_path / "f.json", content))


@pytest.mark.parametrize("parts", ["train", "train=x", "train=.5,train=.5", "train=.5", "a/b=1", "..=1", "train=2,test=-1",
                                   "=1", "train=nan"])
def test_parts_that_make_no_sense_are_refused(tmp_path, capsys, parts):
    file = write(tmp_path / "f.json", random_coco(9))
    assert run("split", file, "--out", tmp_path / "out", "--parts", parts) == 2
    assert "shares sum up to 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_numbers_and_fields_that_do_not_fit_are_refused(tmp_path, capsys):
    file = write(tmp_path / "f.json", random_coco(9, images=5))
    for words, said in ((["subset", "--count", 6, "--out", tmp_path / "o"], "from 1 to 5"),
                        (["subset", "--count", 2, "--out", tmp_path / "o", "--seed", -1], "--seed -1"),
                        (["split", "--parts", "a=1", "--out", tmp_path / "o", "--seed", -1], "--seed -1"),
                        (["split", "--out", tmp_path / "o", "--parts", "a=1", "--by", "page"], "has no such field"),
                        (["split", "--out", tmp_path / "o", "--parts", "a=.9,b=.1", "--stem", "_"], "5 images in 1 groups")):
        assert run(words[0], file, *words[1:]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "o").exists()
