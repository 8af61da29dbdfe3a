"""Register images of a type, a new or a known one.

    docmetric add types passport.jpg --type passport          # an image, or several of the same type
    docmetric add types scans/                                # scans/passport/*.jpg, scans/cheque.jpg: each folder is a type
    docmetric add types wrong.jpg --unknown                   # what looks most like this picture is rejected
    docmetric add types photo.jpg --type passport --quad 310,120,1480,260,1350,1010,220,890
    docmetric add http://localhost:8080 passport.jpg --type passport

An image that is blurred, too small, nearly the same as another reference, or like a reference of another type is refused,
with the reason; --force registers it all the same. A folder is registered as it is, as one change.
"""
import os
import sys

from ..errors import UserError, printable
from ..image import ImageError, list_images, type_label
from ..registry.errors import Refused
from . import author, images_of, is_address, opened, parser, plural, progress, tell


def main(arguments=None) -> int:
    made = parser("add", __doc__)
    made.add_argument("images", nargs="+", metavar="IMAGE", help="image, or a folder of images")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--type", metavar="LABEL", help="type that the images show (default: the folder of each image)")
    what.add_argument("--unknown", action="store_true", help="register known unknowns: what is nearest to one is rejected")
    made.add_argument("--force", action="store_true", help="register what would be refused")
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
        return add_folder(args, items)

    images, kind = images_of(args.images), {"kind": "unknown"} if args.unknown else {}
    if quad and len(images) > 1:
        made.error(f"--quad: holds for one image, not for {len(images)}")
    show, results = progress("registering", len(images)), []
    with opened(args) as registry:
        for done, image in enumerate(images, 1):
            result = dict(image=image, error=None)
            try:
                result |= registry.add(image, args.type, quad=quad, orientation=args.orientation, force=args.force,
                                       source=source_of(image), **kind, **author(args))
            except (Refused, ImageError) as error:  # the others may be fine
                result |= dict(error=str(error), findings=getattr(error, "details", {}).get("findings", []))
                if not args.json:
                    print(printable(f"error: {image}: {error}"), file=sys.stderr)
            results.append(result)
            show(done)
    tell(args, results, (f"{result['image']}: registered as {result['label'] or 'a known unknown'} (reference "
                         f"{result['reference']}, event {result['event']})" for result in results if not result["error"]))
    return 2 if any(result["error"] for result in results) else 0


def add_folder(args, items) -> int:
    """Without the gate: whoever has a folder has chosen."""
    show = progress("registering", len(items))
    with opened(args) as registry:
        if is_address(args.store):
            results = []
            for image, label, more in items:
                results.append(registry.add(image, label, force=True, **more))
                show(len(results))
        else:
            results = registry.add_many(items, progress=show, **author(args))
    results = [dict(image=str(item[0]), error=None) | result for item, result in zip(items, results)]
    types = {result["type"] for result in results}
    new = {result["type"] for result in results if result["new_type"]}
    event = "" if is_address(args.store) else f" (event {results[-1]['event']})"
    return tell(args, results, [f"registered {plural(len(results), 'image')} of {plural(len(types), 'type')}, {len(new)} of "
                                f"them new{event}"])


def in_folder(folder: str) -> list[tuple[str, str, dict]]:
    """What `Registry.add_many` takes: (path, label, source) of each image below a folder. Raises UserError for none."""
    files = list_images(folder)
    if not files:
        raise UserError(f"{folder}: no image in it; put an image of each type there")
    return [(os.path.join(folder, file), type_label(file), {"source": source_of(file)}) for file in files]


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
