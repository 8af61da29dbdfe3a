"""Photos as a camera took them, with the documents' corners, as a folder that can be evaluated.

The photos lie in one folder, with a corners.csv: a line a photo, `file,type,x0,y0,...,x3,y3` and any other columns. The
clean references of the types lie in another folder, DIR/<type>/reference.jpg.
"""
import csv
from pathlib import Path

from inference.errors import UserError
from inference.image import list_images

CORNERS = "corners.csv"


def link_scenes(folder, references, out) -> Path:
    """Lay symbolic links to the photos of `folder` and to their types' references into `out`/<type>/. Returns `out`.

    The names of the photos stay; of a type's folder in `references`, all images named reference* are taken. Raises UserError
    when the list of the photos cannot be read, names a photo twice, or a type has no reference.
    """
    out, photos, gallery = Path(out), _photos(Path(folder, CORNERS)), {}
    for file in map(Path, list_images(references)):
        if file.name.lower().startswith("reference"):
            gallery.setdefault(file.parent.as_posix(), []).append(file)
    for file, kind in photos.items():
        if kind not in gallery:
            raise UserError(f"{references}: no {kind}/reference.jpg, the reference of {file}; give the folder that has it")
        (out / kind).mkdir(parents=True, exist_ok=True)
        (out / kind / file).symlink_to(Path(folder, file).resolve())
    for kind in set(photos.values()):
        for file in gallery[kind]:
            (out / file).symlink_to(Path(references, file).resolve())
    return out


def _photos(path) -> dict[str, str]:
    """{file: type}."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [(line["file"], line["type"]) for line in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a list of photos ({error}); its first line names the columns, file and "
                        "type among them") from None
    photos = dict(lines)
    if len(photos) < len(lines) or any(Path(file).name != file for file in photos):
        raise UserError(f"{path}: a photo is named twice or lies in a folder below; name each photo beside the list once")
    return photos
