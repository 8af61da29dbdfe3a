"""What a user can put right, and how it is said: one line. The standard library only."""
import re


class UserError(Exception):
    """Something the user can put right; a command shows it as one line and ends with exit status 2."""


def printable(text) -> str:
    """One line for a terminal or a log. File names may hold anything: what would begin a new line, steer the terminal,
    reverse the order of letters, or is not text (bytes that are not UTF-8) is written as Python writes it: `\\n`, `\\udcff`.
    """
    return re.sub("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
                  lambda found: ascii(found[0])[1:-1], str(text))


def first_line(error: BaseException | str) -> str:
    """What an exception says, on one line of at most 160 characters; its type when it says nothing."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:160])
