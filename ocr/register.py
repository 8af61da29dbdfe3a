"""New characters for a trained reader, without training: from fonts, or from images of them.

    python -m ocr register --model READER.onnx --out characters.npz 'é§'
    python -m ocr register --model READER.onnx --out characters.npz 'é§' --fonts FONTS... --text BOOK.txt...
    python -m ocr register --model READER.onnx --out characters.npz --crops CROPS
    python inference/read.py --model READER.onnx --characters characters.npz IMAGE...

A reader compares each column of a line with one center per character. The center of a new character is fitted to synthetic
lines that contain it: beginning with the mean of its embeddings, it is moved until it tells them from all others. Its offset
raises the score at which it wins, so that at most --rate of the other characters of running text would be read as it; lines
with many of its look-alikes take part in that.

CROPS: one folder per character, named by its decimal code point, with images of it that are as high as its line, as
`python -m ocr crops --crop line` cuts them. They are pasted into synthetic lines.
"""
import functools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from inference.characters import Characters, is_character, save_characters
from inference.cli import Parser
from inference.crops import class_text
from inference.errors import UserError, printable
from inference.image import ImageError, list_images, load_gray
from inference.reader import LineReader
from ocr.fonts import find_faces
from ocr.insert import Mixed, pasted, rendered
from ocr.lines import LineMaker, Sample
from ocr.text import Texts, fold

CORE = 0.22     # of a character's width: columns so near its middle are its own
ALIKE = 6       # known characters that count as look-alikes of a new one
PLAIN, MIXED = 200, 60      # lines of running text for all new characters, and of look-alikes for each, to find the offset
FRESH = 30      # renders that take no part in the fit, to tell how many are read
HARD = 0.2      # of the other columns: those nearest to the new center, from which it is told
STEPS, RATE = 200, 0.3      # of the fit
NEAR = 0.1      # how strongly a center is drawn back to the mean, for lines that are unlike synthetic ones


class Columns(NamedTuple):
    """The columns of some lines, as a reader sees them."""
    embeddings: np.ndarray  # float32 [N,D], of unit length
    letters: np.ndarray     # str [N]: the character whose middle is nearest
    core: np.ndarray        # bool [N]: so near that the column is its own
    place: np.ndarray       # int64 [N]: which one it is, of all characters in the lines
    plain: np.ndarray       # bool [N]: in running text, where each character is as frequent as it is


class Registered(NamedTuple):
    """A new character. `read` of `fresh` renders that took no part in the fit are read; `alike`: its look-alikes."""
    text: str
    center: np.ndarray      # float32 [D]
    offset: float
    read: int
    fresh: int
    alike: str


def look(reader: LineReader, samples: Sequence[Sample], plain: bool = False) -> Columns:
    """The columns of synthetic lines; plain: they are running text."""
    parts, places = [], 0
    for sample, columns in zip(samples, reader.columns([sample.image for sample in samples])):
        along = slice(1, None, 2) if reader.vertical else slice(0, None, 2)
        start, end = sample.boxes[:, along].T
        far = np.abs((np.arange(len(columns.embeddings))[:, None] + 0.5) / columns.scale - (start + end) / 2)    # [T,n]
        nearest = far.argmin(1)
        core = far.min(1) <= np.maximum(0.5 / columns.scale, CORE * (end - start)[nearest])
        letters = np.array([fold(letter) for letter in sample.text if letter != " "])[nearest]
        parts.append((columns.embeddings, letters, core, places + nearest, np.full(len(core), plain)))
        places += len(start)
    return Columns(*map(np.concatenate, zip(*parts)))


def together(*parts: Columns) -> Columns:
    """Several as one, their places apart."""
    shifts = np.cumsum([0, *(part.place.max() + 1 for part in parts[:-1])])
    moved = [part._replace(place=part.place + shift) for part, shift in zip(parts, shifts)]
    return Columns(*map(np.concatenate, zip(*moved)))


def fit_center(own: np.ndarray, others: np.ndarray, rivals: np.ndarray, scale: float) -> np.ndarray:
    """The unit vector float32 `[D]` that tells embeddings of a character `[M,D]` from those of others `[N,D]`: what training
    would make of a new center while the network and the `rivals`, the other centers `[C,D]`, stay as they are.

    Logistic regression of scale * (cosine - the best rival's cosine - offset), by gradient descent on the sphere from the
    mean, which it is also drawn back to (NEAR), on the hardest of the others.
    """
    mean = center = _unit(own.mean(0))
    of_own, of_others = (own @ rivals.T).max(1), (others @ rivals.T).max(1)
    lead = others @ center - of_others
    hard = lead >= np.quantile(lead, 1 - HARD)
    others, of_others = others[hard], of_others[hard]
    offset = (np.median(own @ center - of_own) + np.quantile(lead, 0.999)) / 2
    for step in range(STEPS):
        pull = _sigmoid(-scale * (own @ center - of_own - offset)) / len(own)                    # [M]
        push = _sigmoid(scale * (others @ center - of_others - offset)) / len(own)               # [N]
        gradient = push @ others - pull @ own + NEAR * (center - mean)
        rate = RATE * (1 - step / STEPS)
        center = _unit(center - rate * (gradient - gradient @ center * center))
        offset -= rate * (pull.sum() - push.sum())
    return center.astype(np.float32)


def _own(columns, character):
    return (columns.letters == character) & columns.core


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))


def _unit(vector):
    return vector / np.linalg.norm(vector)


def leads(columns: Columns, center: np.ndarray, rivals: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each character that has `chosen` columns (bool `[N]`): by how much the new center is nearer than the best rival to
    the column where that is most; and the first such column's row."""
    lead = columns.embeddings[chosen] @ center - (columns.embeddings[chosen] @ rivals.T).max(1)
    _, first, which = np.unique(columns.place[chosen], return_index=True, return_inverse=True)
    highest = np.full(len(first), -np.inf)
    np.maximum.at(highest, which, lead)
    return highest, np.flatnonzero(chosen)[first]


def find_offset(own: np.ndarray, others: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """The least offset that at most `rate` of the others' weight exceeds; where nearly all of the character's own leads are
    higher still, one near to those: on real lines others come nearer than on synthetic ones."""
    order = np.argsort(-others)
    above = np.cumsum(weights[order]) / weights.sum()
    least = others[order][min(np.searchsorted(above, rate, "right"), len(order) - 1)]
    return float(max(least, 0.2 * least + 0.8 * np.quantile(own, 0.02)))


def natural_weights(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """float `[n]`: how much the character at each of some rows counts, so that all of them together have the frequencies of
    running text."""
    letters, which = np.unique(columns.letters[rows], return_inverse=True)
    everywhere = np.bincount(which, minlength=len(letters))
    plain = np.bincount(which[columns.plain[rows]], minlength=len(letters))
    # One that running text happens to lack counts as if it were there once.
    return (np.maximum(plain, 1) / everywhere)[which]


def register(reader: LineReader, samples: dict[str, list[Sample]], fresh: dict[str, list[Sample]], plain: list[Sample],
             mixed: Callable[[str], list[Sample]], rate: float = 2e-3) -> list[Registered]:
    """Centers and offsets of new characters, told from those that the reader knows and from each other.

    samples, fresh: lines that contain each of them; those of `fresh` only tell how many are read. plain: running text.
    mixed: lines with many of some known characters. rate: the share of other characters that may be read as one of them.
    """
    known, classes = reader.model.centers, reader.about["classes"]
    seen = {character: look(reader, lines) for character, lines in samples.items()}
    means = {character: _unit(one.embeddings[_own(one, character)].mean(0)) for character, one in seen.items()}
    running, found = look(reader, plain, plain=True), []
    for character in tqdm(samples, "characters", disable=None):
        others = [row for row, text in enumerate(classes) if text != character]     # it may be one of them (--replace)
        nearest = sorted(others, key=lambda row: -known[row] @ means[character])
        alike = "".join([classes[row] for row in nearest if len(classes[row].strip()) == 1][:ALIKE])
        rivals = np.stack([*known[others], *(mean for other, mean in means.items() if other != character)])
        every = together(running, look(reader, mixed(alike)), *seen.values())
        is_own, is_other = _own(every, character), every.letters != character
        center = fit_center(every.embeddings[is_own], every.embeddings[is_other], rivals, reader.about["scale"])
        of_own, _ = leads(every, center, rivals, is_own)
        of_others, rows = leads(every, center, rivals, is_other)
        offset = find_offset(of_own, of_others, natural_weights(every, rows), rate)
        test = look(reader, fresh[character])
        of_fresh, _ = leads(test, center, rivals, _own(test, character))
        found.append(Registered(character, center, offset, int((of_fresh > offset).sum()), len(of_fresh), alike))
    return found


def read_crops(folder) -> dict[str, list[np.ndarray]]:
    """{character: images, gray uint8 `[h,w]`} of the folders in a folder, named by code points. Raises UserError."""
    found = {}
    for name in list_images(folder):
        try:
            character = fold(class_text(Path(name).parts[0])) if "/" in name else ""
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None
        if not character:
            raise UserError(f"{Path(folder, name)}: lies in no folder of a character, such as {Path(folder, '233')} for é")
        try:
            image = load_gray(Path(folder, name))
        except ImageError as error:
            raise UserError(f"{Path(folder, name)}: {error}; remove it") from None
        if np.ptp(image) < 32:
            raise UserError(f"{Path(folder, name)}: shows nothing; remove it")
        found.setdefault(character, []).append(image)
    if not found:
        raise UserError(f"{folder}: no images; it has one folder per character, such as {Path(folder, '233')} for é")
    return found


def wanted(given: str, crops: dict, reader: LineReader, replace: bool) -> str:
    """The characters to register, each once. Raises UserError for what cannot be one, or is one already."""
    characters = []
    for one in unicodedata.normalize("NFC", given) or crops:     # a letter and its accent are one character
        character = fold(one) if len(one) == 1 else one
        if len(character) != 1 or not is_character(character):
            raise UserError(f"{one!r}: not one character that a reader can have"
                            + (f"; it is read as {character}" if is_character(character) and len(one) == 1 else ""))
        if character in reader.classes and not replace:
            raise UserError(f"{one}: the model reads it already{'' if one == character else f', as {character}'}; --replace "
                            "adds another center for it")
        if crops and character not in crops:
            raise UserError(f"{one}: no images of it among the crops; there are {' '.join(crops)}")
        characters.append(character)
    if not characters:
        raise UserError("no characters; name them, or give --crops")
    return "".join(dict.fromkeys(characters))


def main(arguments=None):
    parser = Parser(prog="python -m ocr register", description=__doc__)
    parser.add_argument("characters", nargs="?", default="", metavar="CHARS",
                        help="new characters (default: those of --crops)")
    parser.add_argument("--model", required=True, metavar="READER.onnx", help="exported reader")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="what inference/read.py takes as --characters")
    parser.add_argument("--crops", metavar="CROPS", help="images of the characters (default: drawn in fonts)")
    parser.add_argument("--fonts", nargs="+", default=[], metavar="FOLDER",
                        help="folders of fonts (default: as python -m ocr lines)")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE",
                        help="plain text like that of the lines to be read (default: the manual of Python)")
    parser.add_argument("--renders", type=int, default=100, metavar="N", help="of each character, to find its center")
    parser.add_argument("--rate", type=float, default=2e-3, metavar="R",
                        help="share of other characters that may be read as it")
    parser.add_argument("--replace", action="store_true", help="also for characters that the model reads already")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the synthetic lines")
    args = parser.parse_args(arguments)
    if args.renders < 1 or not 0 < args.rate < 1:
        raise UserError(f"--renders {args.renders}, --rate {args.rate:g}: give at least 1, and a share between 0 and 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 on")
    if not Path(args.out).parent.is_dir():
        raise UserError(f"{args.out}: its folder does not exist; make it, or give --out another one")
    if Path(args.out).exists():
        raise UserError(f"{args.out}: exists; remove it, and name all new characters at once, so that they are told apart")
    reader = LineReader(args.model)
    crops = read_crops(args.crops) if args.crops else {}
    characters = wanted(args.characters, crops, reader, args.replace)
    charset = "".join(text for text in reader.classes if len(text.strip()) == 1)
    texts, faces = Texts(charset, args.text), find_faces(args.fonts, charset + ("" if crops else characters))
    samples, fresh = {}, {}
    for character in characters:
        having = faces if crops else [face for face in faces if face.has(character)]
        if not having:
            raise UserError(f"{character}: none of {len(faces)} faces has it; give --fonts with one that has, or --crops")
        source = texts if crops else Mixed(texts, character)
        maker = LineMaker(having, source, reader.about["height"], reader.vertical, args.seed)
        draw = functools.partial(pasted, character, crops[character]) if crops else functools.partial(rendered, character)
        samples[character], fresh[character] = draw(maker, args.renders), draw(maker, FRESH, 100_000)

    def draw_others(texts, count):
        maker = LineMaker(faces, texts, reader.about["height"], reader.vertical, args.seed + 1)
        return [maker(number) for number in range(count)]

    found = register(reader, samples, fresh, draw_others(texts, PLAIN),
                     lambda alike: draw_others(Mixed(texts, alike), MIXED), args.rate)
    for one in found:
        print(printable(f"{one.text}: {one.read} of {one.fresh} new {'copies' if crops else 'renders'} are read; offset "
                        f"{one.offset:.3f}; look-alikes {' '.join(one.alike)}"))
    save_characters(args.out, Characters([one.text for one in found], np.stack([one.center for one in found]),
                                         np.float32([one.offset for one in found])), reader.model.centers)
    print(printable(f"{args.out}: read with python inference/read.py --model {args.model} --characters {args.out}"))
