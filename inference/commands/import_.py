"""Register what a file of `docmetric export` holds, or a folder with a folder of images for each type. It is one change.

    docmetric import types others.zip
    docmetric import types scans/
    docmetric import types others.zip --on-conflict merge

A type that is there already stays as it is (skip), or gets the new references too (merge).
"""
import os

from ..errors import UserError, plural
from . import author, is_address, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("import", __doc__)
    made.add_argument("source", metavar="FILE.zip|FOLDER", help="what to register")
    made.add_argument("--on-conflict", default="skip", choices=("skip", "merge"),
                      help="what becomes of types that are there already")
    args = made.parse_args(arguments)
    if is_address(args.store) and os.path.isdir(args.source):
        raise UserError(f"{args.source}: a folder; to register it through a server: docmetric add {args.store} "
                        f"{args.source}")
    with opened(args) as registry:
        result = registry.import_(args.source, args.on_conflict, **author(args))
    event = f" (event {result['event']})" if result["event"] else ""
    references, types = plural(result["references"], "reference"), plural(result["types"], "new type")
    return tell(args, result, [f"registered {references} and {types}, skipped {result['skipped']:,}{event}"])
