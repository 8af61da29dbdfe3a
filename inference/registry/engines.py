"""Which engine searches: chosen by name, loaded only when it is."""
from ..errors import UserError
from .index import Index, MemoryIndex


def open_index(spec: str | None, depth: int, name: str) -> Index:
    """The engine that `spec` names: None or "memory"; "faiss[:...]" (approximate.py); "postgresql://..." (postgres.py);
    "qdrant+http://..." (qdrant.py). depth: values of a vector. name: unique for each store, collection and model; where
    several share an engine, it tells theirs apart. Raises UserError for anything else, or where a package is missing."""
    if spec in (None, "memory"):
        return MemoryIndex(depth)
    kind = spec.partition(":")[0]
    if kind == "faiss":
        from .approximate import open_faiss
        return open_faiss(spec, depth)
    if kind in ("postgresql", "postgres"):
        from .postgres import PostgresIndex
        return PostgresIndex(spec, depth, name)
    if kind.startswith("qdrant+"):
        from .qdrant import open_qdrant
        return open_qdrant(spec, depth, name)
    raise UserError(f"index {spec}: unknown; use memory, faiss, postgresql://... or qdrant+http://...")
