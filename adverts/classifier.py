"""Gather what is served: the exported networks of images and of texts, and the weights that fuse them, in one folder.

    python -m adverts classifier --image OUT/runs/ads_small --text OUT/runs/ads_text_small --fusion OUT/fusion.json \\
        --out OUT/classifier
    python -m adverts classifier --image ads_small=student.onnx --text ads_text_small=words.onnx --fusion ... --out ...
    python inference/classify.py --classifier OUT/classifier IMAGE...

A run is exported beforehand: python onnx_export.py RUN. Each network stands for one model of the fusion and takes its
weight. So it must be of that kind, those classes and that split, and there must be one for each: weights of a part of the
models, or of others, were never tuned. The model is named before a "=", or else by the run's folder or the file: ads_small,
ads_small_fold0 and ads_small_all.onnx are the model ads_small. Nothing is measured here.
"""
import contextlib
import json
import os
import shutil
from pathlib import Path

from inference.classifier import FUSION, ImageNetwork, file_names, load_network
from inference.cli import Parser
from inference.errors import UserError, printable
from inference.files import replacing
from inference.fusion import read_fusion
from inference.segments import DEFAULT_SIDE, MAX_SIDE

EXPORT = "model.onnx"  # in a run's folder


def gather(given: list[tuple[str, str]], fusion_path, side: int = DEFAULT_SIDE) -> tuple[dict, dict[str, Path]]:
    """What a folder of a classifier holds: (the fusion, {name in the folder: ONNX file}). Nothing is written.

    given: (kind, RUN or ONNX file, maybe with NAME= in front) of each network. side: see `inference.segments.make_reader`.
    Raises UserError where they are not exactly the models of the fusion.
    """
    fusion, files = read_fusion(fusion_path), {}
    kinds = {model["name"]: model["kind"] for model in fusion["models"]}
    for kind, text in given:
        name, path = _named(text, kinds)
        if kinds.get(name) != kind:
            tuned = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise UserError(printable(f"--{kind} {text}: {fusion_path} was tuned for {tuned}; name the one that it is with "
                                      f"--{kind} NAME={path}, or tune the weights of other models: python -m adverts tune"))
        if name in files:
            raise UserError(printable(f"--{kind} {text}: {name} is given by {files[name]} too; give one of them"))
        files[name] = _checked(path, kind, fusion, fusion_path)
    if missing := [name for name in kinds if name not in files]:
        raise UserError(printable(f"{fusion_path}: was tuned with {missing[0]}, which is not given; give it too, or tune "
                                  "without it: python -m adverts tune"))
    return {**fusion, "side": side}, {short: files[name] for short, name in zip(file_names(list(kinds.values())), kinds)}


def _named(text, names):
    """(name of a model, path) of an argument; the name is "" where the fusion has no such model."""
    before, _, after = text.partition("=")
    if before in names and after:
        return before, Path(after)
    path = Path(os.path.abspath(text))
    own = (path.parent if path.name == EXPORT else path).name.removesuffix(".onnx")
    return max((name for name in names if own == name or own.startswith(f"{name}_")), key=len, default=""), Path(text)


def _checked(path, kind, fusion, fusion_path):
    """The ONNX file at `path`, or in the run's folder `path`. Raises UserError unless it fits the fusion."""
    file = path / EXPORT if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError(f"{path}: has no {EXPORT}; export it: python onnx_export.py {path}")
    network = load_network(file)
    if isinstance(network, ImageNetwork) != (kind == "image"):
        raise UserError(f"--{kind} {file}: is a model of task={network.task}; give it with the other option")
    if other := set(network.classes) ^ set(fusion["classes"]):
        raise UserError(printable(f"{file}: {min(other)!r} is a class of it or of {fusion_path}, and not of both"))
    try:
        split = json.loads(file.with_name("run.json").read_text(encoding="utf-8")).get("split")
    except (OSError, ValueError, AttributeError, RecursionError):  # the file alone: its split is not known
        split = None
    if split and fusion.get("split") and split != fusion["split"]:
        raise UserError(printable(f"{file}: was trained on another split ({split}) than {fusion_path} was tuned on "
                                  f"({fusion['split']}); train it on that split, or tune anew"))
    return file


def write(out, fusion: dict, files: dict[str, Path]) -> None:
    """Write what `gather` returned to the folder `out`. It has no fusion, and is no classifier, until all else is there.
    Raises UserError."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FUSION).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); name a folder that can") from None
    with contextlib.ExitStack() as copies:  # all are copied before one is replaced: they may be files of `out` itself
        for name, file in files.items():
            shutil.copyfile(file, copies.enter_context(replacing(out / f"{name}.onnx")))
    with replacing(out / FUSION) as partial:
        partial.write_text(json.dumps(fusion, indent=2), encoding="utf-8")


def main(arguments=None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(prog="python -m adverts classifier", description=__doc__)
    for kind in ("image", "text"):
        parser.add_argument(f"--{kind}", nargs="+", default=[], metavar="RUN|ONNX",
                            help=f"exported network of {kind}s: an ONNX file, or the folder of its run; NAME=... names its "
                                 "model in the fusion")
    parser.add_argument("--fusion", required=True, metavar="fusion.json", help="what python -m adverts tune wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--side", type=int, default=DEFAULT_SIDE, metavar="N",
                        help="of python -m adverts ocr: text is to be read as it was for training")
    args = parser.parse_args(arguments)
    given = [("image", text) for text in args.image] + [("text", text) for text in args.text]
    if not given:
        parser.error("give networks with --image, --text or both")
    if not 0 <= args.side <= MAX_SIDE:
        parser.error(f"--side {args.side}: must be 0 to {MAX_SIDE}")
    fusion, files = gather(given, args.fusion, args.side)
    write(args.out, fusion, files)
    for (name, file), model in zip(files.items(), fusion["models"]):
        print(printable(f"{args.out}/{name}.onnx: {model['name']}, weight {model['weight']:.3f}, "
                        f"{file.stat().st_size / 1e6:.2f} MB"))
    print(printable(f"classify with: python inference/classify.py --classifier {args.out} IMAGE..."))
    return 0
