"""Make a store from a backup, which is checked first. A store that is there already is never overwritten.

    docmetric restore backups/2026-11-22 types
"""
from . import CommandLine, local_store, steps, tell


def main(arguments=None) -> int:
    made = CommandLine(prog="docmetric restore", description=__doc__)
    made.add_argument("backup", metavar="FOLDER", help="what docmetric backup wrote")
    made.add_argument("store", metavar="STORE", help="new folder of the store")
    made.add_argument("--json", action="store_true", help="print one JSON value and nothing else")
    args = made.parse_args(arguments)
    from ..registry.copies import restore
    result = restore(local_store(args.backup), local_store(args.store), steps())
    return tell(args, result, [f"{args.store}: restored and verified"])
