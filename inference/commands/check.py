"""Look for damage in a store: the database, the vectors, the images.

    docmetric check types
    docmetric check types --rebuild      # makes vectors again from the images; saves what it can of a broken database

Exit status 2 when something is damaged and was not repaired.
"""
import sys

from ..errors import plural, printable
from . import local_store, parser, steps, tell


def main(arguments=None) -> int:
    made = parser("check", __doc__, server=False, collection=False)
    made.add_argument("--rebuild", action="store_true", help="repair what can be repaired; stop all other uses of the store "
                                                             "before")
    args = made.parse_args(arguments)
    from ..registry.check import check
    report = check(local_store(args.store), args.rebuild, steps())
    problems = [] if args.json else report["problems"]
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    lines = [f"repaired: {line}" for line in report["repaired"]]
    if report["ok"]:
        lines.append(f"{args.store}: whole; {plural(report['types'], 'type')}, {plural(report['references'], 'reference')}, "
                     f"{plural(report['pictures'], 'image')}")
    tell(args, report, lines)
    return 0 if report["ok"] else 2
