"""Classifiers of scikit-learn, in seconds: a text model that is hard to beat, and one of images that a network must beat.

    tfidf       character n-grams of the text, any script, and logistic regression
    thumbnail   16x16 colors and logistic regression

    predictions = tfidf(split, read_texts("texts.jsonl"))      # out of fold for training images, else the mean of all folds

Every image is seen in the order of the sample ids, so the order of the split's rows changes nothing.
"""
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adverts.split import Split
from engine.predictions import Predictions
from inference.errors import UserError, first_line, printable
from inference.image import ImageError, load_image, map_ahead, resize
from inference.ngrams import document

SIDE = 16           # pixels of a thumbnail
NGRAMS = 200_000    # the most frequent ones are kept: with 100 classes their weights take 160 MB
C_TEXT = 20.0       # of the logistic regression, the inverse of its penalty
C_FEATURES = 8.0    # divided by the number of features, each of variance 1: the more they are, the smaller is each weight


def tfidf(split: Split, texts: Mapping[str, Sequence[str]]) -> Predictions:
    """texts: {sample id: segments}, as `adverts.texts.read_texts` gives them. An image without text is not predicted.

    Logistic regression over all classes at once: seconds for a thousand texts of 20 classes, hours for 100,000 of 100.
    """
    if missing := [row.file for row in split.rows if row.file not in texts]:
        raise UserError(printable(f"the texts of {len(missing):,} of {len(split.rows):,} images are not there, such as "
                                  f"{missing[0]}; run `python -m adverts ocr --split` with this split"))
    read = {row.file: document(texts[row.file]) for row in split.rows}
    ngrams = {"analyzer": "char", "ngram_range": (1, 5), "sublinear_tf": True, "min_df": 2, "max_features": NGRAMS}
    classifier = lambda: make_pipeline(TfidfVectorizer(**ngrams), LogisticRegression(C=C_TEXT, max_iter=300))
    return out_of_fold("tfidf", "text", split, {name: text for name, text in read.items() if text}, classifier)


def thumbnail(split: Split, data) -> Predictions:
    """data: the folder of the images. Those that cannot be read are not predicted, and listed in `about["unreadable"]`."""
    def load(row):
        try:
            return row.file, resize(load_image(Path(data, row.file), SIDE), SIDE).reshape(-1)  # uint8: a byte a number
        except ImageError as error:
            return row.file, error
    loaded = dict(map_ahead(load, split.rows))
    unreadable = {name: found for name, found in loaded.items() if isinstance(found, ImageError)}
    if len(unreadable) == len(loaded):
        name, reason = next(iter(unreadable.items()))
        raise UserError(printable(f"{data}: none of the {len(loaded):,} images of the split can be used; the first: {name}: "
                                  f"{reason}; check --data"))
    seen = {name: found for name, found in loaded.items() if name not in unreadable}
    return from_features("thumbnail", split, seen, sorted(unreadable))


def from_features(model: str, split: Split, features: Mapping[str, np.ndarray], unreadable: Sequence[str] = ()
                  ) -> Predictions:
    """Logistic regression of a model's features, {sample id: vector `[D]`}, each scaled to variance 1; see `out_of_fold`."""
    wide = len(next(iter(features.values()), [0]))
    classifier = lambda: make_pipeline(StandardScaler(), LogisticRegression(C=C_FEATURES / wide, max_iter=300))
    return out_of_fold(model, "image", split, features, classifier, unreadable)


def out_of_fold(model: str, kind: str, split: Split, seen: Mapping, classifier: Callable,
                unreadable: Sequence[str] = ()) -> Predictions:
    """Fit one model a fold, on the training images of the other folds. A training image is predicted by the model of its own
    fold; any other by the mean of the models' logits, with fold -1.

    model, kind: its name, and "image" or "text"; seen: {sample id: text or vector}, images that are not in it are not
    predicted; classifier: makes a new one, of scikit-learn. Raises UserError where there is nothing to learn from.
    """
    number = {name: n for n, name in enumerate(split.classes)}
    rest = sorted(row.file for row in split.rows if row.role != "train" and row.file in seen)
    said, folds, total = {}, {}, np.zeros((len(rest), len(number)))
    for fold in range(split.folds):
        learned = sorted(row for row in split.part("train", other_than=fold) if row.file in seen)
        held = sorted(row.file for row in split.part("train", fold) if row.file in seen)
        label = np.array([number[row.label] for row in learned])
        if len(np.unique(label)) < 2:
            raise UserError(f"{model}: without fold {fold} there are not two classes to learn from; give more images, or "
                            "other folds")
        fitted = classifier()
        with warnings.catch_warnings():  # where 300 steps lead is close enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            try:
                fitted.fit([seen[row.file] for row in learned], label)
            except ValueError as error:  # such as texts that share no n-gram
                raise UserError(f"{model}: cannot learn without fold {fold} ({first_line(error)}); give more images"
                                ) from None
        if held:
            said |= zip(held, _logits(fitted, [seen[name] for name in held], len(number)))
            folds |= dict.fromkeys(held, fold)
        if rest:
            total += _logits(fitted, [seen[name] for name in rest], len(number)) / split.folds
    said |= zip(rest, total)
    folds |= dict.fromkeys(rest, -1)
    about = {"model": model, "input": kind, "split": split.digest(), "unreadable": list(unreadable)}
    return Predictions(list(said), torch.from_numpy(np.stack(list(said.values()))), "logits", split.classes,
                       torch.tensor(list(folds.values())), about)


def _logits(model, seen, classes):
    """float64 `[n, classes]`; a class that the model did not meet is as unlikely as the least likely one."""
    found = model.decision_function(seen)
    if found.ndim == 1:  # of two classes, scikit-learn gives the second one's log odds alone
        found = np.stack([np.zeros(len(found)), found], 1)
    logits = np.repeat(found.min(1, keepdims=True), classes, 1)
    logits[:, model.classes_] = found
    return logits
