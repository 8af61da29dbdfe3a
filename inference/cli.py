"""What every command of the project does with a user's mistake: one line on stderr, exit status 2. No torch."""
import argparse
import os
import sys
import time

from .errors import UserError, printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are a UserError, without the usage in front. Its description keeps its lines."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def exit_status(main) -> int:
    """The status that `main()` returns (None: 0); a `UserError` is one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be valid in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` say, has had enough; Python would flush once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130


def run_cli(main) -> None:
    """Run `main()` as the program; see `exit_status`."""
    sys.exit(exit_status(main))


def counted(items, total: int, what: str, show: bool):
    """Yield `items`, and with `show`, where stderr is a terminal and the work takes a while, say how far it is.

    Each of `items` counts for as many of `total` as its `len(item.positions) + len(item.reasons)`.
    """
    show, began, shown, done = show and sys.stderr.isatty(), time.monotonic(), 0.0, 0
    for item in items:
        yield item
        done += len(item.positions) + len(item.reasons)
        now = time.monotonic()
        if show and now - began > 2 and (now - shown > 0.2 or done == total):
            print(f"\r{what} {done:,}/{total:,}, {done / (now - began):.0f} images/s ", end="", file=sys.stderr, flush=True)
            shown = now
    if shown:
        print(file=sys.stderr)
