"""Copy a store while it is in use: the database as of one moment, the images, the models. The copy is a store itself.

    docmetric backup types backups/2026-11-22
    docmetric restore backups/2026-11-22 types-again

Decisions and kept images of unknowns are not in it. Images that the store, or another backup beside FOLDER, has on the
same disk take no further room: copy the folder to another disk, too.
"""
import os

from ..errors import UserError, plural
from . import local_store, parser, steps, tell


def main(arguments=None) -> int:
    made = parser("backup", __doc__, server=False, collection=False)
    made.add_argument("folder", metavar="FOLDER", help="new folder to write")
    args = made.parse_args(arguments)
    store = os.path.realpath(local_store(args.store))
    if os.path.commonpath([store, os.path.realpath(args.folder)]) == store:
        raise UserError(f"{args.folder}: lies in the store itself; give a folder beside it, or better on another disk")
    from ..registry.copies import backup
    result = backup(args.store, args.folder, steps())
    return tell(args, result, [f"{args.folder}: written and verified, {plural(result['pictures'], 'image')}, "
                               f"{result['linked']:,} of them shared"])
