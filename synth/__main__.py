"""Makes documents to train and evaluate on, with nothing downloaded.

  python -m synth --out DIR --types 100 --copies 5       an evaluation set: DIR/<type>/reference.jpg and capture_N.jpg
  python -m synth OUT                                    OUT/train and OUT/eval
  python -m synth OUT --train-types 4000 --copies 2 --train-captures 3 --eval-types 60 --captures 4 --seed 1
  python -m synth --photos-of DIR2 --out DIR --copies 3  made photos of pictures that are there: DIR/<name>/ as above
  python -m synth --sheet sheet.png                      a picture to look at: types in rows, copies, captures

All pictures of a type have other content: names, numbers, portraits. Captures are made photos, the others are clean.
Types to evaluate on are never those of OUT/train, whatever the numbers: they begin at 1,000,000 (--first-type).
"""

from inference.cli import Parser, run_cli
from inference.errors import UserError
from synth import NEVER_TRAINED, contact_sheet, write_eval, write_photos, write_train


def _arguments(argv):
    parser = Parser(prog="python -m synth", description=__doc__)
    parser.add_argument("both", nargs="?", metavar="OUT", help="folder for train/ and eval/")
    parser.add_argument("--out", metavar="DIR", help="folder for one evaluation set")
    parser.add_argument("--photos-of", metavar="DIR", help="of the pictures below DIR instead of made documents")
    parser.add_argument("--severity", type=float, default=1.0, metavar="S", help="how poor those photos are (1; 2: very)")
    parser.add_argument("--types", type=int, default=100, metavar="N", help="its document types")
    parser.add_argument("--copies", type=int, metavar="K", help="pictures of each type: in DIR a clean reference and K-1 "
                                                                "captures (5), in OUT/train K clean ones (8)")
    parser.add_argument("--first-type", type=int, default=NEVER_TRAINED, metavar="I", help="the first type to evaluate on")
    parser.add_argument("--train-types", type=int, default=400, metavar="N", help="document types of OUT/train, from 0")
    parser.add_argument("--train-captures", type=int, default=0, metavar="K", help="made photos of each beside the copies")
    parser.add_argument("--eval-types", type=int, default=60, metavar="M", help="document types of OUT/eval")
    parser.add_argument("--captures", type=int, default=4, metavar="K", help="made photos of each of those")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", metavar="FILE", help="write a contact sheet (.jpg or .png)")
    args = parser.parse_args(argv)
    if not (args.both or args.out or args.sheet):
        parser.error("name a folder to write to: --out DIR or OUT, or --sheet FILE")
    if args.photos_of and not args.out:
        parser.error("--photos-of DIR needs --out, the folder to write to")
    if args.both and args.train_types > args.first_type:
        parser.error(f"--train-types {args.train_types} reach into those to evaluate on, from {args.first_type}; "
                     "give a larger --first-type")
    if args.out and args.copies is not None and args.copies < 2:
        parser.error(f"--copies {args.copies}: an evaluation set needs a reference and another picture, at least 2")
    return args


def main(argv=None):
    args = _arguments(argv)
    try:
        if args.sheet:
            contact_sheet(args.sheet, args.seed)
        captures = (args.copies or 5) - 1  # beside the reference of each type
        if args.photos_of:
            count = write_photos(args.photos_of, args.out, captures, args.seed, args.severity)
            print(f"{args.out}: {count} images")
        elif args.out:
            count = write_eval(args.out, args.types, captures, args.seed, args.first_type)
            print(f"{args.out}: {count} images of {args.types} types")
        if args.both:
            copies = 8 if args.copies is None else args.copies
            train = write_train(f"{args.both}/train", args.train_types, copies, args.seed, args.train_captures)
            test = write_eval(f"{args.both}/eval", args.eval_types, args.captures, args.seed, args.first_type)
            print(f"{args.both}/train: {train} images of {args.train_types} types; "
                  f"{args.both}/eval: {test} images of {args.eval_types} other types")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    run_cli(main)
