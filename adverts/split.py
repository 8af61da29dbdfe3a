"""The split of a data set: which images are learned from, in which fold, and which are only predicted.

    python -m adverts split --data DIR --out split.csv                    # DIR/CLASS/*.jpg
    python -m adverts split --data DIR --out split.csv                    # DIR/train/CLASS/*, DIR/test/*, DIR/unlabeled/*
    python -m adverts split --data DIR --csv FILE.csv --test-share .3 --out split.csv

FILE.csv: columns file and label, and if wanted group, role, fold; a file is a path below DIR. Images of one group, and files
of equal bytes, never stand in different folds or roles: with a part of them in the training set, a score would be too good.
Classes are spread evenly over the folds.

split.csv: UTF-8, header `file,label,group,role,fold`. role `train`: has a label and a fold from 0 on. `unlabeled`: only
predicted, for a student to learn from. `test`: predicted for the submission; its label, where it is known, is used for
scores alone. The fold of the last two is -1.
"""
import csv
import hashlib
import io
import json
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from inference.cli import Parser
from inference.errors import UserError, first_line, printable
from inference.files import replacing
from inference.image import list_images, map_ahead, type_label

COLUMNS = ("file", "label", "group", "role", "fold")
ROLES = ("train", "unlabeled", "test")
FOLDERS = {"test": "test", "unlabeled": "unlabeled", "unlabelled": "unlabeled"}  # beside train/, and in both spellings
STRENGTH = ("unlabeled", "train", "test")  # of a group with several roles, the strongest is kept by --drop-conflicts


class Row(NamedTuple):
    """One image. file: its sample id, the path below the data folder, '/'-joined. label: "" where it is not known."""
    file: str
    label: str
    group: str
    role: str
    fold: int


@dataclass(frozen=True)
class Split:
    """All images of a data set. Raises ValueError, one line, unless the rows obey the rules in this module's docstring."""
    rows: list[Row]

    def __post_init__(self):
        _check_rows(self.rows)
        _check_groups(self.rows)
        folds, classes = Counter(row.fold for row in self.part("train")), set(self.classes)
        if len(folds) < 2 or sorted(folds) != list(range(len(folds))):
            raise ValueError(f"the folds of role train are {sorted(folds)}; they must be 0, 1, ... and at least two")
        if len(classes) < 2:
            raise ValueError(f"role train has {len(classes)} class; there must be at least two")
        if other := [row for row in self.rows if row.role == "test" and row.label and row.label not in classes]:
            raise ValueError(f"{other[0].file} of role test has the label {other[0].label!r}, which no image of role train "
                             "has; leave it empty")

    @property
    def classes(self) -> list[str]:
        """The labels of role train, sorted."""
        return sorted({row.label for row in self.rows if row.role == "train"})

    @property
    def folds(self) -> int:
        return 1 + max(row.fold for row in self.rows)

    def part(self, role: str, fold: int | None = None, other_than: int | None = None) -> list[Row]:
        """The rows of a role, in order; of one fold, or of all folds other than one."""
        return [row for row in self.rows if row.role == role and (fold is None or row.fold == fold)
                and (other_than is None or row.fold != other_than)]

    def digest(self) -> str:
        """16 hex digits of all that the rows say, whatever their order."""
        return hashlib.blake2b(json.dumps(sorted(self.rows)).encode(), digest_size=8).hexdigest()


def _check_rows(rows):
    """Each row by itself, and that no file comes twice."""
    for row in rows:
        path = PurePosixPath(row.file)
        if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != row.file:
            raise ValueError(f"{row.file!r} is not a path below the data folder, such as train/cats/1.jpg")
        if row.role not in ROLES:
            raise ValueError(f"{row.file} has the role {row.role!r}; choose from {', '.join(ROLES)}")
        if not row.group:
            raise ValueError(f"{row.file} has no group; give it one, such as its own name")
        if row.role == "train" and not (row.label and row.fold >= 0):
            raise ValueError(f"{row.file} of role train has no {'fold' if row.label else 'label'}")
        if row.role != "train" and row.fold != -1:
            raise ValueError(f"{row.file} of role {row.role} has the fold {row.fold}; it must be -1")
        if row.role == "unlabeled" and row.label:
            raise ValueError(f"{row.file} of role unlabeled has a label; leave it empty")
        if any("\ud800" <= letter <= "\udfff" for text in row[:3] for letter in text):  # from a name that is no UTF-8
            raise ValueError(f"{row.file}: a name in its row is not UTF-8; rename the file or its folder")
    if again := [file for file, count in Counter(row.file for row in rows).items() if count > 1]:
        raise ValueError(f"{again[0]} is listed twice; remove one of the two")


def _check_groups(rows):
    places = defaultdict(dict)  # group: {(role, fold): a file there}
    for row in rows:
        places[row.group].setdefault((row.role, row.fold), row.file)
    for group, found in places.items():
        if len(found) > 1:
            (first, a), (second, b), *_ = found.items()
            raise ValueError(f"the group {group!r} has {a} in {_place(*first)} and {b} in {_place(*second)}; put all of it "
                             "in one place")


def _place(role, fold):
    return f"role train, fold {fold}" if role == "train" else f"role {role}"


def read_split(path) -> Split:
    """The split in a file. Raises UserError, one line, for all that is wrong with it."""
    rows = _read_csv(path, needed=COLUMNS)
    try:
        return Split([Row(row["file"], row["label"], row["group"], row["role"], _fold(row)) for row in rows])
    except ValueError as error:
        raise UserError(printable(f"{path}: {error}")) from None


def write_split(path, split: Split) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *split.rows])
    with replacing(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8", newline="")


def _read_csv(path, needed) -> list[dict[str, str]]:
    """The rows of a CSV file that has the columns `needed`, and beside them only such of a split."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, ValueError, csv.Error) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or first_line(error)
        raise UserError(printable(f"{path}: cannot be read ({reason}); give a CSV file with the columns "
                                  f"{', '.join(needed)}")) from None
    if missing := [column for column in needed if column not in columns]:
        raise UserError(printable(f"{path}: no column {missing[0]!r} in its first line; it needs {', '.join(needed)}"))
    if unknown := [column for place, column in enumerate(columns) if column not in COLUMNS or column in columns[:place]]:
        raise UserError(printable(f"{path}: has a column {unknown[0]!r} that is not known, or twice; rename it to one of "
                                  f"{', '.join(COLUMNS)}, or remove it"))
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}: row {number} has not as many values as the header has columns")
        if "role" in row:
            row["role"] = FOLDERS.get(row["role"], row["role"])
    return rows


def _fold(row):
    text = row.get("fold") or "-1"
    if not (text == "-1" or text.isdecimal() and len(text) < 5):
        raise ValueError(f"{row['file']} has the fold {text!r}; folds are 0, 1, ... and -1 means none")
    return int(text)


# -- from a folder to a split -----------------------------------------------------------------------------------------

def find_rows(data, tests: Iterable[str] = ()) -> list[Row]:
    """The images below a folder; group and fold are not set yet. A folder of `tests`, below `data`, has images of role test,
    whose label is known where they lie in a folder named like a class."""
    names = list_images(data)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    prefixes = {_below(data, folder) + "/": "test" for folder in tests}
    learned = ""
    if "train" in tops and tops & set(FOLDERS):
        if other := tops - {"train", *FOLDERS}:
            raise UserError(printable(f"{data}: has train/ and {min(other)}/ side by side; give the role of each file by "
                                      "--csv, or move that folder away"))
        learned = "train/"
        prefixes |= {f"{folder}/": role for folder, role in FOLDERS.items()}
    found = []
    for name in names:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), learned)
        rest = name.removeprefix(prefix)
        role = prefixes.get(prefix, "train")
        if role == "train" and (rest == name and learned or "/" not in rest):
            raise UserError(printable(f"{data}: {name} lies in no folder of a class; move it into one, or give the labels "
                                      "by --csv"))
        found.append(Row(name, type_label(rest) if "/" in rest else "", "", role, -1))
    classes = {row.label for row in found if row.role == "train"}
    return [row._replace(label=row.label if row.role == "train" or row.role == "test" and row.label in classes else "")
            for row in found]


def table_rows(data, path) -> list[Row]:
    """The images that a CSV file lists. Without a role, a row with a label is for training and one without is unlabeled."""
    found = []
    for row in _read_csv(path, needed=("file", "label")):
        role = row.get("role") or ("train" if row["label"] else "unlabeled")
        label = "" if role == "unlabeled" else row["label"]
        try:
            found.append(Row(row["file"], label, row.get("group") or "", role, _fold(row)))
        except ValueError as error:
            raise UserError(printable(f"{path}: {error}")) from None
    if not found:
        raise UserError(f"{path}: no rows below its header")
    for row in found:
        if not os.path.isfile(os.path.join(data, row.file)):
            raise UserError(printable(f"{path}: {row.file} is not below {data}; check --data, or remove the row"))
    return found


def with_tests(rows: list[Row], data, path) -> list[Row]:
    """The rows, with those that a CSV file lists as role test; its labels and groups, if it has columns for them, are
    known."""
    found = _read_csv(path, needed=("file",))
    listed = {row["file"]: row for row in found}
    if len(listed) < len(found):
        again, _ = Counter(row["file"] for row in found).most_common(1)[0]
        raise UserError(printable(f"{path}: {again} is listed twice; remove one of the two"))
    if missing := listed.keys() - {row.file for row in rows}:
        raise UserError(printable(f"{path}: {min(missing)} is not an image below {data}"))
    return [row._replace(role="test", fold=-1, label=listed[row.file].get("label", row.label),
                         group=listed[row.file].get("group") or row.group) if row.file in listed else row for row in rows]


def _below(data, folder):
    """The path of a folder, given as it is or relative to `data`, below `data`."""
    root = os.path.realpath(data)
    for path in (os.path.join(data, folder), folder):
        real = os.path.realpath(path)
        if os.path.isdir(real) and real.startswith(root + os.sep):
            return Path(real).relative_to(root).as_posix()
    raise UserError(printable(f"--test {folder}: neither a CSV file nor a folder below {data}"))


def same_bytes(data, files: list[str]) -> dict[str, str]:
    """{file: the first file that has the same bytes}, of the files that are not the first. Only files whose sizes are equal
    are read; what is no file, such as a broken link, is like nothing else, and is found when the images are read."""
    by_size = defaultdict(list)
    for file in files:
        path = os.path.join(data, file)
        if os.path.isfile(path):
            by_size[os.path.getsize(path)].append(file)
    suspects = [file for alike in by_size.values() if len(alike) > 1 for file in alike]
    first, found = {}, {}
    for file, digest in zip(suspects, map_ahead(lambda file: content_digest(os.path.join(data, file)), suspects)):
        original = first.setdefault(digest, file)
        if original != file:
            found[file] = original
    return found


def content_digest(path) -> str:
    """The digest of a file's bytes that `b2sum -l 128` prints, as `dataset.ImageFolders` has it."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
            raise UserError(printable(f"{path}: not a regular file; remove it"))
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise UserError(printable(f"{path}: cannot be read ({error.strerror}); check its permissions")) from None
    return digest.hexdigest()


def join_groups(rows: list[Row], same: dict[str, str]) -> list[Row]:
    """The rows with their final groups: what shares a group, or bytes (`same_bytes`), is one group, which has the least of
    their names. An image without a group is one by itself, named after its file."""
    parent = {}

    def root(name):
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]  # so that chains stay short
            name = above
        return name

    group = {row.file: row.group or row.file for row in rows}
    for file, original in same.items():
        a, b = sorted((root(group[file]), root(group[original])))
        parent[b] = a
    return [row._replace(group=root(group[row.file])) for row in rows]


def settle(rows: list[Row], same: dict[str, str], drop: bool) -> list[Row]:
    """The rows without contradictions: equal bytes with two labels in role train, and groups with several roles. Raises
    UserError that names one of each kind, unless `drop`: then the images whose label is in doubt are dropped, and of a
    group those outside its strongest role (test, train, unlabeled)."""
    labels, dropped = defaultdict(dict), set()
    for row in rows:
        if row.role == "train":
            labels[same.get(row.file, row.file)].setdefault(row.label, row.file)
    for original, found in labels.items():
        if len(found) > 1:
            if not drop:
                (label, file), (other, again), *_ = found.items()
                raise UserError(printable(f"{file} and {again} have the same bytes and the labels {label!r} and {other!r}; "
                                          "correct one, or give --drop-conflicts to learn from neither"))
            dropped |= {row.file for row in rows if row.role == "train" and same.get(row.file, row.file) == original}
    roles = defaultdict(dict)
    for row in rows:
        roles[row.group].setdefault(row.role, row.file)
    for group, found in roles.items():
        if len(found) > 1 and not drop:
            (role, file), (other, again), *_ = found.items()
            raise UserError(printable(f"the group {group!r} has {file} in role {role} and {again} in role {other}, so a "
                                      "score would be too good; correct it, or give --drop-conflicts to drop the images of "
                                      "the group that are not for testing"))
    strongest = {group: max(found, key=STRENGTH.index) for group, found in roles.items()}
    return [row for row in rows if row.file not in dropped and row.role == strongest[row.group]]


def hold_out(rows: list[Row], role: str, share: float, seed: int) -> list[Row]:
    """The rows, with groups that hold about `share` of the training images of each class moved to another role. A class
    keeps at least one training image."""
    train = sorted(row for row in rows if row.role == "train")
    have, taken, groups = Counter(row.label for row in train), Counter(), defaultdict(Counter)
    for row in train:
        groups[row.group][row.label] += 1
    chosen, names = set(), sorted(groups)
    for place in np.random.default_rng([seed, STRENGTH.index(role)]).permutation(len(names)) if share else ():
        counts = groups[names[place]]
        if all(taken[label] + count <= min(share * have[label] + .5, have[label] - 1) for label, count in counts.items()):
            chosen.add(names[place])
            taken += counts
    return [row._replace(role=role, fold=-1, label=row.label if role == "test" else "")
            if row.role == "train" and row.group in chosen else row for row in rows]


def assign_folds(rows: list[Row], folds: int, seed: int) -> list[Row]:
    """The rows, with a fold for each of role train: groups stay whole, classes are spread evenly; whatever the order."""
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import
    train = sorted(row for row in rows if row.role == "train")
    groups = defaultdict(set)
    for row in train:
        groups[row.label].add(row.group)
    most = max(map(len, groups.values()), default=0)
    if len(groups) < 2 or most < folds:
        raise UserError(f"{len(groups)} classes, and none with more than {most} groups: too few for {folds} folds; give "
                        "more images, or fewer --folds")
    if few := sorted(label for label in groups if len(groups[label]) < folds):
        print(printable(f"warning: {len(few)} of {len(groups)} classes have fewer groups than the {folds} folds, such as "
                        f"{few[0]!r} with {len(groups[few[0]])}: not every fold has images of them"), file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says the same, without names
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
            np.zeros(len(train)), [row.label for row in train], [row.group for row in train])
        fold_of = {train[place].file: fold for fold, (_, held) in enumerate(parts) for place in held}
    if len(set(fold_of.values())) < folds:
        raise UserError(f"the groups are so large that a fold stays empty; give fewer --folds than {folds}")
    return [row._replace(fold=fold_of.get(row.file, -1)) for row in rows]


def make_split(data, table=None, tests=(), folds: int | None = None, seed: int = 0, test_share: float = 0,
               unlabeled_share: float = 0, drop: bool = False) -> Split:
    """The split of the images below `data`, or of those that the CSV file `table` lists; see the command's --help. Folds
    that the table gives are kept. Raises UserError, one line, for what cannot be split without a leak."""
    tables = [test for test in tests if os.path.isfile(test) and test.lower().endswith(".csv")]
    folders = [test for test in tests if test not in tables]
    if table and folders:
        raise UserError(f"--test {folders[0]}: with --csv, its column role tells which images are for testing")
    rows = table_rows(data, table) if table else find_rows(data, folders)
    for test in tables:
        rows = with_tests(rows, data, test)
    same = same_bytes(data, [row.file for row in rows])
    rows = settle(join_groups(rows, same), same, drop)
    rows = hold_out(rows, "test", test_share, seed)
    rows = hold_out(rows, "unlabeled", unlabeled_share / (1 - test_share), seed)
    given = [row.fold >= 0 for row in rows if row.role == "train"]
    if any(given) and folds:
        raise UserError(f"{table}: gives folds, so --folds {folds} has no place; leave the column fold empty, or the option")
    if not any(given):
        rows = assign_folds(rows, folds or 5, seed)
    try:
        return Split(rows)
    except ValueError as error:
        raise UserError(printable(f"{table or data}: {error}")) from None


def summary(split: Split) -> str:
    """The split in one line."""
    sizes = [len(split.part("train", fold)) for fold in range(split.folds)]
    test = split.part("test")
    groups = {row.group for row in split.rows}
    return (f"{len(split.rows):,} images, {len(split.classes):,} classes, {len(groups):,} groups; "
            f"train {sum(sizes):,} in {split.folds} folds of {min(sizes):,} to {max(sizes):,}, "
            f"unlabeled {len(split.part('unlabeled')):,}, "
            f"test {len(test):,} ({sum(bool(row.label) for row in test):,} with a label)")


def add_options(parser) -> None:
    """The options that say how to split, of this command and of `adverts run`."""
    parser.add_argument("--csv", metavar="FILE.csv", help="the images: file,label and if wanted group,role,fold")
    parser.add_argument("--test", nargs="+", default=[], metavar="DIR|CSV", help="images for testing: a folder below "
                        "--data, or a CSV file with the column file and, where it is known, label")
    parser.add_argument("--folds", type=int, metavar="K", help="parts of the training images (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--test-share", type=float, default=0, metavar="F", help="share of the training images to hold "
                        "out for testing")
    parser.add_argument("--unlabeled-share", type=float, default=0, metavar="F", help="share of the training images to "
                        "hold out, without their labels, for teachers to label")
    parser.add_argument("--drop-conflicts", action="store_true", help="drop images of equal bytes with different labels, "
                        "and training images whose group has test images, instead of refusing them")


def split_arguments(args) -> list[str]:
    """The words that give the options of `add_options` again."""
    found = [] if args.csv is None else ["--csv", args.csv]
    found += ["--test", *args.test] if args.test else []
    for name, default in (("folds", None), ("seed", 0), ("test_share", 0), ("unlabeled_share", 0)):
        value = getattr(args, name)
        found += [] if value == default else [f"--{name.replace('_', '-')}", str(value)]
    return found + (["--drop-conflicts"] if args.drop_conflicts else [])


def check_options(args) -> None:
    """Raises UserError for values of the options of `add_options` that are out of range."""
    if args.folds is not None and not 2 <= args.folds <= 100:
        raise UserError(f"--folds {args.folds}: give 2 to 100")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 on")
    if not (args.test_share >= 0 and args.unlabeled_share >= 0 and args.test_share + args.unlabeled_share <= .9):
        raise UserError("--test-share and --unlabeled-share: shares from 0 on, together at most .9")


def main(arguments=None):
    parser = Parser(prog="python -m adverts split", description=__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--out", required=True, metavar="split.csv", help="where the split is written")
    add_options(parser)
    args = parser.parse_args(arguments)
    check_options(args)
    split = make_split(args.data, args.csv, args.test, args.folds, args.seed, args.test_share, args.unlabeled_share,
                       args.drop_conflicts)
    write_split(args.out, split)
    print(printable(f"{args.out}: {summary(split)}"))
