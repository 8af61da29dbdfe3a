"""Augmentation of whole batches, in torch, on the device the batch is on.

Every number drawn, noise fields included, is a function of (seed, name, position in the run), so it depends neither
on the batch a sample is in nor on the number of ranks. Numbers are drawn on the host, a few for each sample, so
choosing which samples an operation touches never waits for the device.
Nothing here turns one class into another: no flip, no turn beyond 20 degrees, no crop below three quarters of a side.
`python -m tools.contact_sheet CONFIG FILE.png` draws a batch of a config before and after.
"""
from typing import NamedTuple

import torch
from torch import nn

from augment import operations as op
from augment.draw import Draw, noise_field
from augment.geometry import SHOWN, VIEWS, drawing_matrix, glyph_matrix, reference_matrix, strong_matrix, warp

AT_ONCE = (256, 8)  # images warped together, on a GPU and on a CPU: twice as fast there as all, since they fit its caches
NOISES = [op.iso_noise, op.gaussian_noise, op.multiplicative_noise]


def _strong(*colors) -> list:
    """The stages of the preset strong, `colors` among them."""
    return [
        (0.25, [op.cutout]), (0.4, [op.illumination]), (0.2, [op.glare]), *colors,
        (0.4, [op.motion_blur, op.gaussian_blur, op.defocus, op.zoom_blur, op.median_blur, op.downscale(2),
               op.downscale(3)]),
        (0.3, NOISES), (0.2, [op.jpeg])]


# name -> homographies, then (probability, one of these) in turn
PRESETS = {
    "none": (None, []),
    "reference": (reference_matrix, [
        (0.5, [op.motion_blur, op.median_blur, op.gaussian_blur, op.zoom_blur, op.defocus, op.jpeg]),
        (0.5, NOISES),
        (0.5, [op.jitter, op.gray, op.sepia, op.shuffle_channels, op.drop_channel, op.shift_rgb, op.invert])]),
    "strong": (strong_matrix, _strong((0.7, [op.jitter, op.channel_gain, op.shift_rgb, op.gamma]),
                                      (0.1, [op.gray, op.sepia, op.shuffle_channels, op.drop_channel, op.invert]))),
    # As strong, with colors that stay what a camera makes of them: what a color tells of a type is not to be forgotten.
    "natural": (strong_matrix, _strong((0.5, [op.jitter, op.channel_gain, op.gamma]), (0.03, [op.gray]))),
    # EffOCR's, for single characters: strokes of any weight, ink and paper of any color, blur and noise.
    "glyphs": (glyph_matrix, [
        (0.5, [op.thicken, op.thin]), (0.3, [op.gaussian_blur, op.defocus, op.downscale(2)]), (0.3, NOISES),
        (0.5, [op.jitter, op.channel_gain, op.shift_rgb, op.gamma]), (0.2, [op.gray])]),
    # Signs drawn by hand.
    "drawings": (drawing_matrix, [(0.7, [op.elastic]), (0.5, [op.thicken, op.thin])]),
}
BORDERED = {"glyphs", "drawings"}  # what lies outside of the image continues its border; else half the samples have a color


class Geometry(NamedTuple):
    """Where the pixels of B samples come from, float64 on the host; coordinates and directions as in `geometry.py`."""
    matrix: torch.Tensor  # homographies [B,3,3] from the output to the input, the view included
    shown: torch.Tensor   # the part of the input that the view shows: lowest and highest (x, y), [B,2,2]


class Augment(nn.Module):
    """Whole images as the network sees them: the view, the change of size and the drawn geometry in one resampling.

    Against `dataset.view_of` on the image itself, resized, a view without augmentation is off by what two resamplings
    blur, and a half's cut by at most half a pixel, of the image (where its side is odd) or of the resized image.
    """

    def __init__(self, preset: str, seed: int):
        super().__init__()
        self.matrix, self.stages = PRESETS[preset]
        self.seed, self.bordered = seed, preset in BORDERED
        self.register_buffer("noise", noise_field(seed) if self.stages else None, persistent=False)

    def geometry(self, position: torch.Tensor, view: torch.Tensor | None = None) -> Geometry:
        """What `forward` does with the places of pixels at `position` and `view` (int64 `[B]`, on the host).

        Labels follow by it: `move_points(points, geometry.matrix)`, `move_boxes(boxes, *geometry)`.
        """
        view = torch.zeros_like(position) if view is None else view
        matrix = VIEWS[view]
        if self.matrix is not None:
            matrix = matrix @ self.matrix(Draw(self.seed, position, position.device))
        return Geometry(matrix, SHOWN[view])

    @torch.no_grad()
    def forward(self, image: torch.Tensor, position: torch.Tensor, view: torch.Tensor | None = None,
                size: int | None = None) -> torch.Tensor:
        """image uint8 `[B,3,c,c]`, on any device; position and view (None: 0, the whole image) int64 `[B]` on the host
        -> float `[B,3,size,size]` in [0,1] on the image's device; size None: c."""
        size = size or image.shape[-1]
        draw, fill, mode = Draw(self.seed, position, image.device, self.noise), None, "bilinear"
        if self.matrix is not None and not self.bordered:
            color = torch.cat([draw(f"fill{c}") for c in range(3)], 1)
            fill = color.where(draw("filled") < 0.5, torch.nan)
        elif self.matrix is None and size == image.shape[-1] and (view is None or (view < 8).all()):
            mode = "nearest"  # turns and flips of whole images: the same pixels, exactly
        x = torch.empty(len(image), 3, size, size, device=image.device)
        matrix, shown = (part.to(x.dtype).to(x.device, non_blocking=True) for part in self.geometry(position, view))
        for start in range(0, len(x), few := AT_ONCE[x.device.type == "cpu"]):
            part = slice(start, start + few)
            x[part] = warp(image[part].to(x.dtype) / 255, matrix[part], None if fill is None else fill[part], shown[part],
                           size, mode)
        for i, (probability, operations) in enumerate(self.stages):
            which = (draw.host(f"stage{i}") / probability * len(operations)).long()  # beyond the last: none
            for j, operation in enumerate(operations):
                chosen = (which == j).nonzero().squeeze(1)
                if len(chosen):
                    at = chosen.to(x.device, non_blocking=True)
                    x.index_copy_(0, at, operation(x[at], draw.at(chosen)).clamp(0, 1))
        return x
