"""Write folders of synthetic documents to train and to evaluate on. Nothing is downloaded.

    python -m synth --out DIR --types 100 --copies 5         # an evaluation set: DIR/<type>/reference.jpg, capture_N.jpg
    python -m synth OUT                                      # OUT/train and OUT/eval
    python -m synth OUT --train-types 4000 --copies 2 --train-captures 3 --eval-types 60 --captures 4 --seed 1
    python -m synth --captures-of DIR2 --out DIR --copies 3  # synthetic captures of your own images, DIR/<name>/ as above
    python -m synth --sheet sheet.png                        # an overview image: one type per row, copies and captures
    python -m synth --scenes DIR --number 20000 --documents DIR2... --backgrounds DIR3... --first-type 0
                                                             # documents somewhere in photos, and DIR/corners.json (COCO)

All images of a type have different content: names, numbers, portraits. References and copies are clean; a capture is a
synthetic photo. OUT/train and an evaluation set never have a type in common: the types of an evaluation set have the
numbers from 1,000,000 on (--first-type).
"""

from inference.cli import Parser, run_cli
from inference.errors import UserError
from synth import NEVER_TRAINED, contact_sheet, write_captures, write_eval, write_train
from synth.scenes import Sources, files_below, write_scenes


def _arguments(argv):
    parser = Parser(prog="python -m synth", description=__doc__)
    parser.add_argument("both", nargs="?", metavar="OUT", help="folder for OUT/train and OUT/eval")
    parser.add_argument("--out", metavar="DIR", help="folder for one evaluation set")
    parser.add_argument("--types", type=int, default=100, metavar="N", help="document types in DIR")
    parser.add_argument("--captures-of", "--photos-of", metavar="DIR2", help="the images below DIR2 are the references "
                                                                             "(default: synthetic documents)")
    parser.add_argument("--severity", type=float, default=1.0, metavar="S", help="for --captures-of: from 0, nearly perfect "
                                                                                 "captures, to 4; 2 is poor")
    parser.add_argument("--copies", type=int, metavar="K", help="images per type: in DIR a clean reference and K-1 captures "
                                                                "(default: 5), in OUT/train K clean copies (default: 8)")
    parser.add_argument("--first-type", type=int, default=NEVER_TRAINED, metavar="I",
                        help="first type of an evaluation set, or of scenes")
    parser.add_argument("--train-types", type=int, default=400, metavar="N", help="document types in OUT/train, from 0 on")
    parser.add_argument("--train-captures", type=int, default=0, metavar="K", help="captures per type in OUT/train")
    parser.add_argument("--eval-types", type=int, default=60, metavar="M", help="document types in OUT/eval")
    parser.add_argument("--captures", type=int, default=4, metavar="K", help="captures per type in OUT/eval")
    parser.add_argument("--look-alikes", action="store_true", help="evaluation sets have types that differ from another "
                                                                   "in color, layout, name or art alone, too")
    parser.add_argument("--scenes", metavar="DIR", help="folder for scenes, to train and evaluate a finder of documents")
    parser.add_argument("--number", type=int, default=2000, metavar="N", help="scenes in DIR")
    parser.add_argument("--documents", nargs="+", default=[], metavar="DIR2", help="for --scenes: images below these "
                                                                                   "folders are documents too")
    parser.add_argument("--backgrounds", nargs="+", default=[], metavar="DIR3", help="for --scenes: photos below these "
                                                                                     "folders are backgrounds")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--sheet", metavar="FILE", help="write an overview image (.jpg or .png)")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers {args.workers}: give at least 1")
    if not (args.both or args.out or args.sheet or args.scenes):
        parser.error("give a folder to write to, --out DIR, OUT or --scenes DIR, or --sheet FILE")
    if (args.documents or args.backgrounds) and not args.scenes:
        parser.error("--documents, --backgrounds: need --scenes DIR, the folder to write to")
    if args.captures_of and not args.out:
        parser.error("--captures-of DIR2 needs --out DIR, the folder to write to")
    if args.both and args.train_types > args.first_type:
        parser.error(f"--train-types {args.train_types}: these would include types of the evaluation set, which begins at "
                     f"{args.first_type}; give a larger --first-type")
    if args.out and args.copies is not None and args.copies < 2:
        parser.error(f"--copies {args.copies}: an evaluation set needs a reference and at least one capture, so at least 2")
    return args


def main(argv=None):
    args = _arguments(argv)
    try:
        if args.sheet:
            contact_sheet(args.sheet, args.seed)
        if args.scenes:
            sources = Sources(files_below(args.documents), files_below(args.backgrounds), args.first_type)
            count = write_scenes(args.scenes, args.number, args.seed, sources, args.workers)
            print(f"{args.scenes}: {count} scenes")
        captures = (args.copies or 5) - 1  # beside the reference of each type
        if args.captures_of:
            count = write_captures(args.captures_of, args.out, captures, args.seed, args.severity, args.workers)
            print(f"{args.out}: {count} images")
        elif args.out:
            count = write_eval(args.out, args.types, captures, args.seed, args.first_type, args.workers, args.look_alikes)
            print(f"{args.out}: {count} images of {args.types} types")
        if args.both:
            copies = 8 if args.copies is None else args.copies
            train = write_train(f"{args.both}/train", args.train_types, copies, args.seed, args.train_captures, args.workers)
            test = write_eval(f"{args.both}/eval", args.eval_types, args.captures, args.seed, args.first_type,
                              args.workers, args.look_alikes)
            print(f"{args.both}/train: {train} images of {args.train_types} types; "
                  f"{args.both}/eval: {test} images of {args.eval_types} other types")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


if __name__ == "__main__":
    run_cli(main)
