"""Undo a change: the last one, or the one of this number. An undo is a change too and can be undone by its number.

    docmetric undo types
    docmetric ls types --events       # the numbers
    docmetric undo types 17
"""
from . import author, number, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("undo", __doc__)
    made.add_argument("event", nargs="?", type=number, metavar="EVENT", help="number of the change (default: the last one)")
    args = made.parse_args(arguments)
    with opened(args) as registry:
        result = registry.undo(args.event, **author(args))
    return tell(args, result, [f"undone: event {result['undone']} (event {result['event']})"])
