"""How far a run has come, by what is in its folder. The standard library only."""
import json
from pathlib import Path


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps that `folder` has checkpoints of, whole or not, ascending."""
    return sorted(int(path.name[5:]) for path in Path(folder).glob("step-*") if path.name[5:].isdecimal())


def unfinished(run) -> str:
    """"step 500 of 2000" for a run that has not come to its end, by its newest checkpoint; "" for one that has, and where
    the run's folder does not tell: its checkpoints may have been removed."""
    steps = checkpoint_steps(Path(run) / "checkpoints")
    try:
        total = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))["steps"]
        return f"step {steps[-1]} of {total}" if steps and steps[-1] < total else ""
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # no run.json of a run: others say so
        return ""
