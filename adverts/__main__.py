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
from inference.cli import run_cli, run_command

COMMANDS = ("classifier", "demo", "ocr", "predict", "run", "split", "submit", "tune")  # each a module of this package,
MODULES = {command: f"adverts.{command}" for command in COMMANDS} | {"predict": "tools.predict"}  # but one, which loads runs


def main(arguments=None):
    return run_command("python -m adverts", __doc__, MODULES, arguments)


if __name__ == "__main__":
    run_cli(main)
