"""A registry: the types of one collection of a store, changed and asked at any time, by any number of threads and processes.

    registry = Registry.open("STORE", create=True)
    registry.add("passport.jpg", "passport")
    label, score = registry("photo.jpg")           # label None: not registered

Every mutation is one transaction and one event, which can be undone. Vectors are derived from the pictures and lie in the
store for each model; they are searched in memory. Before each answer the registry looks whether anyone has committed
something (3 us) and reads the rows that have changed since: every process sees every committed change.

Most methods stand in files of their own: `asking` (what an image is), `registering` (images become references), `changing`
(all other mutations, and undo), `listing` (rows).
"""
import contextlib
import time
from functools import cached_property

import apsw

from ..errors import printable
from ..model import DEFAULT_MODEL, Model
from .asking import Asking
from .changing import Changing
from .errors import Conflict, Invalid, NotFound
from .listing import Listing
from .registering import Registering
from .state import State
from .store import DEFAULT_COLLECTION, StoreFiles, check_settings

NAMED = "a word of letters, digits, '-' and '_', at most 64"


class Registry(Asking, Registering, Changing, Listing):
    """One collection of a store; see the module's docstring. `Registry.open` and `Store.collection` make it.

    `store` is its store, `name` its name. Its methods may be called from several threads. `who` is the name of who changes
    something; `key` makes a mutation safe to repeat: the same call with the same key gives the first call's answer, another
    call with that key is a Conflict. Labels are any printable text. Raises UserError; see registry/errors.py.
    """

    def __init__(self, store: "Store", number: int, name: str):
        super().__init__()
        self.store, self.id, self.name = store, number, name
        self.state = State(store, number)
        self.snapshot = self.state.snapshot  # () -> `state.Snapshot`
        self._own_store = False

    @classmethod
    def open(cls, path, collection: str = DEFAULT_COLLECTION, *, create: bool = False, model=None, find: str = "auto",
             orientation: str = "upright", threads: int = 0, backend: str = "cpu", index: str | None = None) -> "Registry":
        """The registry in the folder `path`.

        create: make the store and the collection where they are missing (also where several processes come at the same
        time, or one was killed while it made them), with `model` (the path of an exported model; None: the shipped one),
        `find` and `orientation` (`settings`). index: what searches, see `engines.open_index`; None: memory, exact. threads:
        work on many images (0: one per core). backend: "cpu" or "cuda", for the network.
        """
        store = Store(path, create, threads, backend, index)
        try:
            if create and not store.read("SELECT id FROM collection WHERE name = ?", (collection,)):
                with contextlib.suppress(Conflict):  # another process was faster
                    store.create(collection, model, find, orientation)
            registry = store.collection(collection)
        except BaseException:
            store.close()
            raise
        registry._own_store = True
        return registry

    def close(self) -> None:
        if self._own_store:
            self.store.close()

    def _release(self):
        for name in ("traffic", "upgrade"):
            if name in self.__dict__ and hasattr(self.__dict__[name], "close"):
                self.__dict__[name].close()
        self.state.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @cached_property
    def traffic(self):
        """Decisions, feedback and unknowns of this collection (`traffic.Traffic`)."""
        from .traffic import Traffic
        return Traffic(self.store, self.name)

    @cached_property
    def unknowns(self):
        """The unknowns that were kept (`unknowns.Unknowns`)."""
        from .unknowns import Unknowns
        return Unknowns(self)

    @cached_property
    def upgrade(self):
        """A change of the model (`upgrade.Upgrade`)."""
        from .upgrade import Upgrade
        return Upgrade(self)

    def suggest_threshold(self, **options) -> dict:
        """A threshold from what the collection has seen (`threshold.suggest`)."""
        from .threshold import suggest
        return suggest(self, **options)

    def export(self, target, **options) -> dict:
        """Write the collection as one ZIP file (`transfer.export`)."""
        from .transfer import export
        return export(self, target, **options)

    def import_(self, source, on_conflict: str = "skip", who=None, **options) -> dict:
        """Register what a ZIP file of `export`, or a folder of images, holds (`transfer.import_`)."""
        from .transfer import import_
        return import_(self, source, on_conflict, who, **options)

    def purge(self, before: float, who: str | None = None) -> dict:
        """Delete for good what was removed before a time (`purge.purge`)."""
        from .purge import purge
        return purge(self, before, who)

    # ---- state ----

    @property
    def settings(self) -> dict:
        """`find`: "never": images are compared as they are; "always": the document that is found in them; "auto": both, and
        the better score decides. `orientation`: "upright", or "any": documents may lie any of four ways up. `margin`: the
        runner-up gap (None: the model's own)."""
        row = self.store.read("SELECT find, orientation, margin FROM collection WHERE id = ?", (self.id,))
        return dict(zip(("find", "orientation", "margin"), row[0]))

    @property
    def model(self) -> Model:
        """The active model, with the collection's own thresholds and margin."""
        snapshot = self.snapshot()
        return self.store.model(snapshot.model_hash, snapshot.tables)

    def model_of(self, model_id: int) -> Model:
        """As `model`, for any model of the collection. Raises NotFound."""
        rows = self.store.read("SELECT hash, tables FROM model WHERE id = ?", (model_id,))
        if not rows:
            raise NotFound("the model was removed just now")
        return self.store.model(*rows[0])

    @property
    def threshold(self) -> float:
        """The lowest score at which a label is given. Types that look alike, or have their own, may have another one."""
        return self.snapshot().threshold

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about the threshold."""
        return self.snapshot().warnings


class Store(StoreFiles):
    """A store with its collections; see `StoreFiles`."""

    def __init__(self, path, create: bool = False, threads: int = 0, backend: str = "cpu", index: str | None = None):
        super().__init__(path, create, threads, backend, index)
        self._registries: dict[str, Registry] = {}

    def close(self) -> None:
        """Further use is an error."""
        if self.is_ours():
            for registry in self._registries.values():
                registry._release()
            self._registries.clear()
        super().close()

    def collections(self) -> list[dict]:
        """[{name, find, orientation, created, types, references, model}], by name."""
        rows = self.read("""
            SELECT c.name, c.find, c.orientation, c.created,
                (SELECT count(*) FROM type t WHERE t.collection = c.id AND t.removed IS NULL),
                (SELECT count(*) FROM reference r WHERE r.collection = c.id AND r.removed IS NULL),
                (SELECT hash FROM model m WHERE m.collection = c.id AND m.state = 'active')
            FROM collection c ORDER BY c.name""")
        names = ("name", "find", "orientation", "created", "types", "references", "model")
        return [dict(zip(names, row)) for row in rows]

    def create(self, name: str = DEFAULT_COLLECTION, model=None, find: str = "auto", orientation: str = "upright"):
        """A new, empty collection as a `Registry`. model: the path of an exported one (None: the shipped one), which is
        copied into the store; find, orientation: see `Registry.settings`. Raises Conflict where one has this name."""
        check_settings(find, orientation)
        if not (isinstance(name, str) and 0 < len(name) <= 64 and name.isascii()
                and name.replace("-", "").replace("_", "").isalnum()):
            raise Invalid(f"collection {printable(name)[:80]}: its name must be {NAMED}")
        with self.kept_model(DEFAULT_MODEL if model is None else model) as (digest, title, tables), self.write() as db:
            try:
                db.execute("INSERT INTO collection(name, find, orientation, created) VALUES (?, ?, ?, ?)",
                           (name, find, orientation, time.time()))
            except apsw.ConstraintError:
                raise Conflict(f"collection {name}: is there already; choose another name") from None
            self.insert_model(db, db.last_insert_rowid(), digest, title, tables, "active")
        return self.collection(name)

    def collection(self, name: str = DEFAULT_COLLECTION):
        """The `Registry` of a collection; the same object each time. Raises NotFound."""
        registry = self._registries.get(name) if isinstance(name, str) else None
        if registry is None:
            # Not under the lock: who reads holds another lock, and may wait for this one to get a model.
            found = self.read("SELECT id FROM collection WHERE name = ?", (name,)) if isinstance(name, str) else ()
            if not found:
                there = ", ".join(row[0] for row in self.read("SELECT name FROM collection ORDER BY name LIMIT 20"))
                raise NotFound(f"collection {printable(name)[:80]}: there is none of this name"
                               + (f"; there are {there}" if there else ""))
            with self._loading:
                registry = self._registries.setdefault(name, Registry(self, found[0][0], name))
        return registry
