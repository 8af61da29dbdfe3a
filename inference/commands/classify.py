"""Classify images: which registered type does each show, if any?

    docmetric classify types photo.jpg                  # prints a line for each image
    docmetric classify types photos/ --top-k 3          # all images below a folder, with the best three types
    docmetric classify types photos/ --json
    docmetric classify http://localhost:8080 photo.jpg

Nothing of the images is kept. Exit status 2 when not one of them can be used.
"""
import json

from ..errors import printable
from . import count, described, images_of, opened, parser


def main(arguments=None) -> int:
    made = parser("classify", __doc__)
    made.add_argument("images", nargs="+", metavar="IMAGE", help="image, or a folder of images")
    made.add_argument("--top-k", type=count, default=1, metavar="K", help="number of types to list")
    args = made.parse_args(arguments)
    results, usable = [], False
    with opened(args) as registry:
        # The second type may be the reason for no label.
        for result in registry.stream(images_of(args.images), args.top_k if args.json else max(args.top_k, 2)):
            usable |= result["error"] is None
            if args.json:
                results.append(result)
            else:
                print(printable(described(result, args.top_k)))
    if args.json:
        print(json.dumps(results, indent=2))
    return 0 if usable else 2
