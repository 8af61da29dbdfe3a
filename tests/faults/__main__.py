"""The long form of the fault tests, a quarter of an hour on 2 cores:

    python -m tests.faults
    python -m tests.faults.kills --rounds 10      # a part of it; others: tests.faults.images, .store, .sockets

Each part has a --help of its own.
"""
import subprocess
import sys

from inference.cli import Parser, run_cli

LONG = (["tests.faults.kills", "--rounds", "50"],
        ["tests.faults.store", "--kills", "500", "--processes", "8", "--adds", "1000", "--flips", "1000"],
        ["tests.faults.sockets"],
        ["tests.faults.images", "--count", "100000"],
        ["tests.faults.images", "--count", "200000", "--headers"])


def main(arguments=None) -> int:
    """The status of the first part that fails, or 0."""
    Parser(prog="python -m tests.faults", description=__doc__).parse_args(arguments)
    for command in LONG:
        print("==", "python -m", *command, flush=True)
        if status := subprocess.run([sys.executable, "-m", *command]).returncode:
            return status
    return 0


if __name__ == "__main__":
    run_cli(main)
