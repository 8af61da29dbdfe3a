"""Readers of text for the tests, which the processes of `adverts.ocr` import by name: without torch, so that they are soon
there."""
import functools
import os
import signal
import time
from pathlib import Path

from adverts.ocr import Cache, read_folder
from inference.segments import Segment


def make_fake(log, fatal: int = -1, seconds: float = 0):
    """A reader of flat images, whose text is the level of their first pixel. It writes `level pid` to the file `log` for
    each, and kills its own process at the level `fatal`."""
    def read(image):
        level = int(image[0, 0, 0])
        with open(log, "a") as file:
            file.write(f"{level} {os.getpid()}\n")
        if level == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return [Segment(str(level), 0.5, [[0, 0], [9, 0], [9, 9], [0, 9]])] if level else []
    return read


def make_failing():
    """A reader that fails for images of level 2."""
    def read(image):
        if image[0, 0, 0] == 2:
            raise KeyError("why")
        return [Segment("ok", 1.0, [[0, 0]] * 4)]
    return read


def make_nothing():
    """A reader that cannot begin."""
    raise OSError("no model here")


def make_levels(side):
    """In place of `inference.segments.make_reader`: the level of the first pixel stands for the text."""
    return make_fake(os.devnull)


def read(data, cache, make, processes=1) -> dict[str, str]:
    """{file: its text, or why it could not be read} of the images in a folder."""
    found = read_folder(data, sorted(path.name for path in data.iterdir()), cache, make, processes)
    return {name: "".join(segment.text for segment in cache.get(content)) if content else error
            for name, (content, error) in found.items()}


def read_slowly(data, cache, log):
    """Read a folder at 20 images a second, in two processes, until a signal comes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background does not have
    read(data, Cache(cache, "same"), functools.partial(make_fake, log, -1, .1), processes=2)


def levels(log) -> list[int]:
    """The levels that readers have seen, in order."""
    return [int(line.split()[0]) for line in Path(log).read_text().splitlines()]


def processes(log) -> set[int]:
    """The processes that have read."""
    return {int(line.split()[1]) for line in Path(log).read_text().splitlines()}
