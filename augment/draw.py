"""The random numbers of an augmentation: each is a function of (seed, name, position in the run) and of nothing else.

The names below "augment/" are seeds: with another name a run would draw other numbers, so they keep their spelling.
"""
import torch

from engine.random import normal, uniform

NOISE = 512  # side of the field of Gaussian noise that all samples cut their windows from; it wraps around at the edges


def noise_field(seed: int) -> torch.Tensor:
    """The field of standard normal noise of a run: `[NOISE,NOISE]`, of torch's default float type."""
    side = torch.arange(NOISE)
    return normal(seed, "noise", side[:, None], side).to(torch.get_default_dtype())


class Draw:
    """Random numbers of the samples at `position` (int64 `[n]`, on the host), made available on `device`.

    noise: what `noise_field(seed)` gives, on `device`; None where no noise is drawn.
    """

    def __init__(self, seed: int, position: torch.Tensor, device: torch.device, noise: torch.Tensor | None = None):
        self.seed, self.position, self.device, self.noise = seed, position, device, noise

    def host(self, name: str, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """float64 `[n]` on the host, uniform in [low, high)."""
        return low + (high - low) * uniform(self.seed, "augment/" + name, self.position)

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """`[n,1,1,1]` on the device, uniform in [low, high)."""
        drawn = self.host(name, low, high).to(torch.get_default_dtype())
        return drawn.to(self.device, non_blocking=True).view(-1, 1, 1, 1)

    def noise_field(self, name: str, channels: int, height: int, width: int) -> torch.Tensor:
        """Standard normal noise `[n,channels,height,width]`: windows of the one field, at drawn places and signs."""
        side, planes = len(self.noise), []
        for c in range(channels):
            top, left = (self(f"{name}/{edge}{c}", 0, side).long().view(-1, 1) for edge in ("top", "left"))
            rows = (top + torch.arange(height, device=self.device)) % side            # [n,height]
            columns = (left + torch.arange(width, device=self.device)) % side         # [n,width]
            planes.append(self.noise[rows[:, :, None], columns[:, None, :]])
        return torch.stack(planes, 1) * self(f"{name}/sign", -1, 1).sign()

    def at(self, chosen: torch.Tensor) -> "Draw":
        """The same numbers, of some of the samples: int64 `[k]` on the host."""
        return Draw(self.seed, self.position[chosen], self.device, self.noise)
