"""A stage in a program of its own, without torch."""
import os
import signal

from adverts.run import Stage, Stages
from inference.cli import run_cli


def run_stage(folder, stage: Stage):
    """Run a stage as the leader of a process group."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a program in the background does not have
    run_cli(lambda: Stages(folder).run(stage))
