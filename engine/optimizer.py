"""AdamW over parameter groups, each with its own rate and scaling rule, and its state as plain tensors."""
from collections.abc import Iterable

import torch
from torch import nn

from engine.schedules import scaled_lr


def decay_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, rule: str, weight_decay: float,
                 name: str = "") -> list[dict]:
    """Two groups of one rate: weight matrices and kernels, which decay; norms and biases, the parameters of one dimension,
    which do not. name: how the log calls their rate, lr/<name>; "": lr."""
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    common = {"lr": lr, "rule": rule, "name": name}
    return [{**common, "params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {**common, "params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]


def make_optimizer(groups: list[dict], batch_size: int) -> torch.optim.Optimizer:
    """AdamW, https://arxiv.org/abs/1711.05101, over a task's `param_groups`, whose rates are brought to the batch size."""
    groups = [{**group, "base_lr": scaled_lr(group["lr"], batch_size, group["rule"])} for group in groups]
    return torch.optim.AdamW(groups, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's rate to `factor` of its own; returns {"lr" or "lr/<name>": rate} for the log."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates["lr/" + group["name"] if group["name"] else "lr"] = group["lr"]
    return rates


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state as {"<parameter number>.<name>": tensor}; the numbers are those of the groups' parameters in order."""
    return {f"{number}.{name}": value for number, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Take what `optimizer_state` gave; rates and other settings stay the optimizer's own."""
    states: dict = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        states.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, state in optimizer.state.items():  # in the parameter's memory format: fused kernels assume it
        state.update({name: torch.empty_like(parameter).copy_(value) for name, value in state.items()
                      if value.shape == parameter.shape})
