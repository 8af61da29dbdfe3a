"""Evaluate a model on a folder of document types it was never trained on.

    python -m eval --model model.onnx --data DIR                  # a table; DIR/<type>/*.jpg
    python -m eval --model OUTPUT_DIR --data DIR --report DIR     # a training run; report.html and its pictures
    python -m eval --model model.onnx --data DIR --json           # one JSON document on stdout, nothing else

A file named reference* is the gallery image of its type. Exit status 2 and one line on stderr when something is
wrong with what was given.
"""
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from eval.evaluation import evaluate_folder
from inference.cli import Parser, run_cli
from inference.image import UserError


def main(argv=None):
    parser = Parser(prog="python -m eval", description=__doc__)
    parser.add_argument("--model", required=True, metavar="M.onnx|OUTPUT_DIR", help="an exported model or a run")
    parser.add_argument("--data", required=True, metavar="DIR", help="DIR/<type>/*.jpg")
    parser.add_argument("--report", metavar="DIR", help="write report.html, its pictures and metrics.json there")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per model call (64)")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")

    with redirect_stdout(sys.stderr):       # libraries may greet; stdout is for the result
        if args.report:
            from eval.report import make_folder, write_report
            make_folder(args.report)
        embed, image_size = load_embed(args.model)
        result = evaluate_folder(embed, args.data, image_size, args.batch_size)
        if args.report:
            print(f"report: {write_report(result, args.report, model_name=args.model)}")
    print(json.dumps(result.as_dict()) if args.json else result.table())


def load_embed(model):
    """An ONNX file or a run's output folder -> (embed: uint8 RGB [N,S,S,3] -> float32 [N,D], S)."""
    if not Path(model).exists():
        raise UserError(f"{model}: no such file; --model wants an exported .onnx file or a run's output folder")
    if Path(model).is_dir():
        return _run_embed(model)
    from inference.model import load_model
    onnx = load_model(model)
    return onnx.embed, onnx.image_size


def _run_embed(output):
    try:
        import torch
    except ImportError:
        raise UserError(f"{output}: evaluating a run needs torch; install requirements.txt, or give --model an "
                        f"exported .onnx file") from None
    from backbones import load_run
    model, cfg = load_run(output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    @torch.inference_mode()
    def embed(images):
        batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        return model(batch).float().cpu().numpy()

    return embed, cfg.image_size


if __name__ == "__main__":
    run_cli(main)
