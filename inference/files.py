"""Atomic file writing: a file is complete or absent. The standard library only."""
import contextlib
import os
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def replacing(path):
    """`with replacing(path) as partial:` gives a temporary path beside `path` to write to and to check.

    The temporary file replaces `path` when the block ends without an exception; otherwise `path` stays as it was.
    Raises UserError when the system does not allow the write.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is no file but a device or the like, which would be replaced; give another name")
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); its folder must be writable and have room for a "
                        "second copy") from None
    finally:
        partial.unlink(missing_ok=True)
