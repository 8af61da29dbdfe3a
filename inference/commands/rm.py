"""Remove a type with all its references, or single references. `docmetric undo` brings them back until `docmetric purge`.

    docmetric rm types passport
    docmetric rm types --reference 12 13
    docmetric rm http://localhost:8080 passport
"""
from ..errors import plural
from . import author, number, opened, parser, tell_each


def main(arguments=None) -> int:
    made = parser("rm", __doc__)
    made.add_argument("types", nargs="*", metavar="LABEL", help="type to remove")
    made.add_argument("--reference", nargs="+", type=number, default=[], metavar="ID", help="references to remove")
    args = made.parse_args(arguments)
    if bool(args.types) == bool(args.reference):
        made.error("rm: name the types, or --reference ID, to remove")
    with opened(args) as registry:
        if args.types:  # a name that is not there is told before anything is removed
            types = [registry.type(label)["type"] for label in args.types]
            results = (registry.remove(type=one, **author(args)) for one in types)
        else:
            results = (registry.remove(reference=one, **author(args)) for one in args.reference)
        tell_each(args, results, lambda result: (
            f"removed {result['label'] or 'a known unknown'}: {plural(len(result['references']), 'reference')} "
            f"(event {result['event']})"))
    return 0
