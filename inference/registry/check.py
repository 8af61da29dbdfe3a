"""Whether a store is whole: its database, vectors, models and pictures.

    report = check("STORE")
    report = check("STORE", rebuild=True)    # vectors again from the pictures; what can be read of a broken database

traffic.sqlite and the pictures of unknowns are no part of it: they are expendable.
"""
import contextlib
import os
import time
import zlib
from pathlib import Path

from ..errors import UserError, first_line, printable
from .blobs import swept
from .core import Store
from .errors import Damaged
from .files import DATABASE, is_store
from .graph import graph_hash
from .rebuild import salvage
from .schema import open_database, translated
from .store import Change
from .wal import page_is_whole, wal_damage

ORPHAN = 3600  # seconds after which a file without a row belongs to no transaction under way
AT_ONCE = 1000  # vectors that are made again in a transaction
SHOWN = 20  # problems of one kind that are told one by one
LOST = "lost"  # folder of a store for pictures whose references were lost


def check(store, rebuild: bool = False, progress=None) -> dict:
    """Look at everything in a store, a path or a `Store`.

    Answers {ok, problems: lines, repaired: lines, swept: files that nothing refers to and that were deleted, collections,
    types, references, pictures, features, models}. ok: there are no problems, or all of them were repaired.

    rebuild: vectors that are missing or damaged are made again from the pictures. Where the database itself is damaged, its
    readable rows move to a new one, and the damaged file stays beside it; nothing else may use the store then. Pictures and
    models cannot be made again: restore them from a backup. progress: called with a line for each step. Raises UserError
    where there is no store.
    """
    path = Path(store.path if isinstance(store, Store) else store)
    if not is_store(path):
        raise UserError(f"{path}: no store there; give the folder that holds {DATABASE}")
    report, say = Report(), progress or (lambda line: None)
    say("reading the database")
    broken = database_problems(path / DATABASE)
    if broken:
        report.add("database", broken, repaired=rebuild)
        if not rebuild:
            return report.result()
        say("saving what can be read of the database")
        salvage(path, report)
    with contextlib.ExitStack() as stack:
        store = store if isinstance(store, Store) and not broken else stack.enter_context(Store(path))
        check_models(store, report)
        say("reading vectors")
        check_features(store, report, rebuild, say)
        say("reading images")
        _check_pictures(store, report, bool(broken))
        for name, where in (("collections", "collection"), ("types", "type WHERE removed IS NULL"),
                            ("references", "reference WHERE removed IS NULL"), ("pictures", "picture"),
                            ("features", "feature"), ("models", "model")):
            report.counts[name] = store.read(f"SELECT count(*) FROM {where}")[0][0]
    return report.result()


class Report:
    def __init__(self):
        self.problems, self.repaired, self.swept, self.counts, self._open = [], [], [], {}, 0

    def add(self, what: str, lines: list[str], repaired: bool = False):
        """Problems of one kind."""
        shown = [printable(line) for line in lines[:SHOWN]]
        if len(lines) > SHOWN:
            shown.append(f"{what}: {len(lines) - SHOWN:,} more of this kind")
        (self.repaired if repaired else self.problems).extend(shown)

    def result(self):
        return dict(ok=not self.problems, problems=self.problems, repaired=self.repaired, swept=self.swept) | self.counts


def database_problems(path) -> list[str]:
    """What is wrong with the file, as SQLite and its checksums say: of pages, of the log, of references between tables."""
    if damage := wal_damage(f"{path}-wal"):  # also where others have it open, who go on until they read there
        return [f"{path}: {damage}"]
    try:
        with contextlib.closing(open_database(path)) as db, translated(path):
            found = [row[0] for row in db.execute("PRAGMA integrity_check(20)")]
            problems = [f"{path}: {first_line(line)}" for line in found if line != "ok"]
            rows = list(db.execute("PRAGMA foreign_key_check"))
            return problems + [f"{path}: row {row} of {table} refers to a {parent} that is not there"
                               for table, row, parent, _ in rows[:SHOWN]]
    except UserError as error:
        if isinstance(error, Damaged) or not page_is_whole(path):  # or else it is a database of another program or version
            return [str(error)]
        raise


def check_models(store, report):
    missing = []
    for digest, tables, name, collection in store.read("""SELECT m.hash, m.tables, m.name, c.name FROM model m
            JOIN collection c ON c.id = m.collection WHERE m.state != 'retired'"""):
        path = store.model_path(digest)
        try:
            if graph_hash(path) != digest:
                missing.append(f"{path}: model {name} of collection {collection} is damaged; restore it from a backup")
            else:
                store.model(digest, tables)  # that it runs
        except UserError as error:
            missing.append(f"model {name} of collection {collection}: {error}")
    report.add("models", missing)


def check_features(store, report, rebuild, say):
    """Vectors that are damaged, or are not there for a reference that counts."""
    bad = _bad_features(store)
    if rebuild and bad:
        with store.write() as db:  # a registry does not open with damaged ones
            db.executemany("DELETE FROM feature WHERE reference = ? AND model = ?", [entry[:2] for entry in bad])
        _make_features(store, bad, report, say)
    else:
        report.add("vectors", [f"reference {reference}: its vectors {why}; docmetric check --rebuild makes them"
                               for reference, _, why in bad])


def _bad_features(store):
    """[(reference, model, what is wrong with its vectors)]"""
    usable = {}  # id of a model: bytes of a vector
    for number, digest in store.read("SELECT id, hash FROM model"):
        with contextlib.suppress(UserError):  # has been told
            usable[number] = 4 * store.model(digest).embedding_size
    with store.reading() as db:
        bad = [(reference, model, "are damaged") for reference, model, parts, vectors, crc in
               db.execute("SELECT reference, model, parts, vectors, crc32 FROM feature")
               if zlib.crc32(vectors) != crc or len(vectors) != parts * usable.get(model, len(vectors) / max(parts, 1))]
        return bad + [(*row, "are missing") for row in db.execute("""
            SELECT r.id, m.id FROM reference r JOIN model m ON m.collection = r.collection
            WHERE r.removed IS NULL AND m.state IN ('active', 'ready')
            AND NOT EXISTS (SELECT 1 FROM feature f WHERE f.model = m.id AND f.reference = r.id)""")]


def _make_features(store, bad, report, say):
    done, failed = [], []
    for collection, in store.read("SELECT name FROM collection"):
        registry = store.collection(collection)
        mine = {row[0] for row in store.read("SELECT id FROM reference WHERE collection = ?", (registry.id,))}
        wanted = [entry for entry in bad if entry[0] in mine]
        for first in range(0, len(wanted), AT_ONCE):
            made = []
            for reference, model, why in wanted[first:first + AT_ONCE]:
                line = f"reference {reference} of collection {collection}: its vectors {why}"
                try:
                    made.append((reference, model, registry.features_of(reference, model)))
                    done.append(line)
                except (UserError, KeyError) as error:
                    failed.append(f"{line}, and cannot be made again: {error}")
            if made:
                _write_features(store, registry, made)
            say(f"made {len(done):,} of {len(bad):,} vectors again")
    report.add("vectors", done, repaired=True)
    report.add("vectors", failed)


def _write_features(store, registry, made):
    with store.write() as db:
        change = Change(db, registry.id, "check", None, None, None)
        for reference, model, vectors in made:
            registry.write_feature(db, reference, model, vectors)
            db.execute("UPDATE reference SET changed = ? WHERE id = ?", (change.event, reference))
        change.finish(f"made the vectors of {len(made):,} references again", {})


def _check_pictures(store, report, salvaged):
    """Each picture against its name; then pictures and models that nothing refers to."""
    uses = {}
    for name, number in store.read("SELECT picture, id FROM reference WHERE removed IS NULL ORDER BY id"):
        uses.setdefault(name, number)
    bad = []
    for name, size in store.read("SELECT sha256, bytes FROM picture"):
        try:
            store.blobs.get(name)
        except (Damaged, ValueError) as error:
            whose = f"reference {uses[name]}" if name in uses else "a removed reference"
            bad.append(f"{whose}: {error}")
    report.add("pictures", bad)
    with store.write() as db:  # whoever registers one of these now, waits
        keep = {row[0] for row in db.execute("SELECT sha256 FROM picture")}
        if salvaged:
            lost = [name for name in store.blobs.names() if name not in keep]
            (store.path / LOST).mkdir(exist_ok=True)
            for name in lost:
                os.replace(store.blobs.path(name), store.path / LOST / name)
            if lost:
                report.add("pictures", [f"{len(lost):,} images have lost their references; they lie in "
                                        f"{store.path / LOST}: register them again"])
        old, folder = time.time() - ORPHAN, store.path / "models"
        used = {row[0] for row in db.execute("SELECT hash FROM model")}
        unused = [] if salvaged else [path for path in folder.glob("*.onnx") if path.stem not in used]
        report.swept = store.blobs.sweep(keep, old) + swept([*folder.glob(".*.partial"), *unused], old)
