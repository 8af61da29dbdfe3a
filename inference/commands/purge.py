"""Delete for good what was removed: images, vectors, rows. It cannot be undone, nor can what removed them.

    docmetric purge types --older 30d       # what was removed more than thirty days ago
    docmetric purge types --older 0d        # all that was removed

Backups that were made before still hold it.
"""
import time

from ..errors import plural
from ..server.settings import duration
from . import author, local_store, opened, parser, tell


def main(arguments=None) -> int:
    made = parser("purge", __doc__, server=False)
    made.add_argument("--older", type=duration, required=True, metavar="TIME",
                      help="what was removed longer ago than this, such as 30d")
    args = made.parse_args(arguments)
    local_store(args.store)
    with opened(args) as registry:
        result = registry.purge(time.time() - args.older, **author(args))
    return tell(args, result, [f"deleted {plural(result['references'], 'reference')} and "
                               f"{plural(result['pictures'], 'image')}"])
