"""The moving average of a network's weights, with which a run whose `ema` is above 0 is judged and published."""
import copy

import torch
from torch import nn


class Average:
    """`network`: a copy of `of` in evaluation mode whose numbers are the exponential moving averages of its numbers:
    parameters and BatchNorm's statistics, in the parameters' own float32 (autocast does not change it). Whole numbers,
    BatchNorm's count of batches, are those of the last step. Every rank holds one, as it holds the network.

    Polyak and Juditsky 1992, https://doi.org/10.1137/0330046. Not torch's AveragedModel: that one looks at its count of
    updates on the host, and cannot leave out a step that only the device knows to be spoilt.
    """

    def __init__(self, of: nn.Module):
        self.network = copy.deepcopy(of).requires_grad_(False).eval()
        self._averages, self._counts = _numbers(self.network)
        self._now, self._counts_now = _numbers(of)

    @torch.no_grad()
    def update(self, decay: float, skip: torch.Tensor) -> None:
        """average = decay * average + (1 - decay) * numbers now; or as it was, if `skip`, a flag on the device, is true."""
        change = torch._foreach_sub(self._now, self._averages)
        torch._foreach_mul_(change, (~skip) * (1 - decay))
        torch._foreach_add_(self._averages, change)
        if self._counts:
            torch._foreach_copy_(self._counts, self._counts_now)


def _numbers(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(what can be averaged, what cannot) of a network's parameters and buffers, in the order of its state dict."""
    values = list(network.state_dict(keep_vars=True).values())
    return [v.detach() for v in values if v.is_floating_point()], [v for v in values if not v.is_floating_point()]
