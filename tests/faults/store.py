"""Faults of the store: kill -9 at random moments, many processes at once, flipped bits, files that were cut off.

    python -m tests.faults.store --kills 500
    python -m tests.faults.store --kills 0 --flips 0 --processes 8 --adds 1000
    python -m tests.faults.store --kills 0 --processes 0 --flips 3000

A killed process was opening a store, adding pictures, or changing it in any other way. Then another process must find all
that was acknowledged; of what was under way, all or nothing; no other trace but files that a sweep takes away. Of a store in
which a bit was flipped, or whose file was cut off, the answers must be the same as before, or one line says what is wrong.
What is cut off from the end of the log is as after a power cut: the answers may be those of an earlier moment.
"""
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path

from tqdm import tqdm

from inference.cli import Parser, run_cli
from inference.errors import UserError
from inference.registry.check import check
from tests.helpers import stores
from tests.helpers.models import write_model
from tests.helpers.stores import Worker, check_whole, content, last_event, make_store, opened, picture

# What is under way when a process is killed, and how often. Most of them add, as in use.
KILLED = {"add": 50, "open": 10, "add many": 8, "remove": 4, "rename": 2, "merge": 4, "move": 2, "undo": 6, "settings": 8,
          "threshold": 1, "purge": 3, "add unknown": 2}
CHANGES = [name for name in KILLED if name != "open"]
ROUNDS = 20  # kills of one store
AT_LEAST = .002  # seconds among which the moment of a kill is drawn
SEARCHED = 8  # references that are searched after each kill; all at the end of a store


# ---------------------------------------------------------------- kills
def worker(say, folder, seed, wanted):
    """Opens the store and changes it, until it is killed. Says what it begins, and what is in the store after that."""
    draw = random.Random(seed)
    say(("begin", "open"))
    with opened(folder / "store", folder / "model.onnx") as registry:
        say(("done", "open", last_event(registry), content(registry)))
        while True:
            name = wanted if wanted != "open" and draw.random() < .7 else draw.choice(CHANGES)
            say(("begin", name))
            stores.change_at_random(registry, draw, name)
            say(("done", name, last_event(registry), content(registry)))


def visitor(say, folder, event, expected, searched):
    """Says what became of the change that was under way, and how many files were swept. `event` None: nothing was
    acknowledged, the store may not be there."""
    with opened(folder / "store", folder / "model.onnx") as registry:
        now = last_event(registry)
        became = "opened" if event is None else "not committed" if now == event else "committed"
        if event is None:
            registry.add(picture("after"), "after", force=True)
        elif now != event:
            assert now == event + 1, f"event {now}, acknowledged is {event}"
            if registry.store.read("SELECT changes FROM event WHERE id = ?", (now,)) != [("[]",)]:  # as of a purge
                registry.undo(now)  # what was not acknowledged is there as a whole, or undoing it would not lead back
        if event is not None:
            assert content(registry) == expected, "not what was acknowledged"
        swept = check_whole(registry, searched)
        made = registry.add(picture("next", now), "next", force=True)  # it goes on
        stores.check_found(registry, [(made["reference"], made["sha256"])])
        registry.undo()
        say((became, swept, last_event(registry), content(registry)))


def kill_rounds(kills: int, seed: int, place: Path, show: bool = False) -> Counter:
    """`kills` kills of processes that use a store. Returns what happened, as numbers; AssertionError where anything is
    wrong."""
    draw, made, times = random.Random(seed), Counter(), {}
    bar = tqdm(total=kills, unit="kill", disable=None if show else True)
    while made["kills"] < kills:
        folder = place / f"store-{made['stores']}"
        folder.mkdir()
        write_model(folder / "model.onnx")
        made["stores"] += 1
        event, expected = None, None
        for _ in range(min(ROUNDS, kills - made["kills"])):
            wanted = draw.choices(list(KILLED), KILLED.values())[0]
            if event is None and made["stores"] % 2:
                wanted = "open"  # of a store that is not there
            process = Worker(worker, folder, draw.random(), wanted)
            # Some of the acknowledged changes come first.
            under_way, wait = None, draw.randrange(3)
            while under_way != wanted or wait:
                kind, name, *more = process.hear()
                if kind == "begin":
                    under_way, began = name, time.monotonic()
                    wait -= bool(name == wanted and wait and wanted != "open")
                    wait *= wanted != "open"
                else:
                    times.setdefault(name, []).append(time.monotonic() - began)
                    made["acknowledged"] += 1
                    under_way, (event, expected) = None, more
            typical = statistics.median(times.get(wanted, [.03]))
            time.sleep(draw.uniform(0, 1.2 * max(typical, AT_LEAST)))
            for kind, name, *more in process.kill():
                under_way = name if kind == "begin" else None
                made["acknowledged"] += kind == "done"
                if kind == "done":
                    event, expected = more
            made["kills"] += 1
            made[f"under way: {under_way or 'nothing'}"] += 1
            became, swept, event, expected = Worker(visitor, folder, event, expected, SEARCHED).end()[-1]
            made[became] += under_way is not None
            made["files swept"] += swept
            bar.update()
        with opened(folder / "store") as registry:
            check_whole(registry)
            made["references at the end"] += len(content(registry)["references"])
        report = check(folder / "store")
        assert report["ok"], report["problems"]
        shutil.rmtree(folder)
    bar.close()
    return made


# ---------------------------------------------------------------- many processes
UNDONE = 9  # of ten pictures that a process adds, this one is taken back at once


def adder(say, folder, number, adds, before, after):
    """Registers pictures; tells each acknowledged one to the next process, and looks for that of the one before."""
    with opened(folder / "store") as registry:
        for step in range(adds):
            made = registry.add(picture(number, step), f"t{number}-{step % 10}", force=True)
            after.send((number, step, made["reference"]))
            other, its_step, reference = before.recv()
            nearest = registry.search(picture(other, its_step), 1)[0]
            assert its_step % 10 == UNDONE or (nearest["reference"], nearest["label"]) == (
                reference, f"t{other}-{its_step % 10}"), nearest
            undone = step % 10 == UNDONE
            if undone:
                registry.undo(made["event"])
            say((made["reference"], made["event"], undone))


def reader(say, folder, stop):
    """Classifies, again and again, a picture that was there from the start, and one that never comes."""
    answers = 0
    with opened(folder / "store") as registry:
        while not stop.exists():
            label, score = registry(picture("first"))
            assert label == "first" and score > 1 - 1e-6
            assert registry(picture("never"))[1] < 1 - 1e-6
            answers += 1
    say(answers)


def opener(say, folder, stop):
    """Opens and closes the store, as each command does."""
    opens = 0
    while not stop.exists():
        with opened(folder / "store") as registry:
            assert "first" in registry.labels and registry(picture("first"))[0] == "first"
        opens += 1
    say(opens)


def many_processes(processes: int, adds: int, place: Path) -> dict:
    """`processes` x `adds` pictures beside one that classifies and one that opens. Returns numbers; or AssertionError."""
    with make_store(place) as registry:
        registry.add(picture("first"), "first", force=True)
    began, stop, pipes = time.monotonic(), place / "stop", [Pipe(duplex=False) for _ in range(processes)]
    beside = [Worker(target, place, stop) for target in (reader, opener)]
    workers = [Worker(adder, place, number, adds, pipes[number - 1][0], pipes[number][1]) for number in range(processes)]
    for ends in pipes:  # a process that ends must not leave the next one waiting
        for end in ends:
            end.close()
    try:
        said = [worker.end(3600) for worker in workers]
    finally:
        stop.touch()
    seconds = time.monotonic() - began
    (answers,), (opens,) = (worker.end() for worker in beside)
    rows = [row for of_worker in said for row in of_worker]
    assert [len(of_worker) for of_worker in said] == [adds] * processes
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == processes * adds, "ids are not unique"
    with opened(place / "store") as registry:
        now = content(registry)
        assert [row[0] for row in now["references"]] == [1] + sorted(row[0] for row in rows if not row[2])
        assert last_event(registry) == 1 + len(rows) + sum(row[2] for row in rows)
        check_whole(registry, 200)
    assert check(place / "store")["ok"]
    return {"processes": processes, "adds": len(rows), "undone": sum(row[2] for row in rows), "adds per second":
            round(len(rows) / seconds), "answers beside": answers, "opened beside": opens}


# ---------------------------------------------------------------- flipped bits
class Damaged:
    """A store of `count` types, a picture and an event each, that is damaged again and again. `killed`: its process was,
    so that the last commits are in the -wal file."""

    def __init__(self, place: Path, count: int = 12, killed: bool = True):
        self.place, self.count = place, count
        process = Worker(maker, place, count, killed)
        process.hear()
        self.whole = place / "whole"
        shutil.copytree(place / "store", self.whole)  # as a kill would leave it
        process.kill()
        shutil.rmtree(place / "store")
        self.expected = self.answers(self.copy())
        self.kinds = {kind: files for kind, files in {
            "registry.sqlite": [self.whole / "registry.sqlite"], "-wal": sorted(self.whole.glob("*-wal")),
            "model": sorted(self.whole.glob("models/*")), "picture": sorted(self.whole.glob("blobs/*/*"))}.items() if files}

    def copy(self) -> Path:
        folder = self.place / "store"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole, folder)
        return folder

    def answers(self, folder) -> list | str:
        """All that a registry can be asked, or the line that it says."""
        try:
            with opened(folder) as registry:
                return self.asked(registry)
        except UserError as error:
            return self.line(error)

    def line(self, error):
        assert str(error) and "\n" not in str(error) and len(str(error)) < 600, repr(str(error))
        return str(error)

    def asked(self, registry) -> list:
        results = registry.classify([picture(number) for number in range(self.count)], 2)
        return [results, registry.types(), registry.references(), registry.events(), registry.settings,
                [registry.picture(row["reference"]) for row in registry.references()]]

    def round(self, draw: random.Random, kind: str, cut: bool, in_use: bool) -> str:
        """Damage a file of this kind. Returns "same", "line", or "older" for the answers of an earlier state, which can be
        no other than after the end of the -wal file was cut off; AssertionError for anything else."""
        folder = self.copy()
        file = folder / draw.choice(self.kinds[kind]).relative_to(self.whole)
        size = file.stat().st_size
        at = draw.randrange(size)

        def damage():
            with open(file, "r+b") as opened_file:
                if cut:
                    opened_file.truncate(at)
                else:
                    opened_file.seek(at)
                    byte = opened_file.read(1)[0] ^ 1 << draw.randrange(8)
                    opened_file.seek(at)
                    opened_file.write(bytes([byte]))

        said = []
        if in_use:
            try:
                with opened(folder) as registry:
                    said.append(self.asked(registry))
                    stores.elsewhere(damage)
                    said.append(self.asked(registry))
                    said.append(self.answers(folder))  # beside it, with nothing in memory yet
            except UserError as error:
                said.append(self.line(error))
        else:
            damage()
        said += [self.answers(folder), self.answers(folder)]  # also the second time
        outcomes = {"line" if isinstance(one, str) else "same" if one == self.expected else "older" for one in said}
        if "older" in outcomes:
            events = {len(one[3]) for one in said if not isinstance(one, str) and one != self.expected}
            for one in said:
                if not isinstance(one, str) and one != self.expected:
                    assert one[1:4] == [self.expected[1][:len(one[3])], self.expected[2][:len(one[3])],
                                        self.expected[3][:len(one[3])]], f"{kind} at {at}: another answer"
            assert kind == "-wal" and cut, (
                f"{kind} of {size:,} bytes, {'cut' if cut else 'flipped'} at {at}: {events} events left")
        return next(outcome for outcome in ("older", "line", "same") if outcome in outcomes)


def maker(say, place, count, killed):
    """Half of the pictures are in the database when it says that it is done, the others in the -wal file."""
    make_store(place, count // 2 if killed else count).close()
    with opened(place / "store") as registry:
        for number in range(count // 2, count if killed else 0):
            registry.add(picture(number), f"t{number}", force=True)
        if killed:
            say("done")
            time.sleep(3600)
    say("done")
    time.sleep(3600)


def flip_rounds(rounds: int, seed: int, place: Path, show: bool = False) -> Counter:
    """`rounds` times one flipped bit or a file that was cut off. Returns what happened, as numbers; AssertionError where
    that is not what the module's docstring says."""
    draw, made = random.Random(seed), Counter()
    stores = [Damaged(place / name, killed=killed) for name, killed in (("killed", True), ("closed", False))]
    for number in tqdm(range(rounds), unit="flip", disable=None if show else True):
        store = stores[number % 4 == 3]
        kind = list(store.kinds)[draw.randrange(len(store.kinds))]
        cut, in_use = draw.random() < .3, draw.random() < .3
        outcome = store.round(draw, kind, cut, in_use)
        made[f"{kind} {'cut' if cut else 'flipped'}{' in use' if in_use else ''}: {outcome}"] += 1
    return made


def main():
    parser = Parser(prog="python -m tests.faults.store", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, metavar="N", help="number of kills")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="processes that add at the same time")
    parser.add_argument("--adds", type=int, default=1000, metavar="N", help="pictures that each of them adds")
    parser.add_argument("--flips", type=int, default=1000, metavar="N", help="number of damaged files")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random choices")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        try:
            for count, what, work in (
                    (options.kills, "kills", lambda folder: kill_rounds(options.kills, options.seed, folder, True)),
                    (options.processes, "processes", lambda folder: many_processes(options.processes, options.adds, folder)),
                    (options.flips, "flips", lambda folder: flip_rounds(options.flips, options.seed, folder, True))):
                if count:
                    folder, began = Path(place, what), time.monotonic()
                    folder.mkdir()
                    made = work(folder)
                    print(f"== {what}: all is as it must be, {time.monotonic() - began:.0f} s", flush=True)
                    for name, value in sorted(made.items()):
                        print(f"{value:9,} {name}")
        except AssertionError as error:
            raise UserError(f"seed {options.seed}: {error}") from error


if __name__ == "__main__":
    run_cli(main)
