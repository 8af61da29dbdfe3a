"""Write folders of synthetic documents, with one folder per type, and an overview image.

A folder is complete or absent: it is written under another name and then renamed. Its `synth.json` records the arguments;
when they are requested again, the folder is reused.
"""
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from engine.processes import map_processes
from inference.errors import UserError
from inference.files import replacing
from inference.image import ImageError, list_images, load_image
from synth.capture import capture
from synth.draw import text
from synth.fonts import available
from synth.templates import FAMILIES, look_alikes, render, type_name

MANIFEST = "synth.json"
LOOK_ALIKES = "look_alikes.tsv"  # a line for each type that has look-alikes in the folder: its name, then theirs
SMALLEST = 32  # least side in pixels of the user's own images; smaller ones are skipped, their captures would show nothing
SIDE = 400  # longest side in pixels to which the user's own images are reduced, about that of synthetic documents
NEVER_TRAINED = 1_000_000  # the first type of evaluation sets; training sets begin at 0, so they have no type in common


def write_train(folder, types, copies, seed, captures=0, workers=None):
    """Writes the types 0..types-1 as `folder/<type>/copy_N.jpg` (clean) and `capture_N.jpg` (synthetic captures).

    N is the copy id: 0..copies-1 for the clean copies, then `captures` more, so all images of a type have different fields.
    `folder/look_alikes.tsv` names types that differ in one thing alone, for sampler=hard_negatives.
    Returns the number of images in the folder. `workers`: number of processes, by default one per core; the written bytes do
    not depend on it. Raises UserError for numbers out of range, or for a folder with other content."""
    _require(1, types=types, copies=copies)
    _require(0, captures=captures)
    files = [(f"copy_{n}.jpg", n, False) for n in range(copies)]
    files += [(f"capture_{n}.jpg", n, True) for n in range(copies, copies + captures)]
    return _write_types(folder, range(types), files, seed, workers)


def write_eval(folder, types, captures, seed, first_type=NEVER_TRAINED, workers=None, alike=False):
    """Writes so many types, from first_type on, as `folder/<type>/reference.jpg` (clean) and `capture_N.jpg`.

    The reference is copy 0, and capture N is a synthetic capture of copy N = 1..captures, so all have different fields.
    alike: with types that are made to look alike; without, each of their groups has one type, since they alone would decide
    the rates of what is rarely confused. Otherwise like `write_train`."""
    _require(1, types=types, captures=captures)
    _require(0, first_type=first_type)
    files = [("reference.jpg", 0, False)] + [(f"capture_{n}.jpg", n, True) for n in range(1, captures + 1)]
    chosen = (i for i in itertools.count(first_type)
              if alike or not any(first_type <= other < i for other in look_alikes(seed, i)))
    return _write_types(folder, list(itertools.islice(chosen, types)), files, seed, workers)


def write_captures(source, folder, captures, seed, severity=1.0, workers=None):
    """Writes `folder/<name>/reference.jpg` and synthetic captures of it, `capture_N.jpg`, for every image below `source`.

    The name is the path of the image without its extension (with it, where two names would be equal). The reference is the
    image, reduced to at most SIDE pixels on a side. `severity`, 0 to 4, is that of `capture`. Images that cannot be used,
    or have fewer than SMALLEST pixels on a side, are skipped.

    The folder can be trained on, as a labeled root, with stronger changes than augmentation makes; or the model can be
    evaluated on the user's own kinds of images. Returns the number of images in the folder."""
    _require(1, captures=captures)
    if not 0 <= severity <= 4:
        raise UserError(f"severity must be from 0 to 4, not {severity}")
    here, there = os.path.realpath(source), os.path.realpath(folder)
    if os.path.commonpath([here, there]) in (here, there):
        raise UserError(f"{folder}: give a folder that is neither inside {source} nor contains it")
    paths = {name: os.path.join(source, name) for name in list_images(source)}
    paths = {name: path for name, path in paths.items() if os.path.isfile(path)}
    if not paths:
        raise UserError(f"{source}: no images found")
    taken = Counter([*(os.path.splitext(name)[0] for name in paths), *paths])
    folders = [stem if taken[stem := os.path.splitext(name)[0]] == 1 else name for name in paths]
    jobs = [(at, seed, path, name, captures, severity) for at, (name, path) in zip(folders, paths.items())]
    manifest = {"seed": seed, "photos_of": files_digest(paths), "captures": captures, "severity": severity}
    return write_jobs(folder, _write_image, jobs, len(jobs) * (captures + 1), manifest, workers)


def _write_types(folder, type_ids, files, seed, workers):
    manifest = {"seed": seed, "first_type": type_ids[0], "types": len(type_ids), "last_type": type_ids[-1],
                "files": [f[0] for f in files]}
    jobs = [(type_name(type_id), seed, type_id, files) for type_id in type_ids]

    def finish(part):
        here = set(type_ids)
        groups = [[i, *(other for other in look_alikes(seed, i) if other in here)] for i in type_ids]
        lines = ["\t".join(map(type_name, group)) + "\n" for group in groups if len(group) > 1]
        (part / LOOK_ALIKES).write_text("".join(lines))

    return write_jobs(folder, _write_type, jobs, len(type_ids) * len(files), manifest, workers, finish)


def contact_sheet(file, seed, types=2 * len(FAMILIES), cell=300):
    """Writes an overview image with one type per row: two clean copies, then three captures of other copies."""
    rows = []
    for type_id in range(types):
        row = [_fitted(_image(seed, type_id, n, n > 1), cell - 12) for n in range(5)]
        sheet = np.full((max(len(image) for image in row) + 26, 5 * cell, 3), 235, np.uint8)
        text(sheet, 6, 4, type_name(type_id), "DejaVuSans", 12, (60, 60, 60))
        for i, image in enumerate(row):
            sheet[22:22 + len(image), 6 + i * cell:6 + i * cell + image.shape[1]] = image
        rows.append(sheet)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    data = _encode(file, np.vstack(rows))
    with replacing(file) as partial:
        partial.write_bytes(data)


def _fitted(image, side):
    scale = side / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _image(seed, type_id, copy_id, captured):
    image = render(seed, type_id, copy_id)
    return capture(image, seed, type_id, copy_id) if captured else image


def _encode(file, image):
    """The bytes of an image file whose format is that of the name `file`."""
    extension = os.path.splitext(file)[1].lower()
    if extension not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"{file}: this image format cannot be written; use a name that ends with .jpg or .png")
    return cv2.imencode(extension, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def _save(file, image):  # unlike cv2.imwrite, it raises on failure and takes any path
    file.write_bytes(_encode(file, image))


def _write_type(job):
    """Writes the folder of a type and returns the number of images. A job is a whole type, so that its art is drawn once."""
    folder, seed, type_id, files = job
    folder.mkdir()
    for file, copy_id, captured in files:
        _save(folder / file, _image(seed, type_id, copy_id, captured))
    return len(files)


def _write_image(job):
    """Writes the folder of one of the user's images. Returns the number of images, 0 for one that cannot be used."""
    folder, seed, source, name, captures, severity = job
    try:
        image = load_image(source)
    except ImageError:
        return 0
    if min(image.shape[:2]) < SMALLEST:
        return 0
    if max(image.shape[:2]) > SIDE:
        image = _fitted(image, SIDE)
    folder.mkdir(parents=True, exist_ok=True)  # a/b.jpg and a.jpg: the folder of the second contains that of the first
    _save(folder / "reference.jpg", image)
    for n in range(1, captures + 1):
        _save(folder / f"capture_{n}.jpg", capture(image, seed, os.fsencode(name).hex(), n, severity=severity))
    return captures + 1


def write_jobs(folder, write, jobs, total, manifest, workers, finish=None):
    """Runs `write(job)` for all jobs, then `finish` on the folder they wrote to, unless `folder` is the result of the same
    jobs already. The first element of a job is the name of a folder below `folder`. Returns the number of images; `total` is
    the number if none is skipped."""
    fonts = {script: os.path.basename(font) for script, font in available().items()}
    folder, manifest = Path(os.path.abspath(folder)), {**manifest, "code": _code_version(), "fonts": fonts}
    if folder.exists():
        old = _manifest_of(folder)
        if old is None and any(folder.iterdir()):
            raise UserError(f"{folder}: has files that synth did not write; give another folder or empty this one")
        written = (old or {}).pop("images", 0)
        if old == manifest:
            return written
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    jobs = [(part / name, *rest) for name, *rest in jobs]
    workers = min(workers or os.cpu_count() or 1, total // 200 + 1)  # a process takes a second to start
    began, written = time.perf_counter(), 0
    with tqdm(total=total, desc=f"synth {folder.name}", unit="img", disable=None) as bar:
        results = enumerate(map(write, jobs))
        if workers > 1:
            results = map_processes(functools.partial(_given, write), jobs, workers,
                                    f"{folder} is not written; give the command again, with fewer --workers")
        for _, count in results:
            written += count
            bar.update(count)
    if not written:
        shutil.rmtree(part)
        raise UserError(f"{folder}: not written, since none of the {len(jobs)} images can be used")
    if finish:
        finish(part)
    (part / MANIFEST).write_text(json.dumps({**manifest, "images": written}, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    seconds = time.perf_counter() - began
    print(f"{folder}: {written:,} images in {seconds:.1f} s, {written / seconds / workers:.0f} images/s per core "
          f"({workers} {'process' if workers == 1 else 'processes'})", file=sys.stderr)
    return written


def _given(write):
    """`write`: what a process begins with is a function that makes the one it calls."""
    return write


def _require(smallest, **numbers):
    for name, value in numbers.items():
        if value < smallest:
            raise UserError(f"{name} must be at least {smallest}, not {value}")


def _manifest_of(folder):
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def files_digest(paths):
    """A digest of {name: path} of files: of the names, sizes and times of change."""
    seen = [(name, status.st_size, status.st_mtime_ns) for name, status in zip(paths, map(os.stat, paths.values()))]
    return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()


def _code_version():
    """A digest of this package's source files, since other code may draw other images."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.blake2b(b"".join(s.read_bytes() for s in sources), digest_size=8).hexdigest()
