"""What to know about images before a long run: what cannot be used, what is duplicated, what the run would cost.

    python -m dataset doctor DIR... [--eval DIR]... [--report FOLDER]
    python -m dataset doctor --config configs/lcnet_strong --set data=DIR batch_size=1024
    python -m dataset doctor DIR --json                            # one JSON document on stdout, nothing else

DIR is FOLDER[:EXPANSION][:labelled], as in training. Every file is decoded once, as training does. Duplicates are files of
the same bytes or pixels, and images that were recompressed, resized, brightened, cropped by 2 to 3 %, turned by quarters
or flipped: each of them would be a class of its own that looks like another's. The exit status is 0 whatever is found, and
2 when the search is not possible.
"""
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from inference.cli import Parser
from inference.errors import UserError

DEFAULT = "configs/lcnet_cos"


def main(arguments=None) -> None:
    """`python -m dataset doctor` with these arguments."""
    parser = Parser(prog="python -m dataset doctor", description=__doc__)
    parser.add_argument("data", nargs="*", metavar="DIR", help="FOLDER[:EXPANSION][:labelled]; none: the config's")
    parser.add_argument("--config", metavar="CONFIG", help=f"whose run it is to be ({DEFAULT})")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value",
                        help="settings, as after train_v2.py's config")
    parser.add_argument("--eval", action="append", metavar="DIR", help="a folder of types to evaluate on; may be repeated")
    parser.add_argument("--report", metavar="FOLDER", help="write report.html and report.json there")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the text")
    parser.add_argument("--no-time", action="store_true", help="do not measure how long training steps take")
    args = parser.parse_args(arguments)

    with redirect_stdout(sys.stderr):  # libraries may print; stdout is for the result
        from configs import load_config
        from eval.page import make_folder, writing
        from tools.doctor.examine import examine
        from tools.doctor.report import page, text
        cfg = load_config(args.config or DEFAULT, args.set)
        cfg.data = args.data or cfg.data
        if not cfg.data:
            raise UserError("no folder given: python -m dataset doctor DIR..., or a --config that has its own data")
        if args.report:
            make_folder(args.report)
        document = {"config": args.config or f"{DEFAULT} (no --config was given)",
                    **examine(cfg, args.eval or [cfg.eval_data] * bool(cfg.eval_data), not args.no_time)}
        if args.report:
            with writing(args.report):
                (Path(args.report) / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                path = Path(args.report) / "report.html"
                path.write_text(page(document), encoding="utf-8")
            print(f"report: {path}")
    print(json.dumps(document) if args.json else text(document))
