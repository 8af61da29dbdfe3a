"""The figures of the report, drawn without a display: ROC, histogram of scores, PCA and t-SNE of the embeddings."""
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from inference.errors import printable
from inference.files import replacing

MODEL, BASELINE, POSITIVE, NEGATIVE = "#1f6feb", "#8b949e", "#1a7f37", "#cf222e"
MARKERS = "osD^"
MAX_TYPES, MAX_POINTS = 40, 800     # 10 colors x 4 markers can be told apart; t-SNE of 800 points takes seconds


def write_plots(result, folder):
    """Write roc.png, scores.png, pca.png and tsne.png of an `Evaluation` into `folder`. Returns {title: Path}."""
    rows = _sample(result.labels)
    plane = _pca(result.embeddings[rows])
    note = f"{len(rows):,} images of {len(np.unique(result.labels[rows])):,} types"
    if len(rows) < len(result.labels):
        note += f" (of {len(result.labels):,} and {len(result.types):,})"
    figures = {
        "ROC": ("roc.png", _roc(result)),
        "Scores": ("scores.png", _scores(result)),
        "PCA": ("pca.png", _scatter(result, rows, plane, f"PCA: {note}")),
        "t-SNE": ("tsne.png", _scatter(result, rows, _tsne(result.embeddings[rows], plane), f"t-SNE: {note}")),
    }
    paths = {}
    for title, (name, figure) in figures.items():
        paths[title] = Path(folder) / name
        with replacing(paths[title]) as partial:
            FigureCanvasAgg(figure).print_png(partial)
    return paths


def _axes(title, xlabel="", ylabel=""):
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _roc(result):
    figure, axes = _axes("ROC over all pairs", "false positive rate (log)", "true positive rate")
    curves = [("model", MODEL, result.verification)]
    if result.baseline:
        curves.append(("thumbnail", BASELINE, result.baseline[0]))
    for name, color, verification in curves:
        fpr, tpr = verification.roc.T
        fpr, tpr = fpr[fpr > 0], tpr[fpr > 0]       # a logarithmic axis has no 0
        axes.plot(fpr, tpr, color=color, lw=2, drawstyle="steps-post", label=f"{name}, AUROC {verification.auroc:.4f}")
    axes.set(xscale="log", xlim=(max(1 / result.verification.negative, 1e-6), 1), ylim=(0, 1.01))
    axes.grid(color="#d0d7de", lw=.5)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _scores(result):
    figure, axes = _axes("Scores of all pairs", "score = (cos + 1) / 2", "share of the pairs (log)")
    edges = np.linspace(0, 1, 1 + result.verification.histogram.shape[1])
    for counts, color, name in zip(result.verification.histogram, (POSITIVE, NEGATIVE), ("one type", "two types")):
        axes.stairs(counts / counts.sum(), edges, fill=True, color=color, alpha=.45, label=f"{name} ({counts.sum():,})")
    used = np.flatnonzero(result.verification.histogram.sum(axis=0))
    axes.set(yscale="log", xlim=(edges[max(used[0] - 2, 0)], edges[min(used[-1] + 3, len(edges) - 1)]))
    for name in ("1e-2", "1e-4"):
        if name not in result.verification.too_few_negatives:
            threshold = result.verification.thresholds[name]
            axes.axvline(threshold, color="#24292f", lw=1, ls="--")
            axes.text(threshold, 1.0, f" FPR {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _scatter(result, rows, plane, title):
    figure, axes = _axes(title)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    labels = result.labels[rows]
    is_reference = np.array([result.items[row].is_reference for row in rows])
    handles = {}
    for order, label in enumerate(np.unique(labels)):
        look = dict(color=colormaps["tab10"](order % 10), marker=MARKERS[order // 10])
        others, references = plane[(labels == label) & ~is_reference], plane[(labels == label) & is_reference]
        handles[printable(result.types[label])] = axes.scatter(*others.T, s=22, edgecolors="white", linewidths=.3, **look)
        axes.scatter(*references.T, s=46, edgecolors="black", linewidths=.8, zorder=3, **look)
    if len(handles) <= 10:
        legend = axes.legend(handles.values(), handles.keys(), fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)      # the name of a folder may contain a $
    if is_reference.any():
        axes.set_xlabel("large markers with a black rim: references", fontsize=8)
    return figure


def _sample(labels):
    """Sorted row numbers: at most MAX_TYPES types and MAX_POINTS images, evenly spaced; all images of a type if they fit."""
    types = _spread(np.unique(labels), MAX_TYPES)
    rows = [_spread(np.flatnonzero(labels == t), MAX_POINTS // len(types)) for t in types]
    return np.sort(np.concatenate(rows))


def _spread(values, most):
    return values[np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))]


def _unit(embeddings):
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _pca(embeddings):
    """Embeddings `[n, D]` -> the first two principal components of their unit vectors, `[n, 2]`, with a fixed sign."""
    centered = _unit(embeddings.astype(np.float64))
    centered -= centered.mean(axis=0)
    directions = np.linalg.svd(centered, full_matrices=False)[2][:2]
    directions *= np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])[:, None]
    plane = centered @ directions.T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))     # D = 1 has only one component


def _tsne(embeddings, plane):
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # comes with scikit-learn
    start = plane / max(plane.std(), 1e-12) * 1e-4              # starts from PCA, so the layout is deterministic
    tsne = TSNE(init=start.astype(np.float32), perplexity=min(30, (len(plane) - 1) / 3), random_state=0)
    with threadpool_limits(1):      # the steps are short, so threads mostly wait: 2 s with one, 31 s on two busy cores
        return tsne.fit_transform(_unit(embeddings))
