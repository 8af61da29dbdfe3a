"""Disks that are full: a small tmpfs, where this process is allowed to mount one."""
import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(place, megabytes: int):
    """The new folder `place` as a separate disk. Skips the test without the permission to mount."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the permission to mount")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk):
    """A file `filler` takes all that is left."""
    with open(disk / "filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
