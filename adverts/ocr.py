"""The text of each image, read once and kept.

    python -m adverts ocr --data DIR --cache ocr.sqlite --out texts.jsonl [--split split.csv]

The cache knows an image by its bytes, not by its name, and holds the settings of the reader beside its text: copied and
renamed images are not read again, changed ones are, and other settings do not use what these have read. Each image is
committed by itself: the command can be stopped at any time, and resumes when it is run again. Images that cannot be used
are listed and have no text.

texts.jsonl: one JSON object a line, {"id": path below DIR, "segments": [{"text", "score", "box"}, ...]}, in reading order.
"""
import contextlib
import functools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from adverts.split import content_digest, read_split
from adverts.texts import Segment, write_texts
from engine.processes import map_processes
from inference.cli import Parser
from inference.errors import UserError, first_line, printable
from inference.image import ImageError, available_cores, list_images, load_image, map_ahead
from inference.segments import DEFAULT_SIDE, JSON_ERRORS, make_reader, segments_of, settings

SCHEMA = """create table if not exists texts (
    content text, settings text, segments text, primary key (content, settings)) without rowid"""
SAMPLE = 8      # images after which the time for all is known well enough to tell it
SHOWN = 20      # unusable images that are listed


class Cache:
    """Segments by (digest of an image's bytes, settings of the reader), in one SQLite file. Raises UserError, from every
    method, for a file that is something else or cannot be used. Use it in a `with` block, which closes it."""

    def __init__(self, path, settings: str):
        self.path, self.settings = path, settings
        with self._errors():
            self._db = sqlite3.connect(path, timeout=30)
            self._db.execute("pragma journal_mode = wal")  # a commit that waits for no disk; a killed process loses nothing
            self._db.execute("pragma synchronous = normal")
            self._db.execute(SCHEMA)

    def known(self) -> set[str]:
        """The contents whose segments are there."""
        with self._errors():
            return {content for content, in self._db.execute("select content from texts where settings = ?",
                                                             (self.settings,))}

    def get(self, content: str) -> list[Segment]:
        """The segments of a content that is known."""
        with self._errors():
            text, = self._db.execute("select segments from texts where content = ? and settings = ?",
                                     (content, self.settings)).fetchone()
            return segments_of(json.loads(text))

    def put(self, content: str, segments: list[Segment]) -> None:
        text = json.dumps([segment._asdict() for segment in segments], ensure_ascii=False)
        with self._errors(), self._db:
            self._db.execute("insert or replace into texts values (?, ?, ?)", (content, self.settings, text))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._db.close()

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except sqlite3.OperationalError as error:  # of the disk, or of another program: what it holds may be as good as ever
            raise UserError(printable(f"{self.path}: cannot be used as a cache of texts now ({first_line(error)}); see that "
                                      "its disk has room and no other program uses it, and run the command again, or give "
                                      "--cache another name")) from None
        except (sqlite3.Error, *JSON_ERRORS) as error:
            raise UserError(printable(f"{self.path}: cannot be used as a cache of texts ({first_line(error)}); give --cache "
                                      "another name, or remove the file")) from None


def read_images(paths: list[str], make: Callable, processes: int) -> Iterator[tuple[int, list[Segment] | None, str]]:
    """(number of the path, its segments or None, why there are none or ""), in the order in which they are ready.

    make: gives, in each process, the function from an image to its segments; it must be picklable. Raises UserError when a
    process cannot begin or dies.
    """
    for number, found in map_processes(functools.partial(_reader, make), paths, processes, "what has been read is kept; run "
                                       "the command again, with fewer --processes"):
        yield number, *found


def _reader(make):
    """The function of a process; or a UserError that says why it cannot begin."""
    try:
        return functools.partial(_read, make())
    except Exception as error:  # of the library or of ONNX Runtime
        raise UserError(f"text cannot be read: {first_line(error)}") from None


def _read(read, path):
    try:
        return read(load_image(path)), ""
    except ImageError as error:
        return None, str(error)
    except Exception as error:  # of the library, for one image: the others can still be read
        return None, f"the reader failed: {type(error).__name__}: {first_line(error)}"


def read_folder(data, ids: list[str], cache: Cache, make: Callable, processes: int) -> dict[str, tuple[str, str]]:
    """Read the images below `data` that the cache does not know, and keep their segments there. {id: (its content, "") or
    ("", why it could not be read)}. make: see `read_images`."""
    def content(name):
        try:
            return content_digest(os.path.join(data, name)), ""
        except UserError as error:
            return "", str(error)

    contents = dict(zip(ids, map_ahead(content, ids)))
    first = {}  # {content: the first image that has it}: each content is read once
    for name, (digest, _) in contents.items():
        if digest:
            first.setdefault(digest, name)
    known = cache.known()
    missing = [digest for digest in first if digest not in known]
    failed = {}
    if missing:
        processes = min(processes, len(missing))
        print(f"{len(ids):,} images: {len(missing):,} to read, in processes: {processes}", file=sys.stderr)
        with tqdm(total=len(missing), desc="ocr", unit="image", disable=None) as bar:
            paths = [os.path.join(data, first[digest]) for digest in missing]
            for done, (number, segments, reason) in enumerate(read_images(paths, make, processes), 1):
                if segments is None:
                    failed[missing[number]] = reason
                else:
                    cache.put(missing[number], segments)
                bar.update()
                if done == 1:  # the processes are ready
                    began = time.monotonic()
                if done == SAMPLE:
                    rest = (time.monotonic() - began) / (done - 1) * (len(missing) - done)
                    bar.write(f"the text of {len(missing):,} images takes about {duration(rest)}", file=sys.stderr)
    return {name: ("", failed[digest]) if digest in failed else (digest, reason)
            for name, (digest, reason) in contents.items()}


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 3 min, 2.5 h."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments=None):
    parser = Parser(prog="python -m adverts ocr", description=__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--split", metavar="split.csv", help="read the images that it lists (default: all below --data)")
    parser.add_argument("--cache", required=True, metavar="ocr.sqlite", help="where the text of each image is kept")
    parser.add_argument("--out", required=True, metavar="texts.jsonl", help="where the texts of these images are written")
    parser.add_argument("--side", type=int, default=DEFAULT_SIDE, metavar="PIXELS",
                        help="enlarge the shorter side to so many pixels, where it has fewer; 0: read "
                             "images as they are. More finds more small print, in more time")
    parser.add_argument("--processes", type=int, default=available_cores(), metavar="N", help="processes that read")
    args = parser.parse_args(arguments)
    if not 0 <= args.side <= 2000:
        raise UserError(f"--side {args.side}: give 0 to 2000 pixels")
    if args.processes < 1:
        raise UserError(f"--processes {args.processes}: give at least 1")
    ids = [row.file for row in read_split(args.split).rows] if args.split else list_images(args.data)
    if not ids:
        raise UserError(f"{args.data}: no images below this folder")
    with Cache(args.cache, settings(args.side)) as cache:
        found = read_folder(args.data, ids, cache, functools.partial(make_reader, args.side), args.processes)
        unusable = [f"{name}: {reason}" for name, (_, reason) in found.items() if reason]
        if len(unusable) == len(ids):
            raise UserError(printable(f"{args.data}: none of the {len(ids):,} images can be used; the first: {unusable[0]}"))
        for line in unusable[:SHOWN]:
            print(printable(line), file=sys.stderr)
        if len(unusable) > SHOWN:
            print(f"... and {len(unusable) - SHOWN:,} more; {args.out} has them all", file=sys.stderr)
        with_text = write_texts(args.out, ((name, cache.get(content) if content else [], reason)
                                           for name, (content, reason) in found.items()))
    print(printable(f"{args.out}: {len(ids):,} images, {with_text:,} with text, {len(unusable):,} could not be used"))
