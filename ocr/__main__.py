"""Prepare data to train and to evaluate readers of text lines. Nothing is downloaded.

    python -m ocr lines --out DIR --count 20000       # synthetic lines with the box of each character and word
    python -m ocr renders --out DIR --charset FILE    # one folder per character, one image per font
    python -m ocr crops LINES --out DIR               # one folder per character, cut from lines with boxes
    python -m ocr coco combine|split|subset|validate  # COCO files of lines
    python -m ocr align LINES --model M.onnx          # transcribed lines -> character boxes
    python -m ocr label IMAGES --model M.onnx         # lines that a model reads with certainty, as training data
    python -m ocr register --model M.onnx             # new characters for a model, without training
    python -m ocr windows LINES --out SHEETS          # sheets of lines, for the localizer of two-stage reading

`python -m ocr COMMAND --help` explains a command.
"""
from inference.cli import run_cli, run_command

COMMANDS = ("lines", "renders", "crops", "coco", "align", "label", "register", "windows")  # each a module of this package


def main(arguments=None):
    return run_command("python -m ocr", __doc__, {command: f"ocr.{command}" for command in COMMANDS}, arguments)


if __name__ == "__main__":
    run_cli(main)
