"""How right a reader's text is, on lines whose text is known.

Both texts pass through `inference.text.normalize` before anything is counted, the denominators too. A character that the
reader has no class for stays in the truth, and counts as an error.
"""
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from inference.errors import printable
from inference.text import edit_distance, normalize
from ocr.folder import Line

DRAWS = 1000        # of the bootstrap
WORST = 20          # lines kept for the report
CONFUSIONS = 50     # the most frequent ones are kept
LONGEST = 16        # characters of a confusion that a table shows
CHUNK = 512         # lines that are read at a time


def evaluate_lines(reader, lines: Sequence[Line], group: str = "", progress: bool = False) -> dict:
    """Read `lines` and compare with their texts. Returns what `compare` returns, and `unreadable`: a list of {file, reason}.

    reader: a `LineReader`, or anything with its `read(paths)` and `classes`. group: a further column of lines.tsv (`book`),
    for a table by its values. An image that cannot be used has an empty text, so that all its characters count as errors.
    progress: a bar on stderr if that is a terminal.
    """
    texts, unreadable = read_texts(reader, lines, progress)
    return {**compare(lines, texts, set(reader.classes), group),
            "unreadable": [{"file": file, "reason": reason} for file, reason in unreadable.items()]}


def read_texts(reader, lines: Sequence[Line], progress: bool = False) -> tuple[list[str], dict[str, str]]:
    """The reader's text of each line, and {file: reason} of the images that cannot be used, whose text is empty."""
    texts, unreadable = [], {}
    with tqdm(total=len(lines), desc="read", unit="line", disable=None if progress else True) as bar:
        for start in range(0, len(lines), CHUNK):
            part = lines[start:start + CHUNK]
            for line, reading in zip(part, reader.read([line.path for line in part]), strict=True):
                texts.append(reading.text)
                if reading.error:
                    unreadable[line.file] = reading.error
            bar.update(len(part))
    return texts, unreadable


def compare(lines: Sequence[Line], texts: Sequence[str], classes: set[str] | None = None, group: str = "") -> dict:
    """The texts that were read against those of the lines, as JSON values. All shares are of 1:

    lines, characters, edits    numbers; characters of the normalized truth, and the edits (insert, delete, replace) that
                                make it of the reading
    cer                         edits / characters
    cer_interval                [low, high], 95 %, bootstrap over lines; null with fewer than two lines. Another book may
                                lie outside
    cer_uncased, cer_no_spaces  the same for lower-case texts; for texts without spaces
    exact                       share of the lines without an edit
    right_count                 share of the lines with the right number of characters, spaces not counted
    coverage                    share of the truth's characters that are among `classes`; null without them
    confusions                  the most frequent [{truth, read, count}]; edits side by side are one; "" for nothing
    worst                       the lines with the most edits [{file, truth, read, edits}]
    groups, mean_group_cer      with `group`: {value of that column: the numbers above, without the lists}; the mean of the
                                groups' cer
    """
    truths, texts = [normalize(line.text) for line in lines], [normalize(text) for text in texts]
    counts = [_counts(truth, text, classes) for truth, text in zip(truths, texts, strict=True)]
    counts = np.array(counts, np.int64).reshape(-1, len(COUNTS))
    confusions = Counter()
    for truth, text in zip(truths, texts):
        confusions.update((a, b) for a, b in differences(truth, text) if a != b)
    worst = sorted(range(len(lines)), key=lambda i: (-counts[i, 0], lines[i].file))[:WORST]
    found = {**_rates(counts, classes is not None),
             "confusions": [{"truth": a, "read": b, "count": count} for (a, b), count
                            in sorted(confusions.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]],
             "worst": [{"file": lines[i].file, "truth": truths[i], "read": texts[i], "edits": int(counts[i, 0])}
                       for i in worst if counts[i, 0]]}
    if group:
        of_group = {}
        for row, line in enumerate(lines):
            of_group.setdefault(line.fields.get(group, ""), []).append(row)
        groups = {name: _rates(counts[rows], classes is not None) for name, rows in sorted(of_group.items())}
        found |= {"groups": groups, "mean_group_cer": sum(one["cer"] for one in groups.values()) / max(1, len(groups))}
    return found


COUNTS = ("edits", "characters", "edits_uncased", "characters_uncased", "edits_no_spaces", "characters_no_spaces", "exact",
          "right_count", "covered")


def _counts(truth, text, classes):
    """The numbers of one line, in the order of COUNTS."""
    counts = []
    for change in (str, str.lower, _without_spaces):
        a, b = change(truth), change(text)
        counts += [0 if a == b else edit_distance(a, b), len(a)]
    return [*counts, truth == text, len(_without_spaces(truth)) == len(_without_spaces(text)),
            sum(character in classes for character in truth) if classes is not None else 0]


def _without_spaces(text):
    return text.replace(" ", "")


def _rates(counts, with_classes):
    """The numbers of a result from those of its lines, int `[n, len(COUNTS)]`."""
    total, n = dict(zip(COUNTS, counts.sum(0).tolist())), len(counts)

    def share(part, of):
        return total[part] / max(1, total[of])

    return {"lines": n, "characters": total["characters"], "edits": total["edits"], "cer": share("edits", "characters"),
            "cer_interval": _interval(counts[:, :2]) if n > 1 else None,
            "cer_uncased": share("edits_uncased", "characters_uncased"),
            "cer_no_spaces": share("edits_no_spaces", "characters_no_spaces"),
            "exact": total["exact"] / max(1, n), "right_count": total["right_count"] / max(1, n),
            "coverage": share("covered", "characters") if with_classes else None}


def _interval(counts):
    """[low, high] of edits / characters; counts: int `[n, 2]`. The draws are the same in every call."""
    rng = np.random.default_rng(0)
    sums = np.array([counts[rng.integers(len(counts), size=len(counts))].sum(0) for _ in range(DRAWS)])
    return np.quantile(sums[:, 0] / np.maximum(1, sums[:, 1]), [.025, .975]).tolist()


def differences(truth: str, text: str) -> list[tuple[str, str]]:
    """The two texts in parts, (part of `truth`, part of `text`), in order: equal parts, and between them what stands in one
    in place of the other, either of which may be empty. The edits are as few as `edit_distance`."""
    shorter = min(len(truth), len(text))
    start = next((i for i in range(shorter) if truth[i] != text[i]), shorter)
    end = next((i for i in range(shorter - start) if truth[-1 - i] != text[-1 - i]), shorter - start)
    a, b = truth[start:len(truth) - end], text[start:len(text) - end]
    steps = [*zip(truth[:start], text), *_alignment(a, b), *zip(truth[len(truth) - end:], text[len(text) - end:])]
    return [tuple(map("".join, zip(*part))) for _, part in itertools.groupby(steps, key=lambda step: step[0] == step[1])]


def _alignment(a, b):
    """[(character of a or "", character of b or "")] with the fewest edits; a replacement before an insertion."""
    table = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        above, row = table[-1], [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j - 1] + (x != y), above[j] + 1, row[-1] + 1))
        table.append(row)
    steps, i, j = [], len(a), len(b)
    while i or j:
        if i and j and table[i][j] == table[i - 1][j - 1] + (a[i - 1] != b[j - 1]):
            i, j = i - 1, j - 1
            steps.append((a[i], b[j]))
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            steps.append((a[i], ""))
        else:
            j -= 1
            steps.append(("", b[j]))
    return steps[::-1]


ROWS = {"CER, %": "cer", "  95 % interval": "cer_interval", "CER uncased, %": "cer_uncased",
        "CER without spaces, %": "cer_no_spaces", "exact lines, %": "exact", "right number of characters, %": "right_count",
        "characters in the charset, %": "coverage"}


def percent(value) -> str:
    """A share, an interval of shares, or None, for a table."""
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if isinstance(value, float) else " to ".join(f"{100 * end:.2f}" for end in value)


def table(result: dict, peers: dict[str, dict], group: str = "") -> str:
    """A result of `evaluate_lines` as plain text, with those of others ({name: what `compare` gave}) on the same lines."""
    columns = {"reader": result, **peers}
    lines = [f"{result['lines']:,} lines, {result['characters']:,} characters"]
    if result["unreadable"]:
        first = result["unreadable"][0]
        lines.append(f"{len(result['unreadable']):,} images cannot be used and count as empty: {first['file']} "
                     f"({first['reason']})" + ("; ..." if len(result["unreadable"]) > 1 else ""))
    lines += ["", f"{'':<32}" + "".join(f"{name:>16}" for name in columns)]
    lines += [f"{name:<32}" + "".join(f"{percent(one[key]):>16}" for one in columns.values()) for name, key in ROWS.items()]
    if group:
        lines += [f"{f'CER of {group} {name}, %':<32}" + "".join(f"{percent(one['groups'][name]['cer']):>16}"
                                                                  for one in columns.values()) for name in result["groups"]]
        lines.append(f"{'  their mean':<32}" + "".join(f"{percent(one['mean_group_cer']):>16}" for one in columns.values()))
    if result["confusions"]:
        lines += ["", "most frequent confusions (truth > read): " + "  ".join(
            f"{visible(one['truth'])} > {visible(one['read'])} {one['count']}" for one in result["confusions"][:12])]
    return "\n".join(map(printable, lines))


def visible(text: str) -> str:
    """A part of a text for a table: spaces can be seen, nothing is a word, and a long part, such as a line, is cut."""
    text = text if len(text) <= LONGEST else text[:LONGEST - 1] + "\u2026"
    return text.replace(" ", "\u2423") or "nothing"
