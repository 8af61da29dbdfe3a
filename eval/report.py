"""The report of an evaluation as one HTML file: the metrics, the figures, and the worst errors as pairs of images."""
import json
from html import escape
from pathlib import Path

from eval.page import STYLE, embed, make_folder, small_jpeg, writing
from eval.plots import write_plots
from inference.files import replacing


def write_report(result, folder, model_name):
    """Write report.html (self-contained), its figures and metrics.json of an `Evaluation`. Returns the path of the HTML.

    Text from file names is escaped.
    """
    make_folder(folder)
    with writing(folder):
        plots = write_plots(result, folder)
    with replacing(Path(folder) / "metrics.json") as partial:
        partial.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
    path = Path(folder) / "report.html"
    with replacing(path) as partial:
        partial.write_text(_page(result, plots, model_name), encoding="utf-8", errors="xmlcharrefreplace")
    return path


def _page(result, plots, model_name):
    figures = "".join(f'<img alt="{escape(title)}" src="{embed(path.read_bytes(), "png")}">'
                      for title, path in plots.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(model_name)} on {escape(result.folder)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{escape(model_name)} on {escape(result.folder)}</h1>
{"".join(f'<p class="note">{escape(note)}</p>' for note in result.notes())}
{_table(result)}
<div class="plots">{figures}</div>
<h2>False matches: pairs of two types with the highest scores</h2>
<p class="note">The first pairs that a lower threshold would accept wrongly.</p>
{_pairs(result, result.false_matches)}
<h2>Missed matches: pairs of one type with the lowest scores</h2>
<p class="note">The first pairs that a higher threshold would miss.</p>
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
        figures = "".join(_figure(result.items[row], result.load) for row in (pair.first, pair.second))
        cards.append(f'<div class="pair"><b>score {pair.score:.4f}</b><div>{figures}</div></div>\n')
    return f'<div class="pairs">{"".join(cards)}</div>'


def _figure(item, load):
    image = load(item)[-1] if load else item.path  # the document, where one was found
    return (f'<figure><img alt="" src="{small_jpeg(image)}"><figcaption><strong>{escape(item.type)}</strong>'
            f'<br>{escape(item.name)}</figcaption></figure>')
