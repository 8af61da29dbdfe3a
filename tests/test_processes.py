"""Work in several processes, of which any may be killed; and the commands that work so, with a real kill -9."""
import functools
import multiprocessing
import os
import signal
from multiprocessing.context import SpawnProcess

import pytest

from engine.processes import map_processes
from inference.errors import UserError
from tests.helpers.programs import Program, wait_until, workers_of

WAY_OUT = "give it again"


def make(fatal=None, broken=None):
    """Squares; a job kills the process, another fails."""
    def function(job):
        if job == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if job == broken:
            raise OSError(28, "no room", "a file")
        return job ** 2
    return function


def make_nothing():
    raise UserError("no model here")


@pytest.mark.parametrize("jobs", [0, 1, 7])
def test_every_job_is_done_once_and_no_process_stays(jobs):
    found = sorted(map_processes(make, range(jobs), 3, WAY_OUT))
    assert found == [(number, number ** 2) for number in range(jobs)] and not multiprocessing.active_children()


@pytest.mark.parametrize("function, kind, says", [
    (functools.partial(make, fatal=2), UserError, f"has died.*; {WAY_OUT}"), (make_nothing, UserError, "no model here"),
    (functools.partial(make, broken=2), OSError, "no room: 'a file'"),
])
def test_a_process_that_dies_or_fails_ends_the_work(function, kind, says):
    done = []
    with pytest.raises(kind, match=says) as error:
        for number, result in map_processes(function, range(50), 2, WAY_OUT):
            done.append(number)
    assert not multiprocessing.active_children() and len(done) < 50
    assert kind is UserError or "in function" in str(error.value.__cause__)  # where in the other process


def test_a_process_that_cannot_start_ends_those_that_have(monkeypatch):
    start, left = SpawnProcess.start, iter(range(1))

    def refuse(process):
        if next(left, None) is None:
            raise BlockingIOError(11, "no more processes")
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", refuse)
    with pytest.raises(UserError, match=f"cannot start .no more processes.; {WAY_OUT}"):
        list(map_processes(make, range(9), 3, WAY_OUT))
    assert not multiprocessing.active_children()


def test_who_stops_listening_ends_the_processes():
    results = map_processes(make, range(1000), 2, WAY_OUT)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("words, begun, kept", [
    (["ocr", "lines", "--count", "1000", "--height", "24"], "out/parts/*.json", "out/parts/*.json"),
    (["synth", "--types", "400", "--copies", "3"], "out.part/*/*.jpg", "out/*"),
], ids=["ocr lines", "synth"])
def test_a_killed_worker_ends_the_command(tmp_path, words, begun, kept):
    program = Program("-m", *words, "--out", tmp_path / "out", "--workers", 2)
    wait_until(lambda: any(tmp_path.glob(begun)), program)
    before = set(tmp_path.glob(kept))
    os.kill(workers_of(program.pid)[-1], signal.SIGKILL)
    done = program.wait(60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("give the command again, with fewer --workers")
    assert not done.stdout and before <= set(tmp_path.glob(kept)) and not any(tmp_path.glob("out/lines.tsv"))
