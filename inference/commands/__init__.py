"""The commands of `docmetric`, a module each, with `main(arguments)`; here what they share: STORE, the answer, the progress.

STORE is the folder of a store or, for most commands, the address of a server: `opened` gives a `Registry` or a `Client`,
which have the same methods.
"""
import argparse
import contextlib
import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Iterable

from ..cli import Parser
from ..errors import UserError, printable
from ..image import list_images
from ..registry.formats import EXTENSIONS
from ..server.settings import between

KEY_VARIABLE = "DOCMETRIC_KEY"

number = between(1, 10 ** 12 - 1)  # the type of options that name a reference, an event and the like
count = between(1, 1000)           # and of those that say how many of the best are shown


def word(text: str) -> str:
    """The type of options whose text is compared with the store's, which is UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{printable(text)} is no UTF-8 text") from None
    return text


class CommandLine(Parser):
    """Words may stand before and after the options, as in `docmetric ls types --references passport`."""
    def parse_args(self, args=None, namespace=None):
        return self.parse_intermixed_args(args, namespace)


def parser(command: str, description: str, actions: tuple = (), server: bool = True, collection: bool = True) -> Parser:
    """Of a command whose first argument is STORE, behind one of its `actions`. server: whether STORE may be a server;
    collection: whether the command is about one collection."""
    made = CommandLine(prog=f"docmetric {command}", description=description)
    if actions:
        made.add_argument("action", choices=actions, metavar="|".join(actions), help="what to do")
    made.add_argument("store", metavar="STORE", help="folder of the store" + (
        f", or the address of a server, http://...; its key is in the variable {KEY_VARIABLE}" if server else ""))
    if collection:
        made.add_argument("--collection", type=word, default="default", metavar="NAME", help="collection of the store")
    made.add_argument("--json", action="store_true", help="print one JSON value and nothing else")
    return made


def is_address(store: str) -> bool:
    return store.lower().startswith(("http://", "https://"))


@contextlib.contextmanager
def opened(args):
    """The registry that the arguments name: a `Registry`, or the `Client` of a server."""
    if is_address(args.store):
        from ..client import Client
        from ..registry.errors import RegistryError
        collection = getattr(args, "collection", "default")  # not all commands are about one
        with Client(args.store, os.environ.get(KEY_VARIABLE) or None, collection) as client:
            try:
                yield client
            except RegistryError as error:
                if error.code == "key-required":  # the server speaks of HTTP headers
                    raise UserError(f"{args.store}: asks for a key; put it into the variable {KEY_VARIABLE}") from None
                raise
    else:
        from ..registry import Registry
        with Registry.open(args.store, args.collection) as registry:
            yield registry


def local_store(path: str) -> str:
    """The folder that STORE names. Raises UserError for a server, which does not do this command."""
    if is_address(path):
        raise UserError(f"{path}: this command works on the folder of a store, not through a server")
    return path


@contextlib.contextmanager
def opened_store(path: str):
    """The `Store` in a folder."""
    from ..registry import Store
    with Store(local_store(path)) as store:
        yield store


def author(args) -> dict:
    """{"who": the user's name} for the events of a store; a server takes the name of the key."""
    if is_address(args.store):
        return {}
    try:
        return {"who": getpass.getuser()}
    except (KeyError, OSError):  # a user without a name, as containers have
        return {}


def tell(args, value, lines: Iterable[str]) -> int:
    """Print `value` as JSON where that was asked for, otherwise the lines. Returns exit status 0."""
    if args.json:
        print(json.dumps(value, indent=2))
    else:
        for line in lines:
            print(printable(line))
    return 0


def tell_each(args, results: Iterable[dict], line: Callable[[dict], str]) -> list[dict]:
    """Print the line of each result as soon as it is there: what follows may be a mistake, or Ctrl-C, and a change that was
    made is told. As JSON they come at the end, however it comes. A result with an `error` has no line. Returns all."""
    told = []
    try:
        for result in results:
            told.append(result)
            if not args.json and not result.get("error"):
                print(printable(line(result)), flush=True)
    finally:
        if args.json:
            print(json.dumps(told, indent=2))
    return told


def images_below(folder: str) -> list[str]:
    """The images in a folder, relative to it. Raises UserError where there is none."""
    files = list_images(folder, EXTENSIONS)
    if not files:
        raise UserError(f"{folder}: no image in it; put images there, JPEG, PNG, WebP, BMP, TIFF, HEIC or PDF")
    return files


def images_of(paths: list[str]) -> list[str]:
    """The paths, and in the place of a folder all images below it."""
    if "" in paths:
        raise UserError("IMAGE: must be the name of a file, not nothing (see --help)")
    return [image for path in paths for image in
            ([os.path.join(path, file) for file in images_below(path)] if os.path.isdir(path) else [path])]


def every(page: Callable, identity: str, limit: int | None = None, **options):
    """All entries of a listing such as `registry.types`, page by page; at most `limit`."""
    after, given = 0, 0
    while limit is None or given < limit:
        entries = page(after=after, limit=min(500, 500 if limit is None else limit - given), **options)
        if not entries:
            return
        yield from entries
        given, after = given + len(entries), entries[-1][identity]


def progress(what: str, total: int | None = None) -> Callable:
    """A function to call with how many are done, of so many. It shows them on stderr, if that is a terminal, from the third
    second on."""
    began, shown = time.monotonic(), 0.0

    def show(done: int, of: int | None = total) -> None:
        nonlocal shown
        now = time.monotonic()
        last = done == of and shown
        if sys.stderr.isatty() and (last or now - began > 2 and now - shown > 0.2):
            print(f"\r{what} {done:,}{'' if of is None else f'/{of:,}'}, {done / (now - began):.0f}/s ",
                  end="\n" if last else "", file=sys.stderr, flush=True)
            shown = now

    return show


def steps() -> Callable[[str], None]:
    """A function that shows a line about what is being done, on stderr, if that is a terminal."""
    return lambda line: sys.stderr.isatty() and print(printable(line), file=sys.stderr, flush=True)


def day(seconds: float) -> str:
    """Of a time, as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def described(result: dict, top_k: int = 1) -> str:
    """A result of `classify` as a line."""
    if result["error"]:
        return f"{result['image']}: cannot be used: {result['error']}"
    if result["reason"] == "empty":
        return f"{result['image']}: not registered (nothing is registered yet)"
    line = f"{result['image']}: {result['label'] or 'not registered'} {result['score']:.4f}"
    if result["orientation"]:
        line += f" turned by {result['orientation']}"
    best = [entry["label"] or "a known unknown" for entry in result["top_k"]]
    if result["reason"] == "runner-up-gap":
        line += f" (too close to {' and '.join(best[:2])})"
    elif result["reason"] == "known-unknown":
        line += " (nearest to a known unknown)"
    if top_k > 1:
        scored = (f"{label} {entry['score']:.4f}" for label, entry in zip(best, result["top_k"][:top_k]))
        line += f" ({', '.join(scored)})"
    return line
