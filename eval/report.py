"""One HTML file that holds it all: the numbers, the pictures, and the worst confusions as image pairs."""
import base64
import json
from html import escape
from pathlib import Path

import cv2

from eval.plots import write_plots
from inference.image import UserError, load_image

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
    """Create the report's folder; UserError when that cannot be. Call it before the long work."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written there ({error.strerror}); "
                        f"give --report another folder") from None


def write_report(result, folder, model_name):
    """Write report.html (self-contained), its pictures and metrics.json of an `Evaluation`; the path of the HTML.

    Whatever comes from the names of files is escaped.
    """
    make_folder(folder)
    try:
        plots = write_plots(result, folder)
        (Path(folder) / "metrics.json").write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
        path = Path(folder) / "report.html"
        path.write_text(_page(result, plots, model_name), encoding="utf-8", errors="xmlcharrefreplace")
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written there ({error.strerror}); free some space or give "
                        f"--report another folder") from None
    return path


def _page(result, plots, model_name):
    pictures = "".join(f'<img alt="{escape(title)}" src="{_embed(path.read_bytes(), "png")}">'
                       for title, path in plots.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(model_name)} on {escape(result.folder)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{escape(model_name)} on {escape(result.folder)}</h1>
{"".join(f'<p class="note">{escape(note)}</p>' for note in result.notes())}
{_table(result)}
<div class="plots">{pictures}</div>
<h2>Most alike, though of two types</h2>
<p class="note">The pairs that would be taken for one type first.</p>
{_pairs(result, result.false_matches)}
<h2>Least alike, though of one type</h2>
<p class="note">The pairs that would be missed first.</p>
{_pairs(result, result.missed_matches)}
</body></html>
"""


def _table(result):
    columns = 5 if result.baseline else 3
    head = ("", "model", "threshold", "16x16 thumbnail", "threshold")[:columns]
    classes = ("", "model", "threshold", "", "threshold")[:columns]
    body = "".join("<tr>" + "".join(f'<td class="{css}">{escape(cell)}</td>' for css, cell in zip(classes, row))
                   + "</tr>\n" for row in result.rows())
    return f'<table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>\n{body}</table>'


def _pairs(result, pairs):
    cards = []
    for pair in pairs:
        figures = "".join(_figure(result.items[row]) for row in (pair.first, pair.second))
        cards.append(f'<div class="pair"><b>score {pair.score:.4f}</b><div>{figures}</div></div>\n')
    return f'<div class="pairs">{"".join(cards)}</div>'


def _figure(item):
    return (f'<figure><img alt="" src="{_small_jpeg(item.path)}"><figcaption><strong>{escape(item.type)}</strong>'
            f'<br>{escape(item.name)}</figcaption></figure>')


def _small_jpeg(path):
    image = load_image(path)
    shrink = min(1, 240 / max(image.shape[:2]))
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _embed(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), "jpeg")


def _embed(data, kind):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
