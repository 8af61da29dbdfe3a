"""The rows of a run for TensorBoard, through TensorBoard's own record format."""
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Board:
    """An event file in `folder`. A resumed run, from step `start`, makes TensorBoard drop what came after that.

    Not torch's SummaryWriter: its writing thread dies of a full disk, with a traceback and the rows that follow, and to
    bring it back takes more code than these records. Here a row has left the process when `write` returns; what a full
    disk does not take waits, and goes first when there is room again. Raises OSError then.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(exist_ok=True)
        host = f"{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # TensorBoard sorts names to find what came first
        self._file, self._waiting = open(folder / f"events.out.tfevents.{host}", "ab", buffering=0), bytearray()
        self._add(file_version="brain.Event:2")
        if start:
            self._add(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def write(self, row: dict) -> None:
        """Add {name: number}; `step` is one of them."""
        self._add(step=row["step"], summary=Summary(value=[Summary.Value(tag=name, simple_value=value)
                                                           for name, value in row.items() if name != "step"]))
        self._flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **of) -> None:
        RecordWriter(_Into(self._waiting)).write(Event(wall_time=time.time(), **of).SerializeToString())

    def _flush(self) -> None:
        while self._waiting:
            del self._waiting[:self._file.write(self._waiting)]


class _Into:
    """A file for RecordWriter that is memory."""

    def __init__(self, room: bytearray):
        self.write = room.extend
