"""The report of a fusion as one HTML file: what each model and the fusion are worth, what is confused, the worst images."""
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from adverts.fusion import FORMS, Model, interval, right, stack
from adverts.split import Split
from eval.page import STYLE, embed, make_folder, small_jpeg, writing
from inference.files import replacing
from inference.fusion import log_softmax
from inference.image import ImageError
from inference.ngrams import document

CONFIDENCES = (0, .5, .7, .8, .9, .95, .99)  # where the precision of pseudo labels is told
CONFUSIONS, WORST = 12, 24                   # shown
MANY = 40                                    # classes whose names and counts do not fit in the matrix

ADVERT_STYLE = """
tr.used td { background: #ddf4ff; } th, td { padding: .35rem .7rem; } td { white-space: nowrap; }
img.wide { width: 100%; max-width: 860px; display: block; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1rem; }
.worst > div { border: 1px solid #d0d7de; border-radius: 8px; padding: .6rem; overflow-wrap: anywhere; }
.worst img { width: 100%; height: 200px; object-fit: contain; background: #f6f8fa; }
.worst p { margin: .1rem 0; font-size: 13px; } .worst .name, .worst pre { font-size: 12px; color: #57606a; }
.worst pre { margin: .3rem 0 0; max-height: 7.5em; overflow: auto; white-space: pre-wrap; font-family: inherit; }
ins { background: #ffd7d5; text-decoration: none; } del { background: #ccffd8; text-decoration: none; }
"""


def write_report(fusion: dict, models: Sequence[Model], split: Split, log_p: np.ndarray, folder, data=None,
                 texts: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write report.html (self-contained) and metrics.json into `folder`. Returns the path of the HTML.

    fusion: of `adverts.fusion.fit`; log_p: `[N,C]`, of the split's rows, as `adverts.fusion.apply` gives them. data: folder
    of the images; without it none is shown. texts: {sample id: segments}, to be shown with them. All text is escaped.
    """
    make_folder(folder)
    result = measure(fusion, models, split, log_p)
    path = Path(folder) / "report.html"
    with writing(folder):
        with replacing(Path(folder) / "metrics.json") as partial:
            partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with replacing(path) as partial:
            partial.write_text(_page(result, split, data, texts or {}), encoding="utf-8", errors="xmlcharrefreplace")
    return path


def measure(fusion: dict, models: Sequence[Model], split: Split, log_p: np.ndarray) -> dict:
    """What the report says, as JSON values. All shares are of 1, and of training images, which are predicted out of fold.

    choice, best, split, scores   of the fusion; weights: {model: weight}, fallback
    text            {"with text", "without text": {train, accuracy, test}}; only where a model of texts takes part
    confidence      [{least, train, precision, interval, unlabeled, test}]: images whose most likely class has at least that
                    probability; precision: share of those of role train that are right
    classes         [{name, train, recall, precision, predicted}]: images of the class; the share of them that is right; the
                    share of those predicted to be of it that is right, None where none is; how many of all roles are
    confusion       [C,C] training images, by class and predicted class
    worst           the most confident of the wrong training images [{file, label, guess, p, p_label, models: {name: [its
                    guess, p]}}]
    """
    number = {name: n for n, name in enumerate(split.classes)}
    roles = np.array([row.role for row in split.rows])
    train, unlabeled, test = (roles == role for role in ("train", "unlabeled", "test"))
    rows = [row for row in split.rows if row.role == "train"]
    label, groups = np.array([number[row.label] for row in rows]), np.array([row.group for row in rows])
    guess, sure, hit = log_p.argmax(1), np.exp(log_p.max(1)), right(log_p[train], label)          # [N], [N], [n]
    models = [next(model for model in models if model.name == entry["name"]) for entry in fusion["models"]]
    logits, _ = stack(models, [row.file for row in split.rows], split.classes)
    known = ~np.isnan(logits[:, :, 0])                                                           # [M,N]

    is_text = np.array([model.kind == "text" for model in models])
    has_text = known[is_text].any(0)
    text = {name: {"train": int(has[train].sum()), "accuracy": _mean(hit[has[train]]), "test": int(has[test].sum())}
            for name, has in (("with text", has_text), ("without text", ~has_text))} if is_text.any() else None
    confidence = []
    for least in CONFIDENCES:
        of = sure[train] >= least
        confidence.append({"least": least, "train": int(of.sum()), "precision": _mean(hit[of]),
                           "interval": interval(hit[of], groups[of]) if of.any() else None,
                           **{role: int((sure[roles == role] >= least).sum()) for role in ("unlabeled", "test")}})
    confusion = np.zeros((len(number), len(number)), int)
    np.add.at(confusion, (label, guess[train]), 1)
    classes = [{"name": name, "train": int(confusion[n].sum()), "recall": confusion[n, n] / confusion[n].sum(),
                "precision": confusion[n, n] / confusion[:, n].sum() if confusion[:, n].any() else None,
                "predicted": int((guess == n).sum())} for name, n in number.items()]
    wrong = sorted(np.flatnonzero(~hit), key=lambda n: (-sure[train][n], rows[n].file))[:WORST]
    worst = []
    for n, place in zip(wrong, np.flatnonzero(train)[wrong]):
        of_model = {}
        for m in np.flatnonzero(known[:, place]):
            p = np.exp(log_softmax(logits[m, place] / fusion["models"][m]["temperature"]))
            of_model[models[m].name] = [split.classes[p.argmax()], float(p.max())]
        worst.append({"file": rows[n].file, "label": rows[n].label, "guess": split.classes[guess[place]],
                      "p": float(sure[place]), "p_label": float(np.exp(log_p[place, label[n]])), "models": of_model})
    return {"choice": fusion["choice"], "best": fusion["best"], "split": fusion["split"],
            "weights": {model["name"]: model["weight"] for model in fusion["models"]}, "fallback": fusion["fallback"],
            "scores": fusion["scores"], "text": text, "confidence": confidence, "classes": classes,
            "confusion": confusion.tolist(), "worst": worst}


def _mean(values):
    return float(values.mean()) if len(values) else None


# -- the page ---------------------------------------------------------------------------------------------------------

def _page(result, split, data, texts):
    sizes = {role: len(split.part(role)) for role in ("train", "unlabeled", "test")}
    alone = result["choice"] == result["best"] and len(result["weights"]) > 1
    title = f"{result['best']} alone" if alone else f"{result['choice'].capitalize()} of {', '.join(result['weights'])}"
    text = f"<h2>Images without text</h2>{_text_table(result['text'])}" if result["text"] else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}{ADVERT_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="note">{len(split.classes):,} classes; {sizes["train"]:,} training images in {split.folds} folds,
{sizes["unlabeled"]:,} unlabeled, {sizes["test"]:,} for testing. Figures of training images are out of fold: neither the
models nor the weights of the fusion had seen the image. In brackets: intervals of 95 %, a bootstrap over groups.</p>
{_scores_table(result)}
{_choice_notes(result, alone)}
{text}
<h2>Confidence</h2>
<p class="note">Images whose most likely class has at least this probability, and how many of them are right. Unlabeled
images at that confidence are as right as this where they are like the training images.</p>
{_confidence_table(result["confidence"])}
<h2>Confusion</h2>
<p class="note">Rows are classes, columns what was predicted; the color is the share of the row.</p>
<img class="wide" alt="confusion matrix" src="{embed(_confusion_matrix(result), "png")}">
{_confusions_table(result)}
<h2>Classes</h2>
{_classes_table(result["classes"])}
<h2>Wrong with most confidence</h2>
<p class="note">Training images out of fold, with <del>the label</del> and <ins>the prediction</ins>; below, what each model
says, and the text that was read. A wrong label may be the reason.</p>
<div class="worst">{"".join(_card(one, data, texts) for one in result["worst"])}</div>
</body></html>
"""


def _table(head, rows, used=()):
    """An HTML table of texts; the rows whose first cell is in `used` are marked."""
    body = "".join(f'<tr{" class=used" * (row[0] in used)}>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>\n'
                   for row in rows)
    return f'<table><tr>{"".join(f"<th>{escape(name)}</th>" for name in head)}</tr>\n{body}</table>'


def _percent(share):
    return "-" if share is None else f"{100 * share:.1f}"


def _range(ends):
    return "-" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _scores_table(result):
    """A row for each model and form; how the forms compare with the best model; the test images' figures at the right."""
    scores, rows = result["scores"], []
    test = next(iter(scores.values()))["test"]
    for name, one in scores.items():
        gain = one["against_best"]
        more = [f"{100 * gain['difference']:+.1f} ({_range(gain['interval'])})", f"+{gain['gained']} -{gain['lost']}",
                f"{gain['p']:.2g}"] if name in FORMS else [""] * 3
        rows.append([name, f"{result['weights'][name]:.2f}" if name in result["weights"] else "", _accuracy(one),
                     f"{one['nll']:.3f}", *more] + ([_accuracy(one["test"])] if test else []))
    head = ["", "weight", "right, %", "NLL", f"gain over {result['best']}, points", "images", "p (McNemar)"]
    return _table(head + ([f"right of {test['images']:,} test images, %"] if test else []), rows, used=(result["choice"],))


def _accuracy(score):
    return f"{_percent(score['accuracy'])} ({_range(score['interval'])})"


def _choice_notes(result, alone):
    notes = ["Marked: what is used. Test images take no part in the choice or the weights."]
    if alone:
        forms = ", ".join(name for name in FORMS if name in result["scores"])
        notes.append(f"{result['best']} is used alone: the fusion asked for (of {forms}) is right less often.")
    for kind, given in result["fallback"].items():
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in given.items())
        notes.append(f"Weights where only {kind} models have a prediction: {weights}.")
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _text_table(text):
    return _table(["", "training images", "right, %", "test images"],
                  [[name, f"{one['train']:,}", _percent(one["accuracy"]), f"{one['test']:,}"] for name, one in text.items()])


def _confidence_table(confidence):
    return _table(["probability from", "training images", "right, %", "interval", "unlabeled images", "test images"],
                  [[f"{one['least']:g}", f"{one['train']:,}", _percent(one["precision"]), _range(one["interval"]),
                    f"{one['unlabeled']:,}", f"{one['test']:,}"] for one in confidence])


def _confusions_table(result):
    names = [one["name"] for one in result["classes"]]
    found = sorted(((count, names[a], names[b], sum(row)) for a, row in enumerate(result["confusion"])
                    for b, count in enumerate(row) if count and a != b), key=lambda one: (-one[0], *one[1:]))[:CONFUSIONS]
    return _table(["class", "predicted", "images", "of"], [[a, b, f"{n:,}", f"{of:,}"] for n, a, b, of in found])


def _classes_table(classes):
    return _table(["class", "training images", "right, %", "predictions right, %", "predicted, all images"],
                  [[one["name"], f"{one['train']:,}", _percent(one["recall"]), _percent(one["precision"]),
                    f"{one['predicted']:,}"] for one in sorted(classes, key=lambda one: (one["recall"], one["name"]))])


def _confusion_matrix(result):
    """PNG bytes."""
    counts, names = np.array(result["confusion"]), [one["name"] for one in result["classes"]]
    few = len(names) <= MANY
    figure = Figure(figsize=(9.6, 8.8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", norm=PowerNorm(.5, 0, 1))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xticks=[], yticks=[], xlabel="predicted", ylabel="class")
    if few:  # beyond, and where the font may lack a letter, the order is that of the sorted names
        labels = [name if name.isascii() and len(name) < 40 else str(n) for n, name in enumerate(names)]
        axes.set_xticks(range(len(names)), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), labels, parse_math=False)
        for a, b in np.argwhere(counts):
            dark = counts[a, b] / counts[a].sum() > .4
            axes.text(b, a, counts[a, b], ha="center", va="center", fontsize=8, color="white" if dark else "#1f2328")
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _card(one, data, texts):
    models = "".join(f"<p>{escape(name)}: {escape(guess)} {p:.2f}</p>" for name, (guess, p) in one["models"].items())
    text = escape(document(texts[one["file"]]) or "(no text)") if one["file"] in texts else ""
    return (f'<div>{_image(one["file"], data)}<p><del>{escape(one["label"])}</del> {one["p_label"]:.2f}, '
            f'<ins>{escape(one["guess"])}</ins> {one["p"]:.2f}</p>{models}<p class="name">{escape(one["file"])}</p>'
            f'{f"<pre>{text}</pre>" if text else ""}</div>\n')


def _image(file, data):
    if data is None:
        return ""
    try:
        return f'<img alt="" src="{small_jpeg(Path(data, file))}">'
    except ImageError as error:
        return f"<p>({escape(str(error))})</p>"
