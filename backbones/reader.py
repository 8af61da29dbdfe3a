"""A network that reads text lines: at each second column an embedding and the box of the character whose middle is there."""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from inference.errors import UserError

from .network import load_weights, read_weights

STRIDE = 2  # pixels of the line between two columns
BLANK, SPACE = "", " "  # the first two classes of every reader: of columns that are no character's middle, and of gaps
DILATIONS = (1, 2, 4, 8)  # of the blocks that look along the line, over and over
SIZE = 16.0  # pixels: boxes are said as multiples of it


class Reader(nn.Module):
    """Lines float `[B,1,H,W]` in [0,1], gray, dark ink on light ground, W a multiple of 4 ->

    embeddings `[B,W/2,D]` of unit length, boxes `[B,W/2,4]` (x0, y0, x1, y1 in pixels of the line), and centers `[C,D]`,
    the unit vectors of the classes. A column's class is that of the center with the largest cosine.

    Three strided convolutions take the height away but for H/8 rows, which become channels; what follows looks along the
    line alone: at half of the columns by residual blocks of growing dilation, which see some 15 characters, as much of a
    language as there is in them; between two layers at all columns, which tell neighbors such as "ll" apart.
    classes: the code point of each class, 0 for blank.
    """

    def __init__(self, classes: list[str], height: int, width: int, context_width: int, blocks: int, embedding_size: int):
        super().__init__()
        self.stem = nn.Sequential(*_convolution(1, 24, 3, 2), *_convolution(24, 48, 3, (2, 1)),
                                  *_convolution(48, 64, 3, (2, 1)))
        self.flat = nn.Sequential(*_convolution(64, width, (height // 8, 1), padding=0))
        self.near = nn.Sequential(_Block(width, 1), _Block(width, 2))
        self.coarse = nn.Sequential(*_convolution(width, context_width, (1, 3), (1, 2)))
        self.context = nn.Sequential(*(_Block(context_width, DILATIONS[i % len(DILATIONS)]) for i in range(blocks)))
        self.fine = nn.Conv2d(context_width, width, 1)
        self.last = _Block(width, 1)
        self.embed, self.sides = nn.Conv2d(width, embedding_size, 1), nn.Conv2d(width, 4, 1)
        self.centers = nn.Parameter(torch.randn(len(classes), embedding_size))
        self.register_buffer("codes", torch.tensor([ord(name) if name else 0 for name in classes], dtype=torch.int32))

    @property
    def classes(self) -> list[str]:
        return [chr(code) if code else BLANK for code in self.codes.tolist()]

    def forward(self, lines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        near = self.near(self.flat(self.stem(1 - lines)))                         # [B,width,1,W/2]; ink is 1, padding 0
        far = self.fine(self.context(self.coarse(near)))                          # [B,width,1,W/4]
        x = self.last(near + far.repeat_interleave(2, 3))
        exact = self.centers.dtype                                                # not the 16 bits of autocast
        embeddings = F.normalize(self.embed(x).squeeze(2).transpose(1, 2).to(exact), dim=2)
        left, top, right, bottom = (SIZE * F.softplus(self.sides(x).squeeze(2).to(exact))).unbind(1)   # [B,W/2] each
        column = (torch.arange(left.shape[1], device=left.device) + 0.5) * STRIDE
        boxes = torch.stack([column - left, torch.minimum(top, bottom), column + right, torch.maximum(top, bottom)], 2)
        return embeddings, boxes, F.normalize(self.centers, dim=1)


class _Block(nn.Module):
    """A residual convolution along the line."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.layers = nn.Sequential(*_convolution(width, width, (1, 3), dilation=(1, dilation), padding=(0, dilation)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def _convolution(inputs: int, outputs: int, kernel, stride=1, dilation=1, padding=None) -> tuple[nn.Module, ...]:
    if padding is None:
        padding = 1 if isinstance(kernel, int) else tuple(size // 2 for size in kernel)
    return (nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def get_reader(cfg, classes: list[str], state: dict | None = None) -> Reader:
    """The network of a config: keys `height, width, context_width, blocks, embedding_size`; with the weights `state` of
    another one (`read_reader`), whose classes may be others: the centers of those that it lacks stay random."""
    model = Reader(classes, cfg["height"], cfg["width"], cfg["context_width"], cfg["blocks"], cfg["embedding_size"])
    if state is not None:
        known = dict(zip(state["codes"].tolist(), state["centers"]))
        length = state["centers"].norm(dim=1).mean()
        fresh = torch.randn(len(classes), state["centers"].shape[1])
        fresh = F.normalize(fresh, dim=1) * length  # the rates of old and new centers are alike
        centers = torch.stack([known.get(code, center) for code, center in zip(model.codes.tolist(), fresh)])
        load_weights(model, {**state, "codes": model.codes, "centers": centers}, cfg.pretrained)
    return model.train()


def read_reader(file: str) -> tuple[dict, list[str]]:
    """(weights, classes) of the `model.pt` of a reader, or of its run's folder. Raises UserError."""
    path = Path(file, "model.pt") if Path(file).is_dir() else Path(file)
    state = {name: value.float() if value.is_floating_point() else value for name, value in read_weights(path).items()}
    codes, centers = (state.get(name, torch.empty(0)) for name in ("codes", "centers"))
    if codes.dtype != torch.int32 or codes.dim() != 1 or centers.dim() != 2 or len(centers) != len(codes):
        raise UserError(f"{path}: not the weights of a reader; give a model.pt that a run of task=reading wrote")
    known = codes.tolist()
    if known[:2] != [0, ord(SPACE)] or len(set(known)) < len(known) or not 0 <= min(known) <= max(known) <= sys.maxunicode:
        raise UserError(f"{path}: does not name the characters of a reader; give a model.pt as train_v2.py wrote it")
    return state, [BLANK, *map(chr, known[1:])]
