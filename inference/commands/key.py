"""Make, list and revoke the keys that open a server.

    docmetric key ls types                                         # the keys that there are
    docmetric key add types scanner --scopes classify              # prints the key, the only time that it can be read
    docmetric key add types office --scopes read write --collections default --expires 365d
    docmetric key rm types 2                                       # number 2 opens nothing from now on

Scopes: classify (classify, search), read (look at all of a collection), write (register, remove, undo, review), admin
(collections, keys, models, thresholds, export, import, and all the others).
"""
import argparse
import contextlib
import time

from ..registry.keys import SCOPES, Keys
from ..server.settings import duration
from . import day, is_address, number, opened, opened_store, parser, tell


def main(arguments=None) -> int:
    made = parser("key", __doc__, ("ls", "add", "rm"), collection=False)
    made.add_argument("key", nargs="?", metavar="NAME", help="add: a name, beside what the key changes; rm: its "
                                                             "number")
    made.add_argument("--scopes", nargs="+", choices=SCOPES, default=["classify", "read", "write"], metavar="SCOPE",
                      help="what it opens (default: classify read write)")
    made.add_argument("--collections", nargs="+", metavar="COLLECTION", help="the collections that it opens (default: all)")
    made.add_argument("--expires", type=duration, metavar="TIME", help="it opens nothing after this time, such as 90d")
    args = made.parse_args(arguments)
    if (args.action == "ls") != (args.key is None):
        made.error(f"key {args.action}: " + ("takes no name" if args.key else "give its name" if args.action == "add" else
                                             "give its number, see docmetric key ls STORE"))
    with opened_keys(args) as keys:
        if args.action == "add":
            scopes = SCOPES if "admin" in args.scopes else args.scopes  # whoever can make keys can make any
            expires = None if args.expires is None else time.time() + args.expires
            key = keys.add(args.key, scopes, args.collections, expires)
            return tell(args, key, [key["key"]])
        if args.action == "rm":
            try:
                found = [keys.revoke(number(args.key))]
            except argparse.ArgumentTypeError:
                made.error(f"key rm {args.key}: give its number, see docmetric key ls STORE")
        else:
            found = keys.list()
    return tell(args, found, [line(key) for key in found] or ["no keys: docmetric key add STORE NAME makes one"])


@contextlib.contextmanager
def opened_keys(args):
    if is_address(args.store):
        with opened(args) as client:
            yield client.keys
    else:
        with opened_store(args.store) as store, Keys(store) as keys:
            yield keys


def line(key: dict) -> str:
    state = f"revoked {day(key['revoked'])}" if key["revoked"] else (
        f"expires {day(key['expires'])}" if key["expires"] else "does not expire")
    return (f"{key['id']:4d}  {key['name']}  {' '.join(key['scopes'])}  "
            f"{', '.join(key['collections']) if key['collections'] else 'all collections'}  {state}")
