"""The run's logger: lines on stderr, above a progress bar if there is one, and in `training.log`."""
import contextlib
import logging
import sys
from pathlib import Path

from inference.errors import printable


def get_logger(rank: int = 0, folder: Path | None = None) -> logging.Logger:
    """Logger `docmetric`: to stderr and to `folder/training.log` on rank 0, warnings alone on the others."""
    logger = logging.getLogger("docmetric")
    for handler in logger.handlers[:]:  # of an earlier run in this process
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    console = _TqdmHandler()
    console.setFormatter(_Line("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logger.addHandler(console)
    if rank == 0 and folder is not None:
        file = _LogFile(folder / "training.log", encoding="utf-8")
        file.setFormatter(_Line("%(asctime)s %(message)s"))
        logger.addHandler(file)
    return logger


class _Line(logging.Formatter):
    def format(self, record):
        return printable(super().format(record))  # messages have names of files in them


class _LogFile(logging.FileHandler):
    """On a full disk lines wait until there is room, or are lost at the end: no reason for a page of traceback at each."""

    def handleError(self, record):
        pass

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)
