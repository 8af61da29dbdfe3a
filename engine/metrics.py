"""The numbers of a run: `results.csv`, and the same for TensorBoard."""
import csv
import io
import logging
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

COLUMNS = ("step", "samples", "loss", "lr", "images_per_second", "skipped")
log = logging.getLogger("docmetric")


class Results:
    """`output/results.csv` with `COLUMNS + columns`, and `output/tensorboard`. A run that goes on from step `start` first
    drops the rows after it.

    A row has left the process when `write` returns, so a kill loses none; on a full disk it waits for room. (SummaryWriter
    has a thread that writes up to two minutes later, and dies of a full disk.)
    """

    def __init__(self, output: Path, columns: tuple[str, ...], start: int):
        self.columns = COLUMNS + columns
        file, partial = output / "results.csv", output / ".results.csv"
        kept = []
        if start and file.exists():
            with open(file, newline="") as old:  # None: of a row that a kill cut off
                kept = [row for row in csv.DictReader(old)
                        if None not in row.values() and row.get("step", "").isdecimal() and int(row["step"]) <= start]
        partial.write_text(self._lines(kept, header=True), newline="")
        partial.replace(file)  # so that it is whole at any moment
        self.table = _Appended(file)
        (output / "tensorboard").mkdir(exist_ok=True)
        host = f"{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # names are sorted to find what came first
        self.board = _Appended(output / "tensorboard" / f"events.out.tfevents.{host}")
        self.records = RecordWriter(self.board)
        self._event(file_version="brain.Event:2")
        if start:
            self._event(step=start + 1, session_log=SessionLog(status=SessionLog.START))  # drops what came after `start`
        self.board.flush()
        self.failed = False

    def write(self, row: dict) -> None:
        """Add a row, {column: number}; `step` is one of them."""
        self.table.write(self._lines([row]).encode())
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
        self._event(step=row["step"], summary=Summary(value=values))
        try:
            self.table.flush()
            self.board.flush()
        except OSError as error:  # no reason to end the run
            if not self.failed:
                log.warning(f"results.csv, TensorBoard: cannot be written at step {row['step']} ({error.strerror}); the run "
                            "goes on, and they follow when there is room")
            self.failed = True

    def close(self) -> None:
        self.table.file.close()
        self.board.file.close()

    def _lines(self, rows: list[dict], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _event(self, **of) -> None:
        self.records.write(Event(wall_time=time.time(), **of).SerializeToString())


class _Appended:
    """A file that is appended to. What a full disk does not take waits, and goes first when there is room again."""

    def __init__(self, path: Path):
        self.file, self.waiting = open(path, "ab", buffering=0), b""

    def write(self, data: bytes) -> None:
        self.waiting += data

    def flush(self) -> None:
        while self.waiting:
            self.waiting = self.waiting[self.file.write(self.waiting):]
