"""The average of a model's weights over steps: where `ema` or `swa` is above 0 it is what is evaluated and published."""
import contextlib

import torch
from torch import nn

from engine.schedules import ema_decay, swa_decay


class Ema:
    """Averages of all floating-point numbers of `model`: parameters and BatchNorm's statistics, in the parameters' own
    dtype (autocast does not change it). Whole numbers, BatchNorm's count of batches, are the model's own. Every rank holds
    one, as it holds the model.

    Exponential, by `decay` (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046); or, where `even_from` is a step, the
    plain mean over that step and all later ones (stochastic weight averaging, https://arxiv.org/abs/1803.05407; there
    BatchNorm's statistics are measured anew on the training data, here they are averaged as the weights are). Not torch's
    AveragedModel: that one looks at its count of updates on the host, and cannot skip a step that only the device knows to
    be spoiled.
    """

    def __init__(self, model: nn.Module, decay: float, even_from: int | None = None):
        self.decay, self.even_from = decay, even_from
        self._now = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
        self._averages = {name: value.clone() for name, value in self._now.items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int, skip: torch.Tensor) -> None:
        """average = d * average + (1 - d) * numbers now, d = `ema_decay(step, decay)` or `swa_decay(step, even_from)`; or as
        it was, if `skip`, a flag on the device, is true."""
        decay = ema_decay(step, self.decay) if self.even_from is None else swa_decay(step, self.even_from)
        averages = list(self._averages.values())
        change = torch._foreach_sub([self._now[name] for name in self._averages], averages)
        torch._foreach_mul_(change, (~skip) * (1 - decay))
        torch._foreach_add_(averages, change)

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self):
        """`with ema.applied():` the model has the averages for weights, and afterwards its own again, bit for bit."""
        own = {name: self._now[name].clone() for name in self._averages}
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(own)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As the model's own, with the averages in place of its floating-point numbers."""
        return {**self._now, **self._averages}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(state[name])

    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._now[name].copy_(value)
