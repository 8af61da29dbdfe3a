"""See the threshold, the lowest score at which a label is given; what the collection has seen says about it; set it.

    docmetric calibrate types                         # the threshold in use, and the one that the collection suggests
    docmetric calibrate types --apply                 # sets that one
    docmetric calibrate types --threshold 0.8
    docmetric calibrate types --fpr 1e-4              # from the model's own table of false positive rates of pairs
    docmetric calibrate types --threshold 0.9 --type cheque      # for one type
    docmetric calibrate types --automatic             # from the table and the number of types, as in the beginning

Rates come with the ends of their 95 % confidence interval. Feedback, known unknowns and several references of a type make
them sharper.
"""
from . import author, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("calibrate", __doc__)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="set the suggested threshold")
    what.add_argument("--threshold", type=float, metavar="T", help="set this one, 0..1")
    what.add_argument("--fpr", type=float, metavar="F", help="set that of this false positive rate")
    what.add_argument("--automatic", action="store_true", help="take back what was set")
    made.add_argument("--type", metavar="LABEL", help="for this type alone")
    args = made.parse_args(arguments)
    sets = args.threshold is not None or args.fpr is not None or args.automatic
    if args.type is not None and not sets:
        made.error("--type: needs --threshold, --fpr or --automatic")
    with opened(args) as registry:
        if sets:
            result = registry.set_threshold(args.threshold, fpr=args.fpr, label=args.type, **author(args))
            return tell(args, result, [set_line(result)])
        found = registry.suggest_threshold()
        if args.apply:
            result = registry.set_threshold("suggestion", **author(args))
            return tell(args, result, [set_line(result), found["message"]])
    now = found["now"]
    return tell(args, found, [
        f"threshold in use {now['threshold']:.4f}, suggested {found['threshold']:.4f}: {found['message']}",
        *(f"{what}: {rate(now[name])} in use, {rate(found[name])} suggested" for name, what in (
            ("unknown_labeled", "unknown images that get a label"), ("right_rejected", "right labels that are rejected"))),
        *(f"{one['label']}: looks like another type, would have {one['threshold']:.4f}" for one in found["types"][:10]),
        # A table's threshold follows the number of types only as long as none is set.
        *([] if found["source"] == "model" else [f"docmetric calibrate {args.store} --apply sets it"])])


def set_line(result: dict) -> str:
    value = "automatic" if result["threshold"] is None else f"{result['threshold']:.4f}"
    return f"threshold {value} (event {result['event']})"


def rate(found: dict | None) -> str:
    if found is None:
        return "not known"
    return f"{found['rate']:.1%} ({found['low']:.1%} to {found['high']:.1%} of {found['of']:,})"
