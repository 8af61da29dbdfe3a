"""Classify adverts by image and text: from a folder of images to a submission. Nothing is downloaded.

    python -m adverts run --data DIR --out OUT         # all stages, each of which can be repeated by itself:

    python -m adverts split --data DIR --out split.csv                              # folds by group, test images
    python -m adverts ocr --data DIR --split split.csv --cache C.sqlite --out texts.jsonl   # the text of each image
    python -m adverts predict --data DIR --split split.csv --out P.safetensors RUN...       # out of fold where labeled
    python -m adverts tune P.safetensors... --split split.csv --out fusion.json             # weights of the models
    python -m adverts submit P.safetensors... --split split.csv --fusion fusion.json --out submission.csv
    python -m adverts classifier --image RUN --text RUN --fusion fusion.json --out DIR      # for inference/classify.py

    python -m adverts demo --out DIR                   # synthetic adverts that need both image and text

`python -m adverts COMMAND --help` explains a command.
"""
import importlib
import sys

from inference.cli import run_cli
from inference.errors import UserError

MODULES = {command: f"adverts.{command}" for command in ("split", "ocr", "tune", "submit", "classifier", "demo", "run")}
MODULES["predict"] = "tools.predict"  # it loads runs


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    if arguments[0] not in MODULES:
        raise UserError(f"python -m adverts {arguments[0]}: no such command; there are {', '.join(sorted(MODULES))}")
    return importlib.import_module(MODULES[arguments[0]]).main(arguments[1:])


if __name__ == "__main__":
    run_cli(main)
