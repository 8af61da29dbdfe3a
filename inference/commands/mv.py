"""Rename a type, merge it with another, or move references to another type.

    docmetric mv types passport passport_2024            # a new name
    docmetric mv types pasport passport --merge          # all references of the first become the other's
    docmetric mv types passport_2024 --reference 12 13   # these references are of that type, a new or a known one
"""
from ..errors import plural
from . import author, number, opened, parser, tell, tell_each


def main(arguments=None) -> int:
    made = parser("mv", __doc__)
    made.add_argument("labels", nargs="+", metavar="LABEL", help="the type and its new name; with --reference one type")
    made.add_argument("--merge", action="store_true", help="the second type is there already: it takes all references")
    made.add_argument("--reference", nargs="+", type=number, metavar="ID", help="references to move")
    args = made.parse_args(arguments)
    if len(args.labels) != (1 if args.reference else 2):
        made.error("mv: give the type and its new name, or one type and --reference ID")
    if args.merge and args.reference:
        made.error("--merge: is about types, --reference about single references")
    with opened(args) as registry:
        if args.reference:
            results = (registry.move(one, args.labels[0], **author(args)) for one in args.reference)
            tell_each(args, results, lambda result: (
                f"moved reference {result['reference']} to {result['label']} (event {result['event']})"))
            return 0
        if args.merge:
            result = registry.merge(*args.labels, **author(args))
            moved = plural(len(result["references"]), "reference")
            line = f"merged {args.labels[0]} into {result['label']}: {moved} (event {result['event']})"
        else:
            result = registry.rename(*args.labels, **author(args))
            line = f"renamed {args.labels[0]} to {result['label']} (event {result['event']})"
    return tell(args, [result], [line])
