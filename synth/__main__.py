"""Makes documents to train and evaluate on, with nothing downloaded.

  python -m synth OUT                                    OUT/train and OUT/eval
  python -m synth OUT --train-types 500 --copies 8 --eval-types 60 --captures 4 --seed 1
  python -m synth --sheet sheet.png                      a picture to look at: types in rows, copies, captures

The types of OUT/eval are never those of OUT/train. OUT/train/<type>/copy_N.jpg are clean copies;
OUT/eval/<type>/ has reference.jpg and capture_N.jpg, made photos of other copies.
"""

from inference.cli import Parser, run_cli
from inference.image import UserError
from synth import contact_sheet, write_eval, write_train


def _arguments(argv):
    parser = Parser(prog="python -m synth", description=__doc__)
    parser.add_argument("out", nargs="?", help="folder for train/ and eval/")
    parser.add_argument("--train-types", type=int, default=400, metavar="N", help="document types to train on")
    parser.add_argument("--copies", type=int, default=8, metavar="K", help="clean copies of each training type")
    parser.add_argument("--eval-types", type=int, default=60, metavar="M", help="further types to evaluate on")
    parser.add_argument("--captures", type=int, default=4, metavar="K", help="made photos of each evaluation type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", metavar="FILE", help="write a contact sheet (.jpg or .png)")
    args = parser.parse_args(argv)
    if not (args.out or args.sheet):
        parser.error("name a folder to write to, or --sheet FILE")
    return args


def main(argv=None):
    args = _arguments(argv)
    try:
        if args.sheet:
            contact_sheet(args.sheet, args.seed)
        if args.out:
            train = write_train(f"{args.out}/train", args.train_types, args.copies, args.seed)
            test = write_eval(f"{args.out}/eval", args.eval_types, args.captures, args.seed, args.train_types)
            print(f"{args.out}/train: {train} images of {args.train_types} types; "
                  f"{args.out}/eval: {test} images of {args.eval_types} other types")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    run_cli(main)
