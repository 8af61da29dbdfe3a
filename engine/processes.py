"""Work shared by processes of which any may be killed. The standard library only, so that they begin soon.

    for number, result in map_processes(make, jobs, 4, "run the command again, with fewer --workers"):
        ...
"""
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any

from inference.errors import UserError


def map_processes(make: Callable, jobs: Sequence, processes: int, way_out: str) -> Iterator[tuple[int, Any]]:
    """(number of the job, function(job)), in the order in which they are ready; `function` is what `make()` returns in each
    process. make, the jobs and the results must be picklable.

    Raises what `make` or `function` raises, and UserError with `way_out` when a process cannot start or dies. The processes
    outlive neither the iterator nor this process, even if it is killed, and leave Ctrl-C to it. Each has a pipe of its own,
    and they share no queue: whoever is killed at whatever moment, the other end of its pipe is closed, and nobody waits for
    ever.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of threads, such as OpenCV's
    rest, pipes, started, under_way = enumerate(jobs), [], [], {}  # under_way: {our end of a pipe: number of the job}

    def give(pipe):
        """Send the next job, or close the pipe, by which the process ends."""
        with _death_named(way_out):
            under_way[pipe], job = next(rest, (None, None))
            if under_way[pipe] is not None:
                return pipe.send(job)
        del under_way[pipe]
        pipe.close()

    try:
        for _ in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            process = context.Process(target=_work, args=(theirs, make), daemon=True)
            try:
                with _interrupts_ignored():
                    process.start()
            except OSError as error:
                raise UserError(f"a worker process cannot start ({error.strerror}); {way_out}") from None
            started.append(process)
            theirs.close()
        for pipe in pipes:
            give(pipe)
        while under_way:
            for pipe in multiprocessing.connection.wait(list(under_way)):
                with _death_named(way_out):
                    result, error = pipe.recv()
                if error is not None:
                    raise error
                number = under_way[pipe]
                give(pipe)
                yield number, result
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.terminate()
            process.join()


def _work(pipe, make):
    """Answer each job that comes through the pipe with (result, None) or (None, exception), until the pipe is closed."""
    function = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = pipe.recv()
            try:
                function = function or make()
                answer = function(job), None
            except Exception as error:
                answer = None, ExceptionWithTraceback(error, error.__traceback__)
            pipe.send(answer)


@contextlib.contextmanager
def _death_named(way_out):
    try:
        yield
    except (EOFError, ConnectionError):
        raise UserError(f"a worker process has died, as happens when memory is short; {way_out}") from None


@contextlib.contextmanager
def _interrupts_ignored():
    """Processes that are started in the block inherit it. Handlers belong to the main thread; elsewhere it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
