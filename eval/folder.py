"""The images of an evaluation, DIR/<type>/*.jpg: their files, types and pixels, and which of them are references."""
from dataclasses import dataclass
from pathlib import Path

from inference.errors import UserError
from inference.image import EXTENSIONS, ImageError, list_images, load_image, map_ahead, type_label


@dataclass(frozen=True)
class Item:
    """One image file."""
    path: Path
    name: str           # path below the root, joined by '/'
    type: str           # joined by '/' too
    is_reference: bool  # a gallery image


def find_images(folder):
    """All image files below `folder`, sorted by name, as a list of `Item`.

    The type is the path of the file's folder below the root. A file directly in the root is a type of its own, named by
    its stem. Raises UserError when the folder is missing, cannot be read, or has no images.
    """
    items = [Item(Path(folder) / name, name, type_label(name), Path(name).name.lower().startswith("reference"))
             for name in list_images(folder)]
    if not items:
        raise UserError(f"{folder}: no images found; put them into {folder}/<type>/*.jpg "
                        f"(or {', '.join(sorted(e[1:] for e in EXTENSIONS))})")
    return items


def read_images(items, prepare, for_size=None, ahead=64, load=None):
    """Decode each file once, in a pool of threads; yield (item, prepare(image), None) in the order of `items`.

    prepare: uint8 BGR [H, W, 3] -> anything; runs in the pool. for_size: see `load_image`. load: an Item -> what `prepare`
    takes, instead of the decoded image. A file that cannot be used yields (item, None, reason). At most `ahead` results are
    held in memory, see `map_ahead`.
    """
    def work(item):
        try:
            return item, prepare(load(item) if load else load_image(item.path, for_size)), None
        except ImageError as error:
            return item, None, str(error)

    return map_ahead(work, items, ahead)
