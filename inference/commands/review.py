"""Name what was not recognized. A server that was started with --keep-unknown keeps the images of rejected documents for a
while; here they are grouped by what looks alike.

    docmetric review types                                  # the groups: "14 look alike", with the numbers of the images
    docmetric review types --save images/                   # writes them, images/GROUP/NUMBER.jpg, to look at
    docmetric review types --name parcel 31 32 40           # registers the most typical one as parcel
    docmetric review types --name parcel 31 --dry-run       # says how many others that would explain
    docmetric review types --unknown 33                     # a known unknown: what is nearest to it is rejected
    docmetric review types --drop 34 35                     # deletes these images for good

All images that a new reference explains leave the list with it.
"""
from pathlib import Path

from ..errors import UserError, plural
from ..files import replacing
from ..registry.formats import kind_of
from . import author, count, number, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("review", __doc__)
    made.add_argument("pictures", nargs="*", type=number, metavar="NUMBER", help="images to name or to delete")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--name", metavar="LABEL", help="register them as this type, a new or a known one")
    what.add_argument("--unknown", action="store_true", help="register them as known unknowns")
    what.add_argument("--drop", action="store_true", help="delete them")
    what.add_argument("--save", metavar="FOLDER", help="write the images of all groups there")
    made.add_argument("--references", type=count, default=1, metavar="N", help="register so many, the most typical ones")
    made.add_argument("--dry-run", action="store_true", help="say only what would be explained")
    made.add_argument("--force", action="store_true", help="register what would be refused")
    args = made.parse_args(arguments)
    acts = args.name is not None or args.unknown or args.drop
    if acts != bool(args.pictures):
        made.error("review: --name, --unknown and --drop need the numbers of images" if acts else
                   "review: say what becomes of the images: --name LABEL, --unknown or --drop")
    with opened(args) as registry:
        if args.drop:
            for one in args.pictures:
                registry.unknowns.remove(one)
            return tell(args, args.pictures, [f"deleted {plural(len(args.pictures), 'image')}"])
        if acts:
            result = registry.unknowns.resolve(args.pictures, args.name, "unknown" if args.unknown else "type",
                                               args.references, dry_run=args.dry_run, force=args.force, **author(args))
            verb = "would register" if args.dry_run else "registered"
            return tell(args, result, [
                f"{verb} {plural(len(result['pictures']), 'image')} as {args.name or 'known unknowns'}; "
                f"{plural(len(result['resolved']), 'image')} explained, {len(result['left'])} of the given ones left"])
        groups = registry.unknowns.clusters()
        if args.save:
            save(registry, groups, Path(args.save))
    return tell(args, groups, [line(place, group) for place, group in enumerate(groups, 1)]
                or ["nothing to review; docmetric serve --keep-unknown 30d keeps what is rejected"])


def line(place: int, group: dict) -> str:
    near = group["suggestion"]
    text = f"group {place}: {group['size']} look alike" if group["size"] > 1 else f"group {place}: one alone"
    return (text + (f", nearest type {near['label']} ({near['score']:.4f})" if near and near["label"] else "")
            + f": {' '.join(map(str, group['ids']))}")


def save(registry, groups, folder: Path) -> None:
    for place, group in enumerate(groups, 1):
        try:
            (folder / str(place)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); give another folder") from None
        for unknown in group["ids"]:
            data = registry.unknowns.picture(unknown)
            suffix = {"JPEG": "jpg"}.get(kind := kind_of(data), (kind or "bin").lower())
            with replacing(folder / str(place) / f"{unknown}.{suffix}") as partial:
                partial.write_bytes(data)
