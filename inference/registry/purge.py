"""What was removed, deleted for good."""
import json

from ..errors import plural


def purge(registry, before: float, who: str | None = None) -> dict:
    """Delete for good what was removed before a time (seconds since 1970): rows, vectors, pictures that nothing else
    has, and what events and decisions say of them. It cannot be undone. Answers {event, references, pictures}."""
    unused, names = [], set()

    def body(change):
        db = change.db
        gone = dict(db.execute("SELECT id, picture FROM reference WHERE collection = ? AND removed < ?",
                               (registry.id, before)))
        for number in gone:
            for rows in ("feature WHERE reference", "look_alike WHERE reference", "look_alike WHERE other",
                         "reference WHERE id"):
                db.execute(f"DELETE FROM {rows} = ?", (number,))
        types = dict(db.execute("SELECT id, name FROM type t WHERE collection = ? AND removed < ? AND NOT EXISTS "
                                "(SELECT 1 FROM reference WHERE type = t.id)", (registry.id, before)))
        for number in types:
            db.execute("DELETE FROM threshold WHERE type = ?", (number,))
            db.execute("DELETE FROM type WHERE id = ?", (number,))
        unused.extend(name for name in set(gone.values())
                      if not list(db.execute("SELECT 1 FROM reference WHERE picture = ? LIMIT 1", (name,))))
        db.executemany("DELETE FROM picture WHERE sha256 = ?", [(name,) for name in unused])
        names.update(name for name in types.values() if not list(db.execute(
            "SELECT 1 FROM type WHERE collection = ? AND name = ? LIMIT 1", (registry.id, name))))
        if gone or types:
            _forget(change, gone.keys(), types.keys())
        return (f"deleted {plural(len(gone), 'image')} for good",
                dict(event=change.event, deleted=list(gone), types=list(types)))

    result = registry.mutate("purge", body, who)
    registry.store.delete_pictures(unused)
    registry.store.clear_log()
    registry.traffic.forget([*result["types"], *(-number for number in result["deleted"])], sorted(names))
    return dict(event=result["event"], references=len(result["deleted"]), pictures=len(unused))


def _forget(change, references, types):
    """What events say of references and types that were deleted for good: they cannot be undone any longer."""
    forgotten, shorter = [], []
    for event, changes, result in change.db.execute("SELECT id, changes, result FROM event WHERE collection = ? AND "
                                                    "id < ? AND what != 'purge'", (change.collection, change.event)):
        changes, result = json.loads(changes), json.loads(result)
        listed = result.get("references")
        if (any(row in (references if table == "reference" else types if table == "type" else ())
                or not types.isdisjoint(columns.get("type", ())) for table, row, columns in changes)
                or any(isinstance(one, dict) and one.get("type") in types
                       for one in (result, *(listed if isinstance(listed, list) else ())))):
            forgotten.append((event,))
        elif any(found["details"].get("reference") in references for found in result.get("findings", ())):
            shorter.append((json.dumps(result | {"findings": []}), event))
    change.db.executemany("UPDATE event SET text = 'deleted for good', changes = '[]', result = '{}' WHERE id = ?",
                          forgotten)
    change.db.executemany("UPDATE event SET result = ? WHERE id = ?", shorter)
