"""What the benchmarks share: timing in turns, peak memory, and rows of ours, the peer's and the limit.

    python benchmarks/bench_NAME.py [--quick] [--json]

A row is {name, ours, peer, limit, ratio, unit}. `ratio` says how many times better ours is than the peer's; `limit` is what
the machine itself allows (measured in the same run), null where none applies. `--quick` takes smaller sizes, to see that
everything runs; its figures are not to be quoted. `--json` prints one document: {machine, rows}.
"""
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from inference.cli import Parser, run_cli  # noqa: E402
from inference.errors import UserError  # noqa: E402
from inference.image import available_cores  # noqa: E402

__all__ = ["ONE_ALLOCATOR", "Report", "UserError", "medians", "peak_memory", "run_cli", "synchronize",
           "under_each_allocator"]


class Report:
    """Parses `--quick` and `--json`, collects rows, prints each as it comes, and the JSON document at the end.

    description: the benchmark's docstring, with its command lines, which is what --help shows. head: False for a benchmark
    with a table of its own: it says its lines by itself and only records the rows."""

    def __init__(self, description: str, *options: tuple[str, dict], head: bool = True):
        parser = Parser(description=description)
        parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
        parser.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else there")
        for flag, settings in options:
            parser.add_argument(flag, **settings)
        self.args = parser.parse_args()
        self.quick, self.rows = self.args.quick, []
        self.say(machine())
        if head:
            self.say(f"{'':<64} {'ours':>11} {'peer':>11} {'limit':>11}   ratio")

    def record(self, name: str, ours: float, peer: float | None = None, limit: float | None = None, unit: str = "ms",
               higher_is_better: bool = False) -> float | None:
        """Add a row to the JSON document alone. Returns its ratio."""
        ratio = None if not (ours and peer) else ours / peer if higher_is_better else peer / ours
        self.rows.append({"name": name, "ours": ours, "peer": peer, "limit": limit, "ratio": ratio, "unit": unit})
        return ratio

    def add(self, name: str, ours: float, peer: float | None = None, limit: float | None = None, unit: str = "ms",
            higher_is_better: bool = False) -> None:
        ratio = self.record(name, ours, peer, limit, unit, higher_is_better)
        shown = [f"{value:11.5g}" if value is not None else f"{'-':>11}" for value in (ours, peer, limit)]
        self.say(f"{name:<64} {' '.join(shown)} {'' if ratio is None else f'{ratio:6.2f}x'}  {unit}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr if self.args.json else sys.stdout, flush=True)

    def end(self) -> None:
        if self.args.json:
            print(json.dumps({"machine": machine(), "rows": self.rows}, indent=2))


# glibc gives large buffers back to the kernel and takes them again, page by page; the other setting is that of run.sh.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
ALLOCATORS = {"default malloc": {}, "malloc that keeps its memory": KEPT}
ONE_ALLOCATOR = ("--one-allocator", {"action": "store_true", "help": "on a CPU: under this process's allocator alone"})


def under_each_allocator(report: Report, run: Callable[[], None]) -> None:
    """`run()`, which adds rows; on a CPU once for each of ALLOCATORS, in processes of their own (quick: for the last)."""
    if torch.cuda.is_available() or report.args.one_allocator:
        run()
        return
    for name, settings in list(ALLOCATORS.items())[-1 if report.quick else 0:]:
        report.say(f"-- {name}")
        environment = {key: value for key, value in os.environ.items() if key not in KEPT} | settings
        command = [sys.executable, *sys.argv, "--one-allocator", *(["--json"] if not report.args.json else [])]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(f"{sys.argv[0]} --one-allocator ended with {done.returncode}; its error is above")
        report.rows += [{**row, "name": f"{name}, {row['name']}"} for row in json.loads(done.stdout)["rows"]]


def machine() -> str:
    """The machine in a line: processor or GPU, cores, torch, and the allocator's settings, which decide much on a CPU."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), cpu)
    malloc = ", ".join(f"{key}={os.environ[key]}" for key in sorted(os.environ) if key.startswith("MALLOC_"))
    return ", ".join(([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])
                     + [f"{cpu}, {available_cores()} cores", f"torch {torch.__version__}",
                        f"{torch.get_num_threads()} threads", malloc or "default malloc"])


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def medians(functions: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each function; they take turns, so that a noisy machine is noisy for all of them alike."""
    for function in list(functions.values()) * warm_up:
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize()
            began = time.perf_counter()
            function()
            synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that `function` takes at its peak beyond what was held before: on the GPU, or resident on a CPU (Linux)."""
    gc.collect()
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is returned, so that taking it again is measured
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    function()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
