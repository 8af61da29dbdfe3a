"""The project's commands, each in a process of its own, as a user starts them."""
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.ranks import FRESH

ROOT = Path(__file__).resolve().parents[2]


def run(*words, status=0, cwd=ROOT) -> subprocess.CompletedProcess:
    """`python WORDS` in a new interpreter; it must end with `status`."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run_without(modules, *words) -> subprocess.CompletedProcess:
    """`python -m PACKAGE ...` in a new interpreter where none of `modules` can be imported."""
    assert words[0] == "-m"
    code = f"""
import runpy, sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {list(modules)!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv[1:] = {[str(word) for word in words[2:]]!r}
runpy.run_module({words[1]!r}, run_name="__main__")
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "MPLBACKEND": "tkagg"})    # needs a display, which no command may use


def run_with_only(modules, script, *words, cwd) -> subprocess.CompletedProcess:
    """`python SCRIPT WORDS` in a new interpreter that can import `modules` and the standard library alone."""
    code = f"""
import runpy, sys
class Guard:
    def find_spec(self, name, *_):
        if name.partition(".")[0] not in sys.stdlib_module_names | {set(modules)!r}:
            raise ImportError("not allowed: " + name)
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[1:]
sys.path[0] = ""
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return subprocess.run([sys.executable, "-c", code, str(script), *map(str, words)], cwd=cwd, capture_output=True,
                          text=True)


class Program:
    """`python WORDS` in a process forked from one that has imported torch, which saves seconds. It has its own `__main__`,
    arguments, working folder, environment, streams and exit status, and is the leader of a process group for signals.
    """

    def __init__(self, *words, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._process = multiprocessing.get_context(FRESH).Process(
            target=_become, args=(list(map(str, words)), {key: str(value) for key, value in environment.items()},
                                  self._folder.name))
        self._process.start()
        self.pid = self._process.pid

    def running(self) -> bool:
        return self._process.is_alive()

    def said(self, stream="stderr") -> str:
        """What it has written so far."""
        return Path(self._folder.name, stream).read_text()

    def wait(self, timeout=120) -> subprocess.CompletedProcess:
        """Wait for its end. A program that has not ended after `timeout` seconds is killed, and AssertionError raised."""
        self._process.join(timeout)
        if self.running():
            self._process.kill()
            raise AssertionError(f"did not end: {self.said()}")
        return subprocess.CompletedProcess([], self._process.exitcode, self.said("stdout"), self.said("stderr"))


def _become(words, environment, folder):
    multiprocessing.set_start_method(None, force=True)  # what Python does by default, as in a program of its own
    os.setsid()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.chdir(ROOT)
    if words[0] == "-m":
        sys.path[0], sys.argv = "", words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name="__main__")


def workers_of(pid) -> list[int]:
    """The ids of the worker processes that a program has started by now."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def launch(world: int, *words) -> list[subprocess.CompletedProcess]:
    """`world` processes with the environment that torchrun gives its ranks; their results in rank order. When one fails, no
    torchrun ends the others, so each must end by itself."""
    port = free_port()
    ranks = [Program(*words, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_ADDR="127.0.0.1",
                     MASTER_PORT=port) for rank in range(world)]
    return [rank.wait() for rank in ranks]


def torchrun(processes: int, *words) -> Program:
    """torchrun itself, which starts each rank in a new interpreter."""
    return Program("-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_addr=127.0.0.1",
                   f"--master_port={free_port()}", *words)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(condition, program: Program, timeout=120) -> None:
    """Wait until `condition()` is true. AssertionError if `program` ends before, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert program.running() and time.monotonic() < deadline, program.said()
        time.sleep(0.05)
