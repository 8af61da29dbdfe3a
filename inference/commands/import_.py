"""Register what a file of `docmetric export` holds, or a folder with a folder of images for each type. It is one change.

    docmetric import types others.zip
    docmetric import types scans/
    docmetric import types others.zip --on-conflict merge

A type that is there already stays as it is (skip), or gets the new references too (merge).
"""
from . import author, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("import", __doc__)
    made.add_argument("source", metavar="FILE.zip|FOLDER", help="what to register")
    made.add_argument("--on-conflict", default="skip", choices=("skip", "merge"),
                      help="what becomes of types that are there already")
    args = made.parse_args(arguments)
    with opened(args) as registry:
        result = registry.import_(args.source, args.on_conflict, **author(args))
    return tell(args, result, [", ".join(f"{name} {value}" for name, value in result.items()
                                         if isinstance(value, (int, str)))])
