"""Reading text lines: characters by their embeddings at each column of the line, with boxes where they are known."""
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from augment.lines import augment_line, augmented_width
from backbones.reader import BLANK, SPACE, STRIDE, get_reader, read_reader
from engine.distributed import global_mean, shard_range
from engine.keys import Key
from engine.random import permute
from engine.schedules import margin_factor
from eval.reading import evaluate_lines
from inference.errors import UserError
from inference.image import ImageError, map_ahead
from inference.lines import line_size, load_line, resize_line, resized_width, turned
from inference.reader import MAX_CLASSES, MAX_HEIGHT, LineReader
from inference.text import normalize
from losses import MARGINS, check_margin, get_margin
from ocr.folder import Line, read_lines
from ocr.text import read_charset
from tasks.base import Evaluation, Export, Task

POOL = 32  # batches whose lines are sorted by width together, at most
AHEAD = 4  # batches that are loaded before they are asked for
PAD = 64  # widths of batches are multiples of it, pixels
CORE, RIM = 0.22, 0.38  # of a character's width: columns so near its middle are its own; up to there they count for nothing
GAP = 0.25  # of a gap's width: columns so near its middle are a space


class Row(NamedTuple):
    """A line of a batch: its width in pixels before augmentation, and its position in the run, which no other one has."""
    line: Line
    width: int
    position: int


class ReadingTask(Task):
    """`backbones.reader.Reader`, trained with three terms.

    The margin softmax at the columns of lines whose boxes are known, as those of synthetic lines are: the middle of a
    character has its class, the middle of a gap between words the space, the rest blank. The boxes at the middles of
    characters. And CTC (Graves et al. 2006, https://doi.org/10.1145/1143844.1143891) over the same scaled cosines for all
    lines: it needs no boxes, so transcribed lines are learned by it alone, and it teaches to count letters.

    A batch holds lines of similar widths: those of POOL batches, or of as many as an epoch has, are sorted, and cut into
    batches whose order is random. All of it follows from the position, so that a run can be resumed anywhere.
    """

    defaults = {
        "data": Key([], "folders of lines with boxes (lines.tsv, coco.json), as `python -m ocr lines` makes them",
                    also=(str,), items="folders"),
        "lines": Key("", "a folder of transcribed lines (lines.tsv with the columns file and text)"),
        "lines_where": Key("", "which of them, by another column: book=a,b or book!=c"),
        "lines_count": Key(0, "so many of them, at random by the seed; 0: all", least=0),
        "lines_share": Key(0.5, "of a batch, where there are transcribed lines", above=0, most=1),
        "charset": Key("", "a file of the characters to learn beside those of pretrained (UTF-8); default: those of lines, "
                           "or without lines those of data"),
        "vertical": Key(False, "lines run from top to bottom"),
        "height": Key(40, "of lines, pixels; a multiple of 8", least=16, most=MAX_HEIGHT),
        "max_width": Key(2400, "of lines, pixels at that height; wider ones are skipped", least=64),
        "width": Key(128, "channels of the columns", least=8, most=2048),
        "context_width": Key(192, "channels at every second column, where the network looks along the line", least=8,
                             most=2048),
        "blocks": Key(8, "residual blocks that look along the line", least=1, most=64),
        "embedding_size": Key(96, "numbers in an embedding", least=1, most=8192),
        "pretrained": Key("", "begin with these weights: model.pt or the folder of another run of this task"),
        "margin": Key("cosface", "of the softmax at the columns", choices=tuple(MARGINS)),
        "m": Key(0.15, "margin; for combined a list [m1, m2, m3]", also=(list,)),
        "s": Key(20.0, "scale", above=0, most=1000),
        "margin_warmup": Key(0.2, "the margin grows from 0 over this fraction of the run", least=0, most=1),
        "interclass": Key(0.0, "exclude negatives whose cosine is above this; 0: off", least=0),
        "blank_weight": Key(0.3, "of a column without a character, beside one with", least=0),
        "box_weight": Key(1.0, "of the boxes' term", least=0),
        "ctc_weight": Key(0.5, "of the CTC term", least=0),
        "augment": Key(True, "change size, place and ink of the lines a little, anew each time"),
        "eval_lines": Key("", "a folder of transcribed lines to evaluate on"),
        "eval_where": Key("", "which of them, by another column"),
        "eval_count": Key(0, "so many of them, at random; 0: all", least=0),
    }

    @classmethod
    def check_config(cls, cfg) -> None:
        if isinstance(cfg.data, str):
            cfg.data = [cfg.data] if Path(cfg.data).is_dir() else [part for part in cfg.data.split(",") if part]
        if cfg.height % 8:
            raise UserError(f"height={cfg.height}: must be a multiple of 8")
        check_margin(cfg)

    def __init__(self, cfg, ranks):
        super().__init__(cfg, ranks)
        if not cfg.data and not cfg.lines:
            raise UserError("data, lines: no lines given; write data=FOLDER, made by `python -m ocr lines --out FOLDER`, "
                            "or lines=FOLDER with images and lines.tsv")
        state, known = read_reader(cfg.pretrained) if cfg.pretrained else (None, [BLANK, SPACE])
        boxed = [line for folder in cfg.data for line in read_lines(folder)]
        written = read_lines(cfg.lines, cfg.lines_where, cfg.lines_count, cfg.seed) if cfg.lines else []
        texts = [read_charset(cfg.charset)] if cfg.charset else [normalize(line.text) for line in written or boxed]
        wanted = sorted(set("".join(texts)) - set(known))
        if state is not None and wanted:
            self.notes.append(f"new characters: {''.join(wanted)}")
        self.number = {name: place for place, name in enumerate([*known, *wanted])}
        self.groups, self.widths = zip(*(self._prepare(lines, key) for lines, key in ((boxed, "data"), (written, "lines"))
                                         if lines))
        transcribed = round(cfg.batch_size * cfg.lines_share)
        self.shares = [cfg.batch_size - transcribed, transcribed] if len(self.groups) == 2 else [cfg.batch_size]
        self.smallest = cfg.batch_size // cfg.accumulate // ranks.world
        if not self.smallest or not all(self.shares):
            raise UserError(f"batch_size={cfg.batch_size}: too small to share among {ranks.world} processes x accumulate="
                            f"{cfg.accumulate}, and among data and lines by lines_share={cfg.lines_share:g}")
        self.pool = max(1, min(POOL, *(len(group) // share for group, share in zip(self.groups, self.shares))))
        self.margin = get_margin(cfg)
        torch.manual_seed(cfg.seed)  # of the model's first weights; DDP hands rank 0's to all
        self.model = self.published = get_reader(cfg, list(self.number), state)
        samples, share = max(((len(group), share) for group, share in zip(self.groups, self.shares)),
                             key=lambda pair: pair[0] / pair[1])
        self.total_steps = cfg.max_steps or math.ceil(cfg.epochs * samples / share)
        self.held_out = (read_lines(cfg.eval_lines, cfg.eval_where, cfg.eval_count, cfg.seed, with_boxes=False)
                         if cfg.eval_lines else [])

    def _prepare(self, lines: list[Line], key: str) -> tuple[list[Line], list[int]]:
        """The lines that can be learned, with their text normalized and the boxes of its characters, and their widths. What
        is skipped is told."""
        kept, widths, skipped, broken = [], [], Counter(), []
        for line, (width, problem) in zip(lines, map_ahead(self._width, lines)):
            text, boxes = normalize(line.text), line.boxes
            if boxes is not None and len(boxes) != len(text.replace(SPACE, "")):
                boxes = None
            if problem:
                broken.append(f"{line.path}: {problem}")
            elif not text or not set(text) <= self.number.keys():
                skipped["have no text, or characters outside the charset"] += 1
            elif width > self.cfg.max_width:
                skipped[f"are wider than max_width={self.cfg.max_width}"] += 1
            elif boxes is None and key == "data":
                skipped["have no matching boxes"] += 1
            else:
                kept.append(line._replace(text=text, boxes=boxes))
                widths.append(width)
        if broken:
            skipped[f"cannot be used ({broken[0]}{'; ...' if len(broken) > 1 else ''})"] = len(broken)
        told = [f"{count} of {len(lines)} lines {why}" for why, count in skipped.items()]
        if not kept:
            raise UserError(f"{key}: none of its lines can be used: {', '.join(told[:3])}")
        self.notes += [f"{key}: {one}, and are skipped" for one in told]
        return kept, widths

    def _width(self, line: Line) -> tuple[int, str]:
        """(of a line, pixels at the config's height; why its image cannot be used)."""
        try:
            return resized_width(*line_size(line.path, self.cfg.vertical), self.cfg.height), ""
        except ImageError as error:
            return 0, str(error)

    @classmethod
    def restore(cls, cfg, info: dict):
        classes = info.get("classes")
        if (not isinstance(classes, list) or classes[:2] != [BLANK, SPACE] or len(classes) > MAX_CLASSES
                or not all(isinstance(name, str) and len(name) == 1 for name in classes[1:])):
            raise UserError("run.json: does not name the run's characters; give the folder as train_v2.py left it")
        return get_reader(cfg, classes)

    @classmethod
    def export(cls, cfg, info: dict, network, evaluation: dict | None = None) -> Export:
        return Export(network, cfg["height"], ("embeddings", "boxes", "centers"), about(cfg, network.classes), channels=1,
                      variable_width=True)

    def describe(self) -> dict:
        return {"num_classes": len(self.number), "classes": list(self.number), "lines": sum(map(len, self.groups)),
                "transcribed": sum(line.boxes is None for group in self.groups for line in group), "steps": self.total_steps}

    def compatibility_keys(self) -> dict:
        keys = ("height", "width", "context_width", "blocks", "embedding_size", "lines_share")
        return {**super().compatibility_keys(), **{key: self.cfg[key] for key in keys}, "classes": list(self.number),
                "lines": [len(group) for group in self.groups]}

    def example(self) -> tuple[torch.Tensor, ...]:
        return torch.ones(self.smallest, 1, self.cfg.height, PAD, device=self.ranks.device),

    def begin_step(self, step: int, factor: float) -> dict[str, float]:
        self.margin.strength = margin_factor(step, self.total_steps, self.cfg.margin_warmup)
        return {"margin": self.margin.strength}

    # ---------------------------------------------------------------- batches
    def rows(self, step: int) -> list[Row]:
        """The global batch, all of similar widths; a function of the step alone."""
        pool, place = divmod(step, self.pool)
        chosen = np.random.default_rng((self.cfg.seed, pool)).permutation(self.pool)[place]
        rows = []
        for number, (lines, share, width) in enumerate(zip(self.groups, self.shares, self.widths)):
            position = torch.arange(share * self.pool) + pool * self.pool * share
            order = permute(position % len(lines), len(lines), self.cfg.seed, f"lines {number}", position // len(lines))
            drawn = sorted(zip(order.tolist(), position.tolist()), key=lambda pair: (width[pair[0]], pair[1]))
            part = drawn[chosen * share:(chosen + 1) * share]
            # The place of a line in the batch, so that each rank's part has lines of both kinds.
            rows += [((i + 0.5) / share, number, Row(lines[at], width[at], 2 * where + number))
                     for i, (at, where) in enumerate(part)]
        return [row for *_, row in sorted(rows, key=lambda entry: entry[:2])]

    def batches(self, first_step: int) -> Iterator[dict]:
        """`image` uint8 `[B,1,H,W]`, white where a line has ended; `columns` int64 `[B]`, how many each line has; `text`;
        and `label` int64 `[B,T]`, `box` float32 `[B,T,4]` and `has_box` bool `[B]`: what the columns should say."""
        cfg = self.cfg
        parts = ((step, micro) for step in range(first_step, self.total_steps) for micro in range(cfg.accumulate))
        for batch in map_ahead(lambda part: self._load(*part), parts, AHEAD):
            yield {name: value.to(self.ranks.device) if name in ("image", "label", "box") else value
                   for name, value in batch.items()}

    def _load(self, step: int, micro: int) -> dict:
        cfg, rows = self.cfg, self.rows(step)
        # Of the global batch: a line's last columns see the white behind it, which must not depend on the ranks.
        width = -(-max(map(self._width_in_batch, rows)) // PAD) * PAD
        rows = [rows[i] for i in shard_range(len(rows), micro, cfg.accumulate)]
        rows = [rows[i] for i in shard_range(len(rows), self.ranks.rank, self.ranks.world)]
        images, targets = [], []
        for line, _, position in rows:
            try:
                image, boxes = load_line(line.path, cfg.vertical), line.boxes
            except ImageError as error:
                raise UserError(f"{line.path}: {error}; repair it, or remove its row in lines.tsv") from None
            if cfg.vertical and boxes is not None:
                boxes = turned(boxes, image.shape[0])
            image, boxes = (augment_line(image, boxes, cfg.height, self._rng(position)) if cfg.augment else
                            plain(image, boxes, cfg.height))
            images.append(image)
            targets.append(boxes if boxes is None else
                           line_targets(line.text, boxes, -(-image.shape[1] // STRIDE), self.number))
        shown = np.full((len(rows), 1, cfg.height, width), 255, np.uint8)
        label = np.full((len(rows), width // STRIDE), -1)
        box = np.zeros((len(rows), width // STRIDE, 4), np.float32)
        for i, (image, target) in enumerate(zip(images, targets)):
            shown[i, 0, :, :image.shape[1]] = image
            if target:
                label[i, :len(target.label)], box[i, :len(target.label)] = target
                label[i, len(target.label):] = 0
        return {"image": torch.from_numpy(shown), "label": torch.from_numpy(label), "box": torch.from_numpy(box),
                "has_box": torch.tensor([target is not None for target in targets]),
                "columns": torch.tensor([-(-image.shape[1] // STRIDE) for image in images]),
                "text": [row.line.text for row in rows], "id": [row.line.file for row in rows],
                "position": torch.tensor([row.position for row in rows])}

    def _width_in_batch(self, row: Row) -> int:
        return augmented_width(row.width, self._rng(row.position)) if self.cfg.augment else row.width

    def _rng(self, position: int) -> np.random.Generator:
        """Of a line's augmentation."""
        return np.random.default_rng((self.cfg.seed, position))

    # ---------------------------------------------------------------- losses
    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        cfg = self.cfg
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            embeddings, boxes, centers = self.forward(batch["image"].to(self.model.centers.dtype) / 255)
        cosines, label = embeddings @ centers.T, batch["label"]                   # [B,T,C], [B,T]
        inside = label > 1
        wrong = (boxes[inside] - batch["box"][inside]).abs().mean(1) / cfg.height * 2
        ids = [[self.number[letter] for letter in text] for text in batch["text"]]
        # Without boxes the first two are 0, but stay: DDP waits for a gradient of every parameter.
        return {cfg.margin: global_mean(*column_softmax(cosines, label, self.margin, cfg.blank_weight)),
                "box": cfg.box_weight * global_mean(wrong),
                "ctc": cfg.ctc_weight * global_mean(ctc(cosines * cfg.s, batch["columns"], ids))}

    # ---------------------------------------------------------------- evaluation
    @property
    def evaluates(self) -> bool:
        return bool(self.held_out)

    def evaluate(self) -> Evaluation | None:
        """The lines of `eval_lines` as the exported network reads them; the character error rate decides."""
        if not self.held_out:
            return None
        found = evaluate_lines(LineReader(TorchReader(self)), self.held_out)
        shown = {key: found[key] for key in ("cer", "exact", "right_count")}
        return Evaluation(shown, decides="cer", higher_is_better=False, document=found)


class TorchReader:
    """The published network of a run, as `inference.reader.LineReader` uses a model."""

    def __init__(self, task: ReadingTask):
        self.network, self.device = task.published, task.ranks.device
        self.about = about(task.cfg, list(task.number))
        self.centers = F.normalize(self.network.centers.detach(), dim=1).float().cpu().numpy()

    @torch.no_grad()
    def run(self, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        was_training = self.network.training
        self.network.eval()
        embeddings, boxes, _ = self.network(torch.from_numpy(lines).to(self.device, self.network.centers.dtype))
        self.network.train(was_training)
        return embeddings.float().cpu().numpy(), boxes.float().cpu().numpy()


def about(cfg, classes: list[str]) -> dict:
    """What inference must know of a reader."""
    return {"height": cfg["height"], "stride": STRIDE, "classes": classes, "scale": cfg["s"], "vertical": cfg["vertical"]}


# ---------------------------------------------------------------- what the network should say
class Targets(NamedTuple):
    label: np.ndarray  # int64 [T]: the class of each column, -1 where it does not count
    box: np.ndarray  # float32 [T,4], in pixels, where the label is a character


def line_targets(text: str, boxes: np.ndarray, columns: int, number: dict[str, int]) -> Targets:
    """What the columns of a line should say. boxes float32 `[n,4]`: of the n characters of `text` that are not spaces."""
    label, box = np.zeros(columns, np.int64), np.zeros((columns, 4), np.float32)
    at = (np.arange(columns) + 0.5) * STRIDE
    letters = [letter for letter in text if letter != SPACE]
    middle, width = boxes[:, ::2].mean(1), boxes[:, 2] - boxes[:, 0]
    far = np.abs(at - middle[:, None])                                            # [n,T]
    label[(far <= RIM * width[:, None]).any(0)] = -1
    core = far <= np.maximum(STRIDE / 2 + 0.01, CORE * width[:, None])
    nearest = np.where(core, far, np.inf).argmin(0) if len(boxes) else np.zeros(columns, np.int64)
    own = core.any(0)
    label[own] = np.array([number[letter] for letter in letters] or [0])[nearest[own]]
    box[own] = boxes[nearest[own]]
    for i in range(len(letters) - 1):  # the two f of a ligature touch; CTC counts two by a blank between them
        edge = math.floor((boxes[i, 2] + boxes[i + 1, 0]) / 2 / STRIDE)
        if letters[i] == letters[i + 1] and 0 <= edge < columns and not own[edge]:
            label[edge] = number[BLANK]
    before = -1
    for letter, following in zip(text, text[1:]):
        before += letter != SPACE
        if letter != SPACE or following == SPACE or not 0 <= before < len(boxes) - 1:
            continue
        left, right = boxes[before, 2], boxes[before + 1, 0]
        gap = np.abs(at - (left + right) / 2) <= max(STRIDE / 2 + 0.01, GAP * (right - left))
        label[gap & (label == 0)] = number[SPACE]
    return Targets(label, box)


def plain(image: np.ndarray, boxes: np.ndarray | None, height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A line `height` pixels high, and its boxes."""
    line, scale = resize_line(image, height)
    return line, None if boxes is None else boxes * scale


def column_softmax(cosines: torch.Tensor, label: torch.Tensor, margin, blank_weight: float
                   ) -> tuple[torch.Tensor, torch.Tensor]:
    """(weighted cross entropy of each column, its weight), `[N]` each, of those that count. cosines `[B,T,C]`; label
    `[B,T]`: classes, -1 where a column does not count. The margin is taken from the cosine of characters, not from that of
    blank or space, which have no rivals to be told apart from: they are what is left."""
    counts = label >= 0
    cosines, label = cosines[counts], label[counts]                               # [N,C], [N]
    target = cosines.gather(1, label[:, None])[:, 0]
    target = torch.where(label > 1, margin(target), target)
    excluded = margin.excluded(cosines)
    if excluded is not None:
        cosines = cosines.masked_fill(excluded, -torch.inf)
    logits = margin.s * cosines.scatter(1, label[:, None], target[:, None])
    weight = torch.where(label > 1, 1.0, blank_weight)
    return weight * F.cross_entropy(logits, label, reduction="none"), weight


def ctc(logits: torch.Tensor, columns: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    """CTC's negative log likelihood of each line over its number of characters, `[B]`; 0 for a text that is too long for its
    columns. logits `[B,T,C]`, columns int64 `[B]`, class 0 is blank."""
    lengths = torch.tensor([len(one) for one in ids])
    flat = torch.tensor([number for one in ids for number in one], dtype=torch.int64)
    wrong = F.ctc_loss(logits.log_softmax(2).transpose(0, 1), flat.to(logits.device), columns, lengths, reduction="none",
                       zero_infinity=True)
    return wrong / lengths.clamp_min(1).to(wrong)
