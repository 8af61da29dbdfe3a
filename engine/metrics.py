"""The numbers of a run: summed up on the device, then one greppable log line, `results.csv` and TensorBoard."""
import contextlib
import csv
import io
import logging
import math
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from engine.board import Board
from inference.errors import UserError, first_line
from inference.files import replacing

COLUMNS = ("step", "samples", "loss", "lr", "images_per_second", "skipped")
log = logging.getLogger("docmetric")


class MetricLogger:
    """Loss terms and speed of the steps since the last line of the log; every term is logged, all as global means.

    add(terms) after each micro-batch, end_step(skip) after each step, write(...) when a line is due. Nothing is read back
    from the device but in `write`. `counters` go into checkpoints, and `earlier` is what one held, so that the line after
    a resume is what it would have been.
    """

    def __init__(self, batch_size: int, start: int, total: int, device: torch.device, earlier: dict, show: bool):
        self.batch_size, self.total = batch_size, total
        self._names: list[str] = []
        self._step = None                                               # [terms]: of this step so far
        self._running = torch.tensor(earlier.get("running", [0.0, 0.0]), device=device)  # sum of losses, counted steps
        self._terms = torch.tensor(earlier.get("terms", []), device=device)              # sum of each term, if several
        if self._running.shape != (2,):
            raise ValueError(f"running: {list(self._running.shape)} numbers in place of 2")
        self.clock = Clock()
        self.bar = tqdm(total=total, initial=start, unit="step", disable=not show or not sys.stderr.isatty())

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """The loss terms {name: scalar} of a micro-batch, weighted by its share of the batch."""
        self._names = list(terms)
        values = torch.stack([term.detach() for term in terms.values()])
        self._step = values if self._step is None else self._step + values

    @property
    def loss(self) -> torch.Tensor:
        """The loss of this step so far."""
        return self._step.sum()

    def end_step(self, skip: torch.Tensor) -> None:
        counted = (~skip).to(self._step.dtype)
        self._running += torch.stack([self.loss.where(~skip, 0), counted])
        if len(self._names) > 1:
            kept = self._step.where(~skip, 0)
            self._terms = self._terms + kept if len(self._terms) else kept
        self._step = None
        self.clock.steps += 1
        self.bar.update()

    def counters(self) -> dict[str, torch.Tensor]:
        return {"running": self._running, "terms": self._terms}

    def write(self, done: int, rates: dict[str, float], shown: dict[str, float], skipped: torch.Tensor) -> dict:
        """Log the steps since the last line as of step `done`; returns them as a row for `Results`."""
        (loss, counted), terms = self._running.tolist(), self._terms.tolist()
        speed, eta = self.clock.read(self.batch_size, self.total - done)
        terms = {f"loss/{name}": value / counted if counted else math.nan for name, value in zip(self._names, terms)}
        row = {"step": done, "samples": done * self.batch_size, "loss": loss / counted if counted else math.nan, **rates,
               **terms, **shown, "images_per_second": speed, "skipped": int(skipped.item())}
        log.info(f"step {done}/{self.total} loss {row['loss']:.4f} "
                 + "".join(f"{name.removeprefix('loss/')} {value:.4f} " for name, value in terms.items())
                 + "".join(f"{name} {value:.2e} " for name, value in rates.items())
                 + "".join(f"{name} {value:.3g} " for name, value in shown.items())
                 + f"{speed:.0f} img/s ETA {eta / 60:.1f} min"
                 + (f" skipped {row['skipped']} steps of non-finite loss" if row["skipped"] else ""))
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {speed:.0f} img/s")
        self._running.zero_()
        self._terms.zero_()
        return row

    def close(self) -> None:
        self.bar.close()


class Clock:
    """Speed and remaining time from the steps alone: `with clock.paused()` keeps evaluations and saves out."""

    def __init__(self):
        self.steps, self.total_steps, self.total_time = 0, 0, 0.0
        self.since = time.perf_counter()

    def read(self, batch_size: int, left: int) -> tuple[float, float]:
        """(images per second since the last call, seconds that `left` steps will take)."""
        now = time.perf_counter()
        speed = self.steps * batch_size / (now - self.since)
        self.total_steps, self.total_time = self.total_steps + self.steps, self.total_time + now - self.since
        self.steps, self.since = 0, now
        return speed, left * self.total_time / self.total_steps

    @contextlib.contextmanager
    def paused(self):
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began


class Results:
    """`output/results.csv` and `output/tensorboard`: a row of numbers at a time. A resumed run, from step `start`, first
    drops the rows after it.

    A row has left the process when `write` returns, so a kill loses none; on a full disk rows wait in memory for room, and
    the run continues. A column that comes up later, of a first evaluation say, is added to the table.
    """

    def __init__(self, output: Path, start: int):
        self.file, self.columns, self._waiting, self._whole = output / "results.csv", list(COLUMNS), [], True
        rows = self._rows() if start and self.file.exists() else []
        rows = [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) <= start]
        self.columns += [name for row in rows[:1] for name in row if name not in COLUMNS]
        self._replace(rows)
        self._written = len(rows)
        self._board = Board(output / "tensorboard", start)
        self._warned = False

    def write(self, row: dict) -> None:
        """Add a row, {column: number}; `step` is one of them."""
        self._waiting.append(row)
        for write in (self._write_table, self._board.write):
            try:
                write(row)
            except (OSError, UserError) as error:  # no reason to end the run
                if not self._warned:
                    log.warning(f"results.csv, TensorBoard: cannot be written at step {row['step']} ({first_line(error)}); "
                                "the run continues, and they follow when there is room")
                self._warned = True

    def _write_table(self, row: dict) -> None:
        new = [name for name in row if name not in self.columns]
        self.columns += new
        append, self._whole = self._whole and not new, False  # until it is written: it may end in half a row
        if append:
            with open(self.file, "a", newline="") as file:
                file.write(self._text(self._waiting))
        else:
            self._replace(self._rows()[:self._written] + self._waiting)
        self._written += len(self._waiting)
        self._waiting.clear()
        self._whole = True

    def close(self) -> None:
        self._board.close()

    def _rows(self) -> list[dict]:
        """The whole rows of the file; a kill or a full disk may have cut off the last one."""
        with open(self.file, newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]

    def _replace(self, rows: list[dict]) -> None:
        with replacing(self.file) as partial:
            partial.write_text(",".join(self.columns) + "\r\n" + self._text(rows), newline="")

    def _text(self, rows: list[dict]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, restval="").writerows(rows)
        return text.getvalue()
