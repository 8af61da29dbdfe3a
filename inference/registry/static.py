"""A store's collection as `DocClassifier` takes it: a `Gallery` that does not change."""
import numpy as np

from ..errors import UserError
from ..gallery import Gallery
from ..model import TURNS, Model
from ..views import FINDS
from .core import Registry
from .graph import graph_hash
from .state import Snapshot

UNKNOWN = ""  # the label of all known unknowns: no type has an empty one


def read_store(path, model=None, orientation: str = "upright", backend: str = "cpu", threads: int = 0,
               gallery: str = "cpu") -> tuple[Gallery, Model, Snapshot, object]:
    """(gallery, model, state, `find` as `views.Views` calls it) of the store's default collection, as it is now.

    Known unknowns are a type with the label UNKNOWN. model: None, or the path of the model that the store has. Raises
    UserError where it has another one, has nothing registered, or was made for upright documents and orientation is "any".
    """
    with Registry.open(path, threads=threads, backend=backend) as registry:
        state = registry.snapshot()
        if model is not None and graph_hash(model.path if isinstance(model, Model) else model) != state.model_hash:
            raise UserError(f"{path}: its references are embedded by another model; leave the model away, or give this one "
                            "to docmetric model add")
        if orientation == "any" != state.orientation:
            raise UserError(f"{path}: holds upright references alone; change it with Registry.set_settings")
        if not len(state.index):
            raise UserError(f"{path}: nothing is registered; add an image of each type: docmetric add")
        with registry.store.reading() as db:
            rows = registry.state.rows(db, state.model_id, registry.model.embedding_size)
        turns = TURNS if state.orientation == "any" else 1
        kinds = np.maximum(rows.types, 0)  # known unknowns have a negative one each
        order = np.lexsort((rows.ids, kinds))
        kinds, vectors = kinds[order], rows.vectors[order]
        starts = np.flatnonzero(np.diff(kinds, prepend=-1))
        references = {state.types[kind] if kind else UNKNOWN: part.reshape(-1, turns, vectors.shape[1])
                      for kind, part in zip(kinds[starts].tolist(), np.split(vectors, starts[1:]))}
        return Gallery.of(references, turns, gallery), registry.model, state, FINDS[state.find]
