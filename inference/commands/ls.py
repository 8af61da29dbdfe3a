"""List the types of a collection; or its references, its events, or the collections of the store.

    docmetric ls types
    docmetric ls types passport                 # only types whose label contains this
    docmetric ls types passport --references    # the references of this type; without a label, all of them
    docmetric ls types --events                 # who changed what, the last change first; docmetric undo takes its number
    docmetric ls types --collections
"""
from ..errors import plural
from . import day, every, is_address, number, opened, opened_store, parser, tell, word


def main(arguments=None) -> int:
    made = parser("ls", __doc__)
    made.add_argument("text", nargs="?", type=word, metavar="TEXT", help="part of a label; with --references a label")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--references", action="store_true", help="list references")
    what.add_argument("--events", action="store_true", help="list changes")
    what.add_argument("--collections", action="store_true", help="list collections")
    made.add_argument("--removed", action="store_true", help="with --references: those that were removed")
    made.add_argument("--limit", type=number, metavar="N", help="at most so many (default: all; of --events the last 20)")
    args = made.parse_args(arguments)
    if args.text is not None and (args.events or args.collections):
        made.error("ls: TEXT is of use for types and references alone")
    if args.collections and not is_address(args.store):
        with opened_store(args.store) as store:
            found = store.collections()
        return tell(args, found, map(collection, found))
    with opened(args) as registry:
        if args.references:
            found = list(every(registry.references, "reference", args.limit, label=args.text, removed=args.removed))
            lines = [f"{one['reference']:6d}  {one['label'] or '(known unknown)'}  {day(one['created'])}"
                     + "".join(f"  {one[name]}" for name in ("source", "who") if one[name]) for one in found]
        elif args.events:
            found = list(every(registry.events, "event", args.limit or 20, newest=True))
            lines = [f"{one['event']:6d}  {day(one['when'])}  {one['who'] or '-'}  {one['text']}"
                     + (f" (undone by {one['undone_by']})" if one["undone_by"] else "") for one in found]
        elif args.collections:
            found = registry.collections()
            lines = map(collection, found)
        else:
            found = list(every(registry.types, "type", args.limit, text=args.text))
            lines = [f"{one['label']}: {plural(one['references'], 'reference')}, threshold {one['threshold']:.4f}"
                     + (f", looks like {', '.join(other['label'] for other in one['look_alikes'][:3])}"
                        if one["look_alikes"] else "") for one in found]
    return tell(args, found, list(lines) or ["nothing is registered yet" if not args.text else "none"])


def collection(one: dict) -> str:
    return (f"{one['name']}: {plural(one['types'], 'type')}, {plural(one['references'], 'reference')}, find {one['find']}, "
            f"orientation {one['orientation']}, model {one['model'][:16]}")
