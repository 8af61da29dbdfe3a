"""Files that hold one image: the same bytes, the same pixels, or the image saved again, in any of eight orientations.

Files of the same pixels are one image from the start. Each image is searched in its eight orientations among small
thumbnails (exact search in blocks: 0.1 ms for each image and 10,000 others), and the few that are alike are compared
closely (compare.py). Images that are linked, directly or through others, are one group.
"""
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from dataset import view_of
from inference.image import ImageError, load_image, resize
from inference.search import top_k
from tools.doctor.checks import Look
from tools.doctor.compare import LARGE, difference, may_be_one

THUMB = 12             # pixels of a side of the thumbnails that are searched
ALIKE = 0.75           # of their cosine: all but some 0.2 % of the images that were changed as compare.py allows
COMPARISONS = 300_000  # at most about so many close ones, 2 ms each: a million forms of one kind are all alike
NEIGHBORS = 4, 32      # of an image that are compared: fewer where there are more images
AT_ONCE = 64           # images searched together
VIEWS = range(8)       # of `view_of`: quarter turns x flip


class Member(NamedTuple):
    """A file of a group. kind: what it shares with the group's first: "" (it is the first), "bytes", "pixels" or "picture".
    view: the first, seen as this view (0..7, `dataset.view_of`), is this one. difference: 0..1, where it was compared."""
    file: int
    kind: str
    view: int
    difference: float


def find_groups(paths: list[str], looks: list[Look], progress: bool = True) -> list[list[Member]]:
    """The groups of two files and more, each in the order of `paths`, the groups by their first file.

    Blank images are in a group only if their pixels are the same: they are all alike. progress: show bars on stderr, if
    that is a terminal.
    """
    images = defaultdict(list)  # {digest: files}
    for file, look in enumerate(looks):
        if not look.reason:
            images[look.digest].append(file)
    images = list(images.values())
    content = contents(paths, [file for files in images if len(files) > 1 for file in files], progress)

    searched = [image for image, files in enumerate(images) if not looks[files[0]].blank]
    firsts = [images[image][0] for image in searched]
    links = near_links([paths[file] for file in firsts], [looks[file] for file in firsts], progress)
    groups = []
    for tree in trees(len(images), [(searched[a], searched[b], view, apart) for a, b, view, apart in links]):
        first = images[tree[0][0]][0]
        members = [Member(file, _kind(first, file, image == tree[0][0], content), view, apart)
                   for image, view, apart in tree for file in images[image]]
        if len(members) > 1:
            groups.append(sorted(members))
    return sorted(groups)


def _kind(first, file, same_pixels, content):
    if file == first:
        return ""
    return "picture" if not same_pixels else "bytes" if content[file] == content[first] else "pixels"


def contents(paths: list[str], files: Iterable[int], progress: bool) -> dict[int, bytes]:
    """{file: digest of its bytes}; of a file that can no longer be read its own name."""
    found = {}
    for file in tqdm(files, "comparing bytes", unit="img", disable=None if progress else True):
        try:
            with open(paths[file], "rb") as opened:
                found[file] = hashlib.blake2b(opened.read(), digest_size=16).digest()
        except OSError:
            found[file] = paths[file].encode("utf-8", "surrogateescape")
    return found


def near_links(paths: list[str], looks: list[Look], progress: bool = True) -> list[tuple[int, int, int, float]]:
    """(a, b, view, difference) of images that are one: `a` seen as `view` is `b`. Enough of them to connect each group."""
    links, group = [], list(range(len(looks)))

    def find(image):
        while group[image] != image:
            group[image] = image = group[group[image]]
        return image

    total = len(looks) * (len(looks) + 1) // 2
    bar = tqdm(desc="searching for near duplicates", total=total, unit="pair", unit_scale=True,
               disable=None if progress else True)
    with bar:
        for done, candidates in search([look.rough for look in looks]):
            for a, b, view in candidates:
                if find(a) == find(b):  # which keeps a thousand copies from a million comparisons
                    continue
                apart = _apart((paths[a], looks[a]), (paths[b], looks[b]), view)
                if apart <= 1:
                    group[find(a)] = find(b)
                    links.append((a, b, view, apart))
            bar.update(done)
    return links


def search(rough: list[np.ndarray]) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """(pairs searched, candidates (a, b, view)) block by block: images, uint8 `[32,32]`, of which `a` seen as `view` may
    be `b`: those with a cosine of `ALIKE` and more, of each image the best with those that come after it."""
    if not rough:
        return
    thumbs = np.stack([_thumb(gray) for gray in rough])  # [n,12,12]
    flat = thumbs.reshape(len(thumbs), -1)
    neighbors = int(np.clip(COMPARISONS // len(flat), *NEIGHBORS))
    for start in range(0, len(flat), AT_ONCE):
        block = thumbs[start:start + AT_ONCE]
        seen = np.stack([[view_of(thumb, view) for thumb in block] for view in VIEWS]).reshape(-1, THUMB ** 2)
        scores, found = top_k(seen, flat[start:], neighbors + 1)  # one more: each finds itself
        view, a = np.divmod(np.arange(len(seen)), len(block))
        row, column = np.nonzero(scores >= ALIKE)
        score, a, b, view = scores[row, column], start + a[row], start + found[row, column], view[row]
        order = np.lexsort((-score, a))
        best, count = {}, defaultdict(int)
        for a, b, view in zip(a[order].tolist(), b[order].tolist(), view[order].tolist()):
            pair = min(a, b), max(a, b)
            if a != b and pair not in best and count[a] < neighbors:
                best[pair] = a, b, view
                count[a] += 1
        yield len(block) * (len(flat) - start) - len(block) * (len(block) - 1) // 2, list(best.values())


def _thumb(gray):
    """float32 `[12,12]` of length 1, or 0: minus the mean of the neighborhood, which pages share."""
    thumb = cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumb -= cv2.GaussianBlur(thumb, (0, 0), THUMB / 4)
    thumb -= thumb.mean()
    return thumb / max(np.linalg.norm(thumb), 1)


def _apart(one, other, view):
    """The `difference` of (path, look) `one`, seen as `view`, and `other`. Where they seem to be one image, and both files
    have more to show, these are read once more: a name alone may be what tells two pages apart."""
    def seen(image):
        return np.ascontiguousarray(view_of(image, view))
    if not may_be_one(seen(one[1].rough), other[1].rough):
        return np.inf
    a, b = (cv2.imdecode(np.frombuffer(look.fine, np.uint8), cv2.IMREAD_COLOR) for _, look in (one, other))
    apart = difference(seen(a), b)
    if apart <= 1 and one[1].large and other[1].large:
        try:
            a, b = (resize(load_image(path, LARGE), LARGE) for path, _ in (one, other))
        except ImageError:  # it was deleted in the meantime
            return apart
        apart = difference(seen(a), b)
    return apart


def _tables():
    """(after, inverse): view after[v][u] is view v of view u; view inverse[v] of view v is the image as it was."""
    image = np.arange(9).reshape(3, 3)
    number = {view_of(image, view).tobytes(): view for view in VIEWS}
    after = [[number[view_of(view_of(image, u), v).tobytes()] for u in VIEWS] for v in VIEWS]
    return after, [after[v].index(0) for v in VIEWS]


AFTER, INVERSE = _tables()


def trees(count: int, links: list[tuple[int, int, int, float]]) -> Iterator[list[tuple[int, int, float]]]:
    """The groups that `links` make of `count` images: (image, view, difference) of each, the lowest first; `view` is
    that of the first which shows this one, followed along the links."""
    neighbors = defaultdict(list)
    for a, b, view, apart in links:
        neighbors[a].append((b, view, apart))
        neighbors[b].append((a, INVERSE[view], apart))
    reached = [False] * count
    for first in range(count):
        if reached[first]:
            continue
        tree, reached[first] = [(first, 0, 0.0)], True
        for image, seen, _ in tree:  # the list grows during the loop
            for other, view, apart in neighbors[image]:
                if not reached[other]:
                    reached[other] = True
                    tree.append((other, AFTER[view][seen], apart))
        yield tree
