"""Which folder is a store. The standard library only: who has folders of images alone needs no more."""
import os

from ..errors import UserError, printable

DATABASE = "registry.sqlite"


def is_store(path) -> bool:
    """Raises UserError for a folder into which the user may not look."""
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path) and not os.access(path, os.X_OK):
        raise UserError(f"{printable(path)}: the folder may not be read by this user; run the command as its owner")
    return isinstance(path, (str, os.PathLike)) and os.path.isfile(os.path.join(path, DATABASE))
