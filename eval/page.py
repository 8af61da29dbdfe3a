"""Shared parts of the project's HTML reports, which are single files: the style, embedded images, and writing."""
import base64
import contextlib
from pathlib import Path

import cv2
import numpy as np

from inference.errors import UserError
from inference.image import load_image

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem; }
p.note { color: #57606a; margin: .2rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1.2rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1rem; border-bottom: 1px solid #d0d7de; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td.model { font-weight: 600; } td.threshold { color: #57606a; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.plots img { width: 100%; }
.pairs { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 1rem; }
.pair { border: 1px solid #d0d7de; border-radius: 8px; padding: .6rem; }
.pair b { display: block; margin-bottom: .3rem; font-variant-numeric: tabular-nums; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
figure { margin: 0; } figure img { width: 100%; height: 160px; object-fit: contain; background: #f6f8fa; }
figcaption { font-size: 12px; color: #57606a; overflow-wrap: anywhere; }
figcaption strong { color: #1f2328; }
@media (max-width: 800px) { .plots, .pairs { grid-template-columns: 1fr; } }
"""


def make_folder(folder):
    """Create the folder of a report. Call it before the long work: it raises UserError when that is not possible."""
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(folder):
    """Turns an OSError of the block, which writes into the folder of a report, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written there ({error.strerror}); free some space or give "
                        "--report another folder") from None


def small_jpeg(image):
    """An image file, or BGR uint8 [H, W, 3], as a data URL, its longest side at most 240 pixels. Raises ImageError."""
    image = image if isinstance(image, np.ndarray) else load_image(image, 240)
    shrink = min(1, 240 / max(image.shape[:2]))
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return embed(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), "jpeg")


def embed(data, kind):
    """The bytes of an image as a data URL; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
