"""DIR/<type>/*.jpg -> what to compare: the files, their types, which are references, and their pixels."""
from dataclasses import dataclass
from pathlib import Path

from inference.errors import UserError
from inference.image import EXTENSIONS, ImageError, list_images, load_image, map_ahead, type_label


@dataclass(frozen=True)
class Item:
    """One file: its path below the root and its type, both '/'-joined, and whether it is a gallery image."""
    path: Path
    name: str
    type: str
    is_reference: bool


def find_images(folder):
    """All image files below `folder`, sorted by name, as a list of `Item`.

    The type is the folder's path below the root; a file directly in the root is its own type, named by its stem.
    Raises UserError when the folder is missing, unreadable or without images.
    """
    items = [Item(Path(folder) / name, name, type_label(name), Path(name).name.lower().startswith("reference"))
             for name in list_images(folder)]
    if not items:
        raise UserError(f"{folder}: no images found; put them in {folder}/<type>/*.jpg "
                        f"(or {', '.join(sorted(e[1:] for e in EXTENSIONS))})")
    return items


def read_images(items, prepare, for_size=None, ahead=64):
    """Decode each file once, in a thread pool; yield (item, prepare(image), None) in the order of `items`.

    prepare: uint8 BGR [H, W, 3] -> anything, run in the pool. for_size: see `load_image`. A file that cannot be used
    yields (item, None, reason). At most `ahead` results wait, see `map_ahead`.
    """
    def work(item):
        try:
            return item, prepare(load_image(item.path, for_size)), None
        except ImageError as error:
            return item, None, str(error)

    return map_ahead(work, items, ahead)
