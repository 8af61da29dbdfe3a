"""Which registered document type is this picture, if any?

    python inference/classify.py --model M.onnx --register DIR IMAGE... [--threshold T | --fpr F] [--top-k K] [--json]
    python inference/classify.py --model M.onnx --register DIR FOLDER     # all images below it

    from inference.classify import DocClassifier
    label, score = DocClassifier(model="M.onnx", register_root="DIR")("photo.jpg")  # label None: not registered

DIR holds a folder of reference pictures per type (DIR/passport/*.jpg), or one picture per type (DIR/passport.jpg).
Needs numpy, OpenCV and ONNX Runtime; no torch.
"""
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # as a script, Python has this folder on its path instead of the repository's
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.cli import Parser, counted, printable, run_cli  # noqa: E402
from inference.image import ImageError, UserError, list_images  # noqa: E402
from inference.model import Model, load_model  # noqa: E402
from inference.registry import Registry  # noqa: E402

DEFAULT_FPR = 1e-3
FALLBACK_THRESHOLD = 0.75  # for a model that was exported before it was evaluated


class DocClassifier:
    """Recognises the types registered in a folder and refuses the rest.

    `model` is the path of an exported model (or a loaded `Model`); `register_root` the folder of references;
    `threshold` the lowest score, 0..1, at which a type is named. Without one, the model's own table gives the score
    that lets `fpr` (1e-3) of the pairs of different types pass; a model without a table gets 0.75 and a warning.
    `backend`, "cpu" or "cuda", runs the network; `threads` work on many images at once (0: one for each core), a single
    image takes one. `gallery` "cuda" searches the references on the GPU, for millions of them: it needs torch and holds
    them in bf16, which moves scores by up to 1e-3. `progress`: on a terminal, say on stderr how far it is.
    `warnings` lists what is odd about the registry and the threshold. Raises UserError for whatever the user can put right.
    """

    def __init__(self, *, model, register_root, threshold: float | None = None, fpr: float | None = None,
                 backend: str = "cpu", threads: int = 0, gallery: str = "cpu", progress: bool = False):
        self.model = model if isinstance(model, Model) else load_model(model, backend, threads)
        self.threshold, notes = _choose_threshold(self.model, threshold, fpr)
        self.registry = Registry(register_root, self.model, gallery, progress)
        self.progress = progress
        self.warnings: list[str] = notes + self.registry.warnings

    @property
    def bank(self) -> dict[str, np.ndarray]:
        """{label: features of its references, float32 `[R, D]`}."""
        return self.registry.bank

    def get_register(self, root) -> dict[str, np.ndarray]:
        """The bank of another folder; this classifier keeps its own."""
        return Registry(root, self.model).bank

    def extract_feature(self, image) -> np.ndarray:
        """A path, or what `cv2.imread` returns -> float32 `[D]`, L2-normalised. Raises ImageError."""
        try:
            prepared = self.model.prepare(image)
        except ImageError as error:
            raise ImageError(f"{_name(image) or 'image'}: {error}") from None
        return self.model.embed(prepared[None])[0]

    def __call__(self, image) -> tuple[str | None, float]:
        """A path, or what `cv2.imread` returns -> (label, score). Below the threshold the label is None; the score
        is the best type's all the same. Raises ImageError.
        """
        (scores,), (types,) = self.registry.top(self.extract_feature(image)[None], 1)
        result = self._result(image, scores, types)
        return result["label"], result["score"]

    def classify(self, images, top_k: int = 1) -> list[dict]:
        """A list of paths or arrays -> for each {image, label or None, score, top_k: [{label, score}], error or None}.

        `image` is the path (None for an array); `top_k` holds the best `top_k` types whatever their scores. An image
        that cannot be used has an `error`, no label, no score; the others are classified all the same.
        """
        return list(self.stream(images, top_k))

    def stream(self, images, top_k: int = 1) -> Iterator[dict]:
        """The results of `classify` in order, each as soon as it is there, in bounded memory."""
        if top_k < 1:
            raise UserError(f"top-k {top_k}: must be at least 1")
        for part in counted(self.model.stream(images), len(images), "classifying", self.progress):
            found = zip(part.positions, *self.registry.top(part.features, top_k))
            results = {position: self._result(images[position], scores, types) for position, scores, types in found}
            for position, reason in part.reasons.items():
                results[position] = dict(image=_name(images[position]), label=None, score=None, top_k=[], error=reason)
            yield from (results[position] for position in sorted(results))

    def _result(self, image, scores, types):  # both (K,), best first
        ranking = [dict(label=self.registry.labels[index], score=float(score)) for index, score in zip(types, scores)]
        accepted = ranking[0]["score"] >= self.threshold
        return dict(image=_name(image), label=ranking[0]["label"] if accepted else None, score=ranking[0]["score"],
                    top_k=ranking, error=None)


def _name(image):
    return None if isinstance(image, np.ndarray) else str(image)


def _choose_threshold(model, threshold, fpr):
    """(threshold, notes for the user)."""
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold}: must be between 0 and 1, a score is (cosine + 1) / 2")
        return threshold, []
    if fpr is not None and not 0 < fpr <= 1:
        raise UserError(f"fpr {fpr}: must be above 0 and at most 1, the share of wrong matches to allow")
    chosen = model.threshold_at(DEFAULT_FPR if fpr is None else fpr)
    if chosen is not None:
        return chosen, []
    if fpr is not None:
        raise UserError(f"fpr {fpr:g}: the model has no threshold for so low a rate; give --threshold, "
                        "or evaluate with more images and export again")
    return FALLBACK_THRESHOLD, [f"the model has no threshold for a false positive rate of {DEFAULT_FPR:g}; "
                                f"taking {FALLBACK_THRESHOLD}"]


def main(arguments=None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture to classify, or a folder: all below it")
    parser.add_argument("--model", required=True, help="what onnx_export.py wrote")
    parser.add_argument("--register", required=True, metavar="DIR", help="folder of reference pictures")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--threshold", type=float, metavar="T", help="lowest score, 0..1, at which a type is named")
    limit.add_argument("--fpr", type=float, metavar="F", help="take the threshold for this false positive rate from "
                                                              f"the model's own table (default {DEFAULT_FPR:g})")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="how many types to list (default 1)")
    parser.add_argument("--backend", default="cpu", metavar="cpu|cuda", help="what runs the network (default cpu)")
    parser.add_argument("--gallery", default="cpu", metavar="cpu|cuda", help="what searches the references: cuda is for "
                                                                            "millions of them and needs torch (default cpu)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="how many work on many images at once "
                                                                            "(default 0: one for each core)")
    parser.add_argument("--json", action="store_true", help="print one JSON list and nothing else; bytes of a name that are "
                                                            "not UTF-8 are there as \\udcNN: os.fsencode gives them back")
    args = parser.parse_args(arguments)
    if args.top_k < 1:
        raise UserError(f"--top-k {args.top_k}: must be at least 1")

    images = [path for image in args.images for path in _expanded(image)]
    # Lines of results on the same terminal say how far it is by themselves.
    progress = args.json or not sys.stdout.isatty()
    classifier = DocClassifier(model=args.model, register_root=args.register, threshold=args.threshold, fpr=args.fpr,
                               backend=args.backend, threads=args.threads, gallery=args.gallery, progress=progress)
    for warning in classifier.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    results = classifier.stream(images, args.top_k)
    if args.json:
        results = list(results)
        print(json.dumps(results, indent=2))
        return 0 if any(result["error"] is None for result in results) else 2
    usable = False
    for result in results:
        print(printable(_line(result, args.top_k)))
        usable |= result["error"] is None
    return 0 if usable else 2


def _expanded(image):
    """A folder's images; anything else, and a folder without one, is left to be reported in its own result."""
    below = [os.path.join(image, file) for file in list_images(image)] if os.path.isdir(image) else []
    return below or [image]


def _line(result, top_k):
    if result["error"]:
        return f"{result['image']}: cannot be used: {result['error']}"
    line = f"{result['image']}: {result['label'] or 'not registered'} {result['score']:.4f}"
    if top_k > 1:
        line += " (" + ", ".join(f"{entry['label']} {entry['score']:.4f}" for entry in result["top_k"]) + ")"
    return line


if __name__ == "__main__":
    run_cli(main)
