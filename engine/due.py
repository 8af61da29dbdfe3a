"""When a run evaluates, saves and stops: by its steps, by the clock, or because some rank was asked to stop."""
from typing import NamedTuple

from engine.distributed import begin_all_reduce_max, rank_and_world
from engine.signals import StopSignals

SAVE, STOP = 1, 2  # what a rank may ask of all


class Actions(NamedTuple):
    """What is to be done after a step."""
    evaluate: bool
    save: bool
    stop: bool


class Due:
    """`ask()` in the middle of a step, `after(done)` at its end.

    A signal may reach one rank alone, and clocks differ, so the ranks agree by a maximum over small numbers on the hosts.
    It is begun before the backward pass and read after it, so that no step waits for it; what a rank learns later than
    that counts from the next step. One process alone looks at the end of the step.
    """

    def __init__(self, cfg, total: int, evaluates: bool, signals: StopSignals, checkpoints):
        self.cfg, self.total, self.evaluates, self.signals, self.checkpoints = cfg, total, evaluates, signals, checkpoints

    def ask(self) -> None:
        """Begin to ask all ranks."""
        self._answer = begin_all_reduce_max(self._wish()) if rank_and_world()[1] > 1 else self._wish

    def _wish(self) -> int:
        return STOP if self.signals.seen else SAVE if self.checkpoints.due(self.cfg.save_minutes) else 0

    def after(self, done: int) -> Actions:
        """What is due when `done` steps are done."""
        asked, end = self._answer(), done == self.total
        evaluate = self.evaluates and (end or _every(self.cfg.eval_every, done))
        return Actions(evaluate, evaluate or end or asked > 0 or _every(self.cfg.save_every, done), asked == STOP)


def _every(steps: int, done: int) -> bool:
    return steps > 0 and done % steps == 0
