"""Make a store, or one more collection in a store. With FOLDER, its images are registered, FOLDER/TYPE/*.jpg.

    docmetric init types                              # a folder of this name, with the shipped model
    docmetric init types scans/                       # registers scans/passport/*.jpg, scans/cheque.jpg, ...
    docmetric init types --orientation any            # documents may lie any of four ways up
    docmetric init types --collection parcels --model M.onnx --find never

A collection is a registry by itself, with its own types, model and threshold.
"""
from . import author, local_store, parser, plural, progress, tell


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

    from ..registry import Store
    from .add import in_folder
    items = in_folder(args.folder) if args.folder else []  # a mistake in the folder leaves no store behind
    with Store(local_store(args.store), create=True) as store:
        registry = store.create(args.collection, args.model, args.find, args.orientation)
        if items:
            registry.add_many(items, progress=progress("registering", len(items)), **author(args))
        made = next(one for one in store.collections() if one["name"] == args.collection)
        return tell(args, made, [
            f"{args.store}: collection {args.collection} with {plural(made['types'], 'type')}, "
            f"{plural(made['references'], 'reference')}; next: docmetric serve {args.store}"])
