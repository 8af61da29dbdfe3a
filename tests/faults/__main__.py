"""The long form of the fault tests, ten minutes on 2 cores:

    python -m tests.faults
"""
import subprocess
import sys

LONG = (["tests.faults.kills", "--rounds", "50"],
        ["tests.faults.images", "--count", "100000"],
        ["tests.faults.images", "--count", "200000", "--headers"])

if __name__ == "__main__":
    for command in LONG:
        print("==", "python -m", *command, flush=True)
        if status := subprocess.run([sys.executable, "-m", *command]).returncode:
            sys.exit(status)
