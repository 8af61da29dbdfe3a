"""Tesseract, the peer of our reader, where it is installed: its command line, one call for all lines.

https://github.com/tesseract-ocr/tesseract
"""
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from inference.errors import UserError, first_line

SEPARATOR = "\x1e"      # between the texts of two images: a control character, which Tesseract itself never reads


def tesseract_path() -> str | None:
    """Where the program is; None without one."""
    return shutil.which("tesseract")


def read_with_tesseract(files: list[Path], language: str = "eng") -> list[str]:
    """The text of each image of a horizontal line, on one thread (`OMP_THREAD_LIMIT=1`), as one line (`--psm 7`).

    Every file must be an image that can be read: Tesseract ends at the first one that is not. Raises UserError when it is
    not installed or fails.
    """
    if not tesseract_path():
        raise UserError("tesseract is not installed; install it (apt install tesseract-ocr), or do without --tesseract")
    if not files:
        return []
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number, file in enumerate(files):     # links: a list of files has one name a line, and ours may hold anything
            names.append(Path(folder, str(number)))
            names[-1].symlink_to(file.resolve())
        listed = Path(folder, "files.txt")
        listed.write_text("".join(f"{name}\n" for name in names))
        done = subprocess.run([tesseract_path(), listed, "stdout", "--psm", "7", "-l", language,
                               "-c", f"page_separator={SEPARATOR}"], capture_output=True,
                              env={**os.environ, "OMP_THREAD_LIMIT": "1"})
    texts = done.stdout.decode("utf-8", "replace").split(SEPARATOR)
    if done.returncode or len(texts) - len(files) not in (0, 1):      # some versions end the last text with one, too
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise UserError(f"tesseract: failed with status {done.returncode} after {len(texts)} of {len(files)} lines "
                        f"({first_line(said[-1])}); try the same without --tesseract")
    return texts[:len(files)]
