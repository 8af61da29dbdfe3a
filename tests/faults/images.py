"""Damaged images of every kind through the decoder, the dataset, its cache and the classifier (Linux only).

    python -m tests.faults.images --count 100000                    # prints a table of the results
    python -m tests.faults.images --count 200000 --headers          # inference.header.read_header alone
    python -m tests.faults.images --start 4711 --count 1 --save X   # one of them as a file, X/4711

Each image must be classified, or refused with a reason of one line. A decoder that crashes or hangs takes its process with
it. Therefore the images are read in a process of their own, which records its position; after its end, a new one continues
with the next image.
"""
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

from tqdm import tqdm

from inference.classify import DocClassifier
from inference.cli import Parser, run_cli
from inference.header import read_header
from inference.image import ImageError, decode
from tests.faults.damage import mutated, originals
from tests.helpers.models import write_model

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 10      # seconds that an image may take
BLOCK = 250     # images that go through the dataset and its cache together
WARM = 1000     # images after which memory must not grow any more
REASON = 120    # characters, at most


@dataclass
class Report:
    """`refused`: {reason: images}; `wrong`: {number of the image: crash, hang or another error}; times in seconds."""
    images: int = 0
    classified: int = 0
    refused: Counter = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)                          # and the number of the image
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
    """Read images `start` .. `start + count - 1` of `seed`. `tell(report so far)` is called several times per second.
    `first`: Python code that the reading process runs first."""
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
    """Run the reading process to its end. Returns its last position, and its crash or hang or None."""
    # run.sh lets the allocator keep all memory, and each thread keeps some. Both would hide a leak.
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
    """Add the result lines that are new."""
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


# ---------------------------------------------------------------- in the reading process
def work(folder: str, seed: int, start: int, stop: int) -> None:
    """Writes its position to the file `at`, and a line for each image to the file `results`."""
    from dataset import ImageFolders, list_roots, load_resized  # needs torch, which takes seconds
    folder, parent = Path(folder), os.getppid()
    at, results = (os.open(folder / name, os.O_WRONLY) for name in ("at", "results"))
    sys.stderr = os.fdopen(os.dup(2), "w")
    faulthandler.enable(sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng and libjpeg print many warnings
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # of glibc: returns free memory to the system
    types = folder / "types"
    types.mkdir(exist_ok=True)
    for name in ("PNG RGB", "JPEG gray"):
        (types / f"{name}.png").write_bytes(originals()[name])
    classifier = DocClassifier(model=folder / "model.onnx", register_root=types, threshold=0.9, threads=1)

    def note(where):
        os.pwrite(at, where.encode(), 0)
        os.ftruncate(at, len(where))

    def say(*values):
        os.write(results, json.dumps(values).encode() + b"\n")

    for first in range(start, stop, BLOCK):
        data, cache = folder / "data", folder / "cache"
        for folder_of_block in (data, cache):
            shutil.rmtree(folder_of_block, ignore_errors=True)
        data.mkdir()
        (data / "good.png").write_bytes(originals()["PNG RGB"])
        reasons = {}
        for number in range(first, min(first + BLOCK, stop)):
            if os.getppid() != parent:  # the parent was killed
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
    """The reason for which `read()` refuses an image, or None."""
    try:
        read()
    except ImageError as error:
        return str(error)


def _check(image: bytes, name: str, reason: str | None, result: dict) -> str | None:
    """The error in how an image was handled, or None."""
    for said in filter(None, (reason, result["error"])):
        if len(said) > REASON or not said.isprintable():
            return f"reason: {said[:200]!r}"
    if ":" not in name and (reason or result["error"]):
        return f"untouched: {name} is refused, {reason or result['error']}"
    if reason is None:
        # The limit of pixels is effective only if the decoder never produces more than the header says.
        header, shape = read_header(image), decode(image).shape
        if shape[0] * shape[1] > header.width * header.height:
            return f"size: {header.width}x{header.height} in the header, decoded {shape}"


# ---------------------------------------------------------------- read_header alone
def run_headers(count: int, seed: int = 0, start: int = 0, tell=None) -> Report:
    """`read_header` of images `start` .. `start + count - 1`: it must not raise, nor take more than 1 ms and 100 us a KB."""
    report, started = Report(), time.monotonic()
    for number in range(start, start + count):
        _, image = mutated(seed, number)
        began = time.thread_time()  # CPU time of this thread alone
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
    parser = Parser(prog="python -m tests.faults.images", description=__doc__)
    parser.add_argument("--count", type=int, default=1500, metavar="N", help="number of images")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="image N of a seed is always the same")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="number of the first image")
    parser.add_argument("--headers", action="store_true", help="test inference.header.read_header alone")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="only write the images there")
    args = parser.parse_args()
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        for number in range(args.start, args.start + args.count):
            name, image = mutated(args.seed, number)
            (args.save / str(number)).write_bytes(image)
            print(number, name)
        return 0
    with tqdm(total=args.count, unit="img", mininterval=1 if sys.stderr.isatty() else 30) as bar:
        def tell(report):
            bar.set_postfix_str(f"{len(report.wrong)} wrong", refresh=False)
            bar.update(report.images - bar.n)

        report = (run_headers if args.headers else run)(args.count, args.seed, args.start, tell)
    print(report.table(args.seed))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    run_cli(main)
