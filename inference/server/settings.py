"""What a server is told at its start, and the command line that says it."""
import argparse
import dataclasses
import functools
import ipaddress
import math
import re
from pathlib import Path

from ..cli import Parser
from ..errors import printable
from ..image import available_cores

SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes are bytes, times seconds. What bounds the server (`queue`, `queue_bytes`, `answer_bytes`, `connections`) holds
    for all its worker processes together; each has an equal share of it.
    """
    store: str
    host: str = "127.0.0.1"
    port: int = 8080                # 0: any free one
    workers: int = 0                # processes; 0: one for each core
    threads: int = 0                # threads of a process that decode images and run the network; 0: chosen by `workers`
    no_auth: bool = False           # serve without keys even beyond this machine
    host_names: tuple[str, ...] = ()  # names of this server, see `host_name`; where no key is asked for it has no others
    index: str | None = None        # what searches, see registry/engines.py; None: memory, exact
    backend: str = "cpu"            # or "cuda": of the network
    keep_unknown: float = 0.0       # how long pictures of unknowns are kept; 0: not at all
    keep_decisions: int = 100_000   # how many decisions are kept, without their images
    max_body: int = 32 << 20
    max_import: int = 2 << 30       # the body of an import or a model, which goes to a file while it arrives
    queue: int = 512                # requests at once; more get 503
    queue_bytes: int = 512 << 20    # of the bodies of those requests
    answer_bytes: int = 512 << 20   # of answers that wait to be read; beyond it the slowest readers are cut off
    connections: int = 10_000       # open ones, most of them idle; more get 503
    header_timeout: float = 10.0    # from a connection or from a request's first byte to the end of its headers
    body_timeout: float = 10.0      # without `body_rate` a body may take this long
    body_rate: int = 16 << 10       # bytes a second that a body must come with after `body_timeout`
    answer_timeout: float = 30.0    # without `answer_rate` an answer may wait so long to be read
    answer_rate: int = 16 << 10     # bytes a second that a client must read after `answer_timeout`
    idle_timeout: float = 75.0      # of a connection between two requests
    work_timeout: float = 30.0      # a request that could not begin its work by then gets 503
    drain_timeout: float = 30.0     # running requests have this long to end when the server is stopped
    log_requests: bool = False      # one line for each request on stderr

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def processes(self) -> int:
        """Worker processes."""
        return self.workers or cores()

    @property
    def threads_each(self) -> int:
        """Threads of a process for what is quick. At least two: beside a large image a small one goes on."""
        return self.threads or max(2, -(-cores() // self.processes))

    @property
    def queue_each(self) -> int:
        return -(-self.queue // self.processes)

    @property
    def bytes_each(self) -> int:
        """Never less than one body."""
        return max(self.queue_bytes // self.processes, self.max_body)

    @property
    def answer_bytes_each(self) -> int:
        return -(-self.answer_bytes // self.processes)

    @property
    def connections_each(self) -> int:
        return -(-self.connections // self.processes)


@functools.cache
def cores() -> int:
    """Cores that this process may use, or fewer, where its control group has a quota: `docker run --cpus 2`."""
    return max(1, min(available_cores(), math.ceil(min(quota(), 1e6))))


def quota(own: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """Cores' worth of time that a process may take: the least `cpu.max` of its control group and of those around it
    (https://docs.kernel.org/admin-guide/cgroup-v2.html). `own`: the file that names the group; infinity: no limit."""
    try:
        group = next(line[3:] for line in Path(own).read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return math.inf
    folder, least = Path(root) / group.lstrip("/"), math.inf
    for place in (folder, *folder.parents):
        try:
            most, period = map(int, (place / "cpu.max").read_text().split())
            least = min(least, most / period)
        except (OSError, ValueError):  # no such file; "max"
            pass
        if place == Path(root):
            break
    return least


def size(text: str) -> int:
    """"32MiB" -> bytes."""
    found = re.fullmatch(r"(\d{1,12})\s*([A-Za-z]*)", text)
    if not found or found[2] not in SIZES or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is no size; write it like 500KiB or 32MiB')
    return int(found[1]) * SIZES[found[2]]


def duration(text: str) -> float:
    """"30d" -> seconds."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([a-z]?)", text)
    if not found or found[2] not in DURATIONS:
        raise argparse.ArgumentTypeError(f'"{text}" is no duration; write it like 30s, 12h or 30d')
    return float(found[1]) * DURATIONS[found[2]]


def host_name(text: str) -> str:
    """A name, or an address without brackets, by which clients call the server: "Documents.example.com" -> in lower case."""
    name = text.lower().removeprefix("[").removesuffix("]")
    if not re.fullmatch("[a-z0-9_.-]{1,253}", name):
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise argparse.ArgumentTypeError(f'"{printable(text)}" is no name of a host; write it like '
                                             "documents.example.com, without https:// and a port") from None
    return name


def between(least: int, most: int):
    def number(text):
        if not re.fullmatch(r"\d{1,12}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f'"{text}" is no number from {least} to {most:,}')
        return int(text)
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m inference.server`, whose names are those of `Settings`."""
    default = {field.name: field.default for field in dataclasses.fields(Settings)}

    def option(name, kind, text, shown=None):
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=default[name],
                            help=f"{text} (default: {default[name] if shown is None else shown})")

    parser.add_argument("store", help="the folder of the store, see docmetric init")
    option("host", str, "address to listen on; 0.0.0.0 is every network of this machine")
    option("port", between(0, 65535), "port to listen on; 0: any free one")
    option("workers", between(0, 64), "processes", "one for each core that it may use")
    option("threads", between(0, 64), "threads of a process that decode images and run the network", "chosen by --workers")
    parser.add_argument("--no-auth", action="store_true", help="serve beyond this machine without any key")
    parser.add_argument("--host-name", type=host_name, action="append", default=[], dest="host_names", metavar="NAME",
                        help="a name of this server, such as that of the proxy before it; may be given several times. "
                        "Without keys it answers by no others than localhost, its --host, and these")
    option("index", str, "what searches: memory, faiss, postgresql://..., qdrant+http://..., see docs/registry.md", "memory")
    parser.add_argument("--backend", default=default["backend"], choices=("cpu", "cuda"), help="what runs the network")
    option("keep_unknown", duration, "keep the images of unknown documents for so long, such as 30d", "they are not kept")
    option("keep_decisions", between(0, 10 ** 9), "decisions to remember, without their images", "100,000")
    option("max_body", size, "largest body of a request", "32MiB")
    option("max_import", size, "largest archive of an import, and largest model", "2GiB")
    option("queue", between(1, 10 ** 6), "requests at once; more are answered 503")
    option("queue_bytes", size, "bytes of their bodies; more are answered 503", "512MiB")
    option("answer_bytes", size, "answers that wait to be read; beyond it the slowest readers are cut off", "512MiB")
    option("connections", between(1, 10 ** 6), "open connections; more are answered 503", "10,000")
    option("header_timeout", duration, "the headers of a request must arrive within this time", "10s")
    option("body_timeout", duration, "a body may take this long, and longer only as --body-rate allows", "10s")
    option("body_rate", size, "bytes a second that a body must arrive with", "16KiB")
    option("answer_timeout", duration, "an answer may take so long to be read, longer only as --answer-rate allows", "30s")
    option("answer_rate", size, "bytes a second that an answer must be read with", "16KiB")
    option("idle_timeout", duration, "a connection between two requests is closed after this time", "75s")
    option("work_timeout", duration, "a request that waits longer for its work is answered 503", "30s")
    option("drain_timeout", duration, "when stopped, running requests have this long to end", "30s")
    parser.add_argument("--log-requests", action="store_true", help="write one line for each request to stderr")


def parse(description: str, arguments=None, program: str = "python -m inference.server") -> Settings:
    """The command line -> Settings. Raises UserError."""
    parser = Parser(prog=program, description=description)
    add_arguments(parser)
    given = vars(parser.parse_args(arguments))
    return Settings(**given | {"host_names": tuple(given["host_names"])})
