"""Register images of a type, a new or a known one.

    docmetric add types passport.jpg --type passport          # an image, or several of the same type
    docmetric add types scans/                                # scans/passport/*.jpg, scans/cheque.jpg: each folder is a type
    docmetric add types wrong.jpg --unknown                   # what looks most like this image is rejected
    docmetric add types photo.jpg --type passport --quad 310,120,1480,260,1350,1010,220,890
    docmetric add http://localhost:8080 passport.jpg --type passport

An image that is blurred, too small, nearly the same as another reference, or like a reference of another type is refused,
with the reason; --force registers it all the same. The others are registered; the exit status is then 2.

Without --type a folder is registered as it is, as one change (through a server: one for each image). Where images cannot be
used, each is named and nothing is registered; --skip registers the others. Of a PDF file the first page is taken.
"""
import os
import sys

from ..errors import UserError, plural, printable
from ..image import ImageError, decode_reduced, map_ahead, type_label
from ..registry.errors import Refused
from . import author, images_below, images_of, is_address, opened, parser, progress, tell, tell_each


def main(arguments=None) -> int:
    made = parser("add", __doc__)
    made.add_argument("images", nargs="+", metavar="IMAGE", help="image, or a folder of images")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--type", metavar="LABEL", help="type that the images show (default: the folder of each image)")
    what.add_argument("--unknown", action="store_true", help="register known unknowns: what is nearest to one is rejected")
    made.add_argument("--force", action="store_true", help="register what would be refused")
    made.add_argument("--skip", action="store_true", help="without --type: register the others where images cannot be used")
    made.add_argument("--quad", metavar="X0,Y0,...", help="the corners of the document, clockwise from its own top left, in "
                                                          "pixels of the upright image (default: they are found)")
    made.add_argument("--orientation", type=int, default=0, choices=(0, 90, 180, 270),
                      help="degrees by which the document is turned clockwise in the image")
    args = made.parse_args(arguments)
    quad = args.quad and corners(args.quad)

    if args.type is None and not args.unknown:
        if args.quad or args.orientation:
            made.error("--quad and --orientation: need --type or --unknown, and an image")
        loose = next((path for path in args.images if not os.path.isdir(path)), None)
        if loose is not None:
            made.error(f"{loose}: no folder; say what it shows with --type LABEL")
        items = [item for folder in args.images for item in in_folder(folder)]
        with opened(args) as registry:
            results = add_folder(args, registry, items, args.skip)
        return tell(args, results, [summary(results)]) or status_of(results)

    images = images_of(args.images)
    if quad and len(images) > 1:
        made.error(f"--quad: holds for one image, not for {len(images)}")
    more = dict(kind="unknown" if args.unknown else "type", quad=quad, orientation=args.orientation, force=args.force)
    items = [(image, args.type, dict(source=source_of(image), **more)) for image in images]
    with opened(args) as registry:
        results = tell_each(args, one_by_one(args, registry, items), lambda result: (
            f"{result['image']}: registered as {result['label'] or 'a known unknown'} (reference {result['reference']}, "
            f"event {result['event']})"))
    return status_of(results)


def one_by_one(args, registry, items):
    """Yields what `Registry.add` answers for each (image, label, options), and its `image` and `error`, None where it was
    registered. An image that is refused, or cannot be used, does not stop the others."""
    for image, label, options in items:
        try:
            yield dict(image=image, error=None) | registry.add(image, label, **options, **author(args))
        except Refused as error:
            reasons = "; ".join(finding.message for finding in error.findings)
            yield failed(args, image, f"{reasons} (--force registers it all the same)", error.details["findings"])
        except ImageError as error:
            yield failed(args, image, str(error))


def failed(args, image: str, reason: str, findings=()) -> dict:
    """The result of an image that was not registered; told at once."""
    if not args.json:
        print(printable(f"error: {image}: {reason}"), file=sys.stderr)
    return dict(image=image, error=reason, findings=list(findings))


def status_of(results) -> int:
    return 2 if any(result["error"] for result in results) else 0


# ---- folders ----

def in_folder(folder: str) -> list[tuple[str, str, dict]]:
    """What `Registry.add_many` takes: (path, label, source) of each image below a folder. Raises UserError for none."""
    return [(os.path.join(folder, file), type_label(file), {"source": source_of(file)}) for file in images_below(folder)]


def add_folder(args, registry, items, skip: bool = False) -> list[dict]:
    """Register what `in_folder` gave, without the gate: whoever has a folder has chosen. Results as of `one_by_one`. skip:
    whether to register the others where some cannot be used; otherwise that is a UserError, and nothing is registered."""
    show = progress("registering", len(items))
    if is_address(args.store):
        results = []
        for result in one_by_one(args, registry, [(path, label, dict(more, force=True)) for path, label, more in items]):
            results.append(result)
            show(len(results))
        return results
    unusable = find_unusable(args, items) if skip else []
    names = {one["image"] for one in unusable}
    usable = [item for item in items if item[0] not in names]
    try:
        added = registry.add_many(usable, progress=show, **author(args))
    except ImageError:
        unusable = find_unusable(args, items)  # not only the first
        if not unusable:
            raise
        raise UserError(f"nothing was registered: {len(unusable):,} of {plural(len(items), 'image')} cannot be used; take "
                        f"them away, or let docmetric add {args.store} FOLDER --skip register the others") from None
    return unusable + [dict(image=item[0], error=None) | result for item, result in zip(usable, added)]


def find_unusable(args, items) -> list[dict]:
    """The results of the images that cannot be decoded."""
    from ..registry.inputs import picture_of

    def reason(item):
        try:
            decode_reduced(picture_of(item[0]), 1)
        except ImageError as error:
            return str(error)

    return [failed(args, item[0], why) for item, why in zip(items, map_ahead(reason, items)) if why]


def summary(results) -> str:
    done = [result for result in results if not result["error"]]
    types = {result["type"] for result in done}
    new = {result["type"] for result in done if result["new_type"]}
    events = {result["event"] for result in done}
    event = f" (event {events.pop()})" if len(events) == 1 else ""
    return f"registered {plural(len(done), 'image')} of {plural(len(types), 'type')}, {len(new):,} of them new{event}"


def source_of(path: str) -> str:
    """The file's name, as a reference remembers it."""
    return printable(os.path.basename(path))[-500:]


def corners(text: str) -> list[list[float]]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 8:
        raise UserError(f"--quad {text}: must be eight numbers, x0,y0,x1,y1,x2,y2,x3,y3")
    return [numbers[place:place + 2] for place in range(0, 8, 2)]
