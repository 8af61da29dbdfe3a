"""Splits: groups and equal bytes stay together, classes are spread evenly, leaks are refused, and files are told apart."""
import csv
import os
import random
from collections import Counter, defaultdict

import pytest

from adverts.split import ROLES, Row, Split, content_digest, main, make_split, read_split, write_split
from inference.errors import UserError

HEADER = "file,label,group,role,fold"
GOOD = ["a/1.jpg,a,g1,train,0", "a/2.jpg,a,g2,train,1", "b/1.jpg,b,g3,train,0", "b/2.jpg,b,g4,train,1",
        "t/1.jpg,,g5,test,-1", "t/2.jpg,b,g6,test,-1", "u/1.jpg,,g7,unlabeled,-1"]


def write(folder, files):
    """Files {name: bytes}; None: bytes of its own. A split does not look into images."""
    for name, data in dict(files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() if data is None else data)
    return folder


def classes(*names, each=10, below=""):
    return {f"{below}{name}/{i:02}.jpg": None for name in names for i in range(each)}


def table(path, lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def by_group(split):
    """{group: its places}"""
    found = defaultdict(set)
    for row in split.rows:
        found[row.group].add((row.role, row.fold))
    return found


def test_folder_of_classes(tmp_path, capsys):
    data = write(tmp_path / "data", classes("bus", "car", "tram"))
    main(["--data", str(data), "--out", str(tmp_path / "s.csv")])
    split = read_split(tmp_path / "s.csv")
    assert [row.file for row in split.rows] == sorted(classes("bus", "car", "tram"))
    assert split.classes == ["bus", "car", "tram"] and split.folds == 5
    assert all(row.label == row.file.split("/")[0] and row.role == "train" for row in split.rows)
    # 10 images of each class in 5 folds: 2 of each class in every fold
    places = [(name, fold) for name in split.classes for fold in range(5)]
    assert Counter((row.label, row.fold) for row in split.rows) == dict.fromkeys(places, 2)
    assert "30 images, 3 classes, 30 groups; train 30 in 5 folds of 6 to 6, unlabeled 0, test 0" in capsys.readouterr().out


@pytest.mark.parametrize("unlabeled", ["unlabeled", "unlabelled"])
def test_layout_of_the_contest(tmp_path, unlabeled):
    data = write(tmp_path, {**classes("bus", "car", below="train/"), "test/x.jpg": None, "test/car/y.jpg": None,
                            "test/batch/z.jpg": None, f"{unlabeled}/car/u.jpg": None})
    split = make_split(data)
    assert split.classes == ["bus", "car"] and len(split.part("train")) == 20
    assert {row.file: row.label for row in split.part("test")} == {"test/x.jpg": "", "test/car/y.jpg": "car",
                                                                   "test/batch/z.jpg": ""}
    assert [(row.file, row.label) for row in split.part("unlabeled")] == [(f"{unlabeled}/car/u.jpg", "")]
    write(data, {"extra/v.jpg": None})
    with pytest.raises(UserError, match="train/ and extra/ side by side"):
        make_split(data)


def test_train_is_a_class_where_nothing_else_says_so(tmp_path):
    split = make_split(write(tmp_path, classes("train", "tram")))
    assert split.classes == ["train", "tram"]


def test_table_with_groups_in_any_order(tmp_path):
    """Folds do not depend on the order of the rows."""
    rng = random.Random(0)
    lines = [f"{name}/{i:02}.jpg,{name},{rng.randrange(25)}" for name in "abc" for i in range(40)]
    data = write(tmp_path / "data", {line.split(",")[0]: None for line in lines})
    split = make_split(data, table(tmp_path / "t.csv", lines, "file,label,group"), seed=3)
    rng.shuffle(lines)
    shuffled = make_split(data, table(tmp_path / "t.csv", lines, "file,label,group"), seed=3)
    assert [row.file for row in shuffled.rows] == [line.split(",")[0] for line in lines]
    assert set(shuffled.rows) == set(split.rows) and shuffled.digest() == split.digest()
    assert all(len(places) == 1 for places in by_group(split).values())
    assert make_split(data, tmp_path / "t.csv", seed=4).digest() != split.digest()


def test_equal_bytes_are_one_group_with_all_that_share_theirs(tmp_path):
    lines = [f"{name}/{i:02}.jpg,{name},{name}{i // 2}" for name in "ab" for i in range(20)]
    same = {"a/01.jpg": b"one", "a/04.jpg": b"one", "a/05.jpg": b"two", "a/09.jpg": b"two"}  # a0 = a2 = a4
    data = write(tmp_path / "data", {**{line.split(",")[0]: None for line in lines}, **same})
    split = make_split(data, table(tmp_path / "t.csv", lines, "file,label,group"))
    joined = [row for row in split.rows if row.group == "a0"]
    assert [row.file for row in joined] == [f"a/{i:02}.jpg" for i in (0, 1, 4, 5, 8, 9)]
    assert len({row.fold for row in joined}) == 1 and len(by_group(split)) == 20 - 2


def test_equal_bytes_with_two_labels(tmp_path):
    data = write(tmp_path, {**classes("a", "b"), "a/x.jpg": b"same", "b/y.jpg": b"same"})
    with pytest.raises(UserError, match="a/x.jpg and b/y.jpg have the same bytes and the labels 'a' and 'b'"):
        make_split(data)
    split = make_split(data, drop=True)
    assert {row.file for row in split.rows} == set(classes("a", "b"))


def test_what_is_no_file_is_not_read_for_its_bytes(tmp_path):
    """A broken link; pipes, of which nothing would ever come. They are found as unusable when images are read."""
    data = write(tmp_path, classes("a", "b"))
    (data / "a/link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(data / "a/pipe.jpg"), os.mkfifo(data / "b/pipe.jpg")
    assert len(make_split(data).rows) == 23
    with pytest.raises(UserError, match="pipe.jpg: not a regular file"):
        content_digest(data / "a/pipe.jpg")


def test_equal_bytes_in_training_and_test(tmp_path):
    data = write(tmp_path, {**classes("a", "b", below="train/"), "train/a/x.jpg": b"same", "test/y.jpg": b"same",
                            "unlabeled/z.jpg": b"same"})
    with pytest.raises(UserError, match="test/y.jpg in role test and train/a/x.jpg in role train"):
        make_split(data)
    split = make_split(data, drop=True)
    assert [row.file for row in split.part("test")] == ["test/y.jpg"] and len(split.rows) == 21


def test_test_images_by_folder_and_by_table(tmp_path):
    data = write(tmp_path / "data", {**classes("a", "b"), "held/1.jpg": None, "held/b/2.jpg": None})
    split = make_split(data, tests=["held"])
    assert [(row.file, row.label) for row in split.part("test")] == [("held/1.jpg", ""), ("held/b/2.jpg", "b")]
    assert make_split(data, tests=[str(data / "held")]).digest() == split.digest()
    labels = table(tmp_path / "labels.csv", ["held/1.jpg,a"], "file,label")
    split = make_split(data, tests=["held", str(labels)])
    assert [row.label for row in split.part("test")] == ["a", "b"]
    listed = table(tmp_path / "list.csv", ["a/00.jpg"], "file")
    first = make_split(data, tests=["held", str(listed)]).part("test")[0]
    assert (first.file, first.label, first.fold) == ("a/00.jpg", "a", -1)
    grouped = table(tmp_path / "groups.csv", ["a/00.jpg,g", "a/01.jpg,g"], "file,group")
    assert [row.group for row in make_split(data, tests=["held", str(grouped)]).part("test")[:2]] == ["g", "g"]
    with pytest.raises(UserError, match="a/00.jpg is listed twice"):
        make_split(data, tests=["held", str(table(tmp_path / "l.csv", ["a/00.jpg,a", "a/00.jpg,b"], "file,label"))])
    with pytest.raises(UserError, match="nowhere.*neither a CSV file nor a folder below"):
        make_split(data, tests=["nowhere"])
    with pytest.raises(UserError, match="a/99.jpg is not an image below"):
        make_split(data, tests=[str(table(tmp_path / "l.csv", ["a/99.jpg"], "file"))])


@pytest.mark.parametrize("share, unlabeled", [(.3, 0), (0, .25), (.2, .5)])
def test_shares_of_each_class_are_held_out_in_whole_groups(tmp_path, share, unlabeled):
    lines = [f"{name}/{i:02}.jpg,{name},{name}{i // 2}" for name in "abcd" for i in range(40)]
    data = write(tmp_path / "data", {line.split(",")[0]: None for line in lines})
    given = table(tmp_path / "t.csv", lines, "file,label,group")
    split = make_split(data, given, test_share=share, unlabeled_share=unlabeled)
    truth = {line.split(",")[0]: line.split(",")[1] for line in lines}
    for name in "abcd":
        count = Counter(row.role for row in split.rows if truth[row.file] == name)
        assert count["test"] == pytest.approx(40 * share, abs=1)          # a group has two images
        assert count["unlabeled"] == pytest.approx(40 * unlabeled, abs=2)  # and is taken after the first ones
    assert all(row.label == ("" if row.role == "unlabeled" else truth[row.file]) for row in split.rows)


def test_few_images_of_a_class_are_a_warning(tmp_path, capsys):
    data = write(tmp_path, {**classes("a"), **classes("b", each=2), **classes("c", each=1)})
    split = make_split(data, test_share=.9 / 2)
    assert "2 of 3 classes have fewer groups than the 5 folds, such as 'b' with" in capsys.readouterr().err
    assert {row.label for row in split.part("train")} == {"a", "b", "c"}  # a class keeps an image to learn from
    with pytest.raises(UserError, match="none with more than 10 groups: too few for 11 folds"):
        make_split(data, folds=11)


def test_given_folds_are_kept_and_leaks_refused(tmp_path):
    data = write(tmp_path / "data", {line.split(",")[0]: None for line in GOOD})
    split = make_split(data, table(tmp_path / "t.csv", GOOD))
    assert [",".join(map(str, row)) for row in split.rows] == GOOD
    with pytest.raises(UserError, match="gives folds, so --folds 3"):
        make_split(data, tmp_path / "t.csv", folds=3)
    leak = [line.replace("g2", "g1") for line in GOOD]
    with pytest.raises(UserError, match="group 'g1' has a/1.jpg in role train, fold 0 and a/2.jpg in role train, fold 1"):
        make_split(data, table(tmp_path / "t.csv", leak))
    leak = [line.replace("g5", "g1") for line in GOOD]
    with pytest.raises(UserError, match="group 'g1' has a/1.jpg in role train and t/1.jpg in role test"):
        make_split(data, table(tmp_path / "t.csv", leak))
    write(data, {"a/1.jpg": b"same", "b/2.jpg": b"same"})
    with pytest.raises(UserError, match="a/1.jpg and b/2.jpg have the same bytes"):
        make_split(data, table(tmp_path / "t.csv", GOOD))


@pytest.mark.parametrize("wrong, message", [
    (["a/1.jpg,a,g1,train,0", *GOOD], "a/1.jpg is listed twice"),
    ([GOOD[0].replace("train", "valid"), *GOOD[1:]], "role 'valid'; choose from train, unlabeled, test"),
    ([GOOD[0].replace("a,g1", ",g1"), *GOOD[1:]], "a/1.jpg of role train has no label"),
    ([GOOD[0].replace("train,0", "train,-1"), *GOOD[1:]], "a/1.jpg of role train has no fold"),
    ([GOOD[0].replace("train,0", "train,x"), *GOOD[1:]], "the fold 'x'"),
    ([GOOD[0].replace("train,0", "train,-2"), *GOOD[1:]], "the fold '-2'"),
    ([GOOD[0].replace("g1", ""), *GOOD[1:]], "a/1.jpg has no group"),
    ([GOOD[0].replace("a/1.jpg", "../1.jpg"), *GOOD[1:]], "'../1.jpg' is not a path below the data folder"),
    ([GOOD[0].replace("a/1.jpg", "/etc/1.jpg"), *GOOD[1:]], "'/etc/1.jpg' is not a path below the data folder"),
    ([*GOOD[:-1], GOOD[-1].replace(",,", ",a,")], "u/1.jpg of role unlabeled has a label"),
    ([*GOOD[:4], GOOD[4].replace("-1", "0")], "t/1.jpg of role test has the fold 0"),
    ([*GOOD[:5], GOOD[5].replace(",b,", ",z,")], "has the label 'z', which no image of role train has"),
    ([line.replace("g4", "g3") for line in GOOD], "the group 'g3' has b/1.jpg in role train, fold 0 and b/2.jpg in"),
    ([line.replace("g5", "g1") for line in GOOD], "'g1' has a/1.jpg in role train, fold 0 and t/1.jpg in role test"),
    ([line.replace("train,1", "train,2") for line in GOOD], r"the folds of role train are \[0, 2\]"),
    ([line.replace("train,1", "train,0") for line in GOOD], "at least two"),
    ([line.replace(",b,", ",a,") for line in GOOD], "1 class; there must be at least two"),
    ([GOOD[0] + ",more", *GOOD[1:]], "row 2 has not as many values"),
    ([*GOOD, "z/1.jpg,a"], "row 9 has not as many values"),
    (GOOD[4:], "the folds of role train are"),
])
def test_a_wrong_file_is_refused_in_one_line(tmp_path, wrong, message):
    assert len(read_split(table(tmp_path / "s.csv", GOOD)).rows) == len(GOOD)
    with pytest.raises(UserError, match=message) as error:
        read_split(table(tmp_path / "s.csv", wrong))
    assert "\n" not in str(error.value) and str(tmp_path / "s.csv") in str(error.value)


@pytest.mark.parametrize("data, message", [
    (b"", "no column 'file'"), (b"file,label\n", "no column 'group'"), (b"\xff\xfe", "not UTF-8"),
    (HEADER.encode() + b",extra\n", "a column 'extra' that is not known"),
    (HEADER.encode() + b",file\n", "a column 'file' that is not known, or twice"),
    (HEADER.encode() + b"\n\"a", "cannot be read"), (HEADER.encode() + b"\n" + b"a" * 200_000, "cannot be read"),
])
def test_what_is_no_split_is_refused(tmp_path, data, message):
    (tmp_path / "s.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "s.csv")
    with pytest.raises(UserError, match="No such file"):
        read_split(tmp_path / "none.csv")


def test_any_name_survives_the_file(tmp_path):
    names = ['a "b", c', "广告　一", "new\nline", "é\u200d", " blank "]
    split = Split([Row(f"{name}/{i}.jpg", name, f"{name}{i}", "train", i) for name in names for i in (0, 1)])
    write_split(tmp_path / "s.csv", split)
    assert read_split(tmp_path / "s.csv") == split
    with open(tmp_path / "s.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[0] == HEADER.split(",")
    with pytest.raises(ValueError, match="not UTF-8"):
        Split([*split.rows, Row("\udcff.jpg", "", "g", "test", -1)])


def test_parts_and_digest():
    rows = [Row(*line.split(",")[:4], int(line.split(",")[4])) for line in GOOD]
    split = Split(rows)
    assert [row.file for row in split.part("train", 1)] == ["a/2.jpg", "b/2.jpg"]
    assert split.part("train", other_than=1) == split.part("train", 0)
    assert [len(split.part(role)) for role in ROLES] == [4, 1, 2] and len(split.digest()) == 16
    assert Split(rows[::-1]).digest() == split.digest()
    others = [Split([row._replace(**{field: value}), *rows[1:]]) for row in rows[:1]
              for field, value in (("file", "a/3.jpg"), ("label", "b"), ("group", "g8"), ("fold", 1))]
    assert len({split.digest(), *(other.digest() for other in others)}) == 5


@pytest.mark.parametrize("options, message", [
    (["--folds", "1"], "--folds 1: give 2 to 100"), (["--seed", "-1"], "--seed -1"),
    (["--test-share", "nan"], "shares from 0 on"),
    (["--test-share", ".5", "--unlabeled-share", ".5"], "together at most .9"), (["--csv", "none.csv"], "No such file"),
])
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "s.csv"), *options])


def test_images_outside_folders_of_classes(tmp_path):
    with pytest.raises(UserError, match="loose.jpg lies in no folder of a class"):
        make_split(write(tmp_path, {**classes("a", "b"), "loose.jpg": None}))
