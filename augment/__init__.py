"""Augmentation of whole batches, in torch, on the device the batch is on.

`python augment.py CONFIG FILE.png [key=value ...]` draws a batch of that config before and after, to look at.

Every number drawn, noise fields included, is a function of (seed, name, position in the run), so it depends neither
on the batch a sample is in nor on the number of ranks. Numbers are drawn on the host, a few for each sample, so
choosing which samples an operation touches never waits for the device.
Nothing here turns one class into another: no flip, no turn beyond 20 degrees, no crop below three quarters of a side.
"""
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from engine.random import normal, uniform

AT_ONCE = (256, 8)  # pictures warped together, on a GPU and on a CPU: twice as fast there as all, since they fit its caches
NOISE = 512  # side of the field of Gaussian noise that all samples cut their windows from; it goes on round its edges


class Draw:
    """Random numbers of the samples at `position` (int64 `[n]`, on the host), made available on `device`."""

    def __init__(self, seed: int, position: torch.Tensor, device: torch.device, noise: torch.Tensor):
        self.seed, self.position, self.device, self.noise = seed, position, device, noise

    def host(self, name: str, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """float64 `[n]` on the host, uniform in [low, high)."""
        return low + (high - low) * uniform(self.seed, "augment/" + name, self.position)

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """`[n,1,1,1]` on the device, uniform in [low, high)."""
        drawn = self.host(name, low, high).to(torch.get_default_dtype())
        return drawn.to(self.device, non_blocking=True).view(-1, 1, 1, 1)

    def noise_field(self, name: str, channels: int, height: int, width: int) -> torch.Tensor:
        """Standard normal noise `[n,channels,height,width]`: windows of one fixed field, at drawn places and signs."""
        side, planes = len(self.noise), []
        for c in range(channels):
            top, left = (self(f"{name}/{edge}{c}", 0, side).long().view(-1, 1) for edge in ("top", "left"))
            rows = (top + torch.arange(height, device=self.device)) % side            # [n,height]
            columns = (left + torch.arange(width, device=self.device)) % side         # [n,width]
            planes.append(self.noise[rows[:, :, None], columns[:, None, :]])
        return torch.stack(planes, 1) * self(f"{name}/sign", -1, 1).sign()

    def at(self, chosen: torch.Tensor) -> "Draw":
        return Draw(self.seed, self.position[chosen], self.device, self.noise)


# ---------------------------------------------------------------- operations: (x [n,3,H,W], draw) -> [n,3,H,W]
def jitter(x, d):
    """Brightness .3, contrast .1, saturation .1, as the reference has them."""
    x = x * d("brightness", 0.7, 1.3)
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, d("contrast", 0.9, 1.1))
    return torch.lerp(x.mean(1, keepdim=True), x, d("saturation", 0.9, 1.1))


def channel_gain(x, d):
    """A colour cast: each channel with a gain of its own, as another white balance gives."""
    return x * torch.cat([d(f"channel_gain{c}", 0.7, 1.3) for c in range(3)], 1)


def shift_rgb(x, d):
    return x + torch.cat([d(f"shift{c}", -0.08, 0.08) for c in range(3)], 1)


def gray(x, d):
    return x.mean(1, keepdim=True).expand_as(x)


# Constants go to the device as drawn numbers do, without waiting for it; making a tensor there of a list would wait.
_SEPIA = torch.tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], dtype=torch.float64)
_ORDERS = torch.tensor([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def sepia(x, d):
    return torch.einsum("oc,nchw->nohw", _SEPIA.to(x, non_blocking=True), x)


def shuffle_channels(x, d):
    order = _ORDERS.to(x.device, non_blocking=True)[d("order", 0, 5).long().flatten()]
    return x.gather(1, order.view(-1, 3, 1, 1).expand_as(x))


def drop_channel(x, d):
    keep = d("dropped", 0, 3).floor() != torch.arange(3, device=x.device).view(1, 3, 1, 1)
    return x * keep


def invert(x, d):
    return 1 - x


def gamma(x, d):
    return x.clamp(1e-3, 1) ** d("gamma", math.log(0.5), math.log(2)).exp()


def blur_with(kernels: Callable) -> Callable:
    """A blur whose kernel `[n,1,k,k]` is `kernels(x, draw, across, down)`, on coordinates centred on the middle."""
    def blur(x, d, reach=4):
        n, channels, height, width = x.shape
        across = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype).view(1, 1, 1, -1)
        kernel = kernels(x, d, across, across.transpose(2, 3))
        kernel = (kernel / kernel.sum((2, 3), keepdim=True)).repeat_interleave(channels, 0)
        padded = F.pad(x, [reach] * 4, mode="replicate").view(1, n * channels, height + 2 * reach, width + 2 * reach)
        return F.conv2d(padded, kernel, groups=n * channels).view_as(x)
    return blur


@blur_with
def gaussian_blur(x, d, across, down):
    return (-(across ** 2 + down ** 2) / (2 * d("gaussian", 0.4, 1.5) ** 2)).exp()


@blur_with
def motion_blur(x, d, across, down):
    angle, length = d("motion/angle", 0, math.pi), d("motion/length", 0.5, 3)
    along = across * angle.cos() + down * angle.sin()
    aside = down * angle.cos() - across * angle.sin()
    return (1 - aside.abs()).clamp_min(0) * (length + 0.5 - along.abs()).clamp(0, 1)


@blur_with
def defocus(x, d, across, down):
    return (d("defocus", 0.6, 2.2) + 0.5 - (across ** 2 + down ** 2).sqrt()).clamp(0, 1)


def median_blur(x, d):
    """3x3, along the rows and then along the columns: minima and maxima alone, twenty times faster than sorting nine."""
    def of_three(a, b, c):
        return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    wide = F.pad(x, [1, 1, 0, 0], mode="replicate")
    x = of_three(wide[..., :-2], wide[..., 1:-1], wide[..., 2:])
    high = F.pad(x, [0, 0, 1, 1], mode="replicate")
    return of_three(high[:, :, :-2], high[:, :, 1:-1], high[:, :, 2:])


def zoom_blur(x, d):
    strength = d("zoom", 0.02, 0.08)
    eye = torch.eye(3, device=x.device, dtype=x.dtype).expand(len(x), 3, 3)
    zooms = [torch.cat([eye[:, :2] * (1 - strength.view(-1, 1, 1) * i / 3), eye[:, 2:]], 1) for i in range(4)]
    return sum(warp(x, zoom) for zoom in zooms) / 4


def downscale(factor: int) -> Callable:
    """Down to 1/factor and up again."""
    def down_up(x, d):
        small = F.interpolate(x, scale_factor=1 / factor, mode="area")
        return F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
    return down_up


_QUANTISATION = torch.tensor([  # luminance table of the JPEG standard, ITU-T T.81, annex K.1
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99]).view(8, 8) / 255


def jpeg(x, d):
    """The loss of JPEG at quality 5 to 50: 8x8 cosine transforms, coefficients rounded to the standard's steps.

    On RGB with the luminance table: near enough for an augmentation, and needs no colour transform.
    """
    n, channels, height, width = x.shape
    k = torch.arange(8, device=x.device, dtype=x.dtype)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    padded = F.pad(x, [0, -width % 8, 0, -height % 8], mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)                        # [n,3,H/8,W/8,8,8]
    step = _QUANTISATION.to(x, non_blocking=True).view(1, 1, 1, 1, 8, 8) * (50 / d("jpeg", 5, 50)).view(-1, 1, 1, 1, 1, 1)
    coefficients = (dct @ (blocks - 0.5) @ dct.T / step).round() * step
    blocks = dct.T @ coefficients @ dct + 0.5
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)[:, :, :height, :width]


def gaussian_noise(x, d):
    return x + d("noise/sigma", 0.01, 0.06) * d.noise_field("noise", 3, *x.shape[2:])


def iso_noise(x, d):
    """Sensor noise: common to the channels in brightness, its own in colour, stronger where it is dark."""
    luminance, colour = d.noise_field("iso", 1, *x.shape[2:]), d.noise_field("iso/colour", 3, *x.shape[2:])
    return x + d("iso/sigma", 0.01, 0.06) * (1.2 - x) * (luminance + 0.5 * colour)


def multiplicative_noise(x, d):
    return x * (1 + d("multiplicative", 0.03, 0.1) * d.noise_field("multiplicative", 1, *x.shape[2:]))


def illumination(x, d):
    """Light that falls off across the picture, in a drawn direction."""
    across, down = _axes(x)
    angle = d("light/angle", 0, 2 * math.pi)
    return x * (1 + d("light", 0.1, 0.6) * (across * angle.cos() + down * angle.sin()))


def glare(x, d):
    """A bright elliptic spot."""
    across, down = _axes(x)
    wide, high = d("glare/wide", 0.1, 0.6), d("glare/high", 0.1, 0.6)
    spot = (-((across - d("glare/x", -1, 1)) / wide) ** 2 - ((down - d("glare/y", -1, 1)) / high) ** 2).exp()
    return x + d("glare", 0.3, 1.0) * spot


def cutout(x, d):
    """A rectangle of at most 45 % of each side: flat, mottled, or another part of the picture moved there."""
    across, down = _axes(x)
    middle_x, middle_y = d("cutout/x", -1, 1), d("cutout/y", -1, 1)
    inside = (((across - middle_x).abs() < d("cutout/wide", 0.1, 0.45))
              & ((down - middle_y).abs() < d("cutout/high", 0.1, 0.45)))
    flat = torch.cat([d(f"cutout/colour{c}") for c in range(3)], 1)
    mottled = F.interpolate(d.noise_field("cutout", 3, 8, 8), x.shape[2:], mode="bilinear", align_corners=False)
    moved = x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3))
    kind = d("cutout/kind", 0, 3).floor()
    content = torch.where(kind == 0, flat, torch.where(kind == 1, flat + 0.3 * mottled, moved))
    return torch.where(inside, content, x)


# ---------------------------------------------------------------- geometry
def _axes(x, size=None):
    """Coordinates of the pixels of x, or of a square of `size`, -1 to 1: `[1,1,1,W]` and `[1,1,H,1]`."""
    height, width = (size, size) if size else x.shape[2:]
    across = (torch.arange(width, device=x.device, dtype=x.dtype) * 2 + 1) / width - 1
    down = (torch.arange(height, device=x.device, dtype=x.dtype) * 2 + 1) / height - 1
    return across.view(1, 1, 1, -1), down.view(1, 1, -1, 1)


def warp(x: torch.Tensor, matrix: torch.Tensor, fill: torch.Tensor | None = None, box: torch.Tensor | None = None,
         size: int | None = None, mode: str = "bilinear") -> torch.Tensor:
    """Resample `x` through homographies `[n,3,3]` from output to input coordinates (-1 to 1) -> `[n,3,size,size]`.

    What lies outside the input, or outside `box` (lowest and highest x, y: `[n,2,2]`), continues its border; where `fill`
    `[n,3,1,1]` is not NaN it has that colour instead. `size` None: the input's.
    """
    across, down = (axis.flatten() for axis in _axes(x, size))
    height, width = len(down), len(across)
    points = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width),
                          torch.ones_like(across).expand(height, -1)]).view(3, -1)       # [3,HW]
    mapped = matrix.to(x) @ points                                                       # [n,3,HW]
    place = mapped[:, :2] / mapped[:, 2:]                                                # [n,2,HW]: x, y
    low, high = (-1, 1) if box is None else box.to(x).unsqueeze(3).unbind(1)             # [n,2,1]
    if fill is not None:
        inside = ((place >= low) & (place <= high)).all(1).view(-1, 1, height, width)
    if box is not None:  # to the middles of its outermost pixels: nothing beyond the box is mixed in
        half = x.new_empty(2, 1)
        half[0], half[1] = 1 / x.shape[3], 1 / x.shape[2]  # numbers: a tensor made of a list would wait for the GPU
        place = place.clamp(low + half, high - half)
    grid = place.transpose(1, 2).reshape(-1, height, width, 2)
    out = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
    return out if fill is None else torch.where(inside | fill.isnan(), out, fill)


def _views() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the 24 views of `dataset.view_of`: homographies `[24,3,3]` from the view's coordinates to its picture's, and the
    lowest and highest (x, y) of the picture that it shows `[24,2,2]`. Exact, in float64."""
    turn = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    flip = torch.tensor([1, -1, 1], dtype=torch.float64).diag()
    halves = [torch.tensor([[1, 0, 0], [0, high, middle], [0, 0, 1]], dtype=torch.float64)
              for high, middle in ((1, 0), (0.5, -0.5), (0.5, 0.5))]
    matrix = torch.stack([turn.matrix_power(view % 4) @ flip.matrix_power(view // 4 % 2) @ halves[view // 8]
                          for view in range(24)])
    corners = matrix @ torch.tensor([[-1, 1], [-1, 1], [1, 1]], dtype=torch.float64)   # two opposite ones, as columns
    return matrix, torch.stack([corners[:, :2].amin(2), corners[:, :2].amax(2)], 1)


VIEWS, SHOWN = _views()


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


def _compose(d, angle, wide, high, x, y, rest) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    shear_x, shear_y, perspective_x, perspective_y = rest.T
    rows = [wide * cos, wide * (shear_x - sin), x, high * (shear_y + sin), high * cos, y,
            perspective_x, perspective_y, torch.ones_like(x)]
    return torch.stack(rows, 1).view(-1, 3, 3)


# ---------------------------------------------------------------- presets
REFERENCE_BLUR = [motion_blur, median_blur, gaussian_blur, zoom_blur, defocus, jpeg]
NOISES = [iso_noise, gaussian_noise, multiplicative_noise]
REFERENCE_COLOUR = [jitter, gray, sepia, shuffle_channels, drop_channel, shift_rgb, invert]
# name -> geometry, then (probability, one of these) in turn
PRESETS = {
    "none": (None, []),
    "reference": (reference_matrix, [(0.5, REFERENCE_BLUR), (0.5, NOISES), (0.5, REFERENCE_COLOUR)]),
    "strong": (strong_matrix, [
        (0.25, [cutout]), (0.4, [illumination]), (0.2, [glare]),
        (0.7, [jitter, channel_gain, shift_rgb, gamma]), (0.1, [gray, sepia, shuffle_channels, drop_channel, invert]),
        (0.4, [motion_blur, gaussian_blur, defocus, zoom_blur, median_blur, downscale(2), downscale(3)]),
        (0.3, NOISES), (0.2, [jpeg])]),
}


class Augment(nn.Module):
    """Whole pictures as the network sees them: the view, the change of size and the drawn geometry in one resampling.

    Against `dataset.view_of` on the picture itself, resized, a view without augmentation is off by what two resamplings
    blur, and a half's cut by at most half a pixel, of the picture (where its side is odd) or of the square.
    """

    def __init__(self, preset: str, seed: int):
        super().__init__()
        self.matrix, self.stages = PRESETS[preset]
        self.seed = seed
        if self.stages:
            side = torch.arange(NOISE)
            self.register_buffer("noise", normal(seed, "noise", side[:, None], side).to(torch.get_default_dtype()),
                                 persistent=False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor, position: torch.Tensor, view: torch.Tensor | None = None,
                size: int | None = None) -> torch.Tensor:
        """image uint8 `[B,3,c,c]`, on any device; position and view (None: 0, the whole picture) int64 `[B]` on the host
        -> float `[B,3,size,size]` in [0,1] on the image's device; size None: c."""
        size = size or image.shape[-1]
        view = torch.zeros_like(position) if view is None else view
        matrix, shown, fill, mode = VIEWS[view], SHOWN[view], None, "bilinear"
        if self.matrix is not None:
            draw = Draw(self.seed, position, image.device, self.noise)
            matrix = matrix @ self.matrix(draw)
            colour = torch.cat([draw(f"fill{c}") for c in range(3)], 1)
            fill = colour.where(draw("filled") < 0.5, torch.nan)
        elif size == image.shape[-1] and (view < 8).all():
            mode = "nearest"  # turns and flips of whole pictures: the same pixels, exactly
        x = torch.empty(len(image), 3, size, size, device=image.device)
        matrix, shown = (part.to(x.dtype).to(x.device, non_blocking=True) for part in (matrix, shown))
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


def main():
    """Write a contact sheet: every image of a batch as loaded, and as the network sees it."""
    import cv2

    from configs import load_config
    from dataset import Batches, ImageFolders, list_roots
    from inference.errors import UserError

    if len(sys.argv) < 3 or not sys.argv[2].endswith(".png"):
        raise UserError("usage: python augment.py CONFIG FILE.png [key=value ...]")
    cfg = load_config(sys.argv[1], sys.argv[3:])
    images = ImageFolders(list_roots(cfg.data, cfg.expansion), cfg.image_size, cfg.cache)
    batch = Batches(images, min(32, cfg.batch_size), 1, cfg.seed, 0, 1)[0]
    loaded, seen = ((Augment(preset, cfg.seed)(batch["image"], batch["position"], batch["view"], cfg.image_size) * 255)
                    .round().byte() for preset in ("none", cfg.augment))
    pairs = torch.cat([loaded, seen], 3)                                            # [n,3,S,2S]
    columns = 4
    pairs = torch.cat([pairs, pairs.new_full((-len(pairs) % columns, *pairs.shape[1:]), 255)])
    rows = pairs.view(-1, columns, *pairs.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    if not cv2.imwrite(sys.argv[2], rows.numpy()[:, :, ::-1]):
        raise UserError(f"{sys.argv[2]}: cannot be written; check the folder")
    print(f"{sys.argv[2]}: {len(batch['image'])} of {len(images)} samples, as loaded and as {cfg.augment} makes them")


if __name__ == "__main__":
    from inference.cli import run_cli
    run_cli(main)
