"""A step whose loss or gradient is not finite moves nothing, without the device being asked about it at every step."""
import torch
from torch import nn

from inference.errors import UserError


class StepGuard:
    """Around each step: `begin()`; `skip = check(loss, norm)` after backward; `end(skip)` when the optimizer has stepped.

    BatchNorm's statistics change in the forward pass, before anyone knows whether the step counts: `end` puts back what
    `begin` kept. Counts the skipped steps, since the start and in a row; `counters` go into checkpoints, `earlier` is what
    one held. `refuse(step)` ends a run of which `limit` (0: none) steps in a row were skipped.
    """

    def __init__(self, model: nn.Module, device: torch.device, limit: int, earlier: dict):
        self.limit = limit
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._sizes = [buffer.numel() for buffer in self._statistics]
        self.skipped, self.in_a_row = (torch.tensor(float(earlier.get(name, 0.0)), device=device)
                                       for name in ("skipped", "in_a_row"))

    def begin(self) -> None:
        self._before = _flat(self._statistics)

    def check(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """bool scalar on the device: whether the step is to be skipped."""
        skip = ~(loss.isfinite() & norm.isfinite())
        self.skipped += skip
        self.in_a_row = (self.in_a_row + 1) * skip
        return skip

    def end(self, skip: torch.Tensor) -> None:
        if self._statistics:
            kept = torch.where(skip, self._before, _flat(self._statistics)).split(self._sizes)
            torch._foreach_copy_(self._statistics, [part.view_as(buffer) for part, buffer in zip(kept, self._statistics)])

    def counters(self) -> dict[str, torch.Tensor]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def refuse(self, step: int) -> None:
        """Raises UserError when the limit is reached. Waits for the device: call it where the loss is read back anyway."""
        if 0 < self.limit <= self.in_a_row.item():
            raise UserError(f"the loss or its gradient was not finite {int(self.in_a_row)} times in a row, up to step "
                            f"{step}: lower the learning rates, or raise warmup (max_skipped sets this limit)")


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """All numbers of some tensors in a row: a handful of kernels then does what would be one for each of them."""
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else None
