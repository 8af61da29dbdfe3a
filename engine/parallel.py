"""A model as the loop calls it: on its device, compiled where that works, wrapped for several ranks."""
import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import Ranks
from inference.errors import first_line


def prepare(model: nn.Module, example: Callable[[], tuple[torch.Tensor, ...]], ranks: Ranks, compile: bool,
            precision: str) -> tuple[nn.Module, str | None]:
    """(the form of `model` to call in training, why it is not compiled though `compile` asks for it).

    `model` itself keeps the parameters and is left as it was, on the rank's device and in channels_last, which is 1.4 times
    as fast as NCHW on a CPU. example: inputs to try it with. Around the model alone: sharded parameters must not be
    averaged over the ranks.
    """
    model.to(ranks.device, memory_format=torch.channels_last)
    forward, cannot = model, None
    if compile:
        try:  # compiling is put off until the first call, so it is tried here
            forward = torch.compile(model)
            warm_up(forward, model, example(), precision)
        except Exception as error:  # of any part of the compiler, or of what it calls
            forward, cannot = model, first_line(error)
    if ranks.world > 1:
        forward = DistributedDataParallel(forward, [ranks.device] if ranks.device.type == "cuda" else None)
        # Its first backward pass decides where in its buckets each gradient lies, and so how sums over three ranks are
        # rounded. Were that a step's, a resumed run would differ by a bit from one that never stopped.
        warm_up(forward, model, example(), precision)
    return forward, cannot


def warm_up(forward: nn.Module, model: nn.Module, inputs: tuple[torch.Tensor, ...], precision: str) -> None:
    """One forward and backward pass of `forward`, a form of `model`, whose numbers stay as they were."""
    before = copy.deepcopy(model.state_dict())
    try:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = forward(*inputs)
        sum(output.float().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    finally:
        model.load_state_dict(before)  # BatchNorm's statistics
        model.zero_grad()
