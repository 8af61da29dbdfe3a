"""Damaged images of every kind, through the decoder, the data set, its cache and the classifier (Linux).

    python -m tests.faults.images --count 100000                    # a table of what became of them
    python -m tests.faults.images --count 200000 --headers          # inference.header.read_header alone
    python -m tests.faults.images --start 4711 --count 1 --save X   # one of them as a file, X/4711

Each must be classified, or refused with a reason on one line. A decoder that crashes or hangs takes its process with it, so
they are read in a process of their own, which notes where it is; after its end the next goes on behind that image.
"""
import argparse
import ctypes
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from inference.classify import DocClassifier
from inference.header import read_header
from inference.image import ImageError, decode
from tests.faults.damage import mutated, originals
from tests.helpers.models import write_model

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 10      # seconds that an image may take
BLOCK = 250     # images that go through the data set and its cache together
WARM = 1000     # images after which memory may no longer grow
REASON = 120    # characters


@dataclass
class Report:
    """`refused` {reason: images}; `wrong` {number: crash, hang, or whatever else must not be}; times in seconds."""
    images: int = 0
    classified: int = 0
    refused: Counter = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)                          # and its number
    largest: tuple[float, int] = (0.0, -1)                          # MiB of the process at its peak
    memory: list[tuple[int, float]] = field(default_factory=list)   # (number, MiB of the process) after each block
    seconds: float = 0.0

    @property
    def warm(self) -> float:
        return next((size for number, size in self.memory if number >= self.memory[0][0] + WARM), self.memory[-1][1])

    def table(self, seed: int) -> str:
        kinds = Counter(what.partition(":")[0] for what in self.wrong.values())
        lines = [f"{self.images:9,} images of seed {seed} in {self.seconds:.0f} s",
                 f"{self.classified:9,} classified" if self.memory else f"{self.classified:9,} sound",
                 f"{sum(self.refused.values()):9,} refused, each in one line:",
                 *(f"{count:9,}   {reason}" for reason, count in self.refused.most_common()),
                 *(f"{kinds.pop(kind, 0):9,} {kind}" for kind in ("crash", "hang")),
                 *(f"{count:9,} {kind}" for kind, count in kinds.items()),
                 *(f"          image {number}: {what}" for number, what in sorted(self.wrong.items())[:20]),
                 f"{1000 * self.slowest[0]:9,.1f} ms at most, image {self.slowest[1]}"]
        if self.memory:
            lines += [f"{self.largest[0]:9,.0f} MiB at most, image {self.largest[1]}",
                      f"{self.memory[0][1]:9,.0f} MiB between two images at the start, {self.warm:,.0f} when warm, "
                      f"{self.memory[-1][1]:,.0f} at the end"]
        return "\n".join(lines)


def run(count: int, seed: int = 0, start: int = 0, tell=None, first: str = "pass") -> Report:
    """Put images `start` .. `start + count - 1` of `seed` through everything. `tell(report so far)` is called now and then;
    `first`: Python for the process that reads the images."""
    report, began, stop = Report(), time.monotonic(), start + count

    def told():
        report.seconds = time.monotonic() - began
        if tell:
            tell(report)

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model.onnx")
        while start < stop:
            command = f"{first}; from tests.faults.images import work; work({folder!r}, {seed}, {start}, {stop})"
            at, what = _watched(Path(folder), command, report, told)
            if what is None:
                break
            if not at:
                raise RuntimeError(f"no image can be read: {what}")
            reached = int(re.findall(r"\d+", at)[-1])
            report.wrong[reached] = what if at.isdecimal() else f"{what}, {at}"
            report.images += at.isdecimal()
            start = reached + 1
    return report


def _watched(folder: Path, command: str, report: Report, told) -> tuple[str, str | None]:
    """The process that reads, to its end: (where it was last, what it died of or None)."""
    # What run.sh asks of the allocator keeps all that was ever had, and each thread keeps some: no leak could be seen.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment["MALLOC_ARENA_MAX"] = "1"
    for name in ("at", "results"):
        (folder / name).write_bytes(b"")
    with open(folder / "said", "wb") as said, open(folder / "results", "rb") as results:
        child = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, env=environment, stderr=said)
        at, since, hangs, ended = "", time.monotonic(), False, False
        try:
            while not ended:
                ended = child.poll() is not None
                now = (folder / "at").read_text()
                if now != at:
                    at, since = now, time.monotonic()
                elif time.monotonic() - since > (LIMIT if at.isdecimal() else 30 * LIMIT):
                    hangs = True
                    child.kill()
                _count(results, report)
                told()
                time.sleep(0.1)
        finally:
            child.kill()
            child.wait()
    if child.returncode == 0:
        return at, None
    words = (folder / "said").read_text(errors="replace").splitlines() or [""]
    return at, "hang" if hangs else f"crash: {signal.Signals(-child.returncode).name if child.returncode < 0 else words[-1]}"


def _count(results, report: Report) -> None:
    """Take the lines that have come since the last time."""
    whole, _, begun = results.read().rpartition(b"\n")
    results.seek(-len(begun), os.SEEK_CUR)
    for number, reason, seconds, mib, wrong in map(json.loads, whole.splitlines()):
        if reason == "memory":
            report.memory.append((number, mib))
            continue
        report.images += 1
        if wrong:
            report.wrong[number] = wrong
        elif reason:
            report.refused[re.sub(r"\d+", "N", reason)] += 1
        else:
            report.classified += 1
        report.slowest = max(report.slowest, (seconds, number))
        report.largest = max(report.largest, (mib, number), key=lambda pair: pair[0])


# ---------------------------------------------------------------- in the process that reads
def work(folder: str, seed: int, start: int, stop: int) -> None:
    """Writes where it is to `at`, and to `results` a line for each image."""
    from dataset import ImageFolders, list_roots, load_resized  # needs torch, which takes seconds
    folder, parent = Path(folder), os.getppid()
    at, results = (os.open(folder / name, os.O_WRONLY) for name in ("at", "results"))
    sys.stderr = os.fdopen(os.dup(2), "w")
    faulthandler.enable(sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng and libjpeg have much to say
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # glibc's: gives back what is free
    types = folder / "types"
    types.mkdir(exist_ok=True)
    for name in ("PNG RGB", "JPEG grey"):
        (types / f"{name}.png").write_bytes(originals()[name])
    classifier = DocClassifier(model=folder / "model.onnx", register_root=types, threshold=0.9, threads=1)

    def note(where):
        os.pwrite(at, where.encode(), 0)
        os.ftruncate(at, len(where))

    def say(*values):
        os.write(results, json.dumps(values).encode() + b"\n")

    for first in range(start, stop, BLOCK):
        data, cache = folder / "data", folder / "cache"
        for left in (data, cache):
            shutil.rmtree(left, ignore_errors=True)
        data.mkdir()
        (data / "good.png").write_bytes(originals()["PNG RGB"])
        reasons = {}
        for number in range(first, min(first + BLOCK, stop)):
            if os.getppid() != parent:  # which was killed
                return
            note(str(number))
            name, image = mutated(seed, number)
            file = data / f"{number}.jpg"
            file.write_bytes(image)
            began, reason, wrong = time.perf_counter(), None, None
            try:
                reason = reasons[str(file)] = _refused(lambda: load_resized(file, 64))
                result, = classifier.classify([file])
                wrong = _check(image, name, reason, result)
                reason = reason or result["error"]
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error)[:200]}"
            seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            say(number, reason, seconds, peak, wrong)
        note(f"in the cache of {first} to {number}")
        images = ImageFolders(list_roots([str(data)], 1), 51, str(cache), progress=False)  # resized to 64
        if images.skipped != {path: reason for path, reason in sorted(reasons.items()) if reason}:
            say(first, None, 0, 0, "cache: skips others than the decoder alone")
        del images
        trim(0)
        say(number, "memory", 0, int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20, None)


def _refused(read) -> str | None:
    """Why `read()` finds an image unusable; None when it does not."""
    try:
        read()
    except ImageError as error:
        return str(error)


def _check(image: bytes, name: str, reason: str | None, result: dict) -> str | None:
    """What is wrong with how an image was treated; None when nothing is."""
    for said in filter(None, (reason, result["error"])):
        if len(said) > REASON or not said.isprintable():
            return f"reason: {said[:200]!r}"
    if ":" not in name and (reason or result["error"]):
        return f"untouched: {name} is refused, {reason or result['error']}"
    if reason is None:
        # The limit of pixels means something only if the decoder makes no more than the header says.
        header, shape = read_header(image), decode(image).shape
        if shape[0] * shape[1] > header.width * header.height:
            return f"size: {header.width}x{header.height} in the header, decoded {shape}"


# ---------------------------------------------------------------- the header's reader alone
def run_headers(count: int, seed: int = 0, start: int = 0, tell=None) -> Report:
    """`read_header` of images `start` .. `start + count - 1`: it must not raise, nor take more than 1 ms and 100 us a KB."""
    report, started = Report(), time.monotonic()
    for number in range(start, start + count):
        _, image = mutated(seed, number)
        began = time.thread_time()  # without what others had of the core
        try:
            header = read_header(image)
        except Exception as error:
            header = None
            report.wrong[number] = f"{type(error).__name__}: {error}"
        seconds = time.thread_time() - began
        if seconds > 1e-3 + 1e-7 * len(image):
            report.wrong[number] = f"slow: {1000 * seconds:.1f} ms for {len(image)} bytes"
        report.slowest = max(report.slowest, (seconds, number))
        if number not in report.wrong:
            if header is None or header.problem:
                report.refused[f"{header.problem} {header.format}" if header else "not an image"] += 1
            else:
                report.classified += 1
        report.images += 1
        report.seconds = time.monotonic() - started
        if tell:
            tell(report)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1500, metavar="N", help="images (1500)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="image N of a seed is always the same (0)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="number of the first (0)")
    parser.add_argument("--headers", action="store_true", help="inference.header.read_header alone")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write the images there and do nothing else")
    args = parser.parse_args()
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        for number in range(args.start, args.start + args.count):
            name, image = mutated(args.seed, number)
            (args.save / str(number)).write_bytes(image)
            print(number, name)
        return 0
    terminal, shown = sys.stderr.isatty(), 0.0

    def tell(report):
        nonlocal shown
        if report.images and report.seconds - shown > (1 if terminal else 30):
            shown, speed = report.seconds, report.images / report.seconds
            print(f"\r{report.images:,}/{args.count:,}, {speed:.0f} images/s, ETA "
                  f"{(args.count - report.images) / speed / 60:.1f} min, {len(report.wrong)} wrong ",
                  end="" if terminal else "\n", file=sys.stderr, flush=True)

    report = (run_headers if args.headers else run)(args.count, args.seed, args.start, tell)
    if terminal and shown:
        print(file=sys.stderr)
    print(report.table(args.seed))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
