"""The command line of every program in the project: help with examples and defaults, a user's mistake as one line on stderr
with exit status 2, progress on a terminal. The standard library only.
"""
import argparse
import errno
import importlib
import os
import sys
import time

from .errors import UserError, printable


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds its default to the help of each option that has one."""

    def _get_help_string(self, action):
        text, default = action.help or "", action.default
        has_default = default not in (None, "", [], argparse.SUPPRESS) and default is not False  # 0 is a default too
        return f"{text} (default: %(default)s)" if has_default and "default" not in text else text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a UserError, without the usage in front. `description`: usually the module's
    docstring, with its examples; its lines stay as they are.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": Help, **options})

    def error(self, message):
        raise UserError(f"{message} (see --help)")


def open_streams() -> None:
    """Give the null device the place of a standard stream that the caller has closed. Its number would be that of the next
    file that is opened, a database too, and libraries write their warnings to number 2."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def exit_status(main) -> int:
    """The status that `main()` returns (None: 0); a `UserError` is one line on stderr and status 2."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names need not be valid in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; without this Python would flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("error: no room on the disk that the output goes to", file=sys.stderr, flush=True)
        return 2


def run_cli(main) -> None:
    """Run `main()` as the program; see `exit_status`."""
    sys.exit(exit_status(main))


def run_command(program: str, description: str, modules: dict[str, str], arguments=None) -> int:
    """The program `program COMMAND ...`: the status of `main(arguments)` of the module that `modules` names for the command.
    description: shown by --help, and without a command, which is a mistake. arguments: default sys.argv."""
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or [None]
    if command in (None, "-h", "--help"):
        print(description)
        return 0 if command else 2
    if command not in modules:
        raise UserError(f"{program} {command}: no such command; there are {', '.join(modules)}")
    return importlib.import_module(modules[command]).main(rest)


def counted(items, total: int, what: str, show: bool):
    """Yield `items`. If `show` is true and stderr is a terminal, print the progress there after the first two seconds.

    An item's `positions`, each counted once, and `reasons` are those of the `total` images that it holds. (tqdm would
    do this, but `inference` runs without it.)
    """
    show, began, shown, done = show and sys.stderr.isatty(), time.monotonic(), 0.0, 0
    for item in items:
        yield item
        done += len(set(item.positions)) + len(item.reasons)
        now = time.monotonic()
        if show and now - began > 2 and (now - shown > 0.2 or done == total):
            print(f"\r{what} {done:,}/{total:,}, {done / (now - began):.0f} images/s ", end="", file=sys.stderr, flush=True)
            shown = now
    if shown:
        print(file=sys.stderr)
