"""Synthetic adverts whose class needs both image and text.

    python -m adverts demo --out DIR [--classes 12] [--each 60]
    python -m adverts run --data DIR --test DIR/labels.csv --out OUT

Writes DIR/train/CLASS/*.jpg, DIR/test/*.jpg without classes, and DIR/labels.csv with the classes of these. A class has a
drawing (of one kind, in one palette) and a text (words of one trade). A third of the classes are pairs that share their
drawing, a third are pairs that share their text, and the rest have both to themselves. An advert in twenty has no text. So
the best that any model can reach is known, and is printed: what it cannot tell apart, it can only guess.
"""
import csv
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from inference.cli import Parser
from inference.errors import UserError, printable
from ocr.folder import new_folder, shuffled
from synth.art import ILLUSTRATIONS, gradient, illustration, palette
from synth.draw import hsv, pick, readable, rng, text
from synth.fonts import HEAVY, RUBIK, SANS, SERIF

# A trade and its words; none is in two of them.
TRADES = {line.split()[0]: line.split() for line in """\
coffee espresso roasted barista beans latte brewed mocha
flowers roses tulips bouquet florist blossom lilies garland
shoes boots sneakers leather heels sandals laces loafers
travel flights beaches island hotel voyage suitcase cruise
garden shovel seeds lawn hedge compost mower greenhouse
music guitar piano concert violin drums melody orchestra
bicycles pedals saddle brakes wheels helmet cycling gears
books novels author chapter poetry library paperback fiction
dentist teeth smile whitening crowns braces gums implants
cameras lens tripod portrait shutter zoom focus flash
bakery bread rolls pastry croissant oven flour baguette
phones mobile charger battery screen headset dialing unlimited
furniture sofa table chairs wardrobe mattress oak cushion
insurance policy claims cover premium liability accident pension
swimming pool diving goggles lessons lanes sauna splash
painting brushes canvas easel colors varnish gallery sketch
fishing rods bait anglers trout salmon tackle harbor
jewelry diamonds necklace rings silver pearls bracelet gold
pizza mozzarella basil tomato crust pepperoni olives pasta
laundry shirts ironing washing cleaner stains detergent towels""".splitlines()}
SHARED = ("SPECIAL OFFER", "CALL NOW", "OPEN DAILY", "SAVE TODAY", "NEW IN TOWN", "ONLY THIS WEEK", "FREE ADVICE",
          "BEST PRICES")
FACES = (SANS[1], SERIF[1], RUBIK[1], HEAVY[0], SANS[0])
LEAST, MOST = 6, 24     # classes: with 24 all trades are in use
WITHOUT_TEXT = 20       # one advert in so many
SIDES = (220, 320)      # pixels


class Kind(NamedTuple):
    """What the adverts of a class have in common: the number of a drawing, and a trade."""
    drawing: int
    trade: str

    @property
    def name(self) -> str:
        return f"{self.trade}_d{self.drawing:02}"


def kinds(count: int) -> list[Kind]:
    """The classes: count // 6 pairs that share a drawing, as many that share a text, the others share nothing."""
    found, trades, drawing = [], iter(TRADES), 0
    for number in range(count - 2 * (count // 6)):  # a pair, or a class alone
        one = Kind(drawing, next(trades))
        if number < count // 6:
            found += [one, Kind(drawing, next(trades))]
        elif number < 2 * (count // 6):
            drawing += 1
            found += [one, Kind(drawing, one.trade)]
        else:
            found.append(one)
        drawing += 1
    return found


def ceilings(classes: list[Kind], without_text: float) -> dict[str, float]:
    """The best expected accuracy by image alone, by text alone, and by both, where all classes are equally frequent.

    Among n classes that look the same to it, the best a model can do is to guess, and it is right once in n. The mean of 1/n
    over the classes is the number of different looks divided by the number of classes. Adverts without a text, a share
    `without_text` of each class, all look the same to a model of texts.
    """
    count = len(classes)
    drawings, trades = (len({kind[place] for kind in classes}) for place in (0, 1))
    return {"image": drawings / count, "text": (1 - without_text) * trades / count + without_text / count,
            "both": 1 - without_text + without_text * drawings / count}


def draw(seed: int, kind: Kind, number: int) -> np.ndarray:
    """Advert `number` of a class: uint8 BGR [H,W,3]. What the class does not decide is the same for all classes: formats,
    layouts, colors of the ground and of the text, fonts, words that every trade uses."""
    r = rng("advert", seed, kind.name, number)
    width, height = (int(r.integers(*SIDES)) for _ in range(2))
    paper = hsv(r.uniform(), r.uniform(.05, .35), r.uniform(.75, 1))
    canvas = gradient(r, width, height, paper, hsv(r.uniform(), r.uniform(.05, .3), r.uniform(.75, 1)))
    share, above = r.uniform(.42, .5), r.uniform() < .5  # of the height that the drawing takes, and whether it is at the top
    top, high = (.04, share) if above else (.96 - share, share)
    hue = kind.drawing / len(ILLUSTRATIONS) + kind.drawing // len(ILLUSTRATIONS) / 3  # far from another drawing of its kind
    colors = palette(rng("palette", seed, kind.drawing), hue)
    margin = r.uniform(.04, .1) * width
    illustration(r, canvas, margin, top * height, width - 2 * margin, high * height, colors,
                 kind.drawing % len(ILLUSTRATIONS))
    top = (share + .06 if above else .04) * height
    if number % WITHOUT_TEXT != WITHOUT_TEXT // 2:
        _write(r, canvas, kind.trade, top, (.9 - share) * height)
    return canvas


def _write(r, canvas, trade, top, high):
    """Three or four lines on the canvas: two of words of the trade, the others in no way its own."""
    words = [str(word) for word in r.choice(TRADES[trade], 4, replace=False)]
    case = pick(r, (str.upper, str.title))
    own = [case(" ".join(words[:2])), case(" ".join(words[2:]))]
    other = [case(pick(r, SHARED)), f"{int(r.integers(100, 999))} {int(r.integers(1000, 9999))}"][:int(r.integers(1, 3))]
    lines = own + other
    lines = [lines[i] for i in r.permutation(len(lines))]
    face, width = pick(r, FACES), canvas.shape[1]
    size = int(min(high / len(lines) / 1.35, 30))
    color = readable(canvas[round(top + high / 2), width // 2])
    for i, line in enumerate(lines):
        text(canvas, width / 2, top + i * high / len(lines), line, face, size, color, "center", width=.9 * width)


def write_demo(out, classes: list[Kind], each: int, tests: int, seed: int) -> None:
    """Write the folder: `each` adverts of a class for training, `tests` for testing, in random order."""
    with new_folder(out) as folder:
        for kind in classes:
            for number in range(each):
                _save(folder / "train" / kind.name / f"{number:04}.jpg", draw(seed, kind, number))
        rows = []
        for place, number in enumerate(shuffled(len(classes) * tests, seed)):
            kind, file = classes[number // tests], f"test/{place:05}.jpg"
            _save(folder / file, draw(seed, kind, each + number % tests))
            rows.append((file, kind.name))
        with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows([("file", "label"), *rows])


def _save(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())


def main(arguments=None):
    parser = Parser(prog="python -m adverts demo", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--classes", type=int, default=12, metavar="N", help=f"classes, {LEAST} to {MOST}")
    parser.add_argument("--each", type=int, default=60, metavar="N", help="adverts of each class for training")
    parser.add_argument("--test-each", type=int, default=20, metavar="N", help="adverts of each class for testing")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    args = parser.parse_args(arguments)
    if not LEAST <= args.classes <= MOST:
        raise UserError(f"--classes {args.classes}: give {LEAST} to {MOST}")
    if args.each < 5 or args.test_each < 1:
        raise UserError("--each must be at least 5, for as many folds, and --test-each at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: give a number from 0 on")
    classes = kinds(args.classes)
    write_demo(args.out, classes, args.each, args.test_each, args.seed)
    without = sum(number % WITHOUT_TEXT == WITHOUT_TEXT // 2 for number in range(args.each, args.each + args.test_each))
    best = ceilings(classes, without / args.test_each)
    print(printable(f"{args.out}: {args.classes} classes, {args.classes * args.each:,} adverts for training, "
                    f"{args.classes * args.test_each:,} for testing"))
    print("the best accuracy that is possible: " + ", ".join(f"{value:.3f} by {name}" if name == "both" else
                                                             f"{value:.3f} by {name} alone" for name, value in best.items()))
