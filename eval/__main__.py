"""Evaluate a model on document types, or a reader of lines on books, that it was never trained on.

    python -m eval --model model.onnx --data DIR                  # prints a table; the images are DIR/<type>/*.jpg
    python -m eval --model OUTPUT_DIR --data DIR --report DIR     # a training run; writes report.html and its figures
    python -m eval --model model.onnx --data DIR --json           # prints one JSON document and nothing else
    python -m eval --model model.onnx --data DIR --open-set       # also measures the rejection of unknown types
    python -m eval --model model.onnx --data DIR --find auto --orientation any      # photos as a camera took them
    python -m eval --model model.onnx --calibrate DIR             # also writes DIR's thresholds into model.onnx
    python -m eval --model reader.onnx --data LINES --where book=a --tesseract     # a reader; LINES: images and lines.tsv
    python -m eval --model glyphs.onnx --data CROPS --references RENDERS --report DIR   # single characters; writes an index

A file named reference* is a gallery image of its type. A mistake in the arguments or the data gives one line on stderr
and exit status 2.
"""
import dataclasses
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from eval.evaluation import evaluate_folder
from eval.open_set import open_set
from inference.cli import Parser, run_cli
from inference.errors import UserError, printable

OTHER = {"upright": "any", "any": "upright"}   # a calibration measures both
DOCUMENTS = "calibrate", "open_set", "fpr", "find", "finder", "corners", "orientation"      # options of one kind of model
READING = "where", "count", "group", "vertical", "dictionary", "characters", "tesseract"    # and of the other


def main(argv=None):
    parser = Parser(prog="python -m eval", description=__doc__)
    parser.add_argument("--model", required=True, metavar="M.onnx|OUTPUT_DIR", help="exported model, or folder of a run")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", metavar="DIR", help="images to evaluate on, DIR/<type>/*.jpg")
    data.add_argument("--calibrate", metavar="DIR", help="like --data, and write the measured thresholds into the ONNX file")
    parser.add_argument("--open-set", action="store_true", help="also register half of the types at a time, and measure the "
                                                                "correct identification and the unknown rejection rate")
    parser.add_argument("--fpr", type=float, metavar="F", help="for --open-set: use the model's threshold for this false "
                                                               "positive rate (default: as inference/classify.py)")
    add_photo_options(parser.add_argument)
    parser.add_argument("--report", metavar="DIR", help="write report.html, its figures and metrics.json there "
                                                        "(default: no report)")
    parser.add_argument("--json", action="store_true", help="print one JSON document (default: a table)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per call of the model")
    add_reading_options(parser.add_argument_group("for a reader of lines").add_argument)
    parser.add_argument("--references", metavar="DIR", help="recognize the glyphs of --data, DIR/<class>/*.png, by the "
                                                            "nearest of these, such as one font's renders; see "
                                                            "eval/glyphs.py")
    args = parser.parse_args(argv)
    reads, is_run = is_reader(args.model), Path(args.model).is_dir()
    for option in (*DOCUMENTS, "batch_size") if reads else READING:
        if getattr(args, option) != parser.get_default(option) and Path(args.model).exists():
            option = f"--{option.replace('_', '-')}"
            if is_run:
                raise UserError(only_onnx(args.model, option))
            parser.error(f"{option} is for {'a model of documents' if reads else 'a reader of lines'}; "
                         f"{args.model} is {'a reader of lines' if reads else 'none'}")
    if args.references:
        return evaluate_recognizer(args)
    if reads:
        return evaluate_reader(args)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.fpr is not None and not args.open_set:
        parser.error("--fpr is for --open-set")
    for option, asked in (("--calibrate", args.calibrate), ("--open-set", args.open_set)):
        if asked and is_run:
            raise UserError(only_onnx(args.model, option))

    with redirect_stdout(sys.stderr):       # libraries may print; stdout is for the result alone
        if args.report:
            from eval.report import make_folder, write_report
            make_folder(args.report)
        embed, image_size, fit = load_embed(args.model)
        photos = photo_options(args)

        def evaluate(orientation):
            return evaluate_folder(embed, args.data or args.calibrate, image_size, args.batch_size, fit=fit,
                                   orientation=orientation, load=seen(image_size, fit, **photos))

        result = evaluate(args.orientation)
        if args.calibrate:
            from eval.calibrate import calibrate
            # Apart, though one has the views of the other: in other batches, some networks' last bits are others.
            other = evaluate(OTHER[args.orientation])
            written = calibrate(args.model, *((result, other) if args.orientation == "upright" else (other, result)))
            rates = list(written["thresholds"])  # the highest first
            print(printable(f"{args.model}: now has the thresholds of {args.calibrate} for FPR {rates[0]} to {rates[-1]}, "
                            f"and a runner-up gap of {written['margin']:g}"))
        if args.open_set:
            result = dataclasses.replace(result, open_set=open_set(args.model, result, args.fpr,
                                                                   orientation=args.orientation, **photos))
        if args.report:
            print(f"report: {write_report(result, args.report, model_name=args.model)}")
    print(json.dumps(result.as_dict()) if args.json else result.table())


def add_photo_options(add):
    """`--find`, `--finder`, `--corners` and `--orientation`, by `add`, as a parser's add_argument."""
    add("--find", nargs="?", choices=("auto", "always", "never"), default="never", const="auto",
        help="find the document in each image: always compare it alone, or (auto) it and the whole image")
    add("--finder", metavar="F.onnx", help="model for --find (default: the shipped one)")
    add("--corners", metavar="FILE.csv", help="the documents' corners where they are known: file,x0,y0,...,x3,y3, a line an "
                                              "image")
    add("--orientation", choices=tuple(OTHER), default="upright", help="any: documents may lie any of four ways up")


def photo_options(args) -> dict:
    """`find`, `finder` and `corners` as `DocClassifier` takes them; empty where none was given."""
    if args.find == "never" and args.finder:
        raise UserError(f"--finder {args.finder}: is of use with --find; add --find auto or --find always")
    if args.find == "never" and not args.corners:
        return {}
    from inference.classify import FINDS
    from inference.views import read_corners
    return {"find": FINDS[args.find], "finder": args.finder, "corners": read_corners(args.corners) if args.corners else None}


def seen(image_size, fit, **photos):
    """The argument `load` of `evaluate_folder`: None where no option of `photo_options` was given."""
    if not photos:
        return None
    from eval.find import Seen
    return Seen(image_size, fit, **photos)


def add_reading_options(add):
    """The options of READING, by `add`, as a parser's add_argument."""
    add("--where", default="", metavar="COLUMN=V", help="only lines with this value, or one of V,V,..., in a column of "
                                                        "lines.tsv; or COLUMN!=V")
    add("--count", type=int, default=0, metavar="N", help="so many lines, at random (default: all)")
    add("--group", default="", metavar="COLUMN", help="also the error for each value of a column, such as book")
    add("--vertical", action="store_true", help="the lines run from top to bottom (default: as the model says)")
    add("--dictionary", metavar="FILE", help="a word a line, to correct by")
    add("--characters", metavar="FILE.npz", help="characters that python -m ocr register has added")
    add("--tesseract", action="store_true", help="also read with Tesseract, if it is installed")


def only_onnx(run, what) -> str:
    """The message for what an ONNX file is needed for, and not the folder of a run."""
    return f"{run}: {what} takes an ONNX file; export the run first: python onnx_export.py {run}"


def is_reader(model) -> bool:
    """Whether a file says that it is a model of task "reading". What is no model at all is told when it is loaded."""
    from inference.model import METADATA_KEY, open_session
    if not Path(model).is_file():
        return False
    try:
        return json.loads(open_session(model).get_modelmeta().custom_metadata_map[METADATA_KEY])["task"] == "reading"
    except (UserError, LookupError, ValueError, TypeError):
        return False


def evaluate_reader(args):
    from eval.reading import compare, evaluate_lines, table
    from inference.reader import LineReader
    from ocr.folder import read_lines
    with redirect_stdout(sys.stderr):
        lines = read_lines(args.data, args.where, args.count, with_boxes=False)
        if args.group and args.group not in lines[0].fields:
            raise UserError(f"--group {args.group}: lines.tsv has no such column; it has "
                            f"{', '.join(lines[0].fields) or 'file and text alone'}")
        if args.report:
            from eval.reading_report import make_folder, write_reading_report
            make_folder(args.report)
        reader = LineReader(args.model, characters=args.characters, dictionary=args.dictionary,
                            vertical=args.vertical or None)
        if args.tesseract:
            from eval.tesseract import read_with_tesseract
            if reader.vertical:
                raise UserError("--tesseract: is asked for horizontal lines alone, and these run from top to bottom; do "
                                "without it")
            read_with_tesseract([])     # where it is not installed, this says so before the long work
        result, peers = evaluate_lines(reader, lines, args.group, progress=True), {}
        if args.tesseract:
            broken = {one["file"] for one in result["unreadable"]}
            texts = dict(zip((line.file for line in lines if line.file not in broken),
                             read_with_tesseract([line.path for line in lines if line.file not in broken])))
            peers["tesseract"] = compare(lines, [texts.get(line.file, "") for line in lines], group=args.group)
        if args.report:
            path = write_reading_report(result, peers, lines, args.report, f"{args.model} on {args.data}", args.group)
            print(f"report: {path}")
    print(json.dumps({**result, **peers}) if args.json else table(result, peers, args.group))


def evaluate_recognizer(args):
    from eval.glyphs import evaluate_glyphs, write_artifacts
    if not args.data:
        raise UserError("--references: is compared with the glyphs of --data; give that folder too")
    with redirect_stdout(sys.stderr):
        embed, image_size, fit = load_embed(args.model)
        result = evaluate_glyphs(embed, args.references, args.data, image_size, fit)
        if args.report:
            write_artifacts(args.report, result)
            print(f"report: {args.report}: index.npz, references.json, look_alikes.txt, nearest.png, metrics.json")
    print(json.dumps(result.as_dict()) if args.json else result.table())


def load_embed(model):
    """An ONNX file, or the output folder of a run -> (embed, S, fit); embed: uint8 RGB [N, S, S, 3] -> float32 [N, D]."""
    if not Path(model).exists():
        raise UserError(f"{model}: no such file; give --model an exported .onnx file or the output folder of a run")
    if Path(model).is_dir():
        return _run_embed(model)
    from inference.model import load_model
    onnx = load_model(model)
    return onnx.embed, onnx.image_size, onnx.fit


def _run_embed(output):
    try:
        import torch
    except ImportError:
        raise UserError(f"{output}: evaluating a run needs torch; install requirements.txt, or give --model an "
                        "exported .onnx file") from None
    from configs import load_run, read_info
    from tasks import get_task
    model, cfg = load_run(output)
    if cfg.task == "reading":
        raise UserError(only_onnx(output, "the evaluation of a reader"))
    if get_task(cfg.task).export(cfg, read_info(output), model).outputs != ("feats",):
        raise UserError(f"{output}: the network of a {cfg.task} run does not embed images; such a run evaluates itself "
                        "(eval_data) and writes the result to its eval.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def embed(images):
        batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        return model(batch).float().cpu().numpy()

    return embed, cfg.image_size, cfg.get("fit", "squash")


if __name__ == "__main__":
    run_cli(main)
