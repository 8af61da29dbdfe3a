"""Folders of made documents, one per type, and a contact sheet to look at.

A folder appears complete or not at all: it is written beside its place and renamed. Its `synth.json` says what it was
made from; asked for the same again, it is left as it is.
"""
import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from inference.errors import UserError
from inference.image import ImageError, list_images, load_image
from synth.capture import capture
from synth.draw import text
from synth.templates import FAMILIES, render, type_name

MANIFEST = "synth.json"
SMALLEST = 32  # pixels of a side; what a finger or a lens does is nothing on less
SIDE = 400  # pixels of the longest side at which photos are made of pictures that are there already, as of made documents
NEVER_TRAINED = 1_000_000  # evaluation sets begin at this type, training sets at 0: the same type is never in both


def write_train(folder, types, copies, seed, captures=0, workers=None):
    """Writes the types 0..types-1 as `folder/<type>/copy_N.jpg` (clean) and `capture_N.jpg` (made photos).

    N is the copy id: 0..copies-1 for the clean ones, then `captures` more, so no two pictures show the same fields.
    Returns the number of images in the folder. `workers`: processes, by default one per core; the bytes do not depend
    on it. Raises UserError for numbers out of range or a folder that holds something else."""
    _require(1, types=types, copies=copies)
    _require(0, captures=captures)
    files = [(f"copy_{n}.jpg", n, False) for n in range(copies)]
    files += [(f"capture_{n}.jpg", n, True) for n in range(copies, copies + captures)]
    return _write_types(folder, range(types), files, seed, workers)


def write_eval(folder, types, captures, seed, first_type=NEVER_TRAINED, workers=None):
    """Writes the types first_type..first_type+types-1 as `folder/<type>/reference.jpg` (clean) and `capture_N.jpg`.

    The reference is copy 0 and capture N is a made photo of copy N = 1..captures, so every one has its own content.
    Otherwise as `write_train`."""
    _require(1, types=types, captures=captures)
    _require(0, first_type=first_type)
    files = [("reference.jpg", 0, False)] + [(f"capture_{n}.jpg", n, True) for n in range(1, captures + 1)]
    return _write_types(folder, range(first_type, first_type + types), files, seed, workers)


def write_photos(source, folder, captures, seed, severity=1.0, workers=None):
    """Writes `folder/<name>/reference.jpg` and made photos of it, `capture_N.jpg`, for every picture below `source`.

    The name is the picture's path without its ending (with it, where two would be the same); the reference its pixels, at
    most SIDE on a side. `severity`, 0 to 4, is capture's. What cannot be used, or has fewer than SMALLEST on a side, is left
    out. To train on (a labelled root), with harder views than augmentation alone makes, or to evaluate with on one's
    own kinds of pictures. Returns the number of images in the folder."""
    _require(1, captures=captures)
    if not 0 <= severity <= 4:
        raise UserError(f"severity must be from 0 to 4, not {severity}")
    here, there = os.path.realpath(source), os.path.realpath(folder)
    if os.path.commonpath([here, there]) in (here, there):
        raise UserError(f"{folder}: the photos need a folder that is neither in {source} nor around it")
    paths = {name: os.path.join(source, name) for name in list_images(source)}
    paths = {name: path for name, path in paths.items() if os.path.isfile(path)}
    if not paths:
        raise UserError(f"{source}: no images found")
    taken = Counter([*(os.path.splitext(name)[0] for name in paths), *paths])
    folders = [stem if taken[stem := os.path.splitext(name)[0]] == 1 else name for name in paths]
    jobs = [(at, seed, path, name, captures, severity) for at, (name, path) in zip(folders, paths.items())]
    seen = [(name, status.st_size, status.st_mtime_ns) for name, status in zip(paths, map(os.stat, paths.values()))]
    manifest = {"seed": seed, "photos_of": hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest(),
                "captures": captures, "severity": severity}
    return _write(folder, _write_photos, jobs, len(jobs) * (captures + 1), manifest, workers)


def _write_types(folder, type_ids, files, seed, workers):
    manifest = {"seed": seed, "first_type": type_ids[0], "types": len(type_ids), "files": [f[0] for f in files]}
    jobs = [(type_name(type_id), seed, type_id, files) for type_id in type_ids]
    return _write(folder, _write_type, jobs, len(type_ids) * len(files), manifest, workers)


def contact_sheet(file, seed, types=2 * len(FAMILIES), cell=300):
    """Writes a picture with one type per row: two clean copies, then three made photos of other copies."""
    rows = []
    for type_id in range(types):
        row = [_fitted(_image(seed, type_id, n, n > 1), cell - 12) for n in range(5)]
        sheet = np.full((max(len(image) for image in row) + 26, 5 * cell, 3), 235, np.uint8)
        text(sheet, 6, 4, type_name(type_id), "DejaVuSans", 12, (60, 60, 60))
        for i, image in enumerate(row):
            sheet[22:22 + len(image), 6 + i * cell:6 + i * cell + image.shape[1]] = image
        rows.append(sheet)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    _save(file, np.vstack(rows))


def _fitted(image, side):
    scale = side / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _image(seed, type_id, copy_id, captured):
    image = render(seed, type_id, copy_id)
    return capture(image, seed, type_id, copy_id) if captured else image


def _save(file, image):
    """cv2.imwrite that fails loudly and takes any path."""
    extension = os.path.splitext(file)[1].lower()
    if extension not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"{file}: cannot write this kind of picture; name it .jpg or .png")
    data = cv2.imencode(extension, image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    Path(file).write_bytes(data.tobytes())


def _write_type(job):
    """One type's folder, in whatever process: its art is made once for all its files. Returns how many were written."""
    folder, seed, type_id, files = job
    folder.mkdir()
    for file, copy_id, captured in files:
        _save(folder / file, _image(seed, type_id, copy_id, captured))
    return len(files)


def _write_photos(job):
    """The folder of one picture that is there already. Returns how many were written: none of one that cannot be used."""
    folder, seed, source, name, captures, severity = job
    try:
        image = load_image(source)
    except ImageError:
        return 0
    if min(image.shape[:2]) < SMALLEST:
        return 0
    if max(image.shape[:2]) > SIDE:
        image = _fitted(image, SIDE)
    folder.mkdir(parents=True, exist_ok=True)  # there may be pictures below a folder of the name of another
    _save(folder / "reference.jpg", image)
    for n in range(1, captures + 1):
        _save(folder / f"capture_{n}.jpg", capture(image, seed, os.fsencode(name).hex(), n, severity=severity))
    return captures + 1


def _write(folder, write, jobs, total, manifest, workers):
    """Runs `write(job)` for all jobs, each of which begins with the name of a folder below `folder`, unless that has been
    done before. Returns how many images there are; `total` is how many there should be."""
    folder, manifest = Path(os.path.abspath(folder)), {**manifest, "code": _code_version()}
    if folder.exists():
        old = _manifest_of(folder)
        if old is None and any(folder.iterdir()):
            raise UserError(f"{folder}: holds files that synth did not make; name another folder or empty this one")
        written = (old or {}).pop("images", 0)
        if old == manifest:
            return written
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    jobs = [(part / name, *rest) for name, *rest in jobs]
    workers = min(workers or os.cpu_count() or 1, total // 200 + 1)  # a process takes a second to start
    began, written = time.perf_counter(), 0
    with contextlib.ExitStack() as until_done:
        bar = until_done.enter_context(tqdm(total=total, desc=f"synth {folder.name}", unit="img", mininterval=.5))
        results = map(write, jobs)
        if workers > 1:  # spawn, since OpenCV and torch may have threads by now, and a fork would inherit their locks
            pool = multiprocessing.get_context("spawn").Pool(workers, cv2.setNumThreads, (1,))
            results = until_done.enter_context(pool).imap_unordered(write, jobs)
        for count in results:
            written += count
            bar.update(count)
    if not written:
        shutil.rmtree(part)
        raise UserError(f"{folder}: not made, none of the {len(jobs)} pictures can be used")
    (part / MANIFEST).write_text(json.dumps({**manifest, "images": written}, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    seconds = time.perf_counter() - began
    print(f"{folder}: {written:,} images in {seconds:.1f} s, {written / seconds / workers:.0f} images/s per core "
          f"({workers} at work)", file=sys.stderr)
    return written


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


def _code_version():
    """A digest of this package's sources: pictures made by other code are not the same pictures."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(s.read_bytes() for s in sources), digest_size=8).hexdigest()
