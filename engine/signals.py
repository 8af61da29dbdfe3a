"""Signals that ask a run to stop."""
import os
import signal
import threading
import time


class StopSignals:
    """`with StopSignals() as signals:` SIGTERM and SIGINT (Ctrl-C) no longer end the process: `signals.seen` is then the
    name of the one that came, else "". A second Ctrl-C ends it at once; schedulers that send SIGTERM twice do not."""

    def __init__(self):
        self.seen, self._since, self._before = "", 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number, frame):
        # Within a second it is the same Ctrl-C, from the terminal and once more from torchrun.
        if self.seen and number == signal.SIGINT and time.monotonic() - self._since > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self.seen:
            self.seen, self._since = signal.Signals(number).name, time.monotonic()
