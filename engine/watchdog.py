"""No run hangs, and none ends without a line on every rank that says why.

Each rank writes every few seconds into the group's store where it is. (The store, not a collective: that may be what hangs.)
Rank 0 looks for a rank that no longer writes or that makes no progress, the others look at rank 0. The first rank that ends
with an error leaves its reason in the store, and all end with that reason.
"""
import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time

import torch
import torch.distributed as dist

from engine.distributed import Ranks, all_reduce_max
from inference.errors import UserError, first_line, printable

PERIOD = 2.0        # seconds between two looks
REASON_WAIT = 2.0   # seconds that a rank which lost contact waits for the reason
# What a rank can do, in the order of a step. An evaluation may take any time, and so may reading the images at the start.
PHASES = "starting", "loading images", "computing", "saving", "evaluating"
LIMITED = PHASES[1:4]
WAY_OUT = "resume=auto continues from the newest checkpoint"
log = logging.getLogger("docmetric")


class Watchdog:
    """Around a run: `with Watchdog(ranks, minutes) as watchdog:`, and in it `watchdog.at(step, phase)`.

    When some rank has been in one of the `LIMITED` phases of one step, or silent, for longer than `minutes` (0: no limit),
    every rank that still can prints one line that names it and the step, and ends with status 2: by `os._exit`, since the
    main thread is the one that hangs. An error inside becomes a UserError where a user can do something about it: lost
    contact (with the reason of the rank that ended), no memory left. Without `ranks.store` a rank watches itself alone.
    """

    _runs = itertools.count()

    def __init__(self, ranks: Ranks, minutes: float, period: float = PERIOD):
        self.ranks, self.limit, self.period = ranks, 60 * minutes or float("inf"), period
        self._where, self._written = (0, PHASES[0]), itertools.count()
        self._seen = {}  # rank: (what it wrote last, when that was, since when it is in that place)
        # A copy of the store has a connection of its own: a collective that waits for the store does not block this one. And
        # the keys are this run's: a reason that ended an earlier run of this process is not this one's.
        store = ranks.store.clone() if ranks.store else dist.HashStore()
        self._store = dist.PrefixStore(f"watchdog-{next(self._runs)}", store)
        self._watched = [ranks.rank] if not ranks.store else range(ranks.world) if ranks.rank == 0 else [0]
        self._looked = time.monotonic()
        self._ending, self._left = threading.Lock(), threading.Event()

    def at(self, step: int, phase: str) -> None:
        """The run is at optimizer step `step`, counted from 1, doing one of `PHASES`."""
        self._where = step, phase

    def __enter__(self):
        self._write()
        all_reduce_max(0)  # from here on every rank has written something
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback):
        if error is None:
            try:
                all_reduce_max(0)  # nobody goes while others may still look at it
            except Exception as lost:
                error = lost
        with self._ending:
            self._left.set()
        if error is None:
            return
        said = self._explained(error)
        self._to_log_file(said or f"{type(error).__name__}: {first_line(error)}")
        if said:
            raise UserError(said) from None
        if kind is None:
            raise error

    def _explained(self, error: BaseException) -> str | None:
        """One line for what a user can do something about; leaves the reason for the others, if it is this rank's own."""
        where = self._place(*self._where)
        if self.ranks.world > 1 and (isinstance(error, dist.DistError)
                                     or isinstance(error, RuntimeError) and "gloo" in str(error)):
            reason = self._reason_of_others()
            if reason is None:
                reason = (f"contact with the other ranks was lost {where} ({_transport(error)}): one was killed, or its "
                          f"machine is gone; {WAY_OUT}")
                self._leave_reason(reason)
            return self._mine(reason)
        said = None
        if isinstance(error, UserError):
            said = str(error)
        elif (isinstance(error, (MemoryError, torch.OutOfMemoryError))
              or isinstance(error, RuntimeError) and "allocate memory" in str(error)):  # the CPU's
            said = (f"out of memory {where}: raise accumulate or lower batch_size, or, for the class centers, use more "
                    f"processes, a smaller expansion or embedding_size ({first_line(error)})")
        self._leave_reason(f"rank {self.ranks.rank} ended {where}: "
                           + (said or f"{type(error).__name__}: {first_line(error)}"))
        return said

    def _reason_of_others(self) -> str | None:
        deadline = time.monotonic() + REASON_WAIT
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:
                if self._store.check(["end"]):
                    return self._store.get("end").decode()
                time.sleep(0.05)
        return None

    def _watch(self) -> None:
        while not self._left.wait(self.period):
            try:
                reason = self._look()
            except RuntimeError as error:
                reason = f"the process that keeps the group's store is gone ({first_line(error)})"
            if reason is None:
                continue
            with self._ending:
                if not self._left.is_set():  # else the main thread says its own
                    message = self._mine(reason)
                    self._to_log_file(message)
                    print(f"error: {printable(message)}", file=sys.stderr, flush=True)
                    os._exit(2)

    def _look(self) -> str | None:
        """Write where this rank is; the reason why the run must end, if there is one."""
        self._write()
        if self._store.check(["end"]):
            return self._store.get("end").decode()
        now, last_look = time.monotonic(), self._looked
        self._looked = now
        if now - last_look > 10 * self.period:  # this process itself was stopped: Ctrl-Z, a machine asleep
            self._seen.clear()
        for rank in self._watched:
            wrote = json.loads(self._store.get(f"at/{rank}"))
            before, heard, since = self._seen.get(rank, ([None], now, now))
            self._seen[rank] = (wrote, heard if wrote[0] == before[0] else now, since if wrote[1:] == before[1:] else now)
        reason = self._overdue(now)
        if reason:
            self._leave_reason(reason)
        return reason

    def _write(self) -> None:
        self._store.set(f"at/{self.ranks.rank}", json.dumps([next(self._written), *self._where]))

    def _leave_reason(self, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it all who could read this
            self._store.compare_set("end", "", printable(reason))  # the first reason stays

    def _overdue(self, now: float) -> str | None:
        """Who has been silent, or in one place, for too long. A silent rank is in one place as well: it is the one named."""
        silence, mute = max((now - heard, rank) for rank, (_, heard, _) in self._seen.items())
        stands = max([now - since for (_, _, phase), _, since in self._seen.values()
                      if phase in LIMITED and self.ranks.rank == 0], default=0.0)  # which sees them all
        if max(silence, stands) <= self.limit:
            return None
        places = {rank: (step, PHASES.index(phase)) for rank, ((_, step, phase), _, _) in self._seen.items()}
        if silence > min(self.limit, 5 * self.period):
            step, phase = places[mute]
            return (f"rank {mute} has said nothing for {_span(silence)}, last {self._place(step, PHASES[phase])}: see "
                    f"whether its process and machine are alive; {WAY_OUT}")
        step, phase = min(places.values())
        behind = [rank for rank, place in places.items() if place == (step, phase)]
        who = f"rank{'s' * (len(behind) > 1)} {', '.join(map(str, behind[:8]))}{', ...' * (len(behind) > 8)}"
        return (f"the run has stood still for {_span(stands)}; furthest behind: {who}, "
                f"{self._place(step, PHASES[phase])}. Does its disk and network answer? stall_minutes sets how long a step "
                f"may take; {WAY_OUT}")

    def _mine(self, reason: str) -> str:
        return f"rank {self.ranks.rank} stops: {reason}" if self.ranks.world > 1 else reason

    @staticmethod
    def _place(step: int, phase: str) -> str:
        return f"at step {step} ({phase})" if step else "before the first step"

    @staticmethod
    def _to_log_file(message: str) -> None:
        """The console gets it when the process ends."""
        for handler in log.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(log.makeRecord(log.name, logging.ERROR, "", 0, f"error: {message}", (), None))


def _transport(error: BaseException) -> str:
    """What gloo says went wrong, without the place in its source and its guesses."""
    return first_line(error).rpartition("] ")[2].partition(". ")[0]


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
