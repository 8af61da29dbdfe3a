"""Copy a store while it is in use: the database as of one moment, the pictures, the models. The copy is a store itself.

    docmetric backup types backups/2026-11-22
    docmetric restore backups/2026-11-22 types-again

Decisions and kept pictures of unknowns are not in it. Pictures that another backup beside it holds take no further room on
the disk.
"""
from . import opened_store, parser, tell


def main(arguments=None) -> int:
    made = parser("backup", __doc__, server=False, collection=False)
    made.add_argument("folder", metavar="FOLDER", help="new folder to write")
    args = made.parse_args(arguments)
    with opened_store(args.store) as store:
        from ..registry.check import backup
        result = backup(store, args.folder)
    return tell(args, result, [f"{args.folder}: written and verified"])
