"""Files that are whole or not there. The standard library only."""
import contextlib
import os
from pathlib import Path

from .errors import UserError


@contextlib.contextmanager
def replacing(path):
    """`with replacing(path) as partial:` a file beside `path` to write to and check, which takes its place when the block
    ends without an exception; `path` stays as it was otherwise. Raises UserError when the system does not allow it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); its folder needs to be writable, with room for a "
                        "second one") from None
    finally:
        partial.unlink(missing_ok=True)
