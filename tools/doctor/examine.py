"""All that is found out about folders before a run, as one document: what `--json` prints and the reports show."""
import os
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from backbones import get_model
from dataset import EXPANSIONS, Root, list_roots, resized_side
from engine.distributed import process_group
from eval.folder import find_images
from inference.image import type_label
from tools.doctor.checks import Look, look_at_all, others_below
from tools.doctor.duplicates import find_groups
from tools.doctor.estimate import cost, measure

TURNS = ("", "turned by 90 degrees", "turned by 180 degrees", "turned by 270 degrees", "mirrored and turned by 180 degrees",
         "mirrored and turned by 90 degrees", "mirrored", "mirrored and turned by 270 degrees")  # the views of `view_of`


class File(NamedTuple):
    """One image file: the number of its root, its name below that, and its label, "" where every file is a class."""
    root: int
    name: str
    path: str
    label: str


def examine(cfg, eval_folders: list[str], time_it: bool = True, progress: bool = True) -> dict:
    """What the roots `cfg.data` and the folders of types to evaluate on hold, what is wrong with them, and what `cfg`'s run
    would cost. Raises UserError for folders that cannot be used at all. progress: bars on stderr, if that is a terminal."""
    listed = list_roots(cfg.data, cfg.expansion)
    train = len(listed)
    listed += [(Root(Path(folder), 1, True), [item.name for item in find_images(folder)]) for folder in eval_folders]
    files = [File(number, name, os.path.join(root.folder, name), type_label(name) if root.labelled else "")
             for number, (root, names) in enumerate(listed) for name in names]
    roots = [root for root, _ in listed]
    estimated = cfg.task == "registration"  # cost and time are, of the one task that has class centers
    network = get_model(cfg, False) if estimated else None  # random weights take the same time; errors are found first
    side = resized_side(cfg.image_size, roots[:train])
    paths = [file.path for file in files]
    looks = list(tqdm(look_at_all(paths, side, cfg.image_size), "looking at images", len(files), unit="img",
                      disable=None if progress else True))
    groups = [_group(members, files, roots, train) for members in find_groups(paths, looks, progress)]
    usable = [[file for file, look in zip(files, looks) if file.root == number and not look.reason]
              for number in range(len(roots))]
    entries = [_root(root, "train" if number < train else "eval", names, usable[number])
               for number, (root, names) in enumerate(listed)]
    images = sum(map(len, usable[:train]))
    views = _views(roots[:train], usable)
    document = {
        "task": cfg.task,
        "image_size": cfg.image_size,
        "roots": entries,
        "refused": _refused(groups, entries),
        "left_out": [{"path": file.path, "reason": look.reason} for file, look in zip(files, looks) if look.reason],
        "odd": _odd(files, looks),
        "duplicates": _duplicates(groups),
        "classes": sum(views.values()),
        "samples": sum(entry["samples"] for entry in entries[:train]),
        "if_expansion": _if_expansion(len(views), images),
        "shared_labels": _shared_labels(roots[:train], usable),
    }
    if estimated and images:
        document["cost"] = cost(cfg, roots[:train], images, document["classes"], document["samples"], network)
        if time_it:
            with process_group(cfg.device) as ranks, torch.random.fork_rng():
                most = max(root.expansion for root in roots[:train])
                document["cost"]["time"] = measure(cfg, document["classes"], most, side, network, ranks.device)
    return document


def _views(roots: list[Root], usable: list[list[File]]) -> dict[tuple[str, str], int]:
    """{what is one local class: how many views of it are classes}, as `dataset.ImageFolders` counts them: (label, "") with
    the largest expansion of its roots, or ("", path) of an image without a label."""
    views = {}
    for root, files in zip(roots, usable):
        for file in files:
            key = file.label, "" if file.label else file.path
            views[key] = max(views.get(key, 0), root.expansion)
    return views


def _shared_labels(roots: list[Root], usable: list[list[File]]) -> list[str]:
    """The labels that stand under several roots."""
    counts = Counter()
    for root, files in zip(roots, usable):
        counts.update({file.label for file in files if root.labelled})
    return sorted(label for label, count in counts.items() if count > 1)


def _if_expansion(classes: int, images: int) -> dict[str, dict]:
    """What each expansion would make of so many local classes and images."""
    return {str(expansion): {"classes": classes * expansion, "samples": images * expansion} for expansion in EXPANSIONS}


def _root(root: Root, role: str, names: list[str], usable: list[File]) -> dict:
    """What there is below one folder, and the classes that it makes."""
    others, hidden = others_below(root.folder)
    labels = Counter(file.label for file in usable) if root.labelled else None
    classes = len(usable) if labels is None else len(labels)
    entry = {"folder": str(root.folder), "role": role, "expansion": root.expansion, "labelled": root.labelled,
             "images": len(names), "usable": len(usable), "classes": classes * root.expansion,
             "samples": len(usable) * root.expansion,
             "if_expansion": _if_expansion(classes, len(usable)),
             "other_files": dict(sorted(others.items(), key=lambda item: (-item[1], item[0]))),
             "hidden": [os.path.join(root.folder, name) for name in hidden]}
    if labels:
        most, count = labels.most_common(1)[0]
        entry["labels"] = {"number": len(labels), "fewest": min(labels.values()), "most": count, "largest": most,
                           "median": statistics.median(labels.values()),
                           "of_one_image": sorted(label for label, images in labels.items() if images == 1)}
    return entry


def _refused(groups, entries):
    """Why training would not even begin."""
    refused = [f"{entry['folder']}: none of its images can be used" for entry in entries
               if entry["role"] == "train" and not entry["usable"]]
    for group in groups:
        real = defaultdict(list)
        for member in group["files"]:
            if member["role"] == "train":
                real[os.path.realpath(member["path"])].append(member["path"])
        refused += [f"{paths[0]} is {paths[1]} as well: one file under several roots" for paths in real.values()
                    if len(paths) > 1]
    return refused


def _odd(files: list[File], looks: list[Look]) -> dict[str, list[dict]]:
    """{what: [{"path", "more"}]} of files that training takes as they are."""
    odd = {"blank": [], "small": [], "long": [], "extension": [], "name": []}
    for file, look in zip(files, looks):
        if look.blank:
            odd["blank"].append({"path": file.path, "more": ""})
        for what, more in (look.odd or {}).items():
            odd[what].append({"path": file.path, "more": more})
        if not file.name.isprintable():  # nor is a byte that is no UTF-8
            odd["name"].append({"path": file.path, "more": ""})
    return odd


def _group(members, files: list[File], roots: list[Root], train: int) -> dict:
    """One group of duplicates. contradiction: it would be several classes in training, or several types in evaluation."""
    entries, trained, evaluated = [], set(), set()
    # One image in two orientations is two views of a label; where there are views, they are classes.
    turned = {files[member.file].label for member in members if roots[files[member.file].root].expansion > 1}
    for member in members:
        file = files[member.file]
        role = "train" if file.root < train else "eval"
        if role == "train":
            trained.add((file.label, member.view * (file.label in turned)) if file.label else member.file)
        else:
            evaluated.add(file.label)
        entries.append({"path": file.path, "role": role, "label": file.label, "shares": member.kind,
                        "turned": TURNS[member.view], "difference": round(member.difference, 3)})
    return {"leak": bool(trained and evaluated), "contradiction": len(trained) > 1 or len(evaluated) > 1,
            "labels_differ": len({entry["label"] for entry in entries if entry["role"] == "train" and entry["label"]}) > 1
            or len(evaluated) > 1, "files": entries}


def _duplicates(groups: list[dict]) -> dict:
    groups = sorted(groups, key=lambda group: (not group["leak"], not group["labels_differ"], not group["contradiction"]))
    leaks = [group for group in groups if group["leak"]]
    role = Counter(member["role"] for group in leaks for member in group["files"])
    return {"groups": groups, "leaks": len(leaks), "leaked_train_files": role["train"], "leaked_eval_files": role["eval"],
            "contradictions": sum(group["contradiction"] for group in groups),
            "labels_differ": sum(group["labels_differ"] for group in groups),
            "files": sum(len(group["files"]) for group in groups),
            "repeats": Counter(member["shares"] for group in groups for member in group["files"] if member["shares"])}
