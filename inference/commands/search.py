"""Show the registered images that are nearest to an image, best first.

    docmetric search types photo.jpg
    docmetric search types photo.jpg -k 3 --json
"""
from ..image import ImageError
from . import count, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("search", __doc__)
    made.add_argument("image", metavar="IMAGE", help="image to look for")
    made.add_argument("-k", type=count, default=10, metavar="K", help="number of references to list")
    args = made.parse_args(arguments)
    with opened(args) as registry:
        try:
            found = registry.search(args.image, args.k)
        except ImageError as error:
            raise ImageError(f"{args.image}: {error}") from None
    return tell(args, found, [f"{one['score']:.4f}  reference {one['reference']}  {one['label'] or '(known unknown)'}"
                              for one in found] or ["nothing is registered yet"])
