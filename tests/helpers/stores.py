"""Small stores for the tests: their pictures, what is in them, whether they are whole, work on them in other processes."""
import contextlib
import hashlib
import multiprocessing
import os
import random
import time
from pathlib import Path

import cv2

from inference import Registry
from inference.errors import UserError
from tests.helpers.models import blocks, write_model
from tests.helpers.ranks import FRESH

multiprocessing.get_context("forkserver").set_forkserver_preload(["train_v2", "inference.registry.core"])


def picture(*seed) -> bytes:
    """A PNG of 4 x 4 blocks of random color: of each seed another one."""
    number = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "big")
    return cv2.imencode(".png", blocks(number))[1].tobytes()


def make_store(folder: Path, count: int = 0, **options) -> Registry:
    """A store in `folder` / "store" with `count` types t0, t1, ... of one picture each, `picture(0)`, `picture(1)`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    registry = opened(folder / "store", write_model(folder / "model.onnx"), **options)
    for number in range(count):
        registry.add(picture(number), f"t{number}", force=True)
    return registry


def opened(path, model=None, **options) -> Registry:
    return Registry.open(path, **{"create": model is not None, "model": model, "find": "never", "threads": 1} | options)


def content(registry) -> dict:
    """All that counts in a collection, with checksums of the vectors, as JSON values."""
    of = f"collection = {registry.id}"
    with registry.store.reading() as db:
        rows = lambda sql: [list(row) for row in db.execute(sql)]
        return dict(
            settings=rows(f"SELECT find, orientation, margin FROM collection WHERE id = {registry.id}"),
            types=rows(f"SELECT id, name FROM type WHERE {of} AND removed IS NULL ORDER BY id"),
            references=rows(f"SELECT id, type, kind, picture, orientation FROM reference WHERE {of} AND removed IS NULL "
                            "ORDER BY id"),
            thresholds=rows(f"SELECT type, value FROM threshold WHERE {of} AND removed IS NULL ORDER BY id"),
            features=rows("SELECT f.reference, f.model, f.parts, f.crc32 FROM feature f JOIN reference r ON "
                          f"r.id = f.reference WHERE r.{of} AND r.removed IS NULL ORDER BY 1, 2"))


def last_event(registry) -> int:
    return registry.store.read("SELECT coalesce(max(id), 0) FROM event")[0][0]


# Each names rows of which a part is missing; there must be none.
HALVES = {
    "references without vectors": """SELECT r.id FROM reference r JOIN model m ON m.collection = r.collection
        WHERE m.state = 'active' AND NOT EXISTS (SELECT 1 FROM feature f WHERE f.reference = r.id AND f.model = m.id)""",
    "references of no type that there is": """SELECT r.id FROM reference r JOIN type t ON t.id = r.type
        WHERE r.removed IS NULL AND t.removed IS NOT NULL""",
    "events without an answer": "SELECT id FROM event WHERE result = '' OR text = '' OR changes = ''",
    "rows of no event": """SELECT changed FROM reference WHERE changed NOT IN (SELECT id FROM event)
        UNION SELECT changed FROM type WHERE changed NOT IN (SELECT id FROM event)""",
    "collections without a model": """SELECT id FROM collection WHERE id NOT IN
        (SELECT collection FROM model WHERE state = 'active')""",
    "broken links": "PRAGMA foreign_key_check",
    "damaged pages": "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check != 'ok'"}


def check_whole(registry, searched: int = 1 << 30) -> int:
    """Raises AssertionError where anything is missing by half, a picture is not what was registered, or a reference is not
    found by its picture (the last `searched` are asked). Sweeps; returns how many files nothing referred to."""
    store = registry.store
    for what, sql in HALVES.items():
        assert not (found := store.read(sql)), f"{what}: {found[:9]}"
    references = [(row[0], row[3]) for row in content(registry)["references"]]
    for number, name in references:
        assert registry.picture(number) == store.blobs.get(name)
    check_found(registry, references[-searched:])
    swept = store.blobs.sweep({row[0] for row in store.read("SELECT sha256 FROM picture")}, time.time() + 9)
    left = {path.name for path in store.blobs.folder.rglob("*") if path.is_file()}
    assert left == {row[0] for row in store.read("SELECT sha256 FROM picture")}
    return len(swept)


def check_found(registry, references) -> None:
    """`references`: [(reference, name of its picture)]. The search finds each by its picture."""
    for number, name in references:
        same = {other for other, picture in references if picture == name}
        # Of the same picture, in any turn, all references have the score 1.
        found = registry.search(registry.store.blobs.get(name), len(same) + 8)
        assert number in [entry["reference"] for entry in found if entry["score"] > 1 - 1e-6], (number, found)


class Worker:
    """`target(say, *arguments)` in a fresh process; what it says, one value at a time."""

    def __init__(self, target, *arguments):
        self._ours, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context(FRESH).Process(target=_enter, args=(target, theirs, arguments))
        self.process.start()
        theirs.close()

    def hear(self, timeout: float = 60):
        """The next value; EOFError when it has ended; AssertionError after `timeout` seconds."""
        assert self._ours.poll(timeout), f"says nothing for {timeout} s"
        return self._ours.recv()

    def rest(self) -> list:
        """All that it says until its end."""
        said = []
        with contextlib.suppress(EOFError, OSError):
            while True:
                said.append(self.hear())
        return said

    def kill(self) -> list:
        """kill -9; what it had still said."""
        self.process.kill()
        said = self.rest()
        self.process.join()
        return said

    def end(self, timeout: float = 60) -> list:
        """What it says until its end, which must be a good one."""
        said = self.rest()
        self.process.join(timeout)
        assert self.process.exitcode == 0, f"exit status {self.process.exitcode}: {said[-1:]}"
        return said


def _enter(target, pipe, arguments):
    target(pipe.send, *arguments)


# ---------------------------------------------------------------- changes at random
def change_at_random(registry, draw: random.Random, name: str):
    """One mutation of the kind `name`; what may be missing for it is no error."""
    labels, references = registry.labels, [row[0] for row in content(registry)["references"]]
    seed = draw.getrandbits(60)
    label = lambda: draw.choice(labels) if labels else "none"
    reference = lambda: draw.choice(references) if references else 0
    with contextlib.suppress(UserError):  # such as a conflict: nothing was changed
        match name:
            case "add":
                return registry.add(picture(seed), f"t{draw.randrange(6)}", force=True)
            case "add unknown":
                return registry.add(picture(seed), kind="unknown", force=True)
            case "add many":
                return registry.add_many([(picture(seed, i), f"t{draw.randrange(6)}") for i in range(draw.randrange(2, 12))])
            case "remove":
                return registry.remove(label()) if draw.random() < .3 else registry.remove(reference=reference())
            case "rename":
                return registry.rename(label(), f"t{draw.randrange(99)}")
            case "merge":
                return registry.merge(label(), label())
            case "move":
                return registry.move(reference(), f"t{draw.randrange(9)}")
            case "undo":
                return registry.undo() if draw.random() < .5 else registry.undo(draw.randint(1, last_event(registry) or 1))
            case "threshold":
                return registry.set_threshold(draw.choice([None, draw.random()]))
            case "settings":
                turned = {"any": "upright", "upright": "any"}[registry.settings["orientation"]]
                return registry.set_settings(orientation=turned, margin=draw.choice([None, draw.random()]))
            case "purge":
                return registry.purge(time.time() - draw.random())
    return None


def files_of(folder) -> dict[str, bytes]:
    """{path below `folder`: content} of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def elsewhere(work) -> None:
    """Run `work()` in a fork that ends at once: a file that this process opened and closed by itself would lose the locks
    that SQLite has on it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
