"""Predictions of a model, {sample id: vector}, in one file: what a teacher said of images, found again by their ids.

A safetensors file, so nothing in it is executed: `values` float32 [N,K]; `ids`, a JSON list of N texts as uint8, since the
header of such a file takes 100 MB at most; `folds` int64 [N], where there are folds; in the header `predictions`, a JSON
object: kind, classes, and what made them (`about`).
"""
import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from inference.errors import UserError, first_line
from inference.files import replacing

KINDS = "embedding", "logits"


class Predictions:
    """Vectors float32 `[N,K]` of N samples by their ids. kind: "logits", of K `classes` (their names, in order), or
    "embedding", without classes. folds: int64 `[N]`, of each sample the fold that was held out from the model that said this
    of it; -1: the mean of all folds' models, of a sample that none of them learned from; None: not known. about: what made
    the predictions, JSON values. Raises ValueError where these do not fit together or a number is not finite."""

    def __init__(self, ids: list[str], values: torch.Tensor, kind: str, classes: list[str] | None = None,
                 folds: torch.Tensor | None = None, about: dict | None = None):
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not known; choose from {', '.join(KINDS)}")
        if values.dim() != 2 or not values.is_floating_point() or not len(values) == len(ids) > 0:
            raise ValueError(f"{len(ids)} ids, {values.dtype} values {list(values.shape)}")
        if (kind == "logits") != (classes is not None) or classes is not None and len(classes) != values.shape[1]:
            raise ValueError("logits have a name for each class, embeddings have none")
        if folds is not None and (folds.shape != (len(ids),) or folds.dtype != torch.int64 or (folds < -1).any()):
            raise ValueError(f"{len(ids)} ids, and folds {folds.dtype} {list(folds.shape)}; each needs one, -1 or more")
        if not isinstance(about or {}, dict):
            raise ValueError("about must be an object")
        self.folds, self.about = folds, about or {}
        self.ids, self.values, self.kind, self.classes = ids, values.detach().float(), kind, classes
        self._row = _numbered(ids)
        _numbered(classes or [])
        finite = self.values.isfinite().all(1)                                    # [N]
        if not finite.all():
            raise ValueError(f"the numbers of {ids[finite.long().argmin()]!r} are not finite")

    def join(self, ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(values float32 `[B,K]`, known bool `[B]`) of samples by id; a row of zeros where the id is unknown."""
        row = torch.tensor([self._row.get(name, -1) for name in ids])             # [B]
        known = row >= 0
        return self.values[row.clamp_min(0)].where(known[:, None], 0), known

    def digest(self) -> str:
        """Of all that is told, whatever the order of the rows."""
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__)
        found = hashlib.blake2b(json.dumps([self.kind, self.classes, sorted(self.ids)]).encode(), digest_size=8)
        for rows in torch.tensor(order).split(1 << 16):
            found.update(self.values[rows].numpy())
        return found.hexdigest()


def _numbered(names: list[str]) -> dict[str, int]:
    """{name: place}. Raises ValueError unless all are texts, and different."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("ids and classes must be lists of texts")
    number = {name: place for place, name in enumerate(names)}
    if len(number) < len(names):
        raise ValueError(f"{next(name for place, name in enumerate(names) if number[name] != place)!r} comes twice")
    return number


def write_predictions(path, predictions: dict[str, torch.Tensor], kind: str, classes: list[str] | None = None,
                      folds: dict[str, int] | None = None, about: dict | None = None) -> None:
    """Write {sample id: vector `[K]`} to `path`, and where `folds` is given {sample id: fold}; the rest as in `Predictions`.
    Raises UserError for what `read_predictions` would refuse, and where the file cannot be written."""
    try:
        values = torch.stack([vector.detach().float().cpu() for vector in predictions.values()])
        held_out = None if folds is None else torch.tensor([folds[name] for name in predictions])
        found = Predictions(list(predictions), values, kind, classes, held_out, about)
        text = torch.frombuffer(bytearray(json.dumps(found.ids).encode()), dtype=torch.uint8)
        with replacing(path) as partial:
            tensors = {"values": found.values, "ids": text} | ({} if held_out is None else {"folds": held_out})
            told = {"kind": kind, "classes": classes, "about": found.about}
            save_file(tensors, partial, {"predictions": json.dumps(told)})
    except UserError:
        raise
    except Exception as error:  # safetensors has its own for a full disk
        raise UserError(f"{path}: predictions not written ({first_line(error)})") from None


def read_predictions(path) -> Predictions:
    """What `write_predictions` wrote. Raises UserError, one line, for any other file; it may come from anyone."""
    if not Path(path).is_file():  # a pipe, say, would be waited for
        raise UserError(f"{path}: no such file; `python -m adverts predict` writes one, as does "
                        "engine.predictions.write_predictions")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["predictions"])
            ids = json.loads(file.get_tensor("ids").numpy().tobytes())
            folds = file.get_tensor("folds") if "folds" in file.keys() else None
            return Predictions(ids, file.get_tensor("values"), about["kind"], about["classes"], folds, about.get("about"))
    except Exception as error:  # of safetensors, JSON and shapes, which share no base
        raise UserError(f"{path}: cannot be used as predictions ({first_line(error)}); write it again with "
                        "engine.predictions.write_predictions") from None
