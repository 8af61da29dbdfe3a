"""Which folder is a store. The standard library only: who has folders of images alone needs no more."""
import os

DATABASE = "registry.sqlite"


def is_store(path) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.path.isfile(os.path.join(path, DATABASE))
