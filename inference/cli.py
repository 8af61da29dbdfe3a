"""What every command of the project does with a user's mistake: one line on stderr, exit status 2. No torch."""
import argparse
import sys

from inference.image import UserError


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
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130


def run_cli(main) -> None:
    """Run `main()` as the program; see `exit_status`."""
    sys.exit(exit_status(main))
