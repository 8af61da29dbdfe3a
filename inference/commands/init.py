"""Make a store, or one more collection in a store. With FOLDER, its images are registered, FOLDER/TYPE/*.jpg.

    docmetric init types                              # a folder of this name, with the shipped model
    docmetric init types scans/                       # registers scans/passport/*.jpg, scans/cheque.jpg, ...
    docmetric init types --orientation any            # documents may lie any of four ways up
    docmetric init types --collection parcels --model M.onnx --find never

STORE must be a new folder, an empty one, or a store. A collection is a registry by itself, with its own types, model and
threshold.
"""
import os

from ..errors import UserError, plural
from ..registry.files import is_store
from . import local_store, parser, tell


def main(arguments=None) -> int:
    made = parser("init", __doc__, server=False)
    made.add_argument("folder", nargs="?", metavar="FOLDER", help="images to register: a folder for each type, or one image")
    made.add_argument("--model", metavar="M.onnx", help="model that onnx_export.py wrote (default: the shipped one)")
    made.add_argument("--find", default="auto", choices=("auto", "always", "never"),
                      help="never: images are compared as they are; always: the document that is found in them; auto: "
                           "both, and the better score decides")
    made.add_argument("--orientation", default="upright", choices=("upright", "any"),
                      help="any: documents may lie any of four ways up, and the answer says which")
    args = made.parse_args(arguments)
    check_new(local_store(args.store))

    from ..registry import Store
    from ..registry.errors import Conflict
    from .add import add_folder, in_folder
    items = in_folder(args.folder) if args.folder else []  # a mistake in the folder leaves no store behind
    with Store(args.store, create=True) as store:
        try:
            registry = store.create(args.collection, args.model, args.find, args.orientation)
        except Conflict:
            raise UserError(f"{args.store}: collection {args.collection} is there already; docmetric add {args.store} "
                            f"{args.folder or 'FOLDER'} registers images in it, --collection NAME makes another") from None
        if items:
            add_folder(args, registry, items)
        made = next(one for one in store.collections() if one["name"] == args.collection)
        return tell(args, made, [
            f"{args.store}: collection {args.collection} with {plural(made['types'], 'type')}, "
            f"{plural(made['references'], 'reference')}; next: docmetric serve {args.store}"])


def check_new(path: str) -> None:
    """Raises UserError for a folder with other things in it, most likely the images that are to be registered."""
    if is_store(path) or not os.path.isdir(path):
        return
    try:
        held = [name for name in os.listdir(path) if not name.startswith(".") and name != "lost+found"]  # of a volume
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if held and not {"models", "blobs", "registry.sqlite-wal"} & set(held):  # of those, opening it says more
        raise UserError(f"{path}: no store, and other files are in it; docmetric init STORE {path} registers its images "
                        "in a new folder STORE")
