"""Evaluate a model on a folder of document types it was never trained on.

    python -m eval --model model.onnx --data DIR                  # a table; DIR/<type>/*.jpg
    python -m eval --model OUTPUT_DIR --data DIR --report DIR     # a training run; report.html and its pictures
    python -m eval --model model.onnx --data DIR --json           # one JSON document on stdout, nothing else
    python -m eval --model model.onnx --data DIR --open-set       # and how many of types never registered are refused
    python -m eval --model model.onnx --calibrate DIR             # and write DIR's thresholds into model.onnx

A file named reference* is the gallery image of its type. Exit status 2 and one line on stderr when something is
wrong with what was given.
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


def main(argv=None):
    parser = Parser(prog="python -m eval", description=__doc__)
    parser.add_argument("--model", required=True, metavar="M.onnx|OUTPUT_DIR", help="an exported model or a run")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", metavar="DIR", help="DIR/<type>/*.jpg")
    data.add_argument("--calibrate", metavar="DIR", help="the same, and write the thresholds found into the ONNX file")
    parser.add_argument("--open-set", action="store_true", help="register every other type, then the others: how many "
                                                                "images are named, rightly, and refused")
    parser.add_argument("--fpr", type=float, metavar="F", help="for --open-set: take the model's threshold for this false "
                                                               "positive rate (default: classify's)")
    parser.add_argument("--report", metavar="DIR", help="write report.html, its pictures and metrics.json there")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per model call (64)")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.fpr is not None and not args.open_set:
        parser.error("--fpr is for --open-set")
    for option, asked in (("--calibrate", args.calibrate), ("--open-set", args.open_set)):
        if asked and Path(args.model).is_dir():
            raise UserError(f"{args.model}: {option} takes an ONNX file; export the run first: "
                            f"python onnx_export.py {args.model}")

    with redirect_stdout(sys.stderr):       # libraries may greet; stdout is for the result
        if args.report:
            from eval.report import make_folder, write_report
            make_folder(args.report)
        embed, image_size, fit = load_embed(args.model)
        result = evaluate_folder(embed, args.data or args.calibrate, image_size, args.batch_size, fit=fit)
        if args.calibrate:
            from eval.calibrate import calibrate
            written = calibrate(args.model, result)
            print(printable(f"{args.model}: has thresholds for FPR {', '.join(written['thresholds'])} and a margin of "
                            f"{written['margin']:g} now, from {args.calibrate}"))
        if args.open_set:
            result = dataclasses.replace(result, open_set=open_set(args.model, result, args.fpr))
        if args.report:
            print(f"report: {write_report(result, args.report, model_name=args.model)}")
    print(json.dumps(result.as_dict()) if args.json else result.table())


def load_embed(model):
    """An ONNX file or a run's output folder -> (embed: uint8 RGB [N,S,S,3] -> float32 [N,D], S, fit)."""
    if not Path(model).exists():
        raise UserError(f"{model}: no such file; --model wants an exported .onnx file or a run's output folder")
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
                        f"exported .onnx file") from None
    from configs import load_run
    model, cfg = load_run(output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def embed(images):
        batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        return model(batch).float().cpu().numpy()

    return embed, cfg.image_size, cfg.get("fit", "squash")


if __name__ == "__main__":
    run_cli(main)
