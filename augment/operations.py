"""What an augmentation does to the values of pixels: each operation is (x [n,3,H,W] in [0,1], draw) -> [n,3,H,W].

The caller clamps the result to [0,1]. What an image shows stays where it is, though `cutout` may hide a part of it; but for
`elastic`, which is not for images with boxes or points.
"""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from augment.geometry import axes, warp


def jitter(x, d):
    """Brightness .3, contrast .1, saturation .1, as the reference has them."""
    x = x * d("brightness", 0.7, 1.3)
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, d("contrast", 0.9, 1.1))
    return torch.lerp(x.mean(1, keepdim=True), x, d("saturation", 0.9, 1.1))


def channel_gain(x, d):
    """A color cast: each channel with a gain of its own, as another white balance gives."""
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
    """A blur whose kernel `[n,1,k,k]` is `kernels(x, draw, across, down)`, on coordinates centered on the middle."""
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


_QUANTIZATION = torch.tensor([  # luminance table of the JPEG standard, ITU-T T.81, annex K.1
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99]).view(8, 8) / 255


def jpeg(x, d):
    """The loss of JPEG at quality 5 to 50: 8x8 cosine transforms, coefficients rounded to the standard's steps.

    On RGB with the luminance table: near enough for an augmentation, and needs no color transform.
    """
    n, channels, height, width = x.shape
    k = torch.arange(8, device=x.device, dtype=x.dtype)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    padded = F.pad(x, [0, -width % 8, 0, -height % 8], mode="replicate")
    blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)                        # [n,3,H/8,W/8,8,8]
    step = _QUANTIZATION.to(x, non_blocking=True).view(1, 1, 1, 1, 8, 8) * (50 / d("jpeg", 5, 50)).view(-1, 1, 1, 1, 1, 1)
    coefficients = (dct @ (blocks - 0.5) @ dct.T / step).round() * step
    blocks = dct.T @ coefficients @ dct + 0.5
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)[:, :, :height, :width]


def gaussian_noise(x, d):
    return x + d("noise/sigma", 0.01, 0.06) * d.noise_field("noise", 3, *x.shape[2:])


def iso_noise(x, d):
    """Sensor noise: common to the channels in brightness, its own in color, stronger where it is dark."""
    luminance, color = d.noise_field("iso", 1, *x.shape[2:]), d.noise_field("iso/colour", 3, *x.shape[2:])
    return x + d("iso/sigma", 0.01, 0.06) * (1.2 - x) * (luminance + 0.5 * color)


def multiplicative_noise(x, d):
    return x * (1 + d("multiplicative", 0.03, 0.1) * d.noise_field("multiplicative", 1, *x.shape[2:]))


def illumination(x, d):
    """Light that falls off across the image, in a drawn direction."""
    across, down = axes(x)
    angle = d("light/angle", 0, 2 * math.pi)
    return x * (1 + d("light", 0.1, 0.6) * (across * angle.cos() + down * angle.sin()))


def glare(x, d):
    """A bright elliptic spot."""
    across, down = axes(x)
    wide, high = d("glare/wide", 0.1, 0.6), d("glare/high", 0.1, 0.6)
    spot = (-((across - d("glare/x", -1, 1)) / wide) ** 2 - ((down - d("glare/y", -1, 1)) / high) ** 2).exp()
    return x + d("glare", 0.3, 1.0) * spot


def thicken(x, d):
    """Dark strokes grow by up to a pixel on each side."""
    return torch.lerp(x, -F.max_pool2d(-x, 3, 1, 1), d("thicken", 0.3, 1))


def thin(x, d):
    """Dark strokes lose up to a pixel on each side."""
    return torch.lerp(x, F.max_pool2d(x, 3, 1, 1), d("thin", 0.3, 1))


def elastic(x, d):
    """Each place moves by a smooth random field, 1 to 4 % of the side (Simard et al. 2003): as if drawn by another hand."""
    away = F.interpolate(d.noise_field("elastic", 2, 4, 4), x.shape[2:], mode="bicubic", align_corners=False)  # [n,2,H,W]
    across, down = axes(x)
    place = torch.cat([across.expand(1, 1, *x.shape[2:]), down.expand(1, 1, *x.shape[2:])], 1)
    grid = (place + d("elastic", 0.02, 0.08) * away).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def cutout(x, d):
    """A rectangle of at most 45 % of each side: flat, mottled, or another part of the image moved there."""
    across, down = axes(x)
    middle_x, middle_y = d("cutout/x", -1, 1), d("cutout/y", -1, 1)
    inside = (((across - middle_x).abs() < d("cutout/wide", 0.1, 0.45))
              & ((down - middle_y).abs() < d("cutout/high", 0.1, 0.45)))
    flat = torch.cat([d(f"cutout/colour{c}") for c in range(3)], 1)
    mottled = F.interpolate(d.noise_field("cutout", 3, 8, 8), x.shape[2:], mode="bilinear", align_corners=False)
    moved = x.roll((x.shape[2] // 2, x.shape[3] // 2), (2, 3))
    kind = d("cutout/kind", 0, 3).floor()
    content = torch.where(kind == 0, flat, torch.where(kind == 1, flat + 0.3 * mottled, moved))
    return torch.where(inside, content, x)
