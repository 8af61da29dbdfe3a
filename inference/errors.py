"""Errors that a user can correct, and text that is safe to print. The standard library only."""
import re


class UserError(Exception):
    """A mistake that the user can correct. A command prints it as one line and ends with exit status 2."""


class ImageError(UserError):
    """One image cannot be used; the message names the reason."""


def printable(text) -> str:
    """`text` as one safe line for a terminal or a log.

    File names may contain anything. Characters that would begin a new line, control the terminal, or reverse the order of
    letters, and bytes that are not UTF-8, are written as Python escapes them: `\\n`, `\\udcff`.
    """
    return re.sub("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
                  lambda found: ascii(found[0])[1:-1], str(text))


def plural(number: int, what: str) -> str:
    """1 image, 2 images"""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def first_line(error: BaseException | str) -> str:
    """The first line of an exception's message, at most 160 characters; the exception's type when the message is empty."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:160])
