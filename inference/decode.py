"""From the columns of a line to its characters. numpy only.

A line has T columns with log probabilities, float32 `[T,C]`; class 0 is blank ("no character's middle"), class 1 the space.
Text and columns are tied by CTC (A. Graves et al., "Connectionist temporal classification", 2006,
https://doi.org/10.1145/1143844.1143891): a text is spelled by every path that says its characters in order, each over one
column or a run of them, with any number of blanks between two, and at least one between two that are the same.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BLANK, SPACE = 0, 1
OVERLAP = 0.5  # of the narrower of two boxes: characters that share more along the line are one
JOINED = 0.9  # the same for the letters of a ligature, whose boxes cannot be told apart by half


class Runs(NamedTuple):
    """Characters and spaces in reading order, int64 `[n]` each: their classes, the first and the last column of each, and
    `peak`, the column between at which it is most probable."""
    ids: np.ndarray
    first: np.ndarray
    last: np.ndarray
    peak: np.ndarray

    def take(self, rows) -> "Runs":
        return Runs(*(part[rows] for part in self))


def best_path(log_probs: np.ndarray) -> Runs:
    """The runs of the most probable class of each column, without those of blank."""
    best = log_probs.argmax(1)
    value = log_probs[np.arange(len(best)), best]
    start = np.flatnonzero(np.diff(best, prepend=-1))
    length = np.diff(start, append=len(best))
    highest = np.flatnonzero(value == np.repeat(np.maximum.reduceat(value, start), length)) if len(best) else start
    peak = highest[np.searchsorted(highest, start)]  # the first of equal ones
    found = np.flatnonzero(best[start] != BLANK)
    return Runs(best[start], start, start + length - 1, peak).take(found)


def path_of(runs: Runs, columns: int) -> np.ndarray:
    """The class of each column, int64 `[columns]`, on the path that says the runs and no more."""
    path = np.full(columns, BLANK)
    for number, first, last in zip(runs.ids.tolist(), runs.first.tolist(), runs.last.tolist()):
        path[first:last + 1] = number
    return path


def suppress(runs: Runs, log_probs: np.ndarray, spans: np.ndarray, ligatures=frozenset(), overlap: float = OVERLAP) -> Runs:
    """The runs without ghosts, such as a second letter on the serif of the first: of two characters whose boxes share more
    than `overlap` of the narrower one along the line, the one with less probability, summed over its columns, is removed.

    spans `[T,2]`: where the box of each column begins and ends along the line. ligatures: pairs of classes (left, right)
    that print joins, as f and i; for them it is JOINED. A character is compared with the three that follow it. Spaces stay.
    """
    rows = np.flatnonzero(runs.ids != SPACE)
    ids, box = runs.ids[rows], spans[runs.peak[rows]]
    width = np.maximum(box[:, 1] - box[:, 0], 1e-3)
    pairs = []
    for distance in (1, 2, 3):
        left, right = box[:-distance], box[distance:]
        shared = (np.minimum(left[:, 1], right[:, 1]) - np.maximum(left[:, 0], right[:, 0])
                  ) / np.minimum(width[:-distance], width[distance:])
        pairs += [(i, i + distance) for i in np.flatnonzero(shared > overlap)
                  if shared[i] > JOINED or (ids[i], ids[i + distance]) not in ligatures]
    if not pairs:
        return runs
    rivals = {}
    for one, other in pairs:
        rivals.setdefault(one, []).append(other)
        rivals.setdefault(other, []).append(one)
    mass = {i: np.exp(log_probs[runs.first[rows[i]]:runs.last[rows[i]] + 1, ids[i]]).sum() for i in rivals}
    removed = set()
    for i in sorted(rivals, key=lambda i: (-mass[i], i)):  # a removed one removes no other
        if i not in removed:
            removed.update(rivals[i])
    return runs.take(np.delete(np.arange(len(runs.ids)), rows[list(removed)]))


def log_likelihood(log_probs: np.ndarray, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """log p(text | columns) of each of n texts, given as classes: float64 `[n]`. -inf for a text that is too long for the
    columns, or so improbable beside others' beginnings that its probability underflows (below some exp(-700)).

    CTC's forward variables of all texts side by side, scaled to sum to 1 after each column.
    """
    states, skips, lengths = _lattice(texts)                                  # [n,S], [n,S], [n]
    probs, rows = np.exp(log_probs, dtype=np.float64), np.arange(len(states))
    alpha = np.zeros((len(states), states.shape[1] + 2))  # two more before the first state, always 0
    alpha[:, 1] = 1  # as if a column before the first one had led to the first blank or the first character
    total = np.zeros(len(states))
    for column in probs:
        after = alpha[:, 2:] + alpha[:, 1:-1]
        after += skips * alpha[:, :-2]
        after *= column[states]
        scale = after.sum(1)
        alpha[:, 1] = 0
        np.divide(after, np.where(scale > 0, scale, 1)[:, None], out=alpha[:, 2:])
        with np.errstate(divide="ignore"):
            total += np.log(scale)
    end = alpha[rows, 2 + 2 * lengths] + np.where(lengths, alpha[rows, 1 + 2 * lengths], 0)
    with np.errstate(divide="ignore"):
        return total + np.log(end)


def align(log_probs: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The first and the last column of each character on the most probable path that spells `ids`: int64 `[n,2]`.

    Raises ValueError where the columns are too few.
    """
    least = len(ids) + sum(one == other for one, other in zip(ids, ids[1:]))
    if least > len(log_probs):
        raise ValueError(f"{len(log_probs)} columns: too few for {len(ids)} characters, which need {least}")
    if not len(ids):
        return np.zeros((0, 2), np.int64)
    states, skips, _ = _lattice([ids])
    states, never = states[0], np.where(skips[0], 0, -np.inf)
    score = np.full(len(states) + 2, -np.inf)
    score[1] = 0  # as in `log_likelihood`
    moves = np.empty((len(log_probs), len(states)), np.int8)  # by how many states each was reached
    for column, move in zip(log_probs[:, states].astype(np.float64), moves):
        stay, step, jump = score[2:], score[1:-1], score[:-2] + never
        best = np.maximum(stay, step)
        move[:] = np.where(jump > best, 2, step > stay)
        best = np.maximum(best, jump) + column
        score[1] = -np.inf
        score[2:] = best
    state, path = len(states) - 1 - (score[-2] > score[-1]), np.empty(len(log_probs), np.int64)
    for row in range(len(path) - 1, -1, -1):
        path[row] = state
        state -= moves[row, state]
    own = 2 * np.arange(len(ids)) + 1
    return np.stack([np.searchsorted(path, own), np.searchsorted(path, own, "right") - 1], 1)


def _lattice(texts):
    """For n texts: the class of each of S = 2 L + 1 states, int64 `[n,S]`: blank, first character, blank, ...; whether the
    blank between a state and the character before it can be left out, bool `[n,S]`; and their lengths, int64 `[n]`."""
    lengths = np.array([len(text) for text in texts], np.int64)
    states = np.full((len(texts), 2 * int(lengths.max(initial=0)) + 1), BLANK)
    for row, text in zip(states, texts):
        row[1:2 * len(text):2] = text
    skips = np.zeros(states.shape, bool)
    skips[:, 1:2] = True  # the first blank can be left out
    skips[:, 2:] = (states[:, 2:] != BLANK) & (states[:, 2:] != states[:, :-2])
    return states, skips, lengths
