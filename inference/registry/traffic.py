"""What a collection was asked and what it answered: traffic.sqlite beside the registry.

By default only the numbers of a decision are kept: when, the best two types and their scores, the label that was given and
why; nothing of the image, no name of a file, no address. Rejected pictures (`unknowns.py`) are kept only where someone asked
for it, for so long, and are then deleted with their rows. All of it is expendable: where the file is damaged, missing or
locked, or the disk is full, classification goes on, and the registry never reads it.
"""
import json
import secrets
import time

from ..errors import UserError
from .errors import NotFound
from .traffic_file import file_of

KEEP_FEEDBACK = 10_000  # decisions with feedback are rare and worth more: they stay when the others go
KEPT = ("below-threshold", "runner-up-gap", "empty")  # reasons for which a picture is an unknown
EXAMPLES = 20


class Traffic:
    """Decisions, feedback and rejected pictures of one collection.

    store: a `Store`; collection: its name. `keep_decisions`: rows, of all collections together. `keep_unknown`: seconds for
    which rejected pictures and their features are kept; 0: they are not, and those that are there stay until their time.
    Every method may be called from several threads, and several processes share the file.
    """

    def __init__(self, store, collection: str, keep_unknown: float = 0.0):
        self.store, self.keep_unknown = store, keep_unknown
        self.collection, = store.read("SELECT id FROM collection WHERE name = ?", (collection,))[0]
        self.file = file_of(store.path)
        if self.file.pictures.folder.is_dir():
            self.file.work()  # what has expired is deleted, though nobody asks anything

    @property
    def keep_decisions(self) -> int:
        return self.file.keep_decisions

    @keep_decisions.setter
    def keep_decisions(self, rows: int):
        self.file.keep_decisions = rows

    def record(self, result: dict, look=None, image: bytes | None = None) -> int:
        """Note a result of `Registry.classify`; -> the decision's id, at once (it is written within a second).

        look, image: the `Look` and the file as it was sent. They are kept only for a rejected picture, and only with
        `keep_unknown`.
        """
        decision = secrets.randbits(53)  # processes need no agreement, and JavaScript's numbers hold it
        now, top, model, event = time.time(), result["top_k"], result["model"], result["event"]
        (best, score), (second, second_score) = (_entry(top, 0), _entry(top, 1))
        picture = None
        if (self.keep_unknown > 0 and look is not None and image is not None and result["label"] is None
                and result["reason"] in KEPT):
            quad = None if look.quad is None or look.found is not None else json.dumps(_listed(look.quad))
            # The model by its whole hash: the features are those of this network alone.
            picture = (bytes(image), now + self.keep_unknown, quad, look.model, len(look.features),
                       look.features.astype("<f4").tobytes())
        self.file.put((decision, self.collection, now, model, event, best, score, second, second_score, result["label"],
                       result["reason"], result["threshold"], result["margin"]), picture)
        return decision

    def forget(self, kinds: list[int], labels: list[str]) -> None:
        """Delete the decisions that name what was deleted for good: types by their ids, known unknowns by minus theirs, and
        types that feedback named by their labels."""
        self.flush()
        if not (self.file.path.exists() and (kinds or labels)):
            return
        try:
            self.file.write(lambda db: db.execute(
                "DELETE FROM decision WHERE collection = ?3 AND (best IN (SELECT value FROM json_each(?1)) OR second IN "
                "(SELECT value FROM json_each(?1)) OR right IN (SELECT value FROM json_each(?2)))",
                (json.dumps(kinds), json.dumps(labels), self.collection)))
        except UserError as error:
            self.file.tell("decisions about what was deleted for good were not deleted", error)

    def flush(self) -> None:
        """Write what waits. Says nothing where it cannot be written; see the log."""
        self.file.flush()

    def close(self) -> None:
        """Write what waits. Whoever uses the file again, another collection say, opens it again."""
        self.file.close()

    def decisions(self, after: int = 0, limit: int = 100, newest: bool = False, feedback: bool = False) -> list[dict]:
        """Those that came after the decision `after` (0: from the first), the oldest first; `newest`: those before it, the
        newest first. feedback: only decisions with feedback.

        Each: {decision, when (seconds since 1970), label, score, reason, top: [{type, kind, score}] (the best two types; a
        known unknown has the kind "unknown" and its `reference`), threshold, margin, model, event, correct (True, False, or
        None: nobody said), right (the right label, where it was told)}.
        """
        self.flush()
        row = f"coalesce((SELECT row FROM decision WHERE id = ?), {'0' if after or not newest else '9e18'})"
        rows = self.file.read(
            f"SELECT {', '.join(_DECISION)} FROM decision WHERE collection = ? AND row {'<' if newest else '>'} {row}"
            f"{' AND correct IS NOT NULL' if feedback else ''} ORDER BY row {'DESC' if newest else ''} LIMIT ?",
            (self.collection, after, limit))
        return [_decision(dict(zip(_DECISION, row))) for row in rows]

    def feedback(self, decision: int, correct: bool, label: str | None = None) -> dict:
        """Say whether a decision was right, and what the right label is: None: of no registered type (or the given one,
        where it was right). The last word counts. -> the decision. Raises NotFound for one that is not kept any longer."""
        self.flush()

        def write(db):
            if not list(db.execute("UPDATE decision SET correct = ?, right = ? WHERE id = ? AND collection = ? RETURNING id",
                                   (int(correct), label, decision, self.collection))):
                raise NotFound(f"decision {decision}: not known, or older than those that are kept")
            db.execute("DELETE FROM decision WHERE correct IS NOT NULL AND row <= (SELECT row FROM decision "
                       "WHERE correct IS NOT NULL ORDER BY row DESC LIMIT 1 OFFSET ?)", (KEEP_FEEDBACK,))
            return list(db.execute(f"SELECT {', '.join(_DECISION)} FROM decision WHERE id = ?", (decision,)))
        return _decision(dict(zip(_DECISION, self.file.write(write)[0])))

    def counts(self) -> dict:
        """{decisions, labeled, correct, wrong, unknowns, bytes}: of what is kept of this collection."""
        self.flush()
        (decisions, labeled, correct, wrong), = self.file.read(
            "SELECT count(*), count(label), coalesce(sum(correct), 0), coalesce(sum(1 - correct), 0) FROM decision "
            "WHERE collection = ?", (self.collection,)) or [(0, 0, 0, 0)]
        (unknowns, size), = self.file.read("SELECT count(*), coalesce(sum(bytes), 0) FROM unknown WHERE collection = ? "
                                           "AND expires > ?", (self.collection, time.time())) or [(0, 0)]
        return dict(decisions=decisions, labeled=labeled, correct=correct, wrong=wrong, unknowns=unknowns, bytes=size)

    def replay(self, threshold: float) -> dict:
        """What another threshold would have made of the stored decisions of the active model: exact counts.

        The scores and the runner-up gap are those of then. `threshold` counts as where `Registry.set_threshold` is given it:
        for all types but those with one of their own. -> {threshold, decisions, since (time of the oldest), labeled (as
        decided), labeled_then (with the other threshold), gained, lost (labels), unclear (decisions without a second type,
        of which the gap cannot be told), of those with feedback: right_lost, wrong_lost (labels that were said to be right,
        or wrong, and would not be given), wrong_rejections_gained (rejections that were said to be wrong and would get a
        label), examples: {gained: [decision ids], lost: [...]}, the newest}.
        """
        self.flush()
        (number, digest), = self.store.read("SELECT id, hash FROM model WHERE collection = ? AND state = 'active'",
                                            (self.collection,))
        own = dict(self.store.read("SELECT type, value FROM threshold WHERE model = ? AND type IS NOT NULL "
                                   "AND removed IS NULL", (number,)))
        rows = self.file.read(
            "SELECT id, created, best, score, second_score, reason, margin, correct FROM decision "
            "WHERE collection = ? AND model = ? AND best IS NOT NULL ORDER BY row DESC", (self.collection, digest[:16]))
        counts = dict.fromkeys(("labeled", "labeled_then", "gained", "lost", "unclear", "right_lost", "wrong_lost",
                                "wrong_rejections_gained"), 0)
        examples = {"gained": [], "lost": []}
        for decision, _, best, score, second, reason, margin, correct in rows:
            before = reason == "accepted"
            close = reason == "runner-up-gap" if second is None else score - second < margin
            then = best > 0 and score >= own.get(best, threshold) and not close
            counts["labeled"] += before
            counts["labeled_then"] += then
            if before == then:
                continue
            change = "gained" if then else "lost"
            counts[change] += 1
            counts["unclear"] += then and second is None and margin > 0
            counts["right_lost"] += change == "lost" and correct == 1
            counts["wrong_lost"] += change == "lost" and correct == 0
            counts["wrong_rejections_gained"] += change == "gained" and correct == 0
            if len(examples[change]) < EXAMPLES:
                examples[change].append(decision)
        return dict(threshold=threshold, decisions=len(rows), since=rows[-1][1] if rows else None, **counts,
                    examples=examples)


_DECISION = ("id", "created", "model", "event", "best", "score", "second", "second_score", "label", "reason", "threshold",
             "margin", "correct", "right")


def _decision(row):
    top = [dict(type=found if found > 0 else None, kind="type" if found > 0 else "unknown", score=score)
           | ({} if found > 0 else {"reference": -found})
           for found, score in ((row["best"], row["score"]), (row["second"], row["second_score"])) if found is not None]
    return dict(decision=row["id"], when=row["created"], label=row["label"], score=row["score"], reason=row["reason"],
                top=top, threshold=row["threshold"], margin=row["margin"], model=row["model"], event=row["event"],
                correct=None if row["correct"] is None else bool(row["correct"]), right=row["right"])


def _entry(top, place):
    """(type, score); a known unknown is minus its reference, as in the index."""
    if len(top) <= place:
        return None, None
    entry = top[place]
    return (-entry["reference"] if entry["type"] is None else entry["type"]), entry["score"]


def _listed(quad):
    return [[float(x), float(y)] for x, y in quad]
