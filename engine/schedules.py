"""Learning rate, margin and EMA decay as closed forms of the step: nothing to save, nothing to resume."""
import math

REFERENCE_BATCH = 512  # the global batch that learning rates are stated for, where they follow it


def scaled_lr(lr: float, batch_size: int, rule: str) -> float:
    """A stated rate `lr` at a global batch of `batch_size`.

    "linear": stated for REFERENCE_BATCH, follows the batch, for SGD (https://arxiv.org/abs/1706.02677); "sqrt": stated for
    it, follows its square root, for AdamW (https://arxiv.org/abs/2205.10287); "fixed": is the rate whatever the batch, as
    for fine-tuning a text encoder at a published 2e-5.
    """
    return lr * {"linear": batch_size / REFERENCE_BATCH, "sqrt": (batch_size / REFERENCE_BATCH) ** 0.5, "fixed": 1.0}[rule]


def lr_factor(step: int, total: int, schedule: str, warmup: float) -> float:
    """Factor on the base learning rate at `step` of `total`.

    Linear warm-up over the first `warmup` fraction (the first step is never at the full rate), then
    "polynomial" (power 1, to zero), "cosine" (SGDR, https://arxiv.org/abs/1608.03983) or "constant". "onecycle"
    (https://arxiv.org/abs/1708.07120, as torch's OneCycleLR has it): half a cosine from 1/25 up to 1 over the first `warmup`
    fraction, then another down to 1/25 of 1e-4.
    """
    if schedule == "onecycle":
        peak = max(1.0, warmup * total - 1)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1e-4 / 25, (step - peak) / max(1.0, total - 1 - peak))
    rising = int(round(warmup * total))
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, total - rising)
    if schedule == "polynomial":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def margin_factor(step: int, total: int, warmup: float) -> float:
    """Factor on the margin at `step`: grows linearly from 0 to 1 over the first `warmup` fraction of the run."""
    rising = warmup * total
    return 1.0 if step >= rising else step / rising


def ema_decay(step: int, decay: float) -> float:
    """Decay of the moving average of the weights at `step`: `decay`, but less at the start, where (1 + step) / (10 + step)
    holds the average to about the last tenth of the run so far, so that the first weights do not weigh on short runs."""
    return min(decay, (1 + step) / (10 + step))


def swa_decay(step: int, start: int) -> float:
    """Decay of the average at `step` with which it is the plain mean of the weights after `start` and all steps since; 0, so
    the weights themselves, before."""
    since = max(0, step - start)
    return since / (since + 1)
