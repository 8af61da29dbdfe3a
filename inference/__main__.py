"""Register one image of a document type, recognize it from then on, reject what was never registered.

    docmetric init STORE [FOLDER]                  # a new store; registers FOLDER/TYPE/*.jpg
    docmetric serve STORE                          # the server, with a page for the browser
    docmetric add STORE passport.jpg --type passport
    docmetric classify STORE photo.jpg             # which type does it show, if any?

    init        make a store, or a further collection in it       check       look for damage; repair it
    add         register images                                   backup      copy a store while it is in use
    rm          remove a type or a reference                      restore     make a store from a backup
    mv          rename or merge types, move references            export      write a collection as one file
    ls          list types, references, events, collections       import      register what such a file or a folder holds
    undo        undo a change                                     model       change the model without registering again
    classify    classify images                                   key         make and revoke keys of the server
    search      show the nearest references of an image           serve       start the server
    review      name what was not recognized                      purge       delete for good what was removed
    calibrate   see and set the threshold

`docmetric COMMAND --help` explains a command and shows examples, `docmetric --version` says which program it is. STORE is a
folder; for most commands also the address of a server, http://HOST:8080. In the repository `python -m inference` is the same
program. Mistakes: one line, exit status 2.
"""
import importlib.metadata
import sys

from .cli import run_cli, run_command

COMMANDS = ("init", "add", "rm", "mv", "ls", "undo", "classify", "search", "review", "calibrate", "check", "backup",
            "restore", "export", "model", "key", "serve", "purge")
MODULES = {command: f"{__package__}.commands.{command}" for command in COMMANDS}
MODULES["import"] = f"{__package__}.commands.import_"


def main(arguments=None) -> int:
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"docmetric {version()}")
        return 0
    twice = both_runtimes()
    if twice:
        print(f"warning: {twice}", file=sys.stderr)
    return run_command("docmetric", __doc__, MODULES, arguments)


def version() -> str:
    """Of the wheel; in the repository there is none."""
    return importlib.metadata.version("docmetric") if __package__ == "docmetric" else "from the repository"


def both_runtimes() -> str | None:
    """What is wrong where onnxruntime and onnxruntime-gpu are both installed: they unpack into one folder, and which of them
    is left there is chance."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            installed.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            return None
    return (f"onnxruntime {installed[0]} and onnxruntime-gpu {installed[1]} are both installed and overwrite each other; "
            "keep one: pip uninstall --yes onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu")


def run() -> None:
    run_cli(main)


if __name__ == "__main__":
    run()
