"""Where pixels come from: views, drawn homographies and the resampling; and where points and boxes go.

Coordinates (x, y) run from -1 to 1 over an image, x to the right, y downward, from edge to edge: of S pixels in a row, pixel
i has its center at (2 i + 1) / S - 1. A homography always leads from the output's coordinates to the input's, as resampling
needs it; `move_points` and `move_boxes` go the other way, as labels do.
"""
import math

import torch
import torch.nn.functional as F

from augment.draw import Draw


def axes(x: torch.Tensor, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of the pixels of x, or of an image of `size` x `size`: `[1,1,1,W]` and `[1,1,H,1]`."""
    height, width = (size, size) if size else x.shape[2:]
    across = (torch.arange(width, device=x.device, dtype=x.dtype) * 2 + 1) / width - 1
    down = (torch.arange(height, device=x.device, dtype=x.dtype) * 2 + 1) / height - 1
    return across.view(1, 1, 1, -1), down.view(1, 1, -1, 1)


def warp(x: torch.Tensor, matrix: torch.Tensor, fill: torch.Tensor | None = None, box: torch.Tensor | None = None,
         size: int | None = None, mode: str = "bilinear") -> torch.Tensor:
    """Resample x `[n,3,H,W]` through homographies `[n,3,3]` -> `[n,3,size,size]`; `size` None: `[n,3,H,W]`.

    What lies outside the input, or outside `box` (lowest and highest x, y: `[n,2,2]`), continues its border; where `fill`
    `[n,3,1,1]` is not NaN it has that color instead.
    """
    across, down = (axis.flatten() for axis in axes(x, size))
    height, width = len(down), len(across)
    points = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width),
                          torch.ones_like(across).expand(height, -1)]).view(3, -1)       # [3,HW]
    mapped = matrix.to(x) @ points                                                       # [n,3,HW]
    place = mapped[:, :2] / mapped[:, 2:]                                                # [n,2,HW]: x, y
    low, high = (-1, 1) if box is None else box.to(x).unsqueeze(3).unbind(1)             # [n,2,1]
    if fill is not None:
        inside = ((place >= low) & (place <= high)).all(1).view(-1, 1, height, width)
    if box is not None:  # to the centers of its outermost pixels: nothing beyond the box is mixed in
        half = x.new_empty(2, 1)
        half[0], half[1] = 1 / x.shape[3], 1 / x.shape[2]  # numbers: a tensor made of a list would wait for the GPU
        place = place.clamp(low + half, high - half)
    grid = place.transpose(1, 2).reshape(-1, height, width, 2)
    out = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
    return out if fill is None else torch.where(inside | fill.isnan(), out, fill)


# ---------------------------------------------------------------- labels that follow the pixels
def move_points(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Where the input's `points` `[n,K,2]` are in the output of `warp` through `matrix` `[n,3,3]`: `[n,K,2]`.

    One that left the output has coordinates beyond -1 or 1.
    """
    inverse = torch.linalg.inv(matrix).to(points)
    moved = points @ inverse[:, :, :2].mT + inverse[:, None, :, 2]                        # [n,K,3]
    return moved[..., :2] / moved[..., 2:]


def move_boxes(boxes: torch.Tensor, matrix: torch.Tensor,
               shown: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of the input `[n,K,4]` (x0, y0, x1, y1) in the output: (boxes `[n,K,4]`, share that is still visible `[n,K]`).

    A moved box is the upright hull of the moved corners, clipped to the output. shown: the part of the input that can be
    seen at all (lowest and highest x, y: `[n,2,2]`); boxes are clipped to it first. The share is one of areas: what `shown`
    leaves of the box, times what the output leaves of the hull. A box that cannot be seen has share 0, and becomes a point.
    """
    kept = boxes
    if shown is not None:
        low, high = shown.to(boxes).repeat(1, 1, 2).unsqueeze(2).unbind(1)                # [n,1,4]: x, y, x, y
        kept = boxes.clamp(low, high)
    corners = move_points(kept[..., [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(2, (4, 2)).flatten(1, 2), matrix)
    corners = corners.unflatten(1, (-1, 4))                                               # [n,K,4,2]
    hull = torch.cat([corners.amin(2), corners.amax(2)], 2)
    moved = hull.clamp(-1, 1)
    share = _share(kept, boxes) * _share(moved, hull)
    return torch.where((share > 0).unsqueeze(2), moved, moved[..., [0, 1, 0, 1]]), share


def _share(part, whole):
    area, of = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (part, whole))
    return torch.where(of > 0, area / of, 0.0)


# ---------------------------------------------------------------- views
def _views() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the 24 views of `dataset.view_of`: homographies `[24,3,3]` from the view's coordinates to its image's, and the
    lowest and highest (x, y) of the image that it shows `[24,2,2]`. Exact, in float64."""
    turn = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    flip = torch.tensor([1, -1, 1], dtype=torch.float64).diag()
    halves = [torch.tensor([[1, 0, 0], [0, high, middle], [0, 0, 1]], dtype=torch.float64)
              for high, middle in ((1, 0), (0.5, -0.5), (0.5, 0.5))]
    matrix = torch.stack([turn.matrix_power(view % 4) @ flip.matrix_power(view // 4 % 2) @ halves[view // 8]
                          for view in range(24)])
    corners = matrix @ torch.tensor([[-1, 1], [-1, 1], [1, 1]], dtype=torch.float64)   # two opposite ones, as columns
    return matrix, torch.stack([corners[:, :2].amin(2), corners[:, :2].amax(2)], 1)


VIEWS, SHOWN = _views()


# ---------------------------------------------------------------- drawn homographies
def reference_matrix(d: Draw) -> torch.Tensor:
    """Half the samples shift .1, scale .1 and turn 15 degrees; the others take a random resized crop of .8 to 1 of the
    area, its aspect within 3:4 to 4:3 of the whole. Homographies `[n,3,3]`, output to input, on the host."""
    n, turn = len(d.position), math.radians(15)
    crop = d.host("geometry") < 0.5
    angle = d.host("angle", -turn, turn).masked_fill(crop, 0)
    area, aspect = d.host("area", 0.8, 1), d.host("aspect", math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
    scale = 1 / d.host("scale", 0.9, 1.1)
    wide = torch.where(crop, (area.sqrt() * aspect).clamp_max(1), scale)
    high = torch.where(crop, (area.sqrt() / aspect).clamp_max(1), scale)
    x, y = d.host("x", -1, 1), d.host("y", -1, 1)
    return _compose(d, angle, wide, high, torch.where(crop, x * (1 - wide), 0.2 * x),
                    torch.where(crop, y * (1 - high), 0.2 * y), torch.zeros(n, 4, dtype=torch.float64))


def strong_matrix(d: Draw) -> torch.Tensor:
    """Turn 10 degrees, scale each side .85 to 1.15, shift .08, shear .1, perspective .1. Homographies `[n,3,3]`."""
    turn = math.radians(10)
    wide, high = d.host("wide", 0.85, 1.15), d.host("high", 0.85, 1.15)
    rest = torch.stack([d.host("shear/x", -0.1, 0.1), d.host("shear/y", -0.1, 0.1),
                        d.host("perspective/x", -0.1, 0.1), d.host("perspective/y", -0.1, 0.1)], 1)
    return _compose(d, d.host("angle", -turn, turn), wide, high, d.host("x", -0.16, 0.16), d.host("y", -0.16, 0.16), rest)


def glyph_matrix(d: Draw) -> torch.Tensor:
    """Seven of ten samples shift .1 and scale .9 to 1.1, as EffOCR's; each side by itself, and with a shear of .05. The rest
    stay as they are. Homographies `[n,3,3]`, output to input, on the host."""
    still = d.host("geometry") >= 0.7
    wide, high = d.host("wide", 0.9, 1.1).masked_fill(still, 1), d.host("high", 0.9, 1.1).masked_fill(still, 1)
    x, y = d.host("x", -0.2, 0.2).masked_fill(still, 0), d.host("y", -0.2, 0.2).masked_fill(still, 0)
    rest = torch.zeros(len(d.position), 4, dtype=torch.float64)
    rest[:, 0] = d.host("shear/x", -0.05, 0.05).masked_fill(still, 0)
    return _compose(d, torch.zeros_like(wide), wide, high, x, y, rest)


def drawing_matrix(d: Draw) -> torch.Tensor:
    """Turn 12 degrees, scale each side .8 to 1.2, shift .08, shear .15: what two people's drawings of one sign differ by.
    Homographies `[n,3,3]`, output to input, on the host."""
    turn = math.radians(12)
    wide, high = d.host("wide", 0.8, 1.2), d.host("high", 0.8, 1.2)
    rest = torch.zeros(len(d.position), 4, dtype=torch.float64)
    rest[:, 0], rest[:, 1] = d.host("shear/x", -0.15, 0.15), d.host("shear/y", -0.05, 0.05)
    return _compose(d, d.host("angle", -turn, turn), wide, high, d.host("x", -0.16, 0.16), d.host("y", -0.16, 0.16), rest)


def _compose(d, angle, wide, high, x, y, rest) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y, perspective_x, perspective_y = rest.T
    rows = [wide * cos, wide * (shear_x - sin), x, high * (shear_y + sin), high * cos, y,
            perspective_x, perspective_y, torch.ones_like(x)]
    return torch.stack(rows, 1).view(-1, 3, 3)
