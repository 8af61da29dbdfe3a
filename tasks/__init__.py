"""What a run can learn: one file a task. The config's `task` chooses the file; nothing else knows the tasks by name."""
import importlib
from pathlib import Path

from inference.errors import UserError
from tasks.base import Evaluation, Export, Sharded, Task

__all__ = ["Evaluation", "Export", "Sharded", "Task", "build_task", "get_task", "names"]
SHARED = "__init__", "base", "images", "labels", "objects", "teachers"  # files of this folder that are no task


def names() -> list[str]:
    """The tasks there are."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in SHARED)


def get_task(name: str) -> type[Task]:
    """The task class of `tasks/<name>.py`, the one subclass of `Task` that this file defines. Raises UserError."""
    if name not in names():  # nor is any other module imported: the name may come from an untrusted run
        raise UserError(f"task={name}: not known; choose from {', '.join(names())}")
    module = importlib.import_module(f"tasks.{name}")
    found, = (value for value in vars(module).values()
              if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__)
    return found


def build_task(cfg, ranks) -> Task:
    """The task of a config, on this rank."""
    return get_task(cfg.task)(cfg, ranks)
