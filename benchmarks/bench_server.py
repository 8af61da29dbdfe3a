"""The server over HTTP: documents a second, delays, durable adds, start, a large registry. The shipped model; find=never
but for one row, "small documents, find=auto", which is what a new collection has.

    python benchmarks/bench_server.py [--only answers|adds|start|large] [--quick] [--json]

Ours is `python -m inference.server`; the peer is plain FastAPI around `DocClassifier` (plain_server.py), a process for each
core. Limits are measured in the same turns: of answers, HTTP alone (FastAPI that answers a constant), and then decoding, the
network and the search alone, on all cores.

The load generator (load.py) computes on the same cores as the server: of n answers in w seconds, for which it computed
c seconds, the server alone is taken to give n / (w - c / cores) a second; the plain n / w is printed as well. Delays are as
the client sees them. Needs 1.5 GB of disk and 5 GB of memory.
"""
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from bench_search import matmuls, unit_vectors
from load import Connection, requests_of
from side_by_side import Report, UserError, medians, run_cli

from inference.image import available_cores
from inference.model import load_model
from inference.registry import Registry
from inference.registry.blobs import write_durably
from inference.registry.core import DEFAULT_MODEL
from inference.registry.schema import open_database, transaction
from inference.registry.store import Change
from synth.capture import capture
from synth.templates import render

ROOT = Path(__file__).resolve().parent.parent
CLASSIFY = "/v1/collections/default/classify"
REFERENCES = "/v1/collections/default/references"
TYPES = 100
OF_A_TYPE = 10         # references, in the large registry
TOGETHER = 64          # queries
CONNECTIONS = 8        # for each core, that all have a request under way
SPARE = 32             # for each core, for requests that come at fixed times
PATIENCE = 120.0       # seconds for a server to start
CORES = available_cores()


class Sizes(NamedTuple):
    rounds: int
    seconds: float     # of one turn
    images: int
    types: int
    large: int         # references
    medium: int
    adds: int


# ---- servers and load ----

class Server:
    """A command that serves HTTP on `port`; `began`: when it was started."""

    def __init__(self, command, port, environment=None):
        self.port, self.began, self._errors = port, time.perf_counter(), tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, "-m", *map(str, command), "--port", str(port)], cwd=ROOT,
                                        env=os.environ | (environment or {}), stdout=subprocess.DEVNULL, stderr=self._errors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self._errors.close()

    def until(self, request: bytes, status: int = 200) -> float:
        """Seconds from the start to the first answer to `request` with `status`."""
        while time.perf_counter() < self.began + PATIENCE and self.process.poll() is None:
            with contextlib.suppress(ConnectionError), contextlib.closing(Connection(self.port)) as connection:
                if connection.ask(request)[0] == status:
                    return time.perf_counter() - self.began
            time.sleep(.005)
        self._errors.seek(0)
        raise UserError(f"a server did not start: {self._errors.read()[-2000:].strip() or 'it does not answer'}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ours(store, workers: int = 0) -> Server:
    server = Server(["inference.server", store, "--workers", workers], free_port())
    server.until(get("/readyz"))
    return server


def plain(stack, application: str, processes: int, register, find: str = "never") -> list[int]:
    """Ports of as many processes of one of the applications of plain_server.py."""
    started = [stack.enter_context(Server(
        ["uvicorn", "--factory", f"benchmarks.plain_server:{application}", "--log-level", "critical", "--no-access-log",
         "--timeout-keep-alive", "75"], free_port(), {"REGISTER": str(register), "FIND": find})) for _ in range(processes)]
    for server in started:
        server.until(get("/openapi.json"))
    return [server.port for server in started]


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def load(ports, path, files, seconds, *, connections=CONNECTIONS * CORES, rate=None, form=None, together=1) -> dict:
    """`load.run` in a process of its own."""
    given = {"requests": dict(path=path, files=list(map(str, files)), form=form, together=together),
             "run": dict(ports=ports, connections=connections, seconds=seconds, rate=rate)}
    done = subprocess.run([sys.executable, Path(__file__).parent / "load.py"], input=json.dumps(given), text=True,
                          capture_output=True)
    if done.returncode:
        raise UserError(f"the load generator failed: {done.stderr.strip()[-1000:]}")
    result = json.loads(done.stdout)
    if result["failed"]:
        raise UserError(f"{result['failed']} of {result['answers']} answers to {path} were errors")
    return result


def rate_of(result: dict) -> float:
    """Answers a second beyond the generator's own computing, see above."""
    return result["answers"] / (result["seconds"] - result["cpu"] / CORES)


def p99(result: dict) -> float:
    return percentile(result["latencies"], 99)


def percentile(values, percent) -> float:
    return float(np.percentile(values, percent))


# ---- data ----

def jpeg_of(image, size: int) -> bytes:
    """The best JPEG of at most `size` bytes."""
    for quality in range(95, 0, -5):
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= size:
            break
    return data


def make_images(folder: Path, count: int, sides: tuple[int, int], size: int, first: int = 0) -> list[Path]:
    """Photos of documents of the types from `first` on."""
    folder.mkdir()
    files = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, file in enumerate(files, first):
        photo = cv2.resize(capture(render(0, number, 1), 0, number), sides, interpolation=cv2.INTER_CUBIC)
        file.write_bytes(jpeg_of(photo, size))
    return files


def make_register(folder: Path, types: int) -> None:
    """The same references in FOLDER/register and in the stores FOLDER/never and FOLDER/auto, named after their `find`."""
    if (folder / "register").exists():
        return
    (folder / "register").mkdir()
    files = [folder / "register" / f"type {number}.png" for number in range(types)]
    for number, file in enumerate(files):
        cv2.imwrite(str(file), render(0, number, 0))
    for find in ("never", "auto"):
        with Registry.open(folder / find, create=True, find=find) as registry:
            registry.add_many((file, file.stem) for file in files)


def fill(path: Path, vectors: np.ndarray, picture: bytes) -> None:
    """A store whose references have these vectors, and all the same picture."""
    with Registry.open(path, create=True, find="never") as registry:
        sha256, model = registry.store.blobs.put(picture), registry.snapshot().model_id
        with registry.store.write() as db:
            change = Change(db, registry.id, "add", None, None, None)
            db.execute("INSERT INTO picture VALUES (?, ?, 420, 300)", (sha256, len(picture)))
            types = -(-len(vectors) // OF_A_TYPE)
            db.executemany("INSERT INTO type(id, collection, name, created, changed) VALUES (?, ?, ?, ?, ?)",
                           ((number, registry.id, f"type {number}", change.now, change.event)
                            for number in range(1, types + 1)))
            db.executemany("INSERT INTO reference(id, collection, type, kind, picture, created, changed) "
                           "VALUES (?, ?, ?, 'type', ?, ?, ?)",
                           ((number, registry.id, 1 + (number - 1) // OF_A_TYPE, sha256, change.now, change.event)
                            for number in range(1, len(vectors) + 1)))
            for number, vector in enumerate(vectors, 1):
                registry.write_feature(db, number, model, vector[None])
            change.finish("filled", {})


# ---- measurements ----

def answers(report, folder: Path, small: list[Path], sizes: Sizes):
    """Images a second, and the 99th percentile of the delay at half of that."""
    make_register(folder, sizes.types)
    photos = make_images(folder / "photos", sizes.images, (1600, 1200), 300_000)
    sets = [("documents of 420 x 300", small, "never"), ("photos of 1600 x 1200", photos, "never"),
            ("small documents, find=auto", small, "auto")]
    processes = 1 if report.quick else CORES
    with contextlib.ExitStack() as stack:
        http = plain(stack, "constant", processes, folder / "register")
        for name, files, find in sets:
            name += f", {statistics.mean(file.stat().st_size for file in files) / 1000:.0f} KB"
            with contextlib.ExitStack() as servers:
                peer = plain(servers, "peer", processes, folder / "register", find)
                addresses = {"ours": ([servers.enter_context(ours(folder / find)).port], CLASSIFY, None),
                             "peer": (peer, "/classify", "image"), "http": (http, "/classify", None)}
                registry = servers.enter_context(Registry.open(folder / find))
                rates, one = throughput(report, name, addresses, registry, files, sizes)
                delays(report, addresses, rates, one, files, sizes)


def turn(address, files, seconds, **options):
    ports, path, form = address
    return load(ports, path, files, seconds, form=form, **options)


def throughput(report, name, addresses, registry, files, sizes):
    """({ours, peer, http, alone}: images a second, seconds of one image alone)"""
    contents = [file.read_bytes() for file in files]
    found = {key: [] for key in (*addresses, "alone")}
    raw, times = [], []

    def in_threads(pool):
        began, count = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < sizes.seconds or not count:
            for _ in pool.map(lambda data: registry.decide([registry.look(data)]), contents):
                count += 1
        return count / took

    with ThreadPoolExecutor(CORES) as pool:
        for turns in range(sizes.rounds + 1):
            for key, address in addresses.items():
                result = turn(address, files, sizes.seconds)
                found[key].append(rate_of(result))
                if key == "ours":
                    raw.append(result["answers"] / result["seconds"])
                    cost = result["cpu"] / result["answers"]
            found["alone"].append(in_threads(pool))
            for data in contents:
                began = time.perf_counter()
                registry.decide([registry.look(data)])
                times.append(time.perf_counter() - began)
    rates = {key: statistics.median(values[1:]) for key, values in found.items()}  # the first turn warms up
    limit = 1 / (1 / rates["alone"] + 1 / rates["http"])
    report.add(f"{name}; plain FastAPI; HTTP + decoding + network", rates["ours"], rates["peer"], limit, "images/s", True)
    report.say(f"  as counted {statistics.median(raw[1:]):.0f}/s, the generator taking {cost * 1e3:.2f} ms each; HTTP alone "
               f"{rates['http']:.0f}/s, decoding + network {rates['alone']:.0f}/s; {rates['ours'] / limit:.0%} of the limit")
    return rates, statistics.median(times)


def delays(report, addresses, rates, one, files, sizes):
    """At fixed times, so that what waits is counted. one: seconds of an image alone."""
    rate = {"ours": rates["ours"] / 2, "peer": rates["peer"] / 2, "http": rates["ours"] / 2}
    found = {key: [turn(address, files, 2 * sizes.seconds, rate=rate[key], connections=SPARE * CORES)
                   for _ in range(sizes.rounds)] for key, address in addresses.items()}
    tail = {key: statistics.median(map(p99, results)) * 1e3 for key, results in found.items()}
    report.add(f"  p99 at half of that load ({rate['ours']:.0f}/s; {rate['peer']:.0f}/s)", tail["ours"], tail["peer"],
               tail["http"] + one * 1e3)
    report.say(f"  p50 {1e3 * statistics.median(percentile(result['latencies'], 50) for result in found['ours']):.2f} ms")


def large(report, folder: Path, files: list[Path], sizes: Sizes):
    """One worker, as each has all vectors in its memory."""
    model, contents = load_model(DEFAULT_MODEL, threads=1), [file.read_bytes() for file in files]
    matrix, queries = unit_vectors(sizes.large), unit_vectors(TOGETHER, seed=1)
    fill(folder / "large", matrix, contents[0])
    limits = {"look": lambda: [model.embed(model.prepare(data)[None]) for data in contents],
              "one matmul": lambda: matmuls(queries[:1], matrix), "all matmul": lambda: matmuls(queries, matrix)}
    found = {"one": [], "form": [], "clients": []} | {name: [] for name in limits}
    with ours(folder / "large", 1) as server:
        for _ in range(sizes.rounds + 1):
            one = load([server.port], CLASSIFY, files, sizes.seconds, connections=1)
            form = load([server.port], CLASSIFY, files, sizes.seconds, connections=1, form="image", together=TOGETHER)
            clients = load([server.port], CLASSIFY, files, sizes.seconds, connections=TOGETHER)
            # Of a single client's delay all that the generator computes goes off: the server waits meanwhile.
            found["one"].append((one["seconds"] - one["cpu"]) / one["answers"])
            found["form"].append((form["seconds"] - form["cpu"]) / form["answers"] / TOGETHER)
            found["clients"].append(1 / rate_of(clients))
            for name, seconds in medians(limits, 3, 0).items():
                found[name].append(seconds)
    median = {name: statistics.median(values[1:]) * 1e3 for name, values in found.items()}
    look = median["look"] / len(contents)
    report.add(f"classify against {sizes.large:,} references, one at a time; limit: matmul + image", median["one"], None,
               median["one matmul"] + look)
    many = median["all matmul"] / TOGETHER + look / CORES
    report.add(f"  {TOGETHER} in one request, each", median["form"], None, many)
    report.add(f"  {TOGETHER} clients at once, each", median["clients"], None, many)


def start(report, folder: Path, files: list[Path], sizes: Sizes):
    """From the command to the first answer."""
    content, vectors = files[0].read_bytes(), unit_vectors(sizes.medium)
    fill(folder / "medium", vectors, content)
    classify, = requests_of(CLASSIFY, files[:1])
    found = {"ready": [], "answer": [], "rows": []}
    for _ in range(sizes.rounds):
        with Server(["inference.server", folder / "medium"], free_port()) as server:
            found["ready"].append(server.until(get("/readyz")))
            found["answer"].append(server.until(classify))
        began = time.perf_counter()
        with contextlib.closing(open_database(folder / "medium" / "registry.sqlite")) as db:
            rows = db.execute("SELECT f.reference, r.type, f.vectors FROM feature f JOIN reference r ON r.id = f.reference")
            np.frombuffer(b"".join(row[2] for row in rows), np.float32)
        found["rows"].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in found.items()}
    report.add(f"start with {sizes.medium:,} references, until /readyz; limit: reading the rows", median["ready"], None,
               median["rows"], "s")
    report.add("  the same: the first answer", median["answer"], None, median["rows"], "s")


def adds(report, folder: Path, small: list[Path], sizes: Sizes):
    """Registering is done when it is on the disk, and every worker knows it at once."""
    make_register(folder, sizes.types)
    files = make_images(folder / "more", sizes.adds, (420, 300), 20_000, first=10_000)  # of types that are new
    found = {"ours": [], "commit": [], "blob": [], "image": [], "seen": [], "not added": []}
    stale = asked = 0
    with ours(folder / "never") as server, contextlib.ExitStack() as stack, Registry.open(folder / "never") as registry:
        others = [stack.enter_context(contextlib.closing(Connection(server.port))) for _ in range(4 * CORES)]
        classify, = requests_of(CLASSIFY, files[:1])
        db = stack.enter_context(contextlib.closing(open_database(folder / "limit.sqlite", create="""
            CREATE TABLE limits(id INTEGER PRIMARY KEY, vectors BLOB);""")))

        def timed(name, function):
            began = time.perf_counter()
            result = function()
            found[name].append(time.perf_counter() - began)
            return result

        def commit():
            with transaction(db):
                db.execute("INSERT INTO limits(vectors) VALUES (?)", (vectors.tobytes(),))

        def ask_all(event):
            """Ask over all connections, which lead to all workers, at the same time. How many answers did not know it."""
            for connection in others:
                connection.socket.sendall(classify)
            answers = [json.loads(connection.hear()[1]) for connection in others]
            return sum(answer["results"][0]["event"] < event for answer in answers)

        ask_all(0)
        for number, file in enumerate(files):
            add, = requests_of(f"{REFERENCES}?force=true&label=new%20{number}", [file])
            status, answer = timed("ours", lambda: others[0].ask(add))
            if status != 201:
                raise UserError(f"an add was answered {status}: {answer[:300].decode()}")
            event = json.loads(answer)["event"]
            stale += timed("seen", lambda: ask_all(event))
            asked += len(others)
            timed("not added", lambda: ask_all(event))
            content = file.read_bytes()
            vectors = timed("image", lambda: registry.look(content)).features
            timed("commit", commit)
            path = folder / "limit" / f"{number % 256:02x}" / file.name
            timed("blob", lambda: write_durably(path, content, "a picture"))
    limit = np.sum([found[name] for name in ("image", "commit", "blob")], axis=0)
    for percent in (50, 99):
        report.add(f"durable add, p{percent}; limit: image + commit + file" if percent == 50 else f"  p{percent}",
                   percentile(found["ours"], percent) * 1e3, None, percentile(limit, percent) * 1e3)
    report.say(f"  at p50 the image takes {percentile(found['image'], 50) * 1e3:.2f} ms, one commit "
               f"{percentile(found['commit'], 50) * 1e3:.2f}, one file {percentile(found['blob'], 50) * 1e3:.2f}")
    report.add(f"an add is known to all workers: {len(others)} answers after it; limit: after none",
               percentile(found["seen"], 50) * 1e3, None, percentile(found["not added"], 50) * 1e3)
    report.say(f"  {stale} of {asked} answers did not know it")


PARTS = {"answers": answers, "adds": adds, "start": start, "large": large}


def main():
    report = Report(__doc__, ("--only", {"choices": list(PARTS), "help": "this part alone"}))
    sizes = Sizes(1, .3, 4, 4, 2_000, 2_000, 4) if report.quick else Sizes(5, 2.0, 40, TYPES, 1_000_000, 100_000, 200)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        small = make_images(folder / "small", sizes.images, (420, 300), 20_000)
        for name in [report.args.only] if report.args.only else PARTS:
            PARTS[name](report, folder, small, sizes)
    report.end()


if __name__ == "__main__":
    run_cli(main)
