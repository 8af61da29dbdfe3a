"""Classify document images: which registered type does each image show, if any?

    python inference/classify.py --model M.onnx --register DIR IMAGE...   # prints a line per image
    python inference/classify.py --model M.onnx --register DIR FOLDER     # all images below a folder
    python inference/classify.py IMAGE... --json                          # the shipped model and registry; one JSON list
    python inference/classify.py IMAGE... --find --orientation any --show DIR     # photos as the camera took them
    python inference/classify.py --classifier OUT/classifier IMAGE...   # classes learned from images and the text in them

    from inference import DocClassifier
    label, score = DocClassifier(model="M.onnx", register_root="DIR")("photo.jpg")  # label None: not registered

DIR has a folder of reference images per type (DIR/passport/*.jpg), or one image per type (DIR/passport.jpg).
A classifier, a folder of `python -m adverts classifier` or one ONNX file, knows its classes and needs no reference images
(inference/classifier.py). Needs numpy, OpenCV and ONNX Runtime; no torch.
"""
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__" and not __package__:  # run as a script: makes its folder the package, for the relative imports
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = Path(__file__).resolve().parent.name
    __import__(__package__)

from . import classifier as adverts  # noqa: E402
from .cli import Parser, counted, run_cli  # noqa: E402
from .errors import UserError, printable  # noqa: E402
from .gallery import COMPARED, Gallery  # noqa: E402
from .image import ImageError, images_at  # noqa: E402
from .model import DEFAULT_MODEL, TABLES, Model, load_model  # noqa: E402
from .registry.files import is_store  # noqa: E402
from .segments import read_segments  # noqa: E402
from .show import draw, show_folder, write_drawing  # noqa: E402
from .thresholds import choose_threshold, raised  # noqa: E402
from .views import FINDS, Seen, Views, find_in_references, read_corners  # noqa: E402

DEFAULT_REGISTRY = DEFAULT_MODEL.with_name("registry")
DEFAULT_FIND = False  # see `views.Views`
OF_REGISTERED = ("model", "register", "threshold", "fpr", "margin", "find", "find_references", "finder", "corners",
                 "orientation", "backend", "gallery")  # options that --classifier has no use for
SHOWN = 3  # pairs of types that look alike; only the number of the others is shown


class DocClassifier:
    """Recognizes the types registered in a folder and rejects everything else.

    `model` is the path of an exported model (or a loaded `Model`), `register_root` the folder of reference images. None
    takes the shipped ones, DEFAULT_MODEL and DEFAULT_REGISTRY. `register_root` may also be a store (`docmetric init`): its
    default collection as it is now, with the store's model, threshold, runner-up gap, `find` and `orientation`.
    `threshold` is the lowest score, 0..1, at which a label is given. Without one, the threshold of the model's own table for
    the false positive rate `fpr` of pairs is taken. If neither is given, the rate is that at which 5 % of the images of
    unknown types would get a label: 0.05 / number of types (half of that with find="auto", which compares two views), at
    most 1e-3. If the table has no such low rate, the threshold is that of its lowest one, but at least 0.75; without a
    table it is 0.75; both with a warning.
    `margin` is the runner-up gap: the least difference between the scores of the best and the second best type at which a
    label is given. None takes the model's own, which may be 0; 0 switches it off.
    `thresholds` `{label: score}` are the thresholds in use. Types whose references look alike have a higher one, unless
    `threshold` was given.
    `find`, True or "auto", finds the document in an image with `finder` (a `Finder`, or the path of one; None: the shipped
    one): True classifies the document instead of the image; "auto" compares both, and the better score decides, unless the
    document is nearly all of the image. `find_references` is the same for the reference images (None: "auto" where `find`
    is set). `corners`, {real path: four corners}, are given by hand and need no finder.
    `orientation` "any": documents may lie any of four ways up. Each reference is registered four times, turned.
    `backend`, "cpu" or "cuda", runs the networks. `threads` process many images at once (0: one per core); a single image
    uses one thread. `gallery` "cuda" searches the references on the GPU, for millions of them: it needs torch, and holds
    them in bf16, which changes scores by up to 1e-3. `progress`: show the progress on stderr if that is a terminal.
    `warnings` are lines about problems of the registry and the threshold. Raises UserError for mistakes of the user.
    """

    def __init__(self, *, model=None, register_root=None, threshold: float | None = None, fpr: float | None = None,
                 margin: float | None = None, find=DEFAULT_FIND, find_references=None, finder=None,
                 corners: dict | None = None, orientation: str = "upright", backend: str = "cpu", threads: int = 0,
                 gallery: str = "cpu", progress: bool = False):
        if margin is not None and not 0 <= margin <= 1:
            raise UserError(f"margin {margin}: must be between 0 and 1, the difference of two scores; 0 switches it off")
        if orientation not in TABLES:
            raise UserError(f"orientation {orientation}: unknown; use {' or '.join(TABLES)}")
        folder = register_root is None or not is_store(register_root)
        if folder:
            if model is None:
                model = _shipped(DEFAULT_MODEL, "model")
            self.model = model if isinstance(model, Model) else load_model(model, backend, threads)
        else:
            if find_references is not None:
                raise UserError(f"{register_root}: a store has embedded its references already; leave find_references away")
            from .registry.static import read_store  # with apsw, which folders do not need
            self.registry, self.model, state, own_find = read_store(register_root, model, orientation, backend, threads,
                                                                    gallery)
            find, orientation = own_find if find is DEFAULT_FIND else find, state.orientation
        self.orientation, self.progress = orientation, progress
        given = threshold is not None or fpr is not None
        if given:  # told before the references are read
            self.threshold, notes = choose_threshold(self.model, threshold, fpr, orientation)
        self.views = Views(self.model, find, finder, backend, corners)
        if find_references is None:
            find_references = find_in_references(find)
        self._views_of_references = Views(self.model, find_references, self.views.finder or finder, backend, corners)
        if folder:
            if register_root is None:
                register_root = _shipped(DEFAULT_REGISTRY, "registry")
            self.registry = Gallery(register_root, self.model, gallery, progress, self._views_of_references,
                                    any_way_up=orientation == "any")
            if not given:
                compared = len(self.registry.labels) * (2 if find == "auto" else 1)
                self.threshold, notes = choose_threshold(self.model, None, None, orientation, compared)
            alike = self.registry.look_alikes(self.threshold)
        elif not given:
            self.threshold, notes = state.threshold, list(state.warnings)
        self.margin: float = margin if margin is not None else self.model.margin if folder else state.margin
        self.thresholds: dict[str, float] = dict.fromkeys(self.registry.labels, self.threshold)
        if not folder:
            self.thresholds |= {} if given else {state.types[number]: own for number, own in state.thresholds.items()}
            self.warnings: list[str] = notes
            return
        if threshold is None:
            for first, second, score in alike or ():
                for label in (first, second):
                    self.thresholds[label] = max(self.thresholds[label], raised(self.threshold, score))
        self.warnings = notes + self.registry.warnings + _look_alikes(alike, self.thresholds)

    @property
    def bank(self) -> dict[str, np.ndarray]:
        """{label: features of its references as they are, not turned, float32 `[R, D]`}."""
        return self.registry.bank

    def get_register(self, root) -> dict[str, np.ndarray]:
        """The `bank` of another folder. The classifier's own registry does not change."""
        return Gallery(root, self.model, views=self._views_of_references).bank

    def extract_feature(self, image) -> np.ndarray:
        """A path, or an array as `cv2.imread` returns it -> float32 `[D]`, L2-normalized: the feature of the whole image,
        whatever `find` is. Raises ImageError."""
        try:
            prepared = self.model.prepare(image)
        except ImageError as error:
            raise ImageError(f"{_name(image) or 'image'}: {error}") from None
        return self.model.embed(prepared[None])[0]

    def __call__(self, image, quad=None) -> tuple[str | None, float]:
        """A path, or an array as `cv2.imread` returns it -> (label, score). The label is None below the threshold or the
        runner-up gap; the score is always that of the best type. Raises ImageError.

        quad: the document's four corners where they are known, [x, y] in pixels of the upright image, clockwise from the
        document's top left. They need no finder.
        """
        try:
            squares, seen = self.views(image, quad)
        except ImageError as error:
            raise ImageError(f"{_name(image) or 'image'}: {error}") from None
        result = self._result(image, zip(*self.registry.search(self.model.embed(np.stack(squares)), 2)), seen, 1)
        return result["label"], result["score"]

    def classify(self, images, top_k: int = 1) -> list[dict]:
        """A list of paths or arrays -> for each {image, label or None, score, top_k: [{label, score}], error or None}.

        `image` is the path (None for an array). `top_k` has the best `top_k` types, whatever their scores. An image that
        cannot be used has an `error`, no label and no score; the other images are still classified. When the label is None
        although the score reaches the threshold of the best type, the runner-up gap is below `self.margin`; a `top_k` of 2
        shows both types.

        With `find` or `corners` also: `quad`, the document's corners, four [x, y] in pixels of the upright image, clockwise
        from the one that becomes the top left under the least turn (None: none was found); `found`, the finder's score of
        it, 0..1 (None: none was found, or the corners were given); `view`, "document" or "image", which of the two scored
        best. With `orientation` "any" also: `orientation`, 0, 90, 180 or 270: by so many degrees clockwise the best type's
        document is turned in the image (from the first corner as its top left, where corners were given).
        """
        return list(self.stream(images, top_k))

    def stream(self, images, top_k: int = 1) -> Iterator[dict]:
        """The results of `classify`, in order, each as soon as it is known, in bounded memory."""
        if top_k < 1:
            raise UserError(f"top-k {top_k}: must be at least 1")
        for part in counted(self.model.stream(images, self.views), len(images), "classifying", self.progress):
            rows = {}  # position: what the search found for each of its views
            for position, *found in zip(part.positions, *self.registry.search(part.features, max(top_k, 2))):
                rows.setdefault(position, []).append(found)
            results = {position: self._result(images[position], found, part.notes[position], top_k)
                       for position, found in rows.items()}
            for position, reason in part.reasons.items():
                results[position] = dict(image=_name(images[position]), label=None, score=None, top_k=[], error=reason,
                                         **self._described(Seen(None, None, ()), None, None))
            yield from (results[position] for position in sorted(results))

    def _result(self, image, rows, seen, top_k):
        """rows: for each view of the image scores, types and turns, `(K,)` each, best first; K >= 2 if there are two types.
        The score of a type is that of its best view."""
        best = {}  # type: (score, place of the view, turn)
        for view, row in enumerate(rows):
            for score, index, turn in zip(*row):
                if index not in best or score > best[index][0]:
                    best[index] = score, view, turn
        ranked = sorted(best, key=lambda index: -best[index][0]) if len(seen.views) > 1 else list(best)
        ranking = [dict(label=self.registry.labels[index] or None, score=float(best[index][0])) for index in ranked]
        score, others = ranking[0]["score"], ranking[1:]
        accepted = (ranking[0]["label"] is not None and score >= self.thresholds[ranking[0]["label"]]
                    and not (others and score - others[0]["score"] < self.margin))
        _, view, turn = best[ranked[0]]
        return dict(image=_name(image), label=ranking[0]["label"] if accepted else None, score=score,
                    top_k=ranking[:top_k], error=None, **self._described(seen, seen.views[view], turn))

    def _described(self, seen, view, turn):
        """What a result says besides, where the classifier was asked for it."""
        more = {}
        if self.views.find or self.views.corners:
            more |= dict(quad=None if seen.quad is None else np.round(seen.quad, 2).tolist(), found=seen.score, view=view)
        if self.orientation == "any":
            more |= dict(orientation=None if turn is None else int(turn) * 90)
        return more


def _shipped(path, what):
    if not path.exists():
        option, argument = {"model": ("--model", "model"), "registry": ("--register", "register_root")}[what]
        raise UserError(f"{path}: the shipped {what} is missing; give another one with {option} or {argument}=")
    return path


def _look_alikes(pairs, thresholds):
    """Warnings; `pairs` as from `Gallery.look_alikes`."""
    if pairs is None:
        return [f"more than {COMPARED:,} references: types that look alike were not searched for"]
    lines = [f"{first} and {second} look alike: their references score {score:.4f}; their thresholds are now "
             f"{thresholds[first]:.4f} and {thresholds[second]:.4f}" for first, second, score in pairs[:SHOWN]]
    return lines + ([f"{len(pairs) - SHOWN} more pairs of types look alike"] if len(pairs) > SHOWN else [])


def _name(image):
    return None if isinstance(image, np.ndarray) else str(image)


def main(arguments=None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image to classify, or a folder with images")
    parser.add_argument("--model", metavar="M.onnx", help="model that onnx_export.py wrote (default: the shipped one)")
    parser.add_argument("--register", metavar="DIR", help="folder of reference images (default: the shipped one)")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--threshold", type=float, metavar="T", help="lowest score, 0..1, at which a label is given "
                                                                    "(default: see --fpr)")
    limit.add_argument("--fpr", type=float, metavar="F", help="threshold for this false positive rate in the model's own "
                                                              "table (default: the rate at which 5 %% of the images of "
                                                              "unknown types would get a label, at most 1e-3)")
    parser.add_argument("--gap", "--margin", dest="margin", type=float, metavar="G",
                        help="runner-up gap: least difference between the scores of the best and the second best type at "
                             "which a label is given; 0 switches it off (default: the model's own)")
    parser.add_argument("--find", nargs="?", choices=list(FINDS), const="auto", metavar="auto|always|never",
                        help="find the document in each image and rectify it: always; or compare the image as it is too and "
                             "take the better score: auto, also --find alone (default: "
                             f"{next(word for word, find in FINDS.items() if find is DEFAULT_FIND)})")
    parser.add_argument("--find-references", choices=list(FINDS), metavar="auto|always|never",
                        help="the same for the reference images (default: auto with --find, else never)")
    parser.add_argument("--finder", metavar="F.onnx", help="model that finds documents (default: the shipped one)")
    parser.add_argument("--corners", metavar="FILE.csv",
                        help="corners of documents given by hand, of images and of references: the columns "
                             "file,x0,y0,x1,y1,x2,y2,x3,y3, the file below the folder of FILE.csv, the corners clockwise "
                             "from the document's top left")
    parser.add_argument("--orientation", default="upright", metavar="upright|any",
                        help="any: documents may lie any of four ways up, and the answer says which")
    parser.add_argument("--classifier", metavar="M", help="classify by this folder of python -m adverts classifier, or this "
                                                          "ONNX file of a classification task, not by reference images")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--texts", metavar="T.jsonl", help="for --classifier: the text of the images, as python -m adverts "
                                                          "ocr has read it (default: it is read here)")
    texts.add_argument("--without-text", action="store_true", help="for --classifier: read no text")
    parser.add_argument("--show", metavar="DIR", help="write a drawing of each result there: the image with the corners "
                                                      "drawn, and the document beside it; or with its text framed")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="number of types or classes to list")
    parser.add_argument("--backend", default="cpu", metavar="cpu|cuda", help="device that runs the network")
    parser.add_argument("--gallery", default="cpu", metavar="cpu|cuda", help="device that searches the references; cuda is "
                                                                            "for millions of them and needs torch")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads for many images; 0 is one per core")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON list and nothing else (default: a line per image); bytes of a file name that "
                             "are not UTF-8 are written as \\udcNN, which os.fsencode turns back")
    args = parser.parse_args(arguments)
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: must be at least 1")
    if args.finder and not (args.find or args.find_references or DEFAULT_FIND):
        parser.error("--finder: of use with --find or --find-references alone")
    learned = args.classifier is not None
    for name in OF_REGISTERED if learned else ("texts", "without_text"):
        if getattr(args, name) != parser.get_default(name):
            option = {"margin": "gap"}.get(name, name).replace("_", "-")
            parser.error(f"--{option}: is of no use with --classifier, which has learned its classes" if learned else
                         f"--{option}: is of use with --classifier alone")

    images = [path for image in args.images for path in images_at(image)]
    progress = args.json or not sys.stdout.isatty()  # otherwise the lines of results on the terminal show the progress
    if learned:
        show = args.show and show_folder(args.show, images)
        texts = read_segments(args.texts) if args.texts else None
        classifier = adverts.AdvertClassifier(args.classifier, texts=texts, without_text=args.without_text,
                                              threads=args.threads, progress=progress)
        return _print_results(classifier.stream(images, args.top_k), args.json,
                              lambda result: adverts.line(result, args.top_k), show, adverts.draw)
    show = args.show and show_folder(args.show, images, args.register or DEFAULT_REGISTRY)
    corners = read_corners(args.corners) if args.corners else None
    classifier = DocClassifier(model=args.model, register_root=args.register, threshold=args.threshold, fpr=args.fpr,
                               margin=args.margin, find=FINDS.get(args.find, DEFAULT_FIND), finder=args.finder,
                               find_references=FINDS.get(args.find_references), corners=corners,
                               orientation=args.orientation, backend=args.backend, threads=args.threads,
                               gallery=args.gallery, progress=progress)
    choices = (args.model, DEFAULT_MODEL), (args.register, DEFAULT_REGISTRY)
    shipped = [str(path) for given, path in choices if given is None]
    if shipped:
        print(printable(f"using the shipped files: {' and '.join(shipped)}"), file=sys.stderr)
    for warning in classifier.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    top_k = args.top_k if args.json else max(args.top_k, 2)  # the second type may be the reason for no label
    return _print_results(classifier.stream(images, top_k), args.json,
                          lambda result: _line(result, args.top_k, classifier.thresholds), show, draw)


def _print_results(results, as_json, line, show, draw) -> int:
    """Print the results, and write drawings of them to the folder `show` unless it is None; returns the exit status."""
    listed, usable = [], False
    for number, result in enumerate(results):
        if show:
            write_drawing(show, number, result, draw)
        if as_json:
            listed.append(result)
        else:
            print(printable(line(result)))
        usable |= result["error"] is None
    if as_json:
        print(json.dumps(listed, indent=2))
    return 0 if usable else 2


def _line(result, top_k, thresholds):
    if result["error"]:
        return f"{result['image']}: cannot be used: {result['error']}"
    line = f"{result['image']}: {result['label'] or 'not registered'} {result['score']:.4f}"
    if result.get("orientation"):
        line += f" turned by {result['orientation']}"
    best = result["top_k"][0]["label"]
    if best is None:
        line += " (a known unknown)"
    elif result["label"] is None and result["score"] >= thresholds[best]:
        line += " (too close to {} and {})".format(*(entry["label"] or "a known unknown" for entry in result["top_k"][:2]))
    if top_k > 1:
        line += " (" + ", ".join(f"{entry['label']} {entry['score']:.4f}" for entry in result["top_k"][:top_k]) + ")"
    return line


if __name__ == "__main__":
    run_cli(main)
