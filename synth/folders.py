"""Folders of made documents, one per type, and a contact sheet to look at.

A folder appears complete or not at all: it is written beside its place and renamed. Its `synth.json` says what it was
made from; asked for the same again, it is left as it is.
"""
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from inference.image import UserError
from synth.capture import capture
from synth.draw import text
from synth.templates import FAMILIES, render, type_name

MANIFEST = "synth.json"
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
    return _write(folder, range(types), files, seed, workers)


def write_eval(folder, types, captures, seed, first_type=NEVER_TRAINED, workers=None):
    """Writes the types first_type..first_type+types-1 as `folder/<type>/reference.jpg` (clean) and `capture_N.jpg`.

    The reference is copy 0 and capture N is a made photo of copy N = 1..captures, so every one has its own content.
    Otherwise as `write_train`."""
    _require(1, types=types, captures=captures)
    _require(0, first_type=first_type)
    files = [("reference.jpg", 0, False)] + [(f"capture_{n}.jpg", n, True) for n in range(1, captures + 1)]
    return _write(folder, range(first_type, first_type + types), files, seed, workers)


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


def _write(folder, type_ids, files, seed, workers):
    folder, total = Path(folder), len(type_ids) * len(files)
    manifest = {"seed": seed, "first_type": type_ids[0], "types": len(type_ids), "files": [f[0] for f in files],
                "code": _code_version()}
    if folder.exists():
        old = _manifest_of(folder)
        if old == manifest:
            return total
        if old is None and any(folder.iterdir()):
            raise UserError(f"{folder}: holds files that synth did not make; name another folder or empty this one")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    jobs = [(part / type_name(type_id), seed, type_id, files) for type_id in type_ids]
    workers = min(workers or os.cpu_count() or 1, total // 200 + 1)  # a process takes a second to start
    began = time.perf_counter()
    with tqdm(total=total, desc=f"synth {folder.name}", unit="img", mininterval=.5) as bar:
        if workers == 1:
            for job in jobs:
                bar.update(_write_type(job))
        else:  # spawn, since OpenCV and torch may have threads by now, and a fork would inherit their locks
            with multiprocessing.get_context("spawn").Pool(workers, cv2.setNumThreads, (1,)) as pool:
                for written in pool.imap_unordered(_write_type, jobs):
                    bar.update(written)
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    seconds = time.perf_counter() - began
    print(f"{folder}: {total:,} images in {seconds:.1f} s, {total / seconds / workers:.0f} images/s per core "
          f"({workers} at work)", file=sys.stderr)
    return total


def _require(smallest, **numbers):
    for name, value in numbers.items():
        if value < smallest:
            raise UserError(f"{name} must be at least {smallest}, not {value}")


def _manifest_of(folder):
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None


def _code_version():
    """A digest of this package's sources: pictures made by other code are not the same pictures."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(s.read_bytes() for s in sources), digest_size=8).hexdigest()
