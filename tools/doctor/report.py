"""The document of `examine` as text for a terminal, and as one HTML file with the images that it names."""
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from augment.image_cache import SHARE, size_text
from eval.page import STYLE, small_jpeg
from inference.errors import printable
from inference.image import ImageError, map_ahead
from tools.doctor.checks import LONG

FEW = 8        # files or groups of a kind that the text names; the JSON document has all
MANY = 60      # that the page shows as images
MEMBERS = 4    # of a group that either shows
ODD = {
    "blank": "blank: an empty page, a lens cap; all of them are alike, yet each is a class",
    "small": "smaller than half of what the network takes, so blurred",
    "long": f"more than {LONG} times as long as wide, so squashed",
    "extension": "named as another format than they have (they are read all the same)",
    "name": "with control characters, or bytes that are no UTF-8, in their names",
}
SHARES = {"bytes": "the same bytes", "pixels": "the same pixels in other bytes", "picture": "the same image saved again"}


@dataclass
class Section:
    """A heading, lines, and rows of images: (heading of the row, [(path, caption)])."""
    title: str
    lines: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)


def text(document: dict) -> str:
    """The report for a terminal. Names are printable: see `printable`."""
    return "\n\n".join("\n  ".join((section.title, *section.lines)) for section in _sections(document))


def page(document: dict) -> str:
    """The report as one HTML file, its images inside."""
    sections = list(_sections(document))
    paths = {path for section in sections for _, row in section.rows for path, _ in row}
    images = dict(zip(paths, map_ahead(_image, paths)))
    head, *rest = sections
    body = "".join(f"<h2>{escape(section.title)}</h2>\n{_lines(section)}{_rows(section, images)}" for section in rest)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(head.title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }}
.rows {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; }}</style></head><body>
<h1>{escape(head.title)}</h1>
{_lines(head)}{body}</body></html>
"""


def _image(path):
    try:
        return small_jpeg(path)
    except ImageError:  # it was deleted in the meantime
        return ""


def _lines(section):
    return f"<pre>{escape(chr(10).join(section.lines))}</pre>\n" if section.lines else ""


def _rows(section, images):
    cards = []
    for heading, row in section.rows:
        figures = "".join(f'<figure><img alt="" src="{images[path]}"><figcaption>{escape(printable(caption))}</figcaption>'
                          "</figure>" for path, caption in row)
        cards.append(f'<div class="pair"><b>{escape(heading)}</b><div>{figures}</div></div>\n')
    return f'<div class="rows">{"".join(cards)}</div>\n' if cards else ""


def _sections(document) -> Iterator[Section]:
    roots, duplicates = document["roots"], document["duplicates"]
    train = [root for root in roots if root["role"] == "train"]
    title = f"{sum(root['images'] for root in train):,} images to train on"
    if len(roots) > len(train):
        title += f", {sum(root['images'] for root in roots) - sum(root['images'] for root in train):,} to evaluate on"
    yield Section(title, [f"{document['config']}, network input {document['image_size']} pixels"])
    if len(roots) > len(train):
        yield _leaks(duplicates)
    if document["refused"]:
        yield Section("Training would not begin", [printable(reason) for reason in document["refused"]])
    yield _skipped(document["left_out"])
    yield _contradictions(duplicates)
    for what, files in document["odd"].items():
        if files:
            yield _odd(what, files)
    others = [_others(root) for root in roots if root["other_files"] or root["hidden"]]
    if others:
        yield Section("Files that are ignored", others)
    yield _classes(document, train)
    labels = [line for root in roots if root.get("labels") for line in _labels(root)]
    if labels:
        yield Section("Images of each label", labels)
    if document["task"] != "registration":
        yield Section("What the run would cost", ["cost and time are estimated for task=registration alone; this config has "
                                                  f"task={document['task']}"])
    elif "cost" in document:
        yield _cost(document)


def _number(count, what):
    return f"{count:,} {what}{('es' if what.endswith('s') else 's') * (count != 1)}"


def _some(items, most, what="in the JSON document"):
    """The first of some lines, and how many there are beyond."""
    items = list(items)
    return items[:most] + ([f"... and {len(items) - most:,} more, {what}"] if len(items) > most else [])


def _member(member):
    of = f", label {member['label']}" if member["label"] else ""
    if not member["shares"]:
        return f"{member['path']} ({member['role']}{of})"
    more = [SHARES[member["shares"]], member["turned"]]
    return f"{member['path']} ({member['role']}{of}): {', '.join(filter(None, more))}"


def _groups(groups):
    lines = []
    for number, group in enumerate(groups[:FEW], 1):
        members = _shown_members(group)
        first, *others = (printable(_member(member)) for member in members)
        lines += [f"{number}. {first}", *(f"   {other}" for other in others)]
        if len(group["files"]) > len(members):
            lines.append(f"   and {len(group['files']) - len(members):,} more files")
    if len(groups) > FEW:
        lines.append(f"... and {len(groups) - FEW:,} more groups, in the JSON document")
    return lines


def _shown_members(group):
    """The first of each role, then others."""
    files = group["files"]
    first = [next((file for file in files if file["role"] == role), None) for role in ("train", "eval")]
    first = [file for file in first if file]
    return (first + [file for file in files if all(file is not other for other in first)])[:MEMBERS]


def _group_rows(groups):
    return [(f"{len(group['files']):,} files", [(member["path"], _member(member)) for member in _shown_members(group)])
            for group in groups[:MANY]]


def _leaks(duplicates):
    groups = [group for group in duplicates["groups"] if group["leak"]]
    if not groups:
        return Section("No leakage: no image to evaluate on is among those to train on")
    return Section(f"LEAKAGE: {_number(duplicates['leaked_eval_files'], 'file')} to evaluate on, of "
                   f"{_number(len(groups), 'image')} that are trained on too: take them out of one of the two",
                   _groups(groups), _group_rows(groups))


def _contradictions(duplicates):
    groups = [group for group in duplicates["groups"] if not group["leak"]]
    if not groups:
        return Section("No further duplicates" if duplicates["leaks"] else "No duplicates")
    repeats = duplicates["repeats"]
    lines = [f"Of {duplicates['files']:,} files in all groups {sum(repeats.values()):,} repeat an image: "
             + ", ".join(f"{repeats[kind]:,} {SHARES[kind]}" for kind in SHARES if kind in repeats)]
    if duplicates["contradictions"]:
        lines.append(f"{_number(duplicates['contradictions'], 'image')} of several classes, which the network would have "
                     "to tell apart though they look the same")
    if duplicates["labels_differ"]:
        lines.append(f"{_number(duplicates['labels_differ'], 'image')} of several labels, listed first")
    return Section(f"DUPLICATES: {_number(len(groups), 'image')} in more than one file", lines + _groups(groups),
                   _group_rows(groups))


def _skipped(files):
    if not files:
        return Section("Every image can be used")
    lines = []
    reasons = Counter(file["reason"] for file in files)
    for reason, count in itertools.islice(reasons.most_common(), FEW):
        names = [printable(file["path"]) for file in files if file["reason"] == reason]
        lines += [f"{reason}: {count:,}", *(f"   {line}" for line in _some(names, FEW))]
    if len(reasons) > FEW:
        others = len(files) - sum(count for _, count in reasons.most_common(FEW))
        lines.append(f"... and {others:,} for other reasons, in the JSON document")
    return Section(f"SKIPPED: {_number(len(files), 'file')} that training cannot use", lines)


def _odd(what, files):
    lines = [f"{printable(file['path'])}{': ' * bool(file['more'])}{file['more']}" for file in files]
    rows = [] if what in ("extension", "name") else [
        (file["more"] or what, [(file["path"], file["path"])]) for file in files[:MANY]]
    return Section(f"{_number(len(files), 'file')} {ODD[what]}", _some(lines, FEW), rows)


def _others(root):
    counts = ", ".join(f"{count:,} {printable(extension) or 'without extension'}"
                       for extension, count in itertools.islice(root["other_files"].items(), FEW))
    rest = sum(root["other_files"].values())
    parts = [f"{_number(rest, 'file')} without an image's extension ({counts})"] if rest else []
    if root["hidden"]:
        hidden = ", ".join(_some(map(printable, root["hidden"]), 3))
        parts.append(f"{_number(len(root['hidden']), 'hidden image')} ({hidden})")
    return f"{printable(root['folder'])}: {'; '.join(parts)}"


def _classes(document, train):
    table = [("root", "images", "expansion", "classes", "samples", "with 1", "with 8", "with 24")]
    for root in train:
        table.append((printable(root["folder"]), f"{root['usable']:,}",
                      f"{root['expansion']}{', labelled' * root['labelled']}",
                      f"{root['classes']:,}", f"{root['samples']:,}",
                      *(f"{counts['classes']:,}" for counts in root["if_expansion"].values())))
    if len(train) > 1:
        table.append(("in all", f"{sum(root['usable'] for root in train):,}", "", f"{document['classes']:,}",
                      f"{document['samples']:,}",
                      *(f"{counts['classes']:,}" for counts in document["if_expansion"].values())))
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths))) for row in table]
    if shared := document["shared_labels"]:
        lines.append(f"{_number(len(shared), 'label')} under several roots, each one class: "
                     + ", ".join(_some(map(printable, shared), FEW)))
    return Section(f"{document['classes']:,} classes, {document['samples']:,} samples in an epoch", lines)


def _labels(root):
    labels = root["labels"]
    yield (f"{printable(root['folder'])} ({root['role']}): {_number(labels['number'], 'label')} of {labels['fewest']:,} to "
           f"{_number(labels['most'], 'image')}, half of them of at most {labels['median']:g}; the most has "
           + printable(labels["largest"]))
    if labels["of_one_image"]:
        yield (f"   {_number(len(labels['of_one_image']), 'label')} of one image: "
               + ", ".join(_some(map(printable, labels["of_one_image"]), FEW)))


def _cost(document):
    cost = document["cost"]
    cache, per = cost["cache"], cost["centres_per_process"]
    lines = []
    if cache["folder"]:
        lines.append(f"image cache: {size_text(cache['bytes'])} for images of {cache['side']} x {cache['side']} pixels, in "
                     f"{printable(cache['folder'])}, where {size_text(cache['free'])} are free")
        if cache["bytes"] > SHARE * cache["free"]:
            lines.append("   not enough: images that do not fit would be decoded each time (cache=FOLDER: elsewhere)")
    else:
        lines.append("image cache: none; images are decoded each time")
    lines.append("class centers and their optimizer state: "
                 + ", ".join(f"{size_text(size)} in each of {_number(int(world), 'process')}" for world, size in per.items())
                 + "; about as much host memory again for checkpoints")
    lines.append(f"a checkpoint: {size_text(cost['checkpoint'])}; {cost['checkpoints_kept']} are kept, and one more while "
                 "it is written")
    lines.append(f"{cost['steps']:,} steps of {cost['batch_size']:,} images; a network of {cost['parameters']:,} parameters")
    if "time" in cost:
        measured = cost["time"]
        hours = cost["steps"] * cost["batch_size"] / measured["images_per_second"] / 3600
        lines.append(f"time: {hours:,.1f} hours on this machine with one process ({measured['device']}), as measured: "
                     f"{measured['images_per_second']:,.0f} images/s; an image takes {measured['network_ms']:.2f} ms in "
                     f"augmentation and network, {measured['head_ms']:.2f} ms in the softmax over all classes")
    return Section("What the run would cost", lines)
