"""The report of an evaluation of reading as one HTML file: the figures, the confusions, and the worst lines as images."""
import json
from html import escape
from pathlib import Path

import cv2

from eval.page import STYLE, embed, make_folder, writing
from eval.reading import ROWS, differences, percent, visible
from inference.files import replacing
from inference.image import ImageError, load_image, resize
from ocr.folder import Line

HEIGHT, WIDTH = 56, 1040    # pixels; a line's image in the report is no larger

LINE_STYLE = """
.line { border: 1px solid #d0d7de; border-radius: 8px; padding: .6rem; margin: .8rem 0; overflow-wrap: anywhere; }
.line img { max-width: 100%; display: block; margin-bottom: .4rem; }
.line p { margin: .1rem 0; font: 15px/1.5 Georgia, serif; white-space: pre-wrap; }
.line .name { font: 12px system-ui, sans-serif; color: #57606a; }
ins { background: #ffd7d5; text-decoration: none; } del { background: #ccffd8; text-decoration: none; }
"""


def write_reading_report(result: dict, peers: dict[str, dict], lines: list[Line], folder, title: str,
                         group: str = "") -> Path:
    """Write report.html (self-contained) and metrics.json of what `evaluate_lines` gave. Returns the path of the HTML.

    peers: {name: what `compare` gave for the same lines}. All text from files is escaped.
    """
    make_folder(folder)
    path = Path(folder) / "report.html"
    with writing(folder):
        with replacing(Path(folder) / "metrics.json") as partial:
            partial.write_text(json.dumps({**result, **peers}, indent=1) + "\n", encoding="utf-8")
        with replacing(path) as partial:
            partial.write_text(_page(result, peers, lines, title, group), encoding="utf-8", errors="xmlcharrefreplace")
    return path


def _page(result, peers, lines, title, group):
    columns = {"reader": result, **peers}
    rates = _table(["", *columns], [[name.strip(), *(percent(one[key]) for one in columns.values())]
                                    for name, key in ROWS.items()])
    groups = ""
    if group:
        rows = [[name, f"{one['lines']:,}", *(percent(column["groups"][name]["cer"]) for column in columns.values()),
                 percent(one["exact"]), percent(one["right_count"])] for name, one in result["groups"].items()]
        rows.append(["mean", "", *(percent(column["mean_group_cer"]) for column in columns.values()), "", ""])
        head = [group, "lines", *(f"CER of {name}, %" for name in columns), "exact lines of reader, %",
                "right number of reader, %"]
        groups = f"<h2>By {escape(group)}</h2>{_table(head, rows)}"
    confusions = _table(["truth", "read", "count"], [[visible(one["truth"]), visible(one["read"]), f"{one['count']:,}"]
                                                     for one in result["confusions"]])
    path_of = {line.file: line.path for line in lines}
    worst = "".join(_line(one, path_of[one["file"]]) for one in result["worst"])
    unreadable = "".join(f'<p class="note">{escape(one["file"])}: cannot be used, counts as empty '
                         f'({escape(one["reason"])})</p>' for one in result["unreadable"][:10])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}{LINE_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="note">{result["lines"]:,} lines, {result["characters"]:,} characters. CER: the edits that make the truth of the
reading, over the characters of the truth; both texts are normalized first (NFKC, straight quotes, one kind of dash, single
spaces). The interval is a bootstrap over lines.</p>
{unreadable}
{rates}
{groups}
<h2>Confusions</h2>
<p class="note">The most frequent ones; edits side by side count as one. \u2423 is a space.</p>
{confusions}
<h2>The lines with the most edits</h2>
<p class="note">First the truth, with <del>what was not read</del>, then the reading, with <ins>what is not there</ins>.</p>
{worst}
</body></html>
"""


def _table(head, rows):
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<table><tr>{"".join(f"<th>{escape(name)}</th>" for name in head)}</tr>\n{body}</table>'


def _line(one, path):
    truth = text = ""
    for a, b in differences(one["truth"], one["read"]):
        truth += escape(a) if a == b else a and f"<del>{escape(a)}</del>"
        text += escape(b) if a == b else b and f"<ins>{escape(b)}</ins>"
    return (f'<div class="line">{_image(path)}<p>{truth}</p><p>{text or "(nothing)"}</p>'
            f'<p class="name">{escape(one["file"])}, {one["edits"]} edit{"s" * (one["edits"] > 1)}</p></div>\n')


def _image(path):
    try:
        image = load_image(path)
    except ImageError as error:
        return f"<p>({escape(str(error))})</p>"
    height, width = image.shape[:2]
    # A line from top to bottom keeps its form: only its longer side is bounded.
    shrink = min(1, (HEIGHT if width >= height else WIDTH) / height, WIDTH / width)
    image = resize(image, max(1, round(width * shrink)), max(1, round(height * shrink)))
    return f'<img alt="" src="{embed(cv2.imencode(".png", image)[1].tobytes(), "png")}">'
